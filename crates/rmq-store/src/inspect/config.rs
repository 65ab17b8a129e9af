//! What lies under `config/`: topics, groups, offsets, timers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rmq_wire::body::{
    ConsumerOffsetSerializeWrapper, DelayOffsetSerializeWrapper, SubscriptionGroupWrapper,
    TopicConfigSerializeWrapper,
};
use rmq_wire::{json, name};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::files::map;
use super::{DamageKind, Damages, InspectError, QueuePart, TimerPart, at};
use crate::disk::Disk;

/// The topic of messages that the timer wheel of 5.x takes.
const TIMER_TOPIC: &str = "rmq_sys_wheel_timer";
/// Where a migrated store has what nothing but the Java broker writes.
const ADOPTED_DIR: &str = "adopted";

/// What the settings name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigPart {
    pub topics: Table,
    pub groups: Table,
    /// A consumer offset for each of these: topic, group and queue.
    pub offsets: Table,
    pub delay_offsets: Table,
}

/// One table of settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// The file that it was read from; `None` if neither it nor its `.bak` is there and whole.
    pub file: Option<PathBuf>,
    pub entries: u64,
}

/// The settings themselves.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) part: ConfigPart,
    half: u64,
    delay: BTreeMap<i32, u64>,
}

impl Config {
    pub(super) fn read(
        disk: &Arc<dyn Disk>,
        root: &Path,
        damage: &mut Damages,
    ) -> Result<Self, InspectError> {
        let dir = parent_of(disk, root, "config/topics.json")?.join("config");
        let names: BTreeSet<String> = disk.list(&dir).map_err(at(&dir))?.into_iter().collect();
        let mut reader = Reader {
            disk,
            dir,
            names,
            damage,
        };
        let topics = reader.table("topics.json", |t: &TopicConfigSerializeWrapper| {
            t.topic_config_table.len()
        })?;
        let groups = reader.table("subscriptionGroup.json", |t: &SubscriptionGroupWrapper| {
            t.subscription_group_table.len()
        })?;
        let count = |t: &ConsumerOffsetSerializeWrapper| {
            let classic: usize = t.offset_table.values().map(BTreeMap::len).sum();
            classic + t.lmq_offset_table.as_ref().map_or(0, BTreeMap::len)
        };
        // With LMQ it takes the place of the other, for all groups.
        let lmq = reader.table("lmqConsumerOffset.json", count)?;
        let offsets = match lmq.0.file {
            Some(_) => lmq,
            None => reader.table("consumerOffset.json", count)?,
        };
        let delay = reader.table("delayOffset.json", |t: &DelayOffsetSerializeWrapper| {
            t.offset_table.len()
        })?;
        let half = offsets.1.as_ref().and_then(|table| {
            let key = format!("{}@{}", name::TRANS_HALF_TOPIC, name::TRANS_GROUP);
            table.offset_table.get(&key)?.get(&0).copied()
        });
        let levels = delay.1.map(|table| table.offset_table).unwrap_or_default();
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        Ok(Self {
            part: ConfigPart {
                topics: topics.0,
                groups: groups.0,
                offsets: offsets.0,
                delay_offsets: delay.0,
            },
            half: half.map_or(0, number),
            delay: levels.into_iter().map(|(l, at)| (l, number(at))).collect(),
        })
    }

    /// Next place of the half messages' queue to be checked.
    pub(super) fn half_offset(&self) -> u64 {
        self.half
    }

    /// Next place of a level's queue to be delivered; a level that Java does not know is at 0.
    pub(super) fn delay_offset(&self, level: i32) -> u64 {
        self.delay.get(&level).copied().unwrap_or(0)
    }

    pub(super) fn delay_offsets(&self) -> impl Iterator<Item = (i32, u64)> {
        self.delay.iter().map(|(level, at)| (*level, *at))
    }
}

