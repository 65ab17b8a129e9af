//! Disks that fill up and get space again, under nodes that run on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use jepsen::client::{Client, Outcome};
use jepsen::cluster::{Cluster, Options};
use rmq_wire::code::request;
use rmq_wire::frame;

use crate::support::{PATIENCE, rmq, until};

const TOPIC: &str = "full_topic";
const DISK: &str = "size=256m";

/// A small disk of its own for each node.
struct Disks(Vec<PathBuf>);

impl Disks {
    /// `None`, with a message, where this user may not mount anything.
    fn mount(dir: &Path) -> Option<Self> {
        let mut disks = Self(Vec::new());
        for node in 0..3 {
            let path = dir.join(format!("n{node}"));
            fs::create_dir_all(&path).unwrap();
            let mut mount = Command::new("mount");
            mount
                .args(["-t", "tmpfs", "-o", DISK, "rmq-test"])
                .arg(&path);
            let output = mount.output().ok()?;
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!("skipped, because no disk can be mounted: {why}");
                return None;
            }
            disks.0.push(path);
        }
        Some(disks)
    }

    /// Leaves this many bytes of a disk, and none of the last page if it is none; what is reserved
    /// already stays so.
    fn fill(&self, node: usize, leave: u64) {
        let path = self.0[node].join("filler");
        let filler = fs::OpenOptions::new().append(true).create(true).open(path);
        let filler = filler.unwrap();
        let mut bytes = vec![1; 1 << 20];
        // Smaller and smaller, until not a page is left.
        while !bytes.is_empty() {
            let disk = rustix::fs::statvfs(&self.0[node]).unwrap();
            let is_enough = disk.f_bavail * disk.f_frsize < leave + bytes.len() as u64;
            if is_enough && leave > 0 || std::io::Write::write_all(&mut &filler, &bytes).is_err() {
                bytes.truncate(bytes.len() / 2);
            }
        }
    }

    fn free(&self, node: usize) {
        fs::remove_file(self.0[node].join("filler")).unwrap();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for path in &self.0 {
            Command::new("umount").arg("-l").arg(path).status().ok();
        }
    }
}

fn send(cluster: &Cluster, body: &str) -> Outcome<u64> {
    let sent = cluster.leader().map(|leader| {
        let mut client = Client::connect(cluster.addresses()[leader], PATIENCE)?;
        std::io::Result::Ok(client.send(TOPIC, 0, body))
    });
    match sent {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome::Fail(error.to_string()),
        Err(error) => Outcome::Fail(error.to_string()),
    }
}

/// What the queue holds.
fn bodies(cluster: &Cluster, leader: usize) -> Vec<String> {
    let read = until("the queue is read", || {
        let mut client = Client::connect(cluster.addresses()[leader], PATIENCE).ok()?;
        client.read_queue(TOPIC, 0).ok()
    });
    read.into_iter().map(|(_, body)| body).collect()
}

fn assert_has(cluster: &Cluster, leader: usize, acknowledged: &[String]) {
    let read = bodies(cluster, leader);
    let missing = acknowledged.iter().find(|body| !read.contains(body));
    assert_eq!(missing, None);
}

/// Sends until one is answered so; what was acknowledged on the way.
fn send_until(cluster: &Cluster, what: &str, is_so: impl Fn(&Outcome<u64>) -> bool) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let body = format!("{what} {n}");
        let outcome = send(cluster, &body);
        if matches!(outcome, Outcome::Ok(_)) {
            acknowledged.push(body);
        }
        if is_so(&outcome) {
            return acknowledged;
        }
        assert!(Instant::now() < end, "not in time: {what}, but {outcome:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    unreachable!("the numbers do not end")
}

/// `SERVICE_NOT_AVAILABLE`, as a Java broker refuses when its disk is full.
fn is_refused(outcome: &Outcome<u64>) -> bool {
    matches!(outcome, Outcome::Fail(why) if why.starts_with("code 14 "))
}

fn is_taken(outcome: &Outcome<u64>) -> bool {
    matches!(outcome, Outcome::Ok(_))
}

#[test]
fn nodes_with_full_disks_refuse_messages_vote_and_go_on_when_there_is_space() {
    let dir = tempfile::Builder::new()
        .prefix("rmq-test-")
        .tempdir()
        .unwrap();
    let Some(disks) = Disks::mount(dir.path()) else {
        return;
    };
    let options = Options {
        sync_flush: true,
        more: "cleanFileForciblyEnable=false\nfileReservedTime=1000\n".to_owned(),
        ..Options::default()
    };
    let mut cluster = Cluster::start(rmq(), dir.path(), &options).unwrap();
    let mut acknowledged = send_until(&cluster, "before", is_taken);
    let pids: Vec<_> = (0..3).map(|node| cluster.pid(node)).collect();

    (0..3).for_each(|node| disks.fill(node, 4 << 20));
    acknowledged.extend(send_until(&cluster, "refused when full", is_refused));
    // Every queue has what was acknowledged before there is no space even for that.
    cluster.wait_until_even(PATIENCE).unwrap();
    for address in cluster.addresses() {
        until("its queues have what its log has", || {
            let mut client = Client::connect(address, PATIENCE).ok()?;
            let asked = client.call(frame::Command::request(request::GET_BROKER_RUNTIME_INFO));
            let info: serde_json::Value = serde_json::from_slice(&asked.ok()?.body).ok()?;
            (info["table"]["dispatchBehindBytes"] == "0").then_some(())
        });
    }
    let leader = cluster.wait_for_leader(PATIENCE).unwrap();
    assert_has(&cluster, leader, &acknowledged);
    (0..3).for_each(|node| disks.fill(node, 0));

    // Votes are still written, and a new leader's first entry.
    let dead = until("a leader", || cluster.leader().ok());
    cluster.kill(dead).unwrap();
    let leader = cluster.wait_for_leader(PATIENCE).unwrap();
    assert_ne!(leader, dead);
    acknowledged.extend(send_until(
        &cluster,
        "refused by the next leader",
        is_refused,
    ));
    // Reads go on.
    assert_has(&cluster, leader, &acknowledged);

    (0..3).for_each(|node| disks.free(node));
    acknowledged.extend(send_until(&cluster, "taken again", is_taken));
    for node in (0..3).filter(|node| *node != dead) {
        assert_eq!(cluster.pid(node), pids[node], "n{node} is the same process");
    }
    cluster.start_node(dead).unwrap();
    let end = cluster.wait_until_even(PATIENCE).unwrap();
    assert_eq!(cluster.compare_logs(end).unwrap(), None);
    let leader = cluster.wait_for_leader(PATIENCE).unwrap();
    let read = bodies(&cluster, leader);
    for body in &acknowledged {
        let count = read.iter().filter(|other| *other == body).count();
        assert_eq!(count, 1, "{body}");
    }
    drop(cluster);
}
