//! The fault-injection suite's command line.
#![expect(
    clippy::print_stdout,
    reason = "a command-line tool reports on standard output"
)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use jepsen::bench::{self, Bench};
use jepsen::power;
use jepsen::run::{self, Gap, Nemesis, Plan, Report};

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

/// Until the group acknowledges again after a fault, in milliseconds.
const MEDIAN_LIMIT_MS: u64 = 1500;
const WORST_LIMIT_MS: u64 = 3000;

/// Power cuts that one group of nodes lives through.
const CUTS_OF_A_GROUP: u32 = 20;

#[derive(Subcommand)]
enum Action {
    /// One run.
    Test {
        /// Faults, separated by commas; each strikes in turn.
        #[arg(long, value_delimiter = ',', default_value = "kill-leader")]
        nemesis: Vec<Nemesis>,
        /// How often each fault strikes.
        #[arg(long, default_value_t = 20)]
        rounds: u32,
        /// Draws pauses and victims; a run is repeated by its seed.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// SYNC_FLUSH on every node instead of ASYNC_FLUSH.
        #[arg(long)]
        sync_flush: bool,
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
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let rmq = match arguments.rmq {
        Some(path) => path,
        None => built()?,
    };
    let plan = |nemeses, rounds, seed, sync_flush| Plan {
        nemeses,
        rounds,
        seed,
        sync_flush,
    };
    let plans: Vec<Plan> = match arguments.command {
        Action::Test {
            nemesis,
            rounds,
            seed,
            sync_flush,
        } => {
            vec![plan(nemesis, rounds, seed, sync_flush)]
        }
        Action::Power { of, cuts, seed } => {
            if !power::is_possible() {
                println!("skipped: only root can make file systems and cut their power");
                return Ok(ExitCode::SUCCESS);
            }
            let (nemesis, sync_flush) = match of {
                Power::Sync => (Nemesis::Power, true),
                Power::AsyncOne => (Nemesis::PowerOne, false),
                Power::AsyncAll => (Nemesis::Blackout, false),
                Power::AsyncAllLongest => (Nemesis::BlackoutLongest, false),
            };
            let groups = (0..cuts).step_by(CUTS_OF_A_GROUP as usize);
            groups
                .zip(seed..)
                .map(|(done, seed)| {
                    let rounds = CUTS_OF_A_GROUP.min(cuts - done);
                    plan(vec![nemesis], rounds, seed, sync_flush)
                })
                .collect()
        }
        Action::Bench(bench) => {
            let temporary = || std::env::temp_dir().join(format!("bench-{}", std::process::id()));
            return measure(&rmq, &arguments.dir.unwrap_or_else(temporary), &bench);
        }
        Action::Suite { which: Suite::Ci } => [
            plan(vec![Nemesis::KillLeader], 20, 7, false),
            plan(vec![Nemesis::KillFollower, Nemesis::KillAll], 2, 11, true),
            plan(vec![Nemesis::PauseLeader], 1, 13, false),
        ]
        .into_iter()
        .chain(
            [
                plan(vec![Nemesis::Power], 3, 17, true),
                plan(vec![Nemesis::PowerOne], 2, 19, false),
                plan(vec![Nemesis::Blackout], 1, 23, false),
            ]
            .into_iter()
            .filter(|_| power::is_possible()),
        )
        .collect(),
    };
    let mut failed = 0;
    for plan in &plans {
        let dir = match &arguments.dir {
            Some(dir) => dir.clone(),
            None => {
                std::env::temp_dir().join(format!("jepsen-{}-{}", std::process::id(), plan.seed))
            }
        };
        failed += u32::from(!judge(&rmq, &dir, plan, arguments.limits)?);
    }
    println!("{} passed, {failed} failed", plans.len() - failed as usize);
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
    std::fs::remove_dir_all(dir)?;
    Ok(if report.wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs one plan and prints what came of it. Whether it passed.
fn judge(rmq: &Path, dir: &Path, plan: &Plan, limits: bool) -> anyhow::Result<bool> {
    println!("run: {plan:?}");
    let report = run::run(rmq, dir, plan)
        .with_context(|| format!("the run did not finish; its files are in {}", dir.display()))?;
    println!("  {}", report.summary);
    let mut too_slow = Vec::new();
    for nemesis in &plan.nemeses {
        let of_probe = distribution(&report, *nemesis, |gap| gap.probe_ms);
        let of_producers = distribution(&report, *nemesis, |gap| gap.producers_ms);
        println!(
            "  {nemesis:?}: next acknowledgement after {of_probe} by a probe of all nodes, \
             {of_producers} by a producer"
        );
        // Nodes have to start again first.
        let is_limited = !nemesis.cuts_power();
        if is_limited && (of_probe.median > MEDIAN_LIMIT_MS || of_probe.worst > WORST_LIMIT_MS) {
            too_slow.push(format!(
                "{nemesis:?}: {of_probe}; the limits are {MEDIAN_LIMIT_MS} ms (median) and \
                 {WORST_LIMIT_MS} ms (worst)"
            ));
        }
    }
    let without_failure = plan.nemeses.iter().all(|n| *n == Nemesis::Saturate);
    if without_failure && report.terms > 0 {
        let terms = report.terms;
        too_slow.push(format!("{terms} terms began although no node had failed"));
    }
    let mut wrong = report.wrong;
    for line in too_slow {
        if limits {
            wrong.push(line);
        } else {
            println!("  beyond the limits, which are not enforced: {line}");
        }
    }
    if wrong.is_empty() {
        println!("  passed");
        std::fs::remove_dir_all(dir)?;
        return Ok(true);
    }
    for line in &wrong {
        println!("  FAILED {line}");
    }
    println!("  files are kept in {}; seed {}", dir.display(), plan.seed);
    Ok(false)
}

/// Of a set of times in milliseconds.
struct Distribution {
    median: u64,
    worst: u64,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms (median), {} ms (worst)", self.median, self.worst)
    }
}

fn distribution(report: &Report, of: Nemesis, time: fn(&Gap) -> u64) -> Distribution {
    let gaps = report.gaps.iter().filter(|gap| gap.nemesis == of);
    let mut times: Vec<u64> = gaps.map(time).collect();
    times.sort_unstable();
    Distribution {
        median: times.get(times.len() / 2).copied().unwrap_or(0),
        worst: times.last().copied().unwrap_or(0),
    }
}

/// The executable beside this one. Under cargo it is built first, so that a run never tests an old one.
fn built() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let beside = own.with_file_name("rmq");
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "rmq",
            "--bin",
            "rmq",
        ]);
        if own.parent().is_some_and(|d| d.ends_with("release")) {
            build.arg("--release");
        }
        ensure!(build.status()?.success(), "rmq does not build");
    }
    ensure!(
        beside.is_file(),
        "{} is missing: build rmq, or name it with --rmq",
        beside.display()
    );
    Ok(beside)
}
