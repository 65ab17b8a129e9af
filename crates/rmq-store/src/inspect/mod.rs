//! What a store holds, told without opening it: counts and positions of log, queues, index and notes,
//! and what is damaged. It reads stores of Java brokers, classic ones and DLedger's, and ours.
//!
//! `files` maps the commit log, `walk` goes over its records and finds damage, `queues` compares what
//! the log says of each queue with the queue's files, `raft` follows our extents, `config` reads what
//! lies under `config/`, and `report` is all that in the words of the user.
//!
//! Nothing is written. Memory is in proportion to the number of queues, not of messages.

mod config;
mod files;
mod index;
mod queues;
mod raft;
mod report;
mod walk;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use config::{ConfigPart, Table};
pub use index::IndexPart;
pub use queues::{LogSide, QueueKind, QueuePart, UnitSide};
pub use raft::{FrozenPart, Generation, NotesPart, RaftPart};
pub use report::{
    Damage, DamageKind, DelayLevel, DelayPart, DledgerPart, HalfPart, Inspection, LogPart, Sum,
    TimerPart,
};

use crate::disk::Disk;
use config::Config;
use files::LogFiles;

/// Most damaged places that a report lists one by one.
const DAMAGE_MAX: usize = 1000;

/// Why a store cannot be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} has neither commitlog/ nor dledger-*/data/: give a storePathRootDir, and with \
         --commitlog the storePathCommitLog where that lies elsewhere",
        root.display()
    )]
    NoStore { root: PathBuf },
    #[error("{} is in use by a running broker: stop it first, or look at a copy", root.display())]
    InUse { root: PathBuf },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InspectError {
    move |source| InspectError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Looks at the store under `root`, whose commit log is at `commit_log` if not in its usual place.
///
/// # Errors
/// If there is no store, a broker has it open, or a directory or file cannot be read. Damage in the
/// store is no error but a part of the answer.
pub fn inspect(
    disk: &Arc<dyn Disk>,
    root: &Path,
    commit_log: Option<&Path>,
) -> Result<Inspection, InspectError> {
    let _lock = lock(disk, root)?;
    let mut damage = Damages::default();
    let log = LogFiles::open(disk, root, commit_log, &mut damage)?;
    let config = Config::read(disk, root, &mut damage)?;
    let notes = raft::notes(disk, root, &mut damage)?;

    let mut queues = queues::Tracker::new(&config);
    let mut extents = raft::Extents::default();
    let walked = walk::walk(&log, &mut damage, &mut |place, record| {
        if !extents.take(&log, place, record) {
            queues.take(place.pos, record);
        }
    });
    extents.finish(&mut damage);
    let raft = raft::part(notes, extents);
    let half = queues.half(&config);
    let retries = queues.delayed_retries();
    let queues = queues.compare(disk, root, &log, walked.log.max_offset, &mut damage)?;
    let index = index::read(disk, root, &log, walked.log.max_offset, &mut damage)?;
    let timer = config::timer(disk, root, &queues, &mut damage)?;
    let names = disk.list(root).map_err(at(root))?;
    Ok(Inspection {
        root: root.to_owned(),
        commit_log: log.dir.clone(),
        stopped_cleanly: !names.iter().any(|name| name == "abort"),
        delay: report::delay(&queues, &config, &retries),
        timer,
        half,
        retry: Sum::of(&queues, rmq_wire::name::RETRY_PREFIX),
        dlq: Sum::of(&queues, rmq_wire::name::DLQ_PREFIX),
        inner_batch: Sum::of_kind(&queues, QueueKind::InnerBatch),
        lmq: Sum::of_kind(&queues, QueueKind::Lmq),
        log: walked.log,
        dledger: walked.dledger,
        raft,
        queues,
        index,
        config: config.part,
        damages: damage.count,
        damage: damage.list,
    })
}

/// Keeps brokers away while the store is read. A store without a lock file, or one that may not be
/// locked, is on a medium where no broker runs.
fn lock(
    disk: &Arc<dyn Disk>,
    root: &Path,
) -> Result<Option<Box<dyn std::any::Any + Send + Sync>>, InspectError> {
    let names = disk.list(root).map_err(at(root))?;
    if !names.iter().any(|name| name == "lock") {
        return Ok(None);
    }
    match disk.lock(&root.join("lock")) {
        Ok(guard) => Ok(Some(guard)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(InspectError::InUse {
            root: root.to_owned(),
        }),
        Err(_) => Ok(None),
    }
}

/// What is wrong, listed up to [`DAMAGE_MAX`] places and counted beyond.
#[derive(Debug, Default)]
struct Damages {
    count: u64,
    list: Vec<Damage>,
}

impl Damages {
    fn add(&mut self, kind: DamageKind, file: &Path, offset: u64, what: impl Into<String>) {
        self.count += 1;
        if self.list.len() < DAMAGE_MAX {
            self.list.push(Damage {
                kind,
                file: file.to_owned(),
                offset,
                what: what.into(),
            });
        }
    }
}
