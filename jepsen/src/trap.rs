//! System calls of a running node that fail or take long, injected by `strace`: reads that end with EIO, a sync
//! that does, syncs of a slow disk. Nothing of the node is changed, and it goes on at full speed when the tracer
//! is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::leash;
use crate::damage;
use crate::schedule::Fault;

/// How long the tracer may take to begin.
pub(crate) const START: Duration = Duration::from_secs(60);
/// The same to end.
const END: Duration = Duration::from_secs(60);

/// A tracer at work on a process. Dropping it lets go of the process.
pub(crate) struct Trap {
    tracer: Child,
    log: PathBuf,
}

impl Trap {
    /// Begins to trace the process of a node with this store; `log` is a file that it may write.
    pub(crate) fn set(
        pid: u32,
        fault: Fault,
        store: &Path,
        log: &Path,
        dice: &mut StdRng,
    ) -> anyhow::Result<Self> {
        // Counted for each thread.
        let (calls, how) = match fault {
            Fault::SyscallSync => ("fsync,fdatasync", "error=EIO:when=1".to_owned()),
            Fault::SyscallSlow => {
                let micros = dice.random_range(20_000..300_000);
                ("fsync,fdatasync", format!("delay_exit={micros}"))
            }
            _ => {
                let every = dice.random_range(1..20);
                ("pread64", format!("error=EIO:when=1+{every}"))
            }
        };
        // One that goes on after a failed sync of its log could end of another one that fails.
        let mut files = Vec::new();
        if fault == Fault::SyscallSync {
            files = damage::files(&store.join("commitlog"))?;
            ensure!(!files.is_empty(), "{} has no log", store.display());
        }
        Self::begin(pid, calls, &how, &files, log)
    }

    /// Has these calls end so, or only those on these files, if there are any.
    pub(crate) fn begin(
        pid: u32,
        calls: &str,
        how: &str,
        files: &[PathBuf],
        log: &Path,
    ) -> anyhow::Result<Self> {
        fs::File::create(log)?;
        let mut command = Command::new("strace");
        command
            .args([
                "-f",
                "-p",
                &pid.to_string(),
                "-e",
                &format!("trace={calls}"),
            ])
            .args(["-e", &format!("inject={calls}:{how}"), "-o"])
            .arg(log)
            .args(files.iter().flat_map(|file| [Path::new("-P"), file]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let tracer = leash(&mut command)
            .spawn()
            .context("cannot run strace (Debian: apt-get install strace)")?;
        let mut trap = Self {
            tracer,
            log: log.into(),
        };
        let end = Instant::now() + START;
        while !is_traced(pid)? {
            let ended = trap.tracer.try_wait()?;
            ensure!(ended.is_none(), "strace cannot trace process {pid}");
            ensure!(Instant::now() < end, "strace does not trace process {pid}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(trap)
    }

    /// How many calls it has changed so far.
    pub(crate) fn seen(&self) -> anyhow::Result<u64> {
        Ok(changed(&self.read()?).0)
    }

    /// Lets go of the process. How many calls it has changed, and how many more may have been: those that were
    /// under way.
    pub(crate) fn end(mut self) -> anyhow::Result<(u64, u64)> {
        self.let_go()?;
        Ok(changed(&self.read()?))
    }

    fn read(&self) -> anyhow::Result<String> {
        let log = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// A tracer that is told to end lets each thread come out of a call that it has changed; only one that does
    /// not end is killed.
    fn let_go(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + END;
        if self.tracer.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.tracer), Signal::TERM)?;
        }
        while self.tracer.try_wait()?.is_none() {
            if Instant::now() > end {
                self.tracer.kill()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        if let Err(e) = self.let_go() {
            eprintln!("cannot end strace: {e:#}");
        }
    }
}

/// What a tracer's log says: how many calls were changed, and how many were under way when it let go.
fn changed(log: &str) -> (u64, u64) {
    let count = |is: fn(&&str) -> bool| log.lines().filter(is).count() as u64;
    (
        count(|line| line.ends_with("(INJECTED)") || line.contains("(DELAYED)")),
        count(|line| line.contains("<detached")),
    )
}

/// Whether all threads of a process have a tracer.
fn is_traced(pid: u32) -> anyhow::Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line == "TracerPid:\t0") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_under_way_are_told_from_those_that_were_changed() {
        let log = "7 fdatasync(9) = -1 EIO (Input/output error) (INJECTED)\n\
                   8 fdatasync(9) = 0\n\
                   9 fdatasync(4 <detached ...>\n\
                   8 fdatasync(9) = 0 (DELAYED)\n";
        assert_eq!(changed(log), (2, 1));
    }
}
