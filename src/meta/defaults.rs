//! Topics and groups that every broker has, as Java creates them at start (`TopicConfigManager`
//! and `SubscriptionGroupManager`, 4.9.8). A new leader proposes those that are missing.

use super::state::{Group, Topic, perm};

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

/// The topics, with their names.
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
        ("SELF_TEST_TOPIC".to_owned(), Topic::with_queues(1, PLAIN)),
        ("BenchmarkTest".to_owned(), Topic::with_queues(1024, PLAIN)),
        (
            names.cluster.clone(),
            Topic::with_queues(16, inherit(names.cluster_topic_enable)),
        ),
        (
            names.broker.clone(),
            Topic::with_queues(1, inherit(names.broker_topic_enable)),
        ),
        (
            "OFFSET_MOVED_EVENT".to_owned(),
            Topic::with_queues(1, PLAIN),
        ),
        (
            "SCHEDULE_TOPIC_XXXX".to_owned(),
            Topic::with_queues(DELAY_LEVELS, PLAIN),
        ),
        (
            format!("{}_REPLY_TOPIC", names.cluster),
            Topic::with_queues(1, PLAIN),
        ),
    ];
    if names.auto_create_topic {
        topics.push((
            "TBW102".to_owned(),
            Topic::with_queues(names.default_queues, inherit(true)),
        ));
    }
    if let Some(trace) = &names.trace_topic {
        topics.push((trace.clone(), Topic::with_queues(1, PLAIN)));
    }
    topics
}

/// The groups, with their names.
pub fn system_groups() -> Vec<(String, Group)> {
    [
        "TOOLS_CONSUMER",
        "FILTERSRV_CONSUMER",
        "SELF_TEST_C_GROUP",
        "CID_ONS-HTTP-PROXY",
        "CID_ONSAPI_PULL",
        "CID_ONSAPI_PERMISSION",
        "CID_ONSAPI_OWNER",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), Group::default()))
    .collect()
}
