//! What a snapshot is here: the applied state at an entry, where each queue ended then, and the log
//! up to it, which is sent as the raw bytes that it is (`rmq_store::Outgoing`).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rmq_store::{LogReader, Outgoing, PhyOffset, QueueOffset, Queues, Rest, mutant};
use tokio::time::Instant;

use super::checkpoint::Checkpoint;
use super::log_store::to_entry_id;
use super::types::Vote;

/// A snapshot that was sent is sent again to whoever asks this soon: a follower that has just
/// installed it must not be offered a later one, of which it would lack the end.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Behind the last committed message of each queue, by topic and queue id.
type QueueEnds = Vec<(Arc<str>, i32, QueueOffset)>;

/// The content of a snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct SnapshotData(Arc<Content>);

#[derive(Debug)]
struct Content {
    /// `None` before anything was applied.
    state: Option<Checkpoint>,
    /// The genesis record, see [`Rest`].
    genesis: Option<Bytes>,
    /// Behind the last applied entry.
    end: PhyOffset,
    ends: QueueEnds,
    log: LogReader,
    queues: Arc<Queues>,
    used: Mutex<Instant>,
}

/// A snapshot that is being sent.
pub(super) struct Sending {
    pub(super) outgoing: Outgoing,
    /// See [`Rest::encode`].
    pub(super) rest: Bytes,
}

impl SnapshotData {
    /// The state after its last applied entry, and where the queues ended then; nothing changes either meanwhile.
    pub(super) fn new(
        state: Option<Checkpoint>,
        genesis: Option<Bytes>,
        log: &LogReader,
        (queues, ends): (&Arc<Queues>, QueueEnds),
    ) -> Self {
        Self(Arc::new(Content {
            state,
            genesis,
            end: log.confirm_offset(),
            ends,
            log: log.clone(),
            queues: Arc::clone(queues),
            used: Mutex::new(Instant::now()),
        }))
    }

    /// The metadata as `Meta::snapshot` writes it; empty before anything was applied.
    pub(super) fn meta(&self) -> Bytes {
        let state = self.0.state.as_ref();
        state.map_or_else(Bytes::new, |state| state.meta.clone())
    }

    /// The applied state as it is saved, and where the log has to be durable up to before it is.
    pub(super) fn state(&self) -> Option<(&Checkpoint, PhyOffset)> {
        Some((self.0.state.as_ref()?, self.0.end))
    }

    /// Notes that it is, or was until now, being sent.
    pub(super) fn touch(&self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether it is still the right one to send: somebody is about to continue with it, and it leads
    /// up to entries that the log has.
    pub(super) fn is_current(&self) -> bool {
        let used = *self.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        let is_sent = Arc::strong_count(&self.0) > 1 || used.elapsed() < KEPT_FOR;
        let applied = self.0.state.as_ref().map(|state| state.applied.index);
        is_sent && self.0.log.purged_id().map(|id| id.index.0) <= applied
    }

    /// Makes ready to send it as the leader that `vote` names. Reads the end of each queue.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn send(&self, vote: &Vote) -> io::Result<Sending> {
        let (state, end) = self
            .state()
            .ok_or_else(|| io::Error::other("nothing was applied yet"))?;
        let outgoing = Outgoing::new(&self.0.log, to_entry_id(state.applied), end);
        let outgoing = outgoing.map_err(io::Error::other)?;
        let start = outgoing.outline().start;
        let mut state = state.clone();
        if mutant!(M13) {
            state.meta = crate::meta::Meta::new().snapshot().into();
        }
        let rest = Rest {
            vote: Some(super::log_store::to_stored_vote(vote)),
            applied: state.encode().into(),
            genesis: self.0.genesis.clone(),
            queues: self.0.queues.ends_for(&self.0.ends, start)?,
        };
        Ok(Sending {
            outgoing,
            rest: rest.encode().into(),
        })
    }
}
