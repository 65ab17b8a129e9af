//! A record read.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::Buf;

use super::{
    MAGIC_V1, MAGIC_V2, NewRecord, Peek, body_crc, born_host_len, peek, store_host_len, sys_flag,
};
use crate::json::read::lossy;
use crate::properties;

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("no record begins here")]
    NoRecord,
    #[error("record of {size} bytes, of which {available} are there")]
    Incomplete { size: usize, available: usize },
    #[error("record of {size} bytes ends inside its {field}")]
    Overrun { size: usize, field: &'static str },
    #[error("record of {size} bytes has {left} after its properties")]
    Trailing { size: usize, left: usize },
    #[error("{field} has length {len}")]
    Length { field: &'static str, len: i64 },
    #[error("topic is not UTF-8")]
    Topic,
    #[error("port {0} is out of range")]
    Port(u32),
}

/// A view on the bytes of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Bytes of the whole record.
    pub size: usize,
    /// [`MAGIC_V1`] or [`MAGIC_V2`].
    pub magic: u32,
    /// As stored; [`Record::crc_matches`] compares it.
    pub body_crc: u32,
    pub queue_id: i32,
    /// The user's flag.
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    /// Bits of [`sys_flag`].
    pub sys_flag: i32,
    /// Milliseconds since 1970, by the clock of the producer.
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    /// Milliseconds since 1970, by the clock of the broker.
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    pub body: &'a [u8],
    pub topic: &'a str,
    /// As stored, in whatever encoding; [`Record::properties`] is their text.
    pub raw_properties: &'a [u8],
}

impl<'a> Record<'a> {
    /// What is to be written for this message to be stored again, with these properties as text.
    #[must_use]
    pub const fn again<'b>(&self, properties: &'b str) -> NewRecord<'b>
    where
        'a: 'b,
    {
        NewRecord {
            queue_id: self.queue_id,
            flag: self.flag,
            sys_flag: self.sys_flag,
            born_timestamp: self.born_timestamp,
            born_host: self.born_host,
            store_host: self.store_host,
            reconsume_times: self.reconsume_times,
            prepared_transaction_offset: self.prepared_transaction_offset,
            body: self.body,
            topic: self.topic,
            properties,
        }
    }

    /// Reads the record at the head of `bytes`; what follows it is ignored. Its body is not compared
    /// with its CRC.
    ///
    /// # Errors
    /// [`RecordError`] if no record begins there, or not all of it is there, or its parts do not fill
    /// its size.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let Peek::Record { size } = peek(bytes) else {
            return Err(RecordError::NoRecord);
        };
        let available = bytes.len();
        let whole = bytes
            .get(..size)
            .ok_or(RecordError::Incomplete { size, available })?;
        // Up to and with the prepared transaction offset everything fits, whatever the hosts, or:
        let overrun = |field| RecordError::Overrun { size, field };
        let mut rest = whole;
        rest.advance(4);
        let magic = rest.get_u32();
        let body_crc = rest.get_u32();
        let queue_id = rest.get_i32();
        let flag = rest.get_i32();
        let queue_offset = rest.get_i64();
        let physical_offset = rest.get_i64();
        let sys_flag = rest.get_i32();
        let born_timestamp = rest.get_i64();
        let born_host = host(&mut rest, born_host_len(sys_flag), overrun("born host"))?;
        let store_timestamp = rest.try_get_i64().map_err(|_| overrun("store timestamp"))?;
        let store_host = host(&mut rest, store_host_len(sys_flag), overrun("store host"))?;
        let reconsume_times = rest.try_get_i32().map_err(|_| overrun("reconsume times"))?;
        let prepared_transaction_offset = rest
            .try_get_i64()
            .map_err(|_| overrun("prepared transaction offset"))?;
        let body_len = rest.try_get_i32().map_err(|_| overrun("body"))?;
        let body = part(&mut rest, body_len.into(), size, "body")?;
        let topic_len = if magic == MAGIC_V2 {
            rest.try_get_i16().map(i64::from)
        } else {
            rest.try_get_i8().map(i64::from)
        };
        let topic_len = topic_len.map_err(|_| overrun("topic"))?;
        let topic = part(&mut rest, topic_len, size, "topic")?;
        let topic = std::str::from_utf8(topic).map_err(|_| RecordError::Topic)?;
        let properties_len = rest.try_get_i16().map_err(|_| overrun("properties"))?;
        let raw_properties = part(&mut rest, properties_len.into(), size, "properties")?;
        if !rest.is_empty() {
            return Err(RecordError::Trailing {
                size,
                left: rest.len(),
            });
        }
        debug_assert!(
            magic == MAGIC_V1 || magic == MAGIC_V2,
            "peek lets no other pass"
        );
        Ok(Self {
            size,
            magic,
            body_crc,
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag,
            born_timestamp,
            born_host,
            store_timestamp,
            store_host,
            reconsume_times,
            prepared_transaction_offset,
            body,
            topic,
            raw_properties,
        })
    }

    /// Whether the body is the one that the CRC was made of.
    #[must_use]
    pub fn crc_matches(&self) -> bool {
        body_crc(self.body) == self.body_crc
    }

    /// The text of the properties; what is not UTF-8 reads as U+FFFD, as in Java.
    #[must_use]
    pub fn properties(&self) -> Cow<'a, str> {
        lossy(self.raw_properties)
    }

    /// The value of one property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<Cow<'a, str>> {
        match self.properties() {
            Cow::Borrowed(text) => properties::get(text, name).map(Cow::Borrowed),
            Cow::Owned(text) => properties::get(&text, name).map(|v| Cow::Owned(v.to_owned())),
        }
    }

    /// Whether it takes a place in its queue.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        sys_flag::is_queued(self.sys_flag)
    }
}

fn host(rest: &mut &[u8], len: usize, overrun: RecordError) -> Result<SocketAddr, RecordError> {
    let bytes = rest.split_off(..len).ok_or(overrun)?;
    let (ip, port) = bytes.split_at(len - 4);
    let ip = match <[u8; 16]>::try_from(ip) {
        Ok(v6) => IpAddr::V6(Ipv6Addr::from(v6)),
        Err(_) => {
            IpAddr::from(<[u8; 4]>::try_from(ip).expect("a host has 4 or 16 bytes of address"))
        }
    };
    let port = port
        .iter()
        .fold(0u32, |value, &byte| value << 8 | u32::from(byte));
    let port = u16::try_from(port).map_err(|_| RecordError::Port(port))?;
    Ok(SocketAddr::new(ip, port))
}

fn part<'a>(
    rest: &mut &'a [u8],
    len: i64,
    size: usize,
    field: &'static str,
) -> Result<&'a [u8], RecordError> {
    let n = usize::try_from(len).map_err(|_| RecordError::Length { field, len })?;
    rest.split_off(..n)
        .ok_or(RecordError::Overrun { size, field })
}
