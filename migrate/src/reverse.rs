//! The way back: from the store of a stopped node of rmq to one that a Java broker opens and serves.
//!
//! The log is a Java broker's already. What is taken over is opened once by rmq itself, on copies of
//! all that it writes to, so that queues and index go exactly to the end of the log; then the notes of
//! the Raft log are left out. Records of the Raft log stay where they are: no queue names them.
//!
//! A store that was frozen has everything. Otherwise that one of all nodes' stores is taken that has
//! the newest entry, as an election would.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rmq_store::inspect::{self, DamageKind, FrozenPart, Generation, InspectError, Inspection};
use rmq_store::{
    DelayLevels, Disk, FlushMode, Genesis, GenesisMetadata, LogIndex, RAFT_LOG_TOPIC, RealDisk,
    Store, StoreConfig,
};
use rmq_wire::body::ConsumerOffsetSerializeWrapper;
use rmq_wire::json;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::conf::Conf;
use crate::plan::DEFAULT_INDEX;
use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::run::{free_target, only_run, parent, remove_file, sized, with_suffix};
use crate::source::{exists, list};
use crate::transfer::{Done, Transfer, write_file};
use crate::{Options, Verify, report};

/// In the target's root: what was done.
const REPORT_FILE: &str = "reverse.json";
/// In an unfinished target: that this program may remove it.
const MARK_FILE: &str = "reverse.unfinished";
/// What rmq notes of its log, and a Java broker has no use for.
const NOTES: [&str; 4] = ["raft.vote", "raft.checkpoint", "dispatched", "genesis"];
/// What a migration kept of the Java broker and rmq has not touched, by place.
const KEPT: [&str; 4] = [
    "batchconsumequeue",
    "timerwheel",
    "timerlog",
    "consumequeue",
];
/// Files under `config` that are written from the state of the group.
const VIEWS: [&str; 5] = [
    "topics.json",
    "subscriptionGroup.json",
    "consumerOffset.json",
    "lmqConsumerOffset.json",
    "delayOffset.json",
];

/// What was made of which store.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reversed {
    pub from: PathBuf,
    pub to: PathBuf,
    /// The entry that froze the group, if it was frozen.
    pub frozen: Option<FrozenPart>,
    /// The last entry of the Raft log that is in the store, and where it ends.
    pub last_term: u64,
    pub last_index: u64,
    pub end_offset: u64,
    /// Records of the whole log, and how many of them are headers of Raft entries.
    pub records: u64,
    pub raft_headers: u64,
    pub queues: usize,
    pub topics: usize,
    pub groups: usize,
    pub consumer_offsets: usize,
    pub files: Done,
    /// A properties file for the Java broker.
    pub conf_file: Option<PathBuf>,
    /// What may be missing.
    pub unconfirmed: Vec<String>,
    pub warnings: Vec<Problem>,
}

/// A stopped node's store.
struct Node {
    root: PathBuf,
    found: Inspection,
    /// The living part of the Raft log, empty if nothing was ever written.
    log: Generation,
}

