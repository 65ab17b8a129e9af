use std::collections::BTreeMap;

use rmq_wire::body::perm;
use rmq_wire::name::RAFT_LOG_TOPIC;
use serde::{Deserialize, Serialize};

use super::command::{Change, Command, OffsetCommit, Reply};

/// How long a queue lock lives without renewal, milliseconds (`RebalanceLockManager`, 4.9.8).
/// Clients renew every 20 s and trust a lock for 30 s.
pub const LOCK_LEASE_MS: i64 = 60_000;
/// With a change of locks at every such index of the log, the dead ones of all groups go.
const LOCK_SWEEP: u64 = 1024;

/// Longest topic name that the state takes: `%RETRY%` and the longest group name of a client
/// (`Validators.CHARACTER_MAX_LENGTH`).
const MAX_NAME_BYTES: usize = 263;

/// Everything that all replicas of the group agree on, besides messages and membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Log index of the last command in this state.
    pub applied: Option<u64>,
    pub topics: BTreeMap<String, Topic>,
    pub topics_version: DataVersion,
    pub groups: BTreeMap<String, Group>,
    pub groups_version: DataVersion,
    /// group → topic → queue id → next offset the group wants.
    pub offsets: BTreeMap<String, BTreeMap<String, BTreeMap<i32, i64>>>,
    /// group → queue → who holds it.
    pub locks: BTreeMap<String, BTreeMap<Queue, Lock>>,
    /// Delay level (from 1) → next queue offset of its queue in `SCHEDULE_TOPIC_XXXX` to deliver.
    pub delay: BTreeMap<i32, i64>,
    /// Set while nothing may change. The last field: it came with version 2 of snapshots.
    pub frozen: Option<Frozen>,
}

/// A freeze, see [`Change::Freeze`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Log index of the command.
    pub index: u64,
    /// Wall clock of the leader that proposed it, Unix milliseconds.
    pub at_ms: i64,
}

/// `TopicConfig` without its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    pub read_queues: i32,
    pub write_queues: i32,
    /// Bits of [`perm`].
    pub perm: i32,
    pub filter_type: FilterType,
    /// `TopicSysFlag`: 1 unit, 2 unit subscription.
    pub sys_flag: i32,
    pub order: bool,
    /// Since 5.0, for example `message.type`.
    pub attributes: BTreeMap<String, String>,
}

/// `TopicFilterType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterType {
    #[default]
    SingleTag,
    MultiTag,
}

/// `SubscriptionGroupConfig` without its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub consume_enable: bool,
    pub consume_from_min_enable: bool,
    pub consume_broadcast_enable: bool,
    /// Since 5.0.
    pub consume_message_orderly: bool,
    pub retry_queues: i32,
    pub retry_max_times: i32,
    pub broker_id: i64,
    pub which_broker_when_consume_slowly: i64,
    pub notify_consumer_ids_changed_enable: bool,
    /// Since 5.0.
    pub sys_flag: i32,
    /// Since 5.0.
    pub consume_timeout_minutes: i32,
    /// Since 5.0.
    pub attributes: BTreeMap<String, String>,
}

/// `DataVersion`: tells name servers and tools whether a table has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataVersion {
    /// Unix milliseconds of the last change.
    pub timestamp_ms: i64,
    pub counter: i64,
}

/// A queue as clients name it (`MessageQueue`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Queue {
    pub topic: String,
    pub broker_name: String,
    pub queue_id: i32,
}

/// An orderly consumer's hold on a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub client: String,
    /// When it was taken or last renewed, in milliseconds by the time of leases (`broker::lock::LeaseClock`).
    pub renewed_ms: i64,
}

impl Default for Topic {
    fn default() -> Self {
        Self {
            read_queues: 16,
            write_queues: 16,
            perm: perm::READ | perm::WRITE,
            filter_type: FilterType::SingleTag,
            sys_flag: 0,
            order: false,
            attributes: BTreeMap::new(),
        }
    }
}

impl Topic {
    pub fn with_queues(queues: i32, perm: i32) -> Self {
        Self {
            read_queues: queues,
            write_queues: queues,
            perm,
            ..Self::default()
        }
    }

    pub fn is_readable(&self) -> bool {
        self.perm & perm::READ != 0
    }

    pub fn is_writable(&self) -> bool {
        self.perm & perm::WRITE != 0
    }

    pub fn is_inherited(&self) -> bool {
        self.perm & perm::INHERIT != 0
    }
}

impl Default for Group {
    fn default() -> Self {
        Self {
            consume_enable: true,
            consume_from_min_enable: true,
            consume_broadcast_enable: true,
            consume_message_orderly: false,
            retry_queues: 1,
            retry_max_times: 16,
            broker_id: 0,
            which_broker_when_consume_slowly: 1,
            notify_consumer_ids_changed_enable: true,
            sys_flag: 0,
            consume_timeout_minutes: 15,
            attributes: BTreeMap::new(),
        }
    }
}

