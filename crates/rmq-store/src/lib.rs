//! RocketMQ's commit log as the home of a Raft log.
//!
//! `types` and `config` are the store's vocabulary, `disk` its only way to the operating system,
//! `worker` how it works in the background.
//! The log: `segment` is its files as one address space, `extent` what an entry looks like in them,
//! `seal` makes its bytes, `raft_index` finds it, `queue_offsets` gives out queue offsets, `flush`
//! makes bytes durable, `slots` and `checkpoint` hold the vote and what recovery starts from,
//! `keeper` works ahead in the background. `recovery` opens a log, `log` is its single writer,
//! `reader` serves everybody else, `retention` lets go of its oldest part, `scrub` looks for
//! damage and `damage` mends it. `genesis` is what a store has
//! taken over from another broker.
//! Behind it: `queues` is what consumers see, made by `dispatch` from committed records and kept in
//! `consume_queue` and `index_file`; `delay` is a table that these files depend on. `store` opens
//! both. `frozen` is the mark of a frozen group; `inspect` tells what a store holds without opening
//! it; `transfer` takes a whole store to another node. The formats are described in
//! `docs/disk-format.md`.

#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

mod checkpoint;
mod config;
mod consume_queue;
mod damage;
mod delay;
mod disk;
mod dispatch;
mod extent;
mod flush;
mod frozen;
mod genesis;
mod index_file;
pub mod inspect;
mod keeper;
mod log;
#[doc(hidden)]
pub mod mutants;
mod queue_offsets;
mod queues;
mod raft_index;
mod reader;
mod recovery;
mod retention;
mod scrub;
mod seal;
mod segment;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod slots;
mod store;
#[cfg(test)]
mod tests;
mod transfer;
mod types;
mod worker;

pub use config::{ConfigError, ENTRY_OVERHEAD_BYTES, FlushMode, StoreConfig};
pub use consume_queue::{Slot, UNIT_BYTES, Unit};
pub use damage::{Damage, MendError, MenderCall};
pub use delay::{DelayLevelError, DelayLevels};
pub use disk::{Disk, DiskFile, Locked, OpenMode, RealDisk, Space};
pub use dispatch::{Arrival, DispatchError};
pub use extent::{ExtentError, RAFT_LOG_TOPIC};
pub use flush::FlushCallback;
pub use frozen::FreezeMark;
pub use genesis::{
    GENESIS_FILE, Genesis, GenesisError, GenesisMetadata, GenesisMismatch, GenesisSegment,
    MeasureError,
};
pub use index_file::{
    ENTRY_BYTES, Entry, HEADER_BYTES, Header as IndexHeader, Layout as IndexLayout, SLOT_BYTES,
    key_hash,
};
pub use log::{Appended, Log, Recovered};
pub use queues::{
    ArrivalListener, Boundary, GetResult, GetStatus, OpenQueuesError, Place, Queues, Takes,
    bring_in,
};
pub use reader::{LogReader, ReadError};
pub use recovery::OpenError;
pub use retention::{Cut, Retention, RetentionLimits};
pub use scrub::Scrubbed;
pub use seal::AppendError;
pub use store::{OpenStoreError, Store, open, open_watched, seed};
pub use transfer::{
    APPLIED_FILE, Incoming, IncomingError, Outgoing, Outline, Part, QueueEnd, Rest,
    TransferDecodeError, begin_install, forget_incoming,
};
pub use types::{
    Batch, EntryId, EntryKind, LogIndex, NewEntry, PendingRecord, PhyOffset, Position, QueueOffset,
    Run, SealedCell, StoredEntry, Term, Vote,
};
pub use worker::{Turn, Work, Worker};
