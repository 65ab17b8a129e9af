//! Group commit: sends that arrive while earlier ones are on their way share the next entry.
//!
//! There is no timer. A batch is closed as soon as fewer than [`WINDOW`] entries are in flight, so
//! an idle broker proposes each send at once and a busy one fills its batches.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt};
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::raft::ClientWriteResult;
use rmq_store::{Batch, PendingRecord, Position, SealedCell, mutant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::leadership::Leadership;
use super::space::Space;
use super::types::{LeaderId, Pending, Proposal, Responder, TypeConfig};
use super::{ProposeError, Raft};
use crate::meta::Meta;

/// Entries in flight. One is being flushed while the next is written and a third is filled.
const WINDOW: usize = 3;
/// A batch takes no more sends once it has this many bytes ...
const BATCH_BYTES: usize = 256 * 1024;
/// ... or this many records.
const BATCH_RECORDS: usize = 2048;
/// Bytes of all sends that wait for their outcome; further senders wait.
const IN_FLIGHT_BYTES: usize = 64 * 1024 * 1024;
/// What an extent has beside its records and their runs.
const HEADER_BYTES: usize = 1024;
/// What a record may add to the header: a run without its topic.
const RUN_BYTES: usize = 32;
/// No entry is larger, whatever the log takes: with a blank where a record did not fit its segment
/// it has still to fit a frame between peers.
pub const MAX_ENTRY_BYTES: usize = 15 * 1024 * 1024;
/// Sends that wait for a batch; further senders wait.
const QUEUE_LEN: usize = 8192;
/// How long a leader without a lease keeps what it could not propose. The lease is missing for a
/// round trip at the start of a term, and for as long as the disks of a majority stall.
pub(super) const HOLD: Duration = Duration::from_millis(600);
/// How often it tries again.
pub(super) const RETRY: Duration = Duration::from_millis(5);
/// How often it looks whether it still serves, while entries are in flight.
const LOOK: Duration = Duration::from_millis(50);

/// One send, waiting for its positions.
struct Submission {
    records: Vec<PendingRecord>,
    /// The only term in which they may be appended.
    term: Option<u64>,
    bytes: usize,
    reply: Answer,
    permit: OwnedSemaphorePermit,
}

/// Where sends go.
pub(super) struct Batcher {
    queue: mpsc::Sender<Submission>,
    budget: Arc<Semaphore>,
    max_bytes: usize,
    leadership: Arc<Leadership>,
    meta: Meta,
    pub(super) space: Arc<Space>,
}

impl Batcher {
    /// Starts the task on the current runtime, which should be that of Raft: it wakes nobody but the senders then. It ends when
    /// the batcher is dropped.
    /// `max_extent_bytes` is the most that the log takes as one entry.
    pub(super) fn start(
        raft: Raft,
        leadership: Arc<Leadership>,
        meta: Meta,
        space: Arc<Space>,
        max_extent_bytes: u64,
    ) -> Self {
        let max_extent_bytes = usize::try_from(max_extent_bytes).unwrap_or(usize::MAX);
        let max_bytes = max_extent_bytes
            .min(MAX_ENTRY_BYTES)
            .saturating_sub(HEADER_BYTES);
        let (queue, submissions) = mpsc::channel(QUEUE_LEN);
        let worker = Worker {
            raft,
            leadership: leadership.clone(),
            space: space.clone(),
            flying_bytes: 0,
            submissions,
            max_batch: BATCH_BYTES.min(max_bytes),
            next: None,
            flying: FuturesOrdered::new(),
            held: VecDeque::new(),
            is_refused: Arc::default(),
            unserved: None,
        };
        tokio::spawn(worker.run());
        let budget = Arc::new(Semaphore::new(IN_FLIGHT_BYTES));
        Self {
            queue,
            budget,
            max_bytes,
            leadership,
            meta,
            space,
        }
    }

    /// Waits until no message is on its way, and keeps others waiting while the guard lives.
    pub(super) async fn quiet(&self) -> OwnedSemaphorePermit {
        let all = u32::try_from(IN_FLIGHT_BYTES).expect("the budget fits u32");
        let permit = self.budget.clone().acquire_many_owned(all).await;
        permit.expect("the budget is never closed")
    }

    /// Refuses what does not fit an entry.
    pub(super) fn check_size(&self, bytes: usize) -> Result<(), ProposeError> {
        let max = self.max_bytes;
        if bytes > max {
            return Err(ProposeError::TooLarge { bytes, max });
        }
        Ok(())
    }

    /// Appends the records, in one entry, and answers once they are committed and readable. With a
    /// `term` only while this node leads that one.
    pub(super) async fn propose(
        &self,
        records: Vec<PendingRecord>,
        term: Option<u64>,
    ) -> Result<Vec<Position>, ProposeError> {
        let size = |record: &PendingRecord| record.buf.len() + record.topic.len() + RUN_BYTES;
        let bytes = records.iter().map(size).sum();
        self.check_size(bytes)?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        not_leading(&self.leadership)?;
        self.space.check_messages(bytes)?;
        let share = u32::try_from(bytes.min(IN_FLIGHT_BYTES)).expect("the budget fits u32");
        // A wait, even for nothing, is counted against the sends that one turn of a task can make; where
        // it has to be, it takes its place in the line at once, for the order of sends.
        let permit = match self.budget.clone().try_acquire_many_owned(share) {
            Ok(permit) => permit,
            Err(_) => {
                let permit = self.budget.clone().acquire_many_owned(share);
                let permit = unconstrained(permit).await;
                permit.expect("the budget is never closed")
            }
        };
        // Whoever waited for the guard of `quiet` learns here what was applied under it.
        if self.meta.is_frozen() {
            return Err(ProposeError::Frozen);
        }
        let (reply, outcome) = oneshot::channel();
        let submission = Submission {
            records,
            term,
            bytes,
            reply,
            permit,
        };
        let queued = match self.queue.try_send(submission) {
            Err(TrySendError::Full(submission)) => {
                unconstrained(self.queue.send(submission)).await.is_ok()
            }
            sent => sent.is_ok(),
        };
        if !queued {
            return Err(stopped(&self.leadership));
        }
        outcome.await.unwrap_or(Err(ProposeError::Unknown))
    }
}

/// Refuses what is to be proposed elsewhere.
pub(super) fn not_leading(leadership: &Leadership) -> Result<(), ProposeError> {
    match leadership.leading() {
        Some(_) => Ok(()),
        None => Err(elsewhere(leadership)),
    }
}

pub(super) fn elsewhere(leadership: &Leadership) -> ProposeError {
    match leadership.fatal() {
        Some(reason) => ProposeError::Fatal(reason.to_owned()),
        None => ProposeError::NotLeader(leadership.other_leader()),
    }
}

/// The answer once openraft takes no more proposals.
pub(super) fn stopped(leadership: &Leadership) -> ProposeError {
    ProposeError::Fatal(leadership.fatal().unwrap_or("raft has stopped").to_owned())
}

/// What openraft said of a proposal.
pub(super) enum Outcome<T> {
    /// Committed and applied.
    Applied(T),
    /// Not appended, because the leader's lease is over for now.
    Held,
    /// Not appended, or perhaps.
    Failed(ProposeError),
}

/// Reads openraft's answer; a lost responder is `None`.
pub(super) fn outcome(
    leadership: &Leadership,
    answer: Option<ClientWriteResult<TypeConfig>>,
) -> Outcome<<TypeConfig as openraft::RaftTypeConfig>::R> {
    match answer {
        Some(Ok(response)) => Outcome::Applied(response.data),
        Some(Err(ClientWriteError::ForwardToLeader(to))) => match to.reason {
            ForwardReason::LeaseExpired => Outcome::Held,
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                Outcome::Failed(elsewhere(leadership))
            }
        },
        // Appended here and truncated, or never answered: another leader may have it.
        Some(Err(ClientWriteError::LogEntryDiscarded(_))) | None => {
            Outcome::Failed(ProposeError::Unknown)
        }
        Some(Err(other)) => Outcome::Failed(ProposeError::Fatal(other.to_string())),
    }
}

