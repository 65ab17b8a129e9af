//! The genesis: what a store has taken over from another broker.
//!
//! A migrated store begins with the commit log of that broker, unchanged; the Raft log begins where
//! it ends. The file `genesis` in the store's root says which segments these are, by lengths and
//! checksums that are quick to take, and what the metadata were. Nodes that have the same genesis
//! have the same past and may form a group; the metadata are the first state of all of them.
//!
//! `measure` takes the checksums. The file is JSON for people, and nothing writes it twice.

mod measure;
#[cfg(test)]
pub(crate) mod tests;

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use rmq_wire::body::{
    ConsumerOffsetSerializeWrapper, DelayOffsetSerializeWrapper, SubscriptionGroupWrapper,
    TopicConfigSerializeWrapper,
};
use rmq_wire::json;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::consume_queue::fnv_1a;
use crate::disk::{Disk, OpenMode};
use crate::types::PhyOffset;

pub use measure::MeasureError;

/// Name of the file in the store's root.
pub const GENESIS_FILE: &str = "genesis";
const VERSION: u32 = 1;
/// What stands before the checksum in the file's second line.
const CRC_MARK: &str = "crc32c ";

/// What a store has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Genesis {
    version: u32,
    /// Number that headers of the Raft log on top bear. Never 0, and made from the content: a store
    /// that comes back with more history has another one.
    pub generation: i32,
    /// Bytes of a segment's file.
    pub segment_bytes: u64,
    /// Position of the first byte.
    pub start: PhyOffset,
    /// Behind the last record: the Raft log begins here.
    pub end: PhyOffset,
    /// Neighbours, from `start` to `end`.
    pub segments: Vec<GenesisSegment>,
    pub metadata: GenesisMetadata,
}

/// One segment, or that part of the last one that is history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenesisSegment {
    /// Position of its first byte, which names its file.
    pub base: PhyOffset,
    /// Bytes of it that are history: all but in the last one.
    pub bytes: u64,
    /// CRC-32C of the first record.
    pub first_record_crc: u32,
    /// CRC-32C of the last record.
    pub last_record_crc: u32,
    /// CRC-32C of some pages, which the base decides on.
    pub samples_crc: u32,
}

/// The state of the other broker beside its messages, as Java's files under `config/` have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisMetadata {
    pub topics: TopicConfigSerializeWrapper,
    pub groups: SubscriptionGroupWrapper,
    pub offsets: ConsumerOffsetSerializeWrapper,
    pub delay: DelayOffsetSerializeWrapper,
}

/// Why a file is no genesis.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GenesisError {
    #[error("it does not end with a line \"{CRC_MARK}\" and eight hexadecimal digits")]
    NoCrc,
    #[error("its checksum is {found:08x}, it says {said:08x}")]
    Crc { found: u32, said: u32 },
    #[error("it is no genesis: {0}")]
    Json(String),
    #[error("its version is {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("its segments do not cover {start} to {end}")]
    Segments { start: PhyOffset, end: PhyOffset },
    #[error("it says generation {said}, its content gives {made}")]
    Generation { said: i32, made: i32 },
}

/// How the commit log differs from its genesis.
#[derive(Debug, Error)]
pub enum GenesisMismatch {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error("{} is missing", path.display())]
    Missing { path: PathBuf },
    #[error("{} is not the one of the genesis: {what} differs", path.display())]
    Differs { path: PathBuf, what: &'static str },
}

impl Genesis {
    /// Measures the segments in a directory up to `end`, the end of a record, which must all be
    /// there.
    ///
    /// # Errors
    /// The disk's, or a segment that does not begin and end with whole records.
    pub fn measure(
        disk: &dyn Disk,
        commit_log_dir: &Path,
        segment_bytes: u64,
        range: std::ops::Range<PhyOffset>,
        metadata: GenesisMetadata,
    ) -> Result<Self, MeasureError> {
        let (start, end) = (range.start, range.end);
        let mut segments = Vec::new();
        let mut base = start;
        while base < end {
            let bytes = segment_bytes.min(end - base);
            segments.push(measure::segment(
                disk,
                commit_log_dir,
                base,
                bytes,
                segment_bytes,
            )?);
            base = base + segment_bytes;
        }
        let mut genesis = Self {
            version: VERSION,
            generation: 0,
            segment_bytes,
            start,
            end,
            segments,
            metadata,
        };
        genesis.generation = genesis.made_generation();
        Ok(genesis)
    }

    /// Two nodes with the same digest have taken over the same. It has parts, for people who compare
    /// two: range, log, metadata.
    #[must_use]
    pub fn digest(&self) -> String {
        let log = fnv_1a(json::to_vec(&(self.segment_bytes, &self.segments)));
        let metadata = fnv_1a(json::to_vec(&self.metadata));
        let Self {
            generation,
            start,
            end,
            ..
        } = self;
        format!(
            "bytes {start} to {end}, log {log:016x}, metadata {metadata:016x}, generation {generation}"
        )
    }

