//! Message records, as they lie in a commit log and travel to consumers.
//!
//! [`Record`] is a view on the bytes of one; [`NewRecord`] writes one whose place is not known yet, and
//! [`seal`] fills in its queue offset, physical offset and store timestamp. [`peek`] tells what begins at
//! a position of a log. [`split_batch`] reads the body of a batch send.
//!
//! ```text
//! i32 total size | i32 magic | i32 body CRC | i32 queue id | i32 flag | i64 queue offset
//! i64 physical offset | i32 sysFlag | i64 born timestamp | born host | i64 store timestamp | store host
//! i32 reconsume times | i64 prepared transaction offset | i32 n, body | topic | i16 n, properties
//! ```
//!
//! A host is an IPv4 or IPv6 address and an i32 port; bits of sysFlag say which. The length of the topic
//! has one byte in version 1 and two in version 2 (5.x, topics longer than 127 bytes).
//! Source: `CommitLog`, `MessageDecoder` 4.9.8; `MessageExtEncoder`, `MessageVersion` 5.3.3.

mod batch;
mod encode;
#[cfg(test)]
mod tests;
mod view;

pub use batch::{BatchError, BatchMessage, split_batch};
pub use encode::{EncodeError, NewRecord, seal};
pub use view::{Record, RecordError};

/// Magic of version 1.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Magic of version 2.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;
/// Magic of the blank record that fills the end of a segment.
pub const MAGIC_BLANK: u32 = 0xCBD4_3194;

/// Byte offsets of the fields whose place is the same in every record.
pub const TOTAL_SIZE_AT: usize = 0;
pub const MAGIC_AT: usize = 4;
pub const BODY_CRC_AT: usize = 8;
pub const QUEUE_ID_AT: usize = 12;
pub const FLAG_AT: usize = 16;
pub const QUEUE_OFFSET_AT: usize = 20;
pub const PHYSICAL_OFFSET_AT: usize = 28;
pub const SYS_FLAG_AT: usize = 36;
pub const BORN_TIMESTAMP_AT: usize = 40;
pub const BORN_HOST_AT: usize = 48;

/// Bytes of a host with an IPv4 and with an IPv6 address, its port included.
pub const HOST_V4_LEN: usize = 8;
pub const HOST_V6_LEN: usize = 20;

/// Bytes of the smallest record: version 1, IPv4 hosts, everything empty.
pub const MIN_LEN: usize = 91;
/// Bytes of a blank record that are written; the rest of its size is arbitrary.
pub const BLANK_LEN: usize = 8;

const _: () = assert!(BODY_CRC_AT == MAGIC_AT + 4 && QUEUE_ID_AT == BODY_CRC_AT + 4);
const _: () = assert!(FLAG_AT == QUEUE_ID_AT + 4 && QUEUE_OFFSET_AT == FLAG_AT + 4);
const _: () = assert!(PHYSICAL_OFFSET_AT == QUEUE_OFFSET_AT + 8);
const _: () =
    assert!(SYS_FLAG_AT == PHYSICAL_OFFSET_AT + 8 && BORN_TIMESTAMP_AT == SYS_FLAG_AT + 4);
const _: () = assert!(BORN_HOST_AT == BORN_TIMESTAMP_AT + 8);
const _: () = assert!(
    MIN_LEN == BORN_HOST_AT + 2 * HOST_V4_LEN + 8 + 4 + 8 + 4 + 1 + 2,
    "hosts, store timestamp, reconsume times, prepared offset, three lengths"
);

/// Bits of a message's sysFlag (`MessageSysFlag`).
pub mod sys_flag {
    pub const COMPRESSED: i32 = 0x1;
    pub const MULTI_TAGS: i32 = 0x2;
    /// Two bits with the state of a transaction: none, or one of the next three.
    pub const TRANSACTION_MASK: i32 = 0xC;
    pub const TRANSACTION_PREPARED: i32 = 0x4;
    pub const TRANSACTION_COMMIT: i32 = 0x8;
    pub const TRANSACTION_ROLLBACK: i32 = 0xC;
    pub const BORN_HOST_V6: i32 = 0x10;
    pub const STORE_HOST_V6: i32 = 0x20;
    pub const NEED_UNWRAP: i32 = 0x40;
    pub const INNER_BATCH: i32 = 0x80;
    /// Three bits: 0 zlib (old clients), then LZ4, ZSTD, ZLIB.
    pub const COMPRESSION_TYPE_MASK: i32 = 0x700;

    /// Whether a message with these flags takes a place in its queue: all but prepared ones and
    /// rollbacks do.
    #[must_use]
    pub fn is_queued(sys_flag: i32) -> bool {
        !matches!(
            sys_flag & TRANSACTION_MASK,
            TRANSACTION_PREPARED | TRANSACTION_ROLLBACK
        )
    }
}

/// What begins at a position of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peek {
    /// A record of `size` bytes, at least [`MIN_LEN`]; not said is whether they are all there and right.
    Record { size: usize },
    /// Filler of `size` bytes, at least [`BLANK_LEN`], up to the end of the segment.
    Blank { size: usize },
    /// Neither: zeros, an unknown magic, an impossible size, or fewer than 8 bytes.
    End,
}

/// Looks at the size and the magic at the head of `bytes`.
#[must_use]
pub fn peek(bytes: &[u8]) -> Peek {
    let Some(head) = bytes.first_chunk::<8>() else {
        return Peek::End;
    };
    let [size, magic] = [&head[..4], &head[4..]].map(|word| {
        word.iter()
            .fold(0u32, |value, &byte| value << 8 | u32::from(byte))
    });
    let size = match i32::try_from(size).map(usize::try_from) {
        Ok(Ok(size)) => size,
        _ => return Peek::End,
    };
    match magic {
        MAGIC_V1 | MAGIC_V2 if size >= MIN_LEN => Peek::Record { size },
        MAGIC_BLANK if size >= BLANK_LEN => Peek::Blank { size },
        _ => Peek::End,
    }
}

/// The head of a blank record that fills `size` bytes.
#[must_use]
pub fn blank(size: u32) -> [u8; BLANK_LEN] {
    let mut head = [0; BLANK_LEN];
    head[..4].copy_from_slice(&size.to_be_bytes());
    head[4..].copy_from_slice(&MAGIC_BLANK.to_be_bytes());
    head
}

/// The CRC of a body: zlib's CRC-32 without its highest bit (`UtilAll.crc32`).
#[must_use]
pub fn body_crc(body: &[u8]) -> u32 {
    crc32fast::hash(body) & 0x7FFF_FFFF
}

/// `String.hashCode` of Java: over UTF-16 units, modulo 2^32.
#[must_use]
pub fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    })
}

/// What a consume queue keeps of a message's tags: their hash, 0 for none.
#[must_use]
pub fn tags_code(tags: &str) -> i64 {
    java_hash(tags).into()
}

/// Bytes of the born host in a record with these flags.
fn born_host_len(flags: i32) -> usize {
    if flags & sys_flag::BORN_HOST_V6 == 0 {
        HOST_V4_LEN
    } else {
        HOST_V6_LEN
    }
}

/// Bytes of the store host in a record with these flags.
fn store_host_len(flags: i32) -> usize {
    if flags & sys_flag::STORE_HOST_V6 == 0 {
        HOST_V4_LEN
    } else {
        HOST_V6_LEN
    }
}
