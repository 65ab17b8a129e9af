//! The nodes of the simulated group: their starts and their ends. `faults` is what is done to their disks
//! and machines, `lacks` follows what they have lost by that.

mod faults;
mod lacks;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rmq::meta::Meta;
use rmq::raft::{
    self, Group, Letter, NodeId, PeerList, PeerOptions, RaftOptions, RetentionRules, SelfId, Timers,
};
use rmq_store::sim::SimDisk;
use rmq_store::{Disk, FlushMode, LogReader, PhyOffset, Queues, StoreConfig};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use self::faults::Rot;
use self::lacks::Lack;
use crate::machine::{Lent, Machine};
use crate::network::{Fabric, Place, addr};
use crate::plan::Plan;
use crate::trace::Trace;

/// Most microseconds of a sync on a healthy disk.
const SYNC_MICROS: u64 = 1000;

/// A node from its start to its end.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) group: Group,
    pub(crate) reader: LogReader,
    pub(crate) queues: Arc<Queues>,
    pub(crate) meta: Meta,
    machine: Arc<Machine>,
    /// Why Raft gave up, if it did.
    fatal: Arc<Mutex<Option<String>>>,
    /// A snapshot has arrived and is to be installed.
    snapshot: Arc<Mutex<bool>>,
    /// What is to be sent once the process has ended.
    will: Arc<Mutex<Vec<Letter>>>,
    /// Turns true, or goes away, when the process ends.
    pub(crate) ended: watch::Receiver<bool>,
    /// Which start of the node this is.
    pub(crate) life: u32,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// What it wrote stays, synced or not.
    Killed,
    /// What was not synced may be lost.
    PowerCut,
}

/// How long a node may take to end after a failed sync, on a slow disk too.
const DOUBT_LIMIT: Duration = Duration::from_secs(5);

/// A node, whether it runs or not.
struct Node {
    disk: SimDisk,
    running: Option<Running>,
    end: Option<watch::Sender<bool>>,
    /// Whether it is to run: it is a member, or is to become one.
    wanted: bool,
    /// It is started to join a group that may have other members than at first (`raftJoin=true`).
    joins: bool,
    /// Its id in the group, once it has one.
    id: Option<NodeId>,
    /// Whether what it has acknowledged counts.
    voter: bool,
    /// The voters as it knows them, or knew them when it ended.
    view: Vec<NodeId>,
    lives: u32,
    starting: bool,
    /// Something was done to its disk, so that it may give up.
    excused: bool,
    /// The life in which a sync of its log has failed, and when.
    in_doubt: Option<(u32, Instant)>,
    /// How it ends once its disk does.
    crash: Option<End>,
    /// What a former life showed, for the durable part of its log while it is down.
    last: Option<(LogReader, PhyOffset)>,
    lacks: Option<Lack>,
    /// What the last process that ended had to be sent then.
    will: Vec<Letter>,
    /// What its disk has changed of its log and is not mended yet.
    rot: Vec<Rot>,
}

/// The nodes of a group.
pub(crate) struct Nodes {
    plan: Plan,
    fabric: Fabric,
    trace: Trace,
    start: Instant,
    rng: Mutex<StdRng>,
    nodes: Mutex<Vec<Node>>,
    /// Snapshots that were installed.
    pub(crate) installs: AtomicU64,
    /// Bytes that rotted and are right again.
    pub(crate) mended: AtomicU64,
    /// How often a node was believed to have ended.
    pub(crate) believed: Arc<AtomicU64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The store of a node: small files, so that their ends are met.
pub(crate) fn store_config(flush: FlushMode) -> StoreConfig {
    let mut config = StoreConfig::new("/store");
    config.max_message_bytes = 4096;
    config.segment_bytes = 136 * 1024;
    config.consume_queue_file_bytes = 20 * 50;
    config.index_slots = 50;
    config.index_entries = 200;
    config.flush = flush;
    config
}

impl Nodes {
    pub(crate) fn new(plan: &Plan, fabric: Fabric, trace: Trace) -> Self {
        let node = |place| Node {
            wanted: place < plan.nodes,
            joins: place >= plan.nodes,
            id: None,
            voter: place < plan.nodes,
            view: Vec::new(),
            disk: SimDisk::default(),
            running: None,
            end: None,
            lives: 0,
            starting: false,
            excused: false,
            in_doubt: None,
            crash: None,
            last: None,
            lacks: None,
            will: Vec::new(),
            rot: Vec::new(),
        };
        Self {
            plan: plan.clone(),
            fabric,
            trace,
            start: Instant::now(),
            rng: Mutex::new(StdRng::seed_from_u64(plan.seed ^ 0x6e6f_6465_7300)),
            installs: AtomicU64::new(0),
            mended: AtomicU64::new(0),
            believed: Arc::default(),
            nodes: Mutex::new((0..plan.nodes + plan.spares).map(node).collect()),
        }
    }

