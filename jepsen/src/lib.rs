//! The fault-injection suite: a group of real processes, faults, and checkers that judge what clients saw.
//!
//! `client` speaks the protocol, `cluster` owns the processes, `power` cuts their power, `workload` has clients use
//! them, `run` strikes, `history` is what was seen, `check` the promises, `burn` takes the processors away, `bench` measures. The tests of whole processes use `cluster` and `client` too.

pub mod bench;
pub mod burn;
pub mod check;
pub mod client;
pub mod cluster;
pub mod history;
pub mod power;
pub mod run;
mod workload;
