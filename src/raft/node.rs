//! One node: its runtime, openraft's settings, how it starts and ends.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::network::{NetSnapshot, RaftNetworkFactory};
use openraft::{Config, ServerState, SnapshotPolicy};
use rand::Rng as _;
use rmq_store::{Damage, Disk, Log, LogReader, Queues, mutant};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::task::JoinError;

use super::gate::VoteGate;
use super::leadership::{Leadership, OnFatal};
use super::log_store::{LogStore, SharedLog};
use super::peer::IdentityError;
use super::snapshot::SnapshotData;
use super::space::Space;
use super::state_machine::StateMachine;
use super::types::{NodeId, TypeConfig};
use super::upkeep::{Upkeep, until_mended};
use super::{Raft, tick, watchdog};
use crate::meta::Meta;

/// Threads for the core, the state machine, the batcher and the connections of a group, and for a few of those of clients
/// (`remoting::Homes`), so that no load from clients delays a heartbeat for long. Where clients keep both of two processors
/// busy anyway, a second thread is mostly woken for what the first one would have done (docs/performance.md).
fn threads() -> usize {
    match available_parallelism() {
        Ok(processors) if processors.get() > 2 => 2,
        _ => 1,
    }
}

/// Turns of tasks between two looks at sockets and timers. A connection of a client that lives here has turns of a
/// millisecond or two while it is sent all that it can take; with tokio's 61 of them a heartbeat could wait for a tenth of a second.
const EVENT_INTERVAL: u32 = 7;

/// How often a node says that it is in quarantine.
const QUARANTINE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How quickly a dead leader is noticed: `election_max` after its last heartbeat plus a random time
/// between `election_min` and `election_max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Lower bound of the random time.
    pub election_min: Duration,
    /// Its upper bound, and how long a leader's lease lasts.
    pub election_max: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(300),
        }
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Times that contradict each other.
    #[error("heartbeat and election times do not fit together: {0}")]
    Timers(String),
    /// No threads.
    #[error("cannot start the raft threads: {0}")]
    Runtime(#[source] io::Error),
    /// The data directory is not this node's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The listener for peers cannot be used.
    #[error("cannot listen for peers: {0}")]
    Listen(#[source] io::Error),
    /// The log's notes cannot be written.
    #[error("cannot write to the log: {0}")]
    Log(#[source] io::Error),
    /// It might vote twice in a term, and has nobody to take it in as another node.
    #[error(
        "raft.vote is damaged or missing, and dLegerPeers names no other node that could take this one in \
         as a new one: name one, or restore the file from a copy"
    )]
    LostVote,
    /// The applied state's file cannot be read.
    #[error("cannot read the applied state: {0}")]
    Applied(#[source] io::Error),
    /// The log contradicts itself, or openraft failed at once.
    #[error("raft did not start: {0}")]
    Raft(String),
    /// A broken invariant, of which the log of the process says more.
    #[error("raft panicked at its start")]
    Panicked,
}

/// openraft's settings.
pub(super) fn config(group: &str, timers: Timers) -> Result<Config, StartError> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (heartbeat, min, max) = (
        ms(timers.heartbeat),
        ms(timers.election_min),
        ms(timers.election_max),
    );
    let config = Config {
        cluster_name: group.to_owned(),
        heartbeat_interval: heartbeat,
        election_timeout_min: min,
        election_timeout_max: max,
        // A node that comes back from a partition must not depose a leader with its higher term.
        enable_pre_vote: Some(true),
        // A restarted leader that lost the end of its log would otherwise go on in the same term
        // and give other entries the ids of the lost ones.
        enable_leader_restore: Some(false),
        // With a leader that hears no majority and will not be silent, a majority that hears each
        // other but also the leader never elects another.
        quorum_loss_probe_interval: Some(max.saturating_mul(2)),
        // A follower may come back with less log than it acknowledged: from a power failure without
        // SYNC_FLUSH, or with damage at the log's end.
        allow_log_reversion: Some(true),
        // Entries are batches already, waiting for more of them only costs time.
        broadcast_submitted_on_append: Some(true),
        backoff: "20ms 40ms ..500ms".to_owned(),
        // The log is shortened by retention, not by snapshots.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    };
    config
        .validate()
        .map_err(|e| StartError::Timers(e.to_string()))
}

/// Has heartbeats and votes run before everything else on a machine whose cores are all busy, as far
/// as the system permits; otherwise load alone could depose a leader.
fn raise_priority() {
    const NICE: i32 = -10;
    // On Linux the priority is a thread's, and its id names it. Without the right to it the thread
    // stays as it is.
    let thread = rustix::thread::gettid();
    rustix::process::setpriority_process(Some(thread), NICE).ok();
}

/// Where one node's Raft runs.
pub(super) struct RaftRuntime {
    handle: Handle,
    /// Its own threads, if it has some.
    own: Option<Runtime>,
}

impl RaftRuntime {
    /// Runs it on `given`, or on threads of its own.
    pub(super) fn start(given: Option<Handle>) -> Result<Self, StartError> {
        if let Some(handle) = given {
            return Ok(Self { handle, own: None });
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads())
            .thread_name("raft")
            .event_interval(EVENT_INTERVAL)
            .on_thread_start(raise_priority)
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        Ok(Self {
            handle: runtime.handle().clone(),
            own: Some(runtime),
        })
    }

    /// Its own threads, if it has some.
    pub(super) fn own(&self) -> Option<Handle> {
        self.own.as_ref().map(|runtime| runtime.handle().clone())
    }

    /// Runs `work` on this runtime, to its end even if the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        self.handle.spawn(work).await.ok()
    }
}

