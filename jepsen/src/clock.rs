//! A wall clock for each node: the distribution's libfaketime adds to the kernel's what a file says, which may
//! change at any time. The clock that counts on steadily, by which rmq measures spans of time, stays.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

/// Below it each architecture has a directory.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// What a shell does in a mount namespace before anything there has such a clock: what the library leaves in shared
/// memory is of this namespace, and gone with it.
pub(crate) const OWN_MEMORY: &str = "mount -t tmpfs shm /dev/shm";

/// What has to stand before a program so that it has the clock of `file`.
///
/// # Errors
/// If the library is not installed.
pub(crate) fn words(file: &Path) -> anyhow::Result<Vec<OsString>> {
    let library = library()?.context("no libfaketime (Debian: apt-get install faketime)")?;
    let variable = |name: &str, value: &Path| -> OsString {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value);
        word
    };
    Ok(vec![
        "env".into(),
        variable("LD_PRELOAD", &library),
        variable("FAKETIME_TIMESTAMP_FILE", file),
        "FAKETIME_NO_CACHE=1".into(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".into(),
    ])
}

/// Sets the clock of `file` ahead of the kernel's, or behind.
pub(crate) fn set(file: &Path, by: Duration, ahead: bool) -> io::Result<()> {
    let sign = if ahead { '+' } else { '-' };
    let new = file.with_extension("new");
    fs::write(&new, format!("{sign}{:.3}\n", by.as_secs_f64()))?;
    fs::rename(new, file)
}

/// Whether a process has loaded what tells it of its clock.
pub(crate) fn is_heard_by(pid: u32) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| line.ends_with(LIBRARY))
}

fn library() -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(LIBRARIES)? {
        let path = entry?.path().join(LIBRARY);
        if path.is_file() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
