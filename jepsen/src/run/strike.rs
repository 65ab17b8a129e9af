//! Strikes fault after fault, each only when the group is whole again.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde_json::Value;

use super::removal::Removed;
use super::{Gap, Nemesis, Plan};
use crate::burn::Burn;
use crate::cluster::{Cluster, status};
use crate::damage;
use crate::power::Disks;
use crate::replicas;
use crate::schedule::Fault;
use crate::workload::{LIVENESS, Workload};

/// How long a fault lasts that is not a single moment.
const PAUSE: Duration = Duration::from_secs(10);
const SATURATION: Duration = Duration::from_secs(30);
/// How long nodes are watched that must not lead by themselves.
const WATCH: Duration = Duration::from_secs(2);

/// Whom it strikes, and what has come of it.
pub(super) struct Striker<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) disks: Option<&'a Disks>,
    pub(super) work: &'a Workload,
    pub(super) rng: StdRng,
    /// What retention has removed.
    pub(super) removed: Removed,
}

impl Striker<'_> {
    /// Injects the plan's faults one after the other.
    pub(super) fn strike_all(&mut self, plan: &Plan) -> anyhow::Result<Vec<Gap>> {
        let mut gaps = Vec::new();
        for round in 0..plan.rounds {
            for &nemesis in &plan.nemeses {
                let leader = self.cluster.wait_for_leader(LIVENESS)?;
                self.work.wait_for_acks(self.work.now())?;
                let pause = self.rng.random_range(300..1200);
                thread::sleep(Duration::from_millis(pause));
                let from = self.work.note_fault(format!("{nemesis:?} round {round}"));
                gaps.push(self.strike(nemesis, leader, from, plan.sync_flush)?);
            }
        }
        self.work.wait_for_acks(self.work.now())?;
        Ok(gaps)
    }

    /// One fault from its beginning, at `from`, until the group serves again.
    fn strike(
        &mut self,
        nemesis: Nemesis,
        leader: usize,
        mut from: u64,
        sync_flush: bool,
    ) -> anyhow::Result<Gap> {
        let work = self.work;
        let probe = |from| work.probe(from, &format!("{nemesis:?}:{from}"));
        let (probe_ms, producers_ms);
        match nemesis {
            Nemesis::KillLeader | Nemesis::KillFollower => {
                let victim = match nemesis {
                    Nemesis::KillLeader => leader,
                    _ => self.other_than(&[leader]),
                };
                self.cluster.kill(victim)?;
                probe_ms = probe(from)?;
                producers_ms = work.wait_for_acks(from)?;
                self.cluster.start_node(victim)?;
            }
            Nemesis::PauseLeader => {
                self.cluster.signal(leader, Signal::STOP)?;
                let seen = probe(from);
                thread::sleep(PAUSE.saturating_sub(work.since(from)));
                self.cluster.signal(leader, Signal::CONT)?;
                probe_ms = seen?;
                producers_ms = work.wait_for_acks(from)?;
            }
            Nemesis::KillAll => {
                for node in self.cluster.members() {
                    self.cluster.kill(node)?;
                }
                for node in self.cluster.members() {
                    self.cluster.start_node(node)?;
                }
                probe_ms = probe(from)?;
                producers_ms = work.wait_for_acks(from)?;
            }
            Nemesis::Power => {
                let all = self.cluster.members();
                from = self.cut_power(&all)?;
                if self.rng.random_bool(0.25) {
                    let pause = self.rng.random_range(0..500);
                    thread::sleep(Duration::from_millis(pause));
                    self.cut_power(&all)?;
                }
                probe_ms = probe(from)?;
                producers_ms = work.wait_for_acks(from)?;
            }
            Nemesis::PowerOne => {
                let (victim, from) = self.cut_power_of_one(leader)?;
                probe_ms = probe(from)?;
                producers_ms = work.wait_for_acks(from)?;
                wait_until_sound(self.cluster, sync_flush, &[victim])?;
            }
            Nemesis::Blackout | Nemesis::BlackoutLongest => {
                let all = self.cluster.members();
                from = self.cut_power(&all)?;
                if nemesis == Nemesis::Blackout {
                    watch_quarantine(self.cluster)?;
                    self.cluster.admin(&["raftRecover", "--wait", "60"])?;
                }
                probe_ms = probe(from)?;
                producers_ms = work.wait_for_acks(from)?;
                wait_until_sound(self.cluster, sync_flush, &all)?;
            }
            Nemesis::DamageOne => {
                from = self.damage_one(leader)?;
                probe_ms = probe(from)?;
                producers_ms = work.wait_for_acks(from)?;
                wait_until_mended(self.cluster)?;
            }
            Nemesis::Snapshot => {
                probe_ms = probe(from)?;
                producers_ms = self.rebuild(leader)?;
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
                    self.cluster.grow()?;
                }
                work.set_nodes(self.addresses());
                work.wait_for_acks(work.now())?;
                let other = self.other_than(&[leader]);
                self.cluster.shrink(other)?;
                let leader = self.cluster.wait_for_leader(LIVENESS)?;
                self.cluster.shrink(leader)?;
                work.set_nodes(self.addresses());
                producers_ms = work.wait_for_acks(work.now())?;
            }
            Nemesis::Replace => {
                let dead = self.other_than(&[leader]);
                self.cluster.kill(dead)?;
                probe_ms = probe(from)?;
                work.wait_for_acks(from)?;
                self.cluster.shrink(dead)?;
                self.cluster.grow()?;
                work.set_nodes(self.addresses());
                producers_ms = work.wait_for_acks(work.now())?;
            }
        }
        Ok(Gap {
            nemesis,
            probe_ms,
            producers_ms,
        })
    }

    /// Some member that is none of `nodes`.
    fn other_than(&mut self, nodes: &[usize]) -> usize {
        let mut others = self.cluster.members();
        others.retain(|other| !nodes.contains(other));
        others[self.rng.random_range(0..others.len())]
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.cluster.addresses();
        let members = self.cluster.members();
        members.into_iter().map(|n| addresses[n]).collect()
    }

    /// Cuts the power of `nodes` at once and switches it on again; when it was cut.
    fn cut_power(&mut self, nodes: &[usize]) -> anyhow::Result<u64> {
        let disks = self.disks.context("a power cut needs disks of its own")?;
        for node in nodes {
            if let Some(status) = self.cluster.ended(*node)? {
                bail!("node {node} ended by itself: {status}");
            }
        }
        let mut from = 0;
        disks.cut_power(self.cluster, nodes, &mut self.rng, || {
            from = self.work.note_strike();
        })?;
        for node in nodes {
            self.cluster.start_node(*node)?;
        }
        Ok(from)
    }

    /// Cuts the power of one node; which, and when.
    fn cut_power_of_one(&mut self, leader: usize) -> anyhow::Result<(usize, u64)> {
        if self.rng.random_bool(0.5) {
            let victim = self.other_than(&[]);
            return Ok((victim, self.cut_power(&[victim])?));
        }
        self.with_one_behind(leader, |striker, victim| {
            Ok((victim, striker.cut_power(&[victim])?))
        })
    }

    /// Strikes a node when only it and one more have all that is acknowledged. That one is down meanwhile, and comes
    /// back later.
    fn with_one_behind<T>(
        &mut self,
        leader: usize,
        strike: impl FnOnce(&mut Self, usize) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let behind = self.other_than(&[leader]);
        self.cluster.signal(behind, Signal::STOP)?;
        let pause = self.rng.random_range(300..900);
        thread::sleep(Duration::from_millis(pause));
        let victim = self.other_than(&[behind]);
        let witness = self.other_than(&[behind, victim]);
        self.cluster.kill(witness)?;
        let struck = strike(self, victim)?;
        self.cluster.signal(behind, Signal::CONT)?;
        // The two that run are a majority, but what the witness acknowledged only the victim may have.
        let pause = self.rng.random_range(500..2500);
        thread::sleep(Duration::from_millis(pause));
        self.cluster.start_node(witness)?;
        Ok(struck)
    }

    /// Flips bits in an old file of one node's log; when.
    fn damage_one(&mut self, leader: usize) -> anyhow::Result<u64> {
        let end = Instant::now() + LIVENESS;
        let stores = || self.cluster.nodes().iter().map(|node| &*node.store);
        while !damage::have_old_logs(stores())? {
            ensure!(Instant::now() < end, "the logs have no file that is full");
            thread::sleep(Duration::from_millis(50));
        }
        self.with_one_behind(leader, |striker, victim| {
            let from = striker.work.note_strike();
            striker.cluster.kill(victim)?;
            let store = &striker.cluster.nodes()[victim].store;
            damage::strike(store, Fault::DamageLog, &mut striker.rng)?;
            striker.cluster.start_node(victim)?;
            Ok(from)
        })
    }

    /// Has the others remove the beginning of their logs while a follower is down whose store is lost. It comes back
    /// by a snapshot, and has to lead. Milliseconds from then to the next acknowledgement.
    fn rebuild(&mut self, leader: usize) -> anyhow::Result<u64> {
        let victim = self.other_than(&[leader]);
        // Nobody commits this again: who has it has it from the snapshot.
        self.work.commit_once(self.cluster.addresses()[leader])?;
        self.cluster.kill(victim)?;
        self.cluster.wipe(victim)?;
        self.removed.remove(self.cluster, leader)?;
        self.cluster.start_node(victim)?;
        // It comes back as another one than it was.
        self.cluster.wait_until_voting(victim, LIVENESS)?;
        ensure!(
            replicas::lead(self.cluster, victim),
            "node {victim} does not lead after its snapshot"
        );
        self.work.wait_for_acks(self.work.now())
    }
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

/// Waits until all nodes have the same bytes as far as all have committed now.
fn wait_until_mended(cluster: &Cluster) -> anyhow::Result<()> {
    let end = Instant::now() + LIVENESS;
    let begin = cluster.logs_begin()?;
    loop {
        let difference = match cluster.committed() {
            Ok(committed) => cluster.compare_logs_from(begin, committed)?,
            Err(e) => Some(format!("{e:#}")),
        };
        let Some(difference) = difference else {
            return Ok(());
        };
        ensure!(Instant::now() < end, "damage is not mended: {difference}");
        thread::sleep(Duration::from_millis(200));
    }
}
