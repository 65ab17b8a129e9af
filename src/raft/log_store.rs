//! openraft's log storage over the commit log: the translation of ids, entries and callbacks. What
//! is durable when is the store's affair, see `rmq_store::Log`.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use rmq_store::{
    EntryId, EntryKind, Log, LogIndex, LogReader, NewEntry, QueueOffset, ReadError, StoredEntry,
    Term,
};

use super::types::{
    Body, LeaderId, LogEntry, LogId, Membership, SealedRef, TypeConfig, Vote, decode_membership,
    encode_membership,
};
use super::upkeep::until_mended;

/// Raw bytes that one read for replication returns at most, unless its first entry alone is larger.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How often a read for replication looks for an entry that is damaged, before it gives none.
const LOOKS: u32 = 10;

/// The log, which is taken away to be closed once openraft has stopped. Never contended before.
#[derive(Clone)]
pub(super) struct SharedLog(Arc<Mutex<Option<Log>>>);

impl SharedLog {
    pub(super) fn new(log: Log) -> Self {
        Self(Arc::new(Mutex::new(Some(log))))
    }

    /// Nothing can be written from then on.
    pub(super) fn take(&self) -> Option<Log> {
        self.lock().take()
    }

    /// Notes that the log has everything again that it acknowledged. Durable on return.
    pub(super) fn clear_suspect(&self) -> io::Result<()> {
        self.with(Log::clear_suspect)
    }

    /// Continues queues that were built since the log was opened.
    pub(super) fn seed_missing(&self, maxima: Vec<(Arc<str>, i32, QueueOffset)>) -> io::Result<()> {
        self.with(|log| {
            log.seed_missing_queue_offsets(maxima);
            Ok(())
        })
    }

    /// Makes everything durable that was appended.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.with(|log| log.sync())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Log>> {
        // A panic while appending ends the core task, and with it all that would use the log.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Log) -> io::Result<T>) -> io::Result<T> {
        match self.lock().as_mut() {
            Some(log) => work(log),
            None => Err(io::Error::other("the log is closed")),
        }
    }
}

/// The write side, owned by openraft's core task, which calls one method at a time.
pub(super) struct LogStore {
    log: SharedLog,
    reader: Reader,
}

impl LogStore {
    pub(super) fn new(log: SharedLog, entries: LogReader) -> Self {
        let reader = Reader {
            log: log.clone(),
            entries,
        };
        Self { log, reader }
    }
}

/// A read side.
#[derive(Clone)]
pub(super) struct Reader {
    log: SharedLog,
    entries: LogReader,
}

impl Reader {
    /// The head of an entry, as soon as it can be read.
    async fn stored(&self, index: u64) -> io::Result<Option<StoredEntry>> {
        loop {
            match self.entries.entry(LogIndex(index)) {
                Ok(stored) => return Ok(stored),
                Err(error) => until_mended(&self.entries, io::Error::other(error)).await?,
            }
        }
    }

    /// An entry as it is sent to a peer.
    fn sealed(&self, index: u64) -> Result<Option<(StoredEntry, Vec<Bytes>)>, ReadError> {
        let Some(stored) = self.entries.entry(LogIndex(index))? else {
            return Ok(None);
        };
        let raw = self.entries.raw(LogIndex(index))?;
        Ok(raw.map(|raw| (stored, raw)))
    }
}

pub(super) fn to_log_id(id: EntryId) -> LogId {
    let leader_id = LeaderId {
        term: id.term.0,
        node_id: id.node,
    };
    LogId {
        leader_id,
        index: id.index.0,
    }
}

pub(super) fn to_entry_id(id: LogId) -> EntryId {
    EntryId {
        term: Term(id.leader_id.term),
        node: id.leader_id.node_id,
        index: LogIndex(id.index),
    }
}

pub(super) fn to_stored_vote(vote: &Vote) -> rmq_store::Vote {
    rmq_store::Vote {
        term: Term(vote.leader_id.term),
        node: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// The membership that a membership entry carries.
pub(super) fn membership_of(entry: &StoredEntry) -> io::Result<Membership> {
    decode_membership(&entry.meta).map_err(|e| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("entry {}: {e}", entry.id),
        )
    })
}

