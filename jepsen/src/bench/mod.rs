//! Benchmarks of a broker under a burden that grows over years: a long log, very many queues, a node
//! that lost its disk. Each times sends without and with the burden in one run, for only the ratio of
//! the two means something on another machine. For an idle machine and a release build.
//!
//! `probe` times the sends, `limit` takes memory away.

pub mod backlog;
pub mod catch_up;
mod limit;
pub mod many;
mod probe;

use std::path::Path;

use clap::Subcommand;

pub use probe::Latencies;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// A benchmark: a node that lost its disk takes a long log as files and is killed on the way.
    CatchUp(catch_up::Plan),
    /// A benchmark: very many queues or topics.
    Many(many::Plan),
    /// A benchmark: consumers that read a log from its start, which no memory holds. Takes root.
    Backlog(backlog::Plan),
}

/// What was measured.
pub struct Report {
    /// Takes lines for people, as soon as there is something to tell.
    pub say: fn(&str),
    /// What was promised and is not so.
    pub wrong: Vec<String>,
}

impl Bench {
    /// Measures, with all files under `dir`.
    ///
    /// # Errors
    /// If a process, a file or a request fails; then nothing was measured.
    pub fn run(&self, rmq: &Path, dir: &Path, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Bench::CatchUp(plan) => catch_up::run(rmq, dir, plan, report),
            Bench::Many(plan) => many::run(rmq, dir, plan, report),
            Bench::Backlog(plan) => backlog::run(rmq, dir, plan, report),
        }
    }
}

impl Report {
    fn line(&mut self, line: impl Into<String>) {
        (self.say)(&line.into());
    }

    /// Compares the 99th percentiles of sends.
    fn compare(&mut self, without: &Latencies, with: &Latencies, most: f64) {
        let p99 = |of: &Latencies| of.quantile(0.99).as_secs_f64();
        let ratio = p99(with) / p99(without);
        self.line(format!(
            "99th percentile: {ratio:.2} times; the limit is {most}"
        ));
        if ratio > most {
            self.wrong.push(format!(
                "the 99th percentile is {ratio:.2} times that without"
            ));
        }
    }
}
