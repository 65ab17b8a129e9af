//! The steps of a migration, in their order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rmq_store::{
    DelayLevels, Disk, FlushMode, Genesis, GenesisMetadata, PhyOffset, Queues, RealDisk,
    StoreConfig,
};
use rmq_wire::name;
use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::compare::Comparison;
use crate::conf::{self, Conf, Peer, Target};
use crate::dledger::{self, Rewritten};
use crate::estimate::Estimate;
use crate::history::{History, Verify};
use crate::metadata;
use crate::problem::{Code, Problem};
use crate::progress::{Progress, bytes};
use crate::queues::{SourceIndex, SourceQueues, has_files};
use crate::report::{Pending, Report};
use crate::source::{Kind, Source, exists, list};
use crate::transfer::{Mode, Transfer, free_bytes, write_file};
use crate::{Options, verify};

/// In the target's root: which run made it, from what.
pub(crate) const STATE_FILE: &str = "migration.state";
/// In an unfinished target: the boot that it was made in.
const BOOT_FILE: &str = "migration.boot";
pub(crate) const DEFAULT_INDEX: (u32, u32) = (5_000_000, 20_000_000);
/// Room for small files that nobody has to count.
const SPARE_BYTES: u64 = 16 << 20;
/// Files of the source's root and directories that are kept and not used.
const KEPT: [&str; 7] = [
    "timerwheel",
    "timerlog",
    "consumequeue_ext",
    "batchconsumequeue",
    "compaction",
    "rocksdbstore",
    "checkpoint",
];

/// What a run is made from. A run with the same goes on where another stopped.
#[derive(Serialize)]
struct Inputs {
    from: PathBuf,
    to: PathBuf,
    mode: Mode,
    accept_torn_tail: bool,
    compare_with: Vec<PathBuf>,
    conf: Option<String>,
    group: Option<String>,
    peers: Option<String>,
    metadata: GenesisMetadata,
    log: Vec<(String, u64, i64)>,
}

/// All that is known before anything is written.
struct Plan {
    from: PathBuf,
    to: PathBuf,
    source: Source,
    conf: Option<Conf>,
    peers: Vec<Peer>,
    group: String,
    index_layout: (u32, u32),
    levels: DelayLevels,
    metadata: GenesisMetadata,
    history: History,
    /// Of a DLedger log, what is to be written anew.
    dledger: Option<Rewritten>,
    queues: SourceQueues,
    queues_rebuilt: Option<String>,
    index: SourceIndex,
    report: Report,
}

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
    let genesis = write_genesis(&plan, &partial)?;
    transfer.sync(&partial)?;
    let (verified, maxima) = derive(&plan, options, &partial, &genesis, progress)?;

    let mut report = std::mem::take(&mut plan.report);
    report.pending = pending(&maxima, &plan.metadata, report.pending);
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

