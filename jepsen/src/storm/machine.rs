//! What strikes a node's machine: its power, its disk, its clock.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::Rng;
use rand::rngs::StdRng;

use super::{Active, Storm, TICK};
use crate::clock;
use crate::power::Disks;
use crate::schedule::Fault;

/// How long a node with a dead disk may take to end.
const DEATH: Duration = Duration::from_secs(30);
/// Between two changes of a clock that drifts.
const DRIFT: u64 = 100;

/// Power cuts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cuts {
    /// How often power was cut, of however many nodes at once.
    pub times: u64,
    /// The same, each node counted.
    pub nodes: u64,
    /// Sectors that were not synced and were on a disk nevertheless, beside others that were not.
    pub sectors: u64,
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            times,
            nodes,
            sectors,
        } = self;
        write!(
            f,
            "{times} power cuts of {nodes} nodes with {sectors} torn sectors"
        )
    }
}

impl<'a> Storm<'a> {
    pub(super) fn disks(&self) -> anyhow::Result<&'a Disks> {
        self.disks.context("it needs file systems of its own")
    }

    /// Cuts the power of nodes at once and leaves them without, and counts it.
    pub(super) fn cut_power(&mut self, nodes: &[usize], dice: &mut StdRng) -> anyhow::Result<()> {
        let disks = self.disks()?;
        let sectors = disks.cut_power(self.cluster, nodes, dice, || ())?;
        self.cuts.times += 1;
        self.cuts.nodes += nodes.len() as u64;
        self.cuts.sectors += sectors;
        Ok(())
    }

    /// Starts nodes that have no power, or cuts that of those that have it.
    pub(super) fn cut_again(&mut self, active: &mut Active) -> anyhow::Result<()> {
        let nodes = active.nodes.clone();
        for node in &nodes {
            self.look_at(*node)?;
        }
        if nodes.iter().all(|node| self.cluster.pid(*node).is_some()) {
            self.cut_power(&nodes, &mut active.dice)?;
            active.seen += nodes.len() as u64;
        }
        for node in &nodes {
            if self.cluster.pid(*node).is_none() {
                self.cluster.start_node(*node)?;
            }
        }
        Ok(())
    }

    /// Sets the clocks that a fault has, `at` milliseconds after it began. Milliseconds to the next time.
    pub(super) fn set_clocks(&self, active: &mut Active, at: u64) -> anyhow::Result<u64> {
        let dice = &mut active.dice;
        let (by, next) = match active.fault {
            // All at once; it stays so.
            Fault::ClockJump => (active.off, u64::MAX),
            Fault::ClockDrift => (active.off * at / 10_000, DRIFT),
            _ => (
                active.off * u64::from(dice.random_bool(0.5)),
                dice.random_range(20..400),
            ),
        };
        for node in &active.clocks {
            let ahead = active.ahead;
            self.cluster
                .set_clock(*node, Duration::from_millis(by), ahead)?;
            let pid = self.cluster.pid(*node);
            active.seen += u64::from(pid.is_some_and(clock::is_heard_by));
        }
        Ok(next)
    }

    pub(super) fn mend_clocks(&self, nodes: &[usize]) -> anyhow::Result<()> {
        nodes
            .iter()
            .try_for_each(|node| self.cluster.set_clock(*node, Duration::ZERO, true))
    }

    /// Waits until a node with a dead disk has ended by itself, which it has to.
    pub(super) fn bury(&mut self, node: usize) -> anyhow::Result<u64> {
        let end = Instant::now() + DEATH;
        loop {
            match self.cluster.ended(node)? {
                Some(status) if status.success() => {
                    self.wrong
                        .push(format!("n{node}'s disk failed, and it ended with {status}"));
                    return Ok(1);
                }
                Some(_) => return Ok(1),
                None if Instant::now() > end => {
                    self.wrong
                        .push(format!("n{node}'s disk failed, and it goes on"));
                    self.cluster.kill(node)?;
                    return Ok(1);
                }
                None => thread::sleep(TICK),
            }
        }
    }
}
