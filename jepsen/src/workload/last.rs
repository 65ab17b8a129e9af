//! The final read: what is left when all is quiet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context;

use super::{GROUP, LAST, LIVENESS, QUEUES, TOPIC, delayed, load, transactional};
use crate::client::Client;
use crate::history::{History, OffsetCall, OffsetOp, Stretch};

/// Everything that lies in the queues, and the group's offsets, read from the node at `address`. The run
/// began at `start`.
pub(crate) fn read_back(
    address: SocketAddr,
    start: Instant,
    history: &mut History,
) -> anyhow::Result<()> {
    forget_last(history);
    delayed::read_back(address, start, history)?;
    transactional::read_back(address, start, history)?;
    history.stretches = read_stretches(address, history)?;
    let mut client = Client::connect(address, LIVENESS)?;
    let end = history.end();
    for queue in 0..QUEUES {
        let found = client.read_queue(TOPIC, queue).context("final read")?;
        history.found.insert(queue, found);
        let read = client
            .committed(GROUP, TOPIC, queue)
            .context("final read")?;
        history.offsets.push(OffsetOp {
            process: LAST,
            queue,
            invoked: end + 1 + 2 * u64::from(queue),
            ended: end + 2 + 2 * u64::from(queue),
            call: OffsetCall::Read(read),
        });
    }
    Ok(())
}

/// What lies in the queues of a load, if there was one, as the node at `address` has it.
pub(crate) fn read_stretches(
    address: SocketAddr,
    history: &History,
) -> anyhow::Result<BTreeMap<u32, Vec<Stretch>>> {
    if history.batches.is_empty() {
        return Ok(BTreeMap::new());
    }
    load::read_back(address).context("final read")
}

/// Takes from a history what an earlier final read has left, so that one that is tried again counts once.
fn forget_last(history: &mut History) {
    history.offsets.retain(|op| op.process != LAST);
    history.deliveries.retain(|delivery| !delivery.last);
    history.visible.retain(|delivery| !delivery.last);
    history.found.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::COMMITTER;

    #[test]
    fn a_final_read_that_is_tried_again_counts_once() {
        let read = |process| OffsetOp {
            process,
            queue: 0,
            invoked: 1,
            ended: 2,
            call: OffsetCall::Read(Some(3)),
        };
        let mut history = History {
            offsets: vec![read(COMMITTER), read(LAST), read(LAST)],
            found: [(0, vec![(0, "0:0".into())])].into(),
            ..History::default()
        };
        forget_last(&mut history);
        assert_eq!(history.offsets, [read(COMMITTER)]);
        assert!(history.found.is_empty());
    }
}
