//! The index after a restart.
//!
//! A file's entries never change once written, and those that a checkpoint counts were synced before
//! it. So after a crash the newest file is cut to the entries of the checkpoint, and its slots, which
//! may be of any age, are made anew from them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{ENTRY_BYTES, Entry, HEADER_BYTES, Header, Layout, SLOT_BYTES};
use super::{Index, Newest, PAGE_SLOTS, Saved, name_from, name_of};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::mutant;
use crate::types::PhyOffset;

/// Bytes that are read at a time.
const READ_BYTES: usize = 1 << 20;

impl Index {
    /// Opens the index in the state that a checkpoint saved, without what lies at `limit` or beyond.
    /// `clean` says that nothing was written after that checkpoint. `store_time` knows the time of the
    /// message at a position below the limit.
    ///
    /// `None` if the files are not what the checkpoint says; they may have been changed then.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: PathBuf,
        layout: Layout,
        (saved, clean): (Saved, bool),
        limit: PhyOffset,
        store_time: &dyn Fn(PhyOffset) -> Option<i64>,
    ) -> io::Result<Option<Index>> {
        let mut index = Index::new(disk, dir, layout, limit);
        let loaded = index.load(saved, clean, limit, store_time)?;
        if mutant!(M12)
            && !clean
            && let Some(newest) = index.newest.take()
        {
            index.unlink(newest.name)?;
        }
        Ok(loaded.then_some(index))
    }

    /// Removes all files, to build the index anew from `from` on.
    pub(crate) fn anew(
        disk: &Arc<dyn Disk>,
        dir: PathBuf,
        layout: Layout,
        from: PhyOffset,
    ) -> io::Result<Index> {
        let mut index = Index::new(disk, dir, layout, from);
        for name in index.names()? {
            index.unlink(name)?;
        }
        Ok(index)
    }

    /// The state of files that another broker wrote, of which the newest has entries; `None` if
    /// there are none, or of another layout.
    pub(crate) fn saved_by_another(
        disk: &Arc<dyn Disk>,
        dir: PathBuf,
        layout: Layout,
    ) -> io::Result<Option<Saved>> {
        let index = Index::new(disk, dir, layout, PhyOffset(0));
        let mut newest = None;
        for name in index.names()? {
            let path = index.dir.join(name_of(name));
            if index.disk.open(&path, OpenMode::Read)?.size()? != layout.file_bytes() {
                return Ok(None);
            }
            newest = Some(name);
        }
        let Some(name) = newest else { return Ok(None) };
        let header = index.read_header(name)?;
        Ok(Some(Saved { name, header }).filter(|saved| saved.header.next_entry > 1))
    }

    fn new(disk: &Arc<dyn Disk>, dir: PathBuf, layout: Layout, from: PhyOffset) -> Index {
        Index {
            disk: Arc::clone(disk),
            dir,
            layout,
            full: Vec::new(),
            newest: None,
            built_to: from,
            unsynced: Vec::new(),
            // A process that was killed may have changed it.
            dir_unsynced: true,
        }
    }

    fn names(&self) -> io::Result<Vec<u64>> {
        Ok(self
            .disk
            .list(&self.dir)?
            .iter()
            .filter_map(|name| name_from(name))
            .collect())
    }

    fn unlink(&mut self, name: u64) -> io::Result<()> {
        self.disk.unlink(&self.dir.join(name_of(name)))?;
        self.dir_unsynced = true;
        Ok(())
    }

    /// False if the files do not fit `saved`.
    fn load(
        &mut self,
        saved: Saved,
        clean: bool,
        limit: PhyOffset,
        store_time: &dyn Fn(PhyOffset) -> Option<i64>,
    ) -> io::Result<bool> {
        let mut names = self.names()?;
        while let Some(name) = names.pop_if(|name| *name > saved.name) {
            self.unlink(name)?;
        }
        if saved.name == 0 {
            return Ok(true);
        }
        if names.last() != Some(&saved.name) {
            return Ok(false);
        }
        let mut header = saved.header;
        while let Some(name) = names.pop() {
            let file = self
                .disk
                .open(&self.dir.join(name_of(name)), OpenMode::Write)?;
            if file.size()? != self.layout.file_bytes() || header.next_entry > self.layout.entries {
                return Ok(false);
            }
            let whole = name == saved.name && clean;
            let Some(cut) = cut_below(&*file, self.layout, &mut header, limit)? else {
                return Ok(false);
            };
            if let Some(time) = store_time(header.end_phy).filter(|_| cut) {
                header.end_timestamp = time;
            }
            if header.next_entry > 1 {
                let newest = Newest::reopen(name, file, self.layout, header, whole && !cut)?;
                self.newest = newest;
                if self.newest.is_none() {
                    return Ok(false);
                }
                break;
            }
            // Nothing of this file is below the limit, so the one before is the newest.
            self.unlink(name)?;
            if let Some(before) = names.last() {
                header = self.read_header(*before)?;
            }
        }
        for name in names {
            let header = self.read_header(name)?;
            self.full.push(Saved { name, header });
        }
        Ok(true)
    }

    fn read_header(&self, name: u64) -> io::Result<Header> {
        let mut bytes = [0; HEADER_BYTES];
        self.disk
            .open(&self.dir.join(name_of(name)), OpenMode::Read)?
            .read_at(0, &mut bytes)?;
        Ok(Header::decode(&bytes))
    }
}

