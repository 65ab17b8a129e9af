//! The files under `config/`: topics, groups, offsets. What they say becomes the first state of the
//! group; all of them are kept as they are besides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rmq_store::GenesisMetadata;
use rmq_wire::body::{ConsumerOffsetSerializeWrapper, DataVersion};
use rmq_wire::json;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::conf::Conf;
use crate::problem::{Code, Problem};
use crate::source::{exists, list};

/// Longest name of a topic or group in a state of rmq.
const MAX_NAME_BYTES: usize = 263;

/// Reads the metadata under `dir`, a store's `config`. What is odd about them goes to `notes`.
pub(crate) fn read(dir: &Path, notes: &mut Vec<Problem>) -> Result<GenesisMetadata, Problem> {
    let mut metadata = GenesisMetadata::default();
    match read_file(dir, "topics.json", notes)? {
        Some(topics) => metadata.topics = topics,
        None => notes.push(
            Problem::new(Code::Metadata, "there is no topics.json")
                .at_file(dir)
                .why("the group begins without topics: their messages are kept, but nobody can read them")
                .hint(
                    "give the directory with --config-from; a broker that keeps its settings in RocksDB \
                     exports them with mqadmin rocksDBConfigToJson",
                ),
        ),
    }
    if let Some(groups) = read_file(dir, "subscriptionGroup.json", notes)? {
        metadata.groups = groups;
    }
    // With LMQ enabled a broker has the offsets of all its groups in the other file.
    let plain: Option<ConsumerOffsetSerializeWrapper> =
        read_file(dir, "consumerOffset.json", notes)?;
    let lmq: Option<ConsumerOffsetSerializeWrapper> =
        read_file(dir, "lmqConsumerOffset.json", notes)?;
    if plain.is_none() && lmq.is_none() {
        notes.push(
            Problem::new(Code::Metadata, "there is no consumerOffset.json")
                .at_file(dir)
                .why("the group begins without offsets: consumers begin where their settings say, as new ones")
                .hint("if there were consumers, give the directory that has it with --config-from"),
        );
    }
    let tables = [plain, lmq].into_iter().flatten();
    for (key, queues) in tables.flat_map(|table| table.offset_table) {
        let of: &mut BTreeMap<i32, i64> = metadata.offsets.offset_table.entry(key).or_default();
        for (queue, offset) in queues {
            let at = of.entry(queue).or_insert(offset);
            *at = offset.max(*at);
        }
    }
    if let Some(delay) = read_file(dir, "delayOffset.json", notes)? {
        metadata.delay = delay;
    }
    static_topics(dir, notes);
    tidy(&mut metadata, notes);
    Ok(metadata)
}

/// Notes topics whose queues are numbered across brokers: here they become those of this one.
fn static_topics(dir: &Path, notes: &mut Vec<Problem>) {
    const FILE: &str = "topicQueueMapping.json";
    let what = match read_file::<Value>(dir, FILE, &mut Vec::new()) {
        Ok(None) => return,
        Ok(Some(found)) => {
            let topics = found["topicQueueMappingDetailMap"].as_object();
            let names: Vec<&str> = topics
                .into_iter()
                .flat_map(|of| of.keys())
                .map(|n| &**n)
                .collect();
            if names.is_empty() {
                return;
            }
            format!("static topics become plain ones: {}", names.join(", "))
        }
        Err(problem) => format!(
            "static topics, if there are any, become plain ones: {}",
            problem.what
        ),
    };
    notes.push(
        Problem::new(Code::MetadataRefused, what)
            .at_file(&dir.join(FILE))
            .why("their queues get the numbers and offsets that they have on this broker, which clients do not know")
            .hint("move what uses them to plain topics first"),
    );
}

/// What is in the way where the broker had its metadata in RocksDB: the files beside that are as old as
/// the change to it, or were never written.
pub(crate) fn in_rocksdb(dir: &Path, conf: Option<&Conf>) -> Result<Option<Problem>, Problem> {
    let said = |key| conf.and_then(|conf| conf.get(key)).unwrap_or_default();
    // Java compares the one without regard to case, and not the other.
    let found = if said("storeType").eq_ignore_ascii_case("defaultRocksDB") {
        Some(("storeType=defaultRocksDB", dir.to_owned()))
    } else if said("configManagerVersion") == "v2" {
        Some(("configManagerVersion=v2", dir.to_owned()))
    } else if !said("storeType").is_empty() {
        None
    } else {
        rocksdb_under(dir)?.map(|path| ("this is a RocksDB", path))
    };
    Ok(found.map(|(what, path)| {
        Problem::new(Code::Metadata, format!("{what}: topics, groups and offsets are in it"))
            .at_file(&path)
            .why("the .json files beside it may be old, and groups would begin again where they were then")
            .hint(
                "export them with mqadmin rocksDBConfigToJson and give the directory with --config-from; \
                 or give the store's own config there, if it is up to date",
            )
    }))
}

