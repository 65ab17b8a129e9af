//! How much is taken in from clients at a time ([`Bounds`]), and what those are told who have to come again.
//!
//! Too much is first of all left unread, which slows a client down by TCP without costing anybody anything. A
//! send that could not be begun within `waitTimeMillsInSendQueue` is refused with `SYSTEM_BUSY`, because its
//! client will not wait for long; so does Java (`BrokerFastFailure`). Producers of 4.9 give that to the
//! application and do not try again; of the others only synchronous ones do, a few times. `SYSTEM_ERROR` and
//! `SERVICE_NOT_AVAILABLE` have all synchronous ones try again at once (`retryResponseCodes`), which is right
//! where another node may do better and wrong where there is too much work for all. No connection is closed for
//! it: its client would send again whatever was under way.

use std::sync::Arc;
use std::time::Duration;

use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use tokio::task::yield_now;

use super::{Broker, forward};
use crate::config::BrokerConfig;
use crate::remoting::{Bounds, Class, Limits, OVERLOAD, Room, Service as _};

/// The share of the machine's memory that connections may hold.
const SHARE_OF_MEMORY: u64 = 4;

/// The bounds of all ports of a broker.
pub(super) fn bounds(config: &BrokerConfig) -> Bounds {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let memory = match config.request_memory_max_bytes {
        0 => (memory_bytes() / SHARE_OF_MEMORY).max(BrokerConfig::REQUEST_MEMORY_MIN),
        bytes => bytes,
    };
    Bounds::new(Limits {
        idle: Duration::from_secs(config.server_channel_max_idle_time_seconds.into()),
        drain: config.drain_timeout_millis,
        memory_bytes: usize::try_from(memory).unwrap_or(usize::MAX),
        sends: count(config.send_thread_pool_queue_capacity),
        pulls: count(config.pull_thread_pool_queue_capacity),
        send_wait: config
            .broker_fast_failure_enable
            .then_some(config.wait_time_mills_in_send_queue),
        ..Limits::default()
    })
}

/// The memory of the machine, or of the container.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = (info.totalram as u64).saturating_mul(info.mem_unit.into());
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|limit| limit.trim().parse().ok());
    machine.min(container.unwrap_or(u64::MAX))
}

pub(super) fn class(code: i32) -> Class {
    match code {
        request::SEND_MESSAGE
        | request::SEND_MESSAGE_V2
        | request::SEND_BATCH_MESSAGE
        | request::SEND_REPLY_MESSAGE
        | request::SEND_REPLY_MESSAGE_V2
        | request::CONSUMER_SEND_MSG_BACK
        | request::END_TRANSACTION => Class::Send,
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => Class::Pull,
        _ => Class::Other,
    }
}

/// What a client is told for whose request there was no room in so long.
pub(super) fn busy(broker: &Broker, code: i32, waited: Duration) -> Option<(i32, String)> {
    if code == request::QUERY_CONSUMER_OFFSET {
        // See `forward::no_leader`.
        return None;
    }
    if class(code) != Class::Send {
        return Some((response::SYSTEM_BUSY, OVERLOAD.to_owned()));
    }
    let role = broker.replica.role().borrow().clone();
    if !role.serving && role.leader.is_none() {
        // What waits for a leader has taken all the room.
        let code = response::SERVICE_NOT_AVAILABLE;
        return Some((code, forward::NO_LEADER.to_owned()));
    }
    let ms = waited.as_millis();
    let queued = broker.intake.held(Class::Send) / Limits::REQUEST_BYTES_MIN;
    let remark = format!(
        "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, period in queue: {ms}ms, \
         size of queue: {queued}"
    );
    Some((response::SYSTEM_BUSY, remark))
}

/// Whether clients may rely on requests of this kind being begun in the order in which they sent them. What reads
/// messages is not among them, for it may have to wait for the disk.
fn keeps_order(code: i32) -> bool {
    matches!(
        code,
        request::SEND_MESSAGE
            | request::SEND_MESSAGE_V2
            | request::SEND_BATCH_MESSAGE
            | request::UPDATE_CONSUMER_OFFSET
            | request::LOCK_BATCH_MQ
            | request::UNLOCK_BATCH_MQ
    )
}

