//! `INVOKE_BROKER_TO_RESET_OFFSET`: moves a group to another position on a topic.
//!
//! `Broker2Client.resetOffset` (4.9.8) leaves it to the group's members to commit the new position;
//! here it is also committed at once, so that it holds for queues that nobody has at the moment.
//! Members hold and commit positions of their own, so they must be told in any case.

use std::collections::BTreeMap;
use std::sync::Arc;

use rmq_store::{Boundary, QueueOffset};
use rmq_wire::body::{MessageQueue, MessageQueueForC, ResetOffsetBody, ResetOffsetBodyForC};
use rmq_wire::code::{request, response};
use rmq_wire::frame::{Command, Language};
use rmq_wire::header::ResetOffset;

use super::{answer, blocking, no_topic, queue_of};
use crate::broker::Broker;
use crate::broker::clients::Member;
use crate::broker::refusal::{Handled, Refusal};
use crate::meta::OffsetCommit;
use crate::remoting::Request;

/// Ordinal of `MQVersion.V3_0_7_SNAPSHOT`, from which on clients can be asked for this.
pub(super) const V3_0_7: i32 = 28;

pub(in crate::broker) async fn reset_offset(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: ResetOffset = request.command.header()?;
    let ResetOffset { topic, group, .. } = &header;
    tracing::info!(topic, group, timestamp = header.timestamp, queue_id = header.queue_id,
        offset = header.offset, force = header.is_force, client = %request.peer,
        "reset of a group by a tool");
    let members = broker.clients.members(group);
    // Tools of 4.9 then move the group themselves, and tell of it; those of 5.x expect that the
    // broker does it.
    if members.is_empty() && header.queue_id.is_none() {
        let remark = format!(
            "Consumer not online, so can not reset offset, Group: {group} Topic: {topic} \
             Timestamp: {}",
            header.timestamp
        );
        return Err(Refusal::new(response::CONSUMER_NOT_ONLINE, remark));
    }
    if let Some(old) = members.iter().find(|member| member.version < V3_0_7) {
        return Err(too_old(old));
    }
    // The group's position is what it has committed before.
    broker.offsets.all_settled().await;
    let offset_table = {
        let header = header.clone();
        blocking(broker, move |broker| targets(broker, &header)).await?
    };
    commit(broker, group, &offset_table).await?;
    broker.stats.items.forget_pulls(topic, group);
    tell(&members, request, &header, &offset_table);
    answer(request, &ResetOffsetBody { offset_table })
}

fn too_old(member: &Member) -> Refusal {
    let version = member.version;
    let remark = format!("the client does not support this feature. version={version}");
    Refusal::system_error(remark)
}

/// The position that the group is to have in each queue.
fn targets(broker: &Broker, header: &ResetOffset) -> Result<BTreeMap<MessageQueue, i64>, Refusal> {
    let ResetOffset { topic, group, .. } = header;
    let queues = {
        let state = broker.meta.read();
        if !state.groups.contains_key(group) {
            let remark = format!("subscription group not exist, {group}");
            return Err(Refusal::new(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark));
        }
        let config = state.topics.get(topic).ok_or_else(|| no_topic(topic))?;
        match header.queue_id.filter(|queue_id| *queue_id >= 0) {
            Some(one) if one < config.read_queues => one..one + 1,
            Some(one) => {
                let remark = format!("topic {topic} has no queue {one} to read");
                return Err(Refusal::system_error(remark));
            }
            None => 0..config.read_queues,
        }
    };
    let mut table = BTreeMap::new();
    for queue_id in queues {
        let target = target(broker, header, queue_id)?;
        let stored = broker.meta.read().offset(group, topic, queue_id);
        let target = match stored {
            Some(stored) if !header.is_force => target.min(stored),
            _ => target,
        };
        table.insert(queue_of(broker, topic, queue_id), target);
    }
    Ok(table)
}

fn target(broker: &Broker, header: &ResetOffset, queue_id: i32) -> Result<i64, Refusal> {
    let topic = &header.topic;
    let min = broker.queues.min_offset(topic, queue_id);
    let max = broker.queues.max_offset(topic, queue_id);
    let is_one_queue = header.queue_id.is_some_and(|queue_id| queue_id >= 0);
    if let Some(offset) = header.offset.filter(|offset| is_one_queue && *offset != -1) {
        let wanted = QueueOffset::from_i64(offset);
        return match wanted.filter(|wanted| (min..=max).contains(wanted)) {
            Some(_) => Ok(offset),
            None => Err(Refusal::system_error(format!(
                "Target offset {offset} not in consume queue range [{min}-{max}]"
            ))),
        };
    }
    if header.timestamp == -1 {
        return Ok(max.as_i64());
    }
    let found = broker
        .queues
        .offset_by_time(topic, queue_id, header.timestamp, Boundary::Lower)?;
    Ok(found.as_i64())
}

async fn commit(
    broker: &Arc<Broker>,
    group: &str,
    table: &BTreeMap<MessageQueue, i64>,
) -> Result<(), Refusal> {
    let mut pending = Vec::with_capacity(table.len());
    for (queue, &offset) in table {
        let commit = OffsetCommit {
            group: group.to_owned(),
            topic: queue.topic.clone(),
            queue_id: queue.queue_id,
            offset,
        };
        pending.push(broker.offsets.commit(commit)?);
    }
    broker.offsets.hurry();
    for pending in pending {
        pending.applied().await?;
    }
    Ok(())
}

/// Has the members move. They may be in any language, but it is the tool's that decides the form.
fn tell(
    members: &[Member],
    asked: &Request,
    header: &ResetOffset,
    table: &BTreeMap<MessageQueue, i64>,
) {
    let header = ResetOffset {
        queue_id: None,
        offset: None,
        ..header.clone()
    };
    let order = Command::request(request::RESET_CONSUMER_CLIENT_OFFSET).with_header(&header);
    let order = if asked.command.language == Language::CPP {
        let offset_table = table.iter().map(|(queue, &offset)| MessageQueueForC {
            broker_name: queue.broker_name.clone(),
            offset,
            queue_id: queue.queue_id,
            topic: queue.topic.clone(),
        });
        order.with_json(&ResetOffsetBodyForC {
            offset_table: offset_table.collect(),
        })
    } else {
        order.with_json(&ResetOffsetBody {
            offset_table: table.clone(),
        })
    };
    for member in members {
        if let Err(error) = member.conn.oneway(order.clone()) {
            let (group, client) = (&header.group, &member.client_id);
            tracing::warn!(group, client, %error, "a consumer was not told of its reset");
        }
    }
}
