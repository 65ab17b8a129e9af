//! Asks again and again who leads: each node, or where no node tells, the name server.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use super::Shared;
use crate::cluster::{shown_leader, status_within};
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

/// Each change of the leader that a name server shows counts as a term.
pub(super) fn watch_route(shared: &Shared, namesrv: SocketAddr) {
    let (mut last, mut term) = (None, 0);
    while !shared.stopped() {
        if let Ok(shown) = shown_leader(namesrv) {
            term += u64::from(last != Some(shown));
            last = Some(shown);
            let node = shared.number(shown);
            let mut history = shared.history();
            let at = shared.now();
            history.leads.push(Lead { at, node, term });
        }
        thread::sleep(PAUSE);
    }
}
