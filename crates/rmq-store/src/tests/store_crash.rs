//! The same for a whole store: at every point of a run the disk is taken as a crash would have left it.
//! Consumers see what was committed, in queues and by key, all that of it which the log says is, and
//! nothing else; what was acknowledged, voted and purged is still so; and what is left is enough to go
//! on. Snapshots that are installed, and segments that leave, have such tests of their own.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use rmq_wire::record::{NewRecord, Record};

use super::crash::dice;
use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::{Disk, OpenMode};
use crate::genesis::Genesis;
use crate::genesis::tests::history;
use crate::segment::file_name;
use crate::sim::SimDisk;
use crate::store::{Store, open};
use crate::types::{EntryId, LogIndex, PendingRecord, PhyOffset, QueueOffset, Term, Vote};

const QUEUES: std::ops::Range<i32> = 0..3;
/// Messages of the history that some stores begin with, all of queue 0.
const HISTORY: u32 = 5;

/// What a run does to a store.
#[derive(Debug, Clone)]
enum Step {
    /// Appends an entry with this many messages.
    Append(usize),
    /// Takes back this many entries, as far as they are not committed.
    Truncate(u64),
    /// Commits all but this many entries.
    Commit(u64),
    Vote,
    Dispatch,
    /// Syncs the log.
    Flush,
    /// Syncs consume queues and index.
    FlushQueues,
    Checkpoint,
    /// Lets go of all committed entries but this many.
    Purge(u64),
    Reopen {
        clean: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..5_usize).prop_map(Step::Append),
        1 => (1..4_u64).prop_map(Step::Truncate),
        4 => (0..3_u64).prop_map(Step::Commit),
        1 => Just(Step::Vote),
        4 => Just(Step::Dispatch),
        3 => Just(Step::Flush),
        2 => Just(Step::FlushQueues),
        1 => Just(Step::Checkpoint),
        1 => (0..3_u64).prop_map(Step::Purge),
        1 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ];
    prop::collection::vec(step, 10..30)
}

/// A message with a key, that of its queue.
fn keyed(queue_id: i32, body: &[u8]) -> PendingRecord {
    let host = ([127, 0, 0, 1], 10911).into();
    let new = NewRecord {
        properties: &format!("KEYS\u{1}{}\u{2}", key(queue_id)),
        ..NewRecord::new(host, "t", queue_id, body)
    };
    PendingRecord::new(&new).unwrap()
}

fn key(queue_id: i32) -> String {
    format!("k{queue_id}")
}

/// A message: where it lies, its queue, its offset in it, its body.
type Message = (PhyOffset, i32, i64, Vec<u8>);

/// What is committed, with its end.
#[derive(Debug, Clone)]
struct Committed {
    end: PhyOffset,
    messages: Vec<Message>,
}

/// Something that is so from an operation of the disk on.
#[derive(Debug)]
enum Event {
    /// Each begins with the one before.
    Committed(Committed),
    /// Entries up to this one are durable.
    Acked(LogIndex),
    /// Entries behind this one are being taken back.
    Truncating(LogIndex),
    VoteBegan(Vote),
    Voted(Vote),
    Purged(EntryId),
}

struct Run {
    disk: SimDisk,
    config: StoreConfig,
    /// How much was done before anything was promised.
    begun: usize,
    genesis: Option<Genesis>,
    events: Vec<(usize, Event)>,
}

fn open_on(disk: &SimDisk, config: &StoreConfig) -> Result<Store, String> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    open(config, disk).map_err(|e| e.to_string())
}

/// The messages that lie in a range of the log.
fn messages_in(
    disk: &SimDisk,
    config: &StoreConfig,
    from: PhyOffset,
    to: PhyOffset,
) -> Vec<Message> {
    let found = messages_of(&walk(disk, &config.commit_log_dir)).into_iter();
    let message = |found: (u64, String, i32, i64, Vec<u8>)| {
        let (phy, _, queue_id, offset, body) = found;
        (PhyOffset(phy), queue_id, offset, body)
    };
    let messages = found.map(message);
    messages
        .filter(|(phy, ..)| (from..to).contains(phy))
        .collect()
}

/// A history as a Java broker leaves it, taken over.
fn adopt(disk: &SimDisk, config: &StoreConfig) -> Genesis {
    let (segments, end) = history(0, HISTORY);
    disk.create_dir_all(&config.commit_log_dir).unwrap();
    for (base, content) in segments {
        let path = config.commit_log_dir.join(file_name(base));
        let file = disk.open(&path, OpenMode::Create).unwrap();
        file.write_at(0, &[std::io::IoSlice::new(&content)])
            .unwrap();
    }
    let range = PhyOffset(0)..end;
    let metadata = crate::genesis::GenesisMetadata::default();
    let genesis = Genesis::measure(disk, &config.commit_log_dir, SEGMENT_BYTES, range, metadata);
    let genesis = genesis.unwrap();
    genesis.write(disk, config.root()).unwrap();
    disk.sync_all(config.root()).unwrap();
    genesis
}

