//! How far the log of a classic store goes, and what a crash left of its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rmq_wire::record::Record;
use serde::Serialize;

use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::source::{Segment, Source, empty};
use crate::walk::{self, End};

/// Messages behind the cut that are listed one by one.
const LISTED: usize = 1000;
/// One segment in so many is read record by record with `--verify sample`.
const SAMPLE: usize = 64;

/// How much is read before anything is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// The last segment only.
    None,
    /// The last segment, and one in 64 of the others.
    Sample,
    /// Every record.
    Full,
}

impl Verify {
    /// Which of some sealed segments are read record by record.
    fn chosen(self, segments: usize) -> Vec<usize> {
        let wanted = |nth: &usize| match self {
            Self::None => false,
            Self::Sample => nth.is_multiple_of(SAMPLE),
            Self::Full => true,
        };
        (0..segments).filter(wanted).collect()
    }
}

/// A range of records.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    pub start: u64,
    pub end: u64,
    /// Records read and found right, and their bytes.
    pub records_checked: u64,
    pub bytes_checked: u64,
    /// Messages read, by topic.
    pub by_topic: BTreeMap<String, u64>,
    /// Intact records behind the end, which are left out.
    pub cut: Vec<Cut>,
    pub cut_records: u64,
    /// Where and why the log was cut, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub torn: Option<Problem>,
}

/// A message that is left out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    pub position: u64,
    pub topic: String,
    pub queue_id: i32,
    pub queue_offset: i64,
}

/// What a walk over one segment found.
struct Walked {
    end: End,
    records: u64,
    by_topic: BTreeMap<String, u64>,
}

impl History {
    /// Finds the end of the log, and checks as many of the records before it as `verify` says; all
    /// of them after a crash, for what was not synced then may be anywhere.
    pub fn find(
        source: &Source,
        verify: Verify,
        accept_torn_tail: bool,
        progress: &Progress,
    ) -> Result<Self, Problem> {
        let verify = if source.clean { verify } else { Verify::Full };
        let mut history = Self::default();
        // Files that were made ahead of need have nothing in them.
        let mut used = source.segments.len();
        let mut tail = loop {
            let Some(last) = used.checked_sub(1).map(|nth| &source.segments[nth]) else {
                return Err(empty(&source.log_dir));
            };
            let walked = walk_segment(source, last, progress)?;
            if walked.end == End::Zeros(0) && !has_records(source, last, 0)? {
                used -= 1;
                continue;
            }
            break walked;
        };
        history.start = source.segments[0].base;
        let nths = verify.chosen(used - 1);
        let mut end_at = used - 1;
        for (nth, walked) in nths
            .iter()
            .zip(walk_all(source, &source.segments, &nths, progress)?)
        {
            let broken = walked.end != End::Full;
            history.count(&walked, source.segment_bytes);
            if broken {
                // Everything from here on is cut, as Java's recovery does.
                (end_at, tail) = (*nth, walked);
                break;
            }
        }
        let last = &source.segments[end_at];
        if end_at == used - 1 {
            history.count(&tail, source.segment_bytes);
        }
        let within = match &tail.end {
            End::Full => source.segment_bytes,
            End::Zeros(at) | End::Bad { at, .. } => *at,
        };
        history.end = last.base + within;
        let torn = history.torn_at(source, (end_at, used), &tail.end)?;
        let Some(torn) = torn else {
            return Ok(history);
        };
        if within == 0 && end_at == 0 {
            return Err(
                torn.hint("no record is intact: restore the file from the slave or a backup")
            );
        }
        if !accept_torn_tail {
            return Err(torn);
        }
        history.torn = Some(torn);
        Ok(history)
    }

    /// Of a DLedger node, whose own log is looked at when it is written anew: that the commit log below
    /// it, if there is one, is whole.
    pub fn of_dledger(
        source: &Source,
        verify: Verify,
        progress: &Progress,
    ) -> Result<Self, Problem> {
        let own = source.segment_bytes * source.segments.len() as u64;
        let mut history = Self {
            start: source.start(),
            end: source.segments[0].base + own,
            ..Self::default()
        };
        let mut nths = verify.chosen(source.older.len());
        nths.extend(source.older.len().checked_sub(1));
        nths.dedup();
        let found = walk_all(source, &source.older, &nths, progress)?;
        for (nth, walked) in nths.iter().zip(found) {
            let segment = &source.older[*nth];
            let (at, reason) = match &walked.end {
                End::Full => {
                    history.count(&walked, source.segment_bytes);
                    continue;
                }
                End::Zeros(at) => (*at, "no record, though the DLedger log follows"),
                End::Bad { at, reason } => (*at, &**reason),
            };
            return Err(Problem::new(Code::BadRecord, reason)
                .at_file(&segment.path)
                .at_byte(at)
                .why("the commit log that the DLedger group began with is damaged here")
                .hint("restore the file from another node of the group or a backup"));
        }
        Ok(history)
    }

