//! Asks a node again and again whether it serves as the leader.

use std::thread;
use std::time::Duration;

use super::Shared;
use crate::cluster::status_within;
use crate::history::Lead;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(200);
/// A node that does not answer so soon is asked again later.
const PATIENCE: Duration = Duration::from_millis(500);

pub(super) fn watch(shared: &Shared, node: usize) {
    while !shared.stopped() {
        let address = shared.node(node);
        let status = status_within(address, PATIENCE).unwrap_or_default();
        let group = &status["group"];
        if group["serving"] == true
            && let Some(term) = group["term"].as_u64()
        {
            let node = shared.number(address);
            // Under the lock, so that they stand in the order of their times.
            let mut history = shared.history();
            let at = shared.now();
            history.leads.push(Lead { at, node, term });
        }
        thread::sleep(PAUSE);
    }
}
