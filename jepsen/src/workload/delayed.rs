//! Messages that are to be delivered later, and a reader that sees when they are.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rmq_wire::properties::{DELAY_TIME_LEVEL, NAME_VALUE_SEPARATOR};

use super::{DELAYER, GROUP, LIVENESS, PATIENCE, QUEUES, Shared};
use crate::client::{Client, Outcome};
use crate::history::{Delayed, Delivery, History};

const TOPIC: &str = "jepsen_delay";
/// Levels that are used, and their delays (`messageDelayLevel`, 4.9.8).
const LEVELS: [(u32, Duration); 2] = [(1, Duration::from_secs(1)), (2, Duration::from_secs(5))];
/// Between two sends.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two rounds of the reader.
const REST: Duration = Duration::from_millis(5);

/// Sends, one after the other.
pub(super) fn send(shared: &Shared) {
    let mut connection = None;
    let mut node = 0;
    for ((level, delay), seq) in LEVELS.into_iter().cycle().zip(0u32..) {
        if shared.stopped() {
            return;
        }
        thread::sleep(PAUSE);
        let connected = match connection.take() {
            Some(client) => Ok(client),
            None => Client::connect(shared.node(node), PATIENCE),
        };
        let Ok(mut client) = connected else {
            node += 1;
            continue;
        };
        let body = format!("later:{seq}");
        let properties = format!("{DELAY_TIME_LEVEL}{NAME_VALUE_SEPARATOR}{level}");
        let invoked = shared.now();
        let sent = client.send_with(TOPIC, seq % QUEUES, &properties, &body);
        let ended = shared.now();
        // The offset is that of the queue where it waits.
        let outcome = sent.map(drop);
        if outcome == Outcome::Ok(()) {
            connection = Some(client);
        } else {
            node += 1;
        }
        shared.history().delayed.push(Delayed {
            process: DELAYER,
            body,
            delay: u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX),
            invoked,
            ended,
            outcome,
        });
    }
}

/// Reads what is delivered as soon as it is.
pub(super) fn watch(shared: &Shared) {
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
            if read_round(shared, &mut client, &mut next).is_none() {
                break;
            }
        }
    }
}

/// Reads each queue once; `None` if a poll failed for another reason than a topic that nobody has used.
fn read_round(
    shared: &Shared,
    client: &mut Client,
    next: &mut [u64; QUEUES as usize],
) -> Option<()> {
    for (queue, next) in (0..QUEUES).zip(next) {
        let got = match client.poll(GROUP, TOPIC, queue, *next, 32) {
            Outcome::Ok(got) => got,
            Outcome::Fail(why) if why.starts_with("code 17 ") => continue,
            _ => return None,
        };
        let at = shared.now();
        let mut history = shared.history();
        for (offset, body) in got {
            *next = offset + 1;
            history.deliveries.push(Delivery {
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

/// Everything that was delivered in the end, when all that was acknowledged is, or the time for that is over.
pub(super) fn read_back(
    address: SocketAddr,
    start: Instant,
    history: &mut History,
) -> anyhow::Result<()> {
    let acknowledged = history
        .delayed
        .iter()
        .filter(|d| d.outcome == Outcome::Ok(()));
    let mut missing: HashSet<String> = acknowledged.map(|d| d.body.clone()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut client = Client::connect(address, LIVENESS)?;
    let patience = Instant::now() + LIVENESS;
    loop {
        let mut found = Vec::new();
        for queue in 0..QUEUES {
            let all = client.read_queue(TOPIC, queue).context("final read")?;
            let at = u64::try_from(start.elapsed().as_nanos())?;
            for (offset, body) in all {
                missing.remove(&body);
                found.push(Delivery {
                    at,
                    queue,
                    offset,
                    body,
                    last: true,
                });
            }
        }
        if missing.is_empty() || Instant::now() > patience {
            history.deliveries.extend(found);
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
}
