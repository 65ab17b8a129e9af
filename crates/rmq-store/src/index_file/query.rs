//! Looking a key up, without holding up the one who writes.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use super::format::{ENTRY_BYTES, Entry, Header, Layout, SLOT_BYTES};
use super::{Index, Saved, name_of};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::types::PhyOffset;

/// What is searched for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    /// Most positions to find.
    pub(crate) max: usize,
    /// Store timestamps in milliseconds, both included.
    pub(crate) begin: i64,
    pub(crate) end: i64,
}

/// The index as it was at one moment, for one key.
#[derive(Debug)]
pub(crate) struct Snapshot {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    layout: Layout,
    full: Vec<Saved>,
    newest: Option<Chain>,
    key_hash: u32,
}

/// Where a key's entries begin in one file.
#[derive(Debug)]
struct Chain {
    file: Arc<dyn DiskFile>,
    header: Header,
    /// The newest entry of the key's slot.
    head: u32,
    /// Last entries of the file that are not in it yet, and the number of the first of them.
    pending: (u32, Vec<u8>),
}

impl Snapshot {
    pub(super) fn take(index: &Index, key_hash: u32) -> Snapshot {
        let newest = index.newest.as_ref().map(|newest| Chain {
            file: Arc::clone(&newest.file),
            header: newest.header,
            head: newest.slots[newest.layout.slot_of(key_hash) as usize],
            pending: (newest.first_pending(), newest.pending.clone()),
        });
        Snapshot {
            disk: Arc::clone(&index.disk),
            dir: index.dir.clone(),
            layout: index.layout,
            full: index.full.clone(),
            newest,
            key_hash,
        }
    }

    /// Positions of the messages whose key has this hash and that `accept` takes, newest first.
    ///
    /// The time of an entry is rounded down to a second, so `accept` has to check the message's own;
    /// it may be asked for up to a second too much on either side.
    pub(crate) fn find(
        self,
        search: Search,
        mut accept: impl FnMut(PhyOffset) -> bool,
    ) -> io::Result<Vec<PhyOffset>> {
        let mut found = Vec::new();
        if let Some(chain) = &self.newest {
            self.walk(chain, search, &mut accept, &mut found)?;
            if chain.header.begin_timestamp < search.begin {
                return Ok(found);
            }
        }
        for saved in self.full.iter().rev() {
            if found.len() >= search.max {
                break;
            }
            if saved.header.overlaps(search.begin, search.end) {
                let file = match self
                    .disk
                    .open(&self.dir.join(name_of(saved.name)), OpenMode::Read)
                {
                    // Expired since the snapshot.
                    Err(e) if e.kind() == ErrorKind::NotFound => break,
                    other => other?,
                };
                let mut head = [0; SLOT_BYTES];
                file.read_at(
                    self.layout.slot_at(self.layout.slot_of(self.key_hash)),
                    &mut head,
                )?;
                let head = u32::from_be_bytes(head);
                let pending = (saved.header.next_entry, Vec::new());
                let chain = Chain {
                    file,
                    header: saved.header,
                    head,
                    pending,
                };
                self.walk(&chain, search, &mut accept, &mut found)?;
            }
            if saved.header.begin_timestamp < search.begin {
                break;
            }
        }
        Ok(found)
    }

    fn walk(
        &self,
        chain: &Chain,
        search: Search,
        accept: &mut impl FnMut(PhyOffset) -> bool,
        found: &mut Vec<PhyOffset>,
    ) -> io::Result<()> {
        let mut number = chain.head;
        // Like Java, takes a number that is not there for the end; unlike Java, also one that does
        // not lead back, so that a damaged file cannot hold a search for ever.
        let mut bound = chain.header.next_entry;
        while number > 0 && number < bound && found.len() < search.max {
            let Some(entry) = self.entry(chain, number)? else {
                break;
            };
            let earliest = chain
                .header
                .begin_timestamp
                .saturating_add(i64::from(entry.seconds) * 1000);
            let latest = earliest.saturating_add(999);
            if latest < search.begin {
                break;
            }
            if entry.key_hash == self.key_hash
                && earliest <= search.end
                && found.last() != Some(&entry.phy)
                && accept(entry.phy)
            {
                found.push(entry.phy);
            }
            bound = number;
            number = entry.previous;
        }
        Ok(())
    }

    fn entry(&self, chain: &Chain, number: u32) -> io::Result<Option<Entry>> {
        let mut bytes = [0; ENTRY_BYTES];
        let (first_pending, pending) = &chain.pending;
        if number >= *first_pending {
            let at = (number - first_pending) as usize * ENTRY_BYTES;
            bytes.copy_from_slice(&pending[at..at + ENTRY_BYTES]);
        } else {
            chain
                .file
                .read_at(self.layout.entry_at(number), &mut bytes)?;
        }
        Ok(Entry::decode(&bytes))
    }
}
