//! The consume queues and index files of the source: whether they agree with its log, so that they
//! can be taken over as they are.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rmq_store::{Slot, UNIT_BYTES, Unit};
use rmq_wire::name;
use rmq_wire::record::Record;

use crate::problem::{Code, Problem};
use crate::source::{Source, exists, list};
use crate::walk::{self, read_up_to};

const UNIT: u64 = UNIT_BYTES as u64;
/// Java's default, for a store without queues.
const DEFAULT_FILE_BYTES: u64 = 300_000 * UNIT;

/// The queues of a store.
#[derive(Debug)]
pub(crate) struct SourceQueues {
    /// Length of all files.
    pub file_bytes: u64,
    pub queues: Vec<Queue>,
    /// Light message queues, with the number of their messages. rmq does not serve them.
    pub lmq: BTreeMap<String, u64>,
}

/// A queue with a unit.
#[derive(Debug)]
pub(crate) struct Queue {
    pub topic: String,
    pub id: i32,
    pub dir: PathBuf,
    /// Starts of its files, in bytes, up to the one with the last unit.
    pub files: Vec<u64>,
    /// Offset of the last unit.
    pub last: u64,
    pub unit: Unit,
}

impl SourceQueues {
    /// Reads the ends of all queues. `configured` is the length of files where there are none.
    pub(crate) fn read(
        source: &Source,
        configured: Option<u64>,
        notes: &mut Vec<Problem>,
    ) -> Result<Self, Problem> {
        let root = source.root.join("consumequeue");
        let mut found = Self {
            file_bytes: 0,
            queues: Vec::new(),
            lmq: BTreeMap::new(),
        };
        let mut foreign = |path: &Path| {
            notes.push(
                Problem::new(Code::ForeignFile, "it is no queue of a topic")
                    .at_file(path)
                    .why("it is not taken over"),
            );
        };
        for topic in list(&root)? {
            if !root.join(&topic).is_dir() {
                foreign(&root.join(&topic));
                continue;
            }
            for id in list(&root.join(&topic))? {
                let dir = root.join(&topic).join(&id);
                let Some(number) = id.parse::<i32>().ok().filter(|_| dir.is_dir()) else {
                    foreign(&dir);
                    continue;
                };
                if let Some(queue) = found.queue(topic.clone(), number, dir)? {
                    if topic.starts_with(name::LMQ_PREFIX) {
                        found.lmq.insert(topic.clone(), queue.last + 1);
                    } else {
                        found.queues.push(queue);
                    }
                }
            }
        }
        if found.file_bytes == 0 {
            let configured = configured.filter(|bytes| *bytes > 0);
            found.file_bytes =
                configured.map_or(DEFAULT_FILE_BYTES, |bytes| bytes.next_multiple_of(UNIT));
        }
        Ok(found)
    }

    fn queue(&mut self, topic: String, id: i32, dir: PathBuf) -> Result<Option<Queue>, Problem> {
        let mut files = Vec::new();
        for name in list(&dir)? {
            let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
            let Some(start) = name.parse::<u64>().ok().filter(|_| digits) else {
                continue;
            };
            let path = dir.join(&name);
            let meta = std::fs::metadata(&path).map_err(|error| Problem::reading(&path, &error))?;
            if self.file_bytes == 0 {
                self.file_bytes = meta.len();
            }
            let right = meta.len() == self.file_bytes
                && meta.len().is_multiple_of(UNIT)
                && start.is_multiple_of(self.file_bytes.max(1));
            // A crash may leave the last file with less than its length.
            if meta.len() == 0 {
                continue;
            }
            if !right {
                let what = format!(
                    "{} bytes, other queue files have {}",
                    meta.len(),
                    self.file_bytes
                );
                return Err(Problem::new(Code::QueueFileSize, what)
                    .at_file(&path)
                    .why("all queue files of a store have one length")
                    .hint("restore the file, or remove consumequeue: the queues are built anew from the log then"));
            }
            files.push(start);
        }
        while let Some(&start) = files.last() {
            if let Some((last, unit)) = last_unit(&dir, start, self.file_bytes)? {
                return Ok(Some(Queue {
                    topic,
                    id,
                    dir,
                    files,
                    last,
                    unit,
                }));
            }
            files.pop();
        }
        Ok(None)
    }

