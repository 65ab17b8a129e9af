//! Who is connected to this node: consumer groups with their members and subscriptions, producer
//! groups with their members. It lives in memory only; clients tell it again every 30 s.
//!
//! `ConsumerManager`, `ConsumerGroupInfo`, `ProducerManager` (4.9.8). A member is a connection.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rmq_wire::body::{ConsumeFromWhere, ConsumeType, ConsumerData, MessageModel, SubscriptionData};
use rmq_wire::frame::Language;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::filter::TagFilter;
use crate::remoting::Conn;

/// A client that has said nothing for so long is gone (`CHANNEL_EXPIRED_TIMEOUT`).
const EXPIRY: Duration = Duration::from_secs(120);
/// By then a client that another node told of has sent a heartbeat here: they come every 30 s, and a Go client
/// leaves out a node in a round in which another one is down.
const ABSENCE_MAX: Duration = Duration::from_secs(65);

#[derive(Default)]
pub(super) struct Clients {
    tables: RwLock<Tables>,
}

#[derive(Default)]
pub(super) struct Tables {
    pub(super) consumers: HashMap<String, ConsumerGroup>,
    /// group → connection id → member.
    pub(super) producers: HashMap<String, HashMap<u64, Member>>,
    /// The last connection of each producer that has one, by client id.
    producer_conns: HashMap<String, Arc<Conn>>,
    /// The groups in which a connection is, so that its end does not walk through all that there are.
    groups: HashMap<u64, Groups>,
}

/// Those of one connection.
#[derive(Default)]
struct Groups {
    consumers: BTreeSet<String>,
    producers: BTreeSet<String>,
}

/// One client in one group.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) conn: Arc<Conn>,
    pub(super) client_id: String,
    pub(super) language: Language,
    /// Ordinal of the client's `MQVersion`.
    pub(super) version: i32,
    pub(super) seen: Instant,
}

#[derive(Default)]
pub(super) struct ConsumerGroup {
    /// By connection id.
    pub(super) members: HashMap<u64, Member>,
    /// Members that so far only another node has heard, by client id, and when it last did.
    absent: HashMap<String, Instant>,
    /// By topic.
    pub(super) subscriptions: HashMap<String, Arc<Subscription>>,
    pub(super) consume_type: ConsumeType,
    pub(super) message_model: MessageModel,
    pub(super) consume_from_where: ConsumeFromWhere,
}

/// What a node tells of a consumer group to another one that has just started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KnownGroup {
    data: ConsumerData,
    /// Milliseconds since the last heartbeat, by client id.
    silent_ms: HashMap<String, u64>,
}

/// What a group wants of one topic.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) data: SubscriptionData,
    /// What `data` says, if it is by tag.
    pub(super) filter: Arc<TagFilter>,
}

impl Clients {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a consumer; whether the group's members or topics have changed.
    pub(super) fn register_consumer(&self, member: Member, data: &ConsumerData) -> bool {
        let mut tables = self.write();
        if !tables.consumers.contains_key(&data.group_name) {
            tables
                .consumers
                .insert(data.group_name.clone(), ConsumerGroup::default());
        }
        let group = tables
            .consumers
            .get_mut(&data.group_name)
            .expect("inserted above");
        group.consume_type = data.consume_type;
        group.message_model = data.message_model;
        group.consume_from_where = data.consume_from_where;
        let was_absent = group.absent.remove(&member.client_id).is_some();
        let conn = member.conn.id();
        let is_new_member = group.members.insert(conn, member).is_none();
        let has_changed = group.subscribe(&data.subscription_data_set);
        if is_new_member {
            let groups = tables.groups.entry(conn).or_default();
            groups.consumers.insert(data.group_name.clone());
        }
        (is_new_member && !was_absent) || has_changed
    }

    pub(super) fn register_producer(&self, member: Member, group: &str) {
        let mut tables = self.write();
        if !tables.producers.contains_key(group) {
            tables.producers.insert(group.to_owned(), HashMap::new());
        }
        let known = tables.producer_conns.get(&member.client_id);
        if known.is_none_or(|conn| conn.id() != member.conn.id()) {
            let (client, conn) = (member.client_id.clone(), Arc::clone(&member.conn));
            tables.producer_conns.insert(client, conn);
        }
        let members = tables.producers.get_mut(group).expect("inserted above");
        let (conn, client) = (member.conn.id(), member.client_id.clone());
        match members.insert(conn, member) {
            Some(before) if before.client_id != client => tables.forget_producer_conn(&before),
            Some(_) => {}
            None => {
                let groups = tables.groups.entry(conn).or_default();
                groups.producers.insert(group.to_owned());
            }
        }
    }

