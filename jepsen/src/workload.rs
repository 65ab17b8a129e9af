//! Producers and a committing consumer group at work, and what they saw.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::client::{Client, Outcome};
use crate::history::{Fault, History, OffsetOp, Send};

/// Queues and producers; each producer has one queue, and one more shares queue 0.
const QUEUES: u32 = 4;
const TOPIC: &str = "jepsen_queue";
const GROUP: &str = "jepsen_group";
/// A producer gives an operation up after this; then its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the bodies of probes begin with.
const PROBE: &str = "probe";
/// A probe asks a node only so long: less than an election takes, so that a node that hangs hides
/// nothing of what the others do.
const PROBE_PATIENCE: Duration = Duration::from_millis(100);
/// After so long without an answer probes become patient, for a machine that is slow.
const PROBE_HURRY: Duration = Duration::from_secs(10);
/// Within this a leader must be back after every fault, or the run fails. It is far beyond what is
/// expected, because a slow machine must not fail a test; the report tells what it really was.
pub(crate) const LIVENESS: Duration = Duration::from_secs(60);

/// Clients at work from [`Workload::start`] until [`Workload::stop`].
pub(crate) struct Workload {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Starts clients of `nodes`.
    pub(crate) fn start(nodes: Vec<SocketAddr>) -> Self {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            nodes: Mutex::new(nodes),
            history: Mutex::default(),
        });
        let producers = (0..=QUEUES).map(|producer| {
            let shared = shared.clone();
            thread::spawn(move || produce(&shared, producer))
        });
        let mut workers: Vec<_> = producers.collect();
        let consumer = shared.clone();
        workers.push(thread::spawn(move || commit(&consumer)));
        Self { shared, workers }
    }

    /// Ends the clients; what they saw. `struck`, what came of the faults, is passed on.
    pub(crate) fn stop<T>(self, struck: anyhow::Result<T>) -> anyhow::Result<(T, History)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            let ended = worker.join();
            ended.map_err(|_| anyhow::anyhow!("a workload thread panicked"))?;
        }
        let history = std::mem::take(&mut *self.shared.history());
        Ok((struck?, history))
    }

    /// Nanoseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        self.shared.now()
    }

    /// How long ago `at` was.
    pub(crate) fn since(&self, at: u64) -> Duration {
        self.shared.since(at)
    }

    /// Has the clients use these nodes from now on.
    pub(crate) fn set_nodes(&self, nodes: Vec<SocketAddr>) {
        *self.shared.nodes() = nodes;
    }

    /// Notes that a fault strikes now.
    pub(crate) fn note_fault(&self, what: String) -> u64 {
        let from = self.now();
        self.shared.history().faults.push(Fault {
            what,
            from,
            first_ack: None,
        });
        from
    }

    /// Notes that the last fault strikes only now: what was acknowledged before belongs to the time
    /// before it.
    pub(crate) fn note_strike(&self) -> u64 {
        let from = self.now();
        if let Some(fault) = self.shared.history().faults.last_mut() {
            fault.from = from;
        }
        from
    }

    /// Notes when the first send after the last fault was acknowledged.
    pub(crate) fn note_recovery(&self) {
        let mut history = self.shared.history();
        let Some(from) = history.faults.last().map(|fault| fault.from) else {
            return;
        };
        let first_ack = first_ack(&history, from);
        if let Some(fault) = history.faults.last_mut() {
            fault.first_ack = first_ack;
        }
    }

    /// Waits for an acknowledgement of a producer's send that was invoked after `from`; answers after how
    /// many milliseconds it came.
    pub(crate) fn wait_for_acks(&self, from: u64) -> anyhow::Result<u64> {
        let end = Instant::now() + LIVENESS;
        loop {
            if let Some(ack) = first_ack(&self.shared.history(), from) {
                return Ok((ack - from) / 1_000_000);
            }
            anyhow::ensure!(
                Instant::now() < end,
                "nothing was acknowledged for {LIVENESS:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends through each node in turn until one acknowledges; answers how many milliseconds after `from`
    /// that was. What it sends is part of the history.
    pub(crate) fn probe(&self, from: u64, name: &str) -> anyhow::Result<u64> {
        probe(&self.shared, from, &format!("{PROBE}:{name}"))
    }
}

/// Everything that lies in the queues, read from the node at `address`.
pub(crate) fn read_back(address: SocketAddr, history: &mut History) -> anyhow::Result<()> {
    let mut client = Client::connect(address, LIVENESS)?;
    for queue in 0..QUEUES {
        let found = client.read_queue(TOPIC, queue).context("final read")?;
        history.found.insert(queue, found);
    }
    Ok(())
}

struct Shared {
    start: Instant,
    stop: AtomicBool,
    nodes: Mutex<Vec<SocketAddr>>,
    history: Mutex<History>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long ago `at` was.
    fn since(&self, at: u64) -> Duration {
        Duration::from_nanos(self.now() - at)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the `n`th node listens, counting round and round.
    fn node(&self, n: usize) -> SocketAddr {
        let nodes = self.nodes();
        nodes[n % nodes.len()]
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// When the first send of a producer that was invoked after `from` was acknowledged.
fn first_ack(history: &History, from: u64) -> Option<u64> {
    let acks = history
        .sends
        .iter()
        .filter(|s| s.invoked > from && matches!(s.outcome, Outcome::Ok(_)))
        .filter(|s| !s.body.starts_with(PROBE));
    acks.map(|s| s.ended).min()
}

/// [`Workload::probe`].
fn probe(shared: &Shared, from: u64, name: &str) -> anyhow::Result<u64> {
    const QUEUE: u32 = 0;
    for (seq, node) in (0u32..).zip(0usize..) {
        let address = shared.node(node);
        let waited = shared.since(from);
        anyhow::ensure!(waited < LIVENESS, "no node answered for {LIVENESS:?}");
        let patience = if waited < PROBE_HURRY {
            PROBE_PATIENCE
        } else {
            PATIENCE
        };
        let Ok(mut client) = Client::connect(address, patience) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let body = format!("{name}:{seq}");
        let invoked = shared.now();
        let outcome = client.send(TOPIC, QUEUE, &body);
        let ended = shared.now();
        let is_acknowledged = matches!(outcome, Outcome::Ok(_));
        shared.history().sends.push(Send {
            queue: QUEUE,
            body,
            invoked,
            ended,
            outcome,
        });
        if is_acknowledged {
            return Ok((ended - from) / 1_000_000);
        }
    }
    unreachable!("a cycle over nodes has no end")
}

/// Sends unique messages one after the other to one queue, through whichever node answers.
fn produce(shared: &Shared, producer: u32) {
    let queue = producer % QUEUES;
    let mut node = producer as usize;
    let mut connection = None;
    for seq in 0u64.. {
        if shared.stopped() {
            return;
        }
        let body = format!("{producer}:{seq}");
        let address = shared.node(node);
        let client = match connection.take() {
            Some(c) => c,
            None => match Client::connect(address, PATIENCE) {
                Ok(c) => c,
                Err(_) => {
                    node += 1;
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
            },
        };
        let mut client = client;
        let invoked = shared.now();
        let outcome = client.send(TOPIC, queue, &body);
        let ended = shared.now();
        if matches!(outcome, Outcome::Ok(_)) {
            connection = Some(client);
        } else {
            node += 1;
            thread::sleep(Duration::from_millis(5));
        }
        shared.history().sends.push(Send {
            queue,
            body,
            invoked,
            ended,
            outcome,
        });
        thread::sleep(Duration::from_millis(1));
    }
}

/// Commits rising offsets for a group and reads them back, through whichever node answers.
fn commit(shared: &Shared) {
    let (mut node, mut offset) = (0, 0);
    while !shared.stopped() {
        let address = shared.node(node);
        let Ok(mut client) = Client::connect(address, PATIENCE) else {
            node += 1;
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        while !shared.stopped() {
            offset += 1;
            let acknowledged = client.commit_offset(GROUP, TOPIC, offset) == Outcome::Ok(());
            shared.history().offsets.push(OffsetOp::Commit {
                offset,
                acknowledged,
            });
            let Ok(read) = client.query_offset(GROUP, TOPIC) else {
                break;
            };
            shared.history().offsets.push(OffsetOp::Read(read));
            thread::sleep(Duration::from_millis(10));
        }
        node += 1;
    }
}
