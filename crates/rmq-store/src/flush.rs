//! Making the log durable.
//!
//! One worker syncs for all: what was appended while a sync ran is covered by the next one, and
//! its callbacks are called together, in the order of the appends (group commit). With ASYNC_FLUSH
//! nobody waits; the worker syncs after an interval, or sooner when much has been written.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::FlushMode;
use crate::disk::Disk;
use crate::mutant;
use crate::reader::Shared;
use crate::types::PhyOffset;
use crate::worker::{Turn, Worker};

/// Called once when what was appended before it is durable, or never will be.
pub type FlushCallback = Box<dyn FnOnce(io::Result<()>) + Send>;

/// With ASYNC_FLUSH: unsynced bytes that are not left to wait for the interval, because a large
/// backlog of dirty pages would let the kernel slow the appends down.
const ASYNC_BACKLOG_BYTES: u64 = 64 << 20;

#[derive(Default)]
struct State {
    callbacks: Vec<FlushCallback>,
    /// Bytes appended since the last sync began.
    dirty_bytes: u64,
    /// With ASYNC_FLUSH: when they are to be synced.
    due: Option<Duration>,
    stop: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            callbacks,
            dirty_bytes,
            due,
            stop,
        } = self;
        f.debug_struct("State")
            .field("callbacks", &callbacks.len())
            .field("dirty_bytes", dirty_bytes)
            .field("due", due)
            .field("stop", stop)
            .finish()
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    mode: FlushMode,
    /// Never held during I/O.
    state: Mutex<State>,
    /// End of what is durable. Held during a sync: one at a time, and none during a cut.
    synced: Mutex<PhyOffset>,
}

/// The flush worker and its queue.
#[derive(Debug)]
pub(crate) struct Flusher {
    inner: Arc<Inner>,
    worker: Arc<dyn Worker>,
}

/// What others need of the flusher.
#[derive(Debug, Clone)]
pub(crate) struct FlushHandle(Arc<Inner>);

impl Flusher {
    /// Starts the worker; the log is durable up to `synced`.
    pub(crate) fn start(
        disk: &dyn Disk,
        shared: Arc<Shared>,
        mode: FlushMode,
        synced: PhyOffset,
    ) -> io::Result<Self> {
        shared.publish_synced(synced);
        let inner = Arc::new(Inner {
            shared,
            mode,
            state: Mutex::default(),
            synced: Mutex::new(synced),
        });
        let at_work = Arc::clone(&inner);
        let worker = disk.spawn("rmq-flush", Box::new(move |now| at_work.turn(now)))?;
        Ok(Self { inner, worker })
    }

    pub(crate) fn handle(&self) -> FlushHandle {
        FlushHandle(Arc::clone(&self.inner))
    }

    /// Says that `bytes` were appended.
    pub(crate) fn wrote(&self, bytes: u64) {
        let mut state = self.inner.state();
        let before = state.dirty_bytes;
        state.dirty_bytes += bytes;
        let backlog = before < ASYNC_BACKLOG_BYTES && state.dirty_bytes >= ASYNC_BACKLOG_BYTES;
        drop(state);
        // With SYNC_FLUSH the callback that follows wakes the worker.
        if self.inner.mode != FlushMode::Sync && (before == 0 || backlog) {
            self.worker.wake();
        }
    }

    /// Has `callback` called when all that was appended so far is durable, in the order of these
    /// calls; with ASYNC_FLUSH at once.
    pub(crate) fn on_flushed(&self, callback: FlushCallback) {
        match self.inner.mode {
            FlushMode::Async { .. } => callback(self.inner.shared.check_poison()),
            FlushMode::Sync if mutant!(M2) => callback(Ok(())),
            FlushMode::Sync => {
                self.inner.state().callbacks.push(callback);
                self.worker.wake();
            }
        }
    }

    /// Runs `cut`, which shortens the log to `end` durably, while nothing is synced.
    pub(crate) fn while_cut<R>(&self, end: PhyOffset, cut: impl FnOnce() -> R) -> R {
        let mut synced = self.inner.synced();
        *synced = end.min(*synced);
        self.inner.shared.publish_synced(*synced);
        cut()
    }

    /// Syncs what is left, calls the callbacks and ends the worker.
    pub(crate) fn stop(&mut self) {
        self.inner.state().stop = true;
        self.worker.wake();
        if let Err(e) = self.worker.join() {
            self.inner.shared.poison(|| format!("cannot flush: {e}"));
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl FlushHandle {
    /// Makes all that was appended so far durable.
    pub(crate) fn sync_now(&self) -> io::Result<()> {
        self.0.sync_now()
    }

    /// End of what is durable.
    pub(crate) fn synced(&self) -> PhyOffset {
        *self.0.synced()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synced(&self) -> MutexGuard<'_, PhyOffset> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_now(&self) -> io::Result<()> {
        let mut synced = self.synced();
        self.shared.check_poison()?;
        let end = self.shared.end();
        for segment in self.shared.segments.touching(*synced, end) {
            if let Err(e) = segment.file.sync()
                && !mutant!(M8)
            {
                // The kernel has dropped the pages or marked them clean: a second sync would
                // succeed and lie.
                let path = self.shared.segments.path(segment.base);
                self.shared
                    .poison(|| format!("cannot sync {}: {e}", path.display()));
                return Err(e);
            }
        }
        *synced = end;
        self.shared.publish_synced(end);
        Ok(())
    }

    fn turn(&self, now: Duration) -> Turn {
        let (callbacks, stop) = {
            let mut state = self.state();
            if !state.stop
                && let Some(wait) = self.not_due(&mut state, now)
            {
                return wait;
            }
            state.dirty_bytes = 0;
            state.due = None;
            (std::mem::take(&mut state.callbacks), state.stop)
        };
        let result = self.sync_now();
        for callback in callbacks {
            callback(match &result {
                Ok(()) => Ok(()),
                Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
            });
        }
        if stop { Turn::End } else { Turn::Again }
    }

    /// When to look again, if nothing is to be synced by now.
    fn not_due(&self, state: &mut State, now: Duration) -> Option<Turn> {
        let FlushMode::Async { interval_ms } = self.mode else {
            return state.callbacks.is_empty().then_some(Turn::Wait);
        };
        if state.dirty_bytes == 0 {
            return Some(Turn::Wait);
        }
        let due = *state
            .due
            .get_or_insert_with(|| now + Duration::from_millis(interval_ms));
        let is_due = state.dirty_bytes >= ASYNC_BACKLOG_BYTES || due <= now;
        (!is_due).then(|| Turn::WaitFor(due.saturating_sub(now)))
    }
}
