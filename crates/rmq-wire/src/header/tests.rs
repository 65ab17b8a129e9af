use proptest::prelude::*;

use super::*;
use crate::code::request;

fn ext(fields: &[(&str, &str)]) -> ExtFields {
    fields.iter().copied().collect()
}

#[test]
fn a_missing_field_is_an_error_and_a_missing_option_is_not() {
    let full = ext(&[
        ("consumerGroup", "g"),
        ("topic", "t"),
        ("queueId", "3"),
        ("commitOffset", "-1"),
    ]);
    let header = UpdateConsumerOffset::decode(&full).unwrap();
    assert_eq!(
        (
            &*header.consumer_group,
            header.queue_id,
            header.commit_offset
        ),
        ("g", 3, -1)
    );
    let part = ext(&[("consumerGroup", "g"), ("topic", "t"), ("queueId", "3")]);
    assert_eq!(
        UpdateConsumerOffset::decode(&part),
        Err(HeaderError::Missing("commitOffset"))
    );
    let query = QueryConsumerOffset::decode(&part).unwrap();
    assert_eq!(query.set_zero_if_not_found, None);
}

#[test]
fn a_value_of_another_type_is_an_error() {
    for bad in ["", "x", "1.5", "2147483648", " 1"] {
        let fields = ext(&[("topic", "t"), ("queueId", bad)]);
        let error = HeaderError::Invalid {
            field: "queueId",
            value: bad.into(),
        };
        assert_eq!(TopicQueue::decode(&fields), Err(error));
    }
    let HeaderError::Invalid { value, .. } =
        TopicQueue::decode(&ext(&[("topic", "t"), ("queueId", &"é".repeat(9999))])).unwrap_err()
    else {
        panic!("the value is invalid")
    };
    assert_eq!(value.chars().count(), 64);
}

#[test]
fn booleans_follow_java() {
    for (text, value) in [("true", true), ("TRUE", true), ("1", false), ("", false)] {
        let fields = ext(&[("topic", "t"), ("queueId", "0"), ("committed", text)]);
        assert_eq!(
            GetMaxOffset::decode(&fields).unwrap().committed,
            Some(value)
        );
    }
}

#[test]
fn both_spellings_of_a_send_read_the_same() {
    let header = SendMessage {
        producer_group: "pg",
        topic: "t",
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: -1,
        sys_flag: 8,
        born_timestamp: 1_700_000_000_000,
        flag: 7,
        properties: "a\u{1}b",
        reconsume_times: 2,
        unit_mode: false,
        max_reconsume_times: Some(16),
        batch: true,
        broker_name: Some("broker-a"),
    };
    for (code, key) in [
        (request::SEND_MESSAGE, "defaultTopic"),
        (request::SEND_REPLY_MESSAGE, "defaultTopic"),
        (request::SEND_MESSAGE_V2, "c"),
        (request::SEND_BATCH_MESSAGE, "c"),
        (request::SEND_REPLY_MESSAGE_V2, "c"),
    ] {
        let mut fields = ExtFields::default();
        header.encode(code, &mut fields);
        assert_eq!(fields.get(key), Some("TBW102"));
        assert_eq!(SendMessage::decode(code, &fields), Ok(header));
        fields.remove(key);
        assert!(
            matches!(SendMessage::decode(code, &fields), Err(HeaderError::Missing(k)) if k == key)
        );
    }
}

#[test]
fn a_send_of_5x_without_its_options_is_read() {
    let mut fields = ext(&[
        ("a", "g"),
        ("b", "t"),
        ("c", "T"),
        ("d", "4"),
        ("e", "0"),
        ("f", "0"),
    ]);
    fields.insert("g", 1);
    fields.insert("h", "x");
    let error = HeaderError::Invalid {
        field: "h",
        value: "x".into(),
    };
    assert_eq!(
        SendMessage::decode(request::SEND_MESSAGE_V2, &fields),
        Err(error)
    );
    fields.insert("h", 0);
    let header = SendMessage::decode(request::SEND_MESSAGE_V2, &fields).unwrap();
    assert_eq!(
        (header.properties, header.reconsume_times, header.batch),
        ("", 0, false)
    );
    assert_eq!(
        (header.max_reconsume_times, header.broker_name),
        (None, None)
    );
}

proptest! {
    #[test]
    fn headers_round_trip(text in ".{0,20}", number: i32, long: i64, flag: bool, option in proptest::option::of(".{0,9}")) {
        let header = PullMessage {
            consumer_group: text.clone(),
            topic: text,
            queue_id: number,
            queue_offset: long,
            max_msg_nums: number,
            sys_flag: number,
            commit_offset: long,
            suspend_timeout_millis: long,
            subscription: option.clone(),
            sub_version: long,
            expression_type: option,
            max_msg_bytes: flag.then_some(number),
            request_source: None,
            proxy_forward_client_id: None,
        };
        let command = Command::request(request::PULL_MESSAGE).with_header(&header);
        prop_assert_eq!(command.header(), Ok(header));
    }
}

#[test]
fn one_send_of_forty_goes_by_a_further_name_or_fewer() {
    let names = i32::from(GROUP_ALIAS_NAMES);
    for queues in 1..300 {
        let shown = group_shown_queues(queues);
        assert!(names * 40 <= shown + names, "{queues}");
        assert_eq!(shown % queues, 0, "each as often as the others");
        assert!(shown - queues < names * 39, "and no more than it takes");
    }
    assert_eq!(group_shown_queues(0), 0);
    assert_eq!(group_shown_queues(i32::MAX), i32::MAX);
    assert_eq!(group_shown_queues(-1), -1);
}
