//! A message broker that speaks RocketMQ's protocol and whose commit log is a Raft log.

pub mod admin;
pub mod bench;
pub mod broker;
pub mod cli;
pub mod config;
pub mod meta;
pub mod namesrv;
pub mod raft;
pub mod remoting;
pub mod shutdown;

#[cfg(test)]
mod testing;
