//! Bytes that real brokers, clients and tools wrote.

#[path = "support/again.rs"]
mod again;
#[path = "support/check.rs"]
mod check;
#[path = "support/fixtures.rs"]
mod fixtures;
#[path = "support/golden.rs"]
mod golden;

use std::collections::BTreeSet;

use rmq_wire::record::{self, Peek};
use serde::Deserialize;

use check::{check, check_config, check_record};
use fixtures::{captured, fixtures};
use golden::{golden, golden_frames, unhex};

#[test]
fn golden_frames_keep_their_bytes_and_meaning() {
    let frames = golden_frames();
    let mut codes = BTreeSet::new();
    for frame in &frames {
        check(frame);
        codes.insert(frame.request);
    }
    assert!(
        frames.len() >= 140 && codes.len() >= 40,
        "{} of {} kinds",
        frames.len(),
        codes.len()
    );
}

#[test]
fn captured_frames_keep_their_bytes_and_meaning() {
    let Some(fixtures) = fixtures() else { return };
    let mut frames = 0;
    for entry in std::fs::read_dir(fixtures.join("wire")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".jsonl.gz") {
            for frame in captured(&path) {
                check(&frame);
                frames += 1;
            }
        }
    }
    assert!(frames >= 1900, "{frames} frames");
}

#[test]
fn golden_configurations_keep_their_meaning() {
    let names = [
        "consumerOffset",
        "delayOffset",
        "subscriptionGroup",
        "topics",
    ];
    let both = ["4.9.7", "5.5.0"].into_iter().flat_map(|version| {
        names
            .iter()
            .map(move |name| format!("config-{version}/{name}.json"))
    });
    for name in both.chain(["config-4.9.7/lmqConsumerOffset.json".into()]) {
        check_config(&name, &golden(&name));
    }
}

#[test]
fn golden_records_are_what_their_java_broker_said() {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Line {
        #[serde(rename = "type")]
        kind: String,
        size: usize,
        hex: String,
        #[serde(default)]
        magic: String,
        #[serde(default)]
        phy_offset: i64,
        #[serde(default)]
        topic: String,
        #[serde(default)]
        queue_id: i32,
        #[serde(default)]
        queue_offset: i64,
        #[serde(default)]
        sys_flag: i32,
        #[serde(default)]
        store_timestamp: i64,
        #[serde(default)]
        reconsume_times: i32,
        #[serde(default)]
        body_len: usize,
        uniq_key: Option<String>,
    }
    let mut magics = BTreeSet::new();
    for (number, line) in golden("records.jsonl").lines().enumerate() {
        let what = format!("record {number}");
        let line: Line = serde_json::from_str(line).unwrap();
        let bytes = unhex(&line.hex);
        if line.kind == "blank" {
            assert_eq!(
                record::peek(&bytes),
                Peek::Blank { size: line.size },
                "{what}"
            );
            assert_eq!(
                bytes[..8],
                record::blank(line.size.try_into().unwrap()),
                "{what}"
            );
            continue;
        }
        assert_eq!(
            record::peek(&bytes),
            Peek::Record { size: line.size },
            "{what}"
        );
        let record = check_record(&what, &bytes);
        assert_eq!(format!("{:08x}", record.magic), line.magic, "{what}");
        assert_eq!(record.physical_offset, line.phy_offset, "{what}");
        assert_eq!(record.topic, line.topic, "{what}");
        assert_eq!(
            (record.queue_id, record.queue_offset),
            (line.queue_id, line.queue_offset),
            "{what}"
        );
        assert_eq!(record.sys_flag, line.sys_flag, "{what}");
        assert_eq!(record.store_timestamp, line.store_timestamp, "{what}");
        assert_eq!(record.reconsume_times, line.reconsume_times, "{what}");
        assert_eq!(record.body.len(), line.body_len, "{what}");
        let uniq_key = record.property(rmq_wire::properties::UNIQ_KEY);
        assert_eq!(uniq_key.as_deref(), line.uniq_key.as_deref(), "{what}");
        let v6 = (record.born_host.is_ipv6(), record.store_host.is_ipv6());
        magics.insert((record.magic, v6));
    }
    let v1 = record::MAGIC_V1;
    let seen = [
        (v1, (false, false)),
        (v1, (true, false)),
        (v1, (true, true)),
        (record::MAGIC_V2, (false, false)),
    ];
    assert_eq!(magics, seen.into());
}
