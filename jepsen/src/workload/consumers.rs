//! Readers that belong to no group.

use std::thread;
use std::time::Duration;

use super::{GROUP, PATIENCE, QUEUES, READERS, Shared, TOPIC};
use crate::client::{Client, Outcome};
use crate::history::Poll;

/// Between two looks of one reader.
const PAUSE: Duration = Duration::from_millis(20);

impl Shared {
    /// Polls, for the history. What was got, if anything was answered.
    pub(super) fn poll(
        &self,
        client: &mut Client,
        process: u64,
        (queue, from): (u32, u64),
        most: Option<i32>,
    ) -> Option<usize> {
        let invoked = self.now();
        let outcome = client.poll(GROUP, TOPIC, queue, from, most.unwrap_or(1));
        let (got, next) = match &outcome {
            Outcome::Ok((got, next)) => (Some(got.len()), Some(*next)),
            _ => (None, None),
        };
        let outcome = outcome.map(|(got, _)| got);
        let ended = self.now();
        self.history().polls.push(Poll {
            process,
            delivers: most.is_some(),
            queue,
            from,
            invoked,
            ended,
            outcome,
            next,
        });
        got
    }
}

/// Looks at one node, whatever its role, for what was acknowledged last, queue by queue.
pub(super) fn look(shared: &Shared, node: usize) {
    let process = READERS + node as u64;
    let mut connection = None;
    for queue in (0..QUEUES).cycle() {
        if shared.stopped() {
            return;
        }
        thread::sleep(PAUSE);
        let Some(from) = shared.last_acknowledged(queue) else {
            continue;
        };
        let connected = match connection.take() {
            Some(client) => Ok(client),
            None => Client::connect(shared.node(node), PATIENCE),
        };
        let Ok(mut client) = connected else {
            continue;
        };
        if shared
            .poll(&mut client, process, (queue, from), None)
            .is_some()
        {
            connection = Some(client);
        }
    }
}
