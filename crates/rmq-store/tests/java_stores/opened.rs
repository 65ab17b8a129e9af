//! Copies of the stores opened as the history of a new log, with their queues and index built anew.

use std::fs;
use std::sync::Arc;

use rmq_store::{
    Boundary, GetStatus, PhyOffset, QueueOffset, Queues, RealDisk, Store, StoreConfig, Unit,
};
use rmq_wire::name;
use rmq_wire::record::Record;

use crate::files::messages_by_queue;
use crate::fixture::{JavaStore, ManifestLine, stores};
use crate::{Queue, delay_levels, queues_of, records};

/// A copy that is open.
struct Opened {
    root: tempfile::TempDir,
    store: Store,
}

fn open(java: &JavaStore) -> Opened {
    let root = tempfile::tempdir().unwrap();
    for (path, bytes) in &java.files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let number = |key: &str| java.config[key].parse().unwrap();
    let config = StoreConfig {
        segment_bytes: number("mappedFileSizeCommitLog"),
        consume_queue_file_bytes: number("mappedFileSizeConsumeQueue"),
        index_slots: u32::try_from(number("maxHashSlotNum")).unwrap(),
        index_entries: u32::try_from(number("maxIndexNum")).unwrap(),
        max_message_bytes: 512 * 1024,
        delay_levels: delay_levels(java),
        ..StoreConfig::new(root.path())
    };
    let store = rmq_store::open(&config, Arc::new(RealDisk)).unwrap();
    Opened { root, store }
}

#[test]
fn stores_are_served_as_java_served_them() {
    // One store at a time, several stores at once.
    std::thread::scope(|scope| {
        let checks: Vec<_> = stores()
            .iter()
            .map(|java| scope.spawn(|| check(java)))
            .collect();
        for check in checks {
            check.join().unwrap();
        }
    });
}

fn check(java: &JavaStore) {
    let Opened { root, store } = open(java);
    let (phy, record) = records(java).last().unwrap();
    assert_eq!(
        store.queues.dispatched(),
        PhyOffset(phy + record.size as u64)
    );
    assert_eq!(
        store.queues.earliest_store_time(),
        records(java).next().map(|(_, r)| r.store_timestamp)
    );
    check_units(java, &store.queues);
    check_answers(java, &store.queues);
    check_files(java, root.path());
    store.queues.stop().unwrap();
    store.log.close().unwrap();
}

/// Units are the log's, later generations in place of earlier ones.
fn check_units(java: &JavaStore, queues: &Queues) {
    for ((topic, queue_id), expected) in queues_of(java) {
        let first = *expected.keys().next().unwrap();
        let end = expected.keys().next_back().unwrap() + 1;
        assert_eq!(queues.max_offset(&topic, queue_id), QueueOffset(end));
        let count = usize::try_from(end - first).unwrap();
        let units = queues
            .units(&topic, queue_id, QueueOffset(first), count)
            .unwrap();
        let units: Vec<(u64, Unit)> = units
            .into_iter()
            .zip(first..)
            .filter_map(|(unit, at)| Some((at, unit?)))
            .collect();
        assert!(
            units.into_iter().eq(expected),
            "{} {topic} {queue_id}",
            java.full_name()
        );
    }
}

/// What the manifest says is what we answer; `differs` says where not.
fn check_answers(java: &JavaStore, queues: &Queues) {
    let messages = messages_by_queue(java);
    for line in &java.manifest {
        match line {
            ManifestLine::Queue {
                topic,
                queue_id,
                min_offset,
                max_offset,
                ..
            } => {
                let queue = (topic.clone(), *queue_id);
                if differs(java, &queue) {
                    continue;
                }
                let name = format!("{} {queue:?}", java.full_name());
                let (min, max) = (
                    queues.min_offset(topic, *queue_id),
                    queues.max_offset(topic, *queue_id),
                );
                assert_eq!(max, QueueOffset(*max_offset), "{name}");
                let messages = messages.get(&queue).map(Vec::as_slice).unwrap_or_default();
                // Where all messages have expired, 4.9 keeps the minimum that it had.
                let java_min = if messages.is_empty() {
                    *max_offset
                } else {
                    *min_offset
                };
                assert_eq!(min, QueueOffset(java_min), "{name}");
                assert_eq!(pull(queues, topic, *queue_id), messages, "{name}");
            }
            ManifestLine::Query {
                topic,
                key,
                phy_offsets,
            } => {
                let mut ours = queues.query_index(topic, key, 64, 0, i64::MAX).unwrap();
                ours.reverse();
                let mut theirs: Vec<PhyOffset> =
                    phy_offsets.iter().map(|phy| PhyOffset(*phy)).collect();
                // After its crash, Java had indexed the last messages twice.
                theirs.dedup();
                assert_eq!(ours, theirs, "{} {topic} {key}", java.full_name());
            }
            ManifestLine::OffsetByTime {
                topic,
                queue_id,
                timestamp,
                offset,
            } => {
                if !differs(java, &(topic.clone(), *queue_id)) {
                    check_time(java, queues, (topic, *queue_id), *timestamp, *offset);
                }
            }
            ManifestLine::Msg(_) | ManifestLine::Other => {}
        }
    }
}

