//! Opening a log: what a crash may have left is told from damage.
//!
//! The checkpoint names a committed entry up to which everything was durable when it was written.
//! Up to there anything wrong is damage, and the log is not opened. Behind it, the first extent
//! that is not whole, or does not continue the chain, is where a crash cut the log: an entry is
//! there as a whole or not at all.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use rmq_wire::record::{self, BLANK_LEN, Peek, Record};
use thiserror::Error;

use crate::checkpoint::{
    CHECKPOINT_FILE, CHECKPOINT_MAGIC, Checkpoint, VOTE_FILE, VOTE_MAGIC, decode_vote, encode_vote,
    write_abort,
};
use crate::config::{ConfigError, FlushMode, StoreConfig};
use crate::disk::{Disk, OpenMode};
use crate::extent::{ExtentError, Header, Part, RAFT_LOG_TOPIC, Tail, place, verify};
use crate::log::{Log, Parts, Recovered};
use crate::raft_index::{Cell, RaftIndex};
use crate::reader::Shared;
use crate::segment::{Segment, Segments, file_name, parse_name};
use crate::slots::{Slots, SlotsError};
use crate::types::{LogIndex, PhyOffset, Vote};

/// Bytes that are read at once when looking for what a crash left behind the end.
const STEP_BYTES: usize = 1 << 20;
/// Zeros after which the rest of a segment is taken to be clean. Readers of the classic log stop
/// at the first of them, and recovery never takes stale bytes for entries anyway.
const CLEAN_BYTES: u64 = 64 << 20;
/// Cells of the raft index that are written at once.
const CELLS_STEP: usize = 4096;

/// Why a store was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("Lock failed, MQ already started: another process uses the store {}", root.display())]
    Locked { root: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A node that forgot its vote could vote twice in a term.
    #[error("{} is damaged, and with it this node's vote: rejoin the group with an empty store", path.display())]
    Vote { path: PathBuf },
    #[error("{} is damaged: rejoin the group with an empty store", path.display())]
    Checkpoint { path: PathBuf },
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
    let notes = Notes::open(config, disk)?;
    Opening::new(config, disk, notes)?.run(lock)
}

/// The two small files, open, and their content.
struct Notes {
    vote: Option<Vote>,
    vote_slots: Slots,
    checkpoint: Checkpoint,
    checkpoint_slots: Slots,
    created: bool,
}

