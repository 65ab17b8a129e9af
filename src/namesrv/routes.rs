//! Who serves which topic: the tables behind every route, plain and deterministic.
//!
//! The rules are those of `RouteInfoManager` in RocketMQ 4.9.8, with additions for names whose
//! brokers register with the term of a Raft group:
//!
//! - a registration of id 0 with a lower term than the highest seen, or without a term, is refused;
//! - while any node of the name lives, id 0 is not absent: when the node that had it is gone,
//!   another one stands in for it (and is not listed under its own id as well) until a node
//!   registers as id 0. A stand-in forwards, so clients need not wait for their next look here. A
//!   group with an address that moves with the leader needs none: id 0 stays there.
//!
//! A group that asks for it has further names for producers (`alias`).
//!
//! Everything about a name, its term and its topics too, is forgotten with its last address.

mod alias;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) use alias::Alias;

use rmq_wire::body::{
    BrokerData, ClusterInfo, DataVersion, QueueData, TopicConfig, TopicRouteData, perm,
};
use tokio::time::Instant;

/// The broker id of a master.
const MASTER: i64 = 0;
/// A broker that has not registered for so long is gone (`BROKER_CHANNEL_EXPIRED_TIME`).
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// More addresses and topics than any deployment has: what keeps a stranger's registrations from
/// filling the memory.
const MEMBERS_MAX: usize = 10_000;
const TOPICS_MAX: usize = 1_000_000;

/// What one REGISTER_BROKER says.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub(super) cluster: String,
    pub(super) name: String,
    pub(super) addr: String,
    pub(super) id: i64,
    pub(super) ha_addr: String,
    /// The Raft term that the broker knows; classic brokers have none.
    pub(super) term: Option<i64>,
    pub(super) version: DataVersion,
    pub(super) topics: Vec<TopicConfig>,
    /// What the broker wants of further names for its group.
    pub(super) alias: Option<Alias>,
    /// The address that moves with the leader of its group.
    pub(super) vip: Option<String>,
    /// `None` leaves those of an earlier registration.
    pub(super) filter_servers: Option<Vec<String>>,
    /// The connection whose end is the end of this broker.
    pub(super) conn: u64,
}

/// The master that a slave registers beside.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Master {
    pub(super) addr: Option<String>,
    pub(super) ha_addr: Option<String>,
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub(super) enum RegisterError {
    #[error("broker {name} has a leader of term {known}; {addr} registers as id 0 of term {term}")]
    Deposed {
        name: String,
        addr: String,
        term: i64,
        known: i64,
    },
    #[error(
        "broker {name} is a Raft group (term {known}); {addr} registers as id 0 without a term"
    )]
    NoTerm {
        name: String,
        addr: String,
        known: i64,
    },
    #[error("{MEMBERS_MAX} brokers are registered, there is no room for {addr}")]
    Full { addr: String },
}

#[derive(Debug, Default)]
pub(super) struct Routes {
    names: BTreeMap<String, Name>,
    /// Topic, then broker name.
    topics: BTreeMap<String, BTreeMap<String, QueueData>>,
    /// How often anything in a route may have changed.
    changes: u64,
}

/// The brokers that share one name.
#[derive(Debug)]
struct Name {
    cluster: String,
    /// The highest term of a registration of id 0, 0 while only others with a term have
    /// registered; none for classic brokers.
    term: Option<i64>,
    /// What the leader wants of further names.
    aliases: Option<alias::Aliases>,
    /// The address that moves with the leader, as it was last told.
    vip: Option<String>,
    /// Whose topics, and which version of them, the topic table has.
    topics_of: Option<(String, DataVersion)>,
    /// By address, so that no address ever has two ids.
    members: BTreeMap<String, Member>,
}

#[derive(Debug)]
struct Member {
    /// None once another address has taken its id.
    id: Option<i64>,
    ha_addr: String,
    alias_addr: Option<String>,
    version: DataVersion,
    filter_servers: Vec<String>,
    conn: u64,
    seen: Instant,
}

impl Name {
    /// The addresses that clients are told.
    fn addrs(&self) -> BTreeMap<i64, String> {
        let mut addrs: BTreeMap<i64, String> = self
            .members
            .iter()
            .filter_map(|(addr, member)| Some((member.id?, addr.clone())))
            .collect();
        if self.term.is_some() && !self.members.is_empty() && !addrs.contains_key(&MASTER) {
            let stand_in = self
                .vip
                .clone()
                .or_else(|| addrs.pop_first().map(|(_, addr)| addr))
                .or_else(|| self.members.keys().next().cloned());
            addrs.extend(stand_in.map(|addr| (MASTER, addr)));
        }
        addrs
    }

    fn broker_data(&self, name: &str) -> BrokerData {
        BrokerData {
            cluster: self.cluster.clone(),
            broker_name: name.to_owned(),
            broker_addrs: self.addrs(),
            ..BrokerData::default()
        }
    }

    fn has_topics(&self, addr: &str, version: &DataVersion) -> bool {
        self.topics_of
            .as_ref()
            .is_some_and(|(of, known)| of == addr && known == version)
    }

