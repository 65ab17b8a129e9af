//! Strikes as a schedule says, and undoes it when its time is over. Faults may overlap; a node suffers one
//! fault of its process or disk at a time, and links as many as there are.

mod machine;
mod strike;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::Signal;

use crate::burn::Burn;
use crate::cluster::Cluster;
use crate::net::Net;
use crate::power::Disks;
use crate::schedule::{Fault, Schedule};
use crate::switch::{Direction, Link};
use crate::trap::Trap;
use crate::workload::Workload;
pub use machine::Cuts;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(10);
/// How long a node may take to end of what it could not read or write.
const EXCUSED: Duration = Duration::from_secs(2);
/// Milliseconds after its end in which a schedule may catch up.
const LATE: u64 = 10_000;
/// A storm of kills kills so often.
const STORM: Duration = Duration::from_millis(300);

/// What is struck, and how far it has come.
pub(crate) struct Storm<'a> {
    cluster: &'a mut Cluster,
    net: Option<&'a Net>,
    disks: Option<&'a Disks>,
    work: &'a Workload,
    active: Vec<Active>,
    /// The node whose disk is damaged or lost; always the same one, for a majority has to keep each
    /// byte.
    rotten: Option<usize>,
    /// What was wrong on the way.
    pub(crate) wrong: Vec<String>,
    /// What was cut.
    pub(crate) cuts: Cuts,
}

/// A fault that lasts.
struct Active {
    fault: Fault,
    /// Milliseconds since the start.
    until: u64,
    /// Nanoseconds since the start, see [`Workload::note_fault`].
    from: u64,
    /// Nodes whose processes or disks it has.
    nodes: Vec<usize>,
    links: Vec<(Direction, Link)>,
    /// Frames hit before it, or what it has hit.
    seen: u64,
    burn: Option<Burn>,
    trap: Option<Trap>,
    /// Nodes whose clocks it has, by how many milliseconds these are off, and to which side.
    clocks: Vec<usize>,
    off: u64,
    ahead: bool,
    /// Of what comes again and again: milliseconds since the start.
    next: u64,
    dice: StdRng,
}

impl<'a> Storm<'a> {
    pub(crate) fn new(
        cluster: &'a mut Cluster,
        net: Option<&'a Net>,
        disks: Option<&'a Disks>,
        work: &'a Workload,
    ) -> Self {
        Self {
            cluster,
            net,
            disks,
            work,
            active: Vec::new(),
            rotten: None,
            wrong: Vec::new(),
            cuts: Cuts::default(),
        }
    }

    /// Strikes until the schedule is over, and undoes everything. What had to wait for its victims may come and
    /// end later.
    pub(crate) fn run(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        let mut due = schedule.windows.iter().peekable();
        let end = 1000 * schedule.time;
        loop {
            let now = self.now();
            let is_over = due.peek().is_none() && self.active.is_empty();
            if now >= end && (is_over || now >= end + LATE) {
                break;
            }
            while let Some(n) = self.active.iter().position(|a| a.until <= now) {
                let ended = self.active.remove(n);
                self.undo(ended)?;
            }
            // What finds its victims taken waits for them, and the others wait behind it.
            while let Some(window) = due.peek().filter(|window| window.at <= self.now()) {
                let struck = self.strike(window);
                if !struck.with_context(|| format!("cannot strike: {}", window.fault.name()))? {
                    break;
                }
                due.next();
            }
            self.again()?;
            self.look_for_the_dead()?;
            thread::sleep(TICK);
        }
        while let Some(left) = self.active.pop() {
            self.undo(left)?;
        }
        self.look_for_the_dead()
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        self.work.now() / 1_000_000
    }

    /// Nodes that no fault has.
    fn free(&self) -> Vec<usize> {
        let is_free = |node: &usize| !self.active.iter().any(|a| a.nodes.contains(node));
        self.cluster.members().into_iter().filter(is_free).collect()
    }

    fn set_links(&self) {
        if let Some(net) = self.net {
            let links = self.active.iter().flat_map(|active| &active.links);
            net.set(&links.copied().collect::<Vec<_>>());
        }
    }

