//! Index files: from a key of a topic to the positions of its messages, newest first, in the classic
//! files `index/<time, 17 digits>`.
//!
//! `format` is their bytes. The newest file is written here ([`Index`]): its slots are kept in memory
//! and go to the file with the next [`Index::flush`], its entries go there at the end of every batch;
//! `recover` brings that file back to a known state after a restart. Full files are only read
//! (`query`).

mod format;
mod query;
mod recover;

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

pub use format::{ENTRY_BYTES, Entry, HEADER_BYTES, Header, Layout, SLOT_BYTES, key_hash};
pub(crate) use query::{Search, Snapshot};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::types::PhyOffset;

/// Slots whose changes are written together, 4 KiB.
const PAGE_SLOTS: usize = 1024;
/// Most pages of one write.
const WRITE_PAGES: usize = 64;

/// The state of the index that a dispatch checkpoint keeps: what its newest file was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Saved {
    /// The newest file's name, 0 if there is no file.
    pub(crate) name: u64,
    pub(crate) header: Header,
}

/// All index files of a store.
#[derive(Debug)]
pub(crate) struct Index {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    layout: Layout,
    /// Full files, oldest first.
    full: Vec<Saved>,
    newest: Option<Newest>,
    /// Everything below is indexed.
    built_to: PhyOffset,
    /// Written since the last sync began.
    unsynced: Vec<Arc<dyn DiskFile>>,
    dir_unsynced: bool,
}

/// The file that is being filled.
#[derive(Debug)]
struct Newest {
    name: u64,
    header: Header,
    file: Arc<dyn DiskFile>,
    layout: Layout,
    /// The newest entry of every slot. Pages that were never touched take no memory.
    slots: Vec<u32>,
    /// Pages of `slots` that differ from the file's.
    dirty: Vec<bool>,
    /// Encoded entries that are not in the file yet, the last ones of the file.
    pending: Vec<u8>,
}

/// What has to be durable before a checkpoint may name the state that it was taken with.
#[derive(Debug)]
pub(crate) struct Unsynced {
    disk: Arc<dyn Disk>,
    files: Vec<Arc<dyn DiskFile>>,
    dir: Option<PathBuf>,
}

impl Index {
    /// Adds a message with its keys, unless its position was passed already. A new file is begun
    /// where the newest one is full.
    ///
    /// After an error some keys may be in; adding the message again is right, for a search passes
    /// over repetitions.
    pub(crate) fn add<'a>(
        &mut self,
        topic: &str,
        keys: impl Iterator<Item = &'a str>,
        phy: PhyOffset,
        store_timestamp: i64,
    ) -> io::Result<()> {
        if phy < self.built_to {
            return Ok(());
        }
        for key in keys {
            let newest = match &mut self.newest {
                Some(newest) if newest.header.next_entry < self.layout.entries => newest,
                _ => self.begin_file(store_timestamp)?,
            };
            newest.push(key_hash(topic, key), phy, store_timestamp);
        }
        self.built_to = phy + 1;
        Ok(())
    }

    /// Writes the entries that were added.
    pub(crate) fn write_entries(&mut self) -> io::Result<()> {
        match &mut self.newest {
            Some(newest) => newest.write_entries(),
            None => Ok(()),
        }
    }

    /// Brings the newest file up to date and returns its state with what has to be synced for it.
    pub(crate) fn flush(&mut self) -> io::Result<(Saved, Unsynced)> {
        let mut saved = Saved {
            name: 0,
            header: Header::EMPTY,
        };
        if let Some(newest) = &mut self.newest {
            if newest.flush()? {
                self.unsynced.push(Arc::clone(&newest.file));
            }
            saved = Saved {
                name: newest.name,
                header: newest.header,
            };
        }
        let dir = std::mem::take(&mut self.dir_unsynced).then(|| self.dir.clone());
        let files = std::mem::take(&mut self.unsynced);
        Ok((
            saved,
            Unsynced {
                disk: Arc::clone(&self.disk),
                files,
                dir,
            },
        ))
    }

    /// Has the next sync cover what was given out to be synced and could not be.
    pub(crate) fn sync_later(&mut self, unsynced: Unsynced) {
        self.unsynced.extend(unsynced.files);
        self.dir_unsynced |= unsynced.dir.is_some();
    }

    /// Removes the full files that know of nothing at `min` or beyond, oldest first.
    pub(crate) fn expire(&mut self, min: PhyOffset) -> io::Result<usize> {
        let gone = self
            .full
            .iter()
            .take_while(|file| file.header.end_phy < min)
            .count();
        for _ in 0..gone {
            let name = self.full[0].name;
            self.disk.unlink(&self.dir.join(name_of(name)))?;
            self.dir_unsynced = true;
            self.full.remove(0);
        }
        Ok(gone)
    }

    /// The newest file's state, without writing anything.
    pub(crate) fn snapshot(&self, topic: &str, key: &str) -> Snapshot {
        let hash = key_hash(topic, key);
        Snapshot::take(self, hash)
    }

    fn begin_file(&mut self, store_timestamp: i64) -> io::Result<&mut Newest> {
        let mut last = self.full.last().map_or(0, |file| file.name);
        if let Some(newest) = &mut self.newest {
            newest.flush()?;
            last = newest.name;
        }
        // From the message's time and not the clock's: a rebuild gives the same names.
        let name = format::name_at(store_timestamp).max(last + 1);
        let file = self
            .disk
            .open(&self.dir.join(name_of(name)), OpenMode::Create)?;
        file.set_len(self.layout.file_bytes())?;
        self.dir_unsynced = true;
        let next = Newest::new(name, file, self.layout);
        if let Some(newest) = self.newest.replace(next) {
            self.unsynced.push(newest.file);
            self.full.push(Saved {
                name: newest.name,
                header: newest.header,
            });
        }
        Ok(self.newest.as_mut().expect("just set"))
    }
}

