//! The broker: what RocketMQ's requests mean.
//!
//! A request comes in through [`Broker`]'s [`Service`](crate::remoting::Service) and goes to its
//! processor: `dispatch` holds the one table of codes, and says who answers: this node, or the
//! leader (`forward`). A processor is a function `handle(&Arc<Broker>, &Request)` in the file of
//! its family. It checks against applied metadata ([`crate::meta`]), proposes through [`Replica`],
//! reads what is committed, and answers or refuses (`refusal`).
//!
//! - `node`: what they share
//! - `intake`: how much is taken in at a time
//! - `send`, `send_back`: messages in; `message` makes their records
//! - `reply`: replies on their way from client to client
//! - `pull`: messages out; `hold` keeps the pulls that wait, `filter` says what they wait for
//! - `offset`: consumer offsets; `offset_buffer` merges commits on their way into the log
//! - `queue`: bounds of queues and positions by time; `query`: messages by key and by id
//! - `lock`: queue locks of orderly consumers
//! - `transaction`: transactional messages, and the questions how they ended
//! - `schedule`: delivery of delayed messages; `preferred`: hands leadership to the node that should
//!   have it; `leading`: what a leader does besides answering
//! - `topic`, `group`: their configurations
//! - `registrar`: name servers are kept informed
//! - `port`: the ports for clients; `vip`: the address that moves with the leader
//! - `run`: all of this assembled into a process; `member`: a node of a Raft group as [`Replica`]
//! - `clients`: who is connected; `heartbeat`: how it becomes known
//! - `alias`: what is asked by the further names of a group
//! - `hook`: a program of the operator's that is told of changes of role
//! - `admin`: what tools ask; `stats`: the numbers that they are told
//!
//! How a group agrees is [`crate::raft`]'s; frames and connections are [`crate::remoting`]'s.

mod admin;
mod alias;
mod clients;
mod dispatch;
mod filter;
mod forward;
mod group;
mod heartbeat;
mod hold;
mod hook;
mod intake;
mod leading;
mod lock;
mod member;
mod message;
mod node;
mod offset;
mod offset_buffer;
mod port;
mod preferred;
mod pull;
mod query;
mod queue;
mod refusal;
mod registrar;
mod replica;
mod reply;
mod run;
mod schedule;
mod send;
mod send_back;
mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod topic;
mod transaction;
mod vip;

pub use admin::{FrozenAt, NodeStatus};
pub use node::{Broker, arrival_listener};
pub use port::Port;
pub use replica::{ForwardError, ProposeError, Replica, Role};
pub use run::{Listeners, RunError, run};
