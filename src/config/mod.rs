//! Configuration: Java properties files as operators have them, the environment and the command
//! line, turned into one typed struct per program or into a list of what is wrong.
//!
//! Here live the tables of keys ([`broker`], [`namesrv`]) from which the structs are made
//! ([`schema`]), and the types of values ([`value`]).

mod broker;
mod host;
mod namesrv;
mod properties;
mod schema;
mod suggest;
mod value;

pub use broker::BrokerConfig;
pub use namesrv::NamesrvConfig;
pub use value::{BrokerRole, FlushDiskType, Peer};
