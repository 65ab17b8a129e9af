//! Damaged parts of the log: told from a torn tail, kept from readers, and written again.
//!
//! An entry has the same bytes on all nodes, so any node's copy will do that passes the same
//! verification. Below the first entry there are records of their own, each with its checksum.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use rmq_wire::record::{self, Peek};
use thiserror::Error;

use crate::extent::{ExtentError, Header, Part, split, verify};
use crate::raft_index::Cell;
use crate::reader::{LogReader, Shared};
use crate::recovery::is_record;
use crate::segment::Segments;
use crate::types::{EntryId, LogIndex, PhyOffset, Term};

/// Bytes that are looked through at once for where a damaged part ends.
const SEARCH_BYTES: u64 = 1 << 20;

/// A part of the log that is not what was written. Nobody can read it until it is written again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{} is damaged at byte {within} (offset {start}, {} bytes): {reason}", file.display(), end.0 - start.0)]
pub struct Damage {
    /// The first and the last of its entries; `None` for records before the first entry.
    pub entries: Option<(LogIndex, LogIndex)>,
    pub start: PhyOffset,
    pub end: PhyOffset,
    pub file: PathBuf,
    /// Where in the file.
    pub within: u64,
    pub reason: String,
}

/// Why bytes were not taken for a damaged part.
#[derive(Debug, Error)]
pub enum MendError {
    #[error("they are damaged too: {0}")]
    Extent(#[from] ExtentError),
    #[error("they belong elsewhere")]
    Elsewhere,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Tells who mends that there is something to mend.
pub type MenderCall = Box<dyn Fn() + Send + Sync>;

/// What is damaged and not mended yet; almost always nothing.
#[derive(Default)]
pub(crate) struct Damages {
    any: AtomicBool,
    list: RwLock<Vec<Damage>>,
    /// Who mends it.
    mender: RwLock<Option<MenderCall>>,
    /// Whether nothing is to be mended any more; held while something is.
    closed: Mutex<bool>,
}

impl fmt::Debug for Damages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Damages").field(&*self.list()).finish()
    }
}

impl Damages {
    fn list(&self) -> RwLockReadGuard<'_, Vec<Damage>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Damage>)) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut list);
        self.any.store(!list.is_empty(), Ordering::Release);
    }

    /// Keeps readers from a part of the log. What overlaps becomes one.
    pub(crate) fn add(&self, damage: Damage) {
        self.change(|list| {
            let covers = |known: &Damage| known.start <= damage.start && damage.end <= known.end;
            if list.iter().any(covers) {
                return;
            }
            tracing::error!(%damage, "the log is damaged");
            let mut damage = damage;
            list.retain(|known| {
                if known.end <= damage.start || damage.end <= known.start {
                    return true;
                }
                let (low, high) = if known.start <= damage.start {
                    (known, &damage)
                } else {
                    (&damage, known)
                };
                let last = if low.end < high.end { high } else { low };
                damage = Damage {
                    entries: low
                        .entries
                        .zip(last.entries)
                        .map(|((first, _), (_, last))| (first, last)),
                    end: last.end,
                    ..low.clone()
                };
                false
            });
            let at = list.partition_point(|known| known.start < damage.start);
            list.insert(at, damage);
        });
        if let Some(call) = &*self.mender() {
            call();
        }
    }

    fn mender(&self) -> RwLockReadGuard<'_, Option<MenderCall>> {
        self.mender.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first damage that touches a range.
    pub(crate) fn touching(&self, start: PhyOffset, end: PhyOffset) -> Option<Damage> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let list = self.list();
        let mut touching = list.iter().filter(|d| d.start < end && start < d.end);
        touching.next().cloned()
    }

    /// Gives a range within a damaged part, an entry if it has an index, back to readers.
    fn take_out(
        &self,
        (start, end): (PhyOffset, PhyOffset),
        index: Option<LogIndex>,
        segments: &Segments,
    ) {
        self.change(|list| {
            let holds = |damage: &Damage| damage.start <= start && end <= damage.end;
            let Some(at) = list.iter().position(holds) else {
                return;
            };
            let before = list.remove(at);
            let entries = before.entries.zip(index);
            let base = segments.base_of(end);
            let behind = Damage {
                entries: entries.map(|((_, last), index)| (index.next(), last)),
                start: end,
                file: segments.path(base),
                within: end - base,
                ..before.clone()
            };
            let before = Damage {
                entries: entries.map(|((first, _), index)| (first, LogIndex(index.0.max(1) - 1))),
                end: start,
                ..before
            };
            let left = [before, behind]
                .into_iter()
                .filter(|part| part.start < part.end);
            list.splice(at..at, left);
        });
    }

    /// Forgets what is not in the log any more.
    pub(crate) fn keep(&self, from: PhyOffset, to: PhyOffset) {
        if self.any.load(Ordering::Acquire) {
            self.change(|list| list.retain(|d| from < d.end && d.start < to));
        }
    }
}

