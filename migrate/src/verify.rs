//! The migrated store against itself: every record's checksum, and that its queue and the index lead
//! to it.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rmq_store::{Genesis, QueueOffset, Queues, Unit};
use rmq_wire::record::Record;
use rmq_wire::{name, properties};
use serde::Serialize;

use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::walk::{self, End};

/// Units of a queue that are read at once.
const WINDOW: usize = 1024;
/// One message in so many is looked up by its key.
const KEYS: u64 = 256;
/// Answers of the index that are looked at.
const ANSWERS: usize = 1024;

/// What a full verification counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    pub bytes: u64,
    pub records: u64,
    /// Found where their queue has them.
    pub queued: u64,
    /// Of a topic that was deleted, or replaced by a later one of its name.
    pub superseded: u64,
    pub keys: u64,
}

/// Reads the whole log under `root`, and follows each record's queue.
pub(crate) fn verify(
    root: &Path,
    genesis: &Genesis,
    queues: &Queues,
    progress: &Progress,
) -> Result<Verified, Problem> {
    progress.phase("verifying", genesis.end.0 - genesis.start.0);
    // While some wait for the disk, others work.
    let threads = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let found: Mutex<Result<Verified, Problem>> = Mutex::new(Ok(Verified::default()));
    let lock = || {
        found
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let Some(segment) = genesis.segments.get(nth) else {
                        return;
                    };
                    let path = root
                        .join("commitlog")
                        .join(format!("{:020}", segment.base.0));
                    let one =
                        verify_segment(&path, segment.base.0, segment.bytes, queues, progress);
                    let mut all = lock();
                    match (&mut *all, one) {
                        (Ok(all), Ok(one)) => {
                            all.bytes += one.bytes;
                            all.records += one.records;
                            all.queued += one.queued;
                            all.superseded += one.superseded;
                            all.keys += one.keys;
                        }
                        (Ok(_), Err(problem)) => *all = Err(problem),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    found
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn verify_segment(
    path: &Path,
    base: u64,
    bytes: u64,
    queues: &Queues,
    progress: &Progress,
) -> Result<Verified, Problem> {
    let reading = |error| Problem::reading(path, &error);
    let file = File::open(path).map_err(reading)?;
    let mut seen = Verified {
        bytes,
        ..Verified::default()
    };
    let mut windows = Windows {
        queues,
        of: HashMap::new(),
    };
    let mut wrong = None;
    let end = walk::walk(&file, base, bytes, |at, record, raw| {
        seen.records += 1;
        progress.add_record(raw.len() as u64);
        if wrong.is_none() && record.is_queued() && record.topic != name::RAFT_LOG_TOPIC {
            match windows.holds(record, base + at) {
                Ok(true) => seen.queued += 1,
                Ok(false) => seen.superseded += 1,
                Err(what) => wrong = Some((at, what)),
            }
        }
        if wrong.is_none() && seen.records.is_multiple_of(KEYS) {
            match indexed(queues, record, base + at) {
                Ok(keys) => seen.keys += keys,
                Err(what) => wrong = Some((at, what)),
            }
        }
    });
    let differs = |at, what: String, why: &str| {
        Err(Problem::new(Code::Verify, what)
            .at_file(path)
            .at_byte(at)
            .why(why)
            .hint(
                "restore the source's file from the slave or a backup, --rollback, and run again",
            ))
    };
    let damaged = "the source has it like this: a damaged file";
    match (end.map_err(reading)?, wrong) {
        (End::Full, None) => Ok(seen),
        (End::Full, Some((at, what))) => differs(at, what, "queues and log disagree"),
        (End::Zeros(at), _) => differs(at, "no record, though others follow".to_owned(), damaged),
        (End::Bad { at, reason }, _) => differs(at, reason, damaged),
    }
}

/// Stretches of queues, as the records of a log ask for them one after the other.
struct Windows<'a> {
    queues: &'a Queues,
    of: HashMap<String, HashMap<i32, Window>>,
}

#[derive(Default)]
struct Window {
    first: u64,
    units: Vec<Option<Unit>>,
}

impl Windows<'_> {
    /// Whether the queue has this record at its offset; false if it is none of the queue's any more.
    fn holds(&mut self, record: &Record<'_>, position: u64) -> Result<bool, String> {
        let (topic, id) = (record.topic, record.queue_id);
        let Ok(at) = u64::try_from(record.queue_offset) else {
            return Ok(false);
        };
        if !self.of.contains_key(topic) {
            self.of.insert(topic.to_owned(), HashMap::new());
        }
        let window = self
            .of
            .get_mut(topic)
            .expect("just put there")
            .entry(id)
            .or_default();
        let within = |window: &Window| {
            let nth = usize::try_from(at.checked_sub(window.first)?).ok()?;
            window.units.get(nth).copied()
        };
        let found = match within(window) {
            Some(found) => found,
            None => {
                let units = self.queues.units(topic, id, QueueOffset(at), WINDOW);
                *window = Window {
                    first: at,
                    units: units.map_err(|error| error.to_string())?,
                };
                within(window).flatten()
            }
        };
        match found {
            Some(unit) if unit.phy.0 == position && unit.size as usize == record.size => Ok(true),
            // A later topic of the name took the place.
            Some(unit) if unit.phy.0 > position => Ok(false),
            None if at >= self.queues.max_offset(topic, id).0 => Ok(false),
            _ => Err(format!(
                "queue {id} of topic {topic} does not have this message at its offset {at}"
            )),
        }
    }
}

/// Looks a message up by its unique key; the number of keys looked up.
fn indexed(queues: &Queues, record: &Record<'_>, position: u64) -> Result<u64, String> {
    let text = record.properties();
    let key = properties::iter(&text).find(|(name, _)| *name == properties::UNIQ_KEY);
    let Some((_, key)) = key.filter(|_| record.is_queued()) else {
        return Ok(0);
    };
    let found = queues
        .query_index(record.topic, key, ANSWERS, 0, i64::MAX)
        .map_err(|error| error.to_string())?;
    if found.len() >= ANSWERS || found.iter().any(|phy| phy.0 == position) {
        Ok(1)
    } else {
        Err(format!(
            "the index does not have the key {key} of topic {}",
            record.topic
        ))
    }
}
