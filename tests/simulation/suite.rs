//! Many seeds, each in a process of its own.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rmq_store::mutants::{OF_DEATH, OF_LOG};

use crate::run::Outcome;

/// The first seeds are run twice, to compare their traces; the second time with all that can be logged.
const TWICE: u64 = 3;
/// Seeds that have found something that is mended; a suite from the first seed on begins with them. They
/// meet it again only as long as no later change moves what is drawn or when; a test beside the code that
/// was mended holds it for good.
const FOUND: [u64; 3] = [175, 514, 665];
/// Seeds in which a planted bug has to be found.
const MUTANT_SEEDS: u64 = 200;
/// What has to happen in a suite of at least this many seeds.
const COVERED: u64 = 50;

/// Prints what came of one seed; the last line is for [`run`].
pub(crate) fn report(seed: u64, outcome: &Outcome, verbose: bool) -> ExitCode {
    if let Some(anomaly) = &outcome.anomaly {
        if !verbose {
            println!("{}", outcome.tail);
        }
        println!("seed {seed}: {anomaly}");
    }
    let counts = outcome.counts.iter();
    let counts: Vec<String> = counts.map(|(what, n)| format!("{what}={n}")).collect();
    println!("trace={:016x} {}", outcome.hash, counts.join(" "));
    if outcome.anomaly.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn simulate(seed: u64, mutant: Option<&str>, logs: bool) -> (Output, String) {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(["--quiet", "--seed", &seed.to_string()]);
    if logs {
        command.env("RUST_LOG", "trace").stderr(Stdio::null());
    }
    match mutant {
        Some(mutant) => command.env("RMQ_MUTANT", mutant),
        None => command.env_remove("RMQ_MUTANT"),
    };
    let output = command.output().expect("this program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default().to_owned();
    (output, last)
}

/// What came of the search for one planted bug.
struct Found {
    /// How many seeds were run.
    tried: u64,
    /// The seed that shows it, and how.
    by: Option<(u64, String)>,
    /// The seed shows no anomaly without the bug.
    sound: bool,
}

/// Runs seeds with a planted bug until one shows an anomaly.
fn find(mutant: &str, most: u64) -> Found {
    let by = (1..=most).find_map(|seed| {
        let (output, _) = simulate(seed, Some(mutant), false);
        let text = String::from_utf8_lossy(&output.stdout);
        let start = format!("seed {seed}: ");
        let anomaly = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix(&start));
        let anomaly = anomaly.map_or_else(|| output.status.to_string(), str::to_owned);
        (!output.status.success()).then_some((seed, anomaly))
    });
    let tried = by.as_ref().map_or(most, |(seed, _)| *seed);
    let sound =
        (by.as_ref()).is_none_or(|(seed, _)| simulate(*seed, None, false).0.status.success());
    Found { tried, by, sound }
}

/// Lets the simulation look for planted bugs, all or the one of this name, and prints what found them.
pub(crate) fn mutants(which: &str) -> ExitCode {
    if !cfg!(feature = "mutants") {
        println!(
            "no bugs are planted: cargo test --profile sim --features mutants --target-dir target/mutants \
                  --test simulation -- --mutants"
        );
        return ExitCode::FAILURE;
    }
    let wanted: Vec<_> = OF_LOG
        .iter()
        .chain(&OF_DEATH)
        .filter(|(name, _)| which == "all" || which == *name)
        .collect();
    let next = AtomicUsize::new(0);
    let missed = AtomicUsize::new(usize::from(wanted.is_empty()));
    println!(
        "{:<11} {:>5} {:>5}  {:<5} what it does: how it shows",
        "mutant", "tried", "seed", "by"
    );
    let work = || {
        while let Some((name, what)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Found { tried, by, sound } = find(name, MUTANT_SEEDS);
            if by.is_none() || !sound {
                missed.fetch_add(1, Ordering::Relaxed);
            }
            let (seed, anomaly) = match by {
                Some((seed, anomaly)) => (seed.to_string(), anomaly),
                None => ("-".to_owned(), "-: NOT FOUND".to_owned()),
            };
            let (by, how) = anomaly.split_once(": ").unwrap_or(("-", &anomaly));
            let unsound = if sound { "" } else { " (WITHOUT IT, TOO)" };
            println!("{name:<11} {tried:>5} {seed:>5}  {by:<5} {what}: {how}{unsound}");
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    match missed.into_inner() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Runs `count` seeds from `first` on, on all cores, and says which fail and how to repeat them.
pub(crate) fn run(first: u64, count: u64) -> ExitCode {
    let start = Instant::now();
    let found = FOUND.iter().copied().filter(|_| first == 1);
    let seeds = found.filter(|seed| !(first..first + count).contains(seed));
    let seeds: Vec<u64> = seeds.chain(first..first + count).collect();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let totals = Mutex::new(BTreeMap::<String, u64>::new());
    let mutant = std::env::var("RMQ_MUTANT").ok();
    let simulate = |seed, logs| simulate(seed, mutant.as_deref(), logs);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || loop {
        let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else {
            return;
        };
        if failed.lock().expect("no panic").len() >= 3 {
            return;
        }
        let (output, last) = simulate(seed, false);
        if !output.status.success() {
            println!(
                "{}{}\nseed {seed} failed ({}); to repeat it:\n  cargo test --profile sim --test simulation -- --seed {seed}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
                output.status
            );
            failed.lock().expect("no panic").push(seed);
            continue;
        }
        if (first..first + TWICE).contains(&seed) {
            let (_, again) = simulate(seed, true);
            if again != last {
                println!(
                    "seed {seed} gives different runs, the second with logs:\n  {last}\n  {again}"
                );
                failed.lock().expect("no panic").push(seed);
            }
        }
        let mut totals = totals.lock().expect("no panic");
        for field in last.split(' ').filter(|field| !field.starts_with("trace=")) {
            if let Some((what, n)) = field.split_once('=') {
                *totals.entry(what.to_owned()).or_default() += n.parse().unwrap_or(0);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let (failed, totals) = (failed.into_inner().expect("no panic"), totals.into_inner());
    let totals = totals.expect("no panic");
    let shown: Vec<String> = totals
        .iter()
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    println!("{}", shown.join(", "));
    let idle: Vec<&str> = totals
        .iter()
        .filter(|(_, n)| **n == 0)
        .map(|(what, _)| what.as_str())
        .collect();
    if count >= COVERED && failed.is_empty() && !idle.is_empty() {
        println!("void: never happened: {}", idle.join(", "));
        return ExitCode::FAILURE;
    }
    let took = start.elapsed().as_secs();
    if failed.is_empty() {
        println!("simulation: {count} seeds from {first} on, no anomaly, {took} s");
        ExitCode::SUCCESS
    } else {
        println!("simulation: seeds {failed:?} failed, {took} s");
        ExitCode::FAILURE
    }
}
