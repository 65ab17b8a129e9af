//! What the broker sees of Raft: one handle, and why something has no result.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rmq_store::{PendingRecord, Position};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use super::batcher::{self, Batcher, HOLD, Outcome, RETRY};
use super::leadership::Leadership;
use super::node::{Node, RaftRuntime};
use super::peer::{self, MemberChange, Members, MembersError, Network, Peers, SelfId};
use super::retention::Retaining;
use super::status::{GroupStatus, LeaderInfo, RoleState};
use super::types::{NodeId, Proposal, Responder};
use crate::meta::{FROZEN, Reply};

/// Why a proposal has no result, or a read may not be answered here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended, and nothing will be: ask the leader, if one is known.
    #[error("this node is not the leader ({})", describe(.0.as_ref()))]
    NotLeader(Option<LeaderInfo>),
    /// It may have been appended by this leader or survive it: done, or lost.
    #[error("leadership changed before the outcome was known")]
    Unknown,
    /// Larger than an entry can be.
    #[error("{bytes} bytes do not fit an entry, which has at most {max}")]
    TooLarge {
        /// The size of what was proposed.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The group is frozen; nothing was appended.
    #[error("{FROZEN}")]
    Frozen,
    /// Nothing was appended: there is no space for it.
    #[error("{0}")]
    Full(String),
    /// Raft has stopped on this node.
    #[error("raft has stopped: {0}")]
    Fatal(String),
}

fn describe(leader: Option<&LeaderInfo>) -> String {
    match leader {
        Some(leader) => format!("it knows node {} at {}", leader.node, leader.broker_addr),
        None => "and knows none".to_owned(),
    }
}

/// Why leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// It is not this node's to give.
    #[error("this node is not the leader ({})", describe(.0.as_ref()))]
    NotLeader(Option<LeaderInfo>),
    /// There is no other voter that is alive.
    #[error("there is no other voter to lead the group")]
    Alone,
    /// The wanted successor does not vote.
    #[error("{0} is not another voter of the group")]
    NoVoter(SelfId),
    /// The wanted successor has not answered lately.
    #[error("{0} does not answer")]
    Silent(SelfId),
    /// The wanted successor would first have to catch up, and nobody would lead meanwhile.
    #[error("{target} is {lag} entries behind (at most {max} to lead)")]
    Behind {
        /// Who was wanted.
        target: SelfId,
        /// How many entries it is behind.
        lag: u64,
        /// How many it may be.
        max: u64,
    },
    /// The wanted successor has only just started, or still builds its queues.
    #[error("{0} cannot lead yet: it has just started, or its queues are not built")]
    NotReady(SelfId),
    /// Nobody has taken over; the group elects a leader by its ordinary timeouts.
    #[error("{target} did not take over in time")]
    Timeout {
        /// Who was asked.
        target: SelfId,
    },
    /// Raft has stopped on this node.
    #[error("raft has stopped: {0}")]
    Fatal(String),
}

/// How long the leader has for an answer to a client's request.
#[derive(Debug, Clone)]
pub struct Patience {
    /// In all.
    pub limit: Duration,
    /// Whether it is a pull, with which the leader may wait for messages. Pulls go a way of their own, so that
    /// nothing else has to wait behind them.
    pub is_pull: bool,
    /// Whether it is on its way yet.
    pub departure: Departure,
}

impl From<Duration> for Patience {
    fn from(limit: Duration) -> Self {
        Self {
            limit,
            is_pull: false,
            departure: Departure::default(),
        }
    }
}

/// Decides once and for all whether a request goes on its way or was given up before that; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Departure(Arc<AtomicBool>);

impl Departure {
    /// For whoever is about to send the request, or gives it up: whether the other one has not come first.
    #[must_use]
    pub fn decide(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Why a client's request has no answer from the leader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It was not done: no leader is known or was reached, or it does not lead any more.
    #[error("no leader took the request: {0}")]
    NotDone(String),
    /// It may have been done.
    #[error("the outcome of the forwarded request is unknown: {0}")]
    Unknown(String),
}

/// This node's part of the group. Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    node: Arc<Node>,
    batcher: Batcher,
    network: Option<Network>,
    /// None in a group of one.
    members: Option<Members>,
    /// Taken away to be shut down.
    peers: Mutex<Option<Peers>>,
    /// Taken away to be stopped.
    retaining: Mutex<Option<Retaining>>,
    /// Dropped last: everything above runs on it.
    runtime: Option<RaftRuntime>,
}

