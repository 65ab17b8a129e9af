//! The types openraft is parameterised with. Nothing of openraft is named outside `crate::raft`,
//! and nothing here is a disk format except [`encode_membership`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes};
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::impls::{BoxedErrorSource, InlineBatch, leader_id_adv};
use openraft::{OptionalSend, RaftTypeConfig};
use openraft_rt_tokio::TokioRuntime;
use rmq_store::{Batch, StoredEntry};

use super::snapshot::SnapshotData;
use crate::meta::Reply;

/// A member's id: drawn once for each data directory, never used again for another one.
pub type NodeId = u64;
/// `(term, node)`, totally ordered: of two candidates of one term the higher id wins.
pub(super) type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
/// `(leader id, index)` of an entry.
pub(super) type LogId = openraft::LogId<LeaderId>;
/// A vote, granted by a quorum or not yet.
pub(super) type Vote = openraft::Vote<LeaderId>;
/// Voters (one set, or two while a change is under way) and learners, with their addresses.
pub(super) type Membership = openraft::Membership<NodeId, BrokerNode>;
/// A membership with the id of the entry that brought it.
pub(super) type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, BrokerNode>;
/// What a snapshot covers: the last applied entry and membership.
pub(super) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, BrokerNode>;
/// A snapshot with its meta.
pub(super) type Snapshot = openraft::Snapshot<LeaderId, NodeId, BrokerNode, SnapshotData>;

/// openraft's parameters. Written out because its macro cannot set the generic `Responder`.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(super) struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = Option<Reply>;
    type NodeId = NodeId;
    type Node = BrokerNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Body;
    type Entry = LogEntry;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = Responder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// The addresses of a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BrokerNode {
    /// Where it listens for its peers, `host:port`.
    pub(super) raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub(super) broker_addr: String,
}

impl fmt::Display for BrokerNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (clients: {})", self.raft_addr, self.broker_addr)
    }
}

/// What may be proposed.
#[derive(Debug)]
pub(super) enum Proposal {
    /// A metadata command, as `crate::meta` encodes it.
    Meta(Bytes),
    /// Messages, which get their positions when they are appended.
    Messages(Pending),
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(command) => write!(f, "meta command of {} bytes", command.len()),
            Self::Messages(_) => f.write_str("messages"),
        }
    }
}

/// A batch on its way to the log. openraft drops a proposal that it refuses; the proposer's clone
/// then still holds the batch, and whether it does tells that nothing was appended.
#[derive(Debug, Clone)]
pub(super) struct Pending(Arc<Mutex<Option<Batch>>>);

impl Pending {
    /// A batch to propose.
    pub(super) fn new(batch: Batch) -> Self {
        Self(Arc::new(Mutex::new(Some(batch))))
    }

    /// Takes the batch to append it; `None` if that was done before.
    pub(super) fn take(&self) -> Option<Batch> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Batch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an entry carries. The first four are entries that this node proposes, until the log store
/// appends them; what is read back from the log or comes from a peer is one of the other two.
#[derive(Debug)]
pub(super) enum Body {
    /// The first entry of a term.
    Blank,
    /// A change of members.
    Membership(Membership),
    /// A metadata command.
    Meta(Bytes),
    /// Messages without positions.
    Unsealed(Pending),
    /// The bytes of the entry exactly as they lie in every replica's log, to be sent to a peer or
    /// to be appended.
    Sealed(SealedRef),
    /// The head of an entry in the log, to be applied, with the membership that it carries.
    Stored {
        /// The head.
        entry: StoredEntry,
        /// The membership of a membership entry.
        membership: Option<Membership>,
    },
}

/// An extent of the log, to be sent to a peer or as it came from one.
#[derive(Debug, Clone)]
pub(super) struct SealedRef {
    /// The raw extent: one slice, or two where it crosses the end of a segment.
    pub(super) raw: Vec<Bytes>,
    /// The membership that the extent's header carries: openraft asks each received entry for it,
    /// before the entry is in the log, so it also travels beside the raw bytes.
    pub(super) membership: Option<Membership>,
}

impl SealedRef {
    /// The length of the extent in bytes.
    pub(super) fn len(&self) -> usize {
        self.raw.iter().map(Bytes::len).sum()
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Membership(members) => write!(f, "membership {members}"),
            Self::Meta(command) => write!(f, "meta command of {} bytes", command.len()),
            Self::Unsealed(_) => f.write_str("messages"),
            Self::Sealed(extent) => write!(f, "extent of {} bytes", extent.len()),
            Self::Stored { entry, .. } => {
                write!(f, "{:?} at {}..{}", entry.kind, entry.start, entry.end)
            }
        }
    }
}

