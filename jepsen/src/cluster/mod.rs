//! A name server and a group of nodes as real processes, each with its own store, on loopback or each in a
//! network namespace.

mod process;
mod target;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use rustix::process::{Pid, Signal, kill_process};

use crate::client::{Client, Outcome, describe};
use crate::clock;
use crate::net::{self, Net};
pub use process::free_runs;
pub(crate) use process::leash;
use process::{output_of, spawn, until_it_is};
pub use target::Target;

/// Bytes of a segment unless told otherwise: small, so that segments roll within a run.
pub const SEGMENT: u64 = 8 << 20;
/// `maxMessageSize`, if a segment has that much.
const MESSAGE: u64 = 1 << 20;
/// The first port of each place in a network.
const FIRST: u16 = 10_909;
/// How long a single question to a node may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Exit code of a Java process that was told to end.
const JAVA_TERMINATED: i32 = 128 + 15;

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the nodes run.
    pub target: Target,
    /// Nodes of the group; 1 is a single broker without `enableDLegerCommitLog`.
    pub nodes: usize,
    /// SYNC_FLUSH instead of ASYNC_FLUSH.
    pub sync_flush: bool,
    /// A name server that runs already, instead of one of ours.
    pub namesrv: Option<SocketAddr>,
    /// `mappedFileSizeCommitLog`.
    pub segment: u64,
    /// More lines for every node's properties file.
    pub more: String,
    /// The nodes run on machines of their own, as far as the identity of a machine's run goes: each
    /// reads its one from `boot` beside its store.
    pub machines: bool,
    /// Each node has a wall clock of its own, see [`Cluster::set_clock`]; with [`machines`](Self::machines).
    pub clocks: bool,
    /// Nodes and name server have a place in this network each, instead of ports on loopback.
    pub net: Option<Arc<Net>>,
    /// All processes end with the thread that started them, also when that is killed.
    pub leashed: bool,
    /// The planted bug that the nodes have, if they were built with any.
    pub mutant: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: Target::Rmq,
            nodes: 3,
            sync_flush: false,
            namesrv: None,
            segment: SEGMENT,
            more: String::new(),
            machines: false,
            clocks: false,
            net: None,
            leashed: false,
            mutant: None,
        }
    }
}

/// A running cluster. Dropping it ends the processes that it started, and no others.
pub struct Cluster {
    rmq: PathBuf,
    dir: PathBuf,
    options: Options,
    own_namesrv: Option<Child>,
    /// The name server that the nodes register with.
    pub namesrv: SocketAddr,
    nodes: Vec<Node>,
}

/// One node of the group.
pub struct Node {
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Its `storePathRootDir`.
    pub store: PathBuf,
    /// Its entry of `dLegerPeers`.
    peer: String,
    conf: PathBuf,
    child: Option<Child>,
    /// Bytes of its output before it was started last.
    earlier: u64,
    /// It is no part of the group any more.
    retired: bool,
}

impl Cluster {
    /// Starts what `options` say with all files under `dir`, and waits for a leader.
    pub fn start(rmq: &Path, dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let places = match &options.net {
            Some(net) => (0..net.nodes()).map(|n| (net::ip(n), FIRST)).collect(),
            None => {
                let free = free_runs(1 + options.nodes)?;
                let here = free.iter().map(|port| (Ipv4Addr::LOCALHOST, *port));
                here.collect::<Vec<_>>()
            }
        };
        fs::create_dir_all(dir)?;
        let mut own_namesrv = None;
        let namesrv = match options.namesrv {
            Some(address) => address,
            None => {
                let (ip, port) = match &options.net {
                    Some(net) => (net::ip(net.namesrv()), FIRST),
                    None => places[options.nodes],
                };
                let conf = dir.join("namesrv.conf");
                fs::write(&conf, format!("listenPort={port}\nbindAddress={ip}\n"))?;
                let program = options.target.program(rmq, "namesrv", &conf)?;
                let mut command = Process::new(&program.words[0]);
                command
                    .args(&program.words[1..])
                    .envs(program.environment());
                if let Some(net) = &options.net {
                    net.run_at(net.namesrv(), &mut command)?;
                }
                own_namesrv = Some(spawn(command, &conf, options.leashed)?);
                SocketAddr::from((ip, port))
            }
        };
        let nodes: Vec<Node> = (0..options.nodes)
            .map(|n| Node::new(dir, n, places[n]))
            .collect();
        let mut cluster = Self {
            rmq: rmq.into(),
            dir: dir.into(),
            options: options.clone(),
            own_namesrv,
            namesrv,
            nodes,
        };
        for n in 0..options.nodes {
            if options.clocks {
                cluster.set_clock(n, Duration::ZERO, true)?;
            }
            cluster.configure(n, false)?;
            cluster.start_node(n)?;
        }
        cluster.wait_for_leader(options.target.liveness())?;
        Ok(cluster)
    }

