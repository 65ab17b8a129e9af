//! Restarts, losses and what is made of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rmq_wire::record::Record;

use super::fake_log::{FakeLog, SEGMENT, Send, config};
use crate::consume_queue::BLANK;
use crate::dispatch::DispatchError;
use crate::queues::{GetStatus, OpenQueuesError, Place, Queues};
use crate::types::{PhyOffset, QueueOffset};

fn fill(log: &FakeLog, topic: &'static str, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        log.append(&Send::new(topic, 0, offset).with("KEYS", "k"));
    }
    log.confirm_all();
}

/// The same while the queues are open.
fn append(log: &FakeLog, queues: &Queues, topic: &'static str, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        let new = Send::new(topic, 0, offset).with("KEYS", "k");
        log.append(&new);
        queues.commit(log.end(), &[new.run()]);
    }
    while queues.step().unwrap().is_some() {}
}

fn end(queues: &Queues, topic: &str) -> u64 {
    let get = |offset| {
        queues
            .get(topic, 0, QueueOffset(offset), 1, 1, &|_| true)
            .unwrap()
    };
    let result = get(0);
    assert_eq!(result.max, queues.max_offset(topic, 0));
    for offset in result.min.0..result.max.0 {
        assert_eq!(get(offset).status, GetStatus::Found, "{topic} {offset}");
    }
    result.max.0
}

fn unit_file(root: &Path, topic: &str, start: u64) -> std::path::PathBuf {
    root.join("consumequeue")
        .join(topic)
        .join("0")
        .join(format!("{start:020}"))
}

#[test]
fn a_clean_stop_leaves_nothing_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..20);
    let queues = log.open(dir.path());
    queues.stop().unwrap();
    drop(queues);
    let path = unit_file(dir.path(), "a", 140);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let queues = log.open(dir.path());
    assert_eq!(queues.dispatched(), log.end());
    assert_eq!(end(&queues, "a"), 20);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

#[test]
fn files_have_their_full_length_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 10..16);
    log.open(dir.path());
    let bytes = fs::read(unit_file(dir.path(), "a", 140)).unwrap();
    assert_eq!(bytes.len(), 140);
    assert_eq!(bytes[..60], BLANK.repeat(3));
    assert!(bytes[80] == 0 && bytes[60..] != [0; 80]);
    assert!(unit_file(dir.path(), "a", 280).try_exists().unwrap());
    assert!(!unit_file(dir.path(), "a", 0).try_exists().unwrap());
}

#[test]
fn units_beyond_the_confirm_offset_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..5);
    let shorter = log.end();
    fill(&log, "a", 5..20);
    fill(&log, "b", 0..3);
    log.open(dir.path()).stop().unwrap();
    log.lose_tail(shorter);
    let queues = log.open(dir.path());
    assert_eq!(queues.dispatched(), shorter);
    assert_eq!(end(&queues, "a"), 5);
    assert_eq!(queues.maxima(), [("a".into(), 0, QueueOffset(5))]);
    assert_eq!(
        queues.query_index("a", "k", 64, 0, i64::MAX).unwrap().len(),
        5
    );
    assert!(!unit_file(dir.path(), "a", 140).try_exists().unwrap());
    assert!(!unit_file(dir.path(), "b", 0).try_exists().unwrap());
    assert_eq!(
        fs::read(unit_file(dir.path(), "a", 0)).unwrap()[100..],
        [0; 40]
    );
    // Other messages take the places.
    append(&log, &queues, "b", 0..2);
    append(&log, &queues, "a", 5..7);
    assert_eq!((end(&queues, "a"), end(&queues, "b")), (7, 2));
}

#[test]
fn a_queue_that_vanished_is_built_again() {
    let log = FakeLog::default();
    fill(&log, "a", 0..10);
    fill(&log, "b", 0..10);
    for lost in [
        "consumequeue/b",
        "consumequeue/b/0",
        "consumequeue",
        "index",
        "dispatched",
        "dispatched.queues",
    ] {
        let dir = tempfile::tempdir().unwrap();
        log.open(dir.path()).stop().unwrap();
        let lost = dir.path().join(lost);
        if lost.is_dir() {
            fs::remove_dir_all(&lost).unwrap();
        } else {
            fs::remove_file(&lost).unwrap();
        }
        let queues = log.open(dir.path());
        assert_eq!(
            (end(&queues, "a"), end(&queues, "b")),
            (10, 10),
            "{}",
            lost.display()
        );
        assert_eq!(
            queues.query_index("b", "k", 64, 0, i64::MAX).unwrap().len(),
            10
        );
    }
}

#[test]
fn a_queue_that_lost_its_last_units_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..10);
    log.open(dir.path()).stop().unwrap();
    let path = unit_file(dir.path(), "a", 140);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40..60].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(end(&log.open(dir.path()), "a"), 10);
}