impl RaftPayload for Body {
    type D = Proposal;
    type NodeId = NodeId;
    type Node = BrokerNode;

    fn blank() -> Self {
        Self::Blank
    }

    fn with_normal(self, data: Proposal) -> Self {
        match data {
            Proposal::Meta(command) => Self::Meta(command),
            Proposal::Messages(batch) => Self::Unsealed(batch),
        }
    }

    fn with_membership(self, membership: Membership) -> Self {
        Self::Membership(membership)
    }

    fn get_membership(&self) -> Option<Membership> {
        match self {
            Self::Membership(members) => Some(members.clone()),
            Self::Sealed(extent) => extent.membership.clone(),
            Self::Stored { membership, .. } => membership.clone(),
            Self::Blank | Self::Meta(_) | Self::Unsealed(_) => None,
        }
    }
}

/// An entry of the Raft log.
#[derive(Debug)]
pub(super) struct LogEntry {
    /// Its term, leader and index.
    pub(super) id: LogId,
    /// What it carries.
    pub(super) body: Body,
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.body)
    }
}

impl RaftEntry for LogEntry {
    type CommittedLeaderId = LeaderId;
    type Payload = Body;

    fn new(id: LogId, body: Body) -> Self {
        Self { id, body }
    }

    fn log_id_parts(&self) -> (&LeaderId, u64) {
        (&self.id.leader_id, self.id.index)
    }

    fn set_log_id(&mut self, new: LogId) {
        self.id = new;
    }

    fn get_membership(&self) -> Option<Membership> {
        self.body.get_membership()
    }
}

/// Takes the outcome of a proposal to whoever waits for it. It is called once, after the entry was
/// applied, or with the reason why that will not happen; dropped uncalled, the outcome is unknown.
/// The call runs on a task of openraft, so it must only hand the outcome on.
pub(super) struct Responder<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Responder<T> {
    /// A responder that calls `done`.
    pub(super) fn new(done: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(done))
    }
}

impl<T> openraft::raft::responder::Responder<TypeConfig, T> for Responder<T>
where
    T: OptionalSend + 'static,
{
    fn on_complete(self, outcome: T) {
        (self.0)(outcome);
    }
}

/// The layout of [`encode_membership`].
const MEMBERSHIP_VERSION: u8 = 1;

/// Writes a membership as a membership entry's extent carries it (a disk format, also sent between
/// peers). Big endian:
/// `version u8 | configs u8 × (voters u16 × (id u64)) | nodes u16 × (id u64, raft, broker)`,
/// an address being `length u16 | UTF-8`.
pub(super) fn encode_membership(members: &Membership) -> Bytes {
    let mut out = Vec::with_capacity(64);
    out.put_u8(MEMBERSHIP_VERSION);
    let configs = members.get_joint_config();
    out.put_u8(u8::try_from(configs.len()).expect("a joint config has at most two sets"));
    for voters in configs {
        put_len(&mut out, voters.len());
        for id in voters {
            out.put_u64(*id);
        }
    }
    put_len(&mut out, members.nodes().count());
    for (id, node) in members.nodes() {
        out.put_u64(*id);
        for addr in [&node.raft_addr, &node.broker_addr] {
            put_len(&mut out, addr.len());
            out.put_slice(addr.as_bytes());
        }
    }
    out.into()
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.put_u16(u16::try_from(len).expect("a group has few members, with short addresses"));
}

