//! Topics: made by tools and by need, deleted, shown.
//!
//! `AdminBrokerProcessor` and `TopicConfigManager` (4.9.8); attributes are those of 5.3.3.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rmq_wire::body::{CreateTopicListRequest, TopicConfig, TopicFilterType, perm};
use rmq_wire::code::response;
use rmq_wire::header::{CreateTopic, TopicOnly, group_shown_queues};
use rmq_wire::name;

use super::Broker;
use super::refusal::{Handled, Refusal};
use crate::meta::{self, Change, FilterType, Topic};
use crate::remoting::Request;

pub(super) const READ_WRITE: i32 = perm::READ | perm::WRITE;

/// The topic of the messages that a group gave up on.
pub(super) fn dead_letters() -> Topic {
    Topic::with_queues(1, READ_WRITE)
}

/// The topic, created as `new` if it does not exist.
pub(super) async fn ensure(
    broker: &Arc<Broker>,
    topic: &str,
    new: Topic,
) -> Result<Topic, Refusal> {
    let known = || broker.meta.read().topics.get(topic).cloned();
    if let Some(topic) = known() {
        return Ok(topic);
    }
    broker
        .propose(Change::CreateTopics(vec![(topic.to_owned(), new)]))
        .await?;
    // Somebody else may have created it first, as something else, or deleted it since.
    known().ok_or_else(|| {
        Refusal::new(
            response::TOPIC_NOT_EXIST,
            format!("topic[{topic}] not exist"),
        )
    })
}

/// `UPDATE_AND_CREATE_TOPIC`.
pub(super) async fn update(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: CreateTopic = request.command.header()?;
    let topic = checked(broker, &header)?;
    put(broker, request, header.topic, topic).await?;
    routes_told(broker).await;
    Ok(request.command.reply(response::SUCCESS).into())
}

/// Waits until the name servers that can be reached know the topics of now: a tool that has created a
/// topic asks for its route next. One that answers slowly delays the tool only so long.
async fn routes_told(broker: &Broker) {
    const LIMIT: Duration = Duration::from_secs(2);
    let now = broker.meta.revisions().borrow().topics;
    let mut told = broker.told.subscribe();
    let all = told.wait_for(|told| told.iter().flatten().all(|revision| *revision >= now));
    tokio::time::timeout(LIMIT, all).await.ok();
}

/// `UPDATE_AND_CREATE_TOPIC_LIST`, 5.x: all of them, or none if one is wrong.
pub(super) async fn update_list(broker: &Arc<Broker>, request: &Request) -> Handled {
    let list: CreateTopicListRequest = request.command.json()?;
    let mut topics = Vec::with_capacity(list.topic_config_list.len());
    for config in list.topic_config_list {
        let header = as_header(config);
        let topic = checked(broker, &header)?;
        topics.push((header.topic, topic));
    }
    for (name, topic) in topics {
        put(broker, request, name, topic).await?;
    }
    routes_told(broker).await;
    Ok(request.command.reply(response::SUCCESS).into())
}

/// The header that asks for the same. The names of attributes have their `+` or `-` in both.
fn as_header(config: TopicConfig) -> CreateTopic {
    let attributes = config.attributes.unwrap_or_default();
    let changes = attributes.iter().map(|(key, value)| match key.as_bytes() {
        [b'-', ..] => key.clone(),
        _ => format!("{key}={value}"),
    });
    CreateTopic {
        topic: config.topic_name,
        default_topic: String::new(),
        read_queue_nums: config.read_queue_nums,
        write_queue_nums: config.write_queue_nums,
        perm: config.perm,
        topic_filter_type: match config.topic_filter_type {
            TopicFilterType::SingleTag => "SINGLE_TAG".to_owned(),
            TopicFilterType::MultiTag => "MULTI_TAG".to_owned(),
        },
        topic_sys_flag: Some(config.topic_sys_flag),
        order: config.order,
        attributes: Some(changes.collect::<Vec<_>>().join(",")),
        force: None,
    }
}

/// Refuses a number of queues that nobody can mean: tools are told of each queue, whether it has messages or not.
pub(super) fn check_queues(key: &str, queues: i32) -> Result<(), Refusal> {
    const MAX: i32 = 1 << 17;
    match (0..=MAX).contains(&queues) {
        true => Ok(()),
        false => Err(Refusal::system_error(format!(
            "{key}: {queues} is not from 0 to {MAX}"
        ))),
    }
}

