//! What readers are told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rmq_wire::record::{Record, sys_flag, tags_code};

use super::fake_log::{FIRST_TIME, FakeLog, Send};
use crate::consume_queue::Unit;
use crate::dispatch::{Arrival, CommittedLog};
use crate::queues::run::GATHER;
use crate::queues::{ArrivalListener, Boundary, GetResult, GetStatus, Queues, Takes};
use crate::types::{PhyOffset, QueueOffset};
use crate::worker::Turn;

const TOPIC: &str = "Topic";

/// A queue with messages at these offsets, a second apart.
fn queue_of(offsets: std::ops::Range<u64>) -> (FakeLog, tempfile::TempDir, Arc<Queues>) {
    let log = FakeLog::default();
    for offset in offsets {
        log.append(&Send::new(TOPIC, 0, offset).at(offset as i64));
    }
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    (log, dir, queues)
}

fn get(queues: &Queues, offset: u64) -> GetResult {
    queues
        .get(TOPIC, 0, QueueOffset(offset), 32, 1 << 18, &|_| true)
        .unwrap()
}

fn offsets(result: &GetResult) -> Vec<i64> {
    result
        .records
        .iter()
        .map(|record| Record::decode(record).unwrap().queue_offset)
        .collect()
}

#[test]
fn offsets_outside_of_a_queue_are_answered_as_java_does() {
    let (_log, _dir, queues) = queue_of(3..9);
    let answer = |offset| {
        let result = get(&queues, offset);
        (result.status, result.next.0, result.min.0, result.max.0)
    };
    assert_eq!(answer(2), (GetStatus::OffsetTooSmall, 3, 3, 9));
    assert_eq!(answer(9), (GetStatus::OffsetOverflowOne, 9, 3, 9));
    assert_eq!(answer(10), (GetStatus::OffsetOverflowBadly, 9, 3, 9));
    assert_eq!(answer(3), (GetStatus::Found, 9, 3, 9));
    let unknown = queues
        .get("Other", 0, QueueOffset(5), 32, 1000, &|_| true)
        .unwrap();
    assert_eq!(
        (unknown.status, unknown.next.0),
        (GetStatus::NoMessageInQueue, 0)
    );
    assert_eq!(queues.min_offset("Other", 0), QueueOffset(0));
    assert_eq!(queues.max_offset(TOPIC, 1), QueueOffset(0));
    assert_eq!(queues.queue_ids(TOPIC), [0]);
}

#[test]
fn only_the_end_of_the_log_is_at_hand() {
    let (log, _dir, queues) = queue_of(0..20);
    let end = log.confirm_offset().0;
    let at_hand = |offset, bytes| {
        let takes = queues.takes(TOPIC, 0, QueueOffset(offset), bytes);
        takes.unwrap() == Takes::Memory
    };
    let begin_of = |offset| {
        let unit = queues.unit(TOPIC, 0, QueueOffset(offset)).unwrap();
        unit.unwrap().phy.0
    };
    for offset in 0..20 {
        let back = end - begin_of(offset);
        assert!(
            at_hand(offset, back) && !at_hand(offset, back - 1),
            "{offset}"
        );
    }
    // Where there is nothing to read, nothing is read.
    assert!(at_hand(20, 0) && at_hand(99, 0));
    let other = queues.takes("Other", 0, QueueOffset(0), 0).unwrap();
    assert_eq!(other, Takes::Memory);
    // A queue whose last message is old has nothing at hand, however few messages it has.
    log.append(&Send::new("Other", 0, 0));
    log.confirm_all();
    assert!(!at_hand(19, 10));
}