/// Takes the entries at `limit` or beyond out of the header's count; true if there were any, `None`
/// if the last entry is not the one that the header speaks of.
fn cut_below(
    file: &dyn DiskFile,
    layout: Layout,
    header: &mut Header,
    limit: PhyOffset,
) -> io::Result<Option<bool>> {
    let whole = *header;
    while header.next_entry > 1 {
        let mut bytes = [0; ENTRY_BYTES];
        file.read_at(layout.entry_at(header.next_entry - 1), &mut bytes)?;
        match Entry::decode(&bytes) {
            Some(entry) if entry.phy < limit && bytes != [0; ENTRY_BYTES] => {
                header.end_phy = entry.phy;
                break;
            }
            // Zeros are left by an opening that was interrupted after it had cut the file.
            _ => header.next_entry -= 1,
        }
    }
    let cut = header.next_entry < whole.next_entry;
    let is_right = if cut {
        whole.end_phy >= limit
    } else {
        whole.end_phy == header.end_phy
    };
    Ok(is_right.then_some(cut))
}

impl Newest {
    /// Continues a file behind the entries that `header` counts. `None` if they are not what such a
    /// file has.
    fn reopen(
        name: u64,
        file: Arc<dyn DiskFile>,
        layout: Layout,
        header: Header,
        slots_are_right: bool,
    ) -> io::Result<Option<Newest>> {
        let mut newest = Newest::new(name, file, layout);
        newest.header = header;
        if slots_are_right {
            let mut at = 0;
            newest.each_slot_page(|slots, page| {
                // Empty pages stay untouched, so that they take no memory.
                if page.iter().any(|slot| *slot != 0) {
                    slots[at..at + page.len()].copy_from_slice(page);
                }
                at += page.len();
            })?;
            return Ok(Some(newest));
        }
        if !newest.slots_from_entries()? {
            return Ok(None);
        }
        // What lies behind the last entry must not be found by the next crash.
        newest.file.set_len(layout.entry_at(header.next_entry))?;
        newest.file.set_len(layout.file_bytes())?;
        newest.mark_dirty()?;
        Ok(Some(newest))
    }

    fn slots_from_entries(&mut self) -> io::Result<bool> {
        self.header.used_slots = 0;
        let mut bytes = vec![0; READ_BYTES / ENTRY_BYTES * ENTRY_BYTES];
        let mut number = 1;
        while number < self.header.next_entry {
            let left = (self.header.next_entry - number) as usize * ENTRY_BYTES;
            let step = left.min(bytes.len());
            self.file
                .read_at(self.layout.entry_at(number), &mut bytes[..step])?;
            for entry in bytes[..step].as_chunks::<ENTRY_BYTES>().0 {
                let Some(entry) = Entry::decode(entry) else {
                    return Ok(false);
                };
                let slot = &mut self.slots[self.layout.slot_of(entry.key_hash) as usize];
                if std::mem::replace(slot, number) != entry.previous {
                    return Ok(false);
                }
                self.header.used_slots += u32::from(entry.previous == 0);
                number += 1;
            }
        }
        Ok(true)
    }

    /// Marks the pages of slots that differ from the file's.
    fn mark_dirty(&mut self) -> io::Result<()> {
        let mut dirty = Vec::with_capacity(self.dirty.len());
        let mut at = 0;
        self.each_slot_page(|slots, page| {
            dirty.push(slots[at..at + page.len()] != *page);
            at += page.len();
        })?;
        // The header has changed in any case, and goes with the first page.
        dirty[0] = true;
        self.dirty = dirty;
        Ok(())
    }

    /// Calls `page` with all slots and, in order, each page of the file's.
    fn each_slot_page(&mut self, mut page: impl FnMut(&mut [u32], &[u32])) -> io::Result<()> {
        let mut bytes = vec![0; PAGE_SLOTS * SLOT_BYTES];
        let mut decoded = Vec::with_capacity(PAGE_SLOTS);
        for first in (0..self.slots.len()).step_by(PAGE_SLOTS) {
            let count = (self.slots.len() - first).min(PAGE_SLOTS);
            let at = self
                .layout
                .slot_at(u32::try_from(first).expect("slots are counted in 32 bits"));
            self.file.read_at(at, &mut bytes[..count * SLOT_BYTES])?;
            decoded.clear();
            let slots = bytes[..count * SLOT_BYTES].as_chunks::<SLOT_BYTES>().0;
            decoded.extend(slots.iter().map(|slot| u32::from_be_bytes(*slot)));
            page(&mut self.slots, &decoded);
        }
        Ok(())
    }
}