/// Why bytes are no membership.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum MembershipDecodeError {
    /// Cut off.
    #[error("membership ends before its last field")]
    Short,
    /// Longer than its fields.
    #[error("{0} bytes follow the membership")]
    Trailing(usize),
    /// Written by something newer.
    #[error("membership has layout version {0}, this build reads {MEMBERSHIP_VERSION}")]
    Version(u8),
    /// An address is not text.
    #[error("an address of node {0} is not UTF-8")]
    Address(NodeId),
    /// Voters without an address, or an empty set of voters.
    #[error("membership is not valid: {0}")]
    Invalid(String),
}

/// Reads what [`encode_membership`] wrote.
pub(super) fn decode_membership(mut bytes: &[u8]) -> Result<Membership, MembershipDecodeError> {
    let short = |_| MembershipDecodeError::Short;
    let bytes = &mut bytes;
    let version = bytes.try_get_u8().map_err(short)?;
    if version != MEMBERSHIP_VERSION {
        return Err(MembershipDecodeError::Version(version));
    }
    let mut configs = Vec::new();
    for _ in 0..bytes.try_get_u8().map_err(short)? {
        let mut voters = BTreeSet::new();
        for _ in 0..bytes.try_get_u16().map_err(short)? {
            voters.insert(bytes.try_get_u64().map_err(short)?);
        }
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..bytes.try_get_u16().map_err(short)? {
        let id = bytes.try_get_u64().map_err(short)?;
        let raft_addr = take_addr(bytes, id)?;
        let broker_addr = take_addr(bytes, id)?;
        nodes.insert(
            id,
            BrokerNode {
                raft_addr,
                broker_addr,
            },
        );
    }
    if bytes.has_remaining() {
        return Err(MembershipDecodeError::Trailing(bytes.remaining()));
    }
    // The membership of a node that never met a group has no voters, which `new` refuses.
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|e| MembershipDecodeError::Invalid(e.to_string()))
}

fn take_addr(bytes: &mut &[u8], id: NodeId) -> Result<String, MembershipDecodeError> {
    let len = usize::from(
        bytes
            .try_get_u16()
            .map_err(|_| MembershipDecodeError::Short)?,
    );
    let (addr, rest) = bytes
        .split_at_checked(len)
        .ok_or(MembershipDecodeError::Short)?;
    *bytes = rest;
    let addr = std::str::from_utf8(addr).map_err(|_| MembershipDecodeError::Address(id))?;
    Ok(addr.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn member_strategy() -> impl Strategy<Value = Membership> {
        let ids = || proptest::collection::btree_set(0..9u64, 1..5);
        let addr = "[a-z0-9.:]{0,20}";
        let nodes = proptest::collection::vec((addr, addr), 9);
        (proptest::collection::vec(ids(), 1..3), nodes).prop_map(|(configs, nodes)| {
            let nodes = nodes
                .into_iter()
                .map(|(raft_addr, broker_addr)| BrokerNode {
                    raft_addr,
                    broker_addr,
                });
            let nodes: BTreeMap<_, _> = (0..).zip(nodes).collect();
            Membership::new(configs, nodes).unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn membership_round_trips(members in member_strategy()) {
            let bytes = encode_membership(&members);
            prop_assert_eq!(decode_membership(&bytes).unwrap(), members);
            for cut in 0..bytes.len() {
                prop_assert_eq!(decode_membership(&bytes[..cut]), Err(MembershipDecodeError::Short));
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(members) = decode_membership(&bytes) {
                prop_assert_eq!(decode_membership(&encode_membership(&members)).unwrap(), members);
            }
        }
    }

    #[test]
    fn a_membership_without_members_round_trips() {
        let bytes = encode_membership(&Membership::default());
        assert_eq!(decode_membership(&bytes), Ok(Membership::default()));
    }

    #[test]
    fn another_version_and_trailing_bytes_are_refused() {
        let mut bytes = encode_membership(&Membership::default()).to_vec();
        bytes.push(0);
        assert_eq!(
            decode_membership(&bytes),
            Err(MembershipDecodeError::Trailing(1))
        );
        bytes[0] = 2;
        assert_eq!(
            decode_membership(&bytes),
            Err(MembershipDecodeError::Version(2))
        );
    }
}