#[test]
fn a_get_crosses_files_and_keeps_its_limits() {
    let (_log, _dir, queues) = queue_of(0..20);
    let get = |offset, messages, bytes| {
        queues
            .get(TOPIC, 0, QueueOffset(offset), messages, bytes, &|_| true)
            .unwrap()
    };
    let result = get(5, 10, 1 << 18);
    assert_eq!(offsets(&result), (5..15).collect::<Vec<_>>());
    assert_eq!(result.next, QueueOffset(15));
    // The first message always comes, whatever the limits are.
    for (messages, bytes) in [(0, 0), (32, 1)] {
        let result = get(5, messages, bytes);
        assert_eq!((offsets(&result), result.next.0), (vec![5], 6));
    }
    let size = result.records[0].len();
    assert_eq!(offsets(&get(5, 32, 3 * size)), [5, 6, 7]);
}

#[test]
fn a_filter_is_asked_for_tags_and_the_scan_has_an_end() {
    let log = FakeLog::default();
    for offset in 0..1000 {
        let tag = if offset % 900 == 899 { "b" } else { "a" };
        log.append(&Send::new(TOPIC, 0, offset).with("TAGS", tag));
    }
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    let get = |offset, tag: &'static str| {
        queues
            .get(TOPIC, 0, QueueOffset(offset), 32, 1 << 18, &|code| {
                code == tags_code(tag)
            })
            .unwrap()
    };
    let none = get(0, "b");
    assert_eq!(
        (none.status, none.next.0),
        (GetStatus::NoMatchedMessage, 800)
    );
    let one = get(800, "b");
    assert_eq!(
        (one.status, one.next.0, offsets(&one)),
        (GetStatus::Found, 1000, vec![899])
    );
    let none = get(0, "c");
    assert_eq!(
        (none.status, none.records.len()),
        (GetStatus::NoMatchedMessage, 0)
    );
}

#[test]
fn removed_segments_are_passed_over() {
    let (log, _dir, queues) = queue_of(0..60);
    log.expire(PhyOffset(super::fake_log::SEGMENT));
    let first = (0..60).find(|at| {
        let unit = queues.unit(TOPIC, 0, QueueOffset(*at)).unwrap().unwrap();
        unit.phy >= PhyOffset(super::fake_log::SEGMENT)
    });
    let result = get(&queues, 0);
    assert_eq!(result.status, GetStatus::Found);
    assert_eq!(offsets(&result).first().copied(), first.map(|at| at as i64));
    log.expire(log.end());
    let result = get(&queues, 0);
    assert_eq!(
        (result.status, result.next.0),
        (GetStatus::MessageWasRemoving, 60)
    );
}

#[test]
fn nothing_beyond_the_confirm_offset_is_seen() {
    let (log, _dir, queues) = queue_of(0..2);
    let hidden = log.append(&Send::new(TOPIC, 0, 2).with("KEYS", "k"));
    assert_eq!(queues.step().unwrap(), None);
    assert_eq!(queues.max_offset(TOPIC, 0), QueueOffset(2));
    assert_eq!(get(&queues, 2).status, GetStatus::OffsetOverflowOne);
    assert!(
        queues
            .query_index(TOPIC, "k", 32, 0, i64::MAX)
            .unwrap()
            .is_empty()
    );
    queues.commit(log.end(), &[Send::new(TOPIC, 0, 2).run()]);
    assert_eq!(queues.max_offset(TOPIC, 0), QueueOffset(3));
    while queues.step().unwrap().is_some() {}
    assert_eq!(
        queues.query_index(TOPIC, "k", 32, 0, i64::MAX).unwrap(),
        [hidden]
    );
    assert_eq!(offsets(&get(&queues, 2)), [2]);
}

#[test]
fn a_committed_message_is_late_and_not_absent() {
    let (log, _dir, queues) = queue_of(0..2);
    log.append(&Send::new(TOPIC, 0, 2));
    queues.commit(log.end(), &[Send::new(TOPIC, 0, 2).run()]);
    // Nobody dispatches.
    let result = get(&queues, 2);
    assert_eq!(
        (result.status, result.next.0, result.max.0),
        (GetStatus::Late, 2, 3)
    );
    assert_eq!(get(&queues, 3).status, GetStatus::OffsetOverflowOne);
    // A reader that waits is woken.
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            loop {
                let result = get(&queues, 2);
                if result.status != GetStatus::Late {
                    return offsets(&result);
                }
            }
        });
        queues.step().unwrap();
        assert_eq!(reader.join().unwrap(), [2]);
    });
}

