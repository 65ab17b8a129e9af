//! Captured bytes, damaged: nothing panics, nothing holds much more than what came, and what still
//! decodes means the same after it was encoded again.
//!
//! An ordinary test runs a fixed number of rounds. For longer:
//! `FUZZ_SECONDS=30 cargo test -p rmq-wire --release --test fuzz -- --ignored`; a failure names its seed and
//! round, and `FUZZ_SEED` repeats it.
#![expect(
    clippy::print_stdout,
    reason = "a run tells its seed and how far it came"
)]

#[path = "support/again.rs"]
mod again;
#[path = "support/allocated.rs"]
mod allocated;
#[path = "support/golden.rs"]
mod golden;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use rmq_wire::body::*;
use rmq_wire::code::request;
use rmq_wire::frame::{self, Command, ExtFields};
use rmq_wire::header::*;
use rmq_wire::json::{self, Raw};
use rmq_wire::record::{self, MAGIC_V1, Peek, Record, split_batch};
use rmq_wire::{msg_id, name, properties};
use serde::Serialize;
use serde::de::DeserializeOwned;

use again::written_again;

#[test]
fn damaged_bytes_do_no_harm() {
    run(20_000, None);
}

#[test]
#[ignore = "takes FUZZ_SECONDS, 30 by default"]
fn damaged_bytes_do_no_harm_for_long() {
    let seconds = std::env::var("FUZZ_SECONDS")
        .map_or(30, |text| text.parse().expect("FUZZ_SECONDS is a number"));
    run(u64::MAX, Some(Duration::from_secs(seconds)));
}

fn run(rounds: u64, time: Option<Duration>) {
    let seed = std::env::var("FUZZ_SEED").map_or(20_260_101, |text| {
        text.parse().expect("FUZZ_SEED is a number")
    });
    let corpus = Corpus::load();
    let start = Instant::now();
    let mut round = 0;
    while round < rounds && time.is_none_or(|time| start.elapsed() < time) {
        let mut random = Random(seed ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let outcome = catch_unwind(AssertUnwindSafe(|| corpus.round(&mut random)));
        if let Err(panic) = outcome {
            println!("FUZZ_SEED={seed} round {round}");
            resume_unwind(panic);
        }
        round += 1;
    }
    println!("seed {seed}: {round} rounds in {:?}", start.elapsed());
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).expect("64 bits"))
            .expect("less than n")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

struct Corpus {
    /// Frames without their length field, in both forms of header.
    frames: Vec<Vec<u8>>,
    records: Vec<Vec<u8>>,
    bodies: Vec<Vec<u8>>,
    registrations: Vec<Vec<u8>>,
}

impl Corpus {
    fn load() -> Self {
        let mut frames = Vec::new();
        let mut bodies = Vec::new();
        let mut registrations = Vec::new();
        for captured in golden::golden_frames() {
            let mut command = Command::decode(captured.frame.clone())
                .unwrap_or_else(|error| panic!("{}: {error}", captured.what));
            frames.push(captured.frame.to_vec());
            command.serialize = frame::SerializeType::RocketMq;
            frames.push(encoded(&command).to_vec());
            if command
                .body
                .first()
                .is_some_and(|byte| matches!(byte, b'{' | b'['))
            {
                bodies.push(command.body.to_vec());
            }
            if captured.request == Some(request::REGISTER_BROKER) && !command.is_response() {
                let body = RegisterBrokerBody::decode(&command.body, false);
                registrations.push(body.expect("a golden registration decodes").encode(true));
            }
        }
        #[derive(serde::Deserialize)]
        struct Line {
            hex: String,
        }
        let lines = golden::golden("records.jsonl");
        let records = lines.lines().map(|line| {
            golden::unhex(
                &serde_json::from_str::<Line>(line)
                    .expect("a golden line is JSON")
                    .hex,
            )
        });
        Self {
            frames,
            records: records.collect(),
            bodies,
            registrations,
        }
    }

