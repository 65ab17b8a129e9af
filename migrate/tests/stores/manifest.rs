//! A migrated store against the manifest of its source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rmq_migrate::{Code, Progress, Report, Style, run};
use rmq_store::{DelayLevels, Genesis, QueueOffset, RealDisk, Store, StoreConfig};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::archive::tree;
use crate::fixture::Unpacked;

/// Where a record was and where it is now.
pub(crate) type Moved = BTreeMap<u64, u64>;

pub(crate) fn conf(unpacked: &Unpacked, name: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(unpacked.conf(name)).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

pub(crate) fn open(root: &Path, conf: &BTreeMap<String, String>) -> Store {
    let number = |key: &str| conf[key].parse().unwrap();
    let levels = conf.get("messageDelayLevel");
    let config = StoreConfig {
        segment_bytes: number("mappedFileSizeCommitLog"),
        consume_queue_file_bytes: number("mappedFileSizeConsumeQueue"),
        index_slots: u32::try_from(number("maxHashSlotNum")).unwrap(),
        index_entries: u32::try_from(number("maxIndexNum")).unwrap(),
        max_message_bytes: 512 * 1024,
        delay_levels: levels.map_or_else(DelayLevels::default, |text| {
            DelayLevels::parse(text).unwrap()
        }),
        ..StoreConfig::new(root)
    };
    rmq_store::open(&config, Arc::new(RealDisk)).unwrap()
}

fn migrate(unpacked: &Unpacked, name: &str, more: &[&str]) -> Report {
    let before = tree(&unpacked.store(name));
    let options = unpacked.options(name, more);
    let report = run(&options, &Progress::new(Style::None)).unwrap();
    assert_eq!(
        tree(&unpacked.store(name)),
        before,
        "the source has changed"
    );
    report
}

/// Whether a queue is not what Java had, for a reason.
fn differs(archive: &str, name: &str, topic: &str) -> bool {
    // Not served: written into queues of other names, and with a unit for several messages.
    topic.starts_with("%LMQ%")
        || archive.contains("5.5") && topic == "TopicBCQ"
        // Java's slaves and followers keep the first generation of a topic that was made again.
        || (name.ends_with("-s") || archive.contains("dledger")) && topic == "TopicRecreated"
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} in {line}"))
}

