use proptest::prelude::*;

use super::*;
use crate::frame::Language;

#[test]
fn a_go_heartbeat_has_its_numbers_in_quotes() {
    let text = concat!(
        r#"{"clientID":"192.0.2.2@goc","producerDataSet":[],"consumerDataSet":[{"groupName":"cg_go","#,
        r#""consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","#,
        r#""consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET","subscriptionDataSet":[{"classFilterMode":false,"#,
        r#""topic":"CapTopic","subString":"TagGo","tagsSet":["TagGo"],"codeSet":["80566786"],"#,
        r#""subVersion":1795234916728631873,"expressionType":"TAG"}],"unitMode":false}]}"#
    );
    let heartbeat: HeartbeatData = json::from_str(text).unwrap();
    let consumer = &heartbeat.consumer_data_set[0];
    assert_eq!(consumer.consume_type, ConsumeType::Passively);
    assert_eq!(consumer.consume_from_where, ConsumeFromWhere::FirstOffset);
    let subscription = &consumer.subscription_data_set[0];
    assert_eq!(subscription.code_set, [80_566_786].into());
    assert_eq!(i64::from(crate::record::java_hash("TagGo")), 80_566_786);
}

#[test]
fn an_old_cpp_heartbeat_has_numbers_for_enums() {
    let text = r#"{"groupName":"g","consumeType":1,"messageModel":1,"consumeFromWhere":4,"subscriptionDataSet":[{"subVersion":"17"}]}"#;
    let consumer: ConsumerData = json::from_str(text).unwrap();
    assert_eq!(consumer.consume_type, ConsumeType::Passively);
    assert_eq!(consumer.message_model, MessageModel::Clustering);
    assert_eq!(consumer.consume_from_where, ConsumeFromWhere::FirstOffset);
    assert_eq!(consumer.subscription_data_set[0].sub_version, 17);
}

#[test]
fn a_route_is_written_in_standard_json() {
    let route = TopicRouteData {
        broker_datas: vec![BrokerData {
            broker_addrs: [(0, "127.0.0.1:10911".into())].into(),
            broker_name: "broker-a".into(),
            cluster: "c".into(),
            ..BrokerData::default()
        }],
        queue_datas: vec![QueueData {
            broker_name: "broker-a".into(),
            perm: perm::READ | perm::WRITE,
            read_queue_nums: 4,
            write_queue_nums: 4,
            topic_sys_flag: 0,
        }],
        ..TopicRouteData::default()
    };
    let text = concat!(
        r#"{"brokerDatas":[{"brokerAddrs":{"0":"127.0.0.1:10911"},"brokerName":"broker-a","cluster":"c"}],"#,
        r#""filterServerTable":{},"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,"#,
        r#""topicSysFlag":0,"writeQueueNums":4}]}"#
    );
    let body = Command::request(0).with_json(&route);
    assert_eq!(body.body, text.as_bytes());
    assert_eq!(body.json::<TopicRouteData>().unwrap(), route);
}

