//! `PULL_MESSAGE` and `LITE_PULL_MESSAGE`: messages out, at once or when they arrive.
//!
//! `PullMessageProcessor` and `PullRequestHoldService` (4.9.8). Everything that a consumer is told
//! here it stores as its position, so a leader answers, while it is certain; what a follower may say
//! by itself is in `follower`.

mod follower;

use std::sync::Arc;
use std::time::Duration;

use rmq_store::{GetResult, GetStatus, QueueOffset, Takes};
use rmq_wire::body::{MessageModel, MessageQueue, OffsetMovedEvent, perm};
use rmq_wire::code::response;
use rmq_wire::header::{PullMessage, PullMessageResponse, pull_sys_flag};
use rmq_wire::record::Record;
use rmq_wire::{json, name, properties};
use tokio::time::{Instant, timeout};

use super::filter::{self, TagFilter};
use super::message::Message;
use super::node::blocking;
use super::refusal::{Handled, Refusal};
use super::stats::Got;
use super::{Broker, group, heartbeat};
use crate::meta::OffsetCommit;
use crate::remoting::{Class, Reply, Request};

pub(super) use follower::{
    Readers, addressed, as_follower, keep_saying_goodbye, leaving, others, own_id, say_goodbye,
};

/// Bytes at the end of the log that no machine that works has dropped from its page cache: far fewer than
/// those that count as in memory for a client.
const AT_HAND_BYTES: u64 = 64 << 20;
/// How long a message that is committed is waited for until its queue has it.
const DISPATCH_PATIENCE: Duration = Duration::from_millis(50);
/// How often a waiting pull looks by itself, for it may have to be moved past messages that it does
/// not want.
const RECHECK: Duration = Duration::from_secs(5);
/// How long a leader may be behind what a follower has given out: both apply what is committed by themselves.
const CATCH_UP: Duration = Duration::from_secs(1);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(5);
/// The broker id of the leader.
const MASTER: i64 = 0;
/// Longest wait, whatever a client asks for. Stock clients ask for 15 to 30 s.
const LONGEST_SUSPENSION: Duration = Duration::from_secs(60);

/// How long the pull may wait for messages.
pub(super) fn suspension(pull: &PullMessage) -> Duration {
    if pull.sys_flag & pull_sys_flag::SUSPEND == 0 {
        return Duration::ZERO;
    }
    let ms = u64::try_from(pull.suspend_timeout_millis).unwrap_or(0);
    Duration::from_millis(ms).min(LONGEST_SUSPENSION)
}

pub(super) async fn handle(broker: &Arc<Broker>, request: &Request) -> Handled {
    let pull: PullMessage = request.command.header()?;
    let filter = check(broker, request, &pull).await?;
    if pull.sys_flag & pull_sys_flag::COMMIT_OFFSET != 0 {
        commit(broker, &pull);
    }
    catch_up(broker, &pull).await;
    let mut result = get(broker, &pull, &filter).await?;
    let may_wait = pull.sys_flag & pull_sys_flag::SUSPEND != 0;
    if code(&result, &pull) == response::PULL_NOT_FOUND && may_wait {
        wait(broker, request, &pull, &filter).await?;
        // Things may have changed while it waited.
        let filter = check(broker, request, &pull).await?;
        result = get(broker, &pull, &filter).await?;
    }
    if code(&result, &pull) == response::PULL_OFFSET_MOVED {
        tell_of_move(broker, &pull, &result);
    }
    let next_from = broker.readers.of(broker, &pull);
    Ok(answer(request, &pull, result, next_from))
}

/// Waits for what the consumer has read elsewhere to be applied here. To say instead that the queue ends
/// before has the consumer go back, and stand still for 10 s before that.
async fn catch_up(broker: &Broker, pull: &PullMessage) {
    let deadline = Instant::now() + CATCH_UP;
    let is_behind = || {
        let end = broker.queues.max_offset(&pull.topic, pull.queue_id);
        end.as_i64() > 0 && end.as_i64() < pull.queue_offset
    };
    while is_behind() && Instant::now() < deadline {
        tokio::time::sleep(CATCH_UP_PAUSE).await;
    }
}

