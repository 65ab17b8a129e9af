//! What is counted while a run goes on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use super::report::Lap;
use super::{DRAIN, Plan};

/// Longest latency that is told apart from longer ones, in microseconds.
const LONGEST_US: u64 = 600_000_000;
const DIGITS: u8 = 3;

/// Nanoseconds since a run's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    zero: Instant,
    zero_unix_ms: i64,
    /// What the run's messages are marked with.
    pub(super) run: u64,
}

impl Clock {
    pub(super) fn start(run: u64) -> Self {
        Self {
            zero: Instant::now(),
            zero_unix_ms: chrono::Utc::now().timestamp_millis(),
            run,
        }
    }

    pub(super) fn now(&self) -> u64 {
        nanos(self.zero.elapsed())
    }

    pub(super) fn at(&self, time: u64) -> Instant {
        self.zero + Duration::from_nanos(time)
    }

    /// Milliseconds since 1970.
    pub(super) fn unix_ms(&self, time: u64) -> i64 {
        self.zero_unix_ms + i64::try_from(time / 1_000_000).unwrap_or(i64::MAX)
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Which requests are measured: those that are due in its time, up to its count.
#[derive(Debug)]
pub(super) struct Window {
    warmup: u64,
    duration: Option<u64>,
    begin: AtomicU64,
    left: AtomicU64,
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Send it, and do not measure it.
    WarmUp,
    Measure,
    /// Neither it nor a later one is sent.
    Over,
}

impl Window {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            warmup: nanos(Duration::from_secs(plan.warmup)),
            duration: plan
                .duration
                .map(|seconds| nanos(Duration::from_secs(seconds))),
            begin: AtomicU64::new(u64::MAX),
            left: AtomicU64::new(plan.count.unwrap_or(u64::MAX)),
        }
    }

    /// The warm-up begins.
    pub(super) fn open(&self, now: u64) {
        self.begin.store(now + self.warmup, Ordering::Relaxed);
    }

    /// When measuring begins; never before the window is open.
    pub(super) fn begin(&self) -> u64 {
        self.begin.load(Ordering::Relaxed)
    }

    /// When the last request may be due.
    pub(super) fn end(&self) -> u64 {
        self.duration
            .map_or(u64::MAX, |duration| self.begin().saturating_add(duration))
    }

    /// Whether nothing is sent any more, however long ago it was due.
    pub(super) fn is_closed(&self, now: u64) -> bool {
        now >= self.end().saturating_add(nanos(DRAIN))
    }

    pub(super) fn is_measured(&self, due: u64) -> bool {
        due >= self.begin()
    }

    /// Asks for a request of so many messages that is due at this time.
    pub(super) fn take(&self, due: u64, messages: u64) -> Turn {
        if due < self.begin() {
            return Turn::WarmUp;
        }
        let took = |left: u64| left.checked_sub(messages.min(left)).filter(|_| left > 0);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        match due < self.end() && self.left.fetch_update(set, get, took).is_ok() {
            true => Turn::Measure,
            false => Turn::Over,
        }
    }
}

/// Counts of one direction of a run.
pub(super) struct Meter(Mutex<Counts>);

struct Counts {
    /// All messages, of the warm-up too, and those that the last lap has told of.
    messages: u64,
    told: u64,
    measured: Measured,
    /// Measured since the last lap.
    lap: Histogram<u64>,
}

/// What a run is judged by.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) messages: u64,
    /// Bytes of bodies.
    pub(super) bytes: u64,
    /// In microseconds.
    pub(super) latency: Histogram<u64>,
    /// Messages whose requests failed, and by what: how often, and the words that came first.
    pub(super) failed: u64,
    pub(super) failures: BTreeMap<String, (u64, String)>,
    /// Messages that were due and never sent.
    pub(super) unsent: u64,
    /// When the last one was done.
    pub(super) last: u64,
}

impl Default for Meter {
    fn default() -> Self {
        Self(Mutex::new(Counts {
            messages: 0,
            told: 0,
            measured: Measured {
                messages: 0,
                bytes: 0,
                latency: histogram(),
                failed: 0,
                failures: BTreeMap::new(),
                unsent: 0,
                last: 0,
            },
            lap: histogram(),
        }))
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("bounds that fit each other")
}

/// What happened between two waits of one connection, to be added at once.
pub(super) struct Entry<'a>(MutexGuard<'a, Counts>);

impl Meter {
    pub(super) fn entry(&self) -> Entry<'_> {
        Entry(self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages so far, of the warm-up too.
    pub(super) fn messages(&self) -> u64 {
        self.lock().messages
    }

    /// When the last measured one was done.
    pub(super) fn last(&self) -> u64 {
        self.lock().measured.last
    }

    pub(super) fn measured(&self) -> Measured {
        let mut counts = self.lock();
        counts.end_lap();
        counts.measured.clone()
    }

    /// What was done since the last lap, which took so many seconds.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub(super) fn lap(&self, seconds: f64) -> Lap {
        let mut counts = self.lock();
        let lap = Lap {
            per_second: (counts.messages - counts.told) as f64 / seconds.max(1e-9),
            messages: counts.messages,
            failed: counts.measured.failed,
            p50: (!counts.lap.is_empty()).then(|| ms(counts.lap.value_at_quantile(0.5))),
            p99: (!counts.lap.is_empty()).then(|| ms(counts.lap.value_at_quantile(0.99))),
        };
        counts.told = counts.messages;
        counts.end_lap();
        lap
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

impl Counts {
    fn end_lap(&mut self) {
        let whole = &mut self.measured.latency;
        whole.add(&self.lap).expect("histograms of the same bounds");
        self.lap.reset();
    }
}

impl Entry<'_> {
    /// Messages of a warm-up are only counted.
    pub(super) fn done(&mut self, measured: bool, due: u64, now: u64, messages: u64, bytes: u64) {
        let counts = &mut *self.0;
        counts.messages += messages;
        if !measured {
            return;
        }
        let us = now.saturating_sub(due).div_ceil(1000);
        counts.lap.saturating_record_n(us.max(1), messages);
        counts.measured.messages += messages;
        counts.measured.bytes += bytes;
        counts.measured.last = counts.measured.last.max(now);
    }

    /// Failures of a warm-up count as well: nobody expects them there.
    pub(super) fn failed(&mut self, messages: u64, kind: &str, words: impl FnOnce() -> String) {
        let measured = &mut self.0.measured;
        measured.failed += messages;
        match measured.failures.get_mut(kind) {
            Some((count, _)) => *count += messages,
            None => {
                measured
                    .failures
                    .insert(kind.to_owned(), (messages, words()));
            }
        }
    }

    pub(super) fn unsent(&mut self, messages: u64) {
        self.0.measured.unsent += messages;
    }
}
