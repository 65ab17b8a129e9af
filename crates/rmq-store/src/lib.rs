//! RocketMQ's commit log as the home of a Raft log.
//!
//! `types` and `config` are the store's vocabulary, `disk` its only way to the operating system.
//! The log: `segment` is its files as one address space, `extent` what an entry looks like in them,
//! `raft_index` finds an entry, `queue_offsets` gives out queue offsets, `flush` makes bytes
//! durable, `slots` and `checkpoint` hold the vote and what recovery starts from, `keeper` works
//! ahead in the background. `recovery` opens a log, `log` is its single writer, `reader` serves
//! everybody else. The formats are described in `docs/disk-format.md`.

#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod checkpoint;
mod config;
mod disk;
mod extent;
mod flush;
mod keeper;
mod log;
mod queue_offsets;
mod raft_index;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod sim;
mod slots;
#[cfg(test)]
mod tests;
mod types;

pub use config::{ConfigError, ENTRY_OVERHEAD_BYTES, FlushMode, StoreConfig};
pub use disk::{Disk, DiskFile, OpenMode, RealDisk};
pub use extent::{ExtentError, RAFT_LOG_TOPIC};
pub use flush::FlushCallback;
pub use log::{AppendError, Appended, Log, Recovered};
pub use reader::{LogReader, ReadError};
pub use recovery::OpenError;
pub use types::{
    Batch, EntryId, EntryKind, LogIndex, NewEntry, PendingRecord, PhyOffset, Position, QueueOffset,
    Run, SealedCell, StoredEntry, Term, Vote,
};
