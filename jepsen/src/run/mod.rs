//! One run: producers and a committing consumer group at work while faults strike, then quiet, then
//! everything is read back and judged.

mod removal;
mod strike;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::attack::HISTORY;
use crate::check::{self, CHECKERS, Checker};
use crate::cluster::{Cluster, Options};
use crate::history::History;
use crate::power::Disks;
use crate::record;
use crate::workload::{Kind, LIVENESS, Workload, read_back};
use removal::Removed;
use strike::Striker;

/// Clients that send: one for each queue, and one more.
const PRODUCERS: u32 = 5;
/// Bytes of a segment where some have to be full.
const SMALL_SEGMENT: u64 = 256 << 10;
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
    /// Bits flip in the log of a node that is down, when only it and one more, which comes back later, have all
    /// that is acknowledged.
    DamageOne,
    /// The beginning of the log is removed, and a follower loses its store: it comes back by a snapshot, and leads.
    Snapshot,
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

    /// Whether it needs segments that are full.
    fn needs_segments(self) -> bool {
        matches!(self, Self::DamageOne | Self::Snapshot)
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
        !(cuts_power && plan.nemeses.contains(&Nemesis::Snapshot)),
        "the store of a node on a disk of its own is not lost here"
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
    if has(Nemesis::needs_segments) {
        options.segment = SMALL_SEGMENT;
        options.more += &removal::keys()?;
    }
    let disks = cuts_power
        .then(|| Disks::mount(dir, options.nodes))
        .transpose()?;
    let mut cluster = Cluster::start(rmq, dir, &options)?;
    let term = cluster.term()?;
    let work = Workload::start(&cluster, Kind::Queue, (PRODUCERS, 0), plan.seed);
    let mut striker = Striker {
        cluster: &mut cluster,
        disks: disks.as_ref(),
        work: &work,
        rng: StdRng::seed_from_u64(plan.seed),
        removed: Removed::default(),
    };
    let struck = striker.strike_all(plan);
    let removed = striker.removed;
    let start = work.start_time();
    let mut history = work.stop()?;
    let gaps = struck?;

    let leader = cluster.wait_for_leader(LIVENESS)?;
    let end = cluster.wait_until_even(LIVENESS)?;
    let terms = cluster.term()?.saturating_sub(term);
    let mut wrong = Vec::new();
    let begin = match removed.is_empty() {
        true => 0,
        false => cluster.logs_begin()?,
    };
    if let Some(difference) = cluster.compare_logs_from(begin, end)? {
        wrong.push(format!(
            "the logs are not identical below {end}: {difference}"
        ));
    }
    read_back(cluster.addresses()[leader], start, &mut history)?;
    removed.put_back(&mut history);
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