impl Shared {
    /// A damaged part from `start` to `end`.
    pub(crate) fn damage(
        &self,
        entries: Option<(LogIndex, LogIndex)>,
        (start, end): (PhyOffset, PhyOffset),
        reason: String,
    ) -> Damage {
        let base = self.segments.base_of(start);
        Damage {
            entries,
            start,
            end,
            file: self.segments.path(base),
            within: start - base,
            reason,
        }
    }

    /// Where an entry lies that cannot be read: between its neighbours, those that cannot be read
    /// either included.
    pub(crate) fn locate(&self, index: LogIndex, reason: String) -> Option<Damage> {
        let tail = self.tail();
        let (first, last) = (tail.first_index()?, tail.last?.index);
        let header = |index: u64| self.read_header(LogIndex(index)).ok().map(|(h, _)| h);
        let (mut from, mut start) = (first, self.base());
        for before in (first.0..index.0).rev() {
            if let Some(header) = header(before) {
                (from, start) = (LogIndex(before + 1), header.end());
                break;
            }
        }
        let mut behind = (index.0 + 1..=last.0).filter_map(header);
        let (until, end) = behind.next().map_or((last, tail.end), |header| {
            (LogIndex(header.id.index.0 - 1), header.start)
        });
        (start < end).then(|| self.damage(Some((from, until)), (start, end), reason))
    }

    /// The next extent that starts behind `start`, below `limit`, whose header is whole.
    pub(crate) fn next_header(
        &self,
        start: PhyOffset,
        limit: PhyOffset,
    ) -> Option<(Header, PhyOffset)> {
        let magic = record::MAGIC_V1.to_be_bytes();
        let mut at = start + 1;
        while at < limit {
            // A little more, for a magic that the step's end cuts.
            let most = (limit - at).min(SEARCH_BYTES + record::MIN_LEN as u64);
            let bytes = self.segments.view_up_to(at, most).ok()?;
            let words = bytes.get(record::MAGIC_AT..).unwrap_or_default();
            for (within, _) in words.windows(4).enumerate().filter(|(_, w)| **w == magic) {
                let pos = at + within as u64;
                let whole = self.segments.view_record(pos).ok();
                if let Some(whole) = whole
                    && let Ok((header, _)) = Header::decode(&whole, self.generation, pos)
                    && start < header.start
                {
                    return Some((header, pos));
                }
            }
            let left = self.segments.base_of(at) + self.segments.bytes - at;
            at = at + left.min(SEARCH_BYTES);
        }
        None
    }

    /// Verifies the extent that starts at `start` and lies there in `slices`.
    pub(crate) fn check_extent(
        &self,
        start: PhyOffset,
        slices: &[Bytes],
        index: LogIndex,
    ) -> Result<(Header, PhyOffset), ExtentError> {
        let parts = split(start, slices, self.segments.bytes);
        let (header, pos) = verify(&parts, self.generation, self.segments.bytes)?;
        if header.id.index == index {
            Ok((header, pos))
        } else {
            Err(ExtentError::Header("of another entry"))
        }
    }
}

impl LogReader {
    /// What is damaged and not mended yet, by position.
    #[must_use]
    pub fn damages(&self) -> Vec<Damage> {
        let damages = &self.shared.damages;
        // What has been removed meanwhile is no loss.
        damages.keep(self.min_offset(), PhyOffset(u64::MAX));
        let mut list = damages.list().clone();
        for damage in &mut list {
            // Of what was purged, nobody has more than records.
            if damage.end <= self.base_offset() {
                damage.entries = None;
            }
        }
        list
    }

    /// Says who is going to mend damage, so that it is worth waiting for; who that is is called with each damage
    /// that is found from now on, and must not read the log in that call.
    pub fn expect_mending(&self, mender: Option<MenderCall>) {
        let known = self.shared.damages.mender.write();
        *known.unwrap_or_else(PoisonError::into_inner) = mender;
    }

    /// Whether damage is going to be mended.
    #[must_use]
    pub fn is_mending(&self) -> bool {
        self.shared.damages.mender().is_some()
    }

