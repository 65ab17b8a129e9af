//! Requests that only a leader may answer, met by a node that does not lead.
//!
//! It has the leader answer. While there is none it holds the request for a moment, within bounds;
//! after that it gives the answer that makes stock clients try again; it never guesses. A request is
//! sent on once: when it may have arrived, it is not sent again, whatever became of it. Whoever gets
//! it from another node and does not lead either gives it to nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rmq_wire::code::{request, response};
use rmq_wire::header::{Header, PullMessage, PullMessageResponse};
use tokio::time::{Instant, sleep, timeout_at};

use super::dispatch::as_leader;
use super::refusal::{Handled, Refusal};
use super::{Broker, ForwardError, Role, pull};
use crate::raft::{Departure, Patience};
use crate::remoting::{Reply, Request};

/// How long the leader has for its answer. Clients that wait give up after 3 to 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a leader may yet take for its answer when another one is known: one that handed over answers what
/// it had begun, one that is frozen or cut off does not.
const LATE_ANSWER: Duration = Duration::from_millis(300);
/// How long a client certainly waits for the answer to its commit, and commits nothing newer.
const COMMIT_WAIT: Duration = Duration::from_secs(1);
/// Pause after a leader could not be reached, before its successor may be known.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Requests that are held at a time.
const HELD_MAX: usize = 10_000;
/// Bytes of their frames.
const HELD_BYTES_MAX: usize = 64 << 20;
/// The remark of [`no_leader`].
pub(super) const NO_LEADER: &str = "the broker group has no leader at the moment";

/// The requests that are held, and what became of all others.
#[derive(Default)]
pub(super) struct Forwarding {
    held: AtomicUsize,
    held_bytes: AtomicUsize,
    /// Requests that had to wait for a leader.
    pub(super) waited: AtomicU64,
    /// Requests that a leader answered.
    pub(super) answered: AtomicU64,
    /// Requests that may or may not have been done.
    pub(super) unknown: AtomicU64,
}

/// A place among the held requests, until it is dropped.
pub(super) struct Place<'a> {
    of: &'a Forwarding,
    bytes: usize,
}