#[test]
fn commits_that_come_again_change_nothing() {
    let (log, _dir, queues) = queue_of(0..5);
    let first = Send::new(TOPIC, 0, 0).run();
    queues.commit(PhyOffset(10), &[first]);
    assert_eq!(queues.max_offset(TOPIC, 0), QueueOffset(5));
    assert_eq!(log.confirm_offset(), log.end());
}

#[test]
fn arrivals_are_told_after_their_units_are_there() {
    let (log, _dir, queues) = queue_of(0..1);
    let seen: Arc<Mutex<Vec<Arrival>>> = Arc::default();
    let late = Arc::new(AtomicUsize::new(0));
    let listener = {
        let (seen, late, queues) = (
            Arc::clone(&seen),
            Arc::clone(&late),
            Arc::downgrade(&queues),
        );
        Arc::new(move |arrivals: &[Arrival]| {
            let queues = queues.upgrade().unwrap();
            for arrival in arrivals {
                let at = QueueOffset(arrival.next.0 - 1);
                let unit = queues.unit(&arrival.topic, arrival.queue_id, at).unwrap();
                late.fetch_add(usize::from(unit.is_none()), Ordering::Relaxed);
            }
            seen.lock().unwrap().extend_from_slice(arrivals);
            true
        })
    };
    queues.start(listener).unwrap();
    for offset in 1..50 {
        let new = Send::new(TOPIC, 0, offset)
            .with("TAGS", "a")
            .at(offset as i64);
        log.append(&new);
        queues.commit(log.end(), &[new.run()]);
    }
    queues.stop().unwrap();
    assert_eq!(queues.dispatched(), log.end());
    assert_eq!(queues.failure(), None);
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen.iter()
            .map(|arrival| arrival.next.0)
            .collect::<Vec<_>>(),
        (2..51).collect::<Vec<_>>()
    );
    assert_eq!(late.load(Ordering::Relaxed), 0);
    let expected = Arrival {
        topic: TOPIC.into(),
        queue_id: 0,
        next: QueueOffset(50),
        tags_code: 97,
        store_timestamp: FIRST_TIME + 49_000,
    };
    assert_eq!(seen.last(), Some(&expected));
}

#[test]
fn only_what_consumers_may_read_gets_a_unit() {
    let log = FakeLog::default();
    let with = |flag| Send {
        sys_flag: flag,
        ..Send::new(TOPIC, 0, 0).with("UNIQ_KEY", "u")
    };
    let prepared = log.append(&with(sys_flag::TRANSACTION_PREPARED));
    let committed = log.append(&with(sys_flag::TRANSACTION_COMMIT));
    log.append(&with(sys_flag::TRANSACTION_ROLLBACK));
    log.append(&Send::new("rmq_sys_raft_log", 0, 0).with("UNIQ_KEY", "u"));
    log.append(&Send::new("no/../topic", 0, 0).with("UNIQ_KEY", "u"));
    log.append(&Send::new(TOPIC, -1, 0).with("UNIQ_KEY", "u"));
    log.append(&Send::new(TOPIC, 0, 1 << 62).with("UNIQ_KEY", "u"));
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    assert_eq!(queues.dispatched(), log.end());
    assert_eq!(queues.maxima(), [(TOPIC.into(), 0, QueueOffset(1))]);
    let unit = queues.unit(TOPIC, 0, QueueOffset(0)).unwrap();
    assert_eq!(unit.map(|unit: Unit| unit.phy), Some(committed));
    // Like Java's, the index has prepared messages too.
    assert_eq!(
        queues.query_index(TOPIC, "u", 32, 0, i64::MAX).unwrap(),
        [committed, prepared]
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("consumequeue"))
            .unwrap()
            .count(),
        1
    );
}

