//! What a client says of itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Body of [`HEART_BEAT`](crate::code::request::HEART_BEAT).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HeartbeatData {
    #[serde(rename = "clientID")]
    pub client_id: String,
    pub consumer_data_set: Vec<ConsumerData>,
    /// 5.x: hash of the subscriptions; 0 for a heartbeat with all of them.
    pub heartbeat_fingerprint: Option<i32>,
    pub producer_data_set: Vec<ProducerData>,
    /// 5.x: the subscriptions are those sent before.
    pub without_sub: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProducerData {
    pub group_name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerData {
    pub consume_from_where: ConsumeFromWhere,
    pub consume_type: ConsumeType,
    pub group_name: String,
    pub message_model: MessageModel,
    pub subscription_data_set: Vec<SubscriptionData>,
    pub unit_mode: bool,
}

/// What a consumer wants of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionData {
    pub class_filter_mode: bool,
    /// Hashes of the tags ([`crate::record::tags_code`]).
    pub code_set: BTreeSet<i32>,
    /// `TAG` or `SQL92`; `TAG` when missing.
    pub expression_type: Option<String>,
    pub sub_string: String,
    /// Grows with every change; clocks of clients in milliseconds or nanoseconds.
    pub sub_version: i64,
    pub tags_set: BTreeSet<String>,
    pub topic: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConsumeType {
    #[default]
    #[serde(rename = "CONSUME_ACTIVELY")]
    Actively,
    #[serde(rename = "CONSUME_PASSIVELY")]
    Passively,
    #[serde(rename = "CONSUME_POP")]
    Pop,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageModel {
    #[serde(rename = "BROADCASTING")]
    Broadcasting,
    #[default]
    #[serde(rename = "CLUSTERING")]
    Clustering,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConsumeFromWhere {
    #[default]
    #[serde(rename = "CONSUME_FROM_LAST_OFFSET")]
    LastOffset,
    #[serde(rename = "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST")]
    LastOffsetAndFromMinWhenBootFirst,
    #[serde(rename = "CONSUME_FROM_MIN_OFFSET")]
    MinOffset,
    #[serde(rename = "CONSUME_FROM_MAX_OFFSET")]
    MaxOffset,
    #[serde(rename = "CONSUME_FROM_FIRST_OFFSET")]
    FirstOffset,
    #[serde(rename = "CONSUME_FROM_TIMESTAMP")]
    Timestamp,
}

/// Body of [`CHECK_CLIENT_CONFIG`](crate::code::request::CHECK_CLIENT_CONFIG).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CheckClientRequest {
    pub client_id: String,
    pub group: String,
    pub namespace: Option<String>,
    pub subscription_data: SubscriptionData,
}

/// Answer to [`GET_CONSUMER_LIST_BY_GROUP`](crate::code::request::GET_CONSUMER_LIST_BY_GROUP).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerList {
    pub consumer_id_list: Vec<String>,
}

/// Body of [`LOCK_BATCH_MQ`](crate::code::request::LOCK_BATCH_MQ) and
/// [`UNLOCK_BATCH_MQ`](crate::code::request::UNLOCK_BATCH_MQ).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LockBatchRequest {
    pub client_id: String,
    pub consumer_group: String,
    pub mq_set: BTreeSet<super::MessageQueue>,
    /// 5.x: a broker does not ask its replicas.
    pub only_this_broker: Option<bool>,
}

/// Answer to [`LOCK_BATCH_MQ`](crate::code::request::LOCK_BATCH_MQ).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LockBatchResponse {
    #[serde(rename = "lockOKMQSet")]
    pub lock_ok_mq_set: BTreeSet<super::MessageQueue>,
}
