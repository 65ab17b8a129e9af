//! A log in memory, with records as a broker writes them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rmq_wire::record::{NewRecord, blank, seal};

use crate::config::StoreConfig;
use crate::damage::Damage;
use crate::disk::{Disk, RealDisk};
use crate::dispatch::CommittedLog;
use crate::queues::{OpenQueuesError, Queues};
use crate::types::{PhyOffset, QueueOffset, Run};

/// Bytes of a segment.
pub(super) const SEGMENT: u64 = 2000;
pub(super) const FIRST_TIME: i64 = 1_700_000_000_000;

#[derive(Clone, Default)]
pub(super) struct FakeLog(Arc<Inner>);

#[derive(Default)]
struct Inner {
    bytes: Mutex<Vec<u8>>,
    min: AtomicU64,
    confirm: AtomicU64,
}

/// A message to append.
#[derive(Clone, Debug)]
pub(super) struct Send {
    pub(super) topic: &'static str,
    pub(super) queue_id: i32,
    pub(super) queue_offset: u64,
    pub(super) time: i64,
    pub(super) sys_flag: i32,
    pub(super) properties: String,
    pub(super) body: usize,
}

impl Send {
    pub(super) fn new(topic: &'static str, queue_id: i32, queue_offset: u64) -> Send {
        let properties = String::new();
        Send {
            topic,
            queue_id,
            queue_offset,
            time: FIRST_TIME,
            sys_flag: 0,
            properties,
            body: 10,
        }
    }

    pub(super) fn at(self, seconds: i64) -> Send {
        Send {
            time: FIRST_TIME + seconds * 1000,
            ..self
        }
    }

    pub(super) fn with(self, name: &str, value: &str) -> Send {
        let mut properties = self.properties;
        rmq_wire::properties::push(&mut properties, name, value);
        Send { properties, ..self }
    }

    pub(super) fn run(&self) -> Run {
        Run {
            topic: self.topic.into(),
            queue_id: self.queue_id,
            first: QueueOffset(self.queue_offset),
            count: 1,
        }
    }
}

impl FakeLog {
    /// Appends a record and returns where.
    pub(super) fn append(&self, new: &Send) -> PhyOffset {
        let host = "127.0.0.1:10911".parse().unwrap();
        let body = vec![7; new.body];
        let record = NewRecord {
            sys_flag: new.sys_flag,
            properties: &new.properties,
            ..NewRecord::new(host, new.topic, new.queue_id, &body)
        };
        let mut record_bytes = Vec::new();
        let size = record.encode(&mut record_bytes).unwrap() as u64;
        let mut bytes = self.0.bytes.lock().unwrap();
        let left = SEGMENT - bytes.len() as u64 % SEGMENT;
        if left < size + 8 {
            let end = bytes.len() + left as usize;
            bytes.extend(blank(left as u32));
            bytes.resize(end, 0xee);
        }
        let phy = bytes.len();
        seal(
            &mut record_bytes,
            new.queue_offset as i64,
            phy as i64,
            new.time,
        );
        bytes.extend(record_bytes);
        PhyOffset(phy as u64)
    }

    pub(super) fn end(&self) -> PhyOffset {
        PhyOffset(self.0.bytes.lock().unwrap().len() as u64)
    }

    pub(super) fn confirm_all(&self) {
        self.set_confirm_offset(self.end());
    }

    /// As a restart of a log that has lost what it had not synced.
    pub(super) fn lose_tail(&self, end: PhyOffset) {
        self.0.bytes.lock().unwrap().truncate(end.0 as usize);
        self.0.confirm.store(end.0, Ordering::Release);
    }

    /// As after the removal of old segments.
    pub(super) fn expire(&self, min: PhyOffset) {
        self.0.min.store(min.0, Ordering::Release);
    }

    /// Overwrites bytes, as no log does.
    pub(super) fn damage(&self, at: PhyOffset, with: &[u8]) {
        self.0.bytes.lock().unwrap()[at.0 as usize..][..with.len()].copy_from_slice(with);
    }

    pub(super) fn open(&self, root: &Path) -> Arc<Queues> {
        self.try_open(root).unwrap()
    }

    pub(super) fn try_open(&self, root: &Path) -> Result<Arc<Queues>, OpenQueuesError> {
        self.open_on(&(Arc::new(RealDisk) as Arc<dyn Disk>), root)
    }

    pub(super) fn open_on(
        &self,
        disk: &Arc<dyn Disk>,
        root: &Path,
    ) -> Result<Arc<Queues>, OpenQueuesError> {
        disk.create_dir_all(root).unwrap();
        Queues::open_over(&config(root), disk, Box::new(self.clone()), &|_| {})
    }
}

/// Files of seven units, index files of eight entries.
pub(super) fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        consume_queue_file_bytes: 7 * 20,
        index_slots: 5,
        index_entries: 9,
        ..StoreConfig::new(root)
    }
}

impl CommittedLog for FakeLog {
    fn min_offset(&self) -> PhyOffset {
        PhyOffset(self.0.min.load(Ordering::Acquire))
    }

    fn confirm_offset(&self) -> PhyOffset {
        PhyOffset(self.0.confirm.load(Ordering::Acquire))
    }

    fn set_confirm_offset(&self, offset: PhyOffset) {
        assert!(offset <= self.end());
        self.0.confirm.fetch_max(offset.0, Ordering::AcqRel);
    }

    fn slice(&self, from: PhyOffset, len: usize) -> Option<Bytes> {
        if from < self.min_offset() || (from + len as u64) > self.segment_end(from) {
            return None;
        }
        let bytes = self.0.bytes.lock().unwrap();
        bytes
            .get(from.0 as usize..from.0 as usize + len)
            .map(Bytes::copy_from_slice)
    }

    fn segment_end(&self, offset: PhyOffset) -> PhyOffset {
        PhyOffset(offset.0 - offset.0 % SEGMENT + SEGMENT)
    }

    fn check(&self, _: PhyOffset, _: u64) -> Result<(), Damage> {
        Ok(())
    }

    fn check_records(&self, _: PhyOffset, _: u64) -> Result<(), Damage> {
        Ok(())
    }

    fn poison(&self, _: String) {}

    fn known_damage(&self, _: PhyOffset, _: PhyOffset) -> Option<Damage> {
        None
    }
}
