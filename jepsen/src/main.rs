//! The fault-injection suite's command line.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool reports on standard output"
)]

mod arguments;
mod built;
mod plans;
mod rounds;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use jepsen::attack::Bed;
use jepsen::bench::{self, Bench};
use jepsen::check::{self, CHECKERS, Figures};
use jepsen::run::{Nemesis, Plan};
use jepsen::schedule::Schedule;
use jepsen::suite::{self, Verdict};
use jepsen::workload::Kind as Workload;
use jepsen::{doctor, migration, mutants, power, record, versus};

use arguments::{Action, Arguments, Suite};
use built::built;
use plans::{cutting_power, families, short, short_schedules};

/// So often a run of every change may prove nothing.
const TRIES: u32 = 3;

/// A run that has been done.
type Done = anyhow::Result<ExitCode>;

fn main() -> Done {
    let arguments = Arguments::parse();
    let temporary = || suite::directory("run");
    let rmq = || match &arguments.rmq {
        Some(path) => Ok(path.clone()),
        None => built("rmq", &[]),
    };
    // And what else such clients take.
    let rmq_for = |workload: Workload| {
        if workload == Workload::Migrate && arguments.rmq.is_none() {
            built(migration::PROGRAM, &[])?;
        }
        rmq()
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
            let (rmq, dir) = (rmq_for(workload)?, dir.unwrap_or_else(temporary));
            let verdict = attack(&rmq, &dir, &schedule, bed)?;
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
            let (rmq, dir) = (rmq_for(schedule.workload)?, dir.unwrap_or_else(temporary));
            if shrink {
                suite::shrink(&rmq, &dir, schedule, suite::bed(&say), &say)?;
                return Ok(ExitCode::SUCCESS);
            }
            let verdict = attack(&rmq, &dir, &schedule, suite::bed(&say))?;
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
                None => {
                    let planted = ["--features", "mutants"];
                    built(migration::PROGRAM, &planted)?;
                    built("rmq", &planted)?
                }
            };
            let dir = dir.unwrap_or_else(temporary);
            let found = mutants::find_all(&rmq, &dir, &which, &say)?;
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
                match attack_until_it_tells(&rmq, &schedule, bed)? {
                    true => passed += 1,
                    false => failed += 1,
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
    if schedule.workload == Workload::Migrate && migration::archive().is_none() {
        println!("skipped: this machine has no archive of a Java broker's store");
        return Ok(Verdict::Passed);
    }
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

/// The same, again while it proves nothing, which says more of a busy machine than of the nodes. Whether it passed.
fn attack_until_it_tells(rmq: &Path, schedule: &Schedule, bed: Bed) -> anyhow::Result<bool> {
    let dir = suite::directory(&format!("schedule-{}", schedule.seed));
    let clear = || match dir.try_exists()? {
        true => fs::remove_dir_all(&dir),
        false => Ok(()),
    };
    let mut verdict = Verdict::Void;
    for _ in 0..TRIES {
        clear()?;
        verdict = attack(rmq, &dir, schedule, bed)?;
        if verdict != Verdict::Void {
            break;
        }
    }
    if verdict == Verdict::Passed {
        clear()?;
    }
    Ok(verdict == Verdict::Passed)
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
