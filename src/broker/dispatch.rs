//! The one table of request codes: who answers, and by which function.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use tokio::time::Instant;

use super::refusal::{Handled, Refusal};
use super::{
    Broker, admin, forward, group, heartbeat, intake, lock, offset, pull, query, queue, reply,
    send, send_back, topic, transaction, vip,
};
use crate::raft::NotLeader;
use crate::remoting::{Class, Conn, Health, Reply, Request, Service};

/// In less, no client commits an offset and, by another connection, a newer one.
const A_MOMENT: Duration = Duration::from_millis(100);

/// Who answers a request, and what must hold when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Any node for itself: it is about the connection or about the node.
    Local,
    /// A leader, from its state, which must have been the group's when it was read.
    Read,
    /// A leader, through the log, which itself refuses what is not current.
    Write,
}

/// Makes `kind` and `execute` of one table. Each processor's future is an allocation of its own: together
/// with them the future of a request would be as large as the largest.
macro_rules! table {
    ($($kind:ident $($code:ident)|+ => $handler:path,)+) => {
        fn kind(code: i32) -> Option<Kind> {
            match code {
                $($(request::$code)|+ => Some(Kind::$kind),)+
                _ => None,
            }
        }

        /// Every code that is served.
        #[cfg(test)]
        pub(super) const CODES: &[i32] = &[$($(request::$code),+),+];

        async fn execute(broker: &Arc<Broker>, request: &Request) -> Handled {
            match request.command.code {
                $($(request::$code)|+ => Box::pin($handler(broker, request)).await,)+
                code => Err(unsupported(code)),
            }
        }
    };
}

table! {
    Write SEND_MESSAGE | SEND_MESSAGE_V2 | SEND_BATCH_MESSAGE => send::handle,
    Write SEND_REPLY_MESSAGE | SEND_REPLY_MESSAGE_V2 => reply::handle,
    Write CONSUMER_SEND_MSG_BACK => send_back::handle,
    Write END_TRANSACTION => transaction::end,
    Read PULL_MESSAGE | LITE_PULL_MESSAGE => pull::handle,
    Read QUERY_CONSUMER_OFFSET => offset::query,
    Write UPDATE_CONSUMER_OFFSET => offset::update,
    Write LOCK_BATCH_MQ => lock::lock,
    Write UNLOCK_BATCH_MQ => lock::unlock,
    Read GET_MAX_OFFSET => queue::max_offset,
    Read GET_MIN_OFFSET => queue::min_offset,
    Read SEARCH_OFFSET_BY_TIMESTAMP => queue::search_offset,
    Read GET_EARLIEST_MSG_STORETIME => queue::earliest_store_time,
    Read QUERY_MESSAGE => query::by_key,
    Read VIEW_MESSAGE_BY_ID => query::by_id,
    Local HEART_BEAT => heartbeat::heart_beat,
    Local UNREGISTER_CLIENT => heartbeat::unregister,
    Local CHECK_CLIENT_CONFIG => heartbeat::check_config,
    Read GET_CONSUMER_LIST_BY_GROUP => heartbeat::consumer_list,
    Write UPDATE_AND_CREATE_TOPIC => topic::update,
    Write UPDATE_AND_CREATE_TOPIC_LIST => topic::update_list,
    Write DELETE_TOPIC_IN_BROKER => topic::delete,
    Read GET_ALL_TOPIC_CONFIG => topic::get_all,
    Read GET_TOPIC_CONFIG => topic::get_one,
    Write UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => group::update,
    Write UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => group::update_list,
    Write DELETE_SUBSCRIPTIONGROUP => group::delete,
    Read GET_ALL_SUBSCRIPTIONGROUP_CONFIG => group::get_all,
    Read GET_SUBSCRIPTIONGROUP_CONFIG => admin::group_config,
    Local RAFT_STATUS => admin::raft_status,
    Local RAFT_CONSUMERS => heartbeat::known_consumers,
    Local RAFT_LEAVING => pull::leaving,
    Write RAFT_ADD_NODE | RAFT_PROMOTE | RAFT_REMOVE_NODE => admin::change_members,
    Write RAFT_TRANSFER_LEADER => admin::transfer_leader,
    Local RAFT_RECOVER => admin::recover,
    Write RAFT_FREEZE => admin::freeze,
    Write RAFT_THAW => admin::thaw,
    Local GET_BROKER_RUNTIME_INFO => admin::runtime_info,
    Local GET_BROKER_CONFIG => admin::get_config,
    Local UPDATE_BROKER_CONFIG => admin::update_config,
    Read GET_TOPIC_STATS_INFO => admin::topic_stats,
    Read QUERY_CONSUME_TIME_SPAN => admin::consume_time_span,
    Read GET_CONSUME_STATS => admin::consume_stats,
    Read GET_BROKER_CONSUME_STATS => admin::broker_consume_stats,
    Read VIEW_BROKER_STATS_DATA => admin::stats_data,
    Read QUERY_CONSUME_QUEUE => admin::query_consume_queue,
    Read QUERY_TOPIC_CONSUME_BY_WHO => admin::groups_of_topic,
    Read QUERY_TOPICS_BY_CONSUMER => admin::topics_of_group,
    Read GET_SYSTEM_TOPIC_LIST_FROM_BROKER => admin::system_topics,
    Read GET_CONSUMER_CONNECTION_LIST => admin::consumer_connections,
    Read GET_PRODUCER_CONNECTION_LIST => admin::producer_connections,
    Read GET_ALL_PRODUCER_INFO => admin::all_producers,
    Read QUERY_SUBSCRIPTION_BY_CONSUMER => admin::subscription,
    Read GET_CONSUMER_RUNNING_INFO => admin::running_info,
    Read CONSUME_MESSAGE_DIRECTLY => admin::consume_directly,
    Read INVOKE_BROKER_TO_GET_CONSUMER_STATUS => admin::consumer_status,
    Read GET_ALL_CONSUMER_OFFSET => admin::all_offsets,
    Read GET_ALL_DELAY_OFFSET => admin::all_delay_offsets,
    Read QUERY_CORRECTION_OFFSET => admin::correction_offset,
    Write CLONE_GROUP_OFFSET => admin::clone_offsets,
    Write INVOKE_BROKER_TO_RESET_OFFSET => admin::reset_offset,
    Local DELETE_EXPIRED_COMMITLOG => admin::delete_expired,
    Local CLEAN_EXPIRED_CONSUMEQUEUE | CLEAN_UNUSED_TOPIC => admin::clean,
}