impl Forwarding {
    /// Requests that are held now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// `None` when there is no room.
    pub(super) fn hold(&self, bytes: usize) -> Option<Place<'_>> {
        let held = self.held.fetch_add(1, Ordering::Relaxed);
        let held_bytes = self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Dropped, and so taken back, if there is none.
        let place = Place { of: self, bytes };
        let fits = held < HELD_MAX && held_bytes + bytes <= HELD_BYTES_MAX;
        if fits {
            count(&self.waited);
        }
        fits.then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.held.fetch_sub(1, Ordering::Relaxed);
        self.of.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Gets the leader's answer, or the one that stands for none. To another node that forwarded the
/// request it says [`Refusal::NotLeader`], for that one may yet find the leader. `begun` is when this node began with it.
pub(super) async fn to_leader(broker: &Arc<Broker>, request: &Request, begun: Instant) -> Handled {
    let is_forwarded = request.conn.is_none();
    let known = |role: &Role| role.serving || role.leader.is_some();
    let given_up = || given_up(broker, request);
    let mut roles = broker.replica.role();
    let deadline = Instant::now() + broker.config.group_hold_millis;
    let mut place = None;
    loop {
        let mut pause = Duration::ZERO;
        if known(&roles.borrow()) {
            if let Some(handled) = attempt(broker, request, deadline).await {
                return handled;
            }
            // Whoever forwarded it will soon know too that another one leads.
            if is_forwarded && roles.borrow().leader.is_some() {
                return given_up();
            }
            pause = RETRY_PAUSE;
        }
        if place.is_none() {
            place = broker.forwarding.hold(request.raw.len());
        }
        if place.is_none() {
            return given_up();
        }
        let leader = async {
            sleep(pause).await;
            roles.wait_for(known).await.is_ok()
        };
        tokio::select! {
            found = timeout_at(deadline, leader) => if found != Ok(true) {
                return given_up();
            },
            // Nobody waits any longer.
            () = closed(request) => return Err(Refusal::Silence),
        }
        if is_pull(request) && !is_forwarded && broker.config.slave_read_enable {
            return no_leader(broker, request);
        }
        if is_stale(request, begun.elapsed()) {
            return given_up();
        }
    }
}

/// The answer when this node does no more for a request, and nothing was done.
pub(super) fn given_up(broker: &Broker, request: &Request) -> Handled {
    match request.conn {
        None => Err(Refusal::NotLeader),
        Some(_) => no_leader(broker, request),
    }
}

/// The answer of this node or of the leader that it knows; `None` when nothing was done.
async fn attempt(broker: &Arc<Broker>, request: &Request, deadline: Instant) -> Option<Handled> {
    if broker.is_serving() {
        return match as_leader(broker, request).await {
            Err(Refusal::NotLeader) => None,
            handled => Some(handled),
        };
    }
    // What another node forwarded goes no further.
    request.conn.as_ref()?;
    let asked = broker.replica.role().borrow().clone();
    let departure = Departure::default();
    let patience = Patience {
        limit: ANSWER_LIMIT + suspension(request),
        is_pull: is_pull(request),
        departure: departure.clone(),
    };
    let forwarded = broker
        .replica
        .forward(request.raw.clone(), request.peer, patience);
    let late = async {
        succeeded(broker, &asked).await;
        if departure.decide() {
            return ForwardError::NoLeader;
        }
        sleep(LATE_ANSWER).await;
        ForwardError::Unknown("another node leads by now".to_owned())
    };
    let answer = tokio::select! {
        answer = forwarded => answer,
        error = late => Err(error),
        // What nobody waits for is not sent any more, unless its client never would.
        () = closed(request), if !request.command.is_oneway() => return Some(Err(Refusal::Silence)),
    };
    let counter = match &answer {
        Err(ForwardError::NoLeader) => return None,
        Err(ForwardError::Unknown(_)) => &broker.forwarding.unknown,
        Ok(_) => &broker.forwarding.answered,
    };
    count(counter);
    Some(match answer {
        Ok(Some(frame)) => Ok(Reply::Frame(frame)),
        Ok(None) => Err(Refusal::Silence),
        Err(error) => {
            // Its client tries again at once, but only so often: all in vain while nobody leads.
            if !is_pull(request)
                && let Some(_place) = broker.forwarding.hold(request.raw.len())
            {
                tokio::select! {
                    _ = timeout_at(deadline, succeeded(broker, &asked)) => {}
                    () = closed(request) => return Some(Err(Refusal::Silence)),
                }
            }
            unknown(broker, request, &error)
        }
    })
}

/// Resolves when somebody leads since then.
async fn succeeded(broker: &Broker, asked: &Role) {
    let mut roles = broker.replica.role();
    let is_new = |role: &Role| role.leader != asked.leader || role.term != asked.term;
    let has_other = |role: &Role| role.serving || (role.leader.is_some() && is_new(role));
    let is_over = roles.wait_for(has_other).await.is_err();
    if is_over {
        std::future::pending::<()>().await;
    }
}

async fn closed(request: &Request) {
    match &request.conn {
        Some(conn) => conn.closed().await,
        None => std::future::pending().await,
    }
}

/// The answer while nobody leads: nothing was done, try again.
pub(super) fn no_leader(broker: &Broker, request: &Request) -> Handled {
    match request.command.code {
        // Java 4.9 and C++ consumers take any error for "no offset is stored" and start over from
        // the end or the beginning of the queue.
        request::QUERY_CONSUMER_OFFSET => Err(Refusal::Silence),
        // Who may read here stays: the leader in its route may be dead.
        _ if is_pull(request) => {
            let pull = PullMessage::decode(&request.command.ext)?;
            pull_again(request, pull::own_id(broker, &pull))
        }
        _ => Err(Refusal::new(response::SERVICE_NOT_AVAILABLE, NO_LEADER)),
    }
}

/// Whether it is a pull.
pub(super) fn is_pull(of: &Request) -> bool {
    let code = of.command.code;
    code == request::PULL_MESSAGE || code == request::LITE_PULL_MESSAGE
}

fn unknown(broker: &Broker, request: &Request, error: &ForwardError) -> Handled {
    match request.command.code {
        request::QUERY_CONSUMER_OFFSET | request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => {
            no_leader(broker, request)
        }
        _ => Err(Refusal::system_error(format!("outcome unknown: {error}"))),
    }
}

/// What a request that has waited, for so long, may no longer say. A consumer commits again and again; an offset
/// that was held up here must not arrive behind a newer one that took another way. Its client may
/// commit a newer one when it waits no longer for this one, and of that only the node knows to which
/// it is connected.
pub(super) fn is_stale(request: &Request, waited: Duration) -> bool {
    match request.command.code {
        request::UPDATE_CONSUMER_OFFSET => {
            request.command.is_oneway() || request.conn.is_none() || waited > COMMIT_WAIT
        }
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => true,
        _ => false,
    }
}

/// How long the leader may hold the request before it begins to answer.
fn suspension(request: &Request) -> Duration {
    match request.command.code {
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => {
            PullMessage::decode(&request.command.ext)
                .map(|pull| pull::suspension(&pull))
                .unwrap_or_default()
        }
        // The leader asks a client first.
        request::SEND_REPLY_MESSAGE
        | request::SEND_REPLY_MESSAGE_V2
        | request::GET_CONSUMER_RUNNING_INFO
        | request::CONSUME_MESSAGE_DIRECTLY
        | request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS => super::admin::RELAY_LIMIT,
        _ => Duration::ZERO,
    }
}

/// The answer to a pull when this node is about to go: the consumer repeats it at another one, which it does
/// at once, while the end of its connection would have it pause for 3 s.
pub(super) fn elsewhere(broker: &Broker, request: &Request) -> Handled {
    if request.conn.is_none() {
        // Whoever forwarded it finds another leader.
        return Err(Refusal::NotLeader);
    }
    match broker.next_elsewhere() {
        Some(id) => pull_again(request, id),
        None => no_leader(broker, request),
    }
}

/// The answer to a pull that came by the address that moves, when that is about to move or has: the consumer
/// repeats it at the own address of another node.
pub(super) fn at_another_address(broker: &Broker, request: &Request) -> Handled {
    match broker.next_of(&pull::addressed(broker)) {
        Some(id) => pull_again(request, id),
        None => no_leader(broker, request),
    }
}

/// Has a consumer repeat its pull, from where it was, at the broker id `next_from`.
pub(super) fn pull_again(request: &Request, next_from: i64) -> Handled {
    let pull = PullMessage::decode(&request.command.ext)?;
    let header = PullMessageResponse {
        suggest_which_broker_id: next_from,
        next_begin_offset: pull.queue_offset,
        min_offset: 0,
        max_offset: pull.queue_offset,
        ..PullMessageResponse::default()
    };
    let reply = request.command.reply(response::PULL_RETRY_IMMEDIATELY);
    Ok(reply.with_header(&header).into())
}
