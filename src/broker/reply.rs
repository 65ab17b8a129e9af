//! Replies to requests among clients: `SEND_REPLY_MESSAGE` and its short form.
//!
//! A request is an ordinary message that names its producer's client id. Its consumer sends the reply
//! here, and here it is passed on over the connection that the producer keeps to the leader; who has
//! just come to lead knows it from the next heartbeat on. `ReplyMessageProcessor` (4.9.8).

use std::sync::Arc;

use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{ReplyMessage, SendMessage, SendMessageResponse};
use rmq_wire::properties;

use super::Broker;
use super::admin::RELAY_LIMIT;
use super::message::Properties;
use super::refusal::{Handled, Refusal};
use super::send::{self, Accepted};
use crate::remoting::Request;

/// Passes the reply on, and stores it too (`storeReplyMessageEnable`).
pub(super) async fn handle(broker: &Arc<Broker>, request: &Request) -> Handled {
    send::answered(broker, request, reply(broker, request).await)
}

async fn reply(broker: &Arc<Broker>, request: &Request) -> Result<SendMessageResponse, Refusal> {
    let accepted = send::accept(broker, request).await?;
    let pushed = push(broker, request, &accepted.header).await;
    let stored = store(broker, request, &accepted).await;
    // What the producer got is what the answer is about.
    pushed?;
    Ok(stored.unwrap_or_else(|| SendMessageResponse {
        // Clients read numbers.
        msg_id: "0".to_owned(),
        queue_id: accepted.queue_id,
        ..SendMessageResponse::default()
    }))
}

async fn store(
    broker: &Arc<Broker>,
    request: &Request,
    accepted: &Accepted<'_>,
) -> Option<SendMessageResponse> {
    if !broker.config.store_reply_message_enable {
        return None;
    }
    match send::store_one(broker, request, accepted).await {
        Ok(stored) => Some(stored),
        Err(refusal) => {
            let topic = accepted.header.topic;
            tracing::warn!(topic, ?refusal, "a reply was not stored");
            None
        }
    }
}

/// Gives the reply to the producer that waits for it.
async fn push(broker: &Broker, request: &Request, header: &SendMessage<'_>) -> Result<(), Refusal> {
    let mut message = Properties::parse(header.properties);
    let Some(client) = message.get(properties::REPLY_TO_CLIENT).map(str::to_owned) else {
        let remark = "reply message properties[REPLY_TO_CLIENT] is null";
        return Err(Refusal::system_error(remark));
    };
    let conn = broker.clients.producer(&client).ok_or_else(|| {
        let remark = format!("push reply message fail, channel of <{client}> not found.");
        Refusal::system_error(remark)
    })?;
    let now = broker.now_ms();
    message.set(properties::PUSH_REPLY_TIME, now.to_string());
    let pushed = ReplyMessage {
        producer_group: header.producer_group.to_owned(),
        topic: header.topic.to_owned(),
        default_topic: header.default_topic.to_owned(),
        default_topic_queue_nums: header.default_topic_queue_nums,
        queue_id: header.queue_id,
        sys_flag: header.sys_flag,
        born_timestamp: header.born_timestamp,
        flag: header.flag,
        properties: Some(message.format()),
        reconsume_times: Some(header.reconsume_times),
        unit_mode: header.unit_mode,
        born_host: request.peer.to_string(),
        store_host: broker.store_host.to_string(),
        store_timestamp: now,
    };
    let command = Command::request(request::PUSH_REPLY_MESSAGE_TO_CLIENT)
        .with_header(&pushed)
        .with_body(request.command.body.clone());
    let why = match conn.call(command, RELAY_LIMIT).await {
        Ok(answer) if answer.code == response::SUCCESS => return Ok(()),
        Ok(answer) => answer.remark.unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(client, why, "a reply was not taken");
    Err(Refusal::system_error(format!(
        "push reply message to {client} fail."
    )))
}
