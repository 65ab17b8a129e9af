//! Any history of appends, commits, syncs and crashes leaves what the log says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rmq_wire::record::tags_code;

use super::fake_log::{FakeLog, Send};
use crate::disk::{Disk, OpenMode};
use crate::dispatch::CommittedLog;
use crate::queues::{GetStatus, Queues};
use crate::sim::SimDisk;
use crate::types::{PhyOffset, QueueOffset};

const ROOT: &str = "/store";
const TOPICS: [&str; 3] = ["a", "b", "%RETRY%c"];
const TAGS: [&str; 3] = ["", "x", "y"];

#[derive(Clone, Debug)]
enum Op {
    /// Appends to a queue with a tag and a key.
    Append {
        topic: usize,
        queue_id: i32,
        tag: usize,
        key: u8,
        pause: u16,
    },
    /// Appends what takes no place in a queue.
    Rollback,
    /// Commits what was appended, and dispatches some batches of it.
    Commit {
        steps: usize,
    },
    Sync,
    CleanRestart,
    /// The process dies when it has done this many hundredths of what it did to the disk.
    Kill {
        at: usize,
    },
    /// The machine dies, with any part of what was not synced, and the log keeps this many hundredths
    /// of its messages.
    PowerLoss {
        at: usize,
        seed: u64,
        log_kept: usize,
    },
    /// The topic is deleted and made again.
    Recreate {
        topic: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..3_usize, 0..2, 0..3_usize, 0..4_u8, 0..1500_u16).prop_map(
            |(topic, queue_id, tag, key, pause)| Op::Append { topic, queue_id, tag, key, pause }
        ),
        1 => Just(Op::Rollback),
        6 => (0..4_usize).prop_map(|steps| Op::Commit { steps }),
        3 => Just(Op::Sync),
        1 => Just(Op::CleanRestart),
        1 => (0..=100_usize).prop_map(|at| Op::Kill { at }),
        1 => (0..=100_usize, any::<u64>(), prop_oneof![Just(100), 0..=100_usize]).prop_map(
            |(at, seed, log_kept)| Op::PowerLoss { at, seed, log_kept }
        ),
        1 => (0..3_usize).prop_map(|topic| Op::Recreate { topic }),
    ]
}

