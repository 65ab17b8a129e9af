//! A node that lost its disk when what it needs has left the log of the others.

use std::fs;
use std::time::{Duration, Instant};

use jepsen::bench::catch_up::{resumed, segments};
use jepsen::client::{Client, Outcome};
use jepsen::cluster::{Options, status};

use crate::support::Running;

const TOPIC: &str = "snapshot_topic";
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(180);
const MESSAGES: usize = 400;
const BODY: usize = 256 << 10;

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

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
    let leader = group.leader().unwrap();
    let lost = (leader + 1) % 3;
    let mut client = Client::connect(group.addresses()[leader], PATIENCE).unwrap();
    for n in 0..MESSAGES {
        let properties = format!("KEYS\u{1}k{n}\u{2}");
        let sent = client.send_with(TOPIC, 0, &properties, &body(n));
        assert!(matches!(sent, Outcome::Ok(_)), "{n}: {sent:?}");
    }
    let log_of = |group: &Running, node: usize| group.nodes()[node].store.join("commitlog");
    until("old segments are removed", || {
        let first = segments(&log_of(&group, leader)).into_iter().next();
        first.is_some_and(|first| first != "00000000000000000000")
    });

    group.cluster().kill(lost).unwrap();
    group.wipe(lost).unwrap();
    let incoming = log_of(&group, lost).join("incoming");
    let said = group.nodes()[lost].store.with_extension("log");
    for round in 0..3 {
        group.cluster().start_node(lost).unwrap();
        until("a snapshot is arriving", || {
            resumed(&said).unwrap().len() > round
        });
        let before = segments(&incoming).last().cloned();
        until("another segment is arriving", || {
            // Of the first there has to be more than a start, or nothing is durable yet.
            let now = segments(&incoming);
            now.len() > 2 && now.last().cloned() > before
        });
        group.cluster().kill(lost).unwrap();
    }
    group.cluster().start_node(lost).unwrap();
    let id = |group: &Running| status(group.addresses()[lost]).ok()?["group"]["node"].as_u64();
    until("it votes", || {
        let Ok(status) = status(group.addresses()[leader]) else {
            return false;
        };
        let members = status["group"]["members"].as_array().cloned();
        let id = id(&group);
        id.is_some()
            && members.is_some_and(|members| {
                members
                    .iter()
                    .any(|m| m["voter"] == true && m["node"].as_u64() == id)
            })
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
    for _ in 0..3 {
        let leader = group.wait_for_leader(PATIENCE).unwrap();
        if leader == lost {
            break;
        }
        let to = format!("n{lost}");
        group
            .admin(&["raftTransferLeader", "--to", &to, "--wait", "60"])
            .ok();
    }
    until("it leads", || {
        group.leader().is_ok_and(|leader| leader == lost)
    });
    assert_eq!(group.wait_for_leader(PATIENCE).unwrap(), lost);
    let mut client = Client::connect(group.addresses()[lost], PATIENCE).unwrap();
    let found = client.read_queue(TOPIC, 0).unwrap();
    assert!(
        found.len() > MESSAGES / 4,
        "{} messages are left",
        found.len()
    );
    let first = MESSAGES - found.len();
    for (n, (offset, text)) in (first..).zip(found) {
        assert_eq!(offset, n as u64);
        assert!(text == body(n), "message {n}");
    }
}
