//! Runs by schedules, one or many, and what they came to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, test_kill_process};
use serde_json::json;

use crate::attack::{self, Bed, Cuts};
use crate::check;
use crate::cluster::Target;
use crate::doctor;
use crate::page::{self, About, PAGE};
use crate::schedule::{Kind, Schedule, value_name};
use crate::workload::Kind as Workload;

/// In the directory of a run that has not ended: the process that runs it.
const RUNNING: &str = "running";
/// What the directories of runs begin with.
const PREFIX: &str = "jepsen-";
/// So often a shorter schedule may pass before it counts as one that passes.
const TRIES: u32 = 3;
/// Clients that send in a run of a schedule.
const PRODUCERS: u32 = 8;
/// Of the runs of `nightly`, from 0 to 1: those with a load, and those with nothing but power cuts.
const LOAD_RUNS: f64 = 0.4;
const POWER_RUNS: f64 = 0.4;
/// Messages a second under load, unless told otherwise.
pub const RATE: u64 = 20_000;

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// The command that runs a schedule again.
pub fn command(schedule: &Schedule) -> String {
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

/// Runs a schedule under `dir`, and leaves there its history, its page and, if it did not pass, everything
/// else.
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
    let outcome =
        ran.with_context(|| format!("the run did not finish; its files are in {}", dir.display()))?;
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
        let keep = [attack::HISTORY, attack::SCHEDULE, PAGE];
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else if !keep.iter().any(|name| path.ends_with(name)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Leaves out of a schedule that fails what is not needed to fail. Each try is a run. Because runs differ, a
/// shorter schedule counts as one that passes only after three.
pub fn shrink(
    rmq: &Path,
    dir: &Path,
    mut schedule: Schedule,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<()> {
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
                fs::write(dir.join("shrunk.json"), schedule.to_json())?;
                break;
            }
        }
    }
    let left = schedule.windows.len();
    let path = dir.join("shrunk.json");
    fs::write(&path, schedule.to_json())?;
    say(&format!("{left} faults are left, in {}", path.display()));
    Ok(())
}

/// The schedule of one of many runs: workload, kinds, length and flush are all drawn.
pub fn draw(seed: u64, bed: Bed) -> anyhow::Result<Schedule> {
    let mut dice = StdRng::seed_from_u64(seed ^ 0x5bd1_e995);
    let workloads = Workload::value_variants().iter().copied();
    let others: Vec<Workload> = workloads.filter(|of| *of != Workload::Load).collect();
    let workload = match dice.random_bool(LOAD_RUNS) {
        true => Workload::Load,
        false => *others.choose(&mut dice).context("no workloads")?,
    };
    let all = possible(Kind::value_variants(), bed).into_iter();
    let all: Vec<Kind> = all.filter(|kind| kind.works_with(workload)).collect();
    // From one kind alone to many at once.
    let share = dice.random_range(0.15..0.8);
    let mut kinds: Vec<Kind> = all
        .iter()
        .copied()
        .filter(|_| dice.random_bool(share))
        .collect();
    // A night has to see some hundred power cuts.
    if all.contains(&Kind::Power) && dice.random_bool(POWER_RUNS) {
        kinds = vec![Kind::Power];
    }
    if kinds.is_empty() {
        kinds.extend(all.choose(&mut dice));
    }
    let time = *[20, 25, 30].choose(&mut dice).context("no lengths")?;
    Schedule::draw(workload, &kinds, time, seed, None)
}

/// Many runs, with the results of all of them.
#[derive(Debug, Default)]
pub struct Tally {
    runs: u64,
    passed: u64,
    void: Vec<String>,
    anomalies: Vec<String>,
    acknowledged: u64,
    delivered: u64,
    cuts: Cuts,
    /// Of each fault that was felt, milliseconds to the next acknowledgement.
    faults: BTreeMap<String, Vec<u64>>,
    recoveries: Vec<u64>,
    seconds: u64,
    begun: String,
    commit: String,
}

