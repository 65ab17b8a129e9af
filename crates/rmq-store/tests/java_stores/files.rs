//! The files as Java wrote them.

use std::collections::{BTreeMap, BTreeSet};

use rmq_store::{ENTRY_BYTES, Entry, HEADER_BYTES, IndexHeader, IndexLayout, SLOT_BYTES};
use rmq_store::{Slot, UNIT_BYTES, Unit, key_hash};
use rmq_wire::record::{Peek, Record, peek, sys_flag};
use rmq_wire::{name, properties};
use sha2::{Digest as _, Sha256};

use crate::fixture::{JavaStore, LogLine, ManifestLine, MsgLine, stores};
use crate::{Queue, delay_levels, property, queues_of, records, tags_code_of};

#[test]
fn every_record_is_what_java_decoded() {
    for store in stores() {
        let ours = walk(store);
        assert_eq!(ours.len(), store.log.len(), "{}", store.full_name());
        for (ours, java) in ours.iter().zip(&store.log) {
            assert_eq!(ours, java, "{}", store.full_name());
        }
    }
}

/// The commit log in the words of the manifest.
fn walk(store: &JavaStore) -> Vec<LogLine> {
    let mut lines = Vec::new();
    for (base, bytes) in store.segments() {
        let (name, length) = (Some(format!("{base:020}")), Some(bytes.len()));
        lines.push(LogLine {
            r#type: "file".to_owned(),
            name,
            length,
            ..LogLine::default()
        });
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let phy_offset = Some(base + at as u64);
            let rest_of_file = Some(bytes.len() - at);
            let line = LogLine {
                phy_offset,
                ..LogLine::default()
            };
            match peek(&bytes[at..]) {
                Peek::Record { size } => {
                    lines.push(record_line(line, &bytes[at..at + size]));
                    at += size;
                }
                Peek::Blank { size } => {
                    let magic = Some("cbd43194".to_owned());
                    let size_field = Some(size);
                    let r#type = "blank".to_owned();
                    lines.push(LogLine {
                        r#type,
                        size_field,
                        magic,
                        rest_of_file,
                        ..line
                    });
                    break;
                }
                Peek::End => {
                    assert!(bytes[at..].iter().all(|byte| *byte == 0));
                    lines.push(LogLine {
                        r#type: "zeroTail".to_owned(),
                        rest_of_file,
                        ..line
                    });
                    break;
                }
            }
        }
    }
    let records = Some(lines.iter().filter(|line| line.r#type == "record").count());
    lines.push(LogLine {
        r#type: "end".to_owned(),
        records,
        ..LogLine::default()
    });
    lines
}

fn record_line(line: LogLine, bytes: &[u8]) -> LogLine {
    let record = Record::decode(bytes).unwrap();
    LogLine {
        r#type: "record".to_owned(),
        phy_offset_field: Some(record.physical_offset),
        size: Some(record.size),
        magic: Some(format!("{:08x}", record.magic)),
        topic: Some(record.topic.to_owned()),
        queue_id: Some(record.queue_id),
        queue_offset: Some(record.queue_offset),
        sys_flag: Some(record.sys_flag),
        store_timestamp: Some(record.store_timestamp),
        reconsume_times: Some(record.reconsume_times),
        crc_ok: Some(record.body.is_empty() || record.crc_matches()),
        body_len: Some(record.body.len()),
        uniq_key: property(&record, properties::UNIQ_KEY),
        record_sha16: Some(hex(&Sha256::digest(bytes)[..8])),
        ..line
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_message_is_what_java_answered() {
    for store in stores() {
        let records: BTreeMap<u64, Record<'_>> = records(store).collect();
        let segments: BTreeMap<u64, &[u8]> = store.segments().collect();
        for line in &store.manifest {
            let ManifestLine::Msg(msg) = line else {
                continue;
            };
            let record = &records[&msg.phy_offset];
            let (base, segment) = segments.range(..=msg.phy_offset).next_back().unwrap();
            let at = usize::try_from(msg.phy_offset - base).unwrap();
            assert_eq!(
                hex(&Sha256::digest(&segment[at..at + record.size])),
                msg.record_sha256
            );
            check_fields(record, msg);
        }
    }
}

fn check_fields(record: &Record<'_>, msg: &MsgLine) {
    assert_eq!((record.topic, record.queue_id), (&*msg.topic, msg.queue_id));
    assert_eq!(
        (record.queue_offset, record.size),
        (msg.queue_offset, msg.store_size)
    );
    assert_eq!(format!("{:08x}", record.magic), msg.magic);
    assert_eq!((record.sys_flag, record.flag), (msg.sys_flag, msg.flag));
    assert_eq!(record.born_timestamp, msg.born_timestamp);
    assert_eq!(record.store_timestamp, msg.store_timestamp);
    assert_eq!(record.reconsume_times, msg.reconsume_times);
    assert_eq!(
        record.prepared_transaction_offset,
        msg.prepared_transaction_offset
    );
    assert_eq!(
        (record.body.len(), record.body_crc),
        (msg.body_len, msg.body_crc)
    );
    assert_eq!(hex(&Sha256::digest(record.body)), msg.body_sha256);
    assert_eq!(record.born_host, java_host(&msg.born_host));
    assert_eq!(record.store_host, java_host(&msg.store_host));
    let msg_id = rmq_wire::msg_id::encode(record.store_host, record.physical_offset);
    assert_eq!(msg_id, msg.msg_id);
    let text = record.properties();
    let ours: BTreeMap<String, String> = properties::iter(&text)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(ours, msg.properties);
    assert_eq!(property(record, properties::UNIQ_KEY), msg.uniq_key);
    assert_eq!(property(record, properties::KEYS), msg.keys);
    assert_eq!(property(record, properties::TAGS), msg.tags);
}

/// Java writes an IPv6 address without brackets.
fn java_host(text: &str) -> std::net::SocketAddr {
    let (ip, port) = text.rsplit_once(':').unwrap();
    let ip = ip
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .unwrap();
    std::net::SocketAddr::new(ip, port.parse().unwrap())
}

/// The units of a store's consume queue files.
fn units_of(store: &JavaStore) -> BTreeMap<Queue, BTreeMap<u64, Unit>> {
    let mut queues: BTreeMap<Queue, BTreeMap<u64, Unit>> = BTreeMap::new();
    for (path, bytes) in store.files_in("consumequeue") {
        let (queue, start) = path.rsplit_once('/').unwrap();
        let (topic, queue_id) = queue.rsplit_once('/').unwrap();
        let first: u64 = start.parse::<u64>().unwrap() / UNIT_BYTES as u64;
        assert_eq!(bytes.len(), 6000);
        let units = queues
            .entry((topic.to_owned(), queue_id.parse().unwrap()))
            .or_default();
        for (unit, offset) in bytes.as_chunks().0.iter().zip(first..) {
            if let Slot::Message(decoded) = Slot::decode(unit) {
                assert_eq!(decoded.encode(), *unit);
                units.insert(offset, decoded);
            }
        }
    }
    queues
}

#[test]
fn every_consume_queue_unit_is_a_record_s() {
    for store in stores() {
        let name = store.full_name();
        let levels = delay_levels(store);
        let records: BTreeMap<u64, Record<'_>> = records(store).collect();
        let (mut expired, mut lmq, mut misplaced) = (0, 0, 0);
        for ((topic, queue_id), units) in units_of(store) {
            for (offset, unit) in units {
                let Some(record) = records.get(&unit.phy.0) else {
                    assert!(
                        unit.phy.0 < store.min_offset(),
                        "{name} {topic} {queue_id} {offset}"
                    );
                    expired += 1;
                    continue;
                };
                assert_eq!(record.size, unit.size as usize);
                assert!(record.is_queued());
                let tags_code = from_ext(store, (&topic, queue_id), record, unit.tags_code);
                if topic.starts_with(name::LMQ_PREFIX) {
                    lmq += 1;
                    assert!(is_dispatched_to(record, &topic));
                    continue;
                }
                assert_eq!(
                    tags_code,
                    tags_code_of(record, &levels),
                    "{name} {topic} {offset}"
                );
                assert_eq!((record.topic, record.queue_id), (&*topic, queue_id));
                misplaced += usize::from(u64::try_from(record.queue_offset) != Ok(offset));
            }
        }
        let accounted = match (store.archive, store.name) {
            // A slave appends the first messages of a topic that was made again at the end of the
            // queue, and leaves out the others.
            ("classic-4.9.7-clean", "broker-a-s") => (0, 0, 2),
            ("classic-4.9.7-clean", "broker-a") => (2719, 0, 0),
            ("classic-4.9.7-odd", _) => (0, 137, 0),
            ("classic-5.5.0-lmq", _) => (0, 45, 0),
            _ => (0, 0, 0),
        };
        assert_eq!((expired, lmq, misplaced), accounted, "{name}");
    }
}

/// Whether a message goes to an LMQ queue, too.
fn is_dispatched_to(record: &Record<'_>, lmq: &str) -> bool {
    let queues = property(record, properties::INNER_MULTI_DISPATCH).unwrap_or_default();
    queues.split(',').any(|queue| queue == lmq)
}

/// The tags code that a unit stands for: its own, or the one at the address that it has in
/// consumequeue_ext: units of `i16 size, i64 tags code, i64 store time, i16 n, bit map`.
fn from_ext(store: &JavaStore, queue: (&str, i32), record: &Record<'_>, tags_code: i64) -> i64 {
    if tags_code >= i64::from(i32::MIN) {
        return tags_code;
    }
    assert_eq!(store.config["enableConsumeQueueExt"], "true");
    let at = u64::try_from(i128::from(tags_code) - i128::from(i64::MIN)).unwrap();
    let file_bytes: u64 = store.config["mappedFileSizeConsumeQueueExt"]
        .parse()
        .unwrap();
    let start = at - at % file_bytes;
    let file = &store.files[&format!("consumequeue_ext/{}/{}/{start:020}", queue.0, queue.1)];
    let unit = &file[usize::try_from(at - start).unwrap()..];
    let long = |at: usize| i64::from_be_bytes(unit[at..at + 8].try_into().unwrap());
    assert_eq!(long(10), record.store_timestamp);
    let bit_map = i16::from_be_bytes([unit[18], unit[19]]);
    assert_eq!(i16::from_be_bytes([unit[0], unit[1]]), 20 + bit_map);
    long(2)
}

#[test]
fn every_record_has_its_consume_queue_unit() {
    for store in stores() {
        let name = store.full_name();
        let units = units_of(store);
        let deleted = |topic: &str| match topic {
            "TopicDeleted" => store.name != "broker-a-s",
            _ => false,
        };
        let mut without = BTreeSet::new();
        for (queue, expected) in queues_of(store) {
            let is_batch = store.is_5() && queue.0 == "TopicBCQ";
            let is_again = queue.0 == "TopicRecreated" && store.name.ends_with("-s");
            if deleted(&queue.0) || is_batch || is_again {
                without.insert(queue.0.clone());
                continue;
            }
            let units = units
                .get(&queue)
                .unwrap_or_else(|| panic!("{name} {queue:?}"));
            for (offset, expected) in expected {
                let unit = &units[&offset];
                assert_eq!(
                    (unit.phy, unit.size),
                    (expected.phy, expected.size),
                    "{name} {queue:?}"
                );
            }
        }
        let accounted: &[&str] = match (store.archive, store.name) {
            ("classic-4.9.7-clean", "broker-a-s" | "broker-b-s") => &["TopicRecreated"],
            ("classic-4.9.7-clean", "broker-b") => &["TopicDeleted"],
            ("classic-4.9.7-clean", _) | ("classic-5.5.0-v2", _) => &[],
            ("classic-5.5.0-clean" | "classic-5.5.0-lmq", _) => &["TopicBCQ", "TopicDeleted"],
            _ => &["TopicDeleted"],
        };
        assert!(without.iter().eq(accounted), "{name}: {without:?}");
    }
}

/// The entries that Java's `IndexService` makes of a log: hash, position, store timestamp.
fn index_of(store: &JavaStore) -> Vec<(u32, u64, i64)> {
    let mut entries = Vec::new();
    for (phy, record) in records(store) {
        if record.sys_flag & sys_flag::TRANSACTION_MASK == sys_flag::TRANSACTION_ROLLBACK {
            continue;
        }
        let unique = property(&record, properties::UNIQ_KEY);
        let keys = property(&record, properties::KEYS).unwrap_or_default();
        let words = keys
            .split(properties::KEY_SEPARATOR)
            .filter(|word| !word.is_empty());
        for key in unique.as_deref().into_iter().chain(words) {
            entries.push((key_hash(record.topic, key), phy, record.store_timestamp));
        }
        // 5.5 has the tag, too, with its kind before it.
        if let Some(tag) = property(&record, properties::TAGS).filter(|_| store.is_5()) {
            let hash = key_hash(record.topic, &format!("T#{tag}"));
            entries.push((hash, phy, record.store_timestamp));
        }
    }
    entries
}

struct IndexFile<'a> {
    layout: IndexLayout,
    header: IndexHeader,
    bytes: &'a [u8],
}

impl IndexFile<'_> {
    fn slot(&self, slot: u32) -> u32 {
        let at = usize::try_from(self.layout.slot_at(slot)).unwrap();
        u32::from_be_bytes(self.bytes[at..at + SLOT_BYTES].try_into().unwrap())
    }

    fn entry(&self, number: u32) -> Entry {
        let at = usize::try_from(self.layout.entry_at(number)).unwrap();
        let bytes = self.bytes[at..at + ENTRY_BYTES].try_into().unwrap();
        let entry = Entry::decode(bytes).unwrap();
        assert_eq!(entry.encode(), *bytes);
        entry
    }
}

fn index_files(store: &JavaStore) -> Vec<IndexFile<'_>> {
    let number = |key: &str| store.config[key].parse().unwrap();
    let layout = IndexLayout {
        slots: number("maxHashSlotNum"),
        entries: number("maxIndexNum"),
    };
    let mut files = Vec::new();
    for (_, bytes) in store.files_in("index") {
        assert_eq!(bytes.len() as u64, layout.file_bytes());
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().unwrap();
        let decoded = IndexHeader::decode(header);
        assert_eq!(decoded.encode(), *header);
        files.push(IndexFile {
            layout,
            header: decoded,
            bytes,
        });
    }
    files
}

