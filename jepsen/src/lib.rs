//! The fault-injection suite: a group of real processes, faults, and checkers that judge what clients saw.
//!
//! What is attacked: `cluster` owns the processes, of rmq or of Java; `net` gives each a place in a network that
//! `switch` moves frames through, `power` a disk whose power can be cut, of which `torn` says what it had written. Some
//! begin with a store that `migration` takes over.
//! `client` speaks the protocol, and `workload` has clients use the group.
//!
//! What strikes: a run either has fault after fault, each timed (`run`), or follows a `schedule` that is drawn from a
//! seed (`attack`). There `storm` strikes, by `links` for what happens between nodes, `damage` for files, `clock` and
//! `trap` for what a node hears from its kernel, `burn` for processors that are busy.
//!
//! What is judged: `history` is what was seen, `record` its file in `edn`; `check` holds the promises, `replicas` what
//! each node makes of its log, and `page` draws a picture.
//!
//! `suite` runs many schedules, `versus` sets brokers side by side, `mutants` looks for planted bugs, `doctor` tells
//! what works here, and `bench` measures. The tests of whole processes use `cluster` and `client` too.

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
pub mod migration;
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
