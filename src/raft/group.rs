//! What the broker sees of Raft: one handle, and the values it gives.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rmq_store::{PendingRecord, Position};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::batcher::{self, Batcher, HOLD, Outcome, RETRY};
use super::leadership::Leadership;
use super::node::{Node, RaftRuntime};
use super::peer::{
    self, ALIVE_WITHIN, CAUGHT_UP, MemberChange, Members, MembersError, Network, Peers, SelfId,
};
use super::retention::Retaining;
use super::types::{NodeId, Proposal, Responder};
use crate::meta::{FROZEN, Reply};

/// The leader, as far as a node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderInfo {
    /// Its id.
    pub node: NodeId,
    /// Where it listens for its peers, `host:port`.
    pub raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub broker_addr: String,
}

/// The part that this node plays in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleState {
    /// The current term; it never decreases.
    pub term: u64,
    /// The leader of the term, once one is known.
    pub leader: Option<LeaderInfo>,
    /// Whether this node leads, holds its lease, and has applied all that was committed before its
    /// term: only then may it answer for the group.
    pub serving: bool,
    /// This node's own id.
    pub self_id: NodeId,
}

impl RoleState {
    /// Whether this node is the leader, serving or not.
    pub fn leads(&self) -> bool {
        self.leader
            .as_ref()
            .is_some_and(|leader| leader.node == self.self_id)
    }
}

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

/// What a node is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Votes and has no other part.
    Follower,
    /// Stands for election.
    Candidate,
    /// Is sent the log and does not vote, or has not met its group yet.
    Learner,
}

/// The group as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// The node that was asked.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<LeaderInfo>,
    /// As [`RoleState::serving`].
    pub serving: bool,
    /// Index of the last entry of its log.
    pub last_index: Option<u64>,
    /// Index up to which it knows entries to be committed.
    pub commit_index: Option<u64>,
    /// Index up to which it has applied them.
    pub applied_index: Option<u64>,
    /// All members, by id.
    pub members: Vec<MemberStatus>,
    /// Whether the node lost power under ASYNC_FLUSH and does not yet have again what it may have
    /// lost, so that it does not vote.
    #[serde(default)]
    pub quarantined: bool,
    /// Nodes that ask to become members and wait for an operator; known to the leader only.
    #[serde(default)]
    pub asking: Vec<AskingNode>,
    /// Parts of this node's log that are not what was written: they are not served before another
    /// node has mended them.
    #[serde(default)]
    pub damaged: Vec<String>,
}

impl GroupStatus {
    /// Who is to lead after the leader that sees its group so: `wanted` if it is fit to, or the
    /// living voter with the most of the log.
    pub fn successor(&self, wanted: Option<SelfId>) -> Result<NodeId, TransferError> {
        let others = || {
            let members = self.members.iter();
            members.filter(|member| member.voter && member.node != self.node)
        };
        let alive = |member: &MemberStatus| {
            let within = ALIVE_WITHIN.as_millis();
            member.acked_ms.is_some_and(|ms| u128::from(ms) <= within)
        };
        let Some(wanted) = wanted else {
            let best = others().filter(|member| alive(member));
            let best = best.max_by_key(|member| member.match_index);
            return best.map(|member| member.node).ok_or(TransferError::Alone);
        };
        let voter = others().find(|member| SelfId::of(member.node) == wanted);
        let voter = voter.ok_or(TransferError::NoVoter(wanted))?;
        if !alive(voter) {
            return Err(TransferError::Silent(wanted));
        }
        match voter.lag {
            Some(lag) if lag > CAUGHT_UP => Err(TransferError::Behind {
                target: wanted,
                lag,
                max: CAUGHT_UP,
            }),
            _ => Ok(voter.node),
        }
    }
}

/// A node that asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskingNode {
    /// Its id.
    pub node: NodeId,
    /// Where it listens for its peers, `host:port`.
    pub raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub broker_addr: String,
}

/// One member; the last three are known to the leader only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its id.
    pub node: NodeId,
    /// Where it listens for its peers, `host:port`.
    pub raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub broker_addr: String,
    /// Whether it votes; a learner does not.
    pub voter: bool,
    /// Index up to which its log is known to equal the leader's.
    pub match_index: Option<u64>,
    /// How many entries it is behind.
    pub lag: Option<u64>,
    /// How many milliseconds ago the last request was sent that it has answered.
    pub acked_ms: Option<u64>,
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
    _runtime: Option<RaftRuntime>,
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
            _runtime: Some(runtime),
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
            _runtime: None,
        }))
    }

    fn leadership(&self) -> &Leadership {
        &self.0.node.leadership
    }

    /// openraft's handle.
    #[cfg(test)]
    pub(super) fn raft(&self) -> &super::Raft {
        &self.0.node.raft
    }

    /// Appends messages as part of one entry: all or none, in this order. Answers once they are
    /// committed and below the confirm offset of this node. Waits while too much is in flight; a
    /// caller that stops waiting does not take the messages back.
    pub async fn propose_messages(
        &self,
        records: Vec<PendingRecord>,
    ) -> Result<Vec<Position>, ProposeError> {
        self.0.batcher.propose(records).await
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
        timeout: Duration,
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
                    .forward(node, &raft_addr, client, frame, timeout)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u16, voter: bool, lag: u64, acked_ms: Option<u64>) -> MemberStatus {
        MemberStatus {
            node: u64::from(id) << 48 | 1,
            raft_addr: String::new(),
            broker_addr: String::new(),
            voter,
            match_index: Some(1000 - lag),
            lag: Some(lag),
            acked_ms,
        }
    }

    /// As n0 sees it, which leads.
    fn status(members: Vec<MemberStatus>) -> GroupStatus {
        GroupStatus {
            node: 1,
            role: Role::Leader,
            term: 3,
            leader: None,
            serving: true,
            last_index: Some(1000),
            commit_index: Some(1000),
            applied_index: Some(1000),
            members,
            quarantined: false,
            asking: Vec::new(),
            damaged: Vec::new(),
        }
    }

    #[test]
    fn a_successor_votes_lives_and_is_caught_up() {
        let group = status(vec![
            member(0, true, 0, None),
            member(1, true, 5, Some(40)),
            member(2, true, 2, Some(40)),
            member(3, true, 0, Some(5000)),
            member(4, false, 0, Some(40)),
            member(5, true, CAUGHT_UP + 1, Some(40)),
            member(6, true, 0, None),
        ]);
        let choose = |id: u16| group.successor(Some(SelfId(id)));
        let named = |id: u16| u64::from(id) << 48 | 1;
        assert_eq!(group.successor(None), Ok(named(2)));
        assert_eq!(choose(1), Ok(named(1)));
        for silent in [3, 6] {
            assert_eq!(choose(silent), Err(TransferError::Silent(SelfId(silent))));
        }
        for no_voter in [0, 4, 7] {
            let refused = Err(TransferError::NoVoter(SelfId(no_voter)));
            assert_eq!(choose(no_voter), refused);
        }
        let behind = TransferError::Behind {
            target: SelfId(5),
            lag: 65,
            max: 64,
        };
        assert_eq!(choose(5), Err(behind));
        let alone = status(vec![member(0, true, 0, None), member(1, true, 0, None)]);
        assert_eq!(alone.successor(None), Err(TransferError::Alone));
    }
}
