//! RocketMQ's commit log as the home of a Raft log.
//!
//! `types` and `config` are the store's vocabulary, `disk` its only way to the operating system.

#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod config;
mod disk;
mod types;

pub use config::{ConfigError, ENTRY_OVERHEAD_BYTES, FlushMode, StoreConfig};
pub use disk::{Disk, DiskFile, OpenMode, RealDisk};
pub use types::{
    Batch, EntryId, EntryKind, LogIndex, NewEntry, PendingRecord, PhyOffset, Position, QueueOffset,
    Run, SealedCell, StoredEntry, Term, Vote,
};
