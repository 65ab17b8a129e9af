//! The extent: what one Raft entry is on disk.
//!
//! An extent is a header record and the message records of its entry, all of them classic records,
//! with blanks where a record does not fit its segment (`docs/disk-format.md`). This file lays out
//! and reads the header, and verifies an extent as a whole; it does no I/O.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
pub use rmq_wire::name::RAFT_LOG_TOPIC;
use rmq_wire::record::{self, BLANK_LEN, NewRecord, Peek, Record};
use thiserror::Error;

use crate::types::{EntryId, EntryKind, LogIndex, PhyOffset, QueueOffset, Run, StoredEntry, Term};

const VERSION: u8 = 1;
/// Bytes of the header's body before its runs.
const FIXED_LEN: usize = 68;
/// Bytes of a run without its topic.
const RUN_FIXED_LEN: usize = 18;
/// Bytes of the header record around its body.
const AROUND_BODY: usize = record::MIN_LEN + RAFT_LOG_TOPIC.len();

/// Why bytes are not the extent that they should be.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ExtentError {
    #[error("no extent header")]
    NoHeader,
    #[error("extent header: {0}")]
    Header(&'static str),
    #[error("extent starts at {found}, the log ends at {expected}")]
    Start {
        found: PhyOffset,
        expected: PhyOffset,
    },
    #[error("extent has {found} bytes, its header says {expected}")]
    Length { found: u64, expected: u64 },
    #[error("entry {found} does not follow {last}")]
    Order { found: EntryId, last: EntryId },
    #[error("extent checksum is {found:08x}, its header says {expected:08x}")]
    Checksum { found: u32, expected: u32 },
    #[error("at {at}: {what}")]
    Framing { at: PhyOffset, what: &'static str },
}

/// The header of an extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) id: EntryId,
    pub(crate) kind: EntryKind,
    /// Term of the entry before; 0 if there is none.
    pub(crate) prev_term: Term,
    pub(crate) store_timestamp: i64,
    /// Start of the extent, which is where the header is or where a blank before it is.
    pub(crate) start: PhyOffset,
    /// Bytes from `start` on, all blanks included.
    pub(crate) len: u32,
    pub(crate) record_count: u32,
    /// CRC-32C of everything that follows the header record.
    pub(crate) payload_crc: u32,
    pub(crate) runs: Vec<Run>,
    pub(crate) meta: Bytes,
}

/// Bytes of the header record of an entry with these runs and this much meta.
pub(crate) fn header_len(runs: &[Run], meta_len: usize) -> usize {
    let runs: usize = runs.iter().map(|run| RUN_FIXED_LEN + run.topic.len()).sum();
    AROUND_BODY + FIXED_LEN + runs + meta_len
}

/// Where a record of `len` bytes is put when `pos` is the first free place: there, or in the next
/// segment if it would leave no room for a blank's head.
pub(crate) fn place(pos: PhyOffset, len: u64, segment_bytes: u64) -> PhyOffset {
    let left = segment_bytes - pos.0 % segment_bytes;
    if len + BLANK_LEN as u64 <= left {
        pos
    } else {
        pos + left
    }
}

impl Header {
    pub(crate) fn end(&self) -> PhyOffset {
        self.start + u64::from(self.len)
    }

    /// The header record, to stand at `pos`.
    ///
    /// # Panics
    ///
    /// If it would have 2 GiB; append refuses such entries before.
    pub(crate) fn encode(&self, generation: i32, pos: PhyOffset) -> Vec<u8> {
        let mut body = Vec::with_capacity(header_len(&self.runs, self.meta.len()));
        body.put_u8(VERSION);
        body.put_u8(self.kind as u8);
        body.put_u16(0);
        body.put_u64(self.id.term.0);
        body.put_u64(self.id.node);
        body.put_u64(self.id.index.0);
        body.put_u64(self.prev_term.0);
        body.put_i64(self.store_timestamp);
        body.put_u64(self.start.0);
        body.put_u32(self.len);
        body.put_u32(self.record_count);
        body.put_u32(self.payload_crc);
        body.put_u32(u32::try_from(self.runs.len()).expect("runs are fewer than records"));
        for run in &self.runs {
            body.put_u16(u16::try_from(run.topic.len()).expect("topics are short"));
            body.put_slice(run.topic.as_bytes());
            body.put_i32(run.queue_id);
            body.put_u64(run.first.0);
            body.put_u32(run.count);
        }
        body.put_slice(&self.meta);

        let nobody = ([0, 0, 0, 0], 0).into();
        let new = NewRecord {
            born_timestamp: self.store_timestamp,
            ..NewRecord::new(nobody, RAFT_LOG_TOPIC, generation, &body)
        };
        let mut out = Vec::with_capacity(new.encoded_len());
        new.encode(&mut out)
            .expect("append refuses headers that are too long");
        record::seal(
            &mut out,
            self.id.index.as_i64(),
            pos.as_i64(),
            self.store_timestamp,
        );
        out
    }

