//! Counters by name: of topics, and of groups on topics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::time::Instant;

use super::window::{Item, SPANS};

/// The key of a group on a topic (`BrokerStatsManager.buildStatsKey`).
pub(super) fn of_group(topic: &str, group: &str) -> String {
    format!("{topic}@{group}")
}

pub(in crate::broker) struct Items {
    pub(in crate::broker) broker_puts: Item,
    pub(in crate::broker) broker_gets: Item,
    /// By topic.
    pub(in crate::broker) topic_puts: Table,
    /// By `topic@group`.
    pub(in crate::broker) group_gets: Table,
    /// By `topic@group`.
    pub(in crate::broker) send_backs: Table,
    /// When each of the spans was last sampled.
    sampled: Mutex<[Instant; SPANS.len()]>,
}

/// Counters of one kind. One that nothing was added to for a day is forgotten.
#[derive(Default)]
pub(in crate::broker) struct Table(RwLock<HashMap<Box<str>, Arc<Item>>>);

impl Items {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            broker_puts: Item::new(now),
            broker_gets: Item::new(now),
            topic_puts: Table::default(),
            group_gets: Table::default(),
            send_backs: Table::default(),
            sampled: Mutex::new([now; SPANS.len()]),
        }
    }

    /// What a group has lately got of a topic.
    pub(in crate::broker) fn of_group(&self, topic: &str, group: &str) -> Option<Arc<Item>> {
        self.group_gets.get(&of_group(topic, group))
    }

    /// Forgets how far a group has pulled a topic, for it was told to go elsewhere.
    pub(in crate::broker) fn forget_pulls(&self, topic: &str, group: &str) {
        if let Some(item) = self.of_group(topic, group) {
            item.forget_pulls();
        }
    }

    /// Samples the spans that are due.
    pub(super) fn sample(&self, now: Instant) {
        let mut sampled = self.sampled.lock().expect("no panic under this lock");
        for (span, sampled) in sampled.iter_mut().enumerate() {
            if now.saturating_duration_since(*sampled) < SPANS[span].interval {
                continue;
            }
            *sampled = now;
            for item in [&self.broker_puts, &self.broker_gets] {
                item.sample(span, now);
            }
            for table in [&self.topic_puts, &self.group_gets, &self.send_backs] {
                table.sample(span, now);
            }
        }
    }
}

impl Table {
    /// Counts one request of so many messages, and gives what it counted with.
    pub(super) fn add(&self, key: &str, messages: u64, bytes: u64, now: Instant) -> Arc<Item> {
        let item = self.get(key).unwrap_or_else(|| {
            let mut items = self.0.write().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Item::new(now));
            Arc::clone(items.entry(key.into()).or_insert_with(new))
        });
        item.add(messages, bytes);
        item
    }

    pub(in crate::broker) fn get(&self, key: &str) -> Option<Arc<Item>> {
        let items = self.0.read().unwrap_or_else(PoisonError::into_inner);
        items.get(key).map(Arc::clone)
    }

    fn sample(&self, span: usize, now: Instant) {
        let mut is_any_idle = false;
        // Sends count meanwhile, and there may be very many items.
        for item in self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            item.sample(span, now);
            is_any_idle |= item.is_idle();
        }
        if is_any_idle {
            let mut items = self.0.write().unwrap_or_else(PoisonError::into_inner);
            items.retain(|_, item| !item.is_idle());
        }
    }
}
