//! Queue locks of orderly consumers: `LOCK_BATCH_MQ` and `UNLOCK_BATCH_MQ`. They are part of the
//! replicated state, so that a new leader knows who holds what.

use std::sync::Arc;

use rmq_wire::body::{LockBatchRequest, LockBatchResponse, MessageQueue};
use rmq_wire::code::response;
use rmq_wire::name;

use super::Broker;
use super::refusal::{Handled, Refusal};
use crate::meta::{Change, Queue, Reply};
use crate::remoting::Request;

/// `LOCK_BATCH_MQ`: takes or renews locks; the answer names those that are held.
pub(super) async fn lock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let (group, client, queues) = read(request)?;
    let locked = match broker
        .propose(Change::LockQueues {
            group,
            client,
            queues,
        })
        .await?
    {
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
