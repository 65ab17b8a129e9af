//! When a node that has just started may vote: what it promised before must still be kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::types::{LogId, NodeId};

/// [`VoteGate::next_word`] resolves no more often than this.
const WORD_PAUSE: Duration = Duration::from_millis(50);

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
    state: Mutex<State>,
    /// Rings with every [`VoteGate::absolve`].
    choice: Notify,
    /// Rings when a leader is heard.
    word: Notify,
}

struct State {
    quarantine: Quarantine,
    /// When a leader was heard last.
    heard: Option<Instant>,
    /// When that was told last.
    told: Option<Instant>,
    /// Who may be voted for in quarantine, because no leader would be found otherwise.
    chosen: Option<NodeId>,
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
            state: Mutex::new(State {
                quarantine,
                heard: None,
                told: None,
                chosen: None,
            }),
            choice: Notify::new(),
            word: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether votes and pre-votes may be granted to `candidate`; otherwise its request is to be
    /// refused as if this node were unreachable.
    pub(super) fn is_open_to(&self, candidate: NodeId) -> bool {
        Instant::now() >= self.0.opens && self.state().trusts(candidate)
    }

    /// Whether `own`, which is this node, may stand for election. Its own vote counts too, and may have been promised.
    pub(super) fn may_stand(&self, own: NodeId) -> bool {
        self.is_open_to(own)
    }

    /// Has `set` told whether `own`, which is this node, may stand. Of two that are told at a time the later one is told
    /// what is so by then.
    pub(super) fn decide(&self, own: NodeId, set: impl FnOnce(bool)) {
        let state = self.state();
        set(Instant::now() >= self.0.opens && state.trusts(own));
    }

    /// When all that this node may have promised before its start is over.
    pub(super) fn opens(&self) -> Instant {
        self.0.opens
    }

    /// When a leader was heard last.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.state().heard
    }

    /// Takes note of the last entry of a leader whose append was accepted. Only the first note
    /// counts: nothing later was acknowledged by this node and lost.
    pub(super) fn heard_leader(&self, last: LogId) {
        let mut state = self.state();
        let now = Instant::now();
        state.heard = Some(now);
        if matches!(state.quarantine, Quarantine::Unheard) {
            state.quarantine = Quarantine::Until(last);
        }
        if state.told.is_none_or(|told| now - told >= WORD_PAUSE) {
            state.told = Some(now);
            self.0.word.notify_waiters();
        }
    }

    /// Resolves some time after a leader was heard again. Some words pass untold.
    pub(super) async fn next_word(&self) {
        self.0.word.notified().await;
    }

    /// Whether this node is in quarantine and a log that ends here ends it.
    pub(super) fn is_recovered_by(&self, last: Option<LogId>) -> bool {
        match self.state().quarantine {
            Quarantine::None | Quarantine::Unheard => false,
            // Logs are equal up to a common id, and a later leader has all that an earlier one
            // committed.
            Quarantine::Until(wanted) => last >= Some(wanted),
        }
    }

    /// Whether this node may have lost entries and does not have them again yet.
    pub(super) fn is_quarantined(&self) -> bool {
        !matches!(self.state().quarantine, Quarantine::None)
    }

    /// Lets this node vote in quarantine for `chosen`, which may be itself, and for nobody else.
    pub(super) fn absolve(&self, chosen: NodeId) {
        self.state().chosen = Some(chosen);
        self.0.choice.notify_one();
    }

    /// Resolves after [`Self::absolve`], for one caller.
    pub(super) async fn absolved(&self) {
        self.0.choice.notified().await;
    }

    /// Ends the quarantine.
    pub(super) fn release(&self) {
        self.state().quarantine = Quarantine::None;
    }
}

impl State {
    fn trusts(&self, candidate: NodeId) -> bool {
        matches!(self.quarantine, Quarantine::None) || self.chosen == Some(candidate)
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

    const OWN: NodeId = 1;
    const OTHER: NodeId = 2;

    #[test]
    fn a_gate_opens_after_its_grace() {
        let shut = VoteGate::new(Duration::from_secs(3600), false);
        assert!(!shut.is_open_to(OTHER) && !shut.may_stand(OWN));
        let open = VoteGate::new(Duration::ZERO, false);
        assert!(open.is_open_to(OTHER) && open.may_stand(OWN));
    }

    #[test]
    fn quarantine_lasts_until_the_log_has_what_the_first_leader_had() {
        let gate = VoteGate::new(Duration::ZERO, true);
        assert!(!gate.is_open_to(OTHER) && !gate.may_stand(OWN));
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
        assert!(!gate.is_open_to(OTHER));
        gate.release();
        assert!(gate.is_open_to(OTHER) && gate.may_stand(OWN));
    }

    #[test]
    fn an_absolved_node_is_for_the_chosen_one_alone() {
        let gate = VoteGate::new(Duration::ZERO, true);
        for chosen in [OTHER, OWN] {
            gate.absolve(chosen);
            for candidate in [OTHER, OWN] {
                assert_eq!(gate.is_open_to(candidate), candidate == chosen);
            }
            assert_eq!(gate.may_stand(OWN), chosen == OWN);
            assert!(gate.is_quarantined(), "it has not recovered by that");
        }
        let gate = VoteGate::new(Duration::from_secs(3600), true);
        gate.absolve(OTHER);
        assert!(!gate.is_open_to(OTHER), "it keeps what it promised");
    }
}
