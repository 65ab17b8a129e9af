use super::support::*;
use crate::config::FlushMode;
use crate::log::Log;
use crate::types::{EntryKind, LogIndex, PhyOffset, QueueOffset, Run, Term, Vote};

#[test]
fn entries_are_sealed_read_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), FlushMode::Sync);
    let mut log = Log::open(&config, &real()).unwrap();
    assert!(log.recovered().created);
    let (first, first_cell) = messages(
        id(1, 1),
        vec![
            pending("a", 0, b"a0", true),
            pending("b", 3, b"b0", true),
            pending("a", 0, b"half", false),
            pending("a", 0, b"a1", true),
        ],
    );
    let (second, second_cell) = messages(id(1, 3), vec![pending("a", 0, b"a2", true)]);
    log.append(vec![blank(id(1, 0)), first]).unwrap();
    log.append(vec![meta(id(1, 2), "command"), second]).unwrap();
    flush(&log).unwrap();

    let queues: Vec<u64> = first_cell
        .get()
        .unwrap()
        .iter()
        .map(|p| p.queue.0)
        .collect();
    assert_eq!(queues, [0, 0, 0, 1]);
    let reader = log.reader();
    let entry = reader.entry(LogIndex(1)).unwrap().unwrap();
    assert_eq!(
        (entry.id, entry.kind, entry.record_count),
        (id(1, 1), EntryKind::Messages, 4)
    );
    let run = |topic: &str, queue_id, count| Run {
        topic: topic.into(),
        queue_id,
        first: QueueOffset(0),
        count,
    };
    assert_eq!(entry.runs, [run("a", 0, 2), run("b", 3, 1)]);
    assert_eq!(
        &reader.entry(LogIndex(2)).unwrap().unwrap().meta[..],
        b"command"
    );
    assert!(reader.entry(LogIndex(4)).unwrap().is_none());

    let position = second_cell.get().unwrap()[0];
    assert_eq!(position.queue, QueueOffset(2));
    assert!(
        reader.record_at(position.phy).is_none(),
        "not yet committed"
    );
    reader.set_confirm_offset(reader.end_offset());
    assert!(reader.record_at(position.phy).is_some());
    assert!(reader.record_at(position.phy + 1).is_none());
    assert!(reader.record_at(PhyOffset(u64::MAX)).is_none());

    let vote = Vote {
        term: Term(7),
        node: 2,
        committed: true,
    };
    log.save_vote(vote).unwrap();
    log.save_committed(Some(id(1, 2)));
    let before = walk(&*real(), &config.commit_log_dir);
    assert_eq!(messages_of(&before).len(), 5);
    log.close().unwrap();

    let mut log = Log::open(&config, &real()).unwrap();
    assert!(log.recovered().clean);
    assert_eq!(log.read_vote(), Some(vote));
    assert_eq!(log.read_committed(), Some(id(1, 2)));
    assert_eq!(walk(&*real(), &config.commit_log_dir), before);
    let reader = log.reader();
    assert_eq!(reader.last_id(), Some(id(1, 3)));
    assert_eq!(
        reader.confirm_offset(),
        reader.entry(LogIndex(2)).unwrap().unwrap().end
    );
    log.seed_queue_offsets([], PhyOffset(0)).unwrap();
    assert_eq!(log.next_queue_offset("a", 0), QueueOffset(3));
    assert_eq!(log.next_queue_offset("b", 3), QueueOffset(1));
    drop(log);
    // Killed, as it were: nothing is lost either.
    let log = Log::open(&config, &real()).unwrap();
    assert!(!log.recovered().clean);
    assert_eq!(log.reader().last_id(), Some(id(1, 3)));
}

#[test]
fn a_second_log_of_the_same_entries_has_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, other) = (
        config(one.path(), FlushMode::Sync),
        config(other.path(), FlushMode::Sync),
    );
    let mut leader = Log::open(&one, &real()).unwrap();
    let mut follower = Log::open(&other, &real()).unwrap();
    for index in 0..300 {
        let body = vec![7; 37 * index % 3000];
        let (entry, _) = messages(
            id(1, index as u64),
            vec![pending("t", 0, &body, true), pending("u", 1, &body, true)],
        );
        leader.append(vec![entry]).unwrap();
    }
    follower.append(raw_entries(&leader.reader())).unwrap();
    assert_eq!(follower.reader().end_offset(), leader.reader().end_offset());
    let (found, copied) = (
        walk(&*real(), &one.commit_log_dir),
        walk(&*real(), &other.commit_log_dir),
    );
    assert_eq!(found, copied);
    assert!(
        phy(found.last().unwrap()).0 > 3 * SEGMENT_BYTES,
        "several segments"
    );
    assert_same_bytes(&one.commit_log_dir, &other.commit_log_dir);
}
