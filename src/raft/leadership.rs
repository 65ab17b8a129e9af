//! Who leads, and whether this node may serve: read from openraft's metrics whenever it is asked,
//! so that a process that was stopped for ten seconds knows at its first question that its lease is
//! over. The task here only tells watchers of changes, and logs them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::metrics::{RaftDataMetrics, RaftServerMetrics};
use openraft_rt_tokio::{TokioInstant, TokioWatchReceiver};
use rmq_store::mutant;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::peer::{Network, SelfId};
use super::types::{LeaderId, Membership, NodeId, TypeConfig};
use super::{GroupStatus, LeaderInfo, MemberStatus, Raft, Role, RoleState, TransferError};

/// What is to be done with the reason once openraft has stopped for good.
pub type OnFatal = Box<dyn FnOnce(&str) + Send>;

/// How long a member may take to say whether it can take over, or whether it is full.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// For how long successors are asked, and the pause in between.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// How long a transfer may take: the target elects itself in a few round trips and a flush.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(2);

/// The view of one node on its group's leadership.
pub(super) struct Leadership {
    raft: Raft,
    server: TokioWatchReceiver<RaftServerMetrics<TypeConfig>>,
    data: TokioWatchReceiver<RaftDataMetrics<TypeConfig>>,
    /// How long a quorum's answer keeps others from being elected, from when it was asked.
    lease: Duration,
    /// The term in which this leader has asked another one to take over; 0 for none. The successor
    /// is elected without waiting for the lease, which therefore proves nothing any more.
    resigned_term: AtomicU64,
    roles: watch::Sender<RoleState>,
    fatal: OnceLock<String>,
    /// By which a successor is asked whether it can take over.
    network: OnceLock<Network>,
}

/// How long this node may serve without hearing from its group again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lease {
    /// Not the leader, its lease is over, or not everything before its term is applied yet.
    None,
    Until(TokioInstant),
    /// It is the only voter.
    Forever,
}

impl Leadership {
    pub(super) fn new(raft: Raft, lease: Duration) -> Self {
        let server = raft.server_metrics();
        let data = raft.data_metrics();
        let (roles, _) = watch::channel(RoleState {
            term: 0,
            leader: None,
            serving: false,
            self_id: *raft.node_id(),
        });
        Self {
            raft,
            server,
            data,
            lease,
            resigned_term: AtomicU64::new(0),
            roles,
            fatal: OnceLock::new(),
            network: OnceLock::new(),
        }
    }

    /// Has successors asked whether they can take over, from now on.
    pub(super) fn ask_through(&self, network: Network) {
        self.network.set(network).ok();
    }

    pub(super) fn self_id(&self) -> NodeId {
        *self.raft.node_id()
    }

    /// The leader as far as this node knows; not proven to be one still.
    pub(super) fn leader(&self) -> Option<LeaderInfo> {
        let server = self.server.borrow_watched();
        leader_info(
            server.current_leader?,
            server.membership_config.membership(),
        )
    }

    /// The leader, if it is not this node.
    pub(super) fn other_leader(&self) -> Option<LeaderInfo> {
        self.leader().filter(|leader| leader.node != self.self_id())
    }

    /// The term that this node leads, be its lease over or not.
    pub(super) fn leading(&self) -> Option<u64> {
        let term = leading(&self.server.borrow_watched())?.term;
        (self.resigned_term.load(Ordering::Acquire) != term).then_some(term)
    }

    /// The term that this node leads while nobody else can lead a later one, and all that was
    /// committed before is applied here.
    pub(super) fn serving(&self) -> Option<u64> {
        match self.lease() {
            (_, Lease::None) => None,
            (term, Lease::Until(end)) => (now() < end || mutant!(M5)).then_some(term),
            (term, Lease::Forever) => Some(term),
        }
    }

    /// The term that this node leads, if any, and its lease on it.
    fn lease(&self) -> (u64, Lease) {
        const NONE: (u64, Lease) = (0, Lease::None);
        let (leader_id, alone) = {
            let server = self.server.borrow_watched();
            let Some(leader_id) = leading(&server) else {
                return NONE;
            };
            let configs = server.membership_config.membership().get_joint_config();
            // A leader that was voted out steps down by a transfer, which no lease delays.
            if !configs
                .iter()
                .any(|voters| voters.contains(&leader_id.node_id))
            {
                return NONE;
            }
            (leader_id, configs.iter().all(|voters| voters.len() == 1))
        };
        if self.resigned_term.load(Ordering::Acquire) == leader_id.term {
            return NONE;
        }
        let data = self.data.borrow_watched();
        if data.last_applied.is_none_or(|id| id.leader_id != leader_id) {
            return NONE;
        }
        let lease = match data.last_quorum_acked {
            _ if alone => Lease::Forever,
            Some(asked) => Lease::Until(asked.into_inner() + self.lease),
            None => Lease::None,
        };
        (leader_id.term, lease)
    }

