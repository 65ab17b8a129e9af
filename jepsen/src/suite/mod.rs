//! Runs by schedules, one or many, and what they came to.

mod night;
mod shrink;
mod tally;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use rustix::process::{Pid, test_kill_process};

use crate::attack::{self, Bed};
use crate::cluster::Target;
use crate::doctor;
use crate::page::{self, About, PAGE};
use crate::schedule::{Kind, Schedule, value_name};
pub use night::nightly;
pub use shrink::shrink;
pub use tally::{Run, Tally};

/// In the directory of a run that has not ended: the process that runs it.
const RUNNING: &str = "running";
/// In that of one that has: what it came to, see [`Run`].
const RESULT: &str = "result.json";
/// What the directories of runs begin with.
const PREFIX: &str = "jepsen-";
/// Clients that send in a run of a schedule.
pub const PRODUCERS: u32 = 8;
/// Messages a second under load, unless told otherwise.
pub const RATE: u64 = 20_000;

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Verdict {
    /// Nothing is wrong.
    Passed,
    /// Something is.
    Failed,
    /// It proves nothing.
    Void,
}

/// Takes lines for people.
pub type Say<'a> = &'a dyn Fn(&str);

/// What this machine has for runs, and in `say` what it has not.
pub fn bed(say: Say<'_>) -> Bed {
    let dir = directory("doctor");
    let works = |what: &str, tried: anyhow::Result<()>| {
        if let Err(e) = &tried {
            say(&format!("skipped: {what}: {e:#}"));
        }
        tried.is_ok()
    };
    let disks = works(
        "disks for each run, so power, full and eio",
        doctor::try_disks(&dir),
    );
    Bed {
        net: works(
            "a network for each run, so partition, slow and flaky",
            doctor::try_net(),
        ),
        disks,
        clocks: disks && works("clocks of nodes", doctor::try_clock(&dir)),
        traps: works("tracing of nodes, so syscall", doctor::try_trap(&dir)),
        producers: PRODUCERS,
        rate: RATE,
        mutant: None,
    }
}

/// The kinds among these that have what they need.
pub fn possible(kinds: &[Kind], bed: Bed) -> Vec<Kind> {
    let kinds = kinds.iter().copied();
    kinds.filter(|kind| bed.allows(*kind)).collect()
}

/// A directory for a run, which no other run of this process has.
pub fn directory(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{}-{name}", std::process::id()))
}

/// Removes the files of runs whose process was killed. All else of them is gone with it: processes end
/// with the one that started them, and namespaces and mounts with the last one in them.
pub fn sweep() -> anyhow::Result<()> {
    sweep_below(&std::env::temp_dir())
}

/// The directories of runs lie there, or one level lower, beside the summary of many.
fn sweep_below(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !entry.path().is_dir() {
            continue;
        }
        if is_over(&entry.path()) {
            fs::remove_dir_all(entry.path())?;
            continue;
        }
        for of_many in fs::read_dir(entry.path())? {
            let path = of_many?.path();
            if is_over(&path) {
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// Whether the process of a run has gone before the run came to its end.
fn is_over(run: &Path) -> bool {
    let pid = fs::read_to_string(run.join(RUNNING)).unwrap_or_default();
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid).is_err())
}

/// Says that this process runs here, until `run` has come to its end.
pub fn running<T>(dir: &Path, run: impl FnOnce() -> T) -> anyhow::Result<T> {
    fs::create_dir_all(dir)?;
    let running = dir.join(RUNNING);
    fs::write(&running, std::process::id().to_string())?;
    let ended = run();
    fs::remove_file(&running)?;
    Ok(ended)
}

/// The command that runs a schedule again; of one that no seed draws, it takes the file that a run has left.
pub fn command(schedule: &Schedule) -> String {
    if !schedule.is_drawn() {
        return format!(
            "cargo run --release -p jepsen -- replay {}",
            attack::SCHEDULE
        );
    }
    let kinds: Vec<String> = schedule.drawn_from.iter().map(value_name).collect();
    format!(
        "cargo run --release -p jepsen -- test{} --workload {} --nemesis {} --time {} --seed {} {}",
        match schedule.target {
            Target::Rmq => String::new(),
            target => format!(" --target {}", value_name(&target)),
        },
        value_name(&schedule.workload),
        kinds.join(","),
        schedule.time,
        schedule.seed,
        if schedule.sync_flush {
            "--sync-flush"
        } else {
            "--async-flush"
        },
    )
}

/// Runs a schedule under `dir`, and leaves there what it came to, its history, its page and, if it did not pass,
/// everything else.
///
/// # Errors
/// If it did not come to its end.
pub fn one(
    rmq: &Path,
    dir: &Path,
    schedule: &Schedule,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<(Verdict, attack::Outcome)> {
    say(&format!("run: {}", command(schedule)));
    let ran = running(dir, || attack::run(rmq, dir, schedule, bed))?;
    let write = |run: &Run| fs::write(dir.join(RESULT), run.to_json());
    let outcome = match ran {
        Ok(outcome) => outcome,
        Err(e) => {
            let e = e.context(format!(
                "the run did not finish; its files are in {}",
                dir.display()
            ));
            write(&Run::broken(schedule, &format!("{e:#}")))?;
            return Err(e);
        }
    };
    let summary = attack::summary(&outcome);
    say(&format!("  {summary}"));
    let title = format!("{}, seed {}", value_name(&schedule.workload), schedule.seed);
    let page = page::render(
        &outcome.history,
        &About {
            title: &title,
            command: &command(schedule),
            summary: &summary,
            wrong: &outcome.wrong,
            void: &outcome.void,
        },
    );
    fs::write(dir.join(PAGE), page)?;
    let verdict = match (outcome.wrong.is_empty(), outcome.void.is_empty()) {
        (false, _) => Verdict::Failed,
        (true, false) => Verdict::Void,
        (true, true) => Verdict::Passed,
    };
    write(&Run::of(schedule, verdict, &outcome))?;
    for line in &outcome.wrong {
        say(&format!("  FAILED {line}"));
    }
    for line in &outcome.void {
        say(&format!("  VOID {line}"));
    }
    if verdict == Verdict::Passed {
        say("  passed");
        remove_stores(dir)?;
    } else {
        say(&format!("  files are kept in {}", dir.display()));
    }
    Ok((verdict, outcome))
}

/// Leaves of a run's files what tells of it.
fn remove_stores(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let keep = [attack::HISTORY, attack::SCHEDULE, PAGE, RESULT];
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if !keep.iter().any(|name| path.ends_with(name)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn files_of_runs_whose_process_has_gone_are_removed() {
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let dir = directory("sweep");
        let run = |name: &str, pid: Option<u32>| {
            let run = dir.join(name);
            fs::create_dir_all(&run).unwrap();
            fs::write(run.join("file"), "bytes").unwrap();
            if let Some(pid) = pid {
                fs::write(run.join(RUNNING), pid.to_string()).unwrap();
            }
            run
        };
        let here = Some(std::process::id());
        let over = [
            run("jepsen-1-run", Some(gone.id())),
            run("jepsen-1-nightly/7", Some(gone.id())),
        ];
        let left = [
            run("jepsen-1-nightly/8", None),
            run("jepsen-2-nightly/7", here),
            run("other", Some(gone.id())),
        ];
        sweep_below(&dir).unwrap();
        assert!(over.iter().all(|run| !run.try_exists().unwrap()));
        assert!(left.iter().all(|run| run.try_exists().unwrap()));
        fs::remove_dir_all(&dir).unwrap();
    }
}