    /// Returns once nothing is being mended, and nothing will be any more.
    pub fn finish_mending(&self) {
        let closed = self.shared.damages.closed.lock();
        *closed.unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// The damage at a position, if it cannot be read for that.
    #[must_use]
    pub fn damage_at(&self, pos: PhyOffset) -> Option<Damage> {
        self.shared.damages.touching(pos, pos + 1)
    }

    /// Verifies the raw extent of an entry as [`LogReader::raw`] gives it, of this log or another node's, and
    /// says which entry it is.
    pub fn check_raw(&self, slices: &[Bytes]) -> Result<EntryId, ExtentError> {
        let start = start_of(slices)?;
        let parts = split(start, slices, self.segment_bytes());
        let (header, _) = verify(&parts, self.shared.generation, self.segment_bytes())?;
        Ok(header.id)
    }

    /// The raw extent of an entry, verified: one that is committed, or that is of this leader, for a
    /// leader makes no two entries of one index. `None` if it is not here or not whole.
    #[must_use]
    pub fn sound_entry(&self, index: LogIndex, leader: Option<(Term, u64)>) -> Option<Vec<Bytes>> {
        let entry = self.entry(index).ok()??;
        let is_it = entry.end <= self.confirm_offset() || leader == Some(entry.id.leader());
        let raw = is_it.then(|| self.raw(index).ok()?).flatten()?;
        self.check_raw(&raw).ok()?;
        Some(raw)
    }

    /// Who made one of a damaged part's entries, as far as what is whole tells: the entry's own header,
    /// or the entries around the damage if they have the same leader, since leaders only rise along a log.
    #[must_use]
    pub fn leader_of(&self, damage: &Damage, index: LogIndex) -> Option<(Term, u64)> {
        let header = |index| self.shared.read_header(index).ok().map(|(h, _)| h);
        let own = header(index).filter(|own| damage.start <= own.start && own.end() <= damage.end);
        if let Some(own) = own {
            return Some(own.id.leader());
        }
        let leader = |index| {
            let ends = [self.purged_id(), self.last_id()];
            let end = ends.into_iter().flatten().find(|id| id.index == index);
            let id = end.or_else(|| header(index).map(|header| header.id));
            id.map(|id| id.leader())
        };
        let (first, last) = damage.entries?;
        let before = leader(LogIndex(first.0.checked_sub(1)?))?;
        let is_last = self.last_id().is_some_and(|id| id.index == last);
        let behind = leader(if is_last { last } else { last.next() })?;
        (before == behind).then_some(before)
    }

    /// The committed record at a position, or the blank, verified; `None` if it is not here or not
    /// whole.
    #[must_use]
    pub fn sound_record(&self, pos: PhyOffset) -> Option<Bytes> {
        let left = self.confirm_offset().0.checked_sub(pos.0)?;
        let rest = self.shared.segments.view_up_to(pos, left).ok()?;
        let size = whole_piece(&rest, pos)?;
        self.check(pos, size as u64).ok()?;
        Some(rest.slice(..size))
    }

    /// Whether the first damaged entry is whole after all: then only the raft index was wrong, and it
    /// is readable again.
    pub fn mend_index(&self, damage: &Damage) -> io::Result<bool> {
        let Some((index, _)) = damage.entries else {
            return Ok(false);
        };
        let shared = &self.shared;
        let Ok(bytes) = shared.segments.views(damage.start, damage.end) else {
            return Ok(false);
        };
        let mut parts = split(damage.start, &bytes, shared.segments.bytes);
        let Some(len) = extent_len(shared, damage.start, &parts) else {
            return Ok(false);
        };
        truncate(&mut parts, len);
        let slices: Vec<Bytes> = parts.into_iter().map(|part| part.bytes).collect();
        let Ok((header, pos)) = shared.check_extent(damage.start, &slices, index) else {
            return Ok(false);
        };
        let closed = shared.damages.closed.lock();
        let closed = closed.unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Ok(false);
        }
        self.note_cell(&header, pos)?;
        let place = (damage.start, header.end());
        shared
            .damages
            .take_out(place, Some(index), &shared.segments);
        Ok(true)
    }

