//! Where queues stand: `GET_TOPIC_STATS_INFO`, `QUERY_CONSUME_TIME_SPAN`.

use std::sync::Arc;

use rmq_store::QueueOffset;
use rmq_wire::body::{QueryConsumeTimeSpanBody, QueueTimeSpan, TopicOffset, TopicStatsTable};
use rmq_wire::header::{GroupTopic, TopicOnly};
use tokio::time::Instant;

use super::{answer, blocking, no_topic, queue_of};
use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::Request;

/// `GET_TOPIC_STATS_INFO`.
pub(in crate::broker) async fn topic_stats(broker: &Arc<Broker>, request: &Request) -> Handled {
    let TopicOnly { topic } = request.command.header()?;
    let body = blocking(broker, move |broker| {
        let mut body = TopicStatsTable::default();
        for queue_id in 0..queues(broker, &topic)? {
            let end = broker.queues.max_offset(&topic, queue_id);
            let offset = TopicOffset {
                last_update_timestamp: time_before(broker, &topic, queue_id, end)?.unwrap_or(0),
                max_offset: end.as_i64(),
                min_offset: broker.queues.min_offset(&topic, queue_id).as_i64(),
            };
            body.offset_table
                .insert(queue_of(broker, &topic, queue_id), offset);
        }
        let puts = broker.stats.items.topic_puts.get(&topic);
        let tps = puts.map_or(0.0, |item| item.recent(Instant::now())[0].message_rate());
        body.topic_put_tps = Some(tps);
        Ok(body)
    })
    .await?;
    answer(request, &body)
}

/// `QUERY_CONSUME_TIME_SPAN`: from when to when a topic's queues have messages, and up to when a
/// group has consumed them.
pub(in crate::broker) async fn consume_time_span(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let GroupTopic { group, topic } = request.command.header()?;
    let topic = topic.unwrap_or_default();
    let body = blocking(broker, move |broker| {
        let mut body = QueryConsumeTimeSpanBody::default();
        for queue_id in 0..queues(broker, &topic)? {
            let span = time_span(broker, &group, &topic, queue_id)?;
            body.consume_time_span_set.push(span);
        }
        Ok(body)
    })
    .await?;
    answer(request, &body)
}

fn time_span(
    broker: &Broker,
    group: &str,
    topic: &str,
    queue_id: i32,
) -> Result<QueueTimeSpan, Refusal> {
    let queues = &broker.queues;
    let first = queues.min_offset(topic, queue_id);
    let end = queues.max_offset(topic, queue_id);
    let earliest = queues.store_time_at(topic, queue_id, first)?.unwrap_or(-1);
    let position = broker.meta.read().offset(group, topic, queue_id);
    let position = position.and_then(QueueOffset::from_i64).unwrap_or_default();
    let consumed = time_before(broker, topic, queue_id, position)?;
    let next = if position < end {
        queues.store_time_at(topic, queue_id, position.max(first))?
    } else {
        None
    };
    Ok(QueueTimeSpan {
        consume_time_stamp: match position {
            QueueOffset(0) => earliest,
            _ => consumed.unwrap_or(-1),
        },
        delay_time: next.map_or(0, |next| broker.now_ms() - next),
        max_time_stamp: time_before(broker, topic, queue_id, end)?.unwrap_or(-1),
        message_queue: Some(queue_of(broker, topic, queue_id)),
        min_time_stamp: earliest,
    })
}

/// How many queues of the topic can be written or read.
fn queues(broker: &Broker, topic: &str) -> Result<i32, Refusal> {
    let state = broker.meta.read();
    let config = state.topics.get(topic).ok_or_else(|| no_topic(topic))?;
    Ok(config.write_queues.max(config.read_queues))
}

/// When the message before this offset was stored, if there is one.
fn time_before(
    broker: &Broker,
    topic: &str,
    queue_id: i32,
    end: QueueOffset,
) -> Result<Option<i64>, Refusal> {
    let Some(last) = end.0.checked_sub(1) else {
        return Ok(None);
    };
    Ok(broker
        .queues
        .store_time_at(topic, queue_id, QueueOffset(last))?)
}
