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

mod crash;

use crash::{Content, content_left, names_left};

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
        file: usize,
    },
    Resize {
        file: usize,
        len: u64,
    },
    Write {
        file: usize,
        pos: u64,
        data: Bytes,
    },
    Sync {
        file: usize,
    },
    /// The kernel takes the pages for clean from then on.
    FailedSync {
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
    /// A file whose sync has failed although something was written to it.
    failed: Option<PathBuf>,
    /// When this much is done nothing more is.
    end: Option<usize>,
    /// It was tried.
    ended: bool,
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
            Op::Rename { from, to, file } => {
                self.names.remove(from);
                self.names.insert(to.clone(), *file);
            }
            Op::Resize { file, .. } | Op::Write { file, .. } => self.files[*file].apply(&op, *file),
            Op::Sync { .. } | Op::FailedSync { .. } | Op::SyncDir { .. } => {}
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

    /// Lets nothing more be done once the end is reached.
    fn check_end(&mut self) -> io::Result<()> {
        if self.end.is_some_and(|end| self.done.len() >= end) {
            self.ended = true;
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
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

    /// Lets `operations` more be done and then fails all others, until the disk is taken as a crash
    /// at that point leaves it.
    pub fn end_after(&self, operations: usize) {
        let mut inner = self.inner();
        inner.end = Some(inner.done.len() + operations);
    }

    /// Takes back faults and an end that have not come yet.
    pub fn calm(&self) {
        let mut inner = self.inner();
        inner.fault = None;
        if !inner.ended {
            inner.end = None;
        }
    }

    /// Takes note of a file, once, that was written to and whose sync has failed: what was written is lost with
    /// the power, whatever later syncs say.
    pub fn take_failed_sync(&self) -> Option<PathBuf> {
        self.inner().failed.take()
    }

    /// Whether an operation has failed for that.
    pub fn has_ended(&self) -> bool {
        self.inner().ended
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
            data: vec![byte[0] ^ 0x10].into(),
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
        if done == inner.done.len() {
            left.names.clone_from(&inner.names);
            left.files.clone_from(&inner.files);
            left.done.clone_from(&inner.done);
        } else {
            for op in &inner.done[..done] {
                left.apply(op.clone());
            }
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
        let mut by_file: Vec<Vec<&Op>> = vec![Vec::new(); left.files.len()];
        for op in done {
            if let Op::Resize { file, .. }
            | Op::Write { file, .. }
            | Op::Sync { file }
            | Op::FailedSync { file } = op
            {
                by_file[*file].push(op);
            }
        }
        for (file, (content, ops)) in left.files.iter_mut().zip(by_file).enumerate() {
            *content = content_left(std::mem::take(content), &ops, file, dice);
        }
        left.names_before.clone_from(&left.names);
        left.files_before.clone_from(&left.files);
        Self(Arc::new(Mutex::new(left)))
    }
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
                inner.check_end()?;
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
        let Some(file) = inner.names.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        inner.check_end()?;
        inner.apply(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            file,
        });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if !inner.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.check_end()?;
        inner.apply(Op::Unlink {
            path: path.to_owned(),
        });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.check_end()?;
        if inner.strikes(&[Fault::Sync], dir).is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        inner.apply(Op::SyncDir {
            dir: dir.to_owned(),
        });
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.check_end()?;
        let mut within = inner.names.keys().chain(&inner.dirs);
        if within.any(|path| path.parent() == Some(dir)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        inner.dirs.remove(dir);
        Ok(())
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.check_end()?;
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
        let mut inner = self.disk.inner();
        inner.check_end()?;
        inner.apply(Op::Resize {
            file: self.file,
            len,
        });
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.check_end()?;
        let len = inner.files[self.file].len;
        let new = bytes.saturating_sub(len);
        let is_full = inner.space.is_some_and(|space| space.available < new);
        if is_full || inner.strikes(&[Fault::Full], &self.path).is_some() {
            return Err(io::Error::from_raw_os_error(28));
        }
        let len = len.max(bytes);
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
        inner.check_end()?;
        let fault = inner.strikes(&[Fault::Full, Fault::Write], &self.path);
        if fault.is_some() {
            data.truncate(data.len() / 2);
        }
        inner.apply(Op::Write {
            file: self.file,
            pos,
            data: data.into(),
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
        inner.check_end()?;
        if inner.strikes(&[Fault::Sync], &self.path).is_some() {
            let since = inner.done.iter().rev();
            let is_lost = since
                .take_while(|op| !matches!(op, Op::Sync { file } if *file == self.file))
                .any(|op| matches!(op, Op::Write { file, .. } if *file == self.file));
            if is_lost {
                inner.failed = Some(self.path.clone());
            }
            inner.apply(Op::FailedSync { file: self.file });
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
mod tests;
