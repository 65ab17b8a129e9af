//! A message on its way into the log: its properties as the broker stores them, its redirection if
//! it is delayed, and its record.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;

use rmq_store::PendingRecord;
use rmq_wire::code::response;
use rmq_wire::record::{self, NewRecord, Record};
use rmq_wire::{name, properties};

use super::Broker;
use super::refusal::Refusal;

/// Begins the names of properties that say when a message is to be delivered.
pub(super) const TIMED: &str = "TIMER_DEL";

/// The properties of one message: names are unique, the order is that of the sender.
///
/// Like Java's broker, which reads them into a map and writes that map again: pairs without a name
/// or without a value are dropped, and of two values of one name the last one stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Properties<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Properties<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        /// A message has ten properties or so, among which a walk is quicker than a hash; but a
        /// hostile one may have thousands, which must not cost the square of that.
        const FEW: usize = 32;
        let mut pairs: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::with_capacity(16);
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (key, value) in properties::iter(text) {
            let known = match places.get(key) {
                Some(&at) => Some(at),
                None => pairs.iter().take(FEW).position(|(name, _)| name == key),
            };
            if let Some(at) = known {
                pairs[at].1 = value.into();
                continue;
            }
            if pairs.len() >= FEW {
                places.insert(key, pairs.len());
            }
            pairs.push((key.into(), value.into()));
        }
        Self { pairs }
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| &**value)
    }

    pub(super) fn set(&mut self, key: &'static str, value: impl Into<Cow<'a, str>>) {
        match self.pairs.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value.into(),
            None => self.pairs.push((key.into(), value.into())),
        }
    }

    /// Removes a property and gives its value.
    pub(super) fn take(&mut self, key: &str) -> Option<Cow<'a, str>> {
        let at = self.pairs.iter().position(|(name, _)| name == key)?;
        Some(self.pairs.remove(at).1)
    }

    /// As they stand in a record, without a separator at the end.
    pub(super) fn format(&self) -> String {
        let len = self
            .pairs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum();
        let mut text = String::with_capacity(len);
        for (name, value) in &self.pairs {
            if !text.is_empty() {
                text.push(properties::PROPERTY_SEPARATOR);
            }
            text.push_str(name);
            text.push(properties::NAME_VALUE_SEPARATOR);
            text.push_str(value);
        }
        text
    }

    /// The level at which the message is to be delayed, from 1; `None` for a message that is not.
    fn delay_level(&self) -> Result<Option<usize>, Refusal> {
        let Some(text) = self.get(properties::DELAY_TIME_LEVEL) else {
            return Ok(None);
        };
        let level: i32 = text.parse().map_err(|_| {
            Refusal::new(
                response::MESSAGE_ILLEGAL,
                format!("the delay level {text:?} is no number"),
            )
        })?;
        // Java stores a level of 0 or below as it is, and does not delay.
        Ok(usize::try_from(level).ok().filter(|level| *level > 0))
    }

    /// Refuses a message that names the time of its delivery, as clients of 5.x may: it would be delivered at once. What
    /// Java answers where `timerWheelEnable` is false (`HookUtils.checkIfTimerMessage`, `SendMessageProcessor`, 5.3); there
    /// too a delay level comes first, and what a timer wheel has delivered may be sent again.
    pub(super) fn refuse_timed(&self) -> Result<(), Refusal> {
        let times = [
            properties::TIMER_DELIVER_MS,
            properties::TIMER_DELAY_MS,
            properties::TIMER_DELAY_SEC,
        ];
        let mut pairs = self.pairs.iter();
        let is_timed = pairs.any(|(name, _)| times.contains(&&**name));
        let was_timed = || self.get(properties::TIMER_OUT_MS).is_some();
        if is_timed && self.delay_level()?.is_none() && !was_timed() {
            return Err(Refusal::system_error(
                "accurate timer message is not enabled, only delay levels are",
            ));
        }
        Ok(())
    }
}

/// What a broker knows of a message before the log gives it a place.
#[derive(Clone, Debug)]
pub(super) struct Message<'a> {
    pub(super) topic: Cow<'a, str>,
    pub(super) queue_id: i32,
    pub(super) flag: i32,
    pub(super) sys_flag: i32,
    /// Unix milliseconds, by the sender's clock.
    pub(super) born_timestamp: i64,
    pub(super) born_host: SocketAddr,
    pub(super) store_host: SocketAddr,
    pub(super) reconsume_times: i32,
    /// Physical offset of the half message that was committed; 0 if there was none.
    pub(super) prepared_transaction_offset: i64,
    pub(super) body: &'a [u8],
    pub(super) properties: Properties<'a>,
}

