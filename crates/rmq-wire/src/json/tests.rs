use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Queue {
    broker_name: String,
    queue_id: i32,
    topic: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Model {
    #[default]
    #[serde(rename = "BROADCASTING")]
    Broadcasting,
    #[serde(rename = "CLUSTERING")]
    Clustering,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct All {
    by_number: BTreeMap<i64, String>,
    by_queue: BTreeMap<Queue, Vec<i32>>,
    flag: bool,
    model: Model,
    note: Option<String>,
    rate: f64,
    text: String,
    unsigned: u64,
}

fn queue(id: i32) -> Queue {
    Queue {
        broker_name: "b".into(),
        queue_id: id,
        topic: "t".into(),
    }
}

fn all() -> All {
    All {
        by_number: [(0, "a".into()), (-1, "b".into())].into(),
        by_queue: [(queue(0), vec![1, 2]), (queue(1), vec![])].into(),
        flag: true,
        model: Model::Clustering,
        note: None,
        rate: 2.0,
        text: "q\"\n\u{1}é".into(),
        unsigned: u64::MAX,
    }
}

#[test]
fn objects_are_keys_and_null_is_left_out() {
    let wire = concat!(
        r#"{"byNumber":{"-1":"b","0":"a"},"byQueue":{"#,
        r#"{"brokerName":"b","queueId":0,"topic":"t"}:[1,2],{"brokerName":"b","queueId":1,"topic":"t"}:[]},"#,
        r#""flag":true,"model":"CLUSTERING","rate":2.0,"text":"q\"\n\u0001é","unsigned":18446744073709551615}"#
    );
    assert_eq!(String::from_utf8(to_vec(&all())).unwrap(), wire);
    assert_eq!(from_str::<All>(wire).unwrap(), all());
    let file = wire.replace("\"-1\"", "-1").replace("\"0\"", "0");
    assert_eq!(to_java_string(&all()), file);
    assert_eq!(from_str::<All>(&file).unwrap(), all());
}

#[test]
fn null_first_last_and_alone_leaves_no_comma() {
    let map = |values: [Option<i32>; 3]| {
        let map: BTreeMap<_, _> = ["a", "b", "c"].into_iter().zip(values).collect();
        to_java_string(&map)
    };
    assert_eq!(map([None, Some(1), None]), r#"{"b":1}"#);
    assert_eq!(map([Some(1), None, Some(2)]), r#"{"a":1,"c":2}"#);
    assert_eq!(map([None, None, None]), "{}");
    assert_eq!(to_java_string(&[None, Some(1)]), "[null,1]");
    assert_eq!(to_java_string(&f64::NAN), "null");
}

#[test]
fn what_java_forgives_is_read() {
    let read: All = from_str(
        r#" { "byNumber" : null, "byQueue": {{"topic":"t","queueId":"1","brokerName":"b","x":{}} : ["3"]},
            "flag":"true", "model":1, "note":null, "rate":"1e2", "text":17, "unsigned":"", "more":[[{}]] } "#,
    )
    .unwrap();
    let expected = All {
        by_number: BTreeMap::new(),
        by_queue: [(queue(1), vec![3])].into(),
        rate: 100.0,
        text: "17".into(),
        unsigned: 0,
        ..all()
    };
    assert_eq!(read, expected);
    assert_eq!(from_str::<All>("null").unwrap(), All::default());
    assert_eq!(from_str::<Option<All>>("null").unwrap(), None);
    assert_eq!(from_slice::<String>(b"\"\xFF\"").unwrap(), "\u{FFFD}");
}

#[test]
fn what_is_not_the_dialect_is_refused() {
    for bad in [
        "",
        "{",
        "{}x",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "'a'",
        "{\"text\":\"",
        "[1",
        "01x",
        "{\"byNumber\":{\"x\":\"\"}}",
    ] {
        assert!(from_str::<All>(bad).is_err(), "{bad}");
    }
    assert!(from_str::<All>(r#"{"model":"NOBODY"}"#).is_err());
    assert!(from_str::<All>(r#"{"flag":"maybe"}"#).is_err());
    assert!(from_str::<i32>("2147483648").is_err());
    assert!(from_str::<i64>("18446744073709551615").is_err());
    assert!(from_str::<u64>("18446744073709551616").is_err());
    assert!(from_str::<u64>("1.5").is_err());
}

#[test]
fn depth_is_bounded_in_every_way_of_reading() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let bound = usize::try_from(MAX_DEPTH).unwrap();
    assert!(from_str::<Raw>(&nested(bound)).is_ok());
    assert!(matches!(
        from_str::<Raw>(&nested(bound + 1)),
        Err(JsonError::TooDeep(_))
    ));

    #[derive(Debug, Deserialize)]
    struct Nest(#[expect(dead_code, reason = "only read")] Vec<Nest>);
    assert!(from_str::<Nest>(&nested(bound)).is_ok());
    assert!(matches!(
        from_str::<Nest>(&nested(100_000)),
        Err(JsonError::TooDeep(_))
    ));
    let keys = format!("{}1", "{".repeat(100_000));
    assert!(matches!(from_str::<Raw>(&keys), Err(JsonError::TooDeep(_))));
}

#[test]
fn objects_cannot_outgrow_their_bytes() {
    let many = |n: usize| format!("[{}]", vec!["{}"; n].join(","));
    assert_eq!(from_str::<Vec<Queue>>(&many(64)).unwrap().len(), 64);
    assert!(from_str::<Vec<Queue>>(&many(1000)).is_err());
}

#[test]
fn a_raw_value_passes_through_as_it_came() {
    let text = r#"{"a":[1, {"x" : null}],{"k":1}:"}"}"#;
    let map: BTreeMap<String, Raw> = from_str(&format!("{{\"raw\":{text},\"n\":-1.50}}")).unwrap();
    assert_eq!(map["raw"].text(), text);
    assert_eq!(
        to_java_string(&map),
        format!("{{\"n\":-1.50,\"raw\":{text}}}")
    );
    assert!(Raw::new("1 2").is_err());
    // Another format sees a newtype of a string.
    let json = serde_json::to_string(&map["n"]).unwrap();
    assert_eq!(json, "\"-1.50\"");
    assert_eq!(serde_json::from_str::<Raw>(&json).unwrap(), map["n"]);
    assert!(serde_json::from_str::<Raw>("\"1 2\"").is_err());
}

fn any_all() -> impl Strategy<Value = All> {
    let queues =
        (".{0,9}", any::<i32>(), ".{0,9}").prop_map(|(broker_name, queue_id, topic)| Queue {
            broker_name,
            queue_id,
            topic,
        });
    (
        proptest::collection::btree_map(any::<i64>(), ".{0,9}", 0..5),
        proptest::collection::btree_map(
            queues,
            proptest::collection::vec(any::<i32>(), 0..4),
            0..5,
        ),
        any::<(bool, u64)>(),
        any::<f64>().prop_filter("a number", |rate| rate.is_finite()),
        proptest::option::of(".{0,9}"),
        ".{0,9}",
    )
        .prop_map(
            |(by_number, by_queue, (flag, unsigned), rate, note, text)| All {
                by_number,
                by_queue,
                flag,
                model: if flag {
                    Model::Clustering
                } else {
                    Model::Broadcasting
                },
                note,
                rate,
                text,
                unsigned,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn values_round_trip(value in any_all()) {
        prop_assert_eq!(&from_slice::<All>(&to_vec(&value)).unwrap(), &value);
        prop_assert_eq!(&from_str::<All>(&to_java_string(&value)).unwrap(), &value);
    }

    #[test]
    fn what_other_writers_of_json_write_is_read(value in any_all()) {
        let standard = All { by_queue: BTreeMap::new(), ..value };
        let text = serde_json::to_string(&standard).unwrap();
        prop_assert_eq!(from_str::<All>(&text).unwrap(), standard);
    }

    #[test]
    fn damaged_texts_never_panic(value in any_all(), at: proptest::sample::Index, byte: u8, cut: proptest::sample::Index) {
        let mut bytes = to_vec(&value);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len() + 1).max(at));
        let _value = from_slice::<All>(&bytes);
        let _raw = from_slice::<Raw>(&bytes);
    }

    #[test]
    fn texts_like_json_never_panic(text in "[\\[\\]{}:,\"\\\\u0-9a-f.eE+ntrl-]{0,40}") {
        let _value = from_str::<All>(&text);
        let _raw = from_str::<Raw>(&text);
        let _any = from_str::<serde_json::Value>(&text);
    }
}

#[test]
fn integers_are_written_as_everywhere() {
    for value in [0, 7, 10, -1, i32::MAX, i32::MIN] {
        let mut out = Vec::new();
        write::integer(&mut out, value);
        assert_eq!(out, value.to_string().as_bytes());
    }
}
