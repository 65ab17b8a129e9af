//! Consumer offsets on their way into the log.
//!
//! Consumers commit far more often than anybody needs a commit to be replicated, so commits wait
//! here for up to [`INTERVAL`] and go into the log together, the newest for each queue.
//!
//! An offset must never go back because of us. So: commits are taken in the order in which requests
//! arrive; of one queue only the newest is kept; one proposal is in flight at a time; and what was
//! taken in one term is dropped, not proposed, once the term is over, for the next leader may hold
//! newer ones. A dropped commit costs a second delivery at worst, and its consumer repeats it in
//! five seconds. A lower offset that a client itself commits is taken, as in Java: that is how a
//! consumer seeks and how a reset takes effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::replica::{ProposeError, Replica};
use crate::meta::{Change, Command, OffsetCommit, Reply};

/// How long a commit that nobody waits for may wait for others.
const INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of names in one proposal, and thus in the buffer; well below what a command may have.
const BATCH_BYTES: usize = 1024 * 1024;

/// The commits that are not applied yet. Lives on every node, holds something on the leader only.
pub(super) struct OffsetBuffer {
    replica: Arc<dyn Replica>,
    clock: fn() -> i64,
    state: Mutex<State>,
    /// Wakes the proposing task: there is something to propose.
    filled: Notify,
    /// Wakes it from its pause: somebody waits.
    urgent: Notify,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// The batch that is being proposed.
    proposed: Option<Arc<Batch>>,
}

/// Commits that share a fate.
struct Batch {
    /// The term in which they were taken.
    term: u64,
    offsets: BTreeMap<Key, i64>,
    bytes: usize,
    fate: watch::Sender<Option<Fate>>,
}

/// What became of a batch.
type Fate = Result<(), ProposeError>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    group: String,
    topic: String,
    queue_id: i32,
}

/// Says when a commit has become part of the state.
pub(super) struct Pending(watch::Receiver<Option<Fate>>);

impl Default for Batch {
    fn default() -> Self {
        Self {
            term: 0,
            offsets: BTreeMap::new(),
            bytes: 0,
            fate: watch::Sender::new(None),
        }
    }
}

impl Pending {
    /// Resolves once the commit is applied.
    ///
    /// # Errors
    /// It is not, or that is unknown.
    pub(super) async fn applied(mut self) -> Fate {
        match self.0.wait_for(Option::is_some).await {
            Ok(fate) => fate.clone().expect("waited for"),
            // The buffer is gone, and the node with it.
            Err(_) => Err(ProposeError::Unknown),
        }
    }
}

impl OffsetBuffer {
    /// `clock` gives Unix milliseconds.
    pub(super) fn new(replica: Arc<dyn Replica>, clock: fn() -> i64) -> Arc<Self> {
        Arc::new(Self {
            replica,
            clock,
            state: Mutex::default(),
            filled: Notify::new(),
            urgent: Notify::new(),
        })
    }

    /// Takes a commit, in place of an older one of the same queue. The caller may drop the result,
    /// or hurry the buffer with [`OffsetBuffer::hurry`] and wait for it.
    ///
    /// # Errors
    /// This node does not serve, or the buffer is full.
    pub(super) fn commit(&self, commit: OffsetCommit) -> Result<Pending, ProposeError> {
        let term = self.replica.serving().ok_or(ProposeError::NotLeader)?;
        let mut state = self.lock();
        if state.waiting.term != term {
            state.waiting.settle(Err(ProposeError::NotLeader));
            state.waiting = Batch {
                term,
                ..Batch::default()
            };
        }
        let OffsetCommit {
            group,
            topic,
            queue_id,
            offset,
        } = commit;
        let key = Key {
            group,
            topic,
            queue_id,
        };
        let batch = &mut state.waiting;
        if let Some(stored) = batch.offsets.get_mut(&key) {
            *stored = offset;
        } else {
            let bytes = key.group.len() + key.topic.len() + 16;
            if batch.bytes + bytes > BATCH_BYTES {
                self.urgent.notify_one();
                return Err(ProposeError::Failed(
                    "too many offset commits are waiting".to_owned(),
                ));
            }
            batch.bytes += bytes;
            batch.offsets.insert(key, offset);
        }
        self.filled.notify_one();
        Ok(Pending(batch.fate.subscribe()))
    }

