//! Checksums of a segment that take milliseconds however long it is: of its first record, its last
//! one, and some pages in between.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rmq_wire::record::{self, Peek};
use thiserror::Error;

use super::GenesisSegment;
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::recovery::is_record;
use crate::segment::file_name;
use crate::types::PhyOffset;

/// Pages of a segment that are looked at.
const SAMPLES: u64 = 8;
const PAGE_BYTES: usize = 4096;
/// How much is searched at once for the last record, from the end.
const WINDOW_BYTES: usize = 256 << 10;

/// Why a segment cannot be measured.
#[derive(Debug, Error)]
pub enum MeasureError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has {found} bytes, the store's segments have {expected}", path.display())]
    Length {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("{} does not begin with a whole record", path.display())]
    FirstRecord { path: PathBuf },
    #[error("{} has no record that ends where its content does, at byte {end}", path.display())]
    LastRecord { path: PathBuf, end: u64 },
}

/// Measures the first `bytes` of a segment.
pub(super) fn segment(
    disk: &dyn Disk,
    dir: &Path,
    base: PhyOffset,
    bytes: u64,
    segment_bytes: u64,
) -> Result<GenesisSegment, MeasureError> {
    let path = dir.join(file_name(base.0));
    let at = |source| MeasureError::Io {
        path: path.clone(),
        source,
    };
    let file = disk.open(&path, OpenMode::Read).map_err(at)?;
    let found = file.size().map_err(at)?;
    if found != segment_bytes {
        let (path, expected) = (path.clone(), segment_bytes);
        return Err(MeasureError::Length {
            path,
            found,
            expected,
        });
    }
    let content = Content {
        file: &*file,
        base,
        bytes,
    };
    let first = content
        .record(0)
        .map_err(at)?
        .ok_or_else(|| MeasureError::FirstRecord { path: path.clone() })?;
    let last = content
        .last_record(bytes == segment_bytes)
        .map_err(at)?
        .ok_or_else(|| MeasureError::LastRecord {
            path: path.clone(),
            end: bytes,
        })?;
    Ok(GenesisSegment {
        base,
        bytes,
        first_record_crc: crc32c::crc32c(&first),
        last_record_crc: crc32c::crc32c(&last),
        samples_crc: content.samples_crc().map_err(at)?,
    })
}

/// The part of a segment that is written. Small pieces are read and not mapped: around each page that is
/// touched for the first time, a kernel reads far more of a mapped file.
struct Content<'a> {
    file: &'a dyn DiskFile,
    base: PhyOffset,
    bytes: u64,
}

impl Content<'_> {
    /// `len` bytes at `at`, or as many as there are.
    fn read(&self, at: u64, len: usize) -> io::Result<Bytes> {
        let left = usize::try_from(self.bytes.saturating_sub(at)).map_err(io::Error::other)?;
        let len = len.min(left);
        if len > WINDOW_BYTES {
            return self.file.view(at, len);
        }
        let mut buf = vec![0; len];
        let read = self.file.read_at(at, &mut buf)?;
        buf.truncate(read);
        Ok(buf.into())
    }

    /// The record at a place, if a whole one is there.
    fn record(&self, at: u64) -> io::Result<Option<Bytes>> {
        let Peek::Record { size } = record::peek(&self.read(at, PAGE_BYTES)?) else {
            return Ok(None);
        };
        let raw = self.read(at, size)?;
        Ok(is_record(&raw, 0, self.base.0 + at).map(|size| raw.slice(..size)))
    }

    /// The last record. It is looked for from the end, without a walk over all of them. `whole` says that
    /// a blank may follow it, which fills the segment.
    fn last_record(&self, whole: bool) -> io::Result<Option<Bytes>> {
        let magics = [record::MAGIC_V1, record::MAGIC_V2].map(u32::to_be_bytes);
        let mut to = self.bytes;
        while to > 0 {
            let from = to.saturating_sub(WINDOW_BYTES as u64 - 3);
            // A magic that begins in this window may end behind it.
            let window = self.read(from, WINDOW_BYTES)?;
            for at in (0..window.len().saturating_sub(3)).rev() {
                if window[at] != magics[0][0]
                    || !magics.iter().any(|magic| window[at..].starts_with(magic))
                {
                    continue;
                }
                let Some(start) = (from + at as u64).checked_sub(record::MAGIC_AT as u64) else {
                    continue;
                };
                let Some(raw) = self.record(start)? else {
                    continue;
                };
                let end = start + raw.len() as u64;
                let rest = self.bytes - end;
                let is_blank = |head| matches!(record::peek(head), Peek::Blank { size } if size as u64 == rest);
                if rest == 0 || whole && is_blank(&self.read(end, record::BLANK_LEN)?) {
                    return Ok(Some(raw));
                }
            }
            to = from;
        }
        Ok(None)
    }

    /// The pages are the same for equal bases, and spread over the content.
    fn samples_crc(&self) -> io::Result<u32> {
        let pages = self.bytes.div_ceil(PAGE_BYTES as u64);
        (0..SAMPLES).try_fold(0, |crc, nth| {
            // splitmix64, so that neighbouring segments are looked at in other places.
            let mut x = self
                .base
                .0
                .wrapping_add((nth + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^= x >> 31;
            let page = self.read(x % pages * PAGE_BYTES as u64, PAGE_BYTES)?;
            Ok(crc32c::crc32c_append(crc, &page))
        })
    }
}
