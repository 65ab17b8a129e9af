//! Old segments leave, with what points into them, and nothing else does.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::{Disk, Space};
use crate::log::Log;
use crate::queues::{GetStatus, Queues};
use crate::retention::{Cut, Retention, RetentionLimits};
use crate::segment::{file_name, parse_name};
use crate::sim::SimDisk;
use crate::store::{self, Store};
use crate::types::{EntryId, LogIndex, PhyOffset, QueueOffset};

const ENTRIES: u64 = 300;
pub(super) const ALL: RetentionLimits = RetentionLimits {
    stored_before: None,
    segments: 100,
    keep_from: None,
};

pub(super) fn settings() -> StoreConfig {
    StoreConfig {
        consume_queue_file_bytes: 20 * 20,
        consume_queue_flush_interval_ms: 1,
        index_slots: 10,
        index_entries: 41,
        ..config(Path::new("/store"), FlushMode::Sync)
    }
}

pub(super) struct Bed {
    sim: SimDisk,
    pub(super) log: Log,
    pub(super) queues: Arc<Queues>,
    pub(super) retention: Retention,
}

impl Bed {
    fn open(sim: &SimDisk) -> Self {
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let config = settings();
        let Store { log, queues } = store::open(&config, Arc::clone(&disk)).unwrap();
        queues.start(Arc::new(|_| true)).unwrap();
        let retention = Retention::new(log.reader(), Arc::clone(&queues), disk, &config);
        Self {
            sim: sim.clone(),
            log,
            queues,
            retention,
        }
    }

    /// Entries of one large message each, alternately to two queues, and first one to a third.
    pub(super) fn filled() -> Self {
        let mut bed = Self::open(&SimDisk::default());
        for _ in 0..ENTRIES {
            bed.append();
        }
        bed.settle();
        bed
    }

    fn append(&mut self) -> EntryId {
        let next = self.log.reader().last_id().map_or(0, |id| id.index.0 + 1);
        let id = id(1, next);
        let mut records = vec![pending("t", (next % 2) as i32, &[7; 4000], true)];
        if next == 0 {
            records.push(pending("early", 0, b"first", true));
        }
        let end = self.log.append(vec![messages(id, records).0]).unwrap().end;
        let entry = self.log.reader().entry(id.index).unwrap().unwrap();
        self.log.save_committed(Some(id));
        self.queues.commit(end, &entry.runs);
        id
    }

    /// As Raft does after a start.
    fn commit_again(&mut self) {
        let reader = self.log.reader();
        for index in reader.first_index().unwrap().0..=reader.last_id().unwrap().index.0 {
            let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
            self.log.save_committed(Some(entry.id));
            self.queues.commit(entry.end, &entry.runs);
        }
        self.settle();
    }

