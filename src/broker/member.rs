//! The broker's view of replication, given by a node of a Raft group.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rmq_store::{PendingRecord, Position};
use tokio::sync::watch;

use super::replica::{ForwardError, ProposeError, Replica, Role};
use crate::meta::Reply;
use crate::raft::{
    self, Group, GroupStatus, MemberChange, MembersError, NodeId, Patience, RoleState, SelfId,
    TransferError,
};

/// One node of a group.
pub(super) struct Member {
    group: Group,
    role: watch::Receiver<Role>,
}

impl Member {
    /// Follows the group's roles on a task that ends with the group.
    pub(super) fn new(group: Group) -> Self {
        let mut states = group.watch_role();
        let (sender, role) = watch::channel(role_of(&mut states));
        tokio::spawn(async move {
            while states.changed().await.is_ok() {
                let next = role_of(&mut states);
                sender.send_if_modified(|role| {
                    let changed = *role != next;
                    role.clone_from(&next);
                    changed
                });
            }
        });
        Self { group, role }
    }
}

fn role_of(states: &mut watch::Receiver<RoleState>) -> Role {
    role(&states.borrow_and_update())
}

fn role(state: &RoleState) -> Role {
    let other = state
        .leader
        .as_ref()
        .filter(|leader| leader.node != state.self_id);
    Role {
        term: state.term,
        leader: other.map(|leader| leader.broker_addr.clone()),
        serving: state.serving,
    }
}

impl From<raft::ProposeError> for ProposeError {
    fn from(error: raft::ProposeError) -> Self {
        match error {
            raft::ProposeError::NotLeader(_) => Self::NotLeader,
            raft::ProposeError::Unknown => Self::Unknown,
            raft::ProposeError::TooLarge { bytes, max } => Self::TooLarge { bytes, max },
            raft::ProposeError::Frozen => Self::Frozen,
            raft::ProposeError::Full(reason) | raft::ProposeError::Fatal(reason) => {
                Self::Failed(reason)
            }
        }
    }
}

impl Replica for Member {
    fn propose_messages(
        &self,
        records: Vec<PendingRecord>,
        term: Option<u64>,
    ) -> BoxFuture<'_, Result<Vec<Position>, ProposeError>> {
        self.group
            .propose_messages(records, term)
            .map(|r| r.map_err(Into::into))
            .boxed()
    }

    fn propose_meta(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, ProposeError>> {
        self.group
            .propose_meta(command)
            .map(|r| r.map_err(Into::into))
            .boxed()
    }

    fn propose_meta_behind(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, ProposeError>> {
        let proposed = self.group.propose_meta_behind(command);
        proposed.map(|r| r.map_err(Into::into)).boxed()
    }

    fn serving(&self) -> Option<u64> {
        self.group.serving_term()
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    fn forward(
        &self,
        raw: Bytes,
        client: SocketAddr,
        patience: Patience,
    ) -> BoxFuture<'_, Result<Option<Bytes>, ForwardError>> {
        let answer = async move {
            self.group
                .forward(raw, client, patience)
                .await
                .map_err(|error| match error {
                    raft::ForwardError::NotDone(_) => ForwardError::NoLeader,
                    raft::ForwardError::Unknown(reason) => ForwardError::Unknown(reason),
                })
        };
        answer.boxed()
    }

    fn status(&self) -> GroupStatus {
        self.group.status()
    }

    fn is_full(&self, node: NodeId) -> BoxFuture<'_, Option<bool>> {
        self.group.is_full(node).boxed()
    }

    fn remove_old_segments(&self) {
        self.group.remove_old_segments();
    }

    fn transfer_leader(&self, to: Option<SelfId>) -> BoxFuture<'_, Result<NodeId, TransferError>> {
        self.group.transfer_leader(to).boxed()
    }

    fn recover(&self, without_absent: bool) -> BoxFuture<'_, Result<SelfId, MembersError>> {
        self.group.recover(without_absent).boxed()
    }

    fn change_members(
        &self,
        change: MemberChange,
        node: SelfId,
    ) -> BoxFuture<'_, Result<String, MembersError>> {
        self.group.change_members(change, node).boxed()
    }
}
