//! The state as Java has it: in the bodies of the protocol, and in the files under `config/`.

use std::collections::BTreeMap;

use rmq_wire::body::{
    self, ConsumerOffsetSerializeWrapper, DelayOffsetSerializeWrapper, SubscriptionGroupConfig,
    SubscriptionGroupWrapper, TopicConfig, TopicConfigSerializeWrapper, TopicFilterType,
};

use super::state::{DataVersion, FilterType, Group, State, Topic};

impl State {
    /// All topics, as in `topics.json`.
    pub fn topic_table(&self) -> TopicConfigSerializeWrapper {
        let topics = self.topics.iter();
        TopicConfigSerializeWrapper {
            data_version: self.topics_version.into(),
            topic_config_table: topics
                .map(|(name, topic)| (name.clone(), topic.named(name)))
                .collect(),
            ..TopicConfigSerializeWrapper::default()
        }
    }

    /// All groups, as in `subscriptionGroup.json`.
    pub fn group_table(&self) -> SubscriptionGroupWrapper {
        let groups = self.groups.iter();
        SubscriptionGroupWrapper {
            data_version: self.groups_version.into(),
            subscription_group_table: groups
                .map(|(name, group)| (name.clone(), group.named(name)))
                .collect(),
            ..SubscriptionGroupWrapper::default()
        }
    }

    /// All consumer offsets, as in `consumerOffset.json`.
    pub fn offset_table(&self) -> ConsumerOffsetSerializeWrapper {
        let mut table = ConsumerOffsetSerializeWrapper::default();
        for (group, topics) in &self.offsets {
            for (topic, queues) in topics {
                table
                    .offset_table
                    .insert(format!("{topic}@{group}"), queues.clone());
            }
        }
        table
    }

    /// The progress of delayed delivery, as in `delayOffset.json`.
    pub fn delay_table(&self) -> DelayOffsetSerializeWrapper {
        DelayOffsetSerializeWrapper {
            offset_table: self.delay.clone(),
            data_version: None,
        }
    }
}

impl From<DataVersion> for body::DataVersion {
    fn from(version: DataVersion) -> Self {
        Self {
            counter: version.counter,
            timestamp: version.timestamp_ms,
            state_version: None,
        }
    }
}

impl Topic {
    /// The configuration with its name in it.
    pub fn named(&self, name: &str) -> TopicConfig {
        TopicConfig {
            attributes: some(&self.attributes),
            order: self.order,
            perm: self.perm,
            read_queue_nums: self.read_queues,
            topic_filter_type: match self.filter_type {
                FilterType::SingleTag => TopicFilterType::SingleTag,
                FilterType::MultiTag => TopicFilterType::MultiTag,
            },
            topic_name: name.to_owned(),
            topic_sys_flag: self.sys_flag,
            write_queue_nums: self.write_queues,
        }
    }
}

impl From<TopicConfig> for Topic {
    fn from(config: TopicConfig) -> Self {
        Self {
            read_queues: config.read_queue_nums,
            write_queues: config.write_queue_nums,
            perm: config.perm,
            filter_type: match config.topic_filter_type {
                TopicFilterType::SingleTag => FilterType::SingleTag,
                TopicFilterType::MultiTag => FilterType::MultiTag,
            },
            sys_flag: config.topic_sys_flag,
            order: config.order,
            attributes: config.attributes.unwrap_or_default(),
        }
    }
}

impl Group {
    /// The configuration with its name in it. Fields that came with 5.0 are there only where they
    /// differ from their default, so that 4.9 finds what it knows.
    pub fn named(&self, name: &str) -> SubscriptionGroupConfig {
        let usual = Self::default();
        let timeout = self.consume_timeout_minutes;
        SubscriptionGroupConfig {
            attributes: some(&self.attributes),
            broker_id: self.broker_id,
            consume_broadcast_enable: self.consume_broadcast_enable,
            consume_enable: self.consume_enable,
            consume_from_min_enable: self.consume_from_min_enable,
            consume_message_orderly: self.consume_message_orderly.then_some(true),
            consume_timeout_minute: (timeout != usual.consume_timeout_minutes).then_some(timeout),
            group_name: name.to_owned(),
            group_sys_flag: (self.sys_flag != usual.sys_flag).then_some(self.sys_flag),
            notify_consumer_ids_changed_enable: self.notify_consumer_ids_changed_enable,
            retry_max_times: self.retry_max_times,
            retry_queue_nums: self.retry_queues,
            which_broker_when_consume_slowly: self.which_broker_when_consume_slowly,
            ..SubscriptionGroupConfig::default()
        }
    }
}

impl From<SubscriptionGroupConfig> for Group {
    fn from(config: SubscriptionGroupConfig) -> Self {
        let usual = Self::default();
        Self {
            consume_enable: config.consume_enable,
            consume_from_min_enable: config.consume_from_min_enable,
            consume_broadcast_enable: config.consume_broadcast_enable,
            consume_message_orderly: config.consume_message_orderly.unwrap_or(false),
            retry_queues: config.retry_queue_nums,
            retry_max_times: config.retry_max_times,
            broker_id: config.broker_id,
            which_broker_when_consume_slowly: config.which_broker_when_consume_slowly,
            notify_consumer_ids_changed_enable: config.notify_consumer_ids_changed_enable,
            sys_flag: config.group_sys_flag.unwrap_or(usual.sys_flag),
            consume_timeout_minutes: config
                .consume_timeout_minute
                .unwrap_or(usual.consume_timeout_minutes),
            attributes: config.attributes.unwrap_or_default(),
        }
    }
}

fn some(attributes: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!attributes.is_empty()).then(|| attributes.clone())
}