/// Makes the store and the configuration of a Java broker.
///
/// # Errors
/// The first thing that is in the way. The source is as it was, and there is no target.
pub fn reverse(options: &Options, progress: &Progress) -> Result<Reversed, Problem> {
    let to =
        std::path::absolute(&options.to).map_err(|error| Problem::reading(&options.to, &error))?;
    free_target(&to)?;
    let conf = options.conf.as_deref().map(Conf::read).transpose()?;
    let from = options.from.iter().chain(&options.compare_with);
    progress.phase("reading the stores", 0);
    let nodes = from.map(|root| look(root)).collect::<Result<Vec<_>, _>>()?;
    let mut done = Reversed {
        to: to.clone(),
        ..Reversed::default()
    };
    let node = choose(nodes, options, conf.as_ref(), &mut done)?;
    check(&node, &mut done)?;

    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let lock = node.root.join("lock");
    let _source = match exists(&lock)? {
        true => Some(disk.lock(&lock).map_err(|_| in_use(&node.root))?),
        false => None,
    };
    let partial = with_suffix(&to, ".partial-reverse");
    if exists(&partial.join(MARK_FILE))? {
        fs::remove_dir_all(&partial).map_err(|error| Problem::writing(&partial, &error))?;
    }
    fs::create_dir_all(&partial).map_err(|error| Problem::writing(&partial, &error))?;
    let _only = only_run(&partial)?;
    write_file(&partial.join(MARK_FILE), b"")?;

    let mut transfer = Transfer::new(options.mode, progress);
    place(&node, &partial, &mut transfer)?;
    let sizes = Sizes::of(&node, &partial, conf.as_ref())?;
    derive(&sizes, &partial, progress)?;
    strip(&partial)?;
    restore(&node, &partial, &mut transfer)?;
    settings(&node, &partial, &mut done)?;
    done.conf_file = properties(&node, &to, &partial, &sizes, conf.as_ref())?;
    if options.verify != Verify::None {
        progress.phase("reading the result", 0);
        verify(&partial, &mut done)?;
    }
    transfer.sync(&partial)?;
    done.files = transfer.done;
    let text = serde_json::to_string_pretty(&done).expect("plain data") + "\n";
    write_file(&partial.join(REPORT_FILE), text.as_bytes())?;
    remove_file(&partial.join(MARK_FILE))?;
    let writing = |error| Problem::writing(&to, &error);
    disk.sync_dir(&partial).map_err(writing)?;
    fs::rename(&partial, &to).map_err(writing)?;
    disk.sync_dir(parent(&to)).map_err(writing)?;
    Ok(done)
}

fn in_use(root: &Path) -> Problem {
    Problem::new(Code::InUse, "a broker is running on it")
        .at_file(root)
        .hint("stop all nodes of the group first")
}

fn look(root: &Path) -> Result<Node, Problem> {
    let root = std::path::absolute(root).map_err(|error| Problem::reading(root, &error))?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let found = inspect::inspect(&disk, &root, None).map_err(|error| match error {
        InspectError::Io { path, source } => Problem::reading(&path, &source),
        InspectError::InUse { .. } => in_use(&root),
        InspectError::NoStore { .. } => no_store(&root),
    })?;
    let raft = found.raft.as_ref().ok_or_else(|| no_store(&root))?;
    let number = raft.notes.generation.ok_or_else(|| no_store(&root))?;
    let start = raft.notes.base_offset.unwrap_or_default();
    let log = raft.generations.iter().find(|g| g.generation == number);
    let log = log.cloned().unwrap_or_else(|| Generation {
        generation: number,
        start_offset: start,
        end_offset: start,
        ..Generation::default()
    });
    Ok(Node { root, found, log })
}

fn no_store(root: &Path) -> Problem {
    Problem::new(Code::NoStore, "this is no store of a node of rmq")
        .at_file(root)
        .hint("--from is the storePathRootDir of a stopped node")
}

impl Node {
    fn last(&self) -> (u64, u64) {
        (self.log.last_term, self.log.last_index)
    }

    /// The mark, if the node was stopped cleanly under it: what is under `config` is of the same time
    /// then.
    fn mark(&self) -> Option<&FrozenPart> {
        let raft = self.found.raft.as_ref()?;
        let mark = raft.notes.frozen.as_ref()?;
        self.found.stopped_cleanly.then_some(mark)
    }
}

