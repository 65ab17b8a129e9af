//! Work beside the hot path: the next segment is made before it is needed, and the checkpoint is
//! written from time to time.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::checkpoint::Checkpoint;
use crate::disk::Disk;
use crate::flush::FlushHandle;
use crate::reader::{ReadError, Shared};
use crate::segment::Segment;
use crate::slots::Slots;
use crate::types::{EntryId, PhyOffset};
use crate::worker::{Turn, Worker};

/// When something that could not be made is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often a changed checkpoint is written. It bounds what recovery reads.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    /// The segment to make next, and when to try that if it has failed.
    wanted: Option<PhyOffset>,
    try_at: Option<Duration>,
    /// The first byte of the raft index's file to make next.
    wanted_index: Option<u64>,
    making: bool,
    made: Option<Segment>,
    /// The checkpoint file is older than its content here.
    changed: bool,
    /// When the worker last wrote it, or began to work.
    written_at: Option<Duration>,
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
    /// A segment was made.
    made: Condvar,
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

/// The worker and what it works on.
#[derive(Debug)]
pub(crate) struct Keeper {
    inner: Arc<Inner>,
    worker: Arc<dyn Worker>,
}

impl Keeper {
    pub(crate) fn start(
        disk: &dyn Disk,
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
            made: Condvar::new(),
            next: Mutex::new(checkpoint),
            file: Mutex::new(file),
        });
        let at_work = Arc::clone(&inner);
        let worker = disk.spawn("rmq-keeper", Box::new(move |now| at_work.turn(now)))?;
        Ok(Self { inner, worker })
    }

    /// Asks for the segment that starts at `base`, before it is needed.
    pub(crate) fn want(&self, base: PhyOffset) {
        self.inner.state().wanted = Some(base);
        self.worker.wake();
    }

    /// Asks for the file of the raft index that starts at byte `base`, before it is needed.
    pub(crate) fn want_index(&self, base: u64) {
        self.inner.state().wanted_index = Some(base);
        self.worker.wake();
    }

    /// The log is short of room no more if what could not be made is not wanted any more: it was made when
    /// it was needed, or the log was cut.
    pub(crate) fn end_shortage(&self) {
        let state = self.inner.state();
        if state.wanted.is_none() && state.wanted_index.is_none() && !state.making {
            self.inner.shared.set_short(false);
        }
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

    /// Waits for the worker to finish with a segment, which is soon, and takes it.
    fn made(&self) -> Option<Segment> {
        let mut state = self.inner.state();
        state.wanted = None;
        state.try_at = None;
        self.inner.hurry.store(true, Ordering::Relaxed);
        while state.making {
            state = self
                .inner
                .made
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.inner.hurry.store(false, Ordering::Relaxed);
        state.made.take()
    }

    /// Changes what the checkpoint says; it is written within a second or two.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Checkpoint)) {
        change(&mut self.inner.next());
        if !std::mem::replace(&mut self.inner.state().changed, true) {
            self.worker.wake();
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

    /// Ends the worker. The last changes may not be written.
    pub(crate) fn stop(&mut self) {
        self.inner.state().stop = true;
        self.inner.hurry.store(true, Ordering::Relaxed);
        self.worker.wake();
        if let Err(e) = self.worker.join() {
            self.inner.shared.poison(|| format!("cannot go on: {e}"));
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

    fn turn(&self, now: Duration) -> Turn {
        let mut state = self.state();
        let written_at = *state.written_at.get_or_insert(now);
        if state.stop {
            return Turn::End;
        }
        let is_wanted = state.wanted.is_some() || state.wanted_index.is_some();
        let is_wanted = is_wanted && self.shared.check_poison().is_ok();
        if is_wanted && state.try_at.is_none_or(|at| at <= now) {
            self.make(state, now);
            return Turn::Again;
        }
        let until_try = state.try_at.filter(|_| is_wanted);
        let until_try = until_try.map(|at| at.saturating_sub(now));
        if !state.changed {
            return until_try.map_or(Turn::Wait, Turn::WaitFor);
        }
        let left = (written_at + CHECKPOINT_INTERVAL).saturating_sub(now);
        if !left.is_zero() {
            return Turn::WaitFor(until_try.map_or(left, |until| until.min(left)));
        }
        state.changed = false;
        state.written_at = Some(now);
        drop(state);
        if let Err(e) = self.write_checkpoint() {
            self.shared
                .poison(|| format!("cannot write the checkpoint: {e}"));
        }
        Turn::Again
    }

    /// Makes what is wanted ahead of need. What cannot be made is tried again later; until then the log
    /// is short of room, which those have to heed who append.
    fn make(&self, mut state: MutexGuard<'_, State>, now: Duration) {
        let (wanted, index) = (state.wanted, state.wanted_index);
        state.making = wanted.is_some();
        drop(state);
        let segments = &self.shared.segments;
        let made = wanted.map(|base| {
            segments.check_space()?;
            segments.create(base, self.written, &self.hurry)
        });
        let made = made.transpose();
        let indexed = index.map_or(Ok(()), |base| self.shared.index.make(base));

        let mut state = self.state();
        state.making = false;
        state.try_at = None;
        if indexed.is_ok() {
            state.wanted_index = state.wanted_index.filter(|base| Some(*base) != index);
        }
        let failure = match made {
            Ok(made) => {
                // Else it was given up meanwhile, and whoever waits for it takes it away.
                state.wanted = state.wanted.filter(|base| Some(*base) != wanted);
                state.made = made.or_else(|| state.made.take());
                indexed.err()
            }
            Err(e) => Some(e),
        };
        if failure.is_some() {
            state.try_at = Some(now + RETRY_INTERVAL);
        }
        // Before anybody who has waited for this goes on.
        let was_short = self.shared.set_short(failure.is_some());
        drop(state);
        self.made.notify_all();
        match failure {
            Some(e) if !was_short => tracing::error!(
                dir = %segments.dir().display(), error = %e,
                "cannot make the log's next file: messages are refused once the last one is nearly full"
            ),
            None if was_short => tracing::info!("the log has room again"),
            _ => {}
        }
    }

    fn write_checkpoint(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.check_poison()?;
        let mut checkpoint = self.next().clone();
        // What a checkpoint calls committed is durable here: recovery takes damage below it for
        // damage, not for a torn write, and starts the raft index from it.
        match self.end_of(checkpoint.committed) {
            Ok(Some(confirm)) => checkpoint.confirm = confirm,
            Err(error @ ReadError::Io { .. }) => return Err(io::Error::other(error)),
            // It is damaged, or not there.
            Err(_) | Ok(None) => {
                (checkpoint.committed, checkpoint.confirm) = (file.committed, file.confirm)
            }
        }
        // What was purged was committed.
        checkpoint.confirm = checkpoint.confirm.max(checkpoint.base);
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
