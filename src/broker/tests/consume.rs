use std::sync::Arc;
use std::time::Duration;

use rmq_wire::header::{
    EarliestMsgStoretimeResponse, GetMaxOffset, OffsetResponse, PullMessageResponse,
    QueryConsumerOffset, QueryMessage, SearchOffset, TopicQueue, UpdateConsumerOffset, ViewMessage,
};
use rmq_wire::msg_id;
use rmq_wire::name::RAFT_LOG_TOPIC;
use tokio::time::timeout;

use super::*;
use crate::broker::testing::now_ms;

fn query_offset() -> QueryConsumerOffset {
    QueryConsumerOffset {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        set_zero_if_not_found: None,
    }
}

fn update_offset(offset: i64) -> Command {
    Command::request(request::UPDATE_CONSUMER_OFFSET).with_header(&UpdateConsumerOffset {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        commit_offset: offset,
    })
}

#[tokio::test]
async fn messages_come_out_in_order_and_by_tag() {
    let node = Node::start().await;
    for (tag, body) in [("a", b"1"), ("b", b"2"), ("a", b"3")] {
        node.sent(send(&format!("TAGS\x01{tag}"), body)).await;
    }
    let answer = node.pulled(&pull(0)).await;
    assert_eq!(bodies(&answer), [b"1", b"2", b"3"]);
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(
        (
            header.next_begin_offset,
            header.min_offset,
            header.max_offset
        ),
        (3, 0, 3)
    );
    assert_eq!(header.suggest_which_broker_id, 0);

    let only = |tag: &str| PullMessage {
        subscription: Some(tag.to_owned()),
        ..pull(0)
    };
    assert_eq!(bodies(&node.pulled(&only("a || c")).await), [b"1", b"3"]);
    let answer = node.told(pull_request(&only("c"))).await;
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.next_begin_offset, 3, "past what nobody wants");

    let few = PullMessage {
        max_msg_nums: 2,
        ..pull(0)
    };
    assert_eq!(bodies(&node.pulled(&few).await), [b"1", b"2"]);
}

#[tokio::test]
async fn a_consumer_outside_its_queue_is_told_where_to_go() {
    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    for (offset, code, next) in [
        (1, response::PULL_NOT_FOUND, 1),
        (9, response::PULL_OFFSET_MOVED, 1),
    ] {
        let answer = node.told(pull_request(&pull(offset))).await;
        let header: PullMessageResponse = answer.header().unwrap();
        assert_eq!(
            (answer.code, header.next_begin_offset),
            (code, next),
            "from {offset}"
        );
    }
    let told = PullMessage {
        topic: "OFFSET_MOVED_EVENT".to_owned(),
        sys_flag: pull(0).sys_flag | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 30_000,
        ..pull(0)
    };
    let event = String::from_utf8(bodies(&node.pulled(&told).await)[0].clone()).unwrap();
    for part in [
        r#""consumerGroup":"g""#,
        r#""topic":"T""#,
        r#""queueId":0"#,
        r#""offsetRequest":9"#,
        r#""offsetNew":1"#,
    ] {
        assert!(event.contains(part), "{part} in {event}");
    }
    let empty = |offset| PullMessage {
        queue_id: 1,
        ..pull(offset)
    };
    assert_eq!(
        node.told(pull_request(&empty(0))).await.code,
        response::PULL_NOT_FOUND
    );
    assert_eq!(
        node.told(pull_request(&empty(5))).await.code,
        response::PULL_OFFSET_MOVED
    );
}

#[tokio::test]
async fn who_may_not_pull_is_told_why() {
    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    for (wrong, code) in [
        (
            PullMessage {
                topic: "U".to_owned(),
                ..pull(0)
            },
            response::TOPIC_NOT_EXIST,
        ),
        (
            PullMessage {
                queue_id: 2,
                ..pull(0)
            },
            response::SYSTEM_ERROR,
        ),
        (
            PullMessage {
                queue_id: -1,
                ..pull(0)
            },
            response::SYSTEM_ERROR,
        ),
        (
            PullMessage {
                sys_flag: 0,
                ..pull(0)
            },
            response::SUBSCRIPTION_NOT_EXIST,
        ),
        (
            PullMessage {
                consumer_group: "g g".to_owned(),
                ..pull(0)
            },
            response::SYSTEM_ERROR,
        ),
        (
            PullMessage {
                expression_type: Some("SQL92".to_owned()),
                ..pull(0)
            },
            response::SYSTEM_ERROR,
        ),
    ] {
        let answer = node.told(pull_request(&wrong)).await;
        assert_eq!(answer.code, code, "{wrong:?}: {:?}", answer.remark);
    }
}

