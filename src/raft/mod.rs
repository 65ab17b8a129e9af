//! Raft: the glue between openraft and the store, and the only place that names openraft.
//!
//! - `types`: what openraft is parameterised with, and the membership's format.

mod types;

pub use types::NodeId;
