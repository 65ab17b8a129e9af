//! Looking for damage: in what a reader is about to see for the first time since the store was
//! opened, and at leisure in everything that is not written to any more.
//!
//! Entries are verified as a whole. Records before the first entry have a checksum of their own.

use std::sync::atomic::{AtomicU64, Ordering};

use rmq_wire::record::{self, Peek};

use crate::damage::Damage;
use crate::reader::{LogReader, ReadError};
use crate::recovery::is_record;
use crate::types::{LogIndex, PhyOffset};

/// What is verified together before its first read.
const BLOCK_BYTES: u64 = 64 * 1024;

/// The committed entries that were there before this process, and which blocks of them it has
/// verified.
#[derive(Debug, Default)]
pub(crate) struct Cold {
    first_block: u64,
    end: PhyOffset,
    verified: Vec<AtomicU64>,
}

impl Cold {
    pub(crate) fn new(start: PhyOffset, end: PhyOffset) -> Self {
        let first_block = start.0 / BLOCK_BYTES;
        let blocks = end.0.div_ceil(BLOCK_BYTES).saturating_sub(first_block);
        let words = usize::try_from(blocks.div_ceil(64)).expect("addresses have 64 bits");
        Self {
            first_block,
            end,
            verified: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        }
    }

    /// The word and the bit of each block that touches a range.
    fn bits(&self, from: PhyOffset, to: PhyOffset) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let blocks = from.0 / BLOCK_BYTES..to.0.div_ceil(BLOCK_BYTES);
        blocks.filter_map(|block| {
            let block = block.checked_sub(self.first_block)?;
            let word = self.verified.get(usize::try_from(block / 64).ok()?)?;
            Some((word, 1 << (block % 64)))
        })
    }

    fn is_verified(&self, from: PhyOffset, to: PhyOffset) -> bool {
        self.bits(from, to)
            .all(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    fn note_verified(&self, from: PhyOffset, to: PhyOffset) {
        for (word, bit) in self.bits(from, to) {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }
}

/// What one step has looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub bytes: u64,
    /// Where the next step goes on; `None` at the end of what is not written to any more.
    pub next: Option<PhyOffset>,
}

impl LogReader {
    /// Verifies a range before it is read, unless this process has done so before or has written it;
    /// the first damage in it, if there is any. Of records before the first entry nothing
    /// is known but what was found before.
    pub(crate) fn check(&self, pos: PhyOffset, len: u64) -> Result<(), Damage> {
        let shared = &self.shared;
        let end = pos + len;
        let known = || shared.damages.touching(pos, end).map_or(Ok(()), Err);
        known()?;
        let (from, to) = (pos.max(self.base_offset()), end.min(shared.cold.end));
        if from >= to || shared.cold.is_verified(from, to) {
            return Ok(());
        }
        let from = PhyOffset(from.0 - from.0 % BLOCK_BYTES).max(self.base_offset());
        let to = PhyOffset(to.0.next_multiple_of(BLOCK_BYTES)).min(shared.cold.end);
        match self.verify(from, to) {
            Ok(_) => shared.cold.note_verified(from, to),
            Err(error) => tracing::error!(%pos, %error, "cannot verify the log"),
        }
        known()
    }

    /// The same for a range that starts with a record, which before the first entry is verified too.
    pub(crate) fn check_records(&self, pos: PhyOffset, len: u64) -> Result<(), Damage> {
        let segments = &self.shared.segments;
        let end = self
            .base_offset()
            .min(segments.base_of(pos) + segments.bytes);
        if pos < end && self.shared.damages.touching(pos, pos + len).is_none() {
            self.verify_records(pos, end, len);
        }
        self.check(pos, len)
    }

    /// Verifies about `most` bytes from `from` on, or from the log's first byte if that is behind it,
    /// as far as they are not written to any more. What is damaged can no longer be read.
    pub fn scrub(&self, from: PhyOffset, most: u64) -> Result<Scrubbed, ReadError> {
        let segments = &self.shared.segments;
        let from = from.max(self.min_offset());
        let limit = segments.base_of(self.confirm_offset());
        if from >= limit {
            return Ok(Scrubbed::default());
        }
        let base = self.base_offset();
        let next = if from < base {
            self.verify_records(
                from,
                base.min(segments.base_of(from) + segments.bytes),
                most,
            )
        } else {
            self.verify(from, limit.min(from + most))?
        };
        Ok(Scrubbed {
            bytes: next - from,
            next: Some(next),
        })
    }

    /// Verifies the entries that touch a range, and returns where the last of them ends.
    fn verify(&self, from: PhyOffset, to: PhyOffset) -> Result<PhyOffset, ReadError> {
        let mut at = from;
        while at < to {
            let mut index = match self.entry_at(at)? {
                Place::Entry(index) => index,
                Place::Damaged(end) => {
                    at = end;
                    continue;
                }
                Place::Nowhere => return Ok(to),
            };
            while at < to {
                match self.whole(index) {
                    Ok(Some((header, _))) => at = header.end(),
                    Ok(None) => return Ok(to),
                    Err(error) => match self.shared.damages.touching(at, to) {
                        Some(damage) => {
                            at = damage.end;
                            break;
                        }
                        None => return Err(error),
                    },
                }
                index = index.next();
            }
        }
        Ok(at)
    }

    /// The entry that a position lies in.
    fn entry_at(&self, pos: PhyOffset) -> Result<Place, ReadError> {
        let (Some(first), Some(last)) = (self.first_index(), self.last_id()) else {
            return Ok(Place::Nowhere);
        };
        let (mut low, mut high) = (first.0, last.index.0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let index = LogIndex(middle);
            let is_before = match self.entry(index) {
                Ok(entry) => entry.is_none_or(|entry| entry.end <= pos),
                Err(error) => {
                    let Some(damage) = self.shared.locate(index, error.to_string()) else {
                        return Err(error);
                    };
                    if damage.start <= pos && pos < damage.end {
                        return Ok(Place::Damaged(damage.end));
                    }
                    damage.end <= pos
                }
            };
            if is_before {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(if low > last.index.0 {
            Place::Nowhere
        } else {
            Place::Entry(LogIndex(low))
        })
    }

    /// Verifies records of one segment, and returns where the last of them ends.
    fn verify_records(&self, from: PhyOffset, end: PhyOffset, most: u64) -> PhyOffset {
        let shared = &self.shared;
        // Removed meanwhile.
        let Ok(bytes) = shared.segments.view_up_to(from, end - from) else {
            return end;
        };
        let mut done = 0;
        while done < bytes.len() && (done as u64) < most {
            let rest = &bytes[done..];
            let whole = is_record(rest, 0, from.0 + done as u64);
            let (size, is_whole) = match (whole, record::peek(rest)) {
                (Some(size), _) => (size, true),
                (None, Peek::Blank { size }) if size == rest.len() => (size, true),
                (None, _) => {
                    let next = (1..rest.len()).find(|at| {
                        let word = rest
                            .get(at + record::MAGIC_AT..)
                            .and_then(|at| at.first_chunk());
                        let magics = [record::MAGIC_V1, record::MAGIC_V2].map(u32::to_be_bytes);
                        word.is_some_and(|word| magics.contains(word))
                            && is_record(&rest[*at..], 0, from.0 + (done + at) as u64).is_some()
                    });
                    (next.unwrap_or(rest.len()), false)
                }
            };
            if !is_whole {
                let start = from + done as u64;
                let place = (start, start + size as u64);
                let reason = "there is no whole record".to_owned();
                shared.damages.add(shared.damage(None, place, reason));
            }
            done += size;
        }
        from + done as u64
    }
}

/// What a position belongs to.
enum Place {
    Entry(LogIndex),
    /// A damaged part, which ends here.
    Damaged(PhyOffset),
    Nowhere,
}
