//! Damage is found before anybody reads it, and mended with another node's bytes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;

use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::damage::Damage;
use crate::disk::{Disk, RealDisk};
use crate::log::Log;
use crate::reader::LogReader;
use crate::recovery::OpenError;
use crate::segment::file_name;
use crate::sim::SimDisk;
use crate::types::{LogIndex, PhyOffset};

fn store() -> StoreConfig {
    config(Path::new("/store"), FlushMode::Sync)
}

fn open(sim: &SimDisk) -> Log {
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let mut log = Log::open(&store(), &disk).unwrap();
    let base = log.reader().base_offset();
    log.seed_queue_offsets([], base).ok();
    log
}

/// The disk of a node with these entries of one message each, all committed.
fn with_entries(entries: u64, body: usize) -> SimDisk {
    let sim = SimDisk::default();
    let mut log = open(&sim);
    for index in 0..entries {
        let records = vec![pending("t", 0, &vec![7; body], true)];
        log.append(vec![messages(id(1, index), records).0]).unwrap();
    }
    log.save_committed(Some(id(1, entries - 1)));
    log.write_checkpoint().unwrap();
    let end = log.reader().end_offset();
    log.reader().set_confirm_offset(end);
    drop(log);
    sim
}

fn flip(sim: &SimDisk, at: PhyOffset) {
    let base = at.0 - at.0 % SEGMENT_BYTES;
    let path = store().commit_log_dir.join(file_name(base));
    sim.flip(&path, at.0 - base);
}

/// Start and end of each entry, and its bytes.
fn entries(reader: &LogReader) -> Vec<(PhyOffset, PhyOffset, Bytes)> {
    let indexes = (0..).map(LogIndex);
    let entry = |index| {
        let entry = reader.entry(index).unwrap()?;
        let raw = reader.raw(index).unwrap().unwrap().concat();
        Some((entry.start, entry.end, raw.into()))
    };
    indexes.map_while(entry).collect()
}

/// What the others have of a damaged part.
fn gather(damage: &Damage, others: &[&LogReader]) -> Vec<Vec<Bytes>> {
    if let Some((first, last)) = damage.entries {
        let entry = |index| {
            others
                .iter()
                .find_map(|other| other.sound_entry(LogIndex(index), None))
        };
        return (first.0..=last.0).filter_map(entry).collect();
    }
    let mut at = damage.start;
    let mut pieces = Vec::new();
    while at < damage.end
        && let Some(record) = others.iter().find_map(|other| other.sound_record(at))
    {
        at = at + record.len() as u64;
        pieces.push(vec![record]);
    }
    pieces
}

/// Has each of the nodes mend what it can with the others' bytes.
fn mend(nodes: &[LogReader]) {
    for (n, node) in nodes.iter().enumerate() {
        let others: Vec<&LogReader> = nodes[..n].iter().chain(&nodes[n + 1..]).collect();
        for damage in node.damages() {
            if !node.mend_index(&damage).unwrap() {
                let pieces = gather(&damage, &others);
                if !pieces.is_empty() {
                    node.mend(&damage, &pieces).unwrap();
                }
            }
        }
    }
}