    fn role(&self) -> (RoleState, Lease) {
        let lease = match self.lease() {
            (_, Lease::Until(end)) if now() >= end => Lease::None,
            (_, lease) => lease,
        };
        let server = self.server.borrow_watched();
        let members = server.membership_config.membership();
        let role = RoleState {
            term: server.vote.leader_id.term,
            leader: server
                .current_leader
                .and_then(|id| leader_info(id, members)),
            serving: lease != Lease::None,
            self_id: self.self_id(),
        };
        (role, lease)
    }

    /// The role and all its changes, of which a slow watcher may miss some.
    pub(super) fn watch(&self) -> watch::Receiver<RoleState> {
        self.roles.subscribe()
    }

    /// Why openraft has stopped for good, if it has.
    pub(super) fn fatal(&self) -> Option<&str> {
        self.fatal.get().map(String::as_str)
    }

    /// Says why openraft is about to be stopped for good.
    pub(super) fn fail(&self, reason: &str) {
        self.fatal.get_or_init(|| reason.to_owned());
    }

    /// Publishes and logs every change of role until openraft stops; `on_fatal` is called if that
    /// was not asked for.
    pub(super) async fn run(&self, on_fatal: OnFatal) {
        let mut server = self.server.clone();
        let mut data = self.data.clone();
        let mut logged = ServerState::Learner;
        loop {
            let mut before = None;
            let mut lease = Lease::None;
            // Looked at under the lock, so that a transfer's word is never overwritten by an
            // earlier look.
            self.roles.send_if_modified(|known| {
                let role;
                (role, lease) = self.role();
                let changed = *known != role;
                before = Some(std::mem::replace(known, role));
                changed
            });
            if let Some(before) = before {
                self.log(&before, &mut logged);
            }
            let lease_over = async {
                match lease {
                    Lease::Until(end) => sleep(remaining(end)).await,
                    Lease::Forever | Lease::None => std::future::pending().await,
                }
            };
            let soon_serving = lease == Lease::None && self.leading().is_some();
            tokio::select! {
                changed = server.changed() => if changed.is_err() { break },
                changed = data.changed(), if soon_serving => if changed.is_err() { break },
                () = lease_over => {}
            }
        }
        self.roles.send_modify(|role| {
            role.leader = None;
            role.serving = false;
        });
        // To ask openraft a question now would have it log an error, at every stop. A task that said
        // nothing at its end did not come to it.
        let state = self.raft.metrics().borrow_watched().running_state.clone();
        match state.err().unwrap_or(Fatal::Panicked) {
            Fatal::Stopped if self.fatal().is_none() => {
                tracing::info!(node = self.self_id(), "raft stopped")
            }
            fatal => {
                let reason = self.fatal.get_or_init(|| fatal.to_string());
                tracing::error!(node = self.self_id(), reason, "raft failed");
                on_fatal(reason);
            }
        }
    }

    /// Says what has changed since `before`, and since the state that was last `logged`.
    fn log(&self, before: &RoleState, logged: &mut ServerState) {
        let role = self.roles.borrow().clone();
        let state = self.server.borrow_watched().state;
        let node = self.self_id();
        let term = role.term;
        if state == ServerState::Candidate && (*logged != state || before.term != term) {
            tracing::info!(node, term, "stands for election");
        }
        *logged = state;
        if before.leader != role.leader || (before.term != term && role.leader.is_some()) {
            match &role.leader {
                Some(leader) if leader.node == node => tracing::info!(node, term, "leads"),
                Some(leader) => tracing::info!(node, term, leader = leader.node, "follows"),
                None => tracing::info!(node, term, "knows no leader"),
            }
        }
        if before.serving != role.serving {
            if role.serving {
                tracing::info!(node, term, "serves: its lease holds and its log is applied");
            } else {
                tracing::info!(node, term, "serves no more");
            }
        }
    }

    /// Hands leadership to `to`, or to the living voter with the most of the log.
    pub(super) async fn transfer(&self, to: Option<SelfId>) -> Result<NodeId, TransferError> {
        let term = self
            .leading()
            .ok_or_else(|| TransferError::NotLeader(self.other_leader()))?;
        if to == Some(SelfId::of(self.self_id())) {
            return Ok(self.self_id());
        }
        let target = self.successor(to).await?;
        if self.leading() != Some(term) {
            return Err(TransferError::NotLeader(self.other_leader()));
        }
        self.resigned_term.store(term, Ordering::Release);
        // Watchers must not believe in the lease until its end.
        self.roles.send_modify(|role| role.serving = false);
        tracing::info!(
            node = self.self_id(),
            term,
            to = target,
            "transfers leadership"
        );
        let fatal = |e: Fatal<TypeConfig>| TransferError::Fatal(e.to_string());
        // Not to be given up with the caller, which may end with the role: nobody would lead.
        let raft = self.raft.clone();
        let asking = tokio::spawn(async move { raft.trigger().transfer_leader(target).await });
        let asked = asking.await;
        asked
            .map_err(|e| TransferError::Fatal(e.to_string()))?
            .map_err(fatal)?;
        let mut roles = self.watch();
        let taken_over = roles.wait_for(|role| role.term > term && role.leader.as_ref().is_some());
        match tokio::time::timeout(TRANSFER_DEADLINE, taken_over).await {
            Ok(Ok(role)) => Ok(role.leader.as_ref().map_or(target, |leader| leader.node)),
            Ok(Err(_)) | Err(_) => Err(TransferError::Timeout {
                target: SelfId::of(target),
            }),
        }
    }

