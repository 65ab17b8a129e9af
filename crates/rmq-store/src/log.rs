//! The log's single writer.

use std::any::Any;
use std::io;
use std::sync::Arc;

use crate::checkpoint::{
    Checkpoint, VOTE_FILE, VOTE_MAGIC, encode_vote, remove_abort, write_classic,
};
use crate::config::{FlushMode, StoreConfig};
use crate::disk::Disk;
use crate::extent::{Header, Tail};
use crate::flush::{FlushCallback, FlushHandle, Flusher};
use crate::genesis::Genesis;
use crate::keeper::Keeper;
use crate::mutant;
use crate::queue_offsets::QueueOffsets;
use crate::reader::{LogReader, ReadError, Shared};
use crate::recovery::{OpenError, open_log};
use crate::seal::{AppendError, Gathered, Piece};
use crate::slots::Slots;
use crate::types::{EntryId, LogIndex, NewEntry, PhyOffset, QueueOffset, Vote};

/// What an append did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Last entry of the log.
    pub last: Option<EntryId>,
    /// End of the log.
    pub end: PhyOffset,
}

/// What opening a log found out about its last life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// There was no log before.
    pub created: bool,
    /// The last stop was a clean one.
    pub clean: bool,
    /// Entries read behind the checkpoint.
    pub entries: u64,
    /// Bytes behind the last whole entry that were taken away.
    pub cut_bytes: u64,
}

/// The commit log, open for writing.
///
/// All changes go through `&mut self` and so have one order. They are visible to readers when the
/// method returns; whether they are durable is said by each. After a failed write or sync nothing
/// is written any more: all methods then fail with the first reason, and only a new process, which
/// reads what is really there, may go on.
#[derive(Debug)]
pub struct Log {
    config: StoreConfig,
    genesis: Option<Arc<Genesis>>,
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    tail: Tail,
    queue_offsets: QueueOffsets,
    seeded: bool,
    // The keeper uses the flusher, so it ends first.
    keeper: Keeper,
    flusher: Flusher,
    flush: FlushHandle,
    vote: Option<Vote>,
    /// `None` while the vote is lost.
    vote_slots: Option<Slots>,
    /// Start of the last segment that was asked for ahead.
    wanted: PhyOffset,
    /// The same for the raft index; `u64::MAX` for none.
    wanted_index: u64,
    recovered: Recovered,
    /// Dropped last.
    _lock: Box<dyn Any + Send + Sync>,
}

/// What recovery hands over.
pub(crate) struct Parts {
    pub(crate) config: StoreConfig,
    pub(crate) genesis: Option<Arc<Genesis>>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tail: Tail,
    pub(crate) vote: Option<Vote>,
    pub(crate) vote_slots: Option<Slots>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) checkpoint_slots: Slots,
    pub(crate) recovered: Recovered,
    pub(crate) lock: Box<dyn Any + Send + Sync>,
}

