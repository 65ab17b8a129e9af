//! At every point of a run the disk is taken as a crash would have left it, and the log opened.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::Disk;
use crate::log::Log;
use crate::sim::SimDisk;
use crate::types::{EntryId, LogIndex, NewEntry, PhyOffset, Term, Vote};

/// What a run does to a log.
#[derive(Debug, Clone)]
enum Step {
    /// Appends entries with bodies of these sizes in one call.
    Append(Vec<usize>),
    /// Takes back this many entries, as far as they are not committed.
    Truncate(u64),
    /// Commits all but this many entries.
    Commit(u64),
    Vote,
    Flush,
    Checkpoint,
    Reopen {
        clean: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![4 => 0..300_usize, 1 => Just(4096), 1 => 1000..30_000_usize];
    let step = prop_oneof![
        6 => prop::collection::vec(size, 1..5).prop_map(Step::Append),
        1 => (1..6_u64).prop_map(Step::Truncate),
        2 => (0..4_u64).prop_map(Step::Commit),
        1 => Just(Step::Vote),
        4 => Just(Step::Flush),
        2 => Just(Step::Checkpoint),
        1 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ];
    prop::collection::vec(step, 10..30)
}

type Entries = Vec<(EntryId, Vec<u8>)>;

fn entries_of(log: &Log) -> Entries {
    let entry = |entry| match entry {
        NewEntry::Sealed { id, bytes } => (id, bytes.concat()),
        NewEntry::Unsealed { .. } => unreachable!(),
    };
    raw_entries(&log.reader()).into_iter().map(entry).collect()
}

/// Something that was promised, and how much had been done to the disk by then.
#[derive(Debug, Clone)]
enum Event {
    /// A change to this state began.
    Began(Entries),
    /// All entries up to this one are durable.
    Acked(LogIndex),
    /// A truncation to this many entries was finished.
    Truncated,
    VoteBegan(Vote),
    Voted(Vote),
}

struct Run {
    disk: SimDisk,
    config: StoreConfig,
    events: Arc<Mutex<Vec<(usize, Event)>>>,
}

impl Run {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push((self.disk.done(), event));
    }

    fn open(&self) -> Log {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let mut log = Log::open(&self.config, &disk).unwrap();
        log.seed_queue_offsets([], PhyOffset(0)).unwrap();
        log
    }

    fn of(steps: &[Step], flush_mode: FlushMode) -> Self {
        let config = config(std::path::Path::new("/store"), flush_mode);
        let run = Self {
            disk: SimDisk::default(),
            config,
            events: Arc::default(),
        };
        run.note(Event::Began(Vec::new()));
        let mut log = run.open();
        let mut term = 1;
        for step in steps {
            let count = log.reader().last_id().map_or(0, |last| last.index.0 + 1);
            let committed = log.read_committed().map_or(0, |id| id.index.0 + 1);
            match step {
                Step::Append(sizes) => {
                    let entries = sizes.iter().zip(count..).map(|(size, index)| {
                        let body = vec![u8::try_from(index % 251).unwrap() + 1; *size];
                        let records = vec![
                            pending("t", 0, b"small", true),
                            pending("t", i32::try_from(index % 3).unwrap(), &body, true),
                        ];
                        messages(id(term, index), records).0
                    });
                    // The bytes are not known before, but any part of the new entries may be there.
                    let began = run.disk.done();
                    log.append(entries.collect()).unwrap();
                    let state = Event::Began(entries_of(&log));
                    run.events.lock().unwrap().push((began, state));
                }
                Step::Truncate(back) => {
                    let keep = count.saturating_sub(*back).max(committed);
                    if keep == 0 {
                        continue;
                    }
                    let mut state = entries_of(&log);
                    state.truncate(usize::try_from(keep).unwrap());
                    run.note(Event::Began(state));
                    log.truncate_after(Some(LogIndex(keep - 1))).unwrap();
                    run.note(Event::Truncated);
                    term += 1;
                }
                Step::Commit(behind) => {
                    if let Some(last) = count.checked_sub(behind + 1) {
                        let reader = log.reader();
                        let entry = reader.entry(LogIndex(last)).unwrap().unwrap();
                        // A follower may hear of a commit before its own bytes are durable.
                        if entry.end > reader.confirm_offset() {
                            reader.set_confirm_offset(entry.end);
                            log.save_committed(Some(entry.id));
                        }
                    }
                }
                Step::Vote => {
                    term += 1;
                    let vote = Vote {
                        term: Term(term),
                        node: 9,
                        committed: true,
                    };
                    run.note(Event::VoteBegan(vote));
                    log.save_vote(vote).unwrap();
                    run.note(Event::Voted(vote));
                    if count > 0 {
                        run.note(Event::Acked(LogIndex(count - 1)));
                    }
                }
                Step::Flush => {
                    if count > 0 {
                        let (disk, events) = (run.disk.clone(), Arc::clone(&run.events));
                        log.on_flushed(Box::new(move |result| {
                            result.unwrap();
                            let acked = Event::Acked(LogIndex(count - 1));
                            events.lock().unwrap().push((disk.done(), acked));
                        }));
                        flush(&log).unwrap();
                    }
                }
                Step::Checkpoint => log.write_checkpoint().unwrap(),
                Step::Reopen { clean } => {
                    if *clean {
                        log.close().unwrap();
                    } else {
                        drop(log);
                    }
                    log = run.open();
                }
            }
        }
        drop(log);
        run
    }

