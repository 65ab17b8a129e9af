//! The way back: from the store of a stopped node of rmq to one that a Java broker opens and serves.
//!
//! The log is a Java broker's already. What is taken over is opened once by rmq itself, on copies of
//! all that it writes to, so that queues and index go exactly to the end of the log; then the notes of
//! the Raft log are left out. Records of the Raft log stay where they are: no queue names them.
//!
//! A store that was frozen has everything. Otherwise that one of all nodes' stores is taken that has
//! the newest entry, as an election would (`choose`).

mod choose;
mod place;
mod report;
mod settings;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rmq_store::inspect::{self, FrozenPart};
use rmq_store::{Disk, IndexLayout, LogIndex, RealDisk, Store, StoreConfig};
use serde::Serialize;

use self::choose::{Node, check, choose, in_use, look};
use self::place::{length, place, restore};
use self::settings::{properties, settings};
use crate::conf::Conf;
use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::run::{free_target, only_run, parent, remove_file, with_suffix};
use crate::sizes::{self, Sizes};
use crate::source::{exists, list};
use crate::transfer::{Done, Transfer, write_file};
use crate::{Options, Verify};

/// In the target's root: what was done.
const REPORT_FILE: &str = "reverse.json";
/// In an unfinished target: that this program may remove it.
const MARK_FILE: &str = "reverse.unfinished";
/// What rmq notes of its log, and a Java broker has no use for.
const NOTES: [&str; 5] = [
    "raft.vote",
    "raft.checkpoint",
    "dispatched",
    "dispatched.queues",
    "genesis",
];

/// What was made of which store.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reversed {
    pub from: PathBuf,
    pub to: PathBuf,
    /// The entry that froze the group, if it was frozen.
    pub frozen: Option<FrozenPart>,
    /// The last entry of the Raft log that is in the store, and where it ends.
    pub last_term: u64,
    pub last_index: u64,
    pub end_offset: u64,
    /// Records of the whole log, and how many of them are headers of Raft entries.
    pub records: u64,
    pub raft_headers: u64,
    pub queues: usize,
    pub topics: usize,
    pub groups: usize,
    pub consumer_offsets: usize,
    pub files: Done,
    /// A properties file for the Java broker.
    pub conf_file: Option<PathBuf>,
    /// What may be missing.
    pub unconfirmed: Vec<String>,
    pub warnings: Vec<Problem>,
}

/// Makes the store and the configuration of a Java broker.
///
/// # Errors
/// The first thing that is in the way. The source is as it was, and there is no target.
pub fn reverse(options: &Options, progress: &Progress) -> Result<Reversed, Problem> {
    let to =
        std::path::absolute(&options.to).map_err(|error| Problem::reading(&options.to, &error))?;
    free_target(&to)?;
    let conf = options.conf.as_deref().map(Conf::read).transpose()?;
    let from = options.from.iter().chain(&options.compare_with);
    progress.phase("reading the stores", 0);
    let nodes = from.map(|root| look(root)).collect::<Result<Vec<_>, _>>()?;
    let mut done = Reversed {
        to: to.clone(),
        ..Reversed::default()
    };
    let node = choose(nodes, options, conf.as_ref(), &mut done)?;
    check(&node, &mut done)?;

    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let lock = node.root.join("lock");
    let _source = match exists(&lock)? {
        true => Some(disk.lock(&lock).map_err(|_| in_use(&node.root))?),
        false => None,
    };
    let partial = with_suffix(&to, ".partial-reverse");
    if exists(&partial.join(MARK_FILE))? {
        fs::remove_dir_all(&partial).map_err(|error| Problem::writing(&partial, &error))?;
    }
    fs::create_dir_all(&partial).map_err(|error| Problem::writing(&partial, &error))?;
    let _only = only_run(&partial)?;
    write_file(&partial.join(MARK_FILE), b"")?;

    let mut transfer = Transfer::new(options.mode, progress);
    place(&node, &partial, &mut transfer)?;
    let sizes = sizes_of(&node, &partial, conf.as_ref())?;
    derive(&sizes, &partial, progress)?;
    strip(&partial)?;
    restore(&node, &partial, &mut transfer)?;
    settings(&node, &partial, &mut done)?;
    done.conf_file = properties(&node, &to, &partial, &sizes, conf.as_ref())?;
    if options.verify != Verify::None {
        progress.phase("reading the result", 0);
        verify(&partial, &mut done)?;
    }
    transfer.sync(&partial)?;
    done.files = transfer.done;
    let text = serde_json::to_string_pretty(&done).expect("plain data") + "\n";
    write_file(&partial.join(REPORT_FILE), text.as_bytes())?;
    remove_file(&partial.join(MARK_FILE))?;
    let writing = |error| Problem::writing(&to, &error);
    disk.sync_dir(&partial).map_err(writing)?;
    fs::rename(&partial, &to).map_err(writing)?;
    disk.sync_dir(parent(&to)).map_err(writing)?;
    Ok(done)
}

