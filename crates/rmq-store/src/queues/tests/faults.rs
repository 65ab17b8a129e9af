//! A disk that fails.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fake_log::{FakeLog, Send};
use crate::disk::Disk;
use crate::dispatch::{Checkpoint, CheckpointFile, CommittedLog, DispatchError};
use crate::queues::Queues;
use crate::sim::{Fault, SimDisk};
use crate::types::QueueOffset;

fn open(log: &FakeLog, disk: &SimDisk) -> Arc<Queues> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    log.open_on(&disk, Path::new("/store")).unwrap()
}

fn append(log: &FakeLog, queues: &Queues, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        let new = Send::new("a", 0, offset).with("KEYS", "k");
        log.append(&new);
        queues.commit(log.end(), &[new.run()]);
    }
}

fn assert_whole(queues: &Queues, messages: u64) {
    assert_eq!(queues.maxima(), [("a".into(), 0, QueueOffset(messages))]);
    for at in 0..messages {
        assert!(queues.unit("a", 0, QueueOffset(at)).unwrap().is_some());
    }
    let found = queues.query_index("a", "k", 1000, 0, i64::MAX).unwrap();
    assert_eq!(found.len() as u64, messages);
}

#[test]
fn a_failed_write_is_tried_again() {
    for (fault, path) in [
        (Fault::Full, "consumequeue"),
        (Fault::Write, "consumequeue"),
        (Fault::Full, "index"),
        (Fault::Write, "index"),
    ] {
        let (log, disk) = (FakeLog::default(), SimDisk::default());
        let queues = open(&log, &disk);
        append(&log, &queues, 0..20);
        for skip in 0..2 {
            disk.fail(fault, path, skip);
            let before = queues.dispatched();
            let result = queues.step();
            assert!(
                matches!(result, Err(DispatchError::Io { .. })),
                "{fault:?} {path}"
            );
            assert_eq!(queues.dispatched(), before);
        }
        while queues.step().unwrap().is_some() {}
        assert_whole(&queues, 20);
        queues.stop().unwrap();
        drop(queues);
        assert_whole(&open(&log, &disk), 20);
    }
}

#[test]
fn the_dispatch_thread_says_why_it_stands_still_and_goes_on() {
    let deadline = Instant::now() + Duration::from_secs(60);
    // Whoever is stalled for the second in which it is shown does not see it.
    let failure = loop {
        if let Some(failure) = failure_of_dispatch(deadline) {
            break failure;
        }
        assert!(Instant::now() < deadline, "no failure was shown");
    };
    assert!(
        failure.starts_with("writing what follows from the log at 0: "),
        "{failure}"
    );
}

/// Has the dispatch thread meet a full disk, and gives what it said before it went on.
fn failure_of_dispatch(deadline: Instant) -> Option<String> {
    let (log, disk) = (FakeLog::default(), SimDisk::default());
    let queues = open(&log, &disk);
    disk.fail(Fault::Full, "consumequeue", 0);
    queues.start(Arc::new(|_| true)).unwrap();
    append(&log, &queues, 0..3);
    let mut failure = None;
    while queues.dispatched() < log.confirm_offset() {
        failure = failure.or_else(|| queues.failure());
        assert!(Instant::now() < deadline, "{failure:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(queues.failure(), None);
    queues.stop().unwrap();
    assert_whole(&queues, 3);
    failure
}

/// After a failed sync the kernel may have dropped what it could not write, and the next sync says
/// that all is well.
#[test]
fn after_a_failed_sync_nothing_is_called_durable_any_more() {
    for path in ["consumequeue", "index"] {
        let (log, disk) = (FakeLog::default(), SimDisk::default());
        let queues = open(&log, &disk);
        append(&log, &queues, 0..5);
        while queues.step().unwrap().is_some() {}
        queues.flush(false).unwrap();
        append(&log, &queues, 5..15);
        while queues.step().unwrap().is_some() {}
        let before = disk.done();
        disk.fail(Fault::Sync, path, 0);
        assert!(queues.flush(false).is_err());
        // What the failed sync lost: here, all that it was for.
        let lost = disk.cut_at(before, &mut |_| 0);
        assert!(queues.stop().is_err(), "not a clean stop");
        let checkpoint = |disk: &SimDisk| {
            let disk: Arc<dyn Disk> = Arc::new(disk.clone());
            CheckpointFile::open(&disk, "/store/dispatched".into())
                .unwrap()
                .last()
                .unwrap()
        };
        assert_eq!(
            checkpoint(&disk),
            Checkpoint {
                boot: 0,
                ..checkpoint(&lost)
            }
        );
        drop(queues);
        assert_whole(&open(&log, &lost), 15);
    }
}
