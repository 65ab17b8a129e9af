//! Opening a log: what a crash may have left is told from damage.
//!
//! The checkpoint names a committed entry up to which everything was durable when it was written.
//! Up to there anything wrong is damage: the log is opened all the same, but what is damaged is kept
//! from its readers until it is mended with another node's bytes. Behind it, the first extent that is
//! not whole, or does not continue the chain, is where a crash cut the log: an entry is there as a
//! whole or not at all. Where it is certain that more had been written, the node may have acknowledged
//! what is missing now, and is suspect.
//!
//! `notes` reads vote and checkpoint, or begins them behind the genesis or what `history` finds;
//! `scan` walks from the checkpoint to the end of the log.

mod history;
mod notes;
mod scan;

pub(crate) use history::is_record;

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

use self::notes::Notes;
use crate::checkpoint::{CHECKPOINT_FILE, Checkpoint, write_abort};
use crate::config::{ConfigError, FlushMode, StoreConfig};
use crate::disk::{Disk, OpenMode};
use crate::extent::Tail;
use crate::genesis::{GENESIS_FILE, Genesis, GenesisMismatch};
use crate::log::{Log, Parts, Recovered};
use crate::mutant;
use crate::raft_index::RaftIndex;
use crate::reader::Shared;
use crate::segment::{MENDED, Segment, Segments, file_name, parse_name};
use crate::transfer::{TransferDecodeError, finish_install};
use crate::types::{LogIndex, PhyOffset};

/// Why a store was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("Lock failed, MQ already started: another process uses the store {}", root.display())]
    Locked { root: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged: rejoin the group with an empty store", path.display())]
    Checkpoint { path: PathBuf },
    /// Half of the old log may be gone by now.
    #[error("{}: {source}: an install that had begun cannot be finished, rejoin the group with an empty store", path.display())]
    Intent {
        path: PathBuf,
        source: TransferDecodeError,
    },
    #[error("{} is missing, though the store was in use: restore it, or rejoin the group with an empty store", path.display())]
    Missing { path: PathBuf },
    #[error("{} belongs to generation {found} of the log, wanted is {expected}", path.display())]
    Generation {
        path: PathBuf,
        found: i32,
        expected: i32,
    },
    #[error(
        "{} has {found} bytes, the store's segments have {expected} (mappedFileSizeCommitLog)",
        path.display()
    )]
    SegmentSize {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    /// No torn write: a crash cannot have done this.
    #[error("{} is damaged at byte {within} (offset {at}), below the committed {confirm}: {reason}", path.display())]
    Damaged {
        path: PathBuf,
        at: PhyOffset,
        within: u64,
        confirm: PhyOffset,
        reason: String,
    },
    #[error("{} is damaged: {reason}; copy it from another node of the group", path.display())]
    Genesis { path: PathBuf, reason: String },
    #[error("the adopted history is not that of its genesis: {0}")]
    History(#[from] GenesisMismatch),
    #[error("{} goes on at byte {within} (offset {at}) behind the end of the log as it was closed: another broker has written to it", path.display())]
    Foreign {
        path: PathBuf,
        at: PhyOffset,
        within: u64,
    },
}

/// Makes the path part of an I/O error.
fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Opens the log of a store, creating it if there is none.
pub(crate) fn open_log(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Log, OpenError> {
    config.check()?;
    for dir in [
        &config.root,
        &config.commit_log_dir,
        &config.raft_index_dir(),
    ] {
        disk.create_dir_all(dir).map_err(at(dir))?;
    }
    disk.sync_dir(&config.root).map_err(at(&config.root))?;
    let lock = disk
        .lock(&config.path("lock"))
        .map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked {
                root: config.root.clone(),
            },
            _ => at(&config.path("lock"))(e),
        })?;
    finish_install(config, disk)?;
    let genesis = read_genesis(config, disk)?;
    let config = &StoreConfig {
        generation: genesis
            .as_ref()
            .map_or(config.generation, |genesis| genesis.generation),
        ..config.clone()
    };
    let mut notes = Notes::open(config, disk, genesis.as_ref())?;
    if mutant!(M7) {
        let checkpoint = &mut notes.checkpoint;
        (checkpoint.committed, checkpoint.confirm) = (None, checkpoint.base);
        checkpoint.clean_end = None;
    }
    Opening::new(config, disk, notes)?.run(lock, genesis)
}

fn read_genesis(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Option<Genesis>, OpenError> {
    let path = config.path(GENESIS_FILE);
    Genesis::read(&**disk, config.root()).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => OpenError::Genesis {
            path,
            reason: error.to_string(),
        },
        _ => at(&path)(error),
    })
}

