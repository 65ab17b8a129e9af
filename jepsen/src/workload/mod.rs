//! Clients at work, and what they saw. `producers` always; `consumers` read what they have sent, `members`
//! are a consumer group, `monitor` asks who leads, `last` reads what is left in the end.

mod arrivals;
mod consumers;
mod delayed;
mod last;
mod load;
mod members;
mod monitor;
mod producers;
mod transactional;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;

use crate::client::{Client, Outcome};
use crate::cluster::Cluster;
use crate::history::{Fault, History, Lead, OffsetCall, OffsetOp, PROBE};
pub(crate) use last::{read_back, read_stretches};

/// Queues; the producers have them in turn.
pub(crate) const QUEUES: u32 = 4;
/// Processes of producers are numbered from 0, those of others from these.
const PROBES: u64 = 39;
const COMMITTER: u64 = 40;
const ONCE: u64 = 41;
const DELAYER: u64 = 45;
const TRANSACTOR: u64 = 46;
const READERS: u64 = 50;
const MEMBERS: u64 = 60;
const LOADERS: u64 = 80;
const LAST: u64 = 98;
pub(crate) const TOPIC: &str = "jepsen_queue";
const GROUP: &str = "jepsen_group";
/// A producer gives an operation up after this; then its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the last questions of a run may take.
pub(crate) const LIVENESS: Duration = Duration::from_secs(60);

/// What consumers do beside the producers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One reader for each node looks there for what was just acknowledged, and one client commits
    /// offsets of a group.
    Queue,
    /// Members of a group share the queues by the broker's list of them, read everything and commit; now
    /// and then one leaves and comes back.
    Offset,
    /// Members of a group take the lock of a queue, read on from the group's offset, commit and give it up.
    Ordered,
    /// Messages with a delay are sent, and a reader looks when they come.
    Delay,
    /// Half messages are sent, and the end of each is said by two clients, to all nodes in turn; a reader looks what
    /// is committed.
    Transaction,
    /// What `queue` does, and clients that send batches, many messages in all.
    Load,
    /// What `queue` does, with nodes that begin with the store of a Java broker: `rmq-migrate` is killed or loses its
    /// power on the way, and all that was there is looked for on each node in the end.
    Migrate,
}

/// Clients at work from [`Workload::start`] until [`Workload::stop`].
pub(crate) struct Workload {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Workload {
    /// Starts `producers` and what `kind` says as clients of a cluster; a load has at most `rate` messages a
    /// second.
    pub(crate) fn start(
        cluster: &Cluster,
        kind: Kind,
        (producers, rate): (u32, u64),
        seed: u64,
    ) -> Self {
        let nodes = cluster.addresses();
        let count = nodes.len();
        let target = cluster.target();
        let shared = Arc::new(Shared {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            liveness: target.liveness(),
            by_route: target.is_java(),
            known: Mutex::new(nodes.clone()),
            nodes: Mutex::new(nodes),
            history: Mutex::default(),
            acknowledged: Mutex::default(),
        });
        let mut work = Self {
            shared,
            workers: Vec::new(),
        };
        for producer in 0..producers {
            work.add(move |shared| producers::produce(shared, producer));
        }
        if target.is_java() {
            let namesrv = cluster.namesrv;
            work.add(move |shared| monitor::watch_route(shared, namesrv));
        } else {
            for node in 0..count {
                work.add(move |shared| monitor::watch(shared, node));
            }
        }
        match kind {
            Kind::Queue | Kind::Load | Kind::Migrate => {
                let loads = if kind == Kind::Load { load::SENDERS } else { 0 };
                for sender in 0..loads {
                    work.add(move |shared| load::send(shared, sender, rate, seed));
                }
                work.add(producers::commit);
                for node in 0..count {
                    work.add(move |shared| consumers::look(shared, node));
                }
            }
            Kind::Offset => {
                for member in 0..2 {
                    let present = Arc::new(AtomicBool::new(true));
                    let seen = present.clone();
                    work.add(move |shared| members::beat(shared, member, seed, &present));
                    work.add(move |shared| members::share(shared, member, &seen));
                }
            }
            Kind::Delay => {
                work.add(producers::commit);
                work.add(delayed::send);
                work.add(delayed::watch);
            }
            Kind::Transaction => {
                work.add(producers::commit);
                work.add(transactional::send);
                work.add(transactional::watch);
            }
            Kind::Ordered => {
                for member in 0..3 {
                    work.add(move |shared| members::lock_and_read(shared, member, seed));
                }
            }
        }
        work
    }

    fn add(&mut self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared.clone();
        self.workers.push(thread::spawn(move || work(&shared)));
    }