    fn fence(&mut self, registration: &Registration) -> Result<(), RegisterError> {
        let Registration { name, addr, .. } = registration;
        match (self.term, registration.term) {
            (Some(known), None) if registration.id == MASTER => {
                return Err(RegisterError::NoTerm {
                    name: name.clone(),
                    addr: addr.clone(),
                    known,
                });
            }
            (Some(known), Some(term)) if registration.id == MASTER && term < known => {
                let (name, addr) = (name.clone(), addr.clone());
                return Err(RegisterError::Deposed {
                    name,
                    addr,
                    term,
                    known,
                });
            }
            (_, Some(term)) if registration.id == MASTER => self.term = Some(term),
            // The term of a follower may be that of a candidate who is never elected.
            (None, Some(_)) => self.term = Some(0),
            _ => {}
        }
        Ok(())
    }
}

impl Routes {
    /// A number that changes with everything that routes are made of.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes one registration in.
    pub(super) fn register(
        &mut self,
        registration: Registration,
        now: Instant,
    ) -> Result<Master, RegisterError> {
        let known = self.names.get(&registration.name);
        let is_new = known.is_none_or(|name| !name.members.contains_key(&registration.addr));
        let total: usize = self.names.values().map(|name| name.members.len()).sum();
        if is_new && total >= MEMBERS_MAX {
            return Err(RegisterError::Full {
                addr: registration.addr,
            });
        }
        let name = self
            .names
            .entry(registration.name.clone())
            .or_insert_with(|| Name {
                cluster: registration.cluster.clone(),
                term: None,
                aliases: None,
                vip: None,
                topics_of: None,
                members: BTreeMap::new(),
            });
        name.fence(&registration)?;
        self.changes += 1;
        name.vip.clone_from(&registration.vip);
        let Registration {
            cluster,
            name: broker,
            addr,
            id,
            term,
            version,
            ..
        } = registration;
        for (other, member) in &mut name.members {
            if *other != addr && member.id == Some(id) {
                tracing::info!(name = broker, id, from = other, to = addr, "id moves");
                member.id = None;
            }
        }
        if is_new {
            tracing::info!(name = broker, id, addr, term, "broker registered");
        }
        let old = name.members.remove(&addr);
        let filter_servers = registration
            .filter_servers
            .or_else(|| old.map(|old| old.filter_servers));
        let member = Member {
            id: Some(id),
            ha_addr: registration.ha_addr,
            alias_addr: registration.alias.as_ref().map(|alias| alias.addr.clone()),
            version,
            filter_servers: filter_servers.unwrap_or_default(),
            conn: registration.conn,
            seen: now,
        };
        name.members.insert(addr.clone(), member);
        if id == MASTER {
            name.cluster = cluster;
            name.aliases = registration.alias.as_ref().map(Into::into);
            if !name.has_topics(&addr, &version) {
                name.topics_of = Some((addr, version));
                update_topics(&mut self.topics, &broker, &registration.topics);
            }
            return Ok(Master::default());
        }
        let master = name.addrs().remove(&MASTER);
        // An address that moves may have nobody who has registered there.
        let ha_addr = (master.as_ref())
            .and_then(|addr| name.members.get(addr))
            .map(|member| member.ha_addr.clone());
        Ok(Master {
            addr: master,
            ha_addr,
        })
    }

    /// Whether the broker at `addr` has other topics than it last registered, and what it last
    /// registered. If it has no other, this counts as a sign of life.
    pub(super) fn query_version(
        &mut self,
        name: &str,
        addr: &str,
        version: &DataVersion,
        now: Instant,
    ) -> (bool, Option<DataVersion>) {
        let member = self
            .names
            .get_mut(name)
            .and_then(|name| name.members.get_mut(addr));
        let Some(member) = member else {
            return (true, None);
        };
        let changed = member.version != *version;
        if !changed {
            member.seen = now;
        }
        (changed, Some(member.version))
    }

    pub(super) fn unregister(&mut self, name: &str, addr: &str) {
        self.remove("unregistered", |of, member, _| of == name && member == addr);
    }

    pub(super) fn connection_closed(&mut self, conn: u64) {
        self.remove("connection closed", |_, _, member| member.conn == conn);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.remove("silent for too long", |_, _, member| {
            now - member.seen > SILENCE_LIMIT
        });
    }

    fn remove(&mut self, why: &str, gone: impl Fn(&str, &str, &Member) -> bool) {
        let (topics, changes) = (&mut self.topics, &mut self.changes);
        self.names.retain(|name, group| {
            let before = group.members.len();
            group.members.retain(|addr, member| {
                let gone = gone(name, addr, member);
                if gone {
                    *changes += 1;
                    tracing::info!(name, addr, id = member.id, "broker removed: {why}");
                    // Its next registration counts as its first.
                    group.topics_of.take_if(|(of, _)| of == addr);
                }
                !gone
            });
            if before == group.members.len() || !group.addrs().is_empty() {
                return true;
            }
            topics.retain(|_, queues| {
                queues.remove(name);
                !queues.is_empty()
            });
            false
        });
    }

