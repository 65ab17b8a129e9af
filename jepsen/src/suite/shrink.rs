//! Of a schedule that fails, what is needed to fail.

use std::fs;
use std::path::Path;

use super::{Say, Verdict, one};
use crate::attack::Bed;
use crate::schedule::Schedule;

/// So often a shorter schedule may pass before it counts as one that passes.
const TRIES: u32 = 3;
/// The shortest one so far.
const SHRUNK: &str = "shrunk.json";

/// Leaves out of a schedule that fails what is not needed to fail. Each try is a run. Because runs differ, a
/// shorter schedule counts as one that passes only after three.
///
/// # Errors
/// If files cannot be written.
pub fn shrink(
    rmq: &Path,
    dir: &Path,
    mut schedule: Schedule,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<()> {
    let path = dir.join(SHRUNK);
    let mut at = schedule.windows.len();
    while at > 0 {
        at -= 1;
        let mut less = schedule.clone();
        less.windows.remove(at);
        for _ in 0..TRIES {
            let own = dir.join("try");
            if own.try_exists()? {
                fs::remove_dir_all(&own)?;
            }
            let ended = one(rmq, &own, &less, bed, say);
            let fails = matches!(ended, Ok((Verdict::Failed, _)) | Err(_));
            if fails {
                schedule = less;
                fs::write(&path, schedule.to_json())?;
                break;
            }
        }
    }
    let left = schedule.windows.len();
    fs::write(&path, schedule.to_json())?;
    say(&format!("{left} faults are left, in {}", path.display()));
    Ok(())
}
