//! Every record, consume queue unit and index entry in the stores of real Java brokers, against what
//! those brokers said about them.
//!
//! `files` reads the files as they are. `opened` opens copies of the stores, with the consume queues
//! and the index built anew, and asks what the Java brokers were asked. `inspected` compares what an
//! inspection tells of them. What is not classic
//! (consumequeue_ext, batchconsumequeue, LMQ) is accounted for where it is met.
#![expect(clippy::print_stdout, reason = "a test says that it is skipped")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod files;
mod fixture;
mod inspected;
mod opened;

use std::collections::BTreeMap;

use rmq_store::{DelayLevels, PhyOffset, Unit};
use rmq_wire::record::{Peek, Record, peek, tags_code};
use rmq_wire::{name, properties};

use fixture::JavaStore;

/// The records of a store with their positions.
fn records(store: &JavaStore) -> impl Iterator<Item = (u64, Record<'_>)> {
    store.segments().flat_map(|(base, bytes)| {
        let mut at = 0;
        std::iter::from_fn(move || {
            let Peek::Record { size } = peek(bytes.get(at..)?) else {
                return None;
            };
            let record = Record::decode(&bytes[at..at + size]).unwrap();
            at += size;
            Some((base + (at - size) as u64, record))
        })
    })
}

fn property(record: &Record<'_>, name: &str) -> Option<String> {
    properties::get(&record.properties(), name).map(str::to_owned)
}

/// The delay levels that a store was written with.
fn delay_levels(store: &JavaStore) -> DelayLevels {
    let levels = store
        .config
        .get("messageDelayLevel")
        .map_or(DelayLevels::DEFAULT, String::as_str);
    DelayLevels::parse(levels).unwrap()
}

/// The tags code that Java gives to a record.
fn tags_code_of(record: &Record<'_>, levels: &DelayLevels) -> i64 {
    let delay = property(record, properties::DELAY_TIME_LEVEL);
    let delay = delay.filter(|_| record.topic == name::SCHEDULE_TOPIC);
    match delay.and_then(|level| levels.delay_ms(level.parse().unwrap())) {
        Some(delay) => record.store_timestamp + i64::try_from(delay).unwrap(),
        None => tags_code(&property(record, properties::TAGS).unwrap_or_default()),
    }
}

type Queue = (String, i32);

/// What a log says that its queues are: of two records for one offset the later one counts.
fn queues_of(store: &JavaStore) -> BTreeMap<Queue, BTreeMap<u64, Unit>> {
    let levels = delay_levels(store);
    let mut queues: BTreeMap<Queue, BTreeMap<u64, Unit>> = BTreeMap::new();
    for (phy, record) in records(store).filter(|(_, record)| record.is_queued()) {
        let queue = queues
            .entry((record.topic.to_owned(), record.queue_id))
            .or_default();
        let offset = u64::try_from(record.queue_offset).unwrap();
        let unit = Unit {
            phy: PhyOffset(phy),
            size: u32::try_from(record.size).unwrap(),
            tags_code: tags_code_of(&record, &levels),
        };
        queue.retain(|at, _| *at < offset);
        queue.insert(offset, unit);
    }
    queues
}
