//! Damage to the files of a node that does not run.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::schedule::Fault;

/// Whether each store has files that the fault may have.
pub(crate) fn is_possible<'a>(
    mut stores: impl Iterator<Item = &'a Path>,
    fault: Fault,
) -> anyhow::Result<bool> {
    stores.try_fold(true, |all, store| {
        Ok(all && !victims(store, fault)?.is_empty())
    })
}

/// Damages a store as the fault says; how many places.
pub(crate) fn strike(store: &Path, fault: Fault, dice: &mut StdRng) -> anyhow::Result<u64> {
    let files = victims(store, fault)?;
    if fault != Fault::DamageTruncated {
        return flip(&files, dice);
    }
    let Some(path) = files.choose(dice) else {
        return Ok(0);
    };
    let file = File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(dice.random_range(0..=length))?;
    Ok(1)
}

/// Whether each store has files of its log that are not written to any more.
pub(crate) fn have_old_logs<'a>(
    mut stores: impl Iterator<Item = &'a Path>,
) -> anyhow::Result<bool> {
    stores.try_fold(true, |all, store| Ok(all && !old_log(store)?.is_empty()))
}

/// The files of the log but the last ones, which may be written to. What is rotten there may look like a torn
/// write, and only readers find it.
fn old_log(store: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut log = files(&store.join("commitlog"))?;
    log.truncate(log.len().saturating_sub(2));
    Ok(log)
}

/// The files that the fault may have.
fn victims(store: &Path, fault: Fault) -> anyhow::Result<Vec<PathBuf>> {
    let log = old_log(store)?;
    if fault == Fault::DamageLog && !log.is_empty() {
        return Ok(log);
    }
    let mut derived = files(&store.join("consumequeue"))?;
    derived.extend(files(&store.join("index"))?);
    Ok(derived)
}

/// Takes everything from a store, which may be where a file system is mounted.
pub(crate) fn empty(store: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(store).with_context(|| store.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Flips a few bits of one of the files.
fn flip(files: &[PathBuf], dice: &mut StdRng) -> anyhow::Result<u64> {
    let Some(path) = files.choose(dice) else {
        return Ok(0);
    };
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let count = dice.random_range(1..=8);
    for _ in 0..count {
        // Nothing was ever written to the end of a file that is made whole.
        let at = dice.random_range(0..length.max(1));
        let mut byte = [0];
        if file.read_at(&mut byte, at)? == 1 {
            byte[0] ^= 1 << dice.random_range(0..8);
            file.write_all_at(&byte, at)?;
        }
    }
    Ok(count)
}

/// The files of a directory and those below it, by name.
pub(crate) fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !dir.try_exists()? {
        return Ok(found);
    }
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else if entry.metadata()?.len() > 0 {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
