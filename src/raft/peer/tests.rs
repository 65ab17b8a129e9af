//! Groups of real nodes on loopback.

mod death;
mod formation;
mod group;
mod handshake;
mod pipeline;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver;
use rmq_store::{
    FlushMode, LogIndex, LogReader, OpenError, OpenStoreError, RealDisk, Store, StoreConfig,
};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::meta::{Change, Command, Meta, OffsetCommit};
use crate::raft::log_store::to_log_id;
use crate::raft::node::{Node, Parts, Timers, config};
use crate::raft::types::{LogId, NodeId, Proposal, Responder, TypeConfig};
use crate::testing::{PATIENCE, own_loopback, until, until_ok};

/// Time in which something that must never happen would usually have happened.
const A_WHILE: Duration = Duration::from_millis(1200);

/// The directories of a group and the addresses of its nodes.
struct Cluster {
    peers: PeerList,
    dirs: Vec<TempDir>,
}

/// The entries of a log as they lie on disk.
fn raw_log(log: &LogReader) -> Vec<Vec<u8>> {
    let entries = (0..).map_while(|index| log.raw(LogIndex(index)).unwrap());
    entries.map(|slices| slices.concat()).collect()
}

struct Running {
    node: Node,
    raft: Raft,
    log: LogReader,
    local: Arc<Local>,
    network: Network,
    peers: Peers,
}

/// What differs from a node as it usually starts.
#[derive(Clone, Default)]
struct Differs {
    peers: Option<PeerList>,
    join_only: bool,
    no_auto_rejoin: bool,
    genesis: &'static str,
    broker_addr: Option<&'static str>,
    forward: Option<ForwardHandler>,
    last_will: Option<LastWill>,
    timers: Timers,
}

impl Cluster {
    async fn new(nodes: u16) -> Self {
        let host = own_loopback();
        let mut listeners = Vec::new();
        for _ in 0..nodes {
            listeners.push(TcpListener::bind((host, 0)).await.unwrap());
        }
        // Together, so that no two get the same port.
        let addrs = listeners.iter().map(|l| l.local_addr().unwrap());
        Self {
            peers: (0..)
                .map(SelfId)
                .zip(addrs.map(|a| a.to_string()))
                .collect(),
            dirs: (0..nodes).map(|_| tempfile::tempdir().unwrap()).collect(),
        }
    }

    /// Gives a node an empty directory, and its former one to the caller.
    fn wipe(&mut self, id: u16) -> TempDir {
        let dir = &mut self.dirs[usize::from(id)];
        std::mem::replace(dir, tempfile::tempdir().unwrap())
    }

    async fn start(&self, id: u16) -> Running {
        self.start_as(id, Differs::default()).await
    }

    async fn start_as(&self, id: u16, differs: Differs) -> Running {
        let dir = &self.dirs[usize::from(id)];
        let peers = differs.peers.clone().unwrap_or_else(|| self.peers.clone());
        let addr = self.peers.addr(SelfId(id)).unwrap().to_owned();
        start(dir.path(), id, peers, addr, differs).await
    }

    async fn start_all(&self) -> Vec<Running> {
        let mut nodes = Vec::new();
        for id in 0..u16::try_from(self.dirs.len()).unwrap() {
            nodes.push(self.start(id).await);
        }
        nodes
    }
}

/// Opens a store, once a node that was stopped has let go of it.
async fn open_store(dir: &Path) -> Store {
    let mut config = StoreConfig::new(dir);
    config.max_message_bytes = 4096;
    config.segment_bytes = 256 * 1024;
    config.consume_queue_file_bytes = 20 * 1000;
    config.index_slots = 100;
    config.index_entries = 1000;
    config.flush = FlushMode::Sync;
    until_ok("the store is free", async || {
        match rmq_store::open(&config, Arc::new(RealDisk)) {
            Err(OpenStoreError::Log(locked @ OpenError::Locked { .. })) => Err(locked),
            opened => Ok(opened.unwrap()),
        }
    })
    .await
}

fn open_identity(dir: &Path, id: SelfId, pristine: bool) -> Identity {
    let disk = Arc::new(RealDisk);
    let path = dir.join("raft.identity");
    Identity::open(disk, &path, "broker-a", id, pristine, rand::random()).unwrap()
}