/// Four entries on three nodes: every pattern of which copies are damaged.
#[test]
fn an_entry_with_one_good_copy_is_recovered_and_one_without_is_refused() {
    let whole = with_entries(4, 300);
    let original = entries(&open(&whole).reader());
    assert_eq!(original.len(), 4);
    let done = whole.done();
    let (mut recovered, mut refused) = (0, 0);
    for pattern in 0..1_u32 << 12 {
        let is_damaged = |node: usize, entry: usize| pattern & 1 << (node * 4 + entry) != 0;
        let disks: Vec<SimDisk> = (0..3).map(|_| whole.killed_at(done)).collect();
        for (node, disk) in disks.iter().enumerate() {
            for (entry, (start, end, _)) in original.iter().enumerate() {
                if is_damaged(node, entry) {
                    // In turn its header's head and body, and the message's head and end.
                    let at = [start.0 + 4, start.0 + 110, end.0 - 340, end.0 - 3];
                    let which = (pattern as usize / 7 + node + entry) % 4;
                    flip(disk, PhyOffset(at[which]));
                }
            }
            // Then nothing but the damaged log says where its entries are.
            if pattern % 5 == 0 {
                disk.unlink(&store().raft_index_dir().join(file_name(0)))
                    .unwrap();
            }
        }
        let logs: Vec<Log> = disks.iter().map(open).collect();
        let nodes: Vec<LogReader> = logs.iter().map(Log::reader).collect();
        for (node, reader) in nodes.iter().enumerate() {
            for (entry, (_, end, bytes)) in original.iter().enumerate() {
                let index = LogIndex(entry as u64);
                assert!(!logs[node].is_suspect() && logs[node].recovered().cut_bytes == 0);
                // The message is behind the header.
                let message = PhyOffset(end.0 - message_len(bytes) as u64);
                let read = reader.record_at(message);
                let raw = reader.raw(index);
                if is_damaged(node, entry) {
                    assert_eq!(read, None, "pattern {pattern:012b}");
                    assert!(raw.is_err());
                    let damage = reader.damage_at(message).unwrap().to_string();
                    assert!(damage.contains("/store/commitlog/0"), "{damage}");
                } else {
                    assert_eq!(read.unwrap(), bytes[bytes.len() - message_len(bytes)..]);
                    assert_eq!(raw.unwrap().unwrap().concat(), *bytes);
                }
            }
        }
        // Twice, for what was damaged together with something that had to be mended first.
        mend(&nodes);
        mend(&nodes);
        // What is mended is durable. That it is found again need not be tried each time.
        let (nodes, _logs) = if pattern % 15 == 0 {
            drop((nodes, logs));
            let logs: Vec<Log> = disks.iter().map(open).collect();
            (logs.iter().map(Log::reader).collect(), logs)
        } else {
            (nodes, logs)
        };
        for reader in &nodes {
            for (entry, (_, _, bytes)) in original.iter().enumerate() {
                let lost = (0..3).all(|node| is_damaged(node, entry));
                match reader.raw(LogIndex(entry as u64)) {
                    Ok(raw) => {
                        assert!(!lost, "pattern {pattern:012b}");
                        assert_eq!(raw.unwrap().concat(), *bytes, "pattern {pattern:012b}");
                        recovered += 1;
                    }
                    Err(error) => {
                        assert!(lost, "pattern {pattern:012b}, entry {entry}: {error}");
                        refused += 1;
                    }
                }
            }
        }
    }
    // Of an entry's eight patterns one leaves no copy.
    assert_eq!(refused * 7, recovered);
    assert_eq!(refused, 3 * 4 * (1 << 12) / 8);
}

/// The length of the message behind the header of an entry of one message.
fn message_len(entry: &Bytes) -> usize {
    let header = u32::from_be_bytes(*entry.first_chunk().unwrap()) as usize;
    entry.len() - header
}

#[test]
fn a_scrub_finds_what_nobody_reads() {
    let sim = with_entries(200, 3000);
    let other = open(&with_entries(200, 3000)).reader();
    let log = open(&sim);
    let reader = log.reader();
    let original = entries(&reader);
    let limit = reader.end_offset().0 / SEGMENT_BYTES * SEGMENT_BYTES;
    let scrub = || {
        let mut at = PhyOffset(0);
        let mut bytes = 0;
        while let Some(next) = reader.scrub(at, 10_000).unwrap().next {
            bytes += next - at;
            at = next;
        }
        bytes
    };
    assert!(scrub() >= limit);
    assert_eq!(reader.damages(), []);
    // A header, a message, and two neighbours of which the first one has no header any more.
    for at in [
        original[10].0 + 120,
        PhyOffset(original[30].1.0 - 20),
        original[50].0 + 4,
        original[51].0 + 130,
    ] {
        flip(&sim, at);
    }
    // It is written to still.
    flip(&sim, PhyOffset(original[199].1.0 - 20));
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    reader.expect_mending(Some(Box::new(move || {
        called.fetch_add(1, Ordering::Relaxed);
    })));
    scrub();
    assert!(calls.load(Ordering::Relaxed) >= 3, "who mends was called");
    let found = reader.damages();
    let places: Vec<_> = found
        .iter()
        .map(|d| (d.entries.unwrap(), d.start, d.end))
        .collect();
    let place = |first: usize, last: usize| {
        let entries = (LogIndex(first as u64), LogIndex(last as u64));
        (entries, original[first].0, original[last].1)
    };
    assert_eq!(places, [place(10, 10), place(30, 30), place(50, 51)]);
    assert!(reader.raw(LogIndex(51)).is_err());
    assert!(
        reader.sound_entry(LogIndex(10), None).is_none(),
        "it is given to nobody"
    );
    for damage in found {
        assert!(!reader.mend_index(&damage).unwrap());
        // Another entry's bytes, or damaged ones, change nothing.
        let wrong = other.raw(LogIndex(100)).unwrap().unwrap();
        assert!(reader.mend(&damage, &[wrong]).is_err());
        let mut torn = other
            .raw(damage.entries.unwrap().0)
            .unwrap()
            .unwrap()
            .concat();
        *torn.last_mut().unwrap() ^= 1;
        assert!(reader.mend(&damage, &[vec![torn.into()]]).is_err());
        reader.mend(&damage, &gather(&damage, &[&other])).unwrap();
    }
    assert_eq!(reader.damages(), []);
    let last = reader.raw(LogIndex(199)).unwrap_err().to_string();
    assert!(last.contains("entry 199"), "{last}");
    mend(&[reader.clone(), other]);
    assert_eq!(entries(&reader), original);
    drop(log);
    assert_eq!(entries(&open(&sim).reader()), original);
}

