//! Sends: `SEND_MESSAGE`, its short form, and `SEND_BATCH_MESSAGE`. A synchronous, an asynchronous
//! and a oneway send differ in the client only.
//!
//! Checks and their words are those of `SendMessageProcessor` and `AbstractSendMessageProcessor`
//! (4.9.8).

use std::sync::Arc;

use rand::Rng as _;
use rmq_store::{PendingRecord, Position};
use rmq_wire::body::{perm, topic_sys_flag};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{SendMessage, SendMessageResponse};
use rmq_wire::record::{self, split_batch};
use rmq_wire::{msg_id, name, properties};

use super::Broker;
use super::message::{self, Message, Properties};
use super::refusal::{Handled, Refusal};
use crate::meta::{FilterType, Topic};
use crate::raft::MAX_ENTRY_BYTES;
use crate::remoting::Request;

/// Stores one message or a batch.
pub(super) async fn handle(broker: &Arc<Broker>, request: &Request) -> Handled {
    answered(broker, request, send(broker, request).await)
}

/// The answer to a send.
pub(super) fn answered(
    broker: &Broker,
    request: &Request,
    sent: Result<SendMessageResponse, Refusal>,
) -> Handled {
    let mut reply = match sent {
        Ok(sent) => request.command.reply(response::SUCCESS).with_header(&sent),
        Err(Refusal::Code(code, remark)) => request.command.reply_error(code, remark),
        Err(unanswered) => return Err(unanswered),
    };
    // Clients read both from every answer to a send.
    reply
        .ext
        .insert(properties::MSG_REGION, &broker.config.region_id);
    reply
        .ext
        .insert(properties::TRACE_SWITCH, broker.config.trace_on);
    Ok(reply.into())
}

async fn send(broker: &Arc<Broker>, request: &Request) -> Result<SendMessageResponse, Refusal> {
    let accepted = accept(broker, request).await?;
    let is_batch = accepted.header.batch || request.command.code == request::SEND_BATCH_MESSAGE;
    if !is_batch {
        return store_one(broker, request, &accepted).await;
    }
    let Accepted {
        header,
        topic,
        queue_id,
    } = accepted;
    let records = batch_records(broker, request, &header, &topic, queue_id)?;
    let positions = broker.store(records).await?;
    Ok(answer(broker, queue_id, &positions))
}

/// A send that passed what can be checked before its message is looked at.
pub(super) struct Accepted<'a> {
    pub(super) header: SendMessage<'a>,
    topic: Topic,
    pub(super) queue_id: i32,
}

/// Checks the send and chooses its queue, if the client leaves that to the broker.
pub(super) async fn accept<'a>(
    broker: &Arc<Broker>,
    request: &'a Request,
) -> Result<Accepted<'a>, Refusal> {
    broker.check_accepts_sends()?;
    let header = SendMessage::decode(request.command.code, &request.command.ext)?;
    let topic = check(broker, request, &header).await?;
    let queues = topic.write_queues;
    let queue_id = match header.queue_id {
        ..0 => random_queue(queues)?,
        id if id >= queues && shows_more(broker, &topic) => id % queues,
        id => id,
    };
    Ok(Accepted {
        header,
        topic,
        queue_id,
    })
}

/// Stores a single message.
pub(super) async fn store_one(
    broker: &Arc<Broker>,
    request: &Request,
    accepted: &Accepted<'_>,
) -> Result<SendMessageResponse, Refusal> {
    let Accepted {
        header,
        topic,
        queue_id,
    } = accepted;
    let record = record(broker, request, header, topic, *queue_id).await?;
    let positions = broker.store(vec![record]).await?;
    Ok(answer(broker, *queue_id, &positions))
}

fn answer(broker: &Broker, queue_id: i32, positions: &[Position]) -> SendMessageResponse {
    let id = |at: &Position| msg_id::encode(broker.store_host, at.phy.as_i64());
    let mut ids = id(&positions[0]);
    for position in &positions[1..] {
        ids.push(',');
        ids.push_str(&id(position));
    }
    SendMessageResponse {
        msg_id: ids,
        queue_id,
        queue_offset: positions[0].queue.as_i64(),
        ..SendMessageResponse::default()
    }
}

