//! Positions in queues, and what is counted about them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{DataVersion, MessageQueue, SubscriptionData};

/// Answer to [`GET_ALL_CONSUMER_OFFSET`](crate::code::request::GET_ALL_CONSUMER_OFFSET) and content of
/// `config/consumerOffset.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerOffsetSerializeWrapper {
    /// 5.x
    pub data_version: Option<DataVersion>,
    /// 5.x: topics by group, a view on the offsets.
    pub group_topic_map: Option<BTreeMap<String, BTreeSet<String>>>,
    /// With LMQ, in a file `config/lmqConsumerOffset.json` that takes the place of the other: by
    /// `%LMQ%topic@group`.
    pub lmq_offset_table: Option<BTreeMap<String, i64>>,
    /// By `topic@group`, then by queue id.
    pub offset_table: BTreeMap<String, BTreeMap<i32, i64>>,
    /// 5.x: how far a group has pulled, as `offset_table`.
    pub pull_offset_table: Option<BTreeMap<String, BTreeMap<i32, i64>>>,
}

/// Answer to [`GET_ALL_DELAY_OFFSET`](crate::code::request::GET_ALL_DELAY_OFFSET) and content of
/// `config/delayOffset.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DelayOffsetSerializeWrapper {
    /// 5.x
    pub data_version: Option<DataVersion>,
    /// Queue offset by delay level.
    pub offset_table: BTreeMap<i32, i64>,
}

/// Body of a message in [`OFFSET_MOVED_EVENT`](crate::name::OFFSET_MOVED_EVENT): a consumer asked for an
/// offset that its queue does not have, and was told another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OffsetMovedEvent {
    pub consumer_group: String,
    pub message_queue: MessageQueue,
    pub offset_new: i64,
    pub offset_request: i64,
}

/// Answer to [`INVOKE_BROKER_TO_RESET_OFFSET`](crate::code::request::INVOKE_BROKER_TO_RESET_OFFSET), and body
/// of [`RESET_CONSUMER_CLIENT_OFFSET`](crate::code::request::RESET_CONSUMER_CLIENT_OFFSET).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResetOffsetBody {
    pub offset_table: BTreeMap<MessageQueue, i64>,
}

/// The same for a client in C++.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ResetOffsetBodyForC {
    pub offset_table: Vec<MessageQueueForC>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MessageQueueForC {
    pub broker_name: String,
    pub offset: i64,
    pub queue_id: i32,
    pub topic: String,
}

/// Answer to a question for the status of consumers, by a client
/// ([`GET_CONSUMER_STATUS_FROM_CLIENT`](crate::code::request::GET_CONSUMER_STATUS_FROM_CLIENT)) or by a
/// broker for all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GetConsumerStatusBody {
    /// By client id.
    pub consumer_table: BTreeMap<String, BTreeMap<MessageQueue, i64>>,
    pub message_queue_table: BTreeMap<MessageQueue, i64>,
}

/// Answer to [`GET_TOPIC_STATS_INFO`](crate::code::request::GET_TOPIC_STATS_INFO).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicStatsTable {
    pub offset_table: BTreeMap<MessageQueue, TopicOffset>,
    /// 5.x: messages per second.
    pub topic_put_tps: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicOffset {
    /// Milliseconds since 1970; 0 for an empty queue.
    pub last_update_timestamp: i64,
    pub max_offset: i64,
    pub min_offset: i64,
}

/// Answer to [`GET_CONSUME_STATS`](crate::code::request::GET_CONSUME_STATS).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeStats {
    /// Messages per second.
    pub consume_tps: f64,
    pub offset_table: BTreeMap<MessageQueue, OffsetWrapper>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OffsetWrapper {
    pub broker_offset: i64,
    pub consumer_offset: i64,
    /// Milliseconds since 1970, when the last message consumed was stored.
    pub last_timestamp: i64,
    /// 5.x
    pub pull_offset: Option<i64>,
}

/// Answer to [`GET_BROKER_CONSUME_STATS`](crate::code::request::GET_BROKER_CONSUME_STATS).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeStatsList {
    pub broker_addr: Option<String>,
    /// Maps of one group to the statistics of its topics.
    pub consume_stats_list: Vec<BTreeMap<String, Vec<ConsumeStats>>>,
    pub total_diff: i64,
    /// 5.x
    pub total_inflight_diff: Option<i64>,
}

/// Answer to [`QUERY_CONSUME_TIME_SPAN`](crate::code::request::QUERY_CONSUME_TIME_SPAN).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryConsumeTimeSpanBody {
    pub consume_time_span_set: Vec<QueueTimeSpan>,
}

/// Times in milliseconds since 1970; -1 for unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueueTimeSpan {
    pub consume_time_stamp: i64,
    /// Milliseconds.
    pub delay_time: i64,
    pub max_time_stamp: i64,
    pub message_queue: Option<MessageQueue>,
    pub min_time_stamp: i64,
}

/// Answer to [`QUERY_CORRECTION_OFFSET`](crate::code::request::QUERY_CORRECTION_OFFSET).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryCorrectionOffsetBody {
    pub correction_offsets: BTreeMap<i32, i64>,
}

/// Answer to [`VIEW_BROKER_STATS_DATA`](crate::code::request::VIEW_BROKER_STATS_DATA).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BrokerStatsData {
    pub stats_day: BrokerStatsItem,
    pub stats_hour: BrokerStatsItem,
    pub stats_minute: BrokerStatsItem,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BrokerStatsItem {
    pub avgpt: f64,
    pub sum: i64,
    /// Per second.
    pub tps: f64,
}

/// Answer to [`QUERY_CONSUME_QUEUE`](crate::code::request::QUERY_CONSUME_QUEUE).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QueryConsumeQueueResponse {
    pub filter_data: Option<String>,
    pub max_queue_index: i64,
    pub min_queue_index: i64,
    pub queue_data: Vec<ConsumeQueueData>,
    pub subscription_data: Option<SubscriptionData>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumeQueueData {
    pub bit_map: Option<String>,
    pub eval: bool,
    pub extend_data_json: Option<String>,
    pub msg: Option<String>,
    pub physic_offset: i64,
    pub physic_size: i32,
    pub tags_code: i64,
}
