//! The answer as a whole.

use std::path::PathBuf;

use rmq_wire::name;
use serde::Serialize;

use super::config::Config;
use super::queues::DelayedRetries;
use super::{ConfigPart, IndexPart, QueueKind, QueuePart, RaftPart};

/// What a store holds. Written as JSON it has the names of the fields in camel case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    pub root: PathBuf,
    /// The first directory of the log.
    pub commit_log: PathBuf,
    /// There is no `abort`.
    pub stopped_cleanly: bool,
    pub log: LogPart,
    /// Of a store of DLedger's.
    pub dledger: Option<DledgerPart>,
    /// Of a store of ours.
    pub raft: Option<RaftPart>,
    /// By topic and queue id: all that the log or a directory knows.
    pub queues: Vec<QueuePart>,
    pub index: IndexPart,
    pub delay: DelayPart,
    pub timer: TimerPart,
    pub half: HalfPart,
    /// Queues of `%RETRY%` topics.
    pub retry: Sum,
    /// Queues of `%DLQ%` topics.
    pub dlq: Sum,
    pub inner_batch: Sum,
    pub lmq: Sum,
    pub config: ConfigPart,
    /// Number of damaged places.
    pub damages: u64,
    /// The first thousand of them.
    pub damage: Vec<Damage>,
}

/// The commit log, headers of Raft entries included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogPart {
    pub segments: u64,
    /// Bytes of the first segment.
    pub segment_bytes: u64,
    /// Where the first segment starts.
    pub min_offset: u64,
    /// Behind the last whole record.
    pub max_offset: u64,
    /// Whole records.
    pub records: u64,
    /// Store timestamps of the first and the last of them, milliseconds since 1970.
    pub first_stored_ms: Option<i64>,
    pub last_stored_ms: Option<i64>,
}

/// The entries around the records of a DLedger log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DledgerPart {
    pub entries: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub first_term: u64,
    pub last_term: u64,
}

/// Delayed messages by level.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DelayPart {
    pub pending: u64,
    /// Levels that have a queue.
    pub levels: Vec<DelayLevel>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DelayLevel {
    /// From 1.
    pub level: i32,
    /// Next queue offset to deliver, from `delayOffset.json`.
    pub delivered: u64,
    pub max_offset: u64,
    pub pending: u64,
    /// How many of the pending ones are retries, not a producer's.
    pub pending_retries: u64,
}

/// Messages in the timer wheel of 5.x.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimerPart {
    /// Messages in the queue of `rmq_sys_wheel_timer`.
    pub messages: u64,
    /// Next offset of that queue to be taken into the wheel, from `timercheck`.
    pub taken: u64,
    /// Messages in the wheel that are not due yet as far as it was read, and those not taken into it.
    pub pending: u64,
}

/// Prepared messages of transactions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HalfPart {
    pub messages: u64,
    /// Next queue offset to check, the offset of group `CID_RMQ_SYS_TRANS`.
    pub checked: u64,
    /// At or behind that offset, and named by no op message.
    pub pending: u64,
}

/// Queues and the messages in them that can be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sum {
    pub queues: u64,
    pub messages: u64,
}

/// A place that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    pub kind: DamageKind,
    pub file: PathBuf,
    /// A physical offset in a file of the commit log, a byte in another file.
    pub offset: u64,
    pub what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DamageKind {
    /// A file of another length or name than it should have, or one that is missing between others.
    Files,
    /// Nothing whole follows in the log: what a crash leaves.
    TornTail,
    /// Whole records follow: no crash does that.
    Record,
    /// An extent that does not continue the Raft log, or is not what its header says.
    Extent,
    /// A consume queue unit that points at no message of its queue, or behind the log's end.
    Unit,
    /// An index file that names what is behind the log's end.
    Index,
    /// A file of settings or notes that cannot be read.
    Notes,
}

impl Sum {
    fn add(mut self, queue: &QueuePart) -> Self {
        self.queues += 1;
        self.messages += queue.messages();
        self
    }

    pub(super) fn of(queues: &[QueuePart], prefix: &str) -> Self {
        let of_prefix = queues.iter().filter(|q| q.topic.starts_with(prefix));
        of_prefix.fold(Self::default(), Self::add)
    }

    pub(super) fn of_kind(queues: &[QueuePart], kind: QueueKind) -> Self {
        let of_kind = queues.iter().filter(|q| q.kind == kind);
        of_kind.fold(Self::default(), Self::add)
    }
}

/// Delayed messages, from the queues and where their delivery stands.
pub(super) fn delay(queues: &[QueuePart], config: &Config, retries: &DelayedRetries) -> DelayPart {
    let of_level = |queue: &QueuePart| {
        let level = queue.queue_id + 1;
        let delivered = config.delay_offset(level);
        let (min, max) = queue.range();
        DelayLevel {
            level,
            delivered,
            max_offset: max,
            pending: max.saturating_sub(delivered.max(min)),
            pending_retries: retries.get(&level).copied().unwrap_or(0),
        }
    };
    let mut levels: Vec<DelayLevel> = queues
        .iter()
        .filter(|queue| queue.topic == name::SCHEDULE_TOPIC)
        .map(of_level)
        .collect();
    levels.sort_unstable_by_key(|level| level.level);
    DelayPart {
        pending: levels.iter().map(|level| level.pending).sum(),
        levels,
    }
}
