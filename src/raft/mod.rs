//! Raft: the glue between openraft and the store, and the only place that names openraft.
//!
//! - `group`: the handle that the broker has; `status`: what it tells of the group.
//! - `start`: from options to a running node. `node`: openraft's settings, its runtime, recovery
//!   and end of a node.
//! - `leadership`: who leads, leases, transfer. `gate`: when a node that has started may vote.
//!   `watchdog`: what a leader does when its disk stalls.
//! - `retention`: what leaves the log, and when.
//! - `space`: what is refused for want of it.
//! - `batcher`: many sends in one entry.
//! - `peer`: everything between the nodes of a group.
//! - `snapshot`: what is sent to a node that needs entries which have left the log.
//! - `log_store`, `state_machine`, `checkpoint`: openraft's storage. The bytes are `rmq_store`'s
//!   business, the meaning of a metadata command that of `crate::meta`.
//! - `types`: what openraft is parameterised with, and the membership's format.

mod batcher;
mod checkpoint;
mod gate;
mod group;
mod leadership;
mod log_store;
mod mark;
mod node;
mod peer;
mod retention;
mod snapshot;
mod space;
mod start;
mod state_machine;
mod status;
mod tick;
mod types;
mod upkeep;
mod watchdog;

pub use batcher::MAX_ENTRY_BYTES;
pub use group::{Departure, ForwardError, Group, Patience, ProposeError, TransferError};
pub use leadership::OnFatal;
pub use node::{StartError, Timers};
pub use peer::{
    Bound, Duplex, ForwardHandler, IdentityError, LastWill, Letter, Listener, MemberChange,
    MembersError, Net, NotLeader, PeerList, PeerListError, SelfId, SelfIdError, Tcp, deliver,
};
pub use retention::RetentionRules;
pub use start::{OnInstall, PeerOptions, RaftOptions, start};
pub use status::{AskingNode, GroupStatus, LeaderInfo, MemberStatus, Role, RoleState};
pub use types::NodeId;

use state_machine::StateMachine;
use types::{BrokerNode, TypeConfig};

/// openraft's handle of this node.
type Raft = openraft::Raft<TypeConfig, StateMachine>;

#[cfg(test)]
mod tests;
