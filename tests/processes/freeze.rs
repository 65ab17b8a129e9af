//! A group that is frozen under load has one end on all nodes, stays frozen over changes of leaders and
//! restarts, and goes on when it is thawed.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use serde_json::Value;

use crate::support::{Running, rmq, text};

const TOPIC: &str = "freeze";

fn mqadmin(group: &Running, command: &str) -> String {
    let output = Command::new(rmq())
        .args(["admin", command, "-b", "jepsen", "-n"])
        .arg(group.namesrv.to_string())
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{command}: {said}");
    said
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

/// Sends until it is refused; how many were acknowledged, and the refusal.
fn send_until_refused(leader: SocketAddr, queue: u32, stop: &AtomicBool) -> (u64, String) {
    let mut client = Client::connect(leader, Duration::from_secs(60)).unwrap();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        match client.send(TOPIC, queue, &format!("{queue}:{sent}")) {
            Outcome::Ok(_) => sent += 1,
            other => return (sent, format!("{other:?}")),
        }
    }
    (sent, String::new())
}

#[test]
fn a_frozen_group_has_one_end_and_keeps_it() {
    let mut group = Running::start(&Options::default());
    let leader = group.addresses()[group.leader().unwrap()];
    // Every send that was acknowledged is below the end, and none is behind it.
    let stop = AtomicBool::new(false);
    let sent: Vec<u64> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|queue| {
                scope.spawn({
                    let stop = &stop;
                    move || send_until_refused(leader, queue, stop)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(1));
        let said = mqadmin(&group, "raftFreeze");
        assert!(said.contains("all nodes have the same end"), "{said}");
        let sent = senders.into_iter().map(|sender| {
            let (sent, refusal) = sender.join().unwrap();
            assert!(
                refusal.contains("14") && refusal.contains("frozen"),
                "{refusal}"
            );
            sent
        });
        sent.collect()
    });
    assert!(sent.iter().all(|sent| *sent > 0), "{sent:?}");
    let shown = mqadmin(&group, "raftStatus");
    assert!(shown.contains("FROZEN at term"), "{shown}");
    // Idempotent.
    mqadmin(&group, "raftFreeze");

    // Another leader refuses as well; reads go on.
    let old = group.leader().unwrap();
    assert!(group.cluster().stop(old).unwrap());
    let patience = Duration::from_secs(60);
    let leader = loop {
        let now = group.leader().unwrap_or(old);
        if now != old {
            break group.addresses()[now];
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut client = Client::connect(leader, patience).unwrap();
    let refused = client.send(TOPIC, 0, "late");
    assert!(format!("{refused:?}").contains("frozen"), "{refused:?}");
    for (queue, sent) in (0..).zip(&sent) {
        let read = client.read_queue(TOPIC, queue).unwrap();
        assert_eq!(read.len() as u64, *sent, "queue {queue}");
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
            let ends: Vec<u64> = of_topic
                .map(|queue| queue["log"]["maxOffset"].as_u64().unwrap())
                .collect();
            assert_eq!(ends, sent, "node {node}");
            frozen
        })
        .collect();
    assert!(marks.iter().all(|mark| *mark == marks[0]), "{marks:?}");

    // It is still frozen after a start, until it is thawed.
    for node in 0..3 {
        group.cluster().start_node(node).unwrap();
    }
    let end = std::time::Instant::now() + patience;
    while !text(&status(&group)).contains("FROZEN at term") {
        assert!(std::time::Instant::now() < end, "{}", text(&status(&group)));
        std::thread::sleep(Duration::from_millis(100));
    }
    while !Command::new(rmq())
        .args([
            "admin",
            "raftThaw",
            "-b",
            "jepsen",
            "-n",
            &group.namesrv.to_string(),
        ])
        .status()
        .unwrap()
        .success()
    {
        assert!(std::time::Instant::now() < end, "not thawed");
        std::thread::sleep(Duration::from_millis(100));
    }
    let leader = group.addresses()[group.wait_for_leader(patience).unwrap()];
    let mut client = Client::connect(leader, patience).unwrap();
    let again = client.send(TOPIC, 0, "again");
    assert!(matches!(again, Outcome::Ok(_)), "{again:?}");
    for node in 0..3 {
        assert!(group.cluster().stop(node).unwrap());
        let frozen = &inspect(&group, node)["raft"]["notes"]["frozen"];
        assert!(frozen.is_null(), "node {node}: {frozen}");
    }
}

fn status(group: &Running) -> std::process::Output {
    Command::new(rmq())
        .args(["admin", "raftStatus", "-n", &group.namesrv.to_string()])
        .output()
        .unwrap()
}