    /// `None` when no broker that has the topic is known. `forgets` is for clients that forget which broker
    /// name has just failed.
    pub(super) fn route(&self, topic: &str, forgets: bool) -> Option<TopicRouteData> {
        let queues = self.topics.get(topic)?;
        let groups: Vec<_> = queues
            .keys()
            .filter_map(|name| Some((name, self.names.get(name)?)))
            .collect();
        let mut filter_servers = BTreeMap::new();
        let mut brokers = Vec::new();
        for (name, group) in &groups {
            brokers.push(group.broker_data(name));
            for (addr, member) in group
                .members
                .iter()
                .filter(|(_, m)| !m.filter_servers.is_empty())
            {
                filter_servers.insert(addr.clone(), member.filter_servers.clone());
            }
        }
        let mut queues = queues.values().cloned().collect();
        alias::add(forgets, &groups, &self.names, &mut brokers, &mut queues);
        (!brokers.is_empty()).then_some(TopicRouteData {
            broker_datas: brokers,
            queue_datas: queues,
            filter_server_table: filter_servers,
            ..TopicRouteData::default()
        })
    }

    pub(super) fn cluster_info(&self) -> ClusterInfo {
        let mut clusters: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, group) in &self.names {
            clusters
                .entry(group.cluster.clone())
                .or_default()
                .insert(name.clone());
        }
        let brokers = self
            .names
            .iter()
            .map(|(name, group)| (name.clone(), group.broker_data(name)));
        ClusterInfo {
            broker_addr_table: brokers.collect(),
            cluster_addr_table: clusters,
        }
    }

    pub(super) fn all_topics(&self) -> BTreeSet<String> {
        self.topics.keys().cloned().collect()
    }

    pub(super) fn topics_of_cluster(&self, cluster: &str) -> BTreeSet<String> {
        self.topics
            .iter()
            .filter(|(_, queues)| {
                queues
                    .keys()
                    .any(|name| self.names[name].cluster == cluster)
            })
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// Topics of which one broker's queues, whichever it is, satisfy `pick` by their system flag.
    pub(super) fn topics_by_flag(&self, pick: impl Fn(i32) -> bool) -> BTreeSet<String> {
        self.topics
            .iter()
            .filter(|(_, queues)| {
                queues
                    .values()
                    .next()
                    .is_some_and(|q| pick(q.topic_sys_flag))
            })
            .map(|(topic, _)| topic.clone())
            .collect()
    }

    /// The topics that every cluster and broker has by its own name, and the address of some
    /// broker to ask for the others.
    pub(super) fn system_topics(&self) -> (BTreeSet<String>, Option<String>) {
        let info = self.cluster_info();
        let names = info
            .cluster_addr_table
            .into_iter()
            .flat_map(|(cluster, names)| std::iter::once(cluster).chain(names));
        let addr = self
            .names
            .values()
            .find_map(|group| group.addrs().into_values().next());
        (names.collect(), addr)
    }

    /// Removes a topic, of one cluster only if one is given.
    pub(super) fn delete_topic(&mut self, topic: &str, cluster: Option<&str>) {
        let Some(queues) = self.topics.get_mut(topic) else {
            return;
        };
        self.changes += 1;
        let names = &self.names;
        queues.retain(|name, _| cluster.is_some_and(|cluster| names[name].cluster != cluster));
        if queues.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// Takes the write permission from all topics of a broker name, or gives each of them exactly
    /// read and write; returns how many topics it has. Holds until the broker registers changed
    /// topics.
    pub(super) fn set_write_perm(&mut self, name: &str, write: bool) -> i32 {
        self.changes += 1;
        let mut count = 0;
        for queue in self
            .topics
            .values_mut()
            .filter_map(|queues| queues.get_mut(name))
        {
            queue.perm = if write {
                perm::READ | perm::WRITE
            } else {
                queue.perm & !perm::WRITE
            };
            count += 1;
        }
        count
    }
}

fn update_topics(
    table: &mut BTreeMap<String, BTreeMap<String, QueueData>>,
    name: &str,
    topics: &[TopicConfig],
) {
    let mut changed = 0;
    for topic in topics {
        if table.len() >= TOPICS_MAX && !table.contains_key(&topic.topic_name) {
            tracing::warn!(
                name,
                limit = TOPICS_MAX,
                "topics left out: there are too many"
            );
            break;
        }
        let queue = QueueData {
            broker_name: name.to_owned(),
            read_queue_nums: topic.read_queue_nums,
            write_queue_nums: topic.write_queue_nums,
            perm: topic.perm,
            topic_sys_flag: topic.topic_sys_flag,
        };
        let queues = table.entry(topic.topic_name.clone()).or_default();
        if queues.get(name) != Some(&queue) {
            tracing::debug!(topic = topic.topic_name, ?queue, "topic registered");
            queues.insert(name.to_owned(), queue);
            changed += 1;
        }
    }
    if changed > 0 {
        tracing::info!(name, changed, of = topics.len(), "topics registered");
    }
}

#[cfg(test)]
pub(super) mod tests;