impl DataVersion {
    fn next(&mut self, at_ms: i64) {
        self.counter = self.counter.wrapping_add(1);
        // Equality decides whether a name server takes the table, and the counter sees to that.
        self.timestamp_ms = at_ms;
    }
}

impl Lock {
    /// Whether the lease has run out at `now_ms`.
    ///
    /// The time of leases never steps back. A renewal far in the future can only come from a log that knew clocks alone,
    /// and must not hold the queue until that time.
    pub fn is_expired(&self, now_ms: i64) -> bool {
        let age = now_ms.saturating_sub(self.renewed_ms);
        !(-LOCK_LEASE_MS..=LOCK_LEASE_MS).contains(&age)
    }
}

impl State {
    /// The stored offset of a group in a queue.
    pub fn offset(&self, group: &str, topic: &str, queue_id: i32) -> Option<i64> {
        self.offsets.get(group)?.get(topic)?.get(&queue_id).copied()
    }

    /// Topics on which the group has stored an offset (`whichTopicByConsumer`).
    pub fn topics_of_group(&self, group: &str) -> impl Iterator<Item = &str> {
        self.offsets
            .get(group)
            .into_iter()
            .flatten()
            .map(|(topic, _)| topic.as_str())
    }

    /// Groups that have stored an offset on the topic (`whichGroupByTopic`).
    pub fn groups_of_topic<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a str> {
        self.offsets
            .iter()
            .filter(move |(_, topics)| topics.contains_key(topic))
            .map(|(group, _)| group.as_str())
    }

    /// Applies one command. A refusal changes nothing but `applied`.
    pub(super) fn apply(&mut self, index: u64, command: &Command) -> Reply {
        if self.applied.is_some_and(|applied| index <= applied) {
            return Reply::Done;
        }
        self.applied = Some(index);
        if let Err(remark) = check(&command.change) {
            return Reply::refused(remark);
        }
        let at_ms = command.at_ms;
        let may = matches!(command.change, Change::Freeze | Change::Thaw);
        if self.frozen.is_some() && !may {
            return Reply::frozen();
        }
        match &command.change {
            Change::PutTopic { name, topic } => {
                self.topics.insert(name.clone(), topic.clone());
                self.topics_version.next(at_ms);
            }
            Change::CreateTopics(topics) => {
                if create_absent(&mut self.topics, topics) {
                    self.topics_version.next(at_ms);
                }
            }
            Change::DeleteTopic { name } => {
                if self.topics.remove(name).is_some() {
                    self.topics_version.next(at_ms);
                }
            }
            Change::PutGroup { name, group } => {
                self.groups.insert(name.clone(), group.clone());
                self.groups_version.next(at_ms);
            }
            Change::CreateGroups(groups) => {
                if create_absent(&mut self.groups, groups) {
                    self.groups_version.next(at_ms);
                }
            }
            Change::DeleteGroup {
                name,
                clean_offsets,
            } => {
                if self.groups.remove(name).is_some() {
                    self.groups_version.next(at_ms);
                }
                if *clean_offsets {
                    self.offsets.remove(name);
                }
            }
            Change::CommitOffsets(commits) => {
                for commit in commits {
                    self.commit_offset(commit);
                }
            }
            Change::CloneOffsets { from, to, topic } => {
                self.clone_offsets(from, to, topic.as_deref());
            }
            Change::LockQueues {
                group,
                client,
                queues,
            } => {
                return Reply::Locked(self.lock_queues(index, group, client, queues, at_ms));
            }
            Change::UnlockQueues {
                group,
                client,
                queues,
            } => {
                self.unlock_queues(group, client, queues);
            }
            Change::DelayProgress(progress) => {
                for &(level, offset) in progress {
                    let stored = self.delay.entry(level).or_insert(offset);
                    *stored = offset.max(*stored);
                }
            }
            Change::Freeze => {
                self.frozen.get_or_insert(Frozen { index, at_ms });
            }
            Change::Thaw => self.frozen = None,
        }
        Reply::Done
    }

    fn commit_offset(&mut self, commit: &OffsetCommit) {
        // `entry` would copy both names for every commit; most of them are known already.
        let known = self
            .offsets
            .get_mut(&commit.group)
            .and_then(|topics| topics.get_mut(&commit.topic));
        let queues = match known {
            Some(queues) => queues,
            None => self
                .offsets
                .entry(commit.group.clone())
                .or_default()
                .entry(commit.topic.clone())
                .or_default(),
        };
        queues.insert(commit.queue_id, commit.offset);
    }

    fn clone_offsets(&mut self, from: &str, to: &str, topic: Option<&str>) {
        let Some(source) = self.offsets.get(from) else {
            return;
        };
        let copied: BTreeMap<_, _> = source
            .iter()
            .filter(|(name, _)| topic.is_none_or(|wanted| wanted == name.as_str()))
            .map(|(name, queues)| (name.clone(), queues.clone()))
            .collect();
        if !copied.is_empty() {
            self.offsets
                .entry(to.to_owned())
                .or_default()
                .extend(copied);
        }
    }

