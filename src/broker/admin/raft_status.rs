//! `RAFT_STATUS`: this node, and the group as it sees it.

use std::sync::Arc;

use rmq_store::FreezeMark;
use serde::{Deserialize, Serialize};

use super::answer;
use crate::broker::Broker;
use crate::broker::refusal::Handled;
use crate::raft::GroupStatus;
use crate::remoting::Request;

/// Answer to [`RAFT_STATUS`](rmq_wire::code::request::RAFT_STATUS), as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// `dLegerSelfId`, or the broker's name outside a group.
    pub self_id: String,
    /// The name that all nodes of the group share.
    pub broker_name: String,
    /// The process.
    pub pid: u32,
    /// `storePathRootDir`.
    pub store: String,
    /// End of what is committed: a physical offset, in bytes.
    pub confirm_offset: u64,
    /// The mark in this node's store, while the group is frozen.
    #[serde(default)]
    pub frozen: Option<FrozenAt>,
    /// What Raft knows.
    pub group: GroupStatus,
}

/// The entry that froze the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenAt {
    /// Its term.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// Where it ends, which is the end of every message: a physical offset, in bytes.
    pub end_offset: u64,
    /// When it was proposed, milliseconds since 1970.
    pub at_ms: i64,
}

impl From<FreezeMark> for FrozenAt {
    fn from(mark: FreezeMark) -> Self {
        Self {
            term: mark.id.term.0,
            index: mark.id.index.0,
            end_offset: mark.end.0,
            at_ms: mark.at_ms,
        }
    }
}

pub(in crate::broker) async fn raft_status(broker: &Arc<Broker>, request: &Request) -> Handled {
    let config = &broker.config;
    let name = &config.broker_name;
    let self_id = match config.enable_dleger_commit_log {
        true => &config.dleger_self_id,
        false => name,
    };
    let status = NodeStatus {
        self_id: self_id.clone(),
        broker_name: name.clone(),
        pid: std::process::id(),
        store: config.store_path_root_dir.display().to_string(),
        confirm_offset: broker.log.confirm_offset().0,
        frozen: broker.meta.mark().map(FrozenAt::from),
        group: broker.replica.status(),
    };
    answer(request, &status)
}
