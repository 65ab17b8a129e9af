//! Bringing a whole store to another node, and what that node does with it.
//!
//! What goes over is an [`Outline`], the raw bytes that it names (segments of the commit log, then
//! files of the raft index) and the [`Rest`]: the applied state and where each queue ends. Bytes
//! below the confirm offset are the same on all nodes, so a transfer that broke off goes on where
//! it stopped, whichever node sends then.
//!
//! - `outline`: outline and rest, and their layout.
//! - `outgoing`: the sender's side, reading.
//! - `incoming`: the receiver's side, what has arrived and is durable.
//! - `install`: putting what has arrived in the place of what the store had. It begins with a file,
//!   `install.intent`, that holds outline and rest; while that file is there, opening the store
//!   first finishes the work.

mod incoming;
mod install;
mod outgoing;
mod outline;

pub use incoming::{Incoming, IncomingError, forget_incoming};
pub(crate) use incoming::{read_whole, unlink_if_there, write_whole};
pub use install::{APPLIED_FILE, begin_install};
pub(crate) use install::{InstalledEnds, finish_install, forget_installed, installed_ends};
pub use outgoing::Outgoing;
pub use outline::{Outline, Part, QueueEnd, Rest, TransferDecodeError};
