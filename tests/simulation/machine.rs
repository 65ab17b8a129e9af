//! A machine of the simulation: its clock, and the turns of the store's workers.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rmq_store::sim;
use rmq_store::{Turn, Work, Worker};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// The wall clock at the start of a simulation.
const EPOCH_MS: i64 = 1_800_000_000_000;

/// What a node runs on, from its start to its end.
#[derive(Debug)]
pub(crate) struct Machine {
    /// When the simulation began.
    start: Instant,
    /// How far its wall clock is off.
    skew_ms: i64,
    /// Whether its processes run.
    alive: AtomicBool,
    /// Most microseconds that a sync takes.
    sync_micros: AtomicU64,
    rng: Mutex<StdRng>,
}

impl Machine {
    pub(crate) fn new(start: Instant, skew_ms: i64, sync_micros: u64, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            start,
            skew_ms,
            alive: AtomicBool::new(true),
            sync_micros: AtomicU64::new(sync_micros),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
        })
    }

    /// No worker gets a turn any more.
    pub(crate) fn halt(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Makes syncs slow, or quick again.
    pub(crate) fn set_sync_micros(&self, most: u64) {
        self.sync_micros.store(most, Ordering::Relaxed);
    }

    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    fn sync_time(&self) -> Duration {
        let most = self.sync_micros.load(Ordering::Relaxed).max(1);
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_micros(rng.random_range(0..most))
    }
}

impl sim::Machine for Lent {
    fn now_ms(&self) -> i64 {
        let passed = i64::try_from(self.0.start.elapsed().as_millis()).expect("runs are short");
        EPOCH_MS + self.0.skew_ms + passed
    }

    fn spawn(&self, name: &str, work: Work) -> Arc<dyn Worker> {
        let task = Arc::new(Task {
            work: Mutex::new(Some(work)),
            start: self.0.start,
            woken: Notify::new(),
        });
        let syncs = name == "rmq-flush";
        tokio::spawn(run(Arc::clone(&self.0), Arc::clone(&task), syncs));
        task
    }
}

/// A machine as its disk has it.
#[derive(Debug)]
pub(crate) struct Lent(pub(crate) Arc<Machine>);

async fn run(machine: Arc<Machine>, task: Arc<Task>, syncs: bool) {
    while machine.is_alive() {
        match task.turn() {
            Turn::Again => tokio::task::yield_now().await,
            Turn::Wait => task.woken.notified().await,
            Turn::WaitFor(most) => drop(timeout(most, task.woken.notified()).await),
            Turn::Pause(time) => sleep(time).await,
            Turn::End => return,
        }
        if syncs {
            sleep(machine.sync_time()).await;
        }
    }
    task.end();
}

/// A worker whose turns are a task's.
struct Task {
    /// Gone when it has ended.
    work: Mutex<Option<Work>>,
    start: Instant,
    woken: Notify,
}

impl Task {
    fn turn(&self) -> Turn {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = match work.as_mut() {
            Some(work) => work(self.start.elapsed()),
            None => Turn::End,
        };
        let ended = (turn == Turn::End).then(|| work.take());
        drop(work);
        drop(ended);
        turn
    }

    fn end(&self) {
        let work = self
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(work);
    }
}

impl Worker for Task {
    fn wake(&self) {
        self.woken.notify_one();
    }

    /// Its owner gives it the turns that it still wants.
    fn join(&self) -> io::Result<()> {
        while self.turn() != Turn::End {}
        Ok(())
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Task")
    }
}
