//! openraft's messages.

use bytes::{BufMut, Bytes};
use openraft::raft::{StreamAppendError, TransferLeaderError};

use super::{DecodeError, Message, Reader};
use crate::raft::types::{
    Body, LeaderId, LogEntry, LogId, SealedRef, TypeConfig, Vote, decode_membership,
    encode_membership,
};

pub(in crate::raft::peer) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(in crate::raft::peer) type AppendResult = Result<Option<LogId>, StreamAppendError<TypeConfig>>;
pub(in crate::raft::peer) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(in crate::raft::peer) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
pub(in crate::raft::peer) type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
pub(in crate::raft::peer) type TransferResult = Result<(), TransferLeaderError<TypeConfig>>;

impl Message for LogId {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.leader_id.term);
        out.put_u64(self.leader_id.node_id);
        out.put_u64(self.index);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            leader_id: LeaderId {
                term: from.u64()?,
                node_id: from.u64()?,
            },
            index: from.u64()?,
        })
    }
}

impl Message for Vote {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.leader_id.term);
        out.put_u64(self.leader_id.node_id);
        out.put_u8(u8::from(self.committed));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            leader_id: LeaderId {
                term: from.u64()?,
                node_id: from.u64()?,
            },
            committed: from.flag("vote committed")?,
        })
    }
}

impl Message for VoteRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        self.vote.encode(out);
        self.last_log_id.encode(out);
        out.put_u8(u8::from(self.leadership_transfer));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut request = Self::new(Vote::decode(from)?, Option::decode(from)?);
        request.leadership_transfer = from.flag("leadership transfer")?;
        Ok(request)
    }
}

impl Message for VoteResponse {
    fn encode(&self, out: &mut Vec<u8>) {
        self.vote.encode(out);
        self.last_log_id.encode(out);
        out.put_u8(u8::from(self.vote_granted));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self::new(
            Vote::decode(from)?,
            Option::decode(from)?,
            from.flag("vote granted")?,
        ))
    }
}

impl Message for TransferRequest {
    fn encode(&self, out: &mut Vec<u8>) {
        self.from_leader().encode(out);
        out.put_u64(*self.to_node_id());
        self.last_log_id().copied().encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self::new(
            Vote::decode(from)?,
            from.u64()?,
            Option::decode(from)?,
        ))
    }
}

impl Message for TransferResult {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Ok(()) => out.put_u8(0),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                out.put_u8(1);
                expected.encode(out);
                actual.encode(out);
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                out.put_u8(2);
                expected.encode(out);
                actual.encode(out);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8()? {
            0 => Ok(()),
            1 => Err(TransferLeaderError::VoteChanged {
                expected: Vote::decode(from)?,
                actual: Vote::decode(from)?,
            }),
            2 => Err(TransferLeaderError::LogNotFlushed {
                expected: Option::decode(from)?,
                actual: Option::decode(from)?,
            }),
            value => {
                return Err(DecodeError::Field {
                    field: "transfer result",
                    value: value.into(),
                });
            }
        })
    }
}

impl Message for AppendResult {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Ok(matching) => {
                out.put_u8(0);
                matching.encode(out);
            }
            Err(StreamAppendError::Conflict(at)) => {
                out.put_u8(1);
                at.encode(out);
            }
            Err(StreamAppendError::HigherVote(vote)) => {
                out.put_u8(2);
                vote.encode(out);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8()? {
            0 => Ok(Option::decode(from)?),
            1 => Err(StreamAppendError::Conflict(LogId::decode(from)?)),
            2 => Err(StreamAppendError::HigherVote(Vote::decode(from)?)),
            value => {
                return Err(DecodeError::Field {
                    field: "append result",
                    value: value.into(),
                });
            }
        })
    }
}

/// The bytes that an entry takes in an append's head, its membership apart.
const ENTRY_LEN: usize = 24 + 4 + 4;

/// An append or heartbeat as it was received.
#[derive(Debug)]
pub(in crate::raft::peer) struct Append {
    pub(in crate::raft::peer) request: AppendRequest,
    /// The last entry of the leader's log when it sent this: what a node that may have lost entries
    /// has to have before it votes.
    pub(in crate::raft::peer) leader_last: Option<LogId>,
}

/// Splits an append into a head and the raw extents of its entries:
/// `vote | leader's last | previous | commit | entries u32 × (log id, raw length u32,
/// membership length u32, membership)`.
pub(in crate::raft::peer) fn encode_append(
    request: &AppendRequest,
    leader_last: Option<LogId>,
) -> (Vec<u8>, Vec<Bytes>) {
    let mut head = Vec::with_capacity(128 + request.entries.len() * ENTRY_LEN);
    let mut raw = Vec::with_capacity(request.entries.len());
    request.vote.encode(&mut head);
    leader_last.encode(&mut head);
    request.prev_log_id.encode(&mut head);
    request.leader_commit.encode(&mut head);
    head.put_u32(wire_len(request.entries.len()));
    for entry in &request.entries {
        let Body::Sealed(extent) = &entry.body else {
            unreachable!("entry {} was read from the log, so it is sealed", entry.id);
        };
        let membership = extent.membership.as_ref().map(encode_membership);
        entry.id.encode(&mut head);
        head.put_u32(wire_len(extent.len()));
        head.put_u32(wire_len(membership.as_ref().map_or(0, Bytes::len)));
        head.put_slice(&membership.unwrap_or_default());
        raw.extend_from_slice(&extent.raw);
    }
    (head, raw)
}

fn wire_len(len: usize) -> u32 {
    u32::try_from(len).expect("a frame is far shorter than 4 GiB")
}

/// Puts an append together again. The extents share the memory of `raw`.
pub(in crate::raft::peer) fn decode_append(
    head: &[u8],
    mut raw: Bytes,
) -> Result<Append, DecodeError> {
    let from = &mut Reader(head);
    let vote = Vote::decode(from)?;
    let leader_last = Option::decode(from)?;
    let prev_log_id = Option::decode(from)?;
    let leader_commit = Option::decode(from)?;
    let count = from.u32()? as usize;
    if count > from.0.len() / ENTRY_LEN {
        return Err(DecodeError::Short);
    }
    let actual = raw.len();
    let mut stated = 0u64;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let id = LogId::decode(from)?;
        let len = from.u32()?;
        stated += u64::from(len);
        let membership = match from.u32()? {
            0 => None,
            len => Some(decode_membership(from.bytes(len as usize)?).map_err(|e| {
                DecodeError::Invalid {
                    field: "membership",
                    reason: e.to_string(),
                }
            })?),
        };
        if len as usize > raw.len() {
            return Err(DecodeError::Raw { stated, actual });
        }
        entries.push(LogEntry {
            id,
            body: Body::Sealed(SealedRef {
                raw: vec![raw.split_to(len as usize)],
                membership,
            }),
        });
    }
    if !raw.is_empty() {
        return Err(DecodeError::Raw { stated, actual });
    }
    if !from.0.is_empty() {
        return Err(DecodeError::Trailing(from.0.len()));
    }
    Ok(Append {
        request: AppendRequest {
            vote,
            prev_log_id,
            entries,
            leader_commit,
        },
        leader_last,
    })
}
