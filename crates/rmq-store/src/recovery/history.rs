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
        if end == 0 && content.iter().any(|&byte| byte != 0) {
            return Err(OpenError::Damaged {
                path,
                at: PhyOffset(base),
                within: 0,
                confirm: PhyOffset(base),
                reason: "a segment that starts with no record".to_owned(),
            });
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

/// Where the valid records at the head of a segment end, its blank included.
fn end_of_records(content: &[u8], base: u64) -> usize {
    let mut pos = 0;
    loop {
        match record::peek(&content[pos..]) {
            Peek::Blank { size } if pos + size == content.len() => return content.len(),
            Peek::Record { size } if size <= content.len() - pos => {
                let whole = Record::decode(&content[pos..pos + size]).is_ok_and(|record| {
                    let said = u64::try_from(record.physical_offset);
                    said == Ok(base + pos as u64) && record.crc_matches()
                });
                if !whole {
                    return pos;
                }
                pos += size;
            }
            _ => return pos,
        }
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
