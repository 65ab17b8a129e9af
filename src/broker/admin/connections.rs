//! Who is connected: `GET_CONSUMER_CONNECTION_LIST`, `GET_PRODUCER_CONNECTION_LIST`,
//! `GET_ALL_PRODUCER_INFO`, `QUERY_SUBSCRIPTION_BY_CONSUMER`. Consumers are connected to every node of
//! a group, producers to the leader, so it is the leader who tells.

use std::collections::HashMap;
use std::sync::Arc;

use rmq_wire::body::{
    Connection, ConsumerConnection, ProducerConnection, ProducerInfo, ProducerTableInfo,
    QuerySubscriptionResponse,
};
use rmq_wire::code::response;
use rmq_wire::header::{ConsumerGroup, GroupTopic, ProducerGroup};

use super::answer;
use crate::broker::Broker;
use crate::broker::clients::Member;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::Request;

/// `GET_CONSUMER_CONNECTION_LIST`.
pub(in crate::broker) async fn consumer_connections(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let ConsumerGroup { consumer_group } = request.command.header()?;
    let body = {
        let clients = broker.clients.read();
        let group = clients.consumers.get(&consumer_group);
        let here = group.filter(|group| !group.members.is_empty());
        here.map(|group| ConsumerConnection {
            connection_set: connections(&group.members),
            consume_from_where: Some(group.consume_from_where),
            consume_type: Some(group.consume_type),
            message_model: Some(group.message_model),
            subscription_table: group
                .subscriptions
                .iter()
                .map(|(topic, subscription)| (topic.clone(), subscription.data.clone()))
                .collect(),
        })
    };
    let body = body.ok_or_else(|| {
        let remark = format!("the consumer group[{consumer_group}] not online");
        Refusal::new(response::CONSUMER_NOT_ONLINE, remark)
    })?;
    answer(request, &body)
}

/// `GET_PRODUCER_CONNECTION_LIST`.
pub(in crate::broker) async fn producer_connections(
    broker: &Arc<Broker>,
    request: &Request,
) -> Handled {
    let ProducerGroup { producer_group } = request.command.header()?;
    let body = {
        let clients = broker.clients.read();
        let members = clients.producers.get(&producer_group);
        members.map(|members| ProducerConnection {
            connection_set: connections(members),
        })
    };
    let body = body.ok_or_else(|| {
        let remark = format!("the producer group[{producer_group}] not exist");
        Refusal::system_error(remark)
    })?;
    answer(request, &body)
}

/// `GET_ALL_PRODUCER_INFO`.
pub(in crate::broker) async fn all_producers(broker: &Arc<Broker>, request: &Request) -> Handled {
    let now_ms = broker.now_ms();
    let info = |member: &Member| {
        let silent_ms = member.seen.elapsed().as_millis() as u64;
        ProducerInfo {
            client_id: member.client_id.clone(),
            language: member.language,
            last_update_timestamp: now_ms.saturating_sub_unsigned(silent_ms),
            // As Java prints a socket address.
            remote_ip: format!("/{}", member.conn.peer()),
            version: member.version,
        }
    };
    let data = broker
        .clients
        .read()
        .producers
        .iter()
        .map(|(group, members)| (group.clone(), members.values().map(info).collect()))
        .collect();
    answer(request, &ProducerTableInfo { data })
}

/// `QUERY_SUBSCRIPTION_BY_CONSUMER`, 5.x.
pub(in crate::broker) async fn subscription(broker: &Arc<Broker>, request: &Request) -> Handled {
    let GroupTopic { group, topic } = request.command.header()?;
    let topic = topic.unwrap_or_default();
    let subscription_data = {
        let clients = broker.clients.read();
        let of_group = clients.consumers.get(&group);
        let subscription = of_group.and_then(|group| group.subscriptions.get(&topic));
        subscription.map(|subscription| subscription.data.clone())
    };
    let body = QuerySubscriptionResponse {
        group,
        subscription_data,
        topic,
    };
    answer(request, &body)
}

fn connections(members: &HashMap<u64, Member>) -> Vec<Connection> {
    let mut connections: Vec<Connection> = members
        .values()
        .map(|member| Connection {
            client_addr: member.conn.peer().to_string(),
            client_id: member.client_id.clone(),
            language: member.language,
            version: member.version,
        })
        .collect();
    connections.sort_by(|a, b| a.client_id.cmp(&b.client_id));
    connections
}
