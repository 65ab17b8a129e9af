//! Two stores of one broker side by side: a slave's and its master's.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::history::History;
use crate::problem::{Code, Problem};
use crate::progress::{Progress, bytes};
use crate::source::{Kind, Source};
use crate::walk::{self, End, read_up_to};

/// Bytes that are compared at once.
const STEP_BYTES: usize = 1 << 20;

/// How another store relates to the source.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    pub with: PathBuf,
    /// The range that both have.
    pub common_start: u64,
    pub common_end: u64,
    /// Where its own log ends.
    pub its_end: u64,
    /// The first byte of the common range that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference: Option<u64>,
}

impl Comparison {
    /// Compares every byte that both logs have.
    pub fn make(
        source: &Source,
        history: &History,
        with: &Path,
        progress: &Progress,
    ) -> Result<Self, Problem> {
        let mut notes = Vec::new();
        let other = Source::open(with, None, &mut notes)?;
        if (source.kind, source.segment_bytes) != (Kind::Classic, other.segment_bytes)
            || other.kind != Kind::Classic
        {
            return Err(Problem::new(
                Code::StoresDiffer,
                format!(
                    "its segments have {} bytes, the source's {}",
                    other.segment_bytes, source.segment_bytes
                ),
            )
            .at_file(with)
            .why("these are not two stores of one broker"));
        }
        let its_end = end_of(&other)?;
        let start = source.segments[0].base.max(other.segments[0].base);
        let end = history.end.min(its_end);
        let mut found = Self {
            with: with.to_owned(),
            common_start: start,
            common_end: end,
            its_end,
            first_difference: None,
        };
        progress.phase("comparing the stores", end.saturating_sub(start));
        let mut at = start;
        while at < end {
            let step = source.segment_bytes - at % source.segment_bytes;
            let len = step.min(end - at).min(STEP_BYTES as u64);
            let (mine, its) = (read(source, at, len)?, read(&other, at, len)?);
            if let Some(nth) = mine.iter().zip(&its).position(|(a, b)| a != b) {
                found.first_difference = Some(at + nth as u64);
                break;
            }
            at += len;
            progress.add(len);
        }
        Ok(found)
    }

    /// What it means for the migration, if it is in the way of it.
    pub fn problem(&self, source: &Source, history: &History) -> Option<Problem> {
        let of = Problem::new;
        let problem = if let Some(at) = self.first_difference {
            of(
                Code::StoresDiffer,
                format!("the stores differ from position {at} on"),
            )
            .why("they were written by two masters, or one of them is damaged")
            .hint("give the one that clients wrote to last as --from, and leave the other out")
        } else if self.common_start >= self.common_end {
            of(
                Code::StoresDiffer,
                "the stores have no position in common".to_owned(),
            )
            .why("they belong to two brokers, or one is far behind")
            .hint("check that both are of the same broker")
        } else if self.its_end > history.end {
            let more = bytes(self.its_end - history.end);
            of(
                Code::StoresDiffer,
                format!("this store has {more} more than {}", source.root.display()),
            )
            .why("messages that were confirmed may be in the longer one only")
            .hint(format!(
                "use the longer one: --from {}",
                self.with.display()
            ))
        } else {
            return None;
        };
        Some(problem.at_file(&self.with))
    }
}

fn read(source: &Source, at: u64, len: u64) -> Result<Vec<u8>, Problem> {
    let nth = usize::try_from((at - source.segments[0].base) / source.segment_bytes)
        .unwrap_or(usize::MAX);
    let Some(segment) = source.segments.get(nth) else {
        return Ok(Vec::new());
    };
    let reading = |error| Problem::reading(&segment.path, &error);
    let file = File::open(&segment.path).map_err(reading)?;
    let mut content = vec![0; usize::try_from(len).unwrap_or(0)];
    read_up_to(&file, at - segment.base, &mut content).map_err(reading)?;
    Ok(content)
}

/// Where the records of a log end, torn or not.
fn end_of(source: &Source) -> Result<u64, Problem> {
    for segment in source.segments.iter().rev() {
        let reading = |error| Problem::reading(&segment.path, &error);
        let file = File::open(&segment.path).map_err(reading)?;
        let end = walk::walk(&file, segment.base, source.segment_bytes, |_, _, _| {});
        match end.map_err(reading)? {
            End::Full => return Ok(segment.base + source.segment_bytes),
            End::Zeros(0) => {}
            End::Zeros(at) | End::Bad { at, .. } => return Ok(segment.base + at),
        }
    }
    Ok(source.segments[0].base)
}
