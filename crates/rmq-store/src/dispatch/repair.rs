//! Filling a hole in a consume queue from the log.
//!
//! A unit below a queue's end that reads as zeros was lost behind our back: a file was removed, or
//! the disk forgot a page. The queue's neighbouring units say where in the log its record lies.

use std::sync::Arc;

use rmq_wire::record::{Peek, peek};

use super::CommittedLog;
use super::batch::Message;
use crate::consume_queue::Unit;
use crate::delay::DelayLevels;
use crate::types::{PhyOffset, QueueOffset};

/// A hole, as a read met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) topic: Arc<str>,
    pub(crate) queue_id: i32,
    pub(crate) at: QueueOffset,
}

/// Calls `each` with the units that the log has for a queue between two positions.
pub(crate) fn find_units(
    log: &dyn CommittedLog,
    levels: &DelayLevels,
    (topic, queue_id): (&str, i32),
    from: PhyOffset,
    to: PhyOffset,
    mut each: impl FnMut(QueueOffset, Unit),
) {
    let mut at = from.max(log.min_offset());
    while at < to {
        let Some(bytes) = log.committed_from(at) else {
            return;
        };
        let mut done = 0;
        while done < bytes.len() && at + (done as u64) < to {
            match peek(&bytes[done..]) {
                Peek::Record { size } if size <= bytes.len() - done => {
                    let record = &bytes[done..done + size];
                    if let Some(message) = Message::read(record, at + done as u64, levels)
                        && message.queued
                        && message.topic == topic
                        && message.queue_id == queue_id
                    {
                        each(message.queue_offset, message.unit);
                    }
                    done += size;
                }
                Peek::Blank { .. } => done = bytes.len(),
                _ => return,
            }
        }
        if done == 0 {
            return;
        }
        at = at + done as u64;
    }
}
