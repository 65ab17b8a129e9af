//! Queues that are built while the node already takes part in its group: from a log that came from
//! another node, or after they were lost.
//!
//! Of a log from another node it is known from the start where all queues end, as the sender said:
//! what is missing below is told as late, not as absent. Until all is there the node must not lead, for
//! it can answer little, and of queues that were lost it cannot tell which offset is next.

use std::io;
use std::sync::{Arc, PoisonError};

use tracing::error;

use super::Queues;
use crate::consume_queue::{Slot, Table};
use crate::damage::Damage;
use crate::dispatch::DispatchError;
use crate::transfer::{QueueEnd, forget_installed};
use crate::types::{PhyOffset, QueueOffset};

impl Queues {
    /// Whether everything that was committed when the store was opened is in the queues and the
    /// index.
    pub fn is_built(&self) -> bool {
        self.shared().built_at.is_none()
    }

    /// Has dispatch go on behind damage before which it stands still, because nobody has what belongs there. The messages
    /// of that part are in no queue; where the next one of a queue follows, there is a gap.
    pub fn pass_over(&self, damage: &Damage) {
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        let end = damage.end.min(self.log.confirm_offset());
        let mut shared = self.shared();
        if damage.start <= shared.dispatched && shared.dispatched < end {
            error!(%damage, "its messages stay out of their queues");
            shared.dispatched = end;
            shared.failure = None;
            self.progress.notify_all();
        }
    }

    /// Whether it is known where queues end, be they built or not.
    pub(crate) fn knows_ends(&self) -> bool {
        self.seeds.is_some() || self.is_built()
    }

    /// Queues as they are at a position of the log, for the log to go on from there.
    pub(crate) fn seeds(&self) -> (Vec<(Arc<str>, i32, QueueOffset)>, PhyOffset) {
        match &self.seeds {
            Some((ends, at)) => {
                let end = |end: &QueueEnd| (Arc::clone(&end.topic), end.queue_id, end.next);
                (ends.iter().map(end).collect(), *at)
            }
            None => {
                let built_at = self.shared().built_at;
                match built_at {
                    // Only the log knows, and what is older is told once it is built.
                    Some(at) => (Vec::new(), at),
                    None => {
                        let dispatched = self.dispatched();
                        (self.maxima(), dispatched)
                    }
                }
            }
        }
    }

    /// Where every queue ends that has a committed message.
    pub fn ends(&self) -> Vec<(Arc<str>, i32, QueueOffset)> {
        let shared = self.shared();
        let ends = shared
            .table
            .iter()
            .map(|(topic, state)| (Arc::clone(topic), state.queue_id, state.committed));
        ends.filter(|(_, _, next)| *next > QueueOffset(0)).collect()
    }

    /// The same for another node, whose log will start at `start`.
    ///
    /// # Errors
    /// The disk's.
    pub fn ends_for(
        &self,
        ends: &[(Arc<str>, i32, QueueOffset)],
        start: PhyOffset,
    ) -> io::Result<Vec<QueueEnd>> {
        let end = |(topic, queue_id, next): &(Arc<str>, i32, QueueOffset)| {
            let last = QueueOffset(next.0 - 1);
            let gone = match self.files.slot(topic, *queue_id, last)? {
                Slot::Message(unit) if unit.end() <= start => Some(unit),
                _ => None,
            };
            Ok(QueueEnd {
                topic: Arc::clone(topic),
                queue_id: *queue_id,
                next: *next,
                gone,
            })
        };
        ends.iter().map(end).collect()
    }

    /// Ends the building once all is there. Called after each batch.
    pub(super) fn note_built(&self) -> Result<(), DispatchError> {
        let at = {
            let shared = self.shared();
            match shared.built_at {
                Some(at) if shared.dispatched >= at => at,
                _ => return Ok(()),
            }
        };
        let forgotten = || {
            self.flush(false)?;
            forget_installed(&self.root, &self.disk)
        };
        forgotten().map_err(|source| DispatchError::Io { at, source })?;
        let mut shared = self.shared();
        shared.table.commit_at_least_dispatched();
        shared.built_at = None;
        tracing::info!(dispatched = %shared.dispatched, "consume queues and index are built");
        drop(shared);
        self.progress.notify_all();
        Ok(())
    }
}

/// Notes where queues end that are to be built.
pub(super) fn expect(table: &mut Table, ends: &[QueueEnd]) {
    for end in ends {
        let (topic, mut state) = table.get_or_insert(&end.topic, end.queue_id);
        state.committed = state.committed.max(end.next);
        table.put(&topic, state);
    }
}
