//! What is known of every queue: a few words each, in one table.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{PhyOffset, QueueOffset};

/// The words of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueState {
    pub(crate) queue_id: i32,
    /// First unit whose record is in the log; `next` if there is none.
    pub(crate) min: QueueOffset,
    /// Behind the last unit.
    pub(crate) next: QueueOffset,
    /// Behind the record of the last unit; 0 while there is no unit.
    pub(crate) end_phy: PhyOffset,
    /// Behind the last committed message. Below `next` only while the dispatcher has not reached a
    /// later generation of the queue yet.
    pub(crate) committed: QueueOffset,
}

/// All queues, and a digest of their ends.
///
/// The digest tells after a restart whether any queue has lost units below the dispatched position
/// or vanished altogether, which the queues that are left cannot show.
#[derive(Clone, Default)]
pub(crate) struct Table {
    topics: HashMap<Arc<str>, Vec<QueueState>>,
    digest: u64,
}

impl Table {
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn get(&self, topic: &str, queue_id: i32) -> Option<(&Arc<str>, QueueState)> {
        let (topic, queues) = self.topics.get_key_value(topic)?;
        let at = queues
            .binary_search_by_key(&queue_id, |queue| queue.queue_id)
            .ok()?;
        Some((topic, queues[at]))
    }

    /// The queue's state, made with nothing in it if it is not there yet.
    pub(crate) fn get_or_insert(&mut self, topic: &str, queue_id: i32) -> (Arc<str>, QueueState) {
        if let Some((topic, state)) = self.get(topic, queue_id) {
            return (Arc::clone(topic), state);
        }
        let topic = self.name_of(topic);
        let state = QueueState {
            queue_id,
            min: QueueOffset(0),
            next: QueueOffset(0),
            end_phy: PhyOffset(0),
            committed: QueueOffset(0),
        };
        self.put(&topic, state);
        (topic, state)
    }

    /// A topic's name, shared with its queues if it has some.
    pub(crate) fn name_of(&self, topic: &str) -> Arc<str> {
        match self.topics.get_key_value(topic) {
            Some((topic, _)) => Arc::clone(topic),
            None => Arc::from(topic),
        }
    }

    /// Replaces the state of a queue.
    pub(crate) fn put(&mut self, topic: &Arc<str>, state: QueueState) {
        let queues = match self.topics.get_mut(topic) {
            Some(queues) => queues,
            None => self.topics.entry(Arc::clone(topic)).or_default(),
        };
        match queues.binary_search_by_key(&state.queue_id, |queue| queue.queue_id) {
            Ok(at) => {
                let old = std::mem::replace(&mut queues[at], state);
                self.digest = self.digest.wrapping_sub(end_digest(topic, &old));
            }
            Err(at) => queues.insert(at, state),
        }
        self.digest = self.digest.wrapping_add(end_digest(topic, &state));
    }

    /// Takes everything that was dispatched for all that is committed.
    pub(crate) fn commit_all(&mut self) {
        for state in self.topics.values_mut().flatten() {
            state.committed = state.next;
        }
    }

    /// Takes at least everything that was dispatched for committed.
    pub(crate) fn commit_at_least_dispatched(&mut self) {
        for state in self.topics.values_mut().flatten() {
            state.committed = state.committed.max(state.next);
        }
    }

    pub(crate) fn queue_ids(&self, topic: &str) -> Vec<i32> {
        let queues = self
            .topics
            .get(topic)
            .map(Vec::as_slice)
            .unwrap_or_default();
        queues.iter().map(|queue| queue.queue_id).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &QueueState)> {
        self.topics
            .iter()
            .flat_map(|(topic, queues)| queues.iter().map(move |queue| (topic, queue)))
    }

    /// A copy, for what takes too long to do while others wait for the table.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, QueueState)> {
        self.iter()
            .map(|(topic, state)| (Arc::clone(topic), *state))
            .collect()
    }
}

/// One queue's share of the digest: FNV-1a, mixed so that the sum of the shares is not weak. A queue
/// without units has none, for nothing of it need be on disk.
fn end_digest(topic: &str, state: &QueueState) -> u64 {
    if state.end_phy == PhyOffset(0) {
        return 0;
    }
    let numbers = [state.next.0.to_be_bytes(), state.end_phy.0.to_be_bytes()];
    let bytes = topic
        .bytes()
        .chain(state.queue_id.to_be_bytes())
        .chain(numbers.into_iter().flatten());
    let mut hash = fnv_1a(bytes);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// FNV-1a of 64 bits.
pub(crate) fn fnv_1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(queue_id: i32, next: u64) -> QueueState {
        QueueState {
            queue_id,
            min: QueueOffset(0),
            next: QueueOffset(next),
            end_phy: PhyOffset(next * 100),
            committed: QueueOffset(next),
        }
    }

    #[test]
    fn digest_depends_on_the_ends_and_not_on_the_order() {
        let (a, b): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        let mut one = Table::default();
        one.put(&a, state(0, 1));
        one.put(&a, state(0, 7));
        one.put(&b, state(3, 2));
        one.get_or_insert("c", 0);
        let mut other = Table::default();
        other.put(&b, state(3, 2));
        other.put(&a, state(0, 7));
        assert_eq!(one.digest(), other.digest());
        other.put(&a, state(0, 6));
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn queues_are_found_by_topic_and_id() {
        let mut table = Table::default();
        let topic: Arc<str> = Arc::from("t");
        for queue_id in [5, 1, 3] {
            table.put(&topic, state(queue_id, 9));
        }
        assert_eq!(table.queue_ids("t"), [1, 3, 5]);
        assert_eq!(table.get("t", 3).map(|(_, queue)| queue), Some(state(3, 9)));
        assert!(table.get("t", 2).is_none() && table.get("u", 1).is_none());
        assert_eq!(table.iter().count(), 3);
        assert!(table.queue_ids("u").is_empty());
    }
}