fn plan(options: &Options, progress: &Progress, verify: Verify) -> Result<Plan, Problem> {
    let mut report = Report::default();
    let from = options.from.clone().unwrap_or_default();
    let from = std::path::absolute(&from).map_err(|error| Problem::reading(&from, &error))?;
    let to =
        std::path::absolute(&options.to).map_err(|error| Problem::reading(&options.to, &error))?;
    let conf = options.conf.as_deref().map(Conf::read).transpose()?;
    let source = Source::open(&from, conf.as_ref(), &mut report.warnings)?;
    if to.starts_with(&source.root)
        || source.root.starts_with(&to)
        || to.starts_with(&source.log_dir)
    {
        return Err(
            Problem::new(Code::TargetUnusable, "source and target lie in one another")
                .at_file(&to)
                .why("the source is never changed")
                .hint("give a directory beside the source"),
        );
    }
    let number = |key: &str, default: u32| -> Result<u32, Problem> {
        let Some(conf) = &conf else {
            return Ok(default);
        };
        let said = conf.number(key)?;
        Ok(said
            .and_then(|value| u32::try_from(value).ok())
            .unwrap_or(default))
    };
    let index_layout = (
        number("maxHashSlotNum", DEFAULT_INDEX.0)?,
        number("maxIndexNum", DEFAULT_INDEX.1)?,
    );
    let levels = match conf.as_ref().and_then(|conf| conf.get("messageDelayLevel")) {
        None => DelayLevels::default(),
        Some(text) => DelayLevels::parse(text).map_err(|error| {
            Problem::new(Code::Conf, format!("messageDelayLevel: {error}"))
                .at_file(options.conf.as_deref().unwrap_or_else(|| Path::new("")))
        })?,
    };
    let peers = match (&options.peers, &conf) {
        (Some(text), _) => conf::peers(text)?,
        (None, Some(conf)) => conf.peers()?.unwrap_or_default(),
        (None, None) => Vec::new(),
    };
    let said = |key: &str| {
        conf.as_ref()
            .and_then(|conf| conf.get(key))
            .map(str::to_owned)
    };
    let group = options
        .group
        .clone()
        .or_else(|| said("dLegerGroup"))
        .or_else(|| said("brokerName"))
        .unwrap_or_else(|| "broker-a".to_owned());
    let config_dir = options
        .config_from
        .clone()
        .unwrap_or_else(|| source.root.join("config"));
    let metadata = metadata::read(&config_dir, &mut report.warnings)?;

    progress.phase("finding the end of the log", 0);
    let history = match source.kind {
        Kind::Classic => History::find(&source, verify, options.accept_torn_tail, progress)?,
        Kind::DLedger => History::of_dledger(&source, verify, progress)?,
    };
    let dledger = match source.kind {
        Kind::Classic => None,
        Kind::DLedger => Some(dledger::plan(&source, &options.compare_with)?),
    };
    if let Some(done) = dledger.as_ref().filter(|done| done.unconfirmed > 0) {
        report.warnings.push(unconfirmed(&source, done));
    }
    if let Some(torn) = &history.torn {
        report.warnings.push(torn.clone());
    }
    if source.kind == Kind::Classic {
        for with in &options.compare_with {
            let found = Comparison::make(&source, &history, with, progress)?;
            report.blockers.extend(found.problem(&source, &history));
            report.comparisons.push(found);
        }
    }
    let file_bytes = match &conf {
        Some(conf) => conf.number("mappedFileSizeConsumeQueue")?,
        None => None,
    };
    let queues = SourceQueues::read(&source, file_bytes, &mut report.warnings)?;
    let range = (history.start, history.end);
    let queues_rebuilt = match source.kind {
        Kind::Classic => queues.disagreement(&source, range)?,
        Kind::DLedger => Some("the messages have other positions".to_owned()),
    };
    let mut index = SourceIndex::read(&source.root, index_layout)?;
    if queues_rebuilt.is_some() {
        index.rebuild.clone_from(&queues_rebuilt);
    }
    for reason in queues_rebuilt.iter().chain(
        index
            .rebuild
            .iter()
            .filter(|of| queues_rebuilt.as_ref() != Some(of)),
    ) {
        report.warnings.push(
            Problem::new(Code::QueuesDiffer, reason.clone())
                .at_file(&source.root)
                .why("what is derived from the log is built anew from it, which reads all of it once"),
        );
    }

    let maxima: BTreeMap<(String, i32), u64> = queues
        .queues
        .iter()
        .map(|queue| ((queue.topic.clone(), queue.id), queue.last + 1))
        .collect();
    beyond_end(&maxima, &metadata, &mut report.warnings);
    report.pending = pending(
        &maxima,
        &metadata,
        Pending {
            light: queues.lmq.values().sum(),
            inner_batch_files: count_files(&source.root.join("batchconsumequeue"))?,
            ..Pending::default()
        },
    );
    report.from.clone_from(&from);
    report.to.clone_from(&to);
    report.source = match source.kind {
        Kind::Classic => "commit log of a master or slave".to_owned(),
        Kind::DLedger if source.older.is_empty() => {
            "log of a Java DLedger node, written anew".to_owned()
        }
        Kind::DLedger => format!(
            "log of a Java DLedger node, written anew, above {} segments of a commit log",
            source.older.len()
        ),
    };
    report.clean_stop = source.clean;
    report.segments = source.older.len() + source.segments.len();
    report.segment_bytes = source.segment_bytes;
    report.queues = queues.queues.len();
    report.queues_rebuilt.clone_from(&queues_rebuilt);
    report.index_rebuilt.clone_from(&index.rebuild);
    report.topics = metadata.topics.topic_config_table.len();
    report.groups = metadata.groups.subscription_group_table.len();
    report.consumer_offsets = metadata
        .offsets
        .offset_table
        .values()
        .map(BTreeMap::len)
        .sum();
    Ok(Plan {
        from,
        to,
        source,
        conf,
        peers,
        group,
        index_layout,
        levels,
        metadata,
        history,
        dledger,
        queues,
        queues_rebuilt,
        index,
        report,
    })
}

