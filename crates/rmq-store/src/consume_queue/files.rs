//! The files of all consume queues: `<topic>/<queueId>/<first byte, 20 digits>`, each of the same
//! full length from the start (Java refuses to load a shorter one), with holes where nothing was
//! written.
//!
//! Files are reached by position, through a bounded number of open descriptors; a queue that is not
//! used costs nothing here.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, ErrorKind, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::unit::{BLANK, Slot, UNIT_BYTES};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::types::QueueOffset;

/// Open descriptors at most; a process has 1024 by default, and clients want most of them.
const DESCRIPTORS: usize = 256;
/// Most files and directories that are synced one by one.
const SYNCS: usize = if cfg!(test) { 8 } else { 256 };
/// Bytes of a unit, as a position counts them.
const UNIT: u64 = UNIT_BYTES as u64;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FileKey {
    topic: Arc<str>,
    queue_id: i32,
    /// Position of its first byte in the queue, which is its name.
    start: u64,
}

/// Consume queue files under one directory.
#[derive(Debug)]
pub(crate) struct QueueFiles {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    file_bytes: u64,
    open: Mutex<Descriptors>,
    unsynced: Mutex<Unsynced>,
}

/// Open files, the least recently used of which makes room for another.
#[derive(Debug, Default)]
struct Descriptors {
    files: HashMap<FileKey, Descriptor>,
    uses: u64,
}

#[derive(Debug)]
struct Descriptor {
    file: Arc<dyn DiskFile>,
    /// It was made here, or found to have no other name.
    own: bool,
    used: u64,
}

/// What was written since the last sync began.
#[derive(Debug, Default)]
struct Unsynced {
    files: HashSet<FileKey>,
    dirs: BTreeSet<PathBuf>,
    /// There may be more than these.
    others: bool,
}

impl QueueFiles {
    /// Files under `root`, of `file_bytes` bytes each.
    pub(crate) fn new(disk: Arc<dyn Disk>, root: PathBuf, file_bytes: u64) -> Self {
        assert!(
            file_bytes > 0 && file_bytes.is_multiple_of(UNIT),
            "files hold whole units"
        );
        Self {
            disk,
            root,
            file_bytes,
            open: Mutex::default(),
            unsynced: Mutex::default(),
        }
    }

    /// Bytes of a file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Units in a file.
    pub(crate) fn units_per_file(&self) -> u64 {
        self.file_bytes / UNIT
    }

    /// First unit of the file after the one that holds `offset`.
    pub(crate) fn next_file(&self, offset: QueueOffset) -> QueueOffset {
        let units = self.units_per_file();
        QueueOffset(offset.0 - offset.0 % units + units)
    }

    /// Names under the root, each of which may be a topic.
    pub(crate) fn topics(&self) -> io::Result<Vec<String>> {
        self.disk.list(&self.root)
    }

    /// Queue ids that a topic has a directory for.
    pub(crate) fn queue_ids(&self, topic: &str) -> io::Result<Vec<i32>> {
        let names = self.disk.list(&self.root.join(topic))?;
        let id = |name: &String| {
            name.parse()
                .ok()
                .filter(|id: &i32| *id >= 0 && id.to_string() == *name)
        };
        Ok(names.iter().filter_map(id).collect())
    }

    /// First units of a queue's files, in order. A last file that is too short is filled up.
    ///
    /// # Errors
    /// `InvalidData`, with the file's path, if files of another length are there.
    pub(crate) fn starts(&self, topic: &Arc<str>, queue_id: i32) -> io::Result<Vec<QueueOffset>> {
        let dir = self.dir(topic, queue_id);
        let starts: Vec<u64> = self
            .disk
            .list(&dir)?
            .iter()
            .filter_map(|n| start_of(n))
            .collect();
        if let Some(&last) = starts.last() {
            let key = FileKey {
                topic: Arc::clone(topic),
                queue_id,
                start: last,
            };
            let file = self.descriptor(key)?;
            let bytes = file.size()?;
            if bytes > self.file_bytes {
                return Err(self.other_length(&dir.join(name_of(last)), bytes));
            }
        }
        if let Some(odd) = starts
            .iter()
            .find(|start| !start.is_multiple_of(self.file_bytes))
        {
            return Err(self.other_length(&dir.join(name_of(*odd)), *odd));
        }
        Ok(starts
            .into_iter()
            .map(|start| QueueOffset(start / UNIT))
            .collect())
    }

