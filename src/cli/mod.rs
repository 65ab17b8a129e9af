//! The command line: one executable with a subcommand for each of Java's start scripts, and `up`.
//!
//! `program` runs brokers and name servers, `up` a whole group on this machine, `ports` says who holds
//! a port, `deathwatch` proves a broker's end, `shutdown` stops processes, `processes` finds them,
//! `raft_status` prints a group's state, `raft_members` changes it, `freeze` stops and resumes its
//! writes, `inspect` tells what a stopped node's store holds, `bench` loads a cluster; `namesrv` is the
//! name servers that these ask.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks to its user"
)]

mod bench;
mod deathwatch;
mod freeze;
mod inspect;
mod namesrv;
mod ports;
mod processes;
mod program;
mod raft_members;
mod raft_status;
mod shutdown;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rmq_wire::code::request;

/// Says so where bugs are planted.
const VERSION: &str = if cfg!(feature = "mutants") {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " with planted bugs, for tests only"
    )
} else {
    env!("CARGO_PKG_VERSION")
};

/// A message broker that speaks RocketMQ's protocol and whose commit log is a Raft log.
#[derive(Debug, Parser)]
#[command(name = "rmq", version = VERSION)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a broker: a node of a group, or a single one.
    Broker(program::Options),
    /// Run a name server.
    Namesrv(program::Options),
    /// Run a name server and a three-node group on this machine.
    Up(up::Options),
    /// Ask a cluster.
    #[command(subcommand)]
    Admin(AdminAction),
    /// Load a RocketMQ cluster and measure it.
    Bench(bench::Options),
    /// Wait for the end of the broker that started this, and prove it to its group.
    #[command(hide = true)]
    Deathwatch {
        /// The broker's process id.
        broker: i32,
    },
    /// Drain and stop this machine's brokers or name servers.
    Shutdown {
        /// Which.
        role: shutdown::Role,
    },
}

#[derive(Debug, Subcommand)]
enum AdminAction {
    /// Term, leader, commit and the lag of each node of the groups.
    #[command(name = "raftStatus")]
    RaftStatus(raft_status::Options),
    /// Have a group take nothing any more, and wait until all its nodes have the same end.
    #[command(name = "raftFreeze")]
    RaftFreeze(freeze::Options),
    /// End a freeze.
    #[command(name = "raftThaw")]
    RaftThaw(freeze::Whom),
    /// Look at files of a stopped node, of ours or of a Java broker.
    #[command(subcommand)]
    Inspect(inspect::Action),
    /// Take a node that was started with raftJoin=true into its group, as a learner.
    #[command(name = "raftAddNode")]
    RaftAddNode(raft_members::NodeOptions),
    /// Give a learner that has caught up its vote.
    #[command(name = "raftPromote")]
    RaftPromote(raft_members::NodeOptions),
    /// Take a node's vote and its place in the group away.
    #[command(name = "raftRemoveNode")]
    RaftRemoveNode(raft_members::NodeOptions),
    /// Hand leadership to another node.
    #[command(name = "raftTransferLeader")]
    RaftTransferLeader(raft_members::TransferOptions),
    /// Have the longest log lead after a loss of power that left no majority without loss.
    #[command(name = "raftRecover")]
    RaftRecover(raft_members::RecoverOptions),
}

/// Runs what the command line asks for. The exit code: 0 done, 1 failed, 2 wrong usage, 78 wrong
/// configuration.
#[must_use]
pub fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Action::Broker(options) => program::broker(&options),
        Action::Namesrv(options) => program::namesrv(&options),
        Action::Up(options) => runtime()?.block_on(up::run(options)),
        Action::Admin(action) => runtime()?.block_on(admin(action)),
        Action::Bench(options) => runtime()?.block_on(bench::run(options)),
        Action::Deathwatch { broker } => deathwatch::run(broker),
        Action::Shutdown { role } => shutdown::run(role),
    }
}

async fn admin(action: AdminAction) -> anyhow::Result<ExitCode> {
    match action {
        AdminAction::Inspect(action) => inspect::run(&action),
        AdminAction::RaftStatus(options) => raft_status::run(options).await,
        AdminAction::RaftFreeze(options) => freeze::freeze(options).await,
        AdminAction::RaftThaw(whom) => freeze::thaw(whom).await,
        AdminAction::RaftAddNode(options) => {
            raft_members::change(request::RAFT_ADD_NODE, options).await
        }
        AdminAction::RaftPromote(options) => {
            raft_members::change(request::RAFT_PROMOTE, options).await
        }
        AdminAction::RaftRemoveNode(options) => {
            raft_members::change(request::RAFT_REMOVE_NODE, options).await
        }
        AdminAction::RaftTransferLeader(options) => {
            raft_members::transfer(request::RAFT_TRANSFER_LEADER, options).await
        }
        AdminAction::RaftRecover(options) => {
            raft_members::recover(request::RAFT_RECOVER, options).await
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
}