/// Starts of the segment files in a directory, sorted.
fn bases(dir: &Path, disk: &Arc<dyn Disk>) -> Result<Vec<u64>, OpenError> {
    let names = disk.list(dir).map_err(at(dir))?;
    Ok(names.iter().filter_map(|name| parse_name(name)).collect())
}

/// A log that is being opened.
struct Opening<'a> {
    config: &'a StoreConfig,
    disk: &'a Arc<dyn Disk>,
    notes: Notes,
    shared: Arc<Shared>,
    tail: Tail,
}

impl<'a> Opening<'a> {
    fn new(
        config: &'a StoreConfig,
        disk: &'a Arc<dyn Disk>,
        notes: Notes,
    ) -> Result<Self, OpenError> {
        let Checkpoint {
            segment_bytes,
            base,
            confirm,
            ..
        } = notes.checkpoint;
        if segment_bytes != config.segment_bytes {
            tracing::warn!(
                configured = config.segment_bytes,
                kept = segment_bytes,
                "the store's segments keep their size, whatever mappedFileSizeCommitLog says"
            );
        }
        let dir = config.commit_log_dir.clone();
        replace_missing(&dir, disk, segment_bytes, (base, confirm))?;
        let list = load_segments(&dir, disk, segment_bytes, confirm)?;
        let segments = Segments::new(Arc::clone(disk), dir, segment_bytes, list);
        let index = RaftIndex::new(Arc::clone(disk), config.raft_index_dir());
        let max = config
            .max_extent_bytes()
            .max(segment_bytes / 4)
            .min(segment_bytes - 8);
        let shared = Shared::new(segments, index, config.generation, max, (base, confirm));
        let purged = notes.checkpoint.purged;
        let tail = Tail {
            end: base,
            purged,
            ..Tail::default()
        };
        Ok(Self {
            config,
            disk,
            notes,
            shared: Arc::new(shared),
            tail,
        })
    }

    fn run(
        mut self,
        lock: Box<dyn Any + Send + Sync>,
        genesis: Option<Genesis>,
    ) -> Result<Log, OpenError> {
        let index_dir = self.config.raft_index_dir();
        let mut checkpoint = self.notes.checkpoint.clone();
        let boot_id = self.disk.boot_id().map_err(at(Path::new("boot id")))?;
        self.start_at_checkpoint()?;
        let entries = self.scan()?;
        let next = self
            .tail
            .last_id()
            .map_or(LogIndex(0), |last| last.index.next());
        let end = self.tail.end;
        let clean = checkpoint.clean_end.is_some();
        let lost = match checkpoint.clean_end {
            Some(clean_end) => end < clean_end,
            // Without a power cut all is there that was written, and the cell is written last.
            None => boot_id == checkpoint.boot_id && self.was_written(next)? && !mutant!(M7),
        };
        if lost {
            // It may have been acknowledged, and only the others know what it was.
            let (path, within) = self.place_of(end);
            tracing::error!(
                path = %path.display(), within, entry = %next,
                "the log is damaged at its end: it is cut off there, and does not vote before it has \
                 all again that the leader has"
            );
            checkpoint.suspect = true;
            // Before anything is cut off: should this start break off, the next one finds no more of it.
            self.write_checkpoint(&checkpoint)?;
        }
        let next = self.tail.last.map_or(LogIndex(0), |last| last.index.next());
        self.shared.index.cut(next).map_err(at(&index_dir))?;

        let cut_bytes = match checkpoint.clean_end {
            _ if lost => self.clean_rest()?,
            Some(clean_end) if end > clean_end || !self.is_clean_at(end)? => {
                let (path, within) = self.place_of(end);
                return Err(OpenError::Foreign {
                    path,
                    at: end,
                    within,
                });
            }
            Some(_) => 0,
            None if self.notes.created => 0,
            None => self.clean_rest()?,
        };
        let segments = &self.shared.segments;
        // The process before may have been killed before it synced, or have ended because a sync
        // failed, after which the kernel takes the pages for clean and has nothing to write. From
        // now on the entries count as durable: nobody asks for a sync of them again.
        if !clean {
            let rewritten = segments.rewrite(checkpoint.confirm, end);
            rewritten.map_err(at(segments.dir()))?;
        }
        let base = segments.base_of(end);
        segments
            .drop_from(base + segments.bytes)
            .map_err(at(segments.dir()))?;
        if segments.at(end).is_none() {
            let made = segments.create(base, false, &AtomicBool::new(false));
            segments.push(made.map_err(at(&segments.path(base)))?);
        }

        // What was acknowledged from the page cache went down with the machine.
        checkpoint.suspect |= !clean && checkpoint.lazy && checkpoint.boot_id != boot_id;
        checkpoint.boot_id = boot_id;
        checkpoint.clean_end = None;
        checkpoint.lazy = self.config.flush != FlushMode::Sync;
        self.write_checkpoint(&checkpoint)?;
        write_abort(&**self.disk, self.config).map_err(at(&self.config.path("abort")))?;

        self.shared.publish(&self.tail);
        self.shared.raise_confirm(checkpoint.confirm);
        tracing::info!(
            root = %self.config.root.display(),
            last = ?self.tail.last, %end, clean, entries, cut_bytes,
            "log opened"
        );
        let created = self.notes.created;
        let parts = Parts {
            config: self.config.clone(),
            genesis: genesis.map(Arc::new),
            disk: Arc::clone(self.disk),
            shared: self.shared,
            tail: self.tail,
            vote: self.notes.vote,
            vote_slots: self.notes.vote_slots,
            checkpoint,
            checkpoint_slots: self.notes.checkpoint_slots,
            recovered: Recovered {
                created,
                clean,
                entries,
                cut_bytes,
            },
            lock,
        };
        Log::assemble(parts).map_err(at(&self.config.root))
    }

