//! Starting one process.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use crate::clock;

/// Until a process has set itself up.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Where the output of a process goes.
pub(crate) fn output_of(conf: &Path) -> PathBuf {
    conf.with_extension("log")
}

/// Starts a process; its output goes beside its properties file. A leashed one ends with this thread.
pub(crate) fn spawn(mut command: Process, conf: &Path, leashed: bool) -> anyhow::Result<Child> {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(output_of(conf))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if leashed {
        leash(&mut command);
    }
    command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))
}

/// Has a process that is to be started end with this thread, also when that is killed.
pub(crate) fn leash(command: &mut Process) -> &mut Process {
    let parent = getpid();
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have gone before it could be watched.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
    }
    command
}

/// Waits until a process that is to become `program` is it.
pub(super) fn until_it_is(program: &Path, pid: u32) -> anyhow::Result<()> {
    let program = fs::canonicalize(program)?;
    let end = Instant::now() + START_LIMIT;
    while fs::read_link(format!("/proc/{pid}/exe"))? != program {
        ensure!(
            Instant::now() < end,
            "process {pid} does not become {}",
            program.display()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What executes the words after it in a mount namespace where the machine's run has the identity of the machine
/// where `store` lies, see [`Options::machines`](super::Options::machines), and without the file systems of others.
pub(crate) fn machine<'a>(store: &Path, others: impl Iterator<Item = &'a Path>) -> Process {
    // A file system of another node is in use, and never mounted anew, for as long as it is
    // mounted anywhere.
    let script = format!(
        "boot=$1; shift; \
        until [ \"$1\" = -- ]; do umount \"$1\" || exit; shift; done; shift; \
        {} && mount --bind \"$boot\" /proc/sys/kernel/random/boot_id && exec \"$@\"",
        clock::OWN_MEMORY
    );
    let mut command = Process::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, "machine"])
        .arg(boot(store))
        .args(others)
        .arg("--");
    command
}

/// The file with the identity of the run of the machine where a node has its store.
pub(crate) fn boot(store: &Path) -> PathBuf {
    store.with_extension("boot")
}

/// What a node needs: see `Node::new`, and the ports of the group's five further names.
const RUN: u16 = 8;

/// So many of them lie below the range that the kernel gives to outgoing connections.
const RUNS: u16 = 1_500;
const FIRST: u16 = 20_000;

/// The last three digits of ports that no run has: tests open the stores of the fixtures at their old addresses,
/// from 127.0.0.1:23911 to 127.0.0.1:28911.
const OF_FIXTURES: Range<u16> = 900..1_000;

/// First ports of runs of so many that were free a moment ago, and that the kernel gives to nobody by
/// itself. One process never gets the same run twice.
///
/// # Errors
/// Where no more are free.
pub fn free_runs(count: usize) -> anyhow::Result<Vec<u16>> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Runs that are started together have neighbouring process ids.
    let first = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(RUNS))?;
    let mut found = Vec::new();
    while found.len() < count {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        ensure!(nth < RUNS, "no free ports between 20000 and 32000");
        let at = FIRST + (first + nth) % RUNS * RUN;
        let is_free = |port| {
            !OF_FIXTURES.contains(&(port % 1_000)) && TcpListener::bind(("127.0.0.1", port)).is_ok()
        };
        if (at..at + RUN).all(is_free) {
            found.push(at);
        }
    }
    Ok(found)
}
