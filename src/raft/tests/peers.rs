//! Nodes as the broker starts them, with their peers over TCP.

use std::any::Any;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rmq_store::{Disk, DiskFile, FlushMode, OpenMode, RealDisk, Space};
use tempfile::TempDir;

use super::{
    PATIENCE, Running, assert_equal_logs, assert_in_place, leader_of, open_store, send_surely,
    store_config, until, until_level, until_ok,
};
use crate::meta::Meta;
use crate::raft::node::Timers;
use crate::raft::{
    OnFatal, OnInstall, PeerOptions, RaftOptions, RetentionRules, SelfId, Tcp, TransferError,
};
use crate::testing::own_loopback;

/// What a node runs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) flush: FlushMode,
    /// Names the run of the machine since its power was switched on.
    pub(super) boot: &'static str,
    /// How quickly a test's log lets go of what is old; `None` for never.
    pub(super) retention: Option<fn() -> RetentionRules>,
    /// Percent of the disk that are used; `None` for few, for the machine of the test has no say.
    pub(super) used: Option<&'static AtomicU64>,
}

impl Machine {
    pub(super) fn retaining(rules: fn() -> RetentionRules) -> Self {
        Self {
            flush: FlushMode::Sync,
            boot: "boot",
            retention: Some(rules),
            used: None,
        }
    }
}

/// The files of this machine in another run of it.
#[derive(Debug)]
struct Booted(Machine);

impl Disk for Booted {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path, mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealDisk.unlink(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.remove_dir(dir)
    }
    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_all(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        RealDisk.lock(path)
    }
    fn space(&self, _: &Path) -> io::Result<Space> {
        let used = self.0.used.map_or(10, |used| used.load(Ordering::Relaxed));
        Ok(Space {
            used: used << 40,
            available: (100 - used) << 40,
        })
    }
    fn boot_id(&self) -> io::Result<String> {
        Ok(self.0.boot.to_owned())
    }
    fn now_ms(&self) -> i64 {
        RealDisk.now_ms()
    }
}

/// Three places for nodes.
pub(super) struct Site {
    pub(super) dirs: Vec<TempDir>,
    addrs: Vec<SocketAddr>,
    /// `uncleanRecovery=longest-log` on all of them.
    pub(super) longest_log: bool,
    timers: Timers,
}

impl Site {
    pub(super) fn new() -> Self {
        // The ports are free again by the time that the nodes bind them.
        let host = own_loopback();
        let listeners: Vec<_> = (0..3)
            .map(|_| TcpListener::bind((host, 0)).unwrap())
            .collect();
        Self {
            dirs: (0..3).map(|_| tempfile::tempdir().unwrap()).collect(),
            addrs: listeners.iter().map(|l| l.local_addr().unwrap()).collect(),
            longest_log: false,
            timers: Timers::default(),
        }
    }

    pub(super) async fn start(&self, place: usize, machine: Machine) -> Running {
        self.start_with(place, machine, Arc::new(|| {})).await
    }

    /// With what is called when a snapshot has arrived.
    pub(super) async fn start_with(
        &self,
        place: usize,
        machine: Machine,
        on_install: OnInstall,
    ) -> Running {
        let root = self.dirs[place].path();
        let on_fatal = Box::new(|reason: &str| panic!("raft failed: {reason}"));
        let disk = Arc::new(Booted(machine));
        self.start_on((disk, root), place, machine, (on_install, on_fatal))
            .await
    }

    /// With a disk and what is called when Raft has failed.
    pub(super) async fn start_on(
        &self,
        (disk, root): (Arc<dyn Disk>, &Path),
        place: usize,
        machine: Machine,
        (on_install, on_fatal): (OnInstall, OnFatal),
    ) -> Running {
        let number = u16::try_from(place).unwrap();
        let listener = bind(self.addrs[place]).await;
        let [n0, n1, n2] = self.addrs[..] else {
            panic!("three places")
        };
        let peers = PeerOptions {
            self_id: SelfId(number),
            list: format!("n0-{n0};n1-{n1};n2-{n2}").parse().unwrap(),
            listener: Box::new(listener),
            net: Arc::new(Tcp),
            join_only: false,
            auto_rejoin: true,
            last_will: None,
            forward: Arc::new(move |client, frame| {
                Box::pin(async move {
                    // Raft's own threads have no time for it.
                    let thread = std::thread::current();
                    let by = thread.name().filter(|name| *name == "raft");
                    let by = by.map_or_else(String::new, |name| format!(" by {name}"));
                    let answer = format!("{client} asked n{number} for {frame:?}{by}");
                    Ok(Some(answer.into()))
                })
            }),
        };
        let options = RaftOptions {
            group: "broker-a".to_owned(),
            broker_addr: format!("127.0.0.1:{}", 10911 + number),
            peers: Some(peers),
            timers: self.timers,
            longest_log: self.longest_log,
            runtime: None,
            retention: machine
                .retention
                .map_or_else(RetentionRules::default, |rules| rules()),
            snapshot_bytes_per_second: 0,
            on_install,
            on_fatal,
        };
        let config = store_config(root, machine.flush);
        let store = open_store(&config, disk.clone()).await;
        let reader = store.log.reader();
        store.queues.start(Arc::new(|_| true)).unwrap();
        let meta = Meta::new();
        let group = crate::raft::start(options, store, &config, disk, meta.clone()).await;
        Running {
            group: group.unwrap(),
            reader,
            meta,
        }
    }

