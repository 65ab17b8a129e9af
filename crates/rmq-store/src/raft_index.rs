//! Where each entry lies: index to position in one read.
//!
//! Files of 20-byte cells in the consume queue's format: `i64` position of the header record, `i32`
//! length of the extent, `i64` term. The cell of entry `i` is at byte `20 i`, counted over all
//! files. Written at append and derived from the log: whatever is not there is written again.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::segment::{file_name, parse_name, zero_slices};
use crate::types::{LogIndex, PhyOffset, Term};

const CELL_BYTES: usize = 20;
pub(crate) const CELL_LEN: u64 = CELL_BYTES as u64;
/// Bytes of a file: the consume queue's default, and not configured, so that a change of that key
/// does not move the cells.
const FILE_CELLS: u64 = 300_000;
pub(crate) const FILE_LEN: u64 = FILE_CELLS * CELL_LEN;
/// Entries that the last file must have room for when another one cannot be made.
const RESERVE_CELLS: u64 = 4096;
/// Files kept open. Appends use one, a lagging reader another.
const OPEN_MAX: usize = 8;

/// Bytes that are looked at and zeroed at once when cells are cut.
const CLEAR_STEP_BYTES: usize = 4096;

/// Place of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    /// The header record, which a blank may precede in the extent.
    pub(crate) header: PhyOffset,
    /// Bytes of the extent.
    pub(crate) len: u32,
    pub(crate) term: Term,
}

#[derive(Debug, Default)]
struct Files {
    /// The most recently used one first.
    open: Vec<(u64, Arc<dyn DiskFile>)>,
    /// Files with cells that are not durable.
    dirty: BTreeSet<u64>,
    /// Behind the last file, in bytes.
    made: u64,
}

/// The cells of all entries.
#[derive(Debug)]
pub(crate) struct RaftIndex {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    files: Mutex<Files>,
}

