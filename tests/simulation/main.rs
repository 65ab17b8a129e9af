//! A whole group in one process and one thread: nodes as the broker starts them, on disks that tear and
//! lose what was not synced, a network that delays, cuts and breaks, and clients that send and commit
//! through it all. Everything comes from a seed, and the same seed gives the same run.
//!
//! `cargo test --profile sim --test simulation -- --seeds 1000`, or `-- --seed 17` for one of them with all
//! that happened; with `RUST_LOG=rmq=info,rmq_store=info`, say, what its nodes log is told as well.
//! Each run has a process of its own, so that it starts from nothing.

#![expect(clippy::print_stdout, reason = "a program that tells what it finds")]

mod clients;
mod machine;
mod nemesis;
mod network;
mod nodes;
mod oracle;
mod plan;
mod random;
mod run;
mod suite;
mod trace;

use std::process::ExitCode;

use clap::Parser;

/// Simulates a group.
#[derive(Parser)]
pub(crate) struct Args {
    /// Run one seed and print all that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Run this many seeds.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// Begin with this seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Print no events of the one seed, only what came of it.
    #[arg(long)]
    quiet: bool,
    /// Run the planted bugs of a build with the feature `mutants`, or this one of them: each has to be
    /// found, and the same seeds have to pass without it.
    #[arg(long, num_args = 0..=1, default_missing_value = "all")]
    mutants: Option<String>,
    /// What `cargo test` passes on to every test; only a run of all of them comes here.
    filter: Option<String>,
    #[arg(long, hide = true)]
    list: bool,
    /// More of that, without a meaning here.
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
    #[arg(long, hide = true)]
    skip: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list
        || args.ignored
        || args.exact
        || args
            .skip
            .iter()
            .any(|part| "simulation".contains(part.as_str()))
        || args
            .filter
            .is_some_and(|filter| !"simulation".contains(&filter))
    {
        return ExitCode::SUCCESS;
    }
    match (args.seed, args.mutants) {
        (Some(seed), _) => one(seed, !args.quiet),
        (None, Some(which)) => suite::mutants(&which),
        (None, None) => suite::run(args.from, args.seeds),
    }
}

/// Logs without a trace in the run: each hash map takes the next keys of its thread, which the order of
/// its elements and of tokio's choices follow, and so those of the logging are made on another thread.
fn log_to_stderr(filter: String) {
    let logs = std::thread::spawn(|| {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    });
    logs.join().expect("a filter that can be read");
}

/// Runs a seed in this process, which has run nothing else.
fn one(seed: u64, verbose: bool) -> ExitCode {
    if let Ok(filter) = std::env::var("RUST_LOG") {
        log_to_stderr(filter);
    }
    random::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(run::run(seed, verbose));
    // The tasks of nodes that were killed may go on for ever.
    std::mem::forget(runtime);
    suite::report(seed, &outcome, verbose)
}
