//! What each node makes of the log: its queues and its index, which only a leader shows. So each leads for a
//! moment when all is quiet.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};

use crate::client::{Client, Outcome};
use crate::cluster::Cluster;
use crate::history::{History, Kept, Stretch};
use crate::migration::Said;
use crate::workload::{LIVENESS, TOPIC, read_stretches};

/// How long a node may take to lead when all is quiet, also on a machine that is busy.
const TURN: Duration = Duration::from_secs(120);
/// How often a node may cease to lead before all of it is read.
const TRIES: usize = 5;
/// How long the index may be behind.
const BEHIND: Duration = Duration::from_secs(30);
/// Messages that are looked up on each node.
const LOOKUPS: usize = 100;

/// Has each node lead, and reads its queues and looks messages up by their keys there. What differs from what was
/// read before is wrong, and so is a node that does not come to lead. What was `said` of a store that was taken over is
/// looked for.
pub(crate) fn compare(
    cluster: &Cluster,
    history: &History,
    mut said: Option<&mut Said>,
) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let unknown = history.sends.iter();
    let unknown = unknown.filter(|send| matches!(send.outcome, Outcome::Unknown(_)));
    let unknown: HashSet<&str> = unknown.map(|send| &*send.body).collect();
    let mut found = history.found.clone();
    for node in cluster.members() {
        let seen = match see(cluster, node, history, said.as_deref()) {
            Ok(seen) => seen,
            Err(e) => {
                wrong.push(format!("n{node} does not show what it has: {e:#}"));
                continue;
            }
        };
        for (queue, before) in &mut found {
            let now = &seen.queues[queue];
            take_late(now, before, &unknown);
            wrong.extend(difference(node, *queue, now, before));
        }
        for (queue, before) in &history.stretches {
            let now = seen.stretches.get(queue).map_or(&[][..], |now| now);
            wrong.extend(difference(node, *queue, now, before));
        }
        wrong.extend(seen.missing);
        if let (Some(said), Some(adopted)) = (&mut said, seen.adopted) {
            said.book(node, adopted);
        }
    }
    Ok(wrong)
}

/// What a node shows.
struct Seen {
    queues: BTreeMap<u32, Vec<(u64, String)>>,
    stretches: BTreeMap<u32, Vec<Stretch>>,
    /// A message that it does not find by its key.
    missing: Option<String>,
    adopted: Option<Vec<Option<Kept>>>,
}

/// All that a node shows as the leader of one term: whoever has ceased to lead passes questions on.
fn see(
    cluster: &Cluster,
    node: usize,
    history: &History,
    said: Option<&Said>,
) -> anyhow::Result<Seen> {
    // A Java node shows its queues in any role.
    let is_java = cluster.target().is_java();
    let mut last = anyhow!("it ceases to lead again and again");
    for _ in 0..TRIES {
        ensure!(is_java || lead(cluster, node), "it does not lead");
        let term = cluster.served_term(node);
        let seen = see_now(cluster, node, history, said);
        match seen {
            // A slave takes over topics and queues when it likes.
            Err(e) if is_java => {
                last = e;
                thread::sleep(Duration::from_secs(5));
            }
            seen if is_java || (term.is_some() && cluster.served_term(node) == term) => {
                return seen;
            }
            _ => {}
        }
    }
    Err(last)
}

fn see_now(
    cluster: &Cluster,
    node: usize,
    history: &History,
    said: Option<&Said>,
) -> anyhow::Result<Seen> {
    let address = cluster.addresses()[node];
    let mut client = Client::connect(address, LIVENESS)?;
    let mut queues = BTreeMap::new();
    for queue in history.found.keys() {
        queues.insert(*queue, client.read_queue(TOPIC, *queue)?);
    }
    Ok(Seen {
        queues,
        stretches: read_stretches(address, history)?,
        missing: match cluster.target().is_java() {
            true => None,
            false => look_up(&mut client, node, history)?,
        },
        adopted: said.map(|said| said.look(&mut client)).transpose()?,
    })
}

/// Adds what came since the queue was read before, of sends whose outcome is unknown: a network may give up a request
/// long after its sender did.
fn take_late(now: &[(u64, String)], before: &mut Vec<(u64, String)>, unknown: &HashSet<&str>) {
    let late = now.get(before.len()..).unwrap_or_default();
    if late.iter().all(|(_, body)| unknown.contains(&**body)) {
        before.extend_from_slice(late);
    }
}

/// Where a node's queue is another than it was on the leader that was read before.
fn difference<T: PartialEq + Debug>(
    node: usize,
    queue: u32,
    now: &[T],
    before: &[T],
) -> Option<String> {
    if now == before {
        return None;
    }
    let at = now.iter().zip(before).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| now.len().min(before.len()));
    Some(format!(
        "n{node} has {:?} as part {at} of queue {queue}, and another leader {:?}",
        now.get(at),
        before.get(at)
    ))
}

/// Whether the node leads in the end.
pub(crate) fn lead(cluster: &Cluster, node: usize) -> bool {
    let end = Instant::now() + TURN;
    // While nobody leads, name servers show a follower.
    let serves = |node| cluster.target().is_java() || cluster.served_term(node).is_some();
    while Instant::now() < end {
        match cluster.leader() {
            Ok(leader) if leader == node && serves(node) => return true,
            Ok(leader) => {
                // It refuses as long as the other one is not level.
                cluster
                    .transfer(leader, Some(node), Duration::from_secs(2))
                    .ok();
            }
            Err(_) => {}
        }
        thread::sleep(Duration::from_millis(200));
    }
    false
}

/// Looks for acknowledged messages, spread over the whole run, by their keys; one that is not found.
fn look_up(client: &mut Client, node: usize, history: &History) -> io::Result<Option<String>> {
    let acknowledged = history.sends.iter();
    let acknowledged = acknowledged.filter(|send| matches!(send.outcome, Outcome::Ok(_)));
    let keys: Vec<&str> = acknowledged.map(|send| &*send.body).collect();
    let end = Instant::now() + BEHIND;
    for key in keys.iter().step_by(keys.len() / LOOKUPS + 1) {
        while !client.look_up(TOPIC, key)? {
            if Instant::now() > end {
                return Ok(Some(format!("n{node} does not find {key} by its key")));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_of_a_send_with_unknown_outcome_or_wrong() {
        let all = [(0, "a"), (1, "b"), (2, "c")].map(|(n, body)| (n, body.to_owned()));
        let told = |now: &[(u64, String)], unknown: &[&str]| {
            let mut before = all[..2].to_vec();
            take_late(now, &mut before, &unknown.iter().copied().collect());
            difference(1, 2, now, &before)
        };
        assert_eq!(told(&all, &["c"]), None);
        assert!(told(&all, &["b"]).is_some());
        assert!(told(&all[..1], &["b", "c"]).is_some());
        let other = [(0, "c".to_owned()), all[1].clone(), all[2].clone()];
        assert!(told(&other, &["a", "b", "c"]).is_some());
    }

    #[test]
    fn a_difference_names_where_it_begins() {
        assert_eq!(difference(1, 2, &[7, 8], &[7, 8]), None);
        let longer = difference(1, 2, &[7, 8, 9], &[7, 8]).unwrap();
        assert!(
            longer.contains("n1 has Some(9) as part 2 of queue 2"),
            "{longer}"
        );
        let other = difference(1, 2, &[5, 8], &[7, 8]).unwrap();
        assert!(other.contains("another leader Some(7)"), "{other}");
    }
}
