use serde::{Deserialize, Serialize};

use super::state::{Group, Queue, Topic};

/// One change of the metadata, as it stands in the log.
///
/// Variants and fields are written by position: add new variants at the end, never change one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Wall clock of the leader when it proposed, Unix milliseconds, or with locks the time that their leases go by
    /// (`broker::lock::LeaseClock`). It stamps data versions and leases, so that all replicas agree on them.
    pub at_ms: i64,
    pub change: Change,
}

/// What a [`Command`] changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Creates the topic or replaces its configuration.
    PutTopic { name: String, topic: Topic },
    /// Creates those topics that do not exist yet. Two senders that meet a new topic at the same
    /// time both propose it; the second must not overwrite the first.
    CreateTopics(Vec<(String, Topic)>),
    /// Removes the topic's configuration. Offsets that groups hold on it stay, as in Java.
    DeleteTopic { name: String },
    /// Creates the group or replaces its configuration.
    PutGroup { name: String, group: Group },
    /// Creates those groups that do not exist yet.
    CreateGroups(Vec<(String, Group)>),
    /// Removes the group's configuration, and its offsets if asked.
    DeleteGroup { name: String, clean_offsets: bool },
    /// Sets consumer offsets, in order, each to exactly the value given: also to a lower one.
    ///
    /// A consumer that seeks, or was reset by a tool, commits a lower offset with the same request
    /// as any other commit, so it cannot be told from a late one by its value. That nothing late
    /// arrives here is the proposer's duty (`broker::offset_buffer`): per queue it keeps only the
    /// newest commit, has one proposal in flight, and drops what it holds when it stops leading.
    CommitOffsets(Vec<OffsetCommit>),
    /// Gives `to` the offsets of `from`, on one topic or on all of them.
    CloneOffsets {
        from: String,
        to: String,
        topic: Option<String>,
    },
    /// Takes or renews queue locks of an orderly consumer; answers with those it now holds.
    LockQueues {
        group: String,
        client: String,
        queues: Vec<Queue>,
    },
    /// Gives up queue locks; those of another client stay.
    UnlockQueues {
        group: String,
        client: String,
        queues: Vec<Queue>,
    },
    /// Moves the delayed delivery on: (level from 1, next queue offset to deliver). Never back.
    DelayProgress(Vec<(i32, i64)>),
    /// From here on nothing is changed but by [`Change::Thaw`], and no message is appended.
    Freeze,
    /// Ends a freeze.
    Thaw,
}

/// A consumer group's position in one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetCommit {
    pub group: String,
    pub topic: String,
    pub queue_id: i32,
    /// Next queue offset that the group wants.
    pub offset: i64,
}

/// What the state machine answers. It travels back to a follower that forwarded a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// Nothing was changed. `code` is a response code of the remoting protocol.
    Refused {
        code: i32,
        remark: String,
    },
    /// The queues of a [`Change::LockQueues`] that the client holds now.
    Locked(Vec<Queue>),
}

impl Reply {
    /// What a frozen group answers: a code that has clients try again, elsewhere too.
    pub(super) fn frozen() -> Self {
        Self::Refused {
            code: rmq_wire::code::response::SERVICE_NOT_AVAILABLE,
            remark: super::FROZEN.to_owned(),
        }
    }

    pub(super) fn refused(remark: impl Into<String>) -> Self {
        /// `ResponseCode.SYSTEM_ERROR`, what Java answers to illegal names.
        const SYSTEM_ERROR: i32 = 1;
        Self::Refused {
            code: SYSTEM_ERROR,
            remark: remark.into(),
        }
    }
}