impl Run {
    fn note(&mut self, event: Event) {
        self.events.push((self.disk.done(), event));
    }

    fn committed(&self) -> Option<&Committed> {
        let mut events = self.events.iter().rev();
        events.find_map(|(_, event)| match event {
            Event::Committed(committed) => Some(committed),
            _ => None,
        })
    }

    fn of(steps: &[Step], flush_mode: FlushMode, adopted: bool) -> Self {
        let mut config = config(std::path::Path::new("/store"), flush_mode);
        config.consume_queue_file_bytes = 20 * 7;
        config.index_slots = 5;
        config.index_entries = 20;
        let disk = SimDisk::default();
        let genesis = adopted.then(|| adopt(&disk, &config));
        let mut run = Self {
            begun: disk.done(),
            disk,
            config,
            genesis,
            events: Vec::new(),
        };
        if let Some(genesis) = &run.genesis {
            let end = genesis.end;
            let messages = messages_in(&run.disk, &run.config, PhyOffset(0), end);
            assert_eq!(messages.len(), HISTORY as usize);
            run.note(Event::Committed(Committed { end, messages }));
        }
        let mut store = open_on(&run.disk, &run.config).unwrap();
        let mut term = 1;
        for step in steps {
            let reader = store.log.reader();
            let last = reader.last_id();
            let count = last.map_or(0, |last| last.index.0 + 1);
            let committed = store.log.read_committed().max(reader.purged_id());
            let committed = committed.map_or(0, |id| id.index.0 + 1);
            match step {
                Step::Append(messages_count) => {
                    let records = (0..*messages_count).map(|n| {
                        let queue_id = i32::try_from((count + n as u64) % 3).unwrap();
                        let body = format!("{term} {count} {n}");
                        keyed(queue_id, body.as_bytes())
                    });
                    let entry = messages(id(term, count), records.collect()).0;
                    store.log.append(vec![entry]).unwrap();
                }
                Step::Truncate(back) => {
                    let keep = count.saturating_sub(*back).max(committed);
                    if keep > 0 {
                        run.note(Event::Truncating(LogIndex(keep - 1)));
                        store.log.truncate_after(Some(LogIndex(keep - 1))).unwrap();
                        term += 1;
                    }
                }
                Step::Commit(behind) => {
                    for index in committed..count.saturating_sub(*behind) {
                        let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
                        let (from, mut messages) = match run.committed() {
                            Some(known) => (known.end, known.messages.clone()),
                            None => (PhyOffset(0), Vec::new()),
                        };
                        let end = entry.end;
                        // A log that was killed may have forgotten how far it was committed.
                        messages.retain(|(phy, ..)| *phy < end);
                        messages.extend(messages_in(&run.disk, &run.config, from, end));
                        run.note(Event::Committed(Committed { end, messages }));
                        store.queues.commit(end, &entry.runs);
                        store.log.save_committed(Some(entry.id));
                    }
                }
                Step::Vote => {
                    term += 1;
                    let vote = Vote {
                        term: Term(term),
                        node: 9,
                        committed: false,
                    };
                    run.note(Event::VoteBegan(vote));
                    store.log.save_vote(vote).unwrap();
                    run.note(Event::Voted(vote));
                }
                Step::Dispatch => while store.queues.step().unwrap().is_some() {},
                Step::Flush => {
                    flush(&store.log).unwrap();
                    if let Some(last) = last {
                        run.note(Event::Acked(last.index));
                    }
                }
                Step::FlushQueues => store.queues.flush(false).unwrap(),
                Step::Checkpoint => store.log.write_checkpoint().unwrap(),
                Step::Purge(behind) => {
                    // Only what is in a durable snapshot and in the queues goes.
                    while store.queues.step().unwrap().is_some() {}
                    store.queues.flush(false).unwrap();
                    store.log.sync().unwrap();
                    if let Some(index) = committed.checked_sub(behind + 1)
                        && let Some(entry) = reader.entry(LogIndex(index)).unwrap()
                    {
                        store.log.purge(entry.id).unwrap();
                        run.note(Event::Purged(entry.id));
                    }
                }
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

    /// Opens a store on what a crash at `done` left. With `lossy` what was acknowledged may be gone.
    fn check(&self, done: usize, left: &SimDisk, lossy: bool) {
        let store =
            open_on(left, &self.config).unwrap_or_else(|e| panic!("after {done} operations: {e}"));
        let Store { log, queues } = &store;
        assert_eq!(
            log.genesis().map(|g| &**g),
            self.genesis.as_ref(),
            "after {done} operations"
        );
        let mut known: Vec<&Committed> = Vec::new();
        let (mut acked, mut votes, mut purged) = (None, vec![None], None);
        for (_, event) in self.events.iter().filter(|(at, _)| *at <= done) {
            match event {
                Event::Committed(committed) => known.push(committed),
                Event::Acked(index) => acked = acked.max(Some(*index)),
                Event::Truncating(last) => acked = acked.min(Some(*last)),
                Event::VoteBegan(vote) => votes.push(Some(*vote)),
                Event::Voted(vote) => votes = vec![Some(*vote)],
                Event::Purged(id) => purged = Some(*id),
            }
        }
        let reader = log.reader();
        assert!(
            votes.contains(&log.read_vote()),
            "after {done} operations: {:?}",
            log.read_vote()
        );
        assert!(
            reader.purged_id() >= purged,
            "after {done} operations entries are back"
        );
        let last = reader.last_id().map(|id| id.index);
        assert!(
            lossy || last >= acked,
            "after {done} operations the log ends with {last:?}"
        );

        let confirm = reader.confirm_offset();
        let mut expected = Committed {
            end: confirm,
            messages: Vec::new(),
        };
        if confirm > PhyOffset(0) {
            let Some(known) = known.iter().rev().find(|known| known.end == confirm) else {
                panic!(
                    "after {done} operations the log is committed to {confirm}, which never was"
                );
            };
            expected.messages.clone_from(&known.messages);
        }
        assert_eq!(queues.dispatched(), confirm, "after {done} operations");
        see(&store, &expected, done);

        // As Raft goes on: what is left of the log is committed.
        let first = reader.first_index().map_or(u64::MAX, |first| first.0);
        for index in first..last.map_or(0, |last| last.next().0) {
            let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
            if entry.end > expected.end {
                let more = messages_in(left, &self.config, expected.end, entry.end);
                expected.messages.extend(more);
                expected.end = entry.end;
                queues.commit(entry.end, &entry.runs);
            }
        }
        while queues.step().unwrap().is_some() {}
        see(&store, &expected, done);
    }
}

/// Consumers see these messages, in their queues and by key, and no others.
fn see(store: &Store, expected: &Committed, done: usize) {
    for queue_id in QUEUES {
        let wanted = expected
            .messages
            .iter()
            .filter(|(_, queue, ..)| *queue == queue_id);
        let wanted: Vec<_> = wanted.collect();
        assert_eq!(
            store.queues.max_offset("t", queue_id).0,
            wanted.len() as u64,
            "after {done} operations queue {queue_id} does not end where it is committed"
        );
        for (offset, (_, _, at, body)) in (0..).zip(&wanted) {
            let get = store
                .queues
                .get("t", queue_id, QueueOffset(offset), 1, 1, &|_| true);
            let records = get.unwrap().records;
            let record = records.first().map(|bytes| Record::decode(bytes).unwrap());
            let found = record.map(|record| (record.queue_offset, record.body));
            assert_eq!(
                found,
                Some((*at, &body[..])),
                "after {done} operations, queue {queue_id} at {offset}"
            );
        }
        let by_key = |key: &str| -> BTreeSet<PhyOffset> {
            let found = store.queues.query_index("t", key, 1000, 0, i64::MAX);
            found.unwrap().into_iter().collect()
        };
        let mut found = by_key(&key(queue_id));
        if queue_id == 0 {
            found.extend(by_key("k"));
        }
        let wanted: BTreeSet<_> = wanted.into_iter().map(|(phy, ..)| *phy).collect();
        assert_eq!(
            found, wanted,
            "after {done} operations by the key of queue {queue_id}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_power_cut_at_any_point_shows_consumers_what_was_committed(
        steps in steps(), adopted: bool, seed: u64
    ) {
        let run = Run::of(&steps, FlushMode::Sync, adopted);
        let mut dice = dice(seed);
        for done in run.begun..=run.disk.done() {
            run.check(done, &run.disk.cut_at(done, &mut dice), false);
        }
    }

    #[test]
    fn so_does_a_kill_at_any_point(steps in steps(), adopted: bool) {
        let run = Run::of(&steps, FlushMode::Async { interval_ms: 1_000_000 }, adopted);
        for done in run.begun..=run.disk.done() {
            run.check(done, &run.disk.killed_at(done), false);
        }
    }

    #[test]
    fn so_does_a_power_cut_with_lazy_syncs(steps in steps(), adopted: bool, seed: u64) {
        let run = Run::of(&steps, FlushMode::Async { interval_ms: 1_000_000 }, adopted);
        let mut dice = dice(seed);
        for done in run.begun..=run.disk.done() {
            run.check(done, &run.disk.cut_at(done, &mut dice), true);
        }
    }
}
