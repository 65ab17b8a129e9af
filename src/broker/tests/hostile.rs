use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::broker::dispatch::CODES;

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
