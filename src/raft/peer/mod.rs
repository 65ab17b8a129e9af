//! Everything between the nodes of a group, over one port.
//!
//! - `identity`: who a data directory is; `dLegerSelfId` and `dLegerPeers`.
//! - `transport`: dialling and accepting, the seam for a simulated network.
//! - `wire`: frames. `messages`: what their heads say.
//! - `caller`: requests to one peer. `network`: openraft's side that sends. `server`: the side that
//!   answers.
//! - `repair`: whole bytes of the log for damaged ones.
//! - `snapshot`: the log as raw bytes, for a node that is too far behind.
//! - `death`: how the others learn that the process of their leader has ended.
//! - `shared`: what the requests of peers act on.
//! - `formation`: from configured peers to a group, once. `join`: the leader's part in taking in
//!   a node with an empty directory. `members`: what an operator changes about the members.
//!   `unclean`: who leads when a majority lost power.
//!
//! What Raft does with the messages is openraft's business; what a forwarded request means is the
//! broker's.

mod caller;
mod death;
mod formation;
mod identity;
mod join;
mod members;
mod messages;
mod nag;
mod network;
mod repair;
mod server;
mod shared;
mod snapshot;
mod transport;
mod unclean;
mod wire;

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

pub use death::{LastWill, Letter, deliver};
pub(in crate::raft) use formation::form_alone;
pub(in crate::raft) use identity::{GroupId, Identity};
pub use identity::{IdentityError, PeerList, PeerListError, SelfId, SelfIdError};
pub(in crate::raft) use members::{ALIVE_WITHIN, CAUGHT_UP, Members};
pub use members::{MemberChange, MembersError};
pub(in crate::raft) use network::{ForwardError, Network};
pub(in crate::raft) use repair::{Mender, answer_repairs};
pub use server::{ForwardHandler, NotLeader};
pub(in crate::raft) use snapshot::{Left, Receiver, Throttle};
pub use transport::{Bound, Duplex, Listener, Net, Tcp};

use crate::raft::Raft;
use crate::raft::gate::VoteGate;
use crate::raft::space::Space;
use crate::raft::types::{BrokerNode, NodeId};
use caller::Dialer;
use death::{Followed, Secret};
use join::Joins;
use messages::NodeInfo;
use nag::Nag;
use shared::Shared;

/// What it takes to talk with the other nodes of a group.
pub(in crate::raft) struct Options {
    /// Dials them.
    pub(in crate::raft) net: Arc<dyn Net>,
    /// Where they dial this node.
    pub(in crate::raft) listener: Box<dyn Listener>,
    pub(in crate::raft) local: Arc<Local>,
    /// Runs on a [`Network`] made with the same `net` and `local`.
    pub(in crate::raft) raft: Raft,
    pub(in crate::raft) gate: VoteGate,
    pub(in crate::raft) space: Arc<Space>,
    /// Answers what other nodes forward while this one leads.
    pub(in crate::raft) forward: ForwardHandler,
    /// Takes snapshots.
    pub(in crate::raft) receiver: Receiver,
    /// `uncleanRecovery=longest-log`: after a loss of power, decide without an operator.
    pub(in crate::raft) longest_log: bool,
    /// `raftJoin`: join a group, never form one.
    pub(in crate::raft) join_only: bool,
    /// `autoRejoin`: as leader, let a node with an emptied directory take its own place again.
    pub(in crate::raft) auto_rejoin: bool,
    /// What is to be sent once this process has ended.
    pub(in crate::raft) last_will: Option<LastWill>,
}

/// A node's dealings with the others of its group: it answers them, and works to become and stay a
/// voter, until this is dropped or shut down.
pub(in crate::raft) struct Peers {
    shared: Arc<Shared>,
    dialer: Dialer,
    tasks: JoinSet<()>,
}

impl Peers {
    /// Must be called within the Raft runtime.
    pub(in crate::raft) fn start(options: Options) -> Self {
        let dialer = Dialer {
            net: options.net,
            local: Arc::clone(&options.local),
            runtime: Handle::current(),
        };
        let shared = Arc::new(Shared {
            local: Arc::clone(&options.local),
            raft: options.raft,
            gate: options.gate,
            space: options.space,
            forward: options.forward,
            receiver: options.receiver,
            joins: Joins::new(options.auto_rejoin),
            join_only: options.join_only,
            nag: Nag::default(),
            followed: Followed::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(server::accept(options.listener, Arc::clone(&shared)));
        tasks.spawn(formation::run(Arc::clone(&shared), dialer.clone()));
        tasks.spawn(snapshot::tidy(Arc::clone(&shared)));
        if let Some(will) = options.last_will {
            tasks.spawn(death::keep_will(Arc::clone(&shared), will));
        }
        let by_itself = options.longest_log;
        tasks.spawn(unclean::run(Arc::clone(&shared), dialer.clone(), by_itself));
        Self {
            shared,
            dialer,
            tasks,
        }
    }

    /// What an operator may change.
    pub(in crate::raft) fn members(&self) -> Members {
        Members {
            shared: Arc::clone(&self.shared),
            dialer: self.dialer.clone(),
        }
    }

    /// Hangs up on all peers. On return the port is free and the identity file is never written
    /// again by this node.
    pub(in crate::raft) async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.shared.local.identity.write().await.close();
    }
}

/// This node, as it introduces itself.
pub(in crate::raft) struct Local {
    group_name: String,
    self_id: SelfId,
    node: NodeId,
    genesis: String,
    peers: PeerList,
    addrs: BrokerNode,
    /// Proves the end of this node's process, once somebody else has it.
    secret: Secret,
    /// Written while the node agrees to form a group. Whoever lets Raft act on a message from a
    /// peer before the identity is held does so under a read lock, so that a group once agreed
    /// cannot be exchanged for another while Raft is already acting for the first.
    identity: RwLock<Identity>,
    /// Serves clients here. What nodes forward for them is no work for Raft's own threads, which have no
    /// time for it and run before everything else.
    clients: Handle,
}

impl Local {
    /// `genesis` is the digest of the adopted history, empty without one. Must be called on the runtime that
    /// serves clients.
    pub(in crate::raft) fn new(
        group_name: String,
        self_id: SelfId,
        genesis: String,
        peers: PeerList,
        addrs: BrokerNode,
        identity: Identity,
    ) -> Self {
        Self {
            group_name,
            self_id,
            node: identity.node(),
            genesis,
            peers,
            addrs,
            secret: Secret::draw(),
            identity: RwLock::new(identity),
            clients: Handle::current(),
        }
    }

    async fn info(&self) -> NodeInfo {
        self.describe(&*self.identity.read().await)
    }

    fn describe(&self, identity: &Identity) -> NodeInfo {
        NodeInfo {
            group_name: self.group_name.clone(),
            group: identity.group(),
            holds_group: identity.held(),
            self_id: self.self_id,
            node: self.node,
            genesis: self.genesis.clone(),
            peers: self.peers.clone(),
            addrs: self.addrs.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
