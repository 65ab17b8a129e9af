//! Which faults work on this machine: each one's recipe is tried once, not looked up.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};

use crate::clock;
use crate::cluster::leash;
use crate::net::{self, Net};
use crate::power::{self, Disks};
use crate::switch::Link;
use crate::trap::{START, Trap};

/// A place that is reached usually answers sooner.
const PATIENCE: Duration = Duration::from_millis(500);

/// What was tried, for which faults, and why it does not work, if so.
#[derive(Debug)]
pub struct Finding {
    /// The kinds of faults.
    pub faults: &'static str,
    /// How they are made.
    pub recipe: &'static str,
    /// What came of it.
    pub result: anyhow::Result<()>,
}

/// Tries everything, with files under `dir`.
pub fn examine(dir: &Path) -> Vec<Finding> {
    vec![
        Finding {
            faults: "kill, pause, restart, transfer, saturate, members, replace",
            recipe: "signals, processes, the operator's commands",
            result: Ok(()),
        },
        Finding {
            faults: "partition, slow, flaky",
            recipe: "network namespaces, TAP devices, a switch in user space",
            result: try_net(),
        },
        Finding {
            faults: "power",
            recipe: "ext4 on loop devices, FS_IOC_SHUTDOWN without a flush",
            result: try_disk(&dir.join("power"), power_cut),
        },
        Finding {
            faults: "full",
            recipe: "the same file system, all of it allocated",
            result: try_disk(&dir.join("full"), full_disk),
        },
        Finding {
            faults: "eio",
            recipe: "the same file system, FS_IOC_SHUTDOWN after a flush",
            result: try_disk(&dir.join("eio"), dead_disk),
        },
        Finding {
            faults: "clock",
            recipe: "libfaketime, on nodes with disks of their own",
            result: try_clock(&dir.join("clock")),
        },
        Finding {
            faults: "syscall",
            recipe: "strace",
            result: try_trap(&dir.join("trap")),
        },
        Finding {
            faults: "damage, lost",
            recipe: "bits, lengths and files of a node that is down",
            result: Ok(()),
        },
    ]
}

/// Whether runs can have a network of their own.
pub fn try_net() -> anyhow::Result<()> {
    ensure!(power::is_possible(), "it takes root");
    apart(|| {
        let net = Net::start(1, 0)?;
        let at = SocketAddr::from((net::ip(0), 7));
        let listener = thread::scope(|scope| {
            let bound = scope.spawn(|| {
                net.enter(0)?;
                Ok::<_, anyhow::Error>(TcpListener::bind(at)?)
            });
            bound.join().map_err(|_| anyhow::anyhow!("it panicked"))?
        })?;
        TcpStream::connect_timeout(&at, START).context("frames do not pass the switch")?;
        listener.accept()?;
        let to = (net.clients(), 0);
        net.set(&[(to, Link::CUT)]);
        ensure!(
            TcpStream::connect_timeout(&at, PATIENCE).is_err(),
            "a cut link is not cut"
        );
        ensure!(net.touched([to]) > 0, "a cut link has dropped nothing");
        net.set(&[]);
        TcpStream::connect_timeout(&at, START).context("a mended link is still cut")?;
        Ok(())
    })
}

/// Whether nodes can have disks of their own, with files under `dir`.
pub fn try_disks(dir: &Path) -> anyhow::Result<()> {
    try_disk(dir, power_cut)
}

/// Whether a process can have a clock of its own, with files under `dir`.
pub fn try_clock(dir: &Path) -> anyhow::Result<()> {
    const AHEAD: u64 = 3600;
    ensure!(power::is_possible(), "it takes root");
    fs::create_dir_all(dir)?;
    let file = dir.join("clock");
    clock::set(&file, Duration::from_secs(AHEAD), true)?;
    let told = apart(|| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(format!("{} && exec \"$@\"", clock::OWN_MEMORY));
        command.arg("clock").args(clock::words(&file)?);
        let output = command.args(["date", "+%s"]).output()?;
        let told = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse::<u64>();
        told.with_context(|| format!("date said {output:?}"))
    });
    fs::remove_dir_all(dir)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let ahead = told?.saturating_sub(now);
    ensure!(
        ahead.abs_diff(AHEAD) < 60,
        "a clock {AHEAD} s ahead is {ahead} s ahead"
    );
    Ok(())
}