impl Newest {
    fn new(name: u64, file: Arc<dyn DiskFile>, layout: Layout) -> Self {
        let slots = usize::try_from(layout.slots).expect("at least 32-bit addresses");
        Self {
            name,
            header: Header::EMPTY,
            file,
            layout,
            slots: vec![0; slots],
            dirty: vec![false; slots.div_ceil(PAGE_SLOTS)],
            pending: Vec::new(),
        }
    }

    fn push(&mut self, key_hash: u32, phy: PhyOffset, store_timestamp: i64) {
        let header = &mut self.header;
        if header.next_entry == 1 {
            header.begin_timestamp = store_timestamp;
            header.begin_phy = phy;
        }
        let slot = self.layout.slot_of(key_hash) as usize;
        let previous = std::mem::replace(&mut self.slots[slot], header.next_entry);
        self.dirty[slot / PAGE_SLOTS] = true;
        let seconds = header.seconds_to(store_timestamp);
        let entry = Entry {
            key_hash,
            phy,
            seconds,
            previous,
        };
        self.pending.extend_from_slice(&entry.encode());
        header.used_slots += u32::from(previous == 0);
        header.next_entry += 1;
        header.end_timestamp = store_timestamp;
        header.end_phy = phy;
    }

    /// Number of the first entry that is not in the file.
    fn first_pending(&self) -> u32 {
        let pending = u32::try_from(self.pending.len() / ENTRY_BYTES).expect("fewer than entries");
        self.header.next_entry - pending
    }

    fn write_entries(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            let at = self.layout.entry_at(self.first_pending());
            self.file.write_at(at, &[IoSlice::new(&self.pending)])?;
            self.pending.clear();
        }
        Ok(())
    }

    /// Writes what the file lacks; false if it lacks nothing.
    fn flush(&mut self) -> io::Result<bool> {
        self.write_entries()?;
        if !self.dirty.contains(&true) {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        let mut page = 0;
        // Under load most pages are dirty: neighbours are written together.
        for run in self.dirty.chunk_by(|one, next| one == next) {
            let pages = page..page + run.len();
            page = pages.end;
            if !run[0] {
                continue;
            }
            for first in pages.step_by(WRITE_PAGES) {
                let first = first * PAGE_SLOTS;
                let end = (first + WRITE_PAGES * PAGE_SLOTS).min(page * PAGE_SLOTS);
                let slots = &self.slots[first..end.min(self.slots.len())];
                bytes.clear();
                bytes.extend(slots.iter().flat_map(|slot| slot.to_be_bytes()));
                let first = u32::try_from(first).expect("slots are counted in 32 bits");
                self.file
                    .write_at(self.layout.slot_at(first), &[IoSlice::new(&bytes)])?;
            }
        }
        self.file
            .write_at(0, &[IoSlice::new(&self.header.encode())])?;
        self.dirty.fill(false);
        Ok(true)
    }
}

impl Unsynced {
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.sync())?;
        self.dir.iter().try_for_each(|dir| self.disk.sync_dir(dir))
    }
}

fn name_of(name: u64) -> String {
    format!("{name:017}")
}

fn name_from(name: &str) -> Option<u64> {
    let digits = name.len() == 17 && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests;
