//! Consumer offsets: `QUERY_CONSUMER_OFFSET` and `UPDATE_CONSUMER_OFFSET`.
//!
//! `ConsumerManageProcessor` (4.9.8).

use std::sync::Arc;

use rmq_wire::code::response;
use rmq_wire::header::{OffsetResponse, QueryConsumerOffset, UpdateConsumerOffset};
use rmq_wire::name;

use super::Broker;
use super::refusal::{Handled, Refusal};
use crate::meta::OffsetCommit;
use crate::remoting::Request;

/// `QUERY_CONSUMER_OFFSET`. An error here has some consumers start over, so only what is certain is
/// said; see also `forward`.
pub(super) async fn query(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: QueryConsumerOffset = request.command.header()?;
    let (group, topic, queue_id) = (&*header.consumer_group, &*header.topic, header.queue_id);
    broker.offsets.settled(group, topic, queue_id).await;
    let stored = broker.meta.read().offset(group, topic, queue_id);
    let offset = match stored {
        Some(offset) => offset,
        // A group that is new to a young queue consumes it from its start.
        None if header.set_zero_if_not_found != Some(false)
            && is_young(broker, topic, queue_id)? =>
        {
            0
        }
        None => {
            let remark = "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first";
            return Err(Refusal::new(response::QUERY_NOT_FOUND, remark));
        }
    };
    let reply = request.command.reply(response::SUCCESS);
    Ok(reply.with_header(&OffsetResponse { offset }).into())
}

fn is_young(broker: &Broker, topic: &str, queue_id: i32) -> Result<bool, Refusal> {
    super::queue::is_young(broker, topic, queue_id).map_err(|error| {
        tracing::error!(topic, queue_id, %error, "a queue could not be read");
        Refusal::Silence
    })
}

/// `UPDATE_CONSUMER_OFFSET`. Whoever waits for the answer is told once the offset is replicated.
pub(super) async fn update(broker: &Arc<Broker>, request: &Request) -> Handled {
    broker.check_thawed()?;
    let header: UpdateConsumerOffset = request.command.header()?;
    let commit = OffsetCommit {
        group: header.consumer_group,
        topic: header.topic,
        queue_id: header.queue_id,
        offset: header.commit_offset,
    };
    check(&commit)?;
    let pending = broker.offsets.commit(commit)?;
    if !request.command.is_oneway() {
        broker.offsets.hurry();
        pending.applied().await?;
    }
    Ok(request.command.reply(response::SUCCESS).into())
}

/// Refuses what the state would refuse, before it is mixed with the commits of others.
pub(super) fn check(commit: &OffsetCommit) -> Result<(), Refusal> {
    name::check_group(&commit.group)?;
    name::check_topic(&commit.topic)?;
    if commit.group == name::TRANS_GROUP {
        let remark = format!(
            "the offsets of {} are kept by the broker",
            name::TRANS_GROUP
        );
        return Err(Refusal::new(response::NO_PERMISSION, remark));
    }
    commit.check().map_err(Refusal::system_error)
}