/// Checks whether this consumer may read this queue, and finds what it wants of it.
async fn check(
    broker: &Arc<Broker>,
    request: &Request,
    pull: &PullMessage,
) -> Result<Arc<TagFilter>, Refusal> {
    let no_permission = |remark| Refusal::new(response::NO_PERMISSION, remark);
    if i32::from(broker.config.broker_permission) & perm::READ == 0 {
        let broker = &broker.config.broker_ip1;
        return Err(no_permission(format!(
            "the broker[{broker}] pulling message is forbidden"
        )));
    }
    let group = group::find(broker, &pull.consumer_group).await?;
    if !group.consume_enable {
        let group = &pull.consumer_group;
        return Err(no_permission(format!(
            "subscription group no permission, {group}"
        )));
    }
    let read_queues = {
        let state = broker.meta.read();
        let Some(topic) = state.topics.get(&pull.topic) else {
            let remark = format!("topic[{}] not exist, apply first please!", pull.topic);
            return Err(Refusal::new(response::TOPIC_NOT_EXIST, remark));
        };
        if !topic.is_readable() {
            let remark = format!("the topic[{}] pulling message is forbidden", pull.topic);
            return Err(no_permission(remark));
        }
        topic.read_queues
    };
    if !(0..read_queues).contains(&pull.queue_id) {
        return Err(Refusal::system_error(format!(
            "queueId[{}] is illegal, topic:[{}] topicConfig.readQueueNums:[{read_queues}] \
             consumer:[{}]",
            pull.queue_id, pull.topic, request.peer
        )));
    }
    if pull.sys_flag & pull_sys_flag::SUBSCRIPTION != 0 {
        let kind = pull.expression_type.as_deref();
        if !filter::is_tag_type(kind) {
            return Err(heartbeat::unfilterable(kind));
        }
        return Ok(Arc::new(TagFilter::parse(pull.subscription.as_deref())));
    }
    registered_filter(broker, pull, group.consume_broadcast_enable)
}

/// What the consumer's heartbeats said that it wants.
fn registered_filter(
    broker: &Broker,
    pull: &PullMessage,
    may_broadcast: bool,
) -> Result<Arc<TagFilter>, Refusal> {
    let clients = broker.clients.read();
    let missing = |remark| Refusal::new(response::SUBSCRIPTION_NOT_EXIST, remark);
    let group = clients
        .consumers
        .get(&pull.consumer_group)
        .ok_or_else(|| missing("the consumer's group info not exist"))?;
    if !may_broadcast && group.message_model == MessageModel::Broadcasting {
        let remark = format!(
            "the consumer group[{}] can not consume by broadcast way",
            pull.consumer_group
        );
        return Err(Refusal::new(response::NO_PERMISSION, remark));
    }
    let subscription = group
        .subscriptions
        .get(&pull.topic)
        .ok_or_else(|| missing("the consumer's subscription not exist"))?;
    let is_old = subscription.data.sub_version < pull.sub_version;
    if is_old && pull.sys_flag & pull_sys_flag::CLASS_FILTER != 0 {
        let remark = "the consumer's subscription not latest";
        return Err(Refusal::new(response::SUBSCRIPTION_NOT_LATEST, remark));
    }
    let kind = if is_old {
        &pull.expression_type
    } else {
        &subscription.data.expression_type
    };
    let kind = kind.as_deref();
    if !filter::is_tag_type(kind) {
        return Err(heartbeat::unfilterable(kind));
    }
    if is_old {
        // Java refuses until the next heartbeat, which may be 30 s away: clients of 5.x count their
        // version up with every rebalance, and skip the heartbeat if another one is on its way. What
        // they want by tag they pick out themselves, here as where two tags share a hash.
        return Ok(Arc::new(TagFilter::All));
    }
    Ok(Arc::clone(&subscription.filter))
}

/// Takes the position that came along. It is not what the request is about, so it does not fail it.
fn commit(broker: &Broker, pull: &PullMessage) {
    let commit = OffsetCommit {
        group: pull.consumer_group.clone(),
        topic: pull.topic.clone(),
        queue_id: pull.queue_id,
        offset: pull.commit_offset,
    };
    if super::offset::check(&commit).is_ok() {
        // The consumer says it again with every pull.
        if !broker.meta.is_frozen() {
            broker.offsets.commit(commit).ok();
        }
    }
}

