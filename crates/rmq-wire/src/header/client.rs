//! Consuming, offsets, heartbeats, transactions, queries.

use super::headers;

/// Bits of [`PullMessage::sys_flag`] (`PullSysFlag`).
pub mod pull_sys_flag {
    /// [`super::PullMessage::commit_offset`] is to be stored.
    pub const COMMIT_OFFSET: i32 = 0x1;
    /// The broker may hold the request until something arrives.
    pub const SUSPEND: i32 = 0x2;
    /// The request has a subscription of its own.
    pub const SUBSCRIPTION: i32 = 0x4;
    pub const CLASS_FILTER: i32 = 0x8;
    pub const LITE_PULL: i32 = 0x10;
}

headers! {
    /// Requests that name a topic and nothing else we need:
    /// [`GET_TOPIC_STATS_INFO`](crate::code::request::GET_TOPIC_STATS_INFO),
    /// [`DELETE_TOPIC_IN_BROKER`](crate::code::request::DELETE_TOPIC_IN_BROKER),
    /// [`QUERY_TOPIC_CONSUME_BY_WHO`](crate::code::request::QUERY_TOPIC_CONSUME_BY_WHO),
    /// [`GET_TOPIC_CONFIG`](crate::code::request::GET_TOPIC_CONFIG),
    /// [`REGISTER_TOPIC_IN_NAMESRV`](crate::code::request::REGISTER_TOPIC_IN_NAMESRV).
    TopicOnly {
        topic: String = "topic",
    }

    /// Requests that name a consumer group:
    /// [`GET_CONSUMER_LIST_BY_GROUP`](crate::code::request::GET_CONSUMER_LIST_BY_GROUP),
    /// [`GET_CONSUMER_CONNECTION_LIST`](crate::code::request::GET_CONSUMER_CONNECTION_LIST),
    /// [`NOTIFY_CONSUMER_IDS_CHANGED`](crate::code::request::NOTIFY_CONSUMER_IDS_CHANGED).
    ConsumerGroup {
        consumer_group: String = "consumerGroup",
    }

    /// [`PULL_MESSAGE`](crate::code::request::PULL_MESSAGE) and
    /// [`LITE_PULL_MESSAGE`](crate::code::request::LITE_PULL_MESSAGE).
    PullMessage {
        consumer_group: String = "consumerGroup",
        topic: String = "topic",
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        max_msg_nums: i32 = "maxMsgNums",
        /// Bits of [`pull_sys_flag`].
        sys_flag: i32 = "sysFlag",
        commit_offset: i64 = "commitOffset",
        suspend_timeout_millis: i64 = "suspendTimeoutMillis",
        subscription: Option<String> = "subscription",
        sub_version: i64 = "subVersion",
        expression_type: Option<String> = "expressionType",
        max_msg_bytes: Option<i32> = "maxMsgBytes",
        request_source: Option<i32> = "requestSource",
        /// Spelled so in Java.
        proxy_forward_client_id: Option<String> = "proxyFrowardClientId",
    }

    /// Answer to a pull; clients need the first four with codes 0, 19, 20 and 21.
    PullMessageResponse {
        suggest_which_broker_id: i64 = "suggestWhichBrokerId",
        next_begin_offset: i64 = "nextBeginOffset",
        min_offset: i64 = "minOffset",
        max_offset: i64 = "maxOffset",
        offset_delta: Option<i64> = "offsetDelta",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        group_sys_flag: Option<i32> = "groupSysFlag",
        forbidden_type: Option<i32> = "forbiddenType",
    }

    /// [`UNREGISTER_CLIENT`](crate::code::request::UNREGISTER_CLIENT).
    UnregisterClient {
        client_id: String = "clientID",
        producer_group: Option<String> = "producerGroup",
        consumer_group: Option<String> = "consumerGroup",
    }

    /// [`CONSUMER_SEND_MSG_BACK`](crate::code::request::CONSUMER_SEND_MSG_BACK).
    ConsumerSendMsgBack {
        /// Physical offset of the record, in bytes.
        offset: i64 = "offset",
        group: String = "group",
        delay_level: i32 = "delayLevel",
        origin_msg_id: Option<String> = "originMsgId",
        origin_topic: Option<String> = "originTopic",
        unit_mode: bool = "unitMode" or default,
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
    }

    /// [`QUERY_CONSUMER_OFFSET`](crate::code::request::QUERY_CONSUMER_OFFSET).
    QueryConsumerOffset {
        consumer_group: String = "consumerGroup",
        topic: String = "topic",
        queue_id: i32 = "queueId",
        set_zero_if_not_found: Option<bool> = "setZeroIfNotFound",
    }

    /// [`UPDATE_CONSUMER_OFFSET`](crate::code::request::UPDATE_CONSUMER_OFFSET).
    UpdateConsumerOffset {
        consumer_group: String = "consumerGroup",
        topic: String = "topic",
        queue_id: i32 = "queueId",
        commit_offset: i64 = "commitOffset",
    }

    /// Answer to every question for an offset of a queue.
    OffsetResponse {
        offset: i64 = "offset",
    }

    /// [`SEARCH_OFFSET_BY_TIMESTAMP`](crate::code::request::SEARCH_OFFSET_BY_TIMESTAMP).
    SearchOffset {
        topic: String = "topic",
        queue_id: i32 = "queueId",
        /// Milliseconds since 1970, of the store.
        timestamp: i64 = "timestamp",
        /// 5.x: `LOWER` or `UPPER`.
        boundary_type: Option<String> = "boundaryType",
    }

    /// [`GET_MAX_OFFSET`](crate::code::request::GET_MAX_OFFSET).
    GetMaxOffset {
        topic: String = "topic",
        queue_id: i32 = "queueId",
        /// 5.x; true when missing.
        committed: Option<bool> = "committed",
    }

    /// [`GET_MIN_OFFSET`](crate::code::request::GET_MIN_OFFSET) and
    /// [`GET_EARLIEST_MSG_STORETIME`](crate::code::request::GET_EARLIEST_MSG_STORETIME).
    TopicQueue {
        topic: String = "topic",
        queue_id: i32 = "queueId",
    }

    /// Answer to [`GET_EARLIEST_MSG_STORETIME`](crate::code::request::GET_EARLIEST_MSG_STORETIME).
    EarliestMsgStoretimeResponse {
        /// Milliseconds since 1970.
        timestamp: i64 = "timestamp",
    }

    /// [`VIEW_MESSAGE_BY_ID`](crate::code::request::VIEW_MESSAGE_BY_ID).
    ViewMessage {
        /// Physical offset of the record, in bytes.
        offset: i64 = "offset",
        topic: Option<String> = "topic",
    }

    /// [`QUERY_MESSAGE`](crate::code::request::QUERY_MESSAGE).
    QueryMessage {
        topic: String = "topic",
        key: String = "key",
        max_num: i32 = "maxNum",
        /// Milliseconds since 1970, of the store.
        begin_timestamp: i64 = "beginTimestamp",
        end_timestamp: i64 = "endTimestamp",
        /// Asked for by unique key: the broker's own bound takes the place of `max_num`. In no class of
        /// Java, set and read as a bare field.
        unique_key_query: Option<bool> = "_UNIQUE_KEY_QUERY",
        /// 5.4 and later: `U` for a unique key, `K` for a key, `T` for a tag.
        index_type: Option<String> = "indexType",
        last_key: Option<String> = "lastKey",
    }

    /// Answer to [`QUERY_MESSAGE`](crate::code::request::QUERY_MESSAGE).
    QueryMessageResponse {
        index_last_update_timestamp: i64 = "indexLastUpdateTimestamp",
        index_last_update_phyoffset: i64 = "indexLastUpdatePhyoffset",
    }

    /// [`END_TRANSACTION`](crate::code::request::END_TRANSACTION).
    EndTransaction {
        producer_group: String = "producerGroup",
        tran_state_table_offset: i64 = "tranStateTableOffset",
        /// Physical offset of the half message, in bytes.
        commit_log_offset: i64 = "commitLogOffset",
        /// 0 not known, 8 commit, 12 rollback: bits of [`crate::record::sys_flag`].
        commit_or_rollback: i32 = "commitOrRollback",
        from_transaction_check: bool = "fromTransactionCheck" or default,
        msg_id: String = "msgId",
        transaction_id: Option<String> = "transactionId",
        topic: Option<String> = "topic",
    }
}
