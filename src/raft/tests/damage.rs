//! Nodes whose disks rot: they mend each other, and nobody serves what no node has any more.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rmq_store::{FlushMode, LogIndex, LogReader, PhyOffset};

use super::peers::{Machine, Site};
use super::{
    Running, Sent, assert_equal_logs, assert_in_place, send_surely, start_alone, until, until_level,
};
use crate::raft::node::Timers;
use crate::raft::{RetentionRules, Role};

const MACHINE: Machine = Machine {
    flush: FlushMode::Sync,
    boot: "boot",
    retention: None,
    used: None,
};

/// Changes a byte of a log that nobody has open.
fn flip(root: &Path, reader: &LogReader, at: PhyOffset) {
    let base = at.0 - at.0 % reader.segment_bytes();
    let path = root.join("commitlog").join(format!("{base:020}"));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at.0 - base)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at.0 - base)).unwrap();
    file.write_all(&[byte[0] ^ 0x40]).unwrap();
}

/// A group that has stored some messages and was stopped, and the view of its log that is left.
async fn stopped() -> (Site, Vec<Sent>, LogReader) {
    let site = Site::new();
    let nodes = site.start_all(MACHINE).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = Vec::new();
    // One after the other, for what is sent at once is one entry.
    for round in 0..20 {
        sent.extend(send_surely(&all, &format!("first-{round}"), 10).await);
    }
    until_level(&all).await;
    let reader = nodes[0].reader.clone();
    for node in &nodes {
        node.group.shutdown().await;
    }
    (site, sent, reader)
}

/// Starts all at once, for they may need each other to start.
async fn start_all(site: &Site) -> [Running; 3] {
    let (a, b, c) = tokio::join!(
        site.start(0, MACHINE),
        site.start(1, MACHINE),
        site.start(2, MACHINE)
    );
    [a, b, c]
}

