//! `config/*.json` and the properties file of the Java broker.

use std::fs;
use std::path::{Path, PathBuf};

use rmq_store::{Genesis, GenesisMetadata, RAFT_LOG_TOPIC, RealDisk};
use rmq_wire::body::ConsumerOffsetSerializeWrapper;
use rmq_wire::json;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Reversed;
use super::choose::Node;
use crate::conf::Conf;
use crate::problem::{Code, Problem};
use crate::sizes::Sizes;
use crate::source::exists;
use crate::transfer::write_file;

/// Files under `config` that are written from the state of the group.
pub(super) const VIEWS: [&str; 5] = [
    "topics.json",
    "subscriptionGroup.json",
    "consumerOffset.json",
    "lmqConsumerOffset.json",
    "delayOffset.json",
];

/// `config/*.json` from the node's views.
pub(super) fn settings(node: &Node, partial: &Path, done: &mut Reversed) -> Result<(), Problem> {
    let to = partial.join("config");
    fs::create_dir_all(&to).map_err(|error| Problem::writing(&to, &error))?;
    let GenesisMetadata {
        mut topics,
        groups,
        mut offsets,
        delay,
    } = metadata(node)?;
    topics.topic_config_table.remove(RAFT_LOG_TOPIC);
    done.topics = topics.topic_config_table.len();
    done.groups = groups.subscription_group_table.len();
    done.consumer_offsets = offsets
        .offset_table
        .values()
        .map(|queues| queues.len())
        .sum();
    put(&to, "topics.json", &topics)?;
    put(&to, "subscriptionGroup.json", &groups)?;
    put(&to, "consumerOffset.json", &offsets)?;
    put(&to, "delayOffset.json", &delay)?;
    // A broker with LMQ has all offsets in another file, those of LMQ queues too.
    let lmq = node.root.join("adopted/config");
    if exists(&lmq.join("lmqConsumerOffset.json"))? {
        let old: ConsumerOffsetSerializeWrapper = view(&lmq, "lmqConsumerOffset.json")?;
        offsets.lmq_offset_table = old.lmq_offset_table;
        put(&to, "lmqConsumerOffset.json", &offsets)?;
    }
    Ok(())
}

/// The state as the node last wrote it, or what it took over if it never ran.
fn metadata(node: &Node) -> Result<GenesisMetadata, Problem> {
    let from = node.root.join("config");
    if !exists(&from)?
        && let Some(genesis) = Genesis::read(&RealDisk, &node.root)
            .map_err(|error| Problem::reading(&node.root, &error))?
    {
        return Ok(genesis.metadata);
    }
    Ok(GenesisMetadata {
        topics: view(&from, "topics.json")?,
        groups: view(&from, "subscriptionGroup.json")?,
        offsets: view(&from, "consumerOffset.json")?,
        delay: view(&from, "delayOffset.json")?,
    })
}

fn view<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<T, Problem> {
    let path = dir.join(name);
    let bytes = fs::read(&path).map_err(|error| Problem::reading(&path, &error))?;
    json::from_slice(&bytes).map_err(|error| {
        Problem::new(Code::Metadata, error.to_string())
            .at_file(&path)
            .why("the state of the group is not readable here")
            .hint("start and stop the node, which writes the file again")
    })
}

fn put<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<(), Problem> {
    write_file(&dir.join(name), json::to_java_string(value).as_bytes())
}

/// The Java broker's old properties file, or the node's, made fit for the new store.
pub(super) fn properties(
    node: &Node,
    to: &Path,
    partial: &Path,
    sizes: &Sizes,
    conf: Option<&Conf>,
) -> Result<Option<PathBuf>, Problem> {
    let old = node.root.join("adopted/broker.conf");
    let old = match exists(&old)? {
        true => Some(Conf::read(&old)?),
        false => None,
    };
    let Some(base) = old.as_ref().or(conf) else {
        return Ok(None);
    };
    let text = base.for_master(to, sizes);
    let dir = partial.join("conf");
    fs::create_dir_all(&dir).map_err(|error| Problem::writing(&dir, &error))?;
    write_file(&dir.join("broker.properties"), text.as_bytes())?;
    Ok(Some(to.join("conf/broker.properties")))
}
