//! Delivery of delayed messages. They wait in `SCHEDULE_TOPIC_XXXX`, one queue for each level; the
//! leader sends each on to its real topic when it is due, as a new record.
//!
//! `ScheduleMessageService` (4.9.8). How far a level is delivered is part of the replicated state;
//! it is proposed behind the messages, so a change of leaders between the two delivers those of one
//! round a second time, and none is lost.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rmq_store::{PendingRecord, Place, QueueOffset, Unit, mutant};
use rmq_wire::record::Record;
use rmq_wire::{name, properties};

use super::Broker;
use super::message::{Message, Properties};
use super::refusal::Refusal;
use crate::meta::Change;

/// Pause between rounds that delivered everything due (`DELAY_FOR_A_WHILE`).
const PAUSE: Duration = Duration::from_millis(100);
/// Pause while no message waits, unless half the shortest delay is shorter: what comes meanwhile is to be seen before
/// it is due.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a round that failed (`DELAY_FOR_A_PERIOD`, shortened).
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// Messages of one level in one round.
const ROUND_MESSAGES: usize = 256;
/// Bytes of messages that are delivered at a time, but for one message that alone has more.
const BATCH_BYTES: u64 = 1024 * 1024;

/// Delivers as leader of `term` for as long as it is polled; the caller stops it when this node does not serve.
pub(super) async fn run(broker: &Arc<Broker>, term: u64) {
    loop {
        // A round is not given up with its caller: what it stores may be stored yet, and after a pause of the lease the
        // same leader would deliver that again.
        let done = tokio::spawn(round(Arc::clone(broker), term)).await;
        let done = done.unwrap_or_else(|error| Err(Refusal::system_error(error.to_string())));
        let pause = match done {
            Ok(Round::Full) => continue,
            Ok(Round::Waiting) => PAUSE,
            Ok(Round::Empty) => {
                let shortest = broker.config.message_delay_level.iter().min();
                shortest.map_or(IDLE_PAUSE, |shortest| {
                    PAUSE.max(IDLE_PAUSE.min(*shortest / 2))
                })
            }
            Err(refusal) => {
                tracing::warn!(?refusal, "delayed messages could not be delivered");
                FAILED_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

enum Round {
    /// There may be more that is due.
    Full,
    /// There may be messages that are not due yet.
    Waiting,
    /// There was no message that is not due.
    Empty,
}

async fn round(broker: Arc<Broker>, term: u64) -> Result<Round, Refusal> {
    // A freeze finds messages and their progress both stored, or neither.
    let _round = broker.delivering.lock().await;
    let (broker, next) = (&*broker, broker.meta.read().delay.clone());
    if broker.meta.is_frozen() {
        return Ok(Round::Waiting);
    }
    let mut batch = Batch::default();
    let (mut is_full, mut waits) = (false, false);
    for (level, delay) in (1..).zip(&broker.config.message_delay_level) {
        let from = next.get(&level).copied().unwrap_or(0);
        let due = due(broker, level, from, *delay)?;
        is_full |= due.is_full;
        waits |= due.waits;
        if batch.bytes + due.bytes > batch_bytes(broker) {
            batch.deliver(broker, term).await?;
        }
        batch.bytes += due.bytes;
        batch.records.extend(due.records);
        if due.next != from {
            batch.progress.push((level, due.next));
        }
    }
    batch.deliver(broker, term).await?;
    Ok(match (is_full, waits) {
        (true, _) => Round::Full,
        (false, true) => Round::Waiting,
        (false, false) => Round::Empty,
    })
}

/// What is delivered at a time: one entry of the log, and behind it another one with how far each level is.
#[derive(Default)]
struct Batch {
    records: Vec<PendingRecord>,
    bytes: usize,
    progress: Vec<(i32, i64)>,
}

impl Batch {
    /// Leaves it empty.
    async fn deliver(&mut self, broker: &Broker, term: u64) -> Result<(), Refusal> {
        let Self {
            records, progress, ..
        } = std::mem::take(self);
        if mutant!(M10) && !progress.is_empty() {
            broker
                .propose(Change::DelayProgress(progress.clone()))
                .await?;
            tokio::time::sleep(PAUSE).await;
        }
        if !records.is_empty() {
            broker.store_in(Some(term), records).await?;
        }
        if !progress.is_empty() {
            broker.propose(Change::DelayProgress(progress)).await?;
        }
        Ok(())
    }
}

/// [`BATCH_BYTES`], and where segments are small far less than an entry may have.
fn batch_bytes(broker: &Broker) -> usize {
    let bytes = BATCH_BYTES.min(broker.log.max_extent_bytes() / 2);
    usize::try_from(bytes).expect("at most a mebibyte")
}

/// What of one level is due now.
struct Due {
    records: Vec<PendingRecord>,
    bytes: usize,
    /// Queue offset of the first message that is not.
    next: i64,
    is_full: bool,
    /// There are messages that are not due.
    waits: bool,
}

fn due(broker: &Broker, level: i32, from: i64, delay: Duration) -> io::Result<Due> {
    let queue_id = level - 1;
    let now = broker.now_ms();
    let first = broker
        .queues
        .min_offset(name::SCHEDULE_TOPIC, queue_id)
        .as_i64();
    let end = broker
        .queues
        .max_offset(name::SCHEDULE_TOPIC, queue_id)
        .as_i64();
    // Messages that the log has let go of cannot be delivered.
    let mut due = Due {
        records: Vec::new(),
        bytes: 0,
        next: from.max(first),
        is_full: false,
        waits: false,
    };
    while due.next < end {
        let Some(offset) = QueueOffset::from_i64(due.next) else {
            break;
        };
        let unit = broker.queues.unit(name::SCHEDULE_TOPIC, queue_id, offset)?;
        // A clock that was set back must not stretch a delay; what stands in the queue is the time
        // at which the message is due.
        let latest = now.saturating_add_unsigned(delay.as_millis() as u64);
        let waits = |unit: Unit| unit.tags_code > now && unit.tags_code <= latest;
        if unit.is_some_and(waits) {
            break;
        }
        if due.records.len() == ROUND_MESSAGES {
            due.is_full = true;
            break;
        }
        match broker
            .queues
            .place(name::SCHEDULE_TOPIC, queue_id, offset)?
        {
            Place::Message(record) => match deliver(broker, &record) {
                Some(record) => {
                    let bytes = due.bytes + record.buf.len();
                    if bytes > batch_bytes(broker) && !due.records.is_empty() {
                        due.is_full = true;
                        break;
                    }
                    due.bytes = bytes;
                    due.records.push(record);
                }
                None => tracing::warn!(
                    level,
                    offset = due.next,
                    "a delayed message is undeliverable"
                ),
            },
            Place::Nothing => {}
            Place::Later => break,
            Place::Damaged(_) if broker.log.is_mending() => break,
            Place::Damaged(damage) => tracing::error!(
                level,
                offset = due.next,
                %damage,
                "a delayed message is lost"
            ),
        }
        due.next += 1;
    }
    due.waits = due.next < end;
    Ok(due)
}

/// The message as it goes to its real topic. Its properties stay, `DELAY` among them, as in Java.
fn deliver(broker: &Broker, bytes: &Bytes) -> Option<PendingRecord> {
    let delayed = Record::decode(bytes).ok()?;
    let text = delayed.properties();
    let properties = Properties::parse(&text);
    let topic = properties.get(properties::REAL_TOPIC)?;
    let queue_id = properties.get(properties::REAL_QUEUE_ID)?.parse().ok()?;
    if name::check_topic(topic).is_err() || name::is_not_allowed_send_topic(topic) {
        return None;
    }
    Message::again(&delayed, topic, queue_id)
        .encode(&properties.format(), broker.bounds())
        .ok()
}