/// As an adopted log may have it, whose records do not check their queue offsets.
#[test]
fn a_record_at_an_offset_that_no_queue_reaches_stays_out_of_it() {
    let most = i64::MAX as u64 / 20;
    let log = FakeLog::default();
    log.append(&Send::new(TOPIC, 0, 0));
    let last = log.append(&Send::new(TOPIC, 0, most - 1));
    log.append(&Send::new(TOPIC, 0, most));
    log.append(&Send::new(TOPIC, 1, i64::MAX as u64));
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let queues = log.open(dir.path());
        assert_eq!(queues.dispatched(), log.end());
        assert_eq!(queues.maxima(), [(TOPIC.into(), 0, QueueOffset(most))]);
        let unit = queues.unit(TOPIC, 0, QueueOffset(most - 1)).unwrap();
        assert_eq!(unit.map(|unit: Unit| unit.phy), Some(last));
        queues.stop().unwrap();
    }
}

#[test]
fn a_delayed_message_has_the_time_it_is_due() {
    let log = FakeLog::default();
    let schedule = "SCHEDULE_TOPIC_XXXX";
    log.append(
        &Send::new(schedule, 2, 0)
            .with("DELAY", "3")
            .with("TAGS", "a"),
    );
    log.append(&Send::new(schedule, 2, 1).with("DELAY", "99"));
    log.append(
        &Send::new(schedule, 2, 2)
            .with("DELAY", "x")
            .with("TAGS", "a"),
    );
    log.append(&Send::new(TOPIC, 2, 0).with("DELAY", "3").with("TAGS", "a"));
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    let code = |topic, at| {
        queues
            .unit(topic, 2, QueueOffset(at))
            .unwrap()
            .unwrap()
            .tags_code
    };
    assert_eq!(code(schedule, 0), FIRST_TIME + 10_000);
    assert_eq!(code(schedule, 1), FIRST_TIME + 7_200_000);
    assert_eq!(code(schedule, 2), 97);
    assert_eq!(code(TOPIC, 0), 97);
}

#[test]
fn a_time_stands_for_the_first_or_the_last_message_of_it() {
    let log = FakeLog::default();
    for (offset, second) in [1, 3, 3, 3, 7, 9, 9, 9, 9].into_iter().enumerate() {
        log.append(&Send::new(TOPIC, 0, offset as u64).at(second));
    }
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    let find = |second: i64, boundary| {
        queues
            .offset_by_time(TOPIC, 0, FIRST_TIME + second * 1000, boundary)
            .unwrap()
            .0
    };
    let lower: Vec<u64> = (0..11)
        .map(|second| find(second, Boundary::Lower))
        .collect();
    assert_eq!(lower, [0, 0, 1, 1, 4, 4, 4, 4, 5, 5, 9]);
    let upper: Vec<u64> = (0..11)
        .map(|second| find(second, Boundary::Upper))
        .collect();
    assert_eq!(upper, [0, 0, 0, 3, 3, 3, 3, 4, 4, 8, 8]);
    assert_eq!(
        queues.store_time_at(TOPIC, 0, QueueOffset(4)).unwrap(),
        Some(FIRST_TIME + 7000)
    );
    assert_eq!(
        queues.store_time_at(TOPIC, 0, QueueOffset(9)).unwrap(),
        None
    );
    assert_eq!(queues.earliest_store_time(), Some(FIRST_TIME + 1000));
    assert_eq!(
        queues
            .offset_by_time("Other", 0, 5, Boundary::Lower)
            .unwrap(),
        QueueOffset(0)
    );
}

