//! What the Java broker said of its store: the lines of a manifest, for which each queue was read, and each offset asked for.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use rmq_wire::code::request;
use rmq_wire::name::SCHEDULE_TOPIC;
use rmq_wire::properties;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::client::{Client, offset_of};
use crate::history::{Adopted, Kept};

/// A topic and one of its queues.
type Queue = (String, u32);

/// What has to be there.
pub(crate) struct Said {
    all: Vec<(Place, Adopted)>,
    /// `UNIQ_KEY` of the messages that waited for their time, which come to queues since.
    waited: HashSet<String>,
}

/// Where to look for it.
enum Place {
    /// At an offset of a queue.
    Message(Queue, u64),
    /// At the end of a queue.
    End(Queue),
    /// Where a group is in a queue.
    Group(String, Queue),
    /// Where a level of delay is.
    Level(i32),
}

impl Said {
    /// Reads a manifest.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = || path.display().to_string();
        let output = Command::new("xz").arg("-dc").arg(path).output();
        let output = output.context("xz").with_context(shown)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {told}", shown());
        Self::of(std::str::from_utf8(&output.stdout)?).with_context(shown)
    }

    fn of(manifest: &str) -> anyhow::Result<Self> {
        let lines = manifest.lines().map(serde_json::from_str);
        let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
        let of = |kind: &'static str| lines.iter().filter(move |line| line["type"] == kind);
        // Of others no client can read the messages by their offsets.
        let is_read = |line: &&Value| line["via"] == "pull";
        let read = of("queue").filter(is_read).map(queue_of);
        let read: HashSet<Queue> = read.collect::<Result<_, _>>()?;
        let mut all = Vec::new();
        let mut say = |place: Place, had: Kept| {
            let adopted = Adopted {
                place: place.to_string(),
                had,
                shown: BTreeMap::new(),
            };
            all.push((place, adopted));
        };
        for line in of("msg") {
            let queue = queue_of(line)?;
            if read.contains(&queue) {
                let place = Place::Message(queue, number(line, "queueOffset")?);
                say(place, Kept::Message(text(line, "recordSha256")?));
            }
        }
        for line in of("queue") {
            let end = number(line, "maxOffset")?;
            say(Place::End(queue_of(line)?), Kept::Offset(end));
        }
        for line in of("consumerOffset") {
            let place = Place::Group(text(line, "group")?, queue_of(line)?);
            say(place, Kept::Offset(number(line, "offset")?));
        }
        let mut levels = HashMap::new();
        for line in of("delayOffset") {
            let (level, offset) = (number(line, "level")?, number(line, "offset")?);
            levels.insert(level, offset);
            say(Place::Level(i32::try_from(level)?), Kept::Offset(offset));
        }
        let mut waited = HashSet::new();
        for line in of("msg").filter(|line| line["cqTopic"] == SCHEDULE_TOPIC) {
            let level = number(line, "queueId")? + 1;
            if number(line, "queueOffset")? >= levels.get(&level).copied().unwrap_or_default() {
                waited.insert(text(line, "uniqKey")?);
            }
        }
        ensure!(
            !read.is_empty() && all.len() > read.len(),
            "it says nothing"
        );
        Ok(Self { all, waited })
    }

    /// Looks for all of it on a node that leads: what it has in each place.
    pub(crate) fn look(&self, client: &mut Client) -> io::Result<Vec<Option<Kept>>> {
        let mut queues: HashMap<Queue, HashMap<u64, String>> = HashMap::new();
        let levels = client.delay_offsets()?;
        let mut seen = Vec::with_capacity(self.all.len());
        for (place, adopted) in &self.all {
            seen.push(match place {
                Place::Message(queue, offset) => {
                    let there = match queues.entry(queue.clone()) {
                        Entry::Occupied(read) => read.into_mut(),
                        Entry::Vacant(new) => new.insert(digests(client, queue)?),
                    };
                    there.get(offset).cloned().map(Kept::Message)
                }
                Place::End(queue) => {
                    let end = client.queue_number(request::GET_MAX_OFFSET, &queue.0, queue.1)?;
                    let stranger = match &adopted.had {
                        Kept::Offset(had) if *had < end => self.stranger(client, queue, *had)?,
                        _ => None,
                    };
                    Some(stranger.map_or(Kept::Offset(end), Kept::Message))
                }
                Place::Group(group, (topic, queue)) => {
                    client.committed(group, topic, *queue)?.map(Kept::Offset)
                }
                Place::Level(level) => {
                    let next = levels.get(level).copied();
                    next.and_then(|next| u64::try_from(next).ok())
                        .map(Kept::Offset)
                }
            });
        }
        Ok(seen)
    }

    /// The key of a message that came to a queue since, and not because its time had come.
    fn stranger(
        &self,
        client: &mut Client,
        (topic, queue): &Queue,
        end: u64,
    ) -> io::Result<Option<String>> {
        let mut stranger = None;
        client.read_records(topic, *queue, end, |record, _| {
            let key = record.property(properties::UNIQ_KEY).unwrap_or_default();
            if !self.waited.contains(&*key) {
                stranger = Some(key.into_owned());
            }
        })?;
        Ok(stranger)
    }

    /// Notes what was seen on a node.
    pub(crate) fn book(&mut self, node: usize, seen: Vec<Option<Kept>>) {
        for ((_, adopted), found) in self.all.iter_mut().zip(seen) {
            adopted.shown.insert(node as u64, found);
        }
    }

    /// For a history.
    pub(crate) fn into_adopted(self) -> Vec<Adopted> {
        self.all.into_iter().map(|(_, adopted)| adopted).collect()
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Message((topic, queue), offset) => write!(f, "{topic}/{queue}/{offset}"),
            Self::End((topic, queue)) => write!(f, "end of {topic}/{queue}"),
            Self::Group(group, (topic, queue)) => write!(f, "{group} in {topic}/{queue}"),
            Self::Level(level) => write!(f, "delay level {level}"),
        }
    }
}

