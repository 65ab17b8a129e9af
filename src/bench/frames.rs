//! Requests that are made once for each queue, and stamped for each send: a load generator that spent
//! its time on headers would leave less of the machine to what it measures.

use bytes::{BufMut, Bytes, BytesMut};
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use rmq_wire::header::SendMessage;
use rmq_wire::{name, properties};

use super::Plan;
use super::cluster::Queue;

/// The number of a connection's first slot; all have ten digits, so that a stamp never changes a length.
pub(super) const FIRST_OPAQUE: i32 = 1_000_000_000;
/// A body of this size carries the mark of its run and the time its send was due.
pub const STAMP_BYTES: usize = 16;

const GROUP: &str = "rmq_bench";
const OPAQUE_DIGITS: usize = 10;
const BORN: i64 = 1_111_111_111_111;
const BORN_DIGITS: usize = 13;
/// Like every client since 3.x, a message has a unique key, by which it can be found.
const KEY_DIGITS: usize = 32;

/// A send request to one queue, without what differs from send to send.
#[derive(Debug)]
pub(super) struct Template {
    bytes: Vec<u8>,
    opaque_at: usize,
    born_at: usize,
    /// Where each message has its unique key and, if it is large enough for a stamp, its body.
    messages: Vec<(usize, Option<usize>)>,
}

/// What differs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) slot: u32,
    /// Milliseconds since 1970.
    pub(super) born: i64,
    /// The run.
    pub(super) run: u64,
    /// Nanoseconds since the run's start, at which the send was due.
    pub(super) due: u64,
    /// The first of as many numbers as there are messages, which no other message of this run has.
    pub(super) number: u64,
}

impl Template {
    pub(super) fn new(plan: &Plan, queue: &Queue) -> Self {
        let is_batch = plan.batch > 1;
        let code = match is_batch {
            true => request::SEND_BATCH_MESSAGE,
            false => request::SEND_MESSAGE_V2,
        };
        // No two keys of a request are alike, so each is found where it stands.
        let keys: Vec<String> = (0..plan.batch)
            .map(|number| format!("{number:0KEY_DIGITS$X}"))
            .collect();
        let properties = |key: &str| {
            let (unique, wait) = (properties::UNIQ_KEY, properties::WAIT_STORE_MSG_OK);
            let (is, and) = (
                properties::NAME_VALUE_SEPARATOR,
                properties::PROPERTY_SEPARATOR,
            );
            format!("{unique}{is}{key}{and}{wait}{is}true{and}")
        };
        let body = filling(plan.size);
        let mut command = Command::request(code);
        command.opaque = FIRST_OPAQUE;
        let of_header = match is_batch {
            true => format!(
                "{}{}true{}",
                properties::WAIT_STORE_MSG_OK,
                properties::NAME_VALUE_SEPARATOR,
                properties::PROPERTY_SEPARATOR
            ),
            false => properties(&keys[0]),
        };
        let header = SendMessage {
            producer_group: GROUP,
            topic: &queue.topic,
            default_topic: name::AUTO_CREATE_TOPIC,
            default_topic_queue_nums: 4,
            queue_id: queue.id,
            born_timestamp: BORN,
            properties: &of_header,
            batch: is_batch,
            ..SendMessage::default()
        };
        header.encode(code, &mut command.ext);
        command.body = match is_batch {
            true => batch(&keys, &body, properties),
            false => Bytes::from(body),
        };
        let mut bytes = BytesMut::new();
        let mut head = BytesMut::new();
        command.encode_head(command.body.len(), &mut head);
        command.encode(&mut bytes);
        let bytes = bytes.to_vec();
        let at = |text: &str| find(&bytes, text.as_bytes()).expect("it was just written");
        let is_stamped = plan.size >= STAMP_BYTES;
        let messages = keys.iter().enumerate().map(|(number, key)| {
            let key_at = at(key);
            let body_at = match is_batch {
                // The body stands before the properties and the 16 bits of their length.
                true => {
                    let text = properties(key);
                    at(&text) - size_of::<i16>() - plan.size
                }
                false => head.len() + number * plan.size,
            };
            (key_at, is_stamped.then_some(body_at))
        });
        Self {
            opaque_at: at(&format!("\"opaque\":{FIRST_OPAQUE}")) + "\"opaque\":".len(),
            born_at: at(&format!("\"{BORN}\"")) + 1,
            messages: messages.collect(),
            bytes,
        }
    }

    /// Appends the request.
    pub(super) fn stamp(&self, stamp: &Stamp, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(&self.bytes);
        let frame = &mut out[start..];
        let opaque = u64::from(FIRST_OPAQUE.unsigned_abs()) + u64::from(stamp.slot);
        digits(&mut frame[self.opaque_at..][..OPAQUE_DIGITS], opaque, 10);
        let born = stamp.born.unsigned_abs();
        digits(&mut frame[self.born_at..][..BORN_DIGITS], born, 10);
        for ((key_at, body_at), number) in self.messages.iter().zip(stamp.number..) {
            let key = &mut frame[*key_at..][..KEY_DIGITS];
            let (run, of_run) = key.split_at_mut(KEY_DIGITS / 2);
            digits(run, stamp.run, 16);
            digits(of_run, number, 16);
            if let Some(at) = *body_at {
                frame[at..][..8].copy_from_slice(&stamp.run.to_be_bytes());
                frame[at + 8..][..8].copy_from_slice(&stamp.due.to_be_bytes());
            }
        }
    }
}

/// When the send of this message was due, if it is of this run.
pub(super) fn due_of(body: &[u8], run: u64) -> Option<u64> {
    let (mark, rest) = body.split_first_chunk::<8>()?;
    let (due, _) = rest.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*mark) == run).then(|| u64::from_be_bytes(*due))
}

/// Bytes that compress badly, the same in each run.
fn filling(size: usize) -> Vec<u8> {
    let mut state: u32 = 0x9E37_79B9;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        // Printable, for those who look at messages.
        b' ' + u8::try_from(state % 95).unwrap_or(0)
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn batch(keys: &[String], body: &[u8], properties: impl Fn(&str) -> String) -> Bytes {
    let len = |len: usize| i32::try_from(len).expect("a batch is below 2 GiB");
    let mut out = BytesMut::new();
    for key in keys {
        let text = properties(key);
        out.put_i32(len(22 + body.len() + text.len()));
        // Magic, checksum and flag.
        out.put_slice(&[0; 12]);
        out.put_i32(len(body.len()));
        out.put_slice(body);
        out.put_i16(i16::try_from(text.len()).expect("short properties"));
        out.put_slice(text.as_bytes());
    }
    out.freeze()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Writes a number into all of `place`, in base 10 or 16; what does not fit is left out.
fn digits(place: &mut [u8], mut number: u64, base: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b"0123456789ABCDEF"[usize::try_from(number % base).unwrap_or(0)];
        number /= base;
    }
}
