//! A night of runs, each by a schedule of its own and in a process of its own: one that hangs, dies or fills the
//! memory is a finding and takes no other with it. What each came to is written down as it ends, so that a night
//! that was stopped goes on where it was.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::fs::statvfs;
use serde_json::{Value, json};

use super::{RESULT, RUNNING, Run, Say, Tally, Verdict, possible, remove_stores};
use crate::attack::{Bed, SCHEDULE};
use crate::cluster::leash;
use crate::schedule::{Kind, Schedule, number};
use crate::workload::Kind as Workload;

/// Of the runs, from 0 to 1: those with a load, and those with nothing but power cuts.
const LOAD_RUNS: f64 = 0.45;
const POWER_RUNS: f64 = 0.45;
/// Seconds of a run, drawn: two hundred runs have to fit into two hours.
const LENGTHS: [u64; 3] = [18, 22, 26];
/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// Bytes of what may be kept of runs that did not pass.
const KEPT: u64 = 4 << 30;
/// Bytes that have to be free before a run begins: what the disks of its nodes may grow to, and some.
const FREE: u64 = 4 << 30;

/// Names of the files of a night: what it is, a line for each run, the nodes' program as it was in the beginning.
const NIGHT: &str = "night.json";
const RUNS: &str = "runs.jsonl";
const PROGRAM: &str = "rmq";

/// The schedule of one of many runs: workload, kinds, length and flush are all drawn.
fn draw(seed: u64, bed: Bed) -> anyhow::Result<Schedule> {
    let mut dice = StdRng::seed_from_u64(seed ^ 0x5bd1_e995);
    let workloads = Workload::value_variants().iter().copied();
    // A migration takes an archive and a program that a night has not.
    let others: Vec<Workload> = workloads
        .filter(|of| !matches!(of, Workload::Load | Workload::Migrate))
        .collect();
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
    let time = *LENGTHS.choose(&mut dice).context("no lengths")?;
    Schedule::draw(workload, &kinds, time, seed, None)
}