    pub(super) async fn start_all(&self, machine: Machine) -> Vec<Running> {
        let mut nodes = Vec::new();
        for place in 0..3 {
            nodes.push(self.start(place, machine).await);
        }
        nodes
    }
}

/// Binds an address once the node that had it has let go of it.
async fn bind(addr: SocketAddr) -> TcpListener {
    let mut listener = None;
    until("the port is free", || {
        listener = TcpListener::bind(addr).ok();
        listener.is_some()
    })
    .await;
    listener.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_find_each_other_and_outlive_their_leader() {
    let machine = Machine {
        flush: FlushMode::Sync,
        boot: "boot",
        retention: None,
        used: None,
    };
    let site = Site::new();
    let mut nodes = site.start_all(machine).await;
    let all: Vec<&Running> = nodes.iter().collect();
    let mut sent = send_surely(&all, "first", 200).await;
    let client = "192.0.2.1:5".parse().unwrap();
    until_ok("a follower has its leader answer", async || {
        let leader = leader_of(&all).await;
        let number = SelfId::of(leader.group.node_id());
        let follower = all.iter().find(|node| !node.group.serving()).unwrap();
        let answer = follower
            .group
            .forward("pull".into(), client, PATIENCE)
            .await;
        let expected = format!("192.0.2.1:5 asked {number} for b\"pull\"");
        match answer {
            Ok(Some(answer)) if answer == expected => Ok(()),
            other => Err(other),
        }
    })
    .await;

    // The leader is stopped without a transfer; the others elect one and go on.
    let leader = leader_of(&all).await;
    let stopped = all
        .iter()
        .position(|node| std::ptr::eq(*node, leader))
        .unwrap();
    let leader = nodes.remove(stopped);
    leader.group.shutdown().await;
    drop(leader);
    let rest: Vec<&Running> = nodes.iter().collect();
    sent.extend(send_surely(&rest, "second", 200).await);

    // It comes back under its old address and catches up.
    let back = site.start(stopped, machine).await;
    until_level(&[rest[0], rest[1], &back]).await;
    assert_equal_logs(&[rest[0], rest[1], &back]);
    for node in nodes.iter().chain([&back]) {
        assert_in_place(&node.reader, &sent);
        node.group.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_to_nobody_who_could_not_take_it() {
    let machine = Machine {
        flush: FlushMode::Sync,
        boot: "boot",
        retention: None,
        used: None,
    };
    let mut site = Site::new();
    let mut nodes = site.start_all(machine).await;
    let all: Vec<&Running> = nodes.iter().collect();
    send_surely(&all, "first", 20).await;
    let leader = leader_of(&all).await;
    let place = all
        .iter()
        .position(|node| !std::ptr::eq(*node, leader))
        .unwrap();
    let follower = nodes.remove(place);
    follower.group.shutdown().await;
    drop(follower);

    // What it promised before its start may hold for an hour.
    site.timers.election_max = Duration::from_secs(3600);
    let late = site.start(place, machine).await;
    let id = SelfId::of(late.group.node_id());
    let all = [&nodes[0], &nodes[1], &late];
    until_ok("the leader knows that it cannot lead", async || {
        let leader = leader_of(&all).await;
        let refused = leader.group.transfer_leader(Some(id)).await;
        match refused {
            Err(TransferError::NotReady(node)) if node == id && leader.group.serving() => Ok(()),
            other => Err(other),
        }
    })
    .await;
    until_ok("another one takes over", async || {
        let leader = leader_of(&all).await;
        match leader.group.transfer_leader(None).await {
            Ok(node) if SelfId::of(node) != id => Ok(()),
            other => Err(other),
        }
    })
    .await;
    for node in all {
        node.group.shutdown().await;
    }
}
