//! Reading the log, from any thread, while it grows.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use rmq_wire::record::{self, Peek};
use thiserror::Error;

use crate::damage::Damages;
use crate::extent::{ExtentError, Header, Tail};
use crate::raft_index::RaftIndex;
use crate::scrub::Cold;
use crate::segment::{Segments, reserve_bytes};
use crate::types::{EntryId, LogIndex, PhyOffset, StoredEntry};

/// Headers that are kept in memory: of more entries than are usually under way.
const RECENT: usize = 32;

/// Why an entry that is in the log could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("entry {index} in {file} at {at}: {source}")]
    Damaged {
        index: LogIndex,
        file: String,
        at: PhyOffset,
        source: ExtentError,
    },
    #[error("raft index has no cell of entry {0}")]
    NoCell(LogIndex),
    #[error("cannot read entry {index}: {source}")]
    Io { index: LogIndex, source: io::Error },
}

/// What the log, its readers and its threads have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) segments: Segments,
    pub(crate) index: RaftIndex,
    pub(crate) generation: i32,
    pub(crate) max_extent_bytes: u64,
    base: AtomicU64,
    tail: RwLock<Tail>,
    end: AtomicU64,
    confirm: AtomicU64,
    synced: AtomicU64,
    /// The next file could not be made ahead of need.
    short: AtomicBool,
    /// Headers of the last entries, the last one at the back: whoever sends or applies what was just
    /// appended need not read it.
    recent: Mutex<VecDeque<(Header, PhyOffset)>>,
    pub(crate) damages: Damages,
    /// What was there before this process and may not be what was written.
    pub(crate) cold: Cold,
    /// First reason why nothing may be written any more.
    poison: OnceLock<String>,
}

impl Shared {
    pub(crate) fn new(
        segments: Segments,
        index: RaftIndex,
        generation: i32,
        max_extent_bytes: u64,
        (base, confirm): (PhyOffset, PhyOffset),
    ) -> Self {
        Self {
            segments,
            index,
            generation,
            max_extent_bytes,
            base: AtomicU64::new(base.0),
            tail: RwLock::default(),
            end: AtomicU64::new(base.0),
            confirm: AtomicU64::new(base.0),
            synced: AtomicU64::new(base.0),
            short: AtomicBool::new(false),
            recent: Mutex::default(),
            damages: Damages::default(),
            cold: Cold::new(base, confirm),
            poison: OnceLock::new(),
        }
    }

    /// Whether the next file could not be made.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }

    /// Notes whether the next file could not be made; what was noted before.
    pub(crate) fn set_short(&self, short: bool) -> bool {
        self.short.swap(short, Ordering::AcqRel)
    }

    /// Where the first entry that is not purged starts.
    pub(crate) fn base(&self) -> PhyOffset {
        PhyOffset(self.base.load(Ordering::Acquire))
    }

    pub(crate) fn set_base(&self, base: PhyOffset) {
        self.base.store(base.0, Ordering::Release);
    }

