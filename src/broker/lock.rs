//! Queue locks of orderly consumers: `LOCK_BATCH_MQ` and `UNLOCK_BATCH_MQ`. They are part of the
//! replicated state, so that a new leader knows who holds what.

use std::sync::{Arc, Mutex};

use rmq_wire::body::{LockBatchRequest, LockBatchResponse, MessageQueue};
use rmq_wire::code::response;
use rmq_wire::name;
use tokio::time::Instant;

use super::Broker;
use super::refusal::{Handled, Refusal};
use crate::meta::{Change, Queue, Reply};
use crate::remoting::Request;

/// Most queues in one request.
const MAX_QUEUES: usize = 16_384;

/// The time that leases of locks go by. With each leadership it goes on where the latest renewal left it, and then as the
/// steady clock does: a clock that is set, or is another one on another node, ends no lease of a consumer that is
/// alive.
#[derive(Default)]
pub(super) struct LeaseClock(Mutex<Option<Begun>>);

struct Begun {
    term: u64,
    at: Instant,
    /// What it showed then.
    shown_ms: i64,
}

impl LeaseClock {
    /// Has it go on in a term that begins.
    pub(super) fn begin(&self, broker: &Broker, term: u64) {
        self.shown_ms(broker, term);
    }

    /// Unix milliseconds, more or less.
    ///
    /// # Errors
    /// [`Refusal::NotLeader`] without a lease: other times than its own are not for the log.
    fn now_ms(&self, broker: &Broker) -> Result<i64, Refusal> {
        let term = broker.replica.serving().ok_or(Refusal::NotLeader)?;
        Ok(self.shown_ms(broker, term))
    }

    fn shown_ms(&self, broker: &Broker, term: u64) -> i64 {
        let mut begun = self.0.lock().expect("no panic while it is held");
        let begun = match &mut *begun {
            Some(begun) if begun.term == term => begun,
            other => other.insert(Begun {
                term,
                at: Instant::now(),
                shown_ms: last_renewal(broker).unwrap_or_else(|| broker.now_ms()),
            }),
        };
        let since = i64::try_from(begun.at.elapsed().as_millis()).unwrap_or(i64::MAX);
        begun.shown_ms.saturating_add(since)
    }
}

fn last_renewal(broker: &Broker) -> Option<i64> {
    let state = broker.meta.read();
    let locks = state.locks.values().flat_map(|locks| locks.values());
    locks.map(|lock| lock.renewed_ms).max()
}

/// `LOCK_BATCH_MQ`: takes or renews locks; the answer names those that are held.
pub(super) async fn lock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let (group, client, queues) = read(request)?;
    let change = Change::LockQueues {
        group,
        client,
        queues,
    };
    let at_ms = broker.leases.now_ms(broker)?;
    let locked = match broker.propose_at(at_ms, change).await? {
        Reply::Locked(locked) => locked,
        other => {
            return Err(Refusal::system_error(format!(
                "a lock was answered by {other:?}"
            )));
        }
    };
    let body = LockBatchResponse {
        lock_ok_mq_set: locked.into_iter().map(outside).collect(),
    };
    Ok(request
        .command
        .reply(response::SUCCESS)
        .with_json(&body)
        .into())
}

/// `UNLOCK_BATCH_MQ`: gives up locks.
pub(super) async fn unlock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let (group, client, queues) = read(request)?;
    broker
        .propose(Change::UnlockQueues {
            group,
            client,
            queues,
        })
        .await?;
    Ok(request.command.reply(response::SUCCESS).into())
}

fn read(request: &Request) -> Result<(String, String, Vec<Queue>), Refusal> {
    let body: LockBatchRequest = request.command.json()?;
    name::check_group(&body.consumer_group)?;
    name::check_client_id(&body.client_id)?;
    // Each is kept with the id of its client, on every node.
    let count = body.mq_set.len();
    if count > MAX_QUEUES {
        let remark = format!("{count} queues at once; at most {MAX_QUEUES} may be named");
        return Err(Refusal::system_error(remark));
    }
    let queues = body.mq_set.into_iter().map(inside).collect();
    Ok((body.consumer_group, body.client_id, queues))
}

fn inside(queue: MessageQueue) -> Queue {
    Queue {
        topic: queue.topic,
        broker_name: queue.broker_name,
        queue_id: queue.queue_id,
    }
}

fn outside(queue: Queue) -> MessageQueue {
    MessageQueue {
        topic: queue.topic,
        broker_name: queue.broker_name,
        queue_id: queue.queue_id,
    }
}
