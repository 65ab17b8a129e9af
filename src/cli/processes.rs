//! The processes of this machine, as `/proc` shows them to this user.

use std::fs;
use std::io;

/// The ids of all processes.
///
/// # Errors
/// When `/proc` cannot be listed.
pub(super) fn all() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// The command line of a process, arguments separated by spaces; an empty string where it cannot be
/// read.
pub(super) fn command_line(pid: u32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}
