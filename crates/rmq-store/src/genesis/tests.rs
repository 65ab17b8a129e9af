use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use rmq_wire::body::{SubscriptionGroupConfig, TopicConfig};
use rmq_wire::record::{self, NewRecord, blank};

use super::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::RealDisk;
use crate::log::Log;
use crate::queues::Queues;
use crate::recovery::OpenError;
use crate::segment::file_name;

const SEGMENT_BYTES: u64 = 132 * 1024;

fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        segment_bytes: SEGMENT_BYTES,
        max_message_bytes: 4096,
        flush: FlushMode::Sync,
        consume_queue_file_bytes: 20 * 100,
        index_slots: 100,
        index_entries: 1000,
        ..StoreConfig::new(root)
    }
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

/// A commit log as Java writes it: its files, and where it ends.
pub(crate) fn history(start: u64, messages: u32) -> (Vec<(u64, Vec<u8>)>, PhyOffset) {
    let size = usize::try_from(SEGMENT_BYTES).unwrap();
    let (mut base, mut content) = (start, Vec::with_capacity(size));
    let mut files = Vec::new();
    for n in 0..messages {
        let host = ([127, 0, 0, 1], 10911).into();
        let body = vec![7; 3000 + n as usize % 50];
        let new = NewRecord {
            properties: "KEYS\u{1}k\u{2}",
            ..NewRecord::new(host, "t", 0, &body)
        };
        let left = size - content.len();
        if new.encoded_len() + record::BLANK_LEN > left {
            content.extend(blank(u32::try_from(left).unwrap()));
            content.resize(size, 0);
            files.push((base, std::mem::take(&mut content)));
            base += SEGMENT_BYTES;
        }
        let at = content.len();
        new.encode(&mut content).unwrap();
        let position = i64::try_from(base + at as u64).unwrap();
        record::seal(&mut content[at..], n.into(), position, 1_700_000_000_000);
    }
    let end = PhyOffset(base + content.len() as u64);
    content.resize(size, 0);
    files.push((base, content));
    (files, end)
}

fn write_history(dir: &Path, start: u64, messages: u32) -> PhyOffset {
    std::fs::create_dir_all(dir).unwrap();
    let (files, end) = history(start, messages);
    for (base, content) in files {
        std::fs::write(dir.join(file_name(base)), content).unwrap();
    }
    end
}

fn metadata() -> GenesisMetadata {
    let mut metadata = GenesisMetadata::default();
    let topic = TopicConfig::new("t", 4, 6);
    metadata
        .topics
        .topic_config_table
        .insert("t".to_owned(), topic);
    let group = SubscriptionGroupConfig::new("g");
    metadata
        .groups
        .subscription_group_table
        .insert("g".to_owned(), group);
    let queues = [(0, 17), (1, 4)].into();
    metadata
        .offsets
        .offset_table
        .insert("t@g".to_owned(), queues);
    metadata.delay.offset_table.insert(3, 8);
    metadata
}

fn measured(root: &Path, start: u64, messages: u32) -> Genesis {
    let dir = root.join("commitlog");
    let end = write_history(&dir, start, messages);
    let range = PhyOffset(start)..end;
    Genesis::measure(&RealDisk, &dir, SEGMENT_BYTES, range, metadata()).unwrap()
}

#[test]
fn a_log_begins_where_its_genesis_ends() {
    let dir = tempfile::tempdir().unwrap();
    let start = 3 * SEGMENT_BYTES;
    let genesis = measured(dir.path(), start, 100);
    assert_eq!(genesis.segments.len(), 3);
    genesis.write(&RealDisk, dir.path()).unwrap();
    let store = crate::open(&config(dir.path()), disk()).unwrap();
    let reader = store.log.reader();
    assert_eq!(reader.base_offset(), genesis.end);
    assert_eq!(reader.confirm_offset(), genesis.end);
    assert_eq!(reader.min_offset(), PhyOffset(start));
    assert_eq!(store.log.genesis().map(|g| &**g), Some(&genesis));
    assert_eq!(store.log.next_queue_offset("t", 0).0, 100);
    assert_eq!(store.queues.max_offset("t", 0).0, 100);
    store.queues.stop().unwrap();
    store.log.close().unwrap();

    // Whoever loses the file does not go on with another generation.
    std::fs::remove_file(dir.path().join(GENESIS_FILE)).unwrap();
    let lost = Log::open(&config(dir.path()), &disk());
    assert!(matches!(lost, Err(OpenError::Missing { .. })), "{lost:?}");
}