impl Group {
    pub(super) fn new(
        node: Arc<Node>,
        batcher: Batcher,
        network: Network,
        peers: Option<Peers>,
        retaining: Retaining,
        runtime: RaftRuntime,
    ) -> Self {
        Self(Arc::new(Inner {
            node,
            batcher,
            network: Some(network),
            members: peers.as_ref().map(Peers::members),
            peers: Mutex::new(peers),
            retaining: Mutex::new(Some(retaining)),
            runtime: Some(runtime),
        }))
    }

    /// A node on the runtime of its test, with a network of its own.
    #[cfg(test)]
    pub(super) fn bare(node: Arc<Node>, batcher: Batcher) -> Self {
        Self(Arc::new(Inner {
            node,
            batcher,
            network: None,
            members: None,
            peers: Mutex::default(),
            retaining: Mutex::default(),
            runtime: None,
        }))
    }

    fn leadership(&self) -> &Leadership {
        &self.0.node.leadership
    }

    /// The runtime of Raft, if it has threads of its own.
    pub fn runtime(&self) -> Option<Handle> {
        self.0.runtime.as_ref().and_then(RaftRuntime::own)
    }

    /// openraft's handle.
    #[cfg(test)]
    pub(super) fn raft(&self) -> &super::Raft {
        &self.0.node.raft
    }

    /// Appends messages as part of one entry: all or none, in this order. Answers once they are
    /// committed and below the confirm offset of this node. Waits while too much is in flight; a
    /// caller that stops waiting does not take the messages back. With a `term` they are appended
    /// only while this node leads that one.
    pub async fn propose_messages(
        &self,
        records: Vec<PendingRecord>,
        term: Option<u64>,
    ) -> Result<Vec<Position>, ProposeError> {
        self.0.batcher.propose(records, term).await
    }