    fn count(&mut self, walked: &Walked, bytes: u64) {
        self.records_checked += walked.records;
        self.bytes_checked += bytes;
        for (topic, count) in &walked.by_topic {
            *self.by_topic.entry(topic.clone()).or_default() += count;
        }
    }

    /// What is wrong with the place where the records end, if anything is; fills in what is cut.
    fn torn_at(
        &mut self,
        source: &Source,
        (at, used): (usize, usize),
        end: &End,
    ) -> Result<Option<Problem>, Problem> {
        let (within, reason) = match end {
            End::Full => return Ok(None),
            End::Zeros(within) => (*within, None),
            End::Bad { at, reason } => (*at, Some(reason.clone())),
        };
        let size = source.segment_bytes;
        for (nth, segment) in source.segments[at..used].iter().enumerate() {
            let from = if nth == 0 { within } else { 0 };
            let file = open(segment)?;
            let visit = |pos: u64, record: &Record<'_>| {
                self.cut_records += 1;
                if self.cut.len() < LISTED {
                    self.cut.push(Cut {
                        position: segment.base + pos,
                        topic: record.topic.to_owned(),
                        queue_id: record.queue_id,
                        queue_offset: record.queue_offset,
                    });
                }
            };
            walk::find(&file, segment.base, size, from, visit)
                .map_err(|error| Problem::reading(&segment.path, &error))?;
        }
        let path = &source.segments[at].path;
        let more = self.cut_records;
        let reason = match reason {
            None if more == 0 => return Ok(None),
            None => "no record".to_owned(),
            Some(reason) => reason,
        };
        let problem = if more > 0 {
            Problem::new(Code::BadRecord, format!("{reason}, though {more} intact records follow"))
                .why("a crash that lost unwritten pages, or a damaged disk")
                .hint(
                    "restore the file from the slave, or give --accept-torn-tail: the log then ends here, \
                     as it would after a restart of the broker, and the report lists what is left out",
                )
        } else {
            Problem::new(
                Code::TornTail,
                format!("the log ends in the middle of a record: {reason}"),
            )
            .why("the broker was killed while it wrote; the record was never acknowledged as whole")
            .hint("give --accept-torn-tail to leave it out, as a restart of the broker would")
        };
        Ok(Some(problem.at_file(path).at_byte(within)))
    }
}

fn open(segment: &Segment) -> Result<File, Problem> {
    File::open(&segment.path).map_err(|error| Problem::reading(&segment.path, &error))
}

fn has_records(source: &Source, segment: &Segment, from: u64) -> Result<bool, Problem> {
    let mut found = false;
    walk::find(
        &open(segment)?,
        segment.base,
        source.segment_bytes,
        from,
        |_, _| found = true,
    )
    .map_err(|error| Problem::reading(&segment.path, &error))?;
    Ok(found)
}

fn walk_segment(
    source: &Source,
    segment: &Segment,
    progress: &Progress,
) -> Result<Walked, Problem> {
    let file = open(segment)?;
    let mut walked = Walked {
        end: End::Full,
        records: 0,
        by_topic: BTreeMap::new(),
    };
    let size = source.segment_bytes;
    let end = walk::walk(&file, segment.base, size, |_, record, raw| {
        walked.records += 1;
        progress.add_record(raw.len() as u64);
        match walked.by_topic.get_mut(record.topic) {
            Some(count) => *count += 1,
            None => drop(walked.by_topic.insert(record.topic.to_owned(), 1)),
        }
    });
    walked.end = end.map_err(|error| Problem::reading(&segment.path, &error))?;
    Ok(walked)
}

/// Walks some of the segments, on as many threads as there are processors.
fn walk_all(
    source: &Source,
    segments: &[Segment],
    nths: &[usize],
    progress: &Progress,
) -> Result<Vec<Walked>, Problem> {
    let bytes = nths.len() as u64 * source.segment_bytes;
    progress.phase("checking the records", bytes);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<(usize, Result<Walked, Problem>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(nths.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(nth) = nths.get(at) else { return };
                    let walked = walk_segment(source, &segments[*nth], progress);
                    found
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((at, walked));
                }
            });
        }
    });
    let mut found = found
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_unstable_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, walked)| walked).collect()
}