    fn round(&self, random: &mut Random) {
        match random.below(8) {
            0..3 => check_frame(&damage(random, &self.frames)),
            3 => check_record(&damage(random, &self.records)),
            4 => check_registration(&damage(random, &self.registrations)),
            5 => check_small(&damage(random, &self.records)),
            _ => {
                let body = damage(random, &self.bodies);
                check_body(random, &body);
            }
        }
    }
}

/// One of `inputs` with a few changes.
fn damage(random: &mut Random, inputs: &[Vec<u8>]) -> Vec<u8> {
    const NUMBERS: [i32; 10] = [0, 1, -1, 127, 128, 255, 32_767, -32_768, i32::MAX, i32::MIN];
    let mut bytes = random.pick(inputs).clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(9) {
            _ if bytes.is_empty() => bytes.push(random.byte()),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.byte(),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.byte()),
            4 => drop(bytes.drain(at..(at + random.below(16)).min(bytes.len()))),
            5 => {
                let number = random.pick(&NUMBERS).to_be_bytes();
                for (byte, new) in bytes[at..].iter_mut().zip(number) {
                    *byte = new;
                }
            }
            6 => {
                let end = (at + random.below(64)).min(bytes.len());
                let copy = bytes[at..end].repeat(random.below(20));
                bytes.splice(at..at, copy);
            }
            7 => {
                let other = random.pick(inputs);
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => {
                let open = *random.pick(b"{[\"");
                let nest = vec![open; random.below(60)];
                bytes.splice(at..at, nest);
            }
        }
    }
    bytes
}

/// Runs `decode`, which may allocate in proportion to the length of its input.
fn bounded<T>(input: usize, decode: impl FnOnce() -> T) -> T {
    let before = allocated::by_this_thread();
    let value = decode();
    let taken = allocated::by_this_thread() - before;
    assert!(
        taken <= 4 * 1024 + 16 * input,
        "{taken} bytes allocated for {input}"
    );
    value
}

fn encoded(command: &Command) -> Bytes {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    out.advance(4);
    out.freeze()
}

fn check_frame(bytes: &[u8]) {
    let frame = Bytes::copy_from_slice(bytes);
    let head = bounded(bytes.len(), || frame::peek(&frame));
    let _len = frame::peek_len(bytes);
    let renumbered = frame::set_opaque(&frame, 77);
    let Ok(command) = bounded(bytes.len(), || Command::decode(frame)) else {
        return;
    };
    let head = head.expect("what decodes can be peeked at");
    assert_eq!(
        (head.code, head.opaque, head.flag),
        (command.code, command.opaque, command.flag)
    );
    if let Ok(renumbered) = renumbered {
        let renumbered =
            Command::decode(renumbered.freeze()).expect("a new number changes nothing else");
        assert_eq!(renumbered.opaque, 77);
        assert_eq!(renumbered.ext, command.ext);
    }
    let again = encoded(&command);
    assert_eq!(Command::decode(again.clone()).as_ref(), Ok(&command));
    assert_eq!(
        encoded(&Command::decode(again.clone()).expect("decoded before")),
        again
    );
    check_headers(&command);
    let _messages = bounded(command.body.len(), || split_batch(&command.body).count());
    check_record(&command.body);
}