    pub(crate) fn tail(&self) -> Tail {
        *self.tail.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows readers a new end of the log.
    pub(crate) fn publish(&self, tail: &Tail) {
        *self.tail.write().unwrap_or_else(PoisonError::into_inner) = *tail;
        self.end.store(tail.end.0, Ordering::Release);
    }

    /// Keeps the headers of entries that follow the last one.
    pub(crate) fn remember(&self, headers: Vec<(Header, PhyOffset)>) {
        let mut recent = self.recent();
        let surplus = (recent.len() + headers.len()).saturating_sub(RECENT);
        let old = surplus.min(recent.len());
        recent.drain(..old);
        recent.extend(headers.into_iter().skip(surplus - old));
    }

    /// Forgets the headers of entries that are cut off.
    pub(crate) fn forget(&self) {
        self.recent().clear();
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<(Header, PhyOffset)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, index: LogIndex) -> Option<(Header, PhyOffset)> {
        let recent = self.recent();
        let first = recent.front()?.0.id.index;
        let nth = usize::try_from(index.0.checked_sub(first.0)?).ok()?;
        // There is a gap where entries were purged that had not been appended.
        recent
            .get(nth)
            .filter(|(header, _)| header.id.index == index)
            .cloned()
    }

    pub(crate) fn end(&self) -> PhyOffset {
        PhyOffset(self.end.load(Ordering::Acquire))
    }

    pub(crate) fn confirm(&self) -> PhyOffset {
        PhyOffset(self.confirm.load(Ordering::Acquire))
    }

    pub(crate) fn raise_confirm(&self, confirm: PhyOffset) {
        self.confirm.fetch_max(confirm.0, Ordering::AcqRel);
    }

    /// Shows readers a new end of what is durable.
    pub(crate) fn publish_synced(&self, synced: PhyOffset) {
        self.synced.store(synced.0, Ordering::Release);
    }

    /// Stops all writing, for this reason if it is the first one.
    pub(crate) fn poison(&self, reason: impl FnOnce() -> String) {
        self.poison.get_or_init(|| {
            let reason = reason();
            tracing::error!(reason, "the store stops writing");
            reason
        });
    }

    pub(crate) fn check_poison(&self) -> io::Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(reason) => Err(io::Error::other(format!("store stopped writing: {reason}"))),
        }
    }

    /// The header of an entry and where its record is; `None` if the entry is not there or purged.
    pub(crate) fn header(&self, index: LogIndex) -> Result<Option<(Header, PhyOffset)>, ReadError> {
        if !self.tail().holds(index) {
            return Ok(None);
        }
        if let Some(found) = self.remembered(index) {
            return Ok(Some(found));
        }
        // Once more, should it have been cut off and written anew in between.
        match self.read_header(index).or_else(|_| self.read_header(index)) {
            Ok(found) => Ok(Some(found)),
            Err(e) if self.tail().holds(index) => {
                self.distrust(index, &e);
                Err(e)
            }
            // The log was cut while it was read, which is no damage.
            Err(_) => Ok(None),
        }
    }

    /// Keeps readers from an entry that is not what was written.
    pub(crate) fn distrust(&self, index: LogIndex, error: &ReadError) {
        if let ReadError::Damaged { .. } | ReadError::NoCell(_) = error
            && let Some(damage) = self.locate(index, error.to_string())
        {
            self.damages.add(damage);
        }
    }

    pub(crate) fn read_header(&self, index: LogIndex) -> Result<(Header, PhyOffset), ReadError> {
        let io = |source| ReadError::Io { index, source };
        let cell = self
            .index
            .get(index)
            .map_err(io)?
            .ok_or(ReadError::NoCell(index))?;
        let at = cell.header;
        let bytes = match self.segments.view_record(at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged(index, at, ExtentError::NoHeader));
            }
            other => other.map_err(io)?,
        };
        match Header::decode(&bytes, self.generation, at) {
            Ok((header, _)) if header.id.index == index => Ok((header, at)),
            Ok(_) => Err(self.damaged(index, at, ExtentError::Header("of another entry"))),
            Err(source) => Err(self.damaged(index, at, source)),
        }
    }

    pub(crate) fn damaged(&self, index: LogIndex, at: PhyOffset, source: ExtentError) -> ReadError {
        let file = self
            .segments
            .path(self.segments.base_of(at))
            .display()
            .to_string();
        ReadError::Damaged {
            index,
            file,
            at,
            source,
        }
    }
}

/// A view on the log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LogReader {
    pub(crate) shared: Arc<Shared>,
}

impl LogReader {
    /// Start of the first segment, history included.
    #[must_use]
    pub fn min_offset(&self) -> PhyOffset {
        self.shared
            .segments
            .first()
            .unwrap_or_else(|| self.shared.base())
    }

    /// Where the Raft log begins. What is before it is history, or of entries that were purged: records
    /// that are still there for their readers.
    #[must_use]
    pub fn base_offset(&self) -> PhyOffset {
        self.shared.base()
    }

    /// End of the last extent as appended, be it committed or not.
    #[must_use]
    pub fn end_offset(&self) -> PhyOffset {
        self.shared.end()
    }

    /// End of what was synced to the disk. Of what is beyond it, some may be there as well.
    #[must_use]
    pub fn synced_offset(&self) -> PhyOffset {
        PhyOffset(self.shared.synced.load(Ordering::Acquire))
    }

    /// Fails with the reason once nothing can be written or synced any more.
    pub fn check_writable(&self) -> io::Result<()> {
        self.shared.check_poison()
    }

    /// End of the last extent known as committed. Never decreases.
    #[must_use]
    pub fn confirm_offset(&self) -> PhyOffset {
        self.shared.confirm()
    }

    /// Raises the confirm offset; a lower one than there is changes nothing.
    ///
    /// # Panics
    ///
    /// Above the end of the log: an entry cannot be committed before it is here.
    pub fn set_confirm_offset(&self, confirm: PhyOffset) {
        let end = self.shared.end();
        assert!(
            confirm <= end,
            "confirm offset {confirm} is beyond the log's end {end}"
        );
        self.shared.raise_confirm(confirm);
    }

    /// `None` while new files can be made as they are needed. Else the bytes that can be appended before
    /// the log needs one, blanks included: appending beyond is fatal. [`LogReader::reserve_bytes`] of
    /// them are for what must be written whatever happens.
    #[must_use]
    pub fn room(&self) -> Option<u64> {
        if !self.shared.is_short() {
            return None;
        }
        let next = self.last_id().map_or(LogIndex(0), |last| last.index.next());
        if !self.shared.index.has_room(next) {
            return Some(0);
        }
        let limit = self.shared.segments.limit().unwrap_or_default().0;
        Some(limit.saturating_sub(self.end_offset().0))
    }

