//! Queues: what the log says of them, and what their files say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rmq_wire::record::{Record, sys_flag};
use rmq_wire::{name, properties};
use serde::Serialize;

use super::config::Config;
use super::files::{LogFiles, map};
use super::{DamageKind, Damages, HalfPart, InspectError, at};
use crate::consume_queue::{Slot, UNIT_BYTES, Unit};
use crate::disk::Disk;
use crate::segment::parse_name;

/// Bytes of a unit of `batchconsumequeue`: `i64` position, `i32` size, `i64` tags code, `i64` store
/// time, `i64` first queue offset, `i16` messages, 8 bytes reserved (`BatchConsumeQueue`, 5.3.3).
const BATCH_UNIT_BYTES: usize = 46;

/// Pending retries in the queues of delayed messages, by level.
pub(super) type DelayedRetries = BTreeMap<i32, u64>;

/// What the places of a queue are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum QueueKind {
    /// A unit of `consumequeue` for each message.
    #[default]
    Classic,
    /// A unit of `batchconsumequeue` for each record, which may hold many messages.
    InnerBatch,
    /// Named `%LMQ%…`: the messages lie in the log under other topics.
    Lmq,
}

/// One queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueuePart {
    pub topic: String,
    pub queue_id: i32,
    pub kind: QueueKind,
    pub log: LogSide,
    /// `None` if it has no directory.
    pub units: Option<UnitSide>,
    /// Messages of the log that no unit names.
    pub missing: u64,
}

/// What the log holds of a queue. Of two records for one place the later one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogSide {
    /// Records, those of earlier lives of a topic and those without a place included.
    pub records: u64,
    /// Messages that have a place in the queue.
    pub messages: u64,
    /// First and last of these places and what follows it; equal for none.
    pub min_offset: u64,
    pub max_offset: u64,
    /// How often the queue began anew: its topic was deleted and made again.
    pub began_anew: u64,
}

/// What a queue's files hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitSide {
    pub files: u64,
    /// Units written, blank ones not counted.
    pub units: u64,
    /// First and last place of these, and what follows it; equal for none.
    pub min_offset: u64,
    pub max_offset: u64,
    /// Messages that can be read through right units.
    pub messages: u64,
    /// Place of the first of them.
    pub first_readable: Option<u64>,
    /// Units whose messages lay before the log's first file.
    pub expired: u64,
    /// Units at or behind the log's end.
    pub beyond: u64,
    /// Units of messages that an earlier life of the topic had at this place.
    pub stale: u64,
    /// Units that stand at another place than the record says.
    pub misplaced: u64,
    /// Units that name no record of this queue.
    pub wrong: u64,
    /// Places between units where nothing is written.
    pub holes: u64,
}

impl QueuePart {
    /// Messages that can be read, through units where the queue has such.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.units
            .as_ref()
            .map_or(self.log.messages, |units| units.messages)
    }

    /// First place and what follows the last one, whoever knows of it.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        let log = &self.log;
        match &self.units {
            Some(units) if log.messages == 0 => (units.min_offset, units.max_offset),
            Some(units) if units.units > 0 => (
                log.min_offset.min(units.min_offset),
                log.max_offset.max(units.max_offset),
            ),
            _ => (log.min_offset, log.max_offset),
        }
    }
}

/// A queue while the log is read.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    /// Places taken, in order and apart.
    places: Vec<Range<u64>>,
    /// Where the queue began anew: place and position of the record.
    anew: Vec<(u64, u64)>,
    inner_batch: bool,
}

/// Collects what the log says of queues.
pub(super) struct Tracker {
    seen: HashMap<String, BTreeMap<i32, Seen>>,
    checked: u64,
    /// Half messages that an op message names.
    done: BTreeSet<u64>,
    delivered: BTreeMap<i32, u64>,
    retries: DelayedRetries,
}

