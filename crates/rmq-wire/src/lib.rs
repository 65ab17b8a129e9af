//! RocketMQ on the wire and in a record, as bytes and as types; synchronous, no runtime, no I/O.
//!
//! - [`frame`]: remoting frames, their JSON and binary headers, and the map of header fields
//! - [`code`]: request and response codes
//! - [`header`]: one struct per request or response header, read from and written to that map
//! - [`body`]: JSON bodies; [`json`]: the dialect they are written in
//! - [`record`]: message records as they lie in a commit log and travel to consumers
//! - [`properties`], [`msg_id`], [`name`]: message properties, offset message ids, names and their rules
//!
//! Facts about the formats were read from RocketMQ 4.9.8 and 5.3.3 and checked against frames
//! captured from 4.9.7, 4.9.8, 5.5.0 and the Go client 2.1.2.

#![warn(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

pub mod body;
pub mod code;
pub mod frame;
pub mod header;
pub mod json;
pub mod msg_id;
pub mod name;
pub mod properties;

pub mod record;