/// Reads at once what is in memory for certain, if need be when the dispatcher has come to it, and anything else on a
/// thread that may wait for the disk. Only so many of them do at a time, because sends need the disk too.
async fn get(
    broker: &Arc<Broker>,
    pull: &PullMessage,
    filter: &Arc<TagFilter>,
) -> Result<GetResult, Refusal> {
    let offset = QueueOffset::from_i64(pull.queue_offset).unwrap_or_default();
    let queues = &broker.queues;
    let look_at = || queues.takes(&pull.topic, pull.queue_id, offset, AT_HAND_BYTES);
    let mut takes = look_at()?;
    if takes == Takes::Dispatcher {
        let any = Arc::new(TagFilter::All);
        let hold = broker
            .holds
            .enter(&pull.topic, pull.queue_id, pull.queue_offset, any);
        queues.hurry();
        takes = look_at()?;
        if takes == Takes::Dispatcher {
            timeout(DISPATCH_PATIENCE, hold.woken()).await.ok();
            takes = look_at()?;
        }
    }
    if takes == Takes::Memory {
        return look(broker, pull, filter);
    }
    let _turn = broker.disk_reads.acquire().await;
    let (pull, filter) = (pull.clone(), Arc::clone(filter));
    blocking(broker, move |broker| {
        let result = look(broker, &pull, &filter)?;
        result.bring_in();
        Ok(result)
    })
    .await
}

fn look(broker: &Broker, pull: &PullMessage, filter: &TagFilter) -> Result<GetResult, Refusal> {
    let config = &broker.config;
    let offset = QueueOffset::from_i64(pull.queue_offset).unwrap_or_default();
    let wanted = usize::try_from(pull.max_msg_nums).unwrap_or(0).max(1);
    let wanted_bytes = pull
        .max_msg_bytes
        .and_then(|bytes| usize::try_from(bytes).ok());
    let most_messages = config.max_transfer_count_on_message_in_memory as usize;
    let most_bytes = config.max_transfer_bytes_on_message_in_memory as usize;
    let begun = Instant::now();
    let mut result = broker.queues.get(
        &pull.topic,
        pull.queue_id,
        offset,
        wanted.min(most_messages),
        wanted_bytes.map_or(most_bytes, |wanted| wanted.min(most_bytes)),
        &|tags_code| filter.matches(tags_code),
    )?;
    if let Some(damage) = &result.damage {
        return Err(Refusal::system_error(format!(
            "the message at offset {} of queue {} of {} cannot be read until another node has mended it: \
             {damage}",
            result.next, pull.queue_id, pull.topic
        )));
    }
    if result.behind_bytes > broker.recent_bytes {
        // Less at a time of what has to come from the disk.
        let most_messages = config.max_transfer_count_on_message_in_disk as usize;
        let most_bytes = config.max_transfer_bytes_on_message_in_disk as usize;
        shorten(&mut result, most_messages, most_bytes);
    }
    count(broker, pull, &result, begun.elapsed());
    Ok(result)
}

fn count(broker: &Broker, pull: &PullMessage, result: &GetResult, took: Duration) {
    if result.status != GetStatus::Found {
        broker.stats.missed(took);
        return;
    }
    let got = Got {
        group: &pull.consumer_group,
        topic: &pull.topic,
        queue_id: pull.queue_id,
        next: result.next.as_i64(),
        messages: result.records.len(),
        bytes: result.records.iter().map(bytes::Bytes::len).sum(),
    };
    broker.stats.got(&got, took);
}

/// Gives back the messages beyond a bound, but never the first one.
fn shorten(result: &mut GetResult, most_messages: usize, most_bytes: usize) {
    let mut bytes = 0;
    let beyond = result.records.iter().enumerate().position(|(n, record)| {
        bytes += record.len();
        n > 0 && (n >= most_messages || bytes > most_bytes)
    });
    if let Some(beyond) = beyond
        && let Ok(first) = Record::decode(&result.records[beyond])
        && let Some(offset) = QueueOffset::from_i64(first.queue_offset)
    {
        result.next = offset;
        result.records.truncate(beyond);
    }
}

/// Waits until the queue has something to look at, or for as long as the client allows.
async fn wait(
    broker: &Arc<Broker>,
    request: &Request,
    pull: &PullMessage,
    filter: &Arc<TagFilter>,
) -> Result<(), Refusal> {
    let limit = if broker.config.long_polling_enable {
        suspension(pull)
    } else {
        broker.config.short_polling_time_mills
    };
    let deadline = Instant::now() + limit;
    let filter = Arc::clone(filter);
    let hold = broker
        .holds
        .enter(&pull.topic, pull.queue_id, pull.queue_offset, filter);
    broker.queues.hurry();
    let closed = async {
        match &request.conn {
            Some(conn) => conn.closed().await,
            // The node that forwarded the pull has its own limit.
            None => std::future::pending().await,
        }
    };
    tokio::pin!(closed);
    loop {
        let end = broker.queues.max_offset(&pull.topic, pull.queue_id);
        let now = Instant::now();
        if end.as_i64() > pull.queue_offset || now >= deadline || !broker.is_serving() {
            return Ok(());
        }
        tokio::select! {
            () = hold.woken() => return Ok(()),
            () = tokio::time::sleep_until(deadline.min(now + RECHECK)) => {}
            () = &mut closed => return Err(Refusal::Silence),
        }
    }
}

