//! The registration of a broker with a name server, plain and compressed.
//!
//! The compressed form is a zlib stream of
//!
//! ```text
//! i32 n, DataVersion as JSON | i32 topics, { i32 n, "topic r w perm SINGLE_TAG" } … | i32 n, list as JSON
//! ```
//!
//! where 5.x adds the attributes of a topic as JSON after another space, and at the end the mappings of
//! static topics: `i32 count, { i32 n, JSON } …` (`RegisterBrokerBody`, `TopicConfig.encode`).

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use super::{TopicConfig, TopicConfigSerializeWrapper, TopicFilterType};
use crate::frame::MAX_FRAME;
use crate::json::{self, JsonError};

/// Most bytes a registration may unpack to: what a frame could hold unpacked.
const MAX_UNPACKED: u64 = MAX_FRAME as u64;
/// Most bytes of unpacked text for a packed one. Names of topics are alike, and pack some ten times.
const MAX_RATIO: u64 = 100;
/// What may be unpacked whatever its ratio.
const FREE_UNPACKED: u64 = 64 * 1024;

/// Body of [`REGISTER_BROKER`](crate::code::request::REGISTER_BROKER).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RegisterBrokerBody {
    pub filter_server_list: Vec<String>,
    pub topic_config_serialize_wrapper: TopicConfigSerializeWrapper,
}

/// Why a body is no registration.
#[derive(Debug, thiserror::Error)]
pub enum RegisterBodyError {
    #[error("registration is no JSON: {0}")]
    Json(#[from] JsonError),
    #[error("registration does not unpack: {0}")]
    Unpack(#[from] std::io::Error),
    #[error("registration unpacks to more than {0} bytes")]
    TooLong(u64),
    #[error("registration ends inside its {0}")]
    Truncated(&'static str),
    #[error("registration has a {field} of length {len}")]
    Length { field: &'static str, len: i32 },
    #[error("registration has the topic {0:?}")]
    Topic(String),
}

impl RegisterBrokerBody {
    /// Reads a body; `compressed` is a field of the header. What 5.x says of static topics in a compressed
    /// one is passed over.
    ///
    /// # Errors
    /// [`RegisterBodyError`]
    pub fn decode(body: &[u8], compressed: bool) -> Result<Self, RegisterBodyError> {
        if compressed {
            unpack(body)
        } else {
            Ok(json::from_slice(body)?)
        }
    }

    /// Writes the body. Compressed, it has the form of 4.9, which 5.x reads too.
    ///
    /// # Panics
    /// If it has more than 2³¹ bytes.
    #[must_use]
    pub fn encode(&self, compressed: bool) -> Vec<u8> {
        if compressed {
            pack(self).expect("a Vec takes every write")
        } else {
            json::to_vec(self)
        }
    }
}

fn unpack(body: &[u8]) -> Result<RegisterBrokerBody, RegisterBodyError> {
    let packed_len = u64::try_from(body.len()).expect("a length has at most 64 bits");
    let limit = packed_len
        .saturating_mul(MAX_RATIO)
        .clamp(FREE_UNPACKED, MAX_UNPACKED);
    let mut text = Vec::new();
    let read = ZlibDecoder::new(body)
        .take(limit + 1)
        .read_to_end(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > limit) {
        return Err(RegisterBodyError::TooLong(limit));
    }

    let mut rest = text.as_slice();
    let data_version = json::from_slice(part(&mut rest, "data version")?)?;
    let topics = number(&mut rest, "number of topics")?;
    let mut topic_config_table = BTreeMap::new();
    for _ in 0..topics {
        let topic = topic(&String::from_utf8_lossy(part(&mut rest, "topics")?))?;
        topic_config_table.insert(topic.topic_name.clone(), topic);
    }
    let filter_server_list = json::from_slice(part(&mut rest, "filter servers")?)?;
    let wrapper = TopicConfigSerializeWrapper {
        data_version,
        topic_config_table,
        ..Default::default()
    };
    Ok(RegisterBrokerBody {
        filter_server_list,
        topic_config_serialize_wrapper: wrapper,
    })
}

fn number(rest: &mut &[u8], field: &'static str) -> Result<i32, RegisterBodyError> {
    let (head, tail) = rest
        .split_first_chunk()
        .ok_or(RegisterBodyError::Truncated(field))?;
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}

fn part<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], RegisterBodyError> {
    let len = number(rest, field)?;
    let n = usize::try_from(len).map_err(|_| RegisterBodyError::Length { field, len })?;
    rest.split_off(..n)
        .ok_or(RegisterBodyError::Truncated(field))
}

fn topic(text: &str) -> Result<TopicConfig, RegisterBodyError> {
    let mut words = text.splitn(6, ' ');
    let parse = |word: Option<&str>| word.and_then(|word| word.parse().ok());
    let (Some(name), Some(read), Some(write), Some(perm), Some(filter_type)) = (
        words.next(),
        parse(words.next()),
        parse(words.next()),
        parse(words.next()),
        words.next(),
    ) else {
        return Err(RegisterBodyError::Topic(text.chars().take(200).collect()));
    };
    let topic_filter_type = match filter_type {
        "MULTI_TAG" => TopicFilterType::MultiTag,
        _ => TopicFilterType::SingleTag,
    };
    // Java passes over attributes that it cannot read, such as those with a space in them.
    let attributes = words
        .next()
        .and_then(|attributes| json::from_str(attributes).ok());
    Ok(TopicConfig {
        attributes,
        perm,
        read_queue_nums: read,
        topic_filter_type,
        topic_name: name.to_owned(),
        write_queue_nums: write,
        ..TopicConfig::default()
    })
}

fn pack(body: &RegisterBrokerBody) -> std::io::Result<Vec<u8>> {
    // Names of topics are so alike that more effort gains little.
    let mut out = ZlibEncoder::new(Vec::new(), Compression::fast());
    let wrapper = &body.topic_config_serialize_wrapper;
    put(&mut out, &json::to_vec(&wrapper.data_version))?;
    out.write_all(&length(wrapper.topic_config_table.len()))?;
    for topic in wrapper.topic_config_table.values() {
        let filter_type = match topic.topic_filter_type {
            TopicFilterType::SingleTag => "SINGLE_TAG",
            TopicFilterType::MultiTag => "MULTI_TAG",
        };
        let TopicConfig {
            topic_name,
            read_queue_nums,
            write_queue_nums,
            perm,
            ..
        } = topic;
        let text =
            format!("{topic_name} {read_queue_nums} {write_queue_nums} {perm} {filter_type}");
        put(&mut out, text.as_bytes())?;
    }
    put(&mut out, &json::to_vec(&body.filter_server_list))?;
    out.finish()
}

fn put(out: &mut impl Write, part: &[u8]) -> std::io::Result<()> {
    out.write_all(&length(part.len()))?;
    out.write_all(part)
}

fn length(len: usize) -> [u8; 4] {
    i32::try_from(len)
        .expect("a registration has less than 2^31 bytes")
        .to_be_bytes()
}
