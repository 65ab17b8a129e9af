//! What the heads of frames say. Everything is laid out by hand, big endian, in the order of the
//! fields; texts and lists carry their length in front, an option starts with a 0 or 1. Decoding
//! checks every length against what is there before it allocates.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes};
use openraft::raft::{StreamAppendError, TransferLeaderError};

use super::identity::{GroupId, PeerList, SelfId};
use crate::raft::types::{
    Body, BrokerNode, LeaderId, LogEntry, LogId, NodeId, SealedRef, TypeConfig, Vote,
    decode_membership, encode_membership,
};

pub(super) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(super) type AppendResult = Result<Option<LogId>, StreamAppendError<TypeConfig>>;
pub(super) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(super) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
pub(super) type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;
pub(super) type TransferResult = Result<(), TransferLeaderError<TypeConfig>>;

/// Grows with every change of the protocol; nodes of different versions do not talk.
pub(super) const PROTOCOL_VERSION: u16 = 1;
/// What a `Hello` begins with, so that a stray client is recognised.
const MAGIC: [u8; 4] = *b"rmqP";

/// Why a head is not what its frame's kind says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum DecodeError {
    #[error("message ends before its last field")]
    Short,
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    #[error("{field} is {value}")]
    Field { field: &'static str, value: u64 },
    #[error("{0} is not UTF-8")]
    Text(&'static str),
    #[error("{field} is not valid: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error("entries of {stated} raw bytes in a frame that brings {actual}")]
    Raw { stated: u64, actual: usize },
    #[error("not a peer of a broker group")]
    Magic,
    #[error("protocol version {theirs}, this node speaks {PROTOCOL_VERSION}")]
    Version { theirs: u16 },
}

/// A message that is the head of a frame.
pub(super) trait Message: Sized {
    /// Appends the message to `out`.
    fn encode(&self, out: &mut Vec<u8>);
    /// Takes the message from the front of `from`.
    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The message alone.
    fn to_head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.encode(&mut out);
        out
    }

    /// Reads a head that holds this message and nothing else.
    fn from_head(head: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader(head);
        let message = Self::decode(&mut reader)?;
        if reader.0.is_empty() {
            Ok(message)
        } else {
            Err(DecodeError::Trailing(reader.0.len()))
        }
    }
}

/// Takes fields from a head.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(|_| DecodeError::Short)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.0.try_get_u16().map_err(|_| DecodeError::Short)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.0.try_get_u32().map_err(|_| DecodeError::Short)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.0.try_get_u64().map_err(|_| DecodeError::Short)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Field {
                field,
                value: value.into(),
            }),
        }
    }

    fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let len = self.u16()?;
        let bytes = self.bytes(len.into())?;
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::Text(field))?;
        Ok(text.to_owned())
    }

    fn parsed<T>(&mut self, field: &'static str) -> Result<T, DecodeError>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.text(field)?
            .parse()
            .map_err(|e: T::Err| DecodeError::Invalid {
                field,
                reason: e.to_string(),
            })
    }
}

/// A text that is cut where it would not fit its length field (only a reason can be that long).
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16(u16::try_from(end).expect("cut to fit"));
    out.put_slice(&text.as_bytes()[..end]);
}

impl Message for () {
    fn encode(&self, _out: &mut Vec<u8>) {}

    fn decode(_from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl<M: Message> Message for Option<M> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.is_some()));
        if let Some(message) = self {
            message.encode(out);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.flag("option")?.then(|| M::decode(from)).transpose()
    }
}

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

impl Message for BrokerNode {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.raft_addr);
        put_text(out, &self.broker_addr);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            raft_addr: from.text("peer address")?,
            broker_addr: from.text("broker address")?,
        })
    }
}

impl Message for GroupId {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_slice(&self.0);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = from.bytes(16)?;
        Ok(Self(bytes.try_into().expect("16 bytes were taken")))
    }
}

/// What a connection is for. It also says which requests may come over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Purpose {
    /// To get acquainted: formation and joining. The nodes need not be of one group yet.
    Meet = 0,
    /// Heartbeats, votes, transfer of leadership.
    Control = 1,
    /// Replication of the log.
    Log = 2,
    /// Clients' requests for the leader.
    Forward = 3,
}

/// What a node says of itself when a connection is opened, in both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeInfo {
    /// `dLegerGroup`.
    pub(super) group_name: String,
    /// The group it belongs to, or has agreed to form.
    pub(super) group: Option<GroupId>,
    /// Its Raft state is not pristine: there is a group, and it is part of it.
    pub(super) holds_group: bool,
    /// `dLegerSelfId`.
    pub(super) self_id: SelfId,
    pub(super) node: NodeId,
    /// Digest of the adopted history below the Raft log, empty without one.
    pub(super) genesis: String,
    /// `dLegerPeers`.
    pub(super) peers: PeerList,
    pub(super) addrs: BrokerNode,
}

impl Message for NodeInfo {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.group_name);
        self.group.encode(out);
        out.put_u8(u8::from(self.holds_group));
        out.put_u16(self.self_id.0);
        out.put_u64(self.node);
        put_text(out, &self.genesis);
        put_text(out, &self.peers.to_string());
        self.addrs.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            group_name: from.text("group name")?,
            group: Option::decode(from)?,
            holds_group: from.flag("holds group")?,
            self_id: SelfId(from.u16()?),
            node: from.u64()?,
            genesis: from.text("genesis digest")?,
            peers: from.parsed("peers")?,
            addrs: BrokerNode::decode(from)?,
        })
    }
}