impl Tracker {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            seen: HashMap::new(),
            checked: config.half_offset(),
            done: BTreeSet::new(),
            delivered: config.delay_offsets().collect(),
            retries: BTreeMap::new(),
        }
    }

    fn queue(&mut self, topic: &str, queue_id: i32) -> &mut Seen {
        if !self.seen.contains_key(topic) {
            self.seen.insert(topic.to_owned(), BTreeMap::new());
        }
        let queues = self.seen.get_mut(topic).expect("is there by now");
        queues.entry(queue_id).or_default()
    }

    pub(super) fn take(&mut self, pos: u64, record: &Record<'_>) {
        let inner_batch = record.sys_flag & sys_flag::INNER_BATCH != 0;
        let text = record.properties();
        let property = |name| properties::get(&text, name);
        let number = match inner_batch {
            true => property(properties::INNER_NUM).and_then(|n| n.parse().ok()),
            false => None,
        };
        let place = u64::try_from(record.queue_offset).ok();
        let queue = self.queue(record.topic, record.queue_id);
        queue.records += 1;
        queue.inner_batch |= inner_batch;
        if let Some(place) = place.filter(|_| record.is_queued()) {
            queue.put(place, number.unwrap_or(1), pos);
        }
        for (lmq, place) in lmqs(&text) {
            let queue = self.queue(lmq, 0);
            queue.records += 1;
            queue.put(place, 1, pos);
        }
        match (record.topic, place) {
            (name::TRANS_OP_HALF_TOPIC, _) => self.op(record),
            (name::SCHEDULE_TOPIC, Some(place)) => {
                let level = record.queue_id.saturating_add(1);
                let real = property(properties::REAL_TOPIC).unwrap_or_default();
                let delivered = self.delivered.get(&level).copied().unwrap_or(0);
                if real.starts_with(name::RETRY_PREFIX) && place >= delivered {
                    *self.retries.entry(level).or_default() += 1;
                }
            }
            _ => {}
        }
    }

    /// An op message names one half message, or several with commas between them (5.x).
    fn op(&mut self, record: &Record<'_>) {
        let text = String::from_utf8_lossy(record.body);
        let named = text.split(',').filter_map(|n| n.trim().parse().ok());
        let checked = self.checked;
        self.done
            .extend(named.filter(|place: &u64| *place >= checked));
    }

    /// Half messages, after the walk.
    pub(super) fn half(&self, config: &Config) -> HalfPart {
        let queues = self.seen.get(name::TRANS_HALF_TOPIC);
        let places = || queues.into_iter().flatten().flat_map(|(_, q)| &q.places);
        let open = |range: &Range<u64>| {
            let from = range.start.max(self.checked).min(range.end);
            let done = self.done.range(from..range.end).count() as u64;
            range.end - from - done
        };
        HalfPart {
            messages: places().map(|range| range.end - range.start).sum(),
            checked: config.half_offset(),
            pending: places().map(open).sum(),
        }
    }

    pub(super) fn delayed_retries(&self) -> DelayedRetries {
        self.retries.clone()
    }

    /// Reads the queues' files and puts both sides together.
    pub(super) fn compare(
        mut self,
        disk: &Arc<dyn Disk>,
        root: &Path,
        log: &LogFiles,
        end: u64,
        damage: &mut Damages,
    ) -> Result<Vec<QueuePart>, InspectError> {
        let mut parts: BTreeMap<(String, i32), QueuePart> = BTreeMap::new();
        for (topic, queue_id, kind, dir) in directories(disk, root)? {
            let seen = self.queue(&topic, queue_id);
            let mut judge = Judge {
                log,
                end,
                topic: &topic,
                queue_id,
                seen,
                side: UnitSide::default(),
                named: 0,
                damage,
            };
            match kind {
                QueueKind::InnerBatch => judge.batch_files(disk, &dir)?,
                _ => judge.files(disk, &dir)?,
            }
            let (side, named) = (judge.side, judge.named);
            let key = (topic.clone(), queue_id);
            let part = parts.entry(key).or_insert_with(|| QueuePart {
                topic,
                queue_id,
                kind,
                ..QueuePart::default()
            });
            // A topic whose kind was changed has directories of both; the one with units counts.
            if part.units.as_ref().is_none_or(|other| other.units == 0) {
                (part.kind, part.units) = (kind, Some(side));
                part.missing = named;
            }
        }
        for (topic, queues) in &self.seen {
            for (queue_id, seen) in queues {
                let key = (topic.clone(), *queue_id);
                let part = parts.entry(key).or_insert_with(|| QueuePart {
                    topic: topic.clone(),
                    queue_id: *queue_id,
                    kind: seen.kind(topic),
                    ..QueuePart::default()
                });
                part.log = seen.side();
                // Until here the number of messages that units name.
                part.missing = part.log.messages.saturating_sub(part.missing);
            }
        }
        Ok(parts.into_values().collect())
    }
}