/// The bounds that a message is held against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// `maxMessageSize`: bytes of a body.
    pub(super) body_bytes: usize,
    /// Levels in `messageDelayLevel`.
    pub(super) delay_levels: usize,
}

impl<'a> Message<'a> {
    /// What the broker itself has to say, to queue 0 of a topic.
    pub(super) fn of_broker(broker: &Broker, topic: &'a str, body: &'a [u8]) -> Self {
        Self {
            topic: topic.into(),
            queue_id: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: broker.now_ms(),
            born_host: broker.store_host,
            store_host: broker.store_host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            properties: Properties::default(),
        }
    }

    /// What was stored before, to another place and without its properties.
    pub(super) fn again(
        record: &Record<'a>,
        topic: impl Into<Cow<'a, str>>,
        queue_id: i32,
    ) -> Self {
        Self {
            topic: topic.into(),
            queue_id,
            flag: record.flag,
            sys_flag: record.sys_flag,
            born_timestamp: record.born_timestamp,
            born_host: record.born_host,
            store_host: record.store_host,
            reconsume_times: record.reconsume_times,
            prepared_transaction_offset: 0,
            body: record.body,
            properties: Properties::default(),
        }
    }

    /// Whether [`Message::into_record`] will redirect it to a delay level.
    pub(super) fn is_delayed(&self) -> Result<bool, Refusal> {
        let is_queued = record::sys_flag::is_queued(self.sys_flag);
        Ok(is_queued && self.properties.delay_level()?.is_some())
    }

    /// The record to propose. A delayed message goes to the queue of its level in
    /// `SCHEDULE_TOPIC_XXXX`, with the way back in its properties (`CommitLog.asyncPutMessage`).
    pub(super) fn into_record(mut self, bounds: Bounds) -> Result<PendingRecord, Refusal> {
        if self.body.len() > bounds.body_bytes {
            return Err(illegal(bounds));
        }
        if record::sys_flag::is_queued(self.sys_flag)
            && let Some(level) = self.properties.delay_level()?
        {
            self.delay(level.min(bounds.delay_levels));
        }
        let properties = self.properties.format();
        self.encode(&properties, bounds)
    }

    fn delay(&mut self, level: usize) {
        self.properties
            .set(properties::DELAY_TIME_LEVEL, level.to_string());
        let queue_id = i32::try_from(level - 1).expect("there are few delay levels");
        self.redirect(name::SCHEDULE_TOPIC, queue_id);
    }

    /// The record to propose of a half message, which is not delayed before it is committed
    /// (`TransactionalMessageBridge.parseHalfMessageInner`).
    pub(super) fn into_half(mut self, bounds: Bounds) -> Result<PendingRecord, Refusal> {
        if self.body.len() > bounds.body_bytes {
            return Err(illegal(bounds));
        }
        if self.properties.get(properties::PRODUCER_GROUP).is_none() {
            let remark = "a half message without the property PGROUP cannot be ended";
            return Err(Refusal::new(response::MESSAGE_ILLEGAL, remark));
        }
        // What could not be delayed then could not be committed.
        self.properties.delay_level()?;
        self.sys_flag &= !record::sys_flag::TRANSACTION_MASK;
        self.redirect(name::TRANS_HALF_TOPIC, super::transaction::QUEUE);
        let properties = self.properties.format();
        self.encode(&properties, bounds)
    }

    /// Has it wait elsewhere, with the way back in its properties.
    fn redirect(&mut self, topic: &'static str, queue_id: i32) {
        let real_topic = std::mem::replace(&mut self.topic, topic.into());
        let real_queue = std::mem::replace(&mut self.queue_id, queue_id);
        self.properties
            .set(properties::REAL_TOPIC, real_topic.into_owned());
        self.properties
            .set(properties::REAL_QUEUE_ID, real_queue.to_string());
    }

    /// The record with these properties, whatever they say.
    pub(super) fn encode(
        &self,
        properties: &str,
        bounds: Bounds,
    ) -> Result<PendingRecord, Refusal> {
        let new = NewRecord {
            queue_id: self.queue_id,
            flag: self.flag,
            sys_flag: self.sys_flag,
            born_timestamp: self.born_timestamp,
            born_host: self.born_host,
            store_host: self.store_host,
            reconsume_times: self.reconsume_times,
            prepared_transaction_offset: self.prepared_transaction_offset,
            body: self.body,
            topic: &self.topic,
            properties,
        };
        // Clients of 4.9 read topics of up to 127 bytes; a longer one is of a long group's retries or dead
        // letters, as 5.x has them, which a client of 4.9 cannot have.
        let longest = match name::group_of(&self.topic) {
            Some(_) => name::GROUP_TOPIC_MAX_LEN,
            None => name::TOPIC_MAX_LEN,
        };
        if self.topic.len() > longest {
            let length = self.topic.len();
            let remark = format!("message topic length too long {length}");
            return Err(Refusal::new(response::MESSAGE_ILLEGAL, remark));
        }
        PendingRecord::new(&new).map_err(|_| illegal(bounds))
    }
}

