//! The file `dispatched.queues`: where every queue ended at a position of the log, so that a start need
//! not search the ends of very many queues in their files.
//!
//! It saves time, and knows where queues go on whose messages have all left the log, should their files be lost. It is
//! written now and then, after all that it tells of is durable. Before a start that does not go on from it changes
//! anything, only those queues are left in it, and no position: while it has one, the log goes on from there.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use tracing::warn;

use crate::config::StoreConfig;
use crate::consume_queue::{QueueState, Table};
use crate::disk::Disk;
use crate::transfer::{read_whole, unlink_if_there, write_whole};
use crate::types::{PhyOffset, QueueOffset};

/// Its name in the store's root.
pub(crate) const TABLE_FILE: &str = "dispatched.queues";
/// Bytes that are dispatched before it is written again.
pub(super) const TABLE_BYTES: u64 = if cfg!(test) { 1000 } else { 32 << 20 };

const MAGIC: [u8; 4] = *b"rmqQ";
const VERSION: u16 = 1;
/// magic, version, CRC-32C of all that follows.
const HEAD_LEN: usize = 4 + 2 + 4;

/// What the table is true of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SavedAt {
    /// Everything below is in the table, and durable in the queues' files.
    pub(super) dispatched: PhyOffset,
    /// Where the log began.
    pub(super) min: PhyOffset,
    /// See the checkpoint's.
    pub(super) last_anew: PhyOffset,
    /// Bytes of a queue's file.
    pub(super) file_bytes: u64,
}

impl SavedAt {
    /// The file's content. Big endian: `magic | version u16 | CRC-32C u32 | dispatched u64 | min u64 |
    /// last anew u64 | file bytes u64 | queues u32 × (length u16, topic | queue id i32 | min u64 |
    /// next u64 | end of the last record u64)`.
    pub(super) fn encode(&self, mut queues: Vec<(Arc<str>, QueueState)>) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_slice(&MAGIC);
        out.put_u16(VERSION);
        out.put_u32(0);
        for number in [self.dispatched, self.min, self.last_anew] {
            out.put_u64(number.0);
        }
        out.put_u64(self.file_bytes);
        queues.retain(|(_, state)| has_units(state));
        // Of equal queues the file is the same.
        queues.sort_unstable_by(|(a, of_a), (b, of_b)| (a, of_a.queue_id).cmp(&(b, of_b.queue_id)));
        out.put_u32(u32::try_from(queues.len()).expect("a queue has files"));
        for (topic, state) in queues {
            // A topic's name is that of a directory.
            out.put_u16(u16::try_from(topic.len()).expect("a topic's name is short"));
            out.put_slice(topic.as_bytes());
            out.put_i32(state.queue_id);
            out.put_u64(state.min.0);
            out.put_u64(state.next.0);
            out.put_u64(state.end_phy.0);
        }
        let crc = crc32c::crc32c(&out[HEAD_LEN..]);
        out[HEAD_LEN - 4..HEAD_LEN].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// `None` if the content is none of ours.
    fn decode(content: &[u8]) -> Option<(SavedAt, Table)> {
        let (mut head, mut from) = content.split_at_checked(HEAD_LEN)?;
        if head.split_off(..4)? != MAGIC
            || head.get_u16() != VERSION
            || head.get_u32() != crc32c::crc32c(from)
        {
            return None;
        }
        let from = &mut from;
        let number = |from: &mut &[u8]| from.try_get_u64().ok();
        let at = SavedAt {
            dispatched: PhyOffset(number(from)?),
            min: PhyOffset(number(from)?),
            last_anew: PhyOffset(number(from)?),
            file_bytes: number(from)?,
        };
        let mut table = Table::default();
        for _ in 0..from.try_get_u32().ok()? {
            let len = from.try_get_u16().ok()?;
            let topic = std::str::from_utf8(from.split_off(..usize::from(len))?).ok()?;
            let queue_id = from.try_get_i32().ok()?;
            let (min, next) = (QueueOffset(number(from)?), QueueOffset(number(from)?));
            let end_phy = PhyOffset(number(from)?);
            let state = QueueState {
                queue_id,
                min,
                next,
                end_phy,
                committed: next,
            };
            if !has_units(&state) {
                return None;
            }
            let topic = table.name_of(topic);
            table.put(&topic, state);
        }
        from.is_empty().then_some((at, table))
    }
}