    /// Reads the header record at the head of `bytes`, which lies at `pos`, and its size.
    ///
    /// Every byte of the record is checked: what was read, written again, must give it.
    pub(crate) fn decode(
        bytes: &Bytes,
        generation: i32,
        pos: PhyOffset,
    ) -> Result<(Self, usize), ExtentError> {
        let Peek::Record { size } = record::peek(bytes) else {
            return Err(ExtentError::NoHeader);
        };
        if size > bytes.len() {
            return Err(ExtentError::Header("is longer than what there is"));
        }
        let record = bytes.slice(..size);
        let view = Record::decode(&record).map_err(|_| ExtentError::NoHeader)?;
        if view.topic != RAFT_LOG_TOPIC || view.queue_id != generation {
            return Err(ExtentError::NoHeader);
        }
        if !view.crc_matches() {
            return Err(ExtentError::Header("wrong checksum"));
        }
        if view.physical_offset != pos.as_i64() {
            let what = "a header that says another position";
            return Err(ExtentError::Framing { at: pos, what });
        }
        let header = Self::decode_body(record.slice_ref(view.body))?;
        if header.encode(generation, pos) != record {
            return Err(ExtentError::Header(
                "fields disagree with the record around them",
            ));
        }
        Ok((header, size))
    }

    fn decode_body(mut body: Bytes) -> Result<Self, ExtentError> {
        let bad = ExtentError::Header;
        if body.len() < FIXED_LEN {
            return Err(bad("too short"));
        }
        if body.get_u8() != VERSION {
            return Err(bad("unknown version"));
        }
        let kind = EntryKind::from_u8(body.get_u8()).ok_or_else(|| bad("unknown kind"))?;
        if body.get_u16() != 0 {
            return Err(bad("unknown flags"));
        }
        let (term, node, index) = (body.get_u64(), body.get_u64(), body.get_u64());
        let mut header = Self {
            id: EntryId {
                term: Term(term),
                node,
                index: LogIndex(index),
            },
            kind,
            prev_term: Term(body.get_u64()),
            store_timestamp: body.get_i64(),
            start: PhyOffset(body.get_u64()),
            len: body.get_u32(),
            record_count: body.get_u32(),
            payload_crc: body.get_u32(),
            runs: Vec::new(),
            meta: Bytes::new(),
        };
        let runs = body.get_u32();
        if i64::try_from(index).is_err() || i64::try_from(term).is_err() {
            return Err(bad("index or term out of range"));
        }
        if i64::try_from(header.start.0).is_err() {
            return Err(bad("start out of range"));
        }
        let mut queued = 0_u64;
        for _ in 0..runs {
            let run = Self::decode_run(&mut body).ok_or_else(|| bad("bad run"))?;
            queued += u64::from(run.count);
            header.runs.push(run);
        }
        if queued > u64::from(header.record_count) {
            return Err(bad("more queue offsets than records"));
        }
        header.meta = body;
        Ok(header)
    }

    fn decode_run(body: &mut Bytes) -> Option<Run> {
        let topic_len = usize::from(body.try_get_u16().ok()?);
        if body.len() < topic_len + RUN_FIXED_LEN - 2 {
            return None;
        }
        let topic = Arc::from(std::str::from_utf8(&body.split_to(topic_len)).ok()?);
        let run = Run {
            topic,
            queue_id: body.get_i32(),
            first: QueueOffset(body.get_u64()),
            count: body.get_u32(),
        };
        let end = run.first.0.checked_add(run.count.into())?;
        (run.count > 0 && i64::try_from(end).is_ok()).then_some(run)
    }