impl Drop for RaftRuntime {
    fn drop(&mut self) {
        // Waiting for the threads, as the runtime's own drop does, is not allowed in async code.
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// Does work that blocks while the other tasks of this runtime go on; a runtime that has one thread
/// for everything, as in a simulation, does it at once.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// What a node is made of.
pub(super) struct Parts {
    pub(super) id: NodeId,
    pub(super) config: Config,
    pub(super) log: Log,
    pub(super) queues: Arc<Queues>,
    pub(super) meta: Meta,
    /// Where the applied state lies.
    pub(super) root: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    /// Whether there are others, for whose entries a node waits that may have lost some, and who hold its promises.
    pub(super) has_peers: bool,
    pub(super) on_fatal: OnFatal,
}

/// A node of a group.
pub(super) struct Node {
    pub(super) raft: Raft,
    pub(super) leadership: Arc<Leadership>,
    pub(super) gate: VoteGate,
    pub(super) space: Arc<Space>,
    queues: Arc<Queues>,
    log: SharedLog,
    entries: LogReader,
    /// Taken away to be stopped.
    upkeep: Mutex<Option<Upkeep>>,
}

impl Node {
    /// Recovers a node, which takes no part in its group before [`openraft::Raft::run`]. Must be
    /// called on the runtime where all its tasks are to live.
    pub(super) async fn recover<N>(parts: Parts, network: N) -> Result<Self, StartError>
    where
        N: RaftNetworkFactory<TypeConfig>,
        N::Network: NetSnapshot<TypeConfig, SnapshotData = SnapshotData>,
    {
        let Parts {
            id,
            config,
            mut log,
            queues,
            meta,
            root,
            disk,
            has_peers,
            on_fatal,
        } = parts;
        let lease = Duration::from_millis(config.election_timeout_max);
        let quarantined = has_peers && log.is_suspect() && !mutant!(Quarantine);
        if !quarantined && log.is_suspect() {
            tracing::warn!(
                node = id,
                "the machine went down without a sync: acknowledged entries may be lost"
            );
            log.clear_suspect().map_err(StartError::Log)?;
        }
        // Without a vote it never promised anything, and without peers nothing to anybody.
        let grace = match has_peers && log.read_vote().is_some() {
            true => lease,
            false => Duration::ZERO,
        };
        let reader = log.reader();
        while let Err(error) = rmq_store::seed(&mut log, &queues) {
            let mended = until_mended(&reader, io::Error::other(error)).await;
            mended.map_err(StartError::Log)?;
        }
        let state_machine = loop {
            let opened =
                StateMachine::open(&root, disk.clone(), &reader, queues.clone(), meta.clone());
            match opened {
                Ok(state_machine) => break state_machine,
                Err(error) => {
                    let mended = until_mended(&reader, error).await;
                    mended.map_err(StartError::Applied)?;
                }
            }
        };
        let log = SharedLog::new(log);
        let space = Arc::new(Space::new(reader.clone()));
        let store = LogStore::new(log.clone(), reader.clone());
        let raft = Raft::build(id, Arc::new(config), network, store, state_machine).await;
        let raft = raft.map_err(failed)?;
        let leadership = Arc::new(Leadership::new(raft.clone(), lease));
        tokio::spawn(oversee(
            raft.clone(),
            leadership.clone(),
            reader.clone(),
            on_fatal,
        ));
        let gate = VoteGate::new(grace, quarantined);
        tokio::spawn(tick::pace(raft.clone(), gate.clone()));
        if quarantined {
            tokio::spawn(leave_quarantine(
                raft.clone(),
                gate.clone(),
                log.clone(),
                queues.clone(),
            ));
        }
        let may_stand = queues.is_built() && gate.may_stand(id);
        raft.runtime_config().elect(may_stand);
        if !may_stand {
            let built_since = (!queues.is_built()).then(|| log.clone());
            let (raft, gate) = (raft.clone(), gate.clone());
            tokio::spawn(stand_in_time(raft, gate, built_since, queues.clone()));
        }
        Ok(Self {
            raft,
            leadership,
            gate,
            space,
            queues,
            log,
            entries: reader,
            upkeep: Mutex::default(),
        })
    }

    /// What is damaged in the log and not mended yet.
    pub(super) fn damages(&self) -> Vec<Damage> {
        self.entries.damages()
    }

    /// Has it stopped with the node.
    pub(super) fn keep(&self, upkeep: Upkeep) {
        let mut kept = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(upkeep);
    }

    /// Saves what is applied, stops openraft, and closes queues and log.
    pub(super) async fn shutdown(&self) {
        let upkeep = self
            .upkeep
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(upkeep) = upkeep {
            upkeep.stop().await;
        }
        if let Err(error) = self.log.sync() {
            tracing::warn!(%error, "cannot sync the log");
        }
        let saved = self
            .raft
            .with_state_machine(|state| Box::pin(async { state.save() }))
            .await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot save applied state"),
            Err(error) => tracing::warn!(%error, "cannot save applied state, raft has stopped"),
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        let (queues, log) = (self.queues.clone(), self.log.take());
        let closed = blocking(move || {
            if let Err(error) = queues.stop() {
                tracing::error!(%error, "cannot close the consume queues");
            }
            if let Some(Err(error)) = log.map(Log::close) {
                tracing::error!(%error, "cannot close the log");
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the store failed");
        }
    }
}

/// Runs until openraft has stopped.
async fn oversee(raft: Raft, leadership: Arc<Leadership>, log: LogReader, on_fatal: OnFatal) {
    tokio::select! {
        () = leadership.run(on_fatal) => {}
        () = watchdog::watch(&raft, &leadership, &log) => {}
    }
}

/// Lets the node vote and stand for election again once it has all that its leader has.
async fn leave_quarantine(raft: Raft, gate: VoteGate, log: SharedLog, queues: Arc<Queues>) {
    let node = *raft.node_id();
    let mut data = raft.data_metrics();
    loop {
        let last = data.borrow_watched().last_log;
        if gate.is_recovered_by(last) {
            break;
        }
        tracing::warn!(
            node,
            last = %last.map_or_else(|| "none".to_owned(), |id| id.to_string()),
            "the machine went down without a sync, or the end of the log was damaged, and entries that \
             were acknowledged may be lost: in QUARANTINE, does not vote before it has all that a leader has; if no leader can be \
             elected without it, mqadmin raftRecover has the longest log lead"
        );
        let recovered = async {
            loop {
                tokio::select! {
                    changed = data.changed() => if changed.is_err() {
                        return false;
                    },
                    () = gate.absolved() => {
                        let config = raft.runtime_config();
                        gate.decide(node, |may| config.elect(may && queues.is_built()));
                    }
                }
                // One that was elected while it was absolved has all that is left.
                let leads = raft.server_metrics().borrow_watched().state == ServerState::Leader;
                if leads || gate.is_recovered_by(data.borrow_watched().last_log) {
                    return true;
                }
            }
        };
        match tokio::time::timeout(QUARANTINE_LOG_INTERVAL, recovered).await {
            Ok(true) => break,
            Ok(false) => return,
            Err(_) => {}
        }
    }
    if let Err(error) = log.clear_suspect() {
        tracing::error!(node, %error, "cannot note that the log is whole again");
        return;
    }
    gate.release();
    let config = raft.runtime_config();
    gate.decide(node, |may| config.elect(may && queues.is_built()));
    tracing::info!(node, "has all that its leader has and votes again");
}

/// Lets the node stand for election when the gate has opened, and once its queues are built: a leader answers from
/// them. `built_since` is the log if they were not when it was opened.
async fn stand_in_time(
    raft: Raft,
    gate: VoteGate,
    built_since: Option<SharedLog>,
    queues: Arc<Queues>,
) {
    const LOOK: Duration = Duration::from_millis(100);
    /// Nodes that start together are not to stand together.
    const SPREAD_MS: u64 = 100;
    let spread = Duration::from_millis(rand::rng().random_range(0..SPREAD_MS));
    tokio::time::sleep_until(gate.opens() + spread).await;
    while !queues.is_built() {
        if raft.with_raft_state(|_| ()).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    let seeded = built_since.is_none_or(|log| log.seed_missing(queues.maxima()).is_ok());
    if seeded {
        let config = raft.runtime_config();
        gate.decide(*raft.node_id(), |may| config.elect(may));
    }
}

pub(super) fn failed(error: Fatal<TypeConfig>) -> StartError {
    StartError::Raft(error.to_string())
}