/// The topic that is asked for, if tools may have it.
fn checked(broker: &Broker, header: &CreateTopic) -> Result<Topic, Refusal> {
    check_is_users(broker, &header.topic)?;
    check_queues("readQueueNums", header.read_queue_nums)?;
    check_queues("writeQueueNums", header.write_queue_nums)?;
    let known = broker.meta.read().topics.get(&header.topic).cloned();
    let write_queues = match &known {
        Some(known) if !broker.config.alias_ports().is_empty() => meant_queues(known, header),
        _ => header.write_queue_nums,
    };
    let mut attributes = known.unwrap_or_default().attributes;
    change_attributes(&mut attributes, header.attributes.as_deref().unwrap_or(""))?;
    Ok(Topic {
        read_queues: header.read_queue_nums,
        write_queues,
        perm: header.perm,
        filter_type: match &*header.topic_filter_type {
            "MULTI_TAG" => FilterType::MultiTag,
            _ => FilterType::SingleTag,
        },
        sys_flag: header.topic_sys_flag.unwrap_or(0),
        order: header.order,
        attributes,
    })
}

/// The write queues that a tool means a topic to have. One that changes something else gives back what it has read in
/// a route (`updateTopicPerm`, to all brokers of the topic), which may show the queues of a group several times over.
fn meant_queues(known: &Topic, header: &CreateTopic) -> i32 {
    let (read, write) = (header.read_queue_nums, header.write_queue_nums);
    let shows = |queues| group_shown_queues(queues) == write;
    if write <= read {
        write
    } else if read == known.read_queues && shows(known.write_queues) {
        known.write_queues
    } else if shows(read) {
        read
    } else {
        write
    }
}

async fn put(
    broker: &Broker,
    request: &Request,
    name: String,
    topic: Topic,
) -> Result<(), Refusal> {
    tracing::info!(topic = name, ?topic, client = %request.peer, "topic put by a tool");
    broker.propose(Change::PutTopic { name, topic }).await?;
    Ok(())
}

/// `DELETE_TOPIC_IN_BROKER`.
pub(super) async fn delete(broker: &Arc<Broker>, request: &Request) -> Handled {
    let TopicOnly { topic } = request.command.header()?;
    check_is_users(broker, &topic)?;
    tracing::info!(topic, client = %request.peer, "topic deleted by a tool");
    broker.propose(Change::DeleteTopic { name: topic }).await?;
    // The tool has name servers forget it next, and a registration that is on its way still has it.
    routes_told(broker).await;
    Ok(request.command.reply(response::SUCCESS).into())
}

/// `GET_ALL_TOPIC_CONFIG`.
pub(super) async fn get_all(broker: &Arc<Broker>, request: &Request) -> Handled {
    let body = broker.meta.read().topic_table();
    Ok(request
        .command
        .reply(response::SUCCESS)
        .with_json(&body)
        .into())
}

/// `GET_TOPIC_CONFIG`.
pub(super) async fn get_one(broker: &Arc<Broker>, request: &Request) -> Handled {
    let TopicOnly { topic: name } = request.command.header()?;
    let state = broker.meta.read();
    let topic = state.topics.get(&name).ok_or_else(|| {
        let remark = format!("No topic in this broker. topic: {name}");
        Refusal::new(response::TOPIC_NOT_EXIST, remark)
    })?;
    Ok(request
        .command
        .reply(response::SUCCESS)
        .with_json(&topic.named(&name))
        .into())
}

/// Refuses what tools may not create or delete.
fn check_is_users(broker: &Broker, topic: &str) -> Result<(), Refusal> {
    name::check_topic(topic)?;
    let is_system = name::is_system_topic(topic)
        || meta::system_topics(&broker.system_names())
            .iter()
            .any(|(system, _)| system == topic);
    if is_system {
        let remark = format!("The topic[{topic}] is conflict with system topic.");
        return Err(Refusal::system_error(remark));
    }
    Ok(())
}

/// Applies `+key=value,-key` (`AttributeParser`, 5.3.3).
fn change_attributes(
    attributes: &mut BTreeMap<String, String>,
    changes: &str,
) -> Result<(), Refusal> {
    for change in changes
        .split(',')
        .map(str::trim)
        .filter(|change| !change.is_empty())
    {
        let wrong = || Refusal::system_error(format!("attribute change {change:?} is malformed"));
        match (change.strip_prefix('+'), change.strip_prefix('-')) {
            (Some(pair), _) => {
                let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
                attributes.insert(key.to_owned(), value.to_owned());
            }
            (_, Some(key)) => {
                attributes.remove(key);
            }
            (None, None) => return Err(wrong()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_added_and_removed() {
        let mut attributes = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        change_attributes(&mut attributes, "+message.type=FIFO, -a").unwrap();
        assert_eq!(
            attributes,
            BTreeMap::from([("message.type".to_owned(), "FIFO".to_owned())])
        );
        assert!(change_attributes(&mut attributes, "a=b").is_err());
        assert!(change_attributes(&mut attributes, "+a").is_err());
    }
}
