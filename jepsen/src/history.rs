//! What the clients saw: every operation with the times of its call and its end, and what a reader
//! found in the queues after the faults were over.
//!
//! All times are nanoseconds since the start of the run. A process is a client that waits for the end of
//! each operation before the next.

use std::collections::BTreeMap;

use crate::client::Outcome;

/// What the bodies of probes begin with.
pub(crate) const PROBE: &str = "probe";

/// One message that a producer tried to send. Bodies are unique in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// Who.
    pub process: u64,
    /// Where to.
    pub queue: u32,
    /// What.
    pub body: String,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// The queue offset, if acknowledged.
    pub outcome: Outcome<u64>,
}

/// One call about a consumer group's offset in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetOp {
    /// Who.
    pub process: u64,
    /// In which queue.
    pub queue: u32,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// What.
    pub call: OffsetCall,
}

/// See [`OffsetOp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OffsetCall {
    /// A commit of this offset, acknowledged or not.
    Commit { offset: u64, acknowledged: bool },
    /// A query that was answered.
    Read(Option<u64>),
}

/// One pull from a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// Who.
    pub process: u64,
    /// For the consumer group, which takes it as delivered then; or only to look.
    pub delivers: bool,
    /// From which queue.
    pub queue: u32,
    /// From this offset on.
    pub from: u64,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// What it got, as (offset, body). Nothing is what a node says that knows of no message there.
    pub outcome: Outcome<Vec<(u64, String)>>,
}

/// One call about the lock of a queue, which lasts for [`LEASE`] at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOp {
    /// Who.
    pub process: u64,
    /// Of which queue.
    pub queue: u32,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// What.
    pub call: LockCall,
}

/// See [`LockOp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockCall {
    /// Whether the lock was had or renewed; not ok if that is unknown.
    Lock(Outcome<bool>),
    /// It was given up, as far as the client is concerned.
    Unlock,
}

/// How long a lock lasts that is not renewed, nanoseconds.
pub const LEASE: u64 = 60_000_000_000;

/// A message that is to be delivered later. Bodies are unique in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delayed {
    /// Who sent it.
    pub process: u64,
    /// What.
    pub body: String,
    /// Nanoseconds that it has to wait.
    pub delay: u64,
    /// When it was sent.
    pub invoked: u64,
    /// When the send ended.
    pub ended: u64,
    /// Whether it was taken.
    pub outcome: Outcome<()>,
}

/// A delayed message that was seen in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// When.
    pub at: u64,
    /// In which queue.
    pub queue: u32,
    /// Its queue offset.
    pub offset: u64,
    /// What.
    pub body: String,
}

/// A node that said that it served as the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lead {
    /// When.
    pub at: u64,
    /// Which.
    pub node: u64,
    /// In which term.
    pub term: u64,
}

/// A stretch of time in which a fault was active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its name, and after a space whom it struck.
    pub what: String,
    /// When it began.
    pub from: u64,
    /// When it was undone, if not at once.
    pub until: Option<u64>,
    /// How much of it was seen to happen: frames, processes, bytes. `None` if nobody looked.
    pub seen: Option<u64>,
}

/// Everything that a run observed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Of all producers.
    pub sends: Vec<Send>,
    /// Of all members of one consumer group.
    pub offsets: Vec<OffsetOp>,
    /// Of all consumers.
    pub polls: Vec<Poll>,
    /// Of all members of one consumer group.
    pub locks: Vec<LockOp>,
    /// Of one producer.
    pub delayed: Vec<Delayed>,
    /// By one reader, and at the end all of them once more.
    pub deliveries: Vec<Delivery>,
    /// In the order of their times.
    pub leads: Vec<Lead>,
    /// In the order of their beginning.
    pub faults: Vec<Fault>,
    /// Queue id to the messages found in it at the end, as (queue offset, body), in queue order.
    pub found: BTreeMap<u32, Vec<(u64, String)>>,
}

impl History {
    /// When the first send of a producer that was invoked after `from` was acknowledged.
    pub fn first_ack(&self, from: u64) -> Option<u64> {
        let sends = self.sends.iter();
        sends
            .filter(|s| s.invoked > from && matches!(s.outcome, Outcome::Ok(_)))
            .filter(|s| !s.body.starts_with(PROBE))
            .map(|s| s.ended)
            .min()
    }

    /// How many sends were acknowledged, and how many ended without an answer.
    pub fn counts(&self) -> (usize, usize) {
        let count =
            |is: fn(&Outcome<u64>) -> bool| self.sends.iter().filter(|s| is(&s.outcome)).count();
        (
            count(|o| matches!(o, Outcome::Ok(_))),
            count(|o| matches!(o, Outcome::Unknown(_))),
        )
    }

    /// The end of the last operation or fault.
    pub fn end(&self) -> u64 {
        let sends = self.sends.iter().map(|s| s.ended);
        let offsets = self.offsets.iter().map(|o| o.ended);
        let polls = self.polls.iter().map(|p| p.ended);
        let locks = self.locks.iter().map(|l| l.ended);
        let leads = self.leads.iter().map(|l| l.at);
        let delayed = self.delayed.iter().map(|d| d.ended);
        let leads = leads
            .chain(delayed)
            .chain(self.deliveries.iter().map(|d| d.at));
        let faults = self.faults.iter().map(|f| f.until.unwrap_or(f.from));
        let all = sends.chain(offsets).chain(polls).chain(locks);
        all.chain(leads).chain(faults).max().unwrap_or(0)
    }
}
