//! Clients that send one message after the other, and one that commits offsets.

use std::thread;
use std::time::Duration;

use anyhow::ensure;

use super::{COMMITTER, PATIENCE, PROBES, QUEUES, Shared, TOPIC};
use crate::client::{Client, Outcome};
use crate::history::Send;

/// A probe asks a node only so long: less than an election takes, so that a node that hangs hides
/// nothing of what the others do.
const PROBE_PATIENCE: Duration = Duration::from_millis(100);
/// After so long without an answer probes become patient, for a machine that is slow.
const PROBE_HURRY: Duration = Duration::from_secs(10);

/// [`Workload::probe`].
pub(super) fn probe(shared: &Shared, from: u64, name: &str) -> anyhow::Result<u64> {
    const QUEUE: u32 = 0;
    for (seq, node) in (0u32..).zip(0usize..) {
        let address = shared.node(node);
        let waited = shared.since(from);
        let liveness = shared.liveness;
        ensure!(waited < liveness, "no node answered for {liveness:?}");
        let patience = if waited < PROBE_HURRY {
            PROBE_PATIENCE
        } else {
            PATIENCE
        };
        let Ok(mut client) = Client::connect(address, patience) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let body = format!("{name}:{seq}");
        let invoked = shared.now();
        let outcome = client.send(TOPIC, QUEUE, &body);
        let ended = shared.now();
        let is_acknowledged = matches!(outcome, Outcome::Ok(_));
        shared.history().sends.push(Send {
            process: PROBES,
            queue: QUEUE,
            body,
            invoked,
            ended,
            outcome,
        });
        if is_acknowledged {
            return Ok((ended - from) / 1_000_000);
        }
    }
    unreachable!("a cycle over nodes has no end")
}

/// Sends unique messages one after the other to one queue, through whichever node answers.
pub(super) fn produce(shared: &Shared, producer: u32) {
    let queue = producer % QUEUES;
    let mut node = producer as usize;
    let mut connection = None;
    for seq in 0u64.. {
        if shared.stopped() {
            return;
        }
        let body = format!("{producer}:{seq}");
        let address = shared.node(node);
        let client = match connection.take() {
            Some(c) => c,
            None => match Client::connect(address, PATIENCE) {
                Ok(c) => c,
                Err(_) => {
                    node += 1;
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
            },
        };
        let mut client = client;
        let invoked = shared.now();
        let outcome = client.send(TOPIC, queue, &body);
        let ended = shared.now();
        if let Outcome::Ok(offset) = outcome {
            shared.note_acknowledged(queue, offset);
            connection = Some(client);
        } else {
            node += 1;
            thread::sleep(Duration::from_millis(5));
        }
        shared.history().sends.push(Send {
            process: producer.into(),
            queue,
            body,
            invoked,
            ended,
            outcome,
        });
        thread::sleep(Duration::from_millis(1));
    }
}

/// Commits rising offsets for a group and reads them back, through whichever node answers.
pub(super) fn commit(shared: &Shared) {
    let (mut node, mut offset) = (0, 0);
    while !shared.stopped() {
        let address = shared.coordinator(node);
        let Ok(mut client) = Client::connect(address, PATIENCE) else {
            node += 1;
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        while !shared.stopped() && shared.coordinator(node) == address {
            offset += 1;
            shared.commit(&mut client, COMMITTER, 0, offset);
            if shared.committed(&mut client, COMMITTER, 0).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        node += 1;
    }
}
