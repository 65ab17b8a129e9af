use proptest::prelude::*;

use super::*;

fn frame(mark: u32, header: &[u8], body: &[u8]) -> Bytes {
    let len = u32::try_from(header.len()).unwrap();
    [&(mark << 24 | len).to_be_bytes(), header, body]
        .concat()
        .into()
}

fn json_frame(header: &str) -> Bytes {
    frame(0, header.as_bytes(), b"")
}

/// The frame of `command` without its length field, which is checked.
fn encoded(command: &Command) -> Bytes {
    let mut out = BytesMut::from(&b"before"[..]);
    command.encode(&mut out);
    out.advance(6);
    assert_eq!(peek_len(&out), Ok(Some(out.len() - 4)));
    out.advance(4);
    out.freeze()
}

#[test]
fn a_json_header_is_written_as_java_writes_it() {
    let mut command = Command::request(105).with_body(Bytes::from_static(b"body"));
    command.opaque = 7;
    command.ext.insert("topic", "a\u{1}\"\\\n☃");
    command.remark = Some(String::new());
    let header = concat!(
        r#"{"code":105,"extFields":{"topic":"a\u0001\"\\\n☃"},"flag":0,"language":"JAVA","#,
        r#""opaque":7,"remark":"","serializeTypeCurrentRPC":"JSON","version":409}"#
    );
    assert_eq!(encoded(&command), frame(0, header.as_bytes(), b"body"));
}

#[test]
fn a_json_header_is_read_with_what_clients_put_in_it() {
    let command = Command::decode(json_frame(
        r#" { "extFields" : {"n":12,"b":true,"z":null,"o":{"x":[1,"}"]},7:"seven","s":"\u00e9\ud83d\ude00\ud83d"},
        "code":"310", "language":"KLINGON","version":null,"opaque":-5,"flag":2,
        "remark":null,"later":[{"a":{}},1.5e3] } "#,
    ))
    .unwrap();
    assert_eq!(
        (command.code, command.version, command.opaque),
        (310, 0, -5)
    );
    assert_eq!(command.language, Language::OTHER);
    assert_eq!(command.remark, None);
    assert!(command.is_oneway() && !command.is_response());
    let ext: ExtFields = [
        ("n", "12"),
        ("b", "true"),
        ("o", r#"{"x":[1,"}"]}"#),
        ("7", "seven"),
        ("s", "é😀\u{FFFD}"),
    ]
    .into_iter()
    .collect();
    assert_eq!(command.ext, ext);
}

#[test]
fn bytes_that_are_no_utf8_read_as_java_reads_them() {
    let command = Command::decode(frame(
        0,
        b"{\"code\":1,\"extFields\":{\"k\":\"\xFFx\"}}",
        b"",
    ))
    .unwrap();
    assert_eq!(command.ext.get("k"), Some("\u{FFFD}x"));
}

#[test]
fn a_binary_header_is_read_and_written() {
    let header = [
        &[0, 34, 9, 1, 61][..],
        &[0, 0, 0, 3, 0, 0, 0, 0],
        &[0, 0, 0, 2, b'h', b'i'],
        &[0, 0, 0, 17],
        &[
            0, 1, b'a', 0, 0, 0, 1, b'1', 0, 2, b'b', b'b', 0, 0, 0, 1, b'2',
        ],
    ]
    .concat();
    let command = Command::decode(frame(1, &header, b"body")).unwrap();
    assert_eq!(
        (command.code, command.version, command.opaque),
        (34, 317, 3)
    );
    assert_eq!(command.language, Language::GO);
    assert_eq!(command.remark.as_deref(), Some("hi"));
    assert_eq!(command.ext, [("a", "1"), ("bb", "2")].into_iter().collect());
    assert_eq!(encoded(&command), frame(1, &header, b"body"));
}