    /// Writes a node's properties file. `joins` says that it asks to join the group of the others.
    fn configure(&self, node: usize, joins: bool) -> anyhow::Result<()> {
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

    /// Starts one more node, which asks to join the group, and has the operator's commands add it and
    /// give it a vote.
    pub fn grow(&mut self) -> anyhow::Result<usize> {
        let node = self.nodes.len();
        let place = match &self.options.net {
            Some(net) => {
                ensure!(
                    node < net.nodes(),
                    "the network has no place for node {node}"
                );
                (net::ip(node), FIRST)
            }
            None => (Ipv4Addr::LOCALHOST, free_runs(1)?[0]),
        };
        self.nodes.push(Node::new(&self.dir, node, place));
        self.configure(node, true)?;
        self.start_node(node)?;
        let id = format!("n{node}");
        for command in ["raftAddNode", "raftPromote"] {
            self.admin(&[command, "--node", &id, "--wait", "60"])?;
            // Each may be repeated.
            self.admin(&[command, "--node", &id])?;
        }
        Ok(node)
    }

    /// Takes a node out of the group by the operator's command, and ends its process if it runs.
    pub fn shrink(&mut self, node: usize) -> anyhow::Result<()> {
        let id = format!("n{node}");
        for _ in 0..2 {
            self.admin(&["raftRemoveNode", "--node", &id, "--wait", "60"])?;
        }
        self.nodes[node].retired = true;
        if self.nodes[node].child.is_some() {
            self.kill(node)?;
        }
        Ok(())
    }

    /// What `mqadmin` prints; its failure is an error.
    pub fn admin(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Process::new(&self.rmq)
            .arg("admin")
            .args(arguments)
            .args(["-n", &self.namesrv.to_string()])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{arguments:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }

    /// Has a node that leads hand leadership over, to this one or to whom it likes, without waiting for
    /// longer than that.
    pub fn transfer(
        &self,
        node: usize,
        to: Option<usize>,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let mut client = Client::connect(self.nodes[node].address, patience)?;
        let mut command = Command::request(request::RAFT_TRANSFER_LEADER);
        if let Some(to) = to {
            command.ext.insert("node", format!("n{to}"));
        }
        match client.call(command) {
            Ok(answer) => ensure!(answer.code == 0, "{}", describe(&answer)),
            // It may be under way.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Starts a node that is not running.
    pub fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        ensure!(self.nodes[node].child.is_none(), "node {node} is running");
        let conf = &self.nodes[node].conf;
        let program = self.options.target.program(&self.rmq, "broker", conf)?;
        let mut command = if self.options.machines {
            let mut machine = self.machine(node);
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

    /// What executes the words after it in a mount namespace where the machine's run has an identity of its
    /// own, see [`Options::machines`].
    fn machine(&self, node: usize) -> Process {
        // A file system of another node is in use, and never mounted anew, for as long as it is
        // mounted anywhere.
        const SCRIPT: &str = "boot=$1; shift; \
            until [ \"$1\" = -- ]; do umount \"$1\" || exit; shift; done; shift; \
            mount -t tmpfs shm /dev/shm && \
            mount --bind \"$boot\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let others = self.nodes.iter().enumerate().filter(|(n, _)| *n != node);
        let mut command = Process::new("unshare");
        command
            .args(["--mount", "sh", "-c", SCRIPT, "machine"])
            .arg(boot(&self.nodes[node].store))
            .args(others.map(|(_, other)| &other.store))
            .arg("--");
        command
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

    /// What the nodes run.
    pub fn target(&self) -> Target {
        self.options.target
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

    /// Everything that the nodes and the name server have printed, with the names of the files.
    pub fn outputs(&self) -> anyhow::Result<Vec<(String, String)>> {
        let confs = self.nodes.iter().map(|n| n.conf.clone());
        let mut outputs = Vec::new();
        for conf in confs.chain(
            self.own_namesrv
                .iter()
                .map(|_| self.dir.join("namesrv.conf")),
        ) {
            let path = output_of(&conf);
            let output = fs::read(&path).with_context(|| path.display().to_string())?;
            let name = path.display().to_string();
            outputs.push((name, String::from_utf8_lossy(&output).into_owned()));
        }
        Ok(outputs)
    }

    /// Process id of a running node.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().map(Child::id)
    }

    /// All nodes that there ever were, running or not.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes that were not taken out of the group.
    pub fn members(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(|(_, n)| !n.retired).map(|(i, _)| i).collect()
    }

    /// Client addresses of all nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|n| n.address).collect()
    }

    /// The node that the name server shows as broker id 0.
    pub fn leader(&self) -> anyhow::Result<usize> {
        let shown = shown_leader(self.namesrv)?;
        let node = self.nodes.iter().position(|n| n.address == shown);
        node.with_context(|| format!("the name server shows {shown} as leader, which is no node"))
    }

    /// Waits until the name server shows a running node as leader and that node takes writes.
    pub fn wait_for_leader(&self, patience: Duration) -> anyhow::Result<usize> {
        let end = Instant::now() + patience;
        loop {
            let found = self.leader().and_then(|n| {
                ensure!(
                    self.nodes[n].child.is_some(),
                    "the name server still shows dead node {n}"
                );
                let mut client = Client::connect(self.nodes[n].address, PATIENCE)?;
                // A Java broker takes offsets in any role.
                let ready = match self.options.target.is_java() {
                    true => client.send("jepsen_ready", 0, "ready"),
                    false => client
                        .commit_offset("jepsen_ready", "jepsen", 0)
                        .map(|()| 0),
                };
                match ready {
                    Outcome::Ok(_) => Ok(n),
                    other => bail!("node {n}: {other:?}"),
                }
            });
            match found {
                Ok(n) => return Ok(n),
                Err(e) if Instant::now() > end => return Err(e.context("no leader")),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The highest term that a running node knows.
    pub fn term(&self) -> anyhow::Result<u64> {
        let running = self.nodes.iter().filter(|n| n.child.is_some());
        let terms = running.map(|n| {
            let status = status_within(n.address, Duration::from_secs(30))?;
            status["group"]["term"].as_u64().context("term")
        });
        let terms: Vec<u64> = terms.collect::<anyhow::Result<_>>()?;
        terms.into_iter().max().context("no node is running")
    }

    /// Waits until all nodes have committed equally far, with no writes under way, and answers how far:
    /// the physical offset below which the logs must be equal.
    pub fn wait_until_even(&self, patience: Duration) -> anyhow::Result<u64> {
        let end = Instant::now() + patience;
        loop {
            let ends: Vec<io::Result<u64>> = self
                .nodes
                .iter()
                .filter(|n| !n.retired)
                .map(|n| committed_end(n.address))
                .collect();
            if let Ok(list) = ends
                .iter()
                .map(|r| r.as_ref().copied())
                .collect::<Result<Vec<_>, _>>()
                && list.iter().all(|e| *e == list[0])
            {
                return Ok(list[0]);
            }
            ensure!(Instant::now() < end, "the nodes do not converge: {ends:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The first byte below `end` in which two nodes' commit logs differ, as a message.
    pub fn compare_logs(&self, end: u64) -> anyhow::Result<Option<String>> {
        let segment = self.options.segment;
        let mut base = 0;
        while base < end {
            let name = format!("{base:020}");
            let length = usize::try_from(segment.min(end - base))?;
            let mut first: Option<Vec<u8>> = None;
            for n in self.members() {
                let node = &self.nodes[n];
                let path = node.store.join("commitlog").join(&name);
                let mut bytes = fs::read(&path).with_context(|| path.display().to_string())?;
                ensure!(
                    bytes.len() >= length,
                    "{} is shorter than {length}",
                    path.display()
                );
                bytes.truncate(length);
                match &first {
                    None => first = Some(bytes),
                    Some(f) if *f == bytes => {}
                    Some(f) => {
                        let at = f.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(0);
                        let at = base + at as u64;
                        return Ok(Some(format!(
                            "node {n} differs from those before at byte {at}"
                        )));
                    }
                }
            }
            base += segment;
        }
        Ok(None)
    }
}

impl Node {
    /// Four ports from `first` on: the VIP channel, Raft, clients, and the group's further names.
    fn new(dir: &Path, node: usize, (ip, first): (Ipv4Addr, u16)) -> Self {
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

impl Drop for Cluster {
    fn drop(&mut self) {
        let nodes = self.nodes.iter_mut().filter_map(|n| n.child.as_mut());
        for child in nodes.chain(&mut self.own_namesrv) {
            if let Err(e) = child.kill().and_then(|()| child.wait().map(drop)) {
                eprintln!("cannot end process {}: {e}", child.id());
            }
        }
    }
}

/// The file with what a node's clock is off by.
fn clock_of(conf: &Path) -> PathBuf {
    conf.with_extension("clock")
}

/// The file with the identity of the run of the machine where a node has its store.
pub(crate) fn boot(store: &Path) -> PathBuf {
    store.with_extension("boot")
}

/// The node that a name server shows as broker id 0.
pub(crate) fn shown_leader(namesrv: SocketAddr) -> anyhow::Result<SocketAddr> {
    let mut command = Command::request(request::GET_ROUTEINFO_BY_TOPIC);
    // A broker has a topic of its own name.
    command.ext.insert("topic", "jepsen");
    command.ext.insert("acceptStandardJsonOnly", "true");
    let answer = Client::connect(namesrv, PATIENCE)?.call(command)?;
    let route: serde_json::Value = serde_json::from_slice(&answer.body)
        .with_context(|| format!("route answer {}", describe(&answer)))?;
    let shown = route["brokerDatas"][0]["brokerAddrs"]["0"].as_str();
    let shown = shown.and_then(|address| address.parse().ok());
    shown.with_context(|| format!("the name server shows no leader: {route}"))
}

/// What a node says of itself and its group, as `mqadmin raftStatus` shows it.
pub fn status(address: SocketAddr) -> anyhow::Result<serde_json::Value> {
    status_within(address, PATIENCE)
}

/// The same from a node that answers so soon.
pub fn status_within(address: SocketAddr, patience: Duration) -> anyhow::Result<serde_json::Value> {
    let mut client = Client::connect(address, patience)?;
    let answer = client.call(Command::request(request::RAFT_STATUS))?;
    serde_json::from_slice(&answer.body).with_context(|| describe(&answer))
}

/// The end of what a node has committed, from its runtime information.
fn committed_end(address: SocketAddr) -> io::Result<u64> {
    let mut client = Client::connect(address, PATIENCE)?;
    let answer = client.call(Command::request(request::GET_BROKER_RUNTIME_INFO))?;
    let info: serde_json::Value = serde_json::from_slice(&answer.body).map_err(io::Error::other)?;
    info["table"]["commitLogMaxOffset"]
        .as_str()
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| io::Error::other("no commitLogMaxOffset"))
}
