//! Transactional messages. A half message waits in `RMQ_SYS_TRANS_HALF_TOPIC` until its producer says
//! how the transaction ended (`END_TRANSACTION`), and its producer group is asked when it does not
//! (`CHECK_TRANSACTION_STATE`). A commit stores the message for its topic, a rollback does not; both
//! store in `RMQ_SYS_TRANS_OP_HALF_TOPIC` that this half message is over.
//!
//! Topics, records and progress are those of `TransactionalMessageServiceImpl` and
//! `EndTransactionProcessor` (4.9.8), so a store goes on where Java left it, and the other way round.
//! What differs: the message and the word that its half is over are one entry of the log, a leader
//! stores that only in the term in which it knows what is over, and a half message is not stored again
//! with each check. So a transaction ends once, however often that is said, whoever leads.
//!
//! What is open is not part of the replicated state: each node follows the two topics, from where the
//! progress stands when it starts (the offsets of the group `CID_RMQ_SYS_TRANS`), so that who comes to
//! lead has little left to read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::seq::IteratorRandom as _;
use rmq_store::{PendingRecord, PhyOffset, Place, QueueOffset, Unit, mutant};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{CheckTransactionState, EndTransaction};
use rmq_wire::record::{self, NewRecord, Record, sys_flag};
use rmq_wire::{msg_id, name, properties};
use tokio::sync::{Mutex, MutexGuard};

use super::Broker;
use super::message::{Message, Properties};
use super::node::blocking;
use super::query::record_at;
use super::refusal::{Handled, Refusal};
use super::replica::ProposeError;
use super::topic;
use crate::meta::{OffsetCommit, Topic};
use crate::remoting::Request;

/// The one queue of each of the two topics that is written to.
pub(super) const QUEUE: i32 = 0;
/// The tag of what says that a half message is over (`TransactionalMessageUtil.REMOVETAG`).
const OVER: &str = "d";
/// Queue units that are read at a time.
const UNITS: usize = 1024;
/// Between two looks at the queues, for others and for the dispatcher.
const PAUSE: Duration = Duration::from_millis(1);
/// How often each node takes note of what is open.
const FOLLOW: Duration = Duration::from_secs(1);

/// What is open.
#[derive(Default)]
pub(super) struct Transactions(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    /// The term in which this node ends transactions; 0 for none.
    term: u64,
    /// Queue offset of the first half message that was not looked at.
    next: i64,
    /// The same in the queue of what is over.
    next_over: i64,
    /// Half messages that are not over, by queue offset.
    pub(super) open: BTreeMap<i64, Half>,
}

#[derive(Debug)]
pub(super) struct Half {
    phy: PhyOffset,
    /// Nothing about this half message or a later one stands before this in the queue of what is over.
    over_from: i64,
    /// How often this leader has asked for its end.
    checks: u32,
    /// What ends it is being stored.
    ending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
    /// Nobody could say.
    GivenUp,
}

/// Refuses half messages (`rejectTransactionMessage`), or has what they need.
pub(super) async fn prepare(broker: &Arc<Broker>) -> Result<(), Refusal> {
    if broker.config.reject_transaction_message {
        let remark = format!(
            "the broker[{}] sending transaction message is forbidden",
            broker.config.broker_ip1
        );
        return Err(Refusal::new(response::NO_PERMISSION, remark));
    }
    ensure(broker, name::TRANS_HALF_TOPIC).await
}

/// Creates a topic of transactions if it is missing.
async fn ensure(broker: &Arc<Broker>, topic: &str) -> Result<(), Refusal> {
    let one_queue = Topic::with_queues(1, topic::READ_WRITE);
    topic::ensure(broker, topic, one_queue).await?;
    Ok(())
}