    /// Waits until all that is committed is durable, in the log, in queues and in the index.
    fn settle(&self) {
        flush(&self.log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.queues.durable() < self.log.reader().confirm_offset() {
            assert!(Instant::now() < deadline, "not dispatched in time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn remove(&mut self, cut: Cut) {
        if let Some(index) = cut.purge {
            let id = self.log.reader().id_at(index).unwrap().unwrap();
            self.log.purge(id).unwrap();
        }
        self.retention
            .remove_before(cut.keep, Duration::ZERO)
            .unwrap();
    }

    fn close(self) {
        self.queues.stop().unwrap();
        self.log.close().unwrap();
    }

    fn segments(&self) -> Vec<u64> {
        let names = self.sim.list(&settings().commit_log_dir).unwrap();
        names.iter().filter_map(|name| parse_name(name)).collect()
    }

    fn get(&self, topic: &str, queue_id: i32, offset: u64) -> (GetStatus, u64, u64) {
        let all = |_| true;
        let result = self
            .queues
            .get(topic, queue_id, QueueOffset(offset), 1, 1, &all)
            .unwrap();
        (result.status, result.next.0, result.min.0)
    }

    /// All that lies at the minimum or beyond can be read, and all before it is told to be gone.
    fn assert_readable(&self, min: PhyOffset) {
        assert_eq!(self.log.reader().min_offset(), min);
        assert_eq!(self.segments().first(), Some(&min.0));
        for queue_id in [0, 1] {
            let first = self.queues.min_offset("t", queue_id);
            let end = self.queues.max_offset("t", queue_id);
            assert_eq!(end, QueueOffset(ENTRIES / 2));
            assert!(first > QueueOffset(0));
            for offset in first.0..end.0 {
                let (status, next, _) = self.get("t", queue_id, offset);
                assert_eq!((status, next), (GetStatus::Found, offset + 1));
            }
            let (status, next, told_min) = self.get("t", queue_id, first.0 - 1);
            assert_eq!(
                (status, next, told_min),
                (GetStatus::OffsetTooSmall, first.0, first.0)
            );
        }
        // Its only message is gone, its end is not.
        assert_eq!(self.queues.max_offset("early", 0), QueueOffset(1));
        assert_eq!(self.get("early", 0, 0), (GetStatus::OffsetTooSmall, 1, 1));
        assert_eq!(self.log.next_queue_offset("early", 0), QueueOffset(1));
        let reader = self.log.reader();
        let first = reader.first_index().unwrap();
        for index in first.0..ENTRIES {
            let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
            assert!(entry.start >= min);
        }
    }
}

#[test]
fn what_is_old_goes_with_all_that_points_to_it() {
    let mut bed = Bed::filled();
    let before = bed.segments();
    let config = settings();
    let queue_files = |bed: &Bed| {
        let dir = config.consume_queue_dir().join("t/0");
        bed.sim.list(&dir).unwrap().len()
    };
    let index_files = |bed: &Bed| bed.sim.list(&config.index_dir()).unwrap().len();
    let files_before = (queue_files(&bed), index_files(&bed));
    let reader = bed.log.reader();
    let view = reader.slice(PhyOffset(0), 5000).unwrap();
    let bytes = view.to_vec();

    let cut = bed.retention.choose(ALL).unwrap().unwrap();
    // The one that is written to and the one before stay.
    let written = reader.confirm_offset().0 / SEGMENT_BYTES * SEGMENT_BYTES;
    assert_eq!(cut.keep.0, written - SEGMENT_BYTES);
    let last = reader.entry(cut.purge.unwrap()).unwrap().unwrap();
    assert!(last.start < cut.keep && cut.keep <= last.end);
    bed.remove(cut);
    assert_eq!(
        bed.segments()[..2],
        before[before.len() - bed.segments().len()..][..2]
    );
    assert_eq!(view, bytes, "what was read before stays");
    assert!(reader.slice(PhyOffset(0), 10).is_none());
    bed.assert_readable(cut.keep);
    assert!(queue_files(&bed) < files_before.0);
    assert_eq!(index_files(&bed), files_before.1, "no message has a key");
    assert_eq!(bed.retention.choose(ALL).unwrap(), None);

    let sim = bed.sim.killed_at(bed.sim.done());
    bed.close();
    let bed = Bed::open(&sim);
    assert!(!bed.log.recovered().clean);
    bed.assert_readable(cut.keep);
    bed.close();
    let mut bed = Bed::open(&sim);
    assert!(bed.log.recovered().clean);
    bed.assert_readable(cut.keep);
    bed.append();
    bed.close();
}

#[test]
fn limits_are_kept() {
    let mut bed = Bed::filled();
    let choose = |bed: &Bed, limits| bed.retention.choose(limits).unwrap();
    let two = RetentionLimits { segments: 2, ..ALL };
    assert_eq!(
        choose(&bed, two).unwrap().keep,
        PhyOffset(2 * SEGMENT_BYTES)
    );

    // A segment is as old as the record behind it.
    let reader = bed.log.reader();
    let at = |phy| {
        let record = reader.record_at(PhyOffset(phy)).unwrap();
        rmq_wire::record::Record::decode(&record)
            .unwrap()
            .store_timestamp
    };
    let third = at(3 * SEGMENT_BYTES);
    let by_age = |limit| RetentionLimits {
        stored_before: Some(limit),
        ..ALL
    };
    assert_eq!(
        choose(&bed, by_age(third)).unwrap().keep,
        PhyOffset(2 * SEGMENT_BYTES)
    );
    assert_eq!(
        choose(&bed, by_age(third + 1)).unwrap().keep,
        PhyOffset(3 * SEGMENT_BYTES)
    );
    assert_eq!(choose(&bed, by_age(at(0))), None);

    // An entry that a member still needs holds its segment, and all behind.
    let needs = |index| RetentionLimits {
        keep_from: Some(LogIndex(index)),
        ..ALL
    };
    assert_eq!(choose(&bed, needs(0)), None);
    let held = choose(&bed, needs(100)).unwrap();
    let entry = reader.entry(LogIndex(100)).unwrap().unwrap();
    assert!(held.purge.unwrap() < LogIndex(100) && held.keep <= entry.start);
    assert!(entry.start.0 - held.keep.0 < SEGMENT_BYTES);
    bed.remove(held);
    assert_eq!(reader.first_index().unwrap(), held.purge.unwrap().next());

    bed.retention.stop();
    let segments = bed.segments();
    let cut = choose(&bed, ALL).unwrap();
    bed.remove(cut);
    assert_eq!(bed.segments(), segments, "nothing goes after a stop");
}

#[test]
fn entries_that_are_not_purged_keep_their_segments() {
    let bed = Bed::filled();
    let cut = bed.retention.choose(ALL).unwrap().unwrap();
    bed.retention
        .remove_before(cut.keep, Duration::ZERO)
        .unwrap();
    assert_eq!(bed.log.reader().min_offset(), PhyOffset(0));
}

#[test]
fn a_removal_that_a_power_cut_ends_leaves_a_store_that_opens() {
    let mut bed = Bed::filled();
    let begun = bed.sim.done();
    let cut = bed.retention.choose(ALL).unwrap().unwrap();
    bed.remove(cut);
    let ended = bed.sim.done();
    let mut seed = 1_usize;
    let mut dice = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % n
    };
    for done in begun..=ended {
        let left = bed.sim.cut_at(done, &mut dice);
        let mut again = Bed::open(&left);
        assert_eq!(
            again.log.reader().last_id().unwrap().index,
            LogIndex(ENTRIES - 1)
        );
        again.commit_again();
        // The next round ends what this one began.
        if let Some(cut) = again.retention.choose(ALL).unwrap() {
            again.remove(cut);
        }
        again.assert_readable(cut.keep);
        again.close();
    }
}

#[test]
fn the_fuller_file_system_counts() {
    let bed = Bed::open(&SimDisk::default());
    assert_eq!(bed.retention.space().unwrap().used_percent(), 0);
    let space = Space {
        used: 3,
        available: 1,
    };
    bed.sim.set_space(space);
    assert_eq!(bed.retention.space().unwrap(), space);
    assert_eq!(space.used_percent(), 75);
    assert!(bed.segments().contains(&0), "{}", file_name(0));
}
