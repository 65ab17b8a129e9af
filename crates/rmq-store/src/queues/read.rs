//! The questions that brokers ask. None of them sees anything at or beyond the confirm offset.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rmq_wire::properties;
use rmq_wire::record::{self, Peek, Record, peek, sys_flag};

use super::repair::Hole;
use super::{Queues, Shared};
use crate::consume_queue::{QueueState, Slot, UNIT_BYTES, Unit};
use crate::damage::Damage;
use crate::dispatch::CommittedLog;
use crate::index_file::Search;
use crate::types::{PhyOffset, QueueOffset};

/// How long a reader waits for the dispatcher, or for a repair, before it is told to come again.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bytes of consume queue that one [`Queues::get`] looks through, unless it asks for more messages
/// than that (Java's `maxFilterMessageCount`).
const SCAN_BYTES: usize = 16_000;

/// What came of a [`Queues::get`], with Java's names (`GetMessageStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetStatus {
    Found,
    /// The filter takes none of the messages that were looked at.
    NoMatchedMessage,
    /// The records of all units that were looked at have left the log.
    MessageWasRemoving,
    /// The queue never had a message.
    NoMessageInQueue,
    OffsetTooSmall,
    /// The offset is the queue's end.
    OffsetOverflowOne,
    OffsetOverflowBadly,
    /// The message is committed but cannot be found yet: the dispatcher is late, or its unit was
    /// lost and is being restored. The same question has an answer a little later; Java has no such
    /// state, for its queues end where they are dispatched.
    Late,
    /// The message lies in a damaged part of the log, which has to be mended first.
    Damaged,
}

/// Messages of a queue, and where to go on.
#[derive(Clone, Debug)]
pub struct GetResult {
    pub status: GetStatus,
    /// What is damaged, with [`GetStatus::Damaged`].
    pub damage: Option<Damage>,
    /// Whole records, not copied.
    pub records: Vec<Bytes>,
    /// Where the next question goes.
    pub next: QueueOffset,
    pub min: QueueOffset,
    /// Behind the last committed message.
    pub max: QueueOffset,
    /// Committed bytes of the log behind the last unit that was looked at.
    pub behind_bytes: u64,
}

/// What stands at an offset of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A message, its whole record.
    Message(Bytes),
    /// Nothing, for good: the offset was left out, or the log has let go of it.
    Nothing,
    /// It cannot be told yet, see [`GetStatus::Late`].
    Later,
    /// The message lies in a damaged part of the log, which has to be mended first.
    Damaged(Damage),
}

/// What reading a queue on from an offset takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// What is in memory for certain.
    Memory,
    /// Waiting for the dispatcher, which the message there has not come to yet.
    Dispatcher,
    /// What the page cache may have let go of.
    Disk,
}

/// Which offset a time stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// The first message stored at the time or later; the queue's end without one.
    Lower,
    /// The last message stored at the time or earlier; the queue's first message without one.
    Upper,
}

impl GetResult {
    /// Has the records read from the disk, as far as they are not in memory, so that nobody waits for that
    /// who sends them.
    pub fn bring_in(&self) {
        self.records.iter().for_each(bring_in);
    }
}

/// Has mapped bytes read from the disk, as far as they are not in memory.
pub fn bring_in(bytes: &Bytes) {
    /// Not larger than a page on any machine.
    const PAGE: usize = 4096;
    for page in bytes.chunks(PAGE) {
        std::hint::black_box(page[0]);
    }
    // Records begin anywhere in a page.
    std::hint::black_box(bytes.last());
}

impl Queues {
    /// Offset of the queue's first message that the log still has; 0 for an unknown queue.
    pub fn min_offset(&self, topic: &str, queue_id: i32) -> QueueOffset {
        self.state(topic, queue_id)
            .map_or(QueueOffset(0), |state| state.min)
    }

    /// Behind the queue's last committed message; 0 for an unknown queue.
    pub fn max_offset(&self, topic: &str, queue_id: i32) -> QueueOffset {
        self.state(topic, queue_id)
            .map_or(QueueOffset(0), |state| state.committed)
    }

    /// Ids of the topic's queues that ever had a message, in order.
    pub fn queue_ids(&self, topic: &str) -> Vec<i32> {
        self.shared().table.queue_ids(topic)
    }

