//! What an inspection tells of the stores, against what the Java brokers said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rmq_store::RealDisk;
use rmq_store::inspect::{DamageKind, Inspection, QueueKind, QueuePart, inspect};
use ruzstd::decoding::StreamingDecoder;
use serde_json::Value;
use tempfile::TempDir;

use crate::Queue;
use crate::fixture::{lines, root};

/// An archive on disk, the files left out that no inspection looks at.
fn unpack(archive: &str) -> Option<TempDir> {
    let dir = TempDir::new().unwrap();
    let zstd = File::open(root()?.join(archive).join("store.tar.zst")).unwrap();
    let mut tar = tar::Archive::new(StreamingDecoder::new(BufReader::new(zstd)).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = dir.path().join(entry.path().unwrap());
        let unread = |part| matches!(part, "timerlog" | "rocksdbstore" | "compaction");
        if path.iter().any(|part| unread(part.to_str().unwrap())) {
            continue;
        }
        if entry.header().entry_type().is_dir() {
            fs::create_dir_all(path).unwrap();
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        // The files are full of holes.
        for (page, at) in bytes.chunks(4096).zip((0..).step_by(4096)) {
            if page.iter().any(|byte| *byte != 0) {
                file.write_all_at(page, at).unwrap();
            }
        }
    }
    Some(dir)
}

fn inspected(store: &Path) -> Inspection {
    let before = tree(store);
    let found = inspect(&(Arc::new(RealDisk) as _), store, None).unwrap();
    assert!(tree(store) == before, "an inspection has written");
    found
}

/// Every file with its length and time of change.
fn tree(dir: &Path) -> BTreeSet<(String, u64, std::time::SystemTime)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            found.extend(tree(&entry.path()));
        } else {
            let path = entry.path().display().to_string();
            found.insert((path, meta.len(), meta.modified().unwrap()));
        }
    }
    found
}

/// What Java said of a store, or with `of` "commitlog" what its decoder found.
fn said(archive: &str, store: &str, of: &str) -> Vec<Value> {
    lines(
        &root()
            .unwrap()
            .join(archive)
            .join(format!("{store}.{of}.jsonl.xz")),
    )
}

fn of_type<'a>(lines: &'a [Value], name: &str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["type"] == name)
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().and_then(|text| text.parse().ok());
    value.as_u64().or(text).unwrap_or_else(|| panic!("{value}"))
}

fn queue_of(line: &Value) -> Queue {
    let id = line["queueId"].as_i64().unwrap();
    (
        line["topic"].as_str().unwrap().to_owned(),
        id.try_into().unwrap(),
    )
}

/// The manifest's queues with the number of messages that Java gave out of them.
fn java_queues(manifest: &[Value]) -> BTreeMap<Queue, &Value> {
    of_type(manifest, "queue")
        .map(|line| (queue_of(line), line))
        .collect()
}

fn check_log(name: &str, found: &Inspection, log: &[Value], manifest: &[Value]) {
    let records = of_type(log, "record").count() as u64;
    assert_eq!(found.log.records, records, "{name}");
    let runtime = &of_type(manifest, "runtime").next().unwrap()["values"];
    let ends = (
        number(&runtime["commitLogMinOffset"]),
        number(&runtime["commitLogMaxOffset"]),
    );
    assert_eq!((found.log.min_offset, found.log.max_offset), ends, "{name}");
    let stored = |line: &Value| line["storeTimestamp"].as_i64();
    let mut times = of_type(log, "record").map(stored);
    assert_eq!(found.log.first_stored_ms, times.next().unwrap(), "{name}");
    assert_eq!(found.log.last_stored_ms, times.last().unwrap(), "{name}");
}

fn check_settings(name: &str, found: &Inspection, manifest: &[Value]) {
    let count = |of: &str| of_type(manifest, of).count() as u64;
    let config = &found.config;
    assert_eq!(config.topics.entries, count("topic"), "{name}");
    assert_eq!(config.groups.entries, count("group"), "{name}");
    assert_eq!(config.offsets.entries, count("consumerOffset"), "{name}");
    assert_eq!(config.delay_offsets.entries, count("delayOffset"), "{name}");
}