/// What the Java broker has to be told.
fn sizes_of(node: &Node, partial: &Path, conf: Option<&Conf>) -> Result<Sizes, Problem> {
    let index = sizes::index(conf)?;
    let dir = partial.join("index");
    let layout = IndexLayout {
        slots: index.0,
        entries: index.1,
    };
    let wanted = layout.file_bytes();
    for name in list(&dir)? {
        let bytes = length(&dir.join(&name))?;
        if bytes != wanted {
            let what = format!(
                "it has {bytes} bytes, and {wanted} with maxHashSlotNum={} and maxIndexNum={}",
                index.0, index.1
            );
            return Err(Problem::new(Code::Conf, what)
                .at_file(&node.root.join("index").join(name))
                .hint("give the node's properties file with -c"));
        }
    }
    let queue_file = first_queue_file(&partial.join("consumequeue"))?;
    let default = StoreConfig::new(partial).consume_queue_file_bytes;
    Ok(Sizes {
        segment: node.found.log.segment_bytes,
        consume_queue_file: queue_file.unwrap_or(default),
        index,
        levels: sizes::levels(conf)?,
    })
}

/// Length of the queue files.
fn first_queue_file(root: &Path) -> Result<Option<u64>, Problem> {
    for topic in list(root)? {
        for id in list(&root.join(&topic))? {
            let dir = root.join(&topic).join(id);
            if let Some(name) = list(&dir)?.first() {
                return length(&dir.join(name)).map(Some);
            }
        }
    }
    Ok(None)
}

/// Opens the copy, which builds what its queues and index lack, with all entries committed.
fn derive(sizes: &Sizes, partial: &Path, progress: &Progress) -> Result<(), Problem> {
    progress.phase("bringing queues and index to the end", 0);
    let failed = |error: &(dyn Error + 'static)| {
        Problem::full_disk(partial, error).unwrap_or_else(|| {
            Problem::new(Code::Write, error.to_string())
                .at_file(partial)
                .why("the copy does not open as a store")
                .hint("take the store of another node, or look at this one with mqadmin inspect store")
        })
    };
    let config = sizes.config(partial);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    // The second time, everything that the first one committed is built.
    for _ in 0..2 {
        let Store { mut log, queues } =
            rmq_store::open(&config, Arc::clone(&disk)).map_err(|e| failed(&e))?;
        let reader = log.reader();
        if let Some(damage) = reader.damages().first() {
            return Err(failed(damage));
        }
        let last = reader.last_id();
        if let (Some(first), Some(last)) = (reader.first_index(), last) {
            let confirmed = reader.confirm_offset();
            let mut from = last.index.0;
            let entry = |index| reader.entry(LogIndex(index)).map_err(|e| failed(&e));
            while from > first.0 && entry(from)?.is_some_and(|entry| entry.start >= confirmed) {
                from -= 1;
            }
            for index in from..=last.index.0 {
                if let Some(entry) = entry(index)? {
                    queues.commit(entry.end, &entry.runs);
                }
            }
        }
        log.save_committed(last);
        queues.stop().map_err(|e| failed(&e))?;
        log.close().map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Leaves out what only rmq reads.
fn strip(partial: &Path) -> Result<(), Problem> {
    for name in NOTES.into_iter().chain(["lock"]) {
        remove_file(&partial.join(name))?;
    }
    let dir = partial.join("raftindex");
    if exists(&dir)? {
        fs::remove_dir_all(&dir).map_err(|error| Problem::writing(&dir, &error))?;
    }
    Ok(())
}

/// Reads the result as a whole: nothing is damaged, and no queue or index goes beyond the log.
fn verify(partial: &Path, done: &mut Reversed) -> Result<(), Problem> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let found = inspect::inspect(&disk, partial, None)
        .map_err(|error| Problem::new(Code::Verify, error.to_string()).at_file(partial))?;
    if let Some(bad) = found.damage.first() {
        return Err(Problem::new(Code::Verify, bad.what.clone())
            .at_file(&bad.file)
            .at_byte(bad.offset)
            .why("the result is not what it must be; the source is as it was")
            .hint("take the store of another node"));
    }
    done.records = found.log.records;
    let headers = found.raft.iter().flat_map(|raft| &raft.generations);
    done.raft_headers = headers.map(|generation| generation.extents).sum();
    done.queues = found.queues.len();
    Ok(())
}
