//! Questions that only a client can answer, passed on over its connection:
//! `GET_CONSUMER_RUNNING_INFO`, `CONSUME_MESSAGE_DIRECTLY`, `INVOKE_BROKER_TO_GET_CONSUMER_STATUS`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rmq_store::PhyOffset;
use rmq_wire::body::{GetConsumerStatusBody, MessageQueue};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{ConsumeMessageDirectly, GetConsumerRunningInfo, GetConsumerStatus};
use rmq_wire::msg_id;

use super::answer;
use super::reset::V3_0_7;
use crate::broker::Broker;
use crate::broker::clients::Member;
use crate::broker::query;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::{CallError, Request};

/// How long a client has for its answer.
pub(in crate::broker) const RELAY_LIMIT: Duration = Duration::from_secs(10);
/// How long each of a group's clients has, where all of them are asked.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Ordinal of `MQVersion.V3_1_8_SNAPSHOT`, from which on clients can be asked.
const V3_1_8: i32 = 62;

/// `GET_CONSUMER_RUNNING_INFO`.
pub(in crate::broker) async fn running_info(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: GetConsumerRunningInfo = request.command.header()?;
    let member = find(broker, &header.consumer_group, &header.client_id)?;
    let question = passed_on(request);
    relay(&member, &header.consumer_group, question, request).await
}

/// `CONSUME_MESSAGE_DIRECTLY`: has a client consume one message now.
pub(in crate::broker) async fn consume_directly(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let header: ConsumeMessageDirectly = request.command.header()?;
    let client_id = header.client_id.as_deref().unwrap_or_default();
    let member = find(broker, &header.consumer_group, client_id)?;
    let id = header.msg_id.as_deref().unwrap_or_default();
    let record = msg_id::decode(id)
        .ok()
        .and_then(|(_, offset)| PhyOffset::from_i64(offset))
        .and_then(|offset| query::record_at(broker, offset))
        .ok_or_else(|| {
            let remark = format!("can not find message by the id, {id}");
            Refusal::system_error(remark)
        })?;
    let mut question = passed_on(request).with_body(record);
    question
        .ext
        .insert("brokerName", &broker.config.broker_name);
    relay(&member, &header.consumer_group, question, request).await
}

/// `INVOKE_BROKER_TO_GET_CONSUMER_STATUS`: where the members of a group are.
pub(in crate::broker) async fn consumer_status(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: GetConsumerStatus = request.command.header()?;
    let mut members = broker.clients.members(&header.group);
    if members.is_empty() {
        let remark = format!(
            "No Any Consumer online in the consumer group: [{}]",
            header.group
        );
        return Err(Refusal::system_error(remark));
    }
    if let Some(old) = members.iter().find(|member| member.version < V3_0_7) {
        let version = old.version;
        let remark = format!("the client does not support this feature. version={version}");
        return Err(Refusal::system_error(remark));
    }
    let wanted = header.client_addr.as_deref().map(str::trim);
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        members.retain(|member| member.client_id == wanted);
    }
    let question = Command::request(request::GET_CONSUMER_STATUS_FROM_CLIENT);
    let question = question.with_header(&GetConsumerStatus {
        client_addr: None,
        ..header
    });
    let asked = members.iter().map(|member| ask_status(member, &question));
    let answers = join_all(asked).await;
    let body = GetConsumerStatusBody {
        consumer_table: answers.into_iter().flatten().collect(),
        ..GetConsumerStatusBody::default()
    };
    answer(request, &body)
}

async fn ask_status(
    member: &Member,
    question: &Command,
) -> Option<(String, BTreeMap<MessageQueue, i64>)> {
    let client = &member.client_id;
    let answer = match member.conn.call(question.clone(), STATUS_LIMIT).await {
        Ok(answer) if answer.code == response::SUCCESS => answer,
        Ok(answer) => {
            tracing::warn!(
                client,
                code = answer.code,
                "a consumer did not tell its status"
            );
            return None;
        }
        Err(error) => {
            tracing::warn!(client, %error, "a consumer did not tell its status");
            return None;
        }
    };
    match answer.json::<GetConsumerStatusBody>() {
        Ok(body) => Some((client.clone(), body.message_queue_table)),
        Err(error) => {
            tracing::warn!(client, %error, "a consumer's status is unreadable");
            None
        }
    }
}

/// The request as the client is to get it: fields unknown to us go with it.
fn passed_on(request: &Request) -> Command {
    Command {
        ext: request.command.ext.clone(),
        ..Command::request(request.command.code)
    }
    .with_body(request.command.body.clone())
}

fn find(broker: &Broker, group: &str, client_id: &str) -> Result<Member, Refusal> {
    let mut members = broker.clients.members(group);
    members.retain(|member| member.client_id == client_id);
    // A client that has come back may have left an old connection behind.
    let member = members.into_iter().max_by_key(|member| member.seen);
    let member = member.ok_or_else(|| {
        let remark = format!("The Consumer <{group}> <{client_id}> not online");
        Refusal::system_error(remark)
    })?;
    if member.version < V3_1_8 {
        return Err(Refusal::system_error(format!(
            "The Consumer <{client_id}> Version <{}> too low to finish, please upgrade it to \
             V3_1_8_SNAPSHOT",
            member.version
        )));
    }
    Ok(member)
}

/// Asks the client and gives back what it says, whatever that is.
async fn relay(member: &Member, group: &str, question: Command, request: &Request) -> Handled {
    let client = &member.client_id;
    match member.conn.call(question, RELAY_LIMIT).await {
        Ok(answer) => {
            let reply = Command {
                remark: answer.remark,
                ext: answer.ext,
                ..request.command.reply(answer.code)
            };
            Ok(reply.with_body(answer.body).into())
        }
        Err(error @ CallError::Timeout { .. }) => {
            let remark = format!("consumer <{group}> <{client}> Timeout: {error}");
            Err(Refusal::new(response::CONSUME_MSG_TIMEOUT, remark))
        }
        Err(error) => {
            let remark = format!("invoke consumer <{group}> <{client}> Exception: {error}");
            Err(Refusal::system_error(remark))
        }
    }
}
