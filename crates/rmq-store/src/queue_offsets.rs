//! The next offset of each queue, at the end of the log as appended.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{PendingRecord, QueueOffset, Run};

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    next: QueueOffset,
    /// The batch that took offsets last, and the place of its run.
    batch: u64,
    run: usize,
}

/// Table of the queue offsets that sealing gives out.
///
/// It follows what is appended, not what is committed, and so it is taken back when the log is cut.
#[derive(Debug, Default)]
pub(crate) struct QueueOffsets {
    topics: HashMap<Arc<str>, HashMap<i32, Slot>>,
    batch: u64,
    /// A queue that is not here may have messages.
    partial: bool,
}

impl QueueOffsets {
    /// Says whether there are queues that are not known yet. Nothing can be sealed while there are.
    pub(crate) fn set_partial(&mut self, partial: bool) {
        self.partial = partial;
    }

    fn slot(&mut self, topic: &Arc<str>, queue_id: i32) -> &mut Slot {
        // Not `entry`, which would want a clone of the name each time.
        if !self.topics.contains_key(topic) {
            self.topics.insert(Arc::clone(topic), HashMap::new());
        }
        let queues = self
            .topics
            .get_mut(topic)
            .expect("was put there if it was not");
        queues.entry(queue_id).or_default()
    }

    /// The next offset of a queue.
    pub(crate) fn next(&self, topic: &str, queue_id: i32) -> QueueOffset {
        let slot = self
            .topics
            .get(topic)
            .and_then(|queues| queues.get(&queue_id));
        slot.map_or(QueueOffset(0), |slot| slot.next)
    }

    /// Raises the next offset of a queue to at least this.
    pub(crate) fn raise(&mut self, topic: &Arc<str>, queue_id: i32, next: QueueOffset) {
        let slot = self.slot(topic, queue_id);
        slot.next = slot.next.max(next);
    }

    /// Sets the next offset of a queue that has none.
    pub(crate) fn add(&mut self, topic: &Arc<str>, queue_id: i32, next: QueueOffset) {
        if self
            .topics
            .get(topic)
            .is_none_or(|queues| !queues.contains_key(&queue_id))
        {
            self.slot(topic, queue_id).next = next;
        }
    }

    /// Gives offsets to a batch: one for each record in its order, and what was taken, queue by
    /// queue. A record that takes none is told 0.
    pub(crate) fn take(&mut self, records: &[PendingRecord]) -> (Vec<QueueOffset>, Vec<Run>) {
        self.batch += 1;
        let batch = self.batch;
        let mut runs: Vec<Run> = Vec::new();
        let mut offsets = Vec::with_capacity(records.len());
        for record in records {
            if !record.queued {
                offsets.push(QueueOffset(0));
                continue;
            }
            let slot = self.slot(&record.topic, record.queue_id);
            if slot.batch != batch {
                slot.batch = batch;
                slot.run = runs.len();
                runs.push(Run {
                    topic: Arc::clone(&record.topic),
                    queue_id: record.queue_id,
                    first: slot.next,
                    count: 0,
                });
            }
            runs[slot.run].count += 1;
            offsets.push(slot.next);
            slot.next = slot.next + 1;
        }
        (offsets, runs)
    }

    /// Follows an entry that another node sealed. Returns the first run that does not start at its
    /// queue's next offset, having changed nothing then.
    pub(crate) fn follow<'a>(&mut self, runs: &'a [Run]) -> Result<(), &'a Run> {
        if let Some(run) = runs
            .iter()
            .find(|r| !self.is_next(&r.topic, r.queue_id, r.first))
        {
            return Err(run);
        }
        for run in runs {
            self.slot(&run.topic, run.queue_id).next = run.next();
        }
        Ok(())
    }

    fn is_next(&self, topic: &str, queue_id: i32, first: QueueOffset) -> bool {
        let queues = self.topics.get(topic);
        match queues.and_then(|queues| queues.get(&queue_id)) {
            Some(slot) => slot.next == first,
            None => self.partial || first == QueueOffset(0),
        }
    }

    /// Takes back an entry. Entries are taken back from the last one on.
    pub(crate) fn undo(&mut self, runs: &[Run]) {
        for run in runs {
            self.slot(&run.topic, run.queue_id).next = run.first;
        }
    }
}
