//! One run: producers and a committing consumer group at work while faults strike, then quiet, then
//! everything is read back and judged.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::burn::Burn;
use crate::check::CHECKERS;
use crate::client::{Client, Outcome};
use crate::cluster::{Cluster, Options};
use crate::history::{Fault, History, OffsetOp, Send};
use crate::power::Disks;

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
/// How long a fault lasts that is not a single moment.
const PAUSE: Duration = Duration::from_secs(10);
const SATURATION: Duration = Duration::from_secs(30);
/// Within this a leader must be back after every fault, or the run fails. It is far beyond what is
/// expected, because a slow machine must not fail a test; the report tells what it really was.
const LIVENESS: Duration = Duration::from_secs(60);

/// A fault and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Nemesis {
    /// kill -9 of the leader, started again once another leads.
    KillLeader,
    /// kill -9 of a follower, started again.
    KillFollower,
    /// SIGSTOP of the leader for ten seconds, then SIGCONT.
    PauseLeader,
    /// kill -9 of all nodes at once, all started again.
    KillAll,
    /// Twice as many busy processes as the machine has cores, for half a minute. No node fails, so the
    /// leader should stay.
    Saturate,
    /// Two nodes are added, then two others are taken out, the leader among them.
    Members,
    /// kill -9 of a follower, which never comes back: it is taken out and another node added.
    Replace,
    /// The power of all nodes is cut at once, and now and then again while they start. Takes root.
    Power,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The faults, each `rounds` times in turn.
    pub nemeses: Vec<Nemesis>,
    /// How often each fault strikes.
    pub rounds: u32,
    /// Draws the pauses and the victims.
    pub seed: u64,
    /// SYNC_FLUSH instead of ASYNC_FLUSH.
    pub sync_flush: bool,
}

/// What a run found.
pub struct Report {
    /// Violations; empty is a pass.
    pub wrong: Vec<String>,
    /// One line for people.
    pub summary: String,
    /// What followed each fault.
    pub gaps: Vec<Gap>,
    /// By how much the group's term has grown: elections, and candidates that failed.
    pub terms: u64,
}