    /// Has a metadata command applied by all replicas, and gives this node's reply.
    pub async fn propose_meta(&self, command: Bytes) -> Result<Reply, ProposeError> {
        self.0.batcher.check_size(command.len())?;
        self.0.batcher.space.check_metadata(command.len())?;
        let leadership = self.leadership();
        let term = leadership.leading();
        let started = tokio::time::Instant::now();
        loop {
            batcher::not_leading(leadership)?;
            let (done, answered) = oneshot::channel();
            let responder = Responder::new(move |answer| drop(done.send(answer)));
            let proposal = Proposal::Meta(command.clone());
            if self
                .0
                .node
                .raft
                .client_write_ff(proposal, Some(responder))
                .await
                .is_err()
            {
                return Err(batcher::stopped(leadership));
            }
            match batcher::outcome(leadership, answered.await.ok()) {
                Outcome::Applied(reply) => {
                    return Ok(reply.expect("applying a metadata command replies"));
                }
                Outcome::Failed(error) => return Err(error),
                Outcome::Held if started.elapsed() > HOLD || term != leadership.leading() => {
                    return Err(batcher::elsewhere(leadership));
                }
                Outcome::Held => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// As [`Group::propose_meta`], behind all messages that were proposed before: those that come
    /// while this runs wait, and are refused if the command has frozen the group.
    pub async fn propose_meta_behind(&self, command: Bytes) -> Result<Reply, ProposeError> {
        let _quiet = self.0.batcher.quiet().await;
        self.propose_meta(command).await
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.leadership().self_id()
    }

    /// The leader as far as this node knows; it may have been replaced.
    pub fn leader(&self) -> Option<LeaderInfo> {
        self.leadership().leader()
    }

    /// Whether this node may answer for the group now, see [`RoleState::serving`].
    pub fn serving(&self) -> bool {
        self.serving_term().is_some()
    }

    /// The term in which it may. The same term before and after a look at local state says that
    /// the state was current.
    pub fn serving_term(&self) -> Option<u64> {
        self.leadership().serving()
    }

    /// This node's role and its changes.
    pub fn watch_role(&self) -> watch::Receiver<RoleState> {
        self.leadership().watch()
    }

    /// The group as this node sees it.
    pub fn status(&self) -> GroupStatus {
        let mut status = self.leadership().status();
        status.quarantined = self.0.node.gate.is_quarantined();
        if let Some(members) = &self.0.members
            && self.leadership().leading().is_some()
        {
            status.asking = members.waiting();
        }
        let damages = self.0.node.damages();
        status.damaged = damages.iter().map(ToString::to_string).collect();
        status
    }

    /// Whether another member has no space for messages; `None` if it does not say.
    pub async fn is_full(&self, node: NodeId) -> Option<bool> {
        self.leadership().is_full(node).await
    }

    /// Hands leadership to `to`, or to the voter with the most of the log, and gives the new
    /// leader. Nothing happens where `to` leads already, or is not fit to lead. Otherwise this node
    /// takes no proposals from the call on, whatever comes of it.
    pub async fn transfer_leader(&self, to: Option<SelfId>) -> Result<NodeId, TransferError> {
        self.leadership().transfer(to).await
    }

    /// Changes the members as an operator asks, if this node leads, and says what is so then. It is
    /// safe to repeat: what is so already is no error.
    pub async fn change_members(
        &self,
        change: MemberChange,
        node: SelfId,
    ) -> Result<String, MembersError> {
        match (&self.0.members, self.leadership().leading()) {
            (None, _) => Err(MembersError::Refused(
                "this broker is no node of a group (enableDLegerCommitLog=false)".to_owned(),
            )),
            (Some(_), None) => Err(MembersError::Later("this node does not lead".to_owned())),
            (Some(members), Some(_)) => members.change(change, node).await,
        }
    }

    /// After a loss of power under ASYNC_FLUSH that leaves no majority without loss: has the node with
    /// the longest log lead, and names it. Refused while anything better is to be had; `without_absent`
    /// gives up what only nodes that do not answer may have.
    pub async fn recover(&self, without_absent: bool) -> Result<SelfId, MembersError> {
        match &self.0.members {
            Some(members) => members.recover(without_absent).await,
            None => Err(MembersError::Refused(
                "this broker is no node of a group (enableDLegerCommitLog=false)".to_owned(),
            )),
        }
    }

    /// Has the leader answer a client's frame (without its length field), as if the client had
    /// asked there. `Ok(None)` when there is nothing to answer.
    pub async fn forward(
        &self,
        frame: Bytes,
        client: SocketAddr,
        patience: impl Into<Patience>,
    ) -> Result<Option<Bytes>, ForwardError> {
        let not_done = |reason: &str| Err(ForwardError::NotDone(reason.to_owned()));
        let Some(network) = &self.0.network else {
            return not_done("this node has no peers");
        };
        match self.leader() {
            None => not_done("none is known"),
            Some(leader) if leader.node == self.node_id() => not_done("this node leads"),
            Some(LeaderInfo {
                node, raft_addr, ..
            }) => {
                let answer = network
                    .forward(node, &raft_addr, client, frame, patience)
                    .await;
                answer.map_err(|error| match error {
                    peer::ForwardError::NotDone(reason) => ForwardError::NotDone(reason),
                    peer::ForwardError::Unknown(reason) => ForwardError::Unknown(reason),
                })
            }
        }
    }

    /// Removes the segments that are too old in the next rounds, whatever the hour.
    pub fn remove_old_segments(&self) {
        let retaining = self
            .0
            .retaining
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(retaining) = &*retaining {
            retaining.ask();
        }
    }

    /// Hangs up on the peers, stops Raft, and closes queues and log: what was applied is saved,
    /// everything appended is durable, and a Java broker can open the store.
    pub async fn shutdown(&self) {
        let retaining = self
            .0
            .retaining
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(retaining) = retaining {
            retaining.stop().await;
        }
        let peers = self
            .0
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(peers) = peers {
            peers.shutdown().await;
        }
        self.0.node.shutdown().await;
    }
}