fn is_lease_over(answer: &ClientWriteResult<TypeConfig>) -> bool {
    matches!(answer, Err(ClientWriteError::ForwardToLeader(to)) if to.reason == ForwardReason::LeaseExpired)
}

/// Where a caller waits for its positions.
type Answer = oneshot::Sender<Result<Vec<Position>, ProposeError>>;

/// A closed batch and those who wait for it.
struct Flight {
    batch: Pending,
    bytes: usize,
    sealed: Arc<SealedCell>,
    /// Each send's number of records, in the order of the batch.
    waiting: Vec<(usize, Answer)>,
    /// Returned with the flight.
    _permits: Vec<OwnedSemaphorePermit>,
    closed: Instant,
    term: Option<u64>,
}

impl Flight {
    fn fail(self, error: &ProposeError) {
        for (_, reply) in self.waiting {
            answer(reply, Err(error.clone()));
        }
    }

    fn succeed(self) {
        let positions = self
            .sealed
            .get()
            .expect("an applied batch was sealed by append");
        let mut rest = positions.as_slice();
        for (records, reply) in self.waiting {
            let (own, others) = rest.split_at(records);
            rest = others;
            answer(reply, Ok(own.to_vec()));
        }
    }
}

/// A caller that has gone, as after its timeout, does not care.
fn answer(reply: Answer, outcome: Result<Vec<Position>, ProposeError>) {
    drop(reply.send(outcome));
}

