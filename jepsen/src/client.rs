//! A small blocking client of the wire protocol. It retries nothing and hides nothing: every call ends
//! as answered, definitely not done, or unknown, because the checkers need that distinction.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rmq_wire::body::{
    ConsumerData, ConsumerList, DelayOffsetSerializeWrapper, HeartbeatData, LockBatchRequest,
    LockBatchResponse, MessageQueue, SubscriptionData,
};
use rmq_wire::code::{request, response};
use rmq_wire::frame::{self, Command, Language};
use rmq_wire::header::{
    ConsumerGroup, EndTransaction, OffsetResponse, PullMessage, QueryConsumerOffset, QueryMessage,
    SendMessage, TopicQueue, UpdateConsumerOffset, pull_sys_flag,
};
use rmq_wire::properties::{KEYS, NAME_VALUE_SEPARATOR, PROPERTY_SEPARATOR};
use rmq_wire::record::{Record, sys_flag};
use rmq_wire::{msg_id, name};

/// Messages that a pull asks for which wants all; a node gives as many as it is set to.
const MOST: i32 = 1000;

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It was done and acknowledged.
    Ok(T),
    /// It was certainly not done.
    Fail(String),
    /// It may or may not have been done, now or later.
    Unknown(String),
}

impl<T> Outcome<T> {
    /// The same end with what was answered made into something else.
    pub fn map<U>(self, of: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Ok(value) => Outcome::Ok(of(value)),
            Self::Fail(why) => Outcome::Fail(why),
            Self::Unknown(why) => Outcome::Unknown(why),
        }
    }
}

/// Where a half message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Half {
    pub queue_offset: i64,
    /// Its physical offset.
    pub commit_log_offset: i64,
}

/// One connection to one node.
pub struct Client {
    stream: TcpStream,
    opaque: i32,
}