    /// From 1 to the largest number.
    fn made_generation(&self) -> i32 {
        let anonymous = Self {
            generation: 0,
            ..self.clone()
        };
        let hash = fnv_1a(json::to_vec(&anonymous)) % u64::from(i32::MAX.unsigned_abs());
        i32::try_from(hash + 1).expect("a remainder by i32::MAX, and one")
    }

    /// The file's bytes: a line of JSON, and one with its checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = json::to_vec(self);
        let crc = crc32c::crc32c(&text);
        text.extend(crc_line(crc).into_bytes());
        text
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`GenesisError`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, GenesisError> {
        let tail = 1 + CRC_MARK.len() + 8 + 1;
        let at = bytes.len().checked_sub(tail).ok_or(GenesisError::NoCrc)?;
        let (text, tail) = bytes.split_at(at);
        let said = std::str::from_utf8(tail)
            .ok()
            .and_then(|tail| tail.strip_prefix('\n')?.strip_prefix(CRC_MARK))
            .and_then(|hex| u32::from_str_radix(hex.strip_suffix('\n')?, 16).ok())
            .filter(|said| tail == crc_line(*said).as_bytes())
            .ok_or(GenesisError::NoCrc)?;
        let found = crc32c::crc32c(text);
        if found != said {
            return Err(GenesisError::Crc { found, said });
        }
        let genesis: Self =
            json::from_slice(text).map_err(|error| GenesisError::Json(error.to_string()))?;
        if genesis.version != VERSION {
            return Err(GenesisError::Version(genesis.version));
        }
        genesis.check_segments()?;
        let (said, made) = (genesis.generation, genesis.made_generation());
        if said == made {
            Ok(genesis)
        } else {
            Err(GenesisError::Generation { said, made })
        }
    }

    fn check_segments(&self) -> Result<(), GenesisError> {
        let Self { start, end, .. } = *self;
        let size = self.segment_bytes;
        let mut at = start;
        let neighbours = size > 0
            && start.0.is_multiple_of(size)
            && i64::try_from(end.0).is_ok()
            && self.segments.iter().all(|segment| {
                let expected = end.0.checked_sub(at.0).map(|left| left.min(size));
                let right = segment.base == at && expected == Some(segment.bytes);
                at = PhyOffset(at.0.saturating_add(segment.bytes));
                right && segment.bytes > 0
            });
        if neighbours && at == end {
            Ok(())
        } else {
            Err(GenesisError::Segments { start, end })
        }
    }

    /// Reads the genesis of a store; `None` if it has none.
    ///
    /// # Errors
    /// The disk's; `InvalidData` with the reason for a file that is damaged.
    pub fn read(disk: &dyn Disk, root: &Path) -> io::Result<Option<Self>> {
        let file = match disk.open(&root.join(GENESIS_FILE), OpenMode::Read) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = vec![0; usize::try_from(file.size()?).map_err(io::Error::other)?];
        let read = file.read_at(0, &mut bytes)?;
        let genesis = Self::decode(&bytes[..read]);
        genesis
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Puts the genesis into a store's root. Durable on return.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, disk: &dyn Disk, root: &Path) -> io::Result<()> {
        let path = root.join(GENESIS_FILE);
        let new = root.join("genesis.new");
        let bytes = self.encode();
        let file = disk.open(&new, OpenMode::Create)?;
        file.set_len(bytes.len() as u64)?;
        file.write_at(0, &[IoSlice::new(&bytes)])?;
        file.sync()?;
        disk.rename(&new, &path)?;
        disk.sync_dir(root)
    }

    /// Compares the segments with a commit log, those before `first` apart: they have been deleted.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(
        &self,
        disk: &dyn Disk,
        commit_log_dir: &Path,
        first: PhyOffset,
    ) -> Result<(), GenesisMismatch> {
        for said in self.segments.iter().filter(|said| said.base >= first) {
            let path = commit_log_dir.join(crate::segment::file_name(said.base.0));
            let (base, bytes) = (said.base, said.bytes);
            let found =
                match measure::segment(disk, commit_log_dir, base, bytes, self.segment_bytes) {
                    Err(MeasureError::Io { source, .. })
                        if source.kind() == io::ErrorKind::NotFound =>
                    {
                        return Err(GenesisMismatch::Missing { path });
                    }
                    other => other?,
                };
            let differs = |what| {
                let path = path.clone();
                Err(GenesisMismatch::Differs { path, what })
            };
            if found.first_record_crc != said.first_record_crc {
                return differs("the first record");
            }
            if found.last_record_crc != said.last_record_crc {
                return differs("the last record");
            }
            if found.samples_crc != said.samples_crc {
                return differs("one of the sampled pages");
            }
        }
        Ok(())
    }
}

fn crc_line(crc: u32) -> String {
    format!("\n{CRC_MARK}{crc:08x}\n")
}
