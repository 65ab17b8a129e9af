//! A reader of a topic whose messages come later than they are sent.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{GROUP, LIVENESS, PATIENCE, QUEUES, Shared};
use crate::client::{Client, Outcome};
use crate::history::{Delivery, History};

/// Between two rounds.
const REST: Duration = Duration::from_millis(5);

/// Where in a history its arrivals are.
pub(super) type Place = fn(&mut History) -> &mut Vec<Delivery>;

/// Reads what arrives as soon as it does.
pub(super) fn watch(shared: &Shared, topic: &str, place: Place) {
    let mut next = [0; QUEUES as usize];
    for node in 0.. {
        let Ok(mut client) = Client::connect(shared.node(node), PATIENCE) else {
            thread::sleep(REST);
            if shared.stopped() {
                return;
            }
            continue;
        };
        loop {
            if shared.stopped() {
                return;
            }
            thread::sleep(REST);
            if read_round(shared, &mut client, topic, place, &mut next).is_none() {
                break;
            }
        }
    }
}

/// Reads each queue once; `None` if a poll failed for another reason than a topic that nobody has used.
fn read_round(
    shared: &Shared,
    client: &mut Client,
    topic: &str,
    place: Place,
    next: &mut [u64; QUEUES as usize],
) -> Option<()> {
    for (queue, next) in (0..QUEUES).zip(next) {
        let got = match client.poll(GROUP, topic, queue, *next, 32) {
            Outcome::Ok((got, _)) => got,
            Outcome::Fail(why) if why.starts_with("code 17 ") => continue,
            _ => return None,
        };
        let at = shared.now();
        let mut history = shared.history();
        for (offset, body) in got {
            *next = offset + 1;
            place(&mut history).push(Delivery {
                at,
                queue,
                offset,
                body,
                last: false,
            });
        }
    }
    Some(())
}

/// Everything that is there in the end. The run began at `start`.
pub(super) fn read_back(
    address: SocketAddr,
    topic: &str,
    start: Instant,
) -> anyhow::Result<Vec<Delivery>> {
    let mut client = Client::connect(address, LIVENESS)?;
    let mut found = Vec::new();
    for queue in 0..QUEUES {
        let all = client.read_queue(topic, queue).context("final read")?;
        let at = u64::try_from(start.elapsed().as_nanos())?;
        found.extend(all.into_iter().map(|(offset, body)| Delivery {
            at,
            queue,
            offset,
            body,
            last: true,
        }));
    }
    Ok(found)
}
