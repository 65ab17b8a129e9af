//! A disk in memory that remembers everything that was done to it.
//!
//! From the record it makes the disk that a crash at any point would have left: a killed process
//! leaves all that was done; a power cut leaves what was synced and, page by page, any state that
//! an unsynced page went through, or a mix of two of them by sectors. It also fails on demand.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::disk::{Disk, DiskFile, OpenMode, Space};
use crate::worker::{self, Work, Worker};

const PAGE: usize = 4096;
const SECTOR: usize = 512;

type Page = Arc<[u8; PAGE]>;

/// A file's bytes; pages that are not there are zero.
#[derive(Debug, Clone, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    fn write(&mut self, mut pos: u64, mut data: &[u8]) {
        self.len = self.len.max(pos + data.len() as u64);
        while !data.is_empty() {
            let within = index(pos % PAGE as u64);
            let n = data.len().min(PAGE - within);
            let page = self
                .pages
                .entry(pos / PAGE as u64)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + n].copy_from_slice(&data[..n]);
            (pos, data) = (pos + n as u64, &data[n..]);
        }
    }

    fn read(&self, pos: u64, buf: &mut [u8]) -> usize {
        let len = index(self.len.saturating_sub(pos).min(buf.len() as u64));
        let mut done = 0;
        while done < len {
            let at = pos + done as u64;
            let within = index(at % PAGE as u64);
            let n = (len - done).min(PAGE - within);
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => buf[done..done + n].copy_from_slice(&page[within..within + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        len
    }

    fn page(&self, n: u64) -> Page {
        self.pages
            .get(&n)
            .cloned()
            .unwrap_or_else(|| Arc::new([0; PAGE]))
    }

    fn resize(&mut self, len: u64) {
        self.len = len;
        self.pages.retain(|n, _| n * (PAGE as u64) < len);
        if let Some(page) = self.pages.get_mut(&(len / PAGE as u64)) {
            Arc::make_mut(page)[index(len % PAGE as u64)..].fill(0);
        }
    }

    /// Does what an operation does to this file.
    fn apply(&mut self, op: &Op, this: usize) {
        match op {
            Op::Resize { file, len } if *file == this => self.resize(*len),
            Op::Write { file, pos, data } if *file == this => self.write(*pos, data),
            _ => {}
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("simulated files are small")
}

/// Something done to the disk.
#[derive(Debug, Clone)]
enum Op {
    Link {
        path: PathBuf,
        file: usize,
    },
    Unlink {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Resize {
        file: usize,
        len: u64,
    },
    Write {
        file: usize,
        pos: u64,
        data: Vec<u8>,
    },
    Sync {
        file: usize,
    },
    SyncDir {
        dir: PathBuf,
    },
}

/// What a simulation lends to the disk of one of its nodes.
pub trait Machine: Send + Sync + std::fmt::Debug {
    /// See [`Disk::now_ms`].
    fn now_ms(&self) -> i64;
    /// See [`Disk::spawn`].
    fn spawn(&self, name: &str, work: Work) -> Arc<dyn Worker>;
}

/// What to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A write or an allocation: no space.
    Full,
    /// A write: I/O error, after half of its bytes.
    Write,
    /// A sync: I/O error.
    Sync,
}

#[derive(Debug, Default)]
struct Inner {
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    files: Vec<Content>,
    /// What there was, all of it durable, before `done`.
    names_before: BTreeMap<PathBuf, usize>,
    files_before: Vec<Content>,
    done: Vec<Op>,
    locked: BTreeSet<PathBuf>,
    boot: u64,
    now_ms: i64,
    /// Without one it counts the time in calls and has threads.
    machine: Option<Arc<dyn Machine>>,
    /// What every directory's file system is said to have; plenty by default.
    space: Option<Space>,
    /// The fault, part of the path it strikes, and how many chances it lets pass.
    fault: Option<(Fault, String, usize)>,
}

impl Inner {
    fn apply(&mut self, op: Op) {
        match &op {
            Op::Link { path, file } => {
                self.names.insert(path.clone(), *file);
            }
            Op::Unlink { path } => {
                self.names.remove(path);
            }
            Op::Rename { from, to } => {
                let file = self.names.remove(from).expect("is there");
                self.names.insert(to.clone(), file);
            }
            Op::Resize { file, .. } | Op::Write { file, .. } => self.files[*file].apply(&op, *file),
            Op::Sync { .. } | Op::SyncDir { .. } => {}
        }
        self.done.push(op);
    }

    /// The disk before anything of the record was done, with room for all its files.
    fn at_start(&self) -> Self {
        let mut files = self.files_before.clone();
        files.resize(self.files.len(), Content::default());
        Self {
            dirs: self.dirs.clone(),
            names: self.names_before.clone(),
            files,
            boot: self.boot,
            now_ms: self.now_ms,
            ..Self::default()
        }
    }

    /// Whether the fault strikes here; one that has struck is gone.
    fn strikes(&mut self, faults: &[Fault], path: &Path) -> Option<Fault> {
        let (fault, part, left) = self.fault.as_mut()?;
        if !faults.contains(fault) || !path.to_string_lossy().contains(part.as_str()) {
            return None;
        }
        if *left > 0 {
            *left -= 1;
            return None;
        }
        self.fault.take().map(|(fault, ..)| fault)
    }
}

/// The simulated disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

impl SimDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while it is held")
    }

    /// Makes it the disk of a simulated machine.
    pub fn attach(&self, machine: Arc<dyn Machine>) {
        self.inner().machine = Some(machine);
    }

    /// How much was done so far.
    pub fn done(&self) -> usize {
        self.inner().done.len()
    }

    /// Lets the `skip + 1`st operation of this sort on a path with this part fail.
    pub fn fail(&self, fault: Fault, part: &str, skip: usize) {
        self.inner().fault = Some((fault, part.to_owned(), skip));
    }

    /// Changes a byte of a file, as a disk that rots.
    pub fn flip(&self, path: &Path, pos: u64) {
        let mut inner = self.inner();
        let file = inner.names[path];
        let mut byte = [0];
        inner.files[file].read(pos, &mut byte);
        inner.apply(Op::Write {
            file,
            pos,
            data: vec![byte[0] ^ 0x10],
        });
        inner.apply(Op::Sync { file });
    }

    /// Says how full the disk is.
    pub fn set_space(&self, space: Space) {
        self.inner().space = Some(space);
    }

    /// The disk after a process was killed when this much was done. What was not synced then is
    /// not synced yet, and the record goes on.
    pub fn killed_at(&self, done: usize) -> Self {
        let inner = self.inner();
        let mut left = inner.at_start();
        left.names_before.clone_from(&inner.names_before);
        left.files_before.clone_from(&inner.files_before);
        for op in &inner.done[..done] {
            left.apply(op.clone());
        }
        Self(Arc::new(Mutex::new(left)))
    }

    /// The disk after the power was cut when this much was done. `dice(n)` is a number below `n`.
    pub fn cut_at(&self, done: usize, dice: &mut dyn FnMut(usize) -> usize) -> Self {
        let inner = self.inner();
        let mut left = inner.at_start();
        left.boot += 1;
        let done = &inner.done[..done];
        left.names = names_left(&inner.names_before, done, dice);
        for (file, content) in left.files.iter_mut().enumerate() {
            *content = content_left(std::mem::take(content), done, file, dice);
        }
        left.names_before.clone_from(&left.names);
        left.files_before.clone_from(&left.files);
        Self(Arc::new(Mutex::new(left)))
    }
}

/// Directory entries: synced ones, and of each directory the unsynced changes up to some point.
fn names_left(
    before: &BTreeMap<PathBuf, usize>,
    done: &[Op],
    dice: &mut dyn FnMut(usize) -> usize,
) -> BTreeMap<PathBuf, usize> {
    let dir_of = |path: &Path| path.parent().expect("a file has one").to_owned();
    let mut changes: BTreeMap<PathBuf, (usize, usize)> = BTreeMap::new();
    for op in done {
        match op {
            Op::Link { path, .. } | Op::Unlink { path } | Op::Rename { to: path, .. } => {
                changes.entry(dir_of(path)).or_default().1 += 1;
            }
            Op::SyncDir { dir } => {
                let (synced, all) = changes.entry(dir.clone()).or_default();
                *synced = *all;
            }
            _ => {}
        }
    }
    let mut keep: BTreeMap<PathBuf, usize> = changes
        .into_iter()
        .map(|(dir, (synced, all))| (dir, synced + dice(all - synced + 1)))
        .collect();
    let mut left = Inner {
        names: before.clone(),
        ..Inner::default()
    };
    // In the order in which they were done, because a file may move from one directory to another.
    for op in done {
        let (Op::Link { path, .. } | Op::Unlink { path } | Op::Rename { to: path, .. }) = op else {
            continue;
        };
        let keep = keep.get_mut(&dir_of(path)).expect("it has this change");
        let lost = match op {
            Op::Rename { from, .. } => !left.names.contains_key(from),
            _ => false,
        };
        if *keep > 0 {
            *keep -= 1;
            if !lost {
                left.apply(op.clone());
            }
        }
    }
    left.names
}

/// A file's content: each page in some state that it had since the last sync.
fn content_left(
    before: Content,
    done: &[Op],
    file: usize,
    dice: &mut dyn FnMut(usize) -> usize,
) -> Content {
    let last_sync = done
        .iter()
        .rposition(|op| matches!(op, Op::Sync { file: f } if *f == file));
    let (synced, unsynced) = done.split_at(last_sync.map_or(0, |last| last + 1));
    let mut now = before;
    for op in synced {
        now.apply(op, file);
    }
    let mut lens = vec![now.len];
    let mut states: BTreeMap<u64, Vec<Page>> = BTreeMap::new();
    for op in unsynced {
        let touched = match op {
            Op::Write { file: f, pos, data } if *f == file => {
                pos / PAGE as u64..(pos + data.len() as u64).div_ceil(PAGE as u64)
            }
            Op::Resize { file: f, len } if *f == file && *len < now.len => {
                len / PAGE as u64..now.len.div_ceil(PAGE as u64)
            }
            _ => 0..0,
        };
        for n in touched.clone() {
            states.entry(n).or_insert_with(|| vec![now.page(n)]);
        }
        now.apply(op, file);
        for n in touched {
            states.get_mut(&n).expect("was put").push(now.page(n));
        }
        lens.push(now.len);
    }
    for (n, states) in states {
        let mut page = Arc::clone(&states[dice(states.len())]);
        if dice(4) == 0 {
            let other = &states[dice(states.len())];
            for sector in 0..PAGE / SECTOR {
                if dice(2) == 0 {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    Arc::make_mut(&mut page)[range.clone()].copy_from_slice(&other[range]);
                }
            }
        }
        now.pages.insert(n, page);
    }
    now.resize(lens[dice(lens.len())]);
    now
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner()
            .dirs
            .extend(dir.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let all = inner.names.keys().chain(&inner.dirs);
        let mut names: Vec<String> = all
            .filter(|path| path.parent() == Some(dir))
            .map(|path| {
                path.file_name()
                    .expect("is in a directory")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner();
        let file = match inner.names.get(path) {
            Some(file) => *file,
            None if mode != OpenMode::Create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                let dir = path.parent().expect("a file has one");
                if !inner.dirs.contains(dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let file = inner.files.len();
                inner.files.push(Content::default());
                inner.apply(Op::Link {
                    path: path.to_owned(),
                    file,
                });
                file
            }
        };
        let (disk, path) = (self.clone(), path.to_owned());
        Ok(Arc::new(SimFile {
            disk,
            path,
            file,
            writable: mode != OpenMode::Read,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.apply(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.apply(Op::Unlink {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.strikes(&[Fault::Sync], dir).is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        inner.apply(Op::SyncDir {
            dir: dir.to_owned(),
        });
        Ok(())
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.strikes(&[Fault::Sync], dir).is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        for file in 0..inner.files.len() {
            inner.apply(Op::Sync { file });
        }
        for dir in inner.dirs.clone() {
            inner.apply(Op::SyncDir { dir });
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        if !self.inner().locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }

    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(self.inner().space.unwrap_or(Space {
            used: 0,
            available: u64::MAX,
        }))
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(format!("boot {}", self.inner().boot))
    }

    fn now_ms(&self) -> i64 {
        let mut inner = self.inner();
        if let Some(machine) = &inner.machine {
            return machine.now_ms();
        }
        inner.now_ms += 1;
        inner.now_ms
    }

    fn spawn(&self, name: &str, work: Work) -> io::Result<Arc<dyn Worker>> {
        let machine = self.inner().machine.clone();
        match machine {
            Some(machine) => Ok(machine.spawn(name, work)),
            None => worker::thread(name, work),
        }
    }
}

struct Lock {
    disk: SimDisk,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.disk.inner().locked.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    file: usize,
    writable: bool,
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.inner().files[self.file].len)
    }

    fn is_shared(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.inner().apply(Op::Resize {
            file: self.file,
            len,
        });
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        if inner.strikes(&[Fault::Full], &self.path).is_some() {
            return Err(io::Error::from_raw_os_error(28));
        }
        let len = inner.files[self.file].len.max(bytes);
        inner.apply(Op::Resize {
            file: self.file,
            len,
        });
        Ok(())
    }

    fn write_at(&self, pos: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::from_raw_os_error(9));
        }
        let mut data: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        let mut inner = self.disk.inner();
        let fault = inner.strikes(&[Fault::Full, Fault::Write], &self.path);
        if fault.is_some() {
            data.truncate(data.len() / 2);
        }
        inner.apply(Op::Write {
            file: self.file,
            pos,
            data,
        });
        match fault {
            None => Ok(()),
            Some(Fault::Full) => Err(io::Error::from_raw_os_error(28)),
            Some(_) => Err(io::Error::from_raw_os_error(5)),
        }
    }

    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.disk.inner().files[self.file].read(pos, buf))
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        if inner.strikes(&[Fault::Sync], &self.path).is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        inner.apply(Op::Sync { file: self.file });
        Ok(())
    }

    fn view(&self, pos: u64, len: usize) -> io::Result<Bytes> {
        let mut buf = vec![0; len];
        if self.read_at(pos, &mut buf)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(buf.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &SimDisk, path: &Path) -> Option<Vec<u8>> {
        let file = disk.open(path, OpenMode::Read).ok()?;
        let mut buf = vec![0; index(file.size().unwrap())];
        file.read_at(0, &mut buf).unwrap();
        Some(buf)
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_any_of_the_rest() {
        let disk = SimDisk::default();
        let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
        disk.create_dir_all(dir).unwrap();
        let file = disk.open(path, OpenMode::Create).unwrap();
        file.allocate(2 * PAGE as u64).unwrap();
        file.write_at(0, &[IoSlice::new(&[1; PAGE])]).unwrap();
        file.sync().unwrap();
        disk.sync_dir(dir).unwrap();
        let synced = disk.done();
        file.write_at(PAGE as u64 - 1, &[IoSlice::new(&[2, 2])])
            .unwrap();
        let all = disk.done();

        let last = |disk: &SimDisk| read(disk, path).map(|bytes| bytes[PAGE - 1..=PAGE].to_vec());
        assert_eq!(last(&disk.killed_at(all)).unwrap(), [2, 2]);
        assert_eq!(last(&disk.cut_at(synced, &mut |_| 0)).unwrap(), [1, 0]);
        assert!(
            read(&disk.cut_at(synced - 1, &mut |_| 0), path).is_none(),
            "no directory entry"
        );
        let mut seed = 0_usize;
        let mut dice = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        let seen: BTreeSet<Vec<u8>> = (0..100)
            .map(|_| last(&disk.cut_at(all, &mut dice)).unwrap())
            .collect();
        assert_eq!(seen.len(), 4, "each of the two pages is old or new");
    }

    #[test]
    fn a_fault_strikes_once() {
        let disk = SimDisk::default();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let file = disk.open(Path::new("/d/f"), OpenMode::Create).unwrap();
        disk.fail(Fault::Sync, "/d/f", 1);
        assert!(file.sync().is_ok());
        assert!(file.sync().is_err());
        assert!(file.sync().is_ok());
        disk.fail(Fault::Full, "/other", 0);
        file.write_at(0, &[IoSlice::new(b"x")]).unwrap();
        disk.fail(Fault::Full, "/d/f", 0);
        let error = file.write_at(0, &[IoSlice::new(b"ab")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&disk, Path::new("/d/f")).unwrap(), b"a");
    }
}