#[test]
fn an_answer_repeats_number_and_form() {
    for serialize in [SerializeType::Json, SerializeType::RocketMq] {
        let request = Command {
            opaque: 77,
            serialize,
            ..Command::request(10)
        };
        let answer = Command::decode(encoded(&request.reply_error(1, "no"))).unwrap();
        assert_eq!(
            (answer.opaque, answer.serialize, answer.code),
            (77, serialize, 1)
        );
        assert!(answer.is_response());
        assert_eq!(answer.version, VERSION);
        assert_eq!(answer.remark.as_deref(), Some("no"));
    }
}

#[test]
fn impossible_lengths_are_refused_before_anything_is_held() {
    assert_eq!(peek_len(&[0, 0, 1]), Ok(None));
    assert_eq!(peek_len(&[0, 0, 1, 0, 9]), Ok(Some(256)));
    for (bytes, len) in [
        ([0xFF; 4], -1),
        ([0, 0, 0, 3], 3),
        ([1, 0, 0, 0], 16_777_216),
    ] {
        assert_eq!(peek_len(&bytes), Err(FrameError::Length(len)));
    }
    assert_eq!(peek_len(&[0, 0xFF, 0xFF, 0xFC]), Ok(Some(MAX_FRAME - 4)));
}

#[test]
fn malformed_frames_are_refused() {
    let decode = |bytes: &[u8]| Command::decode(Bytes::copy_from_slice(bytes)).unwrap_err();
    assert_eq!(decode(b""), FrameError::Truncated("mark"));
    assert_eq!(decode(&[2, 0, 0, 0]), FrameError::SerializeType(2));
    assert_eq!(
        decode(&[0, 0, 0, 9, 1]),
        FrameError::HeaderOverrun {
            header: 9,
            frame: 5
        }
    );
    assert_eq!(
        decode(&[0, 4, 0, 1]),
        FrameError::HeaderTooLong(MAX_HEADER + 1)
    );
    assert_eq!(decode(&json_frame("{}")), FrameError::Missing("code"));
    for bad in [
        "",
        "{",
        "[]",
        "{\"code\":1}x",
        "{\"code\":1.5}",
        "{\"code\":99999999999}",
        "{\"code\":1,}",
        "{\"a\":\"\\q\"}",
    ] {
        assert!(
            matches!(decode(&json_frame(bad)), FrameError::Json(_)),
            "{bad}"
        );
    }
    let deep = format!("{{\"code\":1,\"x\":{}", "[".repeat(100_000));
    assert!(matches!(
        decode(&json_frame(&deep)),
        FrameError::Json(JsonError::TooDeep(_))
    ));

    let fixed = [0; 13];
    assert_eq!(
        decode(&frame(1, &fixed[..12], b"")),
        FrameError::Truncated("fixed fields")
    );
    let with = |rest: &[u8]| decode(&frame(1, &[&fixed, rest].concat(), b""));
    assert_eq!(with(&[0, 0, 0, 1]), FrameError::Truncated("remark"));
    assert_eq!(
        with(&[0x80, 0, 0, 0]),
        FrameError::NegativeLength {
            field: "remark",
            len: i32::MIN
        }
    );
    assert_eq!(
        with(&[0, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF]),
        FrameError::Truncated("extFields")
    );
    let name = [0, 0, 0, 0, 0, 0, 0, 2, 0xFF, 0xFF];
    assert_eq!(
        with(&name),
        FrameError::NegativeLength {
            field: "field name",
            len: -1
        }
    );
}

