//! The same for a whole store: at every point of a run the disk is taken as a crash would have left it,
//! and consumers see what was committed, all that of it which the log says is, and nothing else.

use std::sync::Arc;

use proptest::prelude::*;
use rmq_wire::record::Record;

use super::crash::dice;
use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::Disk;
use crate::sim::SimDisk;
use crate::store::{Store, open};
use crate::types::{LogIndex, PhyOffset, QueueOffset};

/// What a run does to a store.
#[derive(Debug, Clone)]
enum Step {
    /// Appends an entry with this many messages.
    Append(usize),
    /// Takes back this many entries, as far as they are not committed.
    Truncate(u64),
    /// Commits all but this many entries.
    Commit(u64),
    Dispatch,
    /// Syncs the log.
    Flush,
    /// Syncs consume queues and index.
    FlushQueues,
    Checkpoint,
    Reopen {
        clean: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..5_usize).prop_map(Step::Append),
        1 => (1..4_u64).prop_map(Step::Truncate),
        4 => (0..3_u64).prop_map(Step::Commit),
        4 => Just(Step::Dispatch),
        3 => Just(Step::Flush),
        2 => Just(Step::FlushQueues),
        1 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ];
    prop::collection::vec(step, 10..30)
}

/// A message: its queue, its offset in it, its body.
type Message = (i32, i64, Vec<u8>);

/// What is committed, with its end, as of an operation of the disk.
struct Committed {
    at: usize,
    end: PhyOffset,
    messages: Vec<Message>,
}

struct Run {
    disk: SimDisk,
    config: StoreConfig,
    /// In order; each begins with the one before.
    committed: Vec<Committed>,
}

fn open_on(disk: &SimDisk, config: &StoreConfig) -> Result<Store, String> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    open(config, disk).map_err(|e| e.to_string())
}

/// The messages that lie below a position of the log.
fn messages_below(disk: &SimDisk, config: &StoreConfig, end: PhyOffset) -> Vec<Message> {
    let mut found = messages_of(&walk(disk, &config.commit_log_dir));
    found.retain(|message| phy(message) < end);
    let message = |(_, _, queue_id, offset, body)| (queue_id, offset, body);
    found.into_iter().map(message).collect()
}

impl Run {
    fn of(steps: &[Step], flush_mode: FlushMode) -> Self {
        let mut config = config(std::path::Path::new("/store"), flush_mode);
        config.consume_queue_file_bytes = 20 * 7;
        config.index_slots = 5;
        config.index_entries = 20;
        let mut run = Self {
            disk: SimDisk::default(),
            config,
            committed: Vec::new(),
        };
        let mut store = open_on(&run.disk, &run.config).unwrap();
        let mut term = 1;
        for step in steps {
            let count = store
                .log
                .reader()
                .last_id()
                .map_or(0, |last| last.index.0 + 1);
            match step {
                Step::Append(messages_count) => {
                    let records = (0..*messages_count).map(|n| {
                        let queue_id = i32::try_from((count + n as u64) % 3).unwrap();
                        let body = format!("{term} {count} {n}");
                        pending("t", queue_id, body.as_bytes(), true)
                    });
                    let entry = messages(id(term, count), records.collect()).0;
                    store.log.append(vec![entry]).unwrap();
                }
                Step::Truncate(back) => {
                    let committed = store.log.read_committed().map_or(0, |id| id.index.0 + 1);
                    let keep = count.saturating_sub(*back).max(committed);
                    if keep > 0 {
                        store.log.truncate_after(Some(LogIndex(keep - 1))).unwrap();
                        term += 1;
                    }
                }
                Step::Commit(behind) => {
                    let reader = store.log.reader();
                    let committed = store.log.read_committed().map_or(0, |id| id.index.0 + 1);
                    for index in committed..count.saturating_sub(*behind) {
                        let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
                        run.committed.push(Committed {
                            at: run.disk.done(),
                            end: entry.end,
                            messages: messages_below(&run.disk, &run.config, entry.end),
                        });
                        store.queues.commit(entry.end, &entry.runs);
                        store.log.save_committed(Some(entry.id));
                    }
                }
                Step::Dispatch => while store.queues.step().unwrap().is_some() {},
                Step::Flush => flush(&store.log).unwrap(),
                Step::FlushQueues => store.queues.flush(false).unwrap(),
                Step::Checkpoint => store.log.write_checkpoint().unwrap(),
                Step::Reopen { clean } => {
                    let Store { log, queues } = store;
                    if *clean {
                        queues.stop().unwrap();
                        log.close().unwrap();
                    } else {
                        drop((queues, log));
                    }
                    store = open_on(&run.disk, &run.config).unwrap();
                }
            }
        }
        drop(store);
        run
    }

    /// Opens a store on what a crash at `done` left.
    fn check(&self, done: usize, left: &SimDisk) {
        let store =
            open_on(left, &self.config).unwrap_or_else(|e| panic!("after {done} operations: {e}"));
        let confirm = store.log.reader().confirm_offset();
        let mut expected: &[Message] = &[];
        if confirm > PhyOffset(0) {
            let known = self.committed.iter().filter(|known| known.at <= done);
            let Some(known) = known.rev().find(|known| known.end == confirm) else {
                panic!(
                    "after {done} operations the log is committed to {confirm}, which never was"
                );
            };
            expected = &known.messages;
        }
        let queues = &store.queues;
        assert_eq!(queues.dispatched(), confirm, "after {done} operations");
        for queue_id in 0..3 {
            let wanted = expected.iter().filter(|(queue, ..)| *queue == queue_id);
            let wanted: Vec<_> = wanted.collect();
            assert_eq!(
                queues.max_offset("t", queue_id).0,
                wanted.len() as u64,
                "after {done} operations queue {queue_id} does not end where it is committed"
            );
            for (offset, (_, at, body)) in (0..).zip(wanted) {
                let get = queues.get("t", queue_id, QueueOffset(offset), 1, 1, &|_| true);
                let records = get.unwrap().records;
                let record = records.first().map(|bytes| Record::decode(bytes).unwrap());
                let found = record.map(|record| (record.queue_offset, record.body));
                assert_eq!(
                    found,
                    Some((*at, &body[..])),
                    "after {done} operations, queue {queue_id} at {offset}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_power_cut_at_any_point_shows_consumers_what_was_committed(steps in steps(), seed: u64) {
        let run = Run::of(&steps, FlushMode::Sync);
        let mut dice = dice(seed);
        for done in 0..=run.disk.done() {
            run.check(done, &run.disk.cut_at(done, &mut dice));
        }
    }

    #[test]
    fn so_does_a_kill_at_any_point(steps in steps()) {
        let run = Run::of(&steps, FlushMode::Async { interval_ms: 1_000_000 });
        for done in 0..=run.disk.done() {
            run.check(done, &run.disk.killed_at(done));
        }
    }

    #[test]
    fn so_does_a_power_cut_with_lazy_syncs(steps in steps(), seed: u64) {
        let run = Run::of(&steps, FlushMode::Async { interval_ms: 1_000_000 });
        let mut dice = dice(seed);
        for done in 0..=run.disk.done() {
            run.check(done, &run.disk.cut_at(done, &mut dice));
        }
    }
}
