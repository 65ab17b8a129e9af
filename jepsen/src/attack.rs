//! One run by a schedule: clients at work while faults come and go, then quiet, then everything is read
//! back and judged.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::check::{self, CHECKERS};
use crate::client;
use crate::cluster::{Cluster, Options};
use crate::history::{History, OffsetCall};
use crate::migration::{self, Said};
use crate::net::Net;
use crate::power::Disks;
use crate::record;
use crate::replicas;
use crate::schedule::{Kind, Schedule};
pub use crate::storm::Cuts;
use crate::storm::Storm;
use crate::workload::{Kind as Clients, Workload, read_back};

/// Bytes of a segment: small, so that some are full and can be damaged.
const SEGMENT: u64 = 512 << 10;
/// The same under load.
const LOADED_SEGMENT: u64 = 4 << 20;
/// Old messages are kept, whatever space is left, and damage is looked for quickly.
const KEYS: &str = "cleanFileForciblyEnable=false\nfileReservedTime=1000\n\
                    scrubMaxBytesPerSecond=100000000\nmaxTransferCountOnMessageInMemory=1000\n\
                    maxTransferCountOnMessageInDisk=1000\n";
/// How long damage may take to be mended that no reader has found.
const MENDING: Duration = Duration::from_secs(60);
/// How long a Java node may take to show in its queues what is in its log.
const JAVA_DISPATCH: Duration = Duration::from_secs(30);
/// Names of the files of a run.
pub const HISTORY: &str = "history.edn";
/// See [`HISTORY`].
pub const SCHEDULE: &str = "schedule.json";

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// What is wrong. Empty is a pass, unless it is void.
    pub wrong: Vec<String>,
    /// Why it proves nothing.
    pub void: Vec<String>,
    /// What was seen.
    pub history: History,
    /// Power cuts.
    pub cuts: Cuts,
    /// Milliseconds from the end of the last fault to the next acknowledgement.
    pub recovery: u64,
}

/// How to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Bed {
    /// Each node, the name server and the clients have a network namespace.
    #[arg(long)]
    pub net: bool,
    /// Each node has a file system, and its own identity of its machine's run.
    #[arg(long)]
    pub disks: bool,
    /// Each node of such a run can have a clock.
    #[arg(long)]
    pub clocks: bool,
    /// Nodes can be traced.
    #[arg(long)]
    pub traps: bool,
    /// Clients that send one message at a time.
    #[arg(long)]
    pub producers: u32,
    /// Messages a second that the workload `load` sends at most.
    #[arg(long)]
    pub rate: u64,
    /// The planted bug that the nodes have, see `rmq_store::mutants`.
    #[arg(skip)]
    pub mutant: Option<&'static str>,
}

impl Bed {
    /// Whether this machine has what a kind of faults needs.
    pub fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::Clock => self.clocks,
            Kind::Syscall => self.traps,
            _ => (self.net || !kind.needs_net()) && (self.disks || !kind.needs_disks()),
        }
    }

    /// The words of a command line that say the same. None plants a bug.
    pub(crate) fn words(self) -> Vec<String> {
        let has = [
            ("--net", self.net),
            ("--disks", self.disks),
            ("--clocks", self.clocks),
            ("--traps", self.traps),
        ];
        let has = has.into_iter().filter(|(_, has)| *has);
        let numbers = [
            format!("--producers={}", self.producers),
            format!("--rate={}", self.rate),
        ];
        has.map(|(word, _)| word.to_owned())
            .chain(numbers)
            .collect()
    }
}

/// Runs `schedule` against nodes of `rmq` with their files under `dir`; the history and the schedule are
/// written there too.
///
/// # Errors
/// If the run did not come to its end. What was wrong is in its outcome.
pub fn run(rmq: &Path, dir: &Path, schedule: &Schedule, bed: Bed) -> anyhow::Result<Outcome> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join(SCHEDULE), schedule.to_json())?;
    // The thread enters namespaces, and what it starts ends with it.
    let outcome = thread::scope(|scope| scope.spawn(|| run_here(rmq, dir, schedule, bed)).join());
    outcome.map_err(|_| anyhow::anyhow!("the run panicked"))?
}

