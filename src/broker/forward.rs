//! Requests that only a leader may answer, met by a node that does not lead.
//!
//! It waits a moment for a leader and has that one answer. Without one it gives the answer that
//! makes stock clients try again; it never guesses. A request is sent on once: whoever gets it from
//! another node and does not lead either gives it to nobody else.

use std::time::Duration;

use rmq_wire::code::{request, response};
use rmq_wire::header::{Header, PullMessage, PullMessageResponse};
use tokio::time::{Instant, timeout_at};

use super::dispatch::as_leader;
use super::refusal::{Handled, Refusal};
use super::{Broker, ForwardError, Role};
use crate::remoting::{Reply, Request};

/// How long a request waits for a leader. An election takes about 0.6 s, a client's patience is 3 s.
const LEADER_WAIT: Duration = Duration::from_secs(1);
/// How long the leader has for its answer. Clients that wait give up after 3 to 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a leader could not be reached, before its successor may be known.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Gets the leader's answer, or the one that stands for none.
pub(super) async fn to_leader(broker: &std::sync::Arc<Broker>, request: &Request) -> Handled {
    let code = request.command.code;
    let begun = Instant::now();
    let deadline = begun + LEADER_WAIT;
    let mut roles = broker.replica.role();
    let mut waited = false;
    loop {
        let may_forward = request.conn.is_some();
        let known = |role: &Role| role.serving || (may_forward && role.leader.is_some());
        waited |= !known(&roles.borrow());
        match timeout_at(deadline, roles.wait_for(known)).await {
            Ok(Ok(_)) => {}
            // Too late, or the group is gone.
            Ok(Err(_)) | Err(_) => return no_leader(request),
        }
        if waited && is_stale(request) {
            return no_leader(request);
        }
        if broker.is_serving() {
            return as_leader(broker, request).await;
        }
        if may_forward {
            let limit = ANSWER_LIMIT + suspension(request);
            match broker
                .replica
                .forward(request.raw.clone(), request.peer, limit)
                .await
            {
                Ok(Some(frame)) => return Ok(Reply::Frame(frame)),
                Ok(None) => return Err(Refusal::Silence),
                Err(ForwardError::NoLeader) => waited = true,
                Err(ForwardError::Unknown(error)) => return unknown(request, code, &error),
            }
        }
        if Instant::now() >= deadline {
            return no_leader(request);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// The answer while nobody leads: nothing was done, try again.
pub(super) fn no_leader(request: &Request) -> Handled {
    match request.command.code {
        // Java 4.9 and C++ consumers take any error for "no offset is stored" and start over from
        // the end or the beginning of the queue.
        request::QUERY_CONSUMER_OFFSET => Err(Refusal::Silence),
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => pull_again(request),
        _ => Err(Refusal::new(
            response::SERVICE_NOT_AVAILABLE,
            "the broker group has no leader at the moment",
        )),
    }
}

fn unknown(request: &Request, code: i32, error: &str) -> Handled {
    match code {
        request::QUERY_CONSUMER_OFFSET | request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => {
            no_leader(request)
        }
        _ => Err(Refusal::system_error(format!("outcome unknown: {error}"))),
    }
}

/// What a request that has waited may no longer say. A consumer commits again and again; an offset
/// that was held up here must not arrive behind a newer one that took another way.
fn is_stale(request: &Request) -> bool {
    match request.command.code {
        request::UPDATE_CONSUMER_OFFSET => request.command.is_oneway(),
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => true,
        _ => false,
    }
}

/// How long the leader may hold the request before it begins to answer.
fn suspension(request: &Request) -> Duration {
    match request.command.code {
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => {
            PullMessage::decode(&request.command.ext)
                .map(|pull| super::pull::suspension(&pull))
                .unwrap_or_default()
        }
        // The leader asks a client first.
        request::GET_CONSUMER_RUNNING_INFO
        | request::CONSUME_MESSAGE_DIRECTLY
        | request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS => super::admin::RELAY_LIMIT,
        _ => Duration::ZERO,
    }
}

/// Has a consumer repeat its pull, from where it was.
fn pull_again(request: &Request) -> Handled {
    let pull = PullMessage::decode(&request.command.ext)?;
    let header = PullMessageResponse {
        suggest_which_broker_id: 0,
        next_begin_offset: pull.queue_offset,
        min_offset: 0,
        max_offset: pull.queue_offset,
        ..PullMessageResponse::default()
    };
    let reply = request.command.reply(response::PULL_RETRY_IMMEDIATELY);
    Ok(reply.with_header(&header).into())
}
