//! Messages that are to be delivered later, and a reader that sees when they are.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rmq_wire::properties::{DELAY_TIME_LEVEL, NAME_VALUE_SEPARATOR};

use super::{DELAYER, LIVENESS, PATIENCE, QUEUES, Shared, arrivals};
use crate::client::{Client, Outcome};
use crate::history::{Delayed, History};

const TOPIC: &str = "jepsen_delay";
/// Levels that are used, and their delays (`messageDelayLevel`, 4.9.8).
const LEVELS: [(u32, Duration); 2] = [(1, Duration::from_secs(1)), (2, Duration::from_secs(5))];
/// Between two sends.
const PAUSE: Duration = Duration::from_millis(20);

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
    arrivals::watch(shared, TOPIC, |history| &mut history.deliveries);
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
    let patience = Instant::now() + LIVENESS;
    loop {
        let found = arrivals::read_back(address, TOPIC, start)?;
        for delivery in &found {
            missing.remove(&delivery.body);
        }
        if missing.is_empty() || Instant::now() > patience {
            history.deliveries.extend(found);
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
}
