use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;

fn host(v6: bool, seed: u8) -> SocketAddr {
    let ip = if v6 {
        IpAddr::from([seed; 16])
    } else {
        IpAddr::from([seed; 4])
    };
    SocketAddr::new(ip, u16::from(seed) * 7)
}

fn sample<'a>(topic: &'a str, body: &'a [u8], properties: &'a str) -> NewRecord<'a> {
    NewRecord {
        queue_id: 3,
        flag: 5,
        sys_flag: sys_flag::TRANSACTION_COMMIT,
        born_timestamp: 1_700_000_000_000,
        born_host: host(false, 10),
        store_host: host(false, 11),
        reconsume_times: 2,
        prepared_transaction_offset: 99,
        body,
        topic,
        properties,
    }
}

#[test]
fn a_record_has_javas_head_and_length() {
    let mut bytes = Vec::new();
    sample("CapTx", b"alpha", "TAGS\u{1}tx")
        .encode(&mut bytes)
        .unwrap();
    assert_eq!(bytes[..8], [0, 0, 0, 108, 0xDA, 0xA3, 0x20, 0xA7]);
    assert_eq!(bytes.len(), 91 + 5 + 5 + 7);
}

#[test]
fn topics_over_127_bytes_make_version_2() {
    for (len, magic) in [(127, MAGIC_V1), (128, MAGIC_V2), (262, MAGIC_V2)] {
        let topic = "t".repeat(len);
        let mut bytes = Vec::new();
        let size = sample(&topic, b"b", "").encode(&mut bytes).unwrap();
        let record = Record::decode(&bytes).unwrap();
        assert_eq!(
            (record.size, record.magic, record.topic),
            (size, magic, &*topic)
        );
    }
}

#[test]
fn what_does_not_fit_its_length_field_is_refused_and_nothing_written() {
    let mut bytes = Vec::new();
    let long = "x".repeat(32_768);
    assert_eq!(
        sample(&long, b"", "").encode(&mut bytes),
        Err(EncodeError::Topic(32_768))
    );
    assert_eq!(
        sample("t", b"", &long).encode(&mut bytes),
        Err(EncodeError::Properties(32_768))
    );
    assert!(bytes.is_empty());
}

#[test]
fn peek_tells_records_blanks_and_the_end() {
    let mut bytes = Vec::new();
    sample("t", b"", "").encode(&mut bytes).unwrap();
    assert_eq!(peek(&bytes), Peek::Record { size: 92 });
    assert_eq!(peek(&blank(4096)), Peek::Blank { size: 4096 });
    for end in [
        &[0; 64][..],
        &bytes[..7],
        &blank(7),
        &[0xFF; 8],
        b"hello world",
    ] {
        assert_eq!(peek(end), Peek::End);
    }
    bytes[3] = 90;
    assert_eq!(peek(&bytes), Peek::End, "smaller than the smallest record");
}

#[test]
fn damage_is_named() {
    let mut bytes = Vec::new();
    sample("topic", b"body", "a\u{1}b")
        .encode(&mut bytes)
        .unwrap();
    let decode = |at: usize, value: u8| {
        let mut damaged = bytes.clone();
        damaged[at] = value;
        Record::decode(&damaged).map(|record| record.crc_matches())
    };
    let size = bytes.len();
    assert_eq!(decode(88, 0x41), Ok(false), "a byte of the body");
    assert_eq!(
        decode(84, 0x80),
        Err(RecordError::Length {
            field: "body",
            len: -2_147_483_644
        })
    );
    assert_eq!(
        decode(87, 200),
        Err(RecordError::Overrun {
            size,
            field: "body"
        })
    );
    assert_eq!(decode(52, 1), Err(RecordError::Port(0x0100_0046)));
    assert_eq!(decode(93, 0xFF), Err(RecordError::Topic));
    assert_eq!(decode(99, 1), Err(RecordError::Trailing { size, left: 2 }));
    assert_eq!(
        Record::decode(&bytes[..size - 1]),
        Err(RecordError::Incomplete {
            size,
            available: size - 1
        })
    );
}

