//! The files of the commit log, as one address space.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use rmq_wire::record::{self, BLANK_LEN, Peek};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::extent::Part;
use crate::types::PhyOffset;

/// Zeros to write blanks and clean tails from.
pub(crate) static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Bytes that are zeroed between two looks at whether to stop, and between two syncs.
const ZERO_STEP_BYTES: u64 = 1 << 20;

/// Bytes that are read and written again at once.
const REWRITE_STEP_BYTES: u64 = 1 << 20;

/// Ending of the name of a copy that is being mended.
pub(crate) const MENDED: &str = "mended";

/// A file of the commit log.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) base: PhyOffset,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// What is kept free, on the disk beside the next segment and in the last segment if there is no room
/// for another: a sixteenth of a segment.
pub(crate) fn reserve_bytes(segment_bytes: u64) -> u64 {
    segment_bytes / 16
}

/// Name of the file that starts at `base`.
pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}")
}

/// The start that a file name says; `None` for names of other files.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// Neighbouring segments of one size, the first at `first`.
#[derive(Debug)]
pub(crate) struct Segments {
    pub(crate) bytes: u64,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Sorted, without gaps.
    list: RwLock<Vec<Segment>>,
    /// Held while a file is put in the place of another one, or the first one is removed.
    replacing: Mutex<()>,
}