#[test]
fn too_many_fields_are_refused_even_under_one_name() {
    let fields = |n: usize, name: &str| {
        let fields = vec![format!("\"{name}\":\"v\""); n].join(",");
        Command::decode(json_frame(&format!(
            "{{\"code\":1,\"extFields\":{{{fields}}}}}"
        )))
    };
    assert_eq!(fields(MAX_EXT_FIELDS, "n").unwrap().ext.len(), 1);
    assert_eq!(
        fields(MAX_EXT_FIELDS + 1, "n"),
        Err(FrameError::TooManyFields)
    );
    let binary: Vec<u8> = [0, 1, b'n', 0, 0, 0, 1, b'v'].repeat(MAX_EXT_FIELDS + 1);
    let len = u32::try_from(binary.len()).unwrap().to_be_bytes();
    let header = [&[0; 17][..], &len, &binary].concat();
    assert_eq!(
        Command::decode(frame(1, &header, b"")),
        Err(FrameError::TooManyFields)
    );
}

#[test]
fn a_key_that_comes_twice_has_one_value_for_all_readers() {
    let frame = json_frame(r#"{"code":10,"opaque":1,"flag":2,"code":11,"opaque":3,"flag":0}"#);
    let head = FrameHead {
        code: 11,
        opaque: 3,
        flag: 0,
    };
    assert_eq!(peek(&frame), Ok(head));
    let renumbered = set_opaque(&frame, 77).unwrap().freeze();
    assert_eq!(peek(&renumbered), Ok(FrameHead { opaque: 77, ..head }));
    let command = Command::decode(renumbered).unwrap();
    assert_eq!((command.code, command.opaque, command.flag), (11, 77, 0));
}

#[test]
fn fields_are_replaced_in_place_and_removed() {
    let mut ext: ExtFields = [("a", 1), ("b", 2)].into_iter().collect();
    ext.insert("a", "one");
    assert_eq!(ext.iter().collect::<Vec<_>>(), [("a", "one"), ("b", "2")]);
    ext.remove("a");
    ext.remove("a");
    assert_eq!(
        (ext.get("a"), ext.get("b"), ext.len()),
        (None, Some("2"), 1)
    );
}

fn command() -> impl Strategy<Value = Command> {
    let fields = proptest::collection::vec(("[^\u{0}]{1,12}", ".{1,20}"), 0..8);
    let remark = proptest::option::of(".{1,30}");
    let body = proptest::collection::vec(any::<u8>(), 0..64);
    (
        any::<i16>(),
        0u8..14,
        any::<i16>(),
        any::<[i32; 2]>(),
        remark,
        fields,
        body,
        any::<bool>(),
    )
        .prop_map(
            |(code, language, version, [opaque, flag], remark, fields, body, json)| Command {
                code: code.into(),
                language: Language(language),
                version: version.into(),
                opaque,
                flag,
                remark,
                ext: fields.into_iter().collect(),
                body: body.into(),
                serialize: if json {
                    SerializeType::Json
                } else {
                    SerializeType::RocketMq
                },
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn commands_round_trip_and_can_be_renumbered(command in command(), opaque: i32) {
        let bytes = encoded(&command);
        let head = FrameHead { code: command.code, opaque: command.opaque, flag: command.flag };
        prop_assert_eq!(peek(&bytes), Ok(head));
        prop_assert_eq!(&Command::decode(bytes.clone()).unwrap(), &command);
        let renumbered = set_opaque(&bytes, opaque).unwrap().freeze();
        prop_assert_eq!(Command::decode(renumbered), Ok(Command { opaque, ..command }));
    }

    #[test]
    fn damaged_frames_never_panic(command in command(), at: proptest::sample::Index, value: u8, cut: proptest::sample::Index) {
        let mut bytes = BytesMut::from(&encoded(&command)[..]);
        let at = at.index(bytes.len());
        bytes[at] = value;
        let cut = cut.index(bytes.len() + 1);
        for bytes in [bytes.clone().freeze(), bytes.freeze().slice(..cut)] {
            let _head = peek(&bytes);
            let _renumbered = set_opaque(&bytes, 1);
            if let Ok(decoded) = Command::decode(bytes) {
                prop_assert_eq!(Command::decode(encoded(&decoded)).unwrap().ext.len(), decoded.ext.len());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _head = peek(&bytes);
        let _command = Command::decode(bytes.into());
    }
}