fn number(line: &Value, key: &str) -> u64 {
    line[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {line}"))
}

fn queue_of(line: &Value) -> (String, i32) {
    let topic = line.get("cqTopic").and_then(Value::as_str);
    let topic = topic.unwrap_or_else(|| text(line, "topic")).to_owned();
    (topic, i32::try_from(number(line, "queueId")).unwrap())
}

/// Compares everything that the lines say; returns the number of messages compared.
pub(crate) fn compare(
    archive: &str,
    name: &str,
    store: &Store,
    lines: &[Value],
    moved: Option<&Moved>,
) -> usize {
    let reader = store.log.reader();
    let queues = &store.queues;
    let start = reader.min_offset().0;
    let place = |phy: u64| moved.map_or(phy, |moved| moved[&phy]);
    let mut messages = 0;
    let with_messages: BTreeSet<(String, i32)> = lines
        .iter()
        .filter(|line| line["type"] == "msg")
        .map(queue_of)
        .collect();
    for line in lines {
        let kind = text(line, "type");
        if !["msg", "queue", "query", "offsetByTime"].contains(&kind) {
            continue;
        }
        let shown = format!("{archive}/{name}: {line}");
        if kind == "query" {
            let (topic, key) = (text(line, "topic"), text(line, "key"));
            if differs(archive, name, topic) {
                continue;
            }
            let mut ours = queues.query_index(topic, key, 64, 0, i64::MAX).unwrap();
            ours.reverse();
            let theirs = line["phyOffsets"].as_array().unwrap();
            let mut theirs: Vec<u64> = theirs
                .iter()
                .map(|phy| place(phy.as_u64().unwrap()))
                .collect();
            // After its crash, Java had indexed the last messages twice.
            theirs.dedup();
            let mut ours: Vec<u64> = ours.iter().map(|phy| phy.0).collect();
            ours.dedup();
            assert_eq!(ours, theirs, "{shown}");
            continue;
        }
        let (topic, id) = queue_of(line);
        if differs(archive, name, &topic) {
            continue;
        }
        match kind {
            "queue" => {
                assert_eq!(
                    queues.max_offset(&topic, id).0,
                    number(line, "maxOffset"),
                    "{shown}"
                );
                let expired = !with_messages.contains(&(topic.clone(), id));
                // Where all messages have expired, 4.9 keeps the minimum that it had.
                if !expired {
                    let min = queues.min_offset(&topic, id).0;
                    assert_eq!(min, number(line, "minOffset"), "{shown}");
                }
            }
            "msg" => {
                let (at, phy) = (number(line, "queueOffset"), number(line, "phyOffset"));
                assert!(phy >= start, "{shown}");
                let at = QueueOffset(at);
                let unit = queues.units(&topic, id, at, 1).unwrap();
                let unit = unit.first().copied().flatten();
                let unit = unit.unwrap_or_else(|| panic!("no unit for {shown}"));
                assert_eq!(
                    (unit.phy.0, u64::from(unit.size)),
                    (place(phy), number(line, "storeSize")),
                    "{shown}"
                );
                let record = reader.slice(unit.phy, unit.size as usize).unwrap();
                let mut record = record.to_vec();
                let moves = [(28, phy)];
                for (field, value) in moves {
                    record[field..field + 8].copy_from_slice(&value.to_be_bytes());
                }
                let prepared = line["preparedTransactionOffset"].as_u64().unwrap_or(0);
                let hash: String = Sha256::digest(&record)
                    .iter()
                    .map(|b| format!("{b:02x}"))
                    .collect();
                if moved.is_none() || prepared == 0 {
                    assert_eq!(hash, text(line, "recordSha256"), "{shown}");
                }
                messages += 1;
            }
            _ => {}
        }
    }
    messages
}

/// Topics, groups and offsets of the genesis are those of the manifest.
fn compare_metadata(archive: &str, genesis: &Genesis, lines: &[Value]) {
    let metadata = &genesis.metadata;
    let mut counts = [0; 4];
    for line in lines {
        match text(line, "type") {
            "topic" => {
                let ours = &metadata.topics.topic_config_table[text(line, "topic")];
                let theirs = &line["config"];
                assert_eq!(Value::from(ours.perm), theirs["perm"], "{line}");
                assert_eq!(
                    Value::from(ours.read_queue_nums),
                    theirs["readQueueNums"],
                    "{line}"
                );
                assert_eq!(
                    Value::from(ours.write_queue_nums),
                    theirs["writeQueueNums"],
                    "{line}"
                );
                assert_eq!(Value::from(ours.order), theirs["order"], "{line}");
                counts[0] += 1;
            }
            "group" => {
                let ours = &metadata.groups.subscription_group_table[text(line, "group")];
                let theirs = &line["config"];
                assert_eq!(
                    Value::from(ours.retry_max_times),
                    theirs["retryMaxTimes"],
                    "{line}"
                );
                assert_eq!(
                    Value::from(ours.consume_enable),
                    theirs["consumeEnable"],
                    "{line}"
                );
                counts[1] += 1;
            }
            "consumerOffset" => {
                let key = format!("{}@{}", text(line, "topic"), text(line, "group"));
                // A proxy's broadcast progress has a key of three parts, which is left out.
                if archive.contains("5.5") && text(line, "group") == "cg_bcast" {
                    continue;
                }
                let id = i32::try_from(number(line, "queueId")).unwrap();
                let ours = metadata.offsets.offset_table[&key][&id];
                assert_eq!(Value::from(ours), line["offset"], "{line}");
                counts[2] += 1;
            }
            "delayOffset" => {
                let level = i32::try_from(number(line, "level")).unwrap();
                let ours = metadata.delay.offset_table[&level];
                assert_eq!(Value::from(ours), line["offset"], "{line}");
                counts[3] += 1;
            }
            _ => {}
        }
    }
    // And there are no others.
    let offsets = metadata.offsets.offset_table.values();
    assert_eq!(metadata.topics.topic_config_table.len(), counts[0]);
    assert_eq!(metadata.groups.subscription_group_table.len(), counts[1]);
    assert_eq!(offsets.map(BTreeMap::len).sum::<usize>(), counts[2]);
    assert_eq!(metadata.delay.offset_table.len(), counts[3]);
}

pub(crate) fn close(store: Store) {
    store.queues.stop().unwrap();
    store.log.close().unwrap();
}

/// As a slave may have it, and a broker after a power cut, whose queues are built anew.
#[test]
fn delayed_messages_go_on_where_their_queues_end() {
    for is_clean in [true, false] {
        let Some(unpacked) = Unpacked::new("classic-5.5.0-v2", |store| store == "broker-a") else {
            return;
        };
        let store = unpacked.store("broker-a");
        let ahead = r#"{"offsetTable":{1:9999,2:1,18:7}}"#;
        for name in ["delayOffset.json", "delayOffset.json.bak"] {
            fs::write(store.join("config").join(name), ahead).unwrap();
        }
        if !is_clean {
            fs::write(store.join("abort"), "").unwrap();
        }
        let report = migrate(&unpacked, "broker-a", &[]);
        assert_eq!(report.queues_rebuilt.is_none(), is_clean);
        let target = unpacked.target();
        let genesis = Genesis::read(&RealDisk, &target).unwrap().unwrap();
        let opened = open(&target, &conf(&unpacked, "broker-a"));
        for (level, said) in [(1, 9999), (2, 1), (18, 7)] {
            let end = opened.queues.max_offset("SCHEDULE_TOPIC_XXXX", level - 1);
            let at = genesis.metadata.delay.offset_table[&level];
            assert_eq!(at, said.min(end.as_i64()), "level {level}");
            let what = format!("delay level {level} was delivered up to {said}");
            let is_told = report.warnings.iter().any(|note| note.what.contains(&what));
            assert_eq!(is_told, said > at, "level {level}");
        }
        close(opened);
    }
}

fn check(archive: &str, name: &str) {
    let Some(unpacked) = Unpacked::new(archive, |store| store == name) else {
        return;
    };
    let report = migrate(&unpacked, name, &["--verify", "full"]);
    let lines = unpacked.lines(&format!("{name}.manifest.jsonl.xz"), 0);
    let lines: Vec<Value> = lines.into_iter().map(|(_, line)| line).collect();
    let genesis = Genesis::read(&RealDisk, &unpacked.target())
        .unwrap()
        .unwrap();
    compare_metadata(archive, &genesis, &lines);
    let store = open(&unpacked.target(), &conf(&unpacked, name));
    assert_eq!(store.queues.dispatched(), genesis.end);
    let messages = compare(archive, name, &store, &lines, None);
    assert!(messages > 40, "{messages}");
    let records = unpacked.lines(&format!("{name}.commitlog.jsonl.xz"), 0);
    let records = records.iter().filter(|(_, line)| line["type"] == "record");
    assert_eq!(report.verified.unwrap().records, records.count() as u64);
    close(store);
    println!(
        "{archive}/{name}: {messages} messages; {:?}",
        report.pending
    );
    // What the broker did with the target did not reach the source either.
    let again = migrate(&unpacked, name, &["--verify", "full"]);
    assert!(again.already_done);
}

#[test]
fn a_master_of_4_9_with_expired_segments() {
    check("classic-4.9.7-clean", "broker-a");
}

#[test]
fn a_slave_of_4_9() {
    check("classic-4.9.7-clean", "broker-a-s");
}

#[test]
fn a_master_of_4_9() {
    check("classic-4.9.7-clean", "broker-b");
}

#[test]
fn a_slave_of_4_9_that_holds_the_last_segment_only() {
    check("classic-4.9.7-clean", "broker-b-s");
}

#[test]
fn ipv6_queue_extensions_and_light_queues() {
    check("classic-4.9.7-odd", "broker-a");
}

#[test]
fn a_master_of_5_5() {
    check("classic-5.5.0-clean", "broker-a");
}

#[test]
fn light_queues_of_5_5() {
    check("classic-5.5.0-lmq", "broker-a");
}

#[test]
fn records_of_version_2() {
    check("classic-5.5.0-v2", "broker-a");
}

#[test]
fn a_broker_that_was_killed() {
    check("classic-4.9.7-crash", "broker-a");
}

/// After other damage than a kill, nothing may be missing that Java still had.
fn check_damaged(variant: &str, torn: Option<Code>) {
    let name = format!("broker-a.{variant}");
    let Some(unpacked) = Unpacked::new("classic-4.9.7-crash", |store| store == name) else {
        return;
    };
    if let Some(code) = torn {
        let options = unpacked.options(&name, &[]);
        let problem = run(&options, &Progress::new(Style::None)).unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(!unpacked.target().try_exists().unwrap());
    }
    let report = migrate(
        &unpacked,
        &name,
        &["--accept-torn-tail", "--verify", "full"],
    );
    assert_eq!(report.log.torn.as_ref().map(|torn| torn.code), torn);
    let mut notes = report.warnings.iter();
    assert!(notes.any(|note| note.code == Code::QueuesDiffer));
    let lines = unpacked.lines("broker-a.manifest.jsonl.xz", 0);
    let mut lost = BTreeSet::new();
    if torn.is_some() {
        let delta = unpacked.lines(&format!("{name}.manifest.delta.jsonl.xz"), 1);
        let minus = delta.into_iter().filter(|(mark, _)| mark == "-");
        lost.extend(minus.map(|(_, line)| line.to_string()));
    }
    let wanted = |line: &Value| {
        let kept = !lost.contains(&line.to_string());
        kept && (line["type"] == "msg" || torn.is_none())
    };
    let lines: Vec<Value> = lines
        .into_iter()
        .map(|(_, line)| line)
        .filter(wanted)
        .collect();
    let store = open(&unpacked.target(), &conf(&unpacked, &name));
    let messages = compare("classic-4.9.7-crash", &name, &store, &lines, None);
    assert!(messages > 5000, "{messages}");
    close(store);
    println!(
        "{name}: {messages} messages, {} left out",
        report.log.cut_records
    );
}

#[test]
fn queues_that_lost_units() {
    check_damaged("cq_behind", None);
}

#[test]
fn queues_that_are_gone() {
    check_damaged("no_cq", None);
}

#[test]
fn a_torn_body() {
    check_damaged("torn_tail", Some(Code::TornTail));
}

#[test]
fn a_torn_head() {
    check_damaged("torn_header", Some(Code::TornTail));
}

#[test]
fn a_flipped_bit() {
    check_damaged("bit_rot", Some(Code::BadRecord));
}

#[test]
fn a_lost_page() {
    check_damaged("lost_page", Some(Code::BadRecord));
}

/// The positions that a run has noted.
pub(crate) fn moved(target: &Path) -> Moved {
    let map = fs::read(target.join("adopted/dledger.map")).unwrap();
    let pairs = map.as_chunks::<16>().0.iter();
    let long = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    pairs
        .map(|pair| (long(&pair[..8]), long(&pair[8..])))
        .collect()
}

fn check_dledger(name: &str) {
    let Some(unpacked) = Unpacked::new("dledger-4.9.7", |_| true) else {
        return;
    };
    let others: Vec<String> = ["n0", "n1", "n2"]
        .iter()
        .filter(|other| **other != name)
        .map(|other| unpacked.store(other).to_str().unwrap().to_owned())
        .collect();
    let mut more = vec!["--verify", "full"];
    for other in &others {
        more.extend(["--compare-with", other]);
    }
    if name == "n1" {
        let options = unpacked.options(name, &more);
        let problem = run(&options, &Progress::new(Style::None)).unwrap_err();
        assert_eq!(problem.code.to_string(), "E-207", "{problem}");
        assert!(problem.what.contains("from 4181 on"), "{problem}");
        assert!(!unpacked.target().try_exists().unwrap());
        let alone = unpacked.options(name, &[]);
        let report = run(&alone, &Progress::new(Style::None)).unwrap();
        // It had heard of no majority for those since its last checkpoint.
        assert!(report.dledger.unwrap().unconfirmed >= 3);
        return;
    }
    let report = migrate(&unpacked, name, &more);
    let done = report.dledger.unwrap();
    assert_eq!((done.unconfirmed, done.left_out), (0, 0));
    let moved = moved(&unpacked.target());
    let lines = unpacked.lines("group.manifest.jsonl.xz", 0);
    let lines: Vec<Value> = lines.into_iter().map(|(_, line)| line).collect();
    let store = open(&unpacked.target(), &conf(&unpacked, name));
    // Delayed delivery could not be held back when the group was asked, so it goes on a little.
    let lines: Vec<Value> = lines
        .into_iter()
        .filter(|line| line["type"] == "msg")
        .filter(|line| moved.contains_key(&number(line, "phyOffset")))
        .collect();
    let messages = compare("dledger-4.9.7", name, &store, &lines, Some(&moved));
    assert!(messages > 4000, "{messages}");
    close(store);
    println!("dledger-4.9.7/{name}: {messages} of 4143 messages");
}

#[test]
fn a_follower_of_dledger() {
    check_dledger("n0");
}

#[test]
fn a_node_of_dledger_that_lacks_what_the_others_confirmed() {
    check_dledger("n1");
}

#[test]
fn the_last_leader_of_dledger() {
    check_dledger("n2");
}

/// The source's queue files are taken over with their bytes.
#[test]
fn linked_files_are_the_source_s() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b") else {
        return;
    };
    let report = migrate(&unpacked, "broker-b", &["--mode", "link"]);
    assert!(report.files.linked_files + report.files.reflinked_files > 6);
    let name = "commitlog/00000000000000000000";
    let inode = |root: &Path| fs::metadata(root.join(name)).unwrap().ino();
    let (source, target) = (unpacked.store("broker-b"), unpacked.target());
    if report.files.linked_files > 0 {
        assert_eq!(inode(&source), inode(&target));
    }
}