#[test]
fn java_hashes_utf16() {
    // Values of java.lang.String.hashCode.
    for (text, hash) in [
        ("", 0),
        ("a", 97),
        ("TagA", 2_598_919),
        ("hello world", 1_794_106_052),
    ] {
        assert_eq!(java_hash(text), hash, "{text}");
    }
    assert_eq!(
        java_hash("😀"),
        1_772_899,
        "two surrogates, 31 × 0xD83D + 0xDE00"
    );
    assert_eq!(
        tags_code("polygenelubricants"),
        i64::from(i32::MIN),
        "sign is kept"
    );
}

#[test]
fn a_batch_splits_and_its_damage_is_named() {
    let message = |body: &[u8], properties: &[u8]| {
        let mut bytes = vec![0; 12];
        bytes.extend(7i32.to_be_bytes());
        bytes.extend(i32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes.extend(i16::try_from(properties.len()).unwrap().to_be_bytes());
        bytes.extend(properties);
        bytes
    };
    let batch = [message(b"one", b"a\x01b"), message(b"", b"")].concat();
    let split: Vec<_> = split_batch(&batch).map(Result::unwrap).collect();
    assert_eq!(
        split,
        [
            BatchMessage {
                flag: 7,
                body: b"one",
                raw_properties: b"a\x01b"
            },
            BatchMessage {
                flag: 7,
                body: b"",
                raw_properties: b""
            }
        ]
    );
    let cut: Vec<_> = split_batch(&batch[..batch.len() - 1]).collect();
    assert_eq!(
        cut[1],
        Err(BatchError::Truncated {
            index: 1,
            field: "properties"
        })
    );
    let mut negative = batch.clone();
    negative[16] = 0xFF;
    let negative: Vec<_> = split_batch(&negative).collect();
    assert!(matches!(
        negative[..],
        [Err(BatchError::NegativeLength {
            index: 0,
            field: "body",
            ..
        })]
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn records_round_trip(
        (born_v6, store_v6) in any::<(bool, bool)>(),
        (queue_id, flag, sys_flag, reconsume_times) in any::<(i32, i32, i32, i32)>(),
        (queue_offset, physical_offset, store_timestamp, born_timestamp) in any::<(i64, i64, i64, i64)>(),
        body in proptest::collection::vec(any::<u8>(), 0..300),
        topic in "[a-z]{0,200}",
        properties in ".{0,40}",
    ) {
        let new = NewRecord {
            queue_id, flag, sys_flag, born_timestamp, reconsume_times,
            born_host: host(born_v6, 1),
            store_host: host(store_v6, 2),
            ..sample(&topic, &body, &properties)
        };
        let mut bytes = vec![0xEE];
        let size = new.encode(&mut bytes).unwrap();
        prop_assert_eq!(size, bytes.len() - 1);
        prop_assert_eq!(size, new.encoded_len());
        let holes = Record::decode(&bytes[1..]).unwrap();
        prop_assert_eq!((holes.queue_offset, holes.physical_offset, holes.store_timestamp), (0, 0, 0));
        seal(&mut bytes[1..], queue_offset, physical_offset, store_timestamp);
        bytes.extend([1, 2, 3]);
        let record = Record::decode(&bytes[1..]).unwrap();
        let mask = sys_flag::BORN_HOST_V6 | sys_flag::STORE_HOST_V6;
        prop_assert_eq!(record.sys_flag & !mask, sys_flag & !mask);
        prop_assert!(record.crc_matches());
        let expected = Record {
            size, flag, queue_id, queue_offset, physical_offset, store_timestamp, born_timestamp,
            reconsume_times, prepared_transaction_offset: 99,
            born_host: new.born_host, store_host: new.store_host,
            body: &body, topic: &topic, raw_properties: properties.as_bytes(),
            ..record.clone()
        };
        prop_assert_eq!(record, expected);
    }

    #[test]
    fn damaged_records_never_panic(at in 0usize..200, value: u8, cut in 0usize..200) {
        let mut bytes = Vec::new();
        sample("topic", &[7; 90], "a\u{1}b").encode(&mut bytes).unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        bytes.truncate(cut.max(at + 1));
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert!(record.size <= bytes.len());
            let _matches = record.crc_matches();
        }
    }

    #[test]
    fn random_batches_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(split_batch(&bytes).count() <= bytes.len() / 22 + 1);
    }
}
