//! Sending: one struct for the long and the short spelling of its fields.

use super::{HeaderError, headers};
use crate::code::request;
use crate::frame::ExtFields;

/// Names in requests 10 and 324 (`SendMessageRequestHeader`), in the order of the short ones.
const LONG: [&str; 14] = [
    "producerGroup",
    "topic",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "sysFlag",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "unitMode",
    "maxReconsumeTimes",
    "batch",
    "bname",
];

/// Names in requests 310, 320 and 325 (`SendMessageRequestHeaderV2`).
const SHORT: [&str; 14] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n",
];

/// Header of [`request::SEND_MESSAGE`], [`request::SEND_MESSAGE_V2`], [`request::SEND_BATCH_MESSAGE`],
/// [`request::SEND_REPLY_MESSAGE`] and [`request::SEND_REPLY_MESSAGE_V2`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendMessage<'a> {
    pub producer_group: &'a str,
    pub topic: &'a str,
    /// The topic to copy a new one from.
    pub default_topic: &'a str,
    pub default_topic_queue_nums: i32,
    /// Less than 0: the broker chooses.
    pub queue_id: i32,
    /// Bits of [`crate::record::sys_flag`].
    pub sys_flag: i32,
    /// Milliseconds since 1970.
    pub born_timestamp: i64,
    /// The user's flag.
    pub flag: i32,
    /// See [`crate::properties`].
    pub properties: &'a str,
    pub reconsume_times: i32,
    pub unit_mode: bool,
    pub max_reconsume_times: Option<i32>,
    pub batch: bool,
    pub broker_name: Option<&'a str>,
}

impl<'a> SendMessage<'a> {
    /// Reads the header of a request with this code; a walk over the fields, and no copy.
    ///
    /// # Errors
    /// [`HeaderError`] for a field that must be there and is not, or has no value of its type.
    pub fn decode(code: i32, ext: &'a ExtFields) -> Result<Self, HeaderError> {
        let names = names(code);
        let mut fields = [None; LONG.len()];
        for (name, value) in ext.iter() {
            let at = match name.as_bytes() {
                // The short names are the letters from a on.
                [letter] => Some(usize::from(letter.wrapping_sub(b'a'))),
                _ => names.iter().position(|known| *known == name),
            };
            if let Some(at) = at.filter(|&at| names.get(at) == Some(&name)) {
                fields[at] = Some(value);
            }
        }
        let text = |at: usize| fields[at].ok_or(HeaderError::Missing(names[at]));
        let is_true = |at: usize| fields[at].is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let invalid = |at: usize, text| HeaderError::invalid(names[at], text);
        let number = |at: usize| {
            text(at)?
                .parse::<i32>()
                .map_err(|_| invalid(at, fields[at].unwrap_or("")))
        };
        let optional = |at: usize| fields[at].map(|_| number(at)).transpose();
        Ok(Self {
            producer_group: text(0)?,
            topic: text(1)?,
            default_topic: text(2)?,
            default_topic_queue_nums: number(3)?,
            queue_id: number(4)?,
            sys_flag: number(5)?,
            born_timestamp: {
                let born = text(6)?;
                born.parse().map_err(|_| invalid(6, born))?
            },
            flag: number(7)?,
            properties: fields[8].unwrap_or(""),
            reconsume_times: optional(9)?.unwrap_or(0),
            unit_mode: is_true(10),
            max_reconsume_times: optional(11)?,
            batch: is_true(12),
            broker_name: fields[13],
        })
    }

    /// Sets the fields of a request with this code.
    pub fn encode(&self, code: i32, ext: &mut ExtFields) {
        let names = names(code);
        ext.insert(names[0], self.producer_group);
        ext.insert(names[1], self.topic);
        ext.insert(names[2], self.default_topic);
        ext.insert(names[3], self.default_topic_queue_nums);
        ext.insert(names[4], self.queue_id);
        ext.insert(names[5], self.sys_flag);
        ext.insert(names[6], self.born_timestamp);
        ext.insert(names[7], self.flag);
        ext.insert(names[8], self.properties);
        ext.insert(names[9], self.reconsume_times);
        ext.insert(names[10], self.unit_mode);
        if let Some(max) = self.max_reconsume_times {
            ext.insert(names[11], max);
        }
        ext.insert(names[12], self.batch);
        if let Some(name) = self.broker_name {
            ext.insert(names[13], name);
        }
    }
}

fn names(code: i32) -> &'static [&'static str; 14] {
    match code {
        request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE | request::SEND_REPLY_MESSAGE_V2 => {
            &SHORT
        }
        _ => &LONG,
    }
}

headers! {
    /// Answer to every send. Clients read the first three without looking whether they are there.
    SendMessageResponse {
        /// Offset message ids, one per message of a batch, with commas between.
        msg_id: String = "msgId",
        queue_id: i32 = "queueId",
        /// Of the first message of a batch.
        queue_offset: i64 = "queueOffset",
        transaction_id: Option<String> = "transactionId",
        batch_uniq_id: Option<String> = "batchUniqId",
        recall_handle: Option<String> = "recallHandle",
        region_id: Option<String> = "MSG_REGION",
        trace_on: Option<bool> = "TRACE_ON",
    }
}