    /// Messages from `offset` on that `matches` takes by their tags code: at most `max_messages`, and
    /// at most `max_bytes` unless the first one alone is larger (`DefaultMessageStore.getMessage`,
    /// 4.9.8).
    ///
    /// May wait some milliseconds for the dispatcher, see [`GetStatus::Late`].
    pub fn get(
        &self,
        topic: &str,
        queue_id: i32,
        offset: QueueOffset,
        max_messages: usize,
        max_bytes: usize,
        matches: &dyn Fn(i64) -> bool,
    ) -> io::Result<GetResult> {
        let deadline = Instant::now() + PATIENCE;
        let mut get = Get {
            max_messages,
            max_bytes,
            records: Vec::new(),
            bytes: 0,
            last: None,
            damage: None,
        };
        loop {
            self.wait(deadline, |shared| {
                let state = shared.table.get(topic, queue_id).map(|(_, state)| state);
                state.is_none_or(|state| offset < state.next || state.committed <= offset)
            });
            let queue = self.queue(topic, queue_id);
            let Some((topic, state)) = queue else {
                return Ok(get.result(self, GetStatus::NoMessageInQueue, QueueOffset(0), None));
            };
            let (status, next) = match state {
                _ if state.committed == QueueOffset(0) => {
                    (GetStatus::NoMessageInQueue, state.committed)
                }
                _ if offset < state.min => (GetStatus::OffsetTooSmall, state.min),
                _ if offset == state.committed => (GetStatus::OffsetOverflowOne, offset),
                _ if offset > state.committed => (GetStatus::OffsetOverflowBadly, state.committed),
                _ if offset >= state.next => (GetStatus::Late, offset),
                _ => self.scan(&mut get, &topic, &state, offset, matches)?,
            };
            if status == GetStatus::Late && offset < state.next {
                self.report(Hole {
                    topic,
                    queue_id,
                    at: next,
                });
                if self.wait(deadline, |shared| shared.holes.is_empty()) {
                    continue;
                }
            }
            return Ok(get.result(self, status, next, Some(&state)));
        }
    }

    /// What stands at an offset of a queue, without waiting for anybody. A unit that is lost is restored from then on.
    ///
    /// # Errors
    /// When the queue's file cannot be read.
    pub fn place(&self, topic: &str, queue_id: i32, offset: QueueOffset) -> io::Result<Place> {
        let Some((topic, state)) = self.queue(topic, queue_id) else {
            return Ok(Place::Later);
        };
        if offset < state.min {
            return Ok(Place::Nothing);
        }
        if offset >= state.next {
            return Ok(Place::Later);
        }
        let lookup = match self.files.slot(&topic, queue_id, offset)? {
            Slot::Blank => Lookup::Skip,
            Slot::Empty => Lookup::Wrong,
            Slot::Message(unit) => self.look_up(&unit, queue_id, offset),
        };
        Ok(match lookup {
            Lookup::Record(record) => Place::Message(record),
            Lookup::Skip | Lookup::Gone { .. } => Place::Nothing,
            Lookup::Damaged(damage) => Place::Damaged(damage),
            Lookup::Wrong => {
                self.report(Hole {
                    topic,
                    queue_id,
                    at: offset,
                });
                Place::Later
            }
        })
    }

    /// What reading a queue on from `offset` takes, where the last `bytes` of the log are in memory.
    pub fn takes(
        &self,
        topic: &str,
        queue_id: i32,
        offset: QueueOffset,
        bytes: u64,
    ) -> io::Result<Takes> {
        /// Units that are as recent as the queue's last one, or not much older.
        const UNITS: u64 = 1024;
        let Some((topic, state)) = self.queue(topic, queue_id) else {
            return Ok(Takes::Memory);
        };
        if offset >= state.next {
            return Ok(match offset >= state.committed {
                true => Takes::Memory,
                false => Takes::Dispatcher,
            });
        }
        if offset < state.min {
            return Ok(Takes::Memory);
        }
        let confirm = self.log.confirm_offset();
        let is_recent = |phy: PhyOffset| confirm.0.saturating_sub(phy.0) <= bytes;
        if !is_recent(state.end_phy) || state.next.0 - offset.0 > UNITS {
            return Ok(Takes::Disk);
        }
        Ok(match self.files.slot(&topic, queue_id, offset)? {
            Slot::Message(unit) if is_recent(unit.phy) => Takes::Memory,
            Slot::Message(_) | Slot::Blank | Slot::Empty => Takes::Disk,
        })
    }

