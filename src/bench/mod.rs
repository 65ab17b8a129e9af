//! Load for any RocketMQ cluster, measured.
//!
//! The load is open: with a rate, every request has a time at which it is due, and its latency counts
//! from then on, however late it could be sent. A cluster that stalls therefore shows what its users
//! would have waited, not only what the few requests under way did ("coordinated omission").
//!
//! - `cluster`: topics and where their queues are
//! - `frames`: requests made once and stamped for each send
//! - `link`: one connection; `produce` and `consume`: what is done on it
//! - `pace`: waits finer than tokio's milliseconds
//! - `meter`: counters and histograms; `report`: what is told at the end

mod cluster;
mod consume;
mod frames;
mod link;
mod meter;
mod pace;
mod produce;
mod report;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

pub use cluster::ClusterError;
pub use frames::STAMP_BYTES;
pub use report::{Cpu, Lap, Latency, Progress, Report, Side};

use cluster::{Cluster, Queue};
use meter::{Clock, Meter, Window};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// From the time a send is due to its acknowledgement.
    Produce,
    /// Reads what is there, from the first message to the present last one: each pull's round trip.
    Consume,
    /// From the time a send is due until its message has been read.
    EndToEnd,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub mode: Mode,
    /// With more than one topic, the prefix of their names.
    pub topic: String,
    pub topics: u32,
    /// Queues of a topic that does not exist yet.
    pub queues: u32,
    /// Bytes of a body.
    pub size: usize,
    /// Messages of a send request, or the most that a pull may bring.
    pub batch: u32,
    /// Messages a second of all connections together; `None` is as fast as possible.
    pub rate: Option<f64>,
    pub connections: u32,
    /// Requests under way on one connection, at most.
    pub in_flight: u32,
    /// Seconds before anything is measured.
    pub warmup: u64,
    /// Seconds that are measured; `None` if the count alone ends it.
    pub duration: Option<u64>,
    /// Messages that are measured, at most.
    pub count: Option<u64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("cannot set up a timer: {0}")]
    Timer(#[source] std::io::Error),
    #[error("no CPU time of process {pid}: {source}")]
    Process { pid: u32, source: std::io::Error },
    #[error(
        "{connections} connections for {brokers} brokers: each needs one at least (--connections)"
    )]
    TooFewConnections { connections: u32, brokers: usize },
}

/// How much later than the last one is due requests are sent that had to wait, and how long those under way may take once
/// nothing new is sent.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the last messages may take to be read, counted from the last that was.
const READ_PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_secs(1);

/// Runs the plan against the cluster of a name server (`host:port`), and has `progress` told each second.
/// CPU time is that of these local processes.
///
/// # Errors
/// [`BenchError`]; requests that fail are counted, and no error.
pub async fn run(
    namesrv: &str,
    plan: Plan,
    pids: &[u32],
    mut progress: impl FnMut(&Progress),
) -> Result<Report, BenchError> {
    let started_unix_ms = chrono::Utc::now().timestamp_millis();
    let cluster = Arc::new(Cluster::new(namesrv));
    let shares = shares(&plan, &cluster.queues(&plan).await?)?;
    let clock = Clock::start(rand::rng().random());
    let plan = Arc::new(plan);
    let window = Arc::new(Window::new(&plan));
    let (sent, received) = (Arc::new(Meter::default()), Arc::new(Meter::default()));

    // Where a reader begins is known before the first send.
    let mut spans = Vec::new();
    if plan.mode != Mode::Produce {
        for share in consume::spread(&shares) {
            spans.push(cluster.spans(share, plan.mode == Mode::Consume).await?);
        }
    }
    let start = clock.now();
    window.open(start);
    let mut readers = JoinSet::new();
    for spans in spans {
        readers.spawn(consume::run(consume::Reader {
            cluster: Arc::clone(&cluster),
            plan: Arc::clone(&plan),
            clock,
            window: Arc::clone(&window),
            meter: Arc::clone(&received),
            spans,
        }));
    }
    let mut senders = JoinSet::new();
    if plan.mode != Mode::Consume {
        for (number, queues) in shares.into_iter().enumerate() {
            let pace = pace::Pace::new().map_err(BenchError::Timer)?;
            senders.spawn(produce::run(produce::Sender {
                number: u32::try_from(number).expect("a connection's number"),
                cluster: Arc::clone(&cluster),
                plan: Arc::clone(&plan),
                clock,
                window: Arc::clone(&window),
                meter: Arc::clone(&sent),
                queues,
                pace,
            }));
        }
    }

    let mut cpu_before = None;
    let mut shown = start;
    let mut last_read = (0, Instant::now());
    loop {
        let measures = clock.now() >= window.begin();
        if measures && cpu_before.is_none() {
            cpu_before = Some(report::cpu_seconds(pids)?);
        }
        let next = Instant::now() + TICK;
        let next = match measures {
            true => next,
            false => next.min(clock.at(window.begin())),
        };
        tokio::select! {
            Some(_) = senders.join_next() => {}
            Some(_) = readers.join_next() => {}
            () = sleep_until(next) => {
                let now = clock.now();
                let seconds = meter::seconds(now.saturating_sub(shown));
                shown = now;
                progress(&Progress {
                    elapsed: meter::seconds(now - start),
                    is_warmup: !measures,
                    sent: (plan.mode != Mode::Consume).then(|| sent.lap(seconds)),
                    received: (plan.mode != Mode::Produce).then(|| received.lap(seconds)),
                });
            }
        }
        if !senders.is_empty() {
            last_read.1 = Instant::now();
            continue;
        }
        if readers.is_empty() {
            break;
        }
        if plan.mode == Mode::EndToEnd {
            let (read, acknowledged) = (received.messages(), sent.messages());
            if read != last_read.0 {
                last_read = (read, Instant::now());
            }
            if read >= acknowledged || last_read.1.elapsed() > READ_PATIENCE {
                readers.abort_all();
            }
        }
    }
    let cpu_before = cpu_before.unwrap_or_default();
    let cpu_after = report::cpu_seconds(pids)?;
    let window_seconds =
        |meter: &Meter| meter::seconds(meter.last().saturating_sub(window.begin()));
    let side = |meter: &Meter| report::side(meter, window_seconds(meter));
    let sent = (plan.mode != Mode::Consume).then(|| side(&sent));
    let received = (plan.mode != Mode::Produce).then(|| side(&received));
    let messages = sent.as_ref().or(received.as_ref());
    let messages = messages.map_or(0, |side| side.messages);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        namesrv: namesrv.to_owned(),
        started_unix_ms,
        plan: (*plan).clone(),
        sent,
        received,
        cpu: report::cpu(&cpu_before, &cpu_after, messages),
    })
}

/// The queues of each connection, which all lie on one broker.
fn shares(plan: &Plan, queues: &[Queue]) -> Result<Vec<Vec<Queue>>, BenchError> {
    let mut brokers: Vec<&str> = queues.iter().map(|queue| &*queue.broker).collect();
    brokers.sort_unstable();
    brokers.dedup();
    let connections = plan.connections;
    if (connections as usize) < brokers.len() {
        return Err(BenchError::TooFewConnections {
            connections,
            brokers: brokers.len(),
        });
    }
    let share = |number: usize| {
        let broker = brokers[number % brokers.len()];
        let queues = queues.iter().filter(|queue| &*queue.broker == broker);
        queues.cloned().collect()
    };
    Ok((0..connections as usize).map(share).collect())
}