#[test]
fn a_cell_of_the_raft_index_is_mended_without_another_node() {
    let sim = with_entries(100, 3000);
    let log = open(&sim);
    let reader = log.reader();
    let original = entries(&reader);
    for cell in [40, 41, 99] {
        sim.flip(&store().raft_index_dir().join(file_name(0)), cell * 20 + 5);
        assert!(reader.entry(LogIndex(cell)).is_err());
    }
    for _ in 0..2 {
        for damage in reader.damages() {
            assert!(reader.mend_index(&damage).unwrap());
        }
    }
    assert_eq!(reader.damages(), []);
    assert_eq!(entries(&reader), original);
}

/// An adopted file may be another store's as well.
#[test]
fn a_mended_file_is_replaced_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), FlushMode::Sync);
    let fill = |config: &StoreConfig| {
        let mut log = Log::open(config, &real()).unwrap();
        log.seed_queue_offsets([], PhyOffset(0)).unwrap();
        for index in 0..100 {
            let records = vec![pending("t", 0, &[7; 3000], true)];
            log.append(vec![messages(id(1, index), records).0]).unwrap();
        }
        let reader = log.reader();
        reader.set_confirm_offset(reader.end_offset());
        log
    };
    let log = fill(&config);
    let reader = log.reader();
    let original = reader.raw(LogIndex(3)).unwrap().unwrap().concat();
    let path = config.commit_log_dir.join(file_name(0));
    let adopted = dir.path().join("adopted");
    std::fs::hard_link(&path, &adopted).unwrap();
    let at = reader.entry(LogIndex(3)).unwrap().unwrap().end.0 - 20;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 4;
    let file = RealDisk.open(&path, crate::disk::OpenMode::Write).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(&bytes)]).unwrap();
    assert!(reader.raw(LogIndex(3)).is_err());
    let damage = reader.damages().remove(0);
    let pieces = [vec![Bytes::from(original.clone())]];
    reader.mend(&damage, &pieces).unwrap();
    assert_eq!(reader.raw(LogIndex(3)).unwrap().unwrap().concat(), original);
    assert_eq!(
        std::fs::read(&adopted).unwrap(),
        bytes,
        "the other name has the other bytes"
    );
    bytes[usize::try_from(at).unwrap()] ^= 4;
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(
        std::fs::read_dir(&config.commit_log_dir).unwrap().count(),
        3
    );
}

