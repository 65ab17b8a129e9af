//! A network of its own for each run: a namespace for every node, the name server and the clients, each
//! with one device, all joined by a [`Switch`]. Takes root.
//!
//! It leaves nothing behind, however the run ends: namespaces have no names and devices no owner but
//! this process, so the kernel removes them with it.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::switch::{Direction, Link, Switch, address};

/// `TUNSETIFF` of `linux/if_tun.h`.
const SET_INTERFACE: Opcode = opcode::write::<i32>(b'T', 202);
/// `IFF_TAP | IFF_NO_PI`: whole frames and nothing else.
const TAP: u16 = 0x0002 | 0x1000;

/// `struct ifreq` of `linux/if.h`.
#[repr(C)]
struct Interface {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Namespaces and the switch between them. Nodes have the first places.
pub struct Net {
    places: Vec<File>,
    nodes: usize,
    switch: Switch,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Net of {} nodes", self.nodes)
    }
}

impl Net {
    /// Makes a network with places for `nodes`, a name server and clients, and moves this thread, and
    /// so all that it starts, to the clients' place.
    pub fn start(nodes: usize, seed: u64) -> anyhow::Result<Self> {
        let all = nodes + 2;
        let mut places = Vec::new();
        let mut ports = Vec::new();
        for n in 0..all {
            // A namespace is left by leaving the thread.
            let made = thread::spawn(move || place(n, all)).join();
            let (namespace, port) = made
                .map_err(|_| anyhow::anyhow!("the thread for a namespace panicked"))?
                .with_context(|| format!("cannot make network namespace {n}"))?;
            places.push(namespace);
            ports.push(port);
        }
        let net = Self {
            places,
            nodes,
            switch: Switch::start(ports, seed)?,
        };
        enter(&net.places[net.clients()])?;
        Ok(net)
    }

    /// How many nodes have a place.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// The name server's place.
    pub fn namesrv(&self) -> usize {
        self.nodes
    }

    /// The clients' place.
    pub fn clients(&self) -> usize {
        self.nodes + 1
    }

    /// Has a command run at a place.
    pub fn run_at(&self, place: usize, command: &mut Command) -> anyhow::Result<()> {
        let namespace = self.places[place].try_clone()?;
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || enter(&namespace));
        }
        Ok(())
    }

    /// Moves this thread, and what it starts, to a place.
    pub fn enter(&self, place: usize) -> anyhow::Result<()> {
        Ok(enter(&self.places[place])?)
    }

    /// Has these links have these faults, and all others none.
    pub fn set(&self, faults: &[(Direction, Link)]) {
        self.switch.set(faults);
    }

    /// How many frames of these directions a fault has hit so far.
    pub fn touched(&self, of: impl IntoIterator<Item = Direction>) -> u64 {
        self.switch.touched(of)
    }
}

/// The address of a place.
pub fn ip(place: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, 1 + u8::try_from(place).unwrap_or(u8::MAX - 1))
}

fn enter(namespace: &File) -> std::io::Result<()> {
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Moves this thread into a new namespace with one device; both.
fn place(n: usize, all: usize) -> anyhow::Result<(File, File)> {
    // SAFETY: no table of file descriptors is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = open("/dev/net/tun", flags, Mode::empty()).context("/dev/net/tun")?;
    let mut interface = Interface {
        name: [0; 16],
        flags: TAP,
        rest: [0; 22],
    };
    interface.name[..4].copy_from_slice(b"eth0");
    // SAFETY: this opcode takes a pointer to an ifreq.
    let request = unsafe { Setter::<SET_INTERFACE, Interface>::new(interface) };
    // SAFETY: the request is that of the opcode, and the file is open.
    unsafe { ioctl(&device, request) }.context("TUNSETIFF")?;

    let mac = |n| address(n).map(|byte| format!("{byte:02x}")).join(":");
    let mut lines = format!(
        "link set lo up\nlink set eth0 address {}\naddr add {}/24 dev eth0\nlink set eth0 up\n",
        mac(n),
        ip(n),
    );
    // Then a cut link is silent, instead of telling after a while that nobody is there.
    for other in (0..all).filter(|other| *other != n) {
        let (ip, mac) = (ip(other), mac(other));
        lines += &format!("neigh add {ip} lladdr {mac} dev eth0 nud permanent\n");
    }
    batch(&lines)?;
    Ok((File::open("/proc/thread-self/ns/net")?, device.into()))
}

/// Has `ip` do these lines in this thread's namespace.
fn batch(lines: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip (package iproute2)")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
