//! Filling a hole in a consume queue from the log.
//!
//! A unit below a queue's end that reads as zeros, or that points to something else than its message,
//! was lost behind our back: a file was removed, or the disk forgot a page. The units next to it that
//! are right say where in the log the record lies.

use std::io;
use std::sync::{Arc, PoisonError};

use rmq_wire::record::{Peek, peek};
use tracing::{error, warn};

use super::read::Lookup;
use super::{Queues, Shared};
use crate::consume_queue::{BLANK, Slot, UNIT_BYTES, Unit};
use crate::dispatch::Message;
use crate::types::{PhyOffset, QueueOffset};

/// A hole, as a read met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) topic: Arc<str>,
    pub(super) queue_id: i32,
    pub(super) at: QueueOffset,
}

impl Queues {
    /// Writes the units again from a hole on to the next unit that is right.
    pub(super) fn repair(&self, hole: &Hole) {
        let result = self.fill_hole(hole);
        let mut shared = self.shared();
        shared.holes.retain(|other| other != hole);
        drop(shared);
        self.progress.notify_all();
        let Hole {
            topic,
            queue_id,
            at,
        } = hole;
        match result {
            Ok(units) => {
                warn!(%topic, queue_id, %at, units, "lost consume queue units are written again");
            }
            Err(e) => {
                error!(%topic, queue_id, %at, error = %e, "a lost consume queue unit stays lost");
            }
        }
    }

    fn fill_hole(&self, hole: &Hole) -> io::Result<usize> {
        let Hole {
            topic,
            queue_id,
            at,
        } = hole;
        let state = |shared: &Shared| shared.table.get(topic, *queue_id).map(|(_, state)| state);
        let Some(before) = state(&self.shared()).filter(|state| *at < state.next) else {
            return Ok(0);
        };
        let (first, from) = match self.first_right(hole, (before.min.0..at.0).rev())? {
            Some((offset, unit)) => (offset + 1, unit.end()),
            None => (before.min.min(*at), PhyOffset(0)),
        };
        let (end, to) = match self.first_right(hole, at.0 + 1..before.next.0)? {
            Some((offset, unit)) => (offset, unit.phy),
            None => (before.next, before.end_phy),
        };
        let count = usize::try_from(end.0 - first.0).map_err(io::Error::other)?;
        // What the log does not have either is passed over from now on.
        let mut units = BLANK.repeat(count);
        self.each_unit(hole, from, to, |offset, unit| {
            let at = offset
                .0
                .checked_sub(first.0)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(at) = at.filter(|at| *at < count) {
                units[at * UNIT_BYTES..][..UNIT_BYTES].copy_from_slice(&unit.encode());
            }
        })?;
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        // Otherwise the queue has begun anew meanwhile.
        if state(&self.shared()).is_some_and(|now| now.next >= before.next) {
            self.files.write(topic, *queue_id, first, &units)?;
        }
        Ok(count)
    }

    /// The first of these offsets of the hole's queue whose unit is right.
    fn first_right(
        &self,
        hole: &Hole,
        offsets: impl Iterator<Item = u64>,
    ) -> io::Result<Option<(QueueOffset, Unit)>> {
        for offset in offsets {
            let offset = QueueOffset(offset);
            if let Slot::Message(unit) = self.files.slot(&hole.topic, hole.queue_id, offset)?
                && !matches!(self.look_up(&unit, hole.queue_id, offset), Lookup::Wrong)
            {
                return Ok(Some((offset, unit)));
            }
        }
        Ok(None)
    }

    /// Calls `each` with the units that the log has for the hole's queue between two positions.
    ///
    /// # Errors
    /// If not all of it could be read.
    fn each_unit(
        &self,
        hole: &Hole,
        from: PhyOffset,
        to: PhyOffset,
        mut each: impl FnMut(QueueOffset, Unit),
    ) -> io::Result<()> {
        let mut at = from.max(self.log.min_offset());
        while at < to {
            let unreadable = || io::Error::other(format!("the log cannot be read at {at}"));
            let bytes = self.log.committed_from(at, to).ok_or_else(unreadable)?;
            let damage = self.log.check_records(at, bytes.len() as u64);
            damage.map_err(io::Error::other)?;
            let mut done = 0;
            while done < bytes.len() && at + (done as u64) < to {
                match peek(&bytes[done..]) {
                    Peek::Record { size } if size <= bytes.len() - done => {
                        let record = &bytes[done..done + size];
                        if let Some(message) = Message::read(record, at + done as u64, &self.levels)
                            && message.queued
                            && message.topic == &*hole.topic
                            && message.queue_id == hole.queue_id
                        {
                            each(message.queue_offset, message.unit);
                        }
                        done += size;
                    }
                    Peek::Blank { .. } => done = bytes.len(),
                    _ => return Err(unreadable()),
                }
            }
            at = at + done as u64;
        }
        Ok(())
    }
}
