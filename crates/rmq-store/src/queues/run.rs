//! The work on the derived files and the threads that do it.

use std::io;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rmq_wire::record::{Peek, peek};
use tracing::{error, info, warn};

use super::{ArrivalListener, Queues, Shared};
use crate::consume_queue::{BLANK, Slot, UNIT_BYTES, Unit};
use crate::dispatch::{
    Arrival, Batch, Checkpoint, DispatchError, Hole, Message, QueueRun, find_units,
};
use crate::types::{PhyOffset, QueueOffset};

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
        while done < bytes.len() && !batch.is_full() {
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
            return Err(e);
        }
        let clean = clean && dispatched == self.log.confirm_offset();
        checkpoint.file.write(Checkpoint {
            dispatched,
            digest,
            last_anew,
            index: Some(index),
            clean,
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

    /// Fills the units from a hole on that read as zeros, up to the next one that does not.
    pub(super) fn repair(&self, hole: &Hole) {
        let result = self.fill_hole(hole);
        let mut shared = self.shared();
        shared.holes.retain(|other| other != hole);
        drop(shared);
        self.progress.notify_all();
        let Hole {
            topic,
            queue_id,
            at,
        } = hole;
        match result {
            Ok(units) => {
                warn!(%topic, queue_id, %at, units, "lost consume queue units are written again")
            }
            Err(e) => {
                error!(%topic, queue_id, %at, error = %e, "a lost consume queue unit stays lost")
            }
        }
    }

    fn fill_hole(&self, hole: &Hole) -> io::Result<u64> {
        let Hole {
            topic,
            queue_id,
            at,
        } = hole;
        let state = |shared: &Shared| shared.table.get(topic, *queue_id).map(|(_, state)| state);
        let Some(before) = state(&self.shared()) else {
            return Ok(0);
        };
        let back = (before.min.0..at.0).rev();
        let (first, from) = match self.first_message(hole, back)? {
            Some((offset, unit)) => (offset + 1, unit.end()),
            None => (before.min.min(*at), PhyOffset(0)),
        };
        let (end, to) = match self.first_message(hole, at.0 + 1..before.next.0)? {
            Some((offset, unit)) => (offset, unit.phy),
            None => (before.next, before.end_phy),
        };
        // What the log does not have either is passed over from now on.
        let mut units = BLANK.repeat(usize::try_from(end.0 - first.0).map_err(io::Error::other)?);
        find_units(
            &*self.log,
            &self.levels,
            (topic, *queue_id),
            from,
            to,
            |offset, unit| {
                if first <= offset && offset < end {
                    let at =
                        usize::try_from(offset.0 - first.0).expect("less than the number of units");
                    units[at * UNIT_BYTES..][..UNIT_BYTES].copy_from_slice(&unit.encode());
                }
            },
        );
        let _one = self.stepping.lock().unwrap_or_else(PoisonError::into_inner);
        if state(&self.shared()).is_some_and(|now| now.next >= before.next) {
            self.files.write(topic, *queue_id, first, &units)?;
        }
        Ok(end.0 - first.0)
    }

    /// The first of these offsets of the hole's queue that has a unit.
    fn first_message(
        &self,
        hole: &Hole,
        mut offsets: impl Iterator<Item = u64>,
    ) -> io::Result<Option<(QueueOffset, Unit)>> {
        let found = offsets.find_map(|offset| {
            let offset = QueueOffset(offset);
            match self.files.slot(&hole.topic, hole.queue_id, offset) {
                Ok(Slot::Message(unit)) => Some(Ok((offset, unit))),
                Ok(Slot::Blank | Slot::Empty) => None,
                Err(e) => Some(Err(e)),
            }
        });
        found.transpose()
    }
}
