//! Names of topics and groups: the rules, the reserved ones, and the prefixes.
//!
//! Rules and words are those of `TopicValidator` and `Validators` in RocketMQ 4.9.8 (the words reach
//! users, who search for them). A name becomes part of a path and of a JSON text further on, so every
//! entry of a name into the broker goes through [`check_topic`] or [`check_group`].

/// Most characters of a topic.
pub const TOPIC_MAX_LEN: usize = 127;
/// Most characters of a topic made from a group ([`retry_topic`], [`dlq_topic`]): what a file system
/// takes as the name of a directory, for every topic has one.
pub const GROUP_TOPIC_MAX_LEN: usize = 255;
/// Most characters of a group.
pub const GROUP_MAX_LEN: usize = 255;
/// Most bytes of a client id. Stock ones, `ip@instance@unit`, have less than a hundred; it is kept with each group of the
/// client and each queue that it locks.
pub const CLIENT_ID_MAX_LEN: usize = 1024;

/// The topic that new ones are copied from when a producer names it as its default.
pub const AUTO_CREATE_TOPIC: &str = "TBW102";
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
pub const BENCHMARK_TOPIC: &str = "BenchmarkTest";
pub const TRANS_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
pub const TRANS_OP_HALF_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
pub const TRANS_CHECK_MAX_TIME_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
pub const TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
pub const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
pub const OFFSET_MOVED_EVENT: &str = "OFFSET_MOVED_EVENT";
/// Prefix of every other system topic.
pub const SYSTEM_TOPIC_PREFIX: &str = "rmq_sys_";
/// The topic of the records that frame the entries of our Raft log; no client may name it.
pub const RAFT_LOG_TOPIC: &str = "rmq_sys_raft_log";

pub const RETRY_PREFIX: &str = "%RETRY%";
pub const DLQ_PREFIX: &str = "%DLQ%";
pub const LMQ_PREFIX: &str = "%LMQ%";

pub const TOOLS_CONSUMER_GROUP: &str = "TOOLS_CONSUMER";
pub const FILTERSRV_CONSUMER_GROUP: &str = "FILTERSRV_CONSUMER";
pub const SELF_TEST_CONSUMER_GROUP: &str = "SELF_TEST_C_GROUP";
pub const ONS_HTTP_PROXY_GROUP: &str = "CID_ONS-HTTP-PROXY";
pub const ONSAPI_PULL_GROUP: &str = "CID_ONSAPI_PULL";
pub const ONSAPI_PERMISSION_GROUP: &str = "CID_ONSAPI_PERMISSION";
pub const ONSAPI_OWNER_GROUP: &str = "CID_ONSAPI_OWNER";
/// The group whose offsets are the progress of the transaction checks.
pub const TRANS_GROUP: &str = "CID_RMQ_SYS_TRANS";
/// Prefix of every other system group.
pub const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

const SYSTEM_TOPICS: [&str; 9] = [
    AUTO_CREATE_TOPIC,
    SCHEDULE_TOPIC,
    BENCHMARK_TOPIC,
    TRANS_HALF_TOPIC,
    TRACE_TOPIC,
    TRANS_OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
];

const NOT_ALLOWED_SEND_TOPICS: [&str; 7] = [
    SCHEDULE_TOPIC,
    TRANS_HALF_TOPIC,
    TRANS_OP_HALF_TOPIC,
    TRANS_CHECK_MAX_TIME_TOPIC,
    SELF_TEST_TOPIC,
    OFFSET_MOVED_EVENT,
    RAFT_LOG_TOPIC,
];

const SYSTEM_GROUPS: [&str; 7] = [
    TOOLS_CONSUMER_GROUP,
    FILTERSRV_CONSUMER_GROUP,
    SELF_TEST_CONSUMER_GROUP,
    ONS_HTTP_PROXY_GROUP,
    ONSAPI_PULL_GROUP,
    ONSAPI_PERMISSION_GROUP,
    ONSAPI_OWNER_GROUP,
];

/// What is wrong with a name; the texts are Java's remarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("The specified topic is blank.")]
    TopicBlank,
    #[error("The specified topic contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")]
    TopicIllegal,
    #[error("The specified topic is longer than topic max length.")]
    TopicTooLong,
    #[error("the specified group is blank")]
    GroupBlank,
    #[error("the specified group contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")]
    GroupIllegal,
    #[error("the specified group is longer than group max length 255.")]
    GroupTooLong,
    #[error("the client id is longer than 1024 bytes")]
    ClientIdTooLong,
}

/// Checks a topic that comes from outside.
///
/// The topic of a group's retries or dead letters may have [`GROUP_TOPIC_MAX_LEN`] characters.
///
/// # Errors
/// [`NameError`]: blank, a character outside `[%|a-zA-Z0-9_-]`, or too long.
pub fn check_topic(topic: &str) -> Result<(), NameError> {
    if is_blank(topic) {
        return Err(NameError::TopicBlank);
    }
    if !legal(topic) {
        return Err(NameError::TopicIllegal);
    }
    let max = if group_of(topic).is_some() {
        GROUP_TOPIC_MAX_LEN
    } else {
        TOPIC_MAX_LEN
    };
    if topic.len() > max {
        return Err(NameError::TopicTooLong);
    }
    Ok(())
}

