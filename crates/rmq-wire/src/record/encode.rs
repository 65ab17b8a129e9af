//! A record written, and sealed once its place is known.

use std::net::{IpAddr, SocketAddr};

use bytes::BufMut;

use super::{
    BORN_HOST_AT, MAGIC_V1, MAGIC_V2, MIN_LEN, PHYSICAL_OFFSET_AT, QUEUE_OFFSET_AT, SYS_FLAG_AT,
    body_crc, born_host_len, store_host_len, sys_flag,
};
use crate::properties;

/// Longest topic of version 1, whose length has one signed byte.
const TOPIC_V1_MAX: usize = i8::MAX as usize;

/// Why a message makes no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("topic of {0} bytes, allowed are {max}", max = i16::MAX)]
    Topic(usize),
    #[error("properties of {0} bytes, allowed are {max}", max = properties::MAX_LEN)]
    Properties(usize),
    #[error("record of {0} bytes, allowed are {max}", max = i32::MAX)]
    Record(usize),
}

/// A message on its way into a log.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    pub queue_id: i32,
    /// The user's flag.
    pub flag: i32,
    /// Bits of [`sys_flag`]; those of the hosts are set by their addresses.
    pub sys_flag: i32,
    /// Milliseconds since 1970.
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    pub body: &'a [u8],
    pub topic: &'a str,
    /// See [`crate::properties`].
    pub properties: &'a str,
}

impl<'a> NewRecord<'a> {
    /// A message born and stored at `host`, with no flags, no properties and a birth at time 0.
    #[must_use]
    pub const fn new(host: SocketAddr, topic: &'a str, queue_id: i32, body: &'a [u8]) -> Self {
        Self {
            queue_id,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 0,
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            topic,
            properties: "",
        }
    }

    /// Bytes of its record.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let flags = self.record_flags();
        let hosts =
            born_host_len(flags) + store_host_len(flags) - born_host_len(0) - store_host_len(0);
        let wide = usize::from(self.topic.len() > TOPIC_V1_MAX);
        MIN_LEN + hosts + wide + self.body.len() + self.topic.len() + self.properties.len()
    }

    /// Appends its record to `out` with queue offset, physical offset and store timestamp zero, and
    /// returns the bytes written. Nothing is written when it fails.
    ///
    /// A topic longer than 127 bytes makes a record of version 2.
    ///
    /// # Errors
    /// [`EncodeError`]: topic, properties or the whole are longer than their length field can say.
    pub fn encode(&self, out: &mut impl BufMut) -> Result<usize, EncodeError> {
        let size = self.encoded_len();
        let total = i32::try_from(size).map_err(|_| EncodeError::Record(size))?;
        let body_len = i32::try_from(self.body.len()).map_err(|_| EncodeError::Record(size))?;
        let topic_len =
            i16::try_from(self.topic.len()).map_err(|_| EncodeError::Topic(self.topic.len()))?;
        let properties_len = i16::try_from(self.properties.len())
            .map_err(|_| EncodeError::Properties(self.properties.len()))?;
        let v1_topic_len = i8::try_from(topic_len).ok();

        out.put_i32(total);
        out.put_u32(if v1_topic_len.is_some() {
            MAGIC_V1
        } else {
            MAGIC_V2
        });
        out.put_u32(body_crc(self.body));
        out.put_i32(self.queue_id);
        out.put_i32(self.flag);
        out.put_i64(0);
        out.put_i64(0);
        out.put_i32(self.record_flags());
        out.put_i64(self.born_timestamp);
        put_host(out, self.born_host);
        out.put_i64(0);
        put_host(out, self.store_host);
        out.put_i32(self.reconsume_times);
        out.put_i64(self.prepared_transaction_offset);
        out.put_i32(body_len);
        out.put_slice(self.body);
        match v1_topic_len {
            Some(len) => out.put_i8(len),
            None => out.put_i16(topic_len),
        }
        out.put_slice(self.topic.as_bytes());
        out.put_i16(properties_len);
        out.put_slice(self.properties.as_bytes());
        Ok(size)
    }

    fn record_flags(&self) -> i32 {
        let mut flags = self.sys_flag & !(sys_flag::BORN_HOST_V6 | sys_flag::STORE_HOST_V6);
        if self.born_host.is_ipv6() {
            flags |= sys_flag::BORN_HOST_V6;
        }
        if self.store_host.is_ipv6() {
            flags |= sys_flag::STORE_HOST_V6;
        }
        flags
    }
}

fn put_host(out: &mut impl BufMut, host: SocketAddr) {
    match host.ip() {
        IpAddr::V4(ip) => out.put_slice(&ip.octets()),
        IpAddr::V6(ip) => out.put_slice(&ip.octets()),
    }
    out.put_u32(host.port().into());
}

/// Fills in what is known once a record has its place: `queue_offset` (0 for one that takes no place
/// in its queue), `physical_offset` in bytes, and `store_timestamp` in milliseconds since 1970.
///
/// # Panics
/// If `record` is shorter than a record.
pub fn seal(record: &mut [u8], queue_offset: i64, physical_offset: i64, store_timestamp: i64) {
    assert!(
        record.len() >= MIN_LEN,
        "a record has at least {MIN_LEN} bytes, not {}",
        record.len()
    );
    let flags: [u8; 4] = record[SYS_FLAG_AT..][..4].try_into().expect("four bytes");
    let store_timestamp_at = BORN_HOST_AT + born_host_len(i32::from_be_bytes(flags));
    let mut put = |at: usize, value: i64| record[at..at + 8].copy_from_slice(&value.to_be_bytes());
    put(QUEUE_OFFSET_AT, queue_offset);
    put(PHYSICAL_OFFSET_AT, physical_offset);
    put(store_timestamp_at, store_timestamp);
}