    fn lock_queues(
        &mut self,
        index: u64,
        group: &str,
        client: &str,
        queues: &[Queue],
        now_ms: i64,
    ) -> Vec<Queue> {
        if index.is_multiple_of(LOCK_SWEEP) {
            // Dead locks of groups that never come back would stay for ever otherwise.
            self.locks.retain(|_, locks| {
                locks.retain(|_, lock| !lock.is_expired(now_ms));
                !locks.is_empty()
            });
        }
        if queues.is_empty() {
            return Vec::new();
        }
        let locks = self.locks.entry(group.to_owned()).or_default();
        locks.retain(|_, lock| !lock.is_expired(now_ms));
        let mut held = Vec::with_capacity(queues.len());
        for queue in queues {
            let lock = locks.entry(queue.clone()).or_insert_with(|| Lock {
                client: client.to_owned(),
                renewed_ms: now_ms,
            });
            if lock.client == client {
                lock.renewed_ms = now_ms;
                held.push(queue.clone());
            }
        }
        held
    }

    fn unlock_queues(&mut self, group: &str, client: &str, queues: &[Queue]) {
        let Some(locks) = self.locks.get_mut(group) else {
            return;
        };
        for queue in queues {
            if locks.get(queue).is_some_and(|lock| lock.client == client) {
                locks.remove(queue);
            }
        }
        if locks.is_empty() {
            self.locks.remove(group);
        }
    }
}

/// Adds what is not there yet; whether anything was added.
fn create_absent<T: Clone>(table: &mut BTreeMap<String, T>, new: &[(String, T)]) -> bool {
    let before = table.len();
    for (name, value) in new {
        if !table.contains_key(name) {
            table.insert(name.clone(), value.clone());
        }
    }
    table.len() != before
}

/// The last guard of the state against names and numbers that would break views, file names or
/// tools. Stricter rules stand where requests enter; these are part of the log's meaning: two
/// versions of this program that differ here would let replicas diverge.
fn check(change: &Change) -> Result<(), String> {
    match change {
        Change::PutTopic { name, topic } => check_topic(name, topic),
        Change::CreateTopics(topics) => topics
            .iter()
            .try_for_each(|(name, topic)| check_topic(name, topic)),
        Change::PutGroup { name, .. } => check_name("group", name),
        Change::CreateGroups(groups) => groups
            .iter()
            .try_for_each(|(name, _)| check_name("group", name)),
        // Whatever got in must be removable.
        Change::DeleteTopic { .. } | Change::DeleteGroup { .. } => Ok(()),
        Change::CommitOffsets(commits) => commits.iter().try_for_each(OffsetCommit::check),
        Change::CloneOffsets { from, to, .. } => {
            check_name("group", from)?;
            check_name("group", to)
        }
        Change::LockQueues { group, queues, .. } => {
            check_name("group", group)?;
            queues
                .iter()
                .try_for_each(|queue| check_name("topic", &queue.topic))
        }
        Change::UnlockQueues { .. } | Change::Freeze | Change::Thaw => Ok(()),
        Change::DelayProgress(progress) => progress.iter().try_for_each(|&(level, offset)| {
            if level < 1 || offset < 0 {
                return Err(format!(
                    "offset {offset} of delay level {level} is out of range"
                ));
            }
            Ok(())
        }),
    }
}

impl OffsetCommit {
    /// Refuses what the state refuses, and with it all commits of the same command.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        check_name("group", &self.group)?;
        check_name("topic", &self.topic)?;
        if self.queue_id < 0 || self.offset < 0 {
            return Err(format!(
                "offset {} in queue {} of topic {} is negative",
                self.offset, self.queue_id, self.topic
            ));
        }
        Ok(())
    }
}

pub(super) fn check_topic(name: &str, topic: &Topic) -> Result<(), String> {
    check_name("topic", name)?;
    if topic.read_queues < 0 || topic.write_queues < 0 {
        return Err(format!(
            "topic {name} with {} read and {} write queues",
            topic.read_queues, topic.write_queues
        ));
    }
    Ok(())
}

/// `TopicValidator`: `^[%|a-zA-Z0-9_-]+$`, for topics and groups alike.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let legal =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-');
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!(
            "a {what} name has 1 to {MAX_NAME_BYTES} characters, not {}",
            name.len()
        ));
    }
    if !name.bytes().all(legal) {
        return Err(format!(
            "the {what} name {name:?} has characters other than ^[%|a-zA-Z0-9_-]+$"
        ));
    }
    if name == RAFT_LOG_TOPIC {
        return Err(format!("{name} belongs to the commit log itself"));
    }
    Ok(())
}
