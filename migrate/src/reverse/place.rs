//! The files of the node's store into the target.

use std::fs;
use std::path::Path;

use super::NOTES;
use super::choose::Node;
use super::settings::VIEWS;
use crate::problem::Problem;
use crate::run::parent;
use crate::source::{exists, list};
use crate::transfer::Transfer;

/// What a migration kept of the Java broker and rmq has not touched, by place.
const KEPT: [&str; 4] = [
    "batchconsumequeue",
    "timerwheel",
    "timerlog",
    "consumequeue",
];

/// Everything that opening the store needs: sealed files as they are, copies of all others.
pub(super) fn place(
    node: &Node,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let root = &node.root;
    let end = node.log.end_offset;
    transfer
        .progress
        .phase("taking over the log", end - node.found.log.min_offset);
    let log_dir = &node.found.commit_log;
    for name in list(log_dir)? {
        let Ok(base) = name.parse::<u64>() else {
            continue;
        };
        let (from, to) = (log_dir.join(&name), partial.join("commitlog").join(&name));
        let bytes = length(&from)?;
        match end.checked_sub(base) {
            None | Some(0) => {}
            Some(used) if used >= bytes => transfer.adopt(&from, &to)?,
            Some(used) => transfer.copy(&from, &to, used, bytes)?,
        }
    }
    transfer.progress.phase("taking over the queues", 0);
    let queues = Path::new("consumequeue");
    for topic in list(&root.join(queues))? {
        for id in list(&root.join(queues).join(&topic))? {
            sealed(root, &queues.join(&topic).join(id), partial, transfer)?;
        }
    }
    sealed(root, Path::new("index"), partial, transfer)?;
    let notes = root.join("raftindex");
    for name in list(&notes)? {
        scratch(&notes.join(&name), &partial.join("raftindex").join(&name))?;
    }
    for name in NOTES.into_iter().chain(["abort"]) {
        if exists(&root.join(name))? {
            scratch(&root.join(name), &partial.join(name))?;
        }
    }
    Ok(())
}

/// A copy that is gone again in the end.
fn scratch(from: &Path, to: &Path) -> Result<(), Problem> {
    let writing = |error| Problem::writing(to, &error);
    fs::create_dir_all(parent(to)).map_err(writing)?;
    fs::copy(from, to).map(drop).map_err(writing)
}

/// A directory of files of which only the last is written to.
fn sealed(
    root: &Path,
    dir: &Path,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let names = list(&root.join(dir))?;
    for (at, name) in names.iter().enumerate() {
        let (from, to) = (root.join(dir).join(name), partial.join(dir).join(name));
        if at + 1 == names.len() {
            let bytes = length(&from)?;
            transfer.copy(&from, &to, bytes, bytes)?;
        } else {
            transfer.adopt(&from, &to)?;
        }
    }
    Ok(())
}

/// A file, or all files of a directory, if they are there.
fn copies(from: &Path, to: &Path, transfer: &mut Transfer<'_>) -> Result<(), Problem> {
    if !exists(from)? {
        return Ok(());
    }
    if !from.is_dir() {
        let bytes = length(from)?;
        return transfer.copy(from, to, bytes, bytes);
    }
    for name in list(from)? {
        copies(&from.join(&name), &to.join(&name), transfer)?;
    }
    Ok(())
}

pub(super) fn length(path: &Path) -> Result<u64, Problem> {
    let meta = fs::metadata(path).map_err(|error| Problem::reading(path, &error))?;
    Ok(meta.len())
}

/// Brings back what a migration kept of the Java broker.
pub(super) fn restore(
    node: &Node,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let kept = node.root.join("adopted");
    let config = kept.join("config");
    if exists(&config)? {
        for name in list(&config)? {
            if !VIEWS.iter().any(|view| name.starts_with(view)) {
                copies(
                    &config.join(&name),
                    &partial.join("config").join(&name),
                    transfer,
                )?;
            }
        }
    }
    // A log that was written anew has moved: positions in these are those of the old one.
    if exists(&kept.join("dledger.json"))? {
        return Ok(());
    }
    for name in KEPT {
        copies(&kept.join(name), &partial.join(name), transfer)?;
    }
    Ok(())
}
