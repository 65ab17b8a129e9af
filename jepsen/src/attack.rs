//! One run by a schedule: clients at work while faults come and go, then quiet, then everything is read
//! back and judged.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::check::{self, CHECKERS};
use crate::client;
use crate::cluster::{Cluster, Options};
use crate::history::{History, OffsetCall};
use crate::net::Net;
use crate::power::Disks;
use crate::record;
use crate::replicas;
use crate::schedule::Schedule;
use crate::storm::Storm;
use crate::workload::{LIVENESS, Workload, read_back};

/// Nodes of the group.
const NODES: usize = 3;
/// Bytes of a segment: small, so that some are full and can be damaged.
const SEGMENT: u64 = 512 << 10;
/// Old messages are kept, whatever space is left, and damage is looked for quickly.
const KEYS: &str = "cleanFileForciblyEnable=false\nfileReservedTime=1000\n\
                    scrubMaxBytesPerSecond=100000000\n";
/// How long damage may take to be mended that no reader has found.
const MENDING: Duration = Duration::from_secs(60);
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
    /// Power cuts of nodes.
    pub cuts: u64,
    /// Milliseconds from the end of the last fault to the next acknowledgement.
    pub recovery: u64,
}

/// How to run it.
#[derive(Debug, Clone, Copy)]
pub struct Bed {
    /// Each node, the name server and the clients have a network namespace.
    pub net: bool,
    /// Each node has a file system, and its own identity of its machine's run.
    pub disks: bool,
    /// Clients that send.
    pub producers: u32,
    /// The planted bug that the nodes have, see `rmq_store::mutants`.
    pub mutant: Option<&'static str>,
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
            bed.net || !kind.needs_net(),
            "{kind:?} needs a network of its own"
        );
        ensure!(
            bed.disks || !kind.needs_disks(),
            "{kind:?} needs file systems of its own"
        );
    }
    let disks = bed.disks.then(|| Disks::mount(dir, NODES)).transpose()?;
    let net = bed
        .net
        .then(|| Net::start(NODES, schedule.seed))
        .transpose()?
        .map(Arc::new);
    let options = Options {
        nodes: NODES,
        sync_flush: schedule.sync_flush,
        segment: SEGMENT,
        more: KEYS.into(),
        machines: bed.disks,
        net: net.clone(),
        leashed: true,
        mutant: bed.mutant,
        ..Options::default()
    };
    let mut cluster = Cluster::start(rmq, dir, &options)?;
    let (kind, seed) = (schedule.workload, schedule.seed);
    let work = Workload::start(cluster.addresses(), kind, bed.producers, seed);
    let mut storm = Storm::new(&mut cluster, net.as_deref(), disks.as_ref(), &work);
    let struck = storm
        .run(schedule)
        .and_then(|()| work.wait_for_acks(work.now()));
    let (mut wrong, cuts) = (std::mem::take(&mut storm.wrong), storm.cuts);
    let start = work.start_time();
    let mut history = work.stop()?;
    let settled = struck.and_then(|recovery| {
        settle(&cluster, start, &mut history, &mut wrong)?;
        Ok(recovery)
    });
    fs::write(dir.join(HISTORY), record::write(&history))?;
    let recovery = settled?;
    wrong.extend(hygiene(&cluster)?);
    wrong.extend(check::judge(&history, &CHECKERS));
    let mut void = check::void(&history);
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

/// Waits until the nodes are level, compares them, and reads everything back.
fn settle(
    cluster: &Cluster,
    start: Instant,
    history: &mut History,
    wrong: &mut Vec<String>,
) -> anyhow::Result<()> {
    let end = cluster.wait_until_even(LIVENESS)?;
    let patience = Instant::now() + LIVENESS;
    loop {
        // On a busy machine it may change while it is read from.
        let leader = cluster.wait_for_leader(LIVENESS)?;
        match read_back(cluster.addresses()[leader], start, history) {
            Ok(()) => break,
            Err(e) if Instant::now() > patience => return Err(e),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
    let mends = history
        .faults
        .iter()
        .any(|fault| fault.what.starts_with("damage"));
    let patience = Instant::now() + if mends { MENDING } else { Duration::ZERO };
    loop {
        match cluster.compare_logs(end)? {
            None => break,
            Some(difference) if Instant::now() > patience => {
                wrong.push(format!(
                    "the logs are not identical below {end}: {difference}"
                ));
                break;
            }
            Some(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
    wrong.extend(replicas::compare(cluster, history)?);
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
        "{all} sends: {acknowledged} acknowledged, {unknown} unknown, {} refused; {polls} polls, \
         {delivered} delivered, {repeated} of them again; {commits} commits, {} locks; \
         {} delayed, {} delivered again; {} faults, \
         {} power cuts, term {terms}; longest time without an acknowledgement {gap} ms, {} ms \
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
