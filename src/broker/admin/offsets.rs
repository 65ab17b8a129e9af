//! Stored positions: `GET_ALL_CONSUMER_OFFSET`, `GET_ALL_DELAY_OFFSET`, `QUERY_CORRECTION_OFFSET`,
//! `CLONE_GROUP_OFFSET`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rmq_wire::body::QueryCorrectionOffsetBody;
use rmq_wire::code::response;
use rmq_wire::header::{CloneGroupOffset, QueryCorrectionOffset};
use rmq_wire::{json, name};

use super::answer;
use super::consume_stats::may_consume;
use crate::broker::Broker;
use crate::broker::refusal::Handled;
use crate::meta::Change;
use crate::remoting::Request;

/// `GET_ALL_CONSUMER_OFFSET`: what `consumerOffset.json` holds.
pub(in crate::broker) async fn all_offsets(broker: &Arc<Broker>, request: &Request) -> Handled {
    let table = broker.meta.read().offset_table();
    let body = json::to_java_string(&table);
    let reply = request.command.reply(response::SUCCESS);
    Ok(reply.with_body(body.into_bytes().into()).into())
}

/// `GET_ALL_DELAY_OFFSET`: what `delayOffset.json` holds.
pub(in crate::broker) async fn all_delay_offsets(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let table = broker.meta.read().delay_table();
    let body = json::to_java_string(&table);
    let reply = request.command.reply(response::SUCCESS);
    Ok(reply.with_body(body.into_bytes().into()).into())
}

/// `QUERY_CORRECTION_OFFSET`: for each queue the lowest position of all groups but some, or the
/// largest number where the group that is compared has not come that far.
///
/// Java 4.9.8 means this but looks the compared group up under a wrong key, and deletes the stored
/// positions of the groups that are to be left out.
pub(in crate::broker) async fn correction_offset(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let header: QueryCorrectionOffset = request.command.header()?;
    let left_out: Vec<&str> = header
        .filter_groups
        .iter()
        .flat_map(|groups| groups.split(','))
        .map(str::trim)
        .collect();
    let mut lowest: BTreeMap<i32, i64> = BTreeMap::new();
    let state = broker.meta.read();
    for (group, topics) in &state.offsets {
        if left_out.contains(&group.as_str()) {
            continue;
        }
        for (&queue_id, &offset) in topics.get(&header.topic).into_iter().flatten() {
            if offset < broker.queues.min_offset(&header.topic, queue_id).as_i64() {
                continue;
            }
            let known = lowest.entry(queue_id).or_insert(offset);
            *known = offset.min(*known);
        }
    }
    for (&queue_id, offset) in &mut lowest {
        let compared = state.offset(&header.compare_group, &header.topic, queue_id);
        if compared.is_some_and(|compared| *offset > compared) {
            *offset = i64::MAX;
        }
    }
    drop(state);
    let body = QueryCorrectionOffsetBody {
        correction_offsets: lowest,
    };
    answer(request, &body)
}

/// `CLONE_GROUP_OFFSET`: gives a group the positions of another, on one topic or on all.
pub(in crate::broker) async fn clone_offsets(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: CloneGroupOffset = request.command.header()?;
    name::check_group(&header.dest_group)?;
    let wanted = header.topic.as_deref().map(str::trim);
    let wanted = wanted.filter(|topic| !topic.is_empty());
    let topics: Vec<String> = {
        let state = broker.meta.read();
        state
            .topics_of_group(&header.src_group)
            .filter(|topic| wanted.is_none_or(|wanted| wanted == *topic))
            .filter(|topic| state.topics.contains_key(*topic))
            .map(str::to_owned)
            .collect()
    };
    // What either group committed before is then below what is cloned, not above it.
    broker.offsets.all_settled().await;
    for topic in topics {
        if header.offline || may_consume(broker, &header.src_group, &topic) {
            let change = Change::CloneOffsets {
                from: header.src_group.clone(),
                to: header.dest_group.clone(),
                topic: Some(topic),
            };
            broker.propose(change).await?;
        }
    }
    let (from, to) = (&header.src_group, &header.dest_group);
    tracing::info!(from, to, topic = wanted, client = %request.peer, "offsets cloned by a tool");
    Ok(request.command.reply(response::SUCCESS).into())
}
