use std::sync::Arc;

use rmq_store::PhyOffset;
use rmq_wire::header::UpdateConsumerOffset;
use rmq_wire::{msg_id, properties};

use super::*;
use crate::config::BrokerConfig;
use crate::remoting::{Request, Service as _};

fn record_of(node: &Node, sent: &SendMessageResponse) -> bytes::Bytes {
    let (host, offset) = msg_id::decode(&sent.msg_id).unwrap();
    assert_eq!(host.to_string(), "10.0.0.1:10911");
    node.replica
        .reader
        .record_at(PhyOffset::from_i64(offset).unwrap())
        .unwrap()
}

#[tokio::test]
async fn a_message_is_stored_as_java_stores_it() {
    let node = Node::start().await;
    let answer = node
        .told(send(
            "k\x01v\x02WAIT\x01true\x02empty\x01\x02KEYS\x01a b",
            b"hi",
        ))
        .await;
    assert_eq!(answer.code, response::SUCCESS);
    assert_eq!(answer.ext.get("MSG_REGION"), Some("DefaultRegion"));
    assert_eq!(answer.ext.get("TRACE_ON"), Some("true"));
    let sent: SendMessageResponse = answer.header().unwrap();
    assert_eq!((sent.queue_id, sent.queue_offset), (0, 0));

    let bytes = record_of(&node, &sent);
    let record = Record::decode(&bytes).unwrap();
    assert_eq!(
        (record.topic, record.queue_id, record.body),
        ("T", 0, &b"hi"[..])
    );
    assert_eq!(
        record.properties(),
        "k\x01v\x02KEYS\x01a b\x02CLUSTER\x01DefaultCluster"
    );
    assert_eq!(record.born_host.to_string(), "10.0.0.9:555");
    assert_eq!(record.born_timestamp, 5);

    let second = node.sent(send("", b"2")).await;
    assert_eq!(second.queue_offset, 1);
    let other = node.sent(send_with(|header| header.queue_id = 1)).await;
    assert_eq!((other.queue_id, other.queue_offset), (1, 0));
}

#[tokio::test]
async fn the_long_header_and_any_queue_will_do() {
    let node = Node::start().await;
    let header = SendMessage {
        topic: "T",
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: -1,
        ..SendMessage::default()
    };
    let mut command = Command::request(request::SEND_MESSAGE);
    header.encode(request::SEND_MESSAGE, &mut command.ext);
    let sent = node.sent(command).await;
    assert!((0..4).contains(&sent.queue_id));
    assert_eq!(node.replica.meta.read().topics["T"].write_queues, 4);
}

#[tokio::test]
async fn a_batch_takes_consecutive_offsets() {
    let node = Node::start().await;
    let mut body = Vec::new();
    for (text, own) in [("one", "k\x011"), ("two", "")] {
        body.extend([0; 12]);
        body.extend(7i32.to_be_bytes());
        body.extend(i32::try_from(text.len()).unwrap().to_be_bytes());
        body.extend(text.as_bytes());
        body.extend(i16::try_from(own.len()).unwrap().to_be_bytes());
        body.extend(own.as_bytes());
    }
    let mut command = send_with(|header| {
        header.batch = true;
        header.properties = "WAIT\x01true";
    });
    command.code = request::SEND_BATCH_MESSAGE;
    let sent = node
        .sent(command.clone().with_body(body.clone().into()))
        .await;
    let ids: Vec<&str> = sent.msg_id.split(',').collect();
    assert_eq!((ids.len(), sent.queue_offset), (2, 0));
    let (_, offset) = msg_id::decode(ids[0]).unwrap();
    let first = node
        .replica
        .reader
        .record_at(PhyOffset::from_i64(offset).unwrap())
        .unwrap();
    let first = Record::decode(&first).unwrap();
    assert_eq!(
        (first.body, first.flag, first.queue_offset),
        (&b"one"[..], 7, 0)
    );
    assert_eq!(
        first.properties(),
        "k\x011\x02WAIT\x01true\x02CLUSTER\x01DefaultCluster"
    );

    for wrong in [Vec::new(), body[..body.len() - 1].to_vec()] {
        let answer = node.told(command.clone().with_body(wrong.into())).await;
        assert_eq!(answer.code, response::MESSAGE_ILLEGAL);
    }
    // Each part takes on the properties of the batch.
    let properties: &str = Box::leak(format!("k\x01{}", "v".repeat(30_000)).into_boxed_str());
    let mut many = send_with(|header| {
        header.batch = true;
        header.properties = properties;
    });
    many.code = request::SEND_BATCH_MESSAGE;
    let mut part = [0; 22];
    part[..4].copy_from_slice(&22i32.to_be_bytes());
    let answer = node.told(many.with_body(part.repeat(1000).into())).await;
    assert_eq!(answer.code, response::MESSAGE_ILLEGAL);
}