impl Segments {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        bytes: u64,
        segments: Vec<Segment>,
    ) -> Self {
        Self {
            bytes,
            disk,
            dir,
            list: RwLock::new(segments),
            replacing: Mutex::default(),
        }
    }

    fn list(&self) -> std::sync::RwLockReadGuard<'_, Vec<Segment>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn list_mut(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Segment>> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Start of the first segment; `None` if there is none.
    pub(crate) fn first(&self) -> Option<PhyOffset> {
        self.list().first().map(|segment| segment.base)
    }

    /// Where the segment after the last one starts; `None` if there is none.
    pub(crate) fn limit(&self) -> Option<PhyOffset> {
        self.list().last().map(|segment| segment.base + self.bytes)
    }

    /// The start of the segment that `pos` lies in.
    pub(crate) fn base_of(&self, pos: PhyOffset) -> PhyOffset {
        PhyOffset(pos.0 - pos.0 % self.bytes)
    }

    pub(crate) fn path(&self, base: PhyOffset) -> PathBuf {
        self.dir.join(file_name(base.0))
    }

    /// The segment that `pos` lies in.
    pub(crate) fn at(&self, pos: PhyOffset) -> Option<Segment> {
        let list = self.list();
        let first = list.first()?.base;
        let nth = pos.0.checked_sub(first.0)? / self.bytes;
        list.get(usize::try_from(nth).ok()?).cloned()
    }

    /// The segments that touch a range.
    pub(crate) fn touching(&self, start: PhyOffset, end: PhyOffset) -> Vec<Segment> {
        let list = self.list();
        let from = list.partition_point(|segment| segment.base + self.bytes <= start);
        list[from..]
            .iter()
            .take_while(|segment| segment.base < end)
            .cloned()
            .collect()
    }

    /// Adds the segment that follows the last one.
    pub(crate) fn push(&self, segment: Segment) {
        let mut list = self.list_mut();
        if let Some(last) = list.last() {
            assert_eq!(
                last.base + self.bytes,
                segment.base,
                "segments are neighbours"
            );
        }
        list.push(segment);
    }

    /// A range within one segment, to keep. An error also if it lies in none or in two.
    pub(crate) fn view(&self, pos: PhyOffset, len: usize) -> io::Result<Bytes> {
        let segment = self.at(pos).ok_or(io::ErrorKind::UnexpectedEof)?;
        let within = pos - segment.base;
        if within + len as u64 > self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        segment.file.view(within, len)
    }

    /// From `pos` to the end of its segment or `len` bytes, whichever is less.
    pub(crate) fn view_up_to(&self, pos: PhyOffset, len: u64) -> io::Result<Bytes> {
        let left = self.bytes - pos.0 % self.bytes;
        self.view(
            pos,
            usize::try_from(left.min(len)).map_err(io::Error::other)?,
        )
    }

    /// The record at `pos`, of whatever content; just its head if there is none.
    pub(crate) fn view_record(&self, pos: PhyOffset) -> io::Result<Bytes> {
        let head = self.view(pos, BLANK_LEN)?;
        match record::peek(&head) {
            Peek::Record { size } => self.view_up_to(pos, size as u64),
            _ => Ok(head),
        }
    }

    /// A range in one slice for each segment.
    pub(crate) fn views(&self, start: PhyOffset, end: PhyOffset) -> io::Result<Vec<Bytes>> {
        let mut views = Vec::with_capacity(2);
        let mut pos = start;
        while pos < end {
            let view = self.view_up_to(pos, end - pos)?;
            pos = pos + view.len() as u64;
            views.push(view);
        }
        Ok(views)
    }

    /// Writes slices that lie in one segment, one after the other.
    pub(crate) fn write(&self, pos: PhyOffset, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let segment = self.at(pos).ok_or(io::ErrorKind::UnexpectedEof)?;
        segment.file.write_at(pos - segment.base, slices)
    }

    /// Writes zeros over a range of one segment.
    pub(crate) fn zero(&self, start: PhyOffset, end: PhyOffset) -> io::Result<()> {
        let mut pos = start;
        while pos < end {
            let most = u64::min(end - pos, ZERO_STEP_BYTES);
            self.write(pos, &zero_slices(most))?;
            pos = pos + most;
        }
        Ok(())
    }

    /// Writes a range again as it is and makes it durable, whatever became of the first write.
    pub(crate) fn rewrite(&self, start: PhyOffset, end: PhyOffset) -> io::Result<()> {
        for segment in self.touching(start, end) {
            let mut pos = start.max(segment.base) - segment.base;
            let end = (end - segment.base).min(self.bytes);
            let mut buf = Vec::new();
            while pos < end {
                let most = REWRITE_STEP_BYTES.min(end - pos);
                buf.resize(usize::try_from(most).map_err(io::Error::other)?, 0);
                let read = segment.file.read_at(pos, &mut buf)?;
                if read < buf.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                segment.file.write_at(pos, &[IoSlice::new(&buf)])?;
                pos += most;
            }
            segment.file.sync()?;
        }
        Ok(())
    }

    /// Removes all segments that start at `from` or later, the last one first, so that what a crash
    /// leaves is without gaps.
    pub(crate) fn drop_from(&self, from: PhyOffset) -> io::Result<bool> {
        let dropped = {
            let mut list = self.list_mut();
            let keep = list.partition_point(|segment| segment.base < from);
            list.split_off(keep)
        };
        for segment in dropped.iter().rev() {
            self.disk.unlink(&self.path(segment.base))?;
        }
        if !dropped.is_empty() {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(!dropped.is_empty())
    }

    /// Refuses to take the last of the disk's space for a segment: consume queues and applied state have
    /// to be written too.
    pub(crate) fn check_space(&self) -> io::Result<()> {
        let available = self.disk.space(&self.dir)?.available;
        if available < self.bytes + reserve_bytes(self.bytes) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "{available} bytes are available on the disk, a segment has {}",
                    self.bytes
                ),
            ));
        }
        Ok(())
    }

    /// Writes bytes again, durably. A file below `sealed`, which nobody writes to, is replaced by a
    /// copy that has them. What is in a file that has been removed is left out.
    pub(crate) fn mend(&self, parts: &[Part], sealed: PhyOffset) -> io::Result<()> {
        for of_one in parts.chunk_by(|a, b| self.base_of(a.pos) == self.base_of(b.pos)) {
            // Against removal at the same time, which the rename would undo.
            let _one = self
                .replacing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let Some(segment) = of_one.first().and_then(|part| self.at(part.pos)) else {
                continue;
            };
            if segment.base + self.bytes > sealed {
                write_parts(&segment, &*segment.file, of_one)?;
                segment.file.sync()?;
            } else {
                self.replace(&segment, of_one)?;
            }
        }
        Ok(())
    }

    fn replace(&self, segment: &Segment, parts: &[Part]) -> io::Result<()> {
        let path = self.path(segment.base);
        let mended = path.with_extension(MENDED);
        let file = self.disk.open(&mended, OpenMode::Create)?;
        file.allocate(self.bytes)?;
        let step = ZERO_STEP_BYTES.min(self.bytes);
        let mut buf = vec![0; usize::try_from(step).map_err(io::Error::other)?];
        let mut at = 0;
        while at < self.bytes {
            let read = segment.file.read_at(at, &mut buf)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_at(at, &[IoSlice::new(&buf[..read])])?;
            at += read as u64;
        }
        write_parts(segment, &*file, parts)?;
        file.sync()?;
        self.disk.rename(&mended, &path)?;
        self.disk.sync_dir(&self.dir)?;
        let mut list = self.list_mut();
        if let Some(place) = list.iter_mut().find(|other| other.base == segment.base) {
            place.file = file;
        }
        Ok(())
    }

    /// Removes the first segment: its file, then the segment. Whoever has it in use keeps it; what was
    /// read before stays readable.
    pub(crate) fn drop_first(&self) -> io::Result<()> {
        let Some(base) = self.first() else {
            return Ok(());
        };
        let _one = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // One by one, so that what a crash leaves is without gaps.
        self.unlink(base)?;
        let mut list = self.list_mut();
        if list.first().is_some_and(|segment| segment.base == base) {
            list.remove(0);
        }
        Ok(())
    }

    /// Makes the file of a segment, all zero, durable in itself and in its directory.
    ///
    /// With `written`, its zeros are written out, so that a later sync of new content needs no
    /// change of the file system's own records; that takes long, and ends early once `cancel` is
    /// set. The file is whole in any case, and gone again if there is no space for it.
    pub(crate) fn create(
        &self,
        base: PhyOffset,
        written: bool,
        cancel: &AtomicBool,
    ) -> io::Result<Segment> {
        let path = self.path(base);
        let file = self.disk.open(&path, OpenMode::Create)?;
        if let Err(e) = file.allocate(self.bytes) {
            // It keeps what it got of a full disk. If it stays, the next start or attempt finds it.
            self.disk.unlink(&path).ok();
            return Err(e);
        }
        file.sync()?;
        self.disk.sync_dir(&self.dir)?;
        let mut pos = 0;
        while written && pos < self.bytes && !cancel.load(Ordering::Relaxed) {
            let most = ZERO_STEP_BYTES.min(self.bytes - pos);
            file.write_at(pos, &zero_slices(most))?;
            // In small steps, or the log's own syncs would wait behind a gigabyte of zeros.
            file.sync()?;
            pos += most;
        }
        Ok(Segment { base, file })
    }

    /// Removes the file of a segment; durable on return.
    pub(crate) fn unlink(&self, base: PhyOffset) -> io::Result<()> {
        self.disk.unlink(&self.path(base))?;
        self.disk.sync_dir(&self.dir)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn write_parts(segment: &Segment, file: &dyn DiskFile, parts: &[Part]) -> io::Result<()> {
    parts
        .iter()
        .try_for_each(|part| file.write_at(part.pos - segment.base, &[IoSlice::new(&part.bytes)]))
}

/// Slices of zeros, `len` bytes together.
pub(crate) fn zero_slices(len: u64) -> Vec<IoSlice<'static>> {
    let mut slices = Vec::new();
    let mut left = len;
    while left > 0 {
        let most = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        slices.push(IoSlice::new(&ZEROS[..most]));
        left -= most as u64;
    }
    slices
}