#[tokio::test]
async fn a_pull_waits_for_its_message() {
    let node = Arc::new(Node::start().await);
    node.sent(send("TAGS\x01a", b"1")).await;
    let waiting = PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 30_000,
        subscription: Some("a".to_owned()),
        ..pull(1)
    };
    let pulling = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.told(pull_request(&waiting)).await })
    };
    while node.broker.holds.is_empty() {
        tokio::task::yield_now().await;
    }
    node.sent(send("TAGS\x01b", b"2")).await;
    node.sent(send("TAGS\x01a", b"3")).await;
    // Not when it looks by itself.
    let answer = at_once(pulling).await.unwrap();
    assert_eq!(bodies(&answer), [b"3"]);
    assert_eq!(node.broker.holds.len(), 0);
}

#[tokio::test]
async fn a_pull_that_waited_in_vain_is_told_so() {
    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    let waiting = PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 50,
        ..pull(1)
    };
    let begun = tokio::time::Instant::now();
    assert_eq!(
        node.told(pull_request(&waiting)).await.code,
        response::PULL_NOT_FOUND
    );
    assert!(begun.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn a_pull_that_waits_when_the_leader_changes_is_to_be_repeated() {
    let node = Arc::new(Node::start().await);
    node.sent(send("", b"1")).await;
    let waiting = PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 30_000,
        ..pull(1)
    };
    let pulling = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.told(pull_request(&waiting)).await })
    };
    while node.broker.holds.is_empty() {
        tokio::task::yield_now().await;
    }
    node.replica.follow(Some("other:1"));
    let answer = at_once(pulling).await.unwrap();
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.next_begin_offset, 1);
}

#[tokio::test]
async fn a_pull_does_not_hold_up_the_end() {
    let node = Arc::new(Node::start().await);
    node.sent(send("", b"1")).await;
    let waiting = PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 30_000,
        ..pull(1)
    };
    let pulling = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.told(pull_request(&waiting)).await })
    };
    while node.broker.holds.is_empty() {
        tokio::task::yield_now().await;
    }
    node.broker.leave();
    let answer = at_once(pulling).await.unwrap();
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
}

#[tokio::test]
async fn offsets_are_kept_and_seen_by_the_next_query() {
    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    let found: OffsetResponse = node
        .asked(request::QUERY_CONSUMER_OFFSET, &query_offset())
        .await;
    assert_eq!(found.offset, 0, "a new group in a young queue");
    let strict = QueryConsumerOffset {
        set_zero_if_not_found: Some(false),
        ..query_offset()
    };
    let query = Command::request(request::QUERY_CONSUMER_OFFSET).with_header(&strict);
    assert_eq!(node.told(query).await.code, response::QUERY_NOT_FOUND);

    assert_eq!(node.told(update_offset(7)).await.code, response::SUCCESS);
    let found: OffsetResponse = node
        .asked(request::QUERY_CONSUMER_OFFSET, &query_offset())
        .await;
    assert_eq!(found.offset, 7);

    let mut oneway = update_offset(9);
    oneway.mark_oneway();
    node.ask(oneway).await;
    let found: OffsetResponse = node
        .asked(request::QUERY_CONSUMER_OFFSET, &query_offset())
        .await;
    assert_eq!(found.offset, 9);

    let with_commit = PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::COMMIT_OFFSET,
        commit_offset: 11,
        ..pull(0)
    };
    node.told(pull_request(&with_commit)).await;
    let found: OffsetResponse = node
        .asked(request::QUERY_CONSUMER_OFFSET, &query_offset())
        .await;
    assert_eq!(found.offset, 11);

    assert_eq!(
        node.told(update_offset(-1)).await.code,
        response::SYSTEM_ERROR
    );
}

#[tokio::test]
async fn an_offset_that_the_state_refuses_costs_nobody_theirs() {
    let node = Node::start().await;
    let refused = |group: &str, topic: &str, queue_id, offset| {
        Command::request(request::UPDATE_CONSUMER_OFFSET).with_header(&UpdateConsumerOffset {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id,
            commit_offset: offset,
        })
    };
    for (round, refused) in (1..).zip([
        refused(RAFT_LOG_TOPIC, "T", 0, 1),
        refused("g", RAFT_LOG_TOPIC, 0, 1),
        refused("g", "T", -1, 1),
        refused("g", "T", 0, -1),
        refused(&"g".repeat(256), "T", 0, 1),
        refused("g", &"t".repeat(128), 0, 1),
        refused("", "T", 0, 1),
    ]) {
        let mut others = update_offset(round);
        others.mark_oneway();
        node.ask(others).await;
        assert_eq!(node.told(refused).await.code, response::SYSTEM_ERROR);
        let found: OffsetResponse = node
            .asked(request::QUERY_CONSUMER_OFFSET, &query_offset())
            .await;
        assert_eq!(found.offset, round);
    }
}