/// The store that is taken.
fn choose(
    nodes: Vec<Node>,
    options: &Options,
    conf: Option<&Conf>,
    done: &mut Reversed,
) -> Result<Node, Problem> {
    let newest = nodes.iter().map(Node::last).max().unwrap_or_default();
    let given = nodes.len();
    if nodes[0].mark().is_some() && nodes[0].last().0 >= newest.0 {
        let mut nodes = nodes;
        let behind = nodes.iter().skip(1).find(|node| {
            node.log.messages_end_offset > nodes[0].log.messages_end_offset
                || node
                    .found
                    .raft
                    .as_ref()
                    .is_some_and(|r| r.notes.frozen.is_none())
        });
        if let Some(other) = behind {
            return Err(Problem::new(
                Code::StoresDiffer,
                "this node was not frozen, or has messages behind the freeze",
            )
            .at_file(&other.root)
            .why("the group was thawed after the other store was stopped")
            .hint("give the stores of all nodes as they were stopped together"));
        }
        let node = nodes.swap_remove(0);
        done.frozen = node.mark().cloned();
        return Ok(node);
    }
    let group = match conf {
        Some(conf) if conf.get("enableDLegerCommitLog").map(str::trim) == Some("true") => {
            conf.peers()?.map(|peers| peers.len())
        }
        Some(_) => Some(1),
        None => None,
    };
    let lists: Vec<String> = nodes.iter().map(shown).collect();
    let node = nodes
        .into_iter()
        .max_by_key(Node::last)
        .ok_or_else(|| Problem::new(Code::NoStore, "no store is given"))?;
    if group.is_none_or(|all| given < all) {
        let of = group.map_or_else(|| "an unknown number".to_owned(), |all| all.to_string());
        let what = format!("{given} of {of} of stores are given, and this one was not frozen");
        if !options.accept_unconfirmed {
            return Err(Problem::new(Code::Unconfirmed, what)
                .at_file(&node.root)
                .why("another node may have messages that were acknowledged and are not here")
                .hint(
                    "freeze the group before it is stopped (mqadmin raftFreeze), or give the \
                     stores of all other nodes with --compare-with and a node's properties with \
                     -c, or go on with --accept-unconfirmed",
                ));
        }
        done.unconfirmed.push(what);
        done.unconfirmed.extend(lists);
        done.unconfirmed.push(format!(
            "whatever was acknowledged behind offset {} is missing",
            node.log.end_offset
        ));
    }
    if !node.found.stopped_cleanly {
        done.warnings.push(
            Problem::new(Code::Metadata, "the node was not stopped cleanly")
                .at_file(&node.root)
                .why("topics, groups and offsets may be some seconds older than the log")
                .hint("start the group, freeze it, and stop it, to have them to the end"),
        );
    }
    Ok(node)
}

fn shown(node: &Node) -> String {
    let raft = node.found.raft.as_ref();
    let committed = raft.and_then(|raft| raft.notes.committed.clone());
    format!(
        "{}: last entry term {} index {}, ends at {}; noted as committed: {}",
        node.root.display(),
        node.log.last_term,
        node.log.last_index,
        node.log.end_offset,
        committed.unwrap_or_else(|| "none".to_owned())
    )
}

/// Refuses a log that is damaged before its end, or goes on behind its mark.
fn check(node: &Node, done: &mut Reversed) -> Result<(), Problem> {
    let in_log = |kind| {
        matches!(
            kind,
            DamageKind::Record | DamageKind::Extent | DamageKind::Files
        )
    };
    if let Some(bad) = node.found.damage.iter().find(|damage| in_log(damage.kind)) {
        return Err(Problem::new(Code::BadRecord, bad.what.clone())
            .at_file(&bad.file)
            .at_byte(bad.offset)
            .why("the log is damaged before its end")
            .hint("take the store of another node"));
    }
    if let Some(mark) = &done.frozen
        && node.log.messages_end_offset > mark.end_offset
    {
        let what = format!(
            "messages lie behind the end of the freeze, {}",
            mark.end_offset
        );
        return Err(Problem::new(Code::StoresDiffer, what)
            .at_file(&node.root)
            .hint("freeze the group again and stop all its nodes"));
    }
    done.from.clone_from(&node.root);
    (done.last_term, done.last_index) = node.last();
    done.end_offset = node.log.end_offset;
    Ok(())
}

/// Everything that opening the store needs: sealed files as they are, copies of all others.
fn place(node: &Node, partial: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    let root = &node.root;
    let end = node.log.end_offset;
    transfer
        .progress
        .phase("taking over the log", end - node.found.log.min_offset);
    let log_dir = &node.found.commit_log;
    for name in list(log_dir)? {
        let Ok(base) = name.parse::<u64>() else {
            continue;
        };
        let (from, to) = (log_dir.join(&name), partial.join("commitlog").join(&name));
        let bytes = length(&from)?;
        match end.checked_sub(base) {
            None | Some(0) => {}
            Some(used) if used >= bytes => transfer.adopt(&from, &to)?,
            Some(used) => transfer.copy(&from, &to, used, bytes)?,
        }
    }
    transfer.progress.phase("taking over the queues", 0);
    let queues = Path::new("consumequeue");
    for topic in list(&root.join(queues))? {
        for id in list(&root.join(queues).join(&topic))? {
            sealed(root, &queues.join(&topic).join(id), partial, transfer)?;
        }
    }
    sealed(root, Path::new("index"), partial, transfer)?;
    let notes = root.join("raftindex");
    for name in list(&notes)? {
        scratch(&notes.join(&name), &partial.join("raftindex").join(&name))?;
    }
    for name in NOTES.into_iter().chain(["abort"]) {
        if exists(&root.join(name))? {
            scratch(&root.join(name), &partial.join(name))?;
        }
    }
    Ok(())
}

