//! What a name server is asked.

use super::headers;

/// Ours: the further names of a group that clients are shown, however many nodes it has and whoever leads it: the queue
/// of a key, of which the producers choose one by the number of those that they see, stays the same. Stock clients try a
/// send at three names.
pub const GROUP_ALIAS_NAMES: u16 = 2;

/// Ours: the further names that a node has a port for. Go clients, which are shown one queue of each name, are shown all of
/// them, so that they send to several queues. Queue `i` of a topic under the `k`th is its queue `i + k`, beginning anew
/// behind the last.
pub const GROUP_ALIAS_PORTS: u16 = 5;

/// Of so many queues that producers see of a topic, one for each further name is little.
const ALIAS_SHARE: i32 = 40;

/// Ours: how many write queues a group shows of a topic that has `queues`, where each of its further names shows one: the
/// same ones over and over, queue `i` being queue `i % queues`. Producers take turns between all that they see, and so send
/// one message of forty by further names, which take the way over a follower, however few queues the topic has.
#[must_use]
pub fn group_shown_queues(queues: i32) -> i32 {
    let least = i32::from(GROUP_ALIAS_NAMES) * (ALIAS_SHARE - 1);
    if queues <= 0 || queues >= least {
        return queues;
    }
    (least + queues - 1) / queues * queues
}

headers! {
    /// [`GET_ROUTEINFO_BY_TOPIC`](crate::code::request::GET_ROUTEINFO_BY_TOPIC).
    GetRouteInfo {
        topic: String = "topic",
        accept_standard_json_only: Option<bool> = "acceptStandardJsonOnly",
    }

    /// [`REGISTER_BROKER`](crate::code::request::REGISTER_BROKER).
    RegisterBroker {
        broker_name: String = "brokerName",
        broker_addr: String = "brokerAddr",
        cluster_name: String = "clusterName",
        ha_server_addr: String = "haServerAddr",
        broker_id: i64 = "brokerId",
        /// The body is deflated.
        compressed: bool = "compressed" or default,
        /// CRC of the body as [`crate::record::body_crc`]; 0 for none.
        body_crc32: i32 = "bodyCrc32" or default,
        heartbeat_timeout_millis: Option<i64> = "heartbeatTimeoutMillis",
        enable_acting_master: Option<bool> = "enableActingMaster",
        zone_name: Option<String> = "zoneName",
        /// Ours: the Raft term in which the broker has its role. Java ignores it.
        raft_term: Option<i64> = "raftTerm",
        /// Ours, and the next one: where this node of a group takes requests that came by the first further name of the
        /// group, `host:port`; the next one has the next port, and so on. Java ignores them.
        group_alias_addr: Option<String> = "groupAliasAddr",
        /// How many queues of each topic these names show.
        group_alias_queues: Option<i32> = "groupAliasQueues",
        /// Ours: the broker ids of the followers that do not answer their leader, who registers so, with `;` between them.
        /// Java ignores it.
        group_silent: Option<String> = "groupSilent",
        /// Ours: the address that moves with the leader of the group, `host:port`. Java ignores it.
        group_vip: Option<String> = "groupVip",
    }

    /// Answer to [`REGISTER_BROKER`](crate::code::request::REGISTER_BROKER).
    RegisterBrokerResponse {
        ha_server_addr: Option<String> = "haServerAddr",
        master_addr: Option<String> = "masterAddr",
    }

    /// [`UNREGISTER_BROKER`](crate::code::request::UNREGISTER_BROKER) and
    /// [`QUERY_DATA_VERSION`](crate::code::request::QUERY_DATA_VERSION).
    BrokerIdentity {
        broker_name: String = "brokerName",
        broker_addr: String = "brokerAddr",
        cluster_name: String = "clusterName",
        broker_id: i64 = "brokerId",
    }

    /// Answer to [`QUERY_DATA_VERSION`](crate::code::request::QUERY_DATA_VERSION).
    QueryDataVersionResponse {
        changed: bool = "changed",
    }

    /// [`BROKER_HEARTBEAT`](crate::code::request::BROKER_HEARTBEAT).
    BrokerHeartbeat {
        cluster_name: String = "clusterName",
        broker_addr: String = "brokerAddr",
        broker_name: String = "brokerName",
        broker_id: Option<i64> = "brokerId",
    }

    /// [`GET_BROKER_MEMBER_GROUP`](crate::code::request::GET_BROKER_MEMBER_GROUP).
    GetBrokerMemberGroup {
        cluster_name: String = "clusterName",
        broker_name: String = "brokerName",
    }

    /// [`DELETE_TOPIC_IN_NAMESRV`](crate::code::request::DELETE_TOPIC_IN_NAMESRV).
    DeleteTopicInNamesrv {
        topic: String = "topic",
        cluster_name: Option<String> = "clusterName",
    }

    /// [`PUT_KV_CONFIG`](crate::code::request::PUT_KV_CONFIG).
    PutKvConfig {
        namespace: String = "namespace",
        key: String = "key",
        value: String = "value",
    }

    /// [`GET_KV_CONFIG`](crate::code::request::GET_KV_CONFIG) and
    /// [`DELETE_KV_CONFIG`](crate::code::request::DELETE_KV_CONFIG).
    KvConfigKey {
        namespace: String = "namespace",
        key: String = "key",
    }

    /// Answer to [`GET_KV_CONFIG`](crate::code::request::GET_KV_CONFIG).
    GetKvConfigResponse {
        value: Option<String> = "value",
    }

    /// [`GET_KVLIST_BY_NAMESPACE`](crate::code::request::GET_KVLIST_BY_NAMESPACE).
    GetKvListByNamespace {
        namespace: String = "namespace",
    }

    /// [`WIPE_WRITE_PERM_OF_BROKER`](crate::code::request::WIPE_WRITE_PERM_OF_BROKER) and
    /// [`ADD_WRITE_PERM_OF_BROKER`](crate::code::request::ADD_WRITE_PERM_OF_BROKER).
    WritePermOfBroker {
        broker_name: String = "brokerName",
    }

    /// Answer to [`WIPE_WRITE_PERM_OF_BROKER`](crate::code::request::WIPE_WRITE_PERM_OF_BROKER).
    WipeWritePermResponse {
        wipe_topic_count: i32 = "wipeTopicCount",
    }

    /// Answer to [`ADD_WRITE_PERM_OF_BROKER`](crate::code::request::ADD_WRITE_PERM_OF_BROKER).
    AddWritePermResponse {
        add_topic_count: i32 = "addTopicCount",
    }

    /// [`GET_TOPICS_BY_CLUSTER`](crate::code::request::GET_TOPICS_BY_CLUSTER).
    GetTopicsByCluster {
        cluster: String = "cluster",
    }
}
