//! Letting go of the oldest segments (`CleanCommitLogService`, 4.9.7, as far as files go).
//!
//! What may go is a question of the log alone: whole segments from the oldest on, as long as
//! consume queues and index have durably passed them and a whole segment stays behind the one that
//! is being written. A segment is as old as the record that follows it, by its store timestamp: that
//! is the same on every replica, however its file came there, and never younger than the segment's
//! own last record. When and how much may go is decided by the caller, who also has the entries
//! purged before the segments are removed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::StoreConfig;
use crate::disk::{Disk, Space};
use crate::queues::{Queues, store_time};
use crate::reader::{LogReader, ReadError};
use crate::types::{LogIndex, PhyOffset};

/// How much may go at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionLimits {
    /// Only what was stored before this time, in milliseconds; whatever its age if `None`.
    pub stored_before: Option<i64>,
    /// Segments at most.
    pub segments: usize,
    /// Entries from here on stay; `None` if no entry has to.
    pub keep_from: Option<LogIndex>,
}

/// What is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Start of the first segment that stays.
    pub keep: PhyOffset,
    /// The last entry that has a byte in a segment that goes: it and all before have to be purged
    /// first. `None` if only history goes.
    pub purge: Option<LogIndex>,
}

/// A store's oldest part. Its methods read and remove files, and may take long.
#[derive(Debug)]
pub struct Retention {
    reader: LogReader,
    queues: Arc<Queues>,
    disk: Arc<dyn Disk>,
    /// Of the commit log and of what is derived from it, which may be on two file systems.
    dirs: [PathBuf; 2],
    stopping: AtomicBool,
}

impl Retention {
    #[must_use]
    pub fn new(
        reader: LogReader,
        queues: Arc<Queues>,
        disk: Arc<dyn Disk>,
        config: &StoreConfig,
    ) -> Self {
        Self {
            reader,
            queues,
            disk,
            dirs: [config.commit_log_dir.clone(), config.root.clone()],
            stopping: AtomicBool::new(false),
        }
    }

    /// Space of the fuller one of the store's file systems.
    pub fn space(&self) -> io::Result<Space> {
        let [log, root] = &self.dirs;
        let (log, root) = (self.disk.space(log)?, self.disk.space(root)?);
        let fuller = root.used_percent() > log.used_percent();
        Ok(if fuller { root } else { log })
    }

    /// The disk's time, in milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.disk.now_ms()
    }

    /// What may go within these limits; `None` if nothing may.
    pub fn choose(&self, limits: RetentionLimits) -> Result<Option<Cut>, ReadError> {
        let shared = &self.reader.shared;
        let segments = &shared.segments;
        let Some(first) = segments.first() else {
            return Ok(None);
        };
        let written = segments.base_of(self.reader.confirm_offset());
        let most = segments
            .base_of(self.queues.durable())
            .min(PhyOffset(written.0.saturating_sub(segments.bytes)));
        let mut keep = first;
        for _ in 0..limits.segments {
            let next = keep + segments.bytes;
            if next > most || !self.is_older(next, limits.stored_before) {
                break;
            }
            keep = next;
        }
        while keep > first {
            let purge = self.last_entry_into(keep)?;
            // An entry that stays keeps its segment, and all behind it.
            match (limits.keep_from, purge) {
                (Some(from), Some(last)) if last >= from => {
                    keep = PhyOffset(keep.0 - segments.bytes);
                }
                _ => return Ok(Some(Cut { keep, purge })),
            }
        }
        Ok(None)
    }

    fn is_older(&self, next: PhyOffset, limit: Option<i64>) -> bool {
        limit
            .is_none_or(|limit| store_time(&self.reader, next).is_some_and(|stored| stored < limit))
    }

    /// The last entry that starts below a position; `None` if none does.
    fn last_entry_into(&self, below: PhyOffset) -> Result<Option<LogIndex>, ReadError> {
        if below <= self.reader.base_offset() {
            return Ok(None);
        }
        let (Some(first), Some(last)) = (self.reader.first_index(), self.reader.last_id()) else {
            return Ok(None);
        };
        let (mut low, mut high) = (first.0, last.index.0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // What was purged meanwhile starts below as well.
            let starts_below = self
                .reader
                .entry(LogIndex(middle))?
                .is_none_or(|entry| entry.start < below);
            if starts_below {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low
            .checked_sub(1)
            .filter(|last| *last >= first.0)
            .map(LogIndex))
    }

    /// Removes the segments before `keep`, one after the other with a pause in between, and what
    /// consume queues, index and raft index have of them. A segment that holds a byte of an entry that
    /// is not purged stays, whatever `keep` says.
    pub fn remove_before(&self, keep: PhyOffset, pause: Duration) -> io::Result<()> {
        let shared = &self.reader.shared;
        let segments = &shared.segments;
        let keep = keep.min(segments.base_of(shared.base()));
        let mut removed = 0;
        while segments.first().is_some_and(|first| first < keep) {
            if self.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            if removed > 0 {
                std::thread::sleep(pause);
            }
            segments.drop_first()?;
            removed += 1;
        }
        let min = self.reader.min_offset();
        let expired = self.queues.expire(min)?;
        if let Some(first) = self.reader.first_index() {
            shared.index.drop_before(first)?;
        }
        tracing::info!(
            segments = removed,
            consume_queue_files = expired.consume_queue_files,
            index_files = expired.index_files,
            %min,
            "old files removed"
        );
        Ok(())
    }

    /// Has a removal end early, and none begin.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}
