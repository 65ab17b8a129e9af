//! Pulls that a follower answers (`slaveReadEnable`), so that consumers go on when the leader is gone, and
//! who is asked to pull where.
//!
//! A follower gives out records below its own confirm offset, which are committed for ever, and waits for
//! the next ones. It never says that there is nothing or where a queue begins or ends: those pulls go to the
//! leader, as do all that it would refuse.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rmq_store::GetStatus;
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{PullMessage, pull_sys_flag};
use tokio::time::Instant;

use super::{MASTER, answer, check, get, suspension};
use crate::broker::refusal::Handled;
use crate::broker::{Broker, dispatch, forward};
use crate::raft::{GroupStatus, MemberStatus, NodeId, SelfId};
use crate::remoting::Request;

/// How often the leader looks which followers can be read from, and which do not answer.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A follower that has not answered for so long is not recommended, and no further name of the group is there.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// But one that has missed no more heartbeats than this is.
const HEARTBEATS: u32 = 3;
/// Nor is one that is so many entries behind.
const LAG_MAX: u64 = 1000;
/// How long a node that goes waits for the leader to take note.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// By then stock clients, which look for routes every 30 s, have found a new leader.
const ROUTES_KNOWN: Duration = Duration::from_secs(60);

/// How long nobody is sent to a node that has said that it is about to go. By then it does not answer.
const GONE: Duration = Duration::from_secs(5);

/// The followers that consumers are sent to, by their broker ids. None on a node that does not lead.
#[derive(Default)]
pub(in crate::broker) struct Readers {
    ids: RwLock<Vec<i64>>,
    /// Those that are about to go, and when they said so.
    gone: Mutex<HashMap<i64, Instant>>,
}

impl Readers {
    /// Keeps the list, and that of the followers that are [silent](Broker::silent), for ever.
    pub(in crate::broker) async fn keep(broker: &Broker) {
        let (reads, aliases) = (
            broker.config.slave_read_enable,
            broker.config.group_alias_routes,
        );
        if !reads && !aliases {
            return std::future::pending().await;
        }
        // Since when this node leads: who has just been elected has not heard of all yet.
        let mut serving_since = None;
        // Another node that leads or led, and when it was last seen to.
        let mut other: Option<(i64, Instant)> = None;
        let mut roles = broker.replica.role();
        loop {
            let status = broker.replica.status();
            let leader = status.leader.as_ref().map(|leader| leader.node);
            if let Some(leader) = leader.filter(|leader| *leader != status.node) {
                other = Some((broker_id(leader), Instant::now()));
            }
            let serves = broker.is_serving();
            let mut readers = match serves && reads {
                true => readable(broker, &status),
                false => Vec::new(),
            };
            serving_since = serves.then(|| serving_since.unwrap_or_else(Instant::now));
            let silent = match serving_since {
                Some(since) if since.elapsed() >= silence_max(broker) => silent(broker, &status),
                _ => Vec::new(),
            };
            if *broker.silent.borrow() != silent {
                tracing::info!(?silent, "followers that do not answer");
                broker.silent.send_replace(silent);
            }
            // Whose route is from before this node led has that one as id 0, and takes another for its id.
            let led = other.filter(|(_, seen)| seen.elapsed() < ROUTES_KNOWN);
            readers.retain(|id| led.is_none_or(|(led, _)| led != *id));
            broker.readers.set(readers);
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = roles.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }

    fn set(&self, mut readers: Vec<i64>) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|_, since| since.elapsed() < GONE);
        readers.retain(|id| !gone.contains_key(id));
        *self.ids.write().unwrap_or_else(PoisonError::into_inner) = readers;
    }

    /// Sends nobody any more to a node that is about to go.
    pub(in crate::broker) fn leave(&self, id: i64) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.insert(id, Instant::now());
        let mut readers = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| *reader != id);
    }

    /// Where this group shall pull this queue: always from the same node while nobody comes or goes, and
    /// evenly among all. Not from the leader if it can be helped: what is read elsewhere goes on when it is
    /// gone, and a stock client that tries in vain to reach it pulls nothing else meanwhile.
    pub(in crate::broker) fn of(&self, broker: &Broker, pull: &PullMessage) -> i64 {
        let readers = self.ids.read().unwrap_or_else(PoisonError::into_inner);
        if readers.is_empty() {
            return own_id(broker, pull);
        }
        let mut hasher = DefaultHasher::new();
        (&pull.consumer_group, &pull.topic).hash(&mut hasher);
        let queue = u64::from(pull.queue_id.unsigned_abs());
        let at = hasher.finish().wrapping_add(queue) % readers.len() as u64;
        readers[usize::try_from(at).unwrap_or(0)]
    }
}