fn place(reader: &LogReader, index: u64) -> (PhyOffset, PhyOffset) {
    let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
    (entry.start, entry.end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_damaged_in_different_places_mend_each_other() {
    let (site, mut sent, reader) = stopped().await;
    let last = reader.last_id().unwrap().index.0;
    assert!(last > 12, "{last} entries");
    let places: Vec<_> = (0..=last).map(|index| place(&reader, index)).collect();
    for (node, indexes) in [[1, 4, last], [2, 5, last - 1], [3, 6, last]]
        .iter()
        .enumerate()
    {
        // The first one's header, another one's messages, and the header at the end.
        let root = site.dirs[node].path();
        for (nth, index) in indexes.iter().enumerate() {
            let (start, end) = places[usize::try_from(*index).unwrap()];
            let at = if nth == 1 {
                PhyOffset(end.0 - 3)
            } else {
                start + 110
            };
            // One of them keeps the last entry.
            if node != 1 || *index != last {
                flip(root, &reader, at);
            }
        }
    }
    // Two of them have to apply all of their logs, and one to build its queues as well.
    for node in [0, 2] {
        fs::remove_file(site.dirs[node].path().join("raft.applied")).unwrap();
    }
    fs::remove_dir_all(site.dirs[0].path().join("consumequeue")).unwrap();
    fs::remove_dir_all(site.dirs[0].path().join("index")).unwrap();
    let nodes = Box::pin(start_all(&site)).await;
    let all: Vec<&Running> = nodes.iter().collect();
    sent.extend(send_surely(&all, "second", 50).await);
    until_level(&all).await;
    for node in all {
        until("every entry is whole", || {
            (0..=last).all(|index| matches!(node.reader.raw(LogIndex(index)), Ok(Some(_))))
        })
        .await;
        // Who read it just before it was mended may note a damage just after.
        until("no damage is known", || {
            node.reader.damages().is_empty() && node.group.status().damaged.is_empty()
        })
        .await;
        assert_in_place(&node.reader, &sent);
    }
    assert_equal_logs(&[&nodes[0], &nodes[1], &nodes[2]]);
    for node in &nodes {
        node.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_node_has_is_refused_and_the_rest_goes_on() {
    let (site, sent, reader) = stopped().await;
    // Where a new leader asks first how far a log goes (`calc_mid` of openraft's `progress::entry`).
    let holding = (reader.last_id().unwrap().index.0 + 1) / 16 * 8;
    let (start, end) = place(&reader, holding);
    for dir in &site.dirs {
        flip(dir.path(), &reader, PhyOffset(end.0 - 3));
    }
    let nodes = Box::pin(start_all(&site)).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let later = send_surely(&all, "second", 50).await;
    until_level(&all).await;
    let lost = |sent: &Sent| {
        let positions = sent.2.as_ref().ok();
        positions.is_some_and(|of| start <= of[0].phy && of[0].phy < end)
    };
    let (lost, kept): (Vec<Sent>, Vec<Sent>) = sent.into_iter().partition(lost);
    assert!(!lost.is_empty());
    for node in &nodes {
        assert_in_place(&node.reader, &kept);
        assert_in_place(&node.reader, &later);
        for (_, _, positions) in &lost {
            let phy = positions.as_ref().unwrap()[0].phy;
            assert_eq!(node.reader.record_at(phy), None);
            let shown = node.reader.damage_at(phy).unwrap().to_string();
            assert!(shown.contains("commitlog/0"), "{shown}");
        }
        let [shown] = &node.group.status().damaged[..] else {
            panic!("{:?}", node.group.status().damaged)
        };
        assert!(shown.contains(&format!("entry {holding} ")), "{shown}");
    }
    for node in &nodes {
        node.group.shutdown().await;
    }
}

/// Raft and its clients need the one, the queues are to be built from the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_one_finds_what_is_whole_and_goes_on_behind_the_rest() {
    /// Where its cell says how long an entry is.
    const LEN_AT: u64 = 8;
    const CELL_BYTES: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let node = start_alone(dir.path(), RetentionRules::default()).await;
    let mut sent = Vec::new();
    for round in 0..20 {
        sent.extend(send_surely(&[&node], &format!("first-{round}"), 10).await);
    }
    node.group.shutdown().await;
    let reader = node.reader.clone();
    drop(node);
    let cell = OpenOptions::new()
        .write(true)
        .open(dir.path().join("raftindex").join(format!("{:020}", 0)))
        .unwrap();
    cell.write_all_at(&[0xff; 4], 5 * CELL_BYTES + LEN_AT)
        .unwrap();
    cell.write_all_at(&[0xff; 8], 7 * CELL_BYTES).unwrap();
    let (start, end) = place(&reader, 9);
    flip(dir.path(), &reader, PhyOffset(end.0 - 3));
    // It is applied and dispatched anew.
    fs::remove_file(dir.path().join("raft.applied")).unwrap();
    fs::remove_dir_all(dir.path().join("consumequeue")).unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let node = start_alone(dir.path(), RetentionRules::default()).await;
    let whole: Vec<Sent> = sent
        .into_iter()
        .filter(|(.., positions)| {
            let phy = positions.as_ref().unwrap()[0].phy;
            phy < start || end <= phy
        })
        .collect();
    assert!(whole.len() > 150, "{}", whole.len());
    send_surely(&[&node], "second", 10).await;
    until(
        "only what is lost is damaged",
        || matches!(&node.reader.damages()[..], [one] if (one.start, one.end) == (start, end)),
    )
    .await;
    assert_in_place(&node.reader, &whole);
    node.group.shutdown().await;
}

/// Who forgot its vote could give it a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_vote_votes_again_as_another_one() {
    let (site, mut sent, _) = stopped().await;
    fs::write(site.dirs[1].path().join("raft.vote"), [0; 8192]).unwrap();
    let (lost, other) = tokio::join!(site.start(1, MACHINE), site.start(2, MACHINE));
    let own = lost.group.node_id();
    let is_voter = |node: &Running| {
        let members = node.group.status().members;
        members
            .iter()
            .any(|member| member.node == own && member.voter)
    };
    let is_one_of_three = |node: &Running| is_voter(node) && node.group.status().members.len() == 3;
    // Two of the three that voted would be enough.
    tokio::time::sleep(4 * Timers::default().election_max).await;
    for node in [&lost, &other] {
        assert_ne!(node.group.status().role, Role::Leader);
        assert!(!is_voter(node), "as the node that it was");
    }
    let nodes = [site.start(0, MACHINE).await, lost, other];
    let all: Vec<&Running> = nodes.iter().collect();
    until("it has the place of the node that it was", || {
        nodes.iter().all(is_one_of_three)
    })
    .await;
    sent.extend(send_surely(&all, "second", 50).await);
    until_level(&all).await;
    assert_equal_logs(&all);
    let incoming = site.dirs[1].path().join("commitlog/incoming");
    assert!(!incoming.try_exists().unwrap(), "it has kept its log");
    for node in &nodes {
        assert_in_place(&node.reader, &sent);
        node.group.shutdown().await;
    }
}
