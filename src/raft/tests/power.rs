//! Machines that lose power under ASYNC_FLUSH: the run of the machine is another one afterwards, and
//! what its node had not synced is gone.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use rmq_store::{Disk, FlushMode, PhyOffset, RealDisk};

use super::peers::{Machine, Site};
use super::{
    Running, Sent, assert_equal_logs, assert_in_place, open_store, send_surely, store_config,
    until, until_level, until_ok,
};
use crate::raft::node::Timers;
use crate::raft::{Role, SelfId};

const FLUSH: FlushMode = FlushMode::Async { interval_ms: 500 };
const FIRST: Machine = Machine {
    flush: FLUSH,
    boot: "first boot",
    retention: None,
    used: None,
};
const SECOND: Machine = Machine {
    boot: "second boot",
    ..FIRST
};

/// Time in which those who elect a leader too early would have done so.
async fn a_while() {
    tokio::time::sleep(4 * Timers::default().election_max).await;
}

fn leads(node: &Running) -> bool {
    node.group.status().role == Role::Leader
}

/// Ends a node without closing its store, as a crash does, and waits until it has let go of it.
async fn crash(node: Running, root: &Path) {
    node.group.raft().shutdown().await.unwrap();
    drop(node);
    until("the store is free", || {
        RealDisk.lock(&root.join("lock")).is_ok()
    })
    .await;
}

/// Takes from the log of a node that does not run what lies behind `end`.
fn lose_behind(end: PhyOffset, root: &Path) {
    for file in fs::read_dir(root.join("commitlog")).unwrap() {
        let path = file.unwrap().path();
        let base: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let len = fs::metadata(&path).unwrap().len();
        let kept = end.0.saturating_sub(base).min(len);
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(kept)).unwrap();
        let zeros = vec![0; usize::try_from(len - kept).unwrap()];
        file.write_all(&zeros).unwrap();
    }
}

/// Places of a group that acknowledged `sent`, in a first part that all nodes have and a second one
/// that n2, which went down first, does not have and n0 has lost. No node runs.
async fn interrupted(longest_log: bool) -> (Site, Vec<Sent>) {
    let mut site = Site::new();
    site.longest_log = longest_log;
    let mut nodes = site.start_all(FIRST).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = send_surely(&all, "first", 50).await;
    until_level(&all).await;
    let common = nodes[0].reader.confirm_offset();
    crash(nodes.remove(2), site.dirs[2].path()).await;
    sent.extend(send_surely(&nodes.iter().collect::<Vec<_>>(), "second", 50).await);
    for (place, node) in nodes.into_iter().enumerate() {
        crash(node, site.dirs[place].path()).await;
    }
    lose_behind(common, site.dirs[0].path());
    (site, sent)
}

/// The group is whole again, goes on, and has all that it ever acknowledged.
async fn assert_recovers(nodes: [&Running; 3], mut sent: Vec<Sent>) {
    sent.extend(send_surely(&nodes, "last", 50).await);
    until("the quarantine ends", || {
        nodes.iter().all(|node| !node.group.status().quarantined)
    })
    .await;
    until_level(&nodes).await;
    assert_equal_logs(&nodes);
    for node in nodes {
        assert_in_place(&node.reader, &sent);
        node.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_power_elects_nobody_who_lacks_what_it_has_lost() {
    for longest_log in [false, true] {
        let (site, sent) = interrupted(longest_log).await;
        let [first, behind] = [site.start(0, SECOND).await, site.start(2, FIRST).await];
        a_while().await;
        assert!(first.group.status().quarantined);
        for node in [&first, &behind] {
            assert!(!leads(node), "elected without what n1 has");
        }
        let full = site.start(1, FIRST).await;
        assert_recovers([&first, &full, &behind], sent).await;
        drop([first, full, behind]);
        let store = open_store(
            &store_config(site.dirs[0].path(), FLUSH),
            Arc::new(RealDisk),
        )
        .await;
        assert!(!store.log.is_suspect(), "it would be quarantined again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_lost_power_waits_for_an_operator() {
    let (site, sent) = interrupted(false).await;
    let [first, behind] = [site.start(0, SECOND).await, site.start(2, SECOND).await];
    // n1 may have what the others have not.
    until_ok("the third node is missed", async || {
        let refused = first.group.recover(false).await.unwrap_err().to_string();
        if refused.starts_with("n1 ") {
            Ok(())
        } else {
            Err(refused)
        }
    })
    .await;
    let full = site.start(1, SECOND).await;
    a_while().await;
    let nodes = [&first, &full, &behind];
    for node in nodes {
        assert!(node.group.status().quarantined);
        assert!(!leads(node), "by itself");
    }
    // Any node can be asked.
    let recovered = until_ok("all answer", async || behind.group.recover(false).await);
    assert_eq!(recovered.await, SelfId(1));
    assert_recovers(nodes, sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_lost_power_recovers_by_the_longest_log_where_it_is_told_to() {
    let (site, sent) = interrupted(true).await;
    let [first, behind] = [site.start(0, SECOND).await, site.start(2, SECOND).await];
    a_while().await;
    for node in [&first, &behind] {
        assert!(!leads(node), "n1 has the longest log");
    }
    let full = site.start(1, SECOND).await;
    assert_recovers([&first, &full, &behind], sent).await;
}