/// Delayed, half, retry and dead messages.
fn check_waiting(name: &str, found: &Inspection, manifest: &[Value]) {
    let queues = java_queues(manifest);
    let delivered: BTreeMap<u64, u64> = of_type(manifest, "delayOffset")
        .map(|line| (number(&line["level"]), number(&line["offset"])))
        .collect();
    let mut pending = BTreeMap::new();
    for ((topic, queue_id), line) in &queues {
        if topic == "SCHEDULE_TOPIC_XXXX" {
            let level = u64::try_from(*queue_id).unwrap() + 1;
            let from = delivered.get(&level).copied().unwrap_or(0);
            pending.insert(level, number(&line["maxOffset"]) - from);
        }
    }
    let ours: BTreeMap<u64, u64> = found
        .delay
        .levels
        .iter()
        .map(|level| (level.level.try_into().unwrap(), level.pending))
        .collect();
    assert_eq!(ours, pending, "{name}");
    assert_eq!(found.delay.pending, pending.values().sum::<u64>(), "{name}");
    let retries = of_type(manifest, "msg").filter(|line| {
        let level = number(&line["queueId"]) + 1;
        let real = line["properties"]["REAL_TOPIC"]
            .as_str()
            .unwrap_or_default();
        line["topic"] == "SCHEDULE_TOPIC_XXXX"
            && real.starts_with("%RETRY%")
            && number(&line["queueOffset"]) >= delivered.get(&level).copied().unwrap_or(0)
    });
    let ours: u64 = found.delay.levels.iter().map(|l| l.pending_retries).sum();
    assert_eq!(ours, retries.count() as u64, "{name}");

    let half = of_type(manifest, "halfMessage");
    let open = half.filter(|line| line["pending"] == true).count();
    assert_eq!(found.half.pending, open as u64, "{name}");
    assert_eq!(
        found.half.messages,
        of_type(manifest, "halfMessage").count() as u64,
        "{name}"
    );

    for (prefix, sum) in [("%RETRY%", found.retry), ("%DLQ%", found.dlq)] {
        let of_prefix = queues
            .iter()
            .filter(|((topic, _), _)| topic.starts_with(prefix));
        let messages: u64 = of_prefix.map(|(_, line)| number(&line["messages"])).sum();
        assert_eq!(sum.messages, messages, "{name} {prefix}");
    }
}

/// Every queue that Java knows, and what only the inspection finds.
fn check_queues(name: &str, found: &Inspection, manifest: &[Value]) {
    let parts: BTreeMap<Queue, &QueuePart> = found
        .queues
        .iter()
        .map(|part| ((part.topic.clone(), part.queue_id), part))
        .collect();
    for (queue, line) in java_queues(manifest) {
        let name = format!("{name} {queue:?}");
        let max = number(&line["maxOffset"]);
        let Some(part) = parts.get(&queue) else {
            // 5.x answers for queues that nothing was ever sent to.
            assert_eq!(max, 0, "{name}");
            continue;
        };
        let Some(units) = &part.units else {
            assert_eq!((max, part.log.messages), (0, 0), "{name}");
            continue;
        };
        assert_eq!(units.max_offset, max, "{name}");
        if part.kind != QueueKind::Classic {
            // Java's pulls from these queues stop early, and count records, not messages.
            assert_eq!(units.messages, max - units.min_offset, "{name}");
            continue;
        }
        assert_eq!(
            units.messages + units.stale,
            number(&line["messages"]),
            "{name}"
        );
        if units.messages > 0 && units.stale == 0 {
            assert_eq!(
                units.first_readable,
                Some(number(&line["minOffset"])),
                "{name}"
            );
        }
    }
}

/// Topics of queues for which `of` counts something.
fn topics(found: &Inspection, of: impl Fn(&QueuePart) -> u64) -> Vec<String> {
    let some = found.queues.iter().filter(|part| of(part) > 0);
    let names: BTreeSet<String> = some.map(|part| part.topic.clone()).collect();
    names.into_iter().collect()
}