/// Where a file of the store lies that a Java broker wrote: in its root, or where a migration kept it.
fn parent_of(disk: &Arc<dyn Disk>, root: &Path, file: &str) -> Result<PathBuf, InspectError> {
    let kept = root.join(ADOPTED_DIR);
    for parent in [root, &kept] {
        let path = parent.join(file);
        let dir = path.parent().unwrap_or(parent);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if has(disk, dir, &name)? {
            return Ok(parent.to_owned());
        }
    }
    Ok(root.to_owned())
}

fn has(disk: &Arc<dyn Disk>, dir: &Path, name: &str) -> Result<bool, InspectError> {
    let names = disk.list(dir).map_err(at(dir))?;
    Ok(names.iter().any(|of| of == name))
}

struct Reader<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: PathBuf,
    names: BTreeSet<String>,
    damage: &'a mut Damages,
}

impl Reader<'_> {
    /// Reads a file, or its `.bak` if it is absent, empty or no such table, as Java does.
    fn table<T: DeserializeOwned>(
        &mut self,
        name: &str,
        entries: impl Fn(&T) -> usize,
    ) -> Result<(Table, Option<T>), InspectError> {
        for name in [name.to_owned(), format!("{name}.bak")] {
            if !self.names.contains(&name) {
                continue;
            }
            let path = self.dir.join(&name);
            let bytes = map(self.disk, &path)?;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                self.damage.add(DamageKind::Notes, &path, 0, "is empty");
                continue;
            }
            match json::from_slice::<T>(&bytes) {
                Ok(table) => {
                    let part = Table {
                        file: Some(path),
                        entries: entries(&table) as u64,
                    };
                    return Ok((part, Some(table)));
                }
                Err(error) => {
                    self.damage
                        .add(DamageKind::Notes, &path, 0, error.to_string());
                }
            }
        }
        Ok((Table::default(), None))
    }
}

/// Messages that wait for their time in the timer wheel.
///
/// `config/timercheck` begins with `i64` time up to which the wheel was read, `i64`, and `i64` next place
/// of the queue; a slot of `timerwheel` has 32 bytes: `i64` time in seconds, `i64` first, `i64` last
/// position in the timer log, `i32` messages, `i32` (`TimerCheckpoint`, `Slot`, 5.3.3).
pub(super) fn timer(
    disk: &Arc<dyn Disk>,
    root: &Path,
    queues: &[QueuePart],
    damage: &mut Damages,
) -> Result<TimerPart, InspectError> {
    const SLOT_BYTES: usize = 32;
    let queue = queues.iter().find(|queue| queue.topic == TIMER_TOPIC);
    let Some(queue) = queue else {
        return Ok(TimerPart::default());
    };
    let (_, max) = queue.range();
    let mut part = TimerPart {
        messages: queue.messages(),
        ..TimerPart::default()
    };
    let config = parent_of(disk, root, "config/timercheck")?.join("config");
    if !has(disk, &config, "timercheck")? {
        part.pending = part.messages;
        return Ok(part);
    }
    let path = config.join("timercheck");
    let bytes = map(disk, &path)?;
    let long = |at: usize| {
        let eight = bytes.get(at..)?.first_chunk::<8>()?;
        u64::try_from(i64::from_be_bytes(*eight)).ok()
    };
    let (Some(read_ms), Some(taken)) = (long(0), long(16)) else {
        damage.add(DamageKind::Notes, &path, 0, "no timer checkpoint");
        part.pending = part.messages;
        return Ok(part);
    };
    part.taken = taken;
    part.pending = max.saturating_sub(taken);
    let of_wheel = parent_of(disk, root, "timerwheel")?;
    if has(disk, &of_wheel, "timerwheel")? {
        let wheel = map(disk, &of_wheel.join("timerwheel"))?;
        for slot in wheel.as_chunks::<SLOT_BYTES>().0 {
            let seconds = u64::from_be_bytes(*slot.first_chunk().expect("32 bytes"));
            let messages = i32::from_be_bytes(*slot[24..].first_chunk().expect("8 bytes"));
            if seconds.saturating_mul(1000) >= read_ms {
                part.pending += u64::try_from(messages).unwrap_or(0);
            }
        }
    }
    Ok(part)
}