/// Milliseconds from a fault to the first acknowledgement of a send that was invoked after it.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    /// The fault.
    pub nemesis: Nemesis,
    /// Seen by a probe that asks each node in turn and gives none more than a tenth of a second: how
    /// long the group was away.
    pub probe_ms: u64,
    /// Seen by the producers, whose connection to a stopped node hangs for as long as their patience.
    pub producers_ms: u64,
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

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the `n`th node listens, counting round and round.
    fn node(&self, n: usize) -> SocketAddr {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes[n % nodes.len()]
    }

    fn set_nodes(&self, nodes: Vec<SocketAddr>) {
        *self.nodes.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Runs `plan` against nodes of `rmq` with their files under `dir`.
pub fn run(rmq: &Path, dir: &Path, plan: &Plan) -> anyhow::Result<Report> {
    let options = Options {
        sync_flush: plan.sync_flush,
        ..Options::default()
    };
    let cuts_power = plan.nemeses.contains(&Nemesis::Power);
    let disks = cuts_power
        .then(|| Disks::mount(dir, options.nodes))
        .transpose()?;
    let mut cluster = Cluster::start(rmq, dir, &options)?;
    let shared = Arc::new(Shared {
        start: Instant::now(),
        stop: AtomicBool::new(false),
        nodes: Mutex::new(cluster.addresses()),
        history: Mutex::default(),
    });
    let term = cluster.term()?;
    let mut workers = Vec::new();
    for producer in 0..=QUEUES {
        let shared = shared.clone();
        workers.push(thread::spawn(move || produce(&shared, producer)));
    }
    let consumer = shared.clone();
    workers.push(thread::spawn(move || commit(&consumer)));

    let mut rng = StdRng::seed_from_u64(plan.seed);
    let struck = strike_all(&mut cluster, disks.as_ref(), &shared, plan, &mut rng);
    shared.stop.store(true, Ordering::Relaxed);
    for w in workers {
        w.join()
            .map_err(|_| anyhow::anyhow!("a workload thread panicked"))?;
    }
    let gaps = struck?;

    let leader = cluster.wait_for_leader(LIVENESS)?;
    let end = cluster.wait_until_even(LIVENESS)?;
    let terms = cluster.term()?.saturating_sub(term);
    let mut wrong = Vec::new();
    if let Some(difference) = cluster.compare_logs(end)? {
        wrong.push(format!(
            "the logs are not identical below {end}: {difference}"
        ));
    }
    let mut history = std::mem::take(&mut *shared.history());
    let mut client = Client::connect(cluster.addresses()[leader], LIVENESS)?;
    for queue in 0..QUEUES {
        history.found.insert(
            queue,
            client.read_queue(TOPIC, queue).context("final read")?,
        );
    }
    for (name, checker) in CHECKERS {
        let found = checker(&history);
        let more = found.len().saturating_sub(5);
        wrong.extend(found.into_iter().take(5).map(|f| format!("{name}: {f}")));
        if more > 0 {
            wrong.push(format!("{name}: and {more} more"));
        }
    }
    let acked = history
        .sends
        .iter()
        .filter(|s| matches!(s.outcome, Outcome::Ok(_)))
        .count();
    let unknown = history
        .sends
        .iter()
        .filter(|s| matches!(s.outcome, Outcome::Unknown(_)))
        .count();
    let summary = format!(
        "{} sends: {acked} acknowledged, {unknown} unknown, {} refused; {} faults; {terms} terms; \
         log of {end} bytes",
        history.sends.len(),
        history.sends.len() - acked - unknown,
        history.faults.len(),
    );
    Ok(Report {
        wrong,
        summary,
        gaps,
        terms,
    })
}

/// Injects the plan's faults one after the other, each only when the group is whole again.
fn strike_all(
    cluster: &mut Cluster,
    disks: Option<&Disks>,
    shared: &Shared,
    plan: &Plan,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<Gap>> {
    let mut gaps = Vec::new();
    for round in 0..plan.rounds {
        for &nemesis in &plan.nemeses {
            let leader = cluster.wait_for_leader(LIVENESS)?;
            wait_for_acks(shared, shared.now())?;
            thread::sleep(Duration::from_millis(rng.random_range(300..1200)));
            let from = shared.now();
            shared.history().faults.push(Fault {
                what: format!("{nemesis:?} round {round}"),
                from,
                first_ack: None,
            });
            let probe = || probe(shared, from, &format!("{PROBE}:{nemesis:?}:{round}"));
            let (probe_ms, producers_ms);
            match nemesis {
                Nemesis::KillLeader | Nemesis::KillFollower => {
                    let victim = match nemesis {
                        Nemesis::KillLeader => leader,
                        _ => other_than(cluster, leader, rng),
                    };
                    cluster.kill(victim)?;
                    probe_ms = probe()?;
                    producers_ms = wait_for_acks(shared, from)?;
                    cluster.start_node(victim)?;
                }
                Nemesis::PauseLeader => {
                    cluster.signal(leader, Signal::STOP)?;
                    let seen = probe();
                    thread::sleep(PAUSE.saturating_sub(shared.since(from)));
                    cluster.signal(leader, Signal::CONT)?;
                    probe_ms = seen?;
                    producers_ms = wait_for_acks(shared, from)?;
                }
                Nemesis::KillAll => {
                    for node in cluster.members() {
                        cluster.kill(node)?;
                    }
                    for node in cluster.members() {
                        cluster.start_node(node)?;
                    }
                    probe_ms = probe()?;
                    producers_ms = wait_for_acks(shared, from)?;
                }
                Nemesis::Power => {
                    let disks = disks.context("a power cut needs disks of its own")?;
                    cut_power(cluster, disks)?;
                    if rng.random_bool(0.25) {
                        thread::sleep(Duration::from_millis(rng.random_range(0..500)));
                        cut_power(cluster, disks)?;
                    }
                    probe_ms = probe()?;
                    producers_ms = wait_for_acks(shared, from)?;
                }
                Nemesis::Saturate => {
                    let busy = Burn::start()?;
                    probe_ms = probe()?;
                    thread::sleep(SATURATION.saturating_sub(shared.since(from)));
                    drop(busy);
                    producers_ms = wait_for_acks(shared, from)?;
                }
                Nemesis::Members => {
                    probe_ms = probe()?;
                    for _ in 0..2 {
                        cluster.grow()?;
                    }
                    shared.set_nodes(member_addresses(cluster));
                    wait_for_acks(shared, shared.now())?;
                    cluster.shrink(other_than(cluster, leader, rng))?;
                    cluster.shrink(cluster.wait_for_leader(LIVENESS)?)?;
                    shared.set_nodes(member_addresses(cluster));
                    producers_ms = wait_for_acks(shared, shared.now())?;
                }
                Nemesis::Replace => {
                    let dead = other_than(cluster, leader, rng);
                    cluster.kill(dead)?;
                    probe_ms = probe()?;
                    wait_for_acks(shared, from)?;
                    cluster.shrink(dead)?;
                    cluster.grow()?;
                    shared.set_nodes(member_addresses(cluster));
                    producers_ms = wait_for_acks(shared, shared.now())?;
                }
            }
            gaps.push(Gap {
                nemesis,
                probe_ms,
                producers_ms,
            });
            let first_ack = first_ack(shared, from);
            if let Some(fault) = shared.history().faults.last_mut() {
                fault.first_ack = first_ack;
            }
        }
    }
    wait_for_acks(shared, shared.now())?;
    Ok(gaps)
}

/// Some member that is not `node`.
fn other_than(cluster: &Cluster, node: usize, rng: &mut StdRng) -> usize {
    let mut others = cluster.members();
    others.retain(|other| *other != node);
    others[rng.random_range(0..others.len())]
}

/// Cuts the power of all nodes at once and switches it on again.
fn cut_power(cluster: &mut Cluster, disks: &Disks) -> anyhow::Result<()> {
    let members = cluster.members();
    for node in &members {
        cluster.signal(*node, Signal::STOP)?;
    }
    let pids: Vec<u32> = members.iter().filter_map(|n| cluster.pid(*n)).collect();
    disks.cut(&pids, || {
        members.iter().try_for_each(|node| cluster.kill(*node))
    })?;
    members
        .iter()
        .try_for_each(|node| cluster.start_node(*node))
}

fn member_addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    let addresses = cluster.addresses();
    cluster.members().iter().map(|n| addresses[*n]).collect()
}

/// When the first send of a producer that was invoked after `from` was acknowledged.
fn first_ack(shared: &Shared, from: u64) -> Option<u64> {
    let history = shared.history();
    let acks = history
        .sends
        .iter()
        .filter(|s| s.invoked > from && matches!(s.outcome, Outcome::Ok(_)))
        .filter(|s| !s.body.starts_with(PROBE));
    acks.map(|s| s.ended).min()
}

/// Waits for an acknowledgement of a producer's send that was invoked after `from`; answers after how many
/// milliseconds it came.
fn wait_for_acks(shared: &Shared, from: u64) -> anyhow::Result<u64> {
    let end = Instant::now() + LIVENESS;
    loop {
        if let Some(ack) = first_ack(shared, from) {
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