    /// The nodes that are to run.
    pub(crate) fn places(&self) -> Vec<Place> {
        let nodes = self.nodes();
        let wanted = nodes.iter().enumerate().filter(|(_, node)| node.wanted);
        wanted.map(|(place, _)| place).collect()
    }

    /// A place for another node.
    pub(crate) fn spare(&self) -> Option<Place> {
        self.nodes().iter().position(|node| !node.wanted)
    }

    /// Has a node run that is to become a member.
    pub(crate) fn want(&self, place: Place) {
        self.nodes()[place].wanted = true;
    }

    /// What the group has removed is not needed any more.
    pub(crate) fn discard(&self, place: Place) {
        self.wipe(place);
        let node = &mut self.nodes()[place];
        (node.wanted, node.voter) = (false, false);
        node.lacks = None;
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        lock(&self.nodes)
    }

    pub(crate) fn all_running(&self) -> Vec<(Place, Running)> {
        let nodes = self.nodes();
        let running = nodes.iter().enumerate();
        running
            .filter_map(|(place, node)| Some((place, node.running.clone()?)))
            .collect()
    }

    pub(crate) fn is_down(&self, place: Place) -> bool {
        let node = &self.nodes()[place];
        node.running.is_none() && !node.starting
    }

    /// The node that may answer for the group.
    pub(crate) fn serving(&self) -> Option<(Place, Running)> {
        let mut running = self.all_running().into_iter();
        running.find(|(_, node)| node.group.serving())
    }

    /// What a node has on its disk, and how much of it is durable; also while it is down.
    pub(crate) fn log_of(&self, id: NodeId) -> Option<(LogReader, PhyOffset)> {
        let nodes = self.nodes();
        let node = nodes.iter().find(|node| node.id == Some(id))?;
        match &node.running {
            Some(running) => {
                let reader = running.reader.clone();
                let synced = reader.synced_offset();
                Some((reader, synced))
            }
            None => node.last.clone(),
        }
    }

    /// How many nodes have let go of old segments.
    pub(crate) fn purged(&self) -> u64 {
        let running = self.all_running().into_iter();
        let purged = running.filter(|(_, node)| node.reader.min_offset() > PhyOffset(0));
        purged.count() as u64
    }

    /// Starts a node that is down. An error is what its operator would read.
    pub(crate) async fn start(&self, place: Place) -> Result<(), String> {
        let (disk, life, seed) = {
            let mut nodes = self.nodes();
            let node = &mut nodes[place];
            if node.running.is_some() || node.starting {
                return Ok(());
            }
            node.starting = true;
            node.lives += 1;
            (node.disk.clone(), node.lives, lock(&self.rng).random())
        };
        self.fabric.reconnect(place);
        self.trace
            .event(format_args!("n{place} starts, life {life}"));
        let skew_ms = i64::try_from(place).expect("few") * 37;
        let machine = Machine::new(self.start, skew_ms, SYNC_MICROS, seed);
        disk.attach(Arc::new(Lent(machine.clone())));
        let started = self.open(place, &disk, machine.clone(), life).await;
        let mut nodes = self.nodes();
        let node = &mut nodes[place];
        node.starting = false;
        match started {
            Ok((running, end)) => {
                node.id = Some(running.group.node_id());
                node.running = Some(running);
                node.end = Some(end);
                node.last = None;
                Ok(())
            }
            Err(error) => {
                machine.halt();
                self.fabric.disconnect(place, false);
                let excused = std::mem::take(&mut node.excused);
                let how = node.crash.take().unwrap_or(End::Killed);
                self.leave(node, how);
                self.trace
                    .event(format_args!("n{place} does not start: {error}"));
                if excused { Ok(()) } else { Err(error) }
            }
        }
    }

