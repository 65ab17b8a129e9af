//! From the checkpoint to the end of the log.

use std::path::PathBuf;

use bytes::Bytes;
use rmq_wire::record::{self, BLANK_LEN, Peek};

use super::{OpenError, Opening, at};
use crate::checkpoint::Checkpoint;
use crate::extent::{ExtentError, Header, Part, Tail, place, verify};
use crate::raft_index::{Cell, RaftIndex};
use crate::types::{EntryId, LogIndex, PhyOffset};

/// Bytes that are read at once when looking for what a crash left behind the end.
const STEP_BYTES: usize = 1 << 20;
/// Zeros after which the rest of a segment is taken to be clean. Readers of the classic log stop
/// at the first of them, and recovery never takes stale bytes for entries anyway.
const CLEAN_BYTES: u64 = 64 << 20;
/// Cells of the raft index that are written at once.
const CELLS_STEP: usize = 4096;

impl Opening<'_> {
    /// Moves behind the checkpoint's entry. What is not whole up to there is damage.
    pub(super) fn start_at_checkpoint(&mut self) -> Result<(), OpenError> {
        let Checkpoint {
            base,
            confirm,
            committed: Some(committed),
            purged,
            ..
        } = self.notes.checkpoint
        else {
            return Ok(());
        };
        if purged.is_some_and(|purged| committed.index <= purged.index) {
            return Ok(());
        }
        let first = match self.read_header(base) {
            Ok((first, _, _)) => first.id.index,
            Err(Stop::Io(e)) => return Err(e),
            Err(Stop::Extent(..)) => purged.map_or(LogIndex(0), |purged| purged.index.next()),
        };
        let start = match self.start_of(first, committed, confirm)? {
            Some(start) if self.starts_at(start, first, committed)? => start,
            _ => {
                tracing::info!(until = %confirm, "rebuilding the raft index");
                self.rebuild_index((base, first), (confirm, committed.index))?
            }
        };
        let whole = self.read_extent(start).and_then(|(header, pos)| {
            if header.id == committed && header.end() == confirm {
                Ok(header.store_timestamp)
            } else {
                let what = "not the entry that the checkpoint names";
                Err(Stop::Extent(pos, ExtentError::Header(what)))
            }
        });
        let store_timestamp = match whole {
            Ok(store_timestamp) => store_timestamp,
            Err(Stop::Io(e)) => return Err(e),
            Err(Stop::Extent(_, reason)) => {
                let entries = (committed.index, committed.index);
                self.note_damage(entries, (start, confirm), &reason);
                0
            }
        };
        self.tail = Tail {
            end: confirm,
            first,
            last: Some(committed),
            store_timestamp,
            ..self.tail
        };
        Ok(())
    }

    fn note_damage(
        &self,
        entries: (LogIndex, LogIndex),
        place: (PhyOffset, PhyOffset),
        reason: &ExtentError,
    ) {
        if place.0 < place.1 {
            let damage = self.shared.damage(Some(entries), place, reason.to_string());
            self.shared.damages.add(damage);
        }
    }

    /// Where the checkpoint's entry starts by the raft index; `None` if that is not whole.
    fn start_of(
        &self,
        first: LogIndex,
        committed: EntryId,
        confirm: PhyOffset,
    ) -> Result<Option<PhyOffset>, OpenError> {
        let index_dir = self.config.raft_index_dir();
        let index = &self.shared.index;
        let covers = index.covers(first, committed.index);
        if !covers.map_err(at(&index_dir))? {
            return Ok(None);
        }
        let Some(cell) = index.get(committed.index).map_err(at(&index_dir))? else {
            return Ok(None);
        };
        let start = confirm.0.checked_sub(cell.len.into()).map(PhyOffset);
        let within = start.filter(|start| (*start..confirm).contains(&cell.header));
        Ok(within.filter(|_| cell.term == committed.term))
    }

    /// Whether the checkpoint's entry starts where the raft index says: there is its header, or the
    /// entry before ends.
    fn starts_at(
        &self,
        start: PhyOffset,
        first: LogIndex,
        committed: EntryId,
    ) -> Result<bool, OpenError> {
        match self.read_header(start) {
            Ok((header, _, _)) => return Ok(header.id == committed),
            Err(Stop::Io(e)) => return Err(e),
            Err(Stop::Extent(..)) => {}
        }
        if committed.index == first {
            return Ok(start == self.tail.end);
        }
        let before = LogIndex(committed.index.0 - 1);
        Ok(self
            .shared
            .read_header(before)
            .is_ok_and(|(header, _)| header.end() == start))
    }

    /// Writes the cells of all entries between two positions, and returns where the last extent
    /// starts. Only headers are read; one that is not whole is damage up to the next one.
    fn rebuild_index(
        &self,
        (base, first): (PhyOffset, LogIndex),
        (confirm, committed): (PhyOffset, LogIndex),
    ) -> Result<PhyOffset, OpenError> {
        let io = |stop| match stop {
            Stop::Io(e) => Err(e),
            Stop::Extent(..) => Ok(()),
        };
        let mut cells = Cells::new(self);
        let (mut start, mut index) = (base, first);
        loop {
            let found = match self.read_header(start) {
                Ok((header, pos, _)) => Some((header, pos)),
                Err(Stop::Io(e)) => return Err(e),
                Err(Stop::Extent(_, reason)) => {
                    let next = self.shared.next_header(start, confirm);
                    let (last, end) = next.as_ref().map_or((committed, confirm), |(header, _)| {
                        (LogIndex(header.id.index.0.max(1) - 1), header.start)
                    });
                    self.note_damage((index, last), (start, end), &reason);
                    next
                }
            };
            let Some((header, pos)) = found else {
                cells.write().or_else(io)?;
                return Ok(start);
            };
            cells.push(&header, pos).or_else(io)?;
            if header.end() >= confirm {
                cells.write().or_else(io)?;
                return Ok(header.start);
            }
            (start, index) = (header.end(), header.id.index.next());
        }
    }

    /// Whether the cell of an entry says that the entry was written at the end of the log.
    pub(super) fn was_written(&self, next: LogIndex) -> Result<bool, OpenError> {
        let index_dir = self.config.raft_index_dir();
        let cell = self.shared.index.get(next).map_err(at(&index_dir))?;
        let segments = &self.shared.segments;
        let end = self.tail.end;
        let behind_blank = segments.base_of(end) + segments.bytes;
        Ok(cell.is_some_and(|cell| [end, behind_blank].contains(&cell.header)))
    }

    /// Moves to the end of the log, writing the cells of the entries found, and counts them.
    pub(super) fn scan(&mut self) -> Result<u64, OpenError> {
        let mut entries = 0;
        let mut tail = self.tail;
        let mut cells = Cells::new(self);
        let stopped = loop {
            let one = self.read_extent(tail.end).and_then(|(header, pos)| {
                tail.check_stored(&header)
                    .map_err(|source| Stop::Extent(pos, source))?;
                cells.push(&header, pos)?;
                Ok(header)
            });
            match one {
                Ok(header) => tail.advance(&header),
                Err(stop) => break stop,
            }
            entries += 1;
        };
        if let Stop::Io(e) = stopped {
            return Err(e);
        }
        match cells.write() {
            Err(Stop::Io(e)) => return Err(e),
            Err(Stop::Extent(..)) | Ok(()) => {}
        }
        if let Stop::Extent(at, reason) = stopped
            && reason != ExtentError::NoHeader
        {
            tracing::warn!(%at, %reason, "the log was cut short by a crash");
        }
        self.tail = tail;
        Ok(entries)
    }

    /// The header of the extent that starts at `start`, where its record is, and its size.
    fn read_header(&self, start: PhyOffset) -> Result<(Header, PhyOffset, u64), Stop> {
        let segment_bytes = self.shared.segments.bytes;
        let mut pos = start;
        let mut head = self.read(pos, BLANK_LEN as u64)?;
        if let Peek::Blank { size } = record::peek(&head) {
            let next = self.shared.segments.base_of(start) + segment_bytes;
            if size as u64 != next - start {
                return Err(Stop::Extent(pos, ExtentError::NoHeader));
            }
            pos = next;
            head = self.read(pos, BLANK_LEN as u64)?;
        }
        let Peek::Record { size } = record::peek(&head) else {
            return Err(Stop::Extent(pos, ExtentError::NoHeader));
        };
        let size = size as u64;
        if place(pos, size, segment_bytes) != pos || size > self.shared.max_extent_bytes {
            return Err(Stop::Extent(pos, ExtentError::NoHeader));
        }
        let bytes = self.read(pos, size)?;
        match Header::decode(&bytes, self.config.generation, pos) {
            Ok((header, _)) => Ok((header, pos, size)),
            Err(source) => Err(Stop::Extent(pos, source)),
        }
    }

    /// The extent that starts at `start`, verified as a whole but for what it follows: its header
    /// and where the header's record is.
    fn read_extent(&self, start: PhyOffset) -> Result<(Header, PhyOffset), Stop> {
        let segment_bytes = self.shared.segments.bytes;
        let (header, pos, _) = self.read_header(start)?;
        if u64::from(header.len) >= 2 * segment_bytes {
            return Err(Stop::Extent(pos, ExtentError::Header("impossible length")));
        }
        let mut parts = Vec::with_capacity(2);
        let mut from = start;
        let end = start + u64::from(header.len);
        while from < end {
            let next = self.shared.segments.base_of(from) + segment_bytes;
            let bytes = self.read(from, end.min(next) - from)?;
            parts.push(Part { pos: from, bytes });
            from = next;
        }
        let source = |source| Stop::Extent(start, source);
        verify(&parts, self.config.generation, segment_bytes).map_err(source)
    }

    /// Reads a range of one segment. What is not there has no header.
    fn read(&self, pos: PhyOffset, len: u64) -> Result<Bytes, Stop> {
        let nothing = || Stop::Extent(pos, ExtentError::NoHeader);
        let segment = self.shared.segments.at(pos).ok_or_else(nothing)?;
        let within = pos - segment.base;
        if within + len > self.shared.segments.bytes {
            return Err(nothing());
        }
        let mut bytes = vec![0; usize::try_from(len).expect("addresses have 64 bits")];
        let path = self.shared.segments.path(segment.base);
        let read = segment
            .file
            .read_at(within, &mut bytes)
            .map_err(at(&path))?;
        if read < bytes.len() {
            return Err(nothing());
        }
        Ok(bytes.into())
    }

    /// Whether nothing is written at `pos`.
    pub(super) fn is_clean_at(&self, pos: PhyOffset) -> Result<bool, OpenError> {
        match self.read(pos, BLANK_LEN as u64) {
            Ok(bytes) => Ok(bytes.iter().all(|&byte| byte == 0)),
            Err(Stop::Extent(..)) => Ok(true),
            Err(Stop::Io(e)) => Err(e),
        }
    }

    /// Zeros what a crash left behind the end, and says how much that was.
    pub(super) fn clean_rest(&self) -> Result<u64, OpenError> {
        let segments = &self.shared.segments;
        let end = self.tail.end;
        let Some(segment) = segments.at(end) else {
            return Ok(0);
        };
        let path = segments.path(segment.base);
        let mut dirty_end = end;
        let mut pos = end;
        let mut buf = vec![0; STEP_BYTES];
        loop {
            let read = segment
                .file
                .read_at(pos - segment.base, &mut buf)
                .map_err(at(&path))?;
            pos = pos + read as u64;
            if buf[..read].iter().any(|&byte| byte != 0) {
                dirty_end = pos;
            }
            if read == 0 || pos - dirty_end >= CLEAN_BYTES {
                break;
            }
        }
        if dirty_end > end {
            segments
                .zero(end, dirty_end)
                .and_then(|()| segment.file.sync())
                .map_err(at(&path))?;
        }
        Ok(dirty_end - end)
    }

    /// The file that a position lies in, and where in it.
    pub(super) fn place_of(&self, pos: PhyOffset) -> (PathBuf, u64) {
        let base = self.shared.segments.base_of(pos);
        (self.shared.segments.path(base), pos - base)
    }
}

