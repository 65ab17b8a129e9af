//! Who is connected to a broker.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};
use serde::{Deserialize as De, Serialize as Ser};

use super::{ConsumeFromWhere, ConsumeType, MessageModel, SubscriptionData};
use crate::frame::Language;

/// By its name, as in a header.
impl Serialize for Language {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Language {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Language;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a language")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Language, E> {
                Ok(Language::from_name(name))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// A client's connection.
#[derive(Debug, Clone, PartialEq, Eq, Ser, De)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// `ip:port`
    pub client_addr: String,
    pub client_id: String,
    pub language: Language,
    pub version: i32,
}

/// Answer to [`GET_CONSUMER_CONNECTION_LIST`](crate::code::request::GET_CONSUMER_CONNECTION_LIST).
#[derive(Debug, Clone, Default, PartialEq, Eq, Ser, De)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsumerConnection {
    pub connection_set: Vec<Connection>,
    pub consume_from_where: Option<ConsumeFromWhere>,
    pub consume_type: Option<ConsumeType>,
    pub message_model: Option<MessageModel>,
    /// By topic.
    pub subscription_table: BTreeMap<String, SubscriptionData>,
}

/// Answer to [`GET_PRODUCER_CONNECTION_LIST`](crate::code::request::GET_PRODUCER_CONNECTION_LIST).
#[derive(Debug, Clone, Default, PartialEq, Eq, Ser, De)]
#[serde(default, rename_all = "camelCase")]
pub struct ProducerConnection {
    pub connection_set: Vec<Connection>,
}

/// Answer to [`GET_ALL_PRODUCER_INFO`](crate::code::request::GET_ALL_PRODUCER_INFO).
#[derive(Debug, Clone, Default, PartialEq, Eq, Ser, De)]
#[serde(default, rename_all = "camelCase")]
pub struct ProducerTableInfo {
    /// By producer group.
    pub data: BTreeMap<String, Vec<ProducerInfo>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Ser, De)]
#[serde(rename_all = "camelCase")]
pub struct ProducerInfo {
    pub client_id: String,
    pub language: Language,
    /// Milliseconds since 1970.
    pub last_update_timestamp: i64,
    #[serde(rename = "remoteIP")]
    pub remote_ip: String,
    pub version: i32,
}

/// Answer to [`QUERY_SUBSCRIPTION_BY_CONSUMER`](crate::code::request::QUERY_SUBSCRIPTION_BY_CONSUMER).
#[derive(Debug, Clone, Default, PartialEq, Eq, Ser, De)]
#[serde(default, rename_all = "camelCase")]
pub struct QuerySubscriptionResponse {
    pub group: String,
    pub subscription_data: Option<SubscriptionData>,
    pub topic: String,
}
