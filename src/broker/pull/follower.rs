//! Pulls that a follower answers (`slaveReadEnable`), so that consumers go on when the leader is gone, and
//! who is asked to pull where.
//!
//! A follower gives out records below its own confirm offset, which are committed for ever, and waits for
//! the next ones. It never says that there is nothing or where a queue begins or ends: those pulls go to the
//! leader, as do all that it would refuse.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rmq_store::GetStatus;
use rmq_wire::header::{PullMessage, pull_sys_flag};
use tokio::time::Instant;

use super::{MASTER, answer, check, get, suspension};
use crate::broker::refusal::Handled;
use crate::broker::{Broker, forward};
use crate::raft::{GroupStatus, NodeId, SelfId};
use crate::remoting::Request;

/// How often the leader looks which followers can be read from.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A follower that has not answered for so long is not recommended.
const SILENCE_MAX_MS: u64 = 1000;
/// Nor is one that is so many entries behind.
const LAG_MAX: u64 = 1000;
/// By then stock clients, which look for routes every 30 s, have found a new leader.
const ROUTES_KNOWN: Duration = Duration::from_secs(60);

/// The broker ids that consumers are sent to: the followers', or else the leader's. None on a node that does
/// not lead.
#[derive(Default)]
pub(in crate::broker) struct Readers(RwLock<Vec<i64>>);

impl Readers {
    /// Keeps the list, for ever.
    pub(in crate::broker) async fn keep(broker: &Broker) {
        if !broker.config.slave_read_enable {
            return std::future::pending().await;
        }
        let mut leads_since = None;
        loop {
            let readers = match broker.is_serving() {
                true => {
                    // Who has an old route takes id 0 for the leader before, but knows this node too.
                    let since = *leads_since.get_or_insert_with(Instant::now);
                    let is_known = since.elapsed() >= ROUTES_KNOWN;
                    let own = if is_known { MASTER } else { broker.follower_id };
                    // Not the leader if it can be helped: what is read elsewhere goes on when it is gone,
                    // and a stock client that tries in vain to reach it pulls nothing else meanwhile.
                    match readable(&broker.replica.status()) {
                        followers if followers.is_empty() => vec![own],
                        followers => followers,
                    }
                }
                false => {
                    leads_since = None;
                    Vec::new()
                }
            };
            *broker
                .readers
                .0
                .write()
                .unwrap_or_else(PoisonError::into_inner) = readers;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Where this group shall pull this queue: always from the same node while nobody comes or goes, and
    /// evenly among all.
    /// `otherwise` where that is not known yet.
    pub(in crate::broker) fn of(&self, pull: &PullMessage, otherwise: i64) -> i64 {
        let readers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if readers.is_empty() {
            return otherwise;
        }
        let mut hasher = DefaultHasher::new();
        (&pull.consumer_group, &pull.topic).hash(&mut hasher);
        let queue = u64::from(pull.queue_id.unsigned_abs());
        let at = hasher.finish().wrapping_add(queue) % readers.len() as u64;
        readers[usize::try_from(at).unwrap_or(0)]
    }
}

fn readable(status: &GroupStatus) -> Vec<i64> {
    let mut ids: Vec<i64> = status
        .members
        .iter()
        .filter(|member| member.node != status.node)
        .filter(|member| member.acked_ms.is_some_and(|ms| ms <= SILENCE_MAX_MS))
        .filter(|member| member.lag.is_some_and(|lag| lag <= LAG_MAX))
        .map(|member| broker_id(member.node))
        .collect();
    ids.sort_unstable();
    ids
}

/// A node's broker id while it does not lead.
fn broker_id(node: NodeId) -> i64 {
    let id = SelfId::of(node).follower_broker_id();
    i64::try_from(id).unwrap_or(i64::MAX)
}

/// The broker ids under which consumers find other nodes than this one: on a leader the followers that keep
/// up, on a follower the leader, by its place in new routes and in those from before it led.
pub(in crate::broker) fn others(broker: &Broker) -> Vec<i64> {
    let status = broker.replica.status();
    if broker.is_serving() {
        return readable(&status);
    }
    let leader = status.leader.filter(|leader| leader.node != status.node);
    leader.map_or_else(Vec::new, |leader| vec![MASTER, broker_id(leader.node)])
}

/// This follower's own answer, if it has one.
pub(in crate::broker) async fn as_follower(
    broker: &Arc<Broker>,
    request: &Request,
) -> Option<Handled> {
    let conn = request.conn.as_ref()?;
    if !broker.config.slave_read_enable {
        return None;
    }
    let pull: PullMessage = request.command.header().ok()?;
    let filter = check(broker, request, &pull).await.ok()?;
    let may_wait = pull.sys_flag & pull_sys_flag::SUSPEND != 0;
    let end = Instant::now() + suspension(&pull);
    loop {
        // Entered before the look, so that nothing arrives unnoticed in between.
        let hold = broker.holds.enter(
            &pull.topic,
            pull.queue_id,
            pull.queue_offset,
            Arc::clone(&filter),
        );
        let result = get(broker, &pull, &filter).await.ok()?;
        match result.status {
            GetStatus::Found | GetStatus::NoMatchedMessage | GetStatus::Late => {
                return Some(Ok(answer(request, &pull, result, broker.follower_id)));
            }
            GetStatus::OffsetOverflowOne if may_wait => {}
            _ => return None,
        }
        // What comes next a leader will tell; it may also be that only this node is cut off.
        broker.replica.role().borrow().leader.as_ref()?;
        tokio::select! {
            () = hold.woken() => {}
            // Only a leader could say that there is nothing.
            () = tokio::time::sleep_until(end) => {
                return Some(forward::pull_again(request, broker.follower_id));
            }
            () = conn.closed() => return None,
        }
        if broker.is_serving() {
            return None;
        }
    }
}
