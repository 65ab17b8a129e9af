//! What the store notes beside the log: the vote, the checkpoint, and the two files by which a
//! Java broker knows how it was left.

use std::io::{self, IoSlice};

use bytes::{Buf, BufMut};

use crate::config::StoreConfig;
use crate::disk::{Disk, OpenMode};
use crate::types::{EntryId, LogIndex, PhyOffset, Term, Vote};

pub(crate) const VOTE_FILE: &str = "raft.vote";
pub(crate) const VOTE_MAGIC: u32 = u32::from_be_bytes(*b"rmqV");
pub(crate) const CHECKPOINT_FILE: &str = "raft.checkpoint";
pub(crate) const CHECKPOINT_MAGIC: u32 = u32::from_be_bytes(*b"rmqC");

const VERSION: u8 = 1;
const BOOT_ID_MAX: usize = 64;

/// Content of the vote file: `version u8, present u8, term u64, node u64, committed u8`.
pub(crate) fn encode_vote(vote: Option<Vote>) -> Vec<u8> {
    let Vote {
        term,
        node,
        committed,
    } = vote.unwrap_or_default();
    let mut out = vec![VERSION, u8::from(vote.is_some())];
    out.put_u64(term.0);
    out.put_u64(node);
    out.put_u8(u8::from(committed));
    out
}

/// The vote in the file's content, which may be that there was none; `None` if it is none of ours.
pub(crate) fn decode_vote(mut content: &[u8]) -> Option<Option<Vote>> {
    if content.len() != 19 || content.get_u8() != VERSION {
        return None;
    }
    let present = content.get_u8() != 0;
    let vote = Vote {
        term: Term(content.get_u64()),
        node: content.get_u64(),
        committed: content.get_u8() != 0,
    };
    Some(present.then_some(vote))
}

/// What recovery starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) generation: i32,
    pub(crate) segment_bytes: u64,
    /// Where the first extent starts that is not purged; what is before it are records only.
    pub(crate) base: PhyOffset,
    /// A committed entry whose extent, and all before it, is durable; and its end.
    pub(crate) committed: Option<EntryId>,
    pub(crate) confirm: PhyOffset,
    pub(crate) purged: Option<EntryId>,
    /// The run of the machine that wrote this.
    pub(crate) boot_id: String,
    /// Whether acknowledged bytes may not have been durable (ASYNC_FLUSH).
    pub(crate) lazy: bool,
    /// Whether the log may lack entries that this node once acknowledged.
    pub(crate) suspect: bool,
    /// Set by a clean stop: the log ended here, all of it durable.
    pub(crate) clean_end: Option<PhyOffset>,
}

impl Checkpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_i32(self.generation);
        out.put_u64(self.segment_bytes);
        out.put_u64(self.base.0);
        put_id(&mut out, self.committed);
        out.put_u64(self.confirm.0);
        put_id(&mut out, self.purged);
        out.put_u8(u8::from(self.lazy));
        out.put_u8(u8::from(self.suspect));
        out.put_u8(u8::from(self.clean_end.is_some()));
        out.put_u64(self.clean_end.unwrap_or_default().0);
        let boot_id = &self.boot_id.as_bytes()[..self.boot_id.len().min(BOOT_ID_MAX)];
        out.put_slice(boot_id);
        out
    }

    /// `None` if the content is none of ours.
    pub(crate) fn decode(mut content: &[u8]) -> Option<Self> {
        const FIXED_LEN: usize = 1 + 4 + 8 + 8 + 25 + 8 + 25 + 3 + 8;
        if content.len() < FIXED_LEN || content.get_u8() != VERSION {
            return None;
        }
        let mut checkpoint = Self {
            generation: content.get_i32(),
            segment_bytes: content.get_u64(),
            base: PhyOffset(content.get_u64()),
            committed: get_id(&mut content),
            confirm: PhyOffset(content.get_u64()),
            purged: get_id(&mut content),
            boot_id: String::new(),
            lazy: content.get_u8() != 0,
            suspect: content.get_u8() != 0,
            clean_end: None,
        };
        let clean = content.get_u8() != 0;
        let end = PhyOffset(content.get_u64());
        checkpoint.clean_end = clean.then_some(end);
        checkpoint.boot_id = String::from_utf8(content.to_vec()).ok()?;
        Some(checkpoint)
    }
}

