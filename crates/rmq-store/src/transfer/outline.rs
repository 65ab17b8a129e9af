//! What a transfer consists of, and how that is written: over the wire and in `install.intent`.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use crate::consume_queue::{MOST_UNITS, Slot, UNIT_BYTES, Unit};
use crate::raft_index::CELL_LEN;
use crate::types::{EntryId, LogIndex, PhyOffset, QueueOffset, Term, Vote};

const MAGIC: [u8; 4] = *b"rmqI";
const VERSION: u16 = 1;
/// magic, version, CRC-32C of all that follows.
const HEAD_LEN: usize = 4 + 2 + 4;

// The raft index has cells of the same size: there are no more entries either.
const _: () = assert!(CELL_LEN == UNIT_BYTES as u64);

/// Why bytes describe no transfer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TransferDecodeError {
    #[error("it ends before its last field")]
    Short,
    #[error("{0} bytes follow its last field")]
    Trailing(usize),
    #[error("it is no description of a transfer")]
    Magic,
    #[error("its layout has version {0}, this build reads {VERSION}")]
    Version(u16),
    #[error("its checksum is {actual:#010x}, it says {stated:#010x}")]
    Crc { stated: u32, actual: u32 },
    #[error("{0}")]
    Field(&'static str),
}

/// One of the two sorts of files that are sent as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Segments of the commit log. Positions are `PhyOffset`s.
    Log,
    /// Files of the raft index. Positions are bytes, 20 for each entry from entry 0 on.
    Index,
}

/// Which bytes a transfer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Generation of the genesis, see `StoreConfig`.
    pub generation: i32,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Start of the first segment that is sent.
    pub start: PhyOffset,
    /// Start of the first whole extent behind that; what is before it is history.
    pub base: PhyOffset,
    /// The last entry that cannot be read any more, if there is one. The extent at `base` follows.
    pub purged: Option<EntryId>,
    /// The last entry that is sent. It is committed and applied.
    pub last: EntryId,
    /// Where its extent ends.
    pub end: PhyOffset,
}

impl Outline {
    /// Bytes of the encoding.
    pub const BYTES: usize = 4 + 3 * 8 + 25 + 24 + 8;

    /// The range of a part that is sent.
    #[must_use]
    pub fn range(&self, part: Part) -> (u64, u64) {
        match part {
            Part::Log => (self.start.0, self.end.0),
            Part::Index => (
                self.first().0 * CELL_LEN,
                self.last.index.next().0 * CELL_LEN,
            ),
        }
    }

    /// The first entry that can be read.
    pub(crate) fn first(&self) -> LogIndex {
        self.purged.map_or(LogIndex(0), |id| id.index.next())
    }

    /// Appends the encoding, big endian: `generation i32 | segment bytes u64 | start u64 | base u64 |
    /// purged: u8 0 or 1, id | last: id | end u64`, an id being `term u64 | node u64 | index u64`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_i32(self.generation);
        out.put_u64(self.segment_bytes);
        out.put_u64(self.start.0);
        out.put_u64(self.base.0);
        out.put_u8(u8::from(self.purged.is_some()));
        put_id(out, self.purged.unwrap_or_default());
        put_id(out, self.last);
        out.put_u64(self.end.0);
    }

    /// Takes an outline from the front of `from`.
    ///
    /// # Errors
    /// Also for numbers that contradict each other.
    pub fn decode(from: &mut &[u8]) -> Result<Self, TransferDecodeError> {
        if from.len() < Self::BYTES {
            return Err(TransferDecodeError::Short);
        }
        let (generation, segment_bytes) = (from.get_i32(), from.get_u64());
        let (start, base) = (PhyOffset(from.get_u64()), PhyOffset(from.get_u64()));
        let is_purged = from.get_u8() != 0;
        let purged = take_id(from);
        let outline = Self {
            generation,
            segment_bytes,
            start,
            base,
            purged: is_purged.then_some(purged),
            last: take_id(from),
            end: PhyOffset(from.get_u64()),
        };
        outline.check()?;
        Ok(outline)
    }

    fn check(&self) -> Result<(), TransferDecodeError> {
        let bad = |what| Err(TransferDecodeError::Field(what));
        if self.segment_bytes == 0 || i32::try_from(self.segment_bytes).is_err() {
            return bad("its segments have an impossible size");
        }
        if !self.start.0.is_multiple_of(self.segment_bytes) {
            return bad("it starts within a segment");
        }
        if self.start > self.base || self.base > self.end || i64::try_from(self.end.0).is_err() {
            return bad("its positions are not in order");
        }
        if self.last.index.0 > MOST_UNITS
            || self.purged.is_some_and(|id| id.index > self.last.index)
        {
            return bad("its entries are not in order");
        }
        if (self.first() > self.last.index) != (self.base == self.end) {
            return bad("its entries do not fit its positions");
        }
        Ok(())
    }
}

/// Where a queue ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEnd {
    pub topic: Arc<str>,
    pub queue_id: i32,
    /// Behind the queue's last message.
    pub next: QueueOffset,
    /// Where that message was, if it has left the log: nothing in the log tells of it then.
    pub gone: Option<Unit>,
}

/// What belongs to the bytes of a transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rest {
    /// The vote of the sender.
    pub vote: Option<Vote>,
    /// Content of the file of the applied state.
    pub applied: Bytes,
    /// Content of the genesis record, for a log that stands on an adopted history.
    pub genesis: Option<Bytes>,
    /// All queues that ever had a message, as they are at the end.
    pub queues: Vec<QueueEnd>,
}

