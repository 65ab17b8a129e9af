//! Failing writes and syncs: the first one ends all writing.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rmq_wire::record::NewRecord;

use super::support::*;
use crate::config::FlushMode;
use crate::disk::{Disk, Space};
use crate::log::Log;
use crate::seal::AppendError;
use crate::sim::{Fault, SimDisk};
use crate::store::{self, Store};
use crate::types::{LogIndex, PendingRecord, PhyOffset, QueueOffset, Vote};

fn open(sim: &SimDisk, flush: FlushMode) -> Log {
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    Log::open(&config(Path::new("/store"), flush), &disk).unwrap()
}

/// Nothing is written any more, and everything says why.
fn assert_poisoned(sim: &SimDisk, log: &mut Log, reason: &str) {
    let done = sim.done();
    let next = log.reader().last_id().map_or(0, |id| id.index.0 + 1);
    let errors = [
        log.append(vec![blank(id(1, next))])
            .unwrap_err()
            .to_string(),
        flush(log).unwrap_err().to_string(),
        log.save_vote(Vote::default()).unwrap_err().to_string(),
        log.truncate_after(Some(LogIndex(0)))
            .unwrap_err()
            .to_string(),
        log.purge(id(1, 0)).unwrap_err().to_string(),
    ];
    for error in errors {
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(sim.done(), done, "nothing is tried again");
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    for flush_mode in [FlushMode::Sync, FlushMode::Async { interval_ms: 1 }] {
        let sim = SimDisk::default();
        let mut log = open(&sim, flush_mode);
        log.append(vec![blank(id(1, 0)), blank(id(1, 1))]).unwrap();
        sim.fail(Fault::Sync, "commitlog", 0);
        if flush_mode == FlushMode::Sync {
            assert!(flush(&log).is_err());
        } else {
            while flush(&log).is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        assert_poisoned(
            &sim,
            &mut log,
            "cannot sync /store/commitlog/00000000000000000000",
        );
        assert!(
            log.reader().entry(LogIndex(1)).unwrap().is_some(),
            "reading goes on"
        );
    }
}

#[test]
fn a_failed_sync_of_the_queues_ends_writing_too() {
    for path in ["/consumequeue/", "/index/"] {
        let sim = SimDisk::default();
        let config = config(Path::new("/store"), FlushMode::Sync);
        let open = || store::open(&config, Arc::new(sim.clone())).unwrap();
        let Store { mut log, queues } = open();
        for index in 0..2 {
            let new = NewRecord {
                properties: "KEYS\u{1}k\u{2}",
                ..NewRecord::new(([127, 0, 0, 1], 10911).into(), "t", 0, b"body")
            };
            let record = PendingRecord::new(&new).unwrap();
            let entry = messages(id(1, index), vec![record]).0;
            let end = log.append(vec![entry]).unwrap().end;
            let entry = log.reader().entry(LogIndex(index)).unwrap().unwrap();
            queues.commit(end, &entry.runs);
        }
        log.save_committed(Some(id(1, 1)));
        log.write_checkpoint().unwrap();
        while queues.step().unwrap().is_some() {}
        sim.fail(Fault::Sync, path, 0);
        assert!(queues.flush(false).is_err(), "{path}");
        assert_poisoned(&sim, &mut log, "cannot sync consume queues and index");
        drop((log, queues));
        // The next process takes nothing for durable that was not.
        let Store { log, queues } = open();
        assert_eq!(queues.maxima(), [("t".into(), 0, QueueOffset(2))]);
        assert!(log.reader().check_writable().is_ok());
    }
}

#[test]
fn a_full_disk_ends_writing_and_costs_no_earlier_entry() {
    for fault in [Fault::Full, Fault::Write] {
        let sim = SimDisk::default();
        let mut log = open(&sim, FlushMode::Sync);
        log.append(vec![blank(id(1, 0)), blank(id(1, 1))]).unwrap();
        sim.fail(fault, "commitlog", 0);
        let records = vec![
            pending("t", 0, &[5; 4000], true),
            pending("t", 0, &[6; 4000], true),
        ];
        let error = log.append(vec![messages(id(1, 2), records).0]).unwrap_err();
        match error {
            AppendError::Io(e) if fault == Fault::Full => {
                assert_eq!(e.kind(), ErrorKind::StorageFull);
            }
            AppendError::Io(_) => {}
            other => panic!("{other}"),
        }
        assert_eq!(
            log.reader().last_id(),
            Some(id(1, 1)),
            "not shown to readers"
        );
        assert_poisoned(&sim, &mut log, "cannot append to the commit log");
        drop(log);
        let mut log = open(&sim, FlushMode::Sync);
        assert_eq!(log.reader().last_id(), Some(id(1, 1)));
        assert!(log.recovered().cut_bytes > 0);
        log.append(vec![blank(id(2, 2))]).unwrap();
    }
}

#[test]
fn a_segment_that_cannot_be_made_ends_writing() {
    let sim = SimDisk::default();
    let mut log = open(&sim, FlushMode::Sync);
    // Whether it is made ahead or when it is needed: there is no room.
    let mut index = 0;
    loop {
        sim.fail(Fault::Full, &format!("{SEGMENT_BYTES:020}"), 0);
        let record = vec![pending("t", 0, &[5; 4000], true)];
        if log.append(vec![messages(id(1, index), record).0]).is_err() {
            break;
        }
        index += 1;
        assert!(index < 100, "it does not fit one segment");
    }
    assert_poisoned(&sim, &mut log, "cannot append to the commit log");
    drop(log);
    assert_eq!(
        open(&sim, FlushMode::Sync).reader().last_id(),
        Some(id(1, index - 1))
    );
}

/// On a full disk they would take from the others what is left.
#[test]
fn a_segment_that_gets_no_space_leaves_no_file() {
    let sim = SimDisk::default();
    let log = open(&sim, FlushMode::Sync);
    let base = PhyOffset(SEGMENT_BYTES);
    let name = format!("{base:020}");
    let segments = &log.reader().shared.segments;
    for (fault, stays) in [(Fault::Full, false), (Fault::Sync, true)] {
        sim.fail(fault, &name, 0);
        let made = segments.create(base, false, &AtomicBool::new(false));
        assert!(made.is_err());
        let names = sim.list(Path::new("/store/commitlog")).unwrap();
        assert_eq!(names.contains(&name), stays, "{fault:?}: {names:?}");
    }
}

#[test]
fn a_vote_that_cannot_be_written_is_not_given() {
    let sim = SimDisk::default();
    let mut log = open(&sim, FlushMode::Sync);
    log.append(vec![blank(id(1, 0)), blank(id(1, 1))]).unwrap();
    sim.fail(Fault::Sync, "raft.vote", 0);
    assert!(log.save_vote(Vote::default()).is_err());
    assert_eq!(log.read_vote(), None);
    assert_poisoned(&sim, &mut log, "cannot save the vote");
}

#[test]
fn a_log_that_gets_no_next_segment_tells_its_room_and_goes_on_when_there_is_space() {
    let sim = SimDisk::default();
    let full = |available| Space {
        used: SEGMENT_BYTES,
        available,
    };
    let mut log = open(&sim, FlushMode::Sync);
    let reader = log.reader();
    let mut index = 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut append = |log: &mut Log, bytes: usize| {
        let record = vec![pending("t", 0, &vec![5; bytes], true)];
        log.append(vec![messages(id(1, index), record).0]).unwrap();
        index += 1;
    };
    // The raft index has its file from the first entry on.
    append(&mut log, 1000);
    sim.set_space(full(SEGMENT_BYTES));
    // The log finds out once half of its segment is used.
    while reader.room().is_none() {
        assert!(std::time::Instant::now() < deadline, "it is never short");
        if reader.end_offset().0 < SEGMENT_BYTES * 2 / 3 {
            append(&mut log, 1000);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let before = reader.room().unwrap();
    let end = reader.end_offset();
    append(&mut log, 1000);
    let used = reader.end_offset() - end;
    assert_eq!(reader.room(), Some(before - used));
    assert_eq!(before + end.0, SEGMENT_BYTES);
    assert_eq!(reader.reserve_bytes(), SEGMENT_BYTES / 16);
    while reader.room() > Some(reader.reserve_bytes() + 2000) {
        append(&mut log, 1000);
    }
    // Votes, truncations and what the reserve is for.
    log.save_vote(Vote::default()).unwrap();
    log.truncate_after(Some(LogIndex(index - 2))).unwrap();
    log.append(vec![blank(id(2, index - 1))]).unwrap();
    assert!(reader.room().is_some());

    sim.set_space(full(2 * SEGMENT_BYTES));
    while reader.room().is_some() {
        assert!(std::time::Instant::now() < deadline, "it stays short");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for _ in 0..100 {
        let next = reader.last_id().unwrap().index.0 + 1;
        let record = vec![pending("t", 0, &[5; 1000], true)];
        log.append(vec![messages(id(2, next), record).0]).unwrap();
    }
    assert!(reader.end_offset().0 > SEGMENT_BYTES);
}

/// Whether the log was cut back or has got its file when it needed it: nothing is tried again then that
/// could end the shortage.
#[test]
fn a_log_that_needs_no_file_any_more_is_not_short_of_one() {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for cuts in [true, false] {
        let sim = SimDisk::default();
        let mut log = open(&sim, FlushMode::Sync);
        let reader = log.reader();
        let append = |log: &mut Log| {
            let next = reader.last_id().map_or(0, |last| last.index.0 + 1);
            let record = vec![pending("t", 0, &[5; 1000], true)];
            log.append(vec![messages(id(1, next), record).0]).unwrap();
        };
        append(&mut log);
        sim.set_space(Space {
            used: SEGMENT_BYTES,
            available: SEGMENT_BYTES,
        });
        while reader.room().is_none() {
            assert!(std::time::Instant::now() < deadline, "it is never short");
            if reader.end_offset().0 < SEGMENT_BYTES * 2 / 3 {
                append(&mut log);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        if cuts {
            log.truncate_after(Some(LogIndex(1))).unwrap();
        } else {
            while reader.end_offset().0 < SEGMENT_BYTES {
                append(&mut log);
            }
        }
        assert_eq!(reader.room(), None, "cut: {cuts}");
    }
}

#[test]
fn what_a_failed_sync_left_behind_is_durable_once_it_counts() {
    let sim = SimDisk::default();
    let mut log = open(&sim, FlushMode::Sync);
    log.append(vec![blank(id(1, 0))]).unwrap();
    flush(&log).unwrap();
    log.append(vec![blank(id(1, 1))]).unwrap();
    sim.fail(Fault::Sync, "commitlog", 0);
    assert!(flush(&log).is_err());
    drop(log);
    // The next process finds the entry in the page cache, and its leader is told that it is here.
    let log = open(&sim, FlushMode::Sync);
    assert_eq!(log.reader().last_id(), Some(id(1, 1)));
    drop(log);
    let left = sim.cut_at(sim.done(), &mut |_| 0);
    assert_eq!(
        open(&left, FlushMode::Sync).reader().last_id(),
        Some(id(1, 1))
    );
}

#[test]
fn a_vote_whose_sync_failed_stays_once_it_was_read() {
    let sim = SimDisk::default();
    let mut log = open(&sim, FlushMode::Sync);
    sim.fail(Fault::Sync, "raft.vote", 0);
    let vote = Vote {
        node: 7,
        ..Vote::default()
    };
    assert!(log.save_vote(vote).is_err());
    drop(log);
    assert_eq!(open(&sim, FlushMode::Sync).read_vote(), Some(vote));
    let left = sim.cut_at(sim.done(), &mut |_| 0);
    assert_eq!(open(&left, FlushMode::Sync).read_vote(), Some(vote));
}
