//! The fault-injection suite's command line.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool reports on standard output"
)]

mod built;
mod rounds;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use jepsen::attack::Bed;
use jepsen::bench::{self, Bench};
use jepsen::check::{self, CHECKERS, Figures};
use jepsen::cluster::Target;
use jepsen::run::{Nemesis, Plan};
use jepsen::schedule::{Kind, Schedule};
use jepsen::suite::{self, Verdict};
use jepsen::versus::{self, Versus};
use jepsen::workload::Kind as Workload;
use jepsen::{doctor, mutants, power, record};

use built::built;

#[derive(Parser)]
#[command(about = "Attacks a three-node group and judges what its clients saw")]
struct Arguments {
    /// The rmq executable; by default the one beside this program, built first when cargo runs us.
    #[arg(long, global = true)]
    rmq: Option<PathBuf>,
    /// Where the nodes' files go; kept after a failed run. A new temporary directory by default.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Fail too when a fault keeps clients waiting for longer than is promised, or when a leader is
    /// lost without a failed node. For an idle machine and a release build: this is a benchmark.
    #[arg(long, global = true)]
    limits: bool,
    #[command(subcommand)]
    command: Action,
}

/// Power cuts that one group of nodes lives through.
const CUTS_OF_A_GROUP: u32 = 20;
/// So often a run of every change may prove nothing.
const TRIES: u32 = 3;

