//! Delivery of delayed messages. They wait in `SCHEDULE_TOPIC_XXXX`, one queue for each level; the
//! leader sends each on to its real topic when it is due, as a new record.
//!
//! `ScheduleMessageService` (4.9.8). How far a level is delivered is part of the replicated state;
//! it is proposed behind the messages, so a change of leaders between the two delivers those of one
//! round a second time, and none is lost.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rmq_store::{PendingRecord, QueueOffset, mutant};
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
/// Messages and bytes of one level in one round.
const ROUND_MESSAGES: usize = 256;
const ROUND_BYTES: usize = 1024 * 1024;

/// Delivers for as long as it is polled; the caller stops it when this node no longer leads.
pub(super) async fn run(broker: &Arc<Broker>) {
    // Where each level stands: ahead of the state while a proposal is on its way.
    let mut next: BTreeMap<i32, i64> = broker.meta.read().delay.clone();
    loop {
        let pause = match round(broker, &mut next).await {
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
                next.clone_from(&broker.meta.read().delay);
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

async fn round(broker: &Arc<Broker>, next: &mut BTreeMap<i32, i64>) -> Result<Round, Refusal> {
    // A freeze finds messages and their progress both stored, or neither.
    let _round = broker.delivering.lock().await;
    if broker.meta.is_frozen() {
        return Ok(Round::Waiting);
    }
    let mut records = Vec::new();
    let mut progress = Vec::new();
    let (mut is_full, mut waits) = (false, false);
    for (level, delay) in (1..).zip(&broker.config.message_delay_level) {
        let from = next.get(&level).copied().unwrap_or(0);
        let due = due(broker, level, from, *delay)?;
        is_full |= due.is_full;
        waits |= due.waits;
        records.extend(due.records);
        if due.next != from {
            progress.push((level, due.next));
        }
    }
    if mutant!(M10) && !progress.is_empty() {
        broker
            .propose(Change::DelayProgress(progress.clone()))
            .await?;
        tokio::time::sleep(PAUSE).await;
    }
    if !records.is_empty() {
        broker.store(records).await?;
    }
    if !progress.is_empty() {
        broker
            .propose(Change::DelayProgress(progress.clone()))
            .await?;
        next.extend(progress);
    }
    Ok(match (is_full, waits) {
        (true, _) => Round::Full,
        (false, true) => Round::Waiting,
        (false, false) => Round::Empty,
    })
}

/// What of one level is due now.
struct Due {
    records: Vec<PendingRecord>,
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
        next: from.max(first),
        is_full: false,
        waits: false,
    };
    let mut bytes = 0;
    while due.next < end {
        let Some(offset) = QueueOffset::from_i64(due.next) else {
            break;
        };
        let Some(unit) = broker.queues.unit(name::SCHEDULE_TOPIC, queue_id, offset)? else {
            break;
        };
        // A clock that was set back must not stretch a delay; what stands in the queue is the time
        // at which the message is due.
        let latest = now.saturating_add_unsigned(delay.as_millis() as u64);
        if unit.tags_code > now && unit.tags_code <= latest {
            break;
        }
        if due.records.len() == ROUND_MESSAGES || bytes > ROUND_BYTES {
            due.is_full = true;
            break;
        }
        let record = super::query::record_at(broker, unit.phy);
        match record.as_ref().and_then(|record| deliver(broker, record)) {
            Some(record) => {
                bytes += record.buf.len();
                due.records.push(record);
            }
            None => tracing::warn!(
                level,
                offset = due.next,
                "a delayed message is undeliverable"
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
