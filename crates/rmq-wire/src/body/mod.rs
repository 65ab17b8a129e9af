//! The bodies of frames that are JSON, and the files with the same shape.
//!
//! Fields stand in alphabetical order of their names, as fastjson writes them. Every field may be missing
//! and then has its default; those that 4.9 does not know, or leaves out, are `Option`s.
//! Read them with [`crate::json::from_slice`], write them with [`crate::json::to_vec`].
//!
//! - `heartbeat`: what clients are; `route`: where topics are; `topic`: topics and subscription groups
//! - `offset`: positions and statistics; `client`: connections; `register`: registration of a broker

mod client;
mod heartbeat;
mod offset;
mod register;
mod route;
#[cfg(test)]
mod tests;
mod topic;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use client::*;
pub use heartbeat::*;
pub use offset::*;
pub use register::*;
pub use route::*;
pub use topic::*;

use crate::frame::Command;
use crate::json::{self, JsonError};

impl Command {
    #[must_use]
    pub fn with_json(self, body: &impl Serialize) -> Self {
        self.with_body(Bytes::from(json::to_vec(body)))
    }

    /// Reads the body.
    ///
    /// # Errors
    /// See [`json::from_slice`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        json::from_slice(&self.body)
    }
}

/// A queue of a topic at a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MessageQueue {
    pub broker_name: String,
    pub queue_id: i32,
    pub topic: String,
}

/// How new a table is. Two tables with equal versions are taken for the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DataVersion {
    pub counter: i64,
    /// 5.x; a Java name server takes no registration with a lower one. A Raft term fits.
    pub state_version: Option<i64>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
}

/// A table of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KvTable {
    pub table: BTreeMap<String, String>,
}

/// Names of topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicList {
    pub broker_addr: Option<String>,
    pub topic_list: BTreeSet<String>,
}

/// Names of consumer groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GroupList {
    pub group_list: BTreeSet<String>,
}