    /// Looks through units from `offset` on and returns the status and where to go on.
    fn scan(
        &self,
        get: &mut Get,
        topic: &Arc<str>,
        state: &QueueState,
        offset: QueueOffset,
        matches: &dyn Fn(i64) -> bool,
    ) -> io::Result<(GetStatus, QueueOffset)> {
        let most = (SCAN_BYTES / UNIT_BYTES).max(get.max_messages) as u64;
        let end = state.next.min(offset + most);
        let mut status = GetStatus::NoMatchedMessage;
        // Once a record is gone, so is the rest of its segment.
        let mut gone_below = PhyOffset(0);
        let mut at = offset;
        while at < end {
            let units = self.read_units(topic, state.queue_id, at, end, get.max_messages)?;
            for unit in units.as_chunks().0 {
                let lookup = match Slot::decode(unit) {
                    Slot::Blank => Lookup::Skip,
                    Slot::Empty => Lookup::Wrong,
                    Slot::Message(unit) if unit.phy < gone_below => Lookup::Skip,
                    Slot::Message(unit) if get.is_full(&unit) => return Ok((GetStatus::Found, at)),
                    Slot::Message(unit) => {
                        get.last = Some(unit.phy);
                        if matches(unit.tags_code) {
                            self.look_up(&unit, state.queue_id, at)
                        } else {
                            status = GetStatus::NoMatchedMessage;
                            Lookup::Skip
                        }
                    }
                };
                match lookup {
                    Lookup::Skip => {}
                    Lookup::Record(record) => get.push(record),
                    Lookup::Gone { until } => {
                        status = GetStatus::MessageWasRemoving;
                        gone_below = until;
                    }
                    Lookup::Wrong if get.records.is_empty() => return Ok((GetStatus::Late, at)),
                    Lookup::Damaged(damage) if get.records.is_empty() => {
                        get.damage = Some(damage);
                        return Ok((GetStatus::Damaged, at));
                    }
                    Lookup::Wrong | Lookup::Damaged(_) => return Ok((GetStatus::Found, at)),
                }
                at = at + 1;
            }
        }
        let found = !get.records.is_empty();
        Ok((if found { GetStatus::Found } else { status }, at))
    }

    /// Some units from `at` on, not beyond `end`; as many as are worth one read.
    fn read_units(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        at: QueueOffset,
        end: QueueOffset,
        wanted: usize,
    ) -> io::Result<Vec<u8>> {
        let left = usize::try_from(end.0 - at.0).unwrap_or(usize::MAX);
        let count = left.min(wanted.clamp(32, SCAN_BYTES / UNIT_BYTES));
        let mut units = vec![0; count * UNIT_BYTES];
        self.files.read(topic, queue_id, at, &mut units)?;
        Ok(units)
    }

    /// What a unit at an offset of a queue points to.
    pub(super) fn look_up(&self, unit: &Unit, queue_id: i32, offset: QueueOffset) -> Lookup {
        let min = self.log.min_offset();
        if unit.phy < min {
            return Lookup::Gone { until: min };
        }
        let Ok(size) = usize::try_from(unit.size) else {
            return Lookup::Wrong;
        };
        let committed = unit.end() <= self.log.confirm_offset();
        if committed && let Err(damage) = self.log.check(unit.phy, unit.size.into()) {
            return Lookup::Damaged(damage);
        }
        let Some(bytes) = self.log.slice(unit.phy, size).filter(|_| committed) else {
            // It may have gone since the look above.
            let min = self.log.min_offset();
            return if unit.phy < min {
                Lookup::Gone { until: min }
            } else {
                Lookup::Wrong
            };
        };
        // Neither the topic nor the body is touched, but no other message has all of this.
        let says = |at: usize, value: &[u8]| bytes[at..].starts_with(value);
        let is_right = peek(&bytes) == (Peek::Record { size })
            && says(record::QUEUE_ID_AT, &queue_id.to_be_bytes())
            && says(record::QUEUE_OFFSET_AT, &offset.0.to_be_bytes())
            && says(record::PHYSICAL_OFFSET_AT, &unit.phy.0.to_be_bytes());
        if !is_right {
            return Lookup::Wrong;
        }
        match self.log.check_records(unit.phy, unit.size.into()) {
            Ok(()) => Lookup::Record(bytes),
            Err(damage) => Lookup::Damaged(damage),
        }
    }