/// Offset, position and tags code.
type ModelUnit = (u64, PhyOffset, i64);
type ModelQueues = BTreeMap<(&'static str, i32), Vec<ModelUnit>>;

/// A message as the model keeps it.
#[derive(Clone, Debug)]
struct Message {
    phy: PhyOffset,
    new: Send,
    key: String,
}

#[derive(Default)]
struct Model {
    log: Vec<Message>,
    next: BTreeMap<(&'static str, i32), u64>,
    time: i64,
}

impl Model {
    /// Per queue its units (offset, position, tags code), later generations in place of earlier ones.
    fn queues(&self) -> ModelQueues {
        let mut queues = ModelQueues::new();
        for Message { phy, new, .. } in self.log.iter().filter(|message| message.new.sys_flag == 0)
        {
            let units = queues.entry((new.topic, new.queue_id)).or_default();
            units.retain(|(offset, ..)| *offset < new.queue_offset);
            let tag = rmq_wire::properties::get(&new.properties, "TAGS").unwrap_or_default();
            units.push((new.queue_offset, *phy, tags_code(tag)));
        }
        queues
    }
}

impl Model {
    /// The end of every queue.
    fn ends(&self) -> impl Iterator<Item = ((&'static str, i32), u64)> {
        let end = |(queue, units): (_, Vec<ModelUnit>)| {
            (queue, units.last().map_or(0, |unit| unit.0 + 1))
        };
        self.queues().into_iter().map(end)
    }
}

/// Commits what was appended.
fn commit(log: &FakeLog, queues: &Queues, model: &Model) {
    let confirm = log.confirm_offset();
    let new = model
        .log
        .iter()
        .filter(|message| message.phy >= confirm && message.new.sys_flag == 0);
    queues.commit(
        log.end(),
        &new.map(|message| message.new.run()).collect::<Vec<_>>(),
    );
}

/// All files under a directory.
fn files(disk: &SimDisk, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in disk.list(dir).unwrap() {
        let path = dir.join(name);
        match disk.open(&path, OpenMode::Read) {
            Ok(file) => {
                let mut bytes = vec![0; file.size().unwrap() as usize];
                file.read_at(0, &mut bytes).unwrap();
                files.insert(path, bytes);
            }
            Err(_) => files.extend(self::files(disk, &path)),
        }
    }
    files
}

fn open(log: &FakeLog, disk: &SimDisk) -> Arc<Queues> {
    log.open_on(&(Arc::new(disk.clone()) as Arc<dyn Disk>), Path::new(ROOT))
        .unwrap()
}

fn check(queues: &Queues, model: &Model, confirm: PhyOffset) -> Result<(), TestCaseError> {
    let committed: Vec<Message> = model
        .log
        .iter()
        .filter(|message| message.phy < confirm)
        .cloned()
        .collect();
    let committed = Model {
        log: committed,
        ..Model::default()
    };
    let expected = committed.queues();
    let mut maxima: Vec<_> = queues
        .maxima()
        .into_iter()
        .filter(|(_, _, next)| next.0 > 0)
        .map(|(topic, queue_id, next)| (topic.to_string(), queue_id, next.0))
        .collect();
    maxima.sort();
    let ends = |(queue, units): (&(&str, i32), &Vec<ModelUnit>)| {
        (
            queue.0.to_owned(),
            queue.1,
            units.last().expect("not empty").0 + 1,
        )
    };
    let mut expected_ends: Vec<_> = expected.iter().map(ends).collect();
    expected_ends.sort();
    prop_assert_eq!(maxima, expected_ends);
    for ((topic, queue_id), units) in &expected {
        let mut at = QueueOffset(units[0].0);
        let mut seen = Vec::new();
        loop {
            let codes = std::cell::RefCell::new(Vec::new());
            let note = |code| {
                codes.borrow_mut().push(code);
                true
            };
            let result = queues.get(topic, *queue_id, at, 5, 700, &note).unwrap();
            if result.status != GetStatus::Found {
                prop_assert_eq!(result.status, GetStatus::OffsetOverflowOne);
                break;
            }
            for (record, code) in result.records.iter().zip(codes.into_inner()) {
                let record = rmq_wire::record::Record::decode(record).unwrap();
                let phy = PhyOffset(record.physical_offset as u64);
                seen.push((record.queue_offset as u64, phy, code));
            }
            at = result.next;
        }
        prop_assert_eq!(&seen, units, "{} {}", topic, queue_id);
    }
    for topic in TOPICS {
        for key in 0..4 {
            let key = format!("k{key}");
            let found = queues.query_index(topic, &key, 1000, 0, i64::MAX).unwrap();
            let hits = committed.log.iter().rev().filter(|message| {
                message.new.topic == topic && message.key == key && message.new.sys_flag == 0
            });
            prop_assert_eq!(found, hits.map(|message| message.phy).collect::<Vec<_>>());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn queues_are_what_the_log_says(ops in proptest::collection::vec(op(), 1..120)) {
        let mut disk = SimDisk::default();
        let log = FakeLog::default();
        let mut model = Model::default();
        let mut queues = open(&log, &disk);
        // What the disk had done before and after the last opening, and the log's end then.
        let mut opened = (0, disk.done(), log.end());
        for op in ops {
            match op {
                Op::Append { topic, queue_id, tag, key, pause } => {
                    let next = model.next.entry((TOPICS[topic], queue_id)).or_default();
                    let key = format!("k{key}");
                    let mut new = Send::new(TOPICS[topic], queue_id, *next)
                        .with("TAGS", TAGS[tag])
                        .with("KEYS", &key);
                    *next += 1;
                    model.time += i64::from(pause);
                    new.time += model.time;
                    model.log.push(Message { phy: log.append(&new), new, key });
                }
                Op::Rollback => {
                    let new = Send { sys_flag: 0xc, ..Send::new("a", 0, 0).with("KEYS", "k0") };
                    let new = Send { time: new.time + model.time, ..new };
                    model.log.push(Message { phy: log.append(&new), new, key: "k0".to_owned() });
                }
                Op::Commit { steps } => {
                    commit(&log, &queues, &model);
                    for _ in 0..steps {
                        queues.step().unwrap();
                    }
                }
                Op::Sync => queues.flush(false).unwrap(),
                Op::CleanRestart => {
                    queues.stop().unwrap();
                    drop(queues);
                    let before = disk.done();
                    queues = open(&log, &disk);
                    prop_assert_eq!(queues.dispatched(), log.confirm_offset());
                    // The mark that the files are in use, and nothing else.
                    prop_assert!(disk.done() - before < 10);
                    opened = (before, disk.done(), log.end());
                }
                Op::Kill { at } | Op::PowerLoss { at, .. } => {
                    drop(queues);
                    let at = opened.0 + (disk.done() - opened.0) * at / 100;
                    let mut kept = log.confirm_offset();
                    if at < opened.1 {
                        // While it was opening, the log did not grow.
                        kept = opened.2;
                    }
                    if let Op::PowerLoss { mut seed, log_kept, .. } = op {
                        let mut dice = |n: usize| {
                            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            (seed >> 33) as usize % n
                        };
                        disk = disk.cut_at(at, &mut dice);
                        model.log.retain(|message| message.phy < kept);
                        if let Some(message) = model.log.get(model.log.len() * log_kept / 100) {
                            kept = message.phy;
                        }
                    } else {
                        disk = disk.killed_at(at);
                    }
                    model.log.retain(|message| message.phy < kept);
                    log.lose_tail(kept);
                    model.next = model.ends().collect();
                    let before = disk.done();
                    queues = open(&log, &disk);
                    check(&queues, &model, kept)?;
                    opened = (before, disk.done(), log.end());
                }
                Op::Recreate { topic } => {
                    model.next.retain(|(name, _), _| *name != TOPICS[topic]);
                }
            }
        }
        commit(&log, &queues, &model);
        queues.stop().unwrap();
        check(&queues, &model, log.end())?;
        // The same as built in one go, byte for byte.
        let whole = SimDisk::default();
        open(&log, &whole).stop().unwrap();
        for part in ["consumequeue", "index"] {
            let (ours, theirs) = (files(&disk, &part_of(part)), files(&whole, &part_of(part)));
            prop_assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
            for (path, bytes) in ours {
                prop_assert!(bytes == theirs[&path], "{} differs", path.display());
            }
        }
    }
}

fn part_of(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}
