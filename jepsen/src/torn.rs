//! What a power cut may leave of writes that were not synced: of each sector the old bytes or the new ones.
//! A file system that goes down keeps the old ones of all; a disk had perhaps written some.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::Rng;
use rand::rngs::StdRng;

/// Bytes that a disk writes whole.
const SECTOR: usize = 512;
/// What was written longer ago is on the disk.
const RECENT: Duration = Duration::from_secs(60);

/// Files as the processes saw them before a cut, by their names and inodes.
pub(crate) struct Before(BTreeMap<(PathBuf, u64), Vec<u8>>);

/// Reads what was written of late below `dir`.
pub(crate) fn before(dir: &Path) -> io::Result<Before> {
    let since = SystemTime::now() - RECENT;
    let mut seen = BTreeMap::new();
    for path in files(dir)? {
        let about = fs::metadata(&path)?;
        if about.modified()? >= since {
            seen.insert((path.clone(), about.ino()), fs::read(&path)?);
        }
    }
    Ok(Before(seen))
}

/// After the cut: of the sectors that were lost some are written after all. A file's length stays, for a file
/// system makes it longer only after the bytes are there. How many sectors were kept.
pub(crate) fn keep_some(before: &Before, dice: &mut StdRng) -> io::Result<u64> {
    let mut kept = 0;
    // From none of them to nearly all.
    let share = dice.random_range(0.0..1.0);
    for ((path, inode), new) in &before.0 {
        let Ok(about) = fs::metadata(path) else {
            continue;
        };
        if about.ino() != *inode {
            continue;
        }
        let file = File::options().read(true).write(true).open(path)?;
        let old = fs::read(path)?;
        let both = new.chunks(SECTOR).zip(old.chunks(SECTOR));
        for (n, (new, old)) in both.enumerate().filter(|(_, (new, old))| new != old) {
            if dice.random_bool(share) {
                let length = new.len().min(old.len());
                file.write_all_at(&new[..length], (n * SECTOR) as u64)?;
                kept += 1;
            }
        }
        file.sync_all()?;
    }
    Ok(kept)
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn sectors_are_old_or_new_and_nothing_else_changes() {
        let dir = std::env::temp_dir().join(format!("torn-test-{}", std::process::id()));
        fs::create_dir_all(dir.join("below")).unwrap();
        let (path, same, gone) = (dir.join("below/a"), dir.join("same"), dir.join("gone"));
        let (old, new) = (vec![1; 100 * SECTOR + 7], vec![2; 120 * SECTOR]);
        for path in [&path, &same, &gone] {
            fs::write(path, &new).unwrap();
        }
        let seen = before(&dir).unwrap();
        // What the cut left.
        let lost = File::options().write(true).open(&path).unwrap();
        lost.set_len(old.len() as u64).unwrap();
        lost.write_all_at(&old, 0).unwrap();
        fs::remove_file(&gone).unwrap();
        let kept = keep_some(&seen, &mut StdRng::seed_from_u64(5)).unwrap();
        let now = fs::read(&path).unwrap();
        assert_eq!(now.len(), old.len());
        let sectors: Vec<&[u8]> = now.chunks(SECTOR).collect();
        assert!(
            sectors
                .iter()
                .all(|sector| sector.iter().all(|byte| byte == &sector[0]))
        );
        let new_ones = sectors.iter().filter(|sector| sector[0] == 2).count();
        assert_eq!(new_ones as u64, kept);
        assert!((1..=100).contains(&kept), "{kept}");
        assert_eq!(fs::read(&same).unwrap(), new);
        assert!(!gone.try_exists().unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }
}
