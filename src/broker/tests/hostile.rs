use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rmq_wire::body::{HeartbeatData, LockBatchRequest, MessageQueue, ProducerData};
use rmq_wire::name;

use super::*;
use crate::broker::dispatch::CODES;
use crate::remoting::Client;

/// Names that headers of the table have, among others.
const FIELDS: &[&str] = &[
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "k",
    "l",
    "m",
    "producerGroup",
    "topic",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "sysFlag",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "batch",
    "consumerGroup",
    "queueOffset",
    "maxMsgNums",
    "commitOffset",
    "suspendTimeoutMillis",
    "subscription",
    "subVersion",
    "expressionType",
    "maxMsgBytes",
    "offset",
    "group",
    "delayLevel",
    "maxReconsumeTimes",
    "timestamp",
    "key",
    "maxNum",
    "beginTimestamp",
    "endTimestamp",
    "clientID",
    "readQueueNums",
    "writeQueueNums",
    "perm",
    "topicFilterType",
    "order",
    "attributes",
    "groupName",
    "removeOffset",
    "isForce",
    "clientId",
    "clientAddr",
    "msgId",
    "statsName",
    "statsKey",
    "index",
    "count",
    "topicList",
    "compareGroup",
    "filterGroups",
    "srcGroup",
    "destGroup",
    "offline",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "0", "1", "-1", "5", "32", "2147483647", "-2147483648", "9223372036854775807",
            "-9223372036854775808", "99999999999999999999", "true", "T", "TBW102", "g", "%RETRY%g",
            "%RETRY%", "%DLQ%g", "SCHEDULE_TOPIC_XXXX", "*", "a || b", "DELAY\u{1}1",
            "DELAY\u{1}-9\u{2}TAGS\u{1}a", "+a=b,-c", "",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,12}",
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        2 => prop::collection::vec(any::<u8>(), 0..80),
        1 => Just(br#"{"clientID":"c","consumerDataSet":[{"groupName":"g"}]}"#.to_vec()),
        1 => Just(br#"{"clientId":"c","consumerGroup":"g","mqSet":[{"queueId":-5}]}"#.to_vec()),
        1 => Just(b"[[[[[[[[{{{{".to_vec()),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let fields = prop::collection::vec((prop::sample::select(FIELDS), value()), 0..30);
    (prop::sample::select(CODES), fields, body(), any::<bool>()).prop_map(
        |(code, fields, body, is_oneway)| {
            let mut command = Command::request(code).with_body(body.into());
            for (name, value) in fields {
                command.ext.insert(name, value);
            }
            if is_oneway {
                command.mark_oneway();
            }
            command
        },
    )
}

fn thaw() -> Command {
    Command::request(request::RAFT_THAW)
}

#[test]
fn no_request_breaks_a_broker() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let node = runtime.block_on(Node::start());
    // Answers that wait are not what this is about.
    node.broker.leave();
    let config = ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..Default::default()
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(command(), 1..12), |commands| {
            for command in commands {
                // One of them may have taken leadership away.
                node.replica.become_leader(1);
                runtime.block_on(node.ask(command));
            }
            // One may have frozen the group, and the rest of the test shall not be refusals only.
            node.replica.become_leader(1);
            runtime.block_on(node.told(thaw()));
            Ok(())
        })
        .unwrap();
    // It still works.
    runtime.block_on(async {
        let sent = node.sent(send_to("afterwards", "", b"1")).await;
        assert_eq!(sent.queue_offset, 0);
    });
}

/// A client id is kept with each group and each lock, so a frame could be multiplied by itself.
#[tokio::test]
async fn long_client_ids_and_endless_lists_are_refused() {
    let node = Node::start().await;
    let client = Client::default();
    let long = "c".repeat(name::CLIENT_ID_MAX_LEN + 1);
    let lock = |client: &str, queues: i32| {
        let queue = |queue_id| MessageQueue {
            topic: "T".to_owned(),
            broker_name: "b".to_owned(),
            queue_id,
        };
        Command::request(request::LOCK_BATCH_MQ).with_json(&LockBatchRequest {
            client_id: client.to_owned(),
            consumer_group: "g".to_owned(),
            mq_set: (0..queues).map(queue).collect(),
            only_this_broker: None,
        })
    };
    let beat = |client: &str, groups: usize| {
        let group = |n| ProducerData {
            group_name: format!("p{n}"),
        };
        Command::request(request::HEART_BEAT).with_json(&HeartbeatData {
            client_id: client.to_owned(),
            producer_data_set: (0..groups).map(group).collect(),
            ..HeartbeatData::default()
        })
    };
    for refused in [
        lock(&long, 1),
        lock("c", 20_000),
        beat(&long, 1),
        beat("c", 10_001),
    ] {
        let answer = client.call(&node.addr, refused, PATIENCE).await.unwrap();
        assert_eq!(answer.code, response::SYSTEM_ERROR, "{:?}", answer.remark);
    }
    assert!(node.broker.meta.read().locks.is_empty());
    assert!(node.broker.clients.read().producers.is_empty());
    for taken in [lock(&long[1..], 1), beat(&long[1..], 10)] {
        let answer = client.call(&node.addr, taken, PATIENCE).await.unwrap();
        assert_eq!(answer.code, response::SUCCESS, "{:?}", answer.remark);
    }
}
