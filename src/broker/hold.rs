//! Pulls that wait for messages: who waits on which queue, and how they are woken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::filter::TagFilter;

/// All waiting pulls of this node.
#[derive(Default)]
pub(super) struct Holds {
    queues: Mutex<Queues>,
    /// Waiters in `queues`: with none, an arrival costs one load.
    count: AtomicUsize,
    /// The number of the next one.
    next: AtomicU64,
}

/// topic → queue id → who waits, by number.
type Queues = HashMap<Arc<str>, HashMap<i32, HashMap<u64, Waiter>>>;

struct Waiter {
    /// The queue offset that is asked for.
    offset: i64,
    filter: Arc<TagFilter>,
    woken: Arc<Notify>,
}

/// A place among the waiters, until it is dropped.
pub(super) struct Hold<'a> {
    holds: &'a Holds,
    topic: Arc<str>,
    queue_id: i32,
    number: u64,
    woken: Arc<Notify>,
}

impl Holds {
    /// Waits, from this call on, for messages at or behind `offset` that match.
    ///
    /// A message that arrived before is not noticed: look at the queue after this call.
    pub(super) fn enter(
        &self,
        topic: &str,
        queue_id: i32,
        offset: i64,
        filter: Arc<TagFilter>,
    ) -> Hold<'_> {
        let topic: Arc<str> = topic.into();
        let woken = Arc::new(Notify::new());
        let waiter = Waiter {
            offset,
            filter,
            woken: Arc::clone(&woken),
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut queues = self.lock();
        queues
            .entry(Arc::clone(&topic))
            .or_default()
            .entry(queue_id)
            .or_default()
            .insert(number, waiter);
        // Under the lock, so that the count is never below what is in the map.
        self.count.fetch_add(1, Ordering::SeqCst);
        drop(queues);
        Hold {
            holds: self,
            topic,
            queue_id,
            number,
            woken,
        }
    }

    /// A message with this tags code can be read; `next` is the queue offset behind it.
    pub(super) fn arrived(&self, topic: &str, queue_id: i32, next: i64, tags_code: i64) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let queues = self.lock();
        let waiters = queues.get(topic).and_then(|queues| queues.get(&queue_id));
        for waiter in waiters.into_iter().flat_map(HashMap::values) {
            if next > waiter.offset && waiter.filter.matches(tags_code) {
                waiter.woken.notify_one();
            }
        }
    }

    /// Wakes everybody, because this node's role has changed.
    pub(super) fn wake_all(&self) {
        let queues = self.lock();
        let waiters = queues.values().flat_map(HashMap::values);
        for waiter in waiters.flat_map(HashMap::values) {
            waiter.woken.notify_one();
        }
    }

    /// Whether no pull waits.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Pulls that wait now.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().expect("no panic under this lock")
    }
}

impl Hold<'_> {
    /// Resolves once woken, at once if that has happened since the last call.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut queues = self.holds.lock();
        let Some(of_topic) = queues.get_mut(&self.topic) else {
            return;
        };
        let Some(waiters) = of_topic.get_mut(&self.queue_id) else {
            return;
        };
        waiters.remove(&self.number);
        if waiters.is_empty() {
            of_topic.remove(&self.queue_id);
        }
        if of_topic.is_empty() {
            queues.remove(&self.topic);
        }
        self.holds.count.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn is_woken(hold: &Hold<'_>) -> bool {
        tokio::time::timeout(Duration::from_millis(1), hold.woken())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_wakes_for_what_it_asked_for() {
        let holds = Holds::default();
        let filter = Arc::new(TagFilter::parse(Some("A")));
        let hold = holds.enter("T", 1, 5, filter);
        let a = rmq_wire::record::tags_code("A");
        holds.arrived("T", 1, 5, a);
        holds.arrived("T", 2, 6, a);
        holds.arrived("U", 1, 6, a);
        holds.arrived("T", 1, 6, 0);
        assert!(!is_woken(&hold).await);
        holds.arrived("T", 1, 6, a);
        assert!(is_woken(&hold).await);
        assert!(!is_woken(&hold).await, "once for one arrival");
        holds.wake_all();
        assert!(is_woken(&hold).await);
    }

    #[test]
    fn those_who_left_leave_nothing_behind() {
        let holds = Holds::default();
        let one = holds.enter("T", 0, 0, Arc::new(TagFilter::All));
        let two = holds.enter("T", 0, 0, Arc::new(TagFilter::All));
        assert_eq!(holds.len(), 2);
        drop(one);
        assert_eq!(holds.len(), 1);
        drop(two);
        assert_eq!(holds.len(), 0);
        assert!(holds.lock().is_empty());
    }
}
