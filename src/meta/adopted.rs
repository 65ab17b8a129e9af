//! The first state of a group that has taken over the history of another broker.

use rmq_wire::body::{
    ConsumerOffsetSerializeWrapper, DelayOffsetSerializeWrapper, SubscriptionGroupWrapper,
    TopicConfigSerializeWrapper,
};

use super::state::{DataVersion, State, check_name, check_topic};

/// The metadata of the other broker, as Java's files have them.
#[derive(Clone, Copy, Debug)]
pub struct Adopted<'a> {
    pub topics: &'a TopicConfigSerializeWrapper,
    pub groups: &'a SubscriptionGroupWrapper,
    pub offsets: &'a ConsumerOffsetSerializeWrapper,
    pub delay: &'a DelayOffsetSerializeWrapper,
}

impl From<Adopted<'_>> for State {
    /// What no command could have brought into the state is left out.
    fn from(from: Adopted<'_>) -> Self {
        let mut state = Self {
            topics_version: from.topics.data_version.into(),
            groups_version: from.groups.data_version.into(),
            ..Self::default()
        };
        for (name, config) in &from.topics.topic_config_table {
            let topic = config.clone().into();
            match check_topic(name, &topic) {
                Ok(()) => drop(state.topics.insert(name.clone(), topic)),
                Err(reason) => tracing::warn!("a topic is not taken over: {reason}"),
            }
        }
        for (name, config) in &from.groups.subscription_group_table {
            match check_name("group", name) {
                Ok(()) => drop(state.groups.insert(name.clone(), config.clone().into())),
                Err(reason) => tracing::warn!("a group is not taken over: {reason}"),
            }
        }
        for (key, queues) in &from.offsets.offset_table {
            let Some((topic, group)) = key.split_once('@') else {
                tracing::warn!(key, "offsets of no topic and group are not taken over");
                continue;
            };
            if let Err(reason) =
                check_name("topic", topic).and_then(|()| check_name("group", group))
            {
                tracing::warn!("offsets are not taken over: {reason}");
                continue;
            }
            let valid = queues.iter().filter(|(id, at)| **id >= 0 && **at >= 0);
            let topics = state.offsets.entry(group.to_owned()).or_default();
            topics
                .entry(topic.to_owned())
                .or_default()
                .extend(valid.map(|(id, at)| (*id, *at)));
        }
        let levels = from.delay.offset_table.iter();
        let valid = levels.filter(|(level, at)| **level >= 1 && **at >= 0);
        state.delay.extend(valid.map(|(level, at)| (*level, *at)));
        state
    }
}

impl From<rmq_wire::body::DataVersion> for DataVersion {
    fn from(version: rmq_wire::body::DataVersion) -> Self {
        Self {
            timestamp_ms: version.timestamp,
            counter: version.counter,
        }
    }
}