/// Whether the system calls of a process can be changed, with files under `dir`.
pub fn try_trap(dir: &Path) -> anyhow::Result<()> {
    const LOOPS: &str = "while sleep 0.01; do :; done";
    fs::create_dir_all(dir)?;
    let mut child = leash(Command::new("sh").args(["-c", LOOPS])).spawn()?;
    let felt =
        Trap::begin(child.id(), "wait4", "delay_exit=1", &[], &dir.join("log")).and_then(|trap| {
            let end = Instant::now() + START;
            while trap.seen()? == 0 {
                ensure!(Instant::now() < end, "strace changes no call");
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
    child.kill()?;
    child.wait()?;
    fs::remove_dir_all(dir)?;
    felt
}

/// In a thread of its own, which may leave this one's namespaces.
fn apart<T: Send>(probe: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let ended = thread::scope(|scope| scope.spawn(probe).join());
    ended.map_err(|_| anyhow::anyhow!("it panicked"))?
}

fn try_disk(dir: &Path, probe: fn(&Disks, &Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    ensure!(power::is_possible(), "it takes root");
    let tried = apart(|| {
        let disks = Disks::mount(dir, 1)?;
        probe(&disks, &dir.join("n0"))
    });
    if dir.try_exists()? {
        fs::remove_dir_all(dir)?;
    }
    tried
}

fn power_cut(disks: &Disks, at: &Path) -> anyhow::Result<()> {
    let write = |name: &str, sync: bool| -> io::Result<PathBuf> {
        let path = at.join(name);
        let mut file = File::create(&path)?;
        file.write_all(b"bytes")?;
        if sync {
            file.sync_all()?;
        }
        Ok(path)
    };
    let synced = write("synced", true)?;
    let not = write("not", false)?;
    disks.cut(&[0], &[], None, || Ok(()))?;
    ensure!(
        fs::read(&synced)? == b"bytes",
        "what was synced is gone after the cut"
    );
    ensure!(
        !not.try_exists()?,
        "what was not synced is there after the cut"
    );
    Ok(())
}

fn full_disk(disks: &Disks, at: &Path) -> anyhow::Result<()> {
    disks.fill(0, 0)?;
    disks.cut(&[0], &[], None, || Ok(()))?;
    let full = fs::write(at.join("more"), vec![1; 1 << 20]);
    let Err(error) = full else {
        bail!("a full disk takes more");
    };
    ensure!(
        error.kind() == io::ErrorKind::StorageFull,
        "a full disk says {error}"
    );
    disks.free(0)?;
    disks.cut(&[0], &[], None, || Ok(()))?;
    fs::write(at.join("more"), vec![1; 1 << 20])
        .context("the space that was given back is gone after a power cut")
}

fn dead_disk(disks: &Disks, at: &Path) -> anyhow::Result<()> {
    let mut file = File::create(at.join("file"))?;
    file.write_all(b"before")?;
    disks.fail(0)?;
    ensure!(
        file.write_all(b"after")
            .and_then(|()| file.sync_all())
            .is_err(),
        "a dead disk takes a write"
    );
    drop(file);
    disks.repair(0)?;
    ensure!(
        fs::read(at.join("file"))? == b"before",
        "what was written before is gone"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As root everything has to work here for which the programs are installed; what does not is skipped by
    /// the runs without a word in CI.
    #[test]
    fn what_needs_root_works_for_root() {
        let dir = std::env::temp_dir().join(format!("jepsen-doctor-test-{}", std::process::id()));
        for finding in examine(&dir) {
            if power::is_possible() {
                let faults = finding.faults;
                if let Err(error) = finding.result {
                    let reason = format!("{faults}: {error:#}");
                    assert!(reason.contains("apt-get install"), "{reason}");
                }
            }
        }
        if dir.try_exists().unwrap() {
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}
