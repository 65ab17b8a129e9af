//! One node: its properties, its process, the machine that it takes itself to run on.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::Cluster;
use super::process::{machine, output_of, spawn, until_it_is};
use crate::clock;

/// `maxMessageSize`, if a segment has that much.
const MESSAGE: u64 = 1 << 20;
/// Exit code of a Java process that was told to end.
const JAVA_TERMINATED: i32 = 128 + 15;

/// One node of the group.
pub struct Node {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Its `storePathRootDir`.
    pub store: PathBuf,
    /// Its entry of `dLegerPeers`.
    pub(super) peer: String,
    pub(super) conf: PathBuf,
    pub(super) child: Option<Child>,
    /// Bytes of its output before it was started last.
    earlier: u64,
    /// It is no part of the group any more.
    pub(super) retired: bool,
}

impl Node {
    /// Four ports from `first` on: the VIP channel, Raft, clients, and the group's further names.
    pub(super) fn new(dir: &Path, node: usize, (ip, first): (Ipv4Addr, u16)) -> Self {
        Self {
            address: SocketAddr::from((ip, first + 2)),
            store: dir.join(format!("n{node}")),
            peer: format!("n{node}-{ip}:{}", first + 1),
            conf: dir.join(format!("n{node}.conf")),
            child: None,
            earlier: 0,
            retired: false,
        }
    }
}

impl Cluster {
    /// Writes a node's properties file. `joins` says that it asks to join the group of the others.
    pub(super) fn configure(&self, node: usize, joins: bool) -> anyhow::Result<()> {
        let options = &self.options;
        let flush = if options.sync_flush {
            "SYNC_FLUSH"
        } else {
            "ASYNC_FLUSH"
        };
        let n = &self.nodes[node];
        let ip = n.address.ip();
        let mut text = format!(
            "brokerClusterName=jepsen\nbrokerName=jepsen\nbrokerIP1={ip}\n\
             bindAddress={ip}\nnamesrvAddr={}\nlistenPort={}\ngroupAliasPort={}\n\
             storePathRootDir={}\nflushDiskType={flush}\n\
             mappedFileSizeConsumeQueue=60000\nmaxHashSlotNum=50000\nmaxIndexNum=200000\n{}\n",
            self.namesrv,
            n.address.port(),
            n.address.port() + 1,
            n.store.display(),
            options.more,
        );
        let members = self.nodes.iter().filter(|n| !n.retired);
        let peers: Vec<&str> = members.map(|n| n.peer.as_str()).collect();
        let peers = peers.join(";");
        if options.target.is_java() {
            text += &options.target.java_keys(node, ip, &n.store, &peers);
            return Ok(fs::write(&n.conf, text)?);
        }
        text += &format!(
            "mappedFileSizeCommitLog={}\nmaxMessageSize={}\n",
            options.segment,
            MESSAGE.min(options.segment / 2),
        );
        if options.nodes > 1 {
            text += &format!(
                "enableDLegerCommitLog=true\ndLegerGroup=jepsen\ndLegerPeers={peers}\n\
                 dLegerSelfId=n{node}\nraftJoin={joins}\n",
            );
        }
        Ok(fs::write(&n.conf, text)?)
    }

    /// Starts a node that is not running.
    pub fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        ensure!(self.nodes[node].child.is_none(), "node {node} is running");
        let conf = &self.nodes[node].conf;
        let program = self.options.target.program(&self.rmq, "broker", conf)?;
        let mut command = if self.options.machines {
            let others = self.nodes.iter().enumerate().filter(|(n, _)| *n != node);
            let mut machine = machine(
                &self.nodes[node].store,
                others.map(|(_, other)| &*other.store),
            );
            if self.options.clocks {
                machine.args(clock::words(&clock_of(conf))?);
            }
            machine.arg(&program.words[0]);
            machine
        } else {
            Process::new(&program.words[0])
        };
        command
            .args(&program.words[1..])
            .envs(program.environment());
        if let Some(net) = &self.options.net {
            net.run_at(node, &mut command)?;
        }
        if let Some(mutant) = self.options.mutant {
            command.env("RMQ_MUTANT", mutant);
        }
        let n = &mut self.nodes[node];
        n.earlier = fs::metadata(output_of(&n.conf)).map_or(0, |file| file.len());
        let started = spawn(command, &n.conf, self.options.leashed)?;
        let child = n.child.insert(started);
        if self.options.machines {
            // Until then it has the other nodes' file systems mounted.
            until_it_is(Path::new(&program.words[0]), child.id())?;
        }
        Ok(())
    }

    /// What a node has printed since it was started last.
    pub fn last_life(&self, node: usize) -> anyhow::Result<String> {
        let n = &self.nodes[node];
        let path = output_of(&n.conf);
        let output = fs::read(&path).with_context(|| path.display().to_string())?;
        let from = usize::try_from(n.earlier)?.min(output.len());
        Ok(String::from_utf8_lossy(&output[from..]).into_owned())
    }

    /// Whether a node has come up since it was started last.
    pub fn is_up(&self, node: usize) -> anyhow::Result<bool> {
        Ok(self.last_life(node)?.contains(self.options.target.is_up()))
    }

    /// Sets a node's wall clock ahead of the machine's, or behind.
    pub fn set_clock(&self, node: usize, by: Duration, ahead: bool) -> anyhow::Result<()> {
        Ok(clock::set(&clock_of(&self.nodes[node].conf), by, ahead)?)
    }

    /// SIGKILL.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let mut child = self.nodes[node]
            .child
            .take()
            .context("the node is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Takes everything from the store of a node that is not running.
    pub fn wipe(&self, node: usize) -> anyhow::Result<()> {
        let n = &self.nodes[node];
        ensure!(n.child.is_none(), "node {node} is running");
        Ok(fs::remove_dir_all(&n.store)?)
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        let child = self.nodes[node]
            .child
            .as_ref()
            .context("the node is not running")?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGTERM, and waits for the end; whether the node drained and left with exit code 0, or a Java one with
    /// that of the signal.
    pub fn stop(&mut self, node: usize) -> anyhow::Result<bool> {
        self.signal(node, Signal::TERM)?;
        let mut child = self.nodes[node]
            .child
            .take()
            .context("the node is not running")?;
        let status = child.wait()?;
        let of_signal = self.options.target.is_java() && status.code() == Some(JAVA_TERMINATED);
        Ok(status.success() || of_signal)
    }

    /// How a node's process ended that nobody has ended; it can be started again then.
    pub fn ended(&mut self, node: usize) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.nodes[node].child else {
            return Ok(None);
        };
        let ended = child.try_wait()?;
        if ended.is_some() {
            self.nodes[node].child = None;
        }
        Ok(ended)
    }

    /// Process id of a running node.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().map(Child::id)
    }
}

/// The file with what a node's clock is off by.
fn clock_of(conf: &Path) -> PathBuf {
    conf.with_extension("clock")
}
