//! A network between the nodes of one test. Messages are calls; a node can be cut off.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::BytesMut;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use crate::raft::node::Node;
use crate::raft::snapshot::SnapshotData;
use crate::raft::types::{
    Body, BrokerNode, LogEntry, NodeId, SealedRef, Snapshot, TypeConfig, Vote,
};

#[derive(Clone, Default)]
pub(super) struct Wires(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    nodes: HashMap<NodeId, Arc<Node>>,
    cut: HashSet<NodeId>,
}

impl Wires {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The end at which `from` sends.
    pub(super) fn from(&self, from: NodeId) -> Sender {
        Sender {
            from,
            wires: self.clone(),
        }
    }

    /// Lets `node` be reached.
    pub(super) fn plug(&self, id: NodeId, node: Arc<Node>) {
        self.state().nodes.insert(id, node);
    }

    /// Takes a node that is stopped off the network.
    pub(super) fn unplug(&self, id: NodeId) {
        self.state().nodes.remove(&id);
    }

    /// Lets nothing through from or to `id`.
    pub(super) fn cut(&self, id: NodeId) {
        self.state().cut.insert(id);
    }

    pub(super) fn heal(&self) {
        self.state().cut.clear();
    }
}

pub(super) struct Sender {
    from: NodeId,
    wires: Wires,
}

pub(super) struct Link {
    from: NodeId,
    to: NodeId,
    wires: Wires,
}

impl RaftNetworkFactory<TypeConfig> for Sender {
    type Network = Link;

    async fn new_client(&mut self, to: NodeId, _: &BrokerNode) -> Link {
        Link {
            from: self.from,
            to,
            wires: self.wires.clone(),
        }
    }
}

type RpcError = RPCError<TypeConfig>;

fn unreachable() -> RpcError {
    Unreachable::new(&io::Error::from(io::ErrorKind::NotConnected)).into()
}

impl Link {
    fn target(&self) -> Result<Arc<Node>, RpcError> {
        let state = self.wires.state();
        if state.cut.contains(&self.from) || state.cut.contains(&self.to) {
            return Err(unreachable());
        }
        state.nodes.get(&self.to).cloned().ok_or_else(unreachable)
    }

    /// The answer gets lost if the link was cut meanwhile.
    fn answer<T, E>(&self, answer: Result<T, E>) -> Result<T, RpcError> {
        self.target()?;
        answer.map_err(|_| unreachable())
    }
}

/// The same entry with bytes of its own, as after a transport.
fn sent(entry: LogEntry) -> LogEntry {
    let Body::Sealed(extent) = entry.body else {
        panic!("{entry} was not read for replication")
    };
    let mut bytes = BytesMut::new();
    extent
        .raw
        .iter()
        .for_each(|part| bytes.extend_from_slice(part));
    let raw = vec![bytes.freeze()];
    LogEntry {
        body: Body::Sealed(SealedRef { raw, ..extent }),
        ..entry
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let target = self.target()?;
        request.entries = request.entries.into_iter().map(sent).collect();
        self.answer(target.raft.append_entries(request).await)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let target = self.target()?;
        if !target.gate.is_open_to(request.vote.leader_id.node_id) {
            return Err(unreachable());
        }
        self.answer(target.raft.vote(request).await)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let target = self.target()?;
        if !target.gate.is_open_to(request.vote.leader_id.node_id) {
            return Err(unreachable());
        }
        self.answer(target.raft.pre_vote(request).await)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let lost = || StreamingError::Unreachable(Unreachable::new(&io::Error::other("cut")));
        let target = self.target().map_err(|_| lost())?;
        target
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|_| lost())
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let target = self.target()?;
        self.answer(target.raft.handle_transfer_leader(request).await)
    }
}