type Answered = (Flight, Option<ClientWriteResult<TypeConfig>>);

struct Worker {
    raft: Raft,
    leadership: Arc<Leadership>,
    space: Arc<Space>,
    /// Bytes of the batches that fly.
    flying_bytes: usize,
    submissions: mpsc::Receiver<Submission>,
    max_batch: usize,
    /// The first send of the next batch, which did not fit the last one.
    next: Option<Submission>,
    flying: FuturesOrdered<BoxFuture<'static, Answered>>,
    /// Batches that openraft refused for want of a lease, oldest first.
    held: VecDeque<Flight>,
    /// Whether one that flies has been refused so: its answer is looked at after those of all before it.
    is_refused: Arc<AtomicBool>,
    /// Since when this node does not serve, as far as it looked.
    unserved: Option<Instant>,
}

impl Worker {
    async fn run(mut self) {
        // Not made anew for each send: a timer that is due before all others wakes a thread.
        let mut look = pin!(tokio::time::sleep(LOOK));
        loop {
            let room = !self.is_refused() && self.held.is_empty() && self.flying.len() < WINDOW;
            let waiting = !self.held.is_empty() || !self.flying.is_empty();
            tokio::select! {
                biased;
                Some((flight, answer)) = self.flying.next() => self.land(flight, answer),
                first = next(&mut self.next, &mut self.submissions), if room => {
                    let Some(first) = first else { return };
                    if self.is_refused() {
                        // It must not overtake what was refused meanwhile.
                        self.next = Some(first);
                    } else if let Some(flight) = self.fill(first) {
                        self.launch(flight).await;
                    }
                }
                () = async { tokio::time::sleep(RETRY).await }, if !self.held.is_empty() => self.retry().await,
                () = &mut look, if waiting => {
                    self.retry().await;
                    look.as_mut().reset(Instant::now() + LOOK);
                }
            }
        }
    }

    fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Acquire)
    }

    /// Closes a batch that begins with `first`; `None` if nothing may be appended in this term.
    fn fill(&mut self, first: Submission) -> Option<Flight> {
        let term = self.leadership.leading();
        let mut bytes = 0;
        let mut records = Vec::new();
        let mut waiting = Vec::new();
        let mut permits = Vec::new();
        let mut first = Some(first);
        while let Some(submission) = first.take().or_else(|| self.submissions.try_recv().ok()) {
            if submission.term.is_some() && submission.term != term {
                answer(submission.reply, Err(elsewhere(&self.leadership)));
                continue;
            }
            if !waiting.is_empty()
                && (bytes + submission.bytes > self.max_batch
                    || records.len() + submission.records.len() > BATCH_RECORDS)
            {
                self.next = Some(submission);
                break;
            }
            bytes += submission.bytes;
            waiting.push((submission.records.len(), submission.reply));
            permits.push(submission.permit);
            records.extend(submission.records);
        }
        if waiting.is_empty() {
            return None;
        }
        let sealed = Arc::new(SealedCell::default());
        let batch = Batch {
            records,
            sealed: sealed.clone(),
        };
        Some(Flight {
            batch: Pending::new(batch),
            bytes,
            sealed,
            waiting,
            _permits: permits,
            closed: Instant::now(),
            term,
        })
    }

    async fn launch(&mut self, flight: Flight) {
        if let Err(full) = self.space.check_messages(self.flying_bytes + flight.bytes) {
            return flight.fail(&full);
        }
        let (done, answered) = oneshot::channel();
        let is_refused = Arc::clone(&self.is_refused);
        let responder = Responder::new(move |answer| {
            is_refused.fetch_or(is_lease_over(&answer), Ordering::Release);
            drop(done.send(answer));
        });
        let proposal = Proposal::Messages(flight.batch.clone());
        let mut write = self.raft.write(proposal).responder(responder);
        if let Some(term) = flight.term {
            let node_id = self.leadership.self_id();
            write = write.with_leader(LeaderId { term, node_id });
        }
        if write.await.is_err() {
            return flight.fail(&stopped(&self.leadership));
        }
        if mutant!(M1) {
            for _ in 0..100 {
                if flight.sealed.get().is_some() {
                    return flight.succeed();
                }
                tokio::task::yield_now().await;
            }
        }
        self.flying_bytes += flight.bytes;
        self.flying
            .push_back(Box::pin(async move { (flight, answered.await.ok()) }));
    }

    fn land(&mut self, flight: Flight, answer: Option<ClientWriteResult<TypeConfig>>) {
        self.flying_bytes -= flight.bytes;
        match outcome(&self.leadership, answer) {
            Outcome::Applied(_) => {
                self.unserved = None;
                flight.succeed();
            }
            Outcome::Held => {
                // Others that were refused land with it, before anything is launched.
                self.is_refused.store(false, Ordering::Release);
                match self.may_hold(&flight) {
                    true => self.held.push_back(flight),
                    false => flight.fail(&elsewhere(&self.leadership)),
                }
            }
            Outcome::Failed(error) => flight.fail(&error),
        }
    }

    /// Whether the lease may come back in time, under the same term.
    fn may_hold(&self, flight: &Flight) -> bool {
        flight.closed.elapsed() < HOLD
            && flight.term.is_some()
            && flight.term == self.leadership.leading()
    }

    /// Proposes again what was refused, and gives up what has waited too long.
    async fn retry(&mut self) {
        for flight in std::mem::take(&mut self.held) {
            if self.may_hold(&flight) {
                self.launch(flight).await;
            } else {
                flight.fail(&elsewhere(&self.leadership));
            }
        }
        if self.leadership.serving().is_some() {
            self.unserved = None;
            return;
        }
        // Entries in flight stay unanswered, for they may yet be committed; what was never proposed
        // can go to whoever leads by now.
        if self.unserved.get_or_insert_with(Instant::now).elapsed() > HOLD {
            let queued = self.next.take().into_iter();
            let queued = queued.chain(std::iter::from_fn(|| self.submissions.try_recv().ok()));
            for submission in queued.collect::<Vec<_>>() {
                answer(submission.reply, Err(elsewhere(&self.leadership)));
            }
        }
    }
}

/// The next send, `None` once there will be no more.
async fn next(
    carried: &mut Option<Submission>,
    submissions: &mut mpsc::Receiver<Submission>,
) -> Option<Submission> {
    match carried.take() {
        Some(submission) => Some(submission),
        None => submissions.recv().await,
    }
}
