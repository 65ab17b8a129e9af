//! A name server and a group of nodes as real processes, each with its own store, on loopback or each in a
//! network namespace.

mod ask;
mod node;
mod process;
mod target;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rmq_wire::code::request;
use rmq_wire::frame::Command;

use crate::client::{Client, describe};
use crate::net::{self, Net};
pub(crate) use ask::shown_leader;
pub use ask::{status, status_within};
pub use node::Node;
pub use process::free_runs;
pub(crate) use process::{boot, leash, machine, output_of, spawn};
pub use target::Target;

/// Bytes of a segment unless told otherwise: small, so that segments roll within a run.
pub const SEGMENT: u64 = 8 << 20;
/// The first port of each place in a network.
const FIRST: u16 = 10_909;
/// How long a single question to a node may take.
const PATIENCE: Duration = Duration::from_secs(2);

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

    /// What the nodes run.
    pub fn target(&self) -> Target {
        self.options.target
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
