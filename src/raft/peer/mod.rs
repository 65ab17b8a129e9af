//! Everything between the nodes of a group, over one port.
//!
//! - `identity`: who a data directory is; `dLegerSelfId` and `dLegerPeers`.
//! - `transport`: dialling and accepting, the seam for a simulated network.
//! - `wire`: frames. `messages`: what their heads say.
//! - `caller`: requests to one peer. `network`: openraft's side that sends. `server`: the side that
//!   answers.
//! - `formation`: from configured peers to a group, once. `join`: the leader's part in taking in
//!   a node with an empty directory.
//!
//! What Raft does with the messages is openraft's business; what a forwarded request means is the
//! broker's.

mod caller;
mod identity;
mod messages;
mod network;
mod transport;
mod wire;

use tokio::sync::RwLock;

pub(in crate::raft) use identity::{GroupId, Identity};
pub use identity::{IdentityError, PeerList, PeerListError, SelfId, SelfIdError};
pub(in crate::raft) use network::{ForwardError, Network};
pub use transport::{Duplex, Listener, Net, Tcp};

use crate::raft::types::{BrokerNode, NodeId};
use messages::NodeInfo;

/// This node, as it introduces itself.
pub(in crate::raft) struct Local {
    group_name: String,
    self_id: SelfId,
    node: NodeId,
    genesis: String,
    peers: PeerList,
    addrs: BrokerNode,
    /// Written while the node agrees to form a group. Whoever lets Raft act on a message from a
    /// peer before the identity is held does so under a read lock, so that a group once agreed
    /// cannot be exchanged for another while Raft is already acting for the first.
    identity: RwLock<Identity>,
}

impl Local {
    /// `genesis` is the digest of the adopted history, empty without one.
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
            identity: RwLock::new(identity),
        }
    }

    async fn info(&self) -> NodeInfo {
        let identity = self.identity.read().await;
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