    fn other_length(&self, path: &Path, bytes: u64) -> io::Error {
        let text = format!(
            "{}: {bytes} is no multiple of the length of consume queue files, {} bytes \
             (mappedFileSizeConsumeQueue)",
            path.display(),
            self.file_bytes
        );
        io::Error::new(ErrorKind::InvalidData, text)
    }

    /// Fills `units`, whole units, from `first` on; what is not in a file reads as zeros.
    pub(crate) fn read(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        first: QueueOffset,
        units: &mut [u8],
    ) -> io::Result<()> {
        units.fill(0);
        for (start, at, range) in self.parts(first, units.len()) {
            let key = FileKey {
                topic: Arc::clone(topic),
                queue_id,
                start,
            };
            match self.descriptor(key) {
                Ok(file) => file.read_at(at, &mut units[range])?,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
        }
        Ok(())
    }

    /// The unit at one offset.
    pub(crate) fn slot(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        at: QueueOffset,
    ) -> io::Result<Slot> {
        let mut unit = [0; UNIT_BYTES];
        self.read(topic, queue_id, at, &mut unit)?;
        Ok(Slot::decode(&unit))
    }

    /// Writes `units`, whole units, from `first` on, and makes the files they need.
    pub(crate) fn write(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        first: QueueOffset,
        units: &[u8],
    ) -> io::Result<()> {
        for (start, at, range) in self.parts(first, units.len()) {
            let key = FileKey {
                topic: Arc::clone(topic),
                queue_id,
                start,
            };
            let file = match self.writable(&key) {
                Err(e) if e.kind() == ErrorKind::NotFound => self.create(&key)?,
                other => other?,
            };
            file.write_at(at, &[IoSlice::new(&units[range])])?;
            // Not before the write, or a sync in between would take it off the list too early.
            self.unsynced().files.insert(key);
        }
        Ok(())
    }

    /// Writes blank units where a queue jumps from `next` to `to`: in the file of `to` and, if
    /// `next` lies in the middle of another, up to that file's end. Files that would hold nothing
    /// but blanks are not made.
    pub(crate) fn fill_blank(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        next: QueueOffset,
        to: QueueOffset,
    ) -> io::Result<()> {
        let units = self.units_per_file();
        let file_of_to = QueueOffset(to.0 - to.0 % units);
        if next >= file_of_to {
            return self.write_blanks(topic, queue_id, next, to);
        }
        if !next.0.is_multiple_of(units) {
            self.write_blanks(topic, queue_id, next, self.next_file(next))?;
        }
        self.write_blanks(topic, queue_id, file_of_to, to)
    }

    fn write_blanks(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        from: QueueOffset,
        to: QueueOffset,
    ) -> io::Result<()> {
        /// Units per write.
        const STEP: usize = 1024;
        let blanks = BLANK.repeat(STEP);
        let mut at = from;
        while at < to {
            let units = usize::try_from(to.0 - at.0).unwrap_or(STEP).min(STEP);
            self.write(topic, queue_id, at, &blanks[..units * UNIT_BYTES])?;
            at = at + units as u64;
        }
        Ok(())
    }

    /// Leaves nothing at or beyond `end`.
    pub(crate) fn cut(&self, topic: &Arc<str>, queue_id: i32, end: QueueOffset) -> io::Result<()> {
        let dir = self.dir(topic, queue_id);
        let names = self.disk.list(&dir)?;
        let starts: Vec<u64> = names.iter().filter_map(|name| start_of(name)).collect();
        for &start in starts.iter().rev() {
            let key = FileKey {
                topic: Arc::clone(topic),
                queue_id,
                start,
            };
            let end = end.0 * UNIT;
            if start >= end {
                // Should a power cut undo the removal of the others, this one is not to be missing alone: the queue would
                // seem to begin behind it.
                if starts.len() > 1 && starts.first() == Some(&start) {
                    self.disk.sync_dir(&dir)?;
                }
                self.remove(topic, queue_id, start)?;
            } else if end - start < self.file_bytes {
                let file = self.writable(&key)?;
                // What is cut off comes back as a hole.
                file.set_len(end - start)?;
                file.set_len(self.file_bytes)?;
                self.unsynced().files.insert(key);
            }
        }
        Ok(())
    }

    /// Whether there is no file from `end` on, and no unit at it.
    pub(crate) fn ends_at(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        end: QueueOffset,
    ) -> io::Result<bool> {
        let names = self.disk.list(&self.dir(topic, queue_id))?;
        let last = names.iter().filter_map(|name| start_of(name)).next_back();
        let mut unit = [0; UNIT_BYTES];
        self.read(topic, queue_id, end, &mut unit)?;
        Ok(unit == [0; UNIT_BYTES] && last.is_none_or(|last| last < end.0 * UNIT))
    }

    /// Removes the file that begins with this unit.
    pub(crate) fn remove_file(
        &self,
        topic: &Arc<str>,
        queue_id: i32,
        first: QueueOffset,
    ) -> io::Result<()> {
        self.remove(topic, queue_id, first.0 * UNIT)
    }

    fn remove(&self, topic: &Arc<str>, queue_id: i32, start: u64) -> io::Result<()> {
        let dir = self.dir(topic, queue_id);
        let key = FileKey {
            topic: Arc::clone(topic),
            queue_id,
            start,
        };
        let mut open = self.descriptors();
        self.disk.unlink(&dir.join(name_of(start)))?;
        open.files.remove(&key);
        drop(open);
        let mut unsynced = self.unsynced();
        unsynced.files.remove(&key);
        unsynced.dirs.insert(dir);
        Ok(())
    }

    /// Makes the next sync cover all queues, whoever wrote to them.
    pub(crate) fn sync_all_later(&self) {
        self.unsynced().others = true;
    }

    /// Makes all that was written before the call durable. After an error nothing is known of it, nor
    /// does another call tell: a system may report a failed write once and forget it.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let Unsynced {
            files,
            dirs,
            others,
        } = std::mem::take(&mut *self.unsynced());
        if others || files.len() + dirs.len() > SYNCS {
            return self.disk.sync_all(&self.root);
        }
        // What is not there was cut meanwhile, or removed by somebody else.
        let if_there = |result: io::Result<()>| match result {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        for key in files {
            if_there(self.descriptor(key).and_then(|file| file.sync()))?;
        }
        dirs.iter()
            .try_for_each(|dir| if_there(self.disk.sync_dir(dir)))
    }