#[test]
fn every_index_entry_is_a_key_s() {
    for store in stores() {
        let name = store.full_name();
        let mut expected = index_of(store).into_iter().peekable();
        let (mut expired, mut known) = (0, 0);
        for (at, file) in index_files(store).iter().enumerate() {
            let header = file.header;
            let mut slots: BTreeMap<u32, u32> = BTreeMap::new();
            for number in 1..header.next_entry {
                let entry = file.entry(number);
                let slot = file.layout.slot_of(entry.key_hash);
                assert_eq!(
                    slots.insert(slot, number).unwrap_or(0),
                    entry.previous,
                    "{name}"
                );
                if entry.phy.0 < store.min_offset() {
                    expired += 1;
                    continue;
                }
                let (key_hash, phy, timestamp) = expected.next().unwrap();
                assert_eq!((entry.key_hash, entry.phy.0), (key_hash, phy), "{name}");
                known += 1;
                // Java counts the first entry of all but the first file from the file before.
                if number > 1 || at == 0 {
                    assert_eq!(
                        entry.seconds,
                        header.seconds_to(timestamp),
                        "{name} {number}"
                    );
                }
                if number == 1 {
                    assert_eq!(
                        (header.begin_phy.0, header.begin_timestamp),
                        (phy, timestamp)
                    );
                }
                if number + 1 == header.next_entry {
                    assert_eq!((header.end_phy.0, header.end_timestamp), (phy, timestamp));
                }
            }
            assert_eq!(header.used_slots as usize, slots.len(), "{name}");
            for slot in 0..file.layout.slots {
                assert_eq!(
                    file.slot(slot),
                    slots.get(&slot).copied().unwrap_or(0),
                    "{name}"
                );
            }
        }
        assert_eq!(expected.peek(), None, "{name}");
        println!("{name}: {known} index entries, and {expired} of expired messages");
    }
}