#[test]
fn a_log_of_another_history_is_not_opened() {
    type Change = fn(&mut Vec<u8>);
    let changes: [(Change, &str); 4] = [
        (|bytes| bytes[100] ^= 1, "begin with a whole record"),
        (|bytes| bytes.truncate(4096), "has 4096 bytes"),
        (
            |bytes| *bytes.iter_mut().rfind(|b| **b == b'k').unwrap() = b'l',
            "last record",
        ),
        (Vec::clear, "has 0 bytes"),
    ];
    for (change, reason) in changes {
        let dir = tempfile::tempdir().unwrap();
        let genesis = measured(dir.path(), 0, 100);
        genesis.write(&RealDisk, dir.path()).unwrap();
        let path = dir.path().join("commitlog").join(file_name(SEGMENT_BYTES));
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let error = Log::open(&config(dir.path()), &disk())
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let genesis = measured(dir.path(), 0, 100);
    genesis.write(&RealDisk, dir.path()).unwrap();
    let path = dir.path().join("commitlog").join(file_name(0));
    std::fs::remove_file(&path).unwrap();
    let error = Log::open(&config(dir.path()), &disk())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is missing"), "{error}");
}

#[test]
fn more_history_or_other_metadata_is_another_genesis() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let one = measured(dirs[0].path(), 0, 100);
    let same = measured(dirs[1].path(), 0, 100);
    let more = measured(dirs[2].path(), 0, 101);
    let commit_log = dirs[3].path().join("commitlog");
    let end = write_history(&commit_log, 0, 100);
    let range = PhyOffset(0)..end;
    let bare = GenesisMetadata::default();
    let other = Genesis::measure(&RealDisk, &commit_log, SEGMENT_BYTES, range, bare).unwrap();
    assert_eq!(one.digest(), same.digest());
    for different in [more, other] {
        assert_ne!(one.digest(), different.digest());
        assert_ne!(one.generation, different.generation);
        assert!(different.generation > 0);
    }
}

#[test]
fn consume_queues_of_another_broker_are_gone_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let genesis = measured(dir.path(), 0, 100);
    genesis.write(&RealDisk, dir.path()).unwrap();
    let config = config(dir.path());
    let store = crate::open(&config, disk()).unwrap();
    store.queues.stop().unwrap();
    store.log.close().unwrap();
    // What is left is as Java leaves it: files without our notes on them.
    for name in ["dispatched", "raft.vote", "raft.checkpoint"] {
        std::fs::remove_file(dir.path().join(name)).unwrap();
    }
    let dispatched = Queues::adopt(&config, &disk(), genesis.end).unwrap();
    assert_eq!(dispatched, genesis.end);
    let queue = dir.path().join("consumequeue/t/0").join(file_name(0));
    let link = dir.path().join("link");
    std::fs::hard_link(&queue, &link).unwrap();
    let before = std::fs::read(&queue).unwrap();

    let store = crate::open(&config, disk()).unwrap();
    assert_eq!(store.queues.dispatched(), genesis.end);
    assert_eq!(store.queues.max_offset("t", 0).0, 100);
    let found = store.queues.query_index("t", "k", 64, 0, i64::MAX).unwrap();
    assert_eq!(found.len(), 64);
    store.queues.stop().unwrap();
    store.log.close().unwrap();
    assert_eq!(std::fs::read(&link).unwrap(), before);
}

#[test]
fn files_with_another_name_are_copied_before_they_are_written() {
    use crate::consume_queue::{QueueFiles, Unit};
    use crate::types::QueueOffset;
    let dir = tempfile::tempdir().unwrap();
    let topic: Arc<str> = "t".into();
    let files = || QueueFiles::new(disk(), dir.path().to_owned(), 20 * 100);
    let unit = |phy| {
        let unit = Unit {
            phy: PhyOffset(phy),
            size: 100,
            tags_code: 0,
        };
        unit.encode()
    };
    files()
        .write(&topic, 0, QueueOffset(0), &unit(1).repeat(50))
        .unwrap();
    let path = dir.path().join("t/0").join(file_name(0));
    let link = dir.path().join("link");
    std::fs::hard_link(&path, &link).unwrap();
    let before = std::fs::read(&link).unwrap();

    let files = files();
    files.write(&topic, 0, QueueOffset(50), &unit(2)).unwrap();
    files.cut(&topic, 0, QueueOffset(10)).unwrap();
    files.write(&topic, 0, QueueOffset(10), &unit(3)).unwrap();
    files.sync().unwrap();
    assert_eq!(std::fs::read(&link).unwrap(), before);
    let mut expected = unit(1).repeat(10);
    expected.extend(unit(3));
    expected.resize(before.len(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_changed_or_cut_file_is_refused(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let segment = GenesisSegment {
            base: PhyOffset(0),
            bytes: 500,
            first_record_crc: 1,
            last_record_crc: u32::MAX,
            samples_crc: 3,
        };
        let mut genesis = Genesis {
            version: VERSION,
            generation: 0,
            segment_bytes: 1024,
            start: PhyOffset(0),
            end: PhyOffset(500),
            segments: vec![segment],
            metadata: metadata(),
        };
        genesis.generation = genesis.made_generation();
        let bytes = genesis.encode();
        prop_assert_eq!(Genesis::decode(&bytes), Ok(genesis.clone()));
        let mut changed = bytes.clone();
        changed[at % bytes.len()] ^= 1 << bit;
        prop_assert!(Genesis::decode(&changed).is_err() || changed == bytes);
        prop_assert!(Genesis::decode(&bytes[..cut % bytes.len()]).is_err());
        genesis.end = PhyOffset(501);
        let (start, end) = (genesis.start, genesis.end);
        let apart = Err(GenesisError::Segments { start, end });
        prop_assert_eq!(Genesis::decode(&genesis.encode()), apart);
    }
}
