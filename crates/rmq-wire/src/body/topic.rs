//! Topics and subscription groups, as in requests and in the files of a broker.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::DataVersion;
use crate::json::Raw;

/// Bits of a permission (`PermName`).
pub mod perm {
    pub const READ: i32 = 0x4;
    pub const WRITE: i32 = 0x2;
    /// New topics may be copied from this one.
    pub const INHERIT: i32 = 0x1;
}

/// Bits of a topic's system flag (`TopicSysFlag`).
pub mod topic_sys_flag {
    /// The topic is for units.
    pub const UNIT: i32 = 0x1;
    /// The topic's consumers are in units.
    pub const UNIT_SUB: i32 = 0x2;
}

/// A topic at a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicConfig {
    /// 5.x
    pub attributes: Option<BTreeMap<String, String>>,
    pub order: bool,
    /// Bits of [`perm`].
    pub perm: i32,
    pub read_queue_nums: i32,
    pub topic_filter_type: TopicFilterType,
    pub topic_name: String,
    /// 1 unit, 2 unit subscription (`TopicSysFlag`).
    pub topic_sys_flag: i32,
    pub write_queue_nums: i32,
}

impl TopicConfig {
    /// A topic with as many queues to read as to write.
    #[must_use]
    pub fn new(topic: impl Into<String>, queues: i32, perm: i32) -> Self {
        Self {
            perm,
            read_queue_nums: queues,
            topic_name: topic.into(),
            write_queue_nums: queues,
            ..Self::default()
        }
    }
}

/// Java's defaults.
impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            attributes: None,
            order: false,
            perm: perm::READ | perm::WRITE,
            read_queue_nums: 16,
            topic_filter_type: TopicFilterType::SingleTag,
            topic_name: String::new(),
            topic_sys_flag: 0,
            write_queue_nums: 16,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TopicFilterType {
    #[default]
    #[serde(rename = "SINGLE_TAG")]
    SingleTag,
    #[serde(rename = "MULTI_TAG")]
    MultiTag,
}

/// Answer to [`GET_ALL_TOPIC_CONFIG`](crate::code::request::GET_ALL_TOPIC_CONFIG), content of
/// `config/topics.json`, and the larger part of a registration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicConfigSerializeWrapper {
    pub data_version: DataVersion,
    /// 5.x, in a registration.
    pub mapping_data_version: Option<DataVersion>,
    pub topic_config_table: BTreeMap<String, TopicConfig>,
    /// 5.x, in a registration.
    pub topic_queue_mapping_detail_map: Option<Raw>,
    /// 5.x, in a registration.
    pub topic_queue_mapping_info_map: Option<Raw>,
}

/// Body of [`UPDATE_AND_CREATE_TOPIC_LIST`](crate::code::request::UPDATE_AND_CREATE_TOPIC_LIST).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CreateTopicListRequest {
    pub topic_config_list: Vec<TopicConfig>,
}

/// A consumer group; body of
/// [`UPDATE_AND_CREATE_SUBSCRIPTIONGROUP`](crate::code::request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionGroupConfig {
    /// 5.x
    pub attributes: Option<BTreeMap<String, String>>,
    pub broker_id: i64,
    pub consume_broadcast_enable: bool,
    pub consume_enable: bool,
    pub consume_from_min_enable: bool,
    /// 5.x
    pub consume_message_orderly: Option<bool>,
    /// 5.x
    pub consume_timeout_minute: Option<i32>,
    pub group_name: String,
    /// 5.x
    pub group_retry_policy: Option<Raw>,
    /// 5.x
    pub group_sys_flag: Option<i32>,
    pub notify_consumer_ids_changed_enable: bool,
    pub retry_max_times: i32,
    pub retry_queue_nums: i32,
    /// 5.x
    pub subscription_data_set: Option<Raw>,
    pub which_broker_when_consume_slowly: i64,
}

impl SubscriptionGroupConfig {
    #[must_use]
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group_name: group.into(),
            ..Self::default()
        }
    }
}

/// Java's defaults.
impl Default for SubscriptionGroupConfig {
    fn default() -> Self {
        Self {
            attributes: None,
            broker_id: 0,
            consume_broadcast_enable: true,
            consume_enable: true,
            consume_from_min_enable: true,
            consume_message_orderly: None,
            consume_timeout_minute: None,
            group_name: String::new(),
            group_retry_policy: None,
            group_sys_flag: None,
            notify_consumer_ids_changed_enable: true,
            retry_max_times: 16,
            retry_queue_nums: 1,
            subscription_data_set: None,
            which_broker_when_consume_slowly: 1,
        }
    }
}

/// Answer to
/// [`GET_ALL_SUBSCRIPTIONGROUP_CONFIG`](crate::code::request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG) and
/// content of `config/subscriptionGroup.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionGroupWrapper {
    pub data_version: DataVersion,
    /// 5.x
    pub forbidden_table: Option<Raw>,
    pub subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
}

/// Body of
/// [`UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST`](crate::code::request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionGroupList {
    pub group_config_list: Vec<SubscriptionGroupConfig>,
}
