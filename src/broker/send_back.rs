//! `CONSUMER_SEND_MSG_BACK`: a message that a consumer could not process comes back, to be tried
//! again later, or to be put aside after too many times.
//!
//! `SendMessageProcessor.asyncConsumerSendMsgBack` (4.9.8).

use std::sync::Arc;

use rand::Rng as _;
use rmq_store::PhyOffset;
use rmq_wire::body::perm;
use rmq_wire::code::response;
use rmq_wire::header::ConsumerSendMsgBack;
use rmq_wire::record::Record;
use rmq_wire::{msg_id, name, properties};

use super::message::{Message, Properties};
use super::refusal::{Handled, Refusal};
use super::{Broker, group, topic};
use crate::meta::Topic;
use crate::remoting::Request;

/// The level of the first retry when the consumer leaves it to the broker: 10 s by default.
const FIRST_LEVEL: i32 = 3;

pub(super) async fn handle(broker: &Arc<Broker>, request: &Request) -> Handled {
    broker.check_accepts_sends()?;
    let header: ConsumerSendMsgBack = request.command.header()?;
    let config = group::find(broker, &header.group).await?;
    if i32::from(broker.config.broker_permission) & perm::WRITE == 0 {
        return Err(super::send::forbidden(broker));
    }
    let reply = request.command.reply(response::SUCCESS);
    if config.retry_queues <= 0 {
        return Ok(reply.into());
    }
    let retry_topic = name::retry_topic(&header.group);
    let retries = Topic {
        sys_flag: if header.unit_mode { 2 } else { 0 },
        ..Topic::with_queues(config.retry_queues, topic::READ_WRITE)
    };
    let retries = topic::ensure(broker, &retry_topic, retries).await?;
    if !retries.is_writable() {
        let remark = format!("the topic[{retry_topic}] sending message is forbidden");
        return Err(Refusal::new(response::NO_PERMISSION, remark));
    }

    let lost =
        || Refusal::system_error(format!("look message by offset failed, {}", header.offset));
    let bytes = PhyOffset::from_i64(header.offset)
        .and_then(|offset| super::query::record_at(broker, offset))
        .ok_or_else(lost)?;
    let origin = Record::decode(&bytes).map_err(|_| lost())?;
    let text = origin.properties();
    let mut properties = Properties::parse(&text);
    if properties.get(properties::RETRY_TOPIC).is_none() {
        properties.set(properties::RETRY_TOPIC, origin.topic);
    }
    properties.set(properties::WAIT_STORE_MSG_OK, "false");
    if properties.get(properties::ORIGIN_MESSAGE_ID).is_none() {
        let id = msg_id::encode(origin.store_host, origin.physical_offset);
        properties.set(properties::ORIGIN_MESSAGE_ID, id);
    }

    let limit = group::max_reconsume_times(&config, &request.command, header.max_reconsume_times);
    let (topic, queue_id, level) = if origin.reconsume_times >= limit || header.delay_level < 0 {
        let dead = name::dlq_topic(&header.group);
        topic::ensure(broker, &dead, topic::dead_letters()).await?;
        (dead, 0, 0)
    } else {
        let level = match header.delay_level {
            0 => FIRST_LEVEL.saturating_add(origin.reconsume_times),
            level => level,
        };
        (
            retry_topic,
            // Fewer than the group has by now, if the topic was made before.
            rand::rng().random_range(0..config.retry_queues.min(retries.read_queues).max(1)),
            level,
        )
    };
    properties.set(properties::DELAY_TIME_LEVEL, level.to_string());

    let message = Message {
        reconsume_times: origin.reconsume_times.saturating_add(1),
        properties,
        ..Message::again(&origin, topic, queue_id)
    };
    let record = message.into_record(broker.bounds())?;
    broker.store(vec![record]).await?;
    broker.stats.sent_back(&header.group, origin.topic);
    Ok(reply.into())
}