/// `END_TRANSACTION`. Said of what is over already, it does nothing.
pub(super) async fn end(broker: &Arc<Broker>, request: &Request) -> Handled {
    broker.check_accepts_sends()?;
    let header: EndTransaction = request.command.header()?;
    let end = match header.commit_or_rollback {
        sys_flag::TRANSACTION_COMMIT => End::Commit,
        sys_flag::TRANSACTION_ROLLBACK => End::Rollback,
        // Not known yet: the producer will be asked.
        _ => return Err(Refusal::Silence),
    };
    let term = broker.replica.serving().ok_or(Refusal::NotLeader)?;
    let bytes = PhyOffset::from_i64(header.commit_log_offset)
        .and_then(|phy| half_at(broker, phy))
        .ok_or_else(|| Refusal::system_error("Find prepared transaction message failed"))?;
    check(&bytes, &header)?;
    ended(broker, term, bytes, end).await?;
    Ok(request.command.reply(response::SUCCESS).into())
}

/// The half message that starts at this place of the log.
fn half_at(broker: &Broker, phy: PhyOffset) -> Option<Bytes> {
    let bytes = record_at(broker, phy)?;
    let half = Record::decode(&bytes).ok()?;
    let is_half = half.topic == name::TRANS_HALF_TOPIC && half.queue_id == QUEUE;
    is_half.then_some(bytes)
}

/// Refuses an end that is not this half message's (`checkPrepareMessage`).
fn check(bytes: &[u8], header: &EndTransaction) -> Result<(), Refusal> {
    let half = Record::decode(bytes).map_err(|error| Refusal::system_error(error.to_string()))?;
    if half.property(properties::PRODUCER_GROUP).as_deref() != Some(&*header.producer_group) {
        return Err(Refusal::system_error("The producer group wrong"));
    }
    if half.queue_offset != header.tran_state_table_offset {
        let remark = "The transaction state table offset wrong";
        return Err(Refusal::system_error(remark));
    }
    Ok(())
}

/// Ends a transaction, unless it is over. Not to be given up when its caller is: then nobody would know
/// what came of it.
async fn ended(broker: &Arc<Broker>, term: u64, half: Bytes, end: End) -> Result<(), Refusal> {
    let ending = tokio::spawn(store_end(Arc::clone(broker), term, half, end));
    let ended = ending.await;
    ended.map_err(|error| Refusal::system_error(error.to_string()))?
}

async fn store_end(broker: Arc<Broker>, term: u64, half: Bytes, end: End) -> Result<(), Refusal> {
    ensure(&broker, name::TRANS_OP_HALF_TOPIC).await?;
    if end == End::GivenUp {
        ensure(&broker, name::TRANS_CHECK_MAX_TIME_TOPIC).await?;
    }
    let (place, records) = records(&broker, &half, end)?;
    let transactions = &broker.transactions;
    if !transactions.begin(&broker, term, place).await? {
        return Ok(());
    }
    let stored = broker.store_in(Some(term), records).await;
    transactions.settle(term, place.0, &stored).await;
    stored?;
    Ok(())
}

/// What ends the transaction of a half message: the message for its topic, if there is one, and the word
/// that the half message is over. Also queue offset and physical offset of the half message.
fn records(
    broker: &Broker,
    half: &[u8],
    end: End,
) -> Result<((i64, i64), Vec<PendingRecord>), Refusal> {
    let half = Record::decode(half).map_err(|error| Refusal::system_error(error.to_string()))?;
    let text = half.properties();
    let mut records = Vec::with_capacity(2);
    match end {
        End::Commit => {
            let (topic, queue_id) = real_place(&half)?;
            let committed = Message {
                prepared_transaction_offset: half.physical_offset,
                properties: Properties::parse(&text),
                sys_flag: half.sys_flag & !sys_flag::TRANSACTION_MASK
                    | sys_flag::TRANSACTION_COMMIT,
                ..Message::again(&half, topic, queue_id)
            };
            records.push(committed.into_record(broker.bounds())?);
        }
        End::Rollback => {}
        End::GivenUp => {
            let given_up = Message::again(&half, name::TRANS_CHECK_MAX_TIME_TOPIC, QUEUE);
            records.push(given_up.encode(&text, broker.bounds())?);
        }
    }
    let body = half.queue_offset.to_string();
    let over = Message::of_broker(broker, name::TRANS_OP_HALF_TOPIC, body.as_bytes());
    let tags = properties::format([(properties::TAGS, OVER)]);
    records.push(over.encode(&tags, broker.bounds())?);
    Ok(((half.queue_offset, half.physical_offset), records))
}