    fn create(&self, key: &FileKey) -> io::Result<Arc<dyn DiskFile>> {
        let dir = self.dir(&key.topic, key.queue_id);
        self.disk.create_dir_all(&dir)?;
        let file = self
            .disk
            .open(&dir.join(name_of(key.start)), OpenMode::Create)?;
        file.set_len(self.file_bytes)?;
        self.unsynced()
            .dirs
            .extend(self.dirs(&key.topic, key.queue_id));
        self.descriptors().put(key.clone(), &file, true);
        Ok(file)
    }

    /// A file to write to. One that has another name as well belongs to the history of another
    /// broker, and is replaced by a copy first.
    fn writable(&self, key: &FileKey) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(own) = self.descriptors().get(key).filter(|found| found.own) {
            return Ok(Arc::clone(&own.file));
        }
        let mut file = self.descriptor(key.clone())?;
        if file.is_shared()? {
            file = self.copy(key, &*file)?;
        }
        self.descriptors().put(key.clone(), &file, true);
        Ok(file)
    }

    fn copy(&self, key: &FileKey, from: &dyn DiskFile) -> io::Result<Arc<dyn DiskFile>> {
        let dir = self.dir(&key.topic, key.queue_id);
        let path = dir.join(name_of(key.start));
        let mut bytes = vec![0; usize::try_from(from.size()?).map_err(io::Error::other)?];
        let read = from.read_at(0, &mut bytes)?;
        let new = path.with_extension("new");
        let file = self.disk.open(&new, OpenMode::Create)?;
        file.set_len(self.file_bytes)?;
        file.write_at(0, &[IoSlice::new(&bytes[..read])])?;
        file.sync()?;
        self.disk.rename(&new, &path)?;
        self.disk.sync_dir(&dir)?;
        Ok(file)
    }

    fn descriptor(&self, key: FileKey) -> io::Result<Arc<dyn DiskFile>> {
        // Opened under the lock, as `cut` unlinks under it: the table never holds a file that its
        // directory does not.
        let mut open = self.descriptors();
        if let Some(found) = open.get(&key) {
            return Ok(Arc::clone(&found.file));
        }
        let path = self.dir(&key.topic, key.queue_id).join(name_of(key.start));
        let file = self.disk.open(&path, OpenMode::Write)?;
        // A crash between two steps of making or cutting a file leaves such.
        if file.size()? < self.file_bytes {
            file.set_len(self.file_bytes)?;
        }
        open.put(key, &file, false);
        Ok(file)
    }

    /// Splits a run of units by files: a file's start, where in it, and which of the bytes.
    fn parts(
        &self,
        first: QueueOffset,
        bytes: usize,
    ) -> impl Iterator<Item = (u64, u64, std::ops::Range<usize>)> + use<> {
        debug_assert!(
            bytes.is_multiple_of(UNIT_BYTES),
            "{bytes} bytes are not whole units"
        );
        let file_bytes = self.file_bytes;
        let mut done = 0;
        let mut at = first.0 * UNIT;
        std::iter::from_fn(move || {
            let left = bytes - done;
            let in_file = at % file_bytes;
            let room = usize::try_from(file_bytes - in_file).unwrap_or(usize::MAX);
            let part = (at - in_file, in_file, done..done + left.min(room));
            done = part.2.end;
            at = part.0 + file_bytes;
            (left > 0).then_some(part)
        })
    }

    /// A queue's directory and those that it lies in.
    fn dirs(&self, topic: &str, queue_id: i32) -> [PathBuf; 3] {
        [
            self.dir(topic, queue_id),
            self.root.join(topic),
            self.root.clone(),
        ]
    }

    fn dir(&self, topic: &str, queue_id: i32) -> PathBuf {
        self.root.join(topic).join(queue_id.to_string())
    }

    fn descriptors(&self) -> std::sync::MutexGuard<'_, Descriptors> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Descriptors {
    fn get(&mut self, key: &FileKey) -> Option<&Descriptor> {
        self.uses += 1;
        let found = self.files.get_mut(key)?;
        found.used = self.uses;
        Some(found)
    }

    fn put(&mut self, key: FileKey, file: &Arc<dyn DiskFile>, own: bool) {
        if self.files.len() >= DESCRIPTORS && !self.files.contains_key(&key) {
            // A scan of all is cheaper than the open that led here.
            let oldest = self.files.iter().min_by_key(|(_, found)| found.used);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.files.remove(&key);
            }
        }
        self.uses += 1;
        let (file, used) = (Arc::clone(file), self.uses);
        self.files.insert(key, Descriptor { file, own, used });
    }
}

/// The name of the file that starts at byte `start` of its queue.
fn name_of(start: u64) -> String {
    format!("{start:020}")
}

fn start_of(name: &str) -> Option<u64> {
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| digits)
}