#[test]
fn every_key_is_found_where_java_found_it() {
    for store in stores() {
        let files = index_files(store);
        let records: BTreeMap<u64, Record<'_>> = records(store).collect();
        for line in &store.manifest {
            let ManifestLine::Query {
                topic,
                key,
                phy_offsets,
            } = line
            else {
                continue;
            };
            let hash = key_hash(topic, key);
            let mut found = Vec::new();
            for file in files.iter().rev() {
                let mut number = file.slot(file.layout.slot_of(hash));
                while number > 0 && found.len() < 64 {
                    let entry = file.entry(number);
                    if entry.key_hash == hash && records.contains_key(&entry.phy.0) {
                        found.push(entry.phy.0);
                    }
                    number = entry.previous;
                }
            }
            found.reverse();
            let mut java = phy_offsets.clone();
            if store.archive == "classic-4.9.7-crash" {
                // Started after the crash, Java indexed its last messages twice.
                java.dedup();
            }
            assert_eq!(found, java, "{} {topic} {key}", store.full_name());
        }
    }
}

#[test]
fn every_queue_ends_where_java_said() {
    for store in stores() {
        let units = units_of(store);
        let mut answers = messages_by_queue(store);
        for line in &store.manifest {
            let ManifestLine::Queue {
                topic,
                queue_id,
                min_offset,
                max_offset,
                messages,
            } = line
            else {
                continue;
            };
            let name = format!("{} {topic} {queue_id}", store.full_name());
            let queue = (topic.clone(), *queue_id);
            let answered = answers.remove(&queue).unwrap_or_default();
            assert_eq!(answered.len(), *messages, "{name}");
            let Some(units) = units.get(&queue) else {
                let is_batch = topic == "TopicBCQ" && store.is_5();
                assert!(is_batch || *max_offset == 0, "{name}");
                continue;
            };
            assert_eq!(
                units.keys().next_back().map_or(0, |last| last + 1),
                *max_offset,
                "{name}"
            );
            let readable = units.range(min_offset..).map(|(_, unit)| unit.phy.0);
            let readable: Vec<u64> = readable.filter(|phy| *phy >= store.min_offset()).collect();
            if topic.starts_with(name::LMQ_PREFIX) {
                // Java's pull of such a queue stops early; what it gave is a part.
                assert!(answered.iter().all(|phy| readable.contains(phy)), "{name}");
            } else {
                assert_eq!(readable, answered, "{name}");
            }
        }
        assert!(answers.is_empty());
    }
}