    /// Why the queues cannot be taken over as they are, if so: the first that disagrees with a log
    /// from `start` to `end`.
    pub(crate) fn disagreement(
        &self,
        source: &Source,
        (start, end): (u64, u64),
    ) -> Result<Option<String>, Problem> {
        if !source.clean {
            return Ok(Some("the broker was not stopped cleanly".to_owned()));
        }
        if !list(&source.root.join("consumequeue_ext"))?.is_empty() {
            return Ok(Some(
                "with enableConsumeQueueExt they refer to another file for their tags".to_owned(),
            ));
        }
        if self.queues.is_empty() {
            return Ok(Some("there are none".to_owned()));
        }
        for queue in &self.queues {
            let Queue {
                topic,
                id,
                unit,
                last,
                ..
            } = queue;
            if unit.end().0 > end {
                return Ok(Some(format!(
                    "queue {id} of topic {topic} goes on behind the log's end"
                )));
            }
            if unit.phy.0 < start {
                continue;
            }
            let nth = usize::try_from((unit.phy.0 - start) / source.segment_bytes);
            let segment = nth.ok().and_then(|nth| source.segments.get(nth));
            let Some(segment) = segment else { continue };
            let at = |error| Problem::reading(&segment.path, &error);
            let file = File::open(&segment.path).map_err(at)?;
            let mut raw = vec![0; unit.size as usize];
            read_up_to(&file, unit.phy.0 - segment.base, &mut raw).map_err(at)?;
            let agrees =
                walk::check(&raw, unit.phy.0).is_ok_and(|record| is_of(&record, topic, *id, *last));
            if !agrees {
                return Ok(Some(format!(
                    "the last message of queue {id} of topic {topic}, offset {last}, is not where the \
                     queue has it (a slave gets a topic wrong that was deleted and made again)"
                )));
            }
        }
        Ok(None)
    }
}

fn is_of(record: &Record<'_>, topic: &str, id: i32, offset: u64) -> bool {
    record.topic == topic
        && record.queue_id == id
        && u64::try_from(record.queue_offset) == Ok(offset)
}

/// The last unit in a file of a queue, and its offset in the queue.
fn last_unit(dir: &Path, start: u64, file_bytes: u64) -> Result<Option<(u64, Unit)>, Problem> {
    let path = dir.join(format!("{start:020}"));
    let at = |error| Problem::reading(&path, &error);
    let file = File::open(&path).map_err(at)?;
    let slot = |nth: u64| -> Result<Slot, Problem> {
        let mut unit = [0; UNIT_BYTES];
        read_up_to(&file, nth * UNIT, &mut unit).map_err(at)?;
        Ok(Slot::decode(&unit))
    };
    // Behind the last unit everything is zero.
    let (mut low, mut high) = (0, file_bytes / UNIT);
    while low < high {
        let middle = low + (high - low) / 2;
        if slot(middle)? == Slot::Empty {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    while low > 0 {
        low -= 1;
        if let Slot::Message(unit) = slot(low)? {
            return Ok(Some((start / UNIT + low, unit)));
        }
    }
    Ok(None)
}

/// The index files of a store.
#[derive(Debug, Default)]
pub(crate) struct SourceIndex {
    /// Names of those with entries, oldest first.
    pub files: Vec<String>,
    /// Why they are built anew, if so.
    pub rebuild: Option<String>,
}

impl SourceIndex {
    /// Looks at the headers. `layout` are the configured numbers of slots and entries.
    pub(crate) fn read(root: &Path, layout: (u32, u32)) -> Result<Self, Problem> {
        let dir = root.join("index");
        let expected = rmq_store::IndexLayout {
            slots: layout.0,
            entries: layout.1,
        }
        .file_bytes();
        let mut found = Self::default();
        for name in list(&dir)? {
            if name.len() != 17 || !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let path = dir.join(&name);
            let at = |error| Problem::reading(&path, &error);
            let file = File::open(&path).map_err(at)?;
            let bytes = file.metadata().map_err(at)?.len();
            let mut header = [0; rmq_store::HEADER_BYTES];
            read_up_to(&file, 0, &mut header).map_err(at)?;
            if rmq_store::IndexHeader::decode(&header).next_entry <= 1 {
                continue;
            }
            if bytes != expected {
                found.rebuild = Some(format!(
                    "{} has {bytes} bytes, not the {expected} of maxHashSlotNum={} and maxIndexNum={} \
                     (-c names the broker's properties file)",
                    path.display(),
                    layout.0,
                    layout.1
                ));
            }
            found.files.push(name);
        }
        if found.files.is_empty() {
            found.rebuild = Some("there are none".to_owned());
        }
        Ok(found)
    }
}

/// Whether a directory has anything in it.
pub(crate) fn has_files(dir: &Path) -> Result<bool, Problem> {
    Ok(exists(dir)? && !list(dir)?.is_empty())
}