/// Notes offsets of groups that are behind the last message of a queue.
fn beyond_end(
    maxima: &BTreeMap<(String, i32), u64>,
    metadata: &GenesisMetadata,
    notes: &mut Vec<Problem>,
) {
    for (key, queues) in &metadata.offsets.offset_table {
        let topic = key.split_once('@').map_or(key.as_str(), |(topic, _)| topic);
        if !metadata.topics.topic_config_table.contains_key(topic) {
            continue;
        }
        for (id, offset) in queues {
            let max = maxima.get(&(topic.to_owned(), *id)).copied().unwrap_or(0);
            if u64::try_from(*offset).is_ok_and(|offset| offset > max) {
                let what = format!("offset of {key} in queue {id} is {offset}, its end {max}");
                notes.push(
                    Problem::new(Code::OffsetBeyondEnd, what)
                        .why("it is taken over as it is; the group gets what comes behind it"),
                );
            }
        }
    }
}

/// What waits, of what queues hold and groups have had.
fn pending(
    maxima: &BTreeMap<(String, i32), u64>,
    metadata: &GenesisMetadata,
    rest: Pending,
) -> Pending {
    let mut pending = Pending {
        light: rest.light,
        inner_batch_files: rest.inner_batch_files,
        ..Pending::default()
    };
    let offset = |group: &str, topic: &str, id: i32| {
        let queues = metadata
            .offsets
            .offset_table
            .get(&format!("{topic}@{group}"));
        let offset = queues.and_then(|queues| queues.get(&id)).copied();
        offset.and_then(|at| u64::try_from(at).ok()).unwrap_or(0)
    };
    for ((topic, id), end) in maxima {
        if topic == name::SCHEDULE_TOPIC {
            let done = metadata.delay.offset_table.get(&(id + 1)).copied();
            let done = done.and_then(|at| u64::try_from(at).ok()).unwrap_or(0);
            pending.delayed += end.saturating_sub(done);
        } else if topic == name::TRANS_HALF_TOPIC {
            pending.half += end.saturating_sub(offset(name::TRANS_GROUP, topic, *id));
        } else if topic == "rmq_sys_wheel_timer" {
            pending.timer += end;
        } else if let Some(group) = topic.strip_prefix(name::RETRY_PREFIX) {
            pending.retry += end.saturating_sub(offset(group, topic, *id));
        } else if name::is_dlq_topic(topic) {
            pending.dead_letters += end;
        }
    }
    pending
}

fn unconfirmed(source: &Source, done: &Rewritten) -> Problem {
    let first = done.last_index + 1 - done.unconfirmed;
    let what = format!(
        "the last {} entries, from {first} on, are not known to be confirmed",
        done.unconfirmed
    );
    Problem::new(Code::StoresDiffer, what)
        .at_file(&source.root)
        .why("one node alone does not know what a majority has; they are taken over")
        .hint("give the other nodes' stores with --compare-with to be sure")
}