#[test]
fn a_missing_file_is_damage_too() {
    let other = open(&with_entries(200, 3000)).reader();
    let original = entries(&other);
    let end = other.end_offset().0;
    let last = end / SEGMENT_BYTES;
    assert!(last >= 4 && !end.is_multiple_of(SEGMENT_BYTES), "{end}");
    let file = |nth: u64| store().commit_log_dir.join(file_name(nth * SEGMENT_BYTES));
    for missing in [vec![0], vec![last - 1], vec![1, 2], (0..last).collect()] {
        for without_index in [false, true] {
            let sim = with_entries(200, 3000);
            missing
                .iter()
                .for_each(|nth| sim.unlink(&file(*nth)).unwrap());
            if without_index {
                let index = store().raft_index_dir().join(file_name(0));
                sim.unlink(&index).unwrap();
            }
            // The empty file in its place is as little the log as none.
            for _ in 0..2 {
                let log = open(&sim);
                assert_eq!(log.reader().last_id(), other.last_id());
                assert!(!log.is_suspect() && log.recovered().cut_bytes == 0);
                let at = PhyOffset(missing[0] * SEGMENT_BYTES + SEGMENT_BYTES / 2);
                let lost = original.iter().position(|entry| at < entry.1).unwrap();
                assert!(log.reader().raw(LogIndex(lost as u64)).is_err());
            }
            let log = open(&sim);
            let reader = log.reader();
            let mut at = PhyOffset(0);
            while let Some(next) = reader.scrub(at, 10_000).unwrap().next {
                at = next;
            }
            assert!(!reader.damages().is_empty());
            while !reader.damages().is_empty() {
                mend(&[reader.clone(), other.clone()]);
            }
            assert_eq!(entries(&reader), original);
            drop((log, reader));
            assert_eq!(entries(&open(&sim).reader()), original);
        }
    }
    // What was behind the last entry that the checkpoint knows cannot be told without that file.
    for missing in [vec![last], (0..=last).collect()] {
        let sim = with_entries(200, 3000);
        missing
            .iter()
            .for_each(|nth| sim.unlink(&file(*nth)).unwrap());
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let refused = Log::open(&store(), &disk);
        assert!(
            matches!(refused, Err(OpenError::Damaged { .. })),
            "{refused:?}"
        );
    }
}

/// A node may lead that needs an entry which the only other one that has it does not know to be
/// committed.
#[test]
fn an_entry_that_is_not_known_to_be_committed_is_given_to_who_knows_whose_it_is() {
    let term = |index| if index < 4 { 1 } else { 2 };
    let leader = |index| Some(id(term(index), index).leader());
    let sim = SimDisk::default();
    let mut log = open(&sim);
    for index in 0..6 {
        let records = vec![pending("t", 0, &[7; 300], true)];
        log.append(vec![messages(id(term(index), index), records).0])
            .unwrap();
    }
    let disk_with = |log: &mut Log, committed| {
        log.save_committed(Some(id(term(committed), committed)));
        log.write_checkpoint().unwrap();
        sim.killed_at(sim.done())
    };
    let behind_log = open(&disk_with(&mut log, 0));
    let behind = behind_log.reader();
    let whole = disk_with(&mut log, 5);
    let original = entries(&log.reader());
    assert!(behind.sound_entry(LogIndex(0), None).is_some());
    assert_eq!(behind.sound_entry(LogIndex(1), None), None);
    let raw = behind.sound_entry(LogIndex(1), leader(1)).unwrap();
    assert_eq!(raw.concat(), original[1].2);
    assert_eq!(behind.sound_entry(LogIndex(1), leader(4)), None);

    // A message of the second entry, the header of the third, and the last header of a term.
    for (index, at, known) in [
        (1, original[1].1.0 - 3, true),
        (2, original[2].0.0 + 110, true),
        (3, original[3].0.0 + 110, false),
        (5, original[5].0.0 + 110, true),
    ] {
        let disk = whole.killed_at(whole.done());
        flip(&disk, PhyOffset(at));
        let log = open(&disk);
        let reader = log.reader();
        assert!(reader.raw(LogIndex(index)).is_err());
        let [damage] = &reader.damages()[..] else {
            panic!("{:?}", reader.damages())
        };
        let whose = reader.leader_of(damage, LogIndex(index));
        assert_eq!(whose, leader(index).filter(|_| known), "entry {index}");
        let found = behind.sound_entry(LogIndex(index), whose);
        assert_eq!(found.is_some(), known, "entry {index}");
        if let Some(raw) = found {
            reader.mend(damage, &[raw]).unwrap();
            assert_eq!(entries(&reader), original);
        }
    }
}