    async fn open(
        &self,
        place: Place,
        disk: &SimDisk,
        machine: Arc<Machine>,
        life: u32,
    ) -> Result<(Running, watch::Sender<bool>), String> {
        let config = store_config(self.plan.flush);
        let disk = Arc::new(disk.clone());
        let store = rmq_store::open(&config, disk.clone()).map_err(|e| e.to_string())?;
        let (reader, queues) = (store.log.reader(), store.queues.clone());
        queues
            .start(Arc::new(|_| false))
            .map_err(|e| e.to_string())?;
        let meta = Meta::new();
        let fatal = Arc::new(Mutex::new(None));
        let told = fatal.clone();
        let snapshot = Arc::new(Mutex::new(false));
        let arrived = snapshot.clone();
        let will = Arc::new(Mutex::new(Vec::new()));
        let last_will = will.clone();
        let port = self.fabric.of(place);
        let join_only = self.nodes()[place].joins;
        let spares = if join_only { self.plan.spares } else { 0 };
        let list: PeerList = (0..self.plan.nodes + spares)
            .map(|place| (SelfId(place as u16), addr(place)))
            .collect();
        let options = RaftOptions {
            group: "broker-a".to_owned(),
            broker_addr: format!("10.0.0.{}:10911", place + 1),
            peers: Some(PeerOptions {
                self_id: SelfId(place as u16),
                list,
                listener: Box::new(port.clone()),
                net: Arc::new(port),
                join_only,
                auto_rejoin: true,
                last_will: Some(Arc::new(move |will| *lock(&last_will) = will)),
                forward: Arc::new(|_, _| Box::pin(async { Ok(None) })),
            }),
            timers: Timers::default(),
            longest_log: false,
            runtime: Some(Handle::current()),
            retention: RetentionRules {
                delete_when: if self.plan.purges {
                    (0..24).collect()
                } else {
                    Vec::new()
                },
                reserved_hours: 0,
                interval: Duration::from_secs(1),
                pause: Duration::ZERO,
                ..RetentionRules::default()
            },
            snapshot_bytes_per_second: 0,
            on_install: Arc::new(move || *lock(&arrived) = true),
            on_fatal: Box::new(move |reason| *lock(&told) = Some(reason.to_owned())),
        };
        let group = raft::start(options, store, &config, disk, meta.clone()).await;
        let group = group.map_err(|e| e.to_string())?;
        let (end, ended) = watch::channel(false);
        let running = Running {
            group,
            reader,
            queues,
            meta,
            machine,
            fatal,
            snapshot,
            will,
            ended,
            life,
        };
        Ok((running, end))
    }

    /// Ends a process at once. Nobody sees anything of what its tasks still do.
    pub(crate) fn end(&self, place: Place, how: End, silently: bool) {
        self.follow_recovery();
        let mut nodes = self.nodes();
        let node = &mut nodes[place];
        let Some(running) = node.running.take() else {
            // A machine without a process can lose its power as well.
            if how == End::PowerCut && !node.starting {
                self.leave(node, how);
            }
            return;
        };
        self.trace.event(format_args!("n{place} ends: {how:?}"));
        self.fabric.disconnect(place, silently);
        running.machine.halt();
        node.last = Some((running.reader.clone(), running.reader.synced_offset()));
        node.excused = false;
        node.crash = None;
        if let Some(end) = node.end.take() {
            end.send_replace(true);
        }
        self.leave(node, how);
        if how == End::Killed {
            self.vouch(place, node, &running);
        }
        drop(nodes);
        // Its tasks go on unseen until they have ended.
        tokio::spawn(async move { running.group.shutdown().await });
    }

    /// Leaves of a node's disk what such an end leaves, without the locks of its process.
    fn leave(&self, node: &mut Node, how: End) {
        let done = node.disk.done();
        node.disk = match how {
            End::Killed => node.disk.killed_at(done),
            End::PowerCut => {
                if self.plan.flush != FlushMode::Sync && node.voter {
                    node.lacks = Some(Lack::Unheard);
                }
                let mut rng = lock(&self.rng);
                node.disk.cut_at(done, &mut |n| rng.random_range(0..n))
            }
        };
    }

