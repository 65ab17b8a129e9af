//! Who holds a port: turns "address already in use" into a sentence that an operator can act on.

use std::fs;
use std::io;
use std::net::SocketAddr;

use super::processes;

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
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut open = descriptors.into_iter().flatten().flatten();
        open.any(|d| fs::read_link(d.path()).is_ok_and(|l| l.as_os_str() == wanted.as_str()))
    };
    let pid = processes::all().ok()?.find(holds)?;
    Some(Holder {
        pid,
        command: processes::command_line(pid),
    })
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
        // The only one at which nobody can begin to listen meanwhile.
        assert_eq!(holder(0), None);
    }
}
