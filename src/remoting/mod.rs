//! RocketMQ's remoting protocol over connections: who reads and writes frames, matches answers to
//! requests, and bounds what a peer can cost. What is in a frame is `rmq_wire`'s; what a request
//! means is the [`Service`]'s.
//!
//! - `net`: the seam to the network (listener, dialer, stream)
//! - `server`: accepts and drains; `home`: on which threads a connection lives; `client`: one kept connection per address
//! - `conn`: one connection, the same from both ends; `reader` is its half that starts handlers,
//!   `outbox` the bounded queue before its writing half
//! - `http`: the questions of load balancers on the same port
//! - `service`: what a server implements; `limits`: the bounds; `bounds`: what all connections of a process
//!   share of them

mod bounds;
mod client;
mod conn;
mod home;
mod http;
mod limits;
mod net;
mod outbox;
mod reader;
mod server;
mod service;

#[cfg(test)]
pub(crate) mod captured;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use bounds::{Bounds, Class, Room};
pub use client::Client;
pub use conn::{CallError, Conn};
pub use home::{Homes, Housing};
pub use limits::{Limits, LogLimit};
pub use net::{Dialer, Dialing, Listener, Stream, Tcp};
pub use server::serve;
pub use service::{Health, OVERLOAD, Reply, Request, Service};