    /// Writes some of a damaged part again, durably, with another node's bytes of entries, or of
    /// records from its start on; then they are readable again.
    ///
    /// A file that is not written to any more is replaced by a mended copy: its old bytes may belong
    /// to another store too, and those who still look at them see no change.
    ///
    /// # Errors
    /// Bytes that do not belong there change nothing. After a failed write nothing is written to the
    /// log any more.
    pub fn mend(&self, damage: &Damage, pieces: &[Vec<Bytes>]) -> Result<(), MendError> {
        let shared = &self.shared;
        let segments = &shared.segments;
        let mut places = Vec::with_capacity(pieces.len());
        let mut parts = Vec::with_capacity(pieces.len());
        let mut cells = Vec::new();
        let mut at = damage.start;
        for piece in pieces {
            let (start, index) = match damage.entries {
                Some(entries) => {
                    let (header, pos) = self.check_entry(damage, entries, piece)?;
                    let (start, index) = (header.start, header.id.index);
                    cells.push((header, pos));
                    (start, Some(index))
                }
                None => {
                    let bytes = piece.concat();
                    let whole = whole_piece(&bytes, at).is_some_and(|size| size == bytes.len());
                    whole.then_some((at, None)).ok_or(MendError::Elsewhere)?
                }
            };
            at = start + piece.iter().map(Bytes::len).sum::<usize>() as u64;
            if start < damage.start || damage.end < at {
                return Err(MendError::Elsewhere);
            }
            places.push(((start, at), index));
            parts.extend(split(start, piece, segments.bytes));
        }
        let closed = shared.damages.closed.lock();
        let closed = closed.unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Err(io::Error::other("the log is closed").into());
        }
        shared.check_poison()?;
        let sealed = self.confirm_offset();
        let written = segments.mend(&parts, sealed).and_then(|()| {
            let mut cells = cells.iter();
            cells.try_for_each(|(header, pos)| self.note_cell(header, *pos))
        });
        if let Err(e) = written {
            shared.poison(|| format!("cannot mend {}: {e}", damage.file.display()));
            return Err(e.into());
        }
        for (place, index) in places {
            shared.damages.take_out(place, index, segments);
        }
        Ok(())
    }

    /// Verifies another node's bytes of one of a damaged part's entries, which say where they belong.
    fn check_entry(
        &self,
        damage: &Damage,
        (first, last): (LogIndex, LogIndex),
        piece: &[Bytes],
    ) -> Result<(Header, PhyOffset), MendError> {
        let start = start_of(piece)?;
        let parts = split(start, piece, self.segment_bytes());
        let (header, pos) = verify(&parts, self.shared.generation, self.segment_bytes())?;
        let index = header.id.index;
        let leader = self.leader_of(damage, index);
        let fits = (first..=last).contains(&index)
            && leader.is_none_or(|leader| leader == header.id.leader())
            && (index != first || header.start == damage.start)
            && (index != last || header.end() == damage.end);
        fits.then_some((header, pos)).ok_or(MendError::Elsewhere)
    }

    fn note_cell(&self, header: &Header, pos: PhyOffset) -> io::Result<()> {
        let cell = Cell {
            header: pos,
            len: header.len,
            term: header.id.term,
        };
        self.shared.index.put(header.id.index, &[cell])
    }
}

/// Where a raw extent lies, by what it says itself: within the positions that a log can have.
fn start_of(slices: &[Bytes]) -> Result<PhyOffset, ExtentError> {
    let first = slices.first().ok_or(ExtentError::NoHeader)?;
    let (blank, head) = match record::peek(first) {
        Peek::Blank { size } if size < first.len() => (size, first.slice(size..)),
        Peek::Blank { size } => (size, slices.get(1).ok_or(ExtentError::NoHeader)?.clone()),
        _ => (0, first.clone()),
    };
    let said = head.get(record::PHYSICAL_OFFSET_AT..);
    let said = said
        .and_then(|at| at.first_chunk())
        .ok_or(ExtentError::NoHeader)?;
    let start = u64::from_be_bytes(*said).checked_sub(blank as u64);
    let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
    let is_possible = |start: &u64| {
        let end = start.checked_add(len);
        end.is_some_and(|end| i64::try_from(end).is_ok())
    };
    let start = start.filter(is_possible).ok_or(ExtentError::NoHeader)?;
    Ok(PhyOffset(start))
}

/// The length of the extent at the head of `parts`, by its header.
fn extent_len(shared: &Shared, start: PhyOffset, parts: &[Part]) -> Option<u64> {
    let first = parts.first()?;
    let head = match record::peek(&first.bytes) {
        Peek::Blank { size } if size == first.bytes.len() => parts.get(1)?,
        _ => first,
    };
    let (header, _) = Header::decode(&head.bytes, shared.generation, head.pos).ok()?;
    (header.start == start).then_some(u64::from(header.len))
}

fn truncate(parts: &mut Vec<Part>, len: u64) {
    let mut left = len;
    parts.retain_mut(|part| {
        let keep = left.min(part.bytes.len() as u64);
        left -= keep;
        part.bytes
            .truncate(usize::try_from(keep).expect("is at most a length"));
        keep > 0
    });
}

/// Size of the whole record, or the blank, at the head of `bytes`, which lie at `pos`.
fn whole_piece(bytes: &[u8], pos: PhyOffset) -> Option<usize> {
    match record::peek(bytes) {
        Peek::Blank { size } if size == bytes.len() => Some(size),
        _ => is_record(bytes, 0, pos.0),
    }
}
