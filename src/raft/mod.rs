//! Raft: the glue between openraft and the store, and the only place that names openraft.
//!
//! - `types`: what openraft is parameterised with, and the membership's format.
//! - `peer`: everything between the nodes of a group.

mod peer;
mod types;

pub use peer::{
    Duplex, IdentityError, Listener, Net, PeerList, PeerListError, SelfId, SelfIdError, Tcp,
};
pub use types::NodeId;
