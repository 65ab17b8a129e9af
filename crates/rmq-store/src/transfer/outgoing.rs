//! Reading a store to send it.

use std::io;

use super::outline::{Outline, Part};
use crate::raft_index::FILE_LEN;
use crate::reader::{LogReader, ReadError};
use crate::types::{EntryId, LogIndex, PhyOffset};

/// A log that is being sent, up to one of its committed entries.
///
/// It holds nothing back: what retention removes while it is being sent cannot be read any more,
/// and a new transfer then goes on from where this one was.
#[derive(Debug, Clone)]
pub struct Outgoing {
    outline: Outline,
    log: LogReader,
}

impl Outgoing {
    /// All that the log has up to the entry `last`, which is committed and ends at `end`.
    ///
    /// # Errors
    /// If the first entry that is not purged cannot be read.
    pub fn new(log: &LogReader, last: EntryId, end: PhyOffset) -> Result<Self, ReadError> {
        // In this order: the start rises before the first entry does.
        let start = log.min_offset();
        let (purged, base) = loop {
            let purged = log.purged_id();
            let first = purged.map_or(LogIndex(0), |id| id.index.next());
            if first > last.index {
                break (purged, end);
            }
            match log.entry(first)? {
                Some(entry) => break (purged, entry.start),
                // It was purged just now.
                None if log.purged_id() != purged => {}
                None => return Err(ReadError::NoCell(first)),
            }
        };
        let outline = Outline {
            generation: log.shared.generation,
            segment_bytes: log.segment_bytes(),
            start,
            base,
            purged,
            last,
            end,
        };
        Ok(Self {
            outline,
            log: log.clone(),
        })
    }

    /// What is sent.
    #[must_use]
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The bytes of a part from `at` on, which lies in its range: `most` bytes or less, at least one,
    /// all of one file.
    ///
    /// # Errors
    /// `NotFound` where retention was faster.
    pub fn read(&self, part: Part, at: u64, most: usize) -> io::Result<Vec<u8>> {
        let (_, end) = self.outline.range(part);
        let file_bytes = match part {
            Part::Log => self.outline.segment_bytes,
            Part::Index => FILE_LEN,
        };
        let room = (file_bytes - at % file_bytes).min(end - at);
        let len = usize::try_from(room).map_or(most, |room| room.min(most));
        let mut bytes = vec![0; len];
        let file = match part {
            Part::Log => self.log.shared.segments.at(PhyOffset(at)).map(|s| s.file),
            Part::Index => self.log.shared.index.file_at(at)?,
        };
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        if file.read_at(at % file_bytes, &mut bytes)? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// CRC-32C of the `len` bytes of a part before `at`, all of one file; `None` if they are not there.
    #[must_use]
    pub fn crc_before(&self, part: Part, at: u64, len: u64) -> Option<u32> {
        let (start, end) = self.outline.range(part);
        let from = at
            .checked_sub(len)
            .filter(|from| *from >= start && at <= end)?;
        let bytes = self.read(part, from, usize::try_from(len).ok()?).ok()?;
        (bytes.len() as u64 == len).then(|| crc32c::crc32c(&bytes))
    }
}