/// Checks what can be checked before the message is looked at, and finds or creates its topic.
async fn check(
    broker: &Arc<Broker>,
    request: &Request,
    header: &SendMessage<'_>,
) -> Result<Topic, Refusal> {
    name::check_topic(header.topic)?;
    if name::is_not_allowed_send_topic(header.topic) {
        let remark = format!("Sending message to topic[{}] is forbidden.", header.topic);
        return Err(Refusal::new(response::NO_PERMISSION, remark));
    }
    let known = broker.meta.read().topics.get(header.topic).cloned();
    let topic = match known {
        Some(topic) => topic,
        None => create_topic(broker, request, header).await?,
    };
    // Of other topics the route tells clients that they may not write.
    if topic.order && i32::from(broker.config.broker_permission) & perm::WRITE == 0 {
        return Err(forbidden(broker));
    }
    let queues = topic.write_queues.max(topic.read_queues);
    if header.queue_id >= queues && !shows_more(broker, &topic) {
        return Err(Refusal::system_error(format!(
            "request queueId[{}] is illegal, topic[{}] has {} write and {} read queues, \
             Producer: {}",
            header.queue_id, header.topic, topic.write_queues, topic.read_queues, request.peer
        )));
    }
    Ok(topic)
}

/// Whether routes may show the queues of a topic several times over, see [`group_shown_queues`]. How often is for the
/// leader to say that they are from.
///
/// [`group_shown_queues`]: rmq_wire::header::group_shown_queues
fn shows_more(broker: &Broker, topic: &Topic) -> bool {
    topic.write_queues > 0 && !broker.config.alias_ports().is_empty()
}

pub(super) fn forbidden(broker: &Broker) -> Refusal {
    let remark = format!(
        "the broker[{}] sending message is forbidden",
        broker.config.broker_ip1
    );
    Refusal::new(response::NO_PERMISSION, remark)
}

/// Creates the topic of a send after the model that the client names
/// (`TopicConfigManager.createTopicInSendMessageMethod`).
async fn create_topic(
    broker: &Arc<Broker>,
    request: &Request,
    header: &SendMessage<'_>,
) -> Result<Topic, Refusal> {
    let is_retry = name::is_retry_topic(header.topic);
    let sys_flag = match (header.unit_mode, is_retry) {
        (false, _) => 0,
        (true, true) => topic_sys_flag::UNIT_SUB,
        (true, false) => topic_sys_flag::UNIT,
    };
    let model = broker.meta.read().topics.get(header.default_topic).cloned();
    let model = model.filter(|model| {
        let switched_off = header.default_topic == name::AUTO_CREATE_TOPIC
            && !broker.config.auto_create_topic_enable;
        model.is_inherited() && !switched_off
    });
    let new = match model {
        Some(model) => {
            let queues = header
                .default_topic_queue_nums
                .min(model.write_queues)
                .max(0);
            Topic {
                filter_type: model.filter_type,
                sys_flag,
                ..Topic::with_queues(queues, model.perm & !perm::INHERIT)
            }
        }
        None if is_retry => Topic {
            sys_flag,
            ..Topic::with_queues(1, super::topic::READ_WRITE)
        },
        None => {
            let remark = format!("topic[{}] not exist, apply first please!", header.topic);
            return Err(Refusal::new(response::TOPIC_NOT_EXIST, remark));
        }
    };
    tracing::info!(topic = header.topic, producer = %request.peer, queues = new.write_queues,
        "topic created by a send");
    super::topic::ensure(broker, header.topic, new).await
}

fn random_queue(queues: i32) -> Result<i32, Refusal> {
    if queues <= 0 {
        return Err(Refusal::system_error("the topic has no queue to write to"));
    }
    Ok(rand::rng().random_range(0..queues))
}