/// Room for a request that another node forwarded, or the answer that there is none.
pub(super) async fn enter(
    broker: &Arc<Broker>,
    command: &Command,
    bytes: usize,
) -> Result<Room, Option<Command>> {
    if !keeps_order(command.code) {
        // All clients of that node share its connection, and none is to wait for another's pull.
        yield_now().await;
    }
    let class = class(command.code);
    if let Some(room) = broker.intake.enter_in_time(class, bytes).await {
        return Ok(room);
    }
    let waited = broker.intake.patience(class).unwrap_or_default();
    let busy = broker.busy(command.code, waited);
    Err(busy.map(|(code, remark)| command.reply_error(code, remark)))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use rmq_wire::header::UpdateConsumerOffset;

    use super::*;
    use crate::broker::dispatch::{CODES, forwarded, frame};
    use crate::broker::testing::Node;
    use crate::broker::tests::send;
    use crate::raft::NotLeader;

    async fn node(sends: u32) -> Node {
        Node::with(BrokerConfig {
            send_thread_pool_queue_capacity: sends,
            wait_time_mills_in_send_queue: Duration::from_millis(1),
            ..BrokerConfig::default()
        })
        .await
    }

    #[tokio::test]
    async fn a_forwarded_send_without_room_is_refused_as_java_does() {
        let node = node(1).await;
        let command = Command {
            opaque: 77,
            ..send("", b"1")
        };
        let raw = frame(command.into());
        let ask = || async {
            let client = "10.0.0.9:555".parse().unwrap();
            let answer = forwarded(Arc::clone(&node.broker), client, raw.clone()).await?;
            Ok::<_, NotLeader>(Command::decode(answer.unwrap()).unwrap())
        };
        let taken = node.broker.intake.enter_in_time(Class::Send, 1).await;
        let refused = ask().await.unwrap();
        assert_eq!((refused.opaque, refused.code), (77, response::SYSTEM_BUSY));
        assert_eq!(
            refused.remark.as_deref(),
            Some(
                "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, period in queue: 1ms, \
                 size of queue: 1"
            )
        );
        // Another leader may have room.
        node.replica.follow(Some("10.0.0.2:10911"));
        assert!(ask().await.is_err());
        node.replica.become_leader(2);
        drop(taken);
        assert_eq!(ask().await.unwrap().code, response::SUCCESS);
        assert_eq!(node.broker.intake.held(Class::Send), 0);
    }

    #[tokio::test]
    async fn what_keeps_its_order_is_begun_at_once_and_nothing_waits_for_the_rest() {
        let node = node(100).await;
        assert_eq!(node.told(send("", b"1")).await.code, response::SUCCESS);
        let mut commit = Command::request(request::UPDATE_CONSUMER_OFFSET)
            .with_header(&UpdateConsumerOffset::default());
        commit.mark_oneway();
        let read = Command::request(request::GET_MAX_OFFSET);
        for (command, expected) in [(send("", b"2"), true), (commit, true), (read, false)] {
            let code = command.code;
            let client = "10.0.0.9:555".parse().unwrap();
            let raw = frame(command.into());
            let first = forwarded(Arc::clone(&node.broker), client, raw).now_or_never();
            assert_eq!(first.is_some(), expected, "{code}");
        }
    }

    #[tokio::test]
    async fn nobody_is_told_what_makes_matters_worse() {
        let node = node(1).await;
        let told = |code| busy(&node.broker, code, Duration::ZERO).map(|(code, _)| code);
        for code in CODES {
            let expected = match *code {
                request::QUERY_CONSUMER_OFFSET => None,
                _ => Some(response::SYSTEM_BUSY),
            };
            assert_eq!(told(*code), expected, "{code}");
        }
        // Sends that wait for a leader have taken all room: what the others would be told.
        node.replica.follow(None);
        let expected = Some(response::SERVICE_NOT_AVAILABLE);
        assert_eq!(told(request::SEND_MESSAGE_V2), expected);
        node.replica.follow(Some("10.0.0.2:10911"));
        assert_eq!(told(request::SEND_MESSAGE_V2), Some(response::SYSTEM_BUSY));
    }

    #[test]
    fn the_budget_follows_the_memory_unless_it_is_given() {
        let config = |request_memory_max_bytes| BrokerConfig {
            request_memory_max_bytes,
            ..BrokerConfig::default()
        };
        let bytes = |config| bounds(&config).memory_bytes() as u64;
        assert_eq!(bytes(config(200 << 20)), 200 << 20);
        let quarter = memory_bytes() / SHARE_OF_MEMORY;
        assert_eq!(bytes(config(0)), quarter.max(128 << 20));
    }
}