impl Seen {
    /// Notes a record that takes `count` places from `place` on.
    fn put(&mut self, place: u64, count: u64, pos: u64) {
        let Some(end) = place.checked_add(count) else {
            return;
        };
        if self.places.last().is_some_and(|last| place < last.end) {
            self.anew.push((place, pos));
            while let Some(last) = self.places.last_mut() {
                if last.start >= place {
                    self.places.pop();
                } else {
                    last.end = last.end.min(place);
                    break;
                }
            }
        }
        match self.places.last_mut() {
            Some(last) if last.end == place => last.end = end,
            _ => self.places.push(place..end),
        }
    }

    fn holds(&self, place: u64) -> bool {
        let after = self.places.partition_point(|range| range.start <= place);
        after
            .checked_sub(1)
            .is_some_and(|at| self.places[at].contains(&place))
    }

    fn kind(&self, topic: &str) -> QueueKind {
        match (topic.starts_with(name::LMQ_PREFIX), self.inner_batch) {
            (true, _) => QueueKind::Lmq,
            (false, true) => QueueKind::InnerBatch,
            (false, false) => QueueKind::Classic,
        }
    }

    fn side(&self) -> LogSide {
        LogSide {
            records: self.records,
            messages: self
                .places
                .iter()
                .map(|range| range.end - range.start)
                .sum(),
            min_offset: self.places.first().map_or(0, |range| range.start),
            max_offset: self.places.last().map_or(0, |range| range.end),
            began_anew: self.anew.len() as u64,
        }
    }
}

/// The LMQ queues that a message was put into, with its place in each.
fn lmqs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    let queues = properties::get(text, properties::INNER_MULTI_DISPATCH).unwrap_or_default();
    let places = properties::get(text, properties::INNER_MULTI_QUEUE_OFFSET).unwrap_or_default();
    let pairs = queues.split(',').zip(places.split(','));
    pairs.filter_map(|(queue, place)| {
        let is_lmq = queue.starts_with(name::LMQ_PREFIX);
        Some((queue, place.parse().ok()?)).filter(|_| is_lmq)
    })
}

/// A queue directory: topic, queue id, kind and path.
type Directory = (String, i32, QueueKind, PathBuf);

fn directories(disk: &Arc<dyn Disk>, root: &Path) -> Result<Vec<Directory>, InspectError> {
    let mut found = Vec::new();
    for (name, batch) in [("consumequeue", false), ("batchconsumequeue", true)] {
        let dir = root.join(name);
        for topic in disk.list(&dir).map_err(at(&dir))? {
            let dir = dir.join(&topic);
            let kind = match (batch, topic.starts_with(name::LMQ_PREFIX)) {
                (true, _) => QueueKind::InnerBatch,
                (false, true) => QueueKind::Lmq,
                (false, false) => QueueKind::Classic,
            };
            for queue in disk.list(&dir).map_err(at(&dir))? {
                if let Ok(queue_id) = queue.parse() {
                    found.push((topic.clone(), queue_id, kind, dir.join(queue)));
                }
            }
        }
    }
    Ok(found)
}

/// Judges the units of one queue.
struct Judge<'a> {
    log: &'a LogFiles,
    end: u64,
    topic: &'a str,
    queue_id: i32,
    seen: &'a Seen,
    side: UnitSide,
    /// Messages that the log says the queue has, and a right unit names.
    named: u64,
    damage: &'a mut Damages,
}