/// Positions of the messages that Java gave out of each queue.
pub(crate) fn messages_by_queue(store: &JavaStore) -> BTreeMap<Queue, Vec<u64>> {
    let mut queues: BTreeMap<Queue, Vec<u64>> = BTreeMap::new();
    for line in &store.manifest {
        if let ManifestLine::Msg(msg) = line {
            let queue = (msg.cq_topic.clone(), msg.queue_id);
            // The manifest has the record's queue, and all LMQ queues have id 0.
            let is_lmq = msg.cq_topic.starts_with(name::LMQ_PREFIX);
            let queue = if is_lmq { (queue.0, 0) } else { queue };
            queues.entry(queue).or_default().push(msg.phy_offset);
        }
    }
    queues
}

/// The units of batchconsumequeue are not classic: `i64` position, `i32` size, `i64` tags code, `i64`
/// store time, `i64` first queue offset, `i16` messages, 8 bytes reserved. One stands for all
/// messages of a record.
#[test]
fn every_batch_unit_is_an_inner_batch() {
    const BATCH_UNIT_BYTES: usize = 46;
    let mut units = 0;
    for store in stores() {
        let records: BTreeMap<u64, Record<'_>> = records(store).collect();
        let inner = |record: &&Record<'_>| record.sys_flag & sys_flag::INNER_BATCH != 0;
        let mut left = records.values().filter(inner).count();
        for (path, bytes) in store.files_in("batchconsumequeue") {
            for unit in bytes.as_chunks::<BATCH_UNIT_BYTES>().0 {
                let long = |at: usize| i64::from_be_bytes(unit[at..at + 8].try_into().unwrap());
                let size = u32::from_be_bytes(unit[8..12].try_into().unwrap());
                if size == 0 {
                    break;
                }
                let record = &records[&u64::try_from(long(0)).unwrap()];
                assert_eq!(record.size, size as usize, "{path}");
                assert_eq!(long(20), record.store_timestamp);
                assert_eq!(long(28), record.queue_offset);
                let number = property(record, properties::INNER_NUM);
                let messages = i16::from_be_bytes([unit[36], unit[37]]);
                assert_eq!(number.map_or(1, |number| number.parse().unwrap()), messages);
                left -= usize::from(record.sys_flag & sys_flag::INNER_BATCH != 0);
                units += 1;
            }
        }
        assert_eq!(
            left,
            0,
            "{}: inner batches without a unit",
            store.full_name()
        );
    }
    assert!(stores().is_empty() || units > 0);
}
