//! What each node makes of the log: its queues and its index, which only a leader shows. So each leads for a
//! moment when all is quiet.

use std::collections::HashSet;
use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Client, Outcome};
use crate::cluster::Cluster;
use crate::history::History;
use crate::migration::Said;
use crate::workload::{LIVENESS, TOPIC, read_stretches};

/// How long a node may take to lead. On a machine that is too busy for that it is left out.
const TURN: Duration = Duration::from_secs(20);
/// How long the index may be behind.
const BEHIND: Duration = Duration::from_secs(30);
/// Messages that are looked up on each node.
const LOOKUPS: usize = 100;

/// Has each node lead, and reads its queues and looks messages up by their keys there. What differs from what was
/// read before is wrong. What was `said` of a store that was taken over is looked for.
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
        // A Java node shows its queues in any role.
        let is_java = cluster.target().is_java();
        if !is_java && !lead(cluster, node) {
            continue;
        }
        let term = cluster.served_term(node);
        let mut client = Client::connect(cluster.addresses()[node], LIVENESS)?;
        for (queue, before) in &mut found {
            // One that no longer leads may refuse.
            let Ok(now) = client.read_queue(TOPIC, *queue) else {
                continue;
            };
            take_late(&now, before, &unknown);
            wrong.extend(difference(node, *queue, &now, before));
        }
        if let Ok(now) = read_stretches(cluster.addresses()[node], history) {
            for (queue, before) in &history.stretches {
                let now = now.get(queue).map_or(&[][..], |now| now);
                wrong.extend(difference(node, *queue, now, before));
            }
        }
        if !is_java {
            wrong.extend(look_up(&mut client, node, history));
        }
        if let Some(said) = &mut said {
            let seen = said.look(&mut client);
            // Whoever has ceased to lead passes questions on, or refuses them.
            if term.is_some() && cluster.served_term(node) == term {
                match seen {
                    Ok(seen) => said.book(node, seen),
                    Err(e) => wrong.push(format!("n{node} does not show what was taken over: {e}")),
                }
            }
        }
    }
    Ok(wrong)
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

/// Looks for acknowledged messages, spread over the whole run, by their keys.
fn look_up(client: &mut Client, node: usize, history: &History) -> Option<String> {
    let acknowledged = history.sends.iter();
    let acknowledged = acknowledged.filter(|send| matches!(send.outcome, Outcome::Ok(_)));
    let keys: Vec<&str> = acknowledged.map(|send| &*send.body).collect();
    let end = Instant::now() + BEHIND;
    for key in keys.iter().step_by(keys.len() / LOOKUPS + 1) {
        loop {
            match client.look_up(TOPIC, key) {
                Ok(true) => break,
                // Whoever leads now is looked at in its turn.
                Err(_) => return None,
                Ok(false) if Instant::now() > end => {
                    return Some(format!("n{node} does not find {key} by its key"));
                }
                Ok(false) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }
    None
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
