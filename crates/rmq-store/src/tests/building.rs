//! Consume queues and index files that are lost or damaged are built again while the log is in use.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::Disk;
use crate::dispatch::DispatchError;
use crate::log::Log;
use crate::queues::Queues;
use crate::segment::file_name;
use crate::sim::SimDisk;
use crate::store::{Store, open};
use crate::types::{LogIndex, PhyOffset, QueueOffset};

const ENTRIES: u64 = 60;

fn settings() -> StoreConfig {
    StoreConfig {
        consume_queue_file_bytes: 20 * 100,
        index_slots: 50,
        index_entries: 100,
        catch_up_bytes: 1000,
        ..config(Path::new("/store"), FlushMode::Sync)
    }
}

fn open_store(sim: &SimDisk) -> Store {
    open(&settings(), Arc::new(sim.clone())).unwrap()
}

/// Appends an entry of two messages and commits it.
fn append(store: &mut Store, index: u64) {
    let records = vec![
        pending("t", 0, &[7; 1000], true),
        pending("u", 1, b"b", true),
    ];
    store
        .log
        .append(vec![messages(id(1, index), records).0])
        .unwrap();
    let entry = store.log.reader().entry(LogIndex(index)).unwrap().unwrap();
    store.queues.commit(entry.end, &entry.runs);
    store.log.save_committed(Some(id(1, index)));
}

fn stop(store: Store) {
    store.queues.stop().unwrap();
    store.log.close().unwrap();
}

fn filled() -> SimDisk {
    let sim = SimDisk::default();
    let mut store = open_store(&sim);
    store.queues.start(Arc::new(|_| true)).unwrap();
    (0..ENTRIES).for_each(|index| append(&mut store, index));
    stop(store);
    sim
}

fn remove_all(sim: &SimDisk, dir: &Path) {
    for name in sim.list(dir).unwrap() {
        let path = dir.join(name);
        if sim.unlink(&path).is_err() {
            remove_all(sim, &path);
        }
    }
}

