//! Files that somebody else has written to.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rmq_wire::record::Record;

use super::fake_log::{FakeLog, Send};
use crate::disk::{Disk, OpenMode};
use crate::queues::{GetStatus, Queues};
use crate::sim::SimDisk;
use crate::types::{PhyOffset, QueueOffset};

const ROOT: &str = "/store";
const MESSAGES: u64 = 30;

fn open(log: &FakeLog, disk: &SimDisk) -> Arc<Queues> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    log.open_on(&disk, Path::new(ROOT)).unwrap()
}

/// Two queues of thirty messages, closed, and where the messages lie.
fn store() -> (FakeLog, SimDisk, [Vec<PhyOffset>; 2]) {
    let (log, disk) = (FakeLog::default(), SimDisk::default());
    let mut positions = [Vec::new(), Vec::new()];
    for offset in 0..MESSAGES {
        for queue_id in 0..2 {
            let new = Send::new("a", queue_id, offset).with("KEYS", "k");
            positions[queue_id as usize].push(log.append(&new));
        }
    }
    log.confirm_all();
    open(&log, &disk).stop().unwrap();
    (log, disk, positions)
}

fn overwrite(disk: &SimDisk, path: &Path, at: u64, bytes: &[u8]) {
    let file = disk.open(path, OpenMode::Write).unwrap();
    let room = file
        .size()
        .unwrap()
        .saturating_sub(at)
        .min(bytes.len() as u64);
    file.write_at(at, &[IoSlice::new(&bytes[..room as usize])])
        .unwrap();
}

fn read_all(queues: &Queues, queue_id: i32) -> Vec<PhyOffset> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut positions = Vec::new();
    let mut at = QueueOffset(0);
    loop {
        let result = queues
            .get("a", queue_id, at, 32, 1 << 18, &|_| true)
            .unwrap();
        assert!(Instant::now() < deadline, "{:?} at {at}", result.status);
        for record in &result.records {
            let record = Record::decode(record).unwrap();
            positions.push(PhyOffset(record.physical_offset as u64));
        }
        at = result.next;
        if result.status == GetStatus::OffsetOverflowOne {
            return positions;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_message_is_read_whatever_became_of_its_unit(
        damages in proptest::collection::vec(
            (0..2_i32, 0..MESSAGES, 1..8_usize, prop_oneof![Just([0; 12]), any::<[u8; 12]>()]),
            1..10,
        ),
        while_open in any::<bool>(),
    ) {
        let (log, disk, positions) = store();
        let early = while_open.then(|| open(&log, &disk));
        for (queue_id, first, count, bytes) in damages {
            for offset in first..MESSAGES.min(first + count as u64) {
                let start = offset * 20 / 140 * 140;
                let path = Path::new(ROOT).join(format!("consumequeue/a/{queue_id}/{start:020}"));
                // Position and size; a wrong tags code cannot be told.
                overwrite(&disk, &path, offset * 20 - start, &bytes);
            }
        }
        let queues = early.unwrap_or_else(|| open(&log, &disk));
        queues.start(Arc::new(|_| true)).unwrap();
        let read = [read_all(&queues, 0), read_all(&queues, 1)];
        queues.stop().unwrap();
        prop_assert_eq!(read, positions);
    }

    #[test]
    fn no_bytes_are_too_wrong_to_open(
        damages in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0..8192_u64, proptest::collection::vec(any::<u8>(), 1..200)),
            1..6,
        ),
    ) {
        let (log, disk, positions) = store();
        let paths = [
            "dispatched",
            "dispatched.queues",
            "consumequeue/a/0/00000000000000000000",
            "consumequeue/a/1/00000000000000000560",
            "index/20231114221320000",
            "index/20231114221320001",
            "index/20231114221320007",
        ];
        for (path, at, bytes) in damages {
            let path = Path::new(ROOT).join(path.get(&paths));
            let size = disk.open(&path, OpenMode::Read).unwrap().size().unwrap();
            overwrite(&disk, &path, at % size, &bytes);
        }
        let queues = open(&log, &disk);
        prop_assert_eq!(queues.max_offset("a", 0), QueueOffset(MESSAGES));
        prop_assert_eq!(queues.max_offset("a", 1), QueueOffset(MESSAGES));
        // A damaged index finds less, but nothing wrong.
        let found = queues.query_index("a", "k", 1000, 0, i64::MAX).unwrap();
        prop_assert!(found.iter().all(|phy| positions.concat().contains(phy)));
        queues.stop().unwrap();
    }
}
