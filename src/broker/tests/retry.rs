use std::time::Duration;

use rmq_wire::header::ConsumerSendMsgBack;
use rmq_wire::{msg_id, properties};
use tokio::sync::Semaphore;

use super::*;
use crate::config::BrokerConfig;
use crate::meta::{Change, Group};

/// A broker whose delays are over at once: a message that is due later than a whole delay from now
/// counts as due, and these delays are shorter than those of the store.
async fn impatient() -> Node {
    let levels = vec![Duration::from_millis(1); 18];
    Node::with(BrokerConfig {
        message_delay_level: levels,
        ..BrokerConfig::default()
    })
    .await
}

fn back(sent: &SendMessageResponse, delay_level: i32) -> Command {
    let (_, offset) = msg_id::decode(&sent.msg_id).unwrap();
    let mut command =
        Command::request(request::CONSUMER_SEND_MSG_BACK).with_header(&ConsumerSendMsgBack {
            offset,
            group: "g".to_owned(),
            delay_level,
            max_reconsume_times: Some(2),
            ..ConsumerSendMsgBack::default()
        });
    command.version = 409;
    command
}

fn retries(offset: i64) -> PullMessage {
    PullMessage {
        topic: "%RETRY%g".to_owned(),
        ..pull(offset)
    }
}

#[tokio::test]
async fn a_delayed_message_arrives_when_it_is_due() {
    let node = impatient().await;
    let sent = node
        .sent(send("DELAY\x013\x02TAGS\x01a\x02WAIT\x01true", b"later"))
        .await;
    // Told is where it waits.
    assert_eq!(
        node.replica.queues.max_offset("SCHEDULE_TOPIC_XXXX", 2).0,
        1
    );
    assert_eq!(sent.queue_id, 0);
    let answer = node
        .pulled(&PullMessage {
            subscription: Some("a".to_owned()),
            ..pull(0)
        })
        .await;
    let record = Record::decode(&answer.body).unwrap();
    assert_eq!((record.body, record.topic), (&b"later"[..], "T"));
    assert_eq!(
        record.property(properties::REAL_TOPIC).as_deref(),
        Some("T")
    );
    assert_eq!(
        record.property(properties::WAIT_STORE_MSG_OK).as_deref(),
        Some("true")
    );
    until("the progress is kept", || {
        node.replica.meta.read().delay.get(&3) == Some(&1)
    })
    .await;
}