/// A queue without any has nothing to tell, and perhaps no files.
fn has_units(state: &QueueState) -> bool {
    state.end_phy > PhyOffset(0) && state.next > QueueOffset(0)
}

/// The table, if there is one. A damaged one counts as none.
pub(super) fn read(config: &StoreConfig, disk: &dyn Disk) -> io::Result<Option<(SavedAt, Table)>> {
    let path = config.root.join(TABLE_FILE);
    let Some(content) = read_whole(disk, &path)? else {
        return Ok(None);
    };
    let found = SavedAt::decode(&content);
    if found.is_none() {
        warn!(file = %path.display(), "the table of the queues is damaged: their files are searched");
    }
    Ok(found)
}

/// Replaces the table. Durable on return.
pub(super) fn write(root: &Path, disk: &dyn Disk, content: &[u8]) -> io::Result<()> {
    write_whole(disk, &root.join(TABLE_FILE), content)
}

/// Has the next start search the queues' files; only queues of `table` whose messages are all below `min`, where the log
/// begins, stay in it. Durable on return.
pub(super) fn keep_expired(
    config: &StoreConfig,
    disk: &dyn Disk,
    table: &Table,
    min: PhyOffset,
) -> io::Result<()> {
    let expired = table.iter().filter(|(_, state)| state.end_phy <= min);
    let expired: Vec<_> = expired
        .map(|(topic, state)| (Arc::clone(topic), *state))
        .filter(|(_, state)| has_units(state))
        .collect();
    if expired.is_empty() {
        return remove(config, disk);
    }
    // No queue's files are so small.
    let nowhere = SavedAt {
        dispatched: PhyOffset(0),
        min,
        last_anew: PhyOffset(0),
        file_bytes: 0,
    };
    write(&config.root, disk, &nowhere.encode(expired))
}

/// Has the next start search the queues' files. Durable on return.
pub(crate) fn remove(config: &StoreConfig, disk: &dyn Disk) -> io::Result<()> {
    unlink_if_there(disk, &config.root.join(TABLE_FILE)).map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(dispatched: u64) -> SavedAt {
        SavedAt {
            dispatched: PhyOffset(dispatched),
            min: PhyOffset(dispatched / 3),
            last_anew: PhyOffset(dispatched / 2),
            file_bytes: 140,
        }
    }

    fn table(queues: &[(String, i32, u64, u64)]) -> Table {
        let mut table = Table::default();
        for (topic, queue_id, next, end_phy) in queues {
            let state = QueueState {
                queue_id: *queue_id,
                min: QueueOffset(next / 2),
                next: QueueOffset(*next),
                end_phy: PhyOffset(*end_phy),
                committed: QueueOffset(*next),
            };
            table.put(&Arc::from(&**topic), state);
        }
        table
    }

    #[test]
    fn other_content_is_no_table() {
        let one = table(&[("t".to_owned(), 3, 5, 700)]);
        let bytes = at(900).encode(one.all());
        assert!(SavedAt::decode(&bytes).is_some());
        for end in 0..bytes.len() {
            assert!(SavedAt::decode(&bytes[..end]).is_none(), "{end} bytes");
        }
        for byte in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[byte] ^= 1;
            assert!(SavedAt::decode(&bytes).is_none(), "byte {byte}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(SavedAt::decode(&longer).is_none());
    }

    proptest! {
        #[test]
        fn a_table_is_read_again(
            dispatched: u64,
            queues in proptest::collection::vec(("[a-z]{1,3}", 0..9_i32, 1_u64.., 1_u64..), 0..20),
        ) {
            let table = table(&queues);
            let (at_again, again) = SavedAt::decode(&at(dispatched).encode(table.all())).unwrap();
            prop_assert_eq!(at_again, at(dispatched));
            prop_assert_eq!(again.digest(), table.digest());
            let sorted = |table: &Table| {
                let mut all = table.all();
                all.sort_by_key(|(topic, state)| (topic.clone(), state.queue_id));
                all
            };
            prop_assert_eq!(sorted(&again), sorted(&table));
        }

        #[test]
        fn any_bytes_are_read(mut bytes: Vec<u8>) {
            let mut content = MAGIC.to_vec();
            content.extend(VERSION.to_be_bytes());
            content.extend(crc32c::crc32c(&bytes).to_be_bytes());
            content.append(&mut bytes);
            SavedAt::decode(&content);
        }
    }
}
