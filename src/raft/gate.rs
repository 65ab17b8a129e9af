//! When a node that has just started may vote: what it promised before must still be kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::types::LogId;

/// Whether this node may vote.
///
/// A node that starts does not know to whom it promised its vote, for leases are kept in memory
/// only; it waits until every such promise is over. A node in *quarantine* may also have lost
/// entries that it acknowledged (ASYNC_FLUSH and a power failure), and could elect a leader that
/// never had them; it waits until it has all that its leader has.
#[derive(Clone)]
pub(super) struct VoteGate(Arc<Gate>);

struct Gate {
    opens: Instant,
    quarantine: Mutex<Quarantine>,
}

enum Quarantine {
    None,
    /// No leader has said yet what it has.
    Unheard,
    /// Until this entry of the leader's is there.
    Until(LogId),
}

impl VoteGate {
    /// Closed for `grace`, the longest lease there can be, and while in quarantine.
    pub(super) fn new(grace: Duration, quarantined: bool) -> Self {
        let quarantine = if quarantined {
            Quarantine::Unheard
        } else {
            Quarantine::None
        };
        Self(Arc::new(Gate {
            opens: Instant::now() + grace,
            quarantine: Mutex::new(quarantine),
        }))
    }

    fn quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.0
            .quarantine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether votes and pre-votes may be granted; otherwise the request is to be refused as if
    /// this node were unreachable.
    pub(super) fn is_open(&self) -> bool {
        Instant::now() >= self.0.opens && matches!(*self.quarantine(), Quarantine::None)
    }

    /// Takes note of the last entry of a leader whose append was accepted. Only the first note
    /// counts: nothing later was acknowledged by this node and lost.
    pub(super) fn heard_leader(&self, last: LogId) {
        let mut quarantine = self.quarantine();
        if matches!(*quarantine, Quarantine::Unheard) {
            *quarantine = Quarantine::Until(last);
        }
    }

    /// Whether this node is in quarantine and a log that ends here ends it.
    pub(super) fn is_recovered_by(&self, last: Option<LogId>) -> bool {
        match *self.quarantine() {
            Quarantine::None | Quarantine::Unheard => false,
            // Logs are equal up to a common id, and a later leader has all that an earlier one
            // committed.
            Quarantine::Until(wanted) => last >= Some(wanted),
        }
    }

    /// Whether this node may have lost entries and does not have them again yet.
    pub(super) fn is_quarantined(&self) -> bool {
        !matches!(*self.quarantine(), Quarantine::None)
    }

    /// Ends the quarantine.
    pub(super) fn release(&self) {
        *self.quarantine() = Quarantine::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::LeaderId;

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            leader_id: LeaderId { term, node_id: 1 },
            index,
        }
    }

    #[test]
    fn a_gate_opens_after_its_grace() {
        assert!(!VoteGate::new(Duration::from_secs(3600), false).is_open());
        assert!(VoteGate::new(Duration::ZERO, false).is_open());
    }

    #[test]
    fn quarantine_lasts_until_the_log_has_what_the_first_leader_had() {
        let gate = VoteGate::new(Duration::ZERO, true);
        assert!(!gate.is_open());
        assert!(
            !gate.is_recovered_by(Some(id(9, 99))),
            "no leader was heard"
        );
        gate.heard_leader(id(3, 10));
        gate.heard_leader(id(3, 12));
        assert!(!gate.is_recovered_by(None));
        assert!(!gate.is_recovered_by(Some(id(3, 9))));
        assert!(
            !gate.is_recovered_by(Some(id(2, 20))),
            "a tail that the leader does not have"
        );
        assert!(gate.is_recovered_by(Some(id(3, 10))));
        assert!(gate.is_recovered_by(Some(id(4, 11))));
        assert!(!gate.is_open());
        gate.release();
        assert!(gate.is_open());
    }
}
