//! Power cuts that a kernel makes real: each node's files lie on a file system of their own, in a file
//! behind a loop device. A cut stops the brokers and ends what would outlive them, has each file system
//! forget whatever it has not written, and kills the brokers; then it is mounted again from what its "disk"
//! holds, journal replay and all.
//!
//! The order matters. A process that still runs while its file system goes down can see a sync succeed
//! that was not, and would acknowledge what is then lost by nobody's fault.
//!
//! A file system that goes down loses all that was not synced; a disk may have written any of it, so that is
//! drawn, too.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::{Errno, retry_on_intr};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::cluster::{Cluster, boot};
use crate::torn;

/// Bytes of a node's disk; its file is sparse.
const DISK: u64 = 1 << 30;
/// `FS_IOC_SHUTDOWN` of `linux/fs.h` and ext4.
const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
/// Nothing more is written, not even the journal.
const NO_LOG_FLUSH: u32 = 2;
/// Everything is written first.
const FLUSH_ALL: u32 = 0;
/// Bytes of the smallest part of a file system.
const PAGE: u64 = 4096;
/// What fills a file system.
const FILLER: &str = ".filler";
/// How long a process may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a process that is to end may take.
const END_LIMIT: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// A file system for each node, unmounted when this is dropped.
pub struct Disks {
    mounted: Vec<Disk>,
}

struct Disk {
    image: PathBuf,
    at: PathBuf,
}

/// Whether this process may mount file systems.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root()
}

impl Disks {
    /// Makes `nodes` file systems, mounted where a cluster under `dir` has the stores of its nodes, and
    /// seen from this thread and what it starts alone.
    pub fn mount(dir: &Path, nodes: usize) -> anyhow::Result<Self> {
        // A copy of a mount in the namespace of some process that starts elsewhere meanwhile would keep
        // the file system from going down.
        // SAFETY: no table of file descriptors is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("a mount namespace")?;
        run(Command::new("mount").args(["--make-rprivate", "/"]))?;
        let mut disks = Self {
            mounted: Vec::new(),
        };
        for node in 0..nodes {
            let (image, at) = (
                dir.join(format!("n{node}.img")),
                dir.join(format!("n{node}")),
            );
            fs::create_dir_all(&at)?;
            // As the kernel names it.
            let at = fs::canonicalize(at)?;
            File::create(&image)?.set_len(DISK)?;
            run(Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .arg(&image))?;
            let disk = Disk { image, at };
            disk.mount()?;
            disks.mounted.push(disk);
        }
        Ok(disks)
    }

    /// Cuts the power of running nodes at once and leaves them without. Every other time some of what they had not
    /// synced is on their disks nevertheless; how many sectors. `struck` is called when it is cut.
    pub(crate) fn cut_power(
        &self,
        cluster: &mut Cluster,
        nodes: &[usize],
        dice: &mut StdRng,
        struck: impl FnOnce(),
    ) -> anyhow::Result<u64> {
        for node in nodes {
            cluster.signal(*node, Signal::STOP)?;
        }
        let pids: Vec<u32> = nodes.iter().filter_map(|n| cluster.pid(*n)).collect();
        let torn = dice.random_bool(0.5).then_some(dice);
        self.cut(nodes, &pids, torn, || {
            struck();
            nodes.iter().try_for_each(|node| cluster.kill(*node))
        })
    }

    /// Cuts the power of `nodes`, whose processes are `pids` and were told to stop: loses what is not on
    /// their disks, and has `kill` end them. The disks are mounted again on return. With `dice`, of the sectors
    /// that were not synced some are on the disks nevertheless; how many.
    pub fn cut(
        &self,
        nodes: &[usize],
        pids: &[u32],
        dice: Option<&mut StdRng>,
        kill: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let disks = || nodes.iter().map(|node| &self.mounted[*node]);
        for pid in pids {
            until_stopped(*pid)?;
        }
        // Nobody on the machine may live to tell that it has ended.
        for disk in disks() {
            disk.end_others(pids, Some(Signal::KILL))?;
        }
        let mut before = Vec::new();
        if dice.is_some() {
            for disk in disks() {
                before.push(torn::before(&disk.at)?);
            }
        }
        for disk in disks() {
            disk.shut_down(NO_LOG_FLUSH)?;
        }
        kill()?;
        for disk in disks() {
            disk.unmount()?;
            disk.mount()?;
        }
        let mut kept = 0;
        if let Some(dice) = dice {
            for before in &before {
                kept += torn::keep_some(before, dice)?;
            }
        }
        Ok(kept)
    }

    /// A node's disk fails: what was written stays, but from now on every write and sync ends with EIO.
    pub fn fail(&self, node: usize) -> anyhow::Result<()> {
        self.mounted[node].shut_down(FLUSH_ALL)
    }

