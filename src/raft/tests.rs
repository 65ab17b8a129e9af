//! Whole nodes on real files: openraft's storage suite, a group of one, and a group of three over
//! a network that the test can cut; `peers` has those over TCP, `power` those whose machines lose
//! power, `faults` those whose disks fail, `snapshots` nodes that need one.

mod damage;
mod faults;
mod peers;
mod power;
mod retention;
mod snapshots;
mod space;
mod wires;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use rmq_store::{
    Disk, FlushMode, LogReader, OpenError, OpenStoreError, PendingRecord, PhyOffset, Position,
    RealDisk, Store, StoreConfig,
};
use rmq_wire::record::{NewRecord, Record};
use tempfile::TempDir;

use super::batcher::Batcher;
use super::log_store::{LogStore, SharedLog};
use super::node::{Node, Parts, Timers, config};
use super::state_machine::StateMachine;
use super::types::{BrokerNode, NodeId, TypeConfig};
use super::{Group, ProposeError, RaftOptions, RetentionRules, TransferError};
use crate::meta::{Change, Command, Meta, OffsetCommit, Reply};
use crate::testing::{PATIENCE, until, until_ok};
use wires::Wires;

fn store_config(root: &Path, flush: FlushMode) -> StoreConfig {
    let mut config = StoreConfig::new(root);
    // Small segments, so that extents cross their ends.
    config.max_message_bytes = 4096;
    config.segment_bytes = 256 * 1024;
    config.consume_queue_file_bytes = 20 * 1000;
    config.index_slots = 100;
    config.index_entries = 1000;
    config.consume_queue_flush_interval_ms = 10;
    config.flush = flush;
    config
}