#[tokio::test]
async fn queues_tell_their_bounds_and_times() {
    let node = Node::start().await;
    let before = now_ms();
    for body in [b"1", b"2", b"3"] {
        node.sent(send("", body)).await;
    }
    let queue = TopicQueue {
        topic: "T".to_owned(),
        queue_id: 0,
    };
    let max = GetMaxOffset {
        topic: "T".to_owned(),
        queue_id: 0,
        committed: None,
    };
    let found: OffsetResponse = node.asked(request::GET_MAX_OFFSET, &max).await;
    assert_eq!(found.offset, 3);
    let found: OffsetResponse = node.asked(request::GET_MIN_OFFSET, &queue).await;
    assert_eq!(found.offset, 0);
    let at = |timestamp| SearchOffset {
        topic: "T".to_owned(),
        queue_id: 0,
        timestamp,
        boundary_type: None,
    };
    node.pulled(&pull(2)).await;
    let found: OffsetResponse = node
        .asked(request::SEARCH_OFFSET_BY_TIMESTAMP, &at(before))
        .await;
    assert_eq!(found.offset, 0);
    let found: OffsetResponse = node
        .asked(request::SEARCH_OFFSET_BY_TIMESTAMP, &at(now_ms() + 60_000))
        .await;
    assert_eq!(found.offset, 3);
    let first: EarliestMsgStoretimeResponse = node
        .asked(request::GET_EARLIEST_MSG_STORETIME, &queue)
        .await;
    assert!(first.timestamp >= before);
}

#[tokio::test]
async fn messages_are_found_by_key_and_by_id() {
    let node = Node::start().await;
    let sent = node.sent(send("KEYS\x01x y\x02UNIQ_KEY\x01u", b"1")).await;
    node.pulled(&pull(0)).await;
    let query = |key: &str| QueryMessage {
        topic: "T".to_owned(),
        key: key.to_owned(),
        max_num: 32,
        begin_timestamp: 0,
        end_timestamp: i64::MAX,
        ..QueryMessage::default()
    };
    let ask = |query: &QueryMessage| Command::request(request::QUERY_MESSAGE).with_header(query);
    for key in ["x", "y", "u"] {
        assert_eq!(bodies(&node.told(ask(&query(key))).await), [b"1"], "{key}");
    }
    let unique = QueryMessage {
        unique_key_query: Some(true),
        max_num: 0,
        ..query("u")
    };
    assert_eq!(bodies(&node.told(ask(&unique)).await), [b"1"]);
    assert_eq!(
        node.told(ask(&query("z"))).await.code,
        response::QUERY_NOT_FOUND
    );

    let (_, offset) = msg_id::decode(&sent.msg_id).unwrap();
    let view = |offset| {
        Command::request(request::VIEW_MESSAGE_BY_ID).with_header(&ViewMessage {
            offset,
            topic: None,
        })
    };
    assert_eq!(bodies(&node.told(view(offset)).await), [b"1"]);
    // Neither the log's own records nor the middle of a message are messages.
    for wrong in [0, offset + 1, -1, i64::MAX] {
        assert_eq!(
            node.told(view(wrong)).await.code,
            response::SYSTEM_ERROR,
            "{wrong}"
        );
    }
}

/// Readers of old messages take their turns for as long as the disk takes; what has just come is not read from there.
#[tokio::test]
async fn a_new_message_does_not_wait_behind_those_who_read_the_disk() {
    let node = Node::start().await;
    let reads = node.broker.disk_reads.available_permits();
    let reads = u32::try_from(reads).unwrap();
    let all = || async { node.broker.disk_reads.acquire_many(reads).await.unwrap() };
    let (mut taken, mut waited) = (all().await, 0);
    for offset in 0..50 {
        let sent = node.sent(send("", b"x")).await;
        let mut answer = std::pin::pin!(node.told(pull_request(&PullMessage {
            queue_id: sent.queue_id,
            ..pull(offset)
        })));
        let answer = match timeout(Duration::from_secs(1), &mut answer).await {
            Ok(answer) => answer,
            // A machine that is busy has the dispatcher come late now and then.
            Err(_) => {
                waited += 1;
                drop(taken);
                let answer = answer.await;
                taken = all().await;
                answer
            }
        };
        assert_eq!(answer.code, response::SUCCESS);
        assert!(waited < 10, "{waited} of {offset}");
    }
}
