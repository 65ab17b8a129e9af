//! Who holds a port: turns "address already in use" into a sentence that an operator can act on.

use std::fs;
use std::io;
use std::net::SocketAddr;

/// A process that listens on a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// Process id.
    pub(super) pid: u32,
    /// Its command line, arguments separated by spaces.
    pub(super) command: String,
}

/// The process that listens on TCP `port`, as far as `/proc` shows it to this user.
///
/// `None` means that nobody listens there, or that the process belongs to another user.
#[must_use]
pub(super) fn holder(port: u16) -> Option<Holder> {
    let inode = listening_inode(port)?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = descriptors
            .flatten()
            .any(|d| fs::read_link(d.path()).is_ok_and(|l| l.as_os_str() == wanted.as_str()));
        if holds {
            return Some(Holder {
                pid,
                command: command_line(pid),
            });
        }
    }
    None
}

/// The command line of a process, or an empty string where it cannot be read.
#[must_use]
pub(super) fn command_line(pid: u32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

/// One line that says why `address` could not be listened on, and who is there if that is why.
#[must_use]
pub(super) fn explain_bind_error(what: &str, address: SocketAddr, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::AddrInUse {
        return format!("cannot listen on {address} ({what}): {error}");
    }
    match holder(address.port()) {
        Some(h) => format!(
            "port {} ({what}) is taken by process {}: {}",
            address.port(),
            h.pid,
            h.command
        ),
        None => format!(
            "port {} ({what}) is taken by a process of another user",
            address.port()
        ),
    }
}

/// The inode of the listening socket on `port`, from the kernel's tables of TCP sockets
/// (`proc_pid_net(5)`: local address in hexadecimal, state `0A` = listening, inode in column 10).
fn listening_inode(port: u16) -> Option<u64> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| {
            let text = fs::read_to_string(table).ok()?;
            text.lines().skip(1).find_map(|line| {
                let columns: Vec<&str> = line.split_whitespace().collect();
                let local = u16::from_str_radix(columns.get(1)?.rsplit(':').next()?, 16).ok()?;
                (local == port && *columns.get(3)? == "0A").then(|| columns.get(9)?.parse().ok())?
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn names_the_process_that_holds_a_port() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let found = holder(address.port()).expect("this process listens there");
        assert_eq!(found.pid, std::process::id());

        let error = TcpListener::bind(address).unwrap_err();
        let line = explain_bind_error("name server", address, &error);
        assert!(
            line.contains(&format!("port {} (name server)", address.port())),
            "{line}"
        );
        assert!(
            line.contains(&format!("process {}", std::process::id())),
            "{line}"
        );
    }

    #[test]
    fn a_free_port_has_no_holder() {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        assert_eq!(holder(port), None);
    }
}
