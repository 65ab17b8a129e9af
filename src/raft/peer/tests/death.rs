//! Proof that the process of a leader has ended.

use super::*;

use std::sync::{Mutex, PoisonError};

use crate::raft::types::Vote;

/// A lease that is not over when a test is.
const PATIENT: Timers = Timers {
    heartbeat: Duration::from_millis(50),
    election_min: Duration::from_secs(60),
    election_max: Duration::from_secs(90),
};

/// A node and what it has left for its end.
struct Mortal {
    node: Running,
    will: Arc<Mutex<Vec<Letter>>>,
}

impl Mortal {
    async fn start(cluster: &Cluster, id: u16) -> Self {
        let will = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&will);
        let last_will: LastWill = Arc::new(move |will| {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = will;
        });
        let differs = Differs {
            last_will: Some(last_will),
            timers: PATIENT,
            ..Differs::default()
        };
        let node = cluster.start_as(id, differs).await;
        Self { node, will }
    }

    /// Its last will, once it has all of it.
    async fn will(&self) -> Vec<Letter> {
        let will = || self.will.lock().unwrap().clone();
        until("both others are to be told", || will().len() == 2).await;
        will()
    }

    fn term(&self) -> u64 {
        let server = self.node.raft.server_metrics();
        server.borrow_watched().vote.leader_id.term
    }

    /// Waits until it follows `leader`, and has heard of it.
    async fn follows(&self, leader: NodeId) {
        until("it has heard of the leader", || {
            let server = self.node.raft.server_metrics();
            server.borrow_watched().current_leader == Some(leader)
                && self.node.peers.shared.followed.follows(leader)
        })
        .await;
    }
}

async fn three() -> (Cluster, Vec<Mortal>, usize) {
    let cluster = Cluster::new(3).await;
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(Mortal::start(&cluster, id).await);
    }
    let leader = nodes[0].node.joined(3).await;
    let at = nodes.iter().position(|it| it.node.local.node == leader);
    let at = at.unwrap();
    for (other, node) in nodes.iter().enumerate() {
        if other != at {
            node.follows(leader).await;
        }
    }
    (cluster, nodes, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_is_given_up_and_replaced_on_proof() {
    let (_cluster, mut nodes, at) = three().await;
    let dead = nodes.remove(at);
    let (will, term) = (dead.will().await, dead.term());
    let leader = dead.node.local.node;
    dead.node.kill().await;
    assert_eq!(deliver(&Tcp, &will).await, 2);
    for node in &nodes {
        let metrics = node.node.wait_for("another leader", |metrics| {
            metrics.current_leader.is_some_and(|now| now != leader)
        });
        assert!(metrics.await.current_term > term);
    }
    // Told again, it means nothing.
    assert_eq!(deliver(&Tcp, &will).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_prove_a_leaders_death() {
    let (cluster, mut nodes, at) = three().await;
    let term = nodes[at].term();

    // Somebody who knows all but the secret.
    let mut forged = nodes[at].will().await;
    for letter in &mut forged {
        let own = &nodes[at].node.local;
        let mut other = own.secret.0;
        other[0] ^= 1;
        let head = letter.bytes.len() - own.secret.0.len();
        let frame = wire::OutFrame::new(wire::Kind::Dead, wire::Role::Request, 1, &other, vec![]);
        letter.bytes.truncate(head - wire::HEADER_LEN);
        letter.bytes.extend_from_slice(&frame.lead);
    }
    assert_eq!(deliver(&Tcp, &forged).await, 0);
    // A damaged frame.
    for letter in &mut forged {
        *letter.bytes.last_mut().unwrap() ^= 1;
    }
    assert_eq!(deliver(&Tcp, &forged).await, 0);

    // A follower, whose end is true and does not matter.
    let follower = nodes.remove((at + 1) % 3);
    let id = follower.node.local.self_id;
    let will = follower.will().await;
    follower.node.kill().await;
    assert_eq!(deliver(&Tcp, &will).await, 0);

    // Nor does it matter that it has come back since.
    let _back = Mortal::start(&cluster, id.0).await;
    assert_eq!(deliver(&Tcp, &will).await, 0);
    for node in &nodes {
        assert_eq!(node.term(), term, "nobody was given up");
    }
}

#[test]
fn a_proof_is_for_one_process_and_the_last_vote_that_it_led_by() {
    let (node, other) = (7, 8);
    let (before, now) = (Secret::draw(), Secret::draw());
    let followed = Followed::default();
    assert_eq!(followed.led_by(node, &before), None, "nobody has led");
    followed.note(Vote::new_committed(3, node), before.seal());
    assert_eq!(
        followed.led_by(node, &before),
        Some(Vote::new_committed(3, node))
    );
    assert_eq!(followed.led_by(node, &now), None);
    assert_eq!(followed.led_by(other, &before), None);
    // Who comes with the vote of somebody else does not lead by it.
    followed.note(Vote::new_committed(3, node), now.seal());
    assert_eq!(followed.led_by(node, &now), None);
    // The node has started again, and leads again.
    followed.note(Vote::new_committed(5, node), now.seal());
    assert_eq!(followed.led_by(node, &before), None);
    assert_eq!(
        followed.led_by(node, &now),
        Some(Vote::new_committed(5, node))
    );
    // The last words of the former process come late.
    followed.note(Vote::new_committed(3, node), before.seal());
    assert_eq!(followed.led_by(node, &before), None);
    // Another one leads.
    followed.note(Vote::new_committed(6, other), Secret::draw().seal());
    assert_eq!(followed.led_by(node, &now), None);
}
