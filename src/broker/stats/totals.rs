//! The node as a whole: what it did since its start, how fast, and since which midnight.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// Longest time over which a rate is told, and so how many samples are kept, one a second.
const KEPT: usize = 600;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Numbers that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker) struct Totals {
    pub(in crate::broker) put_messages: u64,
    pub(in crate::broker) put_bytes: u64,
    /// Puts, not messages.
    pub(in crate::broker) puts_failed: u64,
    /// Looks into a queue.
    pub(in crate::broker) gets_found: u64,
    pub(in crate::broker) gets_missed: u64,
    pub(in crate::broker) got_messages: u64,
}

/// What had been put and got at some midnight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::broker) struct Mark {
    pub(in crate::broker) put: u64,
    pub(in crate::broker) got: u64,
}

pub(in crate::broker) struct Counters {
    put_messages: AtomicU64,
    put_bytes: AtomicU64,
    puts_failed: AtomicU64,
    gets_found: AtomicU64,
    gets_missed: AtomicU64,
    got_messages: AtomicU64,
    longest_get_ms: AtomicU64,
    history: Mutex<History>,
}

struct History {
    /// One a second, the oldest first; never empty.
    samples: VecDeque<(Instant, Totals)>,
    /// Days since 1970, in UTC.
    day: i64,
    this_morning: Mark,
    yesterday_morning: Mark,
}

impl Counters {
    pub(super) fn new(now: Instant, now_ms: i64) -> Self {
        Self {
            put_messages: AtomicU64::new(0),
            put_bytes: AtomicU64::new(0),
            puts_failed: AtomicU64::new(0),
            gets_found: AtomicU64::new(0),
            gets_missed: AtomicU64::new(0),
            got_messages: AtomicU64::new(0),
            longest_get_ms: AtomicU64::new(0),
            history: Mutex::new(History {
                samples: VecDeque::from([(now, Totals::default())]),
                day: now_ms.div_euclid(DAY_MS),
                this_morning: Mark::default(),
                yesterday_morning: Mark::default(),
            }),
        }
    }

    pub(super) fn put(&self, messages: u64, bytes: u64) {
        self.put_messages.fetch_add(messages, Ordering::Relaxed);
        self.put_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn put_failed(&self) {
        self.puts_failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn got(&self, messages: u64, took: Duration) {
        self.gets_found.fetch_add(1, Ordering::Relaxed);
        self.got_messages.fetch_add(messages, Ordering::Relaxed);
        self.took(took);
    }

    pub(super) fn missed(&self, took: Duration) {
        self.gets_missed.fetch_add(1, Ordering::Relaxed);
        self.took(took);
    }

    fn took(&self, took: Duration) {
        self.longest_get_ms
            .fetch_max(took.as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn sample(&self, now: Instant, now_ms: i64) {
        let totals = self.now();
        let mut history = self.history();
        if history.samples.len() > KEPT {
            history.samples.pop_front();
        }
        history.samples.push_back((now, totals));
        let day = now_ms.div_euclid(DAY_MS);
        // A clock that was set back must not begin the same day again.
        if day > history.day {
            history.day = day;
            history.yesterday_morning = history.this_morning;
            history.this_morning = Mark {
                put: totals.put_messages,
                got: totals.got_messages,
            };
        }
    }

    pub(in crate::broker) fn now(&self) -> Totals {
        Totals {
            put_messages: self.put_messages.load(Ordering::Relaxed),
            put_bytes: self.put_bytes.load(Ordering::Relaxed),
            puts_failed: self.puts_failed.load(Ordering::Relaxed),
            gets_found: self.gets_found.load(Ordering::Relaxed),
            gets_missed: self.gets_missed.load(Ordering::Relaxed),
            got_messages: self.got_messages.load(Ordering::Relaxed),
        }
    }

    /// Growth per second up to the last sample: over so many seconds, or since the start if that is
    /// less.
    pub(in crate::broker) fn rate(&self, seconds: usize, of: impl Fn(&Totals) -> u64) -> f64 {
        let history = self.history();
        let samples = &history.samples;
        let first = &samples[samples.len().saturating_sub(seconds + 1)];
        let last = &samples[samples.len() - 1];
        let elapsed = last.0.saturating_duration_since(first.0).as_secs_f64();
        if elapsed == 0.0 {
            return 0.0;
        }
        of(&last.1).saturating_sub(of(&first.1)) as f64 / elapsed
    }

    /// What had been done when yesterday began, and when today did. Days begin at midnight UTC,
    /// whatever zone the machine thinks it is in; all nodes of a group count the same days.
    pub(in crate::broker) fn mornings(&self) -> (Mark, Mark) {
        let history = self.history();
        (history.yesterday_morning, history.this_morning)
    }

    /// Milliseconds that a look into a queue took at most.
    pub(in crate::broker) fn longest_get_ms(&self) -> u64 {
        self.longest_get_ms.load(Ordering::Relaxed)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no panic under this lock")
    }
}
