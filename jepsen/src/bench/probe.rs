//! Sends that are timed.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rand::Rng as _;

use crate::client::{Client, Outcome};

/// Far beyond what a step takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Queues that are sent to, each as likely.
#[derive(Debug, Clone)]
pub(super) struct Queues {
    pub(super) topics: Vec<String>,
    pub(super) of_each: u32,
}

impl Queues {
    pub(super) fn of_topic(topic: &str, queues: u32) -> Self {
        Self {
            topics: vec![topic.into()],
            of_each: queues,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.topics.len() as u64 * u64::from(self.of_each)
    }

    /// The queue with this number.
    fn nth(&self, n: u64) -> anyhow::Result<(&str, u32)> {
        let topic = usize::try_from(n / u64::from(self.of_each))?;
        let queue = u32::try_from(n % u64::from(self.of_each))?;
        Ok((&self.topics[topic], queue))
    }
}

/// Messages of `body` bytes at a steady rate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) connections: u32,
    /// Time between two sends of a connection.
    pub(super) every: Duration,
    pub(super) body: usize,
}

/// How long sends took, in the order of their size.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub(super) fn add(&mut self, more: Latencies) {
        self.0.extend(more.0);
        self.0.sort_unstable();
    }

    /// At most this share took longer, from 0 to 1.
    pub fn quantile(&self, of: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0
            .get((last as f64 * of) as usize)
            .copied()
            .unwrap_or_default()
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |of| self.quantile(of).as_secs_f64() * 1e3;
        let (p50, p99, most) = (ms(0.5), ms(0.99), ms(1.0));
        let count = self.0.len();
        write!(
            f,
            "p50 {p50:.2} ms, p99 {p99:.2} ms, max {most:.0} ms of {count}"
        )
    }
}

/// Sends until `over`, each message when it is due and the one before was acknowledged. What one is late
/// because of another counts.
pub(super) fn probe(
    address: SocketAddr,
    queues: &Queues,
    load: Load,
    over: &AtomicBool,
) -> anyhow::Result<Latencies> {
    thread::scope(|scope| {
        let probes: Vec<_> = (0..load.connections)
            .map(|n| {
                // So that they are not all due at once.
                let begin = Instant::now() + load.every * n / load.connections;
                scope.spawn(move || probe_one(address, queues, load, begin, over))
            })
            .collect();
        let mut all = Latencies::default();
        for probe in probes {
            all.add(joined(probe)?);
        }
        Ok(all)
    })
}

/// The same for some time.
pub(super) fn probe_for(
    address: SocketAddr,
    queues: &Queues,
    load: Load,
    time: Duration,
) -> anyhow::Result<Latencies> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let probing = scope.spawn(|| probe(address, queues, load, &over));
        thread::sleep(time);
        over.store(true, Ordering::Relaxed);
        joined(probing)
    })
}

fn probe_one(
    address: SocketAddr,
    queues: &Queues,
    load: Load,
    begin: Instant,
    over: &AtomicBool,
) -> anyhow::Result<Latencies> {
    let mut client = Client::connect(address, PATIENCE)?;
    let body = "y".repeat(load.body);
    let mut latencies = Vec::new();
    let mut due = begin;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let (topic, queue) = queues.nth(rand::rng().random_range(0..queues.len()))?;
        send(&mut client, topic, queue, &body)?;
        latencies.push(due.elapsed());
        due += load.every;
    }
    latencies.sort_unstable();
    Ok(Latencies(latencies))
}

/// Sends so many messages as fast as so many connections can, to each queue in turn.
pub(super) fn fill(
    address: SocketAddr,
    queues: &Queues,
    connections: u32,
    messages: u64,
    body: usize,
) -> anyhow::Result<()> {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        let fillers: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(address, PATIENCE)?;
                    let body = "x".repeat(body);
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= messages {
                            return Ok(());
                        }
                        let (topic, queue) = queues.nth(n % queues.len())?;
                        send(&mut client, topic, queue, &body)?;
                    }
                })
            })
            .collect();
        fillers.into_iter().try_for_each(joined)
    })
}

fn send(client: &mut Client, topic: &str, queue: u32, body: &str) -> anyhow::Result<()> {
    let sent = client.send_with(topic, queue, "", body);
    ensure!(matches!(sent, Outcome::Ok(_)), "{sent:?}");
    Ok(())
}

pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread panicked"),
    }
}

pub(super) fn until(
    what: &str,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