/// Checks a group that comes from outside.
///
/// # Errors
/// [`NameError`]: blank, a character outside `[%|a-zA-Z0-9_-]`, or longer than [`GROUP_MAX_LEN`].
pub fn check_group(group: &str) -> Result<(), NameError> {
    if is_blank(group) {
        return Err(NameError::GroupBlank);
    }
    if group.len() > GROUP_MAX_LEN {
        return Err(NameError::GroupTooLong);
    }
    if !legal(group) {
        return Err(NameError::GroupIllegal);
    }
    Ok(())
}

/// Checks a client id that comes from outside.
///
/// # Errors
/// [`NameError`]: longer than [`CLIENT_ID_MAX_LEN`].
pub fn check_client_id(id: &str) -> Result<(), NameError> {
    if id.len() > CLIENT_ID_MAX_LEN {
        return Err(NameError::ClientIdTooLong);
    }
    Ok(())
}

fn is_blank(name: &str) -> bool {
    name.chars().all(char::is_whitespace)
}

fn legal(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'%' | b'|' | b'_' | b'-'))
}

/// Whether a topic belongs to the system, so that clients neither create nor delete it.
#[must_use]
pub fn is_system_topic(topic: &str) -> bool {
    SYSTEM_TOPICS.contains(&topic) || topic.starts_with(SYSTEM_TOPIC_PREFIX)
}

/// Whether clients may not send to a topic.
#[must_use]
pub fn is_not_allowed_send_topic(topic: &str) -> bool {
    NOT_ALLOWED_SEND_TOPICS.contains(&topic)
}

/// Whether a group belongs to the system: one that every broker has, or one with the prefix.
#[must_use]
pub fn is_system_group(group: &str) -> bool {
    SYSTEM_GROUPS.contains(&group) || group.starts_with(SYSTEM_GROUP_PREFIX)
}

/// The topic that holds what `group` has to consume again.
#[must_use]
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// The topic that holds what `group` gave up on.
#[must_use]
pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_PREFIX}{group}")
}

#[must_use]
pub fn is_retry_topic(topic: &str) -> bool {
    topic.starts_with(RETRY_PREFIX)
}

#[must_use]
pub fn is_dlq_topic(topic: &str) -> bool {
    topic.starts_with(DLQ_PREFIX)
}

/// The group in the name of its retry or dead letter topic.
#[must_use]
pub fn group_of(topic: &str) -> Option<&str> {
    topic
        .strip_prefix(RETRY_PREFIX)
        .or_else(|| topic.strip_prefix(DLQ_PREFIX))
}

/// The topic that replies to requests through a cluster are sent to.
#[must_use]
pub fn reply_topic(cluster: &str) -> String {
    format!("{cluster}_REPLY_TOPIC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_follow_the_rules() {
        for good in [
            "a",
            "%RETRY%g|x_-9",
            &"t".repeat(127),
            &retry_topic(&"g".repeat(248)),
        ] {
            assert_eq!(check_topic(good), Ok(()), "{good}");
        }
        for blank in ["", " ", "\t\n"] {
            assert_eq!(check_topic(blank), Err(NameError::TopicBlank));
        }
        for illegal in ["a b", "../x", "a/b", "ü", "a\0", "a.b", "a\"b"] {
            assert_eq!(
                check_topic(illegal),
                Err(NameError::TopicIllegal),
                "{illegal}"
            );
        }
        for long in ["t".repeat(128), dlq_topic(&"g".repeat(251))] {
            assert_eq!(check_topic(&long), Err(NameError::TopicTooLong));
        }
    }

    #[test]
    fn groups_follow_the_rules() {
        assert_eq!(check_group(&"g".repeat(255)), Ok(()));
        assert_eq!(check_group(" "), Err(NameError::GroupBlank));
        assert_eq!(check_group("a@b"), Err(NameError::GroupIllegal));
        assert_eq!(check_group(&"g".repeat(256)), Err(NameError::GroupTooLong));
    }

    #[test]
    fn the_topic_of_the_raft_log_is_closed_to_clients() {
        assert!(is_system_topic(RAFT_LOG_TOPIC));
        assert!(is_not_allowed_send_topic(RAFT_LOG_TOPIC));
        assert!(!is_system_topic("orders") && !is_not_allowed_send_topic("TBW102"));
    }

    #[test]
    fn a_group_is_found_in_its_topics() {
        assert_eq!(group_of(&retry_topic("g")), Some("g"));
        assert_eq!(group_of(&dlq_topic("g")), Some("g"));
        assert_eq!(group_of("g"), None);
    }
}