/// A copy that is gone again in the end.
fn scratch(from: &Path, to: &Path) -> Result<(), Problem> {
    let writing = |error| Problem::writing(to, &error);
    fs::create_dir_all(parent(to)).map_err(writing)?;
    fs::copy(from, to).map(drop).map_err(writing)
}

/// A directory of files of which only the last is written to.
fn sealed(
    root: &Path,
    dir: &Path,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let names = list(&root.join(dir))?;
    for (at, name) in names.iter().enumerate() {
        let (from, to) = (root.join(dir).join(name), partial.join(dir).join(name));
        if at + 1 == names.len() {
            let bytes = length(&from)?;
            transfer.copy(&from, &to, bytes, bytes)?;
        } else {
            transfer.adopt(&from, &to)?;
        }
    }
    Ok(())
}

/// A file, or all files of a directory, if they are there.
fn copies(from: &Path, to: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    if !exists(from)? {
        return Ok(());
    }
    if !from.is_dir() {
        let bytes = length(from)?;
        return transfer.copy(from, to, bytes, bytes);
    }
    for name in list(from)? {
        copies(&from.join(&name), &to.join(&name), transfer)?;
    }
    Ok(())
}

fn length(path: &Path) -> Result<u64, Problem> {
    let meta = fs::metadata(path).map_err(|error| Problem::reading(path, &error))?;
    Ok(meta.len())
}

/// Sizes of a store's files, which the Java broker has to be told.
struct Sizes {
    segment: u64,
    consume_queue_file: u64,
    /// Slots and entries of an index file.
    index: (u32, u32),
    levels: DelayLevels,
}

impl Sizes {
    fn of(node: &Node, partial: &Path, conf: Option<&Conf>) -> Result<Self, Problem> {
        let default = StoreConfig::new(partial);
        let number = |key| conf.map_or(Ok(None), |conf| conf.number(key));
        let small = |key, usual: u32| {
            let value = number(key)?;
            Ok(value
                .and_then(|value| u32::try_from(value).ok())
                .unwrap_or(usual))
        };
        let index = (
            small("maxHashSlotNum", DEFAULT_INDEX.0)?,
            small("maxIndexNum", DEFAULT_INDEX.1)?,
        );
        let dir = partial.join("index");
        let wanted = 40 + 4 * u64::from(index.0) + 20 * u64::from(index.1);
        for name in list(&dir)? {
            let path = dir.join(&name);
            let bytes = length(&path)?;
            if bytes != wanted {
                let what = format!(
                    "it has {bytes} bytes, and {wanted} with maxHashSlotNum={} and maxIndexNum={}",
                    index.0, index.1
                );
                return Err(Problem::new(Code::Conf, what)
                    .at_file(&node.root.join("index").join(name))
                    .hint("give the node's properties file with -c"));
            }
        }
        let queue_file = first_queue_file(&partial.join("consumequeue"))?;
        let levels = match conf.and_then(|conf| conf.get("messageDelayLevel")) {
            Some(text) => DelayLevels::parse(text)
                .map_err(|error| Problem::new(Code::Conf, error.to_string()))?,
            None => DelayLevels::default(),
        };
        Ok(Self {
            segment: node.found.log.segment_bytes,
            consume_queue_file: queue_file.unwrap_or(default.consume_queue_file_bytes),
            index,
            levels,
        })
    }
}

/// Length of the queue files.
fn first_queue_file(root: &Path) -> Result<Option<u64>, Problem> {
    for topic in list(root)? {
        for id in list(&root.join(&topic))? {
            let dir = root.join(&topic).join(id);
            if let Some(name) = list(&dir)?.first() {
                return length(&dir.join(name)).map(Some);
            }
        }
    }
    Ok(None)
}

