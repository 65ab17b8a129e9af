//! The way back: stores that were migrated, written to as the nodes of a group do, and made into a Java
//! broker's again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use clap::Parser as _;
use rmq_migrate::{Code, Options, Problem, Progress, Reversed, Style, reverse, run};
use rmq_store::inspect::{Inspection, inspect};
use rmq_store::{
    Batch, EntryId, EntryKind, FreezeMark, LogIndex, NewEntry, PendingRecord, RealDisk, Store, Term,
};
use rmq_wire::record::NewRecord;

use crate::archive::tree;
use crate::fixture::Unpacked;
use crate::manifest::{conf, open};

const ARCHIVE: &str = "classic-4.9.7-clean";
const TOPIC: &str = "TopicPlain4";

fn look(root: &Path) -> Inspection {
    inspect(&(Arc::new(RealDisk) as _), root, None).unwrap()
}

fn back(from: &Path, to: &Path, more: &[&str]) -> Result<Reversed, Problem> {
    let args = ["rmq-migrate", "--reverse", "--progress", "none", "--from"];
    let args = args.map(Path::new).into_iter();
    let args = args.chain([from, Path::new("--to"), to]);
    let options = Options::parse_from(args.chain(more.iter().map(Path::new)));
    let before = tree(from);
    let done = reverse(&options, &Progress::new(Style::None));
    assert!(tree(from) == before, "the source has changed");
    done
}

/// A message for queue 0 of the topic.
fn message(body: &str) -> PendingRecord {
    let host = ([127, 0, 0, 1], 10911).into();
    let new = NewRecord {
        properties: "KEYS\u{1}back\u{2}",
        ..NewRecord::new(host, TOPIC, 0, body.as_bytes())
    };
    PendingRecord::new(&new).unwrap()
}

/// Appends entries of a term as a leader does, commits those below `committed`, and stops cleanly.
fn write(root: &Path, conf: &BTreeMap<String, String>, term: u64, count: u64, committed: u64) {
    let Store { mut log, queues } = open(root, conf);
    let reader = log.reader();
    for _ in 0..count {
        let index = reader
            .last_id()
            .map_or(LogIndex(0), |last| last.index.next());
        let entry = NewEntry::Unsealed {
            id: EntryId {
                term: Term(term),
                node: 1,
                index,
            },
            kind: EntryKind::Messages,
            meta: bytes::Bytes::new(),
            batch: Some(Batch::new(vec![message(&format!("{term} {index}"))])),
        };
        log.append(vec![entry]).unwrap();
        if index.0 < committed {
            let entry = reader.entry(index).unwrap().unwrap();
            queues.commit(entry.end, &entry.runs);
        }
    }
    queues.stop().unwrap();
    log.close().unwrap();
}

fn freeze(root: &Path) -> FreezeMark {
    let found = look(root);
    let log = found.raft.unwrap().generations.pop().unwrap();
    let mark = FreezeMark {
        id: EntryId {
            term: Term(log.last_term),
            node: 1,
            index: LogIndex(log.last_index),
        },
        end: rmq_store::PhyOffset(log.end_offset),
        at_ms: 1,
    };
    mark.write(&RealDisk, root).unwrap();
    mark
}

/// A migrated store.
struct Bed {
    unpacked: Unpacked,
    conf: BTreeMap<String, String>,
}

impl Bed {
    fn new(archive: &str, store: &str) -> Option<Self> {
        let unpacked = Unpacked::new(archive, |name| name == store)?;
        run(&unpacked.options(store, &[]), &Progress::new(Style::None)).unwrap();
        let conf = conf(&unpacked, store);
        Some(Self { unpacked, conf })
    }

    fn node(&self) -> std::path::PathBuf {
        self.unpacked.target()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.unpacked.dir.path().join(name)
    }

    /// The properties file that the migration wrote.
    fn with_conf<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        let conf = self.node().join("conf/broker.conf");
        let conf: &'static str = conf.display().to_string().leak();
        ["-c", conf]
            .into_iter()
            .chain(more.iter().copied())
            .collect()
    }
}

