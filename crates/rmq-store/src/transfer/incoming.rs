//! What has arrived of a transfer.
//!
//! Files lie in an `incoming` directory beside the ones that they are to replace, so that a rename
//! will do: `commitlog/incoming` and `raftindex/incoming`. What of them is durable says
//! `incoming/progress`, which is written after each sync; when all of it is, `incoming/manifest` is
//! made.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use super::outline::{Outline, Part, Rest, TransferDecodeError, encode_intent};
use crate::config::StoreConfig;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::raft_index::FILE_LEN;
use crate::segment::{file_name, parse_name};
use crate::slots::{Slots, SlotsError};

/// Bytes that may be written without being durable.
const SYNC_BYTES: u64 = if cfg!(test) { 100_000 } else { 8 << 20 };
/// Bytes before the place to go on at that both sides compare.
const COMPARED_BYTES: u64 = 1 << 20;

const PROGRESS_MAGIC: u32 = u32::from_be_bytes(*b"rmqT");
const PROGRESS_VERSION: u8 = 1;
const PROGRESS_BYTES: usize = 1 + 16 + 4 + 8 + 4 * 8;

/// Why something that has arrived was not taken.
#[derive(Debug, Error)]
pub enum IncomingError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{len} bytes at {at} of the {part:?}, expected is {expected} of {end}")]
    Place {
        part: Part,
        at: u64,
        len: usize,
        expected: u64,
        end: u64,
    },
    #[error("bytes at {at} of the {part:?} were damaged on their way")]
    Damaged { part: Part, at: u64 },
    #[error("not all of the transfer is here")]
    Incomplete,
    #[error("what goes with the log: {0}")]
    Rest(#[from] TransferDecodeError),
}

/// Where files wait for an install.
pub(super) struct Places {
    /// Holds `progress` and `manifest`.
    pub(super) notes: PathBuf,
    pub(super) log: PathBuf,
    pub(super) index: PathBuf,
}

impl Places {
    pub(super) fn of(config: &StoreConfig) -> Self {
        Self {
            notes: config.path("incoming"),
            log: config.commit_log_dir.join("incoming"),
            index: config.raft_index_dir().join("incoming"),
        }
    }

    pub(super) fn progress(&self) -> PathBuf {
        self.notes.join("progress")
    }

    pub(super) fn manifest(&self) -> PathBuf {
        self.notes.join("manifest")
    }
}

/// Removes what a transfer has left that broke off, or that arrived and was not installed. Says whether
/// there was anything.
///
/// Nothing may arrive meanwhile, and nothing be about to be installed.
///
/// # Errors
/// The disk's; what is left then is removed next time.
pub fn forget_incoming(config: &StoreConfig, disk: &dyn Disk) -> io::Result<bool> {
    let places = Places::of(config);
    // Before files go: nothing is noted that is not there.
    let mut found = unlink_if_there(disk, &places.manifest())?;
    found |= unlink_if_there(disk, &places.progress())?;
    for dir in [places.notes, places.log, places.index] {
        for name in disk.list(&dir)? {
            disk.unlink(&dir.join(name))?;
            found = true;
        }
        disk.remove_dir(&dir)?;
    }
    Ok(found)
}

/// One part as far as it has arrived: all bytes from `start` to `end`.
#[derive(Debug)]
struct Stretch {
    dir: PathBuf,
    file_bytes: u64,
    start: u64,
    end: u64,
    /// All below is durable.
    synced: u64,
    /// The file that was written last, and its start.
    file: Option<(u64, Arc<dyn DiskFile>)>,
}

/// A transfer that is being received.
#[derive(Debug)]
pub struct Incoming {
    disk: Arc<dyn Disk>,
    notes: PathBuf,
    source: [u8; 16],
    outline: Outline,
    parts: [Stretch; 2],
    progress: Option<Slots>,
}

/// What is durable: of which group, and which bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Progress {
    source: [u8; 16],
    generation: i32,
    segment_bytes: u64,
    ranges: [(u64, u64); 2],
}

impl Progress {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![PROGRESS_VERSION];
        out.put_slice(&self.source);
        out.put_i32(self.generation);
        out.put_u64(self.segment_bytes);
        for (start, end) in self.ranges {
            out.put_u64(start);
            out.put_u64(end);
        }
        out
    }

    /// `None` if the content is none of ours.
    fn decode(mut content: &[u8]) -> Option<Self> {
        if content.len() != PROGRESS_BYTES || content.get_u8() != PROGRESS_VERSION {
            return None;
        }
        let mut source = [0; 16];
        content.copy_to_slice(&mut source);
        let (generation, segment_bytes) = (content.get_i32(), content.get_u64());
        let mut range = || (content.get_u64(), content.get_u64());
        Some(Self {
            source,
            generation,
            segment_bytes,
            ranges: [range(), range()],
        })
    }
}