    /// The connection of a producer.
    pub(super) fn producer(&self, client_id: &str) -> Option<Arc<Conn>> {
        self.read().producer_conns.get(client_id).cloned()
    }

    /// Forgets a consumer; whether it was known.
    pub(super) fn unregister_consumer(&self, conn: u64, client_id: &str, group: &str) -> bool {
        let mut tables = self.write();
        let known = tables.consumers.get_mut(group);
        let was_member = known.is_some_and(|group| {
            let was_absent = group.absent.remove(client_id).is_some();
            group.members.remove(&conn).is_some() || was_absent
        });
        tables.leave(conn, |groups| groups.consumers.remove(group));
        tables.forget_if_empty(group);
        was_member
    }

    pub(super) fn unregister_producer(&self, conn: u64, group: &str) {
        let mut tables = self.write();
        let members = tables.producers.get_mut(group);
        let left = members.and_then(|members| members.remove(&conn));
        tables.leave(conn, |groups| groups.producers.remove(group));
        if let Some(left) = left {
            tables.forget_producer_conn(&left);
        }
        tables.forget_if_empty(group);
    }

    /// Forgets a connection; the consumer groups that it was a member of.
    pub(super) fn forget(&self, conn: u64) -> Vec<String> {
        let mut tables = self.write();
        let Some(groups) = tables.groups.remove(&conn) else {
            return Vec::new();
        };
        for name in &groups.consumers {
            if let Some(group) = tables.consumers.get_mut(name) {
                group.members.remove(&conn);
            }
            tables.forget_if_empty(name);
        }
        for name in &groups.producers {
            let members = tables.producers.get_mut(name);
            if let Some(gone) = members.and_then(|members| members.remove(&conn)) {
                tables.forget_producer_conn(&gone);
            }
            tables.forget_if_empty(name);
        }
        groups.consumers.into_iter().collect()
    }

    /// All consumers, for another node.
    pub(super) fn known(&self, now: Instant) -> Vec<KnownGroup> {
        let tables = self.read();
        let groups = tables.consumers.iter();
        let known = groups.map(|(name, group)| KnownGroup {
            data: ConsumerData {
                group_name: name.clone(),
                consume_type: group.consume_type,
                message_model: group.message_model,
                consume_from_where: group.consume_from_where,
                subscription_data_set: (group.subscriptions.values())
                    .map(|subscription| subscription.data.clone())
                    .collect(),
                unit_mode: false,
            },
            silent_ms: group
                .seen()
                .map(|(client, seen)| {
                    let silent = now.saturating_duration_since(seen).as_millis();
                    (client.to_owned(), u64::try_from(silent).unwrap_or(u64::MAX))
                })
                .collect(),
        });
        known.collect()
    }

    /// Takes note of what another node knows. What clients said here themselves is newer.
    pub(super) fn learn(&self, known: Vec<KnownGroup>, now: Instant) {
        let mut tables = self.write();
        for KnownGroup { data, silent_ms } in known {
            let absent = silent_ms.into_iter().filter_map(|(client, silent)| {
                let seen = now.checked_sub(Duration::from_millis(silent))?;
                Some((client, seen))
            });
            let group = tables.consumers.entry(data.group_name).or_default();
            if group.members.is_empty() {
                group.consume_type = data.consume_type;
                group.message_model = data.message_model;
                group.consume_from_where = data.consume_from_where;
                group.subscribe(&data.subscription_data_set);
            }
            let members = group.members.values();
            let here: HashSet<String> = members.map(|m| m.client_id.clone()).collect();
            for (client, seen) in absent {
                if !here.contains(&client) && now - seen < ABSENCE_MAX {
                    let known = group.absent.entry(client).or_insert(seen);
                    *known = seen.max(*known);
                }
            }
        }
        tables.forget_empty();
    }

    /// Forgets members that only another node had heard, and nobody has since.
    pub(super) fn forget_absent(&self, now: Instant) {
        let mut tables = self.write();
        for group in tables.consumers.values_mut() {
            group.absent.retain(|_, seen| now - *seen < ABSENCE_MAX);
        }
        tables.forget_empty();
    }