/// Opens the copy, which builds what its queues and index lack, with all entries committed.
fn derive(sizes: &Sizes, partial: &Path, progress: &Progress) -> Result<(), Problem> {
    progress.phase("bringing queues and index to the end", 0);
    let failed = |error: &dyn fmt::Display| {
        Problem::new(Code::Write, error.to_string())
            .at_file(partial)
            .why("the copy does not open as a store")
            .hint("take the store of another node, or look at this one with mqadmin inspect store")
    };
    let mut config = sized(StoreConfig::new(partial), sizes.segment);
    config.consume_queue_file_bytes = sizes.consume_queue_file;
    (config.index_slots, config.index_entries) = sizes.index;
    config.delay_levels = sizes.levels.clone();
    config.flush = FlushMode::Sync;
    config.catch_up_bytes = u64::MAX;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    // The second time, everything that the first one committed is built.
    for _ in 0..2 {
        let Store { mut log, queues } =
            rmq_store::open(&config, Arc::clone(&disk)).map_err(|e| failed(&e))?;
        let reader = log.reader();
        if let Some(damage) = reader.damages().first() {
            return Err(failed(damage));
        }
        let last = reader.last_id();
        if let (Some(first), Some(last)) = (reader.first_index(), last) {
            let confirmed = reader.confirm_offset();
            let mut from = last.index.0;
            let entry = |index| reader.entry(LogIndex(index)).map_err(|e| failed(&e));
            while from > first.0 && entry(from)?.is_some_and(|entry| entry.start >= confirmed) {
                from -= 1;
            }
            for index in from..=last.index.0 {
                if let Some(entry) = entry(index)? {
                    queues.commit(entry.end, &entry.runs);
                }
            }
        }
        log.save_committed(last);
        queues.stop().map_err(|e| failed(&e))?;
        log.close().map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Leaves out what only rmq reads.
fn strip(partial: &Path) -> Result<(), Problem> {
    for name in NOTES.into_iter().chain(["lock"]) {
        remove_file(&partial.join(name))?;
    }
    let dir = partial.join("raftindex");
    if exists(&dir)? {
        fs::remove_dir_all(&dir).map_err(|error| Problem::writing(&dir, &error))?;
    }
    Ok(())
}

/// Brings back what a migration kept of the Java broker.
fn restore(node: &Node, partial: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    let kept = node.root.join("adopted");
    let config = kept.join("config");
    if exists(&config)? {
        for name in list(&config)? {
            if !VIEWS.iter().any(|view| name.starts_with(view)) {
                copies(
                    &config.join(&name),
                    &partial.join("config").join(&name),
                    transfer,
                )?;
            }
        }
    }
    // A log that was written anew has moved: positions in these are those of the old one.
    if exists(&kept.join("dledger.json"))? {
        return Ok(());
    }
    for name in KEPT {
        copies(&kept.join(name), &partial.join(name), transfer)?;
    }
    Ok(())
}

/// `config/*.json` from the node's views.
fn settings(node: &Node, partial: &Path, done: &mut Reversed) -> Result<(), Problem> {
    let to = partial.join("config");
    fs::create_dir_all(&to).map_err(|error| Problem::writing(&to, &error))?;
    let GenesisMetadata {
        mut topics,
        groups,
        mut offsets,
        delay,
    } = metadata(node)?;
    topics.topic_config_table.remove(RAFT_LOG_TOPIC);
    done.topics = topics.topic_config_table.len();
    done.groups = groups.subscription_group_table.len();
    done.consumer_offsets = offsets
        .offset_table
        .values()
        .map(|queues| queues.len())
        .sum();
    put(&to, "topics.json", &topics)?;
    put(&to, "subscriptionGroup.json", &groups)?;
    put(&to, "consumerOffset.json", &offsets)?;
    put(&to, "delayOffset.json", &delay)?;
    // A broker with LMQ has all offsets in another file, those of LMQ queues too.
    let lmq = node.root.join("adopted/config");
    if exists(&lmq.join("lmqConsumerOffset.json"))? {
        let old: ConsumerOffsetSerializeWrapper = view(&lmq, "lmqConsumerOffset.json")?;
        offsets.lmq_offset_table = old.lmq_offset_table;
        put(&to, "lmqConsumerOffset.json", &offsets)?;
    }
    Ok(())
}

/// The state as the node last wrote it, or what it took over if it never ran.
fn metadata(node: &Node) -> Result<GenesisMetadata, Problem> {
    let from = node.root.join("config");
    if !exists(&from)?
        && let Some(genesis) = Genesis::read(&RealDisk, &node.root)
            .map_err(|error| Problem::reading(&node.root, &error))?
    {
        return Ok(genesis.metadata);
    }
    Ok(GenesisMetadata {
        topics: view(&from, "topics.json")?,
        groups: view(&from, "subscriptionGroup.json")?,
        offsets: view(&from, "consumerOffset.json")?,
        delay: view(&from, "delayOffset.json")?,
    })
}

fn view<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T, Problem> {
    let path = dir.join(name);
    let bytes = fs::read(&path).map_err(|error| Problem::reading(&path, &error))?;
    json::from_slice(&bytes).map_err(|error| {
        Problem::new(Code::Metadata, error.to_string())
            .at_file(&path)
            .why("the state of the group is not readable here")
            .hint("start and stop the node, which writes the file again")
    })
}

fn put<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), Problem> {
    write_file(&dir.join(name), json::to_java_string(value).as_bytes())
}

/// The Java broker's old properties file, or the node's, made fit for the new store.
fn properties(
    node: &Node,
    to: &Path,
    partial: &Path,
    sizes: &Sizes,
    conf: Option<&Conf>,
) -> Result<Option<PathBuf>, Problem> {
    let old = node.root.join("adopted/broker.conf");
    let old = match exists(&old)? {
        true => Some(Conf::read(&old)?),
        false => None,
    };
    let Some(base) = old.as_ref().or(conf) else {
        return Ok(None);
    };
    let text = base.for_master(to, sizes.segment, sizes.consume_queue_file, sizes.index);
    let dir = partial.join("conf");
    fs::create_dir_all(&dir).map_err(|error| Problem::writing(&dir, &error))?;
    write_file(&dir.join("broker.properties"), text.as_bytes())?;
    Ok(Some(to.join("conf/broker.properties")))
}

/// Reads the result as a whole: nothing is damaged, and no queue or index goes beyond the log.
fn verify(partial: &Path, done: &mut Reversed) -> Result<(), Problem> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let found = inspect::inspect(&disk, partial, None)
        .map_err(|error| Problem::new(Code::Verify, error.to_string()).at_file(partial))?;
    if let Some(bad) = found.damage.first() {
        return Err(Problem::new(Code::Verify, bad.what.clone())
            .at_file(&bad.file)
            .at_byte(bad.offset)
            .why("the result is not what it must be; the source is as it was")
            .hint("take the store of another node"));
    }
    done.records = found.log.records;
    let headers = found.raft.iter().flat_map(|raft| &raft.generations);
    done.raft_headers = headers.map(|generation| generation.extents).sum();
    done.queues = found.queues.len();
    Ok(())
}