impl Incoming {
    /// Makes ready for a transfer from the group `source`, and keeps what an earlier one has left
    /// and this one would bring again.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(
        config: &StoreConfig,
        disk: Arc<dyn Disk>,
        source: [u8; 16],
        outline: Outline,
    ) -> io::Result<Self> {
        let places = Places::of(config);
        for dir in [&places.notes, &places.log, &places.index] {
            disk.create_dir_all(dir)?;
            disk.sync_dir(dir.parent().unwrap_or(dir))?;
        }
        unlink_if_there(&*disk, &places.manifest())?;
        let (progress, noted) = match Slots::open(&*disk, &places.progress(), PROGRESS_MAGIC) {
            Ok(Some((slots, content))) => (Some(slots), Progress::decode(&content)),
            Ok(None) | Err(SlotsError::Damaged) => (None, None),
            Err(SlotsError::Io(e)) => return Err(e),
        };
        let noted = noted.filter(|noted| {
            (noted.source, noted.generation, noted.segment_bytes)
                == (source, outline.generation, outline.segment_bytes)
        });
        let stretch = |part, dir: &Path, file_bytes, range| {
            Stretch {
                dir: dir.to_owned(),
                file_bytes,
                start: outline.range(part).0,
                end: outline.range(part).0,
                synced: 0,
                file: None,
            }
            .kept(range)
        };
        let ranges = noted.map(|noted| noted.ranges);
        let parts = [
            stretch(
                Part::Log,
                &places.log,
                outline.segment_bytes,
                ranges.map(|r| r[0]),
            ),
            stretch(Part::Index, &places.index, FILE_LEN, ranges.map(|r| r[1])),
        ];
        let mut incoming = Self {
            disk,
            notes: places.notes,
            source,
            outline,
            parts,
            progress,
        };
        // Before files go: nothing is noted that is not there.
        incoming.note()?;
        for part in &incoming.parts {
            part.clean(&*incoming.disk)?;
        }
        Ok(incoming)
    }

    fn stretch(&mut self, part: Part) -> &mut Stretch {
        &mut self.parts[usize::from(part == Part::Index)]
    }

    /// What is being transferred.
    #[must_use]
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// Where a part goes on.
    #[must_use]
    pub fn position(&self, part: Part) -> u64 {
        self.parts[usize::from(part == Part::Index)].end
    }

    /// Bytes that were there before, and CRC-32C of some of them right before the position: how many,
    /// and of what checksum.
    ///
    /// # Errors
    /// The disk's.
    pub fn resumed(&mut self, part: Part) -> io::Result<(u64, u64, u32)> {
        let disk = Arc::clone(&self.disk);
        let stretch = self.stretch(part);
        let kept = stretch.end - stretch.start;
        let in_file =
            stretch.end - stretch.end.saturating_sub(1) / stretch.file_bytes * stretch.file_bytes;
        let len = kept.min(in_file).min(COMPARED_BYTES);
        if len == 0 {
            return Ok((0, 0, 0));
        }
        let from = stretch.end - len;
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        let path = stretch
            .dir
            .join(file_name(from - from % stretch.file_bytes));
        let file = disk.open(&path, OpenMode::Read)?;
        file.read_at(from % stretch.file_bytes, &mut bytes)?;
        Ok((kept, len, crc32c::crc32c(&bytes)))
    }

    /// Has a part arrive from its beginning again, because what is here of it is not what the sender
    /// has.
    ///
    /// # Errors
    /// The disk's.
    pub fn restart(&mut self, part: Part) -> io::Result<()> {
        let (start, _) = self.outline.range(part);
        let stretch = self.stretch(part);
        (stretch.start, stretch.end, stretch.synced) = (start, start, start);
        stretch.file = None;
        self.note()?;
        let disk = Arc::clone(&self.disk);
        self.stretch(part).clean(&*disk)
    }

    /// Takes the next bytes of a part, all of one file. Not durable yet.
    ///
    /// # Errors
    /// The disk's, or for bytes from another place.
    pub fn write(&mut self, part: Part, at: u64, bytes: &[u8]) -> Result<(), IncomingError> {
        let (_, end) = self.outline.range(part);
        let disk = Arc::clone(&self.disk);
        let stretch = self.stretch(part);
        let len = bytes.len() as u64;
        let room = (stretch.file_bytes - stretch.end % stretch.file_bytes)
            .min(end.saturating_sub(stretch.end));
        if at != stretch.end || len > room {
            return Err(IncomingError::Place {
                part,
                at,
                len: bytes.len(),
                expected: stretch.end,
                end,
            });
        }
        stretch.write(&*disk, bytes)?;
        if stretch.end - stretch.synced >= SYNC_BYTES {
            self.note()?;
        }
        Ok(())
    }

    /// Makes the transfer complete and durable, with what goes with the log: `rest` as
    /// [`Rest::encode`] gave it.
    ///
    /// # Errors
    /// The disk's, or if something is missing.
    pub fn finish(mut self, rest: &[u8]) -> Result<(), IncomingError> {
        for part in [Part::Log, Part::Index] {
            if self.position(part) < self.outline.range(part).1 {
                return Err(IncomingError::Incomplete);
            }
        }
        Rest::decode(Bytes::copy_from_slice(rest))?;
        self.note()?;
        let content = encode_intent(&self.outline, rest);
        write_whole(&*self.disk, &self.notes.join("manifest"), &content)?;
        Ok(())
    }

    /// Makes durable what has arrived, and notes it.
    fn note(&mut self) -> io::Result<()> {
        for stretch in &mut self.parts {
            if let Some((_, file)) = &stretch.file {
                file.sync()?;
            }
            stretch.synced = stretch.end;
        }
        let progress = Progress {
            source: self.source,
            generation: self.outline.generation,
            segment_bytes: self.outline.segment_bytes,
            ranges: [0, 1].map(|n: usize| (self.parts[n].start, self.parts[n].end)),
        };
        let content = progress.encode();
        match &mut self.progress {
            Some(slots) => slots.write(&content)?,
            None => {
                let path = self.notes.join("progress");
                self.progress = Some(Slots::create(&*self.disk, &path, PROGRESS_MAGIC, &content)?);
            }
        }
        Ok(())
    }
}

