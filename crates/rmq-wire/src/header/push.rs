//! What a broker asks of a client over the connection that the client opened.

use super::headers;

headers! {
    /// [`CHECK_TRANSACTION_STATE`](crate::code::request::CHECK_TRANSACTION_STATE); the body is the half
    /// message as a record with its real topic and queue.
    CheckTransactionState {
        tran_state_table_offset: i64 = "tranStateTableOffset",
        commit_log_offset: i64 = "commitLogOffset",
        msg_id: Option<String> = "msgId",
        transaction_id: Option<String> = "transactionId",
        offset_msg_id: Option<String> = "offsetMsgId",
        topic: Option<String> = "topic",
        broker_name: Option<String> = "bname",
    }

    /// [`INVOKE_BROKER_TO_RESET_OFFSET`](crate::code::request::INVOKE_BROKER_TO_RESET_OFFSET) by a tool, and
    /// [`RESET_CONSUMER_CLIENT_OFFSET`](crate::code::request::RESET_CONSUMER_CLIENT_OFFSET) to a client.
    ResetOffset {
        topic: String = "topic",
        group: String = "group",
        /// Milliseconds since 1970; -1 for the end of the queue.
        timestamp: i64 = "timestamp" or default,
        is_force: bool = "isForce" or default,
        /// 5.x; all queues when missing or -1.
        queue_id: Option<i32> = "queueId",
        /// 5.x; with a queue: this offset, in place of the timestamp.
        offset: Option<i64> = "offset",
    }

    /// [`INVOKE_BROKER_TO_GET_CONSUMER_STATUS`](crate::code::request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS)
    /// by a tool, and
    /// [`GET_CONSUMER_STATUS_FROM_CLIENT`](crate::code::request::GET_CONSUMER_STATUS_FROM_CLIENT) to a client.
    GetConsumerStatus {
        topic: String = "topic",
        group: String = "group",
        client_addr: Option<String> = "clientAddr",
    }

    /// [`GET_CONSUMER_RUNNING_INFO`](crate::code::request::GET_CONSUMER_RUNNING_INFO), relayed to the client.
    GetConsumerRunningInfo {
        consumer_group: String = "consumerGroup",
        client_id: String = "clientId",
        jstack_enable: bool = "jstackEnable" or default,
    }

    /// [`CONSUME_MESSAGE_DIRECTLY`](crate::code::request::CONSUME_MESSAGE_DIRECTLY), relayed to the client
    /// with the record as its body.
    ConsumeMessageDirectly {
        consumer_group: String = "consumerGroup",
        client_id: Option<String> = "clientId",
        msg_id: Option<String> = "msgId",
        broker_name: Option<String> = "brokerName",
        topic: Option<String> = "topic",
    }

    /// [`PUSH_REPLY_MESSAGE_TO_CLIENT`](crate::code::request::PUSH_REPLY_MESSAGE_TO_CLIENT)
    /// (`ReplyMessageRequestHeader`).
    ReplyMessage {
        producer_group: String = "producerGroup",
        topic: String = "topic",
        default_topic: String = "defaultTopic",
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        queue_id: i32 = "queueId",
        sys_flag: i32 = "sysFlag",
        born_timestamp: i64 = "bornTimestamp",
        flag: i32 = "flag",
        properties: Option<String> = "properties",
        reconsume_times: Option<i32> = "reconsumeTimes",
        unit_mode: bool = "unitMode" or default,
        /// `ip:port`.
        born_host: String = "bornHost",
        /// `ip:port`.
        store_host: String = "storeHost",
        store_timestamp: i64 = "storeTimestamp",
    }
}