impl Reversed {
    /// Prints it, and writes it where the options say.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn publish(&self, options: &Options) -> Result<(), Problem> {
        let json = serde_json::to_string_pretty(self).expect("plain data");
        match &options.report {
            Some(path) if path.as_os_str() == "-" => report::say(&json),
            Some(path) => {
                write_file(path, json.as_bytes())?;
                report::say(&self.to_string());
            }
            None => report::say(&self.to_string()),
        }
        Ok(())
    }
}

impl fmt::Display for Reversed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for missing in &self.unconfirmed {
            writeln!(f, "unconfirmed: {missing}")?;
        }
        writeln!(
            f,
            "{} is a Java broker's store, made from {}",
            self.to.display(),
            self.from.display()
        )?;
        match &self.frozen {
            Some(mark) => writeln!(
                f,
                "the group was frozen at term {} index {}, end offset {}",
                mark.term, mark.index, mark.end_offset
            )?,
            None => writeln!(
                f,
                "up to term {} index {}, end offset {}",
                self.last_term, self.last_index, self.end_offset
            )?,
        }
        writeln!(
            f,
            "{} topics, {} groups, {} consumer offsets; {} files linked, {} reflinked, {} copied",
            self.topics,
            self.groups,
            self.consumer_offsets,
            self.files.linked_files,
            self.files.reflinked_files,
            self.files.copied_files
        )?;
        match &self.conf_file {
            Some(path) => write!(
                f,
                "start the Java master with  mqbroker -c {}",
                path.display()
            ),
            None => write!(
                f,
                "give the Java master this storePathRootDir, and file sizes as they are"
            ),
        }
    }
}
