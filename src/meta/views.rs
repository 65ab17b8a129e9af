//! `config/topics.json`, `subscriptionGroup.json`, `consumerOffset.json` and `delayOffset.json` as
//! a Java broker writes them (`ConfigManager`, 4.9.8): for people, for tools, and for a Java broker
//! that is started on this store. They are written from the state and never read back.
//!
//! Two files are not JSON: fastjson writes integer keys without quotes. Fields that came with 5.0
//! are written only where they differ from their default, so that 4.9 finds what it knows.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::state::{DataVersion, FilterType, Group, State, Topic};
use super::{Meta, Revisions};

/// Writes those files of one store that are behind the state.
pub struct Views {
    dir: PathBuf,
    meta: Meta,
    revisions: watch::Receiver<Revisions>,
    /// What the files show; `None` before the first write, whatever lies there.
    written: Option<Revisions>,
}

impl Views {
    /// `dir` is the `config` directory of the store; it is created when first needed.
    pub fn new(dir: PathBuf, meta: &Meta) -> Self {
        Self {
            dir,
            meta: meta.clone(),
            revisions: meta.revisions(),
            written: None,
        }
    }

    /// Brings every file that is behind up to date, the previous content going to `.bak`.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The first file that could not be written; it and those after it are tried again next time.
    pub fn write_changed(&mut self) -> io::Result<()> {
        // Taken before the state is read: a change in between is then written twice, not missed.
        let now = *self.revisions.borrow_and_update();
        let old = self.written;
        let stale = |part: fn(&Revisions) -> u64| old.is_none_or(|old| part(&old) != part(&now));

        if stale(|r| r.topics) {
            let text = topics(&self.meta.read());
            replace(&self.dir, "topics.json", &text)?;
        }
        if stale(|r| r.groups) {
            let text = groups(&self.meta.read());
            replace(&self.dir, "subscriptionGroup.json", &text)?;
        }
        if stale(|r| r.offsets) {
            let text = offsets(&self.meta.read());
            replace(&self.dir, "consumerOffset.json", &text)?;
        }
        if stale(|r| r.delay) {
            let text = delay(&self.meta.read());
            replace(&self.dir, "delayOffset.json", &text)?;
        }
        self.written = Some(now);
        Ok(())
    }
}

/// Puts `text` in place of `dir/name`. After a crash at any point either the file or its `.bak` is
/// whole, which is what a Java broker looks for.
fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    fs::create_dir_all(dir)?;
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    if path.try_exists()? {
        fs::rename(&path, dir.join(format!("{name}.bak")))?;
    }
    fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()
}

fn topics(state: &State) -> String {
    let entries = state
        .topics
        .iter()
        .map(|(name, topic)| (name, topic_entry(name, topic)));
    table("topicConfigTable", state.topics_version, entries)
}

fn topic_entry(name: &str, topic: &Topic) -> Vec<(&'static str, String)> {
    let filter_type = match topic.filter_type {
        FilterType::SingleTag => "SINGLE_TAG",
        FilterType::MultiTag => "MULTI_TAG",
    };
    let mut fields = vec![
        ("order", topic.order.to_string()),
        ("perm", topic.perm.to_string()),
        ("readQueueNums", topic.read_queues.to_string()),
        ("topicFilterType", quoted(filter_type)),
        ("topicName", quoted(name)),
        ("topicSysFlag", topic.sys_flag.to_string()),
        ("writeQueueNums", topic.write_queues.to_string()),
    ];
    if !topic.attributes.is_empty() {
        fields.push(("attributes", string_map(&topic.attributes)));
    }
    fields
}

fn groups(state: &State) -> String {
    let entries = state
        .groups
        .iter()
        .map(|(name, group)| (name, group_entry(name, group)));
    table("subscriptionGroupTable", state.groups_version, entries)
}

fn group_entry(name: &str, group: &Group) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("brokerId", group.broker_id.to_string()),
        (
            "consumeBroadcastEnable",
            group.consume_broadcast_enable.to_string(),
        ),
        ("consumeEnable", group.consume_enable.to_string()),
        (
            "consumeFromMinEnable",
            group.consume_from_min_enable.to_string(),
        ),
        ("groupName", quoted(name)),
        (
            "notifyConsumerIdsChangedEnable",
            group.notify_consumer_ids_changed_enable.to_string(),
        ),
        ("retryMaxTimes", group.retry_max_times.to_string()),
        ("retryQueueNums", group.retry_queues.to_string()),
        (
            "whichBrokerWhenConsumeSlowly",
            group.which_broker_when_consume_slowly.to_string(),
        ),
    ];
    let usual = Group::default();
    if group.consume_message_orderly {
        fields.push(("consumeMessageOrderly", "true".to_owned()));
    }
    if group.sys_flag != usual.sys_flag {
        fields.push(("groupSysFlag", group.sys_flag.to_string()));
    }
    if group.consume_timeout_minutes != usual.consume_timeout_minutes {
        fields.push((
            "consumeTimeoutMinute",
            group.consume_timeout_minutes.to_string(),
        ));
    }
    if !group.attributes.is_empty() {
        fields.push(("attributes", string_map(&group.attributes)));
    }
    fields
}

fn offsets(state: &State) -> String {
    let mut entries = Vec::new();
    for (group, topics) in &state.offsets {
        for (topic, queues) in topics {
            let name = quoted(&format!("{topic}@{group}"));
            entries.push(format!("\t\t{name}:{}", integer_map(queues, "\n\t\t")));
        }
    }
    format!(
        "{{\n\t\"offsetTable\":{{\n{}\n\t}}\n}}",
        entries.join(",\n")
    )
}

fn delay(state: &State) -> String {
    format!(
        "{{\n\t\"offsetTable\":{}\n}}",
        integer_map(&state.delay, "\n\t")
    )
}

/// The frame that `topics.json` and `subscriptionGroup.json` share.
fn table<'a>(
    name: &str,
    version: DataVersion,
    entries: impl Iterator<Item = (&'a String, Vec<(&'static str, String)>)>,
) -> String {
    let entries: Vec<String> = entries
        .map(|(key, fields)| {
            let fields: Vec<String> = fields
                .iter()
                .map(|(field, value)| format!("\t\t\t\"{field}\":{value}"))
                .collect();
            format!("\t\t{}:{{\n{}\n\t\t}}", quoted(key), fields.join(",\n"))
        })
        .collect();
    format!(
        "{{\n\t\"dataVersion\":{{\n\t\t\"counter\":{},\n\t\t\"timestamp\":{}\n\t}},\n\t\"{name}\":{{\n{}\n\t}}\n}}",
        version.counter,
        version.timestamp_ms,
        entries.join(",\n"),
    )
}

fn integer_map(map: &std::collections::BTreeMap<i32, i64>, before_end: &str) -> String {
    let mut text = String::from("{");
    for (n, (key, value)) in map.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(text, "{comma}{key}:{value}").expect("a String takes all");
    }
    text.push_str(before_end);
    text.push('}');
    text
}

fn string_map(map: &std::collections::BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{}:{}", quoted(key), quoted(value)))
        .collect();
    format!("{{{}}}", pairs.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
