//! Bounds of queues and positions by time: `GET_MAX_OFFSET`, `GET_MIN_OFFSET`,
//! `SEARCH_OFFSET_BY_TIMESTAMP`, `GET_EARLIEST_MSG_STORETIME`.
//!
//! `AdminBrokerProcessor` (4.9.8).

use std::sync::Arc;

use rmq_store::{Boundary, QueueOffset};
use rmq_wire::code::response;
use rmq_wire::header::{
    EarliestMsgStoretimeResponse, GetMaxOffset, OffsetResponse, SearchOffset, TopicQueue,
};

use super::Broker;
use super::node::blocking;
use super::refusal::Handled;
use crate::remoting::Request;

/// `GET_MAX_OFFSET`.
pub(super) async fn max_offset(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: GetMaxOffset = request.command.header()?;
    let offset = broker.queues.max_offset(&header.topic, header.queue_id);
    answer(request, offset.as_i64())
}

/// `GET_MIN_OFFSET`.
pub(super) async fn min_offset(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: TopicQueue = request.command.header()?;
    let offset = broker.queues.min_offset(&header.topic, header.queue_id);
    answer(request, offset.as_i64())
}

/// `SEARCH_OFFSET_BY_TIMESTAMP`.
pub(super) async fn search_offset(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: SearchOffset = request.command.header()?;
    let boundary = match header.boundary_type.as_deref() {
        Some(upper) if upper.eq_ignore_ascii_case("upper") => Boundary::Upper,
        _ => Boundary::Lower,
    };
    let offset = blocking(broker, move |broker| {
        let SearchOffset {
            topic,
            queue_id,
            timestamp,
            ..
        } = header;
        let queues = &broker.queues;
        Ok(queues.offset_by_time(&topic, queue_id, timestamp, boundary)?)
    })
    .await?;
    answer(request, offset.as_i64())
}

/// `GET_EARLIEST_MSG_STORETIME`.
pub(super) async fn earliest_store_time(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: TopicQueue = request.command.header()?;
    let first = broker.queues.min_offset(&header.topic, header.queue_id);
    let timestamp = blocking(broker, move |broker| {
        let queues = &broker.queues;
        Ok(queues.store_time_at(&header.topic, header.queue_id, first)?)
    })
    .await?;
    let reply = request.command.reply(response::SUCCESS);
    let header = EarliestMsgStoretimeResponse {
        timestamp: timestamp.unwrap_or(-1),
    };
    Ok(reply.with_header(&header).into())
}

/// Whether a queue still has its first message, and that one is recent: a consumer group that has
/// no position yet begins there. `MessageStore.checkInDiskByConsumeOffset`, turned round.
pub(super) fn is_young(broker: &Broker, topic: &str, queue_id: i32) -> std::io::Result<bool> {
    if broker.queues.min_offset(topic, queue_id) != QueueOffset(0) {
        return Ok(false);
    }
    let first = broker.queues.unit(topic, queue_id, QueueOffset(0))?;
    let confirm = broker.log.confirm_offset();
    // A damaged unit may point anywhere.
    Ok(first.is_none_or(|unit| confirm.0.saturating_sub(unit.phy.0) <= broker.recent_bytes))
}

fn answer(request: &Request, offset: i64) -> Handled {
    let reply = request.command.reply(response::SUCCESS);
    Ok(reply.with_header(&OffsetResponse { offset }).into())
}