    /// The nodes that a snapshot has arrived at, each once.
    pub(crate) fn to_install(&self) -> Vec<Place> {
        let running = self.all_running().into_iter();
        running
            .filter(|(_, node)| std::mem::take(&mut *lock(&node.snapshot)))
            .map(|(place, _)| place)
            .collect()
    }

    /// Stops a node and begins to put the snapshot that has arrived in its log's place.
    pub(crate) async fn install(&self, place: Place) -> Result<(), String> {
        let Some(running) = self.stop(place).await else {
            return Ok(());
        };
        let (disk, crash) = {
            let mut nodes = self.nodes();
            let node = &mut nodes[place];
            if node.running.is_some() || node.starting || node.lives != running.life {
                return Ok(());
            }
            (node.disk.clone(), node.crash)
        };
        let config = store_config(self.plan.flush);
        let disk: Arc<dyn Disk> = Arc::new(disk);
        match rmq_store::begin_install(&config, &disk, &running.reader) {
            Err(e) if crash.is_none() && !self.nodes()[place].excused => Err(e.to_string()),
            began => {
                self.trace
                    .event(format_args!("n{place} installs a snapshot: {began:?}"));
                self.installs.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Stops a node as its operator does, and gives what it was.
    pub(crate) async fn stop(&self, place: Place) -> Option<Running> {
        let running = self.nodes()[place].running.clone()?;
        self.trace.event(format_args!("n{place} is stopped"));
        running.group.shutdown().await;
        // It may have been killed on the way.
        let mut nodes = self.nodes();
        let node = &mut nodes[place];
        if node
            .running
            .as_ref()
            .is_none_or(|now| now.life != running.life)
        {
            return None;
        }
        self.fabric.disconnect(place, false);
        running.machine.halt();
        node.last = Some((running.reader.clone(), running.reader.synced_offset()));
        node.running = None;
        if let Some(end) = node.end.take() {
            end.send_replace(true);
        }
        self.vouch(place, node, &running);
        Some(running)
    }

    /// Ends the processes that have given up or whose disk has ended. `Err` if one had no reason to.
    pub(crate) fn reap(&self) -> Result<(), String> {
        for (place, running) in self.all_running() {
            let crash = {
                let node = &self.nodes()[place];
                node.crash.filter(|_| node.disk.has_ended())
            };
            if let Some(how) = crash {
                self.end(place, how, false);
                continue;
            }
            if let Some(reason) = lock(&running.fatal).take() {
                self.trace.event(format_args!("n{place} gave up: {reason}"));
                if !self.nodes()[place].excused {
                    return Err(format!("n{place} gave up without a fault: {reason}"));
                }
                self.end(place, End::Killed, false);
                continue;
            }
            self.check_doubt(place, &running)?;
        }
        Ok(())
    }

    /// `Err` if a node goes on although what it wrote to its log may not be durable, now or ever.
    fn check_doubt(&self, place: Place, running: &Running) -> Result<(), String> {
        let node = &mut self.nodes()[place];
        let is_log = |path: &PathBuf| {
            path.parent().is_some_and(|dir| dir.ends_with("commitlog"))
                && path.extension().is_none()
        };
        if node.disk.take_failed_sync().filter(is_log).is_some() {
            node.in_doubt = Some((running.life, Instant::now()));
        }
        match node.in_doubt {
            Some((life, since)) if life == running.life && since.elapsed() > DOUBT_LIMIT => {
                Err(format!("n{place} goes on after a failed sync of its log"))
            }
            _ => Ok(()),
        }
    }

    /// Waits until all run. They may need each other for that.
    pub(crate) async fn start_all(&self) -> Result<(), String> {
        let starts = self.places().into_iter().map(|place| async move {
            while self.is_starting(place) {
                sleep(Duration::from_millis(1)).await;
            }
            self.start(place).await
        });
        join_all(starts).await.into_iter().collect()
    }

    fn is_starting(&self, place: Place) -> bool {
        self.nodes()[place].starting
    }
}