/// Opens a store, once the tasks of a node that was dropped have let go of it.
async fn open_store(config: &StoreConfig, disk: Arc<dyn Disk>) -> Store {
    let mut opened = None;
    until("the store is free", || {
        opened = match rmq_store::open(config, disk.clone()) {
            Err(OpenStoreError::Log(OpenError::Locked { .. })) => None,
            opened => Some(opened.unwrap()),
        };
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(
            &store_config(dir.path(), FlushMode::Sync),
            Arc::new(RealDisk),
        )
        .await;
        let reader = store.log.reader();
        let disk = Arc::new(RealDisk);
        let state = StateMachine::open(dir.path(), disk, &reader, store.queues, Meta::new());
        let log = LogStore::new(SharedLog::new(store.log), reader);
        Ok((dir, log, state.unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_accepts_the_storage() {
    Suite::test_all(Builder).await.unwrap();
}

/// A node and what the test looks at.
struct Running {
    group: Group,
    reader: LogReader,
    meta: Meta,
}

async fn start(id: NodeId, root: &Path, wires: &Wires) -> Running {
    let store = open_store(&store_config(root, FlushMode::Sync), Arc::new(RealDisk)).await;
    let reader = store.log.reader();
    let meta = Meta::new();
    let parts = Parts {
        id,
        config: config("test", Timers::default()).unwrap(),
        log: store.log,
        queues: store.queues,
        meta: meta.clone(),
        root: root.to_owned(),
        disk: Arc::new(RealDisk),
        has_peers: true,
        on_fatal: Box::new(|reason| panic!("raft failed: {reason}")),
    };
    let node = Arc::new(Node::recover(parts, wires.from(id)).await.unwrap());
    node.raft.run();
    wires.plug(id, node.clone());
    let max = reader.max_extent_bytes();
    let batcher = Batcher::start(
        node.raft.clone(),
        node.leadership.clone(),
        Meta::new(),
        node.space.clone(),
        max,
    );
    let group = Group::bare(node, batcher);
    Running {
        group,
        reader,
        meta,
    }
}

/// A broker of one.
async fn start_alone(root: &Path, retention: RetentionRules) -> Running {
    let config = store_config(root, FlushMode::Sync);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let store = open_store(&config, disk.clone()).await;
    let reader = store.log.reader();
    store.queues.start(Arc::new(|_| true)).unwrap();
    let meta = Meta::new();
    let options = RaftOptions {
        group: "broker-a".to_owned(),
        broker_addr: "127.0.0.1:10911".to_owned(),
        peers: None,
        timers: Timers::default(),
        longest_log: false,
        snapshot_bytes_per_second: 0,
        on_install: Arc::new(|| {}),
        runtime: None,
        retention,
        on_fatal: Box::new(|reason| panic!("raft failed: {reason}")),
    };
    let group = super::start(options, store, &config, disk, meta.clone()).await;
    Running {
        group: group.unwrap(),
        reader,
        meta,
    }
}

fn addrs(id: NodeId) -> BrokerNode {
    BrokerNode {
        raft_addr: format!("n{id}:40911"),
        broker_addr: format!("n{id}:10911"),
    }
}

async fn form(first: &Running, ids: impl IntoIterator<Item = NodeId>) {
    let members: BTreeMap<_, _> = ids.into_iter().map(|id| (id, addrs(id))).collect();
    first.group.raft().initialize(members).await.unwrap();
}

async fn until_serving(node: &Running) {
    let mut role = node.group.watch_role();
    let serving = role.wait_for(|role| role.serving);
    tokio::time::timeout(PATIENCE, serving)
        .await
        .expect("no leader in time")
        .unwrap();
}

/// Waits until one of the nodes serves, and says which.
async fn leader_of<'a>(nodes: &[&'a Running]) -> &'a Running {
    let mut leader = None;
    until("a node leads", || {
        leader = nodes.iter().find(|node| node.group.serving());
        leader.is_some()
    })
    .await;
    leader.unwrap()
}

fn record(queue_id: i32, body: &str) -> PendingRecord {
    let host: SocketAddr = "127.0.0.1:10911".parse().unwrap();
    let message = NewRecord::new(host, "orders", queue_id, body.as_bytes());
    PendingRecord::new(&message).unwrap()
}

pub(super) type Sent = (i32, String, Result<Vec<Position>, ProposeError>);

/// Sends `count` messages at once, to four queues.
async fn send_all(group: &Group, name: &str, count: usize) -> Vec<Sent> {
    let sends = (0..count).map(|i| {
        let (group, queue, body) = (group.clone(), i as i32 % 4, format!("{name}-{i}"));
        tokio::spawn(async move {
            let outcome = group
                .propose_messages(vec![record(queue, &body)], None)
                .await;
            (queue, body, outcome)
        })
    });
    let mut sent = Vec::new();
    for send in sends.collect::<Vec<_>>() {
        sent.push(send.await.unwrap());
    }
    sent
}

/// Every acknowledged message is where its sender was told, and nowhere else.
fn assert_in_place(reader: &LogReader, sent: &[Sent]) {
    let mut offsets = HashSet::new();
    for (queue, body, outcome) in sent {
        let Ok(positions) = outcome else { continue };
        let [position] = positions.as_slice() else {
            panic!("one record, {positions:?}")
        };
        let bytes = reader
            .record_at(position.phy)
            .expect("an acknowledged record is readable");
        let record = Record::decode(&bytes).unwrap();
        assert_eq!(record.body, body.as_bytes());
        assert_eq!(record.queue_id, *queue);
        assert_eq!(record.queue_offset, position.queue.as_i64());
        assert_eq!(record.store_timestamp, position.store_timestamp);
        assert!(
            offsets.insert((*queue, position.queue)),
            "{queue} {position:?} twice"
        );
    }
}

fn acknowledged(sent: &[Sent]) -> usize {
    sent.iter()
        .filter(|(_, _, outcome)| outcome.is_ok())
        .count()
}

/// Sends until so many are acknowledged, by whoever leads: on a slow machine leadership may change
/// at any time.
async fn send_surely(nodes: &[&Running], name: &str, count: usize) -> Vec<Sent> {
    let mut sent = Vec::new();
    let mut round = 0;
    until_ok("all sends are acknowledged", async || {
        let missing = count - acknowledged(&sent);
        let leader = leader_of(nodes).await;
        sent.extend(send_all(&leader.group, &format!("{name}-{round}"), missing).await);
        round += 1;
        let failed = sent.iter().rev().find_map(|sent| sent.2.clone().err());
        if acknowledged(&sent) == count {
            Ok(())
        } else {
            Err(failed)
        }
    })
    .await;
    sent
}

/// Sends one message until it is acknowledged; where it is.
async fn send_one(nodes: &[&Running], queue_id: i32, body: &str) -> Position {
    let sent = until_ok("a send is acknowledged", async || {
        let leader = leader_of(nodes).await;
        leader
            .group
            .propose_messages(vec![record(queue_id, body)], None)
            .await
    });
    sent.await[0]
}

/// Commits a consumer offset through whoever leads.
async fn commit_surely(nodes: &[&Running], offset: i64) {
    let reply = until_ok("an offset is committed", async || {
        let leader = leader_of(nodes).await;
        let outcome = commit_offset(&leader.group, "g", offset).await;
        assert!(
            !matches!(outcome, Err(ProposeError::Fatal(_))),
            "{outcome:?}"
        );
        outcome
    });
    assert_eq!(reply.await, Reply::Done);
}

async fn commit_offset(
    group: &Group,
    group_name: &str,
    offset: i64,
) -> Result<Reply, ProposeError> {
    let commit = OffsetCommit {
        group: group_name.to_owned(),
        topic: "orders".to_owned(),
        queue_id: 0,
        offset,
    };
    let command = Command {
        at_ms: 1,
        change: Change::CommitOffsets(vec![commit]),
    };
    group.propose_meta(command.encode().unwrap().into()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let wires = Wires::default();
    let node = start(7, dir.path(), &wires).await;
    form(&node, [7]).await;
    until_serving(&node).await;
    let mut sent = send_all(&node.group, "first", 600).await;
    assert_eq!(acknowledged(&sent), sent.len());
    assert_in_place(&node.reader, &sent);
    // How many share one is for the machine to say.
    let entries = node.group.status().last_index.unwrap();
    assert!(entries < 600, "600 sends at once took {entries} entries");
    assert_eq!(commit_offset(&node.group, "g", 5).await, Ok(Reply::Done));
    let meta = node.meta.snapshot();
    node.group.shutdown().await;
    assert!(matches!(
        node.group
            .propose_messages(vec![record(0, "late")], None)
            .await,
        Err(ProposeError::NotLeader(_) | ProposeError::Fatal(_))
    ));
    drop(node);

    let node = start(7, dir.path(), &wires).await;
    until_serving(&node).await;
    assert_in_place(&node.reader, &sent);
    assert_eq!(node.meta.snapshot(), meta);
    let term = node.group.serving_term().unwrap();
    for (asked, taken) in [(term - 1, false), (term, true), (term + 1, false)] {
        let outcome = node
            .group
            .propose_messages(vec![record(9, "in a term")], Some(asked))
            .await;
        assert_eq!(outcome.is_ok(), taken, "{asked}: {outcome:?}");
    }
    sent.extend(send_all(&node.group, "second", 20).await);
    assert_eq!(commit_offset(&node.group, "g", 6).await, Ok(Reply::Done));
    let meta = node.meta.snapshot();
    // It ends without saving anything, as in a crash: what it applied is applied again.
    wires.unplug(7);
    node.group.raft().shutdown().await.unwrap();
    drop(node);

    let node = start(7, dir.path(), &wires).await;
    until_serving(&node).await;
    assert_eq!(acknowledged(&sent), 620);
    assert_in_place(&node.reader, &sent);
    assert_eq!(node.meta.snapshot(), meta);
    assert_eq!(
        node.group.transfer_leader(None).await,
        Err(TransferError::Alone)
    );
    node.group.shutdown().await;
}

/// Waits until all have applied what their leader, who is one of them, has.
async fn until_level(nodes: &[&Running]) {
    until("all nodes have applied what the leader has", || {
        let last = nodes.iter().find(|node| node.group.serving());
        last.map(|leader| leader.group.status().last_index)
            .is_some_and(|last| {
                nodes
                    .iter()
                    .all(|node| node.group.status().applied_index >= last)
            })
    })
    .await;
}

/// The logs of all nodes are the same bytes as far as all know them to be committed.
fn assert_equal_logs(nodes: &[&Running]) {
    let end = nodes
        .iter()
        .map(|node| node.reader.confirm_offset())
        .min()
        .unwrap();
    let segment = nodes[0].reader.segment_bytes();
    let mut at = PhyOffset(0);
    assert!(at < end);
    while at < end {
        let len = usize::try_from(segment.min(end - at)).unwrap();
        let bytes = nodes[0].reader.slice(at, len).unwrap();
        for node in &nodes[1..] {
            assert!(
                node.reader.slice(at, len).unwrap() == bytes,
                "segment at {at} differs"
            );
        }
        at = at + len as u64;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_keep_one_log_over_changes_of_leader() {
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let wires = Wires::default();
    let mut nodes = Vec::new();
    for (id, dir) in (1..).zip(&dirs) {
        nodes.push(start(id, dir.path(), &wires).await);
    }
    form(&nodes[0], 1..=3).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = send_surely(&all, "calm", 200).await;
    commit_surely(&all, 1).await;
    until_ok("a follower refuses", async || {
        let follower = all.iter().find(|node| !node.group.serving()).unwrap();
        let misdirected = vec![record(0, "misdirected")];
        match follower.group.propose_messages(misdirected, None).await {
            Err(ProposeError::NotLeader(_)) => Ok(()),
            // It has been elected meanwhile.
            other => Err(other),
        }
    })
    .await;

    // The leader is cut off while it works: what it cannot commit is truncated later.
    let old = leader_of(&all).await;
    let during = {
        let group = old.group.clone();
        tokio::spawn(async move { send_all(&group, "cut", 300).await })
    };
    tokio::time::sleep(Duration::from_millis(3)).await;
    let cut_off = old.group.node_id();
    wires.cut(cut_off);
    let rest: Vec<&Running> = all
        .iter()
        .copied()
        .filter(|node| node.group.node_id() != cut_off)
        .collect();
    sent.extend(send_surely(&rest, "after", 200).await);
    assert!(!old.group.serving(), "two leaders serve at once");
    wires.heal();
    let during = during.await.unwrap();
    for (_, body, outcome) in &during {
        assert!(
            !matches!(outcome, Err(ProposeError::Fatal(_))),
            "{body}: {outcome:?}"
        );
    }
    sent.extend(during);
    until_level(&all).await;
    assert_equal_logs(&all);
    all.iter()
        .for_each(|node| assert_in_place(&node.reader, &sent));

    // A transfer does not wait for a lease to end.
    until_ok("leadership is handed over", async || {
        let leader = leader_of(&all).await;
        match leader.group.transfer_leader(None).await {
            Ok(successor) if successor != leader.group.node_id() => Ok(()),
            other => Err(other),
        }
    })
    .await;
    sent.extend(send_surely(&all, "last", 50).await);
    commit_surely(&all, 9).await;
    until("the leader knows how far its group is", || {
        let leader = all.iter().find(|node| node.group.serving());
        let members = leader.map_or_else(Vec::new, |leader| leader.group.status().members);
        members.len() == 3
            && members
                .iter()
                .all(|member| member.voter && member.match_index.is_some())
    })
    .await;
    until_level(&all).await;
    assert_equal_logs(&all);

    // All stop and start again, and still agree.
    let meta = all[0].meta.snapshot();
    for node in nodes {
        wires.unplug(node.group.node_id());
        node.group.shutdown().await;
    }
    let mut nodes = Vec::new();
    for (id, dir) in (1..).zip(&dirs) {
        nodes.push(start(id, dir.path(), &wires).await);
    }
    let all: Vec<&Running> = nodes.iter().collect();
    let leader = leader_of(&all).await;
    assert_eq!(leader.meta.snapshot(), meta);
    until_level(&all).await;
    for node in &all {
        assert_in_place(&node.reader, &sent);
        assert_eq!(node.meta.snapshot(), meta);
        node.group.shutdown().await;
    }
}
