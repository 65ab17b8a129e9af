//! What committed entries do: metadata commands change the metadata, messages become readable.
//!
//! The state is kept in memory and written to a checkpoint now and then; entries after it are
//! applied again at the next start, which changes nothing where they already had their effect. Once
//! entries have left the log, the checkpoint is all that is left of them: so it is durable before a
//! snapshot counts as built, and the log is durable up to where it stands before it is written.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use rmq_store::{
    Disk, EntryKind, Genesis, LogIndex, LogReader, OpenMode, PhyOffset, Queues, StoredEntry, mutant,
};
use tokio::time::Instant;

use super::checkpoint::{self, Checkpoint};
use super::log_store::to_log_id;
use super::mark::Marker;
use super::node::blocking;
use super::snapshot::SnapshotData;
use super::types::{
    Body, LogEntry, LogId, Membership, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
};
use crate::meta::{Change, Command, Meta, Reply};

/// A checkpoint is written once this many entries were applied since the last one, and ...
const CHECKPOINT_ENTRIES: u64 = 4096;
/// ... this long has passed.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// Pause before a snapshot is tried again for which there was no space.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Bytes that are kept free for the next checkpoint, beside those of the last one and a quarter more.
const ROOM_BYTES: u64 = 64 * 1024;

/// openraft's state machine: the metadata and the queues' committed ends.
pub(super) struct StateMachine {
    meta: Meta,
    queues: Arc<Queues>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// A snapshot was built or installed, so openraft may ask for one.
    has_snapshot: bool,
    /// The one that was last handed out to be sent.
    sent: Option<Snapshot>,
    log: LogReader,
    /// The genesis record of this node's store.
    genesis: Option<Bytes>,
    file: Arc<CheckpointFile>,
    marker: Marker,
    /// Entries applied since the last checkpoint, and when that was.
    since: (u64, Instant),
}

