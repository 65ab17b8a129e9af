//! Delay levels other than Java's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jepsen::client::{Client, Outcome, describe};
use jepsen::cluster::Options;
use rmq_wire::body::QueryConsumeQueueResponse;
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use rmq_wire::header::QueryConsumeQueue;
use rmq_wire::name;
use rmq_wire::properties::{DELAY_TIME_LEVEL, NAME_VALUE_SEPARATOR};

use crate::support::{PATIENCE, Running};

const TOPIC: &str = "delay_topic";

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[test]
fn a_message_waits_for_the_delay_that_the_broker_gives_its_level() {
    // Level 2 is 5 s by default, and level 4 is 30 s; here it is beyond the last one.
    let broker = Running::start(&Options {
        nodes: 1,
        more: "messageDelayLevel=1s 2s 3s\n".into(),
        ..Options::default()
    });
    let mut client = Client::connect(broker.addresses()[0], PATIENCE).unwrap();
    for (level, queue_id, delay_ms) in [(2, 1, 2_000), (4, 2, 3_000)] {
        let body = format!("level {level}");
        let properties = format!("{DELAY_TIME_LEVEL}{NAME_VALUE_SEPARATOR}{level}");
        let before = now_ms();
        let sent = client.send_with(TOPIC, 0, &properties, &body);
        assert!(matches!(sent, Outcome::Ok(_)), "{sent:?}");
        let after = now_ms();

        // What waits has the time when it is due in place of a tags code.
        let question = QueryConsumeQueue {
            topic: name::SCHEDULE_TOPIC.into(),
            queue_id,
            index: 0,
            count: 1,
            ..QueryConsumeQueue::default()
        };
        let question = Command::request(request::QUERY_CONSUME_QUEUE).with_header(&question);
        let units = loop {
            let answer = client.call(question.clone()).unwrap();
            assert_eq!(answer.code, 0, "{}", describe(&answer));
            let answer: QueryConsumeQueueResponse = answer.json().unwrap();
            if !answer.queue_data.is_empty() {
                break answer.queue_data;
            }
            // Queues follow the log a little later than the answer to a send.
            assert!(now_ms() < after + 60_000, "it is not in its level's queue");
            std::thread::sleep(Duration::from_millis(20));
        };
        let due = units[0].tags_code;
        assert!(
            (before + delay_ms..=after + delay_ms).contains(&due),
            "sent from {before} to {after} and due at {due}"
        );

        let came = loop {
            let found = client.read_queue(TOPIC, 0).unwrap();
            if found.iter().any(|(_, b)| *b == body) {
                break now_ms();
            }
            assert!(now_ms() < due + 60_000, "due at {due}, and not there yet");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(came >= due, "due at {due}, it came at {came}");
    }
}
