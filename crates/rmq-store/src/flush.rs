//! Making the log durable.
//!
//! One thread syncs for all: what was appended while a sync ran is covered by the next one, and
//! its callbacks are called together, in the order of the appends (group commit). With ASYNC_FLUSH
//! nobody waits; the thread syncs after an interval, or sooner when much has been written.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::FlushMode;
use crate::reader::Shared;
use crate::types::PhyOffset;

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
    stop: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            callbacks,
            dirty_bytes,
            stop,
        } = self;
        f.debug_struct("State")
            .field("callbacks", &callbacks.len())
            .field("dirty_bytes", dirty_bytes)
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
    wake: Condvar,
    /// End of what is durable. Held during a sync: one at a time, and none during a cut.
    synced: Mutex<PhyOffset>,
}

/// The flush thread and its queue.
#[derive(Debug)]
pub(crate) struct Flusher {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

/// What others need of the flusher.
#[derive(Debug, Clone)]
pub(crate) struct FlushHandle(Arc<Inner>);

impl Flusher {
    /// Starts the thread; the log is durable up to `synced`.
    pub(crate) fn start(
        shared: Arc<Shared>,
        mode: FlushMode,
        synced: PhyOffset,
    ) -> io::Result<Self> {
        shared.publish_synced(synced);
        let inner = Arc::new(Inner {
            shared,
            mode,
            state: Mutex::default(),
            wake: Condvar::new(),
            synced: Mutex::new(synced),
        });
        let for_thread = Arc::clone(&inner);
        let thread = Builder::new()
            .name("rmq-flush".to_owned())
            .spawn(move || for_thread.run())?;
        Ok(Self {
            inner,
            thread: Some(thread),
        })
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
        // With SYNC_FLUSH the callback that follows wakes the thread.
        if self.inner.mode != FlushMode::Sync && (before == 0 || backlog) {
            self.inner.wake.notify_one();
        }
    }

    /// Has `callback` called when all that was appended so far is durable, in the order of these
    /// calls; with ASYNC_FLUSH at once.
    pub(crate) fn on_flushed(&self, callback: FlushCallback) {
        match self.inner.mode {
            FlushMode::Async { .. } => callback(self.inner.shared.check_poison()),
            FlushMode::Sync => {
                self.inner.state().callbacks.push(callback);
                self.inner.wake.notify_one();
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

    /// Syncs what is left, calls the callbacks and ends the thread.
    pub(crate) fn stop(&mut self) {
        self.inner.state().stop = true;
        self.inner.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.inner
                .shared
                .poison(|| "the flush thread panicked".to_owned());
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
            if let Err(e) = segment.file.sync() {
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

    fn run(&self) {
        loop {
            let (callbacks, stop) = self.wait();
            let result = self.sync_now();
            for callback in callbacks {
                callback(match &result {
                    Ok(()) => Ok(()),
                    Err(e) => Err(io::Error::new(e.kind(), e.to_string())),
                });
            }
            if stop {
                return;
            }
        }
    }

    /// Waits for something to sync.
    fn wait(&self) -> (Vec<FlushCallback>, bool) {
        let mut state = self.state();
        let mut deadline = None;
        loop {
            let due = match self.mode {
                FlushMode::Sync => !state.callbacks.is_empty(),
                FlushMode::Async { interval_ms } => {
                    let now = Instant::now();
                    if state.dirty_bytes > 0 && deadline.is_none() {
                        deadline = Some(now + Duration::from_millis(interval_ms));
                    }
                    state.dirty_bytes >= ASYNC_BACKLOG_BYTES || deadline.is_some_and(|d| d <= now)
                }
            };
            if due || state.stop {
                state.dirty_bytes = 0;
                return (std::mem::take(&mut state.callbacks), state.stop);
            }
            state = match deadline {
                None => self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let (state, _) = self
                        .wake
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner);
                    state
                }
            };
        }
    }
}