    pub(crate) fn into_stored(self) -> StoredEntry {
        StoredEntry {
            id: self.id,
            kind: self.kind,
            start: self.start,
            end: self.end(),
            store_timestamp: self.store_timestamp,
            record_count: self.record_count,
            runs: self.runs,
            meta: self.meta,
        }
    }
}

/// Bytes of an extent that lie in one segment.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) pos: PhyOffset,
    pub(crate) bytes: Bytes,
}

/// Cuts consecutive slices that start at `start` into one part for each segment.
pub(crate) fn split(start: PhyOffset, slices: &[Bytes], segment_bytes: u64) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::with_capacity(2);
    let mut pos = start;
    for slice in slices {
        let mut rest = slice.clone();
        while !rest.is_empty() {
            let left = segment_bytes - pos.0 % segment_bytes;
            let take = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
            let bytes = rest.split_to(take);
            match parts.last_mut() {
                // Slices cut elsewhere than at a segment's end are no case worth being quick at.
                Some(part) if !pos.0.is_multiple_of(segment_bytes) => {
                    part.bytes = [&part.bytes[..], &bytes].concat().into();
                }
                _ => parts.push(Part { pos, bytes }),
            }
            pos = pos + take as u64;
        }
    }
    parts
}

/// The end of the log, as the next extent has to fit it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tail {
    pub(crate) end: PhyOffset,
    /// First entry that lies in the log, purged or not. Among the purged ones there may be gaps.
    pub(crate) first: LogIndex,
    /// Last entry that lies in the log.
    pub(crate) last: Option<EntryId>,
    /// Last purged entry. It may be beyond `last`: the log goes on after it then.
    pub(crate) purged: Option<EntryId>,
    pub(crate) store_timestamp: i64,
}

impl Tail {
    /// The last entry, be it there or purged.
    pub(crate) fn last_id(&self) -> Option<EntryId> {
        if self.purged.map(|id| id.index) > self.last.map(|id| id.index) {
            self.purged
        } else {
            self.last
        }
    }

    /// Index of the first entry that is not purged, if there is one.
    pub(crate) fn first_index(&self) -> Option<LogIndex> {
        let after_purged = self
            .purged
            .map_or(LogIndex(0), |purged| purged.index.next());
        let first = self.first.max(after_purged);
        (first <= self.last?.index).then_some(first)
    }

    /// Whether an entry is there and not purged.
    pub(crate) fn holds(&self, index: LogIndex) -> bool {
        self.first_index().is_some_and(|first| first <= index)
            && self.last.is_some_and(|last| index <= last.index)
    }

    /// Whether the extent with this header can come next.
    pub(crate) fn check(&self, header: &Header) -> Result<(), ExtentError> {
        if header.start != self.end {
            return Err(ExtentError::Start {
                found: header.start,
                expected: self.end,
            });
        }
        let follows = |last: EntryId| {
            header.id.index == last.index.next()
                && header.prev_term == last.term
                && header.id.leader() >= last.leader()
        };
        match (self.last, self.last_id()) {
            (_, None) if header.prev_term == Term(0) => Ok(()),
            (Some(last), _) if follows(last) => Ok(()),
            (_, Some(last)) if follows(last) => Ok(()),
            (_, last) => Err(ExtentError::Order {
                found: header.id,
                last: last.unwrap_or_default(),
            }),
        }
    }

    /// Whether the extent with this header can come next in a log that is read again: one that is
    /// purged, or the first behind those, may have been appended where entries had been skipped.
    pub(crate) fn check_stored(&self, header: &Header) -> Result<(), ExtentError> {
        let Some(last) = self.last else { return Ok(()) };
        let skipped = self.purged.is_some_and(|purged| {
            last.index.next() < header.id.index && header.id.index <= purged.index.next()
        });
        if skipped && header.id.leader() >= last.leader() {
            Ok(())
        } else {
            self.check(header)
        }
    }