#[tokio::test]
async fn what_may_not_be_sent_is_refused_in_javas_words() {
    let node = Node::start().await;
    for (command, code) in [
        (send_to("a b", "", b""), response::SYSTEM_ERROR),
        (send_to("", "", b""), response::SYSTEM_ERROR),
        (send_to(&"t".repeat(128), "", b""), response::SYSTEM_ERROR),
        (
            send_to("SCHEDULE_TOPIC_XXXX", "", b""),
            response::NO_PERMISSION,
        ),
        (
            send_to("rmq_sys_raft_log", "", b""),
            response::NO_PERMISSION,
        ),
        (
            send_with(|header| header.default_topic = "nothing"),
            response::TOPIC_NOT_EXIST,
        ),
        (
            send_with(|header| header.queue_id = 2),
            response::SYSTEM_ERROR,
        ),
        (send("", &[0; 1025]), response::MESSAGE_ILLEGAL),
        (
            Command::request(request::SEND_MESSAGE_V2),
            response::SYSTEM_ERROR,
        ),
    ] {
        let answer = node.told(command).await;
        assert_eq!(answer.code, code, "{:?}", answer.remark);
        assert_eq!(answer.ext.get("MSG_REGION"), Some("DefaultRegion"));
    }
    assert_eq!(node.replica.queues.max_offset("T", 0).0, 0);
}

#[tokio::test]
async fn topics_are_created_only_where_that_is_allowed() {
    let config = BrokerConfig {
        auto_create_topic_enable: false,
        ..BrokerConfig::default()
    };
    let node = Node::with(config).await;
    assert_eq!(
        node.told(send("", b"")).await.code,
        response::TOPIC_NOT_EXIST
    );
    // The retries of a group have no model, and do not need one.
    node.sent(send_to("%RETRY%g", "", b"")).await;
    assert_eq!(node.replica.meta.read().topics["%RETRY%g"].write_queues, 1);
}

#[tokio::test]
async fn a_stopping_broker_has_clients_go_elsewhere() {
    let node = Node::start().await;
    let offset = UpdateConsumerOffset {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        commit_offset: 7,
    };
    let mut commit = Command::request(request::UPDATE_CONSUMER_OFFSET).with_header(&offset);
    commit.mark_oneway();
    node.ask(commit).await;
    node.broker.drain().await;
    assert_eq!(
        node.replica.meta.read().offset("g", "T", 0),
        Some(7),
        "before it resigned"
    );
    assert!(!node.replica.role.borrow().serving);
    node.replica.become_leader(2);
    assert_eq!(
        node.told(send("", b"")).await.code,
        response::SERVICE_NOT_AVAILABLE
    );
}

#[tokio::test]
async fn an_unknown_outcome_is_no_success_and_no_refusal() {
    let node = Node::start().await;
    node.sent(send("", b"")).await;
    *node.replica.failure.lock().unwrap() = Some(crate::broker::ProposeError::Unknown);
    assert_eq!(node.told(send("", b"")).await.code, response::SYSTEM_ERROR);
    // Nothing was appended, so the next leader may do it, in this case the same node.
    *node.replica.failure.lock().unwrap() = Some(crate::broker::ProposeError::NotLeader);
    assert_eq!(node.told(send("", b"")).await.code, response::SUCCESS);
}