#[derive(Subcommand)]
enum Action {
    /// One run. With --time faults come and go as the seed says, also several at once, in networks and
    /// on disks of the run's own as far as this machine has them; it leaves its history as EDN and a page
    /// of HTML. Without, fault after fault strikes on loopback, and each is timed.
    Test {
        /// Faults, separated by commas. With --time families of them: partition, slow, flaky, kill,
        /// pause, restart, transfer, power, full, eio, damage, lost, saturate, clock, syscall, or all. Without: kill-leader,
        /// kill-follower, pause-leader, kill-all, saturate, members, replace, damage-one, snapshot, power,
        /// power-one, blackout, blackout-longest.
        #[arg(long, value_delimiter = ',', default_value = "kill-leader")]
        nemesis: Vec<String>,
        /// How long faults come and go, in seconds.
        #[arg(long)]
        time: Option<u64>,
        /// What the nodes run, with --time; the Java brokers take the workloads queue and offset.
        #[arg(long, value_enum, default_value = "rmq", requires = "time")]
        target: Target,
        /// What consumers do, with --time.
        #[arg(long, value_enum, requires = "time")]
        workload: Option<Workload>,
        /// How often each fault strikes, without --time.
        #[arg(long, default_value_t = 20, conflicts_with = "time")]
        rounds: u32,
        /// Draws pauses, victims and schedules; a run is repeated by its seed.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// SYNC_FLUSH on every node instead of ASYNC_FLUSH; with --time it is drawn if neither is given.
        #[arg(long)]
        sync_flush: bool,
        /// ASYNC_FLUSH.
        #[arg(long, conflicts_with = "sync_flush")]
        async_flush: bool,
        /// Messages a second that the workload load sends at most.
        #[arg(long, requires = "time")]
        rate: Option<u64>,
    },
    /// Runs a schedule again that a run has left.
    Replay {
        /// Its `schedule.json`.
        schedule: PathBuf,
        /// Then tries it without each of its faults, and leaves out those that are not needed to fail.
        #[arg(long)]
        shrink: bool,
    },
    /// One run of a night, with what the night found this machine to have.
    #[command(hide = true)]
    Once {
        /// Its `schedule.json`.
        schedule: PathBuf,
        #[command(flatten)]
        bed: Bed,
    },
    /// Runs the same schedules on rmq and on Java brokers, and prints what clients saw of each. Needs the jars
    /// that `scripts/clients.sh java` fetches.
    Versus(Versus),
    /// Judges a history that a run has left.
    Check {
        /// Its `history.edn`.
        history: PathBuf,
    },
    /// Tries which faults work on this machine.
    Doctor,
    /// Runs nodes with planted bugs, each of which has to be found within five tries, and the same seeds
    /// without. Needs nodes that were built with the feature `mutants`.
    Mutants {
        /// Only this one.
        which: Option<String>,
    },
    /// Cuts of power under load, on file systems of their own. Takes root.
    Power {
        /// Of whom, and how the nodes flush.
        #[arg(value_enum, default_value = "sync")]
        of: Power,
        /// How many.
        #[arg(long, default_value_t = 200)]
        cuts: u32,
        /// Draws pauses; each group of nodes lives for a few cuts, and the next one has the next seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    #[command(flatten)]
    Bench(Bench),
    /// A set of runs.
    Suite {
        /// Which.
        which: Suite,
        /// For how long `nightly` begins new runs, all times together if it was stopped on the way.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
        /// The first seed of `nightly`; each run has the next one.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Power {
    /// All nodes, SYNC_FLUSH: nothing acknowledged is lost.
    Sync,
    /// One node, ASYNC_FLUSH, now and then while another is killed: nothing acknowledged is lost.
    AsyncOne,
    /// All nodes, ASYNC_FLUSH: they wait for `mqadmin raftRecover`, and lose the last moments.
    AsyncAll,
    /// The same with `uncleanRecovery=longest-log`.
    AsyncAllLongest,
}

#[derive(Clone, Copy, ValueEnum)]
enum Suite {
    /// What every change must pass, a few minutes.
    Ci,
    /// Schedules from seed after seed, workloads and faults drawn; leaves a summary.
    Nightly,
}

/// A run that has been done.
type Done = anyhow::Result<ExitCode>;

fn main() -> Done {
    let arguments = Arguments::parse();
    let temporary = || suite::directory("run");
    let rmq = || match &arguments.rmq {
        Some(path) => Ok(path.clone()),
        None => built("rmq", &[]),
    };
    let dir = arguments.dir.clone();
    suite::sweep()?;
    let say = |line: &str| println!("{line}");
    let (mut passed, mut failed) = (0, 0);
    let plans = match arguments.command {
        Action::Test {
            nemesis,
            time: Some(time),
            target,
            workload,
            seed,
            sync_flush,
            async_flush,
            rate,
            ..
        } => {
            let bed = Bed {
                rate: rate.unwrap_or(suite::RATE),
                ..suite::bed(&say)
            };
            let workload = workload.unwrap_or(Workload::Queue);
            let kinds = families(&nemesis, target, workload)?;
            let kinds = suite::possible(&kinds, bed);
            if kinds.is_empty() {
                println!("skipped: this machine has nothing that this run needs");
                return Ok(ExitCode::SUCCESS);
            }
            let flush = (sync_flush || async_flush).then_some(sync_flush);
            let mut schedule = Schedule::draw(workload, &kinds, time, seed, flush)?;
            schedule.target = target;
            let verdict = attack(&rmq()?, &dir.unwrap_or_else(temporary), &schedule, bed)?;
            return Ok(exit(verdict == Verdict::Passed));
        }
        Action::Test {
            nemesis,
            rounds,
            seed,
            sync_flush,
            ..
        } => {
            let of = |name: &String| {
                Nemesis::from_str(name, false).map_err(|e| {
                    anyhow::anyhow!("--nemesis {name}: {e}; its families of faults need --time")
                })
            };
            let nemeses = nemesis.iter().map(of).collect::<Result<_, _>>()?;
            vec![Plan {
                nemeses,
                rounds,
                seed,
                sync_flush,
            }]
        }
        Action::Replay { schedule, shrink } => {
            let schedule = read(&schedule)?;
            let dir = dir.unwrap_or_else(temporary);
            if shrink {
                suite::shrink(&rmq()?, &dir, schedule, suite::bed(&say), &say)?;
                return Ok(ExitCode::SUCCESS);
            }
            let verdict = attack(&rmq()?, &dir, &schedule, suite::bed(&say))?;
            return Ok(exit(verdict == Verdict::Passed));
        }
        Action::Once { schedule, bed } => {
            let dir = dir.unwrap_or_else(temporary);
            let (verdict, _) = suite::one(&rmq()?, &dir, &read(&schedule)?, bed, &say)?;
            return Ok(exit(verdict == Verdict::Passed));
        }
        Action::Versus(plan) => {
            let (dir, bed) = (dir.unwrap_or_else(temporary), suite::bed(&say));
            let table = versus::run(&rmq()?, &dir, &plan, bed, &say)?;
            println!("{table}in {}", dir.display());
            return Ok(ExitCode::SUCCESS);
        }
        Action::Check { history } => return judge_history(&history),
        Action::Doctor => return examine(),
        Action::Mutants { which } => {
            let rmq = match &arguments.rmq {
                Some(path) => path.clone(),
                None => built("rmq", &["--features", "mutants"])?,
            };
            let dir = dir.unwrap_or_else(temporary);
            let found = mutants::find_all(&rmq, &dir, which.as_deref(), &say)?;
            return Ok(exit(found));
        }
        Action::Power { of, cuts, seed } => {
            if !power::is_possible() {
                println!("skipped: only root can make file systems and cut their power");
                return Ok(ExitCode::SUCCESS);
            }
            cutting_power(of, cuts, seed)
        }
        Action::Bench(bench) => {
            let temporary = || std::env::temp_dir().join(format!("bench-{}", std::process::id()));
            return measure(&rmq()?, &dir.unwrap_or_else(temporary), &bench);
        }
        Action::Suite {
            which: Suite::Nightly,
            minutes,
            seed,
        } => {
            let dir = dir.unwrap_or_else(|| suite::directory("nightly"));
            println!(
                "goes on if it is stopped, with --seed {seed} --dir {}",
                dir.display()
            );
            let (time, bed) = (Duration::from_secs(60 * minutes), suite::bed(&say));
            let tally = suite::nightly(&rmq()?, &dir, seed, time, bed, &say)?;
            println!("{}in {}", tally.to_markdown(), dir.display());
            return Ok(exit(tally.is_clean()));
        }
        Action::Suite {
            which: Suite::Ci, ..
        } => {
            let (rmq, bed) = (rmq()?, suite::bed(&say));
            for schedule in short_schedules(bed)? {
                let dir = suite::directory(&format!("schedule-{}", schedule.seed));
                // A run that proves nothing says more of a busy machine than of the nodes.
                let mut verdict = Verdict::Void;
                for _ in 0..TRIES {
                    if dir.try_exists()? {
                        fs::remove_dir_all(&dir)?;
                    }
                    verdict = attack(&rmq, &dir, &schedule, bed)?;
                    if verdict != Verdict::Void {
                        break;
                    }
                }
                if verdict == Verdict::Passed {
                    passed += 1;
                    if dir.try_exists()? {
                        fs::remove_dir_all(&dir)?;
                    }
                } else {
                    failed += 1;
                }
            }
            short()
        }
    };
    let rmq = rmq()?;
    for plan in &plans {
        let own = || suite::directory(&plan.seed.to_string());
        let dir = dir.clone().unwrap_or_else(own);
        if rounds::judge(&rmq, &dir, plan, arguments.limits)? {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(exit(failed == 0))
}

fn exit(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The runs of every change.
fn short() -> Vec<Plan> {
    let plan = |nemeses: &[Nemesis], rounds, seed, sync_flush| Plan {
        nemeses: nemeses.to_vec(),
        rounds,
        seed,
        sync_flush,
    };
    let everywhere = [
        plan(&[Nemesis::KillLeader], 20, 7, false),
        plan(&[Nemesis::KillFollower, Nemesis::KillAll], 2, 11, true),
        plan(&[Nemesis::PauseLeader], 1, 13, false),
    ];
    let as_root = [
        plan(&[Nemesis::Power], 3, 17, true),
        plan(&[Nemesis::PowerOne], 2, 19, false),
        plan(&[Nemesis::Blackout], 1, 23, false),
    ];
    let as_root = as_root.into_iter().filter(|_| power::is_possible());
    everywhere.into_iter().chain(as_root).collect()
}

/// The schedules of every change: some faults at once, as far as this machine has them.
fn short_schedules(bed: Bed) -> anyhow::Result<Vec<Schedule>> {
    const TIME: u64 = 20;
    let runs = [
        (Workload::Queue, [Kind::Partition, Kind::Kill], 7),
        (Workload::Offset, [Kind::Power, Kind::Pause], 11),
    ];
    let mut schedules = Vec::new();
    for (workload, kinds, seed) in runs {
        let kinds = suite::possible(&kinds, bed);
        schedules.push(Schedule::draw(workload, &kinds, TIME, seed, None)?);
    }
    Ok(schedules)
}

/// Power cuts, by groups of nodes that live through a few.
fn cutting_power(of: Power, cuts: u32, seed: u64) -> Vec<Plan> {
    let (nemesis, sync_flush) = match of {
        Power::Sync => (Nemesis::Power, true),
        Power::AsyncOne => (Nemesis::PowerOne, false),
        Power::AsyncAll => (Nemesis::Blackout, false),
        Power::AsyncAllLongest => (Nemesis::BlackoutLongest, false),
    };
    let groups = (0..cuts).step_by(CUTS_OF_A_GROUP as usize);
    let plan = |(done, seed)| Plan {
        nemeses: vec![nemesis],
        rounds: CUTS_OF_A_GROUP.min(cuts - done),
        seed,
        sync_flush,
    };
    groups.zip(seed..).map(plan).collect()
}

/// The families of faults that are named; `all` are those against which such nodes promise anything to such
/// clients.
fn families(names: &[String], target: Target, workload: Workload) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for name in names {
        if name == "all" {
            let all = Kind::value_variants().iter().copied();
            kinds.extend(all.filter(|kind| kind.works_on(target) && kind.works_with(workload)));
        } else {
            let kind = Kind::from_str(name, false);
            kinds.push(kind.map_err(|e| anyhow::anyhow!("--nemesis {name} with --time: {e}"))?);
        }
    }
    Ok(kinds)
}

/// A schedule that a run has left.
fn read(path: &Path) -> anyhow::Result<Schedule> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| path.display().to_string())?;
    Schedule::from_json(&text).with_context(|| path.display().to_string())
}

/// Runs one schedule, as far as this machine can.
fn attack(rmq: &Path, dir: &Path, schedule: &Schedule, bed: Bed) -> anyhow::Result<Verdict> {
    let say = |line: &str| println!("{line}");
    let mut schedule = schedule.clone();
    let possible = suite::possible(&schedule.kinds(), bed);
    schedule
        .windows
        .retain(|window| possible.contains(&window.fault.kind()));
    if schedule.windows.is_empty() {
        println!("skipped: this machine has nothing that this run needs");
        return Ok(Verdict::Passed);
    }
    let (verdict, outcome) = suite::one(rmq, dir, &schedule, bed, &say)?;
    // They do not count batches.
    if schedule.workload != Workload::Load {
        let row = Figures::of(&outcome.history).to_row();
        println!("  | {}\n  | {row}", Figures::HEAD);
    }
    println!("  {}", dir.join(jepsen::page::PAGE).display());
    Ok(verdict)
}

/// Judges a file.
fn judge_history(path: &Path) -> Done {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let history = record::read(&text).with_context(|| path.display().to_string())?;
    let (acknowledged, unknown) = history.counts();
    println!(
        "{} sends: {acknowledged} acknowledged, {unknown} unknown; {} polls; {} faults",
        history.sends.len(),
        history.polls.len(),
        history.faults.len()
    );
    let wrong = check::judge(&history, &CHECKERS);
    let void = check::void(&history);
    for line in &wrong {
        println!("FAILED {line}");
    }
    for line in &void {
        println!("VOID {line}");
    }
    Ok(exit(wrong.is_empty() && void.is_empty()))
}

/// Prints what works here.
fn examine() -> Done {
    for finding in doctor::examine(&suite::directory("doctor")) {
        let state = match &finding.result {
            Ok(()) => "works".to_owned(),
            Err(e) => format!("skipped: {e:#}"),
        };
        println!("{}\n    by {}: {state}", finding.faults, finding.recipe);
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures and prints. The files go, for they are large.
fn measure(rmq: &Path, dir: &Path, bench: &Bench) -> anyhow::Result<ExitCode> {
    println!("run: {bench:?}");
    let mut report = bench::Report {
        say: |line| println!("  {line}"),
        wrong: Vec::new(),
    };
    bench
        .run(rmq, dir, &mut report)
        .with_context(|| format!("the run did not finish; its files are in {}", dir.display()))?;
    for line in &report.wrong {
        println!("  FAILED: {line}");
    }
    fs::remove_dir_all(dir)?;
    Ok(exit(report.wrong.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_families_can_be_drawn_with_each_workload() {
        for workload in Workload::value_variants() {
            let all = families(&["all".into()], Target::Rmq, *workload).unwrap();
            Schedule::draw(*workload, &all, 60, 7, None).unwrap();
        }
    }
}
