//! Nodes whose disks are full, each for itself.

use std::collections::HashSet;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::peers::{Machine, Site};
use super::{
    Running, assert_equal_logs, assert_in_place, commit_surely, leader_of, record, send_surely,
    until, until_level, until_ok,
};
use crate::raft::{ProposeError, RetentionRules};

/// Nothing goes, and looks at the disk are frequent.
fn watchful() -> RetentionRules {
    RetentionRules {
        delete_when: Vec::new(),
        max_used: 100,
        forcibly: None,
        interval: Duration::from_millis(10),
        ..RetentionRules::default()
    }
}

struct Full {
    nodes: Vec<Running>,
    used: Vec<&'static AtomicU64>,
    _site: Site,
}

impl Full {
    async fn start() -> Self {
        let site = Site::new();
        let mut nodes = Vec::new();
        let mut used = Vec::new();
        for place in 0..3 {
            let own: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(10)));
            used.push(own);
            let machine = Machine {
                used: Some(own),
                ..Machine::retaining(watchful)
            };
            nodes.push(site.start(place, machine).await);
        }
        Self {
            nodes,
            used,
            _site: site,
        }
    }

    fn all(&self) -> [&Running; 3] {
        [&self.nodes[0], &self.nodes[1], &self.nodes[2]]
    }

    /// Its place among the nodes.
    async fn leader(&self) -> usize {
        let leader = leader_of(&self.all()).await;
        let is_it = |node: &Running| std::ptr::eq(node, leader);
        self.nodes.iter().position(is_it).unwrap()
    }

    fn fill(&self, place: usize, percent: u64) {
        self.used[place].store(percent, Ordering::Relaxed);
    }

    async fn stop(self) {
        for node in self.nodes {
            node.group.shutdown().await;
        }
    }
}

fn raft_addr(node: &Running) -> SocketAddrV4 {
    let members = node.group.status().members;
    let own = members.iter().find(|m| m.node == node.group.node_id());
    own.unwrap().raft_addr.parse().unwrap()
}

/// The sockets at this address that are connected.
fn connected(addr: SocketAddrV4) -> HashSet<String> {
    const ESTABLISHED: &str = "01";
    let ip = u32::from_ne_bytes(addr.ip().octets());
    let local = format!("{ip:08X}:{:04X}", addr.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_connected = fields[1] == local && fields[3] == ESTABLISHED;
        is_connected.then(|| format!("socket:[{}]", fields[9]))
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// Whether this process still holds the socket.
fn is_held(socket: &str) -> bool {
    let mut files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_hands_over_and_the_group_goes_on() {
    let group = Full::start().await;
    let mut sent = send_surely(&group.all(), "first", 20).await;
    let full = group.leader().await;
    group.fill(full, 91);
    let others: Vec<&Running> = (0..3)
        .filter(|place| *place != full)
        .map(|place| &group.nodes[place])
        .collect();
    until("another node leads", || {
        others.iter().any(|node| node.group.serving())
    })
    .await;
    let node = group.nodes[full].group.node_id();
    until_ok("the new leader knows why", async || {
        let leader = leader_of(&others).await;
        match leader.group.is_full(node).await {
            Some(true) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    sent.extend(send_surely(&others, "second", 50).await);
    // It goes on to follow while it can.
    until_level(&group.all()).await;
    assert_equal_logs(&group.all());
    assert_in_place(&group.nodes[full].reader, &sent);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_most_of_which_is_full_refuses_messages_until_there_is_space() {
    let group = Full::start().await;
    let mut sent = send_surely(&group.all(), "first", 20).await;
    let leader = group.leader().await;
    for place in (0..3).filter(|place| *place != leader) {
        group.fill(place, 91);
    }
    let refused = async |part: &str| {
        until_ok(part, async || {
            let leader = leader_of(&group.all()).await;
            let outcome = leader
                .group
                .propose_messages(vec![record(0, "full")], None)
                .await;
            match outcome {
                Err(ProposeError::Full(reason)) if reason.contains(part) => Ok(()),
                Err(ProposeError::Fatal(reason)) => panic!("{reason}"),
                other => Err(other),
            }
        })
        .await;
    };
    refused("a majority of the group are full").await;
    // Down to another level they go on to be full, and what is no message is taken meanwhile.
    commit_surely(&group.all(), 7).await;
    for place in 0..3 {
        group.fill(place, 91);
    }
    refused("91% of it are used").await;
    commit_surely(&group.all(), 8).await;
    for place in 0..3 {
        group.fill(place, 85);
    }
    sent.extend(send_surely(&group.all(), "second", 50).await);
    until_level(&group.all()).await;
    assert_in_place(&group.nodes[0].reader, &sent);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_without_room_for_its_log_stays_and_catches_up_when_there_is_space() {
    let group = Full::start().await;
    let mut sent = send_surely(&group.all(), "first", 20).await;
    let full = (group.leader().await + 1) % 3;
    group.fill(full, 100);
    let others: Vec<&Running> = (0..3)
        .filter(|place| *place != full)
        .map(|place| &group.nodes[place])
        .collect();
    let segment = others[0].reader.segment_bytes();
    let mut round = 0;
    until_ok("the log grows", async || {
        round += 1;
        sent.extend(send_surely(&group.all(), &format!("more-{round}"), 100).await);
        let end = others[0].reader.confirm_offset();
        (end.0 > 3 * segment).then_some(()).ok_or(end)
    })
    .await;
    let stuck = &group.nodes[full];
    until("it has no room", || stuck.reader.room().is_some()).await;
    assert!(stuck.reader.end_offset().0 <= 2 * segment);
    let addr = raft_addr(stuck);
    let mut seen = HashSet::new();
    // The leader gives up the connection on which it stands still, and makes another one.
    until("what the leader has given up is closed", || {
        let now = connected(addr);
        seen.extend(now.iter().cloned());
        let ended: Vec<&String> = seen.difference(&now).collect();
        !ended.is_empty() && !ended.into_iter().any(|socket| is_held(socket))
    })
    .await;
    group.fill(full, 10);
    until_level(&group.all()).await;
    assert_equal_logs(&group.all());
    assert_in_place(&stuck.reader, &sent);
    group.stop().await;
}
