//! After old segments were removed: the units and index entries that point into them go too, as far
//! as whole files hold nothing else (Java's `CleanConsumeQueueService`).

use std::io;
use std::sync::{Arc, PoisonError};

use super::Queues;
use crate::consume_queue::{Slot, first_unit_from};
use crate::types::PhyOffset;

/// What an expiry has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) consume_queue_files: usize,
    pub(crate) index_files: usize,
}

impl Queues {
    /// Moves the minimum of each queue to its first unit at `min` or beyond, and removes the files
    /// before it. A queue's last file stays, whatever is in it: it knows where the queue goes on.
    pub(crate) fn expire(&self, min: PhyOffset) -> io::Result<Expired> {
        let queues: Vec<(Arc<str>, i32)> = {
            let shared = self.shared();
            let all = shared.table.iter();
            all.map(|(topic, state)| (Arc::clone(topic), state.queue_id))
                .collect()
        };
        let mut expired = Expired::default();
        for (topic, queue_id) in queues {
            expired.consume_queue_files += self.expire_queue(&topic, queue_id, min)?;
        }
        self.shared().expired_to = min;
        expired.index_files = self.index().expire(min)?;
        Ok(expired)
    }

    fn expire_queue(&self, topic: &Arc<str>, queue_id: i32, min: PhyOffset) -> io::Result<usize> {
        // Nothing is dispatched meanwhile: a queue that begins anew would get back its old minimum.
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .shared()
            .table
            .get(topic, queue_id)
            .map(|(_, state)| state);
        let Some(state) = state.filter(|state| state.end_phy > PhyOffset(0)) else {
            return Ok(0);
        };
        let first_is_there = state.min < state.next
            && match self.files.slot(topic, queue_id, state.min)? {
                Slot::Message(unit) => unit.phy >= min,
                Slot::Blank | Slot::Empty => false,
            };
        if first_is_there {
            return Ok(0);
        }
        let starts = self.files.starts(topic, queue_id)?;
        let first = first_unit_from(&self.files, topic, queue_id, &starts, state.next, min)?;
        if first > state.min {
            let mut shared = self.shared();
            if let Some((topic, mut now)) = shared
                .table
                .get(topic, queue_id)
                .map(|(topic, now)| (Arc::clone(topic), now))
            {
                now.min = first;
                shared.table.put(&topic, now);
            }
        }
        let mut removed = 0;
        for (start, next) in starts.iter().zip(starts.iter().skip(1)) {
            if *next > first {
                break;
            }
            self.files.remove_file(topic, queue_id, *start)?;
            removed += 1;
        }
        Ok(removed)
    }
}
