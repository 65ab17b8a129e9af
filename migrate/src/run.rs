//! The steps of a migration, in their order.

use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rmq_store::{Disk, Genesis, Locked, PhyOffset, Queues, RealDisk};
use rustix::fs::FlockOperation;

use crate::conf::Target;
use crate::estimate::Estimate;
use crate::history::Verify;
use crate::place::{
    BOOT_FILE, forget_before_boot, keep_rest, place_derived, place_log, rewrite_log,
};
use crate::plan::{Maxima, Plan, SPARE_BYTES, check_space, delay_within, inputs, pending, plan};
use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::report::Report;
use crate::source::{Kind, exists, list};
use crate::transfer::{Transfer, write_file};
use crate::unserved::unserved;
use crate::{Options, verify};

/// In the target's root: which run made it, from what.
pub(crate) const STATE_FILE: &str = "migration.state";

/// Looks at everything and writes nothing. What is in the way is in the report.
///
/// # Errors
/// What makes even the look impossible.
pub fn check(options: &Options, progress: &Progress) -> Result<Report, Problem> {
    let begun = Instant::now();
    let mut plan = match plan(options, progress, options.verify) {
        Ok(plan) => plan,
        Err(problem) => {
            return Ok(Report {
                check: true,
                from: options.from.clone().unwrap_or_default(),
                to: options.to.clone(),
                blockers: vec![problem],
                ..Report::default()
            });
        }
    };
    plan.report.check = true;
    plan.report.warnings.append(&mut plan.unserved);
    if let Err(problem) = free_target(&plan.to) {
        plan.report.blockers.push(problem);
    }
    if let Err(problem) = check_space(&mut plan, options.mode) {
        plan.report.blockers.push(problem);
    }
    if plan.report.blockers.is_empty() {
        let reads = reads(&plan, options);
        plan.report.estimate = Some(Estimate::make(&plan.source, reads, progress)?);
    }
    let mut report = plan.report;
    report.log = plan.history;
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// Bytes that a run reads: of the log as often as it is read, and of what is copied twice.
fn reads(plan: &Plan, options: &Options) -> u64 {
    let log = plan.history.end - plan.history.start;
    let times = |yes: bool| log * u64::from(yes);
    let rewritten = plan.source.kind == Kind::DLedger;
    2 * plan.report.bytes_to_copy.saturating_sub(SPARE_BYTES)
        + times(!rewritten && plan.queues_rebuilt.is_some() || plan.index.rebuild.is_some())
        + times(options.verify == Verify::Full)
}

/// Migrates.
///
/// # Errors
/// The first thing that is in the way. The source is as it was; what was done of the target is gone
/// on from when the same command is run again.
pub fn run(options: &Options, progress: &Progress) -> Result<Report, Problem> {
    let begun = Instant::now();
    // A full verification reads the target once, and the source not before.
    let before = match options.verify {
        Verify::Full => Verify::None,
        other => other,
    };
    let mut plan = plan(options, progress, before)?;
    if let Some(first) = plan.report.blockers.first() {
        return Err(first.clone());
    }
    let inputs = inputs(options, &plan)?;
    let state = serde_json::to_string_pretty(&inputs).expect("plain data") + "\n";
    let run = format!("{:08x}", crc32c::crc32c(state.as_bytes()));
    plan.report.run.clone_from(&run);
    if fs::read_to_string(plan.to.join(STATE_FILE)).is_ok_and(|found| found == state) {
        let mut report = plan.report;
        report.warnings.append(&mut plan.unserved);
        report.already_done = true;
        report.log = plan.history;
        return Ok(report);
    }
    free_target(&plan.to)?;
    let partial = with_suffix(&plan.to, &format!(".partial-{run}"));
    if let Some(other) = partials(&plan.to)?
        .into_iter()
        .find(|other| *other != partial)
    {
        return Err(
            Problem::new(Code::OtherRun, "an earlier run was not finished")
                .at_file(&other)
                .why("its inputs were others: the source has changed since, or the options")
                .hint(format!(
                    "rmq-migrate --rollback --to {} removes it",
                    plan.to.display()
                )),
        );
    }
    check_space(&mut plan, options.mode)?;
    fs::create_dir_all(&partial).map_err(|error| Problem::writing(&partial, &error))?;
    let _only = only_run(&partial)?;
    write_file(&partial.join(STATE_FILE), state.as_bytes())?;
    forget_before_boot(&partial)?;

    let mut transfer = Transfer::new(options.mode, progress);
    let dledger = match plan.source.kind {
        Kind::Classic => {
            place_log(&plan, &partial, &mut transfer)?;
            None
        }
        Kind::DLedger => {
            let done = rewrite_log(&plan, &partial, progress)?;
            plan.history.end = done.end;
            for (topic, count) in &done.by_topic {
                *plan.history.by_topic.entry(topic.clone()).or_default() += count;
            }
            // Behind the rewriting, which begins with an empty directory.
            place_log(&plan, &partial, &mut transfer)?;
            Some(done)
        }
    };
    place_derived(&plan, &partial, &mut transfer)?;
    keep_rest(&plan, &partial, &mut transfer)?;
    progress.phase("checking the result", 0);
    let mut genesis = write_genesis(&plan, &partial)?;
    progress.phase("making it durable", 0);
    transfer.sync(&partial)?;
    progress.phase("opening the result", 0);
    let (mut verified, mut maxima) = derive(&plan, options, &partial, &genesis, progress)?;
    if delay_within(&maxima, &mut plan.metadata, &mut plan.report.warnings) {
        // Where queues end that were built anew is known only now.
        genesis = write_genesis(&plan, &partial)?;
        transfer.sync(&partial)?;
        (verified, maxima) = derive(&plan, options, &partial, &genesis, progress)?;
    }

    let mut report = std::mem::take(&mut plan.report);
    report.pending = pending(&maxima, &plan.metadata, &plan.timer, report.pending);
    let unserved = unserved(&maxima, &plan.metadata, &plan.timer);
    report.warnings.extend(unserved);
    report.dledger = dledger;
    report.files = transfer.done;
    report.verified = verified;
    report.genesis = Some(genesis.digest());
    report.queues = maxima.len();
    report.conf_files = write_confs(&plan, &partial)?;
    report.log = std::mem::take(&mut plan.history);
    report.seconds = begun.elapsed().as_secs_f64();
    for (name, content) in [("json", report.json()), ("html", report.html())] {
        let path = partial.join(format!("migration-{run}.{name}"));
        write_file(&path, content.as_bytes())?;
    }
    remove_file(&partial.join(BOOT_FILE))?;
    let disk = RealDisk;
    let writing = |error| Problem::writing(&plan.to, &error);
    disk.sync_dir(&partial).map_err(writing)?;
    fs::rename(&partial, &plan.to).map_err(writing)?;
    disk.sync_dir(parent(&plan.to)).map_err(writing)?;
    Ok(report)
}

pub(crate) fn free_target(to: &Path) -> Result<(), Problem> {
    if exists(to)? {
        return Err(Problem::new(Code::TargetExists, "the target exists")
            .at_file(to)
            .why("a run makes a new directory and touches no other")
            .hint("give another --to, or remove this one; rmq-migrate --rollback removes what a run made"));
    }
    let parent = parent(to);
    let meta = fs::metadata(parent);
    if !meta.is_ok_and(|meta| meta.is_dir()) {
        return Err(
            Problem::new(Code::TargetUnusable, "there is no such directory")
                .at_file(parent)
                .hint("make the directory that the target is to lie in"),
        );
    }
    Ok(())
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// Keeps two runs from working on one target.
pub(crate) fn only_run(partial: &Path) -> Result<Locked, Problem> {
    let dir = File::open(partial).map_err(|error| Problem::writing(partial, &error))?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Locked::new(dir)),
        Err(_) => Err(
            Problem::new(Code::InUse, "another rmq-migrate is at work on it")
                .at_file(partial)
                .hint("wait for its end"),
        ),
    }
}