fn check_headers(command: &Command) {
    fn stable<H: Header + PartialEq + std::fmt::Debug>(ext: &ExtFields) {
        let Ok(header) = H::decode(ext) else { return };
        let mut again = ExtFields::default();
        header.encode(&mut again);
        assert_eq!(H::decode(&again), Ok(header));
    }
    let ext = &command.ext;
    if let Ok(send) = SendMessage::decode(command.code, ext) {
        let mut again = ExtFields::default();
        send.encode(command.code, &mut again);
        assert_eq!(SendMessage::decode(command.code, &again), Ok(send));
        let pairs = properties::iter(send.properties);
        let text = properties::format(pairs);
        assert!(properties::iter(&text).eq(properties::iter(send.properties)));
        let _checked =
            name::check_topic(send.topic).is_ok() && name::check_group(send.producer_group).is_ok();
    }
    stable::<SendMessageResponse>(ext);
    stable::<PullMessage>(ext);
    stable::<PullMessageResponse>(ext);
    stable::<QueryMessage>(ext);
    stable::<ConsumerSendMsgBack>(ext);
    stable::<EndTransaction>(ext);
    stable::<CheckTransactionState>(ext);
    stable::<UpdateConsumerOffset>(ext);
    stable::<CreateTopic>(ext);
    stable::<RegisterBroker>(ext);
    stable::<ResetOffset>(ext);
    stable::<ReplyMessage>(ext);
}

fn check_record(bytes: &[u8]) {
    let Ok(record) = bounded(bytes.len(), || Record::decode(bytes)) else {
        return;
    };
    assert_eq!(record::peek(bytes), Peek::Record { size: record.size });
    let parts = record.body.len() + record.topic.len() + record.raw_properties.len();
    assert!(parts < record.size && record.size <= bytes.len());
    let text = record.properties();
    let _tags = properties::get(&text, properties::TAGS).map(record::tags_code);
    // The version that we write for such a topic, so that the bytes can be compared.
    let ours = (record.magic == MAGIC_V1) == (record.topic.len() <= 127);
    let Ok(properties) = std::str::from_utf8(record.raw_properties) else {
        return;
    };
    if !ours || !record.crc_matches() {
        return;
    }
    let again = written_again(&record, properties);
    assert_eq!(again, bytes[..record.size]);
}

fn check_registration(bytes: &[u8]) {
    // Packed text unpacks to a hundred times its length at most, and that text is what is bounded.
    let unpacked = (64 * 1024).max(bytes.len() * 100);
    let Ok(body) = bounded(unpacked, || RegisterBrokerBody::decode(bytes, true)) else {
        return;
    };
    let again = RegisterBrokerBody::decode(&body.encode(false), false).expect("what was decoded");
    assert_eq!(again, body);
}

fn check_small(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _topic = name::check_topic(&text);
    let _pairs = bounded(bytes.len(), || properties::iter(&text).count());
    let hex: String = bytes
        .iter()
        .take(28)
        .map(|byte| format!("{byte:02X}"))
        .collect();
    if let Ok((host, offset)) = msg_id::decode(&hex) {
        assert_eq!(msg_id::encode(host, offset), hex);
    }
    let _messages = bounded(bytes.len(), || split_batch(bytes).count());
}

fn check_body(random: &mut Random, bytes: &[u8]) {
    fn stable<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
        let Ok(value) = bounded(bytes.len(), || json::from_slice::<T>(bytes)) else {
            return;
        };
        let again = json::to_vec(&value);
        assert_eq!(json::from_slice::<T>(&again).as_ref(), Ok(&value));
        assert_eq!(
            json::from_str::<T>(&json::to_java_string(&value)).as_ref(),
            Ok(&value)
        );
    }
    let types: [fn(&[u8]); 17] = [
        stable::<Raw>,
        stable::<HeartbeatData>,
        stable::<HeartbeatData>,
        stable::<LockBatchRequest>,
        stable::<CheckClientRequest>,
        stable::<RegisterBrokerBody>,
        stable::<TopicConfigSerializeWrapper>,
        stable::<SubscriptionGroupWrapper>,
        stable::<SubscriptionGroupConfig>,
        stable::<TopicRouteData>,
        stable::<ClusterInfo>,
        stable::<ConsumeStats>,
        stable::<TopicStatsTable>,
        stable::<ConsumerOffsetSerializeWrapper>,
        stable::<ResetOffsetBody>,
        stable::<KvTable>,
        stable::<TopicList>,
    ];
    random.pick(&types)(bytes);
}
