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

/// Messages that one client sent with one request; a sender numbers its messages from 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Who.
    pub process: u64,
    /// The name of whom in the bodies.
    pub sender: u32,
    /// Where to.
    pub queue: u32,
    /// The number of the first message.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// The queue offset of the first message, if acknowledged.
    pub outcome: Outcome<u64>,
}

/// Messages of one sender that lie one after the other, in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// See [`Batch::sender`].
    pub sender: u32,
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The queue offset of the first.
    pub offset: u64,
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
    /// Where it was told to go on, which a consumer takes as its offset.
    pub next: Option<u64>,
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
    /// It was seen when all was over.
    pub last: bool,
}

/// A message of a transaction: nobody sees it before its sender says so. Bodies are unique in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Who sent it.
    pub process: u64,
    /// What.
    pub body: String,
    /// When it was sent.
    pub invoked: u64,
    /// When the send ended.
    pub ended: u64,
    /// Whether it was taken.
    pub prepared: Outcome<()>,
    /// What its sender said of it then, also when it was asked.
    pub ends: Vec<TransactionEnd>,
}

/// See [`Transaction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Who said so: another one than the sender, which may still wait for the end of its send.
    pub process: u64,
    /// A commit; else a rollback.
    pub commits: bool,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// Whether it was taken for certain.
    pub acknowledged: bool,
}

/// One call that gives messages of a queue to a consumer and hides them from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pop {
    /// Who.
    pub process: u64,
    /// From which queue.
    pub queue: u32,
    /// For how long what was got is hidden, nanoseconds.
    pub hidden: u64,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// What it got, as (offset, body).
    pub outcome: Outcome<Vec<(u64, String)>>,
}

/// A message that was popped is done with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Who.
    pub process: u64,
    /// Of which queue.
    pub queue: u32,
    /// Which.
    pub offset: u64,
    /// When it was called.
    pub invoked: u64,
    /// When it ended.
    pub ended: u64,
    /// Whether it was taken for certain.
    pub acknowledged: bool,
}

/// What was in a store that the nodes took over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// For people: `topic/queue/offset`, `end of topic/queue`, `group in topic/queue`, `delay level 3`.
    pub place: String,
    /// Before.
    pub had: Kept,
    /// In the end, of each node that was asked while it led; `None` if it has nothing there.
    pub shown: BTreeMap<u64, Option<Kept>>,
}

/// See [`Adopted`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// A message: the SHA-256 of its whole record, in hexadecimal digits.
    Message(String),
    /// How far a queue, a group or a level of delay has come.
    Offset(u64),
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
    /// Of all those that send many messages.
    pub batches: Vec<Batch>,
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
    /// Of all producers.
    pub transactions: Vec<Transaction>,
    /// Messages of transactions, as often as they were seen.
    pub visible: Vec<Delivery>,
    /// Of all members of one consumer group.
    pub pops: Vec<Pop>,
    /// See [`pops`](Self::pops).
    pub acks: Vec<Ack>,
    /// In the order of their times.
    pub leads: Vec<Lead>,
    /// In the order of their beginning.
    pub faults: Vec<Fault>,
    /// Queue id to the messages found in it at the end, as (queue offset, body), in queue order.
    pub found: BTreeMap<u32, Vec<(u64, String)>>,
    /// The same of the queues for batches.
    pub stretches: BTreeMap<u32, Vec<Stretch>>,
    /// Of a group that began with the store of another broker.
    pub adopted: Vec<Adopted>,
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

    /// How many messages were acknowledged, batches included.
    pub fn acknowledged(&self) -> u64 {
        let batches = self.batches.iter();
        let batches = batches.filter(|batch| matches!(batch.outcome, Outcome::Ok(_)));
        self.counts().0 as u64 + batches.map(|batch| batch.count).sum::<u64>()
    }

    /// How many sends of single messages were acknowledged, and how many ended without an answer.
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
        let ends = self.transactions.iter().flat_map(|t| &t.ends);
        let leads = leads
            .chain(self.transactions.iter().map(|t| t.ended))
            .chain(ends.map(|e| e.ended))
            .chain(self.visible.iter().map(|d| d.at))
            .chain(self.pops.iter().map(|p| p.ended))
            .chain(self.acks.iter().map(|a| a.ended));
        let faults = self.faults.iter().map(|f| f.until.unwrap_or(f.from));
        let batches = self.batches.iter().map(|b| b.ended);
        let all = sends
            .chain(batches)
            .chain(offsets)
            .chain(polls)
            .chain(locks);
        all.chain(leads).chain(faults).max().unwrap_or(0)
    }
}
