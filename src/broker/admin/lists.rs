//! Names: `QUERY_TOPIC_CONSUME_BY_WHO`, `QUERY_TOPICS_BY_CONSUMER`,
//! `GET_SYSTEM_TOPIC_LIST_FROM_BROKER`; and one group's configuration,
//! `GET_SUBSCRIPTIONGROUP_CONFIG`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rmq_wire::body::{GroupList, TopicList};
use rmq_wire::code::response;
use rmq_wire::header::{GroupTopic, TopicOnly};
use rmq_wire::name;

use super::answer;
use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::meta;
use crate::remoting::Request;

/// `QUERY_TOPIC_CONSUME_BY_WHO`: groups that subscribe to the topic now, or have positions in it.
pub(in crate::broker) async fn groups_of_topic(broker: &Arc<Broker>, request: &Request) -> Handled {
    let TopicOnly { topic } = request.command.header()?;
    let mut group_list: BTreeSet<String> = {
        let state = broker.meta.read();
        state.groups_of_topic(&topic).map(str::to_owned).collect()
    };
    for (group, info) in &broker.clients.read().consumers {
        if info.subscriptions.contains_key(&topic) {
            group_list.insert(group.clone());
        }
    }
    answer(request, &GroupList { group_list })
}

/// `QUERY_TOPICS_BY_CONSUMER`, 5.x: topics that the group has positions in.
pub(in crate::broker) async fn topics_of_group(broker: &Arc<Broker>, request: &Request) -> Handled {
    let GroupTopic { group, .. } = request.command.header()?;
    let topic_list = {
        let state = broker.meta.read();
        state.topics_of_group(&group).map(str::to_owned).collect()
    };
    let body = TopicList {
        broker_addr: Some(broker.config.broker_addr()),
        topic_list,
    };
    answer(request, &body)
}

/// `GET_SYSTEM_TOPIC_LIST_FROM_BROKER`: the topics that every broker has or keeps for itself.
pub(in crate::broker) async fn system_topics(broker: &Arc<Broker>, request: &Request) -> Handled {
    let mut topic_list: BTreeSet<String> = meta::system_topics(&broker.system_names())
        .into_iter()
        .map(|(topic, _)| topic)
        .collect();
    let state = broker.meta.read();
    let others = state
        .topics
        .keys()
        .filter(|topic| name::is_system_topic(topic));
    topic_list.extend(others.cloned());
    drop(state);
    let body = TopicList {
        broker_addr: None,
        topic_list,
    };
    answer(request, &body)
}

/// `GET_SUBSCRIPTIONGROUP_CONFIG`, 5.x.
pub(in crate::broker) async fn group_config(broker: &Arc<Broker>, request: &Request) -> Handled {
    let GroupTopic { group, .. } = request.command.header()?;
    let config = {
        let state = broker.meta.read();
        state.groups.get(&group).map(|config| config.named(&group))
    };
    let config = config.ok_or_else(|| {
        let remark = format!("No group in this broker. group: {group}");
        Refusal::new(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark)
    })?;
    answer(request, &config)
}