    /// Opens a log on what a crash at `done` left, and checks it against what was promised. Then
    /// the power is cut: while the log was being opened, and once it was. Last the log goes on.
    fn check(
        &self,
        done: usize,
        left: &SimDisk,
        lossy: bool,
        dice: &mut impl FnMut(usize) -> usize,
    ) {
        let before = left.done();
        let log = self.open_and_check(done, left, lossy);
        let (opened, found, vote) = (left.done(), entries_of(&log), log.read_vote());
        drop(log);
        // A killed process may have left what is not durable.
        let meanwhile = left.cut_at(before + dice(opened - before + 1), dice);
        drop(self.open_and_check(done, &meanwhile, lossy || before > 0));
        let after = left.cut_at(opened, dice);
        let mut log = self.open_and_check(done, &after, lossy);
        assert_eq!(
            log.read_vote(),
            vote,
            "after {done} operations: a vote once read is kept"
        );
        assert!(
            entries_of(&log) == found,
            "after {done} operations: entries once read are kept"
        );

        log.seed_queue_offsets([], PhyOffset(0)).unwrap();
        let next = id(1000, found.len() as u64);
        log.append(vec![messages(next, vec![pending("t", 0, b"x", true)]).0])
            .unwrap();
        drop(log);
        let disk: Arc<dyn Disk> = Arc::new(after);
        let log = Log::open(&self.config, &disk).unwrap();
        assert_eq!(log.reader().last_id(), Some(next));
    }

    fn open_and_check(&self, done: usize, left: &SimDisk, lossy: bool) -> Log {
        let disk: Arc<dyn Disk> = Arc::new(left.clone());
        let log = Log::open(&self.config, &disk)
            .unwrap_or_else(|e| panic!("after {done} operations: {e}"));
        let found = entries_of(&log);
        let (mut states, mut acked, mut votes) = (vec![], 0, vec![None]);
        let events = self.events.lock().unwrap();
        for (_, event) in events.iter().filter(|(at, _)| *at <= done) {
            match event {
                Event::Began(state) => {
                    states.push(state);
                    acked = acked.min(state.len());
                }
                Event::Truncated => drop(states.drain(..states.len() - 1)),
                Event::Acked(index) => acked = usize::try_from(index.0).unwrap() + 1,
                Event::VoteBegan(vote) => votes.push(Some(*vote)),
                Event::Voted(vote) => votes = vec![Some(*vote)],
            }
        }
        let begins = |state: &&&Entries| state.len() >= found.len() && state.starts_with(&found);
        let Some(state) = states.iter().find(begins) else {
            let ids: Vec<String> = found.iter().map(|(id, _)| id.to_string()).collect();
            panic!("after {done} operations the log is of no known state: {ids:?}");
        };
        if !lossy {
            assert!(
                found.len() >= acked.min(state.len()),
                "after {done} operations: lost acked"
            );
        }
        assert!(
            votes.contains(&log.read_vote()),
            "after {done}: {:?}",
            log.read_vote()
        );

        let walked = walk(left, &self.config.commit_log_dir);
        let headers = walked.len() - messages_of(&walked).len();
        assert_eq!(
            headers,
            found.len(),
            "a classic reader sees as many entries"
        );
        log
    }
}

pub(super) fn dice(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed.wrapping_mul(2) | 1;
    move |n| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963);
        usize::try_from(state >> 33).unwrap() % n
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_power_cut_at_any_point_loses_nothing_acknowledged(steps in steps(), seed: u64) {
        let run = Run::of(&steps, FlushMode::Sync);
        let mut dice = dice(seed);
        for done in 0..=run.disk.done() {
            run.check(done, &run.disk.cut_at(done, &mut dice), false, &mut dice);
        }
    }

    #[test]
    fn a_kill_at_any_point_loses_nothing_appended(steps in steps(), seed: u64) {
        let mut dice = dice(seed);
        let run = Run::of(&steps, FlushMode::Async { interval_ms: 1_000_000 });
        for done in 0..=run.disk.done() {
            run.check(done, &run.disk.killed_at(done), false, &mut dice);
        }
    }

    #[test]
    fn a_power_cut_with_lazy_syncs_leaves_a_beginning(steps in steps(), seed: u64) {
        let run = Run::of(&steps, FlushMode::Async { interval_ms: 1_000_000 });
        let mut dice = dice(seed);
        for done in 0..=run.disk.done() {
            run.check(done, &run.disk.cut_at(done, &mut dice), true, &mut dice);
        }
    }
}
