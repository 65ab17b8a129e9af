//! The fault-injection suite: a group of real processes, faults, and checkers that judge what clients saw.
//!
//! `client` speaks the protocol, `cluster` owns the processes, `net` and `switch` are a network and `power`
//! the disks of their own, `workload` has clients use them. A run either strikes fault after fault (`run`,
//! which times each) or follows a `schedule` drawn from a seed (`attack`, with `storm` to strike, `damage` for
//! files, `torn` for sectors, `clock` and `trap` for what a node hears from its kernel). `history` is what was seen, `record` its file in `edn`, `check` the promises, `page` a picture
//! of it. `suite` runs many, `versus` sets brokers side by side, `doctor` tells what works here. `burn` takes the processors away, `bench`
//! measures. The tests of whole processes use `cluster` and `client` too.

pub mod attack;
pub mod bench;
pub mod burn;
pub mod check;
pub mod client;
mod clock;
pub mod cluster;
mod damage;
pub mod doctor;
pub mod edn;
pub mod history;
mod links;
pub mod mutants;
pub mod net;
pub mod page;
pub mod power;
pub mod record;
mod replicas;
pub mod run;
pub mod schedule;
mod storm;
pub mod suite;
pub mod switch;
mod torn;
mod trap;
pub mod versus;
pub mod workload;