/// The first request of each connection. Answered by the callee's [`NodeInfo`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) purpose: Purpose,
    /// The node that the caller means to reach. At its address there may be another one by now.
    pub(super) target: Option<NodeId>,
    pub(super) from: NodeInfo,
}

impl Message for Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_slice(&MAGIC);
        out.put_u16(PROTOCOL_VERSION);
        out.put_u8(self.purpose as u8);
        out.put_u8(u8::from(self.target.is_some()));
        if let Some(target) = self.target {
            out.put_u64(target);
        }
        self.from.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if from.bytes(MAGIC.len())? != MAGIC {
            return Err(DecodeError::Magic);
        }
        let theirs = from.u16()?;
        if theirs != PROTOCOL_VERSION {
            return Err(DecodeError::Version { theirs });
        }
        let purpose = match from.u8()? {
            0 => Purpose::Meet,
            1 => Purpose::Control,
            2 => Purpose::Log,
            3 => Purpose::Forward,
            value => {
                return Err(DecodeError::Field {
                    field: "purpose",
                    value: value.into(),
                });
            }
        };
        let target = from.flag("target")?.then(|| from.u64()).transpose()?;
        Ok(Self {
            purpose,
            target,
            from: NodeInfo::decode(from)?,
        })
    }
}

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RefusalKind {
    /// Not done, and repeating it here will not help.
    Refused = 0,
    /// The node does not lead; nothing was done.
    NotLeader = 1,
    /// Not now.
    Later = 2,
}

/// The head of a refusing answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Refusal {
    pub(super) kind: RefusalKind,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn refused(reason: impl Into<String>) -> Self {
        Self {
            kind: RefusalKind::Refused,
            reason: reason.into(),
        }
    }

    pub(super) fn later(reason: impl Into<String>) -> Self {
        Self {
            kind: RefusalKind::Later,
            reason: reason.into(),
        }
    }
}

impl Message for Refusal {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(self.kind as u8);
        put_text(out, &self.reason);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = match from.u8()? {
            0 => RefusalKind::Refused,
            1 => RefusalKind::NotLeader,
            2 => RefusalKind::Later,
            value => {
                return Err(DecodeError::Field {
                    field: "refusal",
                    value: value.into(),
                });
            }
        };
        Ok(Self {
            kind,
            reason: from.text("reason")?,
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

/// Splits an append into a head and the raw extents of its entries:
/// `vote | previous | commit | entries u32 × (log id, raw length u32, membership length u32,
/// membership)`.
pub(super) fn encode_append(request: &AppendRequest) -> (Vec<u8>, Vec<Bytes>) {
    let mut head = Vec::with_capacity(96 + request.entries.len() * ENTRY_LEN);
    let mut raw = Vec::with_capacity(request.entries.len());
    request.vote.encode(&mut head);
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
pub(super) fn decode_append(head: &[u8], mut raw: Bytes) -> Result<AppendRequest, DecodeError> {
    let from = &mut Reader(head);
    let vote = Vote::decode(from)?;
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
    Ok(AppendRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

/// The first membership of a new group, from the node that initialises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) group: GroupId,
    pub(super) members: BTreeMap<NodeId, BrokerNode>,
}

impl Message for Form {
    fn encode(&self, out: &mut Vec<u8>) {
        self.group.encode(out);
        out.put_u16(u16::try_from(self.members.len()).expect("a group has few members"));
        for (node, addrs) in &self.members {
            out.put_u64(*node);
            addrs.encode(out);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let group = GroupId::decode(from)?;
        let mut members = BTreeMap::new();
        for _ in 0..from.u16()? {
            members.insert(from.u64()?, BrokerNode::decode(from)?);
        }
        Ok(Self { group, members })
    }
}

/// A node asks to become a voter. Who it is, its connection's `Hello` has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Join {
    /// `raftJoin`: the operator adds a node that the group has not known before.
    pub(super) as_new_member: bool,
}

impl Message for Join {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.as_new_member));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            as_new_member: from.flag("new member")?,
        })
    }
}

/// How far the leader has come with a [`Join`]. The node asks again until it is a voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JoinAnswer {
    Voter,
    /// What is being done.
    UnderWay(String),
    /// Another node leads, at this peer address.
    Leader(String),
}

impl Message for JoinAnswer {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Voter => out.put_u8(0),
            Self::UnderWay(step) => {
                out.put_u8(1);
                put_text(out, step);
            }
            Self::Leader(addr) => {
                out.put_u8(2);
                put_text(out, addr);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match from.u8()? {
            0 => Self::Voter,
            1 => Self::UnderWay(from.text("step")?),
            2 => Self::Leader(from.text("leader address")?),
            value => {
                return Err(DecodeError::Field {
                    field: "join answer",
                    value: value.into(),
                });
            }
        })
    }
}

/// Goes with a client's frame, which is the raw part: where the client is. The answer's head is a
/// flag, whether the raw part is a frame for the client or there is none to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) client: SocketAddr,
}

impl Message for Forward {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.client.to_string());
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            client: from.parsed("client address")?,
        })
    }
}

/// Whether a forwarded request has an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forwarded {
    pub(super) answered: bool,
}

impl Message for Forwarded {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.answered));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            answered: from.flag("answered")?,
        })
    }
}

#[cfg(test)]
mod tests;
