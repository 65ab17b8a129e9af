//! One run: producers and a committing consumer group at work while faults strike, then quiet, then
//! everything is read back and judged.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

use crate::attack::HISTORY;
use crate::burn::Burn;
use crate::check::{self, CHECKERS, Checker};
use crate::cluster::{Cluster, Options, status};
use crate::history::History;
use crate::power::Disks;
use crate::record;
use crate::workload::{Kind, LIVENESS, Workload, read_back};

/// Clients that send: one for each queue, and one more.
const PRODUCERS: u32 = 5;
/// How long a fault lasts that is not a single moment.
const PAUSE: Duration = Duration::from_secs(10);
const SATURATION: Duration = Duration::from_secs(30);
/// How long nodes are watched that must not lead by themselves.
const WATCH: Duration = Duration::from_secs(2);
/// What a group without power may lose under ASYNC_FLUSH was acknowledged so shortly before: the flush
/// interval, and what a slow machine takes to write it.
const LOSS_LIMIT: Duration = Duration::from_secs(10);

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
    /// The power of all nodes is cut at once, and now and then again while they start. Takes root, as
    /// all cuts do.
    Power,
    /// The power of one node is cut; every other time when only it and one more have all that is
    /// acknowledged, and that one is killed and comes back later.
    PowerOne,
    /// The power of all nodes is cut under ASYNC_FLUSH: none may lead before the operator says so, and
    /// then nothing may be lost but what was acknowledged just before.
    Blackout,
    /// The same with `uncleanRecovery=longest-log`: the longest log leads by itself.
    BlackoutLongest,
}

impl Nemesis {
    /// Whether it cuts the power of nodes.
    pub fn cuts_power(self) -> bool {
        matches!(self, Self::Power | Self::PowerOne) || self.may_lose()
    }

    /// Whether what was acknowledged just before it may be lost.
    fn may_lose(self) -> bool {
        matches!(self, Self::Blackout | Self::BlackoutLongest)
    }

