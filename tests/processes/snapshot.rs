//! A node that lost its disk when what it needs has left the log of the others.

use std::fs;

use jepsen::bench::catch_up::{resumed, segments};
use jepsen::cluster::{Options, status};

use crate::support::{PATIENCE, Running, until};

const TOPIC: &str = "snapshot_topic";
const MESSAGES: usize = 400;
const BODY: usize = 256 << 10;

fn body(n: usize) -> String {
    format!("{n:08}").repeat(BODY / 8)
}

#[test]
fn a_wiped_node_is_killed_three_times_on_the_way_and_continues_each_time() {
    let more = format!(
        "snapshotMaxBytesPerSecond=6000000\nfileReservedTime=0\ndeleteFileBatchMax=1\ndeleteWhen={}\n",
        (0..24)
            .map(|h| format!("{h:02}"))
            .collect::<Vec<_>>()
            .join(";")
    );
    let mut group = Running::start(&Options {
        more,
        ..Options::default()
    });
    let mut producer = group.producer();
    for n in 0..MESSAGES {
        producer.send_with(TOPIC, 0, &format!("KEYS\u{1}k{n}\u{2}"), &body(n));
    }
    let leader = group.leading();
    let lost = (leader + 1) % 3;
    let log_of = |group: &Running, node: usize| group.nodes()[node].store.join("commitlog");
    // Whoever of them leads then.
    for node in (0..3).filter(|node| *node != lost) {
        until("old segments are removed", || {
            let first = segments(&log_of(&group, node)).into_iter().next();
            first.filter(|first| first != "00000000000000000000")
        });
    }

    group.cluster().kill(lost).unwrap();
    group.wipe(lost).unwrap();
    let incoming = log_of(&group, lost).join("incoming");
    let said = group.nodes()[lost].store.with_extension("log");
    for round in 0..3 {
        group.cluster().start_node(lost).unwrap();
        until("a snapshot is arriving", || {
            (resumed(&said).unwrap().len() > round).then_some(())
        });
        let before = segments(&incoming).last().cloned();
        until("another segment is arriving", || {
            // Of the first there has to be more than a start, or nothing is durable yet.
            let now = segments(&incoming);
            (now.len() > 2 && now.last().cloned() > before).then_some(())
        });
        group.cluster().kill(lost).unwrap();
    }
    group.cluster().start_node(lost).unwrap();
    until("it votes", || {
        let id = status(group.addresses()[lost]).ok()?["group"]["node"].as_u64()?;
        let status = status(group.addresses()[group.leader().ok()?]).ok()?;
        let mut members = status["group"]["members"].as_array()?.iter();
        members.find_map(|m| (m["voter"] == true && m["node"].as_u64() == Some(id)).then_some(()))
    });
    let resumed = resumed(&said).unwrap();
    assert!(resumed.len() >= 4, "{resumed:?}");
    assert_eq!(resumed[0], 0);
    assert!(resumed[1..4].is_sorted() && resumed[1] > 0, "{resumed:?}");

    let even = group.wait_until_even(PATIENCE).unwrap();
    let mut compared = 0;
    for name in segments(&log_of(&group, lost)) {
        let start: u64 = name.parse().unwrap();
        let of = |node| fs::read(log_of(&group, node).join(&name));
        // The others may let go of the oldest at any time.
        if let (Ok(own), Ok(others)) = (of(lost), of(leader)) {
            let len = usize::try_from(even.saturating_sub(start)).unwrap();
            let len = len.min(own.len());
            assert!(own[..len] == others[..len], "segment {name} differs");
            compared += usize::from(len > 0);
        }
    }
    assert!(compared > 2, "{compared} segments were compared");

    // As leader it has all messages that the log has.
    until("it leads", || {
        if group.leading() == lost {
            return Some(());
        }
        let to = format!("n{lost}");
        let words = ["raftTransferLeader", "--to", &to, "--wait", "60"];
        group.admin(&words).ok();
        None
    });
    let found = group.bodies(TOPIC, 0);
    assert!(
        found.len() > MESSAGES / 4,
        "{} messages are left",
        found.len()
    );
    let first = MESSAGES - found.len();
    for (n, text) in (first..).zip(found) {
        assert!(text == body(n), "message {n}");
    }
}