fn check_classic(archive: &str, names: &[&str]) {
    let Some(dir) = unpack(archive) else { return };
    for store in names {
        let name = format!("{archive}/{store}");
        let found = inspected(&dir.path().join(store).join("store"));
        let manifest = said(archive, store, "manifest");
        check_log(&name, &found, &said(archive, store, "commitlog"), &manifest);
        check_settings(&name, &found, &manifest);
        check_waiting(&name, &found, &manifest);
        check_queues(&name, &found, &manifest);
        assert_eq!(
            found.stopped_cleanly,
            archive != "classic-4.9.7-crash",
            "{name}"
        );
        assert_eq!(
            (found.raft.is_none(), found.dledger.is_none()),
            (true, true),
            "{name}"
        );
        assert!(
            found
                .index
                .last_offset
                .is_some_and(|last| last < found.log.max_offset),
            "{name}"
        );

        // A slave keeps the first life of a topic that was made again, see the fixtures' notes.
        let is_slave = store.ends_with("-s");
        let stale = topics(&found, |part| {
            part.units.as_ref().map_or(0, |units| units.stale)
        });
        let missing = topics(&found, |part| part.missing);
        let (wanted_stale, wanted_missing): (&[&str], &[&str]) = match (archive, *store) {
            ("classic-4.9.7-clean", "broker-a" | "broker-b-s") | ("classic-5.5.0-v2", _) => {
                (&[], &[])
            }
            ("classic-4.9.7-clean", _) if is_slave => (&["TopicRecreated"], &["TopicRecreated"]),
            _ => (&[], &["TopicDeleted"]),
        };
        assert_eq!(
            (stale, missing),
            (to_strings(wanted_stale), to_strings(wanted_missing)),
            "{name}"
        );
        for damage in &found.damage {
            let told = format!("{name}: {damage:?}");
            assert!(
                is_slave && damage.what.contains("whose record says offset"),
                "{told}"
            );
        }
        assert_eq!(
            found.damages,
            if name.ends_with("broker-a-s") { 2 } else { 0 },
            "{name}"
        );
    }
}

fn to_strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn classic_4_9_stores_have_what_java_says() {
    let clean = ["broker-a", "broker-a-s", "broker-b", "broker-b-s"];
    check_classic("classic-4.9.7-clean", &clean);
    check_classic("classic-4.9.7-odd", &["broker-a"]);
    check_classic("classic-4.9.7-crash", &["broker-a"]);
}

#[test]
fn classic_5_stores_have_what_java_says() {
    for archive in [
        "classic-5.5.0-clean",
        "classic-5.5.0-lmq",
        "classic-5.5.0-v2",
    ] {
        check_classic(archive, &["broker-a"]);
    }
}

#[test]
fn timers_batches_and_lmqs_are_counted() {
    let Some(dir) = unpack("classic-5.5.0-lmq") else {
        return;
    };
    let store = dir.path().join("broker-a/store");
    let found = inspected(&store);
    let metrics = fs::read_to_string(store.join("config/timermetrics")).unwrap();
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    let waiting = &metrics["timingCount"]["TopicTimer"]["count"];
    assert_eq!(found.timer.pending, number(waiting));
    assert_eq!((found.timer.messages, found.timer.taken), (63, 63));
    assert_eq!(
        (found.inner_batch.queues, found.inner_batch.messages),
        (2, 83)
    );
    assert_eq!((found.lmq.queues, found.lmq.messages), (2, 45));
}

