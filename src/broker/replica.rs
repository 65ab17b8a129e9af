//! What the processors need of replication, and nothing more: so that they can be tested without a
//! group, and so that they do not see how the group works.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rmq_store::{PendingRecord, Position};
use tokio::sync::watch;

use crate::meta::{FROZEN, Reply};
use crate::raft::{
    GroupStatus, MemberChange, MembersError, NodeId, Patience, SelfId, TransferError,
};

/// The group as one of its nodes sees it.
pub trait Replica: Send + Sync + 'static {
    /// Appends the records as one unit and resolves once they are committed and readable here. With a
    /// `term` they are appended only while this node leads that one, and refused else.
    ///
    /// Whatever is done before the first suspension happens in the order of the calls, so two
    /// calls of one task, the second made after the first was polled, keep their order in the log.
    fn propose_messages(
        &self,
        records: Vec<PendingRecord>,
        term: Option<u64>,
    ) -> BoxFuture<'_, Result<Vec<Position>, ProposeError>>;

    /// Proposes a command of `meta` and resolves once it is applied here, with its reply.
    fn propose_meta(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, ProposeError>>;

    /// The same behind all messages that were proposed before. Those that come in between wait, and
    /// are refused if the command has frozen the group.
    fn propose_meta_behind(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, ProposeError>>;

    /// The term in which this node leads, if it holds its lease and has applied everything that was
    /// committed before. The same answer before and after a state was read says that the state was
    /// current.
    fn serving(&self) -> Option<u64>;

    /// The role and its changes; a slow watcher sees only the last one.
    fn role(&self) -> watch::Receiver<Role>;

    /// The group as this node sees it, for those who watch it.
    fn status(&self) -> GroupStatus;

    /// Whether another member has no space for messages; `None` if it does not say.
    fn is_full(&self, node: NodeId) -> BoxFuture<'_, Option<bool>>;

    /// Has the leader answer `raw`, a request frame without its length field, that `client` sent.
    /// `None` is an answer: the leader says nothing to this request.
    fn forward(
        &self,
        raw: Bytes,
        client: SocketAddr,
        patience: Patience,
    ) -> BoxFuture<'_, Result<Option<Bytes>, ForwardError>>;

    /// Has this node remove what is too old from its log soon.
    fn remove_old_segments(&self);

    /// Hands leadership to `to`, or to the node that is most fit to lead, and gives the new leader.
    fn transfer_leader(&self, to: Option<SelfId>) -> BoxFuture<'_, Result<NodeId, TransferError>>;

    /// Has the node with the longest log lead after a loss of power, and names it.
    fn recover(&self, without_absent: bool) -> BoxFuture<'_, Result<SelfId, MembersError>>;

    /// Changes the members of the group and says what is so then.
    fn change_members(
        &self,
        change: MemberChange,
        node: SelfId,
    ) -> BoxFuture<'_, Result<String, MembersError>>;
}

/// Who leads, as far as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    pub term: u64,
    /// Where another node that leads listens for clients; `None` while there is no such node.
    pub leader: Option<String>,
    /// This node leads, and may serve as [`Replica::serving`] says.
    pub serving: bool,
}

/// Why a proposal has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended.
    #[error("this node is not the leader")]
    NotLeader,
    /// It may have been appended, and may yet be committed.
    #[error("leadership was lost on the way, the outcome is unknown")]
    Unknown,
    /// Nothing was appended, and never will be.
    #[error("{bytes} bytes, the limit is {max}")]
    TooLarge { bytes: usize, max: usize },
    /// The group is frozen; nothing was appended.
    #[error("{FROZEN}")]
    Frozen,
    /// Nothing was appended: this node is full, broken or stopping.
    #[error("{0}")]
    Failed(String),
}

/// Why the leader's answer to a forwarded request is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// The leader never saw the request.
    #[error("there is no leader")]
    NoLeader,
    /// The leader may have acted on it.
    #[error("the leader did not answer: {0}")]
    Unknown(String),
}