#[test]
fn a_query_is_exact() {
    let log = FakeLog::default();
    let keys = ["k1 k2", "k2  k3", "K1", "k1", "k1"];
    let positions: Vec<PhyOffset> = keys
        .iter()
        .zip(0..)
        .map(|(keys, at)| {
            let mut new = Send::new(TOPIC, 0, at as u64)
                .with("KEYS", keys)
                .with("UNIQ_KEY", &format!("u{at}"));
            new.time = FIRST_TIME + at * 700;
            log.append(&new)
        })
        .collect();
    log.append(&Send::new("Other", 0, 0).with("KEYS", "k1"));
    log.confirm_all();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    let query = |key, max, begin, end| {
        queues
            .query_index(TOPIC, key, max, FIRST_TIME + begin, FIRST_TIME + end)
            .unwrap()
    };
    let at = |numbers: &[usize]| numbers.iter().map(|at| positions[*at]).collect::<Vec<_>>();
    assert_eq!(query("k1", 64, 0, 10_000), at(&[4, 3, 0]));
    assert_eq!(query("k1", 2, 0, 10_000), at(&[4, 3]));
    assert_eq!(query("k1", 64, 1, 2800), at(&[4, 3]));
    assert_eq!(query("k1", 64, 2101, 2799), at(&[]));
    assert_eq!(query("k1", 64, 2100, 2100), at(&[3]));
    assert_eq!(query("k2", 64, 0, 10_000), at(&[1, 0]));
    assert_eq!(query("u1", 64, 0, 10_000), at(&[1]));
    assert_eq!(query("k2 ", 64, 0, 10_000), at(&[]));
    assert_eq!(query("", 64, 0, 10_000), at(&[]));
}

#[test]
fn messages_gather_only_while_nobody_waits() {
    let (log, _dir, queues) = queue_of(0..1);
    let send = |offset| {
        let new = Send::new(TOPIC, 0, offset);
        log.append(&new);
        queues.commit(log.end(), &[new.run()]);
    };
    let nobody: ArrivalListener = Arc::new(|_| false);
    let somebody: ArrivalListener = Arc::new(|_| true);
    let late: ArrivalListener = {
        let queues = Arc::clone(&queues);
        Arc::new(move |_| {
            queues.hurry();
            false
        })
    };
    send(1);
    assert_eq!(queues.dispatch_turn(&somebody), Turn::Again);
    assert_eq!(queues.dispatch_turn(&somebody), Turn::Wait);
    send(2);
    assert_eq!(queues.dispatch_turn(&nobody), Turn::WaitFor(GATHER));
    send(3);
    assert_eq!(queues.dispatch_turn(&nobody), Turn::WaitFor(GATHER));
    assert_eq!(queues.dispatch_turn(&nobody), Turn::Wait);
    send(4);
    assert_eq!(queues.dispatch_turn(&late), Turn::Again);
    assert_eq!(queues.max_offset(TOPIC, 0), QueueOffset(5));
    assert_eq!(queues.dispatched(), log.end());
}

#[test]
fn readers_follow_a_writer_without_a_gap() {
    const MESSAGES: u64 = 3000;
    let log = FakeLog::default();
    let dir = tempfile::tempdir().unwrap();
    let queues = log.open(dir.path());
    queues.start(Arc::new(|_| true)).unwrap();
    std::thread::scope(|scope| {
        for queue_id in [0, 1, 1] {
            let queues = &queues;
            scope.spawn(move || {
                let mut at = QueueOffset(0);
                while at < QueueOffset(MESSAGES) {
                    let result = queues
                        .get(TOPIC, queue_id, at, 32, 1 << 18, &|_| true)
                        .unwrap();
                    assert!(at <= result.max && result.next <= result.max, "{result:?}");
                    for offset in offsets(&result) {
                        assert_eq!(offset as u64, at.0);
                        at = at + 1;
                    }
                    assert_eq!(result.next, at, "{:?}", result.status);
                }
            });
        }
        for offset in 0..MESSAGES {
            let sends = [0, 1].map(|queue_id| Send::new(TOPIC, queue_id, offset));
            sends.iter().for_each(|send| {
                log.append(send);
            });
            queues.commit(log.end(), &sends.map(|send| send.run()));
        }
    });
    queues.stop().unwrap();
}
