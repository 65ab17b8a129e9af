//! Topics and groups that every broker has, as Java creates them at start (`TopicConfigManager`
//! and `SubscriptionGroupManager`, 4.9.8). A new leader proposes those that are missing.

use rmq_wire::body::perm;
use rmq_wire::name;

use super::state::{Group, Topic, check_name};

/// What the names and sizes of system topics depend on.
#[derive(Clone, Debug)]
pub struct SystemNames {
    pub cluster: String,
    pub broker: String,
    /// `autoCreateTopicEnable`: whether there is a `TBW102`.
    pub auto_create_topic: bool,
    /// `defaultTopicQueueNums`.
    pub default_queues: i32,
    /// `clusterTopicEnable`, `brokerTopicEnable`: whether those topics are readable and writable.
    pub cluster_topic_enable: bool,
    pub broker_topic_enable: bool,
    /// `msgTraceTopicName`, if `traceTopicEnable`.
    pub trace_topic: Option<String>,
}

/// The topics, with their names; those that the state takes.
pub fn system_topics(names: &SystemNames) -> Vec<(String, Topic)> {
    const PLAIN: i32 = perm::READ | perm::WRITE;
    /// `SCHEDULE_TOPIC_QUEUE_NUM`, one per default delay level.
    const DELAY_LEVELS: i32 = 18;
    let inherit = |enabled: bool| {
        if enabled {
            PLAIN | perm::INHERIT
        } else {
            perm::INHERIT
        }
    };

    let mut topics = vec![
        (
            name::SELF_TEST_TOPIC.to_owned(),
            Topic::with_queues(1, PLAIN),
        ),
        (
            name::BENCHMARK_TOPIC.to_owned(),
            Topic::with_queues(1024, PLAIN),
        ),
        (
            names.cluster.clone(),
            Topic::with_queues(16, inherit(names.cluster_topic_enable)),
        ),
        (
            names.broker.clone(),
            Topic::with_queues(1, inherit(names.broker_topic_enable)),
        ),
        (
            name::OFFSET_MOVED_EVENT.to_owned(),
            Topic::with_queues(1, PLAIN),
        ),
        (
            name::SCHEDULE_TOPIC.to_owned(),
            Topic::with_queues(DELAY_LEVELS, PLAIN),
        ),
        (
            name::reply_topic(&names.cluster),
            Topic::with_queues(1, PLAIN),
        ),
    ];
    if names.auto_create_topic {
        topics.push((
            name::AUTO_CREATE_TOPIC.to_owned(),
            Topic::with_queues(names.default_queues, inherit(true)),
        ));
    }
    if let Some(trace) = &names.trace_topic {
        topics.push((trace.clone(), Topic::with_queues(1, PLAIN)));
    }
    // A cluster or broker may have a name that no topic can have: a host's has dots.
    topics.retain(|(topic, _)| check_name("topic", topic).is_ok());
    topics
}

/// The groups, with their names.
pub fn system_groups() -> Vec<(String, Group)> {
    [
        name::TOOLS_CONSUMER_GROUP,
        name::FILTERSRV_CONSUMER_GROUP,
        name::SELF_TEST_CONSUMER_GROUP,
        name::ONS_HTTP_PROXY_GROUP,
        name::ONSAPI_PULL_GROUP,
        name::ONSAPI_PERMISSION_GROUP,
        name::ONSAPI_OWNER_GROUP,
    ]
    .into_iter()
    .map(|group| (group.to_owned(), Group::default()))
    .collect()
}