impl Stretch {
    /// With what is noted to be there, if that can be used.
    fn kept(mut self, noted: Option<(u64, u64)>) -> Self {
        if let Some((start, end)) = noted
            && start <= self.start
            && self.start <= end
        {
            self.end = end;
        }
        self.synced = self.end;
        self
    }

    /// Removes files that hold nothing of what is here.
    fn clean(&self, disk: &dyn Disk) -> io::Result<()> {
        let mut removed = false;
        for name in disk.list(&self.dir)? {
            let wanted = parse_name(&name)
                .is_some_and(|base| base + self.file_bytes > self.start && base < self.end);
            if !wanted {
                disk.unlink(&self.dir.join(&name))?;
                removed = true;
            }
        }
        if removed {
            disk.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    fn write(&mut self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        let base = self.end - self.end % self.file_bytes;
        let file = match &self.file {
            Some((open, file)) if *open == base => Arc::clone(file),
            _ => {
                if let Some((_, before)) = self.file.take() {
                    before.sync()?;
                }
                let file = disk.open(&self.dir.join(file_name(base)), OpenMode::Create)?;
                file.allocate(self.file_bytes)?;
                file.sync()?;
                disk.sync_dir(&self.dir)?;
                self.file = Some((base, Arc::clone(&file)));
                file
            }
        };
        file.write_at(self.end % self.file_bytes, &[IoSlice::new(bytes)])?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// Makes a file with this content. It appears under its name whole and durable, or not at all.
pub(crate) fn write_whole(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let file = disk.open(&new, OpenMode::Create)?;
    file.set_len(content.len() as u64)?;
    file.write_at(0, &[IoSlice::new(content)])?;
    file.sync()?;
    disk.rename(&new, path)?;
    disk.sync_dir(path.parent().unwrap_or_else(|| Path::new(".")))
}

/// The content of a file; `None` if there is none.
pub(crate) fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Option<Bytes>> {
    let file = match disk.open(path, OpenMode::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; usize::try_from(file.size()?).map_err(io::Error::other)?];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(Some(bytes.into()))
}

pub(crate) fn unlink_if_there(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    match disk.unlink(path) {
        Ok(()) => {
            disk.sync_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
