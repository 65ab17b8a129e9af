//! The mark of a frozen group: everything that the group ever committed is in this store, up to the
//! entry that it names, and nothing was written behind it.

use std::io::{self, ErrorKind};
use std::path::Path;

use bytes::{Buf, BufMut};

use crate::disk::Disk;
use crate::slots::{Slots, SlotsError, read};
use crate::types::{EntryId, LogIndex, PhyOffset, Term};

const FILE: &str = "raft.frozen";
const MAGIC: u32 = u32::from_be_bytes(*b"rmqF");
const VERSION: u8 = 1;
const LEN: usize = 1 + 5 * 8;

/// The entry that froze the group, as the file `raft.frozen` of a store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreezeMark {
    pub id: EntryId,
    /// Behind the entry's extent.
    pub end: PhyOffset,
    /// When the leader proposed it, milliseconds since 1970.
    pub at_ms: i64,
}

impl FreezeMark {
    /// Reads the mark of the store under `root`, and writes nothing; `None` if there is none.
    ///
    /// # Errors
    /// `InvalidData` if the file is damaged or none of ours.
    pub fn read(disk: &dyn Disk, root: &Path) -> io::Result<Option<Self>> {
        let path = root.join(FILE);
        let damaged = || {
            let text = format!("{} is damaged", path.display());
            io::Error::new(ErrorKind::InvalidData, text)
        };
        match read(disk, &path, MAGIC) {
            Ok(None) => Ok(None),
            Ok(Some(content)) => Self::decode(&content).map(Some).ok_or_else(damaged),
            Err(SlotsError::Damaged) => Err(damaged()),
            Err(SlotsError::Io(e)) => Err(e),
        }
    }

    /// Makes the mark durable in the store under `root`, in place of any other.
    pub fn write(&self, disk: &dyn Disk, root: &Path) -> io::Result<()> {
        Slots::create(disk, &root.join(FILE), MAGIC, &self.encode()).map(drop)
    }

    /// Takes the mark away, durably; that there is none is fine.
    pub fn remove(disk: &dyn Disk, root: &Path) -> io::Result<()> {
        match disk.unlink(&root.join(FILE)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => disk.sync_dir(root),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_u64(self.id.term.0);
        out.put_u64(self.id.node);
        out.put_u64(self.id.index.0);
        out.put_u64(self.end.0);
        out.put_i64(self.at_ms);
        out
    }

    fn decode(mut content: &[u8]) -> Option<Self> {
        if content.len() != LEN || content.get_u8() != VERSION {
            return None;
        }
        Some(Self {
            id: EntryId {
                term: Term(content.get_u64()),
                node: content.get_u64(),
                index: LogIndex(content.get_u64()),
            },
            end: PhyOffset(content.get_u64()),
            at_ms: content.get_i64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn a_mark_is_written_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let read = || FreezeMark::read(&RealDisk, dir.path());
        assert_eq!(read().unwrap(), None);
        for index in [7, 9] {
            let mark = FreezeMark {
                id: EntryId {
                    term: Term(3),
                    node: u64::MAX,
                    index: LogIndex(index),
                },
                end: PhyOffset(index * 1000),
                at_ms: 5,
            };
            mark.write(&RealDisk, dir.path()).unwrap();
            assert_eq!(read().unwrap(), Some(mark));
        }
        std::fs::write(dir.path().join(FILE), [1; 8192]).unwrap();
        assert_eq!(read().unwrap_err().kind(), ErrorKind::InvalidData);
        FreezeMark::remove(&RealDisk, dir.path()).unwrap();
        FreezeMark::remove(&RealDisk, dir.path()).unwrap();
        assert_eq!(read().unwrap(), None);
    }
}