async fn record(
    broker: &Arc<Broker>,
    request: &Request,
    header: &SendMessage<'_>,
    topic: &Topic,
    queue_id: i32,
) -> Result<PendingRecord, Refusal> {
    let mut message = new_message(broker, request, header, topic, queue_id);
    message.properties.refuse_timed()?;
    let is_transaction = message
        .properties
        .get(properties::TRANSACTION_PREPARED)
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if is_transaction {
        super::transaction::prepare(broker).await?;
        return message.into_half(broker.bounds());
    }
    if name::is_retry_topic(header.topic)
        && gives_up(broker, &request.command, header).await?
        && let Some(group) = name::group_of(header.topic)
    {
        let dead = name::dlq_topic(group);
        super::topic::ensure(broker, &dead, super::topic::dead_letters()).await?;
        message.topic = dead.into();
        message.queue_id = 0;
        message.properties.set(properties::DELAY_TIME_LEVEL, "0");
    }
    // Java spares these nine bytes too, but not for a delayed message, whose properties it makes
    // again after it has put the value back.
    let wait = message.properties.take(properties::WAIT_STORE_MSG_OK);
    if let Some(wait) = wait
        && message.is_delayed()?
    {
        message.properties.set(properties::WAIT_STORE_MSG_OK, wait);
    }
    message.into_record(broker.bounds())
}

/// Whether a message that a consumer sends to its retry topic itself has been tried often enough.
async fn gives_up(
    broker: &Arc<Broker>,
    command: &Command,
    header: &SendMessage<'_>,
) -> Result<bool, Refusal> {
    let group = name::group_of(header.topic).unwrap_or_default();
    let config = super::group::find(broker, group).await?;
    let limit = super::group::max_reconsume_times(&config, command, header.max_reconsume_times);
    Ok(header.reconsume_times >= limit)
}

fn batch_records(
    broker: &Broker,
    request: &Request,
    header: &SendMessage<'_>,
    topic: &Topic,
    queue_id: i32,
) -> Result<Vec<PendingRecord>, Refusal> {
    let bounds = broker.bounds();
    let shared = new_message(broker, request, header, topic, queue_id);
    let is_plain = header.sys_flag & record::sys_flag::TRANSACTION_MASK == 0;
    if !is_plain || shared.is_delayed()? || request.command.body.len() > bounds.body_bytes {
        return Err(message::illegal(bounds));
    }
    let of_batch = shared.properties.format();
    let shared = Message {
        properties: Properties::default(),
        ..shared
    };
    let mut records = Vec::new();
    let mut bytes = 0;
    for part in split_batch(&request.command.body) {
        let part =
            part.map_err(|error| Refusal::new(response::MESSAGE_ILLEGAL, error.to_string()))?;
        // The properties of the batch follow those of the message, as they came.
        let mut text = String::from_utf8_lossy(part.raw_properties).into_owned();
        if !text.is_empty() && !text.ends_with(properties::PROPERTY_SEPARATOR) {
            text.push(properties::PROPERTY_SEPARATOR);
        }
        if text.contains(message::TIMED) {
            Properties::parse(&text).refuse_timed()?;
        }
        text.push_str(&of_batch);
        let message = Message {
            flag: part.flag,
            body: part.body,
            ..shared.clone()
        };
        let record = message.encode(&text, bounds)?;
        // Each part has the batch's properties too, so that they may be far larger than the frame that they came in.
        bytes += record.buf.len();
        if bytes > MAX_ENTRY_BYTES {
            return Err(message::illegal(bounds));
        }
        records.push(record);
    }
    if records.is_empty() {
        return Err(message::illegal(bounds));
    }
    Ok(records)
}

fn new_message<'a>(
    broker: &'a Broker,
    request: &'a Request,
    header: &SendMessage<'a>,
    topic: &Topic,
    queue_id: i32,
) -> Message<'a> {
    let mut properties = Properties::parse(header.properties);
    properties.set(properties::CLUSTER, &*broker.config.broker_cluster_name);
    let multi_tags = match topic.filter_type {
        FilterType::SingleTag => 0,
        FilterType::MultiTag => record::sys_flag::MULTI_TAGS,
    };
    Message {
        topic: header.topic.into(),
        queue_id,
        flag: header.flag,
        sys_flag: header.sys_flag | multi_tags,
        born_timestamp: header.born_timestamp,
        born_host: request.peer,
        store_host: broker.store_host,
        reconsume_times: header.reconsume_times,
        prepared_transaction_offset: 0,
        body: &request.command.body,
        properties,
    }
}