/// Queues that are not what Java had, for a reason.
fn differs(java: &JavaStore, (topic, _): &Queue) -> bool {
    // Not classic: written into queues of other names, and with a unit for several messages.
    topic.starts_with(name::LMQ_PREFIX)
        || java.is_5() && topic == "TopicBCQ"
        // A slave keeps of a topic that was made again the first generation.
        || java.name.ends_with("-s") && topic == "TopicRecreated"
}

/// Positions of all messages of a queue, as consumers get them.
fn pull(queues: &Queues, topic: &str, queue_id: i32) -> Vec<u64> {
    let mut positions = Vec::new();
    let mut at = queues.min_offset(topic, queue_id);
    loop {
        let result = queues
            .get(topic, queue_id, at, 32, 256 * 1024, &|_| true)
            .unwrap();
        if result.status != GetStatus::Found {
            let end = [GetStatus::OffsetOverflowOne, GetStatus::NoMessageInQueue];
            assert!(
                end.contains(&result.status),
                "{topic} {queue_id}: {:?}",
                result.status
            );
            return positions;
        }
        for record in &result.records {
            let record = Record::decode(record).unwrap();
            positions.push(u64::try_from(record.physical_offset).unwrap());
        }
        at = result.next;
    }
}

fn check_time(java: &JavaStore, queues: &Queues, queue: (&str, i32), timestamp: i64, theirs: u64) {
    let (topic, queue_id) = queue;
    let find = |boundary| {
        queues
            .offset_by_time(topic, queue_id, timestamp, boundary)
            .unwrap()
            .0
    };
    let ours = find(Boundary::Lower);
    if java.is_5() || ours == theirs {
        assert_eq!(
            ours,
            theirs,
            "{} {topic} {queue_id} {timestamp}",
            java.full_name()
        );
        return;
    }
    // 4.9 gives the nearest message in the first file that was not modified before.
    let time = |at| {
        queues
            .store_time_at(topic, queue_id, QueueOffset(at))
            .unwrap()
    };
    let max = queues.max_offset(topic, queue_id).0;
    let is_one_of_that_time = time(theirs) == Some(timestamp);
    let is_last_before = ours == max && theirs + 1 == max;
    // The files of the stores have 300 units.
    let is_in_a_later_file =
        theirs.is_multiple_of(300) && ours < theirs && time(theirs) > Some(timestamp);
    assert!(
        is_one_of_that_time || is_last_before || is_in_a_later_file,
        "{} {topic} {queue_id} {timestamp}: {ours}, {theirs}",
        java.full_name()
    );
}

/// The files have the bytes that Java's had.
fn check_files(java: &JavaStore, root: &std::path::Path) {
    let mut same = 0;
    for (path, theirs) in java.files_in("consumequeue") {
        let (topic, rest) = path.split_once('/').unwrap();
        let queue_id = rest.split_once('/').unwrap().0.parse().unwrap();
        // With consumequeue_ext, units have addresses for tags codes.
        if differs(java, &(topic.to_owned(), queue_id))
            || java.config.contains_key("enableConsumeQueueExt")
        {
            continue;
        }
        let ours = fs::read(root.join("consumequeue").join(path));
        let first = theirs
            .first_chunk()
            .map(|phy| u64::from_be_bytes(*phy))
            .unwrap();
        if first < java.min_offset() && java.min_offset() > 0 {
            // Units of expired messages were not built again.
            continue;
        }
        assert!(ours.unwrap() == theirs, "{} {path}", java.full_name());
        same += 1;
    }
    println!(
        "{}: {same} consume queue files have the same bytes",
        java.full_name()
    );
}