/// Topic and queue that a half message is meant for.
fn real_place(half: &Record<'_>) -> Result<(String, i32), Refusal> {
    let topic = half.property(properties::REAL_TOPIC);
    let queue_id = half.property(properties::REAL_QUEUE_ID);
    let topic = topic.filter(|topic| {
        name::check_topic(topic).is_ok() && !name::is_not_allowed_send_topic(topic)
    });
    let queue_id = queue_id.and_then(|id| id.parse().ok());
    let queue_id = queue_id.filter(|id| *id >= 0);
    topic
        .zip(queue_id)
        .map(|(topic, queue_id)| (topic.into_owned(), queue_id))
        .ok_or_else(|| Refusal::system_error("the half message names no topic to be sent to"))
}

impl Transactions {
    /// What is open, for the leader of this term: at least what was committed before it.
    async fn known(&self, broker: &Broker, term: u64) -> Result<MutexGuard<'_, State>, Refusal> {
        let ends = Ends::now(broker);
        loop {
            let mut state = self.0.lock().await;
            if broker.replica.serving() != Some(term) {
                return Err(Refusal::NotLeader);
            }
            if state.term != term && state.look(broker, ends)? {
                state.term = term;
                for half in state.open.values_mut() {
                    half.checks = 0;
                    half.ending = false;
                }
            }
            if state.term == term {
                return Ok(state);
            }
            drop(state);
            wait(broker).await;
        }
    }

    /// Whether the caller is to end the transaction of the half message at this place; `false` if it is over.
    ///
    /// # Errors
    /// Somebody else is at it, and nobody knows yet what comes of that; or it is another half message.
    pub(super) async fn begin(
        &self,
        broker: &Broker,
        term: u64,
        (offset, phy): (i64, i64),
    ) -> Result<bool, Refusal> {
        loop {
            let mut state = self.known(broker, term).await?;
            let end = broker.queues.max_offset(name::TRANS_HALF_TOPIC, QUEUE);
            // What a message only says to be a half message may name any place.
            if offset >= end.as_i64() {
                let remark = "The transaction state table offset wrong";
                return Err(Refusal::system_error(remark));
            }
            if state.next <= offset {
                state.look_for_halves(broker, offset + 1)?;
            }
            if state.next <= offset {
                drop(state);
                wait(broker).await;
                continue;
            }
            return match state.open.get_mut(&offset) {
                None => Ok(mutant!(M9)),
                Some(half) if half.phy.as_i64() != phy => {
                    Err(Refusal::system_error("The commit log offset wrong"))
                }
                Some(half) if half.ending => {
                    let remark = "the end of this transaction is being stored";
                    Err(Refusal::system_error(remark))
                }
                Some(half) => {
                    half.ending = true;
                    Ok(true)
                }
            };
        }
    }

    async fn asked(&self, term: u64, offset: i64) {
        let mut state = self.0.lock().await;
        if state.term == term
            && let Some(half) = state.open.get_mut(&offset)
        {
            half.checks += 1;
        }
    }

    /// Takes note of what came of it.
    async fn settle<T>(&self, term: u64, offset: i64, stored: &Result<T, ProposeError>) {
        let mut state = self.0.lock().await;
        if state.term != term {
            return;
        }
        match stored {
            Ok(_) => {
                state.open.remove(&offset);
            }
            // It may yet be stored, so nobody may end it in this term any more.
            Err(ProposeError::Unknown) => {}
            Err(_) => {
                if let Some(half) = state.open.get_mut(&offset) {
                    half.ending = false;
                }
            }
        }
    }
}

