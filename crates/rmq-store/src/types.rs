//! The numbers and values that cross the store's boundary.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rmq_wire::record::{EncodeError, NewRecord, sys_flag};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The value as the signed number of the classic formats, which have no unsigned ones.
            ///
            /// # Panics
            ///
            /// Above `i64::MAX`, which no append reaches and every decoder refuses.
            #[must_use]
            pub fn as_i64(self) -> i64 {
                i64::try_from(self.0).expect("positions stay below 2^63")
            }

            /// The value of a classic format's signed number; `None` if it is negative.
            #[must_use]
            pub fn from_i64(value: i64) -> Option<Self> {
                u64::try_from(value).ok().map(Self)
            }
        }
    };
}

number! {
    /// Index of an entry in the Raft log; the first entry has index 0.
    LogIndex
}
number! {
    /// A Raft term.
    Term
}
number! {
    /// A byte position in the commit log, counted over all its segments.
    #[derive(serde::Serialize, serde::Deserialize)]
    PhyOffset
}
number! {
    /// Position of a message in its queue.
    QueueOffset
}

impl LogIndex {
    /// The index that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Add<u64> for PhyOffset {
    type Output = Self;
    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl Sub for PhyOffset {
    type Output = u64;
    fn sub(self, other: Self) -> u64 {
        self.0 - other.0
    }
}

impl Add<u64> for QueueOffset {
    type Output = Self;
    fn add(self, messages: u64) -> Self {
        Self(self.0 + messages)
    }
}

/// Identity of an entry: the leader that made it and its place in the log.
///
/// The leaders' order is `(term, node)`; it never decreases along a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub term: Term,
    pub node: u64,
    pub index: LogIndex,
}

impl EntryId {
    /// The leader that made the entry.
    #[must_use]
    pub fn leader(&self) -> (Term, u64) {
        (self.term, self.node)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.{}", self.term, self.node, self.index)
    }
}

/// What an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Nothing: a new leader's first entry.
    Blank = 0,
    /// The group's membership, in `meta`.
    Membership = 1,
    /// A command for the metadata state machine, in `meta`.
    Meta = 2,
    /// Message records.
    Messages = 3,
}

impl EntryKind {
    /// The kind with this number on disk.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Blank),
            1 => Some(Self::Membership),
            2 => Some(Self::Meta),
            3 => Some(Self::Messages),
            _ => None,
        }
    }
}

/// A Raft vote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vote {
    pub term: Term,
    pub node: u64,
    /// Whether a quorum granted it, so that `node` leads the term.
    pub committed: bool,
}

/// A message record that waits for its place in the log.
#[derive(Clone, Debug)]
pub struct PendingRecord {
    /// A whole classic record (`rmq_wire::record`) whose queue offset, physical offset and store
    /// timestamp are still holes.
    pub buf: Vec<u8>,
    pub topic: Arc<str>,
    pub queue_id: i32,
    /// Whether the record takes a queue offset. Prepared and rolled back transactional messages
    /// do not, theirs is 0.
    pub queued: bool,
}

impl PendingRecord {
    /// The record of a message.
    ///
    /// # Errors
    /// As [`NewRecord::encode`].
    pub fn new(message: &NewRecord<'_>) -> Result<Self, EncodeError> {
        let mut buf = Vec::with_capacity(message.encoded_len());
        message.encode(&mut buf)?;
        Ok(Self {
            buf,
            topic: message.topic.into(),
            queue_id: message.queue_id,
            queued: sys_flag::is_queued(message.sys_flag),
        })
    }
}

/// The messages of one entry, in the order in which they are written.
#[derive(Clone, Debug)]
pub struct Batch {
    pub records: Vec<PendingRecord>,
    /// Told where the records went.
    pub sealed: Arc<SealedCell>,
}

impl Batch {
    /// A batch with an empty cell.
    #[must_use]
    pub fn new(records: Vec<PendingRecord>) -> Self {
        Self {
            records,
            sealed: Arc::default(),
        }
    }
}

/// Where a record was put when it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub phy: PhyOffset,
    pub queue: QueueOffset,
    /// Milliseconds since the epoch.
    pub store_timestamp: i64,
}

/// Set once, by the append that wrote the batch: a position for each record, in the batch's order.
/// Says nothing about commitment.
pub type SealedCell = OnceLock<Vec<Position>>;

/// An entry to append.
#[derive(Clone, Debug)]
pub enum NewEntry {
    /// An entry proposed by this node as the leader: its place and its offsets are decided by the
    /// append.
    Unsealed {
        id: EntryId,
        kind: EntryKind,
        /// Payload of `Membership` and `Meta`; empty for the others.
        meta: Bytes,
        /// Records of `Messages`; `None` for the others.
        batch: Option<Batch>,
    },
    /// The raw extent of an entry as another node's `LogReader::raw` gave it, in any number of
    /// consecutive slices. It is verified and written unchanged.
    Sealed { id: EntryId, bytes: Vec<Bytes> },
}

impl NewEntry {
    /// The entry's identity.
    #[must_use]
    pub fn id(&self) -> EntryId {
        match self {
            Self::Unsealed { id, .. } | Self::Sealed { id, .. } => *id,
        }
    }
}

/// Consecutive offsets that one entry took in one queue.
///
/// The run's records need not be neighbours in the log, but they are in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub topic: Arc<str>,
    pub queue_id: i32,
    pub first: QueueOffset,
    pub count: u32,
}

impl Run {
    /// The queue offset that follows the run.
    #[must_use]
    pub fn next(&self) -> QueueOffset {
        self.first + u64::from(self.count)
    }
}

/// An entry as it stands in the log, without its message bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    pub id: EntryId,
    pub kind: EntryKind,
    /// End of the previous extent.
    pub start: PhyOffset,
    /// Where the next extent starts.
    pub end: PhyOffset,
    /// Milliseconds since the epoch; never decreases along the log.
    pub store_timestamp: i64,
    /// Message records in the extent, with or without a queue offset.
    pub record_count: u32,
    pub runs: Vec<Run>,
    pub meta: Bytes,
}
