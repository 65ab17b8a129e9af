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
const WINDOW_BYTES: usize = 1 << 20;

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
    let content = view(&*file, bytes).map_err(at)?;
    let first = is_record(&content, 0, base.0)
        .ok_or_else(|| MeasureError::FirstRecord { path: path.clone() })?;
    let whole = bytes == segment_bytes;
    let last = last_record(&content, base, whole).ok_or_else(|| MeasureError::LastRecord {
        path: path.clone(),
        end: bytes,
    })?;
    Ok(GenesisSegment {
        base,
        bytes,
        first_record_crc: crc32c::crc32c(&content[..first]),
        last_record_crc: crc32c::crc32c(&content[last]),
        samples_crc: samples_crc(&content, base),
    })
}

fn view(file: &dyn DiskFile, bytes: u64) -> io::Result<Bytes> {
    file.view(0, usize::try_from(bytes).map_err(io::Error::other)?)
}

/// Where the last record of a segment lies, given the part of it that is written. It is looked for
/// from the end, without a walk over all of them. `whole` says that a blank may follow it, which
/// fills the segment.
#[must_use]
pub fn last_record(content: &[u8], base: PhyOffset, whole: bool) -> Option<std::ops::Range<usize>> {
    let magics = [record::MAGIC_V1, record::MAGIC_V2].map(u32::to_be_bytes);
    let mut to = content.len();
    while to > 0 {
        let from = to.saturating_sub(WINDOW_BYTES);
        // A magic that begins in this window may end behind it.
        let window = &content[from..content.len().min(to + 3)];
        for at in (0..window.len().saturating_sub(3)).rev() {
            if window[at] != magics[0][0]
                || !magics.iter().any(|magic| window[at..].starts_with(magic))
            {
                continue;
            }
            let Some(start) = (from + at).checked_sub(record::MAGIC_AT) else {
                continue;
            };
            let Some(size) = is_record(content, start, base.0) else {
                continue;
            };
            let end = start + size;
            let rest = content.len() - end;
            if rest == 0 || whole && record::peek(&content[end..]) == (Peek::Blank { size: rest }) {
                return Some(start..end);
            }
        }
        to = from;
    }
    None
}

/// The pages are the same for equal bases, and spread over the content.
fn samples_crc(content: &[u8], base: PhyOffset) -> u32 {
    let pages = content.len().div_ceil(PAGE_BYTES) as u64;
    (0..SAMPLES).fold(0, |crc, nth| {
        // splitmix64, so that neighbouring segments are looked at in other places.
        let mut x = base
            .0
            .wrapping_add((nth + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let page = usize::try_from(x % pages).expect("as many as a slice has");
        let start = page * PAGE_BYTES;
        let end = content.len().min(start + PAGE_BYTES);
        crc32c::crc32c_append(crc, &content[start..end])
    })
}