impl Client {
    /// Connects within `timeout`, which also bounds every later read and write.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream, opaque: 0 })
    }

    /// Sends a request and waits for its answer.
    pub fn call(&mut self, mut command: Command) -> io::Result<Command> {
        self.opaque += 1;
        command.opaque = self.opaque;
        command.language = Language::OTHER;
        let mut out = BytesMut::new();
        command.encode(&mut out);
        self.stream.write_all(&out)?;
        loop {
            let mut length = [0; 4];
            self.stream.read_exact(&mut length)?;
            let length = frame::peek_len(&length)
                .map_err(io::Error::other)?
                .ok_or_else(|| io::Error::other("a length of four bytes is complete"))?;
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body)?;
            let answer = Command::decode(Bytes::from(body)).map_err(io::Error::other)?;
            if answer.is_response() && answer.opaque == self.opaque {
                return Ok(answer);
            }
        }
    }

    /// Sends one message to one queue, its body as its key. The answer is its queue offset.
    pub fn send(&mut self, topic: &str, queue: u32, body: &str) -> Outcome<u64> {
        let key = format!("{KEYS}{NAME_VALUE_SEPARATOR}{body}{PROPERTY_SEPARATOR}");
        self.send_with(topic, queue, &key, body)
    }

    /// Sends one message with these properties.
    pub fn send_with(
        &mut self,
        topic: &str,
        queue: u32,
        properties: &str,
        body: &str,
    ) -> Outcome<u64> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.send_body(request::SEND_MESSAGE_V2, topic, queue, properties, body)
    }

    /// Sends messages to one queue as a batch. The answer is the queue offset of the first.
    pub fn send_batch(&mut self, topic: &str, queue: u32, bodies: &[String]) -> Outcome<u64> {
        let mut batch = BytesMut::new();
        for body in bodies {
            // Size, magic, CRC and flag; brokers look at none of the first three.
            batch.put_bytes(0, 16);
            batch.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
            batch.put_slice(body.as_bytes());
            batch.put_u16(0);
        }
        self.send_body(
            request::SEND_BATCH_MESSAGE,
            topic,
            queue,
            "",
            batch.freeze(),
        )
    }

    fn send_body(
        &mut self,
        code: i32,
        topic: &str,
        queue: u32,
        properties: &str,
        body: Bytes,
    ) -> Outcome<u64> {
        let offset = |answer: &Command| number(answer, "queueOffset");
        self.send_for(code, topic, queue, properties, body, offset)
    }

    /// Sends, and reads of an acknowledgement what is asked of it.
    fn send_for<T>(
        &mut self,
        code: i32,
        topic: &str,
        queue: u32,
        properties: &str,
        body: Bytes,
        read: impl FnOnce(&Command) -> Option<T>,
    ) -> Outcome<T> {
        let mut command = Command::request(code);
        let header = SendMessage {
            producer_group: "jepsen",
            topic,
            default_topic: name::AUTO_CREATE_TOPIC,
            default_topic_queue_nums: 4,
            queue_id: queue_id(queue),
            born_timestamp: 1_700_000_000_000,
            properties,
            batch: code == request::SEND_BATCH_MESSAGE,
            ..SendMessage::default()
        };
        header.encode(command.code, &mut command.ext);
        command.body = body;
        match self.call(command) {
            Err(e) => Outcome::Unknown(e.to_string()),
            Ok(answer) => match answer.code {
                response::SUCCESS => match read(&answer) {
                    Some(read) => Outcome::Ok(read),
                    None => Outcome::Unknown("an acknowledgement without a position".into()),
                },
                // Refused before anything was proposed.
                response::SERVICE_NOT_AVAILABLE
                | response::NO_PERMISSION
                | response::TOPIC_NOT_EXIST
                | response::SYSTEM_BUSY
                | response::MESSAGE_ILLEGAL => Outcome::Fail(describe(&answer)),
                _ => Outcome::Unknown(describe(&answer)),
            },
        }
    }

    /// Sends a half message of a transaction of the group `jepsen`.
    pub fn prepare(&mut self, topic: &str, queue: u32, body: &str) -> Outcome<Half> {
        const PROPERTIES: &str = "TRAN_MSG\u{1}true\u{2}PGROUP\u{1}jepsen\u{2}";
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.send_for(
            request::SEND_MESSAGE_V2,
            topic,
            queue,
            PROPERTIES,
            body,
            |answer| {
                let id = answer.ext.get("msgId")?;
                let (_, commit_log_offset) = msg_id::decode(id).ok()?;
                let queue_offset = answer.ext.get("queueOffset")?.parse().ok()?;
                Some(Half {
                    queue_offset,
                    commit_log_offset,
                })
            },
        )
    }

    /// Says the end of a transaction; whether that is acknowledged.
    pub fn end(&mut self, half: Half, commits: bool) -> bool {
        let header = EndTransaction {
            producer_group: "jepsen".into(),
            tran_state_table_offset: half.queue_offset,
            commit_log_offset: half.commit_log_offset,
            commit_or_rollback: match commits {
                true => sys_flag::TRANSACTION_COMMIT,
                false => sys_flag::TRANSACTION_ROLLBACK,
            },
            ..EndTransaction::default()
        };
        let answer = self.call(Command::request(request::END_TRANSACTION).with_header(&header));
        answer.is_ok_and(|answer| answer.code == response::SUCCESS)
    }

    /// Every message of a queue up to its present end, as (queue offset, body).
    pub fn read_queue(&mut self, topic: &str, queue: u32) -> io::Result<Vec<(u64, String)>> {
        let mut found = Vec::new();
        self.read_queue_from(topic, queue, 0, |offset, body| found.push((offset, body)))?;
        Ok(found)
    }

    /// The same from an offset on, or from the first that is left, given away message by message.
    pub fn read_queue_from(
        &mut self,
        topic: &str,
        queue: u32,
        from: u64,
        mut take: impl FnMut(u64, String),
    ) -> io::Result<()> {
        self.read_records(topic, queue, from, |r, _| {
            take(offset_of(r), String::from_utf8_lossy(r.body).into_owned());
        })
    }

    /// The same with each record, and its bytes.
    pub fn read_records(
        &mut self,
        topic: &str,
        queue: u32,
        from: u64,
        mut take: impl FnMut(&Record<'_>, &[u8]),
    ) -> io::Result<()> {
        let end = self.queue_number(request::GET_MAX_OFFSET, topic, queue)?;
        let first = self.queue_number(request::GET_MIN_OFFSET, topic, queue)?;
        let mut at = first.max(from);
        while at < end {
            let answer = self.pull_for("jepsen_read", topic, queue, at, MOST)?;
            match answer.code {
                response::SUCCESS => records(&answer.body, &mut take)?,
                response::PULL_RETRY_IMMEDIATELY | response::PULL_NOT_FOUND => {}
                _ => return Err(io::Error::other(describe(&answer))),
            }
            at = number(&answer, "nextBeginOffset")
                .ok_or_else(|| io::Error::other("a pull answer without nextBeginOffset"))?;
        }
        Ok(())
    }

    /// At most 32 messages of a queue from an offset on, or what is said instead.
    pub fn pull(&mut self, topic: &str, queue: u32, offset: u64) -> io::Result<Command> {
        self.pull_for("jepsen_read", topic, queue, offset, 32)
    }

    fn pull_for(
        &mut self,
        group: &str,
        topic: &str,
        queue: u32,
        offset: u64,
        most: i32,
    ) -> io::Result<Command> {
        let header = PullMessage {
            consumer_group: group.into(),
            topic: topic.into(),
            queue_id: queue_id(queue),
            queue_offset: signed(offset),
            max_msg_nums: most,
            sys_flag: pull_sys_flag::SUBSCRIPTION,
            subscription: Some("*".into()),
            expression_type: Some("TAG".into()),
            ..PullMessage::default()
        };
        self.call(Command::request(request::PULL_MESSAGE).with_header(&header))
    }

    /// At most so many messages of a queue from an offset on, none if it is said that there is none, and where a consumer
    /// is told to go on.
    pub fn poll(
        &mut self,
        group: &str,
        topic: &str,
        queue: u32,
        from: u64,
        most: i32,
    ) -> Outcome<(Vec<(u64, String)>, u64)> {
        let answer = match self.pull_for(group, topic, queue, from, most) {
            Ok(answer) => answer,
            Err(e) => return Outcome::Fail(e.to_string()),
        };
        let found = match answer.code {
            response::SUCCESS => messages(&answer.body),
            response::PULL_NOT_FOUND | response::PULL_OFFSET_MOVED => Ok(Vec::new()),
            _ => return Outcome::Fail(describe(&answer)),
        };
        match (found, number(&answer, "nextBeginOffset")) {
            (Ok(found), Some(next)) => Outcome::Ok((found, next)),
            (Err(e), _) => Outcome::Fail(e.to_string()),
            (_, None) => Outcome::Fail(describe(&answer)),
        }
    }

    /// The offset message id of the message at a queue offset.
    pub fn message_id(&mut self, topic: &str, queue: u32, offset: u64) -> io::Result<String> {
        let answer = self.pull(topic, queue, offset)?;
        let r = Record::decode(&answer.body).map_err(io::Error::other)?;
        Ok(msg_id::encode(r.store_host, r.physical_offset))
    }

    /// GET_MAX_OFFSET or GET_MIN_OFFSET of a queue.
    pub fn queue_number(&mut self, code: i32, topic: &str, queue: u32) -> io::Result<u64> {
        let header = TopicQueue {
            topic: topic.into(),
            queue_id: queue_id(queue),
        };
        let answer = self.call(Command::request(code).with_header(&header))?;
        offset(&answer).ok_or_else(|| io::Error::other(describe(&answer)))
    }

    /// Commits a consumer group's offset of queue 0, waiting for the answer.
    pub fn commit_offset(&mut self, group: &str, topic: &str, offset: u64) -> Outcome<()> {
        self.commit(group, topic, 0, offset)
    }

    /// The same of any queue.
    pub fn commit(&mut self, group: &str, topic: &str, queue: u32, offset: u64) -> Outcome<()> {
        let header = UpdateConsumerOffset {
            consumer_group: group.into(),
            topic: topic.into(),
            queue_id: queue_id(queue),
            commit_offset: signed(offset),
        };
        let command = Command::request(request::UPDATE_CONSUMER_OFFSET).with_header(&header);
        match self.call(command) {
            Ok(answer) if answer.code == response::SUCCESS => Outcome::Ok(()),
            Ok(answer) => Outcome::Unknown(describe(&answer)),
            Err(e) => Outcome::Unknown(e.to_string()),
        }
    }

    /// A consumer group's offset in queue 0; `None` if the group has none.
    pub fn query_offset(&mut self, group: &str, topic: &str) -> io::Result<Option<u64>> {
        self.committed(group, topic, 0)
    }

    /// The same of any queue.
    pub fn committed(&mut self, group: &str, topic: &str, queue: u32) -> io::Result<Option<u64>> {
        let header = QueryConsumerOffset {
            consumer_group: group.into(),
            topic: topic.into(),
            queue_id: queue_id(queue),
            set_zero_if_not_found: None,
        };
        let command = Command::request(request::QUERY_CONSUMER_OFFSET).with_header(&header);
        let answer = self.call(command)?;
        match answer.code {
            response::SUCCESS => Ok(offset(&answer)),
            response::QUERY_NOT_FOUND => Ok(None),
            _ => Err(io::Error::other(describe(&answer))),
        }
    }

    /// How far delayed messages have been delivered: by level the queue offset of the next.
    pub fn delay_offsets(&mut self) -> io::Result<BTreeMap<i32, i64>> {
        let answer = self.call(Command::request(request::GET_ALL_DELAY_OFFSET))?;
        done(&answer)?;
        let table: DelayOffsetSerializeWrapper = answer.json().map_err(io::Error::other)?;
        Ok(table.offset_table)
    }

    /// Says that this client is a member of a consumer group, for as long as this connection lasts.
    pub fn beat(&mut self, member: &str, group: &str, topic: &str) -> io::Result<()> {
        let beat = HeartbeatData {
            client_id: member.into(),
            consumer_data_set: vec![ConsumerData {
                group_name: group.into(),
                subscription_data_set: vec![SubscriptionData {
                    sub_string: "*".into(),
                    topic: topic.into(),
                    ..SubscriptionData::default()
                }],
                ..ConsumerData::default()
            }],
            ..HeartbeatData::default()
        };
        let answer = self.call(Command::request(request::HEART_BEAT).with_json(&beat))?;
        done(&answer)
    }

    /// Whether a message whose key is its body is found by that.
    pub fn look_up(&mut self, topic: &str, key: &str) -> io::Result<bool> {
        let header = QueryMessage {
            topic: topic.into(),
            key: key.into(),
            max_num: 8,
            begin_timestamp: 0,
            end_timestamp: i64::MAX,
            ..QueryMessage::default()
        };
        let code = request::QUERY_MESSAGE;
        let answer = self.call(Command::request(code).with_header(&header))?;
        match answer.code {
            response::SUCCESS => Ok(messages(&answer.body)?.iter().any(|(_, body)| body == key)),
            response::QUERY_NOT_FOUND => Ok(false),
            _ => Err(io::Error::other(describe(&answer))),
        }
    }

    /// The members of a consumer group.
    pub fn members(&mut self, group: &str) -> io::Result<Vec<String>> {
        let header = ConsumerGroup {
            consumer_group: group.into(),
        };
        let code = request::GET_CONSUMER_LIST_BY_GROUP;
        let answer = self.call(Command::request(code).with_header(&header))?;
        done(&answer)?;
        let list: ConsumerList = answer.json().map_err(io::Error::other)?;
        Ok(list.consumer_id_list)
    }

    /// Takes or renews the lock of a queue; whether this member holds it now.
    pub fn lock(&mut self, member: &str, group: &str, topic: &str, queue: u32) -> Outcome<bool> {
        let body = lock_request(member, group, topic, queue);
        let command = Command::request(request::LOCK_BATCH_MQ).with_json(&body);
        let answer = match self.call(command) {
            Ok(answer) if answer.code == response::SUCCESS => answer,
            Ok(answer) => return Outcome::Unknown(describe(&answer)),
            Err(e) => return Outcome::Unknown(e.to_string()),
        };
        match answer.json::<LockBatchResponse>() {
            Ok(held) => Outcome::Ok(held.lock_ok_mq_set == body.mq_set),
            Err(e) => Outcome::Unknown(e.to_string()),
        }
    }

    /// Gives up the lock of a queue.
    pub fn unlock(&mut self, member: &str, group: &str, topic: &str, queue: u32) -> io::Result<()> {
        let body = lock_request(member, group, topic, queue);
        done(&self.call(Command::request(request::UNLOCK_BATCH_MQ).with_json(&body))?)
    }
}

