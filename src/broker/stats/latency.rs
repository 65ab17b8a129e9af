//! How long puts took, as a histogram of each minute.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long one histogram counts.
const PERIOD: Duration = Duration::from_secs(60);

/// Steps in milliseconds and how many of each: from 1 in steps of 1 to 20, of 2 to 50, and so on.
/// (`StoreStatsService.PUT_MESSAGE_ENTIRE_TIME_BUCKETS`)
const STEPS: [(u64, usize); 7] = [
    (1, 20),
    (2, 15),
    (5, 10),
    (10, 10),
    (50, 6),
    (100, 5),
    (1000, 9),
];
/// The bounds of the steps, and one bucket for everything beyond.
const BUCKETS: usize = 20 + 15 + 10 + 10 + 6 + 5 + 9 + 1;

/// Names of the coarser buckets that tools read, each with its bound in milliseconds, which is not
/// in it (`PUT_MESSAGE_ENTIRE_TIME_MAX_DESC`).
const SHOWN: [(&str, u64); 13] = [
    ("[<=0ms]", 1),
    ("[0~10ms]", 10),
    ("[10~50ms]", 50),
    ("[50~100ms]", 100),
    ("[100~200ms]", 200),
    ("[200~500ms]", 500),
    ("[500ms~1s]", 1000),
    ("[1~2s]", 2000),
    ("[2~3s]", 3000),
    ("[3~4s]", 4000),
    ("[4~5s]", 5000),
    ("[5~10s]", 10_000),
    ("[10s~]", u64::MAX),
];

/// Bucket `i` counts whole milliseconds below `BOUNDS[i]` and not below `BOUNDS[i - 1]`.
const BOUNDS: [u64; BUCKETS] = bounds();

const fn bounds() -> [u64; BUCKETS] {
    let mut bounds = [u64::MAX; BUCKETS];
    let (mut at, mut bound, mut step) = (0, 0, 0);
    while step < STEPS.len() {
        let mut left = STEPS[step].1;
        while left > 0 {
            bound += STEPS[step].0;
            bounds[at] = bound;
            at += 1;
            left -= 1;
        }
        step += 1;
    }
    assert!(at == BUCKETS - 1);
    bounds
}

type Counts = [u64; BUCKETS];

/// The durations of the current minute, and those of the one before, which are told.
pub(in crate::broker) struct Latency {
    current: [AtomicU64; BUCKETS],
    longest_ms: AtomicU64,
    finished: Mutex<Finished>,
}

struct Finished {
    since: Instant,
    counts: Option<Box<Counts>>,
}

impl Latency {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            current: [const { AtomicU64::new(0) }; BUCKETS],
            longest_ms: AtomicU64::new(0),
            finished: Mutex::new(Finished {
                since: now,
                counts: None,
            }),
        }
    }

    pub(super) fn record(&self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX - 1);
        let bucket = BOUNDS.partition_point(|&bound| bound <= ms);
        self.current[bucket].fetch_add(1, Ordering::Relaxed);
        self.longest_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// Begins a new minute if one is over.
    pub(super) fn rotate(&self, now: Instant) {
        let mut finished = self.finished.lock().expect("no panic under this lock");
        if now.saturating_duration_since(finished.since) < PERIOD {
            return;
        }
        let mut counts = Box::new([0; BUCKETS]);
        for (count, current) in counts.iter_mut().zip(&self.current) {
            *count = current.swap(0, Ordering::Relaxed);
        }
        *finished = Finished {
            since: now,
            counts: Some(counts),
        };
    }

    /// Milliseconds that the longest put since the start took.
    pub(in crate::broker) fn longest_ms(&self) -> u64 {
        self.longest_ms.load(Ordering::Relaxed)
    }

    /// The last whole minute as Java shows it, `[<=0ms]:1 [0~10ms]:2 …`; `null` before there is one.
    pub(in crate::broker) fn distribution(&self) -> String {
        let finished = self.finished.lock().expect("no panic under this lock");
        let Some(counts) = &finished.counts else {
            return "null".to_owned();
        };
        let mut text = String::new();
        let mut buckets = BOUNDS.iter().zip(counts.iter()).peekable();
        for (name, bound) in SHOWN {
            let mut sum = 0;
            while let Some((_, count)) = buckets.next_if(|(fine, _)| **fine <= bound) {
                sum += count;
            }
            write!(text, "{name}:{sum} ").expect("a String takes every write");
        }
        text
    }

    /// The milliseconds within which this share of the puts of the last whole minute was done,
    /// interpolated within a bucket; 0 without puts.
    pub(in crate::broker) fn quantile(&self, share: f64) -> f64 {
        let finished = self.finished.lock().expect("no panic under this lock");
        let Some(counts) = &finished.counts else {
            return 0.0;
        };
        let wanted = counts.iter().sum::<u64>() as f64 * share;
        let mut passed = 0.0;
        let mut below = 0.0;
        for (&bound, &count) in BOUNDS.iter().zip(counts.iter()) {
            // The last bucket has no end; its begin is the most that is certain.
            let bound = if bound == u64::MAX {
                below
            } else {
                bound as f64
            };
            let count = count as f64;
            if count > 0.0 && passed + count >= wanted {
                return below + (bound - below) * (wanted - passed) / count;
            }
            passed += count;
            below = bound;
        }
        0.0
    }
}
