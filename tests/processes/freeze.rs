//! A group that is frozen under load has one end on all nodes, stays frozen over changes of leaders and
//! restarts, and goes on when it is thawed.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use serde_json::Value;

use crate::support::{PATIENCE, Running, rmq, text, until};

const TOPIC: &str = "freeze";

/// What a command prints that succeeds: again where there is no leader for a moment.
fn mqadmin(group: &Running, command: &str) -> String {
    until(command, || {
        let output = Command::new(rmq())
            .args(["admin", command, "-b", "jepsen", "-n"])
            .arg(group.namesrv.to_string())
            .output()
            .unwrap();
        output.status.success().then(|| text(&output))
    })
}

/// What `mqadmin inspect store` says of a stopped node's store.
fn inspect(group: &Running, node: usize) -> Value {
    let output = Command::new(rmq())
        .args(["admin", "inspect", "store", "--json"])
        .arg(&group.nodes()[node].store)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn is_frozen(outcome: &Outcome<u64>) -> bool {
    matches!(outcome, Outcome::Fail(why) if why.contains("14") && why.contains("frozen"))
}

/// Sends to a queue until the group is frozen, and counts what was acknowledged; how much may be there
/// besides, for another node may be elected at any time.
fn send_until_frozen(group: &Running, queue: u32, acknowledged: &AtomicU64) -> u64 {
    let mut unknown = 0;
    until("the group is frozen", || {
        let leader = group.addresses()[group.leader().ok()?];
        let mut client = Client::connect(leader, PATIENCE).ok()?;
        loop {
            let sent = acknowledged.load(Ordering::Relaxed);
            match client.send(TOPIC, queue, &format!("{queue}:{sent}")) {
                Outcome::Ok(_) => acknowledged.store(sent + 1, Ordering::Relaxed),
                Outcome::Unknown(_) => {
                    unknown += 1;
                    return None;
                }
                refused if is_frozen(&refused) => return Some(()),
                Outcome::Fail(_) => return None,
            }
        }
    });
    unknown
}

#[test]
fn a_frozen_group_has_one_end_and_keeps_it() {
    let mut group = Running::start(&Options::default());
    // Every send that was acknowledged is below the end, and none is behind it.
    let sent: [AtomicU64; 4] = Default::default();
    let unknown: Vec<u64> = std::thread::scope(|scope| {
        let send = |(queue, sent)| {
            let group = &group;
            scope.spawn(move || send_until_frozen(group, queue, sent))
        };
        let senders: Vec<_> = (0..).zip(&sent).map(send).collect();
        until("there is load", || {
            let has_begun = |sent: &AtomicU64| sent.load(Ordering::Relaxed) > 10;
            sent.iter().all(has_begun).then_some(())
        });
        let said = mqadmin(&group, "raftFreeze");
        assert!(said.contains("all nodes have the same end"), "{said}");
        let ended = senders.into_iter().map(|sender| sender.join().unwrap());
        ended.collect()
    });
    let sent = sent.map(AtomicU64::into_inner);
    let shown = mqadmin(&group, "raftStatus");
    assert!(shown.contains("FROZEN at term"), "{shown}");
    // Idempotent.
    mqadmin(&group, "raftFreeze");

    // Another leader refuses as well; reads go on.
    let old = until("a leader", || group.leader().ok());
    assert!(group.cluster().stop(old).unwrap());
    let mut client = until("another leader refuses", || {
        let now = group.leader().ok().filter(|now| *now != old)?;
        let mut client = Client::connect(group.addresses()[now], PATIENCE).ok()?;
        let refused = client.send(TOPIC, 0, "late");
        assert!(!matches!(refused, Outcome::Ok(_)), "it takes messages");
        is_frozen(&refused).then_some(client)
    });
    let mut ends = Vec::new();
    for ((queue, sent), unknown) in (0..).zip(sent).zip(unknown) {
        let read = until("it is read", || client.read_queue(TOPIC, queue).ok());
        let found = read.len() as u64;
        let is_possible = (sent..=sent + unknown).contains(&found);
        assert!(is_possible, "queue {queue}: {found}, not {sent}");
        ends.push(found);
    }
    for node in (0..3).filter(|node| *node != old) {
        assert!(group.cluster().stop(node).unwrap());
    }

    // Each stopped store bears the same mark, with no message behind it.
    let marks: Vec<Value> = (0..3)
        .map(|node| {
            let found = inspect(&group, node);
            let raft = &found["raft"];
            let frozen = raft["notes"]["frozen"].clone();
            assert!(
                frozen["endOffset"].as_u64() > Some(0),
                "node {node}: {raft}"
            );
            let queues = found["queues"].as_array().unwrap();
            let of_topic = queues.iter().filter(|queue| queue["topic"] == TOPIC);
            let found: Vec<u64> = of_topic
                .map(|queue| queue["log"]["maxOffset"].as_u64().unwrap())
                .collect();
            assert_eq!(found, ends, "node {node}");
            frozen
        })
        .collect();
    assert!(marks.iter().all(|mark| *mark == marks[0]), "{marks:?}");

    // It is still frozen after a start, until it is thawed.
    for node in 0..3 {
        group.cluster().start_node(node).unwrap();
    }
    until("it says that it is frozen", || {
        mqadmin(&group, "raftStatus")
            .contains("FROZEN at term")
            .then_some(())
    });
    mqadmin(&group, "raftThaw");
    group.producer().send(TOPIC, 0, "again");
    group.wait_until_even(PATIENCE).unwrap();
    for node in 0..3 {
        assert!(group.cluster().stop(node).unwrap());
        let frozen = &inspect(&group, node)["raft"]["notes"]["frozen"];
        assert!(frozen.is_null(), "node {node}: {frozen}");
    }
}