/// Runs from this seed on until they have taken so long; a run that has begun comes to its end. Under `dir`, after
/// each run: `runs.jsonl`, `summary.md`, `summary.json`, and files of the runs that did not pass. If `dir` holds
/// a night that was stopped, it goes on after its last run with the program that it began with, and the summary
/// is that of all its runs.
///
/// # Errors
/// If files cannot be written, the disk is nearly full, or `dir` holds another night.
pub fn nightly(
    rmq: &Path,
    dir: &Path,
    first: u64,
    time: Duration,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<Tally> {
    let mut night = Night::open(rmq, dir, first)?;
    if !night.tally.runs.is_empty() {
        say(&format!("goes on after {}", night.tally.to_line()));
    }
    while night.tally.took() < time {
        let seed = night.next();
        let schedule = draw(seed, bed)?;
        let took = Instant::now();
        let mut run = night.run(&schedule, bed)?;
        if run.recovery.is_none() {
            say(&format!("  FAILED {}", run.why));
        }
        run.took = u64::try_from(took.elapsed().as_millis())?;
        night.note(run)?;
        say(&format!("  {}", night.tally.to_line()));
    }
    Ok(night.tally)
}

/// The files of a night.
struct Night {
    dir: PathBuf,
    first: u64,
    lines: File,
    tally: Tally,
}

impl Night {
    fn open(rmq: &Path, dir: &Path, first: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let dir = fs::canonicalize(dir)?;
        let about = dir.join(NIGHT);
        if !about.try_exists()? {
            fs::copy(rmq, dir.join(PROGRAM)).with_context(|| rmq.display().to_string())?;
            let night = json!({
                "begun": told("date", &["-u", "+%F %R"]),
                "commit": told("git", &["describe", "--always", "--dirty"]),
                "seed": first,
            });
            // Who finds it finds the program too, and all of both.
            let new = about.with_extension("new");
            fs::write(&new, format!("{night:#}\n"))?;
            fs::rename(new, &about)?;
        }
        let night: Value = serde_json::from_str(&fs::read_to_string(&about)?)?;
        let text = |key: &str| night[key].as_str().unwrap_or_default().to_owned();
        let seed = number(&night, "seed")?;
        ensure!(
            seed == first,
            "{} holds a night that began with seed {seed}: go on with --seed {seed}, or name another --dir",
            dir.display()
        );
        let path = dir.join(RUNS);
        let (lines, runs) = read(&path).with_context(|| path.display().to_string())?;
        ensure!(
            runs.iter().zip(first..).all(|(run, seed)| run.seed == seed),
            "{}: the seeds do not count from {first} on",
            path.display()
        );
        Ok(Self {
            dir,
            first,
            lines,
            tally: Tally {
                begun: text("begun"),
                commit: text("commit"),
                runs,
            },
        })
    }

    /// The seed of the next run.
    fn next(&self) -> u64 {
        self.first + self.tally.runs.len() as u64
    }

    /// The directory of a run.
    fn own(&self, seed: u64) -> PathBuf {
        self.dir.join(seed.to_string())
    }

    /// Has a process of its own run a schedule.
    fn run(&self, schedule: &Schedule, bed: Bed) -> anyhow::Result<Run> {
        let disk = statvfs(&self.dir)?;
        let free = disk.f_bavail * disk.f_frsize;
        ensure!(
            free >= FREE,
            "only {} MiB are free in {}, and a run may take {}: make room, and go on with the same --dir and --seed",
            free >> 20,
            self.dir.display(),
            FREE >> 20
        );
        let own = self.own(schedule.seed);
        // Of a night that was stopped in the middle of it.
        if own.try_exists()? {
            fs::remove_dir_all(&own)?;
        }
        fs::create_dir_all(&own)?;
        let path = own.join(SCHEDULE);
        fs::write(&path, schedule.to_json())?;
        // Whatever is built meanwhile, this is the program that runs.
        let mut command = Command::new("/proc/self/exe");
        command.arg("--rmq").arg(self.dir.join(PROGRAM));
        command.arg("--dir").arg(&own).arg("once").arg(&path);
        command.args(bed.words());
        judge(command, &own, schedule, LIMIT)
    }

    /// Writes down what a run came to, and removes of its files what nobody will look at.
    fn note(&mut self, run: Run) -> anyhow::Result<()> {
        self.tidy(&self.own(run.seed), run.verdict)?;
        self.lines.write_all(run.to_json().as_bytes())?;
        self.lines.sync_data()?;
        self.tally.runs.push(run);
        fs::write(self.dir.join("summary.md"), self.tally.to_markdown())?;
        fs::write(self.dir.join("summary.json"), self.tally.to_json())?;
        Ok(())
    }

    /// Nothing is needed of a run that passed, and no stores of one that is void. One that failed keeps everything
    /// while there is room.
    fn tidy(&self, own: &Path, verdict: Verdict) -> anyhow::Result<()> {
        if verdict == Verdict::Passed {
            return Ok(fs::remove_dir_all(own)?);
        }
        if verdict == Verdict::Void || bytes_below(&self.dir)? > KEPT {
            remove_stores(own)?;
        }
        if bytes_below(&self.dir)? > KEPT {
            fs::remove_dir_all(own)?;
        }
        Ok(())
    }
}

/// The runs that a file tells of, and the file, to which more can be added. A last line that was not written to its
/// end is taken away.
fn read(path: &Path) -> anyhow::Result<(File, Vec<Run>)> {
    let file = File::options().create(true).append(true).open(path)?;
    let text = fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    file.set_len(whole as u64)?;
    let lines = (1..).zip(text[..whole].lines());
    let runs = lines.map(|(n, line)| Run::from_json(line).with_context(|| format!("line {n}")));
    Ok((file, runs.collect::<Result<_, _>>()?))
}

/// What a process says in its directory that runs a schedule; if it says nothing, or does not end in time, that is
/// what is wrong.
fn judge(
    mut command: Command,
    own: &Path,
    schedule: &Schedule,
    limit: Duration,
) -> anyhow::Result<Run> {
    let ended = within(&mut command, limit)?;
    let result = match fs::read_to_string(own.join(RESULT)) {
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        read => Some(read?),
    };
    Ok(match (ended, result) {
        (Some(_), Some(result)) => Run::from_json(&result)?,
        (ended, _) => {
            // What is left of it is evidence, and not to be swept away.
            fs::remove_file(own.join(RUNNING)).ok();
            let why = ended.map_or_else(
                || format!("it did not end within {limit:?}"),
                |status| format!("its process ended without a word: {status}"),
            );
            Run::broken(schedule, &why)
        }
    })
}

/// How a process ends, if it does so in time; else it is killed. It ends with this one.
fn within(command: &mut Command, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let mut child = leash(command).spawn()?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes that the files of a directory take on the disk.
fn bytes_below(dir: &Path) -> anyhow::Result<u64> {
    const BLOCK: u64 = 512;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += BLOCK * about.blocks();
        if about.is_dir() {
            bytes += bytes_below(&entry.path())?;
        }
    }
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Fault, value_name};
    use crate::suite::directory;

    const EVERYTHING: Bed = Bed {
        net: true,
        disks: true,
        clocks: true,
        traps: true,
        producers: 1,
        rate: 1,
        mutant: None,
    };

    /// A directory with a program to copy, and where the night's files go.
    fn place(name: &str) -> (PathBuf, PathBuf) {
        let dir = directory(name);
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program");
        fs::write(&program, "program").unwrap();
        (program, dir.join("night"))
    }

    fn schedule(seed: u64) -> Schedule {
        Schedule::draw(Workload::Queue, &[Kind::Kill], 20, seed, None).unwrap()
    }

    /// Runs a script in the place of the program that runs schedules.
    fn scripted(night: &Night, script: &str, limit: Duration) -> Run {
        let schedule = schedule(night.next());
        let own = night.own(schedule.seed);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join(RUNNING), "1").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script, "run"]).arg(own.join(RESULT));
        judge(command, &own, &schedule, limit).unwrap()
    }

    #[test]
    fn a_night_that_was_stopped_goes_on_after_its_last_line() {
        let (program, dir) = place("resumed");
        let mut night = Night::open(&program, &dir, 7).unwrap();
        for seed in 7..10 {
            assert_eq!(night.next(), seed);
            let run = Run {
                took: 61_000,
                ..Run::broken(&schedule(seed), "lost")
            };
            fs::create_dir_all(night.own(seed)).unwrap();
            night.note(run).unwrap();
        }
        let before = night.tally.to_markdown();
        drop(night);
        // It was killed while it wrote a line, and the program has been built anew.
        let mut lines = File::options().append(true).open(dir.join(RUNS)).unwrap();
        lines.write_all(b"{\"seed\": 10, \"verd").unwrap();
        fs::write(&program, "another").unwrap();

        let night = Night::open(&program, &dir, 7).unwrap();
        assert_eq!(night.tally.to_markdown(), before);
        assert_eq!(night.tally.took(), Duration::from_secs(183));
        assert_eq!(night.next(), 10);
        assert_eq!(fs::read(dir.join(PROGRAM)).unwrap(), b"program");
        let lines = fs::read_to_string(dir.join(RUNS)).unwrap();
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(lines.ends_with('\n'), "{lines}");

        let error = Night::open(&program, &dir, 8).map(drop).unwrap_err();
        assert!(error.to_string().contains("--seed 7"), "{error}");
        fs::write(dir.join(RUNS), "{}\n").unwrap();
        let error = Night::open(&program, &dir, 7).map(drop).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("runs.jsonl: line 1: "), "{error}");
        fs::remove_dir_all(directory("resumed")).unwrap();
    }

    #[test]
    fn a_run_that_hangs_or_dies_is_a_finding() {
        let (program, dir) = place("hanging");
        let night = Night::open(&program, &dir, 1).unwrap();
        let hung = scripted(&night, "exec sleep 60", Duration::from_millis(300));
        assert!(
            hung.why.contains("did not end within 300ms"),
            "{}",
            hung.why
        );
        let died = scripted(&night, "kill -9 $$", LIMIT);
        assert!(died.why.contains("signal: 9"), "{}", died.why);
        assert!(
            !night.own(1).join(RUNNING).try_exists().unwrap(),
            "it would be swept"
        );
        let told = Run {
            recovery: Some(1),
            ..Run::broken(&schedule(1), "lost")
        };
        let script = format!("echo '{}' >\"$1\"; exit 1", told.to_json().trim_end());
        assert_eq!(scripted(&night, &script, LIMIT), told);
        fs::remove_dir_all(directory("hanging")).unwrap();
    }

    #[test]
    fn of_a_run_that_did_not_fail_no_stores_are_kept() {
        let (program, dir) = place("kept");
        let night = Night::open(&program, &dir, 1).unwrap();
        let left = |verdict| {
            let own = night.own(1);
            fs::create_dir_all(own.join("n0")).unwrap();
            fs::write(own.join("n0.img"), "disk").unwrap();
            fs::write(own.join(SCHEDULE), "{}").unwrap();
            night.tidy(&own, verdict).unwrap();
            let is_left = |name: &str| own.join(name).try_exists().unwrap();
            (is_left("n0.img"), is_left(SCHEDULE))
        };
        assert_eq!(left(Verdict::Failed), (true, true));
        assert_eq!(left(Verdict::Void), (false, true));
        assert_eq!(left(Verdict::Passed), (false, false));
        fs::remove_dir_all(directory("kept")).unwrap();
    }

    /// What a night is for: two hundred runs, ten million messages under load, five hundred power cuts.
    #[test]
    fn two_hundred_runs_have_load_and_power_cuts_enough() {
        let runs: Vec<Schedule> = (1..=200)
            .map(|seed| draw(seed, EVERYTHING).unwrap())
            .collect();
        let loads = runs.iter().filter(|run| run.workload == Workload::Load);
        assert!(loads.count() > 70);
        let windows = runs.iter().flat_map(|run| &run.windows);
        let cuts = windows.map(|window| match window.fault {
            // From one cut to the next it waits for 0.8 s on average, and the cut takes its time.
            Fault::PowerStorm => 1 + window.lasts / 1_200,
            fault => u64::from(fault.kind() == Kind::Power),
        });
        let cuts: u64 = cuts.sum();
        assert!(cuts >= 500, "{cuts}");
        for kind in Kind::value_variants() {
            let with = runs.iter().filter(|run| run.drawn_from.contains(kind));
            assert!(with.count() >= 20, "{}", value_name(kind));
        }
    }
}
