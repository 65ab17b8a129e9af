//! What this node has done since it started, for those who watch it: totals and rates, how long
//! puts take, and the same by topic and by group. Nothing of it is replicated or survives the
//! process, as in Java (`StoreStatsService`, `BrokerStats`, `BrokerStatsManager`, 4.9.8).
//!
//! - `totals`: the node as a whole; `latency`: how long puts took
//! - `items`: one topic, one group on one topic; `window`: their last minute, hour and day
//!
//! What is counted is what this node did itself: a leader counts what it stored for its clients, a
//! follower that copies the log counts nothing.

mod items;
mod latency;
mod totals;
mod window;

use std::sync::Arc;
use std::time::Duration;

use rmq_store::PendingRecord;
use tokio::time::Instant;

pub(super) use items::Items;
pub(super) use latency::Latency;
pub(super) use totals::Totals;
pub(super) use window::Recent;

use super::Broker;

/// How often the totals are sampled (`StoreStatsService.FREQUENCY_OF_SAMPLING`).
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// All counters of a node.
pub(super) struct Stats {
    /// Unix milliseconds of the start.
    pub(super) boot_ms: i64,
    pub(super) totals: totals::Counters,
    pub(super) put_times: Latency,
    pub(super) items: Items,
}

/// A put under way.
pub(super) struct Put {
    begun: Instant,
    bytes: u64,
    messages: u64,
    /// Topic, messages, bytes of the records that follow each other.
    runs: Vec<(Arc<str>, u64, u64)>,
}

/// Messages that a consumer was given.
pub(super) struct Got<'a> {
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    pub(super) queue_id: i32,
    /// Queue offset behind them.
    pub(super) next: i64,
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Stats {
    /// `boot_ms` is the time of the start in Unix milliseconds.
    pub(super) fn new(boot_ms: i64) -> Self {
        let now = Instant::now();
        Self {
            boot_ms,
            totals: totals::Counters::new(now, boot_ms),
            put_times: Latency::new(now),
            items: Items::new(now),
        }
    }

    /// Takes note of what is about to be stored.
    pub(super) fn begin_put(records: &[PendingRecord]) -> Put {
        let mut put = Put {
            begun: Instant::now(),
            bytes: 0,
            messages: 0,
            runs: Vec::with_capacity(1),
        };
        for record in records {
            let bytes = record.buf.len() as u64;
            put.bytes += bytes;
            put.messages += 1;
            match put.runs.last_mut() {
                Some(last) if *last.0 == *record.topic => {
                    last.1 += 1;
                    last.2 += bytes;
                }
                _ => put.runs.push((Arc::clone(&record.topic), 1, bytes)),
            }
        }
        put
    }

    /// Counts a put that has succeeded, or has not.
    pub(super) fn end_put(&self, put: &Put, stored: bool) {
        if !stored {
            self.totals.put_failed();
            return;
        }
        let now = Instant::now();
        self.put_times
            .record(now.saturating_duration_since(put.begun));
        self.totals.put(put.messages, put.bytes);
        self.items.broker_puts.add(put.messages, put.bytes);
        for (topic, messages, bytes) in &put.runs {
            self.items.topic_puts.add(topic, *messages, *bytes, now);
        }
    }

    /// Counts a look into a queue that found messages, and what of them went to the consumer.
    pub(super) fn got(&self, got: &Got<'_>, took: Duration) {
        let (messages, bytes) = (got.messages as u64, got.bytes as u64);
        self.totals.got(messages, took);
        self.items.broker_gets.add(messages, bytes);
        let key = items::of_group(got.topic, got.group);
        let item = self
            .items
            .group_gets
            .add(&key, messages, bytes, Instant::now());
        item.pulled(got.queue_id, got.next);
    }

    /// Counts a look into a queue that found nothing.
    pub(super) fn missed(&self, took: Duration) {
        self.totals.missed(took);
    }

    /// Counts a message that a consumer sent back.
    pub(super) fn sent_back(&self, group: &str, topic: &str) {
        let key = items::of_group(topic, group);
        self.items.send_backs.add(&key, 1, 0, Instant::now());
    }

    fn sample(&self, now: Instant, now_ms: i64) {
        self.totals.sample(now, now_ms);
        self.put_times.rotate(now);
        self.items.sample(now);
    }
}

/// Samples, for ever.
pub(super) async fn run(broker: &Broker) {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        broker.stats.sample(now, broker.now_ms());
    }
}

#[cfg(test)]
mod tests;
