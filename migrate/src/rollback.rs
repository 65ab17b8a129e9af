//! Undoing a migration: what it made is removed, as long as nothing of value was added.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rmq_store::{Disk, EntryKind, Genesis, LogIndex, RealDisk, StoreConfig};

use crate::problem::{Code, Problem};
use crate::run::{STATE_FILE, partials};
use crate::sizes::config_for;
use crate::source::{exists, list};

/// Everything that a run or a broker puts into a store's root.
const OWN: [&str; 18] = [
    "commitlog",
    "consumequeue",
    "index",
    "raftindex",
    "adopted",
    "conf",
    "config",
    "genesis",
    "dispatched",
    "dispatched.queues",
    "raft.vote",
    "raft.checkpoint",
    "raft.applied",
    "raft.frozen",
    "raft.identity",
    "abort",
    "checkpoint",
    "lock",
];

/// Removes the target of a finished run and what unfinished ones left, and says what was removed.
pub(crate) fn rollback(to: &Path) -> Result<String, Problem> {
    let mut removed = Vec::new();
    let finished = exists(&to.join(STATE_FILE))?;
    if finished {
        refuse_if_used(to)?;
        remove(to)?;
        removed.push(to.to_owned());
    }
    for partial in partials(to)? {
        if exists(&partial.join(STATE_FILE))? {
            remove(&partial)?;
            removed.push(partial);
        }
    }
    if removed.is_empty() {
        return Err(
            Problem::new(Code::Rollback, "no run of rmq-migrate made it")
                .at_file(to)
                .hint("--to is the target of the run to undo"),
        );
    }
    let names: Vec<String> = removed
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Ok(format!(
        "removed {}; the source was never changed",
        names.join(", ")
    ))
}

/// Refuses if a group has accepted messages on this store.
fn refuse_if_used(to: &Path) -> Result<(), Problem> {
    let refused = |what: String| {
        Problem::new(Code::Rollback, what)
            .at_file(to)
            .why("they are nowhere else on this machine")
            .hint("rmq-migrate --reverse takes them back to a Java broker")
    };
    if !exists(&to.join("raft.identity"))? {
        return Ok(());
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let genesis = Genesis::read(&*disk, to).map_err(|error| Problem::reading(to, &error))?;
    let config = genesis.map_or_else(
        || StoreConfig::new(to),
        |genesis| config_for(to, genesis.segment_bytes),
    );
    let log = rmq_store::Log::open(&config, &disk).map_err(|error| {
        refused(format!(
            "whether a group has accepted messages cannot be told: {error}"
        ))
    })?;
    let reader = log.reader();
    let last = reader.last_id().map(|id| id.index.0);
    let first = reader.first_index().map(|index| index.0);
    // The first entry names the members, and is purged at once: nodes without the history get it
    // with a snapshot then.
    if reader.purged_id().is_some_and(|id| id.index.0 > 0) {
        return Err(refused(
            "a group has worked on this store for long".to_owned(),
        ));
    }
    for index in first
        .into_iter()
        .flat_map(|first| first..=last.unwrap_or(0))
    {
        match reader.entry(LogIndex(index)) {
            Ok(Some(entry)) if entry.kind != EntryKind::Messages => {}
            Ok(_) => {
                return Err(refused(
                    "a group has accepted messages on this store".to_owned(),
                ));
            }
            Err(error) => return Err(refused(error.to_string())),
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<(), Problem> {
    for name in list(dir)? {
        let path = dir.join(&name);
        let own = OWN.contains(&name.trim_end_matches(".new")) || name.starts_with("migration");
        // The mark goes last, so that a rollback that was killed can be run again.
        if !own || name == STATE_FILE {
            continue;
        }
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        let done = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        done.map_err(|error| Problem::writing(&path, &error))?;
    }
    let mark = dir.join(STATE_FILE);
    fs::remove_file(&mark).map_err(|error| Problem::writing(&mark, &error))?;
    fs::remove_dir(dir).map_err(|error| {
        Problem::new(
            Code::Rollback,
            format!("files that no run made were left: {error}"),
        )
        .at_file(dir)
        .hint("look at what is there, and remove the directory by hand")
    })
}