/// Unfinished targets beside this one.
pub(crate) fn partials(to: &Path) -> Result<Vec<PathBuf>, Problem> {
    let prefix = with_suffix(to, ".partial-");
    let prefix = prefix
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let names = list(parent(to))?;
    let own = names.into_iter().filter(|name| name.starts_with(&prefix));
    Ok(own.map(|name| parent(to).join(name)).collect())
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn write_genesis(plan: &Plan, partial: &Path) -> Result<Genesis, Problem> {
    let range = PhyOffset(plan.history.start)..PhyOffset(plan.history.end);
    let genesis = Genesis::measure(
        &RealDisk,
        &partial.join("commitlog"),
        plan.source.segment_bytes,
        range,
        plan.metadata.clone(),
    )
    .map_err(|error| {
        Problem::new(Code::BadRecord, error.to_string())
            .at_file(&plan.source.log_dir)
            .why("a segment of the source is damaged")
            .hint("--check --verify full finds the place; restore the file from the slave or a backup")
    })?;
    genesis
        .write(&RealDisk, partial)
        .map_err(|error| Problem::writing(partial, &error))?;
    Ok(genesis)
}

/// Opens the result as a broker does, which builds what is to be built, and closes it again. What an
/// interrupted run left of that is removed first.
fn derive(
    plan: &Plan,
    options: &Options,
    partial: &Path,
    genesis: &Genesis,
    progress: &Progress,
) -> Result<(Option<verify::Verified>, Maxima), Problem> {
    for name in [
        "dispatched",
        "dispatched.queues",
        "raft.vote",
        "raft.checkpoint",
        "abort",
        "checkpoint",
        "lock",
    ] {
        remove_file(&partial.join(name))?;
    }
    let raft_index = partial.join("raftindex");
    if exists(&raft_index)? {
        fs::remove_dir_all(&raft_index).map_err(|error| Problem::writing(&raft_index, &error))?;
    }
    let config = plan.sizes.config(partial);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let failed = |error: &(dyn Error + 'static)| {
        Problem::full_disk(partial, error).unwrap_or_else(|| {
            Problem::new(Code::Write, error.to_string())
                .at_file(partial)
                .why("the result does not open as a store")
                .hint("run the same command again once the cause is gone")
        })
    };
    let mut from = genesis.start;
    if plan.queues_rebuilt.is_none() {
        let dispatched = Queues::adopt(&config, &disk, genesis.end).map_err(|e| failed(&e))?;
        if plan.index.rebuild.is_none() {
            from = dispatched.min(genesis.end);
        }
    }
    if from < genesis.end {
        progress.phase("building queues and index", genesis.end - from);
    }
    let dispatched = |at: PhyOffset| progress.set(at.0.saturating_sub(from.0));
    let store =
        rmq_store::open_watched(&config, Arc::clone(&disk), &dispatched).map_err(|e| failed(&e))?;
    if let Some(damage) = store.log.reader().damages().first() {
        return Err(failed(damage));
    }
    let mut maxima = Maxima::new();
    for (topic, id, next) in store.queues.maxima() {
        if next.0 > 0 {
            maxima.insert((topic.to_string(), id), next.0);
        }
    }
    let verified = match options.verify {
        Verify::Full => Some(verify::verify(partial, genesis, &store.queues, progress)),
        Verify::None | Verify::Sample => None,
    };
    store.queues.stop().map_err(|e| failed(&e))?;
    store.log.close().map_err(|e| failed(&e))?;
    Ok((verified.transpose()?, maxima))
}

pub(crate) fn remove_file(path: &Path) -> Result<(), Problem> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Problem::writing(path, &error))
        }
        _ => Ok(()),
    }
}

/// Ready properties files for the nodes.
fn write_confs(plan: &Plan, partial: &Path) -> Result<Vec<PathBuf>, Problem> {
    let Some(conf) = &plan.conf else {
        return Ok(Vec::new());
    };
    let target = Target {
        root: &plan.to,
        group: &plan.group,
        peers: &plan.peers,
        sizes: &plan.sizes,
    };
    let dir = partial.join("conf");
    fs::create_dir_all(&dir).map_err(|error| Problem::writing(&dir, &error))?;
    let mut written = Vec::new();
    let nodes = plan.peers.iter().map(Some);
    let alone = plan.peers.is_empty().then_some(None);
    for node in nodes.chain(alone) {
        let name = node.map_or_else(
            || "broker.conf".to_owned(),
            |node| format!("broker-{}.conf", node.id),
        );
        write_file(&dir.join(&name), conf.for_node(&target, node).as_bytes())?;
        written.push(plan.to.join("conf").join(name));
    }
    Ok(written)
}