/// A unit in the middle is where a search for the end would have looked.
#[test]
fn the_table_of_the_queues_spares_a_start_the_search_for_their_ends() {
    for (clean, with_table) in [(true, true), (false, true), (true, false), (false, false)] {
        let dir = tempfile::tempdir().unwrap();
        let log = FakeLog::default();
        fill(&log, "a", 0..20);
        fill(&log, "b", 0..7);
        let queues = log.open(dir.path());
        if clean {
            queues.stop().unwrap();
        } else {
            // Killed, after it has written more than the table has, the beginning of a file included.
            append(&log, &queues, "b", 7..9);
        }
        drop(queues);
        let path = unit_file(dir.path(), "a", 280);
        let mut bytes = fs::read(&path).unwrap();
        bytes[80..100].fill(0);
        fs::write(&path, &bytes).unwrap();
        if !with_table {
            fs::remove_file(dir.path().join("dispatched.queues")).unwrap();
        }
        let queues = log.open(dir.path());
        assert_eq!(
            fs::read(&path).unwrap() == bytes,
            with_table,
            "built anew, {clean} {with_table}"
        );
        queues.start(Arc::new(|_| true)).unwrap();
        let ends = (end(&queues, "a"), end(&queues, "b"));
        assert_eq!(ends, (20, if clean { 7 } else { 9 }));
        let found = queues.query_index("b", "k", 64, 0, i64::MAX).unwrap();
        assert_eq!(found.len() as u64, ends.1);
        queues.stop().unwrap();
    }
}

/// Positions of a log that has lost its end mean something else from there on.
#[test]
fn a_table_of_a_log_that_lost_its_end_is_not_used_later() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..5);
    let shorter = log.end();
    fill(&log, "a", 5..20);
    log.open(dir.path()).stop().unwrap();
    log.lose_tail(shorter);
    let queues = log.open(dir.path());
    append(&log, &queues, "b", 0..25);
    queues.flush(false).unwrap();
    drop(queues);
    let queues = log.open(dir.path());
    assert_eq!((end(&queues, "a"), end(&queues, "b")), (5, 25));
}

#[test]
fn a_queue_whose_messages_expired_keeps_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "old", 0..9);
    while log.end() < PhyOffset(SEGMENT) {
        fill(&log, "half", 0..1);
    }
    let kept = log.end();
    fill(&log, "half", 1..30);
    log.open(dir.path()).stop().unwrap();
    log.expire(kept);
    for lost in [
        None,
        Some("dispatched"),
        Some("consumequeue/old"),
        Some("consumequeue"),
    ] {
        match lost.map(|name| dir.path().join(name)) {
            Some(path) if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            Some(path) => fs::remove_file(path).unwrap(),
            None => {}
        }
        let queues = log.open(dir.path());
        assert_eq!(
            (queues.min_offset("old", 0), queues.max_offset("old", 0)),
            (QueueOffset(9), QueueOffset(9))
        );
        assert_eq!(queues.min_offset("half", 0), QueueOffset(1));
        assert_eq!(end(&queues, "half"), 30);
        // A process that is killed has written nothing more.
        drop(queues);
        // What was restored needs no restoring again.
        let written = || {
            let file = fs::metadata(unit_file(dir.path(), "half", 0)).unwrap();
            file.modified().unwrap()
        };
        let before = written();
        drop(log.open(dir.path()));
        assert_eq!(written(), before, "{lost:?}");
    }
    let queues = log.open(dir.path());
    append(&log, &queues, "old", 9..12);
    queues.stop().unwrap();
    drop(queues);
    assert_eq!(end(&log.open(dir.path()), "old"), 12);
}

#[test]
fn a_topic_made_again_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..20);
    let second = log.end();
    let queues = log.open(dir.path());
    append(&log, &queues, "a", 0..3);
    for queues in [queues, log.open(tempfile::tempdir().unwrap().path())] {
        let unit = queues.unit("a", 0, QueueOffset(0)).unwrap().unwrap();
        assert_eq!(unit.phy, second);
        assert_eq!(queues.maxima(), [("a".into(), 0, QueueOffset(3))]);
        assert_eq!(queues.unit("a", 0, QueueOffset(3)).unwrap(), None);
        assert_eq!(end(&queues, "a"), 3);
    }
    // Told by the log that is committed, too.
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    let new = Send::new("a", 0, 0);
    log.append(&new);
    queues.commit(log.end(), &[new.run()]);
    assert_eq!(queues.max_offset("a", 0), QueueOffset(1));
    queues.stop().unwrap();
    drop(queues);
    assert_eq!(end(&log.open(dir.path()), "a"), 1);
}

#[test]
fn a_jump_is_filled_with_blanks() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 2..4);
    fill(&log, "a", 5..6);
    fill(&log, "a", 23..24);
    let queues = log.open(dir.path());
    let there = |at| queues.unit("a", 0, QueueOffset(at)).unwrap().is_some();
    assert_eq!(
        (0..25).filter(|at| there(*at)).collect::<Vec<_>>(),
        [2, 3, 5, 23]
    );
    assert_eq!(
        fs::read(unit_file(dir.path(), "a", 0)).unwrap()[120..],
        BLANK
    );
    assert_eq!(
        fs::read(unit_file(dir.path(), "a", 420)).unwrap()[..40],
        BLANK.repeat(2)
    );
    queues.stop().unwrap();
    drop(queues);
    let queues = log.open(dir.path());
    assert_eq!(queues.maxima(), [("a".into(), 0, QueueOffset(24))]);
}

