//! Records of a broker that had no Raft log.

use std::sync::Arc;

use rmq_wire::record::{self, Peek, Record};

use super::{OpenError, at, bases};
use crate::checkpoint::CHECKPOINT_FILE;
use crate::config::StoreConfig;
use crate::disk::{Disk, OpenMode};
use crate::extent::RAFT_LOG_TOPIC;
use crate::segment::file_name;
use crate::types::PhyOffset;

/// Size of the segments of a store that has no Raft log yet, and where its records end. Only the
/// last segment with records is read.
pub(super) fn end_of_history(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
) -> Result<(u64, PhyOffset), OpenError> {
    let dir = &config.commit_log_dir;
    let bases = bases(dir, disk)?;
    let mut segment_bytes = config.segment_bytes;
    for (i, &base) in bases.iter().enumerate().rev() {
        let path = dir.join(file_name(base));
        let file = disk.open(&path, OpenMode::Read).map_err(at(&path))?;
        let size = file.size().map_err(at(&path))?;
        let whole = bases.get(i + 1).map_or(size, |next| next - base);
        segment_bytes = whole;
        if size != whole || size == 0 || !base.is_multiple_of(size) {
            let expected = config.segment_bytes;
            return Err(OpenError::SegmentSize {
                path,
                found: size,
                expected,
            });
        }
        let whole = usize::try_from(size).expect("addresses have 64 bits");
        let content = file.view(0, whole).map_err(at(&path))?;
        let end = end_of_records(&content, base);
        let damaged = |reason: &str| OpenError::Damaged {
            path: path.clone(),
            at: PhyOffset(base + end as u64),
            within: end as u64,
            confirm: PhyOffset(base + size),
            reason: reason.to_owned(),
        };
        if end == 0 && content.iter().any(|&byte| byte != 0) {
            return Err(damaged("a segment that starts with no record"));
        }
        if holds_record(&content, end, base) {
            return Err(damaged("no record, though others follow"));
        }
        if end > 0 {
            if holds_live_header(&content[..end], config.generation) {
                return Err(OpenError::Missing {
                    path: config.path(CHECKPOINT_FILE),
                });
            }
            return Ok((size, PhyOffset(base + end as u64)));
        }
        // All zero: made ahead of need. The end is in an earlier one, or there are no records.
    }
    Ok((
        segment_bytes,
        PhyOffset(bases.first().copied().unwrap_or(0)),
    ))
}

/// Whether a record lies anywhere behind `from`: then what is there instead of one is damage, and
/// not the torn end that a crash leaves.
fn holds_record(content: &[u8], from: usize, base: u64) -> bool {
    let magics = [record::MAGIC_V1, record::MAGIC_V2].map(u32::to_be_bytes);
    let words = content
        .get(from + record::MAGIC_AT..)
        .unwrap_or_default()
        .windows(4);
    let mut heads = words
        .enumerate()
        .filter(|(_, word)| magics.iter().any(|magic| magic == word));
    heads.any(|(at, _)| is_record(content, from + at, base).is_some())
}

/// Size of the record at a place of a segment, if a whole one is there.
pub(crate) fn is_record(content: &[u8], at: usize, base: u64) -> Option<usize> {
    let Peek::Record { size } = record::peek(&content[at..]) else {
        return None;
    };
    let record = Record::decode(content[at..].get(..size)?).ok()?;
    let said = u64::try_from(record.physical_offset);
    (said == Ok(base + at as u64) && record.crc_matches()).then_some(size)
}

/// Where the valid records at the head of a segment end, its blank included.
fn end_of_records(content: &[u8], base: u64) -> usize {
    let mut pos = 0;
    while let Some(size) = is_record(content, pos, base) {
        pos += size;
    }
    match record::peek(&content[pos..]) {
        Peek::Blank { size } if pos + size == content.len() => content.len(),
        _ => pos,
    }
}

fn holds_live_header(content: &[u8], generation: i32) -> bool {
    let mut rest = content;
    while let Peek::Record { size } = record::peek(rest) {
        if let Ok(record) = Record::decode(&rest[..size])
            && record.topic == RAFT_LOG_TOPIC
            && record.queue_id == generation
        {
            return true;
        }
        rest = &rest[size..];
    }
    false
}
