//! What strikes when: drawn from a seed before the run, and written down, so that it can be repeated.
//! Only who leads at that moment is not known before.

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::cluster::Target;
use crate::workload::Kind as Workload;

/// A family of faults, from which a schedule draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Nodes that do not hear each other, or one direction only.
    Partition,
    /// Links that are slow, narrow, or stop one after the other.
    Slow,
    /// Links that lose, double, damage and reorder frames.
    Flaky,
    /// kill -9 of one node, most, or all.
    Kill,
    /// SIGSTOP of one node or most.
    Pause,
    /// SIGTERM of one node after the other.
    Restart,
    /// Leadership is handed over.
    Transfer,
    /// Power cuts of one node, most, or all. Means SYNC_FLUSH.
    Power,
    /// Disks that are full.
    Full,
    /// A disk on which every write ends with EIO.
    Eio,
    /// Flipped bits and cut files on the disk of a node that is down.
    Damage,
    /// A node that is down loses its disk, and comes back as another one.
    Lost,
    /// Processors that are busy with something else.
    Saturate,
    /// Wall clocks of nodes that jump, drift, or go to and fro.
    Clock,
    /// Reads and syncs of a node that fail or take long.
    Syscall,
}

impl Kind {
    /// Whether it needs a network of its own.
    pub fn needs_net(self) -> bool {
        matches!(self, Self::Partition | Self::Slow | Self::Flaky)
    }

    /// Whether it needs file systems of its own.
    pub fn needs_disks(self) -> bool {
        matches!(self, Self::Power | Self::Full | Self::Eio)
    }

    /// Whether it says anything with these clients: what is delayed comes when a leader's clock says so.
    pub fn works_with(self, workload: Workload) -> bool {
        !(self == Self::Clock && workload == Workload::Delay)
    }

    /// Whether the protocol of such nodes promises anything against it: Java nodes take no transfers, do not end
    /// when a disk fails, and do not mend what was damaged or lost.
    pub fn works_on(self, target: Target) -> bool {
        let of_java = matches!(
            self,
            Self::Partition
                | Self::Slow
                | Self::Flaky
                | Self::Kill
                | Self::Pause
                | Self::Restart
                | Self::Power
                | Self::Saturate
        );
        of_java || !target.is_java()
    }

    /// Its faults.
    fn faults(self) -> Vec<Fault> {
        let all = Fault::value_variants().iter().copied();
        all.filter(|fault| fault.kind() == self).collect()
    }
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// No other node hears or is heard by the leader; clients and name server do.
    PartitionLeader,
    /// The same of a follower.
    PartitionFollower,
    /// Nobody but clients hears or is heard by the leader.
    PartitionLeaderFromAll,
    /// The others do not hear the leader, which hears them.
    PartitionLeaderMute,
    /// The leader does not hear the others, which hear it.
    PartitionLeaderDeaf,
    /// Two nodes do not hear each other; the others hear both.
    PartitionBridge,
    /// No node hears another.
    PartitionAll,
    /// The leader is cut off and joined again, again and again.
    PartitionFlapping,
    /// Clients do not reach the leader, or not its answers them.
    PartitionClients,
    /// The name server hears no node.
    PartitionNamesrv,
    /// Frames between nodes take long, and very differently.
    SlowAll,
    /// Frames from and to the leader do.
    SlowLeader,
    /// The leader's frames to the others pass a narrow link.
    SlowNarrow,
    /// The nodes' links stop one after the other, and go on in another order.
    SlowSwizzle,
    /// Frames between nodes are lost, come twice, in another order, and damaged.
    FlakyAll,
    /// The same of those between clients and nodes.
    FlakyClients,
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of a follower.
    KillFollower,
    /// kill -9 of most nodes.
    KillMajority,
    /// kill -9 of all nodes.
    KillAll,
    /// A node is killed again and again while it starts.
    KillStorm,
    /// SIGSTOP of the leader.
    PauseLeader,
    /// SIGSTOP of a follower.
    PauseFollower,
    /// SIGSTOP of most nodes.
    PauseMajority,
    /// SIGTERM of each node in turn, which is started again at once.
    RestartRolling,
    /// An operator's `raftTransferLeader`.
    TransferLeader,
    /// The power of one node is cut.
    PowerOne,
    /// The power of most nodes.
    PowerMajority,
    /// The power of all nodes.
    PowerAll,
    /// The power of some nodes is cut again and again, while they start and after.
    PowerStorm,
    /// A node's disk is full.
    FullOne,
    /// Most nodes' disks.
    FullMajority,
    /// The leader's disk fails: it has to stop, and gets a disk with what was written so far.
    EioLeader,
    /// The same of a follower.
    EioFollower,
    /// Bits flip in an old file of a node's log, while it is down; in a young log, in its queues.
    DamageLog,
    /// Bits flip in a node's consume queues and index, while it is down.
    DamageDerived,
    /// A node's consume queues and index are cut short, while it is down.
    DamageTruncated,
    /// A node's disk is emptied, while it is down.
    LostDisk,
    /// Two busy processes for each processor.
    SaturateCpu,
    /// Clocks of some nodes are ahead or behind, by up to hours.
    ClockJump,
    /// Clocks of some nodes are too fast or too slow.
    ClockDrift,
    /// Clocks of some nodes go to and fro.
    ClockStrobe,
    /// Some reads of a node's files end with EIO.
    SyscallRead,
    /// A sync of a node's log ends with EIO, and no other call: it has to stop for that alone.
    SyscallSync,
    /// Syncs of a node take long.
    SyscallSlow,
}

