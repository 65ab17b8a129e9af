//! Retention on request: the beginning of the log goes, and what clients could read there until then is kept for the
//! checkers, which demand all that was acknowledged.

use std::collections::BTreeMap;
use std::process::Command as Process;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rmq_wire::code::request;
use rmq_wire::frame::Command;

use crate::client::{Client, describe};
use crate::cluster::Cluster;
use crate::history::History;
use crate::workload::{LIVENESS, QUEUES, TOPIC};

/// Milliseconds between two looks at what may go, of which a request is good for twenty.
const LOOK: u64 = 100;
const ROUNDS: u64 = 20;

/// Lines of a properties file with which files of the log go on request alone, however new they are: at no hour that
/// comes soon, and not for want of space. Damage is looked for quickly.
pub(super) fn keys() -> anyhow::Result<String> {
    let hour = Process::new("date").arg("+%H").output()?.stdout;
    let hour: u32 = String::from_utf8(hour)?.trim().parse()?;
    Ok(format!(
        "\nfileReservedTime=0\ndeleteWhen={:02}\ndiskMaxUsedSpaceRatio=95\n\
         cleanFileForciblyEnable=false\ncleanResourceInterval={LOOK}\n\
         scrubMaxBytesPerSecond=100000000\n",
        (hour + 12) % 24
    ))
}

/// What was read of queues before it could be removed, from offset 0 on.
#[derive(Debug, Default)]
pub(super) struct Removed(BTreeMap<u32, Vec<(u64, String)>>);

impl Removed {
    /// Whether nothing was ever to be removed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has the nodes that run remove what they may of the beginning of their logs, and waits until `leader` has.
    pub(super) fn remove(&mut self, cluster: &Cluster, leader: usize) -> anyhow::Result<()> {
        let before = cluster.log_begins(leader)?;
        let end = Instant::now() + LIVENESS;
        loop {
            self.read_on(cluster, leader)?;
            for node in cluster.members() {
                if cluster.pid(node).is_some() {
                    let mut client = Client::connect(cluster.addresses()[node], LIVENESS)?;
                    let answer =
                        client.call(Command::request(request::DELETE_EXPIRED_COMMITLOG))?;
                    ensure!(answer.code == 0, "{}", describe(&answer));
                }
            }
            // What comes meanwhile may go before the request is forgotten.
            let over = Instant::now() + Duration::from_millis(LOOK * ROUNDS + 1_000);
            while Instant::now() < over {
                self.read_on(cluster, leader)?;
                thread::sleep(Duration::from_millis(50));
            }
            if cluster.log_begins(leader)? > before {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "node {leader} removes nothing of its log from byte {before} on"
            );
        }
    }

    /// Reads what has come to the queues since it was read last.
    fn read_on(&mut self, cluster: &Cluster, leader: usize) -> anyhow::Result<()> {
        let mut client = Client::connect(cluster.addresses()[leader], LIVENESS)?;
        for queue in 0..QUEUES {
            let known = self.0.entry(queue).or_default();
            let from = known.len() as u64;
            let read = |offset, body| known.push((offset, body));
            client
                .read_queue_from(TOPIC, queue, from, read)
                .with_context(|| format!("queue {queue} before its beginning is removed"))?;
            let first = self.0[&queue].get(usize::try_from(from)?);
            if let Some((first, _)) = first.filter(|(first, _)| *first != from) {
                anyhow::bail!("queue {queue} had lost {from} to {first} before they were read");
            }
        }
        Ok(())
    }

    /// Puts into a history what lies below what its final read has found.
    pub(super) fn put_back(self, history: &mut History) {
        for (queue, mut known) in self.0 {
            let found = history.found.entry(queue).or_default();
            let first = found.first().map_or(u64::MAX, |(offset, _)| *offset);
            known.retain(|(offset, _)| *offset < first);
            known.append(found);
            *found = known;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(offsets: std::ops::Range<u64>) -> Vec<(u64, String)> {
        offsets.map(|n| (n, n.to_string())).collect()
    }

    #[test]
    fn what_was_removed_stands_before_what_is_left() {
        let removed = Removed([(0, messages(0..5)), (1, messages(0..2))].into());
        let mut history = History {
            found: [(0, messages(3..9)), (1, messages(4..6))].into(),
            ..History::default()
        };
        removed.put_back(&mut history);
        assert_eq!(history.found[&0], messages(0..9));
        let gap = [messages(0..2), messages(4..6)].concat();
        assert_eq!(history.found[&1], gap, "a gap stays one");
    }
}