impl StateMachine {
    /// Restores the checkpoint under `root`. One that is damaged or ahead of the log (whose tail a
    /// power failure took) is not used: the whole log is applied instead, if it is all there.
    pub(super) fn open(
        root: &Path,
        disk: Arc<dyn Disk>,
        log: &LogReader,
        queues: Arc<Queues>,
        meta: Meta,
    ) -> io::Result<Self> {
        let marker = Marker::open(disk.clone(), root, meta.clone())?;
        let genesis = Genesis::read(&*disk, root)?.map(|genesis| genesis.encode().into());
        let file = Arc::new(CheckpointFile::new(root, disk));
        let mut applied = None;
        let mut membership = StoredMembership::default();
        if let Some(checkpoint) = file.read()? {
            let id = checkpoint.applied;
            let logged = log
                .id_at(LogIndex(id.index))
                .map_err(io::Error::other)?
                .map(to_log_id);
            if logged != Some(id) {
                tracing::warn!(%id, ?logged, "applied state is not of this log, applies it anew");
            } else if let Err(error) = meta.restore(&checkpoint.meta) {
                tracing::warn!(%id, %error, "applied state is unreadable, applies the log anew");
            } else {
                commit_up_to(id, log, &queues)?;
                if let Some(last) = log.entry(LogIndex(id.index)).map_err(io::Error::other)? {
                    marker.follow(&last)?;
                }
                applied = Some(id);
                membership = checkpoint.membership;
            }
        }
        if let Some(purged) = log.purged_id()
            && applied.is_none_or(|id: LogId| id.index < purged.index.0)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} is missing or unusable, and the entries up to {purged}, from which it could be \
                     made again, are deleted: move {} away, and the node is taken in again by its group",
                    file.path.display(),
                    root.display()
                ),
            ));
        }
        let since = (0, Instant::now());
        Ok(Self {
            meta,
            queues,
            applied,
            membership,
            has_snapshot: false,
            sent: None,
            log: log.clone(),
            genesis,
            file,
            marker,
            since,
        })
    }

    /// Writes the checkpoint now, unless nothing was applied since the last one. The log is durable.
    pub(super) fn save(&mut self) -> io::Result<()> {
        match self.checkpoint(self.meta.snapshot()) {
            Some(checkpoint) if self.since.0 > 0 => {
                self.since = (0, Instant::now());
                self.file.write(&checkpoint)
            }
            _ => Ok(()),
        }
    }

    /// What is written down, with the metadata as they are now; `None` before anything was applied.
    fn checkpoint(&self, meta: Vec<u8>) -> Option<Checkpoint> {
        Some(Checkpoint {
            applied: self.applied?,
            membership: self.membership.clone(),
            meta: meta.into(),
        })
    }

    /// Has the checkpoint written on another thread when it is time. The metadata are read there too, while nothing
    /// is applied: it takes long if there are many, and heartbeats do not wait for it.
    async fn save_soon(&mut self) {
        let (entries, at) = self.since;
        if entries < CHECKPOINT_ENTRIES || at.elapsed() < CHECKPOINT_INTERVAL {
            return;
        }
        let meta = self.meta.clone();
        let Ok(meta) = blocking(move || meta.snapshot()).await else {
            return;
        };
        let Some(checkpoint) = self.checkpoint(meta) else {
            return;
        };
        self.since = (0, Instant::now());
        let (file, log, end) = (
            self.file.clone(),
            self.log.clone(),
            self.log.confirm_offset(),
        );
        tokio::spawn(async move {
            if until_synced(&log, end).await.is_err() {
                return;
            }
            let written = blocking(move || {
                // The log is the truth: without this checkpoint the next start only takes longer.
                if let Err(error) = file.write(&checkpoint) {
                    tracing::warn!(%error, path = %file.path.display(), "cannot save applied state");
                }
            });
            written.await.ok();
        });
    }

    fn apply_entry(&mut self, entry: LogEntry) -> io::Result<Option<Reply>> {
        let LogEntry { id, body } = entry;
        let reply = match body {
            Body::Stored { entry, membership } => self.apply_stored(id, &entry, membership)?,
            // Only a test applies entries that were never in the log.
            Body::Blank => None,
            Body::Membership(members) => {
                self.membership = StoredMembership::new(Some(id), members);
                None
            }
            Body::Meta(command) => Some(self.meta.apply(id.index, &command)),
            Body::Unsealed(_) | Body::Sealed(_) => {
                return Err(io::Error::other(format!(
                    "entry {id} to apply was not read for it"
                )));
            }
        };
        self.applied = Some(id);
        self.since.0 += 1;
        Ok(reply)
    }

    /// Leaves out the metadata of an entry, and nothing else: see [`is_kept_where_proposed`].
    fn pass_over(&mut self, entry: &LogEntry) {
        if let Body::Stored { entry, .. } = &entry.body {
            self.queues.commit(entry.end, &entry.runs);
        }
        self.applied = Some(entry.id);
    }

    fn apply_stored(
        &mut self,
        id: LogId,
        entry: &StoredEntry,
        membership: Option<Membership>,
    ) -> io::Result<Option<Reply>> {
        if let Some(members) = membership {
            self.membership = StoredMembership::new(Some(id), members);
        }
        let reply = (entry.kind == EntryKind::Meta).then(|| self.meta.apply(id.index, &entry.meta));
        if reply.is_some() {
            self.marker.follow(entry)?;
        }
        self.queues.commit(entry.end, &entry.runs);
        Ok(reply)
    }

    /// Reads the metadata and the queues' ends on another thread, see [`StateMachine::save_soon`].
    async fn build(&self) -> io::Result<Snapshot> {
        let (meta, queues) = (self.meta.clone(), Arc::clone(&self.queues));
        let (meta, ends) = blocking(move || (meta.snapshot(), queues.ends()))
            .await
            .map_err(io::Error::other)?;
        let genesis = self.genesis.clone();
        Ok(Snapshot {
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            snapshot: SnapshotData::new(
                self.checkpoint(meta),
                genesis,
                &self.log,
                (&self.queues, ends),
            ),
        })
    }
}

/// Whether this is metadata that a planted bug keeps from all nodes but one.
fn is_kept_where_proposed(body: &Body) -> bool {
    if !mutant!(M6) && !mutant!(M11) {
        return false;
    }
    let Body::Stored { entry, .. } = body else {
        return false;
    };
    let is_lock = || {
        Command::decode(&entry.meta).is_ok_and(|command| {
            matches!(
                command.change,
                Change::LockQueues { .. } | Change::UnlockQueues { .. }
            )
        })
    };
    entry.kind == EntryKind::Meta && (mutant!(M6) || is_lock())
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Built;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if responder.is_none() && is_kept_where_proposed(&entry.body) {
                self.pass_over(&entry);
                continue;
            }
            let reply = self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        self.save_soon().await;
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Built {
        self.has_snapshot = true;
        Built {
            snapshot: self.build().await.ok(),
            log: self.log.clone(),
            file: Arc::downgrade(&self.file),
        }
    }

    /// Snapshots from a leader come with their log and are installed by opening the store anew; this
    /// is for openraft's own tests of the storage.
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        self.meta.restore(&data.meta()).map_err(io::Error::other)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.has_snapshot = true;
        match self.checkpoint(self.meta.snapshot()) {
            Some(checkpoint) => self.file.write(&checkpoint),
            None => Ok(()),
        }
    }

    /// To be sent, so it is as new as can be.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if !self.has_snapshot {
            return Ok(None);
        }
        if !self
            .sent
            .as_ref()
            .is_some_and(|sent| sent.snapshot.is_current())
        {
            self.sent = Some(self.build().await?);
        }
        Ok(self.sent.clone())
    }
}