/// Sends of one message. The rest takes locks that others hold while they do much, reads what may be on disk alone, or has as many
/// parts as a frame has room for.
pub(super) fn is_brief(command: &Command) -> bool {
    let batch = match command.code {
        request::SEND_MESSAGE => "batch",
        request::SEND_MESSAGE_V2 => "m",
        _ => return false,
    };
    let is_true = |text: &str| text.eq_ignore_ascii_case("true");
    !command.ext.get(batch).is_some_and(is_true)
}

pub(super) fn unsupported(code: i32) -> Refusal {
    let remark = format!(" request type {code} not supported");
    Refusal::new(response::REQUEST_CODE_NOT_SUPPORTED, remark)
}

impl Service for Broker {
    async fn call(self: Arc<Self>, request: Request) -> Option<Reply> {
        let handled = match answer(&self, &request).await {
            Err(Refusal::NotLeader) => forward::no_leader(&self, &request),
            handled => handled,
        };
        reply(&request.command, handled)
    }

    fn class(&self, code: i32) -> Class {
        intake::class(code)
    }

    fn is_brief(&self, command: &Command) -> bool {
        is_brief(command)
    }

    fn busy(&self, code: i32, waited: Duration) -> Option<(i32, String)> {
        intake::busy(self, code, waited)
    }

    fn health(&self, path: &str) -> Option<Health> {
        let role = self.replica.role().borrow().clone();
        let serves = self.is_serving() && !self.is_draining();
        let ok = match path {
            "/leader" => serves,
            "/follower" => !serves && !self.is_draining() && role.leader.is_some(),
            _ => return None,
        };
        let leader = match serves {
            true => Some(self.config.leader_addr()),
            false => role.leader,
        };
        let body = serde_json::json!({
            "group": self.config.broker_name,
            "serving": serves,
            "term": role.term,
            "leader": leader,
        });
        let body = body.to_string();
        Some(Health { ok, body })
    }

    fn opened(&self, conn: &Arc<Conn>) {
        self.arrived.opened(self.config.broker_vip.as_ref(), conn);
    }

    fn closed(&self, conn: &Arc<Conn>) {
        self.arrived.closed(conn);
        heartbeat::connection_closed(self, conn);
    }
}