impl Tally {
    fn add(&mut self, schedule: &Schedule, ended: &anyhow::Result<(Verdict, attack::Outcome)>) {
        self.runs += 1;
        let seed = schedule.seed;
        let (verdict, outcome) = match ended {
            Ok(ended) => ended,
            Err(e) => {
                self.anomalies.push(format!("seed {seed}: {e:#}"));
                return;
            }
        };
        let first = |lines: &[String]| lines.first().cloned().unwrap_or_default();
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Void => self
                .void
                .push(format!("seed {seed}: {}", first(&outcome.void))),
            Verdict::Failed => {
                let (line, again) = (first(&outcome.wrong), command(schedule));
                self.anomalies
                    .push(format!("seed {seed}: {line} (`{again}`)"));
            }
        }
        let history = &outcome.history;
        self.acknowledged += history.acknowledged();
        self.delivered += check::deliveries(history).0;
        self.cuts.times += outcome.cuts.times;
        self.cuts.nodes += outcome.cuts.nodes;
        self.cuts.sectors += outcome.cuts.sectors;
        self.recoveries.push(outcome.recovery);
        for fault in history.faults.iter().filter(|fault| fault.seen != Some(0)) {
            let name = fault.what.split(' ').next().unwrap_or_default();
            let next = history.first_ack(fault.from).map(|ack| ack - fault.from);
            let times = self.faults.entry(name.to_owned()).or_default();
            times.push(next.unwrap_or(u64::MAX) / 1_000_000);
        }
    }

    /// For a file that people read.
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "| runs | passed | void | anomalies | acknowledged, all checked | read by consumers | power \
             cuts | of nodes | torn sectors | minutes |\n|---|---|---|---|---|---|---|---|---|---|\n\
             | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n\n",
            self.runs,
            self.passed,
            self.void.len(),
            self.anomalies.len(),
            self.acknowledged,
            self.delivered,
            self.cuts.times,
            self.cuts.nodes,
            self.cuts.sectors,
            self.seconds / 60,
        );
        text += &format!(
            "Begun {} UTC; code of commit {}.\n\n| fault | times felt | next \
             acknowledgement after, ms: median | worst |\n|---|---|---|---|\n",
            self.begun, self.commit
        );
        for (fault, times) in &self.faults {
            let mut times = times.clone();
            times.sort_unstable();
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let count = times.len();
            text.push_str(&format!("| `{fault}` | {count} | {median} | {worst} |\n"));
        }
        for (name, lines) in [("Anomalies", &self.anomalies), ("Void", &self.void)] {
            if !lines.is_empty() {
                text.push_str(&format!("\n{name}:\n\n"));
                for line in lines {
                    text.push_str(&format!("* {line}\n"));
                }
            }
        }
        text
    }

    /// For a file that programs read.
    pub fn to_json(&self) -> String {
        let tally = json!({
            "begun": self.begun,
            "commit": self.commit,
            "runs": self.runs,
            "passed": self.passed,
            "void": self.void,
            "anomalies": self.anomalies,
            "acknowledged": self.acknowledged,
            "read_by_consumers": self.delivered,
            "power_cuts": self.cuts.times,
            "power_cuts_of_nodes": self.cuts.nodes,
            "torn_sectors": self.cuts.sectors,
            "seconds": self.seconds,
            "faults": self.faults,
            "recoveries_ms": self.recoveries,
        });
        format!("{tally:#}\n")
    }

    /// Whether nothing was found wrong.
    pub fn is_clean(&self) -> bool {
        self.anomalies.is_empty()
    }
}

/// What a command prints.
fn told(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output();
    let output = output.ok().filter(|output| output.status.success());
    output.map_or_else(
        || "unknown".into(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Runs from this seed on until the time is over; a run that has begun comes to its end. Under `dir`, after
/// each run: `summary.md`, `summary.json`, and the files of the runs that did not pass.
pub fn nightly(
    rmq: &Path,
    dir: &Path,
    first: u64,
    time: Duration,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<Tally> {
    let start = Instant::now();
    let mut tally = Tally {
        begun: told("date", &["-u", "+%F %R"]),
        commit: told("git", &["rev-parse", "--short", "HEAD"]),
        ..Tally::default()
    };
    for seed in first.. {
        if start.elapsed() >= time {
            break;
        }
        let schedule = draw(seed, bed)?;
        let own = dir.join(seed.to_string());
        let ended = one(rmq, &own, &schedule, bed, say);
        if let Err(e) = &ended {
            say(&format!("  FAILED {e:#}"));
        }
        tally.add(&schedule, &ended);
        tally.seconds = start.elapsed().as_secs();
        if matches!(ended, Ok((Verdict::Passed, _))) {
            fs::remove_dir_all(&own)?;
        }
        fs::write(dir.join("summary.md"), tally.to_markdown())?;
        fs::write(dir.join("summary.json"), tally.to_json())?;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::history::{Fault, History, Send};

    fn ended(wrong: &[&str], void: &[&str]) -> attack::Outcome {
        let send = |n: u64| Send {
            process: 0,
            queue: 0,
            body: n.to_string(),
            invoked: n * 1_000_000,
            ended: n * 1_000_000 + 1,
            outcome: Outcome::Ok(n),
        };
        let fault = |what: &str, seen| Fault {
            what: what.into(),
            from: 1_500_000,
            until: Some(3_000_000),
            seen: Some(seen),
        };
        let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
        attack::Outcome {
            wrong: texts(wrong),
            void: texts(void),
            history: History {
                sends: vec![send(1), send(9)],
                faults: vec![fault("kill-leader n1", 1), fault("slow-all", 0)],
                ..History::default()
            },
            cuts: Cuts {
                times: 2,
                nodes: 3,
                sectors: 4,
            },
            recovery: 5,
        }
    }

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

    #[test]
    fn a_tally_counts_what_was_felt_and_names_what_was_wrong() {
        let schedule = Schedule::draw(Workload::Queue, &[Kind::Kill], 20, 77, None).unwrap();
        let mut tally = Tally::default();
        tally.add(&schedule, &Ok((Verdict::Passed, ended(&[], &[]))));
        tally.add(&schedule, &Ok((Verdict::Void, ended(&[], &["unfelt"]))));
        assert!(tally.is_clean());
        tally.add(&schedule, &Ok((Verdict::Failed, ended(&["lost"], &[]))));
        tally.add(&schedule, &Err(anyhow::anyhow!("stuck")));
        assert!(!tally.is_clean());
        let text = tally.to_markdown();
        assert!(
            text.contains("| 4 | 1 | 1 | 2 | 6 | 0 | 6 | 9 | 12 | 0 |"),
            "{text}"
        );
        assert!(text.contains("| `kill-leader` | 3 | 7 | 7 |"), "{text}");
        assert!(!text.contains("slow-all"), "{text}");
        for line in ["* seed 77: lost", "* seed 77: stuck", "* seed 77: unfelt"] {
            assert!(text.contains(line), "{text}");
        }
        let json: serde_json::Value = serde_json::from_str(&tally.to_json()).unwrap();
        assert_eq!(json["acknowledged"], 6);
    }
}
