//! A small file with two slots that are written in turn: a torn write spoils the slot that it was
//! meant for and leaves the other one, which holds what was there before.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use thiserror::Error;

use crate::checkpoint::VOTE_MAGIC;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::mutant;

/// Distance of the slots: no page holds parts of both.
const STRIDE: u64 = 4096;
/// Bytes of a slot. A disk writes a sector of that size whole or not at all.
const SLOT_LEN: usize = 512;
/// `magic u32, sequence u64, length u16` before the content.
const HEAD_LEN: usize = 14;
const CRC_LEN: usize = 4;
pub(crate) const CONTENT_MAX: usize = SLOT_LEN - HEAD_LEN - CRC_LEN;

/// Why such a file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum SlotsError {
    #[error("both of its slots are damaged")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An open file of two slots.
#[derive(Debug)]
pub(crate) struct Slots {
    file: Arc<dyn DiskFile>,
    magic: u32,
    /// Number of the newest content; its slot is this modulo 2.
    sequence: u64,
}

impl Slots {
    /// Opens a file and reads its newest content, durable by then; `None` if there is no such file.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        magic: u32,
    ) -> Result<Option<(Self, Vec<u8>)>, SlotsError> {
        let file = match disk.open(path, OpenMode::Write) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let (sequence, content) = newest(&*file, magic)?;
        // A killed process may not have synced it, and one whose sync failed may not have it on the
        // disk though its page is clean; once read it must stay.
        let slot = encode(magic, sequence, &content);
        file.write_at(sequence % 2 * STRIDE, &[IoSlice::new(&slot)])?;
        file.sync()?;
        Ok(Some((
            Self {
                file,
                magic,
                sequence,
            },
            content,
        )))
    }

    /// Makes a new file with this content. It appears under its name whole or not at all.
    pub(crate) fn create(
        disk: &dyn Disk,
        path: &Path,
        magic: u32,
        content: &[u8],
    ) -> io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let tmp = PathBuf::from(name);
        let file = disk.open(&tmp, OpenMode::Create)?;
        // Reserved, so that a vote can be saved on a full disk.
        file.allocate(2 * STRIDE)?;
        let mut slots = Self {
            file,
            magic,
            sequence: 0,
        };
        slots.write(content)?;
        disk.rename(&tmp, path)?;
        disk.sync_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
        Ok(slots)
    }

    /// Replaces the content; durable on return. After an error either content may be there.
    pub(crate) fn write(&mut self, content: &[u8]) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = encode(self.magic, sequence, content);
        self.file
            .write_at(sequence % 2 * STRIDE, &[IoSlice::new(&slot)])?;
        if !(mutant!(M3) && self.magic == VOTE_MAGIC) {
            self.file.sync()?;
        }
        self.sequence = sequence;
        Ok(())
    }
}

/// Reads the newest content without a change to the file; `None` if there is no such file.
pub(crate) fn read(
    disk: &dyn Disk,
    path: &Path,
    magic: u32,
) -> Result<Option<Vec<u8>>, SlotsError> {
    match disk.open(path, OpenMode::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
        Ok(file) => Ok(Some(newest(&*file, magic)?.1)),
    }
}

/// The newest content and its number.
fn newest(file: &dyn DiskFile, magic: u32) -> Result<(u64, Vec<u8>), SlotsError> {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for slot in 0..2 {
        let mut buf = [0; SLOT_LEN];
        let len = file.read_at(slot * STRIDE, &mut buf)?;
        if let Some((sequence, content)) = decode(&buf[..len], magic)
            && sequence % 2 == slot
            && newest.as_ref().is_none_or(|(other, _)| sequence > *other)
        {
            newest = Some((sequence, content.to_vec()));
        }
    }
    newest.ok_or(SlotsError::Damaged)
}

fn encode(magic: u32, sequence: u64, content: &[u8]) -> Vec<u8> {
    assert!(
        content.len() <= CONTENT_MAX,
        "a slot holds {CONTENT_MAX} bytes"
    );
    let mut slot = Vec::with_capacity(SLOT_LEN);
    slot.put_u32(magic);
    slot.put_u64(sequence);
    slot.put_u16(u16::try_from(content.len()).expect("a slot is small"));
    slot.put_slice(content);
    slot.put_u32(crc32c::crc32c(&slot));
    slot.resize(SLOT_LEN, 0);
    slot
}

fn decode(slot: &[u8], expected_magic: u32) -> Option<(u64, &[u8])> {
    let mut head = slot.get(..HEAD_LEN)?;
    let (magic, sequence, len) = (head.get_u32(), head.get_u64(), usize::from(head.get_u16()));
    let mut crc = slot.get(HEAD_LEN + len..HEAD_LEN + len + CRC_LEN)?;
    let right = magic == expected_magic && crc.get_u32() == crc32c::crc32c(&slot[..HEAD_LEN + len]);
    right.then(|| (sequence, &slot[HEAD_LEN..HEAD_LEN + len]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    const MAGIC: u32 = 0x1234_5678;

    fn content(path: &Path) -> Result<Option<Vec<u8>>, SlotsError> {
        Ok(Slots::open(&RealDisk, path, MAGIC)?.map(|(_, content)| content))
    }

    fn spoil(path: &Path, at: u64) {
        let file = RealDisk.open(path, OpenMode::Write).unwrap();
        let mut byte = [0];
        file.read_at(at, &mut byte).unwrap();
        file.write_at(at, &[IoSlice::new(&[byte[0] ^ 1])]).unwrap();
    }

    #[test]
    fn a_spoilt_slot_gives_the_content_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        assert_eq!(content(&path).unwrap(), None);
        let mut slots = Slots::create(&RealDisk, &path, MAGIC, b"first").unwrap();
        slots.write(b"second").unwrap();
        assert_eq!(content(&path).unwrap().unwrap(), b"second");
        // The second content has sequence 2 and so the slot at 0.
        spoil(&path, 16);
        assert_eq!(content(&path).unwrap().unwrap(), b"first");

        let (mut slots, _) = Slots::open(&RealDisk, &path, MAGIC).unwrap().unwrap();
        slots.write(b"third").unwrap();
        assert_eq!(content(&path).unwrap().unwrap(), b"third");
        spoil(&path, 0);
        spoil(&path, STRIDE + HEAD_LEN as u64);
        assert!(matches!(content(&path), Err(SlotsError::Damaged)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let slot = encode(MAGIC, 7, b"content");
        assert_eq!(decode(&slot, MAGIC), Some((7, &b"content"[..])));
        for bit in 0..(HEAD_LEN + 7 + CRC_LEN) * 8 {
            let mut other = slot.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&other, MAGIC), None, "bit {bit}");
        }
        for len in 0..HEAD_LEN + 7 + CRC_LEN {
            assert_eq!(decode(&slot[..len], MAGIC), None, "length {len}");
        }
    }
}