#[test]
fn a_group_has_javas_defaults_where_a_tool_says_nothing() {
    let group: SubscriptionGroupConfig =
        json::from_str(r#"{"groupName":"g","consumeBroadcastEnable":false}"#).unwrap();
    let expected = SubscriptionGroupConfig {
        consume_broadcast_enable: false,
        ..SubscriptionGroupConfig::new("g")
    };
    assert_eq!(group, expected);
    assert!(expected.consume_enable && expected.retry_max_times == 16);
}

#[test]
fn languages_go_by_name() {
    assert_eq!(json::to_vec(&Language::GO), b"\"GO\"");
    assert_eq!(
        json::from_str::<Language>("\"RUST\"").unwrap(),
        Language::RUST
    );
    assert_eq!(
        json::from_str::<Language>("\"ZIG\"").unwrap(),
        Language::OTHER
    );
}

fn registration(topics: usize) -> RegisterBrokerBody {
    let names = (0..topics).map(|n| format!("topic-{n}"));
    let topic_config_table = names
        .map(|name| (name.clone(), TopicConfig::new(name, 8, perm::READ)))
        .collect();
    let data_version = DataVersion {
        counter: 3,
        state_version: Some(9),
        timestamp: 17,
    };
    RegisterBrokerBody {
        filter_server_list: vec![],
        topic_config_serialize_wrapper: TopicConfigSerializeWrapper {
            data_version,
            topic_config_table,
            ..TopicConfigSerializeWrapper::default()
        },
    }
}

#[test]
fn a_registration_reads_back_in_both_forms() {
    for body in [registration(0), registration(20_000)] {
        for compressed in [false, true] {
            let bytes = body.encode(compressed);
            assert_eq!(
                RegisterBrokerBody::decode(&bytes, compressed).unwrap(),
                body
            );
        }
    }
}

fn deflated(parts: &[&[u8]]) -> Vec<u8> {
    use std::io::Write as _;
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    for part in parts {
        out.write_all(part).unwrap();
    }
    out.finish().unwrap()
}

#[test]
fn a_compressed_registration_of_5x_is_read() {
    let with_len = |text: &str| {
        [
            &i32::try_from(text.len()).unwrap().to_be_bytes(),
            text.as_bytes(),
        ]
        .concat()
    };
    let bytes = deflated(&[
        &with_len(r#"{"counter":2,"stateVersion":0,"timestamp":5}"#),
        &[0, 0, 0, 2],
        &with_len(r#"a 4 5 6 SINGLE_TAG {"k":"v"}"#),
        &with_len("b 1 1 7 MULTI_TAG {\"k\":\"v w"),
        &with_len("[]"),
        &[0, 0, 0, 1],
        &with_len(r#"{"topic":"static"}"#),
    ]);
    let body = RegisterBrokerBody::decode(&bytes, true).unwrap();
    let wrapper = body.topic_config_serialize_wrapper;
    assert_eq!(
        wrapper.data_version,
        DataVersion {
            counter: 2,
            state_version: Some(0),
            timestamp: 5
        }
    );
    let a = &wrapper.topic_config_table["a"];
    assert_eq!((a.read_queue_nums, a.write_queue_nums, a.perm), (4, 5, 6));
    assert_eq!(a.attributes, Some([("k".into(), "v".into())].into()));
    let b = &wrapper.topic_config_table["b"];
    assert_eq!(
        (b.topic_filter_type, &b.attributes),
        (TopicFilterType::MultiTag, &None)
    );
}

#[test]
fn a_registration_that_is_none_is_refused() {
    let decode = |bytes: &[u8]| RegisterBrokerBody::decode(bytes, true).unwrap_err();
    assert!(matches!(decode(b"no zlib"), RegisterBodyError::Unpack(_)));
    assert!(matches!(
        decode(&deflated(&[])),
        RegisterBodyError::Truncated("data version")
    ));
    let negative = deflated(&[&[0xFF; 4]]);
    assert!(matches!(
        decode(&negative),
        RegisterBodyError::Length { len: -1, .. }
    ));
    let version = b"\0\0\0\x02{}";
    let many = deflated(&[version, &[0x7F, 0xFF, 0xFF, 0xFF]]);
    assert!(matches!(
        decode(&many),
        RegisterBodyError::Truncated("topics")
    ));
    let topic = deflated(&[version, b"\0\0\0\x01", b"\0\0\0\x05a b c"]);
    assert!(matches!(decode(&topic), RegisterBodyError::Topic(text) if text == "a b c"));
    let bomb = deflated(&[&vec![0; 10_000_000]]);
    let limit = u64::try_from(bomb.len()).unwrap() * 100;
    assert!(matches!(decode(&bomb), RegisterBodyError::TooLong(n) if n == limit));
}

proptest! {
    #[test]
    fn damaged_registrations_never_panic(at: proptest::sample::Index, byte: u8, cut: proptest::sample::Index) {
        let mut bytes = registration(3).encode(true);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len() + 1));
        let _body = RegisterBrokerBody::decode(&bytes, true);
    }
}
