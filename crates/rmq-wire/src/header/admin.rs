//! What tools ask of a broker.

use super::headers;

headers! {
    /// [`UPDATE_AND_CREATE_TOPIC`](crate::code::request::UPDATE_AND_CREATE_TOPIC).
    CreateTopic {
        topic: String = "topic",
        default_topic: String = "defaultTopic",
        read_queue_nums: i32 = "readQueueNums",
        write_queue_nums: i32 = "writeQueueNums",
        /// Bits of Bits of [`crate::body::perm`].
        perm: i32 = "perm",
        topic_filter_type: String = "topicFilterType",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        order: bool = "order" or default,
        /// 5.x: `+key=value,-key`.
        attributes: Option<String> = "attributes",
        force: Option<bool> = "force",
    }

    /// [`DELETE_SUBSCRIPTIONGROUP`](crate::code::request::DELETE_SUBSCRIPTIONGROUP).
    DeleteSubscriptionGroup {
        group_name: String = "groupName",
        /// 4.9: forget its offsets too.
        remove_offset: Option<bool> = "removeOffset",
        /// The same in 5.x.
        clean_offset: Option<bool> = "cleanOffset",
    }

    /// Requests that name a group:
    /// [`QUERY_TOPICS_BY_CONSUMER`](crate::code::request::QUERY_TOPICS_BY_CONSUMER),
    /// [`QUERY_SUBSCRIPTION_BY_CONSUMER`](crate::code::request::QUERY_SUBSCRIPTION_BY_CONSUMER),
    /// [`GET_SUBSCRIPTIONGROUP_CONFIG`](crate::code::request::GET_SUBSCRIPTIONGROUP_CONFIG),
    /// [`QUERY_CONSUME_TIME_SPAN`](crate::code::request::QUERY_CONSUME_TIME_SPAN).
    GroupTopic {
        group: String = "group",
        topic: Option<String> = "topic",
    }

    /// [`GET_PRODUCER_CONNECTION_LIST`](crate::code::request::GET_PRODUCER_CONNECTION_LIST).
    ProducerGroup {
        producer_group: String = "producerGroup",
    }

    /// [`GET_CONSUME_STATS`](crate::code::request::GET_CONSUME_STATS).
    GetConsumeStats {
        consumer_group: String = "consumerGroup",
        /// All topics of the group when missing or empty.
        topic: Option<String> = "topic",
        /// 5.x: topics with `;` between.
        topic_list: Option<String> = "topicList",
    }

    /// [`GET_BROKER_CONSUME_STATS`](crate::code::request::GET_BROKER_CONSUME_STATS).
    GetBrokerConsumeStats {
        is_order: bool = "isOrder" or default,
    }

    /// Answer to [`GET_BROKER_CONFIG`](crate::code::request::GET_BROKER_CONFIG).
    GetBrokerConfigResponse {
        /// A [`crate::body::DataVersion`] as JSON.
        version: String = "version",
    }

    /// [`VIEW_BROKER_STATS_DATA`](crate::code::request::VIEW_BROKER_STATS_DATA).
    ViewBrokerStatsData {
        stats_name: String = "statsName",
        stats_key: String = "statsKey",
    }

    /// [`QUERY_CONSUME_QUEUE`](crate::code::request::QUERY_CONSUME_QUEUE).
    QueryConsumeQueue {
        topic: String = "topic",
        queue_id: i32 = "queueId" or default,
        index: i64 = "index" or default,
        count: i32 = "count" or default,
        consumer_group: Option<String> = "consumerGroup",
    }

    /// [`QUERY_CORRECTION_OFFSET`](crate::code::request::QUERY_CORRECTION_OFFSET).
    QueryCorrectionOffset {
        filter_groups: Option<String> = "filterGroups",
        compare_group: String = "compareGroup",
        topic: String = "topic",
    }

    /// [`CLONE_GROUP_OFFSET`](crate::code::request::CLONE_GROUP_OFFSET).
    CloneGroupOffset {
        src_group: String = "srcGroup",
        dest_group: String = "destGroup",
        topic: Option<String> = "topic",
        offline: bool = "offline" or default,
    }

    /// [`RESUME_CHECK_HALF_MESSAGE`](crate::code::request::RESUME_CHECK_HALF_MESSAGE).
    ResumeCheckHalfMessage {
        msg_id: Option<String> = "msgId",
        topic: Option<String> = "topic",
    }

    /// [`UPDATE_AND_CREATE_ACL_CONFIG`](crate::code::request::UPDATE_AND_CREATE_ACL_CONFIG), 4.9.
    CreateAccessConfig {
        access_key: String = "accessKey",
        secret_key: Option<String> = "secretKey",
        white_remote_address: Option<String> = "whiteRemoteAddress",
        admin: bool = "admin" or default,
        default_topic_perm: Option<String> = "defaultTopicPerm",
        default_group_perm: Option<String> = "defaultGroupPerm",
        topic_perms: Option<String> = "topicPerms",
        group_perms: Option<String> = "groupPerms",
    }

    /// [`DELETE_ACL_CONFIG`](crate::code::request::DELETE_ACL_CONFIG), 4.9.
    DeleteAccessConfig {
        access_key: String = "accessKey",
    }

    /// [`UPDATE_GLOBAL_WHITE_ADDRS_CONFIG`](crate::code::request::UPDATE_GLOBAL_WHITE_ADDRS_CONFIG), 4.9.
    UpdateGlobalWhiteAddrs {
        global_white_addrs: String = "globalWhiteAddrs",
        acl_file_full_path: String = "aclFileFullPath",
    }

    /// Answer to [`GET_BROKER_CLUSTER_ACL_INFO`](crate::code::request::GET_BROKER_CLUSTER_ACL_INFO), 4.9.
    GetBrokerAclConfigResponse {
        version: String = "version",
        all_acl_file_version: Option<String> = "allAclFileVersion",
        broker_name: String = "brokerName",
        broker_addr: String = "brokerAddr",
        cluster_name: String = "clusterName",
    }
}
