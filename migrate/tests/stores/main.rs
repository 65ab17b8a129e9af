//! Stores of real Java brokers, migrated and compared with what those brokers said of them; what is in
//! the way of a migration; runs that are killed; the way back.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it must be"
)]
#![expect(clippy::print_stdout, reason = "figures of a test run")]

mod archive;
mod fixture;
mod inspected;
mod killed;
mod manifest;
mod mixed;
mod oddities;
mod problems;
mod reversed;
mod targets;