/// Where the two queues end.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    halves: i64,
    over: i64,
}

impl Ends {
    pub(super) fn now(broker: &Broker) -> Self {
        let end = |topic| broker.queues.max_offset(topic, QUEUE).as_i64();
        // In this order: what is over has its half message before it.
        let over = end(name::TRANS_OP_HALF_TOPIC);
        let halves = end(name::TRANS_HALF_TOPIC);
        Self { halves, over }
    }
}

/// Has the dispatcher come to what is committed.
async fn wait(broker: &Broker) {
    broker.queues.hurry();
    tokio::time::sleep(PAUSE).await;
}

impl State {
    /// Looks at some of what is committed; `false` if there is more, which the dispatcher may have yet to
    /// come to.
    pub(super) fn look(&mut self, broker: &Broker, ends: Ends) -> io::Result<bool> {
        self.look_for_halves(broker, ends.halves)?;
        self.look_for_over(broker, ends)?;
        Ok(self.next >= ends.halves && self.next_over >= ends.over)
    }

    /// Looks at the next half messages.
    fn look_for_halves(&mut self, broker: &Broker, end: i64) -> io::Result<()> {
        let Self { next, open, .. } = self;
        let from = progress(broker, name::TRANS_HALF_TOPIC);
        *next = from.max(*next);
        // What is before is over, or the log has let go of it.
        while open
            .first_key_value()
            .is_some_and(|(offset, _)| *offset < from)
        {
            open.pop_first();
        }
        let over_from = progress(broker, name::TRANS_OP_HALF_TOPIC).max(self.next_over);
        for unit in units(broker, name::TRANS_HALF_TOPIC, *next, end)? {
            if let Some(unit) = unit {
                let half = Half {
                    phy: unit.phy,
                    over_from,
                    checks: 0,
                    ending: false,
                };
                open.insert(*next, half);
            } else if place(broker, name::TRANS_HALF_TOPIC, *next)? != Place::Nothing {
                // A unit that was lost, and may be there again by now.
                return Ok(());
            }
            *next += 1;
        }
        Ok(())
    }

    /// Looks at what else is over, as far as the half messages are known.
    fn look_for_over(&mut self, broker: &Broker, ends: Ends) -> io::Result<()> {
        let Self {
            next,
            next_over,
            open,
            ..
        } = self;
        *next_over = progress(broker, name::TRANS_OP_HALF_TOPIC).max(*next_over);
        let some = next_over.saturating_add(UNITS as i64).min(ends.over);
        while *next_over < some {
            let over = match place(broker, name::TRANS_OP_HALF_TOPIC, *next_over)? {
                Place::Message(record) => over(&record),
                Place::Nothing => Vec::new(),
                Place::Later => return Ok(()),
                Place::Damaged(_) if broker.log.is_mending() => return Ok(()),
                Place::Damaged(damage) => {
                    tracing::error!(%damage, "which transaction is over here is lost");
                    Vec::new()
                }
            };
            if over
                .iter()
                .any(|offset| *offset >= *next && *offset < ends.halves)
            {
                return Ok(());
            }
            for offset in over {
                open.remove(&offset);
            }
            *next_over += 1;
        }
        Ok(())
    }

    /// From where on a node that starts has to read: half messages, and what is over.
    pub(super) fn progress(&self) -> (i64, i64) {
        match self.open.first_key_value() {
            Some((offset, half)) => (*offset, half.over_from),
            None => (self.next, self.next_over),
        }
    }
}

/// The half messages that a record says are over.
fn over(record: &[u8]) -> Vec<i64> {
    let body = Record::decode(record).map_or(&[][..], |record| record.body);
    let text = str::from_utf8(body).unwrap_or_default();
    // 5.x puts several into one, with commas between and behind them.
    let offsets = text.split(',').filter_map(|offset| offset.parse().ok());
    offsets.collect()
}

