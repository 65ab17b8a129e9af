//! The file `dispatched`: how far consume queues and index are built, and what they were then.
//!
//! Content of a two-slot file (`slots`), numbers big endian: version `u8`, dispatched position `u64`,
//! digest of all queues' ends `u64`, position of the last record that began a queue anew `u64`, 1 if
//! the index counts `u8`, name of the newest index file `u64` (0 without one), that file's header (40
//! bytes), clean `u8`, hash of the machine's boot id `u64`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use tracing::warn;

use crate::disk::Disk;
use crate::index_file::{HEADER_BYTES, Header, Saved};
use crate::slots::{Slots, SlotsError};
use crate::types::PhyOffset;

const MAGIC: u32 = u32::from_be_bytes(*b"rmqD");
const VERSION: u8 = 1;
const BYTES: usize = 1 + 3 * 8 + 1 + 8 + HEADER_BYTES + 1 + 8;

/// What a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Everything below is in the files, and durable there.
    pub(crate) dispatched: PhyOffset,
    /// See `Table::digest`.
    pub(crate) digest: u64,
    /// The last record below `dispatched` that began a queue anew, or 0: what the queue was before
    /// is in the log only.
    pub(crate) last_anew: PhyOffset,
    /// The index at `dispatched` or ahead of it; `None` while it is being built anew.
    pub(crate) index: Option<Saved>,
    /// Nothing was written to the files after this checkpoint.
    pub(crate) clean: bool,
    /// The run of the machine in which it was written, as a hash, or 0: while that lasts, what was
    /// written after the checkpoint has no holes.
    pub(crate) boot: u64,
}

/// The file, made with the first checkpoint.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    slots: Option<Slots>,
    last: Option<Checkpoint>,
}

impl CheckpointFile {
    /// Opens the file. A damaged one counts as none.
    pub(crate) fn open(disk: &Arc<dyn Disk>, path: PathBuf) -> io::Result<CheckpointFile> {
        let (slots, last) = match Slots::open(&**disk, &path, MAGIC) {
            Ok(Some((slots, content))) => (Some(slots), decode(&content)),
            Ok(None) => (None, None),
            Err(SlotsError::Damaged) => {
                warn!(file = %path.display(), "the dispatch checkpoint is damaged");
                (None, None)
            }
            Err(SlotsError::Io(e)) => return Err(e),
        };
        Ok(CheckpointFile {
            disk: Arc::clone(disk),
            path,
            slots,
            last,
        })
    }

    /// The last checkpoint.
    pub(crate) fn last(&self) -> Option<Checkpoint> {
        self.last
    }

    /// Makes a checkpoint durable, unless it is the last one anyway.
    pub(crate) fn write(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        if self.last == Some(checkpoint) {
            return Ok(());
        }
        let content = encode(&checkpoint);
        match &mut self.slots {
            Some(slots) => slots.write(&content)?,
            None => {
                self.slots = Some(Slots::create(&*self.disk, &self.path, MAGIC, &content)?);
            }
        }
        self.last = Some(checkpoint);
        Ok(())
    }
}

fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut out = Vec::with_capacity(BYTES);
    out.put_u8(VERSION);
    out.put_u64(checkpoint.dispatched.0);
    out.put_u64(checkpoint.digest);
    out.put_u64(checkpoint.last_anew.0);
    let index = checkpoint.index.unwrap_or(Saved {
        name: 0,
        header: Header::EMPTY,
    });
    out.put_u8(u8::from(checkpoint.index.is_some()));
    out.put_u64(index.name);
    out.put_slice(&index.header.encode());
    out.put_u8(u8::from(checkpoint.clean));
    out.put_u64(checkpoint.boot);
    out
}

/// `None` if the content is none of ours.
fn decode(mut content: &[u8]) -> Option<Checkpoint> {
    if content.len() != BYTES || content.get_u8() != VERSION {
        return None;
    }
    let dispatched = PhyOffset(content.get_u64());
    let digest = content.get_u64();
    let last_anew = PhyOffset(content.get_u64());
    let has_index = content.get_u8() == 1;
    let name = content.get_u64();
    let (header, mut rest) = content.split_first_chunk()?;
    let clean = rest.get_u8() == 1;
    let boot = rest.get_u64();
    let index = has_index.then(|| Saved {
        name,
        header: Header::decode(header),
    });
    Some(Checkpoint {
        dispatched,
        digest,
        last_anew,
        index,
        clean,
        boot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn checkpoint(dispatched: u64) -> Checkpoint {
        let header = Header {
            next_entry: 7,
            begin_timestamp: 5,
            ..Header::EMPTY
        };
        Checkpoint {
            dispatched: PhyOffset(dispatched),
            digest: !dispatched,
            last_anew: PhyOffset(dispatched / 2),
            index: (dispatched != 201).then_some(Saved {
                name: 20_260_101_000_000_000,
                header,
            }),
            clean: dispatched.is_multiple_of(2),
            boot: dispatched.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }

    #[test]
    fn the_last_checkpoint_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let path = dir.path().join("dispatched");
        let mut file = CheckpointFile::open(&disk, path.clone()).unwrap();
        assert_eq!(file.last(), None);
        for dispatched in [100, 201, 201, 300] {
            file.write(checkpoint(dispatched)).unwrap();
            let again = CheckpointFile::open(&disk, path.clone()).unwrap();
            assert_eq!(again.last(), Some(checkpoint(dispatched)));
        }
        std::fs::write(&path, [0; 8192]).unwrap();
        let mut file = CheckpointFile::open(&disk, path.clone()).unwrap();
        assert_eq!(file.last(), None);
        file.write(checkpoint(400)).unwrap();
        let again = CheckpointFile::open(&disk, path).unwrap();
        assert_eq!(again.last(), Some(checkpoint(400)));
    }

    #[test]
    fn other_content_is_no_checkpoint() {
        let bytes = encode(&checkpoint(8));
        assert_eq!(decode(&bytes), Some(checkpoint(8)));
        assert_eq!(decode(&bytes[1..]), None);
        let mut newer = bytes;
        newer[0] += 1;
        assert_eq!(decode(&newer), None);
    }
}
