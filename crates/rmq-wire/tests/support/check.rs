//! What is demanded of captured bytes: that they decode, and encode to the same bytes or the same meaning.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt;

use bytes::{Buf, BytesMut};
use rmq_wire::body::*;
use rmq_wire::code::request;
use rmq_wire::frame::{self, Command, ExtFields, Language};
use rmq_wire::header::*;
use rmq_wire::json;
use rmq_wire::record::{Record, split_batch};
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::again::written_again;
use crate::golden::Captured;

/// A frame decodes, and encodes to the same bytes, or to the same meaning where its sender has another
/// order of keys or says that there are no fields; so do its header and its body.
pub(crate) fn check(captured: &Captured) {
    let what = &captured.what;
    let command = Command::decode(captured.frame.clone()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let head = frame::FrameHead {
        code: command.code,
        opaque: command.opaque,
        flag: command.flag,
    };
    assert_eq!(frame::peek(&captured.frame), Ok(head), "{what}");
    let renumbered = frame::set_opaque(&captured.frame, command.opaque).unwrap();
    assert_eq!(renumbered, captured.frame, "{what}");

    let mut encoded = BytesMut::new();
    command.encode(&mut encoded);
    assert_eq!(
        frame::peek_len(&encoded),
        Ok(Some(encoded.len() - 4)),
        "{what}"
    );
    encoded.advance(4);
    let no_fields = captured
        .frame
        .windows(14)
        .any(|bytes| bytes == b"\"extFields\":{}");
    if command.language == Language::JAVA && !no_fields {
        assert_eq!(encoded, captured.frame, "{what}");
    }
    assert_eq!(
        Command::decode(encoded.freeze()).as_ref(),
        Ok(&command),
        "{what}"
    );

    if let Some(request) = captured.request {
        check_header(what, request, &command);
        check_body(what, request, &command);
    }
}

fn check_header(what: &str, request: i32, command: &Command) {
    // Fields that clients add to any request, and brokers to the answer of a heartbeat.
    const COMMON: [&str; 8] = [
        "ns",
        "nsd",
        "bname",
        "oway",
        "lo",
        "ReqT",
        "IS_SUB_CHANGE",
        "IS_SUPPORT_HEART_BEAT_V2",
    ];
    let encoded = if command.is_response() {
        response_header(request, command)
    } else {
        request_header(request, command)
    };
    let encoded = encoded.unwrap_or_else(|error| panic!("{what}: {error}"));
    for (name, value) in command.ext.iter() {
        match encoded.get(name) {
            Some(again) => assert_eq!(again, value, "{what}: {name}"),
            None => assert!(COMMON.contains(&name), "{what}: {name} is lost"),
        }
    }
    for (name, value) in encoded.iter() {
        let default = matches!(value, "" | "0" | "false");
        assert!(
            default || command.ext.get(name).is_some(),
            "{what}: {name}={value} is made up"
        );
    }
}

fn again<H: Header>(command: &Command) -> Result<ExtFields, HeaderError> {
    let mut ext = ExtFields::default();
    command.header::<H>()?.encode(&mut ext);
    Ok(ext)
}

fn request_header(code: i32, command: &Command) -> Result<ExtFields, HeaderError> {
    match code {
        request::SEND_MESSAGE | request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE => {
            let mut ext = ExtFields::default();
            SendMessage::decode(code, &command.ext)?.encode(code, &mut ext);
            Ok(ext)
        }
        request::PULL_MESSAGE => again::<PullMessage>(command),
        request::QUERY_MESSAGE => again::<QueryMessage>(command),
        request::QUERY_CONSUMER_OFFSET => again::<QueryConsumerOffset>(command),
        request::UPDATE_CONSUMER_OFFSET => again::<UpdateConsumerOffset>(command),
        request::UPDATE_AND_CREATE_TOPIC => again::<CreateTopic>(command),
        request::SEARCH_OFFSET_BY_TIMESTAMP => again::<SearchOffset>(command),
        request::GET_MAX_OFFSET => again::<GetMaxOffset>(command),
        request::GET_MIN_OFFSET | request::GET_EARLIEST_MSG_STORETIME => {
            again::<TopicQueue>(command)
        }
        request::VIEW_MESSAGE_BY_ID => again::<ViewMessage>(command),
        request::UNREGISTER_CLIENT => again::<UnregisterClient>(command),
        request::CONSUMER_SEND_MSG_BACK => again::<ConsumerSendMsgBack>(command),
        request::END_TRANSACTION => again::<EndTransaction>(command),
        request::CHECK_TRANSACTION_STATE => again::<CheckTransactionState>(command),
        request::GET_CONSUMER_LIST_BY_GROUP
        | request::NOTIFY_CONSUMER_IDS_CHANGED
        | request::GET_CONSUMER_CONNECTION_LIST => again::<ConsumerGroup>(command),
        request::REGISTER_BROKER => again::<RegisterBroker>(command),
        request::UNREGISTER_BROKER => again::<BrokerIdentity>(command),
        request::GET_ROUTEINFO_BY_TOPIC => again::<GetRouteInfo>(command),
        request::GET_TOPIC_STATS_INFO
        | request::DELETE_TOPIC_IN_BROKER
        | request::QUERY_TOPIC_CONSUME_BY_WHO
        | request::GET_TOPIC_CONFIG => again::<TopicOnly>(command),
        request::GET_CONSUME_STATS => again::<GetConsumeStats>(command),
        request::DELETE_TOPIC_IN_NAMESRV => again::<DeleteTopicInNamesrv>(command),
        request::INVOKE_BROKER_TO_RESET_OFFSET => again::<ResetOffset>(command),
        request::GET_ALL_TOPIC_CONFIG
        | request::GET_BROKER_CONFIG
        | request::GET_BROKER_RUNTIME_INFO
        | request::HEART_BEAT
        | request::LOCK_BATCH_MQ
        | request::UNLOCK_BATCH_MQ
        | request::GET_ALL_CONSUMER_OFFSET
        | request::GET_ALL_DELAY_OFFSET
        | request::CHECK_CLIENT_CONFIG
        | request::GET_TIMER_CHECK_POINT
        | request::GET_BROKER_CLUSTER_INFO
        | request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP
        | request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG
        | request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => Ok(ExtFields::default()),
        other => panic!("no header is known for request {other}"),
    }
}

fn response_header(request: i32, command: &Command) -> Result<ExtFields, HeaderError> {
    if command.code != 0 {
        return Ok(ExtFields::default());
    }
    match request {
        request::SEND_MESSAGE | request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE => {
            again::<SendMessageResponse>(command)
        }
        request::PULL_MESSAGE => again::<PullMessageResponse>(command),
        request::QUERY_MESSAGE => again::<QueryMessageResponse>(command),
        request::QUERY_CONSUMER_OFFSET
        | request::SEARCH_OFFSET_BY_TIMESTAMP
        | request::GET_MAX_OFFSET
        | request::GET_MIN_OFFSET => again::<OffsetResponse>(command),
        request::GET_EARLIEST_MSG_STORETIME => again::<EarliestMsgStoretimeResponse>(command),
        request::GET_BROKER_CONFIG => again::<GetBrokerConfigResponse>(command),
        request::REGISTER_BROKER => again::<RegisterBrokerResponse>(command),
        _ => Ok(ExtFields::default()),
    }
}

fn check_body(what: &str, request: i32, command: &Command) {
    let body = &command.body;
    if body.is_empty() {
        return;
    }
    match (request, command.is_response()) {
        (request::HEART_BEAT, false) => same::<HeartbeatData>(what, body),
        (request::LOCK_BATCH_MQ | request::UNLOCK_BATCH_MQ, false) => {
            same::<LockBatchRequest>(what, body);
        }
        (request::LOCK_BATCH_MQ, true) => same::<LockBatchResponse>(what, body),
        (request::CHECK_CLIENT_CONFIG, false) => same::<CheckClientRequest>(what, body),
        (request::REGISTER_BROKER, false) => {
            let header: RegisterBroker = command.header().unwrap();
            let crc = i32::try_from(rmq_wire::record::body_crc(body)).unwrap();
            assert_eq!(header.body_crc32, crc, "{what}");
            assert!(
                !header.compressed,
                "{what}: captured brokers do not compress"
            );
            same::<RegisterBrokerBody>(what, body);
        }
        (request::REGISTER_BROKER | request::GET_BROKER_RUNTIME_INFO, true) => {
            same::<KvTable>(what, body);
        }
        (request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, false) => {
            same::<SubscriptionGroupConfig>(what, body);
        }
        (request::GET_ROUTEINFO_BY_TOPIC, true) => same::<TopicRouteData>(what, body),
        (request::GET_BROKER_CLUSTER_INFO, true) => same::<ClusterInfo>(what, body),
        (request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, true) => {
            same::<SubscriptionGroupWrapper>(what, body);
        }
        (request::GET_TOPIC_STATS_INFO, true) => same::<TopicStatsTable>(what, body),
        (request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER, true) => same::<TopicList>(what, body),
        (request::GET_CONSUME_STATS, true) => same::<ConsumeStats>(what, body),
        (request::GET_ALL_TOPIC_CONFIG, true) => same::<TopicConfigSerializeWrapper>(what, body),
        (request::INVOKE_BROKER_TO_RESET_OFFSET, true) => same::<ResetOffsetBody>(what, body),
        (request::QUERY_TOPIC_CONSUME_BY_WHO, true) => same::<GroupList>(what, body),
        (request::GET_TOPIC_CONFIG, true) => same::<TopicConfig>(what, body),
        (request::GET_CONSUMER_LIST_BY_GROUP, true) => same::<ConsumerList>(what, body),
        (request::GET_ALL_CONSUMER_OFFSET, true) => {
            same::<ConsumerOffsetSerializeWrapper>(what, body);
        }
        (request::GET_ALL_DELAY_OFFSET, true) => same::<DelayOffsetSerializeWrapper>(what, body),
        (request::SEND_MESSAGE | request::SEND_MESSAGE_V2, false) => {}
        (request::SEND_BATCH_MESSAGE, false) => {
            let messages: Vec<_> = split_batch(body).map(Result::unwrap).collect();
            assert!(messages.len() > 1, "{what}: a batch of {}", messages.len());
            let size =
                |m: &rmq_wire::record::BatchMessage<'_>| 22 + m.body.len() + m.raw_properties.len();
            assert_eq!(
                messages.iter().map(size).sum::<usize>(),
                body.len(),
                "{what}"
            );
        }
        (request::PULL_MESSAGE | request::QUERY_MESSAGE | request::VIEW_MESSAGE_BY_ID, true)
        | (request::CHECK_TRANSACTION_STATE, false) => {
            let mut rest = &body[..];
            while !rest.is_empty() {
                let size = check_record(what, rest).size;
                rest = &rest[size..];
            }
        }
        // Text of a properties file; 32 and more bytes of the timer.
        (request::GET_BROKER_CONFIG | request::GET_TIMER_CHECK_POINT, true) => {}
        (other, _) => panic!("{what}: no body is known for request {other}"),
    }
}

/// A record decodes, its CRC is right, and it encodes to the same bytes.
pub(crate) fn check_record<'a>(what: &str, bytes: &'a [u8]) -> Record<'a> {
    let record = Record::decode(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(record.crc_matches(), "{what}");
    let properties = std::str::from_utf8(record.raw_properties).unwrap();
    let encoded = written_again(&record, properties);
    assert_eq!(encoded, bytes[..record.size], "{what}");
    record
}