    /// Moves behind the extent with this header.
    pub(crate) fn advance(&mut self, header: &Header) {
        self.end = header.end();
        if self.last.is_none() {
            self.first = header.id.index;
        }
        self.last = Some(header.id);
        self.store_timestamp = header.store_timestamp;
    }
}

/// Verifies a whole extent, given in parts as [`split`] makes them: its header, its checksum, and
/// that its records and blanks are where a reader of the classic log expects them. Records are not
/// decoded. Returns the header and where its record is.
pub(crate) fn verify(
    parts: &[Part],
    generation: i32,
    segment_bytes: u64,
) -> Result<(Header, PhyOffset), ExtentError> {
    let first = parts.first().ok_or(ExtentError::NoHeader)?;
    let (head, rest) = match record::peek(&first.bytes) {
        Peek::Blank { .. } => {
            check_blank(first.pos, &first.bytes, segment_bytes)?;
            (parts.get(1).ok_or(ExtentError::NoHeader)?, &parts[2..])
        }
        _ => (first, &parts[1..]),
    };
    let (header, header_len) = Header::decode(&head.bytes, generation, head.pos)?;
    if header.start != first.pos {
        return Err(ExtentError::Start {
            found: header.start,
            expected: first.pos,
        });
    }
    let found: u64 = parts.iter().map(|part| part.bytes.len() as u64).sum();
    if found != u64::from(header.len) {
        return Err(ExtentError::Length {
            found,
            expected: header.len.into(),
        });
    }
    let payload = Part {
        pos: head.pos + header_len as u64,
        bytes: head.bytes.slice(header_len..),
    };

    let mut crc = 0;
    let mut records = 0_u32;
    let last = parts.len() - 1;
    for (i, part) in std::iter::once(&payload).chain(rest).enumerate() {
        crc = crc32c::crc32c_append(crc, &part.bytes);
        let is_last = parts.len() - rest.len() - 1 + i == last;
        records += check_framing(part, is_last, segment_bytes)?;
    }
    if crc != header.payload_crc {
        return Err(ExtentError::Checksum {
            found: crc,
            expected: header.payload_crc,
        });
    }
    if records != header.record_count {
        return Err(ExtentError::Header("wrong number of records"));
    }
    Ok((header, head.pos))
}

/// Counts the records of a part; all but the last part of an extent end with a blank.
fn check_framing(part: &Part, is_last: bool, segment_bytes: u64) -> Result<u32, ExtentError> {
    let mut records = 0;
    let mut at = 0;
    while at < part.bytes.len() {
        let (pos, rest) = (part.pos + at as u64, &part.bytes[at..]);
        let wrong = |what| Err(ExtentError::Framing { at: pos, what });
        match record::peek(rest) {
            Peek::Record { size } if size <= rest.len() => {
                if place(pos, size as u64, segment_bytes) != pos {
                    return wrong("a record that leaves no room for a blank");
                }
                let said = &rest[record::PHYSICAL_OFFSET_AT..][..8];
                if said != pos.0.to_be_bytes() {
                    return wrong("a record that says another position");
                }
                records += 1;
                at += size;
            }
            Peek::Blank { .. } if !is_last => {
                check_blank(pos, rest, segment_bytes)?;
                return Ok(records);
            }
            _ => return wrong("neither a record nor a blank"),
        }
    }
    if is_last {
        Ok(records)
    } else {
        let at = part.pos + at as u64;
        Err(ExtentError::Framing {
            at,
            what: "a segment that does not end with a blank",
        })
    }
}

/// A blank fills its segment with zeros: replicas are equal in these bytes too.
fn check_blank(pos: PhyOffset, bytes: &[u8], segment_bytes: u64) -> Result<(), ExtentError> {
    let left = segment_bytes - pos.0 % segment_bytes;
    let right = record::peek(bytes) == Peek::Blank { size: bytes.len() }
        && bytes.len() as u64 == left
        && bytes[BLANK_LEN..].iter().all(|&b| b == 0);
    if right {
        Ok(())
    } else {
        Err(ExtentError::Framing {
            at: pos,
            what: "a blank that does not fill its segment",
        })
    }
}
