//! What an operator asks a running cluster: the node status behind `mqadmin raftStatus` and the small
//! client that `rmq up` checks itself with. The commands of Java's mqadmin are served to Java's mqadmin;
//! they are not written again here.

mod client;
mod inspection;
mod status;

pub use client::{Admin, AskError};
pub use inspection::describe;
pub use status::{damaged, quarantined, render, role_name, table};