#[tokio::test]
async fn a_pause_of_the_lease_delivers_nothing_twice() {
    let node = impatient().await;
    // The system topics are there by then.
    node.sent(send("", b"first")).await;
    node.replica.gate.forget_permits(Semaphore::MAX_PERMITS);
    node.sent(send("DELAY\x013", b"later")).await;
    let arrived = || node.replica.queues.max_offset("T", 0).0;
    until("it is delivered", || arrived() == 2).await;
    node.replica.follow(None);
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.replica.become_leader(1);
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.replica.gate.add_permits(Semaphore::MAX_PERMITS);
    until("the progress is kept", || {
        node.replica.meta.read().delay.get(&3) == Some(&1)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(arrived(), 2);
}

/// That of its host, by default.
#[tokio::test]
async fn a_broker_may_have_a_name_that_no_topic_can_have() {
    let node = Node::with(BrokerConfig {
        broker_name: "mq1.example.com".to_owned(),
        broker_cluster_name: "prod.eu".to_owned(),
        message_delay_level: vec![Duration::from_millis(1); 18],
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("DELAY\x013", b"later")).await;
    let answer = node.pulled(&pull(0)).await;
    assert_eq!(Record::decode(&answer.body).unwrap().body, b"later");
}

/// Consumers read as many queues as the topic has.
#[tokio::test]
async fn retries_go_to_queues_that_there_are() {
    let node = impatient().await;
    let sent = node.sent(send("", b"x")).await;
    assert_eq!(node.told(back(&sent, 0)).await.code, response::SUCCESS);
    let group = Group {
        retry_queues: 8,
        ..Group::default()
    };
    let change = Change::PutGroup {
        name: "g".to_owned(),
        group,
    };
    node.broker.propose(change).await.unwrap();
    for _ in 0..20 {
        assert_eq!(node.told(back(&sent, 0)).await.code, response::SUCCESS);
    }
    until("all are in the one queue", || {
        node.replica.queues.max_offset("%RETRY%g", 0).0 == 21
    })
    .await;
}

#[tokio::test]
async fn what_is_due_at_once_need_not_fit_one_entry() {
    static BODY: [u8; 50 << 10] = [b'x'; 50 << 10];
    let node = impatient().await;
    // As after a pause: more than a segment of this store has room for.
    let pause = node.broker.delivering.lock().await;
    for level in 1..=18 {
        let properties: &str = Box::leak(format!("DELAY\x01{level}").into_boxed_str());
        for _ in 0..3 {
            node.sent(send(properties, &BODY)).await;
        }
    }
    drop(pause);
    until("all are delivered", || {
        node.replica.queues.max_offset("T", 0).0 == 54
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_not_due_waits() {
    let node = Node::start().await;
    node.sent(send("DELAY\x0118", b"later")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.replica.queues.max_offset("T", 0).0, 0);
    assert!(node.replica.meta.read().delay.is_empty());
}

#[tokio::test]
async fn a_failed_message_comes_again_and_in_the_end_is_put_aside() {
    let node = impatient().await;
    let sent = node.sent(send("KEYS\x01k", b"x")).await;
    for times in 1..=2 {
        let origin = match times {
            1 => sent.clone(),
            _ => {
                let answer = node.pulled(&retries(times - 2)).await;
                let record = Record::decode(&answer.body).unwrap();
                let id = msg_id::encode(record.store_host, record.physical_offset);
                SendMessageResponse {
                    msg_id: id,
                    ..SendMessageResponse::default()
                }
            }
        };
        assert_eq!(node.told(back(&origin, 0)).await.code, response::SUCCESS);
        let answer = node.pulled(&retries(times - 1)).await;
        let record = Record::decode(&answer.body).unwrap();
        assert_eq!(i64::from(record.reconsume_times), times);
        assert_eq!(record.body, b"x");
        assert_eq!(
            record.property(properties::RETRY_TOPIC).as_deref(),
            Some("T")
        );
        let origin_id = record.property(properties::ORIGIN_MESSAGE_ID);
        assert_eq!(origin_id.as_deref(), Some(&*sent.msg_id));
        // The first retry waits for 10 s, each next one a level longer.
        let level = (2 + times).to_string();
        assert_eq!(
            record.property(properties::DELAY_TIME_LEVEL).as_deref(),
            Some(&*level)
        );
    }
    let answer = node.pulled(&retries(1)).await;
    let record = Record::decode(&answer.body).unwrap();
    let id = msg_id::encode(record.store_host, record.physical_offset);
    let last = SendMessageResponse {
        msg_id: id,
        ..SendMessageResponse::default()
    };
    assert_eq!(node.told(back(&last, 0)).await.code, response::SUCCESS);
    let dead = PullMessage {
        topic: "%DLQ%g".to_owned(),
        ..pull(0)
    };
    let answer = node.pulled(&dead).await;
    let record = Record::decode(&answer.body).unwrap();
    assert_eq!((record.topic, record.reconsume_times), ("%DLQ%g", 3));
}

#[tokio::test]
async fn a_consumer_may_give_up_at_once() {
    let node = Node::start().await;
    let sent = node.sent(send("", b"x")).await;
    assert_eq!(node.told(back(&sent, -1)).await.code, response::SUCCESS);
    assert_eq!(node.replica.queues.max_offset("%DLQ%g", 0).0, 1);
}

#[tokio::test]
async fn what_is_no_message_cannot_come_back() {
    let node = Node::start().await;
    let nowhere = SendMessageResponse {
        msg_id: msg_id::encode("1.2.3.4:5".parse().unwrap(), 1 << 40),
        ..SendMessageResponse::default()
    };
    assert_eq!(
        node.told(back(&nowhere, 0)).await.code,
        response::SYSTEM_ERROR
    );
}
