//! A limit on what processes and the page cache of their files may take of the memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// A control group of its own, removed when this is dropped, which is after the processes have ended.
pub(super) struct Memory {
    dir: PathBuf,
}

impl Memory {
    /// Version 2 where it has the memory, else version 1.
    pub(super) fn limit(bytes: u64) -> anyhow::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let (root, file) = if controllers.split_whitespace().any(|of| of == "memory") {
            (root.to_owned(), "memory.max")
        } else {
            (root.join("memory"), "memory.limit_in_bytes")
        };
        let memory = Self {
            dir: root.join(format!("rmq-bench-{}", std::process::id())),
        };
        let said = "memory can be limited by root only, where the kernel has control groups for it";
        fs::create_dir(&memory.dir).context(said)?;
        fs::write(memory.dir.join(file), bytes.to_string()).context(said)?;
        Ok(memory)
    }

    /// Puts a process under the limit, with what it takes from now on.
    pub(super) fn add(&self, pid: u32) -> anyhow::Result<()> {
        Ok(fs::write(self.dir.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A process that has just ended may still be in it.
        for _ in 0..50 {
            match fs::remove_dir(&self.dir) {
                Ok(()) => return,
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
        eprintln!("{} could not be removed", self.dir.display());
    }
}