/// From where on this topic is to be read. A Java broker that lost its power may have written down more
/// than it had.
fn progress(broker: &Broker, topic: &str) -> i64 {
    let first = broker.queues.min_offset(topic, QUEUE).as_i64();
    let end = broker.queues.max_offset(topic, QUEUE).as_i64();
    let stored = broker.meta.read().offset(name::TRANS_GROUP, topic, QUEUE);
    stored
        .filter(|stored| *stored <= end)
        .unwrap_or(first)
        .max(first)
}

fn place(broker: &Broker, topic: &str, offset: i64) -> io::Result<Place> {
    let offset = QueueOffset::from_i64(offset).unwrap_or_default();
    broker.queues.place(topic, QUEUE, offset)
}

/// Some units of the topic's queue from `next` on, none from `end` on; fewer where the dispatcher has not
/// come so far. Places without a message have none.
fn units(broker: &Broker, topic: &str, next: i64, end: i64) -> io::Result<Vec<Option<Unit>>> {
    let count = usize::try_from(end.saturating_sub(next)).unwrap_or(0);
    let from = QueueOffset::from_i64(next).unwrap_or_default();
    match count.min(UNITS) {
        0 => Ok(Vec::new()),
        count => broker.queues.units(topic, QUEUE, from, count),
    }
}

/// Keeps up with what is open, on every node, and on the leader notes how far that is so for good.
pub(super) async fn follow(broker: &Arc<Broker>) {
    loop {
        tokio::time::sleep(FOLLOW).await;
        if let Err(refusal) = follow_once(broker).await {
            tracing::warn!(?refusal, "transactions could not be followed");
        }
    }
}

async fn follow_once(broker: &Arc<Broker>) -> Result<(), Refusal> {
    let ends = Ends::now(broker);
    let (half, over) = loop {
        let mut state = broker.transactions.0.lock().await;
        if state.look(broker, ends)? {
            break state.progress();
        }
        drop(state);
        wait(broker).await;
    };
    if !broker.is_serving() || broker.meta.is_frozen() {
        return Ok(());
    }
    // In this order: what is over may be read once too often, and never too late.
    for (topic, offset) in [
        (name::TRANS_HALF_TOPIC, half),
        (name::TRANS_OP_HALF_TOPIC, over),
    ] {
        let stored = broker.meta.read().offset(name::TRANS_GROUP, topic, QUEUE);
        if offset != stored.unwrap_or(0) {
            broker.offsets.commit(OffsetCommit {
                group: name::TRANS_GROUP.to_owned(),
                topic: topic.to_owned(),
                queue_id: QUEUE,
                offset,
            })?;
        }
    }
    Ok(())
}

/// What is to be done about an open half message.
enum Due {
    /// Its producer may still be at it.
    Later,
    /// The producer group is to be asked.
    Ask(String, Command),
    /// It was asked often enough, or is so old that the log will let go of it.
    GiveUp,
}

