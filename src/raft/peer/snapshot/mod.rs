//! Sending a snapshot to a node that needs entries which have left the log.
//!
//! It has a connection of its own, on which the sender asks and the receiver answers, in order: an
//! [`Offer`]; [`Chunk`]s of raw bytes, a few of them unanswered at a time; and, when all is there, a
//! finish, after which the receiver installs what it has. That takes it off the network for a moment.
//! The sender hears of it with its next offer of the same snapshot.

mod receive;
mod send;

use bytes::BufMut;
use rmq_store::{Outline, Part};

use super::messages::{DecodeError, Message, Reader};
use crate::raft::types::Vote;

pub(in crate::raft) use receive::{Left, Receiver};
pub(super) use receive::{SENDER_SILENCE_LIMIT, tidy};
pub(in crate::raft) use send::Throttle;
pub(super) use send::{Sent, send};

/// Bytes of a chunk at most.
const CHUNK_BYTES: usize = 1 << 20;

/// What a leader has to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) vote: Vote,
    pub(super) outline: Outline,
    /// Bytes of what goes with the log.
    pub(super) rest_bytes: u64,
}

impl Message for Offer {
    fn encode(&self, out: &mut Vec<u8>) {
        self.vote.encode(out);
        self.outline.encode(out);
        out.put_u64(self.rest_bytes);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let vote = Vote::decode(from)?;
        let mut outline = from.bytes(Outline::BYTES)?;
        let outline = Outline::decode(&mut outline).map_err(|e| DecodeError::Invalid {
            field: "outline",
            reason: e.to_string(),
        })?;
        Ok(Self {
            vote,
            outline,
            rest_bytes: from.u64()?,
        })
    }
}

/// How much of a part is there from an earlier transfer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resumed {
    /// Where the part goes on.
    pub(super) at: u64,
    /// Bytes that need not be sent again, if the sender has the same.
    pub(super) kept: u64,
    /// CRC-32C of the last `compared` bytes before `at`.
    pub(super) compared: u64,
    pub(super) crc: u32,
}

impl Message for Resumed {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.at);
        out.put_u64(self.kept);
        out.put_u64(self.compared);
        out.put_u32(self.crc);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            at: from.u64()?,
            kept: from.u64()?,
            compared: from.u64()?,
            crc: from.u32()?,
        })
    }
}

/// The answer to an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OfferAnswer {
    /// The receiver knows of a later leader.
    Stale(Vote),
    /// The receiver's log has all of it.
    Have(Vote),
    /// The receiver takes it, from where the log and the raft index go on.
    Send { log: Resumed, index: Resumed },
}

impl Message for OfferAnswer {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stale(vote) => {
                out.put_u8(0);
                vote.encode(out);
            }
            Self::Have(vote) => {
                out.put_u8(1);
                vote.encode(out);
            }
            Self::Send { log, index } => {
                out.put_u8(2);
                log.encode(out);
                index.encode(out);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8()? {
            0 => Self::Stale(Vote::decode(from)?),
            1 => Self::Have(Vote::decode(from)?),
            2 => Self::Send {
                log: Resumed::decode(from)?,
                index: Resumed::decode(from)?,
            },
            value => {
                return Err(DecodeError::Field {
                    field: "answer to an offer",
                    value: value.into(),
                });
            }
        })
    }
}

/// Goes with raw bytes of a snapshot: where they belong. The next bytes of their part, or its first
/// ones to have it sent again from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// `None` for what goes with the log.
    pub(super) part: Option<Part>,
    pub(super) at: u64,
    /// CRC-32C of the bytes.
    pub(super) crc: u32,
}

impl Message for Chunk {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(match self.part {
            Some(Part::Log) => 0,
            Some(Part::Index) => 1,
            None => 2,
        });
        out.put_u64(self.at);
        out.put_u32(self.crc);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let part = match from.u8()? {
            0 => Some(Part::Log),
            1 => Some(Part::Index),
            2 => None,
            value => {
                return Err(DecodeError::Field {
                    field: "part",
                    value: value.into(),
                });
            }
        };
        Ok(Self {
            part,
            at: from.u64()?,
            crc: from.u32()?,
        })
    }
}

#[cfg(test)]
mod tests;
