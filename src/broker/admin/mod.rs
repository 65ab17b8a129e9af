//! What tools ask of a broker: mqadmin, the dashboard, the exporter.
//!
//! `AdminBrokerProcessor` and `Broker2Client` (4.9.8, and 5.3.3 for what 5.x adds). Bodies carry the
//! members of both lines; the tools of 4.9 ignore those that 5.x has added, and those of 5.x print
//! nothing without them. Requests about topics and groups themselves are the business of
//! `broker::topic` and `broker::group`.
//!
//! - `runtime`: the node's numbers; `raft_status`: the group as the node sees it; `raft_members`: who
//!   is in it and who leads; `config`
//! - `topic_stats`, `consume_stats`: where queues and groups stand; `stats_data`: how fast they move
//! - `connections`: who is connected; `relay`: questions that are passed on to a client
//! - `lists`: names of topics and groups; `offsets`: stored positions; `reset`: moves them
//! - `freeze`: has the group take nothing any more
//! - `consume_queue`: the units of a queue; `clean`: what is not cleaned here

mod clean;
mod config;
mod connections;
mod consume_queue;
mod consume_stats;
mod freeze;
mod lists;
mod offsets;
mod raft_members;
mod raft_status;
mod relay;
mod reset;
mod runtime;
mod stats_data;
mod topic_stats;

use rmq_wire::body::MessageQueue;
use rmq_wire::code::response;
use serde::Serialize;

use super::Broker;
use super::node::blocking;
use super::refusal::{Handled, Refusal};
use crate::remoting::Request;

pub(super) use clean::*;
pub(super) use config::*;
pub(super) use connections::*;
pub(super) use consume_queue::*;
pub(super) use consume_stats::*;
pub(super) use freeze::*;
pub(super) use lists::*;
pub(super) use offsets::*;
pub(super) use raft_members::*;
pub(super) use raft_status::raft_status;
pub use raft_status::{FrozenAt, NodeStatus};
pub(super) use relay::*;
pub(super) use reset::*;
pub(super) use runtime::*;
pub(super) use stats_data::*;
pub(super) use topic_stats::*;

/// Success, with this body.
fn answer(request: &Request, body: &impl Serialize) -> Handled {
    let reply = request.command.reply(response::SUCCESS).with_json(body);
    Ok(reply.into())
}

fn queue_of(broker: &Broker, topic: &str, queue_id: i32) -> MessageQueue {
    MessageQueue {
        broker_name: broker.config.broker_name.clone(),
        queue_id,
        topic: topic.to_owned(),
    }
}

fn no_topic(topic: &str) -> Refusal {
    let remark = format!("topic[{topic}] not exist");
    Refusal::new(response::TOPIC_NOT_EXIST, remark)
}
