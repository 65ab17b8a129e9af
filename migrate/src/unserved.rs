//! What a Java broker of 5.x would have delivered yet, and a group of rmq does not: timer messages, and
//! those that were popped and not acknowledged.

use std::fs::File;
use std::io;
use std::path::Path;

use rmq_store::GenesisMetadata;

use crate::plan::Maxima;
use crate::problem::{Code, Problem};
use crate::walk::read_up_to;

/// The topic of messages that the timer wheel takes.
const TIMER_TOPIC: &str = "rmq_sys_wheel_timer";
/// Begins the name of the topic that pops and their acknowledgements are noted in, a cluster's name behind.
const REVIVE_PREFIX: &str = "rmq_sys_REVIVE_LOG_";
const REVIVE_GROUP: &str = "CID_RMQ_SYS_REVIVE_GROUP";
const SLOT_BYTES: usize = 32;
/// Slots that are read at once.
const SLOTS: usize = 1 << 15;

/// How far the timer wheel was read, as an inspection has it: `config/timercheck` begins with `i64` time up
/// to which the wheel was read, `i64`, and `i64` next place of the queue; a slot of `timerwheel` has 32
/// bytes: `i64` time in seconds, `i64`, `i64`, `i32` messages, `i32`.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    /// Next place of the queue that the wheel takes from.
    taken: u64,
    /// Messages in the wheel that are not due yet.
    in_wheel: u64,
}

impl Timer {
    /// Of the store under `root`. One without a checkpoint has taken nothing yet.
    pub(crate) fn read(root: &Path) -> Result<Self, Problem> {
        let path = root.join("config/timercheck");
        let reading = |error| Problem::reading(&path, &error);
        let mut check = [0; 24];
        let Some(file) = open(&path).map_err(reading)? else {
            return Ok(Self::default());
        };
        if read_up_to(&file, 0, &mut check).map_err(reading)? < check.len() {
            return Ok(Self::default());
        }
        let long = |at: usize| i64::from_be_bytes(check[at..at + 8].try_into().expect("8 bytes"));
        let (Ok(read_ms), Ok(taken)) = (u64::try_from(long(0)), u64::try_from(long(16))) else {
            return Ok(Self::default());
        };
        let in_wheel = in_wheel(&root.join("timerwheel"), read_ms)?;
        Ok(Self { taken, in_wheel })
    }

    /// Messages that wait for their time.
    pub(crate) fn waiting(&self, maxima: &Maxima) -> u64 {
        let end = maxima.get(&(TIMER_TOPIC.to_owned(), 0)).copied();
        end.map_or(0, |end| end.saturating_sub(self.taken) + self.in_wheel)
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn in_wheel(path: &Path, read_ms: u64) -> Result<u64, Problem> {
    let reading = |error| Problem::reading(path, &error);
    let Some(file) = open(path).map_err(reading)? else {
        return Ok(0);
    };
    let (mut found, mut at) = (0, 0);
    let mut buf = vec![0; SLOTS * SLOT_BYTES];
    loop {
        let read = read_up_to(&file, at, &mut buf).map_err(reading)?;
        for slot in buf[..read].as_chunks::<SLOT_BYTES>().0 {
            let seconds = u64::from_be_bytes(*slot.first_chunk().expect("32 bytes"));
            let messages = i32::from_be_bytes(*slot[24..].first_chunk().expect("8 bytes"));
            if seconds.saturating_mul(1000) >= read_ms {
                found += u64::try_from(messages).unwrap_or(0);
            }
        }
        at += read as u64;
        if read < buf.len() {
            return Ok(found);
        }
    }
}

/// Warnings of what nobody will deliver.
pub(crate) fn unserved(maxima: &Maxima, metadata: &GenesisMetadata, timer: &Timer) -> Vec<Problem> {
    let mut notes = Vec::new();
    let waiting = timer.waiting(maxima);
    if waiting > 0 {
        let what = format!("{waiting} timer messages wait for their time");
        notes.push(
            Problem::new(Code::Unserved, what)
                .why("rmq has no timer wheel yet: they are kept, and none of them is delivered")
                .hint("let the Java broker deliver them before it is stopped, if they matter"),
        );
    }
    for ((topic, id), end) in maxima {
        if !topic.starts_with(REVIVE_PREFIX) {
            continue;
        }
        let key = format!("{topic}@{REVIVE_GROUP}");
        let queues = metadata.offsets.offset_table.get(&key);
        // The offset of this group is that of the last message that it has read
        // (`PopReviveService.consumeReviveMessage`, 5.3).
        let last = queues.and_then(|queues| queues.get(id)).copied();
        let next = last.map_or(0, |at| u64::try_from(at.saturating_add(1)).unwrap_or(0));
        if *end > next {
            let what = format!("queue {id} of {topic} ends at {end}, it was read to {next}");
            notes.push(
                Problem::new(Code::Unserved, what)
                    .why("messages that were popped, and are not acknowledged there, do not come again")
                    .hint(
                        "stop what pops, and leave the Java broker time to read the queue to its \
                         end, before it is stopped",
                    ),
            );
        }
    }
    notes
}