    /// What happens again and again while a fault lasts.
    fn again(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        for n in 0..self.active.len() {
            if self.active[n].next > now {
                continue;
            }
            match self.active[n].fault {
                Fault::PowerStorm => {
                    let mut active = self.active.remove(n);
                    let again = self.cut_again(&mut active);
                    active.next = now + active.dice.random_range(100..1_500);
                    self.active.insert(n, active);
                    again?;
                }
                Fault::ClockJump | Fault::ClockDrift | Fault::ClockStrobe => {
                    let mut active = self.active.remove(n);
                    let at = now.saturating_sub(active.from / 1_000_000);
                    let next = self.set_clocks(&mut active, at);
                    self.active.insert(n, active);
                    self.active[n].next = now.saturating_add(next?);
                }
                Fault::KillStorm => {
                    let node = self.active[n].nodes[0];
                    self.look_at(node)?;
                    if self.cluster.pid(node).is_some() {
                        self.cluster.kill(node)?;
                        self.active[n].seen += 1;
                    }
                    self.cluster.start_node(node)?;
                    let pause = self.active[n].dice.random_range(Duration::ZERO..STORM);
                    self.active[n].next = now + u64::try_from(pause.as_millis())?;
                }
                Fault::RestartRolling => {
                    // As an operator, it waits for one node before it goes on with the next.
                    if !self.are_up(&self.active[n].nodes)? {
                        self.active[n].next = now + 200;
                        continue;
                    }
                    let seen = usize::try_from(self.active[n].seen)?;
                    if let Some(node) = self.active[n].nodes.get(seen).copied() {
                        if !self.cluster.stop(node)? {
                            self.wrong
                                .push(format!("n{node} did not end well after SIGTERM"));
                        }
                        self.cluster.start_node(node)?;
                        self.active[n].seen += 1;
                        self.active[n].next = now + 500;
                    }
                }
                Fault::PartitionFlapping | Fault::SlowSwizzle => {
                    let active = &mut self.active[n];
                    for (_, link) in &mut active.links {
                        link.cut = active.dice.random_bool(0.5);
                    }
                    active.next = now + active.dice.random_range(100..1_200);
                    self.set_links();
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether these nodes have all come up since they were started.
    fn are_up(&self, nodes: &[usize]) -> anyhow::Result<bool> {
        nodes
            .iter()
            .try_fold(true, |all, node| Ok(all && self.cluster.is_up(*node)?))
    }

    fn undo(&mut self, active: Active) -> anyhow::Result<()> {
        use Fault as F;
        let Active {
            fault,
            from,
            nodes,
            links,
            mut seen,
            burn,
            trap,
            clocks,
            ..
        } = active;
        drop(burn);
        self.mend_clocks(&clocks)?;
        let mut unsure = 0;
        if let Some(trap) = trap {
            let (changed, under_way) = trap.end()?;
            seen += changed;
            unsure = under_way;
        }
        match fault {
            F::PauseLeader | F::PauseFollower | F::PauseMajority => {
                for node in &nodes {
                    self.cluster.signal(*node, Signal::CONT)?;
                }
            }
            F::FullOne | F::FullMajority => {
                for node in &nodes {
                    // One that has just been started may need space for its first files.
                    let is_up = self.are_up(&[*node])?;
                    self.disks()?.free(*node)?;
                    if !is_up {
                        self.excuse(*node)?;
                    }
                }
            }
            F::SyscallSync if seen > 0 => {
                self.bury(nodes[0])?;
            }
            // It may have had to read.
            F::SyscallRead | F::SyscallSync if seen + unsure > 0 => self.excuse(nodes[0])?,
            F::EioLeader | F::EioFollower => {
                for node in &nodes {
                    seen += self.bury(*node)?;
                    self.disks()?.repair(*node)?;
                }
            }
            _ => {}
        }
        if let Some(net) = self.net
            && !links.is_empty()
        {
            seen = net.touched(links.iter().map(|(direction, _)| *direction)) - seen;
            self.set_links();
        }
        for node in nodes {
            if self.cluster.pid(node).is_none() {
                self.cluster.start_node(node)?;
            }
        }
        self.work.note_end(from, seen);
        Ok(())
    }

    /// No node ends without a reason.
    fn look_for_the_dead(&mut self) -> anyhow::Result<()> {
        for node in self.free() {
            if self.look_at(node)? {
                self.cluster.start_node(node)?;
            }
        }
        Ok(())
    }

    /// Whether a node has ended by itself, which is wrong then.
    fn look_at(&mut self, node: usize) -> anyhow::Result<bool> {
        let ended = self.cluster.ended(node)?;
        self.wrong
            .extend(ended.map(|status| format!("n{node} ended by itself: {status}")));
        Ok(ended.is_some())
    }

    /// Gives a node time to end of what it has suffered, or to come up in spite of it.
    fn excuse(&mut self, node: usize) -> anyhow::Result<()> {
        let end = Instant::now() + EXCUSED;
        while self.cluster.ended(node)?.is_none() && Instant::now() < end {
            thread::sleep(TICK);
        }
        Ok(())
    }
}
