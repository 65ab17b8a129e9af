//! What a migration will do, found out before anything is written: what the source is, what waits in
//! it, what is in the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rmq_store::GenesisMetadata;
use rmq_wire::name;
use serde::Serialize;

use crate::Options;
use crate::compare::Comparison;
use crate::conf::{self, Conf, Peer};
use crate::dledger::{self, Rewritten};
use crate::history::{History, Verify};
use crate::metadata;
use crate::place::rest_bytes;
use crate::problem::{Code, Problem};
use crate::progress::{Progress, bytes};
use crate::queues::{SourceIndex, SourceQueues, has_files};
use crate::report::{Pending, Report};
use crate::run::parent;
use crate::sizes::{self, Sizes};
use crate::source::{Kind, Source, list};
use crate::transfer::{Mode, free_bytes};
use crate::unserved::{Timer, unserved};

/// Room for small files that nobody has to count.
pub(crate) const SPARE_BYTES: u64 = 16 << 20;

/// What a run is made from. A run with the same goes on where another stopped.
#[derive(Serialize)]
pub(crate) struct Inputs {
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

/// Where each queue ends.
pub(crate) type Maxima = BTreeMap<(String, i32), u64>;

/// All that is known before anything is written.
pub(crate) struct Plan {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    pub(crate) source: Source,
    pub(crate) conf: Option<Conf>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) group: String,
    pub(crate) sizes: Sizes,
    pub(crate) metadata: GenesisMetadata,
    pub(crate) history: History,
    /// Of a DLedger log, what is to be written anew.
    pub(crate) dledger: Option<Rewritten>,
    pub(crate) queues: SourceQueues,
    pub(crate) queues_rebuilt: Option<String>,
    pub(crate) index: SourceIndex,
    pub(crate) timer: Timer,
    /// Warnings that queues built anew may change.
    pub(crate) unserved: Vec<Problem>,
    pub(crate) report: Report,
}

pub(crate) fn plan(
    options: &Options,
    progress: &Progress,
    verify: Verify,
) -> Result<Plan, Problem> {
    let mut report = Report::default();
    let from = options.from.clone().unwrap_or_default();
    let from = std::path::absolute(&from).map_err(|error| Problem::reading(&from, &error))?;
    let to =
        std::path::absolute(&options.to).map_err(|error| Problem::reading(&options.to, &error))?;
    let conf = options.conf.as_deref().map(Conf::read).transpose()?;
    report
        .warnings
        .extend(conf.as_ref().and_then(Conf::unnamed));
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
    let index_layout = sizes::index(conf.as_ref())?;
    let levels = sizes::levels(conf.as_ref())?;
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
    if options.config_from.is_none() {
        let found = metadata::in_rocksdb(&config_dir, conf.as_ref())?;
        report.blockers.extend(found);
    }
    let mut metadata = metadata::read(&config_dir, &mut report.warnings)?;

    progress.phase("finding the end of the log", 0);
    let history = match source.kind {
        Kind::Classic => History::find(&source, verify, options.accept_torn_tail, progress)?,
        Kind::DLedger => History::of_dledger(&source, verify, progress)?,
    };
    let dledger = match source.kind {
        Kind::Classic => None,
        Kind::DLedger => {
            // `--peers` are the new nodes, which need not be as many.
            let nodes = conf.as_ref().and_then(Conf::nodes);
            let with = &options.compare_with;
            let notes = &mut report.warnings;
            Some(dledger::plan(&source, with, nodes.as_deref(), notes)?)
        }
    };
    if let Some(done) = &dledger {
        report.warnings.extend(unconfirmed(&source, done));
        report.warnings.extend(left_out(&source, done));
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
    let sizes = Sizes {
        segment: source.segment_bytes,
        consume_queue_file: queues.file_bytes,
        index: index_layout,
        levels,
    };
    let range = (history.start, history.end);
    let queues_rebuilt = match source.kind {
        Kind::Classic => queues.disagreement(&source, range)?,
        Kind::DLedger => Some("the messages have other positions".to_owned()),
    };
    let mut index = SourceIndex::read(&source.root, sizes.index)?;
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

    let maxima: Maxima = queues
        .queues
        .iter()
        .map(|queue| ((queue.topic.clone(), queue.id), queue.last + 1))
        .collect();
    beyond_end(&maxima, &metadata, &mut report.warnings);
    if queues_rebuilt.is_none() {
        delay_within(&maxima, &mut metadata, &mut report.warnings);
    }
    let timer = Timer::read(&source.root)?;
    let unserved = unserved(&maxima, &metadata, &timer);
    report.pending = pending(
        &maxima,
        &metadata,
        &timer,
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
        sizes,
        metadata,
        history,
        dledger,
        queues,
        queues_rebuilt,
        index,
        timer,
        unserved,
        report,
    })
}

