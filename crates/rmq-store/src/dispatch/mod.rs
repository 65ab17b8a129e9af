//! From committed records to consume queue units and index entries (Java's `ReputMessageService`).
//!
//! `batch` decides what a stretch of the log means for the queues, `checkpoint` is the file that says
//! how far the files are built. The thread that does all this is in [`crate::queues`].

mod batch;
mod checkpoint;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

pub(crate) use batch::{Batch, Message, QueueRun};
pub(crate) use checkpoint::{Checkpoint, CheckpointFile};

use crate::damage::Damage;
use crate::reader::LogReader;
use crate::types::{PhyOffset, QueueOffset};

/// What dispatch and reads need of the commit log.
pub(crate) trait CommittedLog: Send + Sync {
    /// The position of the oldest record that is kept.
    fn min_offset(&self) -> PhyOffset;
    /// Behind the last committed record.
    fn confirm_offset(&self) -> PhyOffset;
    fn set_confirm_offset(&self, offset: PhyOffset);
    /// The bytes of a range, not copied; `None` if it crosses a segment's end or is not there.
    fn slice(&self, from: PhyOffset, len: usize) -> Option<Bytes>;
    /// Where the segment that holds `offset` ends.
    fn segment_end(&self, offset: PhyOffset) -> PhyOffset;
    /// Whether a range is what was written, or the first damage in it.
    fn check(&self, from: PhyOffset, len: u64) -> Result<(), Damage>;
    /// The same for a range that starts with a record, and more thoroughly where records are all there
    /// is.
    fn check_records(&self, from: PhyOffset, len: u64) -> Result<(), Damage>;

    /// Ends all writing to the log, for this reason if it is the first one.
    fn poison(&self, reason: String);
    /// The first damage in a range that was found before, by whomever.
    fn known_damage(&self, from: PhyOffset, to: PhyOffset) -> Option<Damage>;

    /// The committed bytes from `from` on, up to the end of the segment, to known damage or to `limit`
    /// at most; `None` if there are none.
    fn committed_from(&self, from: PhyOffset, limit: PhyOffset) -> Option<Bytes> {
        let end = self.confirm_offset().min(self.segment_end(from)).min(limit);
        let damage = self.known_damage(from, end);
        let end = damage.map_or(end, |damage| damage.start);
        let len = usize::try_from(end.0.checked_sub(from.0)?).ok()?;
        self.slice(from, len).filter(|bytes| !bytes.is_empty())
    }
}

/// A message that consumers can read from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub topic: Arc<str>,
    pub queue_id: i32,
    /// Behind the message.
    pub next: QueueOffset,
    /// As in its consume queue unit.
    pub tags_code: i64,
    /// Milliseconds.
    pub store_timestamp: i64,
}

/// Why the log could not be dispatched any further.
#[derive(Debug, Error)]
pub enum DispatchError {
    /// May pass: a full disk, too many open files.
    #[error("writing what follows from the log at {at}: {source}")]
    Io { at: PhyOffset, source: io::Error },
    /// Passes once it is mended.
    #[error("{0}")]
    Damaged(Damage),
    /// Stays: the log has committed bytes that are no records.
    #[error("no record at {at}, below the confirm offset {confirm}")]
    NoRecord { at: PhyOffset, confirm: PhyOffset },
}

impl CommittedLog for LogReader {
    fn min_offset(&self) -> PhyOffset {
        self.min_offset()
    }

    fn confirm_offset(&self) -> PhyOffset {
        self.confirm_offset()
    }

    fn set_confirm_offset(&self, offset: PhyOffset) {
        self.set_confirm_offset(offset);
    }

    fn slice(&self, from: PhyOffset, len: usize) -> Option<Bytes> {
        self.slice(from, len)
    }

    fn check(&self, from: PhyOffset, len: u64) -> Result<(), Damage> {
        self.check(from, len)
    }

    fn check_records(&self, from: PhyOffset, len: u64) -> Result<(), Damage> {
        self.check_records(from, len)
    }

    fn poison(&self, reason: String) {
        self.shared.poison(|| reason);
    }

    fn known_damage(&self, from: PhyOffset, to: PhyOffset) -> Option<Damage> {
        self.shared.damages.touching(from, to)
    }

    fn segment_end(&self, offset: PhyOffset) -> PhyOffset {
        let bytes = self.segment_bytes();
        PhyOffset(offset.0 - offset.0 % bytes + bytes)
    }
}