impl Notes {
    fn open(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<Self, OpenError> {
        let (vote_path, path) = (config.path(VOTE_FILE), config.path(CHECKPOINT_FILE));
        let vote = match Slots::open(&**disk, &vote_path, VOTE_MAGIC) {
            Ok(None) => None,
            Ok(Some((slots, content))) => match decode_vote(&content) {
                Some(vote) => Some((slots, vote)),
                None => return Err(OpenError::Vote { path: vote_path }),
            },
            Err(SlotsError::Damaged) => return Err(OpenError::Vote { path: vote_path }),
            Err(SlotsError::Io(e)) => return Err(at(&vote_path)(e)),
        };
        let checkpoint = match Slots::open(&**disk, &path, CHECKPOINT_MAGIC) {
            Ok(None) => None,
            Ok(Some((slots, content))) => match Checkpoint::decode(&content) {
                Some(checkpoint) if checkpoint.segment_bytes > 0 => Some((slots, checkpoint)),
                _ => return Err(OpenError::Checkpoint { path }),
            },
            Err(SlotsError::Damaged) => return Err(OpenError::Checkpoint { path }),
            Err(SlotsError::Io(e)) => return Err(at(&path)(e)),
        };
        match (vote, checkpoint) {
            (Some((vote_slots, vote)), Some((checkpoint_slots, checkpoint))) => {
                if checkpoint.generation != config.generation {
                    let (found, expected) = (checkpoint.generation, config.generation);
                    return Err(OpenError::Generation {
                        path,
                        found,
                        expected,
                    });
                }
                Ok(Self {
                    vote,
                    vote_slots,
                    checkpoint,
                    checkpoint_slots,
                    created: false,
                })
            }
            (None, Some(_)) => Err(OpenError::Missing { path: vote_path }),
            (Some((_, Some(_))), None) => Err(OpenError::Missing { path }),
            (None | Some((_, None)), None) => Self::create(config, disk, &vote_path, &path),
        }
    }

    /// Begins a log, behind the history that lies in the commit log's directory, if any.
    fn create(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        vote_path: &Path,
        path: &Path,
    ) -> Result<Self, OpenError> {
        let (segment_bytes, base) = end_of_history(config, disk)?;
        let checkpoint = Checkpoint {
            generation: config.generation,
            segment_bytes,
            base,
            committed: None,
            confirm: base,
            purged: None,
            boot_id: disk.boot_id().map_err(at(Path::new("boot id")))?,
            lazy: config.flush != FlushMode::Sync,
            suspect: false,
            clean_end: None,
        };
        // The checkpoint comes last: with it there, both have to be.
        let vote_slots = Slots::create(&**disk, vote_path, VOTE_MAGIC, &encode_vote(None));
        let vote_slots = vote_slots.map_err(at(vote_path))?;
        let content = checkpoint.encode();
        let checkpoint_slots = Slots::create(&**disk, path, CHECKPOINT_MAGIC, &content);
        let checkpoint_slots = checkpoint_slots.map_err(at(path))?;
        Ok(Self {
            vote: None,
            vote_slots,
            checkpoint,
            checkpoint_slots,
            created: true,
        })
    }
}

/// Starts of the segment files in a directory, sorted.
fn bases(dir: &Path, disk: &Arc<dyn Disk>) -> Result<Vec<u64>, OpenError> {
    let names = disk.list(dir).map_err(at(dir))?;
    Ok(names.iter().filter_map(|name| parse_name(name)).collect())
}

/// Size of the segments of a store that has no Raft log yet, and where its records end. Only the
/// last segment with records is read.
fn end_of_history(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
) -> Result<(u64, PhyOffset), OpenError> {
    let dir = &config.commit_log_dir;
    let bases = bases(dir, disk)?;
    let mut segment_bytes = config.segment_bytes;
    for (i, &base) in bases.iter().enumerate().rev() {
        let path = dir.join(file_name(base));
        let file = disk.open(&path, OpenMode::Read).map_err(at(&path))?;
        let size = file.size().map_err(at(&path))?;
        let whole = bases.get(i + 1).map_or(size, |next| next - base);
        segment_bytes = whole;
        if size != whole || size == 0 || !base.is_multiple_of(size) {
            let expected = config.segment_bytes;
            return Err(OpenError::SegmentSize {
                path,
                found: size,
                expected,
            });
        }
        let mut content = vec![0; usize::try_from(size).expect("addresses have 64 bits")];
        file.read_at(0, &mut content).map_err(at(&path))?;
        let end = end_of_records(&content, base);
        if end == 0 && content.iter().any(|&byte| byte != 0) {
            return Err(OpenError::Damaged {
                path,
                at: PhyOffset(base),
                within: 0,
                confirm: PhyOffset(base),
                reason: "a segment that starts with no record".to_owned(),
            });
        }
        if end > 0 {
            if holds_live_header(&content[..end], config.generation) {
                return Err(OpenError::Missing {
                    path: config.path(CHECKPOINT_FILE),
                });
            }
            return Ok((size, PhyOffset(base + end as u64)));
        }
        // All zero: made ahead of need. The end is in an earlier one, or there are no records.
    }
    Ok((
        segment_bytes,
        PhyOffset(bases.first().copied().unwrap_or(0)),
    ))
}

/// Where the valid records at the head of a segment end, its blank included.
fn end_of_records(content: &[u8], base: u64) -> usize {
    let mut pos = 0;
    loop {
        match record::peek(&content[pos..]) {
            Peek::Blank { size } if pos + size == content.len() => return content.len(),
            Peek::Record { size } if size <= content.len() - pos => {
                let whole = Record::decode(&content[pos..pos + size]).is_ok_and(|record| {
                    let said = u64::try_from(record.physical_offset);
                    said == Ok(base + pos as u64) && record.crc_matches()
                });
                if !whole {
                    return pos;
                }
                pos += size;
            }
            _ => return pos,
        }
    }
}

fn holds_live_header(content: &[u8], generation: i32) -> bool {
    let mut rest = content;
    while let Peek::Record { size } = record::peek(rest) {
        if let Ok(record) = Record::decode(&rest[..size])
            && record.topic == RAFT_LOG_TOPIC
            && record.queue_id == generation
        {
            return true;
        }
        rest = &rest[size..];
    }
    false
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
        let list = load_segments(&dir, disk, segment_bytes, confirm)?;
        let segments = Segments::new(Arc::clone(disk), dir, segment_bytes, list);
        let index = RaftIndex::new(Arc::clone(disk), config.raft_index_dir());
        let max = config
            .max_extent_bytes()
            .max(segment_bytes / 4)
            .min(segment_bytes - 8);
        let shared = Shared::new(segments, index, config.generation, max, base);
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

    fn run(mut self, lock: Box<dyn Any + Send + Sync>) -> Result<Log, OpenError> {
        let index_dir = self.config.raft_index_dir();
        let mut checkpoint = self.notes.checkpoint.clone();
        self.start_at_checkpoint()?;
        let entries = self.scan()?;
        let next = self.tail.last.map_or(LogIndex(0), |last| last.index.next());
        self.shared.index.cut(next).map_err(at(&index_dir))?;

        let end = self.tail.end;
        let clean = checkpoint.clean_end.is_some();
        let cut_bytes = match checkpoint.clean_end {
            Some(clean_end) if end < clean_end => {
                return Err(self.damaged(end, clean_end, "the log ends before its clean end"));
            }
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
        // The process before may have been killed before it synced. From now on the entries count
        // as durable: nobody asks for a sync of them again.
        for segment in segments.touching(checkpoint.confirm, end) {
            segment
                .file
                .sync()
                .map_err(at(&segments.path(segment.base)))?;
        }
        let base = segments.base_of(end);
        segments
            .drop_from(base + segments.bytes)
            .map_err(at(segments.dir()))?;
        if segments.at(end).is_none() {
            let made = segments.create(base, false, &AtomicBool::new(false));
            segments.push(made.map_err(at(&segments.path(base)))?);
        }

        let boot_id = self.disk.boot_id().map_err(at(Path::new("boot id")))?;
        // What was acknowledged from the page cache went down with the machine.
        checkpoint.suspect |= !clean && checkpoint.lazy && checkpoint.boot_id != boot_id;
        checkpoint.boot_id = boot_id;
        checkpoint.clean_end = None;
        checkpoint.lazy = self.config.flush != FlushMode::Sync;
        let noted = self.notes.checkpoint_slots.write(&checkpoint.encode());
        noted.map_err(at(&self.config.path(CHECKPOINT_FILE)))?;
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

    /// Moves behind the checkpoint's entry, which has to be there and whole.
    fn start_at_checkpoint(&mut self) -> Result<(), OpenError> {
        let Checkpoint {
            base,
            confirm,
            committed: Some(committed),
            ..
        } = self.notes.checkpoint
        else {
            return Ok(());
        };
        let index_dir = self.config.raft_index_dir();
        let index = &self.shared.index;
        let damage = |stop: Stop| match stop {
            Stop::Io(e) => e,
            Stop::Extent(at, source) => self.damaged(at, confirm, &source.to_string()),
        };
        let (first, _, _) = self.read_header(base).map_err(damage)?;
        let mut start = None;
        if index
            .covers(first.id.index, committed.index)
            .map_err(at(&index_dir))?
            && let Some(cell) = index.get(committed.index).map_err(at(&index_dir))?
            && let Ok((header, _, _)) = self.read_header(cell.header)
            && header.id == committed
            && header.end() == confirm
        {
            start = Some(header.start);
        }
        let start = match start {
            Some(start) => start,
            None => {
                tracing::info!(until = %confirm, "rebuilding the raft index");
                self.rebuild_index(base, confirm).map_err(damage)?
            }
        };
        let (header, _) = self.read_extent(start).map_err(damage)?;
        if header.id != committed || header.end() != confirm {
            return Err(self.damaged(start, confirm, "not the entry that the checkpoint names"));
        }
        self.tail.advance(&header);
        self.tail.first = first.id.index;
        Ok(())
    }

    /// Writes the cells of all entries between two positions, and returns where the last extent
    /// starts. Only headers are read.
    fn rebuild_index(&self, base: PhyOffset, confirm: PhyOffset) -> Result<PhyOffset, Stop> {
        let mut cells = Cells::new(self);
        let mut start = base;
        loop {
            let (header, pos, _) = self.read_header(start)?;
            cells.push(&header, pos)?;
            if header.end() >= confirm {
                cells.write()?;
                return Ok(start);
            }
            start = header.end();
        }
    }

    /// Moves to the end of the log, writing the cells of the entries found, and counts them.
    fn scan(&mut self) -> Result<u64, OpenError> {
        let mut entries = 0;
        let mut tail = self.tail;
        let mut cells = Cells::new(self);
        let stopped = loop {
            let one = self.read_extent(tail.end).and_then(|(header, pos)| {
                tail.check_stored(&header)
                    .map_err(|source| Stop::Extent(pos, source))?;
                cells.push(&header, pos)?;
                Ok(header)
            });
            match one {
                Ok(header) => tail.advance(&header),
                Err(stop) => break stop,
            }
            entries += 1;
        };
        if let Stop::Io(e) = stopped {
            return Err(e);
        }
        match cells.write() {
            Err(Stop::Io(e)) => return Err(e),
            Err(Stop::Extent(..)) | Ok(()) => {}
        }
        if let Stop::Extent(at, reason) = stopped
            && reason != ExtentError::NoHeader
        {
            tracing::warn!(%at, %reason, "the log was cut short by a crash");
        }
        self.tail = tail;
        Ok(entries)
    }

    /// The header of the extent that starts at `start`, where its record is, and its size.
    fn read_header(&self, start: PhyOffset) -> Result<(Header, PhyOffset, u64), Stop> {
        let segment_bytes = self.shared.segments.bytes;
        let mut pos = start;
        let mut head = self.read(pos, BLANK_LEN as u64)?;
        if let Peek::Blank { size } = record::peek(&head) {
            let next = self.shared.segments.base_of(start) + segment_bytes;
            if size as u64 != next - start {
                return Err(Stop::Extent(pos, ExtentError::NoHeader));
            }
            pos = next;
            head = self.read(pos, BLANK_LEN as u64)?;
        }
        let Peek::Record { size } = record::peek(&head) else {
            return Err(Stop::Extent(pos, ExtentError::NoHeader));
        };
        let size = size as u64;
        if place(pos, size, segment_bytes) != pos || size > self.shared.max_extent_bytes {
            return Err(Stop::Extent(pos, ExtentError::NoHeader));
        }
        let bytes = self.read(pos, size)?;
        match Header::decode(&bytes, self.config.generation, pos) {
            Ok((header, _)) => Ok((header, pos, size)),
            Err(source) => Err(Stop::Extent(pos, source)),
        }
    }

    /// The extent that starts at `start`, verified as a whole but for what it follows: its header
    /// and where the header's record is.
    fn read_extent(&self, start: PhyOffset) -> Result<(Header, PhyOffset), Stop> {
        let segment_bytes = self.shared.segments.bytes;
        let (header, pos, _) = self.read_header(start)?;
        if u64::from(header.len) >= 2 * segment_bytes {
            return Err(Stop::Extent(pos, ExtentError::Header("impossible length")));
        }
        let mut parts = Vec::with_capacity(2);
        let mut from = start;
        let end = start + u64::from(header.len);
        while from < end {
            let next = self.shared.segments.base_of(from) + segment_bytes;
            let bytes = self.read(from, end.min(next) - from)?;
            parts.push(Part { pos: from, bytes });
            from = next;
        }
        let source = |source| Stop::Extent(start, source);
        verify(&parts, self.config.generation, segment_bytes).map_err(source)
    }

    /// Reads a range of one segment. What is not there has no header.
    fn read(&self, pos: PhyOffset, len: u64) -> Result<Bytes, Stop> {
        let nothing = || Stop::Extent(pos, ExtentError::NoHeader);
        let segment = self.shared.segments.at(pos).ok_or_else(nothing)?;
        let within = pos - segment.base;
        if within + len > self.shared.segments.bytes {
            return Err(nothing());
        }
        let mut bytes = vec![0; usize::try_from(len).expect("addresses have 64 bits")];
        let path = self.shared.segments.path(segment.base);
        let read = segment
            .file
            .read_at(within, &mut bytes)
            .map_err(at(&path))?;
        if read < bytes.len() {
            return Err(nothing());
        }
        Ok(bytes.into())
    }

    /// Whether nothing is written at `pos`.
    fn is_clean_at(&self, pos: PhyOffset) -> Result<bool, OpenError> {
        match self.read(pos, BLANK_LEN as u64) {
            Ok(bytes) => Ok(bytes.iter().all(|&byte| byte == 0)),
            Err(Stop::Extent(..)) => Ok(true),
            Err(Stop::Io(e)) => Err(e),
        }
    }

    /// Zeros what a crash left behind the end, and says how much that was.
    fn clean_rest(&self) -> Result<u64, OpenError> {
        let segments = &self.shared.segments;
        let end = self.tail.end;
        let Some(segment) = segments.at(end) else {
            return Ok(0);
        };
        let path = segments.path(segment.base);
        let mut dirty_end = end;
        let mut pos = end;
        let mut buf = vec![0; STEP_BYTES];
        loop {
            let read = segment
                .file
                .read_at(pos - segment.base, &mut buf)
                .map_err(at(&path))?;
            pos = pos + read as u64;
            if buf[..read].iter().any(|&byte| byte != 0) {
                dirty_end = pos;
            }
            if read == 0 || pos - dirty_end >= CLEAN_BYTES {
                break;
            }
        }
        if dirty_end > end {
            segments
                .zero(end, dirty_end)
                .and_then(|()| segment.file.sync())
                .map_err(at(&path))?;
        }
        Ok(dirty_end - end)
    }

    /// The file that a position lies in, and where in it.
    fn place_of(&self, pos: PhyOffset) -> (PathBuf, u64) {
        let base = self.shared.segments.base_of(pos);
        (self.shared.segments.path(base), pos - base)
    }

    fn damaged(&self, at: PhyOffset, confirm: PhyOffset, reason: &str) -> OpenError {
        let (path, within) = self.place_of(at);
        OpenError::Damaged {
            path,
            at,
            within,
            confirm,
            reason: reason.to_owned(),
        }
    }
}

/// Why reading on is not possible.
enum Stop {
    Extent(PhyOffset, ExtentError),
    Io(OpenError),
}

impl From<OpenError> for Stop {
    fn from(e: OpenError) -> Self {
        Self::Io(e)
    }
}

/// Cells on their way into the raft index.
struct Cells<'a> {
    index: &'a RaftIndex,
    dir: PathBuf,
    first: LogIndex,
    cells: Vec<Cell>,
}

impl<'a> Cells<'a> {
    fn new(opening: &'a Opening<'_>) -> Self {
        Self {
            index: &opening.shared.index,
            dir: opening.config.raft_index_dir(),
            first: LogIndex(0),
            cells: Vec::new(),
        }
    }

    fn push(&mut self, header: &Header, pos: PhyOffset) -> Result<(), Stop> {
        let index = header.id.index;
        if self.cells.len() >= CELLS_STEP || index.0 != self.first.0 + self.cells.len() as u64 {
            self.write()?;
            self.first = index;
        }
        self.cells.push(Cell {
            header: pos,
            len: header.len,
            term: header.id.term,
        });
        Ok(())
    }

    fn write(&mut self) -> Result<(), Stop> {
        self.index
            .put(self.first, &self.cells)
            .map_err(at(&self.dir))?;
        self.cells.clear();
        Ok(())
    }
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