fn inputs(options: &Options, plan: &Plan) -> Result<Inputs, Problem> {
    let conf = match &plan.conf {
        Some(conf) => Some(
            fs::read_to_string(conf.path())
                .map_err(|error| Problem::reading(conf.path(), &error))?,
        ),
        None => None,
    };
    Ok(Inputs {
        from: plan.from.clone(),
        to: plan.to.clone(),
        mode: options.mode,
        accept_torn_tail: options.accept_torn_tail,
        compare_with: options.compare_with.clone(),
        conf,
        group: options.group.clone(),
        peers: options.peers.clone(),
        metadata: plan.metadata.clone(),
        log: plan.source.fingerprint()?,
    })
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

/// Compares what may have to be copied with what is free. Whether links work is only known when they
/// are made, so with `auto` all of it counts on another file system, and the tails alone on the same.
fn check_space(plan: &mut Plan, mode: Mode) -> Result<(), Problem> {
    use std::os::unix::fs::MetadataExt as _;
    let parent = parent(&plan.to);
    let dev = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    let one_disk = dev(parent).is_some() && dev(parent) == dev(&plan.source.log_dir);
    let Plan {
        source,
        history,
        queues,
        ..
    } = plan;
    let log = history.end - history.start;
    let tail = history.end % source.segment_bytes;
    let derived = queues.queues.len() as u64 * queues.file_bytes;
    let needed = match (source.kind, mode) {
        (Kind::Classic, Mode::Auto | Mode::Link) if one_disk => tail + derived,
        _ => log + derived,
    } + SPARE_BYTES;
    let free = free_bytes(parent)?;
    plan.report.bytes_to_copy = needed;
    plan.report.bytes_free = free;
    if free < needed {
        let what = format!("{} may be needed, {} are free", bytes(needed), bytes(free));
        return Err(Problem::new(Code::NoSpace, what)
            .at_file(parent)
            .hint("make room, or give a target on the source's disk, where files are linked"));
    }
    Ok(())
}

/// Keeps two runs from working on one target.
pub(crate) fn only_run(partial: &Path) -> Result<File, Problem> {
    let dir = File::open(partial).map_err(|error| Problem::writing(partial, &error))?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
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

/// The commit log, of a DLedger node what lies below its own log: sealed segments as they are, the last
/// one as a copy.
fn place_log(plan: &Plan, partial: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    let Plan {
        source, history, ..
    } = plan;
    transfer
        .progress
        .phase("taking over the log", history.end - history.start);
    transfer.durable = true;
    let segments = match source.kind {
        Kind::Classic => &source.segments,
        Kind::DLedger => &source.older,
    };
    for segment in segments {
        if segment.base >= history.end {
            break;
        }
        let to = partial
            .join("commitlog")
            .join(format!("{:020}", segment.base));
        let used = history.end - segment.base;
        if used >= source.segment_bytes {
            transfer.adopt(&segment.path, &to)?;
        } else {
            transfer.copy(&segment.path, &to, used, source.segment_bytes)?;
        }
    }
    transfer.durable = false;
    Ok(())
}

/// Of what a run before a crash of the machine has left, only segments are whole for certain.
fn forget_before_boot(partial: &Path) -> Result<(), Problem> {
    let writing = |error| Problem::writing(partial, &error);
    let (file, boot) = (
        partial.join(BOOT_FILE),
        RealDisk.boot_id().map_err(writing)?,
    );
    if fs::read_to_string(&file).is_ok_and(|of| of == boot) {
        return Ok(());
    }
    for name in list(partial)? {
        let path = partial.join(&name);
        if path.is_dir() && name != "commitlog" {
            fs::remove_dir_all(&path).map_err(writing)?;
        }
    }
    RealDisk.sync_dir(partial).map_err(writing)?;
    write_file(&file, boot.as_bytes())
}

fn rewrite_log(plan: &Plan, partial: &Path, progress: &Progress) -> Result<Rewritten, Problem> {
    let (dir, kept) = (partial.join("commitlog"), partial.join("adopted"));
    let done_file = kept.join("dledger.json");
    let writing = |path: &Path| {
        let path = path.to_owned();
        move |error| Problem::writing(&path, &error)
    };
    fs::create_dir_all(&kept).map_err(writing(&kept))?;
    if let Ok(text) = fs::read_to_string(&done_file)
        && let Ok(done) = serde_json::from_str(&text)
    {
        return Ok(done);
    }
    if exists(&dir)? {
        fs::remove_dir_all(&dir).map_err(writing(&dir))?;
    }
    fs::create_dir_all(&dir).map_err(writing(&dir))?;
    let map = kept.join("dledger.map");
    let done = dledger::rewrite(
        &plan.source,
        plan.dledger.clone().unwrap_or_default(),
        &dir,
        &map,
        progress,
    )?;
    RealDisk.sync_dir(&dir).map_err(writing(&dir))?;
    let text = serde_json::to_string(&done).expect("plain data");
    write_file(&done_file, text.as_bytes())?;
    Ok(done)
}

/// Consume queues and index. Those that are built anew are left out, but for queues whose messages
/// have all left the log: nothing else knows their ends.
fn place_derived(plan: &Plan, partial: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    let Plan { source, queues, .. } = plan;
    transfer.progress.phase("taking over the queues", 0);
    for queue in &queues.queues {
        let expired = queue.unit.end().0 <= plan.history.start;
        if plan.queues_rebuilt.is_some() && !expired {
            continue;
        }
        let to = partial
            .join("consumequeue")
            .join(&queue.topic)
            .join(queue.id.to_string());
        for &start in &queue.files {
            let name = format!("{start:020}");
            let (from, to) = (queue.dir.join(&name), to.join(&name));
            if start == *queue.files.last().unwrap_or(&start) {
                let units = queue.last + 1 - start / rmq_store::UNIT_BYTES as u64;
                let keep = units * rmq_store::UNIT_BYTES as u64;
                transfer.copy(&from, &to, keep, queues.file_bytes)?;
            } else {
                transfer.adopt(&from, &to)?;
            }
        }
    }
    if plan.index.rebuild.is_none() {
        let newest = plan.index.files.last();
        for name in &plan.index.files {
            let from = source.root.join("index").join(name);
            let to = partial.join("index").join(name);
            if Some(name) == newest {
                let meta = fs::metadata(&from).map_err(|error| Problem::reading(&from, &error))?;
                transfer.copy(&from, &to, meta.len(), meta.len())?;
            } else {
                transfer.adopt(&from, &to)?;
            }
        }
    }
    Ok(())
}

/// What rmq has no use for yet, and the original configuration.
fn keep_rest(plan: &Plan, partial: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    let root = &plan.source.root;
    let kept = partial.join("adopted");
    for name in KEPT {
        keep(&root.join(name), &kept.join(name), transfer)?;
    }
    keep(&root.join("config"), &kept.join("config"), transfer)?;
    for topic in plan.queues.lmq.keys() {
        let of = |root: &Path| root.join("consumequeue").join(topic);
        keep(&of(root), &of(&kept), transfer)?;
    }
    if let Some(conf) = &plan.conf {
        let meta =
            fs::metadata(conf.path()).map_err(|error| Problem::reading(conf.path(), &error))?;
        transfer.copy(
            conf.path(),
            &kept.join("broker.conf"),
            meta.len(),
            meta.len(),
        )?;
    }
    Ok(())
}

fn keep(from: &Path, to: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    let meta = match fs::symlink_metadata(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| Problem::reading(from, &error))?,
    };
    if meta.is_dir() {
        for name in list(from)? {
            keep(&from.join(&name), &to.join(&name), transfer)?;
        }
        return Ok(());
    }
    // The broker writes into these in place if it is started again, so a link is no copy of them.
    transfer.copy(from, to, meta.len(), meta.len())
}

fn count_files(dir: &Path) -> Result<u64, Problem> {
    let mut count = 0;
    if has_files(dir)? {
        for name in list(dir)? {
            let path = dir.join(name);
            count += if path.is_dir() {
                count_files(&path)?
            } else {
                1
            };
        }
    }
    Ok(count)
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

/// Settings under which a store with segments of this size opens.
pub(crate) fn sized(mut config: StoreConfig, segment_bytes: u64) -> StoreConfig {
    config.segment_bytes = segment_bytes;
    let most = segment_bytes.saturating_sub(rmq_store::ENTRY_OVERHEAD_BYTES);
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    config.max_message_bytes = config.max_message_bytes.min(most);
    config
}

type Maxima = BTreeMap<(String, i32), u64>;

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
    let mut config = sized(StoreConfig::new(partial), plan.source.segment_bytes);
    config.consume_queue_file_bytes = plan.queues.file_bytes;
    (config.index_slots, config.index_entries) = plan.index_layout;
    config.delay_levels = plan.levels.clone();
    config.flush = FlushMode::Sync;
    config.catch_up_bytes = u64::MAX;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let failed = |error: &dyn std::fmt::Display| {
        Problem::new(Code::Write, error.to_string())
            .at_file(partial)
            .why("the result does not open as a store")
            .hint("run the same command again once the cause is gone")
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
        segment_bytes: plan.source.segment_bytes,
        consume_queue_file_bytes: plan.queues.file_bytes,
        index: plan.index_layout,
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