    /// Has what waits proposed at once.
    pub(super) fn hurry(&self) {
        self.urgent.notify_one();
    }

    /// Resolves once every commit of this queue that was taken before is applied, or has failed.
    /// What the state then holds is what a client that commits and asks must see.
    pub(super) async fn settled(&self, group: &str, topic: &str, queue_id: i32) {
        let key = Key {
            group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id,
        };
        self.settle_where(|batch| batch.offsets.contains_key(&key))
            .await;
    }

    /// The same for everything, before this node gives up its leadership.
    pub(super) async fn all_settled(&self) {
        self.settle_where(|batch| !batch.offsets.is_empty()).await;
    }

    async fn settle_where(&self, concerned: impl Fn(&Batch) -> bool) {
        let (proposed, waiting) = {
            let state = self.lock();
            let pending = |batch: &Batch| concerned(batch).then(|| Pending(batch.fate.subscribe()));
            (
                state.proposed.as_deref().and_then(pending),
                pending(&state.waiting),
            )
        };
        if waiting.is_some() {
            self.hurry();
        }
        // A failure is somebody else's business: whoever asks next reads the state, which is right
        // with or without the commit.
        for pending in [proposed, waiting].into_iter().flatten() {
            pending.applied().await.ok();
        }
    }

    /// Proposes what comes in, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.filled.notified().await;
            // Also clears a wish that was meant for a batch already proposed: one short pause less.
            tokio::time::timeout(INTERVAL, self.urgent.notified())
                .await
                .ok();
            self.propose().await;
        }
    }

    async fn propose(&self) {
        let batch = {
            let mut state = self.lock();
            let term = state.waiting.term;
            let batch = Arc::new(std::mem::replace(
                &mut state.waiting,
                Batch {
                    term,
                    ..Batch::default()
                },
            ));
            state.proposed = Some(Arc::clone(&batch));
            batch
        };
        let fate = self.propose_batch(&batch).await;
        if let Err(error) = &fate {
            tracing::warn!(commits = batch.offsets.len(), %error, "offset commits are lost");
        }
        self.lock().proposed = None;
        batch.settle(fate);
    }

    async fn propose_batch(&self, batch: &Batch) -> Fate {
        if batch.offsets.is_empty() {
            return Ok(());
        }
        if self.replica.serving() != Some(batch.term) {
            return Err(ProposeError::NotLeader);
        }
        let commits = batch
            .offsets
            .iter()
            .map(|(key, &offset)| OffsetCommit {
                group: key.group.clone(),
                topic: key.topic.clone(),
                queue_id: key.queue_id,
                offset,
            })
            .collect();
        let command = Command {
            at_ms: (self.clock)(),
            change: Change::CommitOffsets(commits),
        };
        let bytes = command
            .encode()
            .map_err(|error| ProposeError::Failed(error.to_string()))?;
        match self.replica.propose_meta(bytes.into()).await? {
            Reply::Refused { remark, .. } => Err(ProposeError::Failed(remark)),
            Reply::Done | Reply::Locked(_) => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

impl Batch {
    fn settle(&self, fate: Fate) {
        self.fate.send_replace(Some(fate));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeReplica;
    use super::*;

    fn commit(queue_id: i32, offset: i64) -> OffsetCommit {
        OffsetCommit {
            group: "g".to_owned(),
            topic: "T".to_owned(),
            queue_id,
            offset,
        }
    }

    fn start() -> (Arc<FakeReplica>, Arc<OffsetBuffer>) {
        let fake = FakeReplica::new();
        let replica: Arc<dyn Replica> = Arc::<FakeReplica>::clone(&fake);
        let buffer = OffsetBuffer::new(replica, || 7);
        tokio::spawn(Arc::clone(&buffer).run());
        (fake, buffer)
    }

    fn stored(fake: &FakeReplica, queue_id: i32) -> Option<i64> {
        fake.meta.read().offset("g", "T", queue_id)
    }

    #[tokio::test(start_paused = true)]
    async fn commits_are_merged_and_the_newest_counts() {
        let (fake, buffer) = start();
        for offset in [5, 9, 8] {
            buffer.commit(commit(0, offset)).unwrap();
        }
        let last = buffer.commit(commit(1, 3)).unwrap();
        last.applied().await.unwrap();
        assert_eq!(fake.applied().len(), 1, "one proposal for all");
        assert_eq!((stored(&fake, 0), stored(&fake, 1)), (Some(8), Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_query_sees_what_was_committed_before_it() {
        let (fake, buffer) = start();
        fake.gate.forget_permits(Semaphore::MAX_PERMITS);
        buffer.commit(commit(0, 5)).unwrap();
        tokio::time::sleep(INTERVAL * 2).await;
        // The first is on its way, the second still waits.
        buffer.commit(commit(0, 6)).unwrap();
        let query = tokio::spawn({
            let buffer = Arc::clone(&buffer);
            async move { buffer.settled("g", "T", 0).await }
        });
        // A query for another queue has nothing to wait for.
        buffer.settled("g", "T", 1).await;
        assert_eq!(stored(&fake, 0), None);
        fake.gate.add_permits(2);
        query.await.unwrap();
        assert_eq!(stored(&fake, 0), Some(6));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_in_an_earlier_term_is_dropped() {
        let (fake, buffer) = start();
        let old = buffer.commit(commit(0, 5)).unwrap();
        let other = buffer.commit(commit(1, 5)).unwrap();
        fake.follow(None);
        fake.become_leader(3);
        let new = buffer.commit(commit(0, 7)).unwrap();
        assert_eq!(old.applied().await, Err(ProposeError::NotLeader));
        assert_eq!(other.applied().await, Err(ProposeError::NotLeader));
        new.applied().await.unwrap();
        assert_eq!((stored(&fake, 0), stored(&fake, 1)), (Some(7), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_lost_its_office_proposes_nothing() {
        let (fake, buffer) = start();
        let pending = buffer.commit(commit(0, 5)).unwrap();
        fake.follow(Some("other:1"));
        fake.become_leader(2);
        assert_eq!(pending.applied().await, Err(ProposeError::NotLeader));
        fake.follow(Some("other:1"));
        assert!(matches!(
            buffer.commit(commit(0, 6)),
            Err(ProposeError::NotLeader)
        ));
        assert_eq!(fake.applied(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_proposal_is_told_and_does_not_stop_the_next() {
        let (fake, buffer) = start();
        *fake.failure.lock().unwrap() = Some(ProposeError::Unknown);
        let lost = buffer.commit(commit(0, 5)).unwrap();
        assert_eq!(lost.applied().await, Err(ProposeError::Unknown));
        buffer.commit(commit(0, 6)).unwrap();
        buffer.all_settled().await;
        assert_eq!(stored(&fake, 0), Some(6));
    }

    #[tokio::test(start_paused = true)]
    async fn the_buffer_is_bounded() {
        let (_fake, buffer) = start();
        let mut refused = None;
        for n in 0..200_000 {
            let group = format!("g{n}");
            if let Err(error) = buffer.commit(OffsetCommit {
                group,
                ..commit(0, 1)
            }) {
                refused = Some((n, error));
                break;
            }
        }
        let (n, error) = refused.expect("there is a bound");
        assert!(n > 10_000, "{n}");
        assert!(matches!(error, ProposeError::Failed(_)));
    }

    use tokio::sync::Semaphore;
}
