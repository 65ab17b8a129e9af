//! Where consumer groups stand: `GET_CONSUME_STATS`, `GET_BROKER_CONSUME_STATS`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rmq_store::QueueOffset;
use rmq_wire::body::{ConsumeStats, ConsumeStatsList, OffsetWrapper};
use rmq_wire::header::{GetBrokerConsumeStats, GetConsumeStats};
use tokio::time::Instant;

use super::{answer, blocking, queue_of};
use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::Request;

/// `GET_CONSUME_STATS`: one group, on one topic, some, or all that it has positions in.
pub(in crate::broker) async fn consume_stats(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: GetConsumeStats = request.command.header()?;
    let body = blocking(broker, move |broker| {
        let mut body = ConsumeStats::default();
        for topic in topics(broker, &header) {
            body.consume_tps += consume_tps(broker, &header.consumer_group, &topic);
            body.offset_table
                .extend(stand(broker, &header.consumer_group, &topic)?);
        }
        Ok(body)
    })
    .await?;
    answer(request, &body)
}

/// `GET_BROKER_CONSUME_STATS`: all groups.
pub(in crate::broker) async fn broker_consume_stats(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let header: GetBrokerConsumeStats = request.command.header()?;
    let body = blocking(broker, move |broker| {
        let mut body = ConsumeStatsList {
            broker_addr: Some(broker.config.broker_addr()),
            total_inflight_diff: Some(0),
            ..ConsumeStatsList::default()
        };
        let groups: Vec<String> = broker.meta.read().groups.keys().cloned().collect();
        for group in groups {
            let stats = of_group(broker, &group, header.is_order)?;
            let wrappers = || stats.iter().flat_map(|topic| topic.offset_table.values());
            // A consumer may have committed any number.
            body.total_diff = wrappers()
                .map(diff)
                .fold(body.total_diff, i64::saturating_add);
            let before = body.total_inflight_diff.unwrap_or_default();
            let in_flight = wrappers().map(in_flight).fold(before, i64::saturating_add);
            body.total_inflight_diff = Some(in_flight);
            body.consume_stats_list
                .push(BTreeMap::from([(group, stats)]));
        }
        Ok(body)
    })
    .await?;
    answer(request, &body)
}

/// One group, topic by topic; of ordered topics only, if asked.
fn of_group(
    broker: &Broker,
    group: &str,
    ordered_only: bool,
) -> Result<Vec<ConsumeStats>, Refusal> {
    let topics: Vec<String> = {
        let state = broker.meta.read();
        let wanted = |topic: &&str| {
            let config = state.topics.get(*topic);
            config.is_some_and(|config| config.order || !ordered_only)
        };
        let topics = state.topics_of_group(group).filter(wanted);
        topics.map(str::to_owned).collect()
    };
    topics
        .iter()
        .filter(|topic| may_consume(broker, group, topic))
        .map(|topic| {
            Ok(ConsumeStats {
                consume_tps: consume_tps(broker, group, topic),
                offset_table: stand(broker, group, topic)?,
            })
        })
        .collect()
}

/// The topics that are asked for.
fn topics(broker: &Broker, header: &GetConsumeStats) -> BTreeSet<String> {
    let present = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    if let Some(list) = present(&header.topic_list) {
        return list
            .split(';')
            .map(str::trim)
            .filter(|topic| !topic.is_empty())
            .map(str::to_owned)
            .collect();
    }
    let group = &header.consumer_group;
    let mut topics: BTreeSet<String> = match present(&header.topic) {
        Some(topic) => BTreeSet::from([topic]),
        None => {
            let state = broker.meta.read();
            state.topics_of_group(group).map(str::to_owned).collect()
        }
    };
    topics.retain(|topic| may_consume(broker, group, topic));
    topics
}

/// Whether the group may be consuming the topic: a group that is online says what it wants, and
/// what it once consumed besides is of no interest.
pub(super) fn may_consume(broker: &Broker, group: &str, topic: &str) -> bool {
    let clients = broker.clients.read();
    clients.consumers.get(group).is_none_or(|group| {
        group.subscriptions.is_empty() || group.subscriptions.contains_key(topic)
    })
}

/// Messages per second in the last minute.
fn consume_tps(broker: &Broker, group: &str, topic: &str) -> f64 {
    let item = broker.stats.items.of_group(topic, group);
    item.map_or(0.0, |item| item.recent(Instant::now())[0].message_rate())
}

/// Where the group stands in each queue that it may read; nothing for an unknown topic.
fn stand(
    broker: &Broker,
    group: &str,
    topic: &str,
) -> Result<BTreeMap<rmq_wire::body::MessageQueue, OffsetWrapper>, Refusal> {
    let offsets: Vec<(i32, Option<i64>)> = {
        let state = broker.meta.read();
        let queues = state.topics.get(topic).map_or(0, |topic| topic.read_queues);
        let offset = |queue_id| (queue_id, state.offset(group, topic, queue_id));
        (0..queues).map(offset).collect()
    };
    let pulls = broker.stats.items.of_group(topic, group);
    let mut table = BTreeMap::new();
    for (queue_id, offset) in offsets {
        let consumer_offset = offset.unwrap_or(0);
        let pulled = pulls.as_ref().and_then(|item| item.pulled_to(queue_id));
        let wrapper = OffsetWrapper {
            broker_offset: broker.queues.max_offset(topic, queue_id).as_i64(),
            consumer_offset,
            last_timestamp: last_consumed(broker, topic, queue_id, consumer_offset)?,
            pull_offset: Some(pulled.unwrap_or(0).max(consumer_offset)),
        };
        table.insert(queue_of(broker, topic, queue_id), wrapper);
    }
    Ok(table)
}

/// When the message before the group's position was stored; 0 if there is none.
fn last_consumed(broker: &Broker, topic: &str, queue_id: i32, offset: i64) -> Result<i64, Refusal> {
    let Some(last) = QueueOffset::from_i64(offset.saturating_sub(1)) else {
        return Ok(0);
    };
    let time = broker.queues.store_time_at(topic, queue_id, last)?;
    Ok(time.unwrap_or(0))
}

fn diff(wrapper: &OffsetWrapper) -> i64 {
    wrapper.broker_offset - wrapper.consumer_offset
}

fn in_flight(wrapper: &OffsetWrapper) -> i64 {
    wrapper.pull_offset.unwrap_or(0) - wrapper.consumer_offset
}