fn run_here(rmq: &Path, dir: &Path, schedule: &Schedule, bed: Bed) -> anyhow::Result<Outcome> {
    for kind in schedule.kinds() {
        ensure!(
            bed.allows(kind),
            "{kind:?} needs what this machine has not, see `jepsen doctor`"
        );
        ensure!(
            kind.works_on(schedule.target),
            "Java nodes promise nothing against {kind:?}"
        );
    }
    let target = schedule.target;
    ensure!(
        !target.is_java() || matches!(schedule.workload, Clients::Queue | Clients::Offset),
        "the workloads of Java nodes are queue and offset"
    );
    let nodes = target.nodes();
    let disks = bed.disks.then(|| Disks::mount(dir, nodes)).transpose()?;
    let mut migrated = match schedule.workload {
        Clients::Migrate => {
            let (disks, mutant) = (disks.as_ref(), bed.mutant);
            Some(migration::migrate(rmq, dir, disks, schedule, mutant)?)
        }
        _ => None,
    };
    let net = bed
        .net
        .then(|| Net::start(nodes, schedule.seed))
        .transpose()?
        .map(Arc::new);
    let mut options = Options {
        target,
        nodes,
        sync_flush: schedule.sync_flush,
        segment: match schedule.workload {
            Clients::Load => LOADED_SEGMENT,
            _ => SEGMENT,
        },
        more: if target.is_java() { "" } else { KEYS }.into(),
        machines: bed.disks,
        clocks: schedule.kinds().contains(&Kind::Clock),
        net: net.clone(),
        leashed: true,
        mutant: bed.mutant,
        ..Options::default()
    };
    if let Some(migrated) = &migrated {
        options.segment = migrated.segment;
        options.more += &migrated.keys;
    }
    let mut cluster = Cluster::start(rmq, dir, &options)?;
    let mut begin = 0;
    if migrated.is_some() {
        begin = cluster.log_begins(0)?;
        // Until then a group has fewer nodes, and bears less.
        for node in cluster.members() {
            cluster.wait_until_voting(node, target.liveness())?;
        }
    }
    let (kind, seed) = (schedule.workload, schedule.seed);
    let work = Workload::start(&cluster, kind, (bed.producers, bed.rate), seed);
    let mut storm = Storm::new(&mut cluster, net.as_deref(), disks.as_ref(), &work);
    if let Some(migrated) = &migrated {
        storm.cuts = migrated.cuts;
    }
    let struck = storm
        .run(schedule)
        .and_then(|()| work.wait_for_acks(work.now()));
    let (mut wrong, cuts) = (std::mem::take(&mut storm.wrong), storm.cuts);
    let start = work.start_time();
    let mut history = work.stop()?;
    let settled = struck.and_then(|recovery| {
        let said = migrated.as_mut().map(|migrated| &mut migrated.said);
        settle(&cluster, (start, begin), &mut history, &mut wrong, said)?;
        Ok(recovery)
    });
    if settled.is_err() {
        // What was read of some queues would make those of the others look lost.
        history.found.clear();
    }
    if let Some(migrated) = migrated {
        history.faults.insert(0, migrated.fault());
        history.adopted = migrated.said.into_adopted();
    }
    fs::write(dir.join(HISTORY), record::write(&history))?;
    let recovery = settled?;
    wrong.extend(hygiene(&cluster)?);
    wrong.extend(check::judge(&history, &CHECKERS));
    let mut void = check::void(&history);
    void.extend(check::unserved(&history, schedule.workload));
    for kind in schedule.kinds() {
        let name = crate::schedule::value_name(&kind);
        if !history
            .faults
            .iter()
            .any(|fault| fault.what.starts_with(&name))
        {
            void.push(format!("no fault of the kind {name} struck"));
        }
    }
    Ok(Outcome {
        wrong,
        void,
        history,
        cuts,
        recovery,
    })
}

