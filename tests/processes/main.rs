//! Whole processes on real input: groups of real nodes, met by unmodified Java and Go clients, Java's
//! mqadmin, Java name servers and a Java broker.
//!
//! `support` starts them; `clients` runs applications, `admin` and `tools` the official tools,
//! `java_store` gives our store to a Java broker, `migrate` starts from one of a Java broker, `startup`
//! and `hostile` feed bad input, `failover` kills nodes, `delay` has messages wait, `disk_full` fills disks,
//! `freeze` has a group take nothing, `snapshot` has a node take the log as files, `vip` has an address
//! move with the leader, `transactions` ends transactions, `bench` loads a group, `overload` does with too much. `fixtures` has the stock client
//! read every archived Java store, `whole_move` moves a Java broker in and back, `unfrozen` takes one back that
//! nobody froze.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it must be"
)]
#![expect(clippy::print_stdout, reason = "figures of a test run")]

mod admin;
#[path = "../../migrate/tests/stores/archive.rs"]
mod archive;
mod bench;
mod clients;
mod delay;
mod disk_full;
mod failover;
mod fixtures;
mod freeze;
mod hostile;
mod java_store;
mod migrate;
mod migrated;
mod overload;
mod snapshot;
mod startup;
mod support;
mod tools;
mod transactions;
mod unfrozen;
mod vip;
mod whole_move;
