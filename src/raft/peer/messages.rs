//! What the heads of frames say. Everything is laid out by hand, big endian, in the order of the
//! fields; texts and lists carry their length in front, an option starts with a 0 or 1. Decoding
//! checks every length against what is there before it allocates. openraft's own messages are in
//! `raft`.

mod raft;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::{Buf, BufMut};

pub(super) use self::raft::{
    Append, AppendRequest, AppendResult, TransferRequest, VoteRequest, VoteResponse, decode_append,
    encode_append,
};
use super::death::Seal;
use super::identity::{GroupId, PeerList, SelfId};
use crate::raft::types::{BrokerNode, LogId, NodeId};

/// Grows with every change of the protocol; nodes of different versions do not talk.
pub(super) const PROTOCOL_VERSION: u16 = 3;
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
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(|_| DecodeError::Short)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.0.try_get_u16().map_err(|_| DecodeError::Short)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.0.try_get_u32().map_err(|_| DecodeError::Short)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.0.try_get_u64().map_err(|_| DecodeError::Short)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
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

impl Message for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(*self));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.flag("answer")
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

impl<const N: usize> Message for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_slice(self);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = from.bytes(N)?;
        Ok(bytes.try_into().expect("as many were taken"))
    }
}

impl Message for GroupId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Message::decode(from).map(Self)
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
    /// A snapshot.
    Snapshot = 4,
    /// Whole bytes for damaged ones.
    Repair = 5,
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
    /// Of the caller's process.
    pub(super) seal: Seal,
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
        self.seal.encode(out);
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
            4 => Purpose::Snapshot,
            5 => Purpose::Repair,
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
            seal: Seal::decode(from)?,
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

/// A node asks another how it came through a loss of power. Answered by a [`Condition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recover {
    /// Who has the longest log and is to lead: a node in quarantine votes from now on.
    pub(super) leader: Option<NodeId>,
}

impl Message for Recover {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.leader.is_some()));
        if let Some(leader) = self.leader {
            out.put_u64(leader);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            leader: from.flag("leader")?.then(|| from.u64()).transpose()?,
        })
    }
}

/// How a node came through a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// It may have lost entries that it acknowledged.
    pub(super) quarantined: bool,
    /// It knows a leader.
    pub(super) has_leader: bool,
    /// The last entry of its log.
    pub(super) last: Option<LogId>,
}

impl Message for Condition {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.quarantined));
        out.put_u8(u8::from(self.has_leader));
        self.last.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            quarantined: from.flag("quarantined")?,
            has_leader: from.flag("has leader")?,
            last: Option::decode(from)?,
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
