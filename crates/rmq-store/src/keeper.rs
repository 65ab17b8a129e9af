//! Work beside the hot path: the next segment is made before it is needed, and the checkpoint is
//! written from time to time.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::checkpoint::Checkpoint;
use crate::flush::FlushHandle;
use crate::reader::{ReadError, Shared};
use crate::segment::Segment;
use crate::slots::Slots;
use crate::types::{EntryId, PhyOffset};

/// How often a changed checkpoint is written. It bounds what recovery reads.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    /// The segment to make next.
    wanted: Option<PhyOffset>,
    making: bool,
    made: Option<Segment>,
    /// The checkpoint file is older than its content here.
    changed: bool,
    stop: bool,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    flush: FlushHandle,
    /// Whether new segments are written out with zeros.
    written: bool,
    /// Ends the writing of zeros early.
    hurry: AtomicBool,
    /// Never held during I/O.
    state: Mutex<State>,
    wake: Condvar,
    /// What the next checkpoint says.
    next: Mutex<Checkpoint>,
    /// Held while a checkpoint is written; locked before `next`.
    file: Mutex<File>,
}

#[derive(Debug)]
struct File {
    slots: Slots,
    /// Committed entry and its end as last written.
    committed: Option<EntryId>,
    confirm: PhyOffset,
}

/// The thread and what it works on.
#[derive(Debug)]
pub(crate) struct Keeper {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(
        shared: Arc<Shared>,
        flush: FlushHandle,
        written: bool,
        slots: Slots,
        checkpoint: Checkpoint,
    ) -> io::Result<Self> {
        let Checkpoint {
            committed, confirm, ..
        } = checkpoint;
        let file = File {
            slots,
            committed,
            confirm,
        };
        let inner = Arc::new(Inner {
            shared,
            flush,
            written,
            hurry: AtomicBool::new(false),
            state: Mutex::default(),
            wake: Condvar::new(),
            next: Mutex::new(checkpoint),
            file: Mutex::new(file),
        });
        let for_thread = Arc::clone(&inner);
        let thread = Builder::new()
            .name("rmq-keeper".to_owned())
            .spawn(move || for_thread.run())?;
        Ok(Self {
            inner,
            thread: Some(thread),
        })
    }

    /// Asks for the segment that starts at `base`, before it is needed.
    pub(crate) fn want(&self, base: PhyOffset) {
        self.inner.state().wanted = Some(base);
        self.inner.wake.notify_all();
    }

    /// The segment that starts at `base`: as made ahead, else made now.
    pub(crate) fn take(&self, base: PhyOffset) -> io::Result<Segment> {
        if let Some(segment) = self.made() {
            if segment.base == base {
                return Ok(segment);
            }
            self.inner.shared.segments.unlink(segment.base)?;
        }
        self.inner
            .shared
            .segments
            .create(base, false, &AtomicBool::new(false))
    }

    /// Removes the segment that was made ahead, if any.
    pub(crate) fn discard(&self) -> io::Result<()> {
        match self.made() {
            Some(segment) => self.inner.shared.segments.unlink(segment.base),
            None => Ok(()),
        }
    }

    /// Waits for the thread to finish with a segment, which is soon, and takes it.
    fn made(&self) -> Option<Segment> {
        let mut state = self.inner.state();
        state.wanted = None;
        self.inner.hurry.store(true, Ordering::Relaxed);
        while state.making {
            state = self
                .inner
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.inner.hurry.store(false, Ordering::Relaxed);
        state.made.take()
    }

    /// Changes what the checkpoint says; it is written within a second or two.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Checkpoint)) {
        change(&mut self.inner.next());
        let mut state = self.inner.state();
        if !state.changed {
            state.changed = true;
            self.inner.wake.notify_all();
        }
    }

    /// Something of what the next checkpoint says.
    pub(crate) fn noted<T>(&self, read: impl FnOnce(&Checkpoint) -> T) -> T {
        read(&self.inner.next())
    }

    /// Writes the checkpoint; durable on return.
    pub(crate) fn write_checkpoint(&self) -> io::Result<()> {
        self.inner.write_checkpoint()
    }

    /// Ends the thread. The last changes may not be written.
    pub(crate) fn stop(&mut self) {
        self.inner.state().stop = true;
        self.inner.hurry.store(true, Ordering::Relaxed);
        self.inner.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.inner
                .shared
                .poison(|| "the keeper thread panicked".to_owned());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> MutexGuard<'_, Checkpoint> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut written = Instant::now();
        let mut state = self.state();
        while !state.stop {
            if let Some(base) = state.wanted.take() {
                state.making = true;
                drop(state);
                let made = self.shared.segments.create(base, self.written, &self.hurry);
                state = self.state();
                state.making = false;
                match made {
                    Ok(segment) => state.made = Some(segment),
                    // The append that needs the segment tries again and fails with the reason.
                    Err(e) => tracing::warn!(%base, error = %e, "cannot make the next segment"),
                }
                self.wake.notify_all();
            } else if !state.changed {
                state = self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else if written.elapsed() < CHECKPOINT_INTERVAL {
                let left = CHECKPOINT_INTERVAL.saturating_sub(written.elapsed());
                (state, _) = self
                    .wake
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner);
            } else {
                state.changed = false;
                drop(state);
                if let Err(e) = self.write_checkpoint() {
                    self.shared
                        .poison(|| format!("cannot write the checkpoint: {e}"));
                }
                written = Instant::now();
                state = self.state();
            }
        }
    }

    fn write_checkpoint(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.check_poison()?;
        let mut checkpoint = self.next().clone();
        // What a checkpoint calls committed is durable here: recovery takes damage below it for
        // damage, not for a torn write, and starts the raft index from it.
        match self
            .end_of(checkpoint.committed)
            .map_err(io::Error::other)?
        {
            Some(confirm) => checkpoint.confirm = confirm,
            None => (checkpoint.committed, checkpoint.confirm) = (file.committed, file.confirm),
        }
        if self.flush.synced() < checkpoint.confirm {
            self.flush.sync_now()?;
        }
        self.shared.index.sync()?;
        file.slots.write(&checkpoint.encode())?;
        (file.committed, file.confirm) = (checkpoint.committed, checkpoint.confirm);
        Ok(())
    }

    /// Where the extent of an entry ends, if it lies in the log.
    fn end_of(&self, id: Option<EntryId>) -> Result<Option<PhyOffset>, ReadError> {
        let Some(id) = id else { return Ok(None) };
        let header = self.shared.header(id.index)?;
        Ok(header.map(|(header, _)| header.end()))
    }
}