impl Rest {
    /// Big endian: `vote: u8 0 or 1, term u64, node u64, u8 committed | applied: length u64, bytes | genesis: u8 0 or 1, length u32, bytes | queues u32 ×
    /// (length u16, topic | queue id i32 | next u64 | u8 0 or 1, unit)`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let fits = "is small";
        let mut out = Vec::with_capacity(64 + self.applied.len() + 64 * self.queues.len());
        let vote = self.vote.unwrap_or_default();
        out.put_u8(u8::from(self.vote.is_some()));
        out.put_u64(vote.term.0);
        out.put_u64(vote.node);
        out.put_u8(u8::from(vote.committed));
        out.put_u64(self.applied.len() as u64);
        out.put_slice(&self.applied);
        out.put_u8(u8::from(self.genesis.is_some()));
        let genesis = self.genesis.as_deref().unwrap_or_default();
        out.put_u32(u32::try_from(genesis.len()).expect(fits));
        out.put_slice(genesis);
        out.put_u32(u32::try_from(self.queues.len()).expect(fits));
        for queue in &self.queues {
            out.put_u16(u16::try_from(queue.topic.len()).expect(fits));
            out.put_slice(queue.topic.as_bytes());
            out.put_i32(queue.queue_id);
            out.put_u64(queue.next.0);
            out.put_u8(u8::from(queue.gone.is_some()));
            if let Some(unit) = &queue.gone {
                out.put_slice(&unit.encode());
            }
        }
        out
    }

    /// Reads what [`Rest::encode`] wrote, and nothing else.
    pub fn decode(mut from: Bytes) -> Result<Self, TransferDecodeError> {
        use TransferDecodeError::{Field, Short, Trailing};
        let from = &mut from;
        let has_vote = from.try_get_u8().map_err(|_| Short)? != 0;
        let vote = Vote {
            term: Term(from.try_get_u64().map_err(|_| Short)?),
            node: from.try_get_u64().map_err(|_| Short)?,
            committed: from.try_get_u8().map_err(|_| Short)? != 0,
        };
        let len = from.try_get_u64().map_err(|_| Short)?;
        let applied = take(from, len)?;
        let has_genesis = from.try_get_u8().map_err(|_| Short)? != 0;
        let len = from.try_get_u32().map_err(|_| Short)?;
        let genesis = take(from, len.into())?;
        let count = from.try_get_u32().map_err(|_| Short)?;
        let mut queues = Vec::new();
        for _ in 0..count {
            let len = from.try_get_u16().map_err(|_| Short)?;
            let topic = take(from, len.into())?;
            let topic = std::str::from_utf8(&topic).map_err(|_| Field("a topic is not UTF-8"))?;
            // A topic becomes a path.
            rmq_wire::name::check_topic(topic).map_err(|_| Field("a topic has no valid name"))?;
            let queue_id = from.try_get_i32().map_err(|_| Short)?;
            let next = QueueOffset(from.try_get_u64().map_err(|_| Short)?);
            let gone = match from.try_get_u8().map_err(|_| Short)? {
                0 => None,
                _ => {
                    let unit = take(from, UNIT_BYTES as u64)?;
                    match Slot::decode(unit[..].try_into().expect("of its length")) {
                        Slot::Message(unit) => Some(unit),
                        _ => return Err(Field("a queue ends with no message")),
                    }
                }
            };
            if queue_id < 0 || next == QueueOffset(0) || next.0 > MOST_UNITS {
                return Err(Field("a queue has an impossible end"));
            }
            queues.push(QueueEnd {
                topic: topic.into(),
                queue_id,
                next,
                gone,
            });
        }
        if from.has_remaining() {
            return Err(Trailing(from.len()));
        }
        Ok(Self {
            vote: has_vote.then_some(vote),
            applied,
            genesis: has_genesis.then_some(genesis),
            queues,
        })
    }
}

/// Content of `install.intent`: `"rmqI" | version u16 | crc32c u32 | outline | rest`.
pub(crate) fn encode_intent(outline: &Outline, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + Outline::BYTES + rest.len());
    out.put_slice(&MAGIC);
    out.put_u16(VERSION);
    out.put_u32(0);
    outline.encode(&mut out);
    out.put_slice(rest);
    let crc = crc32c::crc32c(&out[HEAD_LEN..]);
    out[HEAD_LEN - 4..HEAD_LEN].copy_from_slice(&crc.to_be_bytes());
    out
}

pub(crate) fn decode_intent(mut from: Bytes) -> Result<(Outline, Rest), TransferDecodeError> {
    if from.len() < HEAD_LEN || from[..MAGIC.len()] != MAGIC {
        return Err(TransferDecodeError::Magic);
    }
    from.advance(MAGIC.len());
    let version = from.get_u16();
    if version != VERSION {
        return Err(TransferDecodeError::Version(version));
    }
    let stated = from.get_u32();
    let actual = crc32c::crc32c(&from);
    if stated != actual {
        return Err(TransferDecodeError::Crc { stated, actual });
    }
    let outline = Outline::decode(&mut &from[..])?;
    from.advance(Outline::BYTES);
    Ok((outline, Rest::decode(from)?))
}

fn take(from: &mut Bytes, len: u64) -> Result<Bytes, TransferDecodeError> {
    match usize::try_from(len) {
        Ok(len) if len <= from.len() => Ok(from.split_to(len)),
        _ => Err(TransferDecodeError::Short),
    }
}

fn put_id(out: &mut Vec<u8>, id: EntryId) {
    out.put_u64(id.term.0);
    out.put_u64(id.node);
    out.put_u64(id.index.0);
}

fn take_id(from: &mut &[u8]) -> EntryId {
    EntryId {
        term: Term(from.get_u64()),
        node: from.get_u64(),
        index: LogIndex(from.get_u64()),
    }
}