/// Waits until the nodes are level, compares them, and reads everything back. The run began at `start`, and its logs at
/// `begin`.
fn settle(
    cluster: &Cluster,
    (start, begin): (Instant, u64),
    history: &mut History,
    wrong: &mut Vec<String>,
    said: Option<&mut Said>,
) -> anyhow::Result<()> {
    let liveness = cluster.target().liveness();
    let end = match cluster.wait_until_even(liveness) {
        Ok(end) => Some(end),
        Err(e) => {
            wrong.push(format!("{e:#}"));
            None
        }
    };
    let patience = Instant::now() + liveness;
    let is_java = cluster.target().is_java();
    let quiet = Instant::now();
    let is_late = || quiet.elapsed() > JAVA_DISPATCH;
    loop {
        // On a busy machine it may change while it is read from.
        let leader = cluster.wait_for_leader(liveness)?;
        match read_back(cluster.addresses()[leader], start, history) {
            // A Java node makes its queues of its log when it likes.
            Ok(()) if is_java && !check::lost_bodies(history).is_empty() && !is_late() => {}
            Ok(()) => break,
            Err(e) if Instant::now() > patience => return Err(e),
            Err(_) => {}
        }
        thread::sleep(Duration::from_millis(200));
    }
    if let Some(end) = end.filter(|_| !cluster.target().is_java()) {
        compare_logs(cluster, begin..end, history, wrong)?;
    }
    wrong.extend(replicas::compare(cluster, history, said)?);
    Ok(())
}

/// The logs are the same bytes in this range, once what was damaged is mended.
fn compare_logs(
    cluster: &Cluster,
    range: Range<u64>,
    history: &History,
    wrong: &mut Vec<String>,
) -> anyhow::Result<()> {
    let mut faults = history.faults.iter();
    let mends = faults.any(|fault| fault.what.starts_with("damage"));
    let patience = Instant::now() + if mends { MENDING } else { Duration::ZERO };
    let Range { start, end } = range;
    while let Some(difference) = cluster.compare_logs_from(start, end)? {
        if Instant::now() > patience {
            wrong.push(format!(
                "the logs are not identical below {end}: {difference}"
            ));
            break;
        }
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// No process panicked.
fn hygiene(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (name, output) in cluster.outputs().context("the outputs of the nodes")? {
        let lines = output.lines().filter(|line| line.contains("panicked at"));
        wrong.extend(lines.take(3).map(|line| format!("{name}: {line}")));
    }
    Ok(wrong)
}

/// One line for people.
pub fn summary(outcome: &Outcome) -> String {
    let history = &outcome.history;
    let (acknowledged, unknown) = history.counts();
    let all = history.sends.len();
    let in_batches = history.acknowledged() - acknowledged as u64;
    let polls = history.polls.iter();
    let polls = polls
        .filter(|poll| matches!(poll.outcome, client::Outcome::Ok(_)))
        .count();
    let (delivered, repeated) = check::deliveries(history);
    let commits = history.offsets.iter();
    let commits = commits
        .filter(|op| matches!(op.call, OffsetCall::Commit { .. }))
        .count();
    let gaps = check::gaps(history);
    let gap = gaps
        .iter()
        .map(|(from, until)| until - from)
        .max()
        .unwrap_or(0)
        / 1_000_000;
    let terms = history
        .leads
        .iter()
        .map(|lead| lead.term)
        .max()
        .unwrap_or(0);
    format!(
        "{all} sends: {acknowledged} acknowledged, {unknown} unknown, {} refused; {in_batches} more \
         acknowledged in batches; {polls} polls, \
         {delivered} delivered, {repeated} of them again; {commits} commits, {} locks; \
         {} delayed, {} delivered again; {} faults, \
         {}, term {terms}; longest time without an acknowledgement {gap} ms, {} ms \
         after the last fault",
        all - acknowledged - unknown,
        history.locks.len(),
        history.delayed.len(),
        check::delayed_again(history),
        history.faults.len(),
        outcome.cuts,
        outcome.recovery,
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        bed: Bed,
    }

    #[test]
    fn words_say_what_a_bed_has() {
        let bed = Bed {
            net: true,
            disks: false,
            clocks: true,
            traps: false,
            producers: 3,
            rate: 4,
            mutant: None,
        };
        let words = [vec!["run".to_owned()], bed.words()].concat();
        assert_eq!(Arguments::parse_from(words).bed, bed);
    }
}