/// `checks` is how often this leader has asked.
fn due(broker: &Broker, half: &[u8], checks: u32) -> Result<Due, Refusal> {
    let config = &broker.config;
    let half = Record::decode(half).map_err(|error| Refusal::system_error(error.to_string()))?;
    let number = |name| {
        half.property(name)
            .and_then(|text| text.parse::<u64>().ok())
    };
    // By the clock of whoever led then, not by the producer's.
    let age = broker.now_ms().saturating_sub(half.store_timestamp);
    let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    let immune = number(properties::CHECK_IMMUNITY_TIME_IN_SECONDS)
        .map_or(config.transaction_time_out, Duration::from_secs);
    // Java has written down how often it asked.
    let before = number(properties::TRANSACTION_CHECK_TIMES).unwrap_or(0);
    let reserved = Duration::from_secs(u64::from(config.file_reserved_time) * 3600);
    if before + u64::from(checks) >= config.transaction_check_max.into() || age > reserved {
        return Ok(Due::GiveUp);
    }
    if age < immune {
        return Ok(Due::Later);
    }
    let (topic, queue_id) = real_place(&half)?;
    let group = half
        .property(properties::PRODUCER_GROUP)
        .unwrap_or_default();
    let key = half.property(properties::UNIQ_KEY).map(Into::into);
    let question = CheckTransactionState {
        tran_state_table_offset: half.queue_offset,
        commit_log_offset: half.physical_offset,
        msg_id: key.clone(),
        transaction_id: key,
        offset_msg_id: Some(msg_id::encode(half.store_host, half.physical_offset)),
        topic: Some(topic.clone()),
        broker_name: Some(config.broker_name.clone()),
    };
    let properties = half.properties();
    let message = NewRecord {
        queue_id,
        topic: &topic,
        ..half.again(&properties)
    };
    let mut body = Vec::with_capacity(message.encoded_len());
    message
        .encode(&mut body)
        .map_err(|error| Refusal::system_error(error.to_string()))?;
    record::seal(
        &mut body,
        half.queue_offset,
        half.physical_offset,
        half.store_timestamp,
    );
    let question = Command::request(request::CHECK_TRANSACTION_STATE)
        .with_header(&question)
        .with_body(body.into());
    Ok(Due::Ask(group.into_owned(), question))
}

/// Asks one producer of the group; whether there is one.
fn ask(broker: &Broker, group: &str, question: Command) -> bool {
    let conn = {
        let tables = broker.clients.read();
        let members = tables.producers.get(group).into_iter().flatten();
        let conns = members.map(|(_, member)| &member.conn);
        conns
            .filter(|conn| !conn.is_closed())
            .choose(&mut rand::rng())
            .cloned()
    };
    conn.is_some_and(|conn| conn.oneway(question).is_ok())
}

/// Asks for the end of what is open, for as long as it is polled.
pub(super) async fn run(broker: &Arc<Broker>) {
    // Producers have a while to tell this leader of themselves.
    let config = &broker.config;
    let mut pause = (config.transaction_time_out).min(config.transaction_check_interval);
    loop {
        tokio::time::sleep(pause).await;
        pause = config.transaction_check_interval;
        if let Err(refusal) = round(broker).await {
            tracing::warn!(
                ?refusal,
                "producers could not be asked for their transactions"
            );
        }
    }
}

async fn round(broker: &Arc<Broker>) -> Result<(), Refusal> {
    let Some(term) = broker.replica.serving() else {
        return Ok(());
    };
    if broker.meta.is_frozen() {
        return Ok(());
    }
    let mut absent = BTreeSet::new();
    let open: Vec<(i64, PhyOffset, u32)> = {
        let state = broker.transactions.known(broker, term).await?;
        let open = state.open.iter().filter(|(_, half)| !half.ending);
        open.map(|(offset, half)| (*offset, half.phy, half.checks))
            .collect()
    };
    for (offset, phy, checks) in open {
        let half = blocking(broker, move |broker| Ok(half_at(broker, phy))).await?;
        let Some(half) = half else {
            tracing::warn!(offset, "a half message cannot be read");
            continue;
        };
        match due(broker, &half, checks) {
            Err(refusal) => {
                tracing::warn!(offset, ?refusal, "nobody can be asked for a transaction")
            }
            Ok(Due::Later) => {}
            Ok(Due::Ask(group, question)) => {
                if ask(broker, &group, question) {
                    broker.transactions.asked(term, offset).await;
                } else {
                    absent.insert(group);
                }
            }
            Ok(Due::GiveUp) => {
                tracing::warn!(
                    offset,
                    "nobody said the end of a transaction, which goes to {}",
                    name::TRANS_CHECK_MAX_TIME_TOPIC
                );
                let ended = ended(broker, term, half, End::GivenUp).await;
                if let Err(refusal) = ended {
                    tracing::warn!(offset, ?refusal, "it could not be put there");
                }
            }
        }
    }
    if !absent.is_empty() {
        tracing::info!(groups = ?absent, "no producer of these could be asked for transactions");
    }
    Ok(())
}
