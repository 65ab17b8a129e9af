//! `rmq bench`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::ArgAction;

use super::namesrv::Namesrv;
use crate::bench::{self, Mode, Plan, Report};

/// What to send or read, and how fast.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Latency counts from the time at which a request is due, not from when it could be \
    sent; what had to wait is sent for up to 10 s after the end, and the rest counted as not sent. \
    Without --rate each connection sends as soon as an answer makes room among its --in-flight.\n\n\
    Examples:\n  \
    rmq bench produce -n 127.0.0.1:9876 --in-flight 64\n  \
    rmq bench produce --rate 5000 --size 128 --duration 60 --json before.json\n  \
    rmq bench produce --rate 5000 --size 128 --duration 60 --compare before.json\n  \
    rmq bench consume --connections 4\n  \
    rmq bench end-to-end --rate 1000"
)]
pub(super) struct Options {
    /// What is measured.
    #[arg(value_enum)]
    mode: Mode,
    #[command(flatten)]
    namesrv: Namesrv,
    /// The topic, created if there is none; with --topics the prefix of their names.
    #[arg(short = 't', long, default_value = "rmq_bench")]
    topic: String,
    /// Topics.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    topics: u32,
    /// Queues of a topic that has to be created.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    queues: u32,
    /// Bytes of a message's body.
    #[arg(short = 's', long, default_value_t = 1024)]
    size: usize,
    /// Messages of one send request, or the most that one pull brings (32 at least).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Messages a second of all connections together; as fast as possible by default.
    #[arg(short = 'r', long)]
    rate: Option<f64>,
    /// Connections.
    #[arg(short = 'c', long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Requests that may be under way on one connection.
    #[arg(short = 'i', long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: u32,
    /// Seconds of sending before anything is measured.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// Seconds that are measured; 10 by default where there is no --count.
    #[arg(short = 'd', long)]
    duration: Option<u64>,
    /// Messages that are measured.
    #[arg(long)]
    count: Option<u64>,
    /// Tell the CPU time of this process on this machine; may be repeated.
    #[arg(long = "pid", value_name = "PID", action = ArgAction::Append)]
    pids: Vec<u32>,
    /// Write the result to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the result beside that of an earlier run, as --json wrote it.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Tell only the result.
    #[arg(short = 'q', long)]
    quiet: bool,
}

pub(super) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let before = options.compare.as_deref().map(read).transpose()?;
    let plan = plan(&options)?;
    if !options.quiet {
        println!("{}", plan.describe());
    }
    let namesrv = options.namesrv.reachable().await;
    let told = |progress: &bench::Progress| {
        if !options.quiet {
            println!("{}", progress.describe());
        }
    };
    let report = bench::run(namesrv, plan, &options.pids, told).await?;
    print!("{}", report.describe());
    if let Some(before) = before {
        print!("{}", report.compare(&before));
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(match report.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn plan(options: &Options) -> anyhow::Result<Plan> {
    /// Room of a frame for everything but bodies.
    const FRAME_BYTES: usize = 15 << 20;
    if let Some(rate) = options.rate {
        ensure!(
            rate.is_finite() && rate > 0.0,
            "--rate {rate}: a number above 0 is needed"
        );
    }
    let (size, batch) = (options.size, options.batch);
    ensure!(
        size.saturating_mul(batch as usize) <= FRAME_BYTES,
        "--size {size} x --batch {batch}: a request takes {FRAME_BYTES} bytes at most"
    );
    ensure!(
        options.mode != Mode::EndToEnd || size >= bench::STAMP_BYTES,
        "--size {size}: end-to-end needs {} bytes at least, for the time in each message",
        bench::STAMP_BYTES
    );
    let is_consume = options.mode == Mode::Consume;
    let duration = match (options.duration, options.count) {
        (None, None) if !is_consume => Some(10),
        (given, _) => given,
    };
    Ok(Plan {
        mode: options.mode,
        topic: options.topic.clone(),
        topics: options.topics,
        queues: options.queues,
        size,
        batch,
        rate: options.rate,
        connections: options.connections,
        in_flight: options.in_flight,
        // A backlog is read only once.
        warmup: if is_consume { 0 } else { options.warmup },
        duration,
        count: options.count,
    })
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is no result of --json", path.display()))
}
