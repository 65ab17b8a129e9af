//! This node's identity, its Raft and what else the requests of peers act on, and the order in which
//! the first two are asked.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;

use super::death::{Followed, Seal};
use super::join::Joins;
use super::messages::{AppendResult, NodeInfo, Refusal, VoteRequest};
use super::nag::Nag;
use super::server::ForwardHandler;
use super::{GroupId, Local, Receiver};
use crate::raft::Raft;
use crate::raft::gate::VoteGate;
use crate::raft::space::Space;
use crate::raft::types::{LogId, Vote};

/// What the requests of peers act on.
pub(super) struct Shared {
    pub(super) local: Arc<Local>,
    pub(super) raft: Raft,
    /// Shut while this node may have promised or lost what it does not remember.
    pub(super) gate: VoteGate,
    pub(super) space: Arc<Space>,
    pub(super) forward: ForwardHandler,
    pub(super) receiver: Receiver,
    pub(super) joins: Joins,
    /// `raftJoin`: this node joins a group and never forms one.
    pub(super) join_only: bool,
    /// A stranger that keeps calling is not worth a line each time.
    pub(super) nag: Nag,
    /// Whom this node follows.
    pub(super) followed: Followed,
}

impl Shared {
    /// Whether this node may stand for election, and has all that a leader answers from.
    pub(super) fn can_lead(&self) -> bool {
        self.receiver.queues.is_built() && self.gate.may_stand(self.local.node)
    }

    /// What this node says of itself now.
    pub(super) async fn introduction(&self) -> NodeInfo {
        self.hold_if_initialized().await;
        self.local.info().await
    }

    /// Notes durably that Raft has begun to act for the group, once it has.
    pub(super) async fn hold_if_initialized(&self) {
        if self.local.identity.read().await.held() {
            return;
        }
        if let Ok(true) = self.raft.is_initialized().await
            && let Err(e) = self.local.identity.write().await.hold()
        {
            // Only an emptied store would go unnoticed, and the next message tries again.
            tracing::warn!("identity file not written: {e}");
        }
    }

    /// Lets Raft act on a message that a member of `group` sent.
    pub(super) async fn acting_for<T>(
        &self,
        group: GroupId,
        act: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        let identity = self.local.identity.read().await;
        if identity.group() != Some(group) {
            return Err(Refusal::refused(format!(
                "this node has agreed to form another group than {group}"
            )));
        }
        if identity.held() {
            drop(identity);
            return Ok(act.await);
        }
        let result = act.await;
        drop(identity);
        self.hold_if_initialized().await;
        Ok(result)
    }

    /// Refuses a vote that this node may not give.
    pub(super) fn check_gate(&self, request: &VoteRequest) -> Result<(), Refusal> {
        if self.gate.is_open_to(request.vote.leader_id.node_id) {
            return Ok(());
        }
        let reason = if self.gate.is_quarantined() {
            "it lost power and may have lost entries that it acknowledged"
        } else {
            "it has to keep what it promised before it was restarted"
        };
        Err(Refusal::later(format!(
            "{} does not vote yet: {reason}",
            self.local.self_id
        )))
    }

    /// Notes who leads by `vote` and what it has, once it has proven to be the leader.
    pub(super) fn heard(
        &self,
        result: &AppendResult,
        (vote, seal): (Vote, Seal),
        leader_last: Option<LogId>,
    ) {
        if result.is_err() {
            return;
        }
        self.followed.note(vote, seal);
        if let Some(last) = leader_last {
            self.gate.heard_leader(last);
        }
    }

    /// Agrees durably to belong to `group`, unless Raft has already acted for one.
    pub(super) async fn agree_to(&self, group: GroupId) -> Result<(), Refusal> {
        let mut identity = self.local.identity.write().await;
        let initialized = self.raft.is_initialized().await.map_err(stopped)?;
        if identity.held() || initialized {
            let group = identity
                .group()
                .map_or_else(|| "-".to_owned(), |id| id.to_string());
            return Err(Refusal::refused(format!(
                "{} already holds group {group}",
                self.local.self_id
            )));
        }
        identity
            .agree(group)
            .map_err(|e| Refusal::later(format!("{}: identity file: {e}", self.local.self_id)))
    }

    /// Where the other configured nodes listen.
    pub(super) fn peer_addrs(&self) -> impl Iterator<Item = String> {
        let others = self.local.peers.iter();
        let others = others.filter(|(id, _)| *id != self.local.self_id);
        others.map(|(_, addr)| addr.to_owned())
    }

    /// Whether its log can be sent from the first entry on, so that a follower may do without a
    /// snapshot.
    pub(super) fn holds_all_entries(&self) -> bool {
        self.raft.data_metrics().borrow_watched().purged.is_none()
    }

    /// Whether this node believes to lead.
    pub(super) fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().current_leader == Some(self.local.node)
    }
}

/// What to tell a peer of a failure that ends this node.
pub(super) fn stopped(e: impl std::fmt::Display) -> Refusal {
    Refusal::later(format!("raft has stopped: {e}"))
}