fn put_id(out: &mut Vec<u8>, id: Option<EntryId>) {
    let EntryId { term, node, index } = id.unwrap_or_default();
    out.put_u8(u8::from(id.is_some()));
    out.put_u64(term.0);
    out.put_u64(node);
    out.put_u64(index.0);
}

fn get_id(content: &mut &[u8]) -> Option<EntryId> {
    let present = content.get_u8() != 0;
    let (term, node, index) = (content.get_u64(), content.get_u64(), content.get_u64());
    present.then_some(EntryId {
        term: Term(term),
        node,
        index: LogIndex(index),
    })
}

/// `abort` lies in the root while a broker runs; a broker that finds it was not stopped cleanly
/// (`StorePathConfigHelper.getAbortFile`).
pub(crate) fn write_abort(disk: &dyn Disk, config: &StoreConfig) -> io::Result<()> {
    disk.open(&config.path("abort"), OpenMode::Create)?;
    disk.sync_dir(config.root())
}

/// Removes `abort` after a clean stop.
pub(crate) fn remove_abort(disk: &dyn Disk, config: &StoreConfig) -> io::Result<()> {
    disk.unlink(&config.path("abort"))?;
    disk.sync_dir(config.root())
}

/// Writes the classic `checkpoint` (`StoreCheckpoint`, 4.9.8): the store timestamps up to which
/// commit log, consume queues and index are durable. All are the same after a clean stop.
pub(crate) fn write_classic(
    disk: &dyn Disk,
    config: &StoreConfig,
    store_timestamp: i64,
) -> io::Result<()> {
    const LEN: usize = 4096;
    let mut content = Vec::with_capacity(LEN);
    for _ in 0..3 {
        content.put_i64(store_timestamp);
    }
    content.resize(LEN, 0);
    let file = disk.open(&config.path("checkpoint"), OpenMode::Create)?;
    file.write_at(0, &[IoSlice::new(&content)])?;
    file.sync()?;
    disk.sync_dir(config.root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::CONTENT_MAX;

    fn id(index: u64) -> EntryId {
        EntryId {
            term: Term(3),
            node: u64::MAX,
            index: LogIndex(index),
        }
    }

    #[test]
    fn a_checkpoint_reads_as_written() {
        let mut checkpoint = Checkpoint {
            generation: -7,
            segment_bytes: 1 << 30,
            base: PhyOffset(5),
            committed: Some(id(9)),
            confirm: PhyOffset(1000),
            purged: None,
            boot_id: "b".repeat(BOOT_ID_MAX),
            lazy: true,
            suspect: false,
            clean_end: None,
        };
        assert_eq!(
            Checkpoint::decode(&checkpoint.encode()),
            Some(checkpoint.clone())
        );
        assert!(checkpoint.encode().len() <= CONTENT_MAX);
        checkpoint.committed = None;
        checkpoint.purged = Some(id(0));
        checkpoint.suspect = true;
        checkpoint.clean_end = Some(PhyOffset(0));
        let bytes = checkpoint.encode();
        assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint));
        for len in 0..bytes.len() - BOOT_ID_MAX {
            assert_eq!(Checkpoint::decode(&bytes[..len]), None);
        }
    }

    #[test]
    fn a_vote_reads_as_written() {
        let vote = Vote {
            term: Term(4),
            node: 77,
            committed: true,
        };
        assert_eq!(decode_vote(&encode_vote(Some(vote))), Some(Some(vote)));
        assert_eq!(decode_vote(&encode_vote(None)), Some(None));
        assert_eq!(decode_vote(&[VERSION; 18]), None);
        assert_eq!(decode_vote(&[VERSION + 1; 19]), None);
    }
}
