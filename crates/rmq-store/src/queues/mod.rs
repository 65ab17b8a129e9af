//! What consumers see of the log: queues of messages and the index by key, behind the confirm offset.
//!
//! [`Queues`] owns the derived files. `open` brings them to a known state and up to the confirm
//! offset, `run` has the two workers that keep them there (dispatch; sync and `repair`), `read` has all
//! the questions; `saved` is a table that makes the opening quick. Their formats are in [`crate::consume_queue`] and [`crate::index_file`], what goes
//! into them is decided in [`crate::dispatch`]; `expire` removes what points to nothing any more;
//! `building` is for a log that came from another node.
//!
//! Two numbers end a queue: `next` is behind the units that are in its files, `committed` behind the
//! messages that are committed, which the dispatcher catches up with within some milliseconds. A
//! reader is told of the second and waits for the first.

mod building;
mod expire;
mod open;
mod read;
mod repair;
mod run;
mod saved;

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use repair::Hole;
use saved::SavedAt;

pub use open::OpenQueuesError;
pub(crate) use read::store_time;
pub use read::{Boundary, GetResult, GetStatus, Place, Takes, bring_in};
pub(crate) use saved::TABLE_FILE;

use crate::consume_queue::{QueueFiles, Table};
use crate::delay::DelayLevels;
use crate::disk::Disk;
use crate::dispatch::{Arrival, CheckpointFile, CommittedLog};
use crate::index_file::Index;
use crate::transfer::InstalledEnds;
use crate::types::{PhyOffset, QueueOffset, Run};
use crate::worker::Worker;

/// Told of the messages of every dispatched batch, by the dispatcher. Says whether anybody waits for
/// more; who begins to wait later says so with [`Queues::hurry`].
pub type ArrivalListener = Arc<dyn Fn(&[Arrival]) -> bool + Send + Sync>;

/// All consume queues and the index of a store.
///
/// Locks are taken in this order, and none is held while a file is synced: `stepping`, `index`,
/// `shared`.
pub struct Queues {
    disk: Arc<dyn Disk>,
    log: Box<dyn CommittedLog>,
    root: PathBuf,
    files: QueueFiles,
    levels: DelayLevels,
    /// See the checkpoint's.
    boot: u64,
    flush_interval: Duration,
    /// Held by the one who dispatches.
    stepping: Mutex<()>,
    index: Mutex<Index>,
    shared: Mutex<Shared>,
    /// Something was dispatched or repaired.
    progress: Condvar,
    checkpoint: Mutex<Checkpoints>,
    /// Where the queues were said to end, if they are being built from an installed log.
    seeds: Option<InstalledEnds>,
    /// Once started.
    workers: OnceLock<Workers>,
}

#[derive(Debug)]
struct Workers {
    /// Woken when there may be something to dispatch, or an end to it.
    dispatch: Arc<dyn Worker>,
    /// Woken when there is a hole to fill, or an end to flushing.
    upkeep: Arc<dyn Worker>,
}

#[derive(Default)]
struct Shared {
    table: Table,
    dispatched: PhyOffset,
    /// See the checkpoint's.
    last_anew: PhyOffset,
    /// The minimum of each queue is right for a log that begins here.
    expired_to: PhyOffset,
    /// While the queues are being built: where in the log that ends.
    built_at: Option<PhyOffset>,
    holes: Vec<Hole>,
    /// The dispatcher lets messages gather for a moment, and is not woken for each of them.
    gathering: bool,
    /// Why dispatch stands still, if it does.
    failure: Option<String>,
    stopping: bool,
}

struct Checkpoints {
    file: CheckpointFile,
    /// What the saved table is of, if there is one.
    table: Option<SavedAt>,
    /// A sync failed. What it covered may be lost although later syncs succeed, so this process
    /// never writes a checkpoint again, nor to the log; the next start dispatches from the last good
    /// one.
    failed: bool,
}

impl Queues {
    /// Everything below is in consume queues and index.
    pub fn dispatched(&self) -> PhyOffset {
        self.shared().dispatched
    }

    /// Up to where the files are known to be durable: after a power cut they are built from there on.
    pub fn durable(&self) -> PhyOffset {
        let checkpoint = self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        checkpoint
            .file
            .last()
            .map_or(PhyOffset(0), |last| last.dispatched)
    }

    /// Why nothing more is dispatched, if so. It is tried again where that can help.
    pub fn failure(&self) -> Option<String> {
        self.shared().failure.clone()
    }

    /// The end of every queue, as dispatched. Asked after [`Queues::dispatched`], it covers at least
    /// what lies below that position.
    pub fn maxima(&self) -> Vec<(Arc<str>, i32, QueueOffset)> {
        let shared = self.shared();
        let end = |(topic, state): (&Arc<str>, &crate::consume_queue::QueueState)| {
            (Arc::clone(topic), state.queue_id, state.next)
        };
        shared.table.iter().map(end).collect()
    }

    /// Takes note that the log is committed up to `end`, the end of an extent with these runs: raises
    /// the confirm offset and wakes the dispatcher. Extents come in the order of the log; one that
    /// was confirmed before changes nothing.
    pub fn commit(&self, end: PhyOffset, runs: &[Run]) {
        let mut shared = self.shared();
        if end <= self.log.confirm_offset() {
            return;
        }
        for run in runs {
            let (topic, mut state) = shared.table.get_or_insert(&run.topic, run.queue_id);
            // Not the larger of the two: a topic that was deleted and made again starts anew.
            state.committed = run.next();
            shared.table.put(&topic, state);
        }
        self.log.set_confirm_offset(end);
        let gathering = shared.gathering;
        drop(shared);
        if !gathering {
            self.wake(|workers| &workers.dispatch);
        }
    }

    /// Has what is committed dispatched at once, for somebody waits for it.
    pub fn hurry(&self) {
        self.hurry_on(&mut self.shared());
    }

    fn hurry_on(&self, shared: &mut Shared) {
        if std::mem::take(&mut shared.gathering) {
            self.wake(|workers| &workers.dispatch);
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = self.shared();
        f.debug_struct("Queues")
            .field("dispatched", &shared.dispatched)
            .field("queues", &shared.table.iter().count())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
