//! Reading a segment record by record, in large sequential reads.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;

use rmq_wire::record::{self, Peek, Record};
use rustix::fs::{Advice, SeekFrom};
use rustix::io::Errno;

/// Bytes that are read at once.
const READ_BYTES: usize = 4 << 20;

/// How a segment ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a blank or a record that fills it.
    Full,
    /// With zeros from this byte on, as far as its next words tell.
    Zeros(u64),
    /// With something that is neither.
    Bad { at: u64, reason: String },
}

/// Walks the records in the first `bytes` of a segment that starts at position `base`, calling
/// `visit` with each whole record whose position and checksum are right. Returns how it ends.
pub(crate) fn walk(
    file: &File,
    base: u64,
    bytes: u64,
    mut visit: impl FnMut(u64, &Record<'_>, &[u8]),
) -> io::Result<End> {
    let mut window = Window {
        file,
        bytes,
        start: 0,
        content: Vec::new(),
    };
    let mut at = 0;
    while at < bytes {
        let left = bytes - at;
        let head = window.at(at, 8)?;
        let size = match record::peek(head) {
            Peek::Record { size } if size as u64 <= left => size,
            Peek::Blank { size } if size as u64 == left => return Ok(End::Full),
            _ if head.iter().all(|byte| *byte == 0) => return Ok(End::Zeros(at)),
            Peek::Record { size } => {
                let reason = format!("a record of {size} bytes, of which {left} are in the file");
                return Ok(End::Bad { at, reason });
            }
            Peek::Blank { size } => {
                let reason = format!("a filler of {size} bytes, but {left} are left in the file");
                return Ok(End::Bad { at, reason });
            }
            Peek::End => {
                let reason = "neither a record nor a filler".to_owned();
                return Ok(End::Bad { at, reason });
            }
        };
        let raw = window.at(at, size)?;
        match check(raw, base + at) {
            Ok(record) => visit(at, &record, raw),
            Err(reason) => return Ok(End::Bad { at, reason }),
        }
        at += size as u64;
    }
    Ok(End::Full)
}

/// The record at the head of `raw`, which lies at `position`, if it is right.
pub(crate) fn check(raw: &[u8], position: u64) -> Result<Record<'_>, String> {
    let record = Record::decode(raw).map_err(|error| error.to_string())?;
    if u64::try_from(record.physical_offset) != Ok(position) {
        return Err(format!(
            "a record that says position {}, at position {position}",
            record.physical_offset
        ));
    }
    if !record.crc_matches() {
        return Err(format!(
            "bad checksum of the body (want {:08x}, have {:08x}), topic {} queue {} offset {}",
            record.body_crc,
            record::body_crc(record.body),
            record.topic,
            record.queue_id,
            record.queue_offset
        ));
    }
    Ok(record)
}

/// The intact records at or behind byte `from` of a segment, however they are reached.
pub(crate) fn find(
    file: &File,
    base: u64,
    bytes: u64,
    from: u64,
    mut visit: impl FnMut(u64, &Record<'_>),
) -> io::Result<()> {
    let magics = [record::MAGIC_V1, record::MAGIC_V2].map(u32::to_be_bytes);
    let mut chunk = vec![0; READ_BYTES];
    // Where the next magic may begin.
    let mut at = from + record::MAGIC_AT as u64;
    loop {
        // A magic has no zero where it begins.
        at = at.max(data_from(file, at)?.0);
        if at >= bytes {
            break;
        }
        let most = usize::try_from(bytes - at)
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES);
        let read = read_up_to(file, at, &mut chunk[..most])?;
        if read < magics[0].len() {
            break;
        }
        if is_zero(&chunk[..read]) {
            at += read as u64;
            continue;
        }
        let heads = chunk[..read].windows(4);
        let head = heads
            .enumerate()
            .find(|(_, word)| word[0] == magics[0][0] && magics.iter().any(|magic| word == magic));
        let Some((skip, _)) = head else {
            // A magic may begin in the last three bytes.
            at += (read - 3) as u64;
            if read < most {
                break;
            }
            continue;
        };
        at += skip as u64;
        let start = at - record::MAGIC_AT as u64;
        let mut size = [0; 4];
        read_up_to(file, start, &mut size)?;
        let size = u64::from(u32::from_be_bytes(size));
        let mut size_here = 0;
        if size <= bytes - start {
            let mut raw = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            read_up_to(file, start, &mut raw)?;
            if let Ok(record) = check(&raw, base + start) {
                visit(start, &record);
                size_here = size;
            }
        }
        at += size_here.max(1);
    }
    Ok(())
}

/// A part of a file in memory that moves forward.
struct Window<'a> {
    file: &'a File,
    bytes: u64,
    start: u64,
    content: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `at`, or as many as there are.
    fn at(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let len = len.min(usize::try_from(self.bytes - at).unwrap_or(len));
        let end = self.start + self.content.len() as u64;
        if at < self.start || at + len as u64 > end {
            let most = usize::try_from(self.bytes - at).unwrap_or(usize::MAX);
            self.content.resize(READ_BYTES.max(len).min(most), 0);
            let read = read_up_to(self.file, at, &mut self.content)?;
            self.content.truncate(read);
            self.start = at;
            // The disk reads on while this is looked at. It is only a hint.
            let next = at + read as u64;
            let ahead = NonZeroU64::new(2 * READ_BYTES as u64);
            let _hint = rustix::fs::fadvise(self.file, next, ahead, Advice::WillNeed);
        }
        let skip = usize::try_from(at - self.start).map_err(io::Error::other)?;
        let have = &self.content[skip.min(self.content.len())..];
        Ok(&have[..len.min(have.len())])
    }
}

/// Whether there is nothing but zeros; of a page at a time, which is far quicker than byte by byte.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let mut pages = bytes.chunks(4096);
    pages.all(|page| page.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Where the next bytes lie from `at` on that are no hole, and where these end; behind the file's end if
/// there are none.
pub(crate) fn data_from(file: &File, at: u64) -> io::Result<(u64, u64)> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok((u64::MAX, u64::MAX)),
        // A file system that knows of no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((at, u64::MAX)),
        other => other?,
    };
    Ok((data, rustix::fs::seek(file, SeekFrom::Hole(data))?))
}

/// Fills `buf` as far as the file goes.
pub(crate) fn read_up_to(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
