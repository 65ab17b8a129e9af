//! `GET_BROKER_CONFIG` and `UPDATE_BROKER_CONFIG`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use rmq_wire::body::DataVersion;
use rmq_wire::code::response;
use rmq_wire::header::GetBrokerConfigResponse;
use rmq_wire::json;

use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::Request;

/// Keys without effect here that `mqadmin exportConfigs` of 4.9 cannot do without, as they are:
/// what they switch on is off.
const FIXED: [(&str, &str); 3] = [
    ("filterServerNums", "0"),
    ("slaveReadEnable", "false"),
    ("useTLS", "false"),
];

/// `GET_BROKER_CONFIG`: the keys that have an effect, as lines.
pub(in crate::broker) async fn get_config(broker: &Arc<Broker>, request: &Request) -> Handled {
    let mut lines = String::new();
    let mut values: BTreeMap<&str, String> = FIXED
        .iter()
        .map(|(key, value)| (*key, (*value).to_owned()))
        .collect();
    values.extend(broker.config.get_all());
    for (key, value) in values {
        writeln!(lines, "{key}={value}").expect("a String takes every write");
    }
    // It never changes while the process lives.
    let version = DataVersion {
        counter: 0,
        state_version: Some(0),
        timestamp: broker.stats.boot_ms,
    };
    let header = GetBrokerConfigResponse {
        version: json::to_java_string(&version),
    };
    let reply = request.command.reply(response::SUCCESS);
    Ok(reply
        .with_header(&header)
        .with_body(lines.into_bytes().into())
        .into())
}

/// `UPDATE_BROKER_CONFIG`: refused. What one node was told over the network would be neither in its
/// file nor in the other nodes of its group.
pub(in crate::broker) async fn update_config(_: &Arc<Broker>, request: &Request) -> Handled {
    tracing::warn!(client = %request.peer, "a tool's change of the configuration was refused");
    let remark = "the configuration is changed in the broker's file, and takes effect at its next \
                  start";
    Err(Refusal::new(response::NO_PERMISSION, remark))
}
