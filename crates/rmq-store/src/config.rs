//! What the store is told, with the Java broker's defaults.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::delay::DelayLevels;

/// Room that an entry may take beside one message body of the largest size: the header of the
/// extent, the record's own fields, its topic and its properties (at most 32 KiB).
pub const ENTRY_OVERHEAD_BYTES: u64 = 128 * 1024;

/// When appended bytes become durable (`flushDiskType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushMode {
    /// Before the append's callback: acknowledged means synced.
    Sync,
    /// Soon after: at least every `interval_ms` milliseconds (`flushIntervalCommitLog`).
    Async { interval_ms: u64 },
}

/// Sizes and places of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// `storePathRootDir`.
    pub root: PathBuf,
    /// `storePathCommitLog`.
    pub commit_log_dir: PathBuf,
    /// `mappedFileSizeCommitLog`, in bytes. It counts for a new store only: the segments of an
    /// existing one keep their size.
    pub segment_bytes: u64,
    /// `mappedFileSizeConsumeQueue`: bytes, a multiple of the 20 of one unit.
    pub consume_queue_file_bytes: u64,
    /// `maxHashSlotNum` of an index file.
    pub index_slots: u32,
    /// `maxIndexNum` of an index file.
    pub index_entries: u32,
    /// `flushIntervalConsumeQueue`: how often consume queues and index are synced, in milliseconds.
    pub consume_queue_flush_interval_ms: u64,
    /// `messageDelayLevel`.
    pub delay_levels: DelayLevels,
    pub flush: FlushMode,
    /// `maxMessageSize`: largest message body, in bytes.
    pub max_message_bytes: u32,
    /// Most bytes of the log that are dispatched while a store is opened; more is done in the
    /// background.
    pub catch_up_bytes: u64,
    /// Number of the genesis that the Raft log stands on. Entries of another generation are
    /// history, not log.
    pub generation: i32,
}

/// A configuration that cannot work.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error(
        "mappedFileSizeCommitLog={segment_bytes} is too small for maxMessageSize={max_message_bytes}: \
         a segment holds at least maxMessageSize + {ENTRY_OVERHEAD_BYTES} bytes"
    )]
    SegmentTooSmall {
        segment_bytes: u64,
        max_message_bytes: u32,
    },
    #[error("mappedFileSizeCommitLog={0} is too large: a segment has at most 2147483647 bytes")]
    SegmentTooLarge(u64),
    #[error("mappedFileSizeConsumeQueue={0} is not a positive multiple of 20 below 2147483648")]
    ConsumeQueueFile(u64),
    #[error("{key}={value} is not between 2 and 2147483647")]
    IndexFile { key: &'static str, value: u32 },
}

impl StoreConfig {
    /// A store under `root` with the Java broker's defaults.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            commit_log_dir: root.join("commitlog"),
            root,
            segment_bytes: 1 << 30,
            consume_queue_file_bytes: 300_000 * 20,
            index_slots: 5_000_000,
            index_entries: 20_000_000,
            consume_queue_flush_interval_ms: 1000,
            delay_levels: DelayLevels::default(),
            flush: FlushMode::Async { interval_ms: 500 },
            max_message_bytes: 4 << 20,
            catch_up_bytes: 256 << 20,
            generation: 0,
        }
    }

    /// Refuses sizes that cannot work together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self {
            segment_bytes,
            max_message_bytes,
            ..
        } = *self;
        if segment_bytes < u64::from(max_message_bytes) + ENTRY_OVERHEAD_BYTES {
            return Err(ConfigError::SegmentTooSmall {
                segment_bytes,
                max_message_bytes,
            });
        }
        // The blank at the end of a segment says its length in an i32.
        if i32::try_from(segment_bytes).is_err() {
            return Err(ConfigError::SegmentTooLarge(segment_bytes));
        }
        let cq = self.consume_queue_file_bytes;
        if cq == 0 || !cq.is_multiple_of(20) || i32::try_from(cq).is_err() {
            return Err(ConfigError::ConsumeQueueFile(cq));
        }
        for (key, value) in [
            ("maxHashSlotNum", self.index_slots),
            ("maxIndexNum", self.index_entries),
        ] {
            // Entry 0 of an index file is never used.
            if value < 2 || i32::try_from(value).is_err() {
                return Err(ConfigError::IndexFile { key, value });
            }
        }
        Ok(())
    }

    /// Largest extent, in bytes, that `Log::append` takes, its header included and the blank
    /// before it not: a quarter of a segment, or one request of the largest size if that is more.
    #[must_use]
    pub fn max_extent_bytes(&self) -> u64 {
        let request = u64::from(self.max_message_bytes) + ENTRY_OVERHEAD_BYTES;
        request.max(self.segment_bytes / 4)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Home of the raft index. Not under `consumequeue/`, where Java takes the largest offset in
    /// any file as dispatched.
    pub(crate) fn raft_index_dir(&self) -> PathBuf {
        self.path("raftindex")
    }

    /// Home of the message consume queues.
    #[must_use]
    pub fn consume_queue_dir(&self) -> PathBuf {
        self.path("consumequeue")
    }

    /// Home of the index files.
    #[must_use]
    pub fn index_dir(&self) -> PathBuf {
        self.path("index")
    }

    /// The store's root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_holds_the_largest_message() {
        let mut config = StoreConfig::new("/store");
        assert_eq!(config.check(), Ok(()));
        config.segment_bytes = (4 << 20) + ENTRY_OVERHEAD_BYTES - 1;
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("mappedFileSizeCommitLog=4325375"), "{error}");
        assert!(error.contains("maxMessageSize=4194304"), "{error}");
        config.segment_bytes += 1;
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.max_extent_bytes(), config.segment_bytes);
    }
}
