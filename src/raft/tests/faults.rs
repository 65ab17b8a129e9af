//! Nodes whose disks fail: they end at once, and what was acknowledged is on the others.

use std::path::Path;
use std::sync::Arc;

use rmq_store::sim::{Fault, SimDisk};
use rmq_store::{Disk as _, FlushMode, OpenMode};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::peers::{Machine, Site};
use super::retention::{eager, is_cut};
use super::{
    PATIENCE, Running, assert_equal_logs, assert_in_place, leader_of, send_all, send_surely, until,
    until_level, until_ok,
};
use crate::raft::{OnFatal, OnInstall, ProposeError};

/// A node on such a disk, and what tells why it has ended.
async fn start(
    site: &Site,
    place: usize,
    flush: FlushMode,
    disk: &SimDisk,
) -> (Running, oneshot::Receiver<String>) {
    let machine = Machine {
        flush,
        boot: "boot",
        retention: None,
        used: None,
    };
    let (fatal, failed) = oneshot::channel();
    let on_fatal = Box::new(|reason: &str| drop(fatal.send(reason.to_owned())));
    let disk = Arc::new(disk.clone());
    let node = site
        .start_on(
            (disk, Path::new("/store")),
            place,
            machine,
            (Arc::new(|| {}), on_fatal),
        )
        .await;
    (node, failed)
}

async fn node_ends_and_the_others_go_on(fault: Fault, flush: FlushMode, leads: bool) {
    let case = format!("{fault:?} {flush:?}, leader: {leads}");
    let site = Site::new();
    let disks = [SimDisk::default(), SimDisk::default(), SimDisk::default()];
    let mut nodes = Vec::new();
    let mut failures = Vec::new();
    for (place, disk) in disks.iter().enumerate() {
        let (node, failed) = start(&site, place, flush, disk).await;
        nodes.push(node);
        failures.push(failed);
    }
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = send_surely(&all, "first", 50).await;
    let leader = leader_of(&all).await;
    until_level(&all).await;
    let victim = (0..3).find(|place| std::ptr::eq(all[*place], leader) == leads);
    let victim = victim.unwrap();

    disks[victim].fail(fault, "commitlog/", 0);
    sent.extend(send_all(&leader.group, "struck", 50).await);
    let others: Vec<&Running> = (0..3).filter(|n| *n != victim).map(|n| all[n]).collect();
    sent.extend(send_surely(&others, "second", 50).await);
    let reason = timeout(PATIENCE, &mut failures[victim]).await;
    let reason = reason.unwrap_or_else(|_| panic!("{case}: the node goes on"));
    assert!(reason.unwrap().contains("os error 5"), "{case}");
    // That the fault is over changes nothing.
    let refused = all[victim]
        .group
        .propose_messages(vec![super::record(0, "late")], None)
        .await;
    assert!(
        matches!(
            refused,
            Err(ProposeError::Fatal(_) | ProposeError::NotLeader(_))
        ),
        "{case}: {refused:?}"
    );
    assert!(!all[victim].group.serving(), "{case}");

    // What the process left, for the next one.
    let left = disks[victim].killed_at(disks[victim].done());
    let ended = nodes.remove(victim);
    ended.group.shutdown().await;
    drop(ended);
    let (back, _failed) = start(&site, victim, flush, &left).await;
    nodes.insert(victim, back);
    let all: Vec<&Running> = nodes.iter().collect();
    sent.extend(send_surely(&all, "third", 50).await);
    until_level(&all).await;
    assert_equal_logs(&all);
    for node in &nodes {
        assert_in_place(&node.reader, &sent);
        node.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_or_sync_ends_a_node() {
    for flush in [FlushMode::Sync, FlushMode::Async { interval_ms: 10 }] {
        for fault in [Fault::Sync, Fault::Write] {
            for leads in [true, false] {
                Box::pin(node_ends_and_the_others_go_on(fault, flush, leads)).await;
            }
        }
    }
}

/// Retention needs it to make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applied_state_waits_for_space_and_ends_no_node() {
    let site = Site::new();
    let disks = [SimDisk::default(), SimDisk::default(), SimDisk::default()];
    disks[0].fail(Fault::Full, "raft.applied", 0);
    let mut nodes = Vec::new();
    for (place, disk) in disks.iter().enumerate() {
        let disk = Arc::new(disk.clone());
        let on_fatal: OnFatal = Box::new(|reason| panic!("raft failed: {reason}"));
        let on_install: OnInstall = Arc::new(|| {});
        let place = site.start_on(
            (disk, Path::new("/store")),
            place,
            Machine::retaining(eager),
            (on_install, on_fatal),
        );
        nodes.push(place.await);
    }
    let all: Vec<&Running> = nodes.iter().collect();
    until_ok("the others remove what is old", async || {
        send_surely(&all, "old", 100).await;
        let are_cut = is_cut(all[1]) && is_cut(all[2]);
        are_cut.then_some(()).ok_or("some is left")
    })
    .await;
    assert!(!is_cut(all[0]), "nothing is left of what was removed");
    disks[0].calm();
    until("it makes room too", || is_cut(all[0])).await;
    let room = Path::new("/store/raft.applied.new");
    let room = disks[0].open(room, OpenMode::Read).unwrap().size().unwrap();
    assert!(room >= 64 * 1024, "{room} bytes for the next one");
    until_level(&all).await;
    for node in &nodes {
        node.group.shutdown().await;
    }
}