impl Fault {
    /// Of which family.
    pub fn kind(self) -> Kind {
        let name = self.name();
        let family = name.split('-').next().unwrap_or_default().to_owned();
        let kinds = Kind::value_variants().iter().copied();
        let mut of = kinds.filter(|kind| value_name(kind) == family);
        of.next().unwrap_or(Kind::Kill)
    }

    /// Whether no majority of three nodes is left to serve when it has struck so many of them.
    pub fn takes_most(self, struck: usize) -> bool {
        match self {
            Self::PartitionAll | Self::KillMajority | Self::KillAll => true,
            Self::PauseMajority | Self::PowerMajority | Self::PowerAll | Self::FullMajority => true,
            Self::PowerStorm => struck > 1,
            _ => false,
        }
    }

    /// As it is written.
    pub fn name(self) -> String {
        value_name(&self)
    }
}

/// How the command line calls a value.
pub fn value_name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map(|v| v.get_name().to_owned()).unwrap_or_default()
}

/// One strike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Milliseconds after the start of the run.
    pub at: u64,
    /// Milliseconds that it lasts.
    pub lasts: u64,
    /// What.
    pub fault: Fault,
    /// The seed of what else there is to draw: victims, rates, bytes.
    pub dice: u64,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// What the nodes run.
    pub target: Target,
    /// What the clients do.
    pub workload: Workload,
    /// From which all is drawn.
    pub seed: u64,
    /// Seconds.
    pub time: u64,
    /// SYNC_FLUSH instead of ASYNC_FLUSH.
    pub sync_flush: bool,
    /// What it was drawn from, whether or not there was time for it.
    pub drawn_from: Vec<Kind>,
    /// In the order of their beginning.
    pub windows: Vec<Window>,
}

/// No fault in the first moments, and none in the last: the clients have to be at work.
const LEAD_IN: u64 = 2_000;
const LEAD_OUT: u64 = 3_000;

impl Schedule {
    /// Draws faults of these kinds for `time` seconds. Each kind strikes at least once, if there is time.
    /// `sync_flush` is drawn if it is not given.
    pub fn draw(
        workload: Workload,
        kinds: &[Kind],
        time: u64,
        seed: u64,
        sync_flush: Option<bool>,
    ) -> anyhow::Result<Self> {
        ensure!(!kinds.is_empty(), "no faults to draw from");
        ensure!(
            time >= 10,
            "a run of {time} s is too short for a fault; 10 s or more"
        );
        let mut kinds = kinds.to_vec();
        kinds.sort_unstable();
        kinds.dedup();
        if let Some(kind) = kinds.iter().find(|kind| !kind.works_with(workload)) {
            let (kind, workload) = (value_name(kind), value_name(&workload));
            bail!("faults of the kind {kind} say nothing with the workload {workload}");
        }
        let mut dice = StdRng::seed_from_u64(seed);
        let cuts_power = kinds.contains(&Kind::Power);
        ensure!(
            !(cuts_power && sync_flush == Some(false)),
            "power cuts of this kind lose nothing with SYNC_FLUSH only; use the command `power` instead"
        );
        let drawn = dice.random_bool(0.5);
        let sync_flush = sync_flush.unwrap_or(cuts_power || drawn);
        // Not all runs are alike: in some one fault follows the other, in some there are two at once.
        let lanes = dice.random_range(1..=2u64);
        let end = 1000 * time - LEAD_OUT;
        let mut windows = Vec::new();
        // The kinds in turn, in an order of their own each time round.
        let mut turn = Vec::new();
        let mut free = vec![LEAD_IN; usize::try_from(lanes)?];
        loop {
            if turn.is_empty() {
                turn.clone_from(&kinds);
                turn.shuffle(&mut dice);
            }
            let kind = turn.pop().context("no kinds")?;
            let fault = *kind
                .faults()
                .choose(&mut dice)
                .context("a kind without faults")?;
            let longest = if kinds.len() > 4 { 6_000 } else { 9_000 };
            let lasts = dice.random_range(1_500..longest);
            let rest = dice.random_range(500..4_000);
            let lane = free.iter_mut().min().context("no lanes")?;
            let at = *lane + dice.random_range(0..500);
            if at + lasts > end {
                break;
            }
            windows.push(Window {
                at,
                lasts,
                fault,
                dice: dice.random(),
            });
            *lane = at + lasts + rest;
        }
        ensure!(!windows.is_empty(), "no fault fits into {time} s");
        windows.sort_by_key(|window| window.at);
        Ok(Self {
            target: Target::Rmq,
            workload,
            seed,
            time,
            sync_flush,
            drawn_from: kinds,
            windows,
        })
    }