#[test]
fn a_hole_is_repaired_when_it_is_met() {
    for (lost, first) in [(0..7_usize, 0), (2..5, 2), (6..7, 6)] {
        let dir = tempfile::tempdir().unwrap();
        let log = FakeLog::default();
        for offset in 0..20 {
            log.append(&Send::new("a", 0, offset));
            log.append(&Send::new("b", 0, offset));
        }
        log.confirm_all();
        let whole = tempfile::tempdir().unwrap();
        log.open(whole.path());
        let queues = log.open(dir.path());
        let path = unit_file(dir.path(), "a", 0);
        let mut bytes = fs::read(&path).unwrap();
        bytes[lost.start * 20..lost.end * 20].fill(0);
        fs::write(&path, bytes).unwrap();
        let late = queues
            .get("a", 0, QueueOffset(first), 32, 1 << 18, &|_| true)
            .unwrap();
        assert_eq!((late.status, late.next.0), (GetStatus::Late, first));
        queues.start(Arc::new(|_| true)).unwrap();
        assert_eq!(end(&queues, "a"), 20);
        queues.stop().unwrap();
        assert_eq!(
            fs::read(&path).unwrap(),
            fs::read(unit_file(whole.path(), "a", 0)).unwrap()
        );
    }
}

#[test]
fn a_place_has_a_message_or_nothing_or_cannot_be_told_yet() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 2..4);
    fill(&log, "a", 5..20);
    let queues = log.open(dir.path());
    let place = |at| queues.place("a", 0, QueueOffset(at)).unwrap();
    assert_eq!((place(1), place(4)), (Place::Nothing, Place::Nothing));
    for at in [20, u64::MAX] {
        assert_eq!(place(at), Place::Later);
        let units = queues.units("a", 0, QueueOffset(at), 5).unwrap();
        assert_eq!(units, []);
    }
    assert_eq!(queues.place("b", 0, QueueOffset(0)).unwrap(), Place::Later);
    let Place::Message(record) = place(6) else {
        panic!("{:?}", place(6));
    };
    assert_eq!(Record::decode(&record).unwrap().queue_offset, 6);

    // A unit that is lost is restored, as if a consumer had met it.
    let path = unit_file(dir.path(), "a", 0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[6 * 20..7 * 20].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(place(6), Place::Later);
    queues.start(Arc::new(|_| true)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while place(6) != Place::Message(record.clone()) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    queues.stop().unwrap();
}

#[test]
fn a_file_that_vanished_is_repaired_when_it_is_met() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..20);
    log.open(dir.path()).stop().unwrap();
    fs::remove_file(unit_file(dir.path(), "a", 140)).unwrap();
    let queues = log.open(dir.path());
    queues.start(Arc::new(|_| true)).unwrap();
    assert_eq!(end(&queues, "a"), 20);
    queues.stop().unwrap();
}

#[test]
fn files_of_another_length_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..10);
    log.open(dir.path()).stop().unwrap();
    let disk: Arc<dyn crate::disk::Disk> = Arc::new(crate::disk::RealDisk);
    let other = crate::config::StoreConfig {
        consume_queue_file_bytes: 100,
        ..config(dir.path())
    };
    let error = Queues::open_over(&other, &disk, Box::new(log.clone()), &|_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("00000000000000000140: 140 is no multiple"),
        "{error}"
    );
    assert!(
        error.contains("100 bytes (mappedFileSizeConsumeQueue)"),
        "{error}"
    );
    // What a crash leaves of a file that was being made or cut is put right.
    fs::OpenOptions::new()
        .write(true)
        .open(unit_file(dir.path(), "a", 140))
        .unwrap()
        .set_len(60)
        .unwrap();
    fs::write(unit_file(dir.path(), "a", 280), []).unwrap();
    assert_eq!(end(&log.open(dir.path()), "a"), 10);
}

#[test]
fn bytes_that_are_no_record_stop_the_opening() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..3);
    let bad = log.append(&Send::new("a", 0, 3));
    log.confirm_all();
    log.damage(bad + 4, &[0; 4]);
    let error = log.try_open(dir.path()).unwrap_err();
    let OpenQueuesError::Dispatch(DispatchError::NoRecord { at, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!(at, bad);
}

#[test]
fn a_record_with_damaged_fields_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let log = FakeLog::default();
    fill(&log, "a", 0..3);
    let bad = log.append(&Send::new("b", 0, 0));
    // The body's length.
    log.damage(bad + 84, &[0x7f]);
    fill(&log, "a", 3..5);
    let queues = log.open(dir.path());
    assert_eq!(queues.maxima(), [("a".into(), 0, QueueOffset(5))]);
}
