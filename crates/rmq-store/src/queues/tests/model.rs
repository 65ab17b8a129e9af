//! Any history of appends, commits, syncs and crashes leaves what the log says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rmq_wire::record::tags_code;

use super::fake_log::{FakeLog, Send};
use crate::dispatch::CommittedLog;
use crate::queues::{GetStatus, Queues};
use crate::types::{PhyOffset, QueueOffset};

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
    /// The process dies, and with it nothing but its memory.
    Kill,
    /// The machine dies: of what was written since the last sync, any part is lost. The log loses its
    /// last messages down to what was synced at most.
    PowerLoss {
        seed: u64,
        log_too: bool,
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
        1 => Just(Op::Kill),
        1 => (any::<u64>(), any::<bool>()).prop_map(|(seed, log_too)| Op::PowerLoss { seed, log_too }),
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

fn snapshot(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(
                    path.strip_prefix(root).unwrap().to_owned(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    files
}

/// Takes every sector back to what was synced, or not, as `seed` has it.
fn lose(root: &Path, synced: &BTreeMap<PathBuf, Vec<u8>>, mut seed: u64) {
    /// Small, for the files are.
    const SECTOR: usize = 40;
    let mut lost = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 63 == 1
    };
    for (path, now) in snapshot(root) {
        let Some(before) = synced.get(&path) else {
            let keep = if lost() {
                None
            } else {
                Some(if lost() {
                    Vec::new()
                } else {
                    vec![0; now.len()]
                })
            };
            let path = root.join(path);
            match keep {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            continue;
        };
        let mut bytes = now.clone();
        for (at, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            if lost() {
                sector.copy_from_slice(&before[at * SECTOR..][..sector.len()]);
            }
        }
        fs::write(root.join(path), bytes).unwrap();
    }
    for (path, before) in synced {
        let path = root.join(path);
        // A removal that was not synced.
        if !path.try_exists().unwrap() && lost() {
            fs::write(path, before).unwrap();
        }
    }
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
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let log = FakeLog::default();
        let mut model = Model::default();
        let mut queues = log.open(root);
        let mut synced = (snapshot(root), log.end());
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
                Op::Sync => {
                    let position = queues.dispatched();
                    queues.flush(false).unwrap();
                    synced = (snapshot(root), position);
                }
                Op::CleanRestart => {
                    queues.stop().unwrap();
                    drop(queues);
                    queues = log.open(root);
                    prop_assert_eq!(queues.dispatched(), log.confirm_offset());
                    synced = (snapshot(root), log.confirm_offset());
                }
                Op::Kill | Op::PowerLoss { .. } => {
                    drop(queues);
                    let mut kept = log.confirm_offset();
                    if let Op::PowerLoss { seed, log_too } = op {
                        lose(root, &synced.0, seed);
                        // The checkpoint is written after a sync only, and synced itself.
                        fs::write(root.join("dispatched"), &synced.0[Path::new("dispatched")]).unwrap();
                        if log_too {
                            kept = synced.1;
                        }
                    }
                    model.log.retain(|message| message.phy < kept);
                    log.lose_tail(kept);
                    model.next = model.queues().into_iter().map(|(queue, units)| (queue, units.last().unwrap().0 + 1)).collect();
                    queues = log.open(root);
                    prop_assert_eq!(queues.dispatched(), log.confirm_offset());
                    check(&queues, &model, log.confirm_offset())?;
                    synced = (snapshot(root), log.confirm_offset());
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
        let whole = tempfile::tempdir().unwrap();
        let other = log.open(whole.path());
        other.stop().unwrap();
        for part in ["consumequeue", "index"] {
            let (ours, theirs) = (root.join(part), whole.path().join(part));
            if ours.try_exists().unwrap() || theirs.try_exists().unwrap() {
                let (ours, theirs) = (snapshot(&ours), snapshot(&theirs));
                prop_assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
                for (path, bytes) in ours {
                    prop_assert!(bytes == theirs[&path], "{} differs", path.display());
                }
            }
        }
    }
}