/// Why reading on is not possible.
enum Stop {
    Extent(PhyOffset, ExtentError),
    Io(OpenError),
}

impl From<OpenError> for Stop {
    fn from(e: OpenError) -> Self {
        Self::Io(e)
    }
}

/// Cells on their way into the raft index.
struct Cells<'a> {
    index: &'a RaftIndex,
    dir: PathBuf,
    first: LogIndex,
    cells: Vec<Cell>,
}

impl<'a> Cells<'a> {
    fn new(opening: &'a Opening<'_>) -> Self {
        Self {
            index: &opening.shared.index,
            dir: opening.config.raft_index_dir(),
            first: LogIndex(0),
            cells: Vec::new(),
        }
    }

    fn push(&mut self, header: &Header, pos: PhyOffset) -> Result<(), Stop> {
        let index = header.id.index;
        if self.cells.len() >= CELLS_STEP || index.0 != self.first.0 + self.cells.len() as u64 {
            self.write()?;
            self.first = index;
        }
        self.cells.push(Cell {
            header: pos,
            len: header.len,
            term: header.id.term,
        });
        Ok(())
    }

    fn write(&mut self) -> Result<(), Stop> {
        self.index
            .put(self.first, &self.cells)
            .map_err(at(&self.dir))?;
        self.cells.clear();
        Ok(())
    }
}