/// A file of a broker's configuration reads, and writes to the same meaning.
pub(crate) fn check_config(name: &str, content: &str) {
    match name.rsplit('/').next() {
        Some("consumerOffset.json" | "lmqConsumerOffset.json") => {
            same::<ConsumerOffsetSerializeWrapper>(name, content.as_bytes());
        }
        Some("delayOffset.json") => same::<DelayOffsetSerializeWrapper>(name, content.as_bytes()),
        Some("subscriptionGroup.json") => {
            same::<SubscriptionGroupWrapper>(name, content.as_bytes())
        }
        Some("topics.json") => same::<TopicConfigSerializeWrapper>(name, content.as_bytes()),
        other => panic!("no type is known for {other:?}"),
    }
}

/// A body reads, and writes to the same meaning.
fn same<T: DeserializeOwned + Serialize>(what: &str, body: &[u8]) {
    let tree = |bytes: &[u8]| -> Tree {
        json::from_slice(bytes).unwrap_or_else(|e| panic!("{what}: {e}"))
    };
    let value: T = json::from_slice(body).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(tree(&json::to_vec(&value)), tree(body), "{what}");
    assert_eq!(
        tree(json::to_java_string(&value).as_bytes()),
        tree(body),
        "{what}"
    );
}

/// What a text of the dialect means: the order of keys and of elements (they are sets in Java) is free,
/// scalars are their text, for a number in quotes is the same to Java.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tree {
    Scalar(String),
    Array(Vec<Tree>),
    Object(BTreeMap<Tree, Tree>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.to_string()))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.to_string()))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Scalar(format!("{value:?}")))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Scalar(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Tree, A::Error> {
                let mut array = Vec::new();
                while let Some(element) = elements.next_element()? {
                    array.push(element);
                }
                array.sort();
                Ok(Tree::Array(array))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut elements: A) -> Result<Tree, A::Error> {
                let mut object = BTreeMap::new();
                while let Some((key, value)) = elements.next_entry()? {
                    assert!(object.insert(key, value).is_none(), "a key comes twice");
                }
                Ok(Tree::Object(object))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
