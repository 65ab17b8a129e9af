//! Subscription groups: found, created when they appear, put and deleted by tools.
//!
//! `SubscriptionGroupManager` and `AdminBrokerProcessor` (4.9.8).

use std::sync::Arc;

use rmq_wire::body::{SubscriptionGroupConfig, SubscriptionGroupList};
use rmq_wire::code::response;
use rmq_wire::frame::Command;
use rmq_wire::header::DeleteSubscriptionGroup;
use rmq_wire::name;

use super::Broker;
use super::refusal::{Handled, Refusal};
use crate::meta::{Change, Group};
use crate::remoting::Request;

/// Ordinal of `MQVersion.V3_4_9`, from which on clients say how often they want a message again.
const V3_4_9: i32 = 121;

/// The group's configuration. A group that nobody has made is made now, if that is allowed.
pub(super) async fn find(broker: &Arc<Broker>, group: &str) -> Result<Group, Refusal> {
    let known = || broker.meta.read().groups.get(group).cloned();
    if let Some(config) = known() {
        return Ok(config);
    }
    let missing = || {
        let remark = format!("subscription group not exist, {group}");
        Refusal::new(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark)
    };
    if !broker.config.auto_create_subscription_group && !name::is_system_group(group) {
        return Err(missing());
    }
    name::check_group(group)?;
    if broker.meta.is_frozen() {
        // Reads go on; what it would be made with is as good.
        return Ok(Group::default());
    }
    let new = vec![(group.to_owned(), Group::default())];
    broker.propose(Change::CreateGroups(new)).await?;
    known().ok_or_else(missing)
}

/// How often a message is tried: what the client says, else what the group says.
pub(super) fn max_reconsume_times(config: &Group, command: &Command, own: Option<i32>) -> i32 {
    own.filter(|_| command.version >= V3_4_9)
        .unwrap_or(config.retry_max_times)
}

/// `UPDATE_AND_CREATE_SUBSCRIPTIONGROUP`.
pub(super) async fn update(broker: &Arc<Broker>, request: &Request) -> Handled {
    put_all(broker, request, vec![request.command.json()?]).await
}

/// `UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST`, 5.x: all of them, or none if one is wrong.
pub(super) async fn update_list(broker: &Arc<Broker>, request: &Request) -> Handled {
    let list: SubscriptionGroupList = request.command.json()?;
    put_all(broker, request, list.group_config_list).await
}

async fn put_all(
    broker: &Broker,
    request: &Request,
    configs: Vec<SubscriptionGroupConfig>,
) -> Handled {
    for config in &configs {
        name::check_group(&config.group_name)?;
        super::topic::check_queues("retryQueueNums", config.retry_queue_nums)?;
    }
    for config in configs {
        let name = config.group_name.clone();
        let group = Group::from(config);
        tracing::info!(group = name, ?group, client = %request.peer, "group put by a tool");
        broker.propose(Change::PutGroup { name, group }).await?;
    }
    Ok(request.command.reply(response::SUCCESS).into())
}

/// `DELETE_SUBSCRIPTIONGROUP`.
pub(super) async fn delete(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: DeleteSubscriptionGroup = request.command.header()?;
    let clean_offsets = header
        .remove_offset
        .or(header.clean_offset)
        .unwrap_or(false);
    let name = header.group_name;
    tracing::info!(group = name, clean_offsets, client = %request.peer, "group deleted by a tool");
    broker
        .propose(Change::DeleteGroup {
            name,
            clean_offsets,
        })
        .await?;
    Ok(request.command.reply(response::SUCCESS).into())
}

/// `GET_ALL_SUBSCRIPTIONGROUP_CONFIG`.
pub(super) async fn get_all(broker: &Arc<Broker>, request: &Request) -> Handled {
    let body = broker.meta.read().group_table();
    Ok(request
        .command
        .reply(response::SUCCESS)
        .with_json(&body)
        .into())
}