fn lock_request(member: &str, group: &str, topic: &str, queue: u32) -> LockBatchRequest {
    let queue = MessageQueue {
        broker_name: "jepsen".into(),
        queue_id: queue_id(queue),
        topic: topic.into(),
    };
    LockBatchRequest {
        client_id: member.into(),
        consumer_group: group.into(),
        mq_set: [queue].into(),
        ..LockBatchRequest::default()
    }
}

fn done(answer: &Command) -> io::Result<()> {
    match answer.code {
        response::SUCCESS => Ok(()),
        _ => Err(io::Error::other(describe(answer))),
    }
}

/// The messages of a pull's answer, as (queue offset, body).
fn messages(body: &[u8]) -> io::Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    records(body, &mut |r, _| {
        found.push((offset_of(r), String::from_utf8_lossy(r.body).into_owned()));
    })?;
    Ok(found)
}

/// The records of a pull's answer, each with its bytes.
fn records(mut body: &[u8], take: &mut impl FnMut(&Record<'_>, &[u8])) -> io::Result<()> {
    while !body.is_empty() {
        let r = Record::decode(body).map_err(io::Error::other)?;
        let (own, rest) = body.split_at(r.size);
        take(&r, own);
        body = rest;
    }
    Ok(())
}

/// A record's queue offset.
pub(crate) fn offset_of(record: &Record<'_>) -> u64 {
    u64::try_from(record.queue_offset).unwrap_or(u64::MAX)
}

fn queue_id(queue: u32) -> i32 {
    i32::try_from(queue).unwrap_or(i32::MAX)
}

fn signed(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// The offset that an answer names.
fn offset(answer: &Command) -> Option<u64> {
    let header: OffsetResponse = answer.header().ok()?;
    u64::try_from(header.offset).ok()
}

/// A number among an answer's fields.
pub fn number(answer: &Command, field: &str) -> Option<u64> {
    answer.ext.get(field)?.parse().ok()
}

/// An answer's code and remark in one line.
pub fn describe(answer: &Command) -> String {
    format!(
        "code {} {}",
        answer.code,
        answer.remark.as_deref().unwrap_or_default()
    )
}
