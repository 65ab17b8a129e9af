use std::path::Path;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use rmq_wire::record::{self, NewRecord, Peek, Record};

use crate::config::{FlushMode, StoreConfig};
use crate::disk::{Disk, RealDisk};
use crate::extent::RAFT_LOG_TOPIC;
use crate::log::Log;
use crate::reader::LogReader;
use crate::segment::parse_name;
use crate::types::{
    Batch, EntryId, EntryKind, LogIndex, NewEntry, PendingRecord, PhyOffset, SealedCell, Term,
};

pub(super) const SEGMENT_BYTES: u64 = 132 * 1024;

/// Small segments, so that a few entries cross their ends.
pub(super) fn config(root: &Path, flush: FlushMode) -> StoreConfig {
    StoreConfig {
        segment_bytes: SEGMENT_BYTES,
        max_message_bytes: 4096,
        flush,
        ..StoreConfig::new(root)
    }
}

pub(super) fn real() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

pub(super) fn id(term: u64, index: u64) -> EntryId {
    EntryId {
        term: Term(term),
        node: 1,
        index: LogIndex(index),
    }
}

pub(super) fn pending(topic: &str, queue_id: i32, body: &[u8], queued: bool) -> PendingRecord {
    let prepared = record::sys_flag::TRANSACTION_PREPARED;
    let host = ([127, 0, 0, 1], 10911).into();
    let new = NewRecord {
        sys_flag: if queued { 0 } else { prepared },
        properties: "k\u{1}v\u{2}",
        ..NewRecord::new(host, topic, queue_id, body)
    };
    PendingRecord::new(&new).unwrap()
}

pub(super) fn blank(id: EntryId) -> NewEntry {
    NewEntry::Unsealed {
        id,
        kind: EntryKind::Blank,
        meta: Bytes::new(),
        batch: None,
    }
}

pub(super) fn meta(id: EntryId, meta: impl Into<Bytes>) -> NewEntry {
    NewEntry::Unsealed {
        id,
        kind: EntryKind::Meta,
        meta: meta.into(),
        batch: None,
    }
}

pub(super) fn messages(id: EntryId, records: Vec<PendingRecord>) -> (NewEntry, Arc<SealedCell>) {
    let batch = Batch::new(records);
    let sealed = Arc::clone(&batch.sealed);
    let kind = EntryKind::Messages;
    (
        NewEntry::Unsealed {
            id,
            kind,
            meta: Bytes::new(),
            batch: Some(batch),
        },
        sealed,
    )
}

/// Waits until all that was appended is durable, or as good as the mode gives.
pub(super) fn flush(log: &Log) -> std::io::Result<()> {
    let (tx, rx) = mpsc::channel();
    log.on_flushed(Box::new(move |result| tx.send(result).unwrap()));
    rx.recv().unwrap()
}

/// Every entry that can be read, as it is sent to another node.
pub(super) fn raw_entries(reader: &LogReader) -> Vec<NewEntry> {
    let Some(first) = reader.first_index() else {
        return Vec::new();
    };
    (first.0..=reader.last_id().unwrap().index.0)
        .map(|index| {
            let id = reader.id_at(LogIndex(index)).unwrap().unwrap();
            let bytes = reader.raw(LogIndex(index)).unwrap().unwrap();
            NewEntry::Sealed { id, bytes }
        })
        .collect()
}

/// What a classic reader finds in the segments of a directory, which knows only records and blanks
/// and stops at the first thing that is neither: position, topic, queue, queue offset, body.
pub(super) fn walk(disk: &dyn Disk, dir: &Path) -> Vec<(u64, String, i32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    'segments: for name in disk.list(dir).unwrap() {
        let base = parse_name(&name).unwrap();
        let file = disk
            .open(&dir.join(&name), crate::disk::OpenMode::Read)
            .unwrap();
        let mut content = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(0, &mut content).unwrap();
        let mut pos = 0;
        loop {
            match record::peek(&content[pos..]) {
                Peek::Record { size } => {
                    assert!(pos + size + 8 <= content.len(), "room for a blank");
                    let view = Record::decode(&content[pos..pos + size]).unwrap();
                    assert!(view.crc_matches());
                    let position = base + pos as u64;
                    assert_eq!(view.physical_offset, i64::try_from(position).unwrap());
                    assert!(view.store_timestamp > 0);
                    let topic = view.topic.to_owned();
                    let body = view.body.to_vec();
                    found.push((position, topic, view.queue_id, view.queue_offset, body));
                    pos += size;
                }
                Peek::Blank { size } => {
                    assert_eq!(pos + size, content.len(), "a blank fills its segment");
                    continue 'segments;
                }
                Peek::End => {
                    assert!(
                        content[pos..].iter().all(|&byte| byte == 0),
                        "clean behind the end"
                    );
                    break 'segments;
                }
            }
        }
    }
    found
}

/// Messages among what `walk` found.
pub(super) fn messages_of(
    found: &[(u64, String, i32, i64, Vec<u8>)],
) -> Vec<(u64, String, i32, i64, Vec<u8>)> {
    found
        .iter()
        .filter(|record| record.1 != RAFT_LOG_TOPIC)
        .cloned()
        .collect()
}

pub(super) fn phy(record: &(u64, String, i32, i64, Vec<u8>)) -> PhyOffset {
    PhyOffset(record.0)
}

/// Segments of one log have the bytes of the other's; one that only one of them has made ahead of
/// need is all zero.
pub(super) fn assert_same_bytes(one: &Path, other: &Path) {
    let names = |dir| RealDisk.list(dir).unwrap().into_iter();
    let all: std::collections::BTreeSet<String> = names(one).chain(names(other)).collect();
    for name in all {
        let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap_or_default();
        let (mut a, mut b) = (read(one), read(other));
        let len = a.len().max(b.len());
        a.resize(len, 0);
        b.resize(len, 0);
        assert!(a == b, "{name}");
    }
}
