//! What nodes and name server say: who leads, how far each is; and whether the logs are the same.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rmq_wire::code::request;
use rmq_wire::frame::Command;

use super::{Cluster, PATIENCE};
use crate::client::{Client, Outcome, describe};

impl Cluster {
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
                let address = self.nodes[n].address;
                let is_java = self.options.target.is_java();
                // While nobody leads, name servers show a follower, which has the next leader take writes.
                ensure!(
                    is_java || self.served_term(n).is_some(),
                    "node {n} does not lead"
                );
                let mut client = Client::connect(address, PATIENCE)?;
                // A Java broker takes offsets in any role.
                let ready = match is_java {
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

    /// The term in which a node serves as the leader; `None` if it does not.
    pub(crate) fn served_term(&self, node: usize) -> Option<u64> {
        let status = status(self.nodes[node].address).ok()?;
        let group = &status["group"];
        group["term"].as_u64().filter(|_| group["serving"] == true)
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

    /// Where a node's log begins, for retention removes its first segments.
    pub(crate) fn log_begins(&self, node: usize) -> anyhow::Result<u64> {
        let log = self.nodes[node].store.join("commitlog");
        let names = fs::read_dir(&log).with_context(|| log.display().to_string())?;
        let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().parse().ok()));
        let bases: Vec<Option<u64>> = names.collect::<io::Result<_>>()?;
        let first = bases.into_iter().flatten().min();
        first.with_context(|| format!("{} has no segment", log.display()))
    }

    /// From where on all members have the log.
    pub(crate) fn logs_begin(&self) -> anyhow::Result<u64> {
        let members = self.members().into_iter();
        let begin = members.map(|node| self.log_begins(node));
        let begin: Vec<u64> = begin.collect::<Result<_, _>>()?;
        begin.into_iter().max().context("no members")
    }

    /// How far all running members have committed.
    pub(crate) fn committed(&self) -> anyhow::Result<u64> {
        let running = self.nodes.iter().filter(|n| n.child.is_some());
        let ends = running.map(|n| committed_end(n.address));
        let ends: Vec<u64> = ends.collect::<Result<_, _>>()?;
        ends.into_iter().min().context("no node is running")
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

    /// Waits until a node, as the one that it is now, has a vote in the group.
    pub(crate) fn wait_until_voting(&self, node: usize, patience: Duration) -> anyhow::Result<()> {
        let address = self.nodes[node].address;
        let votes = || -> anyhow::Result<bool> {
            let own = status(address)?["group"]["node"].clone();
            let leader = status(self.nodes[self.leader()?].address)?;
            let members = leader["group"]["members"].as_array().cloned();
            let mut members = members.unwrap_or_default().into_iter();
            Ok(members.any(|member| member["voter"] == true && member["node"] == own))
        };
        let end = Instant::now() + patience;
        while !votes().unwrap_or(false) {
            ensure!(Instant::now() < end, "node {node} does not vote");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// The first byte below `end` in which two nodes' commit logs differ, as a message.
    pub fn compare_logs(&self, end: u64) -> anyhow::Result<Option<String>> {
        self.compare_logs_from(0, end)
    }

    /// The same from the segment on that begins at `base`.
    pub(crate) fn compare_logs_from(
        &self,
        mut base: u64,
        end: u64,
    ) -> anyhow::Result<Option<String>> {
        let segment = self.options.segment;
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