    fn changes_members(self) -> bool {
        matches!(self, Self::Members | Self::Replace)
    }
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

/// Runs `plan` against nodes of `rmq` with their files under `dir`.
pub fn run(rmq: &Path, dir: &Path, plan: &Plan) -> anyhow::Result<Report> {
    let has = |is: fn(Nemesis) -> bool| plan.nemeses.iter().any(|nemesis| is(*nemesis));
    let cuts_power = has(Nemesis::cuts_power);
    let may_lose = has(Nemesis::may_lose);
    ensure!(
        !(cuts_power && has(Nemesis::changes_members)),
        "a node that is added has no disk whose power could be cut"
    );
    ensure!(
        !(may_lose && plan.sync_flush),
        "with SYNC_FLUSH nothing may be lost: use power instead of blackout"
    );
    let longest_log = plan.nemeses.contains(&Nemesis::BlackoutLongest);
    ensure!(
        !(longest_log && plan.nemeses.contains(&Nemesis::Blackout)),
        "a group has one uncleanRecovery"
    );
    let mut options = Options {
        sync_flush: plan.sync_flush,
        machines: cuts_power,
        leashed: true,
        ..Options::default()
    };
    if longest_log {
        options.more = "uncleanRecovery=longest-log".into();
    }
    let disks = cuts_power
        .then(|| Disks::mount(dir, options.nodes))
        .transpose()?;
    let mut cluster = Cluster::start(rmq, dir, &options)?;
    let term = cluster.term()?;
    let work = Workload::start(&cluster, Kind::Queue, (PRODUCERS, 0), plan.seed);
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let struck = strike_all(&mut cluster, disks.as_ref(), &work, plan, &mut rng);
    let start = work.start_time();
    let mut history = work.stop()?;
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
    read_back(cluster.addresses()[leader], start, &mut history)?;
    fs::write(dir.join(HISTORY), record::write(&history))?;
    let mut loss = String::new();
    let checkers: &[(&str, Checker)] = if may_lose {
        let lost = check::forgive(&mut history);
        if lost.age > LOSS_LIMIT {
            wrong.push(format!("lost although synced long ago: {lost}"));
        }
        loss = format!("; {lost}");
        &CHECKERS[..check::WITHOUT_OFFSETS]
    } else {
        &CHECKERS
    };
    wrong.extend(check::judge(&history, checkers));
    Ok(Report {
        wrong,
        summary: summary(&history, terms, end) + &loss,
        gaps,
        terms,
    })
}

fn summary(history: &History, terms: u64, end: u64) -> String {
    let (acked, unknown) = history.counts();
    format!(
        "{} sends: {acked} acknowledged, {unknown} unknown, {} refused; {} faults; {terms} terms; \
         log of {end} bytes",
        history.sends.len(),
        history.sends.len() - acked - unknown,
        history.faults.len(),
    )
}

/// Injects the plan's faults one after the other, each only when the group is whole again.
fn strike_all(
    cluster: &mut Cluster,
    disks: Option<&Disks>,
    work: &Workload,
    plan: &Plan,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<Gap>> {
    let mut gaps = Vec::new();
    for round in 0..plan.rounds {
        for &nemesis in &plan.nemeses {
            let leader = cluster.wait_for_leader(LIVENESS)?;
            work.wait_for_acks(work.now())?;
            thread::sleep(Duration::from_millis(rng.random_range(300..1200)));
            let from = work.note_fault(format!("{nemesis:?} round {round}"));
            let probe = |from| work.probe(from, &format!("{nemesis:?}:{round}"));
            let (probe_ms, producers_ms);
            match nemesis {
                Nemesis::KillLeader | Nemesis::KillFollower => {
                    let victim = match nemesis {
                        Nemesis::KillLeader => leader,
                        _ => other_than(cluster, &[leader], rng),
                    };
                    cluster.kill(victim)?;
                    probe_ms = probe(from)?;
                    producers_ms = work.wait_for_acks(from)?;
                    cluster.start_node(victim)?;
                }
                Nemesis::PauseLeader => {
                    cluster.signal(leader, Signal::STOP)?;
                    let seen = probe(from);
                    thread::sleep(PAUSE.saturating_sub(work.since(from)));
                    cluster.signal(leader, Signal::CONT)?;
                    probe_ms = seen?;
                    producers_ms = work.wait_for_acks(from)?;
                }
                Nemesis::KillAll => {
                    for node in cluster.members() {
                        cluster.kill(node)?;
                    }
                    for node in cluster.members() {
                        cluster.start_node(node)?;
                    }
                    probe_ms = probe(from)?;
                    producers_ms = work.wait_for_acks(from)?;
                }
                Nemesis::Power => {
                    let all = cluster.members();
                    let from = cut_power(cluster, disks, &all, work, rng)?;
                    if rng.random_bool(0.25) {
                        thread::sleep(Duration::from_millis(rng.random_range(0..500)));
                        cut_power(cluster, disks, &all, work, rng)?;
                    }
                    probe_ms = probe(from)?;
                    producers_ms = work.wait_for_acks(from)?;
                }
                Nemesis::PowerOne => {
                    let (victim, from) = cut_power_of_one(cluster, disks, leader, work, rng)?;
                    probe_ms = probe(from)?;
                    producers_ms = work.wait_for_acks(from)?;
                    wait_until_sound(cluster, plan.sync_flush, &[victim])?;
                }
                Nemesis::Blackout | Nemesis::BlackoutLongest => {
                    let all = cluster.members();
                    let from = cut_power(cluster, disks, &all, work, rng)?;
                    if nemesis == Nemesis::Blackout {
                        watch_quarantine(cluster)?;
                        cluster.admin(&["raftRecover", "--wait", "60"])?;
                    }
                    probe_ms = probe(from)?;
                    producers_ms = work.wait_for_acks(from)?;
                    wait_until_sound(cluster, plan.sync_flush, &all)?;
                }
                Nemesis::Saturate => {
                    let busy = Burn::start()?;
                    probe_ms = probe(from)?;
                    thread::sleep(SATURATION.saturating_sub(work.since(from)));
                    drop(busy);
                    producers_ms = work.wait_for_acks(from)?;
                }
                Nemesis::Members => {
                    probe_ms = probe(from)?;
                    for _ in 0..2 {
                        cluster.grow()?;
                    }
                    work.set_nodes(member_addresses(cluster));
                    work.wait_for_acks(work.now())?;
                    cluster.shrink(other_than(cluster, &[leader], rng))?;
                    cluster.shrink(cluster.wait_for_leader(LIVENESS)?)?;
                    work.set_nodes(member_addresses(cluster));
                    producers_ms = work.wait_for_acks(work.now())?;
                }
                Nemesis::Replace => {
                    let dead = other_than(cluster, &[leader], rng);
                    cluster.kill(dead)?;
                    probe_ms = probe(from)?;
                    work.wait_for_acks(from)?;
                    cluster.shrink(dead)?;
                    cluster.grow()?;
                    work.set_nodes(member_addresses(cluster));
                    producers_ms = work.wait_for_acks(work.now())?;
                }
            }
            gaps.push(Gap {
                nemesis,
                probe_ms,
                producers_ms,
            });
        }
    }
    work.wait_for_acks(work.now())?;
    Ok(gaps)
}

/// Some member that is none of `nodes`.
fn other_than(cluster: &Cluster, nodes: &[usize], rng: &mut StdRng) -> usize {
    let mut others = cluster.members();
    others.retain(|other| !nodes.contains(other));
    others[rng.random_range(0..others.len())]
}

/// Cuts the power of `nodes` at once and switches it on again; when it was cut. Every other time some of what
/// was not synced is there nevertheless.
fn cut_power(
    cluster: &mut Cluster,
    disks: Option<&Disks>,
    nodes: &[usize],
    work: &Workload,
    rng: &mut StdRng,
) -> anyhow::Result<u64> {
    let disks = disks.context("a power cut needs disks of its own")?;
    for node in nodes {
        cluster.signal(*node, Signal::STOP)?;
    }
    let pids: Vec<u32> = nodes.iter().filter_map(|n| cluster.pid(*n)).collect();
    let mut from = 0;
    let torn = rng.random_bool(0.5).then_some(rng);
    disks.cut(nodes, &pids, torn, || {
        from = work.note_strike();
        nodes.iter().try_for_each(|node| cluster.kill(*node))
    })?;
    for node in nodes {
        cluster.start_node(*node)?;
    }
    Ok(from)
}

/// Cuts the power of one node; which, and when.
fn cut_power_of_one(
    cluster: &mut Cluster,
    disks: Option<&Disks>,
    leader: usize,
    work: &Workload,
    rng: &mut StdRng,
) -> anyhow::Result<(usize, u64)> {
    if rng.random_bool(0.5) {
        let members = cluster.members();
        let victim = members[rng.random_range(0..members.len())];
        let from = cut_power(cluster, disks, &[victim], work, rng)?;
        return Ok((victim, from));
    }
    let behind = other_than(cluster, &[leader], rng);
    cluster.signal(behind, Signal::STOP)?;
    thread::sleep(Duration::from_millis(rng.random_range(300..900)));
    let victim = other_than(cluster, &[behind], rng);
    let witness = other_than(cluster, &[behind, victim], rng);
    cluster.kill(witness)?;
    let from = cut_power(cluster, disks, &[victim], work, rng)?;
    cluster.signal(behind, Signal::CONT)?;
    // The two that run are a majority, but what the witness acknowledged only it may have.
    thread::sleep(Duration::from_millis(rng.random_range(500..2500)));
    cluster.start_node(witness)?;
    Ok((victim, from))
}

/// Watches nodes that all lost power: each says so, and none leads.
fn watch_quarantine(cluster: &Cluster) -> anyhow::Result<()> {
    // None of one that does not answer in time.
    let groups = || -> Vec<Option<Value>> {
        let group = |n: usize| Some(status(cluster.addresses()[n]).ok()?["group"].clone());
        cluster.members().into_iter().map(group).collect()
    };
    let is_quarantined = |group: &Value| group["quarantined"] == true;
    let end = Instant::now() + LIVENESS;
    while !groups()
        .iter()
        .all(|group| group.as_ref().is_some_and(is_quarantined))
    {
        ensure!(Instant::now() < end, "not all nodes are in quarantine");
        thread::sleep(Duration::from_millis(50));
    }
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        ensure!(
            groups()
                .iter()
                .flatten()
                .all(|group| is_quarantined(group) && group["role"] != "leader"),
            "a node left its quarantine by itself"
        );
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Waits until no node is in quarantine, in which with ASYNC_FLUSH those without power have been.
fn wait_until_sound(cluster: &Cluster, sync_flush: bool, cut: &[usize]) -> anyhow::Result<()> {
    let end = Instant::now() + LIVENESS;
    for node in cluster.members() {
        let address = cluster.addresses()[node];
        while !status(address).is_ok_and(|status| status["group"]["quarantined"] == false) {
            ensure!(Instant::now() < end, "node {node} stays in quarantine");
            thread::sleep(Duration::from_millis(50));
        }
    }
    for node in cut.iter().filter(|_| !sync_flush) {
        ensure!(
            cluster.last_life(*node)?.contains("in QUARANTINE"),
            "node {node} did not notice that its power was cut"
        );
    }
    Ok(())
}

fn member_addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    let addresses = cluster.addresses();
    cluster.members().iter().map(|n| addresses[*n]).collect()
}