/// What a Java broker reads of a store is as in another: queues, waiting messages, settings.
fn assert_same(one: &Inspection, other: &Inspection) {
    for (one, other) in one.queues.iter().zip(&other.queues) {
        let name = format!("{} {}", one.topic, one.queue_id);
        assert_eq!((&one.topic, one.queue_id), (&other.topic, other.queue_id));
        assert_eq!(one.log, other.log, "{name}");
        let readable = |part: &rmq_store::inspect::QueuePart| {
            let units = part.units.clone().unwrap_or_default();
            (units.messages, units.max_offset, units.first_readable)
        };
        // Queues that were built anew have the topics that were deleted, too.
        if one.units.is_some() {
            assert_eq!(readable(one), readable(other), "{name}");
        }
    }
    assert_eq!(one.queues.len(), other.queues.len());
    assert_eq!(
        (&one.delay, &one.half, &one.timer),
        (&other.delay, &other.half, &other.timer)
    );
    assert_eq!(
        (one.retry, one.dlq, one.lmq),
        (other.retry, other.dlq, other.lmq)
    );
    assert_eq!(one.inner_batch, other.inner_batch);
}

#[test]
fn what_was_migrated_comes_back_as_it_was() {
    for (archive, store) in [
        (ARCHIVE, "broker-a"),
        ("classic-4.9.7-odd", "broker-a"),
        ("classic-5.5.0-lmq", "broker-a"),
        ("classic-5.5.0-v2", "broker-a"),
    ] {
        let Some(bed) = Bed::new(archive, store) else {
            return;
        };
        let to = bed.path("back");
        let refused = back(&bed.node(), &to, &[]).unwrap_err();
        assert_eq!(refused.code, Code::Unconfirmed, "{refused}");
        let more = bed.with_conf(&["--accept-unconfirmed"]);
        let done = back(&bed.node(), &to, &more).unwrap_or_else(|e| panic!("{archive}: {e}"));
        let (java, again) = (look(&bed.unpacked.store(store)), look(&to));
        assert_eq!(again.damages, 0);
        assert!(again.raft.is_none() && again.stopped_cleanly);
        assert_eq!(
            (&again.log.records, again.log.max_offset),
            (&java.log.records, java.log.max_offset)
        );
        assert_same(&java, &again);
        let entries = |found: &Inspection| {
            let config = &found.config;
            [&config.topics, &config.groups, &config.delay_offsets].map(|table| table.entries)
        };
        assert_eq!(entries(&java), entries(&again), "{archive}");
        assert!(done.conf_file.is_some());
    }
}

