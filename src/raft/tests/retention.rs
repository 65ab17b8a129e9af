//! Old segments leave the nodes of a running group.

use std::sync::Arc;
use std::time::Duration;

use rmq_store::{Disk, FlushMode, LogIndex, RealDisk};
use tempfile::TempDir;

use super::peers::{Machine, Site};
use super::{
    PATIENCE, Running, Sent, acknowledged, assert_in_place, open_store, send_surely, start_alone,
    store_config, until, until_level, until_ok,
};
use crate::meta::Meta;
use crate::raft::RetentionRules;
use crate::raft::state_machine::StateMachine;

/// Everything is old at once.
pub(super) fn eager() -> RetentionRules {
    RetentionRules {
        delete_when: (0..24).collect(),
        reserved_hours: 0,
        // The disk of the test's machine has no say.
        max_used: 100,
        forcibly: None,
        warning: 100,
        interval: Duration::from_millis(10),
        pause: Duration::ZERO,
        ..RetentionRules::default()
    }
}

pub(super) fn is_cut(node: &Running) -> bool {
    let first = node.reader.first_index();
    node.reader.min_offset().0 > 0 && first > Some(LogIndex(0))
}

/// Sends until each of the nodes has let go of something.
async fn send_until_cut(nodes: &[&Running], sent: &mut Vec<Sent>) {
    let mut round = 0;
    until_ok("old segments are removed", async || {
        round += 1;
        sent.extend(send_surely(nodes, &format!("old-{round}"), 100).await);
        let is_done = nodes.iter().all(|node| is_cut(node));
        is_done.then_some(()).ok_or(round)
    })
    .await;
}

/// Stops a node; then it has all messages that were acknowledged, but for the beginning.
async fn stopped_with_its_share(node: &Running, sent: &[Sent]) {
    node.group.shutdown().await;
    let min = node.reader.min_offset();
    let is_there = |sent: &&Sent| {
        let positions = sent.2.as_ref().ok();
        positions.is_some_and(|positions| positions[0].phy >= min)
    };
    let left: Vec<Sent> = sent.iter().filter(is_there).cloned().collect();
    assert!(!left.is_empty() && left.len() < acknowledged(sent));
    assert_in_place(&node.reader, &left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_of_a_group_lets_go_of_what_is_old_and_starts_again_without_it() {
    let machine = Machine::retaining(eager);
    let site = Site::new();
    let mut nodes = site.start_all(machine).await;
    let mut sent = Vec::new();
    let all: Vec<&Running> = nodes.iter().collect();
    send_until_cut(&all, &mut sent).await;
    until_level(&all).await;
    // One that was away for a while finds what it needs with the others.
    stopped_with_its_share(&nodes.pop().unwrap(), &sent).await;
    let all: Vec<&Running> = nodes.iter().collect();
    sent.extend(send_surely(&all, "new", 20).await);
    let back = site.start(2, machine).await;
    assert!(is_cut(&back));
    until_level(&[&nodes[0], &nodes[1], &back]).await;
    assert_eq!(back.meta.snapshot(), nodes[0].meta.snapshot());
    for node in nodes.iter().chain([&back]) {
        stopped_with_its_share(node, &sent).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applied_state_that_nothing_can_make_again_is_not_done_without() {
    let dir = TempDir::new().unwrap();
    let node = start_alone(dir.path(), eager()).await;
    let mut sent = Vec::new();
    send_until_cut(&[&node], &mut sent).await;
    stopped_with_its_share(&node, &sent).await;
    drop(node);

    let applied = dir.path().join("raft.applied");
    let mut bytes = std::fs::read(&applied).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&applied, bytes).unwrap();
    let config = store_config(dir.path(), FlushMode::Sync);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let store = tokio::time::timeout(PATIENCE, open_store(&config, disk.clone())).await;
    let store = store.unwrap();
    let reader = store.log.reader();
    let opened = StateMachine::open(dir.path(), disk, &reader, store.queues, Meta::new());
    let error = opened.err().expect("it has no applied state").to_string();
    for part in [&*applied.display().to_string(), "are deleted", "move "] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_has_old_segments_removed_at_once() {
    fn asked() -> RetentionRules {
        RetentionRules {
            delete_when: Vec::new(),
            ..eager()
        }
    }
    let machine = Machine::retaining(asked);
    let site = Site::new();
    let nodes = site.start_all(machine).await;
    let all: Vec<&Running> = nodes.iter().collect();
    while all[0].reader.confirm_offset().0 < 4 * all[0].reader.segment_bytes() {
        send_surely(&all, "old", 100).await;
    }
    until_level(&all).await;
    assert!(!nodes.iter().any(is_cut));
    // One round may come before the queues are durable, so it is asked until it is done.
    until("the segments are gone", || {
        nodes[1].group.remove_old_segments();
        is_cut(&nodes[1])
    })
    .await;
    assert!(!is_cut(&nodes[0]) && !is_cut(&nodes[2]), "each for itself");
    for node in nodes {
        node.group.shutdown().await;
    }
}
