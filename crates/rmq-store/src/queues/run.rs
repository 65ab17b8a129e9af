//! The work on the derived files and the workers that do it.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rmq_wire::record::{Peek, peek};
use rustix::io::Errno;
use tracing::{error, info, warn};

use super::saved::{self, SavedAt, TABLE_BYTES};
use super::{ArrivalListener, Checkpoints, Queues, Shared, Workers};
use crate::dispatch::{Arrival, Batch, Checkpoint, DispatchError, Message, QueueRun};
use crate::types::PhyOffset;
use crate::worker::{Turn, Worker};

/// Bytes of the log that one batch goes through, its last record apart.
const BATCH_BYTES: usize = 4 << 20;
/// How long messages gather that nobody waits for: a write of each queue for many of them costs what it
/// costs for one.
pub(super) const GATHER: Duration = Duration::from_millis(5);
/// How often the progress of building is logged.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
/// Pause before a failed write is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a failed sync, which is not going to be better soon.
const ERROR_PAUSE: Duration = Duration::from_secs(60);

impl Queues {
    /// Starts the dispatcher, which calls `listener` after each batch, and the worker that syncs the
    /// files and repairs holes. Once in the life of the queues.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(self: &Arc<Self>, listener: ArrivalListener) -> io::Result<()> {
        let queues = Arc::clone(self);
        let mut told = None;
        let dispatch = Box::new(move |now| {
            queues.tell_progress(&mut told, now);
            queues.dispatch_turn(&listener)
        });
        let queues = Arc::clone(self);
        let mut flushing = Flushing::default();
        let upkeep = Box::new(move |now| queues.upkeep_turn(&mut flushing, now));
        let workers = Workers {
            dispatch: self.disk.spawn("rmq-dispatch", dispatch)?,
            upkeep: self.disk.spawn("rmq-cq-flush", upkeep)?,
        };
        if self.workers.set(workers).is_err() {
            return Err(io::Error::other("the queues are started already"));
        }
        // What was committed or found missing before woke nobody.
        self.wake(|workers| &workers.dispatch);
        self.wake(|workers| &workers.upkeep);
        Ok(())
    }

    pub(super) fn wake(&self, worker: impl Fn(&Workers) -> &Arc<dyn Worker>) {
        if let Some(workers) = self.workers.get() {
            worker(workers).wake();
        }
    }

    /// Dispatches what is committed, ends the workers and makes everything durable, so that the next
    /// start has nothing to do.
    ///
    /// # Errors
    /// The disk's; the store is sound then, but the next start has to catch up.
    pub fn stop(&self) -> io::Result<()> {
        let mut shared = self.shared();
        (shared.stopping, shared.gathering) = (true, false);
        drop(shared);
        if let Some(Workers { dispatch, upkeep }) = self.workers.get() {
            for worker in [dispatch, upkeep] {
                worker.wake();
                worker.join()?;
            }
        }
        let dispatched = loop {
            // What is left of building takes long, and can be done after the next start.
            if !self.is_built() {
                break Ok(());
            }
            match self.step() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(e) => break Err(io::Error::other(e)),
            }
        };
        self.flush(dispatched.is_ok()).and(dispatched)
    }

    /// Dispatches the next committed records, one batch of them. `None` if there are none.
    pub(crate) fn step(&self) -> Result<Option<Vec<Arrival>>, DispatchError> {
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, confirm) = (self.dispatched(), self.log.confirm_offset());
        if from >= confirm {
            return Ok(None);
        }
        // It is no end for good if damage has been found meanwhile, or next to what was checked.
        let unreadable = || {
            let segment_end = self.log.segment_end(from);
            match self.log.known_damage(from, confirm.min(segment_end)) {
                Some(damage) => DispatchError::Damaged(damage),
                None => DispatchError::NoRecord { at: from, confirm },
            }
        };
        // What follows is looked at when it is its turn.
        let most = (confirm - from).min(BATCH_BYTES as u64);
        let limit = match self.log.check_records(from, most) {
            Err(damage) if damage.start <= from => return Err(DispatchError::Damaged(damage)),
            Err(damage) => damage.start,
            Ok(()) => confirm,
        };
        let bytes = self.log.committed_from(from, limit);
        let bytes = bytes.ok_or_else(unreadable)?;
        let mut batch = Batch::new();
        let io = |source| DispatchError::Io { at: from, source };
        let done = self.fill(&mut batch, &bytes, from).map_err(io)?;
        if done == 0 {
            return Err(unreadable());
        }
        let (runs, arrivals) = batch.finish();
        for run in &runs {
            self.write(run).map_err(io)?;
        }
        let mut shared = self.shared();
        for run in &runs {
            if let Some((topic, state)) = shared.table.get(&run.topic, run.before.queue_id) {
                let topic = Arc::clone(topic);
                shared.table.put(&topic, run.after(state));
            }
            if run.is_new_generation() {
                shared.last_anew = shared.last_anew.max(run.first_phy);
            }
        }
        shared.dispatched = from + done as u64;
        shared.failure = None;
        self.progress.notify_all();
        Ok(Some(arrivals))
    }

    /// Fills a batch from the log's bytes at `from`, builds the index on the way, and returns the
    /// bytes that were used. Stops before bytes that are no record.
    fn fill<'a>(
        &self,
        batch: &mut Batch<'a>,
        bytes: &'a [u8],
        from: PhyOffset,
    ) -> io::Result<usize> {
        let mut index = self.index();
        let mut done = 0;
        while done < bytes.len().min(BATCH_BYTES) && !batch.is_full() {
            match peek(&bytes[done..]) {
                Peek::Record { size } if size <= bytes.len() - done => {
                    let record = &bytes[done..done + size];
                    if let Some(message) = Message::read(record, from + done as u64, &self.levels) {
                        let state = |topic: &str, id| self.shared().table.get_or_insert(topic, id);
                        if !batch.add(&message, state) {
                            break;
                        }
                        let time = message.store_timestamp;
                        index.add(message.topic, message.keys(), message.unit.phy, time)?;
                    }
                    done += size;
                }
                Peek::Blank { .. } => done = bytes.len(),
                _ => break,
            }
        }
        index.write_entries()?;
        Ok(done)
    }

    fn write(&self, run: &QueueRun) -> io::Result<()> {
        let (topic, before, first) = (&run.topic, &run.before, run.first);
        let queue_id = before.queue_id;
        if run.is_new_generation() {
            info!(%topic, queue_id, %first, end = %before.next, "a queue begins anew");
            self.files.cut(topic, queue_id, first)?;
        } else if first > before.next {
            if before.end_phy != PhyOffset(0) {
                warn!(%topic, queue_id, %first, end = %before.next, "a queue jumps");
            }
            self.files.fill_blank(topic, queue_id, before.next, first)?;
        }
        self.files.write(topic, queue_id, first, &run.units)
    }

    /// Makes everything that is dispatched durable and notes so in the checkpoint. `clean` says that
    /// nothing will be written afterwards.
    pub(crate) fn flush(&self, clean: bool) -> io::Result<()> {
        let mut checkpoint = self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if checkpoint.failed {
            return Err(io::Error::other(
                "an earlier sync of the consume queues or the index failed",
            ));
        }
        let (dispatched, digest, last_anew, table) = {
            let shared = self.shared();
            let table = self.table_due(&shared, checkpoint.table, clean);
            let table = table.map(|at| (at, shared.table.all()));
            let digest = shared.table.digest();
            (shared.dispatched, digest, shared.last_anew, table)
        };
        match self.files.sync() {
            Err(e) if is_short_of_descriptors(&e) => {
                // Nothing has failed that was written. The next sync covers it with all others.
                self.files.sync_all_later();
                return Err(e);
            }
            Err(e) => return Err(self.sync_failed(&mut checkpoint, e)),
            Ok(()) => {}
        }
        // The index may be ahead of the position by now; its surplus is cut when it is opened.
        let (index, unsynced) = self.index().flush()?;
        match unsynced.sync() {
            Err(e) if is_short_of_descriptors(&e) => {
                self.index().sync_later(unsynced);
                return Err(e);
            }
            Err(e) => return Err(self.sync_failed(&mut checkpoint, e)),
            Ok(()) => {}
        }
        if let Some((at, queues)) = table {
            match saved::write(&self.root, &*self.disk, &at.encode(queues)) {
                Ok(()) => checkpoint.table = Some(at),
                // The one before is as good, but for the time that the next start takes.
                Err(error) => warn!(%error, "the table of the queues could not be saved"),
            }
        }
        let clean = clean && dispatched == self.log.confirm_offset();
        checkpoint.file.write(Checkpoint {
            dispatched,
            digest,
            last_anew,
            index: Some(index),
            clean,
            boot: self.boot,
        })
    }

    /// Ends the node: without checkpoints retention stands still too, and the next start builds from the last one.
    fn sync_failed(&self, checkpoint: &mut Checkpoints, error: io::Error) -> io::Error {
        checkpoint.failed = true;
        self.log
            .poison(format!("cannot sync consume queues and index: {error}"));
        // Best effort, for this disk is failing: what was lost may be a hole by now.
        if let Some(last) = checkpoint.file.last()
            && let Err(e) = checkpoint.file.write(Checkpoint { boot: 0, ..last })
        {
            error!(error = %e, "the dispatch checkpoint could not be marked");
        }
        error
    }

    /// What the table of the queues is true of now, if it is time to save it again.
    fn table_due(&self, shared: &Shared, saved: Option<SavedAt>, clean: bool) -> Option<SavedAt> {
        let now = SavedAt {
            dispatched: shared.dispatched,
            min: shared.expired_to,
            last_anew: shared.last_anew,
            file_bytes: self.files.file_bytes(),
        };
        let pause = if clean { 0 } else { TABLE_BYTES };
        let due = saved.is_none_or(|saved| {
            let moved = now.dispatched.0.saturating_sub(saved.dispatched.0);
            let alike = SavedAt {
                dispatched: now.dispatched,
                ..saved
            };
            moved > pause || alike != now
        });
        (due && shared.built_at.is_none()).then_some(now)
    }

    /// Logs from time to time how far the building is.
    fn tell_progress(&self, told: &mut Option<Duration>, now: Duration) {
        let shared = self.shared();
        if let Some(until) = shared.built_at
            && now >= *told.get_or_insert(now) + TELL_INTERVAL
        {
            *told = Some(now);
            info!(at = %shared.dispatched, %until, "building consume queues and index");
        }
    }

    pub(super) fn dispatch_turn(&self, listener: &ArrivalListener) -> Turn {
        if !self.is_built() && self.shared().stopping {
            return Turn::End;
        }
        self.gather(false);
        match self.step().and_then(|arrivals| {
            self.note_built()?;
            Ok(arrivals)
        }) {
            Ok(Some(arrivals)) if arrivals.is_empty() => Turn::Again,
            Ok(Some(arrivals)) => {
                // Before the listener looks: who begins to wait after that finds it set.
                self.gather(true);
                if listener(&arrivals) {
                    self.gather(false);
                }
                match self.shared().gathering {
                    true => Turn::WaitFor(GATHER),
                    false => Turn::Again,
                }
            }
            Ok(None) if self.shared().stopping => Turn::End,
            Ok(None) => Turn::Wait,
            Err(e) => {
                error!(error = %e, "dispatch stands still");
                let mut shared = self.shared();
                shared.failure = Some(e.to_string());
                if shared.stopping || matches!(e, DispatchError::NoRecord { .. }) {
                    return Turn::End;
                }
                Turn::Pause(RETRY_PAUSE)
            }
        }
    }

    fn gather(&self, on: bool) {
        let mut shared = self.shared();
        let is_level = shared.dispatched >= self.log.confirm_offset();
        shared.gathering = on && is_level && !shared.stopping && shared.built_at.is_none();
    }

    fn upkeep_turn(&self, flushing: &mut Flushing, now: Duration) -> Turn {
        let next = flushing.next(now, self.flush_interval);
        let shared = self.shared();
        if shared.stopping {
            return Turn::End;
        }
        let hole = shared.holes.first().cloned();
        drop(shared);
        if let Some(hole) = hole {
            self.repair(&hole);
        } else if now < next {
            return Turn::WaitFor(next - now);
        }
        if next <= now {
            let result = self.flush(false);
            if let Err(e) = &result {
                error!(error = %e, "consume queues and index could not be synced");
            }
            flushing.begun = Some((now, result.is_ok()));
        }
        Turn::Again
    }
}

/// Whether a file could not be opened because too many are.
fn is_short_of_descriptors(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// When consume queues and index are synced.
#[derive(Default)]
struct Flushing {
    next: Option<Duration>,
    /// The last turn began to sync at this time, and whether that went well.
    begun: Option<(Duration, bool)>,
}

impl Flushing {
    /// When they are to be synced next.
    fn next(&mut self, now: Duration, interval: Duration) -> Duration {
        if let Some((begun, ok)) = self.begun.take() {
            // With very many queues a round takes long; the disk is the log's in the first place.
            let pause = interval.max((now - begun) * 9);
            self.next = Some(now + if ok { pause } else { pause.max(ERROR_PAUSE) });
        }
        *self.next.get_or_insert(now + interval)
    }
}
