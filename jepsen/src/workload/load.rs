//! Many messages: batches of many sizes from some clients at once, up to a rate. What is kept of them is as
//! large as the number of requests, not of messages, and so is the work of their checker.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{LIVENESS, LOADERS, PATIENCE, QUEUES, Shared};
use crate::client::{Client, Outcome};
use crate::history::{Batch, Stretch};

/// Clients that send them.
pub(super) const SENDERS: u32 = 6;
/// Messages of one request at most.
const LARGEST: u64 = 64;
/// Where they go: to as many queues as other messages have.
const TOPIC: &str = "jepsen_load";
/// After an operation that was not acknowledged.
const REST: Duration = Duration::from_millis(5);

/// What a message says: whose it is and which, and bytes that depend on both.
fn body(sender: u32, seq: u64) -> String {
    let filler = usize::try_from(seq % 97).unwrap_or(0);
    format!("{sender}:{seq}:{:.<filler$}", "")
}

/// Whose it is, and which.
fn parse(text: &str) -> Option<(u32, u64)> {
    let mut parts = text.splitn(3, ':');
    let sender = parts.next()?.parse().ok()?;
    let seq = parts.next()?.parse().ok()?;
    (body(sender, seq) == text).then_some((sender, seq))
}

/// Sends batches one after the other through whichever node answers, all senders together no more than `rate`
/// messages a second.
pub(super) fn send(shared: &Shared, sender: u32, rate: u64, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed ^ u64::from(sender));
    let queue = sender % QUEUES;
    let own_rate = (rate / u64::from(SENDERS)).max(1);
    let mut node = sender as usize;
    let mut connection = None;
    let (mut first, mut due) = (0, Instant::now());
    while !shared.stopped() {
        // What could not be sent in time is not made up for.
        due = due.max(Instant::now() - REST);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let connected = match connection.take() {
            Some(client) => Ok(client),
            None => Client::connect(shared.node(node), PATIENCE),
        };
        let Ok(mut client) = connected else {
            node += 1;
            thread::sleep(REST);
            continue;
        };
        let count = dice.random_range(1..=LARGEST);
        due += Duration::from_secs(1) * u32::try_from(count).unwrap_or(1)
            / u32::try_from(own_rate).unwrap_or(u32::MAX);
        let bodies: Vec<String> = (first..first + count).map(|n| body(sender, n)).collect();
        let invoked = shared.now();
        let outcome = client.send_batch(TOPIC, queue, &bodies);
        let ended = shared.now();
        if matches!(outcome, Outcome::Ok(_)) {
            connection = Some(client);
        } else {
            node += 1;
            thread::sleep(REST);
        }
        shared.history().batches.push(Batch {
            process: LOADERS + u64::from(sender),
            sender,
            queue,
            first,
            count,
            invoked,
            ended,
            outcome,
        });
        first += count;
    }
}

/// Everything that lies in the queues, as stretches of messages that were sent one after the other.
pub(super) fn read_back(address: SocketAddr) -> io::Result<BTreeMap<u32, Vec<Stretch>>> {
    let mut all: BTreeMap<u32, Vec<Stretch>> = BTreeMap::new();
    let mut client = Client::connect(address, LIVENESS)?;
    for queue in 0..QUEUES {
        let stretches = all.entry(queue).or_default();
        client.read_queue_from(TOPIC, queue, 0, |offset, text| {
            // What nobody sent is of a sender that nobody is.
            let (sender, seq) = parse(&text).unwrap_or((u32::MAX, 0));
            match stretches.last_mut() {
                Some(last)
                    if last.sender == sender
                        && last.first + last.count == seq
                        && last.offset + last.count == offset =>
                {
                    last.count += 1;
                }
                _ => stretches.push(Stretch {
                    sender,
                    first: seq,
                    count: 1,
                    offset,
                }),
            }
        })?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_tells_whose_it_is_and_no_other_text_does() {
        for seq in [0, 1, 96, 97, 1_000_003] {
            let text = body(3, seq);
            assert_eq!(parse(&text), Some((3, seq)));
            assert_eq!(parse(&format!("{text}.")), None);
        }
        for bad in ["", "3", "3:1", "x:1:.", "-1:1:."] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
