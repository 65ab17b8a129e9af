//! How long a run will take, from how fast the source can be read.

use std::fs::File;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::problem::Problem;
use crate::progress::{Progress, bytes};
use crate::source::Source;
use crate::walk::read_up_to;

/// How long is read to see how fast that is.
const SAMPLE_TIME: Duration = Duration::from_secs(2);
const STEP_BYTES: usize = 4 << 20;
/// What a run takes however little there is to do: files are made and synced.
const LEAST_SECONDS: u64 = 2;

/// A guess before a run.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// What the run reads, or writes at the speed of reading.
    pub bytes: u64,
    pub bytes_per_second: u64,
    pub seconds: u64,
}

impl Estimate {
    /// Reads for up to two seconds from all over the log. `bytes` are what the run will read.
    pub(crate) fn make(source: &Source, bytes: u64, progress: &Progress) -> Result<Self, Problem> {
        progress.phase("measuring the disk", 0);
        let begun = Instant::now();
        let mut read = 0;
        let mut buf = vec![0; STEP_BYTES];
        let steps = source.segment_bytes.div_ceil(STEP_BYTES as u64);
        'sample: for step in 0..steps {
            for segment in &source.segments {
                let at = |error| Problem::reading(&segment.path, &error);
                let file = File::open(&segment.path).map_err(at)?;
                let got = read_up_to(&file, step * STEP_BYTES as u64, &mut buf).map_err(at)?;
                read += got as u64;
                progress.add(got as u64);
                if begun.elapsed() >= SAMPLE_TIME {
                    break 'sample;
                }
            }
        }
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let bytes_per_second = (read.saturating_mul(1_000_000) / micros.max(1)).max(1);
        Ok(Self {
            bytes,
            bytes_per_second,
            seconds: LEAST_SECONDS + bytes / bytes_per_second,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let (minutes, seconds) = (self.seconds / 60, self.seconds % 60);
        format!(
            "about {minutes} min {seconds} s: {} to read, at {}/s as just measured",
            bytes(self.bytes),
            bytes(self.bytes_per_second)
        )
    }
}