    /// Durable on return.
    fn write_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), OpenError> {
        let written = self.notes.checkpoint_slots.write(&checkpoint.encode());
        written.map_err(at(&self.config.path(CHECKPOINT_FILE)))
    }
}

/// Puts an empty file in the place of each that is missing and was full: what was in it is damaged then,
/// and can be mended. `log` is where the Raft log begins, and up to where it was committed.
fn replace_missing(
    dir: &Path,
    disk: &Arc<dyn Disk>,
    segment_bytes: u64,
    log: (PhyOffset, PhyOffset),
) -> Result<(), OpenError> {
    let (begin, confirm) = (log.0.0, log.1.0);
    let there = bases(dir, disk)?;
    if begin == confirm && there.is_empty() {
        return Ok(());
    }
    let base = confirm - confirm % segment_bytes;
    let has_end = match base == confirm {
        true => there.iter().any(|there| there + segment_bytes >= confirm),
        false => there.contains(&base),
    };
    if begin < confirm && !has_end {
        // It is not known what else was behind the checkpoint.
        return Err(OpenError::Damaged {
            path: dir.join(file_name(base)),
            at: PhyOffset(base),
            within: 0,
            confirm: log.1,
            reason: "the file is missing".to_owned(),
        });
    }
    let begin = begin - begin % segment_bytes;
    let first = there.first().map_or(begin, |first| begin.min(*first));
    let step = usize::try_from(segment_bytes).expect("addresses have 64 bits");
    for base in (first..base).step_by(step) {
        if there.contains(&base) {
            continue;
        }
        let path = dir.join(file_name(base));
        tracing::error!(
            path = %path.display(),
            "a file of the commit log is missing: an empty one takes its place until it is mended"
        );
        let made = disk.open(&path, OpenMode::Create).and_then(|file| {
            file.set_len(segment_bytes)?;
            file.sync()
        });
        made.and_then(|()| disk.sync_dir(dir)).map_err(at(&path))?;
    }
    Ok(())
}

/// The segments of a log. Files that a crash left unfinished, or apart from the others, are put in
/// order if they are behind the committed part, and are damage if not.
fn load_segments(
    dir: &Path,
    disk: &Arc<dyn Disk>,
    segment_bytes: u64,
    confirm: PhyOffset,
) -> Result<Vec<Segment>, OpenError> {
    let mut list: Vec<Segment> = Vec::new();
    for name in disk.list(dir).map_err(at(dir))? {
        if name.ends_with(MENDED) {
            let path = dir.join(name);
            disk.unlink(&path).map_err(at(&path))?;
        }
    }
    for base in bases(dir, disk)? {
        let path = dir.join(file_name(base));
        let base = PhyOffset(base);
        let expected = list.last().map_or(base, |last| last.base + segment_bytes);
        if base != expected || !base.0.is_multiple_of(segment_bytes) {
            if base < confirm || !base.0.is_multiple_of(segment_bytes) {
                let reason = "segments are not neighbours".to_owned();
                return Err(OpenError::Damaged {
                    path,
                    at: base,
                    within: 0,
                    confirm,
                    reason,
                });
            }
            // Later segments may have been made or removed out of order.
            disk.unlink(&path).map_err(at(&path))?;
            disk.sync_dir(dir).map_err(at(dir))?;
            continue;
        }
        let file = disk.open(&path, OpenMode::Write).map_err(at(&path))?;
        let found = file.size().map_err(at(&path))?;
        if found < segment_bytes && base >= confirm {
            file.allocate(segment_bytes).map_err(at(&path))?;
        } else if found != segment_bytes {
            return Err(OpenError::SegmentSize {
                path,
                found,
                expected: segment_bytes,
            });
        }
        list.push(Segment { base, file });
    }
    Ok(list)
}
