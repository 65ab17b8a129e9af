//! From options and an open store to a running node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use rmq_store::{Disk, Log, Retention, Store, StoreConfig};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::Raft;
use super::batcher::Batcher;
use super::group::Group;
use super::leadership::OnFatal;
use super::log_store::to_log_id;
use super::node::{self, Node, Parts, RaftRuntime, StartError, Timers};
use super::peer::{
    Bound, ForwardHandler, Identity, LastWill, Left, Local, Mender, Net, Network, Options,
    PeerList, Peers, Receiver, SelfId, Tcp, Throttle, answer_repairs, form_alone,
};
use super::retention::{Retaining, RetentionRules};
use super::types::BrokerNode;
use super::upkeep::Upkeep;
use crate::meta::Meta;

/// Between two looks at whether a snapshot has been made.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(100);
/// The identity's name under the store's root.
const IDENTITY_FILE: &str = "raft.identity";

/// Called on a thread of Raft when a snapshot has arrived: the node is to be shut down then, and
/// [`rmq_store::begin_install`] and the next opening of the store put it in the log's place. Until
/// that is done the node stays too far behind to take part.
pub type OnInstall = Arc<dyn Fn() + Send + Sync>;

/// What a node is told of its group and its part in it.
pub struct RaftOptions {
    /// The group's name, the same on all its nodes.
    pub group: String,
    /// Where clients connect, `host:port`.
    pub broker_addr: String,
    /// `None` makes this node a group of one, which listens to nobody.
    pub peers: Option<PeerOptions>,
    /// How quickly a dead leader is noticed.
    pub timers: Timers,
    /// `uncleanRecovery=longest-log`: when so many nodes have lost power under ASYNC_FLUSH that those
    /// which lost nothing are no majority, the node with the longest log leads; else the group waits
    /// for [`Group::recover`]. In either case a node that lost power does not vote by itself before it
    /// has all that a leader has.
    pub longest_log: bool,
    /// Where Raft runs. `None` gives it threads of its own, so that no load from clients delays a
    /// heartbeat.
    pub runtime: Option<Handle>,
    /// What leaves the log, and when.
    pub retention: RetentionRules,
    /// Bytes a second that snapshots for other nodes may take together; 0 for no limit.
    pub snapshot_bytes_per_second: u64,
    /// Has the snapshot installed that a leader has sent.
    pub on_install: OnInstall,
    /// Called once, on a thread of Raft, when Raft has failed for good. The process should end:
    /// nothing of this group works here any more, and its state on disk is sound.
    pub on_fatal: OnFatal,
}

/// What a node is told of the other nodes.
pub struct PeerOptions {
    /// `dLegerSelfId`.
    pub self_id: SelfId,
    /// `dLegerPeers`.
    pub list: PeerList,
    /// Where peers connect to this node.
    pub listener: Box<dyn Bound>,
    /// How it connects to them.
    pub net: Arc<dyn Net>,
    /// `raftJoin`: join a group, never form one.
    pub join_only: bool,
    /// `autoRejoin`: as leader, let a node with an emptied store take its own place again.
    pub auto_rejoin: bool,
    /// Answers what other nodes forward while this one leads.
    pub forward: ForwardHandler,
    /// Takes what is to be sent to the others once this process has ended; `None` where nobody knows
    /// for certain when that is.
    pub last_will: Option<LastWill>,
}

/// Starts a node over an open store. Returns as soon as the node takes part in its group, or tries
/// to; whether it serves is for [`Group::watch_role`] to tell. Must be called on the runtime that
/// serves clients; Raft itself runs on threads of its own.
pub async fn start(
    options: RaftOptions,
    store: Store,
    store_config: &StoreConfig,
    disk: Arc<dyn Disk>,
    meta: Meta,
) -> Result<Group, StartError> {
    let RaftOptions {
        group,
        broker_addr,
        peers,
        timers,
        longest_log,
        runtime,
        retention: rules,
        snapshot_bytes_per_second,
        on_install,
        on_fatal,
    } = options;
    let config = node::config(&group, timers)?;
    let Store { mut log, queues } = store;
    let reader = log.reader();
    let self_id = peers.as_ref().map_or(SelfId(0), |peers| peers.self_id);
    let lost_vote = log.has_lost_vote();
    let pristine = reader.last_id().is_none() && log.read_vote().is_none() && !lost_vote;
    let identity_path = store_config.root.join(IDENTITY_FILE);
    let mut identity = Identity::open(
        disk.clone(),
        &identity_path,
        &group,
        self_id,
        pristine,
        rand::random(),
    )?;
    if lost_vote {
        renew_vote(&mut log, &mut identity, peers.as_ref())?;
    }
    let id = identity.node();
    let list = peers
        .as_ref()
        .map_or_else(PeerList::default, |peers| peers.list.clone());
    let addrs = BrokerNode {
        raft_addr: list.addr(self_id).unwrap_or_default().to_owned(),
        broker_addr,
    };
    let genesis = log
        .genesis()
        .map_or_else(String::new, |genesis| genesis.digest());
    let local = Arc::new(Local::new(
        group,
        self_id,
        genesis,
        list,
        addrs.clone(),
        identity,
    ));
    let retention = Retention::new(
        reader.clone(),
        Arc::clone(&queues),
        Arc::clone(&disk),
        store_config,
    );
    let known = meta.clone();
    let receiver = Receiver {
        config: store_config.clone(),
        disk: disk.clone(),
        log: reader.clone(),
        queues: queues.clone(),
        on_install,
        receiving: Mutex::new(Left::to(&reader)),
    };
    let throttle = Throttle::new(snapshot_bytes_per_second);
    let scrub = rules.scrub_bytes_per_second;
    let parts = Parts {
        id,
        config,
        log,
        queues,
        meta,
        root: store_config.root.clone(),
        disk,
        has_peers: peers.is_some(),
        on_fatal,
    };

    let runtime = RaftRuntime::start(runtime)?;
    let started = runtime
        .run(take_part(
            parts,
            local,
            addrs,
            peers,
            longest_log,
            receiver,
            (throttle, scrub),
        ))
        .await;
    let (node, network, peers) = started.ok_or(StartError::Panicked)??;
    let max = reader.max_extent_bytes();
    let (raft, leadership) = (node.raft.clone(), node.leadership.clone());
    let space = node.space.clone();
    let batcher = runtime
        .run(async move { Batcher::start(raft, leadership, known, space, max) })
        .await
        .ok_or(StartError::Panicked)?;
    let retaining = Retaining::start(&node, network.clone(), retention, rules);
    Ok(Group::new(
        node, batcher, network, peers, retaining, runtime,
    ))
}