impl RaftIndex {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf) -> Self {
        Self {
            disk,
            dir,
            files: Mutex::default(),
        }
    }

    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file that starts at byte `base`; `None` if it is not there and not to be created.
    fn file(&self, base: u64, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let mut files = self.files();
        if create {
            files.dirty.insert(base);
        }
        if let Some(at) = files.open.iter().position(|(open, _)| *open == base) {
            files.open[..=at].rotate_right(1);
            return Ok(Some(Arc::clone(&files.open[0].1)));
        }
        let path = self.dir.join(file_name(base));
        let mode = if create {
            OpenMode::Create
        } else {
            OpenMode::Write
        };
        let file = match self.disk.open(&path, mode) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if create {
            if file.size()? < FILE_LEN {
                file.allocate(FILE_LEN)?;
                self.disk.sync_dir(&self.dir)?;
            }
            files.made = files.made.max(base + FILE_LEN);
        }
        files.open.insert(0, (base, Arc::clone(&file)));
        files.open.truncate(OPEN_MAX);
        Ok(Some(file))
    }

    /// Makes the file that starts at byte `base`.
    pub(crate) fn make(&self, base: u64) -> io::Result<()> {
        self.file(base, true).map(drop)
    }

    /// The file to make ahead, once most of the last one is used up to `next`: its first byte.
    pub(crate) fn wanted(&self, next: LogIndex) -> Option<u64> {
        let made = self.files().made;
        (next.0 * CELL_LEN + FILE_LEN / 4 > made)
            .then_some(made.max(next.0 / FILE_CELLS * FILE_LEN))
    }

    /// Whether some thousand entries more find a file.
    pub(crate) fn has_room(&self, next: LogIndex) -> bool {
        (next.0 + RESERVE_CELLS) * CELL_LEN <= self.files().made
    }

    /// The cell of an entry; `None` if none was ever written.
    pub(crate) fn get(&self, index: LogIndex) -> io::Result<Option<Cell>> {
        let Some(byte) = index.0.checked_mul(CELL_LEN) else {
            return Ok(None);
        };
        let Some(file) = self.file(byte - byte % FILE_LEN, false)? else {
            return Ok(None);
        };
        let mut cell = [0; CELL_BYTES];
        if file.read_at(byte % FILE_LEN, &mut cell)? < cell.len() {
            return Ok(None);
        }
        let mut cell = &cell[..];
        let (header, len, term) = (cell.get_i64(), cell.get_i32(), cell.get_i64());
        Ok(
            match (
                PhyOffset::from_i64(header),
                u32::try_from(len),
                Term::from_i64(term),
            ) {
                (Some(header), Ok(len), Some(term)) if len > 0 => Some(Cell { header, len, term }),
                _ => None,
            },
        )
    }

    /// The file that holds the byte `at`, counted over all files; `None` if it is not there.
    pub(crate) fn file_at(&self, at: u64) -> io::Result<Option<Arc<dyn DiskFile>>> {
        self.file(at - at % FILE_LEN, false)
    }

    /// Whether all files from one entry's to another's are there and whole.
    pub(crate) fn covers(&self, first: LogIndex, last: LogIndex) -> io::Result<bool> {
        let file_of = |index: LogIndex| index.0.checked_mul(CELL_LEN).map(|byte| byte / FILE_LEN);
        let (Some(first), Some(last)) = (file_of(first), file_of(last)) else {
            return Ok(false);
        };
        let bases: Vec<u64> = self
            .disk
            .list(&self.dir)?
            .iter()
            .filter_map(|name| parse_name(name))
            .collect();
        for n in first..=last {
            if bases.binary_search(&(n * FILE_LEN)).is_err() {
                return Ok(false);
            }
            let path = self.dir.join(file_name(n * FILE_LEN));
            if self.disk.open(&path, OpenMode::Read)?.size()? < FILE_LEN {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the cells of consecutive entries. Not durable before `sync`.
    pub(crate) fn put(&self, first: LogIndex, cells: &[Cell]) -> io::Result<()> {
        let mut byte = first.0 * CELL_LEN;
        let mut rest = cells;
        while !rest.is_empty() {
            let room = usize::try_from((FILE_LEN - byte % FILE_LEN) / CELL_LEN)
                .expect("a file has few cells");
            let (now, later) = rest.split_at(room.min(rest.len()));
            let mut out = Vec::with_capacity(now.len() * CELL_BYTES);
            for cell in now {
                out.put_i64(cell.header.as_i64());
                out.put_u32(cell.len);
                out.put_i64(cell.term.as_i64());
            }
            let file = self
                .file(byte - byte % FILE_LEN, true)?
                .expect("is created if absent");
            file.write_at(byte % FILE_LEN, &[IoSlice::new(&out)])?;
            byte += out.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Forgets all cells from `from` on that follow each other.
    pub(crate) fn cut(&self, from: LogIndex) -> io::Result<()> {
        let byte = from.0 * CELL_LEN;
        let keep = byte - byte % FILE_LEN;
        let mut dropped = false;
        for name in self.disk.list(&self.dir)?.iter().rev() {
            let Some(base) = parse_name(name) else {
                continue;
            };
            if base > keep || base == byte {
                let mut files = self.files();
                files.open.retain(|(open, _)| *open != base);
                files.dirty.remove(&base);
                files.made = files.made.min(base);
                self.disk.unlink(&self.dir.join(name))?;
                dropped = true;
            } else if base == keep {
                let file = self.file(base, true)?.expect("is created if absent");
                clear(&*file, byte % FILE_LEN)?;
            }
        }
        if dropped {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Removes the files that have only cells of entries before `first`.
    pub(crate) fn drop_before(&self, first: LogIndex) -> io::Result<()> {
        let byte = first.0 * CELL_LEN;
        let keep = byte - byte % FILE_LEN;
        let mut dropped = false;
        for name in self.disk.list(&self.dir)? {
            if let Some(base) = parse_name(&name).filter(|base| *base < keep) {
                let mut files = self.files();
                files.open.retain(|(open, _)| *open != base);
                files.dirty.remove(&base);
                self.disk.unlink(&self.dir.join(&name))?;
                dropped = true;
            }
        }
        if dropped {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Makes all cells durable that were written before the call.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let dirty = std::mem::take(&mut self.files().dirty);
        for base in dirty {
            if let Some(file) = self.file(base, false)? {
                file.sync()?;
            }
        }
        Ok(())
    }
}

/// Zeros a file from `pos` up to where it is zero already.
fn clear(file: &dyn DiskFile, mut pos: u64) -> io::Result<()> {
    let mut buf = vec![0; CLEAR_STEP_BYTES];
    loop {
        let read = file.read_at(pos, &mut buf)?;
        if buf[..read].iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        file.write_at(pos, &zero_slices(read as u64))?;
        pos += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn cell(n: u64) -> Cell {
        Cell {
            header: PhyOffset(n * 1000),
            len: 7,
            term: Term(n / 10),
        }
    }

    #[test]
    fn cells_cross_files_and_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let index = RaftIndex::new(Arc::new(RealDisk), dir.path().to_owned());
        assert_eq!(index.get(LogIndex(0)).unwrap(), None);
        let cells: Vec<Cell> = (299_990..300_010).map(cell).collect();
        index.put(LogIndex(299_990), &cells).unwrap();
        index.sync().unwrap();
        let again = RaftIndex::new(Arc::new(RealDisk), dir.path().to_owned());
        for n in 299_990..300_010 {
            assert_eq!(again.get(LogIndex(n)).unwrap(), Some(cell(n)));
        }
        assert_eq!(again.get(LogIndex(299_989)).unwrap(), None);
        assert_eq!(again.get(LogIndex(300_010)).unwrap(), None);
        assert_eq!(again.get(LogIndex(u64::MAX)).unwrap(), None);

        again.cut(LogIndex(300_005)).unwrap();
        assert_eq!(again.get(LogIndex(300_005)).unwrap(), None);
        assert_eq!(again.get(LogIndex(300_004)).unwrap(), Some(cell(300_004)));
        again.cut(LogIndex(300_000)).unwrap();
        assert_eq!(again.get(LogIndex(300_000)).unwrap(), None);
        assert_eq!(RealDisk.list(dir.path()).unwrap(), ["00000000000000000000"]);
        again.cut(LogIndex(299_995)).unwrap();
        assert_eq!(again.get(LogIndex(299_995)).unwrap(), None);
        assert_eq!(again.get(LogIndex(299_994)).unwrap(), Some(cell(299_994)));
        again.put(LogIndex(299_995), &[cell(1)]).unwrap();
        assert_eq!(again.get(LogIndex(299_995)).unwrap(), Some(cell(1)));
    }
}
