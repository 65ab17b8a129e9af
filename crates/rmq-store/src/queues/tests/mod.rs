//! Tests of the derived files over a log in memory.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of these tests are small"
)]

mod damage;
mod fake_log;
mod faults;
mod model;
mod reads;
mod recovery;
