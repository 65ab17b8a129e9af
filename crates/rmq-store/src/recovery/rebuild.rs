//! A checkpoint that is lost, made again from the log.

use std::path::Path;
use std::sync::Arc;

use super::{OpenError, at, bases, load_segments};
use crate::checkpoint::{CHECKPOINT_FILE, Checkpoint};
use crate::config::{FlushMode, StoreConfig};
use crate::disk::{Disk, OpenMode};
use crate::extent::Header;
use crate::genesis::Genesis;
use crate::raft_index::RaftIndex;
use crate::reader::Shared;
use crate::segment::{Segments, file_name};
use crate::types::{LogIndex, PhyOffset};

/// A checkpoint that knows where the log begins, and of no entry that it is committed. The log is suspect
/// by it: what is missing at its end may have been acknowledged.
///
/// If the log does not begin with the first entry of all, the entry that it does begin with counts as purged,
/// for only of that one is known who made it.
pub(super) fn rebuild(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
    genesis: Option<&Genesis>,
) -> Result<Checkpoint, OpenError> {
    let lost = || OpenError::Checkpoint {
        path: config.path(CHECKPOINT_FILE),
    };
    let dir = &config.commit_log_dir;
    let first = bases(dir, disk)?.first().copied().ok_or_else(lost)?;
    let path = dir.join(file_name(first));
    let file = disk.open(&path, OpenMode::Read).map_err(at(&path))?;
    let segment_bytes = file.size().map_err(at(&path))?;
    if segment_bytes == 0 {
        return Err(lost());
    }
    // Nothing is put in order here.
    let list = load_segments(dir, disk, segment_bytes, PhyOffset(u64::MAX))?;
    let segments = Segments::new(Arc::clone(disk), dir.clone(), segment_bytes, list);
    let limit = segments.limit().unwrap_or_default();
    let start = genesis.map_or(PhyOffset(first), |genesis| {
        genesis.end.max(PhyOffset(first))
    });
    let index = RaftIndex::new(Arc::clone(disk), config.raft_index_dir());
    let shared = Shared::new(
        segments,
        index,
        config.generation,
        segment_bytes,
        (start, start),
    );
    let header = match start.0.checked_sub(1) {
        Some(before) => shared.next_header(PhyOffset(before), limit),
        None => {
            let first = shared.segments.view_record(start).ok();
            let first =
                first.and_then(|first| Header::decode(&first, config.generation, start).ok());
            let first = first.map(|(header, _)| (header, start));
            first.or_else(|| shared.next_header(start, limit))
        }
    };
    let (header, _) = header.ok_or_else(lost)?;
    let (base, purged) = if header.id.index == LogIndex(0) {
        (header.start, None)
    } else {
        (header.end(), Some(header.id))
    };
    tracing::error!(
        first = %header.id, at = %header.start,
        "the checkpoint is damaged or missing: it is made again from the log, all of which is read, and this \
         node does not vote before it has all that the leader has"
    );
    Ok(Checkpoint {
        generation: config.generation,
        segment_bytes,
        base,
        committed: None,
        confirm: base,
        purged,
        boot_id: disk.boot_id().map_err(at(Path::new("boot id")))?,
        lazy: config.flush != FlushMode::Sync,
        suspect: true,
        clean_end: None,
    })
}