/// Logs that a consumer is outside its queue, and puts it into the topic for that
/// (`generateOffsetMovedEvent`).
fn tell_of_move(broker: &Arc<Broker>, pull: &PullMessage, result: &GetResult) {
    // A client that asks for what is not there again and again is not worth the room of others' messages.
    let Some(room) = broker.intake.try_enter(Class::Send, 0) else {
        return;
    };
    let group = pull.consumer_group.as_str();
    tracing::info!(
        group, topic = pull.topic, queue_id = pull.queue_id,
        asked = pull.queue_offset, told = %result.next, min = %result.min, max = %result.max,
        "a consumer is outside its queue"
    );
    let event = OffsetMovedEvent {
        consumer_group: group.to_owned(),
        message_queue: MessageQueue {
            broker_name: broker.config.broker_name.clone(),
            queue_id: pull.queue_id,
            topic: pull.topic.clone(),
        },
        offset_new: result.next.as_i64(),
        offset_request: pull.queue_offset,
    };
    let event = json::to_java_string(&event);
    let mut message = Message::of_broker(broker, name::OFFSET_MOVED_EVENT, event.as_bytes());
    message.properties.set(properties::TAGS, group);
    message.properties.set(properties::DELAY_TIME_LEVEL, "0");
    message.properties.set(properties::KEYS, group);
    let message = message.into_record(broker.bounds());
    // The answer does not wait for it: it is news for people, and nobody's position.
    let broker = Arc::clone(broker);
    tokio::spawn(async move {
        let _room = room;
        let stored = match message {
            Ok(record) => broker.store(vec![record]).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = stored {
            tracing::warn!(?refusal, "an offset moved event could not be stored");
        }
    });
}

fn code(result: &GetResult, pull: &PullMessage) -> i32 {
    match result.status {
        GetStatus::Found => response::SUCCESS,
        GetStatus::NoMatchedMessage | GetStatus::MessageWasRemoving | GetStatus::Late => {
            response::PULL_RETRY_IMMEDIATELY
        }
        GetStatus::Damaged => response::SYSTEM_ERROR,
        GetStatus::NoMessageInQueue if pull.queue_offset == 0 => response::PULL_NOT_FOUND,
        GetStatus::OffsetOverflowOne => response::PULL_NOT_FOUND,
        GetStatus::NoMessageInQueue
        | GetStatus::OffsetTooSmall
        | GetStatus::OffsetOverflowBadly => response::PULL_OFFSET_MOVED,
    }
}

/// The remark of an answer: `GetMessageStatus`, which some tools show.
fn remark(status: GetStatus) -> &'static str {
    match status {
        GetStatus::Found => "FOUND",
        GetStatus::NoMatchedMessage => "NO_MATCHED_MESSAGE",
        GetStatus::MessageWasRemoving => "MESSAGE_WAS_REMOVING",
        GetStatus::NoMessageInQueue => "NO_MESSAGE_IN_QUEUE",
        GetStatus::OffsetTooSmall => "OFFSET_TOO_SMALL",
        GetStatus::OffsetOverflowOne => "OFFSET_OVERFLOW_ONE",
        GetStatus::OffsetOverflowBadly => "OFFSET_OVERFLOW_BADLY",
        GetStatus::Late => "OFFSET_FOUND_NULL",
        GetStatus::Damaged => "DAMAGED",
    }
}

/// `next_from` is the broker id to pull from the next time.
fn answer(request: &Request, pull: &PullMessage, result: GetResult, next_from: i64) -> Reply {
    let code = code(&result, pull);
    let header = PullMessageResponse {
        suggest_which_broker_id: next_from,
        next_begin_offset: result.next.as_i64(),
        min_offset: result.min.as_i64(),
        max_offset: result.max.as_i64(),
        ..PullMessageResponse::default()
    };
    let mut reply = request.command.reply(code).with_header(&header);
    reply.remark = Some(remark(result.status).to_owned());
    Reply::Parts(reply, result.records)
}
