//! From entries to the bytes of an append.
//!
//! An entry of this node's own is sealed here: it gets its positions, its queue offsets and its
//! timestamp, and with them its final bytes. An entry that another node sealed is verified.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use rmq_wire::record::{self, BLANK_LEN, Peek};
use thiserror::Error;

use crate::extent::{ExtentError, Header, Tail, header_len, place, split, verify};
use crate::queue_offsets::QueueOffsets;
use crate::raft_index::Cell;
use crate::reader::Shared;
use crate::segment::zero_slices;
use crate::types::{
    Batch, EntryId, EntryKind, LogIndex, NewEntry, PendingRecord, PhyOffset, Position, QueueOffset,
    Run, SealedCell,
};

/// Why entries were not appended.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Nothing was written; the log is as before.
    #[error("entry {id} has {bytes} bytes, an entry may have {max}")]
    TooLarge { id: EntryId, bytes: u64, max: u64 },
    /// Nothing was written; the log is as before.
    #[error("entry {id} cannot follow {last:?}")]
    Order { id: EntryId, last: Option<EntryId> },
    /// A sealed entry is not what it should be. Nothing was written; the log is as before.
    #[error("entry {id} is damaged or of another log: {source}")]
    Extent { id: EntryId, source: ExtentError },
    /// A sealed entry gives other queue offsets than this log would. Nothing was written.
    #[error(
        "entry {id} starts queue {topic}/{queue_id} at {found}, here its next offset is {expected}"
    )]
    QueueOffset {
        id: EntryId,
        topic: Arc<str>,
        queue_id: i32,
        found: QueueOffset,
        expected: QueueOffset,
    },
    /// The store has stopped writing, now or before. What was to be written may be there in part.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Bytes of an append; none of them crosses a segment's end.
#[derive(Debug)]
pub(crate) enum Piece {
    Owned(Vec<u8>),
    Shared(Bytes),
    /// A blank: its head, and its length in all.
    Blank([u8; BLANK_LEN], u64),
}

impl Piece {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Owned(bytes) => bytes.len() as u64,
            Self::Shared(bytes) => bytes.len() as u64,
            Self::Blank(_, len) => *len,
        }
    }

    pub(crate) fn slices<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        match self {
            Self::Owned(bytes) => out.push(IoSlice::new(bytes)),
            Self::Shared(bytes) => out.push(IoSlice::new(bytes)),
            Self::Blank(head, len) => {
                out.push(IoSlice::new(head));
                out.extend(zero_slices(len - head.len() as u64));
            }
        }
    }

    fn crc(&self, crc: u32) -> u32 {
        match self {
            Self::Owned(bytes) => crc32c::crc32c_append(crc, bytes),
            Self::Shared(bytes) => crc32c::crc32c_append(crc, bytes),
            Self::Blank(..) => {
                let mut slices = Vec::new();
                self.slices(&mut slices);
                slices
                    .iter()
                    .fold(crc, |crc, slice| crc32c::crc32c_append(crc, slice))
            }
        }
    }
}

/// What an append writes.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Index of the first entry; `None` if there is no entry.
    pub(crate) first: Option<LogIndex>,
    /// In the order of their positions, without gaps.
    pub(crate) pieces: Vec<Piece>,
    /// One for each entry.
    pub(crate) cells: Vec<Cell>,
    pub(crate) sealed: Vec<(Arc<SealedCell>, Vec<Position>)>,
    /// One for each entry, with the position of its record.
    pub(crate) headers: Vec<(Header, PhyOffset)>,
}

/// Entries on their way to the disk.
pub(crate) struct Gathered<'a> {
    shared: &'a Shared,
    queue_offsets: &'a mut QueueOffsets,
    /// End of the log with the entries gathered so far.
    pub(crate) tail: Tail,
    pub(crate) bytes: Output,
    /// Queue offsets taken so far.
    runs: Vec<Run>,
}

impl<'a> Gathered<'a> {
    pub(crate) fn new(shared: &'a Shared, queue_offsets: &'a mut QueueOffsets, tail: Tail) -> Self {
        Self {
            shared,
            queue_offsets,
            tail,
            bytes: Output::default(),
            runs: Vec::new(),
        }
    }

    /// Gives back the queue offsets that were taken.
    pub(crate) fn undo(self) {
        // From the last run on: a queue may have several, and the first one says where it was.
        for run in self.runs.iter().rev() {
            self.queue_offsets.undo(std::slice::from_ref(run));
        }
    }

    pub(crate) fn add(&mut self, entry: NewEntry, now_ms: i64) -> Result<(), AppendError> {
        let (header, pos) = match entry {
            NewEntry::Unsealed {
                id,
                kind,
                meta,
                batch,
            } => self.seal(id, kind, meta, batch, now_ms)?,
            NewEntry::Sealed { id, bytes } => self.verify(id, &bytes)?,
        };
        self.tail.advance(&header);
        self.bytes.first.get_or_insert(header.id.index);
        self.bytes.cells.push(Cell {
            header: pos,
            len: header.len,
            term: header.id.term,
        });
        self.runs.extend_from_slice(&header.runs);
        self.bytes.headers.push((header, pos));
        Ok(())
    }

