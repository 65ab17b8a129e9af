//! Files from the source into the target: by a reflink, a hard link, or a verified copy. A file that
//! is there under its name is whole, so a run that goes on passes it over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rmq_store::{Disk as _, RealDisk, mutant};
use rustix::io::Errno;
use serde::Serialize;

use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::source::list;
use crate::walk::{data_from, is_zero, read_up_to};

/// Bytes that are copied at once.
const STEP_BYTES: usize = 1 << 20;
/// Most files and directories that are synced one by one.
const SYNCS: usize = 256;

/// How sealed files are taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By reflink where the file system has it, else by hard link, else by copy.
    Auto,
    /// By reflink or hard link, or not at all.
    Link,
    /// By copy.
    Copy,
}

/// What was done, in files and bytes. Files of an earlier, interrupted run count as that run did
/// them as far as can be told.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Done {
    pub linked_files: u64,
    pub linked_bytes: u64,
    pub reflinked_files: u64,
    pub reflinked_bytes: u64,
    pub copied_files: u64,
    pub copied_bytes: u64,
    pub earlier_files: u64,
}

/// Puts files into one directory tree.
pub(crate) struct Transfer<'a> {
    pub mode: Mode,
    pub progress: &'a Progress,
    pub done: Done,
    /// Whether each copy is made durable by itself. [`Transfer::sync`] makes all others so, which for
    /// many small files is quicker.
    pub durable: bool,
    dirs: BTreeSet<PathBuf>,
    unsynced: Vec<PathBuf>,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(mode: Mode, progress: &'a Progress) -> Self {
        Self {
            mode,
            progress,
            done: Done::default(),
            durable: false,
            dirs: BTreeSet::new(),
            unsynced: Vec::new(),
        }
    }

    /// Takes over a file that is never written again.
    pub(crate) fn adopt(&mut self, from: &Path, to: &Path) -> Result<(), Problem> {
        if self.is_there(to)? {
            return Ok(());
        }
        let reading = |error| Problem::reading(from, &error);
        // A link to a symbolic link would name the file by its path, and go with it.
        let from = &fs::canonicalize(from).map_err(reading)?;
        let bytes = fs::metadata(from).map_err(reading)?.len();
        if self.mode != Mode::Copy {
            if reflink(from, to)? {
                self.done.reflinked_files += 1;
                self.done.reflinked_bytes += bytes;
                self.progress.add(bytes);
                return Ok(());
            }
            match fs::hard_link(from, to) {
                Ok(()) => {
                    self.done.linked_files += 1;
                    self.done.linked_bytes += bytes;
                    self.progress.add(bytes);
                    // A broker that was killed may have left it to the kernel to write.
                    self.unsynced.push(to.to_owned());
                    return Ok(());
                }
                Err(error) if self.mode == Mode::Link => {
                    return Err(Problem::new(Code::Write, format!("cannot link: {error}"))
                        .at_file(to)
                        .why("a link needs source and target on one file system that has links")
                        .hint("give --mode copy, or a target beside the source"));
                }
                // Another file system, or one without links.
                Err(_) => {}
            }
        }
        self.copy(from, to, bytes, bytes)
    }

    /// Copies the first `keep` bytes of a file and makes it `bytes` long, zeros in between. What is
    /// zero takes no room.
    pub(crate) fn copy(
        &mut self,
        from: &Path,
        to: &Path,
        keep: u64,
        bytes: u64,
    ) -> Result<(), Problem> {
        if self.is_there(to)? {
            return Ok(());
        }
        let reading = |error: io::Error| Problem::reading(from, &error);
        let writing = |error: io::Error| Problem::writing(to, &error);
        let source = File::open(from).map_err(reading)?;
        let new = beside(to);
        let target = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&new)
            .map_err(writing)?;
        target.set_len(bytes).map_err(writing)?;
        let [mut buf, mut again] = [(); 2].map(|()| vec![0; STEP_BYTES]);
        let mut at = 0;
        while at < keep {
            let (data, hole) = data_from(&source, at).map_err(reading)?;
            let (data, hole) = (data.min(keep), hole.min(keep));
            self.progress.add(data - at);
            at = data;
            let most = usize::try_from(hole - at)
                .unwrap_or(STEP_BYTES)
                .min(STEP_BYTES);
            let read = read_up_to(&source, at, &mut buf[..most]).map_err(reading)?;
            if read == 0 {
                break;
            }
            let (buf, again) = (&buf[..read], &mut again[..read]);
            if !is_zero(buf) {
                target.write_all_at(buf, at).map_err(writing)?;
                read_up_to(&target, at, again).map_err(writing)?;
                if buf != again {
                    let what = "the copy reads otherwise than the source";
                    return Err(Problem::new(Code::Verify, what)
                        .at_file(to)
                        .at_byte(at)
                        .why("a disk or memory that does not keep what is written")
                        .hint("check the machine of the target"));
                }
            }
            at += read as u64;
            self.progress.add(read as u64);
        }
        if self.durable {
            target.sync_all().map_err(writing)?;
        } else {
            self.unsynced.push(to.to_owned());
        }
        fs::rename(&new, to).map_err(writing)?;
        self.done.copied_files += 1;
        self.done.copied_bytes += at;
        Ok(())
    }

    fn is_there(&mut self, to: &Path) -> Result<bool, Problem> {
        if let Some(dir) = to.parent()
            && self.dirs.insert(dir.to_owned())
        {
            fs::create_dir_all(dir).map_err(|error| Problem::writing(dir, &error))?;
        }
        let there = to
            .try_exists()
            .map_err(|error| Problem::writing(to, &error))?;
        if mutant!(M14) && !there && self.goes_on() {
            self.done.copied_files += 1;
            return Ok(true);
        }
        self.done.earlier_files += u64::from(there);
        Ok(there)
    }

    /// Whether files of an earlier run were found, and none was done since.
    fn goes_on(&self) -> bool {
        let Done {
            linked_files,
            reflinked_files,
            copied_files,
            earlier_files,
            ..
        } = self.done;
        earlier_files > 0 && linked_files + reflinked_files + copied_files == 0
    }

    /// Makes all files under `root` durable, and their names. Of many it is the file system that is
    /// synced, with whatever else is on it.
    pub(crate) fn sync(&self, root: &Path) -> Result<(), Problem> {
        let mut dirs = Vec::new();
        directories(root, &mut dirs)?;
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| Problem::writing(&path, &error)
        };
        // What an earlier run has put there, it may not have come to sync.
        if self.done.earlier_files > 0 || dirs.len() + self.unsynced.len() > SYNCS {
            return RealDisk.sync_all(root).map_err(at(root));
        }
        for path in &self.unsynced {
            let synced = File::open(path).and_then(|file| file.sync_all());
            synced.map_err(at(path))?;
        }
        dirs.iter()
            .try_for_each(|dir| RealDisk.sync_dir(dir).map_err(at(dir)))
    }
}