/// A RocksDB in a directory or one of those in it: it has a file `CURRENT`.
fn rocksdb_under(dir: &Path) -> Result<Option<PathBuf>, Problem> {
    for name in list(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            if exists(&path.join("CURRENT"))? {
                return Ok(Some(path));
            }
            if let Some(found) = rocksdb_under(&path)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Takes out what differs between brokers that mean the same, and what no group of rmq can have.
fn tidy(metadata: &mut GenesisMetadata, notes: &mut Vec<Problem>) {
    let GenesisMetadata {
        topics,
        groups,
        offsets,
        delay,
    } = metadata;
    let bare = |version: &mut DataVersion| version.state_version = None;
    bare(&mut topics.data_version);
    bare(&mut groups.data_version);
    topics.mapping_data_version = None;
    topics.topic_queue_mapping_detail_map = None;
    topics.topic_queue_mapping_info_map = None;
    groups.forbidden_table = None;
    delay.data_version = None;
    let mut refuse = |what: String| {
        notes.push(
            Problem::new(Code::MetadataRefused, what)
                .why("it is left out; the original files are kept under adopted/config"),
        );
    };
    topics.topic_config_table.retain(|name, config| {
        let queues = config.read_queue_nums >= 0 && config.write_queue_nums >= 0;
        let good = is_name(name) && queues;
        if !good {
            refuse(format!(
                "topic {name:?} has an impossible name or number of queues"
            ));
        }
        good
    });
    groups.subscription_group_table.retain(|name, _| {
        let good = is_name(name);
        if !good {
            refuse(format!("group {name:?} has an impossible name"));
        }
        good
    });
    offsets.offset_table.retain(|key, queues| {
        let named = key
            .split_once('@')
            .is_some_and(|(topic, group)| is_name(topic) && is_name(group));
        if !named {
            refuse(format!("offsets of {key:?} belong to no topic and group"));
            return false;
        }
        queues.retain(|id, at| {
            let good = *id >= 0 && *at >= 0;
            if !good {
                refuse(format!("offset {at} of {key} in queue {id} is negative"));
            }
            good
        });
        !queues.is_empty()
    });
    delay.offset_table.retain(|level, at| {
        let good = *level >= 1 && *at >= 0;
        if !good {
            refuse(format!(
                "offset {at} of delay level {level} is out of range"
            ));
        }
        good
    });
}

fn is_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"%|_-".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(legal)
        && name != rmq_store::RAFT_LOG_TOPIC
}

/// A file, or else its `.bak`, as Java's brokers do it. `None` if there is neither.
fn read_file<T: DeserializeOwned>(
    dir: &Path,
    name: &str,
    notes: &mut Vec<Problem>,
) -> Result<Option<T>, Problem> {
    let path = dir.join(name);
    let mut first = None;
    for candidate in [path.clone(), dir.join(format!("{name}.bak"))] {
        let bytes = match std::fs::read(&candidate) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| Problem::reading(&candidate, &error))?,
        };
        let parsed = if bytes.iter().all(u8::is_ascii_whitespace) {
            Err("it is empty".to_owned())
        } else {
            json::from_slice(&bytes).map_err(|error| error.to_string())
        };
        match parsed {
            Ok(value) => {
                if candidate != path {
                    let cause = first.unwrap_or_else(|| "it is missing".to_owned());
                    notes.push(
                        Problem::new(Code::Metadata, format!("{cause}; {name}.bak is taken"))
                            .at_file(&path)
                            .why("the broker would have taken it too; it is the state one write earlier"),
                    );
                }
                return Ok(Some(value));
            }
            Err(reason) => first = first.or(Some(reason)),
        }
    }
    match first {
        None => Ok(None),
        Some(reason) => Err(Problem::new(Code::Metadata, reason)
            .at_file(&path)
            .why("its .bak is no better, and a group without it would have lost what it says")
            .hint("restore the file, from the slave if need be, or remove it to go on without")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn javas_json_is_read_with_its_backup() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "topics.json",
            r#"{"dataVersion":{"counter":3,"stateVersion":0,"timestamp":5},"topicConfigTable":{
               "T":{"perm":6,"readQueueNums":4,"topicName":"T","writeQueueNums":8},
               "no/topic":{"topicName":"no/topic"}}}"#,
        );
        write("consumerOffset.json", "");
        write(
            "consumerOffset.json.bak",
            r#"{"offsetTable":{"T@g":{0:16,1:-1},"T":{0:1}}}"#,
        );
        write(
            "lmqConsumerOffset.json",
            r#"{"offsetTable":{"T@g":{0:17},"T@h":{2:3}}}"#,
        );
        write("delayOffset.json", "{\"offsetTable\":{1:46,2:13}}");
        let mut notes = Vec::new();
        let metadata = read(dir.path(), &mut notes).unwrap();
        assert_eq!(metadata.topics.topic_config_table.len(), 1);
        assert_eq!(metadata.topics.topic_config_table["T"].write_queue_nums, 8);
        assert_eq!(metadata.offsets.offset_table["T@g"], [(0, 17)].into());
        assert_eq!(metadata.offsets.offset_table["T@h"], [(2, 3)].into());
        assert_eq!(metadata.delay.offset_table, [(1, 46), (2, 13)].into());
        let codes: Vec<Code> = notes.iter().map(|note| note.code).collect();
        let refused = Code::MetadataRefused;
        assert_eq!(codes, [Code::Metadata, refused, refused, refused]);

        let statics = |text: &str| {
            write("topicQueueMapping.json", text);
            let mut notes = Vec::new();
            read(dir.path(), &mut notes).unwrap();
            let told = |note: &&Problem| note.what.starts_with("static topics");
            notes.iter().find(told).map(|note| note.what.clone())
        };
        let none = r#"{"dataVersion":{"counter":1},"topicQueueMappingDetailMap":{}}"#;
        assert_eq!(statics(none), None);
        let one = r#"{"topicQueueMappingDetailMap":{"S":{"hostedQueues":{0:[]},"topic":"S"}}}"#;
        let told = "static topics become plain ones: S";
        assert_eq!(statics(one).as_deref(), Some(told));
        assert!(statics("{").is_some());

        write("topics.json", "{");
        let problem = read(dir.path(), &mut Vec::new()).unwrap_err();
        assert_eq!(problem.code, Code::Metadata);
    }
}