fn silence_max(broker: &Broker) -> Duration {
    SILENCE_MAX.max(broker.config.raft_heartbeat_interval_millis * HEARTBEATS)
}

fn answers(broker: &Broker, member: &MemberStatus) -> bool {
    let within = silence_max(broker).as_millis();
    member.acked_ms.is_some_and(|ms| u128::from(ms) <= within)
}

fn readable(broker: &Broker, status: &GroupStatus) -> Vec<i64> {
    let near = |member: &MemberStatus| member.lag.is_some_and(|lag| lag <= LAG_MAX);
    followers(status, |member| answers(broker, member) && near(member))
}

fn silent(broker: &Broker, status: &GroupStatus) -> Vec<i64> {
    followers(status, |member| !answers(broker, member))
}

/// The broker ids of some of the other nodes, in order.
fn followers(status: &GroupStatus, of: impl Fn(&MemberStatus) -> bool) -> Vec<i64> {
    let mut ids: Vec<i64> = status
        .members
        .iter()
        .filter(|member| member.node != status.node && of(member))
        .map(|member| broker_id(member.node))
        .collect();
    ids.sort_unstable();
    ids
}

/// The broker id by which a consumer has found this node. With an old route, 0 may be this one or another.
/// Positions come along with a pull only to id 0.
pub(in crate::broker) fn own_id(broker: &Broker, pull: &PullMessage) -> i64 {
    let is_master = pull.sys_flag & pull_sys_flag::COMMIT_OFFSET != 0;
    match broker.config.slave_read_enable && !is_master {
        true => broker.follower_id,
        false => MASTER,
    }
}

/// Tells the leader that consumers shall not be sent to this node any more.
pub(in crate::broker) async fn say_goodbye(broker: &Broker) {
    if !broker.config.slave_read_enable {
        return;
    }
    let mut notice = Command::request(request::RAFT_LEAVING);
    notice.ext.insert("brokerId", broker.follower_id);
    let notice = dispatch::frame(notice.into());
    let told = broker
        .replica
        .forward(notice, broker.store_host, GOODBYE_LIMIT.into());
    if let Err(error) = told.await {
        tracing::debug!(%error, "the leader does not know that this node goes");
    }
}

/// Has no leader forget it, for ever.
pub(in crate::broker) async fn keep_saying_goodbye(broker: &Broker) {
    loop {
        tokio::time::sleep(GONE / 2).await;
        say_goodbye(broker).await;
    }
}

/// `RAFT_LEAVING`, which only nodes send.
pub(in crate::broker) async fn leaving(broker: &Arc<Broker>, request: &Request) -> Handled {
    let id = request.command.ext.get("brokerId");
    match (id.and_then(|id| id.parse().ok()), &request.conn) {
        (Some(id), None) => broker.readers.leave(id),
        _ => return Err(dispatch::unsupported(request.command.code)),
    }
    Ok(request.command.reply(response::SUCCESS).into())
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
        return readable(broker, &status);
    }
    let leader = status.leader.filter(|leader| leader.node != status.node);
    leader.map_or_else(Vec::new, |leader| vec![MASTER, broker_id(leader.node)])
}

/// Those of [`others`] by which no address is found that moves.
pub(in crate::broker) fn addressed(broker: &Broker) -> Vec<i64> {
    let mut ids = others(broker);
    ids.retain(|id| *id != MASTER);
    ids
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
        broker.queues.hurry();
        let result = get(broker, &pull, &filter).await.ok()?;
        match result.status {
            GetStatus::Found | GetStatus::NoMatchedMessage | GetStatus::Late => {
                let next_from = own_id(broker, &pull);
                return Some(Ok(answer(request, &pull, result, next_from)));
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
                return Some(forward::pull_again(request, own_id(broker, &pull)));
            }
            () = conn.closed() => return None,
        }
        if broker.is_serving() {
            return None;
        }
    }
}