async fn start(dir: &Path, id: u16, peers: PeerList, addr: String, differs: Differs) -> Running {
    let store = open_store(dir).await;
    let log = store.log.reader();
    let pristine = log.last_id().is_none() && store.log.read_vote().is_none();
    let identity = open_identity(dir, SelfId(id), pristine);
    let addrs = BrokerNode {
        raft_addr: addr.clone(),
        broker_addr: differs.broker_addr.unwrap_or("clients:10911").to_owned(),
    };
    let genesis = differs.genesis.to_owned();
    let local = Local::new(
        "broker-a".into(),
        SelfId(id),
        genesis,
        peers,
        addrs,
        identity,
    );
    let local = Arc::new(local);
    let net: Arc<dyn Net> = Arc::new(Tcp);
    let last = {
        let log = log.clone();
        move || log.last_id().map(to_log_id)
    };
    let network = Network::new(
        Arc::clone(&net),
        Arc::clone(&local),
        Arc::new(last),
        Throttle::new(0),
    );
    let receiver = Receiver {
        config: StoreConfig::new(dir),
        disk: Arc::new(RealDisk),
        log: log.clone(),
        queues: store.queues.clone(),
        on_install: Arc::new(|| {}),
        receiving: tokio::sync::Mutex::new(Left::to(&log)),
    };
    let parts = Parts {
        id: local.node,
        config: config("broker-a", differs.timers).unwrap(),
        log: store.log,
        queues: store.queues,
        meta: Meta::new(),
        root: dir.to_owned(),
        disk: Arc::new(RealDisk),
        has_peers: true,
        on_fatal: Box::new(|reason| panic!("raft failed: {reason}")),
    };
    let node = Node::recover(parts, network.clone()).await.unwrap();
    node.raft.run();
    let forward = differs
        .forward
        .unwrap_or_else(|| Arc::new(|_, frame| Box::pin(async move { Ok(Some(frame)) })));
    let peers = Peers::start(Options {
        net,
        listener: Box::new(TcpListener::bind(addr).await.unwrap()),
        local: Arc::clone(&local),
        raft: node.raft.clone(),
        gate: node.gate.clone(),
        space: node.space.clone(),
        forward,
        receiver,
        longest_log: false,
        join_only: differs.join_only,
        auto_rejoin: !differs.no_auto_rejoin,
        last_will: differs.last_will,
    });
    Running {
        raft: node.raft.clone(),
        node,
        log,
        local,
        network,
        peers,
    }
}

impl Running {
    async fn stop(self) {
        self.peers.shutdown().await;
        self.node.shutdown().await;
    }

    /// Ends as a killed process does, as far as that is possible within one: nothing is saved.
    async fn kill(self) {
        self.peers.shutdown().await;
        self.raft.shutdown().await.unwrap();
    }

    async fn group(&self) -> Option<GroupId> {
        self.local.identity.read().await.group()
    }

    fn voters(&self) -> Vec<NodeId> {
        let metrics = self.raft.server_metrics().borrow_watched().clone();
        metrics.membership_config.voter_ids().collect()
    }

    /// Waits until this node is a voter of a group of `voters` that has a leader.
    async fn joined(&self, voters: usize) -> NodeId {
        let node = self.local.node;
        let metrics = self.wait_for("a voter under a leader", |metrics| {
            let members: Vec<_> = metrics.membership_config.voter_ids().collect();
            metrics.current_leader.is_some() && members.len() == voters && members.contains(&node)
        });
        metrics.await.current_leader.unwrap()
    }

    /// Proposes a command and says whether it is committed.
    async fn try_write(&self, offset: i64) -> bool {
        let commit = OffsetCommit {
            group: "consumers".to_owned(),
            topic: "orders".to_owned(),
            queue_id: 0,
            offset,
        };
        let command = Command {
            at_ms: 1,
            change: Change::CommitOffsets(vec![commit]),
        };
        let proposal = Proposal::Meta(command.encode().unwrap().into());
        let (done, written) = tokio::sync::oneshot::channel();
        let responder = Responder::new(move |result| drop(done.send(result)));
        let accepted = self.raft.client_write_ff(proposal, Some(responder)).await;
        accepted.is_ok() && written.await.is_ok_and(|result| result.is_ok())
    }

    async fn applied_all_of(&self, other: &Running) {
        let last = other.raft.metrics().borrow_watched().last_applied;
        self.wait_for("applied what another node has", |metrics| {
            metrics.last_applied >= last
        })
        .await;
    }

    async fn wait_for(
        &self,
        what: &str,
        condition: impl Fn(&RaftMetrics<TypeConfig>) -> bool + Send,
    ) -> RaftMetrics<TypeConfig> {
        let wait = self.raft.wait(Some(PATIENCE));
        wait.metrics(condition, what).await.unwrap()
    }
}

/// The one of `nodes`, all the voters of the group, that leads.
async fn leader(nodes: &[Running]) -> &Running {
    let leader = nodes[0].joined(nodes.len()).await;
    nodes.iter().find(|node| node.local.node == leader).unwrap()
}

/// Has whichever node leads commit something. A leader's first moments, and those of a machine with
/// too much to do, are without a lease.
async fn write(nodes: &[Running], offset: i64) {
    until_ok("something is committed", async || {
        for node in nodes {
            if node.try_write(offset).await {
                return Ok(());
            }
        }
        Err("nobody leads")
    })
    .await;
}