    /// Who takes over, having said that it can: after the call for it nobody leads until somebody does.
    async fn successor(&self, to: Option<SelfId>) -> Result<NodeId, TransferError> {
        let deadline = Instant::now() + ASK_DEADLINE;
        loop {
            let mut status = self.status();
            let mut asked = None;
            loop {
                let node = match status.successor(to) {
                    Ok(node) => node,
                    Err(_) if asked.is_some() => break,
                    Err(error) => return Err(error),
                };
                let answer = self.can_lead(&status, node).await;
                match answer {
                    Some(true) => return Ok(node),
                    Some(false) if to.is_some() => {
                        return Err(TransferError::NotReady(SelfId::of(node)));
                    }
                    // A connection that broke, or one that starts: it may be able to a moment later.
                    _ => asked = Some(node),
                }
                status.members.retain(|member| member.node != node);
            }
            match asked {
                Some(node) if Instant::now() >= deadline => {
                    return Err(TransferError::NotReady(SelfId::of(node)));
                }
                _ => sleep(ASK_PAUSE).await,
            }
        }
    }

    /// What a node says; `None` if it says nothing.
    async fn can_lead(&self, status: &GroupStatus, node: NodeId) -> Option<bool> {
        let member = status.members.iter().find(|member| member.node == node)?;
        match self.network.get() {
            Some(network) => network.can_lead(node, &member.raft_addr, ASK_LIMIT).await,
            None => Some(true),
        }
    }

    /// Whether another member has no space for messages; `None` if it does not say.
    pub(super) async fn is_full(&self, node: NodeId) -> Option<bool> {
        let members = self.status().members;
        let member = members.iter().find(|member| member.node == node)?;
        let network = self.network.get()?;
        network.is_full(node, &member.raft_addr, ASK_LIMIT).await
    }

    /// What `raftStatus` shows.
    pub(super) fn status(&self) -> GroupStatus {
        let (role, _) = self.role();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let last = metrics.last_log_index;
        let voters: Vec<NodeId> = members.voter_ids().collect();
        let member = |id: &NodeId, node: &super::BrokerNode| {
            let matched = if *id == self.self_id() {
                last
            } else {
                let replication = metrics.replication.as_ref();
                replication.and_then(|r| (*r.get(id)?).map(|matched| matched.index))
            };
            let heartbeat = metrics.heartbeat.as_ref();
            let acked =
                heartbeat.and_then(|h| (*h.get(id)?).map(|asked| now() - asked.into_inner()));
            let ms = |ago: Duration| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
            MemberStatus {
                node: *id,
                raft_addr: node.raft_addr.clone(),
                broker_addr: node.broker_addr.clone(),
                voter: voters.contains(id),
                match_index: matched,
                lag: metrics.replication.as_ref().map(|_| {
                    let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
                    next(last).saturating_sub(next(matched))
                }),
                acked_ms: acked.map(ms),
            }
        };
        GroupStatus {
            node: self.self_id(),
            role: match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Candidate => Role::Candidate,
                ServerState::Follower => Role::Follower,
                _ => Role::Learner,
            },
            term: role.term,
            leader: role.leader,
            serving: role.serving,
            last_index: last,
            // A new term knows of no commit before its own first one.
            commit_index: metrics
                .cluster_committed
                .max(metrics.last_applied)
                .map(|id| id.index),
            applied_index: metrics.last_applied.map(|id| id.index),
            members: members.nodes().map(|(id, node)| member(id, node)).collect(),
            quarantined: false,
            asking: Vec::new(),
            damaged: Vec::new(),
        }
    }
}

/// The id under which the node leads, if it does.
fn leading(server: &RaftServerMetrics<TypeConfig>) -> Option<LeaderId> {
    let leads = server.state == ServerState::Leader
        && server.vote.committed
        && server.vote.leader_id.node_id == server.id
        && server.current_leader == Some(server.id);
    leads.then_some(server.vote.leader_id)
}

fn leader_info(node: NodeId, members: &Membership) -> Option<LeaderInfo> {
    let addrs = members.get_node(&node)?;
    Some(LeaderInfo {
        node,
        raft_addr: addrs.raft_addr.clone(),
        broker_addr: addrs.broker_addr.clone(),
    })
}

fn now() -> TokioInstant {
    <TokioInstant as openraft::Instant>::now()
}

fn remaining(end: TokioInstant) -> Duration {
    let now = now();
    if now < end { end - now } else { Duration::ZERO }
}