#[tokio::test]
async fn a_retry_that_was_tried_too_often_goes_to_the_dead_letters() {
    let node = Node::start().await;
    let retry = |times| {
        let mut command = send_with(|header| {
            header.topic = "%RETRY%g";
            header.reconsume_times = times;
            header.max_reconsume_times = Some(3);
        });
        command.version = 409;
        command
    };
    node.sent(retry(2)).await;
    assert_eq!(node.replica.queues.max_offset("%RETRY%g", 0).0, 1);
    let sent = node.sent(retry(3)).await;
    let bytes = record_of(&node, &sent);
    let record = Record::decode(&bytes).unwrap();
    assert_eq!(record.topic, "%DLQ%g");
    assert_eq!(
        record.property(properties::DELAY_TIME_LEVEL).as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn queues_that_are_shown_over_and_over_are_the_same_ones() {
    let node = Node::with(BrokerConfig {
        enable_dleger_commit_log: true,
        dleger_peers: peers(),
        group_alias_routes: true,
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("", b"1")).await;
    // The topic has two.
    for (asked, stored) in [(0, 0), (1, 1), (2, 0), (3, 1), (77, 1), (i32::MAX, 1)] {
        let sent = node.sent(send_with(|header| header.queue_id = asked)).await;
        assert_eq!(sent.queue_id, stored, "{asked}");
        let record = record_of(&node, &sent);
        assert_eq!(Record::decode(&record).unwrap().queue_id, stored);
    }

    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    let refused = node.told(send_with(|header| header.queue_id = 2)).await;
    assert_eq!(refused.code, response::SYSTEM_ERROR);
}

#[tokio::test]
async fn what_is_allocated_for_each_request_is_not_as_large_as_the_largest_processor() {
    let node = Node::start().await;
    let request = Request {
        command: send("", b"1"),
        raw: bytes::Bytes::new(),
        conn: None,
        peer: "10.0.0.9:555".parse().unwrap(),
    };
    let size = size_of_val(&Arc::clone(&node.broker).call(request));
    assert!(size <= 768, "{size}");
}

#[tokio::test]
async fn a_time_of_delivery_is_refused_and_not_passed_over() {
    let node = Node::start().await;
    for (sent, code) in [
        ("TIMER_DELAY_SEC\x0110", response::SYSTEM_ERROR),
        (
            "k\x01v\x02TIMER_DELIVER_MS\x0199999999999999",
            response::SYSTEM_ERROR,
        ),
        (
            "TIMER_DELAY_MS\x0110\x02TRAN_MSG\x01true\x02PGROUP\x01g",
            response::SYSTEM_ERROR,
        ),
        ("TIMER_DELAY_MS\x0110\x02DELAY\x013", response::SUCCESS),
        (
            "TIMER_DELAY_MS\x0110\x02TIMER_OUT_MS\x015",
            response::SUCCESS,
        ),
    ] {
        let answer = node.told(send(sent, b"x")).await;
        assert_eq!(answer.code, code, "{sent:?}: {:?}", answer.remark);
    }
}

#[tokio::test]
async fn a_time_of_delivery_is_refused_in_a_batch_too() {
    let node = Node::start().await;
    let batch = |properties: &str| {
        let mut part = Vec::new();
        part.extend(0_i32.to_be_bytes());
        part.extend([0; 12]);
        part.extend(1_i32.to_be_bytes());
        part.push(b'x');
        part.extend(i16::try_from(properties.len()).unwrap().to_be_bytes());
        part.extend(properties.as_bytes());
        let len = i32::try_from(part.len()).unwrap();
        part[..4].copy_from_slice(&len.to_be_bytes());
        send_with(|header| header.batch = true).with_body(part.into())
    };
    let answer = node.told(batch("k\x01v")).await;
    assert_eq!(answer.code, response::SUCCESS, "{:?}", answer.remark);
    let answer = node.told(batch("k\x01v\x02TIMER_DELAY_MS\x015")).await;
    assert_eq!(answer.code, response::SYSTEM_ERROR, "{:?}", answer.remark);
}
