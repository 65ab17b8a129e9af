//! What the clients saw: every operation with the times of its call and its end, and what a reader
//! found in the queues after the faults were over.

use std::collections::BTreeMap;

use crate::client::Outcome;

/// One message that a producer tried to send. Bodies are unique in a run.
#[derive(Debug, Clone)]
pub struct Send {
    pub queue: u32,
    pub body: String,
    /// Nanoseconds since the start of the run.
    pub invoked: u64,
    /// Nanoseconds since the start of the run.
    pub ended: u64,
    /// The queue offset, if acknowledged.
    pub outcome: Outcome<u64>,
}

/// One call about a consumer group's offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffsetOp {
    /// A commit of this offset, acknowledged or not.
    Commit { offset: u64, acknowledged: bool },
    /// A query that was answered.
    Read(Option<u64>),
}

/// A stretch of time in which a fault was active.
#[derive(Debug, Clone)]
pub struct Fault {
    pub what: String,
    /// Nanoseconds since the start of the run.
    pub from: u64,
    /// Nanoseconds since the start of the run; the first acknowledgement of a send that was invoked
    /// after `from`.
    pub first_ack: Option<u64>,
}

/// Everything that a run observed.
#[derive(Debug, Default)]
pub struct History {
    pub sends: Vec<Send>,
    /// In the order of one client that waits for each answer.
    pub offsets: Vec<OffsetOp>,
    pub faults: Vec<Fault>,
    /// Queue id to the messages found in it at the end, as (queue offset, body), in queue order.
    pub found: BTreeMap<u32, Vec<(u64, String)>>,
}