    /// With this fault in the place of each of them.
    #[must_use]
    pub fn only(mut self, fault: Fault) -> Self {
        for window in &mut self.windows {
            window.fault = fault;
        }
        self
    }

    /// Whether it is what its seed draws.
    pub fn is_drawn(&self) -> bool {
        let flush = Some(self.sync_flush);
        let drawn = Self::draw(self.workload, &self.drawn_from, self.time, self.seed, flush);
        drawn.is_ok_and(|drawn| drawn.windows == self.windows)
    }

    /// The kinds that are in it, each once.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.windows.iter().map(|w| w.fault.kind()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// For a file.
    pub fn to_json(&self) -> String {
        let windows = self.windows.iter().map(|w| {
            json!({"at_ms": w.at, "lasts_ms": w.lasts, "fault": w.fault.name(), "dice": w.dice})
        });
        let schedule = json!({
            "target": value_name(&self.target),
            "workload": value_name(&self.workload),
            "seed": self.seed,
            "time_s": self.time,
            "sync_flush": self.sync_flush,
            "drawn_from": self.drawn_from.iter().map(value_name).collect::<Vec<_>>(),
            "windows": windows.collect::<Vec<_>>(),
        });
        format!("{schedule:#}\n")
    }

    /// What [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// With the field that is missing or wrong.
    pub fn from_json(text: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let mut windows = Vec::new();
        for window in value["windows"]
            .as_array()
            .context("windows: a list is due")?
        {
            windows.push(Window {
                at: number(window, "at_ms")?,
                lasts: number(window, "lasts_ms")?,
                fault: named(&window["fault"], "fault")?,
                dice: number(window, "dice")?,
            });
        }
        windows.sort_by_key(|window| window.at);
        let kinds = value["drawn_from"]
            .as_array()
            .context("drawn_from: a list is due")?;
        Ok(Self {
            drawn_from: kinds
                .iter()
                .map(|kind| named(kind, "drawn_from"))
                .collect::<Result<_, _>>()?,
            target: named(&value["target"], "target")?,
            workload: named(&value["workload"], "workload")?,
            seed: number(&value, "seed")?,
            time: number(&value, "time_s")?,
            sync_flush: value["sync_flush"]
                .as_bool()
                .context("sync_flush: true or false is due")?,
            windows,
        })
    }
}

/// The number under a key of a file.
pub(crate) fn number(of: &Value, key: &str) -> anyhow::Result<u64> {
    let number = of[key].as_u64();
    number.with_context(|| format!("{key}: {} is no whole number", of[key]))
}

/// The value that has this name on the command line.
pub(crate) fn named<T: ValueEnum>(name: &Value, key: &str) -> anyhow::Result<T> {
    let known = name.as_str().and_then(|name| T::from_str(name, false).ok());
    known.with_context(|| format!("{key}: {name} is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_kind_and_every_kind_a_fault() {
        for fault in Fault::value_variants() {
            let kind = value_name(&fault.kind());
            assert!(fault.name().starts_with(&format!("{kind}-")), "{fault:?}");
        }
        for kind in Kind::value_variants() {
            assert!(!kind.faults().is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn a_seed_draws_one_schedule_and_a_file_keeps_it() {
        let all = Kind::value_variants();
        for seed in 0..200 {
            let draw = |seed| Schedule::draw(Workload::Queue, all, 60, seed, None).unwrap();
            let schedule = draw(seed);
            assert_eq!(schedule, draw(seed));
            assert_ne!(schedule, draw(seed + 1));
            assert!(schedule.is_drawn());
            assert_eq!(Schedule::from_json(&schedule.to_json()).unwrap(), schedule);
            assert!(schedule.sync_flush, "power cuts");
            let end = schedule.windows.iter().map(|w| w.at + w.lasts).max();
            assert!(end.unwrap() <= 57_000);
        }
        let syncs = Schedule::draw(Workload::Queue, &[Kind::Syscall], 30, 1, None).unwrap();
        let syncs = syncs.only(Fault::SyscallSync);
        assert!(syncs.windows.iter().all(|w| w.fault == Fault::SyscallSync));
        assert!(!syncs.is_drawn());
        let two = Schedule::draw(Workload::Queue, &all[..2], 60, 1, None).unwrap();
        assert_eq!(two.kinds(), all[..2]);
        let other_way = [all[1], all[0], all[1]];
        let same = Schedule::draw(Workload::Queue, &other_way, 60, 1, Some(two.sync_flush));
        assert_eq!(same.unwrap(), two);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let draw =
            |kinds: &[Kind], time, sync| Schedule::draw(Workload::Queue, kinds, time, 1, sync);
        assert!(draw(&[], 60, None).is_err());
        assert!(draw(&[Kind::Kill], 5, None).is_err());
        assert!(draw(&[Kind::Power], 60, Some(false)).is_err());
        assert!(Schedule::from_json("{\"windows\": [{\"at_ms\": 1}]}").is_err());
    }
}
