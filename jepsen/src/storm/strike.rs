//! How a fault begins: whom it has, and what is done to them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use super::{Active, Storm};
use crate::burn::Burn;
use crate::damage;
use crate::links::links;
use crate::schedule::{Fault, Kind, Window};
use crate::switch::{Direction, Link};
use crate::trap::Trap;

/// How long a node may take to hand over leadership.
const TRANSFER: Duration = Duration::from_millis(500);

impl Storm<'_> {
    /// The leader that was seen last, or some member.
    fn leader(&self, dice: &mut StdRng) -> anyhow::Result<usize> {
        let members = self.cluster.members();
        let seen = self
            .work
            .leader()
            .and_then(|lead| usize::try_from(lead.node).ok());
        let seen = seen.filter(|node| members.contains(node));
        seen.or_else(|| members.choose(dice).copied())
            .context("no members")
    }

    /// The nodes that a fault of processes or disks is to have, if they are all free.
    fn victims(&mut self, fault: Fault, dice: &mut StdRng) -> anyhow::Result<Option<Vec<usize>>> {
        use Fault as F;
        let leader = self.leader(dice)?;
        let members = self.cluster.members();
        let mut others: Vec<usize> = members.iter().copied().filter(|n| *n != leader).collect();
        others.shuffle(dice);
        let majority = members.len() / 2 + 1;
        let some = |count: usize, dice: &mut StdRng| -> Vec<usize> {
            members.choose_multiple(dice, count).copied().collect()
        };
        let victims = match fault {
            F::KillLeader | F::PauseLeader | F::EioLeader | F::TransferLeader => vec![leader],
            F::KillFollower | F::PauseFollower | F::EioFollower => others[..1].to_vec(),
            F::KillStorm | F::PowerOne | F::FullOne => some(1, dice),
            F::SyscallRead | F::SyscallSync | F::SyscallSlow => some(1, dice),
            F::PowerStorm => some(dice.random_range(1..=members.len()), dice),
            F::KillMajority | F::PauseMajority | F::PowerMajority | F::FullMajority => {
                some(majority, dice)
            }
            F::KillAll | F::PowerAll => members,
            F::RestartRolling => {
                let mut order = members;
                order.shuffle(dice);
                order
            }
            F::DamageLog | F::DamageDerived | F::DamageTruncated | F::LostDisk => {
                let rotten = *self.rotten.get_or_insert(others[0]);
                vec![rotten]
            }
            _ => Vec::new(),
        };
        let free = self.free();
        Ok(victims
            .iter()
            .all(|node| free.contains(node))
            .then_some(victims))
    }

    /// Whether it struck: those that it is to have may have another fault.
    pub(super) fn strike(&mut self, window: &Window) -> anyhow::Result<bool> {
        use Fault as F;
        let mut dice = StdRng::seed_from_u64(window.dice);
        let fault = window.fault;
        let Some(nodes) = self.victims(fault, &mut dice)? else {
            return Ok(false);
        };
        // The end of one would set the clocks of another right.
        let is_clock = |fault: F| fault.kind() == Kind::Clock;
        if is_clock(fault) && self.active.iter().any(|active| is_clock(active.fault)) {
            return Ok(false);
        }
        // Whom to is its own choice. One that does not lead refuses, which is no fault then.
        let is_transfer = fault == F::TransferLeader;
        if is_transfer && self.cluster.transfer(nodes[0], None, TRANSFER).is_err() {
            return Ok(false);
        }
        let stores = nodes.iter().map(|node| &*self.cluster.nodes()[*node].store);
        if fault.kind() == Kind::Damage && !damage::is_possible(stores, fault)? {
            return Ok(false);
        }
        let links = self.links(fault, &mut dice)?;
        let from = self.work.note_fault(name(fault, &nodes, &links));
        let mut active = Active {
            fault,
            until: self.now() + window.lasts,
            from,
            nodes,
            links,
            seen: 0,
            burn: None,
            trap: None,
            clocks: Vec::new(),
            off: 0,
            ahead: true,
            next: 0,
            dice,
        };
        let nodes = active.nodes.clone();
        match fault {
            F::KillLeader | F::KillFollower | F::KillMajority | F::KillAll | F::KillStorm => {
                for node in &nodes {
                    self.cluster.kill(*node)?;
                    active.seen += 1;
                }
            }
            F::PauseLeader | F::PauseFollower | F::PauseMajority => {
                for node in &nodes {
                    self.cluster.signal(*node, Signal::STOP)?;
                    active.seen += 1;
                }
            }
            F::RestartRolling => {}
            F::TransferLeader => {
                active.seen = 1;
                active.until = 0;
            }
            F::PowerOne | F::PowerMajority | F::PowerAll | F::PowerStorm => {
                self.cut_power(&nodes, &mut active.dice)?;
                active.seen = nodes.len() as u64;
            }
            F::FullOne | F::FullMajority => {
                for node in &nodes {
                    let leave = active.dice.random_range(0..4 << 20);
                    self.disks()?.fill(*node, leave)?;
                    active.seen += 1;
                }
            }
            F::EioLeader | F::EioFollower => {
                for node in &nodes {
                    self.disks()?.fail(*node)?;
                }
            }
            F::DamageLog | F::DamageDerived | F::DamageTruncated => {
                for node in &nodes {
                    self.cluster.kill(*node)?;
                    let store = self.cluster.nodes()[*node].store.clone();
                    active.seen += damage::strike(&store, fault, &mut active.dice)?;
                }
            }
            F::LostDisk => {
                for node in &nodes {
                    self.cluster.kill(*node)?;
                    damage::empty(&self.cluster.nodes()[*node].store)?;
                    active.seen += 1;
                }
            }
            F::ClockJump | F::ClockDrift | F::ClockStrobe => {
                let all = self.cluster.members();
                let count = active.dice.random_range(1..=all.len());
                active.clocks = all
                    .choose_multiple(&mut active.dice, count)
                    .copied()
                    .collect();
                // From a tenth of a second to hours, each power of ten as often.
                active.off = 10_f64.powf(active.dice.random_range(2.0..7.0)) as u64;
                active.ahead = active.dice.random_bool(0.5);
            }
            F::SyscallRead | F::SyscallSync | F::SyscallSlow => {
                let pid = self
                    .cluster
                    .pid(nodes[0])
                    .context("the node does not run")?;
                let store = &self.cluster.nodes()[nodes[0]].store;
                let log = store.with_extension("trap");
                // On a busy machine the tracer may be late, or the node gone: then nothing is felt.
                match Trap::set(pid, fault, store, &log, &mut active.dice) {
                    Ok(trap) => active.trap = Some(trap),
                    Err(e) => eprintln!("{}: {e:#}", fault.name()),
                }
            }
            F::SaturateCpu => {
                active.burn = Some(Burn::start()?);
                active.seen = 1;
            }
            _ => {
                let net = self.net.context("it needs a network of its own")?;
                active.seen = net.touched(active.links.iter().map(|(direction, _)| *direction));
            }
        }
        self.active.push(active);
        self.set_links();
        Ok(true)
    }

    /// What a fault does to links.
    fn links(&self, fault: Fault, dice: &mut StdRng) -> anyhow::Result<Vec<(Direction, Link)>> {
        let Some(net) = self.net else {
            return Ok(Vec::new());
        };
        let leader = self.leader(dice)?;
        let nodes = self.cluster.members();
        Ok(links(
            fault,
            (net.namesrv(), net.clients()),
            &nodes,
            leader,
            dice,
        ))
    }
}

/// For people and the history: what, and of whom.
fn name(fault: Fault, nodes: &[usize], links: &[(Direction, Link)]) -> String {
    let mut name = fault.name();
    let struck: Vec<String> = nodes.iter().map(|n| format!("n{n}")).collect();
    if !struck.is_empty() {
        name += &format!(" {}", struck.join(","));
    }
    let mut directions: BTreeMap<String, usize> = BTreeMap::new();
    for ((from, to), _) in links {
        directions.insert(format!("{from}>{to}"), 1);
    }
    if !directions.is_empty() && directions.len() <= 6 {
        let all: Vec<String> = directions.into_keys().collect();
        name += &format!(" {}", all.join(","));
    }
    name
}