/// Commits the entries up to `applied`, which are not applied again, as far as the store's own
/// notes are older than the checkpoint.
fn commit_up_to(applied: LogId, log: &LogReader, queues: &Queues) -> io::Result<()> {
    let confirmed = log.confirm_offset();
    let mut missing = Vec::new();
    for index in (0..=applied.index).rev() {
        match log.entry(LogIndex(index)).map_err(io::Error::other)? {
            Some(entry) if entry.end > confirmed => missing.push(index),
            _ => break,
        }
    }
    for index in missing.into_iter().rev() {
        if let Some(entry) = log.entry(LogIndex(index)).map_err(io::Error::other)? {
            queues.commit(entry.end, &entry.runs);
        }
    }
    Ok(())
}

/// A snapshot that was taken between two entries and is not durable yet.
pub(super) struct Built {
    /// `None` if this process stops meanwhile.
    snapshot: Option<Snapshot>,
    log: LogReader,
    /// Gone with the state machine.
    file: Weak<CheckpointFile>,
}

impl RaftSnapshotBuilder<TypeConfig> for Built {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let Some(snapshot) = self.snapshot.clone() else {
            return Err(io::Error::other("the node stops"));
        };
        let Some((state, end)) = snapshot.snapshot.state() else {
            return Ok(snapshot);
        };
        until_synced(&self.log, end).await?;
        loop {
            let stops = || io::Error::other("the node stops");
            let (state, file) = (state.clone(), self.file.upgrade().ok_or_else(stops)?);
            let written = blocking(move || file.write(&state)).await;
            match written.map_err(io::Error::other)? {
                // To openraft a failure is the end of the node, and this one passes. Whoever wants the snapshot, to remove
                // old files, does not wait for ever.
                Err(error) if is_full(&error) => {
                    tracing::warn!(%error, "applied state has to wait for space");
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                written => return written.map(|()| snapshot),
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Returns once the log is durable up to `end`, which it soon will be unless the disk fails.
async fn until_synced(log: &LogReader, end: PhyOffset) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(5);
    while log.synced_offset() < end {
        log.check_writable()?;
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// The checkpoint's place on disk.
struct CheckpointFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    /// Held while it is written; the entry up to which it reaches.
    written: Mutex<Option<LogId>>,
}

impl CheckpointFile {
    fn new(root: &Path, disk: Arc<dyn Disk>) -> Self {
        let dir = root.to_owned();
        Self {
            path: dir.join(checkpoint::FILE_NAME),
            dir,
            disk,
            written: Mutex::default(),
        }
    }

    /// The checkpoint; `None` if there is none that can be read.
    fn read(&self) -> io::Result<Option<Checkpoint>> {
        let file = match self.disk.open(&self.path, OpenMode::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let len = usize::try_from(file.size()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        let read = file.read_at(0, &mut bytes)?;
        bytes.truncate(read);
        self.keep_room(len);
        match Checkpoint::decode(bytes.into()) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%error, %path, "applied state is unreadable, applies the log anew");
                Ok(None)
            }
        }
    }

    /// Replaces the checkpoint, unless there is a later one, which entries that are gone by now may
    /// have led to; after a crash there is the old one or the new one.
    fn write(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let bytes = checkpoint.encode();
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written > Some(checkpoint.applied) {
            return Ok(());
        }
        let new = self.new_path();
        let file = self.disk.open(&new, OpenMode::Create)?;
        file.write_at(0, &[IoSlice::new(&bytes)])?;
        file.set_len(bytes.len() as u64)?;
        file.sync()?;
        self.disk.rename(&new, &self.path)?;
        self.disk.sync_dir(&self.dir)?;
        *written = Some(checkpoint.applied);
        self.keep_room(bytes.len());
        Ok(())
    }

    /// Keeps room for the next one, as large as this one: on a full disk no old file of the log can be removed without it.
    fn keep_room(&self, bytes: usize) {
        let path = self.new_path();
        let room = self.disk.open(&path, OpenMode::Create);
        let room = room.and_then(|file| file.allocate(bytes as u64 * 5 / 4 + ROOM_BYTES));
        if let Err(error) = room {
            tracing::warn!(%error, path = %path.display(), "no room is kept for the next applied state");
        }
    }

    /// Where the next one is written.
    fn new_path(&self) -> PathBuf {
        self.path.with_extension("applied.new")
    }
}