impl Log {
    /// Opens the log of a store, creating it if there is none. Queue offsets start at 0 until the
    /// queues' state is given.
    pub fn open(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Self, OpenError> {
        open_log(config, disk)
    }

    pub(crate) fn assemble(parts: Parts) -> io::Result<Self> {
        let Parts {
            config,
            genesis,
            disk,
            shared,
            tail,
            checkpoint,
            recovered,
            ..
        } = parts;
        let flusher = Flusher::start(&*disk, Arc::clone(&shared), config.flush, tail.end)?;
        let keeper = Keeper::start(
            &*disk,
            Arc::clone(&shared),
            flusher.handle(),
            config.flush == FlushMode::Sync,
            parts.checkpoint_slots,
            checkpoint,
        )?;
        let mut log = Self {
            config,
            genesis,
            disk,
            shared,
            tail,
            queue_offsets: QueueOffsets::default(),
            seeded: false,
            keeper,
            flush: flusher.handle(),
            flusher,
            vote: parts.vote,
            vote_slots: parts.vote_slots,
            wanted: PhyOffset(0),
            wanted_index: u64::MAX,
            recovered,
            _lock: parts.lock,
        };
        log.want_ahead();
        Ok(log)
    }

    /// A view on this log.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader {
            shared: Arc::clone(&self.shared),
        }
    }

    /// What the store has taken over from another broker, if it has.
    #[must_use]
    pub fn genesis(&self) -> Option<&Arc<Genesis>> {
        self.genesis.as_ref()
    }

    /// What opening found.
    #[must_use]
    pub fn recovered(&self) -> Recovered {
        self.recovered
    }

    /// Whether the log may lack entries that this node once acknowledged: the machine went down
    /// with unsynced bytes under ASYNC_FLUSH. Remains so over restarts until it is cleared.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.keeper.noted(|checkpoint| checkpoint.suspect)
    }

    /// Ends the suspicion: the log has caught up with the group. Durable on return.
    pub fn clear_suspect(&mut self) -> io::Result<()> {
        self.keeper.note(|checkpoint| checkpoint.suspect = false);
        self.poisoning("write the checkpoint", |log| log.keeper.write_checkpoint())
    }

    /// Sets where queues go on: what they hold at the position up to which they were built, and
    /// after it the entries of the log from there on.
    ///
    /// Called before the first append; again only if it fails.
    pub fn seed_queue_offsets(
        &mut self,
        maxima: impl IntoIterator<Item = (Arc<str>, i32, QueueOffset)>,
        dispatched: PhyOffset,
    ) -> Result<(), ReadError> {
        for (topic, queue_id, next) in maxima {
            self.queue_offsets.raise(&topic, queue_id, next);
        }
        let (Some(first), Some(last)) = (self.tail.first_index(), self.tail.last) else {
            self.seeded = true;
            return Ok(());
        };
        let (mut low, mut high) = (first.0, last.index.0 + 1);
        // Down to the first entry that ends behind the dispatched position.
        while low < high {
            let middle = low + (high - low) / 2;
            let end = self.header(LogIndex(middle))?.end();
            if end <= dispatched {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        for index in low..=last.index.0 {
            for run in self.header(LogIndex(index))?.runs {
                self.queue_offsets
                    .raise(&run.topic, run.queue_id, run.next());
            }
        }
        self.seeded = true;
        Ok(())
    }

    /// Says that queues are unknown until [`Log::seed_missing_queue_offsets`]: only entries that
    /// another node has sealed can be appended.
    pub(crate) fn expect_missing_queue_offsets(&mut self) {
        self.queue_offsets.set_partial(true);
    }

    pub(crate) fn is_seeded(&self) -> bool {
        self.seeded
    }

    /// Sets where queues go on that were built behind the log's back, but for those that the log has
    /// given offsets since it was opened.
    pub fn seed_missing_queue_offsets(
        &mut self,
        maxima: impl IntoIterator<Item = (Arc<str>, i32, QueueOffset)>,
    ) {
        for (topic, queue_id, next) in maxima {
            self.queue_offsets.add(&topic, queue_id, next);
        }
        self.queue_offsets.set_partial(false);
    }

    /// The next offset that a queue gives out.
    #[cfg(test)]
    pub(crate) fn next_queue_offset(&self, topic: &str, queue_id: i32) -> QueueOffset {
        self.queue_offsets.next(topic, queue_id)
    }

    fn header(&self, index: LogIndex) -> Result<Header, ReadError> {
        let header = self.shared.header(index)?;
        Ok(header
            .expect("an entry between the first and the last one is in the log")
            .0)
    }

    /// Appends entries: all or, after an error other than `Io`, none. Readers see them on return;
    /// they are durable when a callback given to `on_flushed` afterwards says so.
    pub fn append(&mut self, entries: Vec<NewEntry>) -> Result<Appended, AppendError> {
        self.shared.check_poison()?;
        let now_ms = self.disk.now_ms();
        let mut gathered = Gathered::new(&self.shared, &mut self.queue_offsets, self.tail);
        for entry in entries {
            if let Err(e) = gathered.add(entry, now_ms) {
                gathered.undo();
                return Err(e);
            }
        }
        let (tail, bytes) = (gathered.tail, gathered.bytes);
        if let Some(first) = bytes.first {
            self.poisoning("append to the commit log", |log| {
                log.write(&bytes.pieces, tail.end)?;
                log.shared.index.put(first, &bytes.cells)
            })?;
            self.flusher.wrote(tail.end - self.tail.end);
            self.tail = tail;
            self.shared.remember(bytes.headers);
            self.shared.publish(&tail);
            for (cell, positions) in bytes.sealed {
                assert!(cell.set(positions).is_ok(), "a batch is sealed once");
            }
            self.want_ahead();
        }
        Ok(Appended {
            last: tail.last_id(),
            end: tail.end,
        })
    }

    /// Writes neighbouring pieces at the end of the log, in one call for each segment.
    fn write(&mut self, pieces: &[Piece], end: PhyOffset) -> io::Result<()> {
        let segments = &self.shared.segments;
        let mut pos = self.tail.end;
        while segments.limit().is_none_or(|limit| limit < end) {
            let base = segments.limit().unwrap_or_else(|| segments.base_of(pos));
            segments.push(self.keeper.take(base)?);
        }
        let mut slices = Vec::with_capacity(pieces.len() + 1);
        let mut start = pos;
        for piece in pieces {
            if segments.base_of(pos) != segments.base_of(start) {
                segments.write(start, &slices)?;
                slices.clear();
                start = pos;
            }
            piece.slices(&mut slices);
            pos = pos + piece.len();
        }
        segments.write(start, &slices)
    }

    /// Asks for the next segment once half of the last one is used, and for the raft index's next file.
    fn want_ahead(&mut self) {
        let next = self
            .tail
            .last_id()
            .map_or(LogIndex(0), |last| last.index.next());
        if let Some(base) = self.shared.index.wanted(next)
            && self.wanted_index != base
        {
            self.wanted_index = base;
            self.keeper.want_index(base);
        }
        let segments = &self.shared.segments;
        let limit = segments.limit().unwrap_or_default();
        if self.tail.end + segments.bytes / 2 > limit {
            if self.wanted != limit {
                self.wanted = limit;
                self.keeper.want(limit);
            }
        } else if self.shared.is_short() {
            self.keeper.end_shortage();
        }
    }

    /// Has `callback` called when all that was appended so far is durable. Callbacks are called in
    /// order, from another thread; with ASYNC_FLUSH at once and from this one, which then means
    /// that the bytes are in the page cache.
    pub fn on_flushed(&self, callback: FlushCallback) {
        self.flusher.on_flushed(callback);
    }

    /// Makes all that was appended durable.
    pub fn sync(&self) -> io::Result<()> {
        self.flush.sync_now()
    }

    /// Removes all entries after this one; all of them if it is `None`. Durable on return.
    ///
    /// # Panics
    ///
    /// If a committed or a purged entry would be removed.
    pub fn truncate_after(&mut self, last: Option<LogIndex>) -> io::Result<()> {
        self.shared.check_poison()?;
        let Some(old_last) = self.tail.last else {
            return Ok(());
        };
        let wanted = last.map_or(LogIndex(0), |last| last.next());
        let Some(from) = self.tail.first_index().map(|first| first.max(wanted)) else {
            return Ok(());
        };
        if from > old_last.index {
            return Ok(());
        }
        let committed = self.read_committed();
        for (what, id) in [("committed", committed), ("purged", self.tail.purged)] {
            assert!(
                id.is_none_or(|id| id.index < wanted),
                "truncation from {wanted} on removes {what} entries"
            );
        }
        self.poisoning("truncate the log", |log| log.cut(from, old_last.index))
    }

    fn cut(&mut self, from: LogIndex, old_last: LogIndex) -> io::Result<()> {
        let (old_end, old_tail) = (self.tail.end, self.tail.last);
        for index in (from.0..=old_last.0).rev() {
            let header = self.header(LogIndex(index)).map_err(io::Error::other)?;
            if !mutant!(M4) {
                self.queue_offsets.undo(&header.runs);
            }
            self.tail.end = header.start;
        }
        let end = self.tail.end;
        let confirm = self.shared.confirm();
        assert!(
            end >= confirm,
            "truncation to {end} is below the confirm offset {confirm}"
        );
        let first = self.tail.first_index();
        (self.tail.last, self.tail.store_timestamp) = (None, 0);
        if first.is_some_and(|first| first < from) {
            let header = self
                .header(LogIndex(from.0 - 1))
                .map_err(io::Error::other)?;
            self.tail.last = Some(header.id);
            self.tail.store_timestamp = header.store_timestamp;
        }
        let shown =
            |last: Option<EntryId>| last.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let (last, old_last) = (shown(self.tail.last), shown(old_tail));
        tracing::info!(last, old_last, %end, %old_end, "log truncated");

        let (shared, keeper) = (&self.shared, &self.keeper);
        self.flusher.while_cut(end, || {
            shared.publish(&self.tail);
            shared.forget();
            shared.damages.keep(PhyOffset(0), end);
            shared.index.cut(from)?;
            keeper.discard()?;
            let segments = &shared.segments;
            let next = segments.base_of(end) + segments.bytes;
            segments.drop_from(next)?;
            segments.zero(end, old_end.min(next))?;
            segments
                .at(end)
                .map_or(Ok(()), |segment| segment.file.sync())
        })?;
        (self.wanted, self.wanted_index) = (PhyOffset(0), u64::MAX);
        self.want_ahead();
        Ok(())
    }

    /// Notes that the entries up to `id` may go; they are not readable any more, though their records
    /// are until their segments are removed. `id` may be beyond the last entry: the log goes on after
    /// it then. Durable on return.
    pub fn purge(&mut self, id: EntryId) -> io::Result<()> {
        self.shared.check_poison()?;
        if self
            .tail
            .purged
            .is_some_and(|purged| purged.index >= id.index)
        {
            return Ok(());
        }
        let base = match self.shared.header(id.index) {
            Ok(Some((header, _))) => header.end(),
            Ok(None) if self.tail.last_id().is_none_or(|last| last.index < id.index) => {
                self.tail.end
            }
            // In a gap that an earlier purge has left.
            Ok(None) => self.shared.base(),
            Err(error) => {
                tracing::warn!(%id, %error, "entries stay until the last of them is mended");
                return Ok(());
            }
        };
        self.tail.purged = Some(id);
        self.shared.publish(&self.tail);
        self.shared.set_base(base);
        self.keeper.note(|checkpoint| {
            checkpoint.purged = Some(id);
            checkpoint.base = base;
        });
        self.poisoning("write the checkpoint", |log| log.keeper.write_checkpoint())
    }

    /// The vote as last saved.
    #[must_use]
    pub fn read_vote(&self) -> Option<Vote> {
        self.vote
    }

    /// Whether the vote was in a file that is damaged or missing. A node that forgot its vote could vote
    /// twice in a term, so none can be saved before [`Log::renew_vote`].
    #[must_use]
    pub fn has_lost_vote(&self) -> bool {
        self.vote_slots.is_none()
    }

    /// Begins another vote in the place of a lost one: that for the leader of the last entry. Durable on
    /// return. The node must be another one by now, which has not voted yet, or have nobody beside it.
    pub fn renew_vote(&mut self) -> io::Result<()> {
        let vote = self.tail.last_id().map(|last| Vote {
            term: last.term,
            node: last.node,
            committed: true,
        });
        let path = self.config.path(VOTE_FILE);
        let slots = Slots::create(&*self.disk, &path, VOTE_MAGIC, &encode_vote(vote))?;
        (self.vote, self.vote_slots) = (vote, Some(slots));
        Ok(())
    }

    /// Saves the vote. It and everything appended before are durable on return.
    pub fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.shared.check_poison()?;
        self.poisoning("save the vote", |log| {
            log.flush.sync_now()?;
            let lost = || io::Error::other("the vote is lost");
            let slots = log.vote_slots.as_mut().ok_or_else(lost)?;
            // Both slots have it, so that a disk that spoils one of them brings back no older vote.
            let content = encode_vote(Some(vote));
            slots.write(&content)?;
            slots.write(&content)
        })?;
        self.vote = Some(vote);
        Ok(())
    }

    /// Notes which entry is committed, so that the next start has less to do. It becomes durable
    /// with the next checkpoint; one lower than there is changes nothing.
    pub fn save_committed(&mut self, committed: Option<EntryId>) {
        if committed.map(|id| id.index) > self.read_committed().map(|id| id.index) {
            self.keeper
                .note(|checkpoint| checkpoint.committed = committed);
        }
    }

    /// The entry last noted as committed; after a start it may be an earlier one.
    #[must_use]
    pub fn read_committed(&self) -> Option<EntryId> {
        self.keeper.noted(|checkpoint| checkpoint.committed)
    }

    /// What otherwise happens once a second.
    #[cfg(test)]
    pub(crate) fn write_checkpoint(&self) -> io::Result<()> {
        self.keeper.write_checkpoint()
    }

    /// Stops cleanly: everything is durable and a Java broker may open the store. The queues are
    /// closed before.
    pub fn close(mut self) -> io::Result<()> {
        self.flusher.stop();
        self.keeper.stop();
        self.flush.sync_now()?;
        self.keeper.discard()?;
        self.keeper
            .note(|checkpoint| checkpoint.clean_end = Some(self.tail.end));
        self.keeper.write_checkpoint()?;
        write_classic(&*self.disk, &self.config, self.tail.store_timestamp)?;
        remove_abort(&*self.disk, &self.config)
    }

    /// Does something after which, if it fails, the state of the files is not known.
    fn poisoning(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let result = work(self);
        if let Err(e) = &result {
            self.shared.poison(|| format!("cannot {doing}: {e}"));
        }
        result
    }
}
