//! How clients become known and are forgotten: `HEART_BEAT`, `UNREGISTER_CLIENT`, the end of a
//! connection; and what is told about them: `GET_CONSUMER_LIST_BY_GROUP`,
//! `NOTIFY_CONSUMER_IDS_CHANGED`, `CHECK_CLIENT_CONFIG`.
//!
//! Consumers send heartbeats to every node of a group, so a new leader knows them already.
//! `ClientManageProcessor`, `ConsumerManageProcessor` (4.9.8).

use std::sync::Arc;
use std::time::Duration;

use rmq_wire::body::{
    CheckClientRequest, ConsumerData, ConsumerList, HeartbeatData, topic_sys_flag,
};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{self, UnregisterClient};
use rmq_wire::name;
use tokio::time::Instant;

use super::clients::{ConsumerGroup, Member};
use super::refusal::{Handled, Refusal};
use super::{Broker, Role, dispatch, filter};
use crate::meta::Topic;
use crate::remoting::{Conn, Request};

/// How often silent clients are looked for.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// How long a node asks for the consumers that its leader knows. By then they have told it themselves.
const LEARNING_LIMIT: Duration = Duration::from_secs(60);
const LEARNING_PAUSE: Duration = Duration::from_secs(1);
/// Most groups of one client.
const MAX_GROUPS: usize = 10_000;
/// How often is looked whether the process was paused.
const PAUSE_LOOK: Duration = Duration::from_secs(2);
/// A timer is not so late on a busy machine, and clients wait longer than both together before they hang up.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// `HEART_BEAT`.
pub(super) async fn heart_beat(broker: &Arc<Broker>, request: &Request) -> Handled {
    let data: HeartbeatData = request.command.json()?;
    let Some(conn) = &request.conn else {
        return Err(Refusal::system_error(
            "a heartbeat comes over its own connection",
        ));
    };
    check(&data)?;
    let member = Member {
        conn: Arc::clone(conn),
        client_id: data.client_id,
        language: request.command.language,
        version: request.command.version,
        seen: Instant::now(),
    };
    let mut changed = Vec::new();
    for consumer in &data.consumer_data_set {
        if broker.clients.register_consumer(member.clone(), consumer) {
            let (client, group) = (&member.client_id, &consumer.group_name);
            tracing::info!(group, client, peer = %conn.peer(), "consumer group changed");
            changed.push(group);
        }
    }
    for producer in &data.producer_data_set {
        broker
            .clients
            .register_producer(member.clone(), &producer.group_name);
    }
    if conn.is_closed() {
        // Its end may have come before, with nothing to forget yet, and comes only once.
        connection_closed(broker, conn);
    }
    // Only now, for this may wait, and an unregistration behind it must not overtake.
    if broker.is_serving() {
        for consumer in &data.consumer_data_set {
            // The next heartbeat, or the first pull or retry, tries again.
            if let Err(refusal) = prepare_group(broker, consumer).await {
                let group = &consumer.group_name;
                tracing::warn!(group, ?refusal, "consumer group could not be prepared");
            }
        }
    }
    for group in changed {
        notify(broker, group);
    }
    Ok(request.command.reply(response::SUCCESS).into())
}

/// Each group keeps a member of its own, which costs far more than its name does in the frame.
fn check(data: &HeartbeatData) -> Result<(), Refusal> {
    name::check_client_id(&data.client_id)?;
    for group in data.consumer_data_set.iter().map(|data| &data.group_name) {
        name::check_group(group)?;
    }
    let count = data.consumer_data_set.len() + data.producer_data_set.len();
    if count > MAX_GROUPS {
        let remark = format!("a heartbeat of {count} groups; a client may have {MAX_GROUPS}");
        return Err(Refusal::system_error(remark));
    }
    Ok(())
}

/// Creates what a consumer group needs: its configuration and the topic of its retries.
async fn prepare_group(broker: &Arc<Broker>, data: &ConsumerData) -> Result<(), Refusal> {
    let config = super::group::find(broker, &data.group_name).await?;
    let retries = Topic {
        sys_flag: if data.unit_mode {
            topic_sys_flag::UNIT_SUB
        } else {
            0
        },
        ..Topic::with_queues(config.retry_queues.max(0), super::topic::READ_WRITE)
    };
    super::topic::ensure(broker, &name::retry_topic(&data.group_name), retries).await?;
    Ok(())
}

/// `UNREGISTER_CLIENT`.
pub(super) async fn unregister(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: UnregisterClient = request.command.header()?;
    if let Some(conn) = &request.conn {
        if let Some(group) = &header.producer_group {
            broker.clients.unregister_producer(conn.id(), group);
        }
        if let Some(group) = &header.consumer_group
            && (broker.clients).unregister_consumer(conn.id(), &header.client_id, group)
        {
            tracing::info!(group, client = header.client_id, "consumer left its group");
            notify(broker, group);
        }
    }
    Ok(request.command.reply(response::SUCCESS).into())
}

/// Forgets a connection that has ended.
pub(super) fn connection_closed(broker: &Broker, conn: &Conn) {
    for group in broker.clients.forget(conn.id()) {
        tracing::info!(group, peer = %conn.peer(), "consumer is gone");
        notify(broker, &group);
        broker.consumer_gone.notify_one();
    }
}