    /// What is to be left of [`LogReader::room`]: a sixteenth of a segment.
    #[must_use]
    pub fn reserve_bytes(&self) -> u64 {
        reserve_bytes(self.segment_bytes())
    }

    /// Bytes of a segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.shared.segments.bytes
    }

    /// Most bytes that a new entry may have, its header included. At most what the configuration
    /// says, and less if the store has smaller segments.
    #[must_use]
    pub fn max_extent_bytes(&self) -> u64 {
        self.shared.max_extent_bytes
    }

    /// First entry that can be read; `None` if there is none.
    #[must_use]
    pub fn first_index(&self) -> Option<LogIndex> {
        self.shared.tail().first_index()
    }

    /// The last entry, which may be a purged one; `None` for an empty log.
    #[must_use]
    pub fn last_id(&self) -> Option<EntryId> {
        self.shared.tail().last_id()
    }

    /// The last purged entry.
    #[must_use]
    pub fn purged_id(&self) -> Option<EntryId> {
        self.shared.tail().purged
    }

    /// An entry without its message bytes, which are not touched; `None` if it is not in the log.
    pub fn entry(&self, index: LogIndex) -> Result<Option<StoredEntry>, ReadError> {
        Ok(self
            .shared
            .header(index)?
            .map(|(header, _)| header.into_stored()))
    }

    /// The identity of an entry, the last purged one included; `None` if it is not in the log.
    pub fn id_at(&self, index: LogIndex) -> Result<Option<EntryId>, ReadError> {
        match self.purged_id() {
            Some(purged) if purged.index == index => Ok(Some(purged)),
            _ => Ok(self.shared.header(index)?.map(|(header, _)| header.id)),
        }
    }

    /// The bytes of an entry's extent as `NewEntry::Sealed` takes them, one slice for each segment,
    /// not copied; `None` if it is not in the log. A committed entry is verified as a whole, of any
    /// other the header alone: who gets it verifies it with [`LogReader::check_raw`].
    pub fn raw(&self, index: LogIndex) -> Result<Option<Vec<Bytes>>, ReadError> {
        Ok(self.whole(index)?.map(|(_, raw)| raw))
    }

    pub(crate) fn whole(&self, index: LogIndex) -> Result<Option<(Header, Vec<Bytes>)>, ReadError> {
        let shared = &self.shared;
        let Some((header, pos)) = shared.header(index)? else {
            return Ok(None);
        };
        let views = shared.segments.views(header.start, header.end());
        let views = views.map_err(|source| ReadError::Io { index, source })?;
        if header.end() <= self.confirm_offset()
            && let Err(source) = shared.check_extent(header.start, &views, index)
        {
            let error = shared.damaged(index, pos, source);
            let place = (header.start, header.end());
            let damage = shared.damage(Some((index, index)), place, error.to_string());
            shared.damages.add(damage);
            return Err(error);
        }
        Ok(Some((header, views)))
    }

    /// Bytes of the log that lie in one segment, not copied; `None` if they do not, or are not all
    /// below the end.
    #[must_use]
    pub fn slice(&self, pos: PhyOffset, len: usize) -> Option<Bytes> {
        if pos.0.checked_add(len as u64)? > self.end_offset().0 {
            return None;
        }
        self.view(pos, len)
    }

    /// The record that starts at `pos`, not copied; `None` if no record starts there, which its own
    /// position field tells, or it is not all below the confirm offset.
    #[must_use]
    pub fn record_at(&self, pos: PhyOffset) -> Option<Bytes> {
        let confirm = self.confirm_offset();
        let head = self.committed_slice(confirm, pos, record::MIN_LEN)?;
        let Peek::Record { size } = record::peek(&head) else {
            return None;
        };
        let said = &head[record::PHYSICAL_OFFSET_AT..][..8];
        if said != pos.0.to_be_bytes() {
            return None;
        }
        let record = self.committed_slice(confirm, pos, size)?;
        self.check_records(pos, size as u64).ok()?;
        Some(record)
    }

    fn committed_slice(&self, confirm: PhyOffset, pos: PhyOffset, len: usize) -> Option<Bytes> {
        if pos.0.checked_add(len as u64)? > confirm.0 {
            return None;
        }
        self.view(pos, len)
    }

    fn view(&self, pos: PhyOffset, len: usize) -> Option<Bytes> {
        if self
            .shared
            .damages
            .touching(pos, pos + len as u64)
            .is_some()
        {
            return None;
        }
        match self.shared.segments.view(pos, len) {
            Ok(bytes) => Some(bytes),
            // Before the first segment, after the last one or across two.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(e) => {
                tracing::error!(%pos, len, error = %e, "cannot read the commit log");
                None
            }
        }
    }
}
