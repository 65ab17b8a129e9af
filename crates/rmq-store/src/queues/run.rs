//! The work on the derived files and the threads that do it.

use std::io;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rmq_wire::record::{Peek, peek};
use tracing::{error, info, warn};

use super::{ArrivalListener, Queues};
use crate::dispatch::{Arrival, Batch, Checkpoint, DispatchError, Message, QueueRun};
use crate::types::PhyOffset;

/// Bytes of the log that one batch goes through, its last record apart.
const BATCH_BYTES: usize = 4 << 20;
/// Pause before a failed write is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a failed sync, which is not going to be better soon.
const ERROR_PAUSE: Duration = Duration::from_secs(60);

impl Queues {
    /// Starts the dispatch thread, which calls `listener` after each batch, and the thread that syncs
    /// the files and repairs holes.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(self: &Arc<Self>, listener: ArrivalListener) -> io::Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = Arc::clone(self);
        let dispatch = move || queues.dispatch_loop(&listener);
        threads.push(
            thread::Builder::new()
                .name("rmq-dispatch".to_owned())
                .spawn(dispatch)?,
        );
        let queues = Arc::clone(self);
        let upkeep = move || queues.upkeep_loop();
        threads.push(
            thread::Builder::new()
                .name("rmq-cq-flush".to_owned())
                .spawn(upkeep)?,
        );
        Ok(())
    }

    /// Dispatches what is committed, ends the threads and makes everything durable, so that the next
    /// start has nothing to do.
    ///
    /// # Errors
    /// The disk's; the store is sound then, but the next start has to catch up.
    pub fn stop(&self) -> io::Result<()> {
        self.shared().stopping = true;
        self.work.notify_all();
        self.upkeep.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                return Err(io::Error::other(
                    "a thread of the consume queues has panicked",
                ));
            }
        }
        let dispatched = loop {
            match self.step() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(e) => break Err(io::Error::other(e)),
            }
        };
        self.flush(dispatched.is_ok()).and(dispatched)
    }

    /// Dispatches the next committed records, one batch of them. `None` if there are none.
    pub(super) fn step(&self) -> Result<Option<Vec<Arrival>>, DispatchError> {
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, confirm) = (self.dispatched(), self.log.confirm_offset());
        if from >= confirm {
            return Ok(None);
        }
        let no_record = |at| DispatchError::NoRecord { at, confirm };
        let bytes = self
            .log
            .committed_from(from)
            .ok_or_else(|| no_record(from))?;
        let mut batch = Batch::new();
        let io = |source| DispatchError::Io { at: from, source };
        let done = self.fill(&mut batch, &bytes, from).map_err(io)?;
        if done == 0 {
            return Err(no_record(from));
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
    pub(super) fn flush(&self, clean: bool) -> io::Result<()> {
        let mut checkpoint = self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if checkpoint.failed {
            return Err(io::Error::other(
                "an earlier sync of the consume queues or the index failed",
            ));
        }
        let (dispatched, digest, last_anew) = {
            let shared = self.shared();
            (shared.dispatched, shared.table.digest(), shared.last_anew)
        };
        // The index may be ahead of the position by now; its surplus is cut when it is opened.
        let (index, unsynced) = self.index().flush()?;
        if let Err(e) = self.files.sync().and_then(|()| unsynced.sync()) {
            checkpoint.failed = true;
            // Best effort, for this disk is failing: what was lost may be a hole by now.
            if let Some(last) = checkpoint.file.last()
                && let Err(e) = checkpoint.file.write(Checkpoint { boot: 0, ..last })
            {
                error!(error = %e, "the dispatch checkpoint could not be marked");
            }
            return Err(e);
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

    fn dispatch_loop(&self, listener: &ArrivalListener) {
        loop {
            let mut shared = self.shared();
            while !shared.stopping && shared.dispatched >= self.log.confirm_offset() {
                shared = self
                    .work
                    .wait(shared)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            drop(shared);
            match self.step() {
                Ok(Some(arrivals)) if arrivals.is_empty() => {}
                Ok(Some(arrivals)) => listener(&arrivals),
                // Only when stopping: all is dispatched.
                Ok(None) => return,
                Err(e) => {
                    error!(error = %e, "dispatch stands still");
                    let mut shared = self.shared();
                    shared.failure = Some(e.to_string());
                    if shared.stopping || matches!(e, DispatchError::NoRecord { .. }) {
                        return;
                    }
                    drop(shared);
                    thread::sleep(RETRY_PAUSE);
                }
            }
        }
    }

    fn upkeep_loop(&self) {
        let mut pause = self.flush_interval;
        let mut next_flush = Instant::now() + pause;
        loop {
            let mut shared = self.shared();
            let left = next_flush.saturating_duration_since(Instant::now());
            if !shared.stopping && shared.holes.is_empty() && !left.is_zero() {
                let waited = self.upkeep.wait_timeout(shared, left);
                shared = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if shared.stopping {
                return;
            }
            let hole = shared.holes.first().cloned();
            drop(shared);
            if let Some(hole) = hole {
                self.repair(&hole);
            }
            if next_flush <= Instant::now() {
                let begun = Instant::now();
                let result = self.flush(false);
                // With very many queues a round takes long; the disk is the log's in the first place.
                pause = self.flush_interval.max(begun.elapsed() * 9);
                if let Err(e) = result {
                    error!(error = %e, "consume queues and index could not be synced");
                    pause = pause.max(ERROR_PAUSE);
                }
                next_flush = Instant::now() + pause;
            }
        }
    }
}
