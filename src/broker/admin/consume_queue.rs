//! `QUERY_CONSUME_QUEUE`: the units of a queue, as they stand in its files.

use std::sync::Arc;

use rmq_store::QueueOffset;
use rmq_wire::body::{ConsumeQueueData, QueryConsumeQueueResponse};
use rmq_wire::header::QueryConsumeQueue;

use super::{answer, blocking};
use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::Request;

/// Most units in one answer, whatever a tool asks for.
const MOST_UNITS: usize = 16 * 1024;

pub(in crate::broker) async fn query_consume_queue(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let header: QueryConsumeQueue = request.command.header()?;
    let subscription_data = header.consumer_group.as_ref().and_then(|group| {
        let clients = broker.clients.read();
        let subscription = clients
            .consumers
            .get(group)?
            .subscriptions
            .get(&header.topic)?;
        Some(subscription.data.clone())
    });
    let filter_data = match (&header.consumer_group, &subscription_data) {
        (Some(group), None) => Some(format!("{group}@{} is not online!", header.topic)),
        _ => None,
    };
    let body = blocking(broker, move |broker| {
        let QueryConsumeQueue {
            topic,
            queue_id,
            index,
            count,
            ..
        } = header;
        if !broker.queues.queue_ids(&topic).contains(&queue_id) {
            return Err(Refusal::system_error(format!(
                "{queue_id}@{topic} is not exist!"
            )));
        }
        let min = broker.queues.min_offset(&topic, queue_id);
        let max = broker.queues.max_offset(&topic, queue_id);
        let first = QueueOffset::from_i64(index).filter(|first| (min..max).contains(first));
        let first = first.ok_or_else(|| {
            let remark = format!("Index {index} of {queue_id}@{topic} is not exist!");
            Refusal::system_error(remark)
        })?;
        let count = usize::try_from(count).unwrap_or(0).min(MOST_UNITS);
        let units = broker.queues.units(&topic, queue_id, first, count)?;
        Ok(QueryConsumeQueueResponse {
            filter_data,
            max_queue_index: max.as_i64(),
            min_queue_index: min.as_i64(),
            queue_data: units
                .into_iter()
                .flatten()
                .map(|unit| ConsumeQueueData {
                    physic_offset: unit.phy.as_i64(),
                    physic_size: i32::try_from(unit.size).unwrap_or(i32::MAX),
                    tags_code: unit.tags_code,
                    ..ConsumeQueueData::default()
                })
                .collect(),
            subscription_data,
        })
    })
    .await?;
    answer(request, &body)
}
