//! The files of the source into the target, part by part.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rmq_store::{Disk as _, RealDisk};

use crate::dledger::{self, Rewritten};
use crate::plan::Plan;
use crate::problem::Problem;
use crate::progress::Progress;
use crate::queues::SourceQueues;
use crate::source::{Kind, Source, exists, list};
use crate::transfer::{Transfer, write_file};

/// In an unfinished target: the boot that it was made in.
pub(crate) const BOOT_FILE: &str = "migration.boot";
/// Files of the source's root and directories that are kept and not used.
const KEPT: [&str; 7] = [
    "timerwheel",
    "timerlog",
    "consumequeue_ext",
    "batchconsumequeue",
    "compaction",
    "rocksdbstore",
    "checkpoint",
];

/// The commit log, of a DLedger node what lies below its own log: sealed segments as they are, the last
/// one as a copy.
pub(crate) fn place_log(
    plan: &Plan,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let Plan {
        source, history, ..
    } = plan;
    transfer
        .progress
        .phase("taking over the log", history.end - history.start);
    transfer.durable = true;
    let segments = match source.kind {
        Kind::Classic => &source.segments,
        Kind::DLedger => &source.older,
    };
    for segment in segments {
        if segment.base >= history.end {
            break;
        }
        let to = partial
            .join("commitlog")
            .join(format!("{:020}", segment.base));
        let used = history.end - segment.base;
        if used >= source.segment_bytes {
            transfer.adopt(&segment.path, &to)?;
        } else {
            transfer.copy(&segment.path, &to, used, source.segment_bytes)?;
        }
    }
    transfer.durable = false;
    Ok(())
}

/// Of what a run before a crash of the machine has left, only segments are whole for certain.
pub(crate) fn forget_before_boot(partial: &Path) -> Result<(), Problem> {
    let writing = |error| Problem::writing(partial, &error);
    let (file, boot) = (
        partial.join(BOOT_FILE),
        RealDisk.boot_id().map_err(writing)?,
    );
    if fs::read_to_string(&file).is_ok_and(|of| of == boot) {
        return Ok(());
    }
    for name in list(partial)? {
        let path = partial.join(&name);
        if path.is_dir() && name != "commitlog" {
            fs::remove_dir_all(&path).map_err(writing)?;
        }
    }
    RealDisk.sync_dir(partial).map_err(writing)?;
    write_file(&file, boot.as_bytes())
}

pub(crate) fn rewrite_log(
    plan: &Plan,
    partial: &Path,
    progress: &Progress,
) -> Result<Rewritten, Problem> {
    let (dir, kept) = (partial.join("commitlog"), partial.join("adopted"));
    let done_file = kept.join("dledger.json");
    let writing = |path: &Path| {
        let path = path.to_owned();
        move |error| Problem::writing(&path, &error)
    };
    fs::create_dir_all(&kept).map_err(writing(&kept))?;
    if let Ok(text) = fs::read_to_string(&done_file)
        && let Ok(done) = serde_json::from_str(&text)
    {
        return Ok(done);
    }
    if exists(&dir)? {
        fs::remove_dir_all(&dir).map_err(writing(&dir))?;
    }
    fs::create_dir_all(&dir).map_err(writing(&dir))?;
    let map = kept.join("dledger.map");
    let done = dledger::rewrite(
        &plan.source,
        plan.dledger.clone().unwrap_or_default(),
        &dir,
        &map,
        progress,
    )?;
    RealDisk.sync_dir(&dir).map_err(writing(&dir))?;
    let text = serde_json::to_string(&done).expect("plain data");
    write_file(&done_file, text.as_bytes())?;
    Ok(done)
}

/// Consume queues and index. Those that are built anew are left out, but for queues whose messages
/// have all left the log: nothing else knows their ends.
pub(crate) fn place_derived(
    plan: &Plan,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let Plan { source, queues, .. } = plan;
    transfer.progress.phase("taking over the queues", 0);
    for queue in &queues.queues {
        let expired = queue.unit.end().0 <= plan.history.start;
        if plan.queues_rebuilt.is_some() && !expired {
            continue;
        }
        let to = partial
            .join("consumequeue")
            .join(&queue.topic)
            .join(queue.id.to_string());
        for &start in &queue.files {
            let name = format!("{start:020}");
            let (from, to) = (queue.dir.join(&name), to.join(&name));
            if start == *queue.files.last().unwrap_or(&start) {
                let units = queue.last + 1 - start / rmq_store::UNIT_BYTES as u64;
                let keep = units * rmq_store::UNIT_BYTES as u64;
                transfer.copy(&from, &to, keep, queues.file_bytes)?;
            } else {
                transfer.adopt(&from, &to)?;
            }
        }
    }
    if plan.index.rebuild.is_none() {
        let newest = plan.index.files.last();
        for name in &plan.index.files {
            let from = source.root.join("index").join(name);
            let to = partial.join("index").join(name);
            if Some(name) == newest {
                let meta = fs::metadata(&from).map_err(|error| Problem::reading(&from, &error))?;
                transfer.copy(&from, &to, meta.len(), meta.len())?;
            } else {
                transfer.adopt(&from, &to)?;
            }
        }
    }
    Ok(())
}

/// What rmq has no use for yet, and the original configuration.
pub(crate) fn keep_rest(
    plan: &Plan,
    partial: &Path,
    transfer: &mut Transfer<'_>,
) -> Result<(), Problem> {
    let kept = partial.join("adopted");
    for (name, meta) in rest(&plan.source, &plan.queues)? {
        let (from, bytes) = (plan.source.root.join(&name), meta.len());
        // The broker writes into these in place if it is started again, so a link is no copy of them.
        transfer.copy(&from, &kept.join(&name), bytes, bytes)?;
    }
    if let Some(conf) = &plan.conf {
        let meta =
            fs::metadata(conf.path()).map_err(|error| Problem::reading(conf.path(), &error))?;
        transfer.copy(
            conf.path(),
            &kept.join("broker.conf"),
            meta.len(),
            meta.len(),
        )?;
    }
    Ok(())
}

/// Bytes that are copied because rmq has no use for them yet.
pub(crate) fn rest_bytes(source: &Source, queues: &SourceQueues) -> Result<u64, Problem> {
    let rest = rest(source, queues)?;
    // Many have holes, which are copied as such.
    let bytes = rest
        .iter()
        .map(|(_, meta)| meta.len().min(meta.blocks() * 512));
    Ok(bytes.sum())
}

/// The files that are kept without use, as they are named in the source's root.
fn rest(source: &Source, queues: &SourceQueues) -> Result<Vec<(PathBuf, Metadata)>, Problem> {
    let mut found = Vec::new();
    let light = queues.lmq.keys();
    let light = light.map(|topic| Path::new("consumequeue").join(topic));
    let whole = KEPT.iter().copied().chain(["config"]).map(PathBuf::from);
    for name in whole.chain(light) {
        files(&source.root, &name, &mut found)?;
    }
    Ok(found)
}

fn files(root: &Path, name: &Path, found: &mut Vec<(PathBuf, Metadata)>) -> Result<(), Problem> {
    let path = root.join(name);
    let reading = |error| Problem::reading(&path, &error);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(reading)?,
    };
    // What a symbolic link leads to is taken, and one that leads nowhere is told.
    let meta = fs::metadata(&path).map_err(reading)?;
    if !meta.is_dir() {
        found.push((name.to_owned(), meta));
        return Ok(());
    }
    for below in list(&path)? {
        files(root, &name.join(below), found)?;
    }
    Ok(())
}
