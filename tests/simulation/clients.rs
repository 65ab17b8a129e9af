//! Producers, consumers and those who commit offsets.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rmq::meta::{Change, Command, OffsetCommit, Reply};
use rmq::raft::ProposeError;
use rmq_store::PendingRecord;
use rmq_wire::record::NewRecord;
use tokio::time::{sleep, timeout};

use crate::oracle::{QUEUES, Queue};
use crate::run::World;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

fn pending((topic, queue_id): Queue, body: &[u8]) -> PendingRecord {
    let host = ([10, 0, 1, 1], 5000).into();
    PendingRecord::new(&NewRecord::new(host, topic, queue_id, body)).expect("small")
}

/// Sends until the run ends.
pub(crate) async fn produce(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !world.is_over() {
        let count = if rng.random_ratio(1, 4) {
            rng.random_range(2..=4)
        } else {
            1
        };
        send(&world, &mut rng, count).await;
        sleep(Duration::from_millis(
            rng.random_range(0..=world.plan.think_ms),
        ))
        .await;
    }
}

/// Sends some messages at once, and says whether they were acknowledged.
pub(crate) async fn send(world: &World, rng: &mut StdRng, count: usize) -> bool {
    // Mostly to who serves, sometimes to anybody.
    let serving = world.nodes.serving().filter(|_| !rng.random_ratio(1, 10));
    let anybody = || world.nodes.all_running().choose(rng).cloned();
    let Some((place, node)) = serving.or_else(anybody) else {
        return false;
    };
    let mut sent = Vec::new();
    let mut records = Vec::new();
    {
        let mut oracle = world.oracle();
        for _ in 0..count {
            let queue = *QUEUES.choose(rng).expect("some");
            let bytes = rng.random_range(8..=world.plan.message_bytes);
            let (id, body, floor) = oracle.invoke(queue, bytes);
            records.push(pending(queue, &body));
            sent.push((id, floor));
        }
    }
    let mut ended = node.ended.clone();
    let outcome = tokio::select! {
        biased;
        _ = ended.wait_for(|ended| *ended) => None,
        outcome = timeout(PATIENCE, node.group.propose_messages(records, None)) => outcome.ok(),
    };
    let first = sent[0].0;
    let mut oracle = world.oracle();
    match outcome {
        Some(Ok(positions)) => {
            assert_eq!(positions.len(), sent.len());
            world.trace.event(format_args!(
                "n{place} acknowledges message {first} at {}",
                positions[0].phy
            ));
            for ((id, floor), position) in sent.into_iter().zip(positions) {
                world.insist(oracle.ack(id, position, floor));
            }
            true
        }
        Some(Err(
            ProposeError::NotLeader(_)
            | ProposeError::TooLarge { .. }
            | ProposeError::Frozen
            | ProposeError::Full(_),
        )) => {
            sent.into_iter().for_each(|(id, _)| oracle.refuse(id));
            false
        }
        Some(Err(ProposeError::Unknown | ProposeError::Fatal(_))) | None => {
            oracle.unknown += sent.len() as u64;
            false
        }
    }
}

/// Commits ever higher offsets of one group until the run ends.
pub(crate) async fn commit(world: Arc<World>, group: &'static str, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !world.is_over() {
        sleep(Duration::from_millis(rng.random_range(20..400))).await;
        let Some((place, node)) = world.nodes.serving() else {
            continue;
        };
        let queue = *QUEUES.choose(&mut rng).expect("some");
        let offset = world.oracle().commit_next(group, queue);
        let commit = OffsetCommit {
            group: group.to_owned(),
            topic: queue.0.to_owned(),
            queue_id: queue.1,
            offset,
        };
        let command = Command {
            at_ms: offset,
            change: Change::CommitOffsets(vec![commit]),
        };
        let command = command.encode().expect("small").into();
        let mut ended = node.ended.clone();
        let outcome = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => None,
            outcome = timeout(PATIENCE, node.group.propose_meta(command)) => outcome.ok(),
        };
        if let Some(Ok(reply)) = outcome {
            assert_eq!(reply, Reply::Done);
            world.oracle().committed(group, queue, offset);
            world.trace.event(format_args!(
                "n{place} commits {group} at {offset} of {queue:?}"
            ));
        }
    }
}

/// Reads anywhere from anybody until the run ends.
pub(crate) async fn consume(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !world.is_over() {
        sleep(Duration::from_millis(rng.random_range(10..100))).await;
        let Some((place, node)) = world.nodes.all_running().choose(&mut rng).cloned() else {
            continue;
        };
        let queue = *QUEUES.choose(&mut rng).expect("some");
        let max = node.queues.max_offset(queue.0, queue.1).0;
        let offset = max.saturating_sub(rng.random_range(0..40));
        world.insist(world.oracle().read(place, &node, queue, offset));
    }
}