pub(super) fn illegal(bounds: Bounds) -> Refusal {
    let remark = format!(
        "the message is illegal, maybe msg body or properties length not matched. msg body length \
         limit {}B, msg properties length limit 32KB.",
        bounds.body_bytes
    );
    Refusal::new(response::MESSAGE_ILLEGAL, remark)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        body_bytes: 10,
        delay_levels: 18,
    };

    fn message<'a>(properties: &'a str, body: &'a [u8]) -> Message<'a> {
        let host = "10.1.2.3:4".parse().unwrap();
        Message {
            topic: "T".into(),
            queue_id: 3,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            properties: Properties::parse(properties),
        }
    }

    #[test]
    fn properties_are_read_as_java_reads_them() {
        let mut properties = Properties::parse("a\x011\x02b\x01\x02\x01x\x02c\x02a\x012\x02d\x013");
        assert_eq!(properties.format(), "a\x012\x02d\x013");
        properties.set("CLUSTER", "c");
        properties.set("a", "9");
        assert_eq!(properties.take("d").as_deref(), Some("3"));
        assert_eq!(properties.format(), "a\x019\x02CLUSTER\x01c");
        assert_eq!(properties.get("a"), Some("9"));
        assert_eq!(Properties::parse("").format(), "");

        let many = (0..200)
            .map(|n| format!("k{}\x01{n}", n % 100))
            .collect::<Vec<_>>();
        let last = (100..200)
            .map(|n| format!("k{}\x01{n}", n % 100))
            .collect::<Vec<_>>();
        assert_eq!(
            Properties::parse(&many.join("\x02")).format(),
            last.join("\x02")
        );
    }

    #[test]
    fn only_topics_of_groups_are_long() {
        let of = |topic: String| {
            let mut message = message("", b"x");
            message.topic = topic.into();
            message.into_record(BOUNDS)
        };
        let long = name::retry_topic(&"g".repeat(140));
        let record = of(long.clone()).unwrap();
        assert_eq!(&*record.topic, long);
        assert_eq!(Record::decode(&record.buf).unwrap().topic, long);
        assert!(of("t".repeat(127)).is_ok());
        for refused in ["t".repeat(128), name::retry_topic(&"g".repeat(249))] {
            assert!(of(refused.clone()).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_delayed_message_waits_in_the_queue_of_its_level() {
        let record = message("DELAY\x012\x02k\x01v", b"x")
            .into_record(BOUNDS)
            .unwrap();
        assert_eq!(
            (&*record.topic, record.queue_id),
            ("SCHEDULE_TOPIC_XXXX", 1)
        );
        let text = String::from_utf8_lossy(&record.buf).into_owned();
        assert!(text.ends_with("DELAY\x012\x02k\x01v\x02REAL_TOPIC\x01T\x02REAL_QID\x013"));
        // Beyond the last level is the last one; 0 and below is not delayed.
        let record = message("DELAY\x0199", b"x").into_record(BOUNDS).unwrap();
        assert_eq!(record.queue_id, 17);
        let record = message("DELAY\x01-1", b"x").into_record(BOUNDS).unwrap();
        assert_eq!((&*record.topic, record.queue_id), ("T", 3));
        assert!(message("DELAY\x01soon", b"x").into_record(BOUNDS).is_err());
    }

    #[test]
    fn what_no_record_can_hold_is_refused() {
        let code = |result: Result<PendingRecord, Refusal>| match result {
            Err(Refusal::Code(code, _)) => code,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            code(message("", &[0; 11]).into_record(BOUNDS)),
            response::MESSAGE_ILLEGAL
        );
        let long = format!("a\x01{}", "x".repeat(32_766));
        assert_eq!(
            code(message(&long, b"").into_record(BOUNDS)),
            response::MESSAGE_ILLEGAL
        );
        let mut named = message("", b"");
        named.topic = "t".repeat(128).into();
        assert_eq!(code(named.into_record(BOUNDS)), response::MESSAGE_ILLEGAL);
    }

    #[test]
    fn prepared_messages_take_no_place_in_a_queue() {
        let mut prepared = message("DELAY\x011", b"");
        prepared.sys_flag = record::sys_flag::TRANSACTION_PREPARED;
        let record = prepared.into_record(BOUNDS).unwrap();
        assert!(!record.queued);
        assert_eq!(&*record.topic, "T");
    }
}