/// Answers a request that another node forwarded here, because this one seemed to lead. `Ok(None)`
/// says nothing to the client.
///
/// # Errors
/// When this node did nothing, because it does not lead.
pub(super) async fn forwarded(
    broker: Arc<Broker>,
    client: SocketAddr,
    raw: Bytes,
) -> Result<Option<Bytes>, NotLeader> {
    let command = match Command::decode(raw.clone()) {
        Ok(command) => command,
        Err(error) => {
            // The node that forwarded it has decoded it before.
            tracing::warn!(%client, %error, "a forwarded frame is unreadable");
            return Ok(None);
        }
    };
    let _room = match intake::enter(&broker, &command, raw.len()).await {
        Ok(room) => room,
        Err(busy) if broker.is_serving() => return Ok(busy.map(|busy| frame(busy.into()))),
        // What fills it waits for the leader, which has room.
        Err(_) => return Err(NotLeader),
    };
    let request = Request {
        command,
        raw,
        conn: None,
        peer: client,
    };
    match answer(&broker, &request).await {
        Err(Refusal::NotLeader) => Err(NotLeader),
        handled => Ok(reply(&request.command, handled).map(frame)),
    }
}

async fn answer(broker: &Arc<Broker>, request: &Request) -> Handled {
    match request.command.code {
        // Pulls wait, here or at the leader, and must not hold up the end of a connection.
        request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => {
            Box::pin(pulled(broker, request)).await
        }
        _ => handle(broker, request).await,
    }
}

async fn pulled(broker: &Arc<Broker>, request: &Request) -> Handled {
    tokio::select! {
        () = broker.leaving() => forward::elsewhere(broker, request),
        () = vip::moves(broker, request) => forward::at_another_address(broker, request),
        handled = handle(broker, request) => handled,
    }
}

async fn handle(broker: &Arc<Broker>, request: &Request) -> Handled {
    match kind(request.command.code) {
        None => Err(unsupported(request.command.code)),
        Some(Kind::Local) => execute(broker, request).await,
        Some(Kind::Read | Kind::Write) => {
            let begun = Instant::now();
            if broker.is_serving() {
                match as_leader(broker, request).await {
                    // It leads no more, and has done nothing.
                    Err(Refusal::NotLeader)
                        if begun.elapsed() > A_MOMENT
                            && forward::is_stale(request, begun.elapsed()) =>
                    {
                        return forward::given_up(broker, request);
                    }
                    Err(Refusal::NotLeader) => {}
                    handled => return handled,
                }
            }
            if forward::is_pull(request)
                && let Some(handled) = Box::pin(pull::as_follower(broker, request)).await
            {
                return handled;
            }
            Box::pin(forward::to_leader(broker, request, begun)).await
        }
    }
}

/// Answers on the leader; [`Refusal::NotLeader`] if it turns out to lead no more.
pub(super) async fn as_leader(broker: &Arc<Broker>, request: &Request) -> Handled {
    let code = request.command.code;
    let term = broker.replica.serving();
    let handled = execute(broker, request).await;
    // A process that was stopped for seconds while it read, and now goes on, must not tell of an
    // end that others have moved.
    if kind(code) == Some(Kind::Read) && (term.is_none() || broker.replica.serving() != term) {
        return Err(Refusal::NotLeader);
    }
    handled
}

fn reply(request: &Command, handled: Handled) -> Option<Reply> {
    match handled {
        Ok(reply) => Some(reply),
        Err(Refusal::Code(code, remark)) => Some(request.reply_error(code, remark).into()),
        Err(Refusal::NotLeader) => {
            let code = response::SERVICE_NOT_AVAILABLE;
            Some(request.reply_error(code, forward::NO_LEADER).into())
        }
        Err(Refusal::Silence) => None,
    }
}

/// An answer as a frame without its length field.
pub(super) fn frame(reply: Reply) -> Bytes {
    /// Bytes of the length field.
    const LENGTH: usize = 4;
    let mut out = BytesMut::new();
    match reply {
        Reply::Frame(frame) => return frame,
        Reply::Command(command) => command.encode(&mut out),
        Reply::Parts(command, parts) => {
            let body: usize = parts.iter().map(Bytes::len).sum();
            command.encode_head(body, &mut out);
            for part in parts {
                out.extend_from_slice(&part);
            }
        }
    }
    out.split_off(LENGTH).freeze()
}
