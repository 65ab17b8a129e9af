//! `rmq shutdown broker|namesrv`: asks this machine's brokers or name servers to drain and stop.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::processes;

/// Which processes to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Role {
    /// Processes started as `rmq broker`.
    Broker,
    /// Processes started as `rmq namesrv`.
    Namesrv,
}

impl Role {
    /// The subcommand by which such a process was started.
    fn subcommand(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Namesrv => "namesrv",
        }
    }
}

/// A drain that takes longer than this is reported; the process goes on with it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends SIGTERM to every process of that role that this user may signal, and waits for their end.
pub(super) fn run(role: Role) -> anyhow::Result<ExitCode> {
    let mut waiting = Vec::new();
    for pid in pids(role)? {
        let process = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("pid out of range")?;
        kill_process(process, Signal::TERM).with_context(|| format!("cannot signal {pid}"))?;
        println!("asked {} {pid} to drain and stop", role.subcommand());
        waiting.push(process);
    }
    if waiting.is_empty() {
        println!("no {} is running here", role.subcommand());
        return Ok(ExitCode::FAILURE);
    }
    let end = Instant::now() + PATIENCE;
    while !waiting.is_empty() {
        waiting.retain(|p| test_kill_process(*p).is_ok());
        anyhow::ensure!(
            Instant::now() < end,
            "still draining after {} s: {waiting:?}",
            PATIENCE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(ExitCode::SUCCESS)
}

/// Processes of this executable's name that were started with the role's subcommand.
fn pids(role: Role) -> anyhow::Result<Vec<u32>> {
    let is_ours = |pid: &u32| {
        let line = processes::command_line(*pid);
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        program.rsplit('/').next() == Some("rmq") && words.next() == Some(role.subcommand())
    };
    let all = processes::all().context("cannot list /proc")?;
    Ok(all.filter(is_ours).collect())
}