fn membership_in(entry: &StoredEntry) -> io::Result<Option<Membership>> {
    (entry.kind == EntryKind::Membership)
        .then(|| membership_of(entry))
        .transpose()
}

impl RaftLogReader<TypeConfig> for Reader {
    /// Yields heads only: this is how entries are read to be applied.
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<LogEntry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let mut entries = Vec::new();
        let Some(first) = self.entries.first_index() else {
            return Ok(entries);
        };
        for index in start.max(first.0)..end {
            let Some(stored) = self.stored(index).await? else {
                break;
            };
            let id = to_log_id(stored.id);
            let membership = membership_in(&stored)?;
            entries.push(LogEntry {
                id,
                body: Body::Stored {
                    entry: stored,
                    membership,
                },
            });
        }
        Ok(entries)
    }

    /// Yields raw extents: this is how entries are read to be sent to a peer. A truncation by
    /// another leader meanwhile ends the read early; what was read then is refused by the peer.
    ///
    /// So does damage, and where the first entry stays damaged there are none: openraft then asks the peer for
    /// the entry before and goes on behind it. A new leader that looks for where a peer's log ends would wait
    /// for ever else for an entry that no node has any more.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut looks = 0;
        for index in start..end {
            let found = loop {
                match self.sealed(index) {
                    Err(_) if !entries.is_empty() || looks == LOOKS => break None,
                    Err(error) => until_mended(&self.entries, io::Error::other(error)).await?,
                    Ok(found) => break found,
                }
                looks += 1;
            };
            let Some((stored, raw)) = found else {
                break;
            };
            let extent = SealedRef {
                raw,
                membership: membership_in(&stored)?,
            };
            bytes += extent.len();
            if bytes > READ_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(LogEntry {
                id: to_log_id(stored.id),
                body: Body::Sealed(extent),
            });
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let vote = self.log.with(|log| Ok(log.read_vote()))?;
        Ok(vote.map(|vote| Vote {
            leader_id: LeaderId {
                term: vote.term.0,
                node_id: vote.node,
            },
            committed: vote.committed,
        }))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        Ok(LogState {
            last_purged_log_id: self.reader.entries.purged_id().map(to_log_id),
            last_log_id: self.reader.entries.last_id().map(to_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Reader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.log.with(|log| log.save_vote(to_stored_vote(vote)))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.log.with(|log| {
            log.save_committed(committed.map(to_entry_id));
            Ok(())
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed = self.log.with(|log| Ok(log.read_committed()))?;
        Ok(committed.map(to_log_id))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(to_new).collect::<io::Result<_>>()?;
        self.log.with(|log| {
            log.append(entries).map_err(io::Error::other)?;
            log.on_flushed(Box::new(move |result| flushed.io_completed(result)));
            Ok(())
        })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log
            .with(|log| log.truncate_after(last.map(|id| LogIndex(id.index))))
    }

    async fn purge(&mut self, id: LogId) -> io::Result<()> {
        self.log.with(|log| log.purge(to_entry_id(id)))
    }
}

fn to_new(entry: LogEntry) -> io::Result<NewEntry> {
    let id = to_entry_id(entry.id);
    let unsealed = |kind, meta, batch| NewEntry::Unsealed {
        id,
        kind,
        meta,
        batch,
    };
    Ok(match entry.body {
        Body::Blank => unsealed(EntryKind::Blank, Bytes::new(), None),
        Body::Membership(members) => {
            unsealed(EntryKind::Membership, encode_membership(&members), None)
        }
        Body::Meta(command) => unsealed(EntryKind::Meta, command, None),
        Body::Unsealed(pending) => match pending.take() {
            Some(batch) => unsealed(EntryKind::Messages, Bytes::new(), Some(batch)),
            None => return Err(io::Error::other(format!("entry {id} was appended before"))),
        },
        Body::Sealed(extent) => NewEntry::Sealed {
            id,
            bytes: extent.raw,
        },
        Body::Stored { .. } => {
            return Err(io::Error::other(format!(
                "entry {id} to append has no bytes"
            )));
        }
    })
}