/// Goes on without the vote that was given, if nobody can be misled by another one: as another node, or
/// alone.
fn renew_vote(
    log: &mut Log,
    identity: &mut Identity,
    peers: Option<&PeerOptions>,
) -> Result<(), StartError> {
    if let Some(peers) = peers {
        // Nobody would be there to take in another node.
        if peers.list.len() < 2 {
            return Err(StartError::LostVote);
        }
        let former = identity.node();
        identity.renew(rand::random()).map_err(StartError::Log)?;
        tracing::error!(
            former,
            node = identity.node(),
            "the file of the vote is damaged or missing: this node does not vote before the group has \
             taken it in again, in the place of the one that it was"
        );
    } else {
        tracing::error!("the file of the vote is damaged or missing: it is made anew");
    }
    log.renew_vote().map_err(StartError::Log)
}

/// The part of the start that belongs on Raft's own runtime.
async fn take_part(
    parts: Parts,
    local: Arc<Local>,
    addrs: BrokerNode,
    peers: Option<PeerOptions>,
    longest_log: bool,
    receiver: Receiver,
    (throttle, scrub): (Throttle, u64),
) -> Result<(Arc<Node>, Network, Option<Peers>), StartError> {
    let net = peers
        .as_ref()
        .map_or_else(|| Arc::new(Tcp) as Arc<dyn Net>, |peers| peers.net.clone());
    let reader = parts.log.reader();
    let log = reader.clone();
    let last = Arc::new(move || reader.last_id().map(to_log_id));
    let network = Network::new(net.clone(), local.clone(), last, throttle);
    let listener = peers
        .as_ref()
        .map(|peers| peers.listener.listen())
        .transpose();
    let listener = listener.map_err(StartError::Listen)?;
    let has_history = parts.log.genesis().is_some();
    let mender = peers
        .as_ref()
        .map(|_| Mender::new(log.clone(), net.clone(), local.clone()));
    let upkeep = Upkeep::start(&log, &parts.queues, mender, scrub);
    let recovering = Node::recover(parts, network.clone());
    let node = match &listener {
        Some(listener) => tokio::select! {
            node = recovering => node?,
            never = answer_repairs(&**listener, &local, &log) => match never {},
        },
        None => recovering.await?,
    };
    node.keep(upkeep);
    let node = Arc::new(node);
    node.leadership.ask_through(network.clone());
    node.raft.run();
    if has_history {
        tokio::spawn(begin_with_a_snapshot(node.raft.clone()));
    }
    let (Some(peers), Some(listener)) = (peers, listener) else {
        form_alone(&local, &node.raft)
            .await
            .map_err(StartError::Raft)?;
        tokio::spawn(keep_address(node.clone(), addrs));
        return Ok((node, network, None));
    };
    let options = Options {
        net,
        listener,
        local,
        raft: node.raft.clone(),
        gate: node.gate.clone(),
        space: node.space.clone(),
        forward: peers.forward,
        receiver,
        longest_log,
        join_only: peers.join_only,
        auto_rejoin: peers.auto_rejoin,
        last_will: peers.last_will,
    };
    Ok((node, network, Some(Peers::start(options))))
}

/// Purges the first entry of a log that stands on an adopted history: a node without that history
/// then gets it with a snapshot, for entries alone would find no place there.
async fn begin_with_a_snapshot(raft: Raft) {
    let data = raft.data_metrics();
    loop {
        let now = data.borrow_watched().clone();
        let (snapshot, applied) = (now.snapshot.is_some(), now.last_applied.is_some());
        let asked = match (now.purged.is_some(), snapshot, applied) {
            (true, ..) => return,
            (false, true, _) => raft.trigger().purge_log(0).await,
            (false, false, true) => raft.trigger().snapshot().await,
            (false, false, false) => Ok(()),
        };
        if asked.is_err() {
            return;
        }
        sleep(SNAPSHOT_PAUSE).await;
    }
}

/// A group of one has nobody to tell of a new address but its own log.
async fn keep_address(node: Arc<Node>, addrs: BrokerNode) {
    let mut roles = node.leadership.watch();
    if roles.wait_for(|role| role.serving).await.is_err() {
        return;
    }
    let own = node.leadership.leader();
    if own.is_none_or(|own| own.broker_addr == addrs.broker_addr) {
        return;
    }
    let change = ChangeMembers::SetNodes(BTreeMap::from([(*node.raft.node_id(), addrs)]));
    if let Err(error) = node.raft.change_membership(change, true).await {
        tracing::warn!(%error, "cannot note this broker's new address in the log");
    }
}