    /// Connections of clients that have fallen silent.
    pub(super) fn silent(&self, now: Instant) -> Vec<Arc<Conn>> {
        let tables = self.read();
        let consumers = tables.consumers.values().map(|group| &group.members);
        let mut silent: HashMap<u64, Arc<Conn>> = HashMap::new();
        for member in consumers
            .chain(tables.producers.values())
            .flat_map(HashMap::values)
        {
            if now.saturating_duration_since(member.seen) > EXPIRY {
                silent.insert(member.conn.id(), Arc::clone(&member.conn));
            }
        }
        silent.into_values().collect()
    }

    /// A consumer group's members.
    pub(super) fn members(&self, group: &str) -> Vec<Member> {
        let tables = self.read();
        let group = tables.consumers.get(group);
        let members = group.into_iter().flat_map(|group| group.members.values());
        members.cloned().collect()
    }

    /// Connections of a consumer group's members.
    pub(super) fn consumers(&self, group: &str) -> Vec<Arc<Conn>> {
        let tables = self.read();
        let members = tables
            .consumers
            .get(group)
            .map(|group| group.members.values());
        members
            .into_iter()
            .flatten()
            .map(|member| Arc::clone(&member.conn))
            .collect()
    }
}

impl Tables {
    /// Of a member that was taken out of a group, unless it is in another one.
    fn forget_producer_conn(&mut self, gone: &Member) {
        let conn = gone.conn.id();
        let is_gone = |member: &Member| member.client_id == gone.client_id;
        let groups = self.groups.get(&conn).map(|groups| &groups.producers);
        let groups = groups.into_iter().flatten();
        let mut left = groups.filter_map(|name| self.producers.get(name)?.get(&conn));
        let known = self.producer_conns.get(&gone.client_id);
        if known.is_some_and(|conn| conn.id() == gone.conn.id()) && !left.any(is_gone) {
            self.producer_conns.remove(&gone.client_id);
        }
    }

    /// Takes a group out of a connection's.
    fn leave(&mut self, conn: u64, out: impl FnOnce(&mut Groups) -> bool) {
        if let Some(groups) = self.groups.get_mut(&conn) {
            out(groups);
            if groups.consumers.is_empty() && groups.producers.is_empty() {
                self.groups.remove(&conn);
            }
        }
    }

    /// A group of consumers and one of producers may have the same name.
    fn forget_if_empty(&mut self, group: &str) {
        if self
            .consumers
            .get(group)
            .is_some_and(ConsumerGroup::is_empty)
        {
            self.consumers.remove(group);
        }
        if self.producers.get(group).is_some_and(HashMap::is_empty) {
            self.producers.remove(group);
        }
    }

    fn forget_empty(&mut self) {
        self.consumers.retain(|_, group| !group.is_empty());
    }
}

impl ConsumerGroup {
    fn is_empty(&self) -> bool {
        self.members.is_empty() && self.absent.is_empty()
    }

    /// All members, those that another node knows too. A client that has two connections for a moment is
    /// one consumer.
    pub(super) fn client_ids(&self) -> BTreeSet<String> {
        self.seen().map(|(client, _)| client.to_owned()).collect()
    }

    /// The members' client ids, and when they were last heard.
    fn seen(&self) -> impl Iterator<Item = (&str, Instant)> {
        let members = self.members.values();
        let present = members.map(|member| (member.client_id.as_str(), member.seen));
        let absent = self.absent.iter();
        present.chain(absent.map(|(client, seen)| (client.as_str(), *seen)))
    }

    /// Takes over what a member subscribes to: the newest version of each topic, and no topic that
    /// it does not name. Whether the topics have changed.
    fn subscribe(&mut self, new: &[SubscriptionData]) -> bool {
        let before = self.subscriptions.len();
        let named: HashSet<&str> = new.iter().map(|data| data.topic.as_str()).collect();
        self.subscriptions
            .retain(|topic, _| named.contains(topic.as_str()));
        let mut has_changed = self.subscriptions.len() != before;
        for data in new {
            let known = self.subscriptions.get(&data.topic);
            has_changed |= known.is_none();
            if known.is_none_or(|known| data.sub_version > known.data.sub_version) {
                let filter = Arc::new(TagFilter::parse(Some(&data.sub_string)));
                let subscription = Arc::new(Subscription {
                    data: data.clone(),
                    filter,
                });
                self.subscriptions.insert(data.topic.clone(), subscription);
            }
        }
        has_changed
    }
}