impl Judge<'_> {
    fn files(&mut self, disk: &Arc<dyn Disk>, dir: &Path) -> Result<(), InspectError> {
        // Places without a unit since the last unit.
        let mut holes = 0;
        for (path, start, bytes) in files(disk, dir)? {
            self.side.files += 1;
            let first = start / UNIT_BYTES as u64;
            let (units, rest) = bytes.as_chunks::<UNIT_BYTES>();
            if !start.is_multiple_of(UNIT_BYTES as u64) || !rest.is_empty() {
                let what = format!("no whole units: {} bytes from {start} on", bytes.len());
                self.damage.add(DamageKind::Files, &path, 0, what);
                continue;
            }
            for (unit, place) in units.iter().zip(first..) {
                match Slot::decode(unit) {
                    Slot::Message(unit) => {
                        if self.side.units > 0 {
                            self.side.holes += holes;
                        }
                        holes = 0;
                        self.unit(&path, (place - first) * UNIT_BYTES as u64, place, 1, unit);
                    }
                    Slot::Empty => holes += 1,
                    Slot::Blank => {}
                }
            }
        }
        Ok(())
    }

    fn batch_files(&mut self, disk: &Arc<dyn Disk>, dir: &Path) -> Result<(), InspectError> {
        for (path, _, bytes) in files(disk, dir)? {
            self.side.files += 1;
            let (units, _) = bytes.as_chunks::<BATCH_UNIT_BYTES>();
            for (unit, number) in units.iter().zip(0_u64..) {
                let Slot::Message(head) =
                    Slot::decode(unit.first_chunk().expect("a unit begins as a classic one"))
                else {
                    break;
                };
                let place = u64::from_be_bytes(*unit[28..].first_chunk().expect("46 bytes"));
                let count = u16::from_be_bytes([unit[36], unit[37]]);
                let within = number * BATCH_UNIT_BYTES as u64;
                self.unit(&path, within, place, u64::from(count), head);
            }
        }
        Ok(())
    }

    fn unit(&mut self, path: &Path, within: u64, place: u64, count: u64, unit: Unit) {
        let side = &mut self.side;
        if side.units == 0 {
            side.min_offset = place;
        }
        side.units += 1;
        side.max_offset = place.saturating_add(count);
        let phy = unit.phy.0;
        let mut bad = |what: String| self.damage.add(DamageKind::Unit, path, within, what);
        if phy < self.log.start() {
            side.expired += 1;
            return;
        }
        if unit.end().0 > self.end {
            side.beyond += 1;
            bad(format!(
                "the unit of offset {place} names {phy}, the log ends at {}",
                self.end
            ));
            return;
        }
        let bytes = self.log.record(phy);
        let record = bytes.as_ref().and_then(|bytes| Record::decode(bytes).ok());
        let record = record.filter(|record| record.size == unit.size as usize);
        let Some(said) = record.and_then(|record| place_in(&record, self.topic, self.queue_id))
        else {
            side.wrong += 1;
            bad(format!(
                "the unit of offset {place} names {phy}, where no record of {} bytes of this \
                 queue lies",
                unit.size
            ));
            return;
        };
        if self
            .seen
            .anew
            .iter()
            .any(|(from, at)| *from <= place && phy < *at)
        {
            side.stale += 1;
            return;
        }
        side.messages += count;
        side.first_readable = side.first_readable.or(Some(place));
        if said == place {
            self.named += if self.seen.holds(place) { count } else { 0 };
        } else {
            side.misplaced += 1;
            bad(format!(
                "the unit of offset {place} names {phy}, whose record says offset {said}"
            ));
        }
    }
}

/// A queue's files by their first byte.
fn files(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<(PathBuf, u64, Bytes)>, InspectError> {
    let names = disk.list(dir).map_err(at(dir))?;
    let named = names
        .iter()
        .filter_map(|name| Some((dir.join(name), parse_name(name)?)));
    named
        .map(|(path, start)| {
            let bytes = map(disk, &path)?;
            Ok((path, start, bytes))
        })
        .collect()
}

/// The place that a record says it has in a queue; `None` if it has none there.
fn place_in(record: &Record<'_>, topic: &str, queue_id: i32) -> Option<u64> {
    if topic.starts_with(name::LMQ_PREFIX) {
        let text = record.properties();
        return lmqs(&text).find(|(lmq, _)| *lmq == topic).map(|(_, p)| p);
    }
    let own = record.topic == topic && record.queue_id == queue_id && record.is_queued();
    u64::try_from(record.queue_offset).ok().filter(|_| own)
}
