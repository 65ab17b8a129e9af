//! The one seam between the store and the machine.
//!
//! Everything that the store asks of the operating system goes through [`Disk`], so that a test
//! can put a simulated one in its place, with torn and lost writes, full disks and failing syncs,
//! and a simulation can have the work of its threads done when it wants.

use std::any::Any;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use memmap2::MmapOptions;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use crate::worker::{self, Work, Worker};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// To read and write; an absent file is created, a present one keeps its content.
    Create,
}

/// A file that is locked (`flock`) until this is dropped.
///
/// Closing it would not do: a child process that another thread has just forked has the file too, until it executes
/// its program.
#[derive(Debug)]
pub struct Locked(File);

impl Locked {
    /// Of a file that is locked.
    #[must_use]
    pub const fn new(file: File) -> Self {
        Self(file)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Then it goes with the last of its descriptors.
        self.0.unlock().ok();
    }
}

/// What a file system has used and has left for its ordinary users, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub used: u64,
    pub available: u64,
}

impl Space {
    /// Percent that are used, rounded up (`UtilAll.getDiskPartitionSpaceUsedPercent`, 4.9.7); 0 for a
    /// file system without blocks of its own.
    #[must_use]
    pub fn used_percent(self) -> u8 {
        let (used, all) = (
            u128::from(self.used),
            u128::from(self.used) + u128::from(self.available),
        );
        let percent = if all == 0 {
            0
        } else {
            (used * 100).div_ceil(all)
        };
        u8::try_from(percent).expect("a part is at most all")
    }
}

/// Files, their order on stable storage, what identifies this run of the machine, and its threads.
///
/// A change of a directory (create, rename, unlink) is durable after `sync_dir` of it, a change of
/// a file after its own `sync`. Nothing is durable before that, and the order in which it becomes
/// so is not given.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a directory with its parents; one that is there is fine.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory, sorted; empty if the directory is absent.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Atomic; replaces `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Open files and views of the file stay readable.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes a directory that is empty; an absent one is fine.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes everything durable on the file system that `dir` is on. For many files at once, where a
    /// sync of each would take longer.
    fn sync_all(&self, dir: &Path) -> io::Result<()>;
    /// Locks a file, created if absent, against every other opener on this machine, the Java
    /// broker included, until the guard is dropped. `WouldBlock` if somebody else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// Space of the file system that `dir` is on.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Changes whenever the machine may have lost what was not synced.
    fn boot_id(&self) -> io::Result<String>;
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> i64;
    /// Has work done in the background until it says that it has ended.
    fn spawn(&self, name: &str, work: Work) -> io::Result<Arc<dyn Worker>> {
        worker::thread(name, work)
    }
}

