//! What a stretch of the log means for the queues.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rmq_wire::record::{Record, sys_flag, tags_code};
use rmq_wire::{name, properties};
use tracing::{error, warn};

use super::Arrival;
use crate::consume_queue::{MOST_UNITS, QueueState, UNIT_BYTES, Unit};
use crate::delay::DelayLevels;
use crate::types::{PhyOffset, QueueOffset};

/// Messages of one batch at most, so that readers and listeners need not wait long.
const MESSAGES: usize = 8192;

/// Units to write, by queue, and whom to tell afterwards.
pub(crate) struct Batch<'a> {
    runs: Vec<QueueRun>,
    by_queue: HashMap<(&'a str, i32), usize>,
    arrivals: Vec<Arrival>,
}

/// Consecutive units of one queue.
#[derive(Debug)]
pub(crate) struct QueueRun {
    pub(crate) topic: Arc<str>,
    /// The queue before the run.
    pub(crate) before: QueueState,
    pub(crate) first: QueueOffset,
    pub(crate) first_phy: PhyOffset,
    /// Encoded.
    pub(crate) units: Vec<u8>,
    /// Behind the last unit's record.
    pub(crate) end_phy: PhyOffset,
}

/// A message, as far as queues and index care.
pub(crate) struct Message<'a> {
    pub(crate) topic: &'a str,
    pub(crate) queue_id: i32,
    pub(crate) queue_offset: QueueOffset,
    pub(crate) unit: Unit,
    pub(crate) store_timestamp: i64,
    /// Prepared and rolled back ones are not.
    pub(crate) queued: bool,
    properties: Cow<'a, str>,
    /// Rolled back ones are not.
    indexed: bool,
}

impl<'a> Message<'a> {
    /// Reads the record at `phy`. `None` if it concerns neither queues nor index: it frames an entry
    /// of the Raft log, or is none that any broker would have stored, which is logged.
    pub(crate) fn read(
        bytes: &'a [u8],
        phy: PhyOffset,
        levels: &DelayLevels,
    ) -> Option<Message<'a>> {
        let record = match Record::decode(bytes) {
            Ok(record) => record,
            Err(e) => {
                error!(%phy, error = %e, "a damaged record stays out of its queue");
                return None;
            }
        };
        if record.topic == name::RAFT_LOG_TOPIC {
            return None;
        }
        let (topic, queue_id, queue_offset) = (record.topic, record.queue_id, record.queue_offset);
        let offset = QueueOffset::from_i64(queue_offset).filter(|offset| offset.0 < MOST_UNITS);
        // A topic becomes a path.
        let is_possible = name::check_topic(topic).is_ok() && queue_id >= 0;
        let Some(offset) = offset.filter(|_| is_possible) else {
            warn!(%phy, topic, queue_id, queue_offset, "a record stays out of its impossible queue");
            return None;
        };
        let properties = record.properties();
        let [tags, level] = last_of(
            &properties,
            [properties::TAGS, properties::DELAY_TIME_LEVEL],
        );
        let due = level.filter(|_| topic == name::SCHEDULE_TOPIC);
        let due = due.and_then(|level| levels.due(level, record.store_timestamp));
        let tags_code = due.unwrap_or_else(|| tags_code(tags.unwrap_or_default()));
        let rolled_back =
            record.sys_flag & sys_flag::TRANSACTION_MASK == sys_flag::TRANSACTION_ROLLBACK;
        Some(Message {
            topic,
            queue_id,
            queue_offset: offset,
            unit: Unit {
                phy,
                size: u32::try_from(record.size).ok()?,
                tags_code,
            },
            store_timestamp: record.store_timestamp,
            queued: record.is_queued(),
            properties,
            indexed: !rolled_back,
        })
    }

    /// What the index has of it: `UNIQ_KEY`, then the words of `KEYS` (Java's `IndexService`).
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let text = if self.indexed { &*self.properties } else { "" };
        let [unique, keys] = last_of(text, [properties::UNIQ_KEY, properties::KEYS]);
        let words = keys.unwrap_or_default().split(properties::KEY_SEPARATOR);
        unique
            .into_iter()
            .chain(words.filter(|key| !key.is_empty()))
    }
}

/// The values of some properties in one pass; of equal names the last one counts.
fn last_of<'t, const N: usize>(text: &'t str, names: [&str; N]) -> [Option<&'t str>; N] {
    let mut values = [None; N];
    for (name, value) in properties::iter(text) {
        if let Some(at) = names.iter().position(|of| *of == name) {
            values[at] = Some(value);
        }
    }
    values
}

impl<'a> Batch<'a> {
    pub(crate) fn new() -> Batch<'a> {
        Batch {
            runs: Vec::new(),
            by_queue: HashMap::new(),
            arrivals: Vec::new(),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.arrivals.len() >= MESSAGES
    }

    /// Adds a message's unit to its queue's run. False, and nothing is added, if it does not follow
    /// the run that the batch has for the queue: it belongs into the next batch.
    ///
    /// `state` looks a queue up. A message whose record the queue passed already is left out.
    pub(crate) fn add(
        &mut self,
        message: &Message<'a>,
        state: impl FnOnce(&str, i32) -> (Arc<str>, QueueState),
    ) -> bool {
        if !message.queued {
            return true;
        }
        let at = match self.by_queue.entry((message.topic, message.queue_id)) {
            Entry::Occupied(at) => *at.get(),
            Entry::Vacant(vacant) => {
                let (topic, before) = state(message.topic, message.queue_id);
                if message.unit.end() <= before.end_phy {
                    return true;
                }
                vacant.insert(self.runs.len());
                let end_phy = before.end_phy;
                let first = message.queue_offset;
                self.runs.push(QueueRun {
                    topic,
                    before,
                    first,
                    first_phy: message.unit.phy,
                    units: Vec::new(),
                    end_phy,
                });
                self.runs.len() - 1
            }
        };
        let run = &mut self.runs[at];
        if run.next() != message.queue_offset {
            return false;
        }
        run.units.extend_from_slice(&message.unit.encode());
        run.end_phy = message.unit.end();
        self.arrivals.push(Arrival {
            topic: Arc::clone(&run.topic),
            queue_id: message.queue_id,
            next: message.queue_offset + 1,
            tags_code: message.unit.tags_code,
            store_timestamp: message.store_timestamp,
        });
        true
    }

    pub(crate) fn finish(self) -> (Vec<QueueRun>, Vec<Arrival>) {
        (self.runs, self.arrivals)
    }
}

impl QueueRun {
    pub(crate) fn next(&self) -> QueueOffset {
        self.first + (self.units.len() / UNIT_BYTES) as u64
    }

    /// Whether the queue begins anew below its end: the topic was deleted and made again, and of two
    /// records for one offset the later one counts.
    pub(crate) fn is_new_generation(&self) -> bool {
        self.first < self.before.next
    }

    /// The queue after the run, given what it is now.
    pub(crate) fn after(&self, now: QueueState) -> QueueState {
        let empty = self.before.end_phy == PhyOffset(0);
        let min = if empty {
            self.first
        } else {
            now.min.min(self.first)
        };
        QueueState {
            min,
            next: self.next(),
            end_phy: self.end_phy,
            ..now
        }
    }
}