fn until_built(store: &Store) {
    let end = Instant::now() + Duration::from_secs(60);
    while !store.queues.is_built() {
        assert!(Instant::now() < end, "{:?}", store.queues.failure());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Every message is where it was, in its queue and by its key.
fn assert_whole(store: &Store, entries: u64) {
    for (topic, queue) in [("t", 0), ("u", 1)] {
        assert_eq!(store.queues.max_offset(topic, queue), QueueOffset(entries));
        assert_eq!(
            store.log.next_queue_offset(topic, queue),
            QueueOffset(entries)
        );
        for offset in 0..entries {
            let at = QueueOffset(offset);
            let got = store.queues.get(topic, queue, at, 1, 1 << 20, &|_| true);
            assert_eq!(got.unwrap().records.len(), 1, "{topic} {offset}");
        }
    }
}

#[test]
fn lost_queues_are_built_while_the_log_is_written_to() {
    let spoil: [&dyn Fn(&SimDisk); 2] = [
        &|sim| {
            remove_all(sim, &settings().consume_queue_dir());
            remove_all(sim, &settings().index_dir());
        },
        // The end of a queue is not what the checkpoint says.
        &|sim| {
            sim.flip(
                &settings()
                    .consume_queue_dir()
                    .join("t/0")
                    .join(file_name(0)),
                59 * 20 + 3,
            )
        },
    ];
    for (nth, spoil) in spoil.iter().enumerate() {
        let sim = filled();
        spoil(&sim);
        let mut store = open_store(&sim);
        assert!(
            !store.queues.is_built(),
            "{nth}: the opening does not wait for it"
        );
        // A follower gets entries meanwhile.
        let extra = messages_of_a_leader(ENTRIES);
        for (index, entry) in (ENTRIES..).zip(extra) {
            store.log.append(vec![entry]).unwrap();
            let entry = store.log.reader().entry(LogIndex(index)).unwrap().unwrap();
            store.queues.commit(entry.end, &entry.runs);
        }
        store.queues.start(Arc::new(|_| true)).unwrap();
        until_built(&store);
        store.log.seed_missing_queue_offsets(store.queues.maxima());
        assert_whole(&store, ENTRIES + 5);
        append(&mut store, ENTRIES + 5);
        assert_whole(&store, ENTRIES + 6);
        stop(store);
        let store = open_store(&sim);
        assert!(store.queues.is_built());
        assert_whole(&store, ENTRIES + 6);
    }
}

/// Five more entries as the leader has sealed them.
fn messages_of_a_leader(from: u64) -> Vec<crate::types::NewEntry> {
    let sim = SimDisk::default();
    let mut store = open_store(&sim);
    (0..from + 5).for_each(|index| append(&mut store, index));
    let mut entries = raw_entries(&store.log.reader());
    entries.split_off(usize::try_from(from).unwrap())
}

#[test]
fn queues_wait_for_the_log_to_be_mended() {
    let sim = filled();
    let whole = open_store(&filled()).log.reader();
    let damaged = whole.entry(LogIndex(40)).unwrap().unwrap();
    let base = damaged.end.0 - damaged.end.0 % SEGMENT_BYTES;
    let path = settings().commit_log_dir.join(file_name(base));
    sim.flip(&path, damaged.end.0 - base - 3);
    remove_all(&sim, &settings().consume_queue_dir());
    let mut store = open_store(&sim);
    store.queues.start(Arc::new(|_| true)).unwrap();
    let reader = store.log.reader();
    let end = Instant::now() + Duration::from_secs(60);
    while store.queues.failure().is_none() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(store.queues.dispatched() <= damaged.start);
    assert!(store.queues.dispatched() > PhyOffset(0));
    let why = store.queues.failure().unwrap();
    assert!(why.contains("/store/commitlog/"), "{why}");
    let raw = whole.raw(LogIndex(40)).unwrap().unwrap();
    reader.mend(&reader.damages()[0], &[raw]).unwrap();
    until_built(&store);
    store.log.seed_missing_queue_offsets(store.queues.maxima());
    assert_whole(&store, ENTRIES);
    stop(store);
}

/// Further ahead than a batch goes, in the same segment.
#[test]
fn queues_wait_in_front_of_damage_that_lies_ahead_of_a_batch() {
    const BATCH: u64 = 4 << 20;
    let settings = StoreConfig {
        segment_bytes: 12 << 20,
        catch_up_bytes: u64::MAX,
        max_message_bytes: 64 << 10,
        ..settings()
    };
    let filled = || {
        let sim = SimDisk::default();
        let mut store = open(&settings, Arc::new(sim.clone())).unwrap();
        let mut index = 0;
        while store.log.reader().end_offset().0 < 2 * BATCH + (1 << 20) {
            let records = vec![pending("t", 0, &[7; 16_000], true)];
            let entry = messages(id(1, index), records).0;
            let end = store.log.append(vec![entry]).unwrap().end;
            store.queues.commit(end, &[]);
            store.log.save_committed(Some(id(1, index)));
            index += 1;
        }
        store.log.close().unwrap();
        (sim, index)
    };
    let (other, entries) = filled();
    let other = open(&settings, Arc::new(other)).unwrap().log.reader();
    let first_from = |at: u64| {
        let mut indexes = (0..entries).map(LogIndex);
        let index = indexes.find(|index| other.entry(*index).unwrap().unwrap().start.0 >= at);
        (
            index.unwrap(),
            other.entry(index.unwrap()).unwrap().unwrap(),
        )
    };
    // The second batch begins behind a record that the first one's end cuts. With what it goes through is
    // verified what its last block has besides.
    for (at, is_known) in [(BATCH + (1 << 20), true), (2 * BATCH + 20_000, false)] {
        let (index, damaged) = first_from(at);
        assert!(damaged.end.0 < at + 40_000);
        let (sim, _) = filled();
        sim.flip(
            &settings.commit_log_dir.join(file_name(0)),
            damaged.end.0 - 3,
        );
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let log = Log::open(&settings, &disk).unwrap();
        let reader = log.reader();
        if is_known {
            assert!(reader.raw(index).is_err());
        }
        let queues = Queues::open(&settings, disk, reader.clone()).unwrap();
        assert!(!queues.is_built());
        assert_eq!(queues.dispatched(), damaged.start);
        assert_eq!(reader.damages().len(), 1);
        let waits = queues.step().unwrap_err();
        assert!(matches!(waits, DispatchError::Damaged(_)), "{waits}");
        let raw = other.raw(index).unwrap().unwrap();
        reader.mend(&reader.damages()[0], &[raw]).unwrap();
        while queues.step().unwrap().is_some() {}
        assert_eq!(queues.dispatched(), reader.confirm_offset());
        assert_eq!(queues.maxima(), [("t".into(), 0, QueueOffset(entries))]);
    }
}