    /// Mounts a failed disk again, when no process uses it any more. The machine runs on.
    pub fn repair(&self, node: usize) -> anyhow::Result<()> {
        let disk = &self.mounted[node];
        disk.end_others(&[], None)?;
        disk.unmount()?;
        disk.attach()
    }

    /// Fills a node's file system, up to `leave` bytes. A power cut changes nothing about it.
    pub fn fill(&self, node: usize, leave: u64) -> anyhow::Result<()> {
        let at = &self.mounted[node].at;
        let disk = statvfs(at)?;
        let mut left = (disk.f_bavail * disk.f_frsize).saturating_sub(leave);
        let filler = File::create(at.join(FILLER))?;
        // The allocation itself takes blocks too: smaller and smaller, until not a page is left.
        let (mut end, mut part) = (0, left);
        while left > 0 && part >= PAGE {
            match fallocate(&filler, FallocateFlags::empty(), end, part) {
                Ok(()) => (end, left) = (end + part, left - part),
                Err(Errno::NOSPC) => part /= 2,
                Err(e) => return Err(e.into()),
            }
            part = part.min(left);
        }
        sync_names(at)
    }

    /// Takes away what [`fill`](Self::fill) has made, and no power cut brings it back.
    pub fn free(&self, node: usize) -> anyhow::Result<()> {
        let at = &self.mounted[node].at;
        fs::remove_file(at.join(FILLER))?;
        sync_names(at)
    }
}

impl Disk {
    /// The machine gets power: what it runs from now on is another run of it.
    fn mount(&self) -> anyhow::Result<()> {
        fs::write(boot(&self.at), fs::read("/proc/sys/kernel/random/uuid")?)?;
        self.attach()
    }

    fn attach(&self) -> anyhow::Result<()> {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&self.image)
            .arg(&self.at))
    }

    /// Waits for the end of the machine's processes other than `pids`, such as what outlives a broker for
    /// a moment, after a signal or by themselves. They would keep the file system from going down.
    fn end_others(&self, pids: &[u32], signal: Option<Signal>) -> anyhow::Result<()> {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt"));
        let here = namespace("thread-self")?;
        let at = format!(" {} ", self.at.display());
        let is_of_machine = |pid: &str| {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            mounts.contains(&at) && namespace(pid).is_ok_and(|of| of != here)
        };
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some((name, pid)) = name.to_str().and_then(|s| Some((s, s.parse().ok()?))) else {
                continue;
            };
            if pids.contains(&pid) || !is_of_machine(name) {
                continue;
            }
            let process = Pid::from_raw(i32::try_from(pid)?).context("pid")?;
            let process = match pidfd_open(process, PidfdFlags::empty()) {
                Ok(process) if is_of_machine(name) => process,
                // It has ended meanwhile.
                Ok(_) | Err(Errno::SRCH) => continue,
                Err(e) => return Err(e.into()),
            };
            if let Some(signal) = signal {
                // It may have ended by now.
                pidfd_send_signal(&process, signal).ok();
            }
            let mut ended = [PollFd::new(&process, PollFlags::IN)];
            let ended = retry_on_intr(|| poll(&mut ended, Some(&END_LIMIT)))?;
            ensure!(ended == 1, "process {pid} of a machine does not end");
        }
        Ok(())
    }

    /// Tries for a while: a process that any thread here has just forked holds all of its files until it executes its program.
    fn unmount(&self) -> anyhow::Result<()> {
        let end = Instant::now() + STOP_LIMIT;
        loop {
            match run(Command::new("umount").arg(&self.at)) {
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
                result => return result,
            }
        }
    }

    /// Has the file system write nothing any more.
    fn shut_down(&self, how: u32) -> anyhow::Result<()> {
        let root = File::open(&self.at)?;
        // SAFETY: this opcode takes a pointer to a u32 with the flags.
        let request = unsafe { Setter::<SHUTDOWN, u32>::new(how) };
        // SAFETY: the request is that of the opcode, and the file is open.
        let done = unsafe { ioctl(&root, request) };
        done.with_context(|| format!("cannot shut down the file system at {}", self.at.display()))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for disk in &self.mounted {
            if let Err(e) = disk.unmount() {
                eprintln!("{e:#}");
            }
        }
    }
}

/// Has a power cut that follows leave what was made or removed in a directory as it is.
fn sync_names(dir: &Path) -> anyhow::Result<()> {
    Ok(File::open(dir)?.sync_all()?)
}

/// Waits until every thread of a process that was sent SIGSTOP has stopped, or has ended: one that is in the middle of
/// a sync finishes that first.
fn until_stopped(pid: u32) -> anyhow::Result<()> {
    let end = Instant::now() + STOP_LIMIT;
    loop {
        let mut running = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
            // The name before it may hold anything, but ends with the last parenthesis.
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            running += u32::from(!state.starts_with(['T', 'Z', 'X']));
        }
        if running == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a command; its failure is an error with what it says.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