    /// Ends the clients; what they saw.
    pub(crate) fn stop(self) -> anyhow::Result<History> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            let ended = worker.join();
            ended.map_err(|_| anyhow::anyhow!("a workload thread panicked"))?;
        }
        Ok(std::mem::take(&mut *self.shared.history()))
    }

    /// The start, from which all times count.
    pub(crate) fn start_time(&self) -> Instant {
        self.shared.start
    }

    /// Nanoseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        self.shared.now()
    }

    /// How long ago `at` was.
    pub(crate) fn since(&self, at: u64) -> Duration {
        self.shared.since(at)
    }

    /// Has the clients use these nodes from now on.
    pub(crate) fn set_nodes(&self, nodes: Vec<SocketAddr>) {
        for node in &nodes {
            self.shared.number(*node);
        }
        *self.shared.nodes() = nodes;
    }

    /// Notes that a fault strikes now.
    pub(crate) fn note_fault(&self, what: String) -> u64 {
        let from = self.now();
        self.shared.history().faults.push(Fault {
            what,
            from,
            until: None,
            seen: None,
        });
        from
    }

    /// Notes that the fault that began at `from` is over, and how much was seen of it.
    pub(crate) fn note_end(&self, from: u64, seen: u64) {
        let until = self.now();
        let mut history = self.shared.history();
        if let Some(fault) = history.faults.iter_mut().rfind(|fault| fault.from == from) {
            fault.until = Some(until);
            fault.seen = Some(seen);
        }
    }

    /// Who was seen to lead in the highest term.
    pub(crate) fn leader(&self) -> Option<Lead> {
        self.shared.leader()
    }

    /// Notes that the last fault strikes only now: what was acknowledged before belongs to the time
    /// before it.
    pub(crate) fn note_strike(&self) -> u64 {
        let from = self.now();
        if let Some(fault) = self.shared.history().faults.last_mut() {
            fault.from = from;
        }
        from
    }

    /// Waits for an acknowledgement of a producer's send that was invoked after `from`; answers after how
    /// many milliseconds it came.
    pub(crate) fn wait_for_acks(&self, from: u64) -> anyhow::Result<u64> {
        let liveness = self.shared.liveness;
        let end = Instant::now() + liveness;
        loop {
            if let Some(ack) = self.shared.history().first_ack(from) {
                return Ok((ack - from) / 1_000_000);
            }
            ensure!(
                Instant::now() < end,
                "nothing was acknowledged for {liveness:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends through each node in turn until one acknowledges; answers how many milliseconds after `from`
    /// that was. What it sends is part of the history.
    pub(crate) fn probe(&self, from: u64, name: &str) -> anyhow::Result<u64> {
        producers::probe(&self.shared, from, &format!("{PROBE}:{name}"))
    }

    /// Commits an offset of the group in a queue where no other client does, until the node at `address` has
    /// acknowledged one.
    pub(crate) fn commit_once(&self, address: SocketAddr) -> anyhow::Result<()> {
        const QUEUE: u32 = QUEUES - 1;
        let shared = &self.shared;
        let end = Instant::now() + shared.liveness;
        loop {
            let done = Client::connect(address, PATIENCE).is_ok_and(|mut client| {
                let offset = shared.now() / 1_000_000;
                shared.commit(&mut client, ONCE, QUEUE, offset)
            });
            if done {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{address} takes no offset");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Shared {
    start: Instant,
    stop: AtomicBool,
    /// Within this a leader must be back after every fault.
    liveness: Duration,
    /// Groups are known to the leader alone, which the name server shows.
    by_route: bool,
    nodes: Mutex<Vec<SocketAddr>>,
    /// All nodes that there ever were.
    known: Mutex<Vec<SocketAddr>>,
    history: Mutex<History>,
    /// Of each queue the last offset that was acknowledged.
    acknowledged: Mutex<[Option<u64>; QUEUES as usize]>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long ago `at` was.
    fn since(&self, at: u64) -> Duration {
        Duration::from_nanos(self.now() - at)
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the `n`th node listens, counting round and round.
    fn node(&self, n: usize) -> SocketAddr {
        let nodes = self.nodes();
        nodes[n % nodes.len()]
    }

    /// Whom the `n`th try asks about a group's members and offsets: of rmq any node may be asked.
    fn coordinator(&self, n: usize) -> SocketAddr {
        let leader = if self.by_route { self.leader() } else { None };
        let at = leader.map_or(n, |lead| usize::try_from(lead.node).unwrap_or(n));
        self.node(at)
    }

    /// See [`Workload::leader`].
    fn leader(&self) -> Option<Lead> {
        let history = self.history();
        let newest = history.leads.iter().rev().take(20);
        newest.max_by_key(|lead| (lead.term, lead.at)).cloned()
    }

    /// The number of a node, in the order in which nodes came.
    fn number(&self, address: SocketAddr) -> u64 {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|other| *other == address);
        let at = at.unwrap_or_else(|| {
            known.push(address);
            known.len() - 1
        });
        at as u64
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note_acknowledged(&self, queue: u32, offset: u64) {
        let mut all = self
            .acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let last = &mut all[queue as usize];
        *last = (*last).max(Some(offset));
    }

    /// An offset of a queue, the newest, where a message was acknowledged.
    fn last_acknowledged(&self, queue: u32) -> Option<u64> {
        let all = self
            .acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all[queue as usize]
    }

    /// Commits a group's offset, for the history.
    fn commit(&self, client: &mut Client, process: u64, queue: u32, offset: u64) -> bool {
        let invoked = self.now();
        let acknowledged = client.commit(GROUP, TOPIC, queue, offset) == Outcome::Ok(());
        let call = OffsetCall::Commit {
            offset,
            acknowledged,
        };
        self.note_offset(process, queue, invoked, call);
        acknowledged
    }

    /// A group's offset, for the history.
    fn committed(&self, client: &mut Client, process: u64, queue: u32) -> io::Result<Option<u64>> {
        let invoked = self.now();
        let read = client.committed(GROUP, TOPIC, queue)?;
        self.note_offset(process, queue, invoked, OffsetCall::Read(read));
        Ok(read)
    }

    fn note_offset(&self, process: u64, queue: u32, invoked: u64, call: OffsetCall) {
        let ended = self.now();
        self.history().offsets.push(OffsetOp {
            process,
            queue,
            invoked,
            ended,
            call,
        });
    }
}