/// An open file. All methods may be called from any thread.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Whether the file has another name too, as one of an adopted history may: then its bytes are
    /// not this store's to change.
    fn is_shared(&self) -> io::Result<bool>;
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes the file at least this long and reserves its blocks, so that writing into it cannot
    /// run out of space. New bytes are zero.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Writes all slices one after the other from `pos` on. After an error any part may have been
    /// written.
    fn write_at(&self, pos: u64, slices: &[IoSlice<'_>]) -> io::Result<()>;
    /// Reads into `buf` and returns how much there was; less than asked only at the end.
    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Makes the file's content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// A range of the file to keep, not copied where the disk can map files. The file must have
    /// its final length by now and must never be cut, only unlinked. The caller does not rely on
    /// bytes that may still be written.
    fn view(&self, pos: u64, len: usize) -> io::Result<Bytes>;
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(mode != OpenMode::Read)
            .create(mode == OpenMode::Create)
            .truncate(false)
            .open(path)?;
        Ok(Arc::new(RealFile {
            file,
            map: OnceLock::new(),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        match std::fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_all(&self, dir: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(dir)?)?)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        // flock keeps out other openers, those in this process too; the record lock is the one
        // that Java's FileChannel.tryLock takes and honours.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Box::new(Locked::new(file))),
            Err(Errno::ACCESS | Errno::AGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => Err(e.into()),
        }
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let blocks = rustix::fs::statvfs(dir)?;
        let bytes = |count: u64| count.saturating_mul(blocks.f_frsize);
        Ok(Space {
            used: bytes(blocks.f_blocks.saturating_sub(blocks.f_bfree)),
            available: bytes(blocks.f_bavail),
        })
    }

    fn boot_id(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned())
    }

    fn now_ms(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// The whole file, mapped by the first view.
    map: OnceLock<Bytes>,
}

impl RealFile {
    fn map(&self) -> io::Result<&Bytes> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        // SAFETY: the store never cuts a file that it views, it unlinks it; bytes that were handed
        // out below the confirm offset are never written again, and those above it are plain
        // integers whose readers check what they read.
        let map = unsafe { MmapOptions::new().map(&self.file)? };
        Ok(self.map.get_or_init(|| Bytes::from_owner(map)))
    }
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn is_shared(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() > 1)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve; the length is then all there is to get.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if self.size()? < bytes => {
                self.file.set_len(bytes)
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn write_at(&self, mut pos: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        /// Most slices that one call takes on Linux (`IOV_MAX`).
        const MOST: usize = 1024;
        for part in slices.chunks(MOST) {
            let mut done = match rustix::io::pwritev(&self.file, part, pos) {
                Ok(n) => n,
                Err(Errno::INTR) => 0,
                Err(e) => return Err(e.into()),
            };
            pos += done as u64;
            // A short write: finish slice by slice, which also brings the reason to light.
            for slice in part {
                let skip = done.min(slice.len());
                done -= skip;
                self.file.write_all_at(&slice[skip..], pos)?;
                pos += (slice.len() - skip) as u64;
            }
        }
        Ok(())
    }

    fn read_at(&self, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], pos + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn view(&self, pos: u64, len: usize) -> io::Result<Bytes> {
        let map = self.map()?;
        let start = usize::try_from(pos).map_err(io::Error::other)?;
        match start.checked_add(len) {
            Some(end) if end <= map.len() => Ok(map.slice(start..end)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slices_are_written_in_one_piece_and_viewed() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk
            .open(&dir.path().join("f"), OpenMode::Create)
            .unwrap();
        file.allocate(8192).unwrap();
        let parts: Vec<[u8; 4]> = (0..2000_u32).map(u32::to_le_bytes).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        file.write_at(100, &slices).unwrap();
        assert_eq!(file.view(100, 8000).unwrap(), parts.concat());
        assert_eq!(file.size().unwrap(), 8192);
        assert!(file.view(8000, 193).is_err());
        let mut buf = [9; 8];
        assert_eq!(file.read_at(8190, &mut buf).unwrap(), 2);
    }

    #[test]
    fn a_lock_ends_while_a_forked_child_still_has_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        file.try_lock().unwrap();
        let of_child = file.try_clone().unwrap();
        let locked = Locked::new(file);
        let refused = RealDisk.lock(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(locked);
        RealDisk.lock(&path).unwrap();
        drop(of_child);
    }

    #[test]
    fn the_used_share_of_a_disk_is_rounded_up() {
        let percent = |used, available| Space { used, available }.used_percent();
        assert_eq!([percent(0, 0), percent(0, 9), percent(9, 0)], [0, 0, 100]);
        assert_eq!([percent(1, 1000), percent(90, 10)], [1, 90]);
        assert_eq!([percent(9001, 999), percent(u64::MAX, 1)], [91, 100]);
        let root = RealDisk.space(Path::new("/")).unwrap();
        assert!(root.used > 0 && root.used_percent() <= 100, "{root:?}");
        assert!(RealDisk.space(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn a_view_sees_later_writes_and_outlives_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealDisk.open(&path, OpenMode::Create).unwrap();
        file.allocate(4096).unwrap();
        let view = file.view(0, 5).unwrap();
        file.write_at(0, &[IoSlice::new(b"hello")]).unwrap();
        RealDisk.unlink(&path).unwrap();
        drop(file);
        assert_eq!(&view[..], b"hello");
    }

    #[test]
    fn the_second_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let guard = RealDisk.lock(&path).unwrap();
        assert_eq!(
            RealDisk.lock(&path).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(guard);
        RealDisk.lock(&path).unwrap();
    }
}
