//! A counter that knows its last minute, hour and day (`StatsItem`, 4.9.8).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// A span of time over which counters are told.
pub(super) struct Span {
    /// How often it is sampled.
    pub(super) interval: Duration,
    /// How many samples it has.
    samples: usize,
}

/// The last minute, hour and day.
pub(super) const SPANS: [Span; 3] = [
    Span {
        interval: Duration::from_secs(10),
        samples: 6,
    },
    Span {
        interval: Duration::from_secs(600),
        samples: 6,
    },
    Span {
        interval: Duration::from_secs(3600),
        samples: 24,
    },
];
const DAY: usize = 2;

/// What is counted of one topic, of one group on one topic, or of the whole node.
pub(in crate::broker) struct Item {
    times: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    /// For each of the spans its samples, the oldest first; never empty.
    history: Mutex<[VecDeque<Sample>; SPANS.len()]>,
    /// Queue id → queue offset behind what was last pulled, where something is pulled.
    pulled: Mutex<BTreeMap<i32, i64>>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    times: u64,
    messages: u64,
    bytes: u64,
}

/// What happened within one span, up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker) struct Recent {
    pub(in crate::broker) times: u64,
    pub(in crate::broker) messages: u64,
    pub(in crate::broker) bytes: u64,
    /// The length of the span; what happened within less counts as if it had taken one interval.
    pub(in crate::broker) elapsed: Duration,
}

impl Item {
    pub(super) fn new(now: Instant) -> Self {
        let zero = Sample {
            at: now,
            times: 0,
            messages: 0,
            bytes: 0,
        };
        Self {
            times: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            history: Mutex::new(SPANS.map(|_| VecDeque::from([zero]))),
            pulled: Mutex::default(),
        }
    }

    /// Counts one request of so many messages.
    pub(super) fn add(&self, messages: u64, bytes: u64) {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn pulled(&self, queue_id: i32, next: i64) {
        self.pulls().insert(queue_id, next);
    }

    /// Queue offset behind what was last pulled from the queue.
    pub(in crate::broker) fn pulled_to(&self, queue_id: i32) -> Option<i64> {
        self.pulls().get(&queue_id).copied()
    }

    /// Forgets how far the queues were pulled.
    pub(super) fn forget_pulls(&self) {
        self.pulls().clear();
    }

    /// What happened in the last minute, hour and day.
    pub(in crate::broker) fn recent(&self, now: Instant) -> [Recent; SPANS.len()] {
        let current = self.now(now);
        let history = self.history();
        let mut recent = [Recent::default(); SPANS.len()];
        for ((recent, samples), span) in recent.iter_mut().zip(history.iter()).zip(&SPANS) {
            let first = samples[0];
            let elapsed = now.saturating_duration_since(first.at);
            *recent = Recent {
                times: current.times.saturating_sub(first.times),
                messages: current.messages.saturating_sub(first.messages),
                bytes: current.bytes.saturating_sub(first.bytes),
                elapsed: elapsed.max(span.interval),
            };
        }
        recent
    }

    /// Takes a sample of the span with this number.
    pub(super) fn sample(&self, span: usize, now: Instant) {
        let sample = self.now(now);
        let samples = &mut self.history()[span];
        if samples.len() == SPANS[span].samples {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Whether nothing has been counted for a day.
    pub(super) fn is_idle(&self) -> bool {
        let samples = &self.history()[DAY];
        samples.len() == SPANS[DAY].samples
            && samples[0].times == self.times.load(Ordering::Relaxed)
    }

    fn now(&self, at: Instant) -> Sample {
        Sample {
            at,
            times: self.times.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn history(&self) -> MutexGuard<'_, [VecDeque<Sample>; SPANS.len()]> {
        self.history.lock().expect("no panic under this lock")
    }

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        self.pulled.lock().expect("no panic under this lock")
    }
}

impl Recent {
    /// Messages per second.
    pub(in crate::broker) fn message_rate(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }
}