    fn report(&self, hole: Hole) {
        let mut shared = self.shared();
        if !shared.holes.contains(&hole) {
            shared.holes.push(hole);
        }
        drop(shared);
        self.wake(|workers| &workers.upkeep);
    }

    /// The consume queue unit at an offset; `None` if the queue has none there (yet).
    pub fn unit(
        &self,
        topic: &str,
        queue_id: i32,
        offset: QueueOffset,
    ) -> io::Result<Option<Unit>> {
        Ok(self.units(topic, queue_id, offset, 1)?.pop().flatten())
    }

    /// At most `count` consume queue units from `offset` on, `None` for places that have none.
    pub fn units(
        &self,
        topic: &str,
        queue_id: i32,
        offset: QueueOffset,
        count: usize,
    ) -> io::Result<Vec<Option<Unit>>> {
        let Some((topic, state)) = self.queue(topic, queue_id) else {
            return Ok(Vec::new());
        };
        let left = state.next.0.saturating_sub(offset.0);
        let count = usize::try_from(left).map_or(count, |left| left.min(count));
        // An offset beyond the end may be any number that a consumer has made up.
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut units = vec![0; count * UNIT_BYTES];
        self.files.read(&topic, queue_id, offset, &mut units)?;
        let unit = |unit| match Slot::decode(unit) {
            Slot::Message(unit) => Some(unit),
            Slot::Blank | Slot::Empty => None,
        };
        Ok(units.as_chunks().0.iter().map(unit).collect())
    }

    /// Store timestamp (milliseconds) of the message at an offset; `None` if it is not there.
    pub fn store_time_at(
        &self,
        topic: &str,
        queue_id: i32,
        offset: QueueOffset,
    ) -> io::Result<Option<i64>> {
        Ok(self
            .unit(topic, queue_id, offset)?
            .and_then(|unit| store_time(&*self.log, unit.phy)))
    }

    /// Store timestamp (milliseconds) of the oldest record in the log, be it a message's or not.
    pub fn earliest_store_time(&self) -> Option<i64> {
        let min = self.log.min_offset();
        store_time(&*self.log, min).or_else(|| store_time(&*self.log, self.log.segment_end(min)))
    }