/// Of each message of a queue the SHA-256, in hexadecimal digits.
fn digests(client: &mut Client, (topic, queue): &Queue) -> io::Result<HashMap<u64, String>> {
    let mut found = HashMap::new();
    client.read_records(topic, *queue, 0, |record, bytes| {
        let digest = Sha256::digest(bytes);
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        found.insert(offset_of(record), digest);
    })?;
    Ok(found)
}

/// The queue that a line is about; a message is in the queue that it was reached through.
fn queue_of(line: &Value) -> anyhow::Result<Queue> {
    let topic = if line["cqTopic"].is_null() {
        "topic"
    } else {
        "cqTopic"
    };
    Ok((text(line, topic)?, u32::try_from(number(line, "queueId")?)?))
}

fn text(line: &Value, key: &str) -> anyhow::Result<String> {
    let text = line[key].as_str().map(str::to_owned);
    text.with_context(|| format!("{key} in {line}"))
}

fn number(line: &Value, key: &str) -> anyhow::Result<u64> {
    let number = line[key].as_u64();
    number.with_context(|| format!("{key} in {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_was_where() {
        let queue = |via| {
            format!(
                "{{\"type\":\"queue\",\"topic\":\"T\",\"queueId\":1,\"maxOffset\":9,\"via\":\"{via}\"}}\n"
            )
        };
        let rest = "{\"type\":\"msg\",\"topic\":\"R\",\"cqTopic\":\"T\",\"queueId\":1,\"queueOffset\":8,\
                    \"recordSha256\":\"99\"}\n\
                    {\"type\":\"consumerOffset\",\"topic\":\"T\",\"group\":\"g\",\"queueId\":1,\"offset\":5}\n\
                    {\"type\":\"delayOffset\",\"level\":3,\"offset\":2}\n\
                    {\"type\":\"msg\",\"cqTopic\":\"SCHEDULE_TOPIC_XXXX\",\"queueId\":2,\"queueOffset\":1,\"uniqKey\":\"old\"}\n\
                    {\"type\":\"msg\",\"cqTopic\":\"SCHEDULE_TOPIC_XXXX\",\"queueId\":2,\"queueOffset\":2,\"uniqKey\":\"new\"}\n\
                    {\"type\":\"end\",\"messages\":1}\n";
        let said = Said::of(&(queue("pull") + rest)).unwrap();
        assert_eq!(said.waited, HashSet::from(["new".to_owned()]));
        let places: Vec<(String, Kept)> = said
            .into_adopted()
            .into_iter()
            .map(|adopted| (adopted.place, adopted.had))
            .collect();
        let expected = [
            ("T/1/8", Kept::Message("99".into())),
            ("end of T/1", Kept::Offset(9)),
            ("g in T/1", Kept::Offset(5)),
            ("delay level 3", Kept::Offset(2)),
        ];
        assert_eq!(places, expected.map(|(place, had)| (place.to_owned(), had)));
        // Nothing could be looked for.
        assert!(Said::of(&(queue("viewById") + rest)).is_err());
        assert!(Said::of(rest.replace("level", "x").as_str()).is_err());
    }
}