#[test]
fn messages_of_the_group_are_in_the_queues_and_its_headers_in_none() {
    let Some(bed) = Bed::new(ARCHIVE, "broker-a") else {
        return;
    };
    let before = look(&bed.node());
    // The last entries are in no majority's log, as far as this node knows.
    write(&bed.node(), &bed.conf, 3, 50, 40);
    let mark = freeze(&bed.node());
    let to = bed.path("back");
    let done = back(&bed.node(), &to, &bed.with_conf(&[])).unwrap();
    assert_eq!(done.frozen.as_ref().map(|mark| mark.index), Some(49));
    assert_eq!((done.end_offset, done.raft_headers), (mark.end.0, 50));
    let found = look(&to);
    assert_eq!((found.damages, found.log.max_offset), (0, mark.end.0));
    let queue = |found: &Inspection| {
        let mut own = found
            .queues
            .iter()
            .filter(|queue| queue.topic == TOPIC && queue.queue_id == 0);
        own.next().unwrap().clone()
    };
    let (old, new) = (queue(&before), queue(&found));
    let units = new.units.unwrap();
    assert_eq!(new.log.max_offset, old.log.max_offset + 50);
    assert_eq!((units.max_offset, new.missing), (new.log.max_offset, 0));
    assert!(
        !found
            .queues
            .iter()
            .any(|queue| queue.topic == rmq_store::RAFT_LOG_TOPIC)
    );
    let topics = fs::read_to_string(to.join("config/topics.json")).unwrap();
    assert!(!topics.contains(rmq_store::RAFT_LOG_TOPIC));
    for name in [
        "raft.vote",
        "raft.checkpoint",
        "raft.frozen",
        "raftindex",
        "genesis",
        "dispatched",
        "dispatched.queues",
        "abort",
    ] {
        assert!(!to.join(name).try_exists().unwrap(), "{name}");
    }
    let text = fs::read_to_string(to.join("conf/broker.properties")).unwrap();
    let said = |line: String| assert!(text.lines().any(|l| l == line), "{line} in {text}");
    said(format!("storePathRootDir={}", to.display()));
    said("brokerRole=ASYNC_MASTER".to_owned());
    said("mappedFileSizeCommitLog=1048576".to_owned());

    // And in again: the old headers are history.
    let into = bed.path("again");
    let args = ["rmq-migrate", "--progress", "none", "--from"]
        .map(Path::new)
        .into_iter();
    let args = args.chain([
        to.as_path(),
        Path::new("--to"),
        into.as_path(),
        Path::new("-c"),
    ]);
    let properties = to.join("conf/broker.properties");
    let options = Options::parse_from(args.chain([properties.as_path()]));
    run(&options, &Progress::new(Style::None)).unwrap();
    write(&into, &bed.conf, 1, 5, 5);
    let found = look(&into);
    let generations = found.raft.as_ref().unwrap().generations.clone();
    let extents: Vec<u64> = generations
        .iter()
        .map(|generation| generation.extents)
        .collect();
    assert_eq!(extents, [50, 5]);
    assert_eq!(queue(&found).log.max_offset, new.log.max_offset + 5);
    assert_eq!(found.damages, 0, "{:?}", found.damage);
}

#[test]
fn of_unfrozen_stores_the_newest_is_taken() {
    let Some(bed) = Bed::new(ARCHIVE, "broker-b-s") else {
        return;
    };
    let other = bed.path("other");
    copy(&bed.node(), &other);
    write(&bed.node(), &bed.conf, 3, 50, 40);
    write(&other, &bed.conf, 4, 20, 10);
    let to = bed.path("back");
    let with = ["--compare-with", other.to_str().unwrap()];
    let refused = back(&bed.node(), &to, &with).unwrap_err();
    assert_eq!(refused.code, Code::Unconfirmed, "{refused}");
    let group = bed.path("group.conf");
    let text = fs::read_to_string(bed.node().join("conf/broker.conf")).unwrap();
    let peers = "enableDLegerCommitLog=true\ndLegerPeers=n0-h:1;n1-h:2\n";
    fs::write(
        &group,
        format!(
            "{}\n{peers}",
            text.replace("enableDLegerCommitLog=false", "")
        ),
    )
    .unwrap();
    let with = [&with[..], &["-c", group.to_str().unwrap()]].concat();
    let done = back(&bed.node(), &to, &with).unwrap();
    // A later term counts for more than a longer log.
    assert_eq!(
        (done.last_term, done.last_index, &done.from),
        (4, 19, &other)
    );
    assert!(done.frozen.is_none() && done.unconfirmed.is_empty());
}

#[test]
fn a_thawed_store_and_a_damaged_one_are_refused() {
    let Some(bed) = Bed::new(ARCHIVE, "broker-b-s") else {
        return;
    };
    write(&bed.node(), &bed.conf, 3, 10, 10);
    freeze(&bed.node());
    write(&bed.node(), &bed.conf, 3, 10, 20);
    let to = bed.path("back");
    let refused = back(&bed.node(), &to, &bed.with_conf(&[])).unwrap_err();
    assert_eq!(refused.code, Code::StoresDiffer, "{refused}");

    let log = bed.node().join("commitlog");
    let segment = fs::read_dir(log).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[5000] ^= 1;
    fs::remove_file(&segment).unwrap();
    fs::write(&segment, bytes).unwrap();
    let refused = back(&bed.node(), &to, &bed.with_conf(&[])).unwrap_err();
    assert_eq!(refused.code, Code::BadRecord, "{refused}");
    assert!(!to.try_exists().unwrap());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