#[test]
fn damage_is_found_where_it_was_done() {
    let archive = "classic-4.9.7-crash";
    let Some(dir) = unpack(archive) else { return };
    let look = |variant: &str| inspected(&dir.path().join(variant).join("store"));
    let whole = look("broker-a");
    let end = whole.log.max_offset;
    let text = fs::read_to_string(root().unwrap().join(archive).join("damage.json")).unwrap();
    let done: Value = serde_json::from_str(&text).unwrap();
    let record = |variant: &str| number(&done[variant]["detail"]["record"]);
    let in_log = |found: &Inspection| -> Vec<(DamageKind, u64)> {
        let of_log = found
            .damage
            .iter()
            .filter(|d| d.file.parent().unwrap().ends_with("commitlog"));
        of_log.map(|damage| (damage.kind, damage.offset)).collect()
    };

    for variant in ["torn_tail", "torn_header"] {
        let found = look(&format!("broker-a.{variant}"));
        assert_eq!(
            in_log(&found),
            [(DamageKind::TornTail, record(variant))],
            "{variant}"
        );
        assert_eq!(found.log.records, whole.log.records - 1, "{variant}");
        assert_eq!(found.log.max_offset, record(variant), "{variant}");
    }
    let found = look("broker-a.bit_rot");
    assert_eq!(in_log(&found), [(DamageKind::Record, record("bit_rot"))]);
    assert_eq!(
        (found.log.records, found.log.max_offset),
        (whole.log.records - 1, end)
    );
    let found = look("broker-a.lost_page");
    let touched = done["lost_page"]["detail"]["recordsTouched"]
        .as_array()
        .unwrap();
    assert_eq!(in_log(&found), [(DamageKind::Record, number(&touched[0]))]);
    let lost = touched.len() as u64;
    assert_eq!(
        (found.log.records, found.log.max_offset),
        (whole.log.records - lost, end)
    );
    assert_eq!(
        found.queues.iter().map(|part| part.missing).sum::<u64>(),
        whole.queues.iter().map(|part| part.missing).sum::<u64>()
    );

    let found = look("broker-a.no_cq");
    assert_eq!(
        (found.log.clone(), found.damages, found.index.files),
        (whole.log.clone(), 0, 0)
    );
    let without = |part: &&QueuePart| part.units.is_some() || part.missing != part.log.messages;
    assert_eq!(found.queues.iter().find(without), None);

    // Units that are gone are missing, one by one.
    let found = look("broker-a.cq_behind");
    assert_eq!(found.log, whole.log);
    let mut gone: BTreeMap<Queue, u64> = BTreeMap::new();
    for cut in done["cq_behind"]["detail"].as_array().unwrap() {
        if let (Some(topic), Some(queue), Some(units)) =
            (cut[0].as_str(), cut[1].as_i64(), cut[2].as_u64())
        {
            gone.insert((topic.to_owned(), queue.try_into().unwrap()), units);
        }
    }
    for (before, after) in whole.queues.iter().zip(&found.queues) {
        let queue = (before.topic.clone(), before.queue_id);
        let cut = gone.get(&queue).copied().unwrap_or(0);
        let more = after.missing - before.missing;
        let whole_file = after.topic == "TopicBatch" || queue == ("TopicPlain4".to_owned(), 1);
        assert!(
            more == cut || whole_file && more > cut,
            "{queue:?}: {more}, {cut} cut"
        );
    }
}

#[test]
fn dledger_stores_have_what_the_group_says() {
    let archive = "dledger-4.9.7";
    let Some(dir) = unpack(archive) else { return };
    let manifest = said(archive, "group", "manifest");
    let mut ends = Vec::new();
    for node in ["n0", "n1", "n2"] {
        let found = inspected(&dir.path().join(node).join("store"));
        let log = said(archive, node, "commitlog");
        let entries: Vec<&Value> = of_type(&log, "entry").collect();
        let dledger = found.dledger.as_ref().unwrap();
        let (first, last) = (entries[0], entries[entries.len() - 1]);
        assert_eq!(dledger.entries, entries.len() as u64, "{node}");
        assert_eq!(
            found.log.records,
            of_type(&log, "record").count() as u64,
            "{node}"
        );
        assert_eq!(
            [
                dledger.first_index,
                dledger.last_index,
                dledger.first_term,
                dledger.last_term
            ],
            [
                &first["index"],
                &last["index"],
                &first["term"],
                &last["term"]
            ]
            .map(number),
            "{node}"
        );
        assert_eq!(found.stopped_cleanly, node != "n1");
        ends.push((dledger.last_index, dledger.last_term));
        if node == "n1" {
            continue;
        }
        for (queue, line) in java_queues(&manifest) {
            let part = found
                .queues
                .iter()
                .find(|part| (&part.topic, part.queue_id) == (&queue.0, queue.1));
            let max = part.map_or(0, |part| part.log.max_offset);
            // A topic that was deleted stays in the log.
            assert!(
                max == number(&line["maxOffset"]),
                "{node} {queue:?}: {max}, {line}"
            );
        }
        check_settings(node, &found, &manifest);
    }
    assert_eq!(ends[0], ends[2]);
}