/// A directory and all those in it.
fn directories(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Problem> {
    found.push(dir.to_owned());
    for name in list(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            directories(&path, found)?;
        }
    }
    Ok(())
}

/// Replaces a small file; it is whole at any time.
pub(crate) fn write_file(to: &Path, content: &[u8]) -> Result<(), Problem> {
    let writing = |error: io::Error| Problem::writing(to, &error);
    let new = beside(to);
    fs::write(&new, content).map_err(writing)?;
    File::open(&new)
        .and_then(|file| file.sync_all())
        .map_err(writing)?;
    fs::rename(&new, to).map_err(writing)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Shares the blocks of a file; false if the file system cannot.
fn reflink(from: &Path, to: &Path) -> Result<bool, Problem> {
    let source = File::open(from).map_err(|error| Problem::reading(from, &error))?;
    let writing = |error: io::Error| Problem::writing(to, &error);
    let new = beside(to);
    let target = File::create(&new).map_err(writing)?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => {
            target.sync_all().map_err(writing)?;
            fs::rename(&new, to).map_err(writing)?;
            Ok(true)
        }
        Err(Errno::NOSPC | Errno::DQUOT) => Err(writing(Errno::NOSPC.into())),
        // EOPNOTSUPP, EXDEV, EINVAL and others, by file system.
        Err(_) => {
            fs::remove_file(&new).map_err(writing)?;
            Ok(false)
        }
    }
}

/// Free bytes for this user on the file system that a directory is on.
pub(crate) fn free_bytes(dir: &Path) -> Result<u64, Problem> {
    let stat = rustix::fs::statvfs(dir).map_err(|error| Problem::reading(dir, &error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