    /// Decides everything that an entry of this node leaves open. Returns its header and where the
    /// header's record is.
    fn seal(
        &mut self,
        id: EntryId,
        kind: EntryKind,
        meta: Bytes,
        batch: Option<Batch>,
        now_ms: i64,
    ) -> Result<(Header, PhyOffset), AppendError> {
        let segment_bytes = self.shared.segments.bytes;
        let (records, cell) = match batch {
            Some(batch) => (batch.records, Some(batch.sealed)),
            None => (Vec::new(), None),
        };
        let last = self.tail.last_id();
        let mut header = Header {
            id,
            kind,
            prev_term: last.map(|last| last.term).unwrap_or_default(),
            // Clocks of leaders differ, and search by time wants an ordered log.
            store_timestamp: now_ms.max(self.tail.store_timestamp),
            start: self.tail.end,
            len: 0,
            record_count: u32::try_from(records.len()).unwrap_or(u32::MAX),
            payload_crc: 0,
            runs: Vec::new(),
            meta,
        };
        if self.tail.check(&header).is_err() {
            return Err(AppendError::Order { id, last });
        }
        let (queue_offsets, runs) = self.queue_offsets.take(&records);
        header.runs = runs;
        let header_len = header_len(&header.runs, header.meta.len()) as u64;
        let bytes = header_len + records.iter().map(|r| r.buf.len() as u64).sum::<u64>();
        let max = self.shared.max_extent_bytes;
        if bytes > max {
            self.queue_offsets.undo(&header.runs);
            return Err(AppendError::TooLarge { id, bytes, max });
        }

        let header_pos = place(header.start, header_len, segment_bytes);
        self.fill(header.start, header_pos);
        // The header has the checksum of what follows, so its own bytes come last.
        let header_piece = self.bytes.pieces.len();
        self.bytes.pieces.push(Piece::Owned(Vec::new()));
        let mut pos = header_pos + header_len;
        let mut positions = Vec::with_capacity(records.len());
        for (PendingRecord { mut buf, .. }, queue) in records.into_iter().zip(queue_offsets) {
            let whole = Peek::Record { size: buf.len() };
            assert_eq!(
                record::peek(&buf),
                whole,
                "a pending record is one whole record"
            );
            let phy = place(pos, buf.len() as u64, segment_bytes);
            self.fill(pos, phy);
            record::seal(
                &mut buf,
                queue.as_i64(),
                phy.as_i64(),
                header.store_timestamp,
            );
            positions.push(Position {
                phy,
                queue,
                store_timestamp: header.store_timestamp,
            });
            pos = phy + buf.len() as u64;
            self.bytes.pieces.push(Piece::Owned(buf));
        }
        let payload = &self.bytes.pieces[header_piece + 1..];
        header.payload_crc = payload.iter().fold(0, |crc, piece| piece.crc(crc));
        header.len = u32::try_from(pos - header.start).expect("an extent is below two segments");
        let record = header.encode(self.shared.generation, header_pos);
        assert_eq!(
            record.len() as u64,
            header_len,
            "a header is as long as was reckoned"
        );
        self.bytes.pieces[header_piece] = Piece::Owned(record);
        self.bytes.sealed.extend(cell.map(|cell| (cell, positions)));
        Ok((header, header_pos))
    }

    /// Puts a blank where a record is moved to the next segment.
    fn fill(&mut self, from: PhyOffset, to: PhyOffset) {
        if from != to {
            let size = u32::try_from(to - from).expect("a segment is below 2 GiB");
            self.bytes
                .pieces
                .push(Piece::Blank(record::blank(size), to - from));
        }
    }

    /// Checks an entry that another node sealed. Returns its header and where the header's record
    /// is.
    fn verify(&mut self, id: EntryId, bytes: &[Bytes]) -> Result<(Header, PhyOffset), AppendError> {
        let segment_bytes = self.shared.segments.bytes;
        let wrong = |source| AppendError::Extent { id, source };
        let parts = split(self.tail.end, bytes, segment_bytes);
        let (mut header, pos) =
            verify(&parts, self.shared.generation, segment_bytes).map_err(wrong)?;
        self.tail.check(&header).map_err(wrong)?;
        if header.id != id {
            return Err(wrong(ExtentError::Header("of another entry")));
        }
        if let Err(Run {
            topic,
            queue_id,
            first,
            ..
        }) = self.queue_offsets.follow(&header.runs)
        {
            let expected = self.queue_offsets.next(topic, *queue_id);
            let (topic, queue_id, found) = (Arc::clone(topic), *queue_id, *first);
            return Err(AppendError::QueueOffset {
                id,
                topic,
                queue_id,
                found,
                expected,
            });
        }
        self.bytes
            .pieces
            .extend(parts.into_iter().map(|part| Piece::Shared(part.bytes)));
        // Else the header, which is kept, would keep the whole entry.
        header.meta = Bytes::copy_from_slice(&header.meta);
        Ok((header, pos))
    }
}