    /// The offset that a time (milliseconds) stands for, as 5.x brokers answer. 4.9 brokers look for
    /// the nearest message in a file that they choose by its modification time; that answer depends
    /// on the machine and may lie behind messages of the time asked for.
    pub fn offset_by_time(
        &self,
        topic: &str,
        queue_id: i32,
        timestamp: i64,
        boundary: Boundary,
    ) -> io::Result<QueueOffset> {
        self.wait(Instant::now() + PATIENCE, |shared| {
            let state = shared.table.get(topic, queue_id).map(|(_, state)| state);
            state.is_none_or(|state| state.next >= state.committed)
        });
        let Some((topic, state)) = self.queue(topic, queue_id) else {
            return Ok(QueueOffset(0));
        };
        let (mut low, mut high) = (state.min, state.next);
        while low < high {
            let middle = QueueOffset(low.0 + (high.0 - low.0) / 2);
            let before = match self.files.slot(&topic, queue_id, middle)? {
                Slot::Message(unit) => {
                    store_time(&*self.log, unit.phy).is_none_or(|time| match boundary {
                        Boundary::Lower => time < timestamp,
                        Boundary::Upper => time <= timestamp,
                    })
                }
                Slot::Blank | Slot::Empty => true,
            };
            if before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(match boundary {
            Boundary::Lower => low,
            Boundary::Upper => QueueOffset(low.0.saturating_sub(1)).max(state.min),
        })
    }

    /// Positions of messages with this key (a word of their `KEYS`, or their `UNIQ_KEY`) stored
    /// between `begin` and `end` (milliseconds, both included): the newest `max`, newest first.
    pub fn query_index(
        &self,
        topic: &str,
        key: &str,
        max: usize,
        begin: i64,
        end: i64,
    ) -> io::Result<Vec<PhyOffset>> {
        let confirm = self.log.confirm_offset();
        self.wait(Instant::now() + PATIENCE, |shared| {
            shared.dispatched >= confirm
        });
        let snapshot = self.index().snapshot(topic, key);
        snapshot.find(Search { max, begin, end }, |phy| {
            self.has_key(phy, topic, key, begin, end)
        })
    }

    /// Whether the message at a position is what a query asks for; the index knows hashes only.
    fn has_key(&self, phy: PhyOffset, topic: &str, key: &str, begin: i64, end: i64) -> bool {
        let Some(Peek::Record { size }) = head(&*self.log, phy).map(|head| peek(&head)) else {
            return false;
        };
        let Some(bytes) = self.log.slice(phy, size) else {
            return false;
        };
        if self.log.check_records(phy, size as u64).is_err() {
            return false;
        }
        let Ok(record) = Record::decode(&bytes) else {
            return false;
        };
        let text = record.properties();
        let is_unique = || properties::get(&text, properties::UNIQ_KEY) == Some(key);
        let keys = properties::get(&text, properties::KEYS).unwrap_or_default();
        record.topic == topic
            && (begin..=end).contains(&record.store_timestamp)
            && (is_unique()
                || keys
                    .split(properties::KEY_SEPARATOR)
                    .any(|word| word == key))
    }

    fn state(&self, topic: &str, queue_id: i32) -> Option<QueueState> {
        self.shared()
            .table
            .get(topic, queue_id)
            .map(|(_, state)| state)
    }

    fn queue(&self, topic: &str, queue_id: i32) -> Option<(Arc<str>, QueueState)> {
        let shared = self.shared();
        let (topic, state) = shared.table.get(topic, queue_id)?;
        Some((Arc::clone(topic), state))
    }

    /// Waits until something is so, but not beyond the deadline; false if it is not so even then.
    fn wait(&self, deadline: Instant, is_so: impl Fn(&Shared) -> bool) -> bool {
        let mut shared = self.shared();
        loop {
            if is_so(&shared) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.hurry_on(&mut shared);
            let waited = self.progress.wait_timeout(shared, left);
            shared = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Store timestamp (milliseconds) of the committed record at a position.
pub(crate) fn store_time(log: &dyn CommittedLog, phy: PhyOffset) -> Option<i64> {
    let head = head(log, phy)?;
    let flags = i32::from_be_bytes(*head[record::SYS_FLAG_AT..].first_chunk()?);
    let v6 = flags & sys_flag::BORN_HOST_V6 != 0;
    let host = if v6 {
        record::HOST_V6_LEN
    } else {
        record::HOST_V4_LEN
    };
    Some(i64::from_be_bytes(
        *head[record::BORN_HOST_AT + host..].first_chunk()?,
    ))
}

/// The fixed part of the committed record at a position.
fn head(log: &dyn CommittedLog, phy: PhyOffset) -> Option<Bytes> {
    let committed = log.confirm_offset().0.checked_sub(phy.0)? >= record::MIN_LEN as u64;
    let head = log.slice(phy, record::MIN_LEN).filter(|_| committed)?;
    matches!(peek(&head), Peek::Record { .. }).then_some(head)
}

/// What a consume queue unit comes to.
pub(super) enum Lookup {
    /// Its record.
    Record(Bytes),
    /// Nothing that is asked for.
    Skip,
    /// Its record has left the log, and so have all before this position.
    Gone { until: PhyOffset },
    /// It is not the unit that belongs there.
    Wrong,
    /// Its record is damaged.
    Damaged(Damage),
}

/// A get under way.
struct Get {
    max_messages: usize,
    max_bytes: usize,
    records: Vec<Bytes>,
    bytes: usize,
    /// Position of the last unit that was looked at.
    last: Option<PhyOffset>,
    damage: Option<Damage>,
}

impl Get {
    fn push(&mut self, record: Bytes) {
        self.bytes += record.len();
        self.records.push(record);
    }

    /// Whether a message is too much; the first one never is.
    fn is_full(&self, unit: &Unit) -> bool {
        !self.records.is_empty()
            && (self.records.len() >= self.max_messages
                || self.bytes.saturating_add(unit.size as usize) > self.max_bytes)
    }

    fn result(
        &mut self,
        queues: &Queues,
        status: GetStatus,
        next: QueueOffset,
        state: Option<&QueueState>,
    ) -> GetResult {
        let confirm = queues.log.confirm_offset();
        GetResult {
            status,
            damage: self.damage.take(),
            records: std::mem::take(&mut self.records),
            next,
            min: state.map_or(QueueOffset(0), |state| state.min),
            max: state.map_or(QueueOffset(0), |state| state.committed),
            behind_bytes: self.last.map_or(0, |last| confirm.0.saturating_sub(last.0)),
        }
    }
}