/// Notes offsets of groups that are behind the last message of a queue.
fn beyond_end(maxima: &Maxima, metadata: &GenesisMetadata, notes: &mut Vec<Problem>) {
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

/// Takes what is said to be delivered of a delay level back to where its queue ends; whether any said more, as a slave
/// and a broker after a power cut may: the next messages of the level would be passed over
/// (`ScheduleMessageService.correctDelayOffset`, 4.9.8).
pub(crate) fn delay_within(
    maxima: &Maxima,
    metadata: &mut GenesisMetadata,
    notes: &mut Vec<Problem>,
) -> bool {
    let mut is_beyond = false;
    for (level, at) in &mut metadata.delay.offset_table {
        let queue = (name::SCHEDULE_TOPIC.to_owned(), level - 1);
        let end = maxima.get(&queue).copied().unwrap_or(0);
        let end = i64::try_from(end).unwrap_or(i64::MAX);
        if *at > end {
            let what =
                format!("delay level {level} was delivered up to {at}, its queue ends at {end}");
            notes.push(
                Problem::new(Code::OffsetBeyondEnd, what)
                    .why("it goes on at the end, so that no message to come is passed over"),
            );
            *at = end;
            is_beyond = true;
        }
    }
    is_beyond
}

/// What waits, of what queues hold and groups have had.
pub(crate) fn pending(
    maxima: &Maxima,
    metadata: &GenesisMetadata,
    timer: &Timer,
    rest: Pending,
) -> Pending {
    let mut pending = Pending {
        timer: timer.waiting(maxima),
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
        } else if let Some(group) = topic.strip_prefix(name::RETRY_PREFIX) {
            pending.retry += end.saturating_sub(offset(group, topic, *id));
        } else if name::is_dlq_topic(topic) {
            pending.dead_letters += end;
        }
    }
    pending
}

fn unconfirmed(source: &Source, done: &Rewritten) -> Option<Problem> {
    let first = done.last_index + 1 - done.unconfirmed;
    let what = format!(
        "the last {} entries, from {first} on, are not known to be confirmed",
        done.unconfirmed
    );
    (done.unconfirmed > 0).then(|| {
        Problem::new(Code::StoresDiffer, what)
            .at_file(&source.root)
            .why("some nodes alone do not know what a majority has; they are taken over")
            .hint("give the other nodes' stores with --compare-with to be sure")
    })
}

fn left_out(source: &Source, done: &Rewritten) -> Option<Problem> {
    let what = format!(
        "the last {} entries, from {} on, are left out",
        done.left_out,
        done.last_index + 1
    );
    (done.left_out > 0).then(|| {
        Problem::new(Code::StoresDiffer, what)
            .at_file(&source.root)
            .why("no majority of the nodes has them, so no producer was told that they are stored")
    })
}

pub(crate) fn inputs(options: &Options, plan: &Plan) -> Result<Inputs, Problem> {
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

/// Compares what may have to be copied with what is free. Whether links work is only known when they
/// are made, so with `auto` all of it counts on another file system, and the tails alone on the same.
pub(crate) fn check_space(plan: &mut Plan, mode: Mode) -> Result<(), Problem> {
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
    // A symbolic link may lead to another disk.
    let far = source.segments.iter();
    let far = far
        .filter(|segment| dev(&segment.path) != dev(parent))
        .count() as u64;
    let derived = queues.queues.len() as u64 * queues.file_bytes + rest_bytes(source, queues)?;
    let needed = match (source.kind, mode) {
        (Kind::Classic, Mode::Auto | Mode::Link) if one_disk => {
            tail + far * source.segment_bytes + derived
        }
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
