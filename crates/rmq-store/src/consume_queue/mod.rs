//! Consume queues: per queue, the positions of its messages in the commit log, in the classic files.
//!
//! `unit` is the format of one position, `files` all files under `consumequeue/`, `table` what is kept
//! in memory of each queue, `recover` how a queue's end is found again after a restart. What is
//! written into them is decided by [`crate::dispatch`].

mod files;
mod recover;
mod table;
mod unit;

pub(crate) use files::QueueFiles;
pub(crate) use recover::{first_unit_from, last_unit_below};
pub(crate) use table::{QueueState, Table, fnv_1a};
pub(crate) use unit::{BLANK, MOST_UNITS};
pub use unit::{Slot, UNIT_BYTES, Unit};