/// Closes the connections of clients that have fallen silent, for ever.
pub(super) async fn expire_silent(broker: &Broker) {
    loop {
        tokio::time::sleep(SCAN_INTERVAL).await;
        for conn in broker.clients.silent(Instant::now()) {
            tracing::info!(peer = %conn.peer(), "client sent no heartbeat for too long");
            if conn.is_closed() {
                // Its end is over, and forgets nothing more.
                connection_closed(broker, &conn);
            }
            // What it was registered for goes with the connection.
            conn.close();
        }
        broker.clients.forget_absent(Instant::now());
    }
}

/// Has the leader tell which consumers there are, for ever: after a start, when another node has become leader, after a
/// pause of this process, in which clients give up their connections, and when the connection of a consumer has ended
/// without its farewell: it may live on, when only its link to this node was cut. Heartbeats come only every 30 s, and
/// should this node lead before, it would refuse the pulls of consumers and tell each that it is alone.
pub(super) async fn learn(broker: &Broker) {
    let mut roles = broker.replica.role();
    let has_leader = |role: &Role| role.serving || role.leader.is_some();
    while roles.wait_for(has_leader).await.is_ok() {
        let role = roles.borrow().clone();
        learn_from_leader(broker).await;
        let changed = tokio::select! {
            changed = roles.wait_for(|now| *now != role) => changed.is_ok(),
            () = was_paused() => true,
            () = broker.consumer_gone.notified() => true,
        };
        if !changed {
            break;
        }
        // Whoever has just become leader has more to do, and takes a moment to miss a consumer that has ended.
        tokio::time::sleep(LEARNING_PAUSE).await;
    }
    std::future::pending().await
}

/// Asks until there is an answer; a leader needs none.
async fn learn_from_leader(broker: &Broker) {
    let deadline = Instant::now() + LEARNING_LIMIT;
    let question = dispatch::frame(Command::request(request::RAFT_CONSUMERS).into());
    while Instant::now() < deadline && !broker.is_serving() {
        let answer = broker
            .replica
            .forward(question.clone(), broker.store_host, LEARNING_PAUSE.into())
            .await;
        if let Ok(Some(frame)) = answer
            && let Ok(answer) = Command::decode(frame)
        {
            match answer.code {
                response::SUCCESS => {
                    if let Ok(known) = answer.json() {
                        broker.clients.learn(known, Instant::now());
                    }
                    return;
                }
                // A leader of an earlier version.
                response::REQUEST_CODE_NOT_SUPPORTED => return,
                _ => {}
            }
        }
        tokio::time::sleep(LEARNING_PAUSE).await;
    }
}

/// Returns when this process was paused.
pub(super) async fn was_paused() {
    loop {
        let due = Instant::now() + PAUSE_LOOK;
        tokio::time::sleep_until(due).await;
        if due.elapsed() > PAUSE_MIN {
            return;
        }
    }
}

/// `RAFT_CONSUMERS`, which only nodes ask.
pub(super) async fn known_consumers(broker: &Arc<Broker>, request: &Request) -> Handled {
    if request.conn.is_some() {
        return Err(dispatch::unsupported(request.command.code));
    }
    let known = broker.clients.known(Instant::now());
    Ok(request
        .command
        .reply(response::SUCCESS)
        .with_json(&known)
        .into())
}

/// Tells a group's members to share its queues anew. Every member is connected to every node, so
/// one node tells them: the one that they ask for the list.
fn notify(broker: &Broker, group: &str) {
    let enabled = broker.config.notify_consumer_ids_changed_enable
        && (broker.meta.read().groups.get(group))
            .is_none_or(|config| config.notify_consumer_ids_changed_enable);
    if !enabled || !broker.is_serving() {
        return;
    }
    for conn in broker.clients.consumers(group) {
        let header = header::ConsumerGroup {
            consumer_group: group.to_owned(),
        };
        let notice = Command::request(request::NOTIFY_CONSUMER_IDS_CHANGED).with_header(&header);
        // Members look for changes every 20 s anyway.
        if let Err(error) = conn.oneway(notice) {
            tracing::debug!(group, peer = %conn.peer(), %error, "consumer was not notified");
        }
    }
}

/// `GET_CONSUMER_LIST_BY_GROUP`.
pub(super) async fn consumer_list(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header::ConsumerGroup { consumer_group } = request.command.header()?;
    let ids: Vec<String> = {
        let clients = broker.clients.read();
        let group = clients.consumers.get(&consumer_group);
        let ids = group.into_iter().flat_map(ConsumerGroup::client_ids);
        ids.collect()
    };
    if ids.is_empty() {
        let remark = format!("no consumer for this group, {consumer_group}");
        return Err(Refusal::system_error(remark));
    }
    let body = ConsumerList {
        consumer_id_list: ids,
    };
    Ok(request
        .command
        .reply(response::SUCCESS)
        .with_json(&body)
        .into())
}

/// `CHECK_CLIENT_CONFIG`: whether this broker can filter by the consumer's expression.
pub(super) async fn check_config(_: &Arc<Broker>, request: &Request) -> Handled {
    let body: CheckClientRequest = request.command.json()?;
    let kind = body.subscription_data.expression_type.as_deref();
    if !filter::is_tag_type(kind) {
        return Err(unfilterable(kind));
    }
    Ok(request.command.reply(response::SUCCESS).into())
}

/// The refusal of a filter that is not by tag, as with `enablePropertyFilter=false`.
pub(super) fn unfilterable(kind: Option<&str>) -> Refusal {
    let kind = kind.unwrap_or_default();
    let remark = format!("The broker does not support consumer to filter message by {kind}");
    Refusal::system_error(remark)
}
