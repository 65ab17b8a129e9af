//! A node that needs entries which have left the log of the others.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use rmq_store::{FlushMode, RealDisk};
use tokio::sync::mpsc;

use super::peers::{Machine, Site};
use super::retention::{eager, is_cut};
use super::{
    PATIENCE, Running, assert_equal_logs, assert_in_place, commit_surely, leader_of, send_one,
    send_surely, store_config, until, until_level, until_ok,
};
use crate::raft::SelfId;

const MACHINE: Machine = Machine {
    flush: FlushMode::Sync,
    boot: "boot",
    retention: None,
    used: None,
};

/// Has a node forget its entries up to the last one that is applied, as retention does.
async fn purge(node: &Running) {
    let raft = node.group.raft();
    let applied = node.group.status().applied_index.unwrap();
    raft.trigger().snapshot().await.unwrap();
    let data = raft.data_metrics();
    until("a snapshot is built", || {
        data.borrow_watched()
            .snapshot
            .is_some_and(|id| id.index >= applied)
    })
    .await;
    raft.trigger().purge_log(applied).await.unwrap();
    until("entries are purged", || {
        node.reader
            .purged_id()
            .is_some_and(|id| id.index.0 >= applied)
    })
    .await;
}

/// Starts a node and has it take the leader's snapshot in, as the broker does.
async fn start_and_install(site: &Site, place: usize, machine: Machine) -> Running {
    let (told, mut arrived) = mpsc::channel(1);
    // It may be told more than once.
    let on_install = Arc::new(move || {
        told.try_send(()).ok();
    });
    let node = site.start_with(place, machine, on_install).await;
    tokio::time::timeout(PATIENCE, arrived.recv())
        .await
        .expect("no snapshot arrived")
        .unwrap();
    node.group.shutdown().await;
    let config = store_config(site.dirs[place].path(), machine.flush);
    let disk: Arc<dyn rmq_store::Disk> = Arc::new(RealDisk);
    assert!(rmq_store::begin_install(&config, &disk, &node.reader).unwrap());
    drop(node);
    site.start(place, machine).await
}

/// Waits until a node votes, and hands leadership to it.
async fn make_leader(node: &Running, all: &[&Running]) {
    let id = node.group.node_id();
    until("it votes", || {
        let members = node.group.status().members;
        members.len() == 3
            && members
                .iter()
                .any(|member| member.node == id && member.voter)
    })
    .await;
    let to = Some(SelfId::of(id));
    until_ok("it is made leader", async || {
        let leader = leader_of(all).await;
        if std::ptr::eq(leader, node) {
            return Ok(());
        }
        // A leader refuses at once while the node has not answered or is behind.
        Err(leader.group.transfer_leader(to).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_node_takes_the_log_as_files_and_leads_with_it() {
    let mut site = Site::new();
    let mut nodes = site.start_all(MACHINE).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = send_surely(&all, "early", 2000).await;
    commit_surely(&all, 7).await;
    until_level(&all).await;

    let emptied = nodes.pop().unwrap();
    emptied.group.shutdown().await;
    drop(emptied);
    site.dirs[2] = tempfile::tempdir().unwrap();
    let rest: Vec<&Running> = nodes.iter().collect();
    until_level(&rest).await;
    for node in &rest {
        purge(node).await;
    }
    sent.extend(send_surely(&rest, "late", 200).await);

    let back = start_and_install(&site, 2, MACHINE).await;
    let all = [rest[0], rest[1], &back];
    until_level(&all).await;
    assert_equal_logs(&all);
    // Whoever led then: if another one was elected meanwhile they have purged up to different entries.
    let is_same = |node: &&Running| node.reader.purged_id() == back.reader.purged_id();
    assert!(rest.iter().any(is_same));
    assert_in_place(&back.reader, &sent);

    // It becomes a voter, and as leader goes on where the queues were.
    make_leader(&back, &all).await;
    sent.extend(send_surely(&all, "last", 100).await);
    until_level(&all).await;
    assert_equal_logs(&all);
    for node in all {
        assert_in_place(&node.reader, &sent);
        assert_eq!(node.meta.snapshot(), rest[0].meta.snapshot());
        node.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_goes_on_although_all_its_messages_have_left_the_log() {
    let machine = Machine {
        retention: Some(eager),
        ..MACHINE
    };
    let mut site = Site::new();
    let mut nodes = site.start_all(machine).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let once = send_one(&all, 9, "once").await;
    let is_gone = |node: &&Running| is_cut(node) && node.reader.min_offset() > once.phy;
    until_ok("it has left the log", async || {
        send_surely(&all, "later", 300).await;
        all.iter().all(is_gone).then_some(()).ok_or("it is there")
    })
    .await;

    let emptied = nodes.pop().unwrap();
    emptied.group.shutdown().await;
    drop(emptied);
    site.dirs[2] = tempfile::tempdir().unwrap();
    let back = start_and_install(&site, 2, machine).await;
    let all = [&nodes[0], &nodes[1], &back];
    assert!(back.reader.min_offset() > once.phy);
    make_leader(&back, &all).await;
    let again = send_one(&all, 9, "again").await;
    assert!(again.queue > once.queue, "{again:?} after {once:?}");
    until_level(&all).await;
    for node in all {
        node.group.shutdown().await;
    }
}

/// A directory in the commit log would keep a Java broker from loading it, and takes space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_off_snapshot_left_goes_once_the_log_goes_on() {
    let site = Site::new();
    let nodes = site.start_all(MACHINE).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = send_surely(&all, "early", 20).await;
    until_level(&all).await;
    for node in &nodes {
        node.group.shutdown().await;
    }
    drop(nodes);
    let left = ["incoming", "commitlog/incoming", "raftindex/incoming"];
    let left = left.map(|dir| site.dirs[1].path().join(dir));
    for dir in &left {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("00000000000000000000"), "half").unwrap();
    }
    let nodes = site.start_all(MACHINE).await;
    let all: Vec<&Running> = nodes.iter().collect();
    sent.extend(send_surely(&all, "late", 20).await);
    until("it is gone", || {
        left.iter().all(|dir| !dir.try_exists().unwrap())
    })
    .await;
    until_level(&all).await;
    for node in &nodes {
        assert_in_place(&node.reader, &sent);
        node.group.shutdown().await;
    }
}
