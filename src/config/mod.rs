//! Configuration: Java properties files as operators have them, the environment and the command
//! line, turned into one typed struct per program or into a list of what is wrong.
//!
//! `broker` and `namesrv` are the tables of the keys that have an effect, from which `schema` makes
//! the structs, and `value` has the types of their values. `properties` reads a file, `known` knows
//! every key of RocketMQ, `load` brings the sources together, `broker_check` and `store_check` look at what values have to be to each other and to
//! the disk, `suggest` finds what was meant, and `report` tells it.

mod broker;
mod broker_check;
mod host;
mod known;
mod load;
mod namesrv;
mod properties;
#[cfg(test)]
mod reference;
mod report;
mod schema;
mod store_check;
mod suggest;
mod value;

pub use broker::BrokerConfig;
pub use load::{Loaded, Sources};
pub use namesrv::NamesrvConfig;
pub use report::{Diagnostic, Level, Place, Report};
pub use value::{BrokerRole, FlushDiskType, Hours, Peer, UncleanRecovery, Vip, VipPlace};

/// What a process exits with when its configuration is refused (`EX_CONFIG` of sysexits.h).
pub const EXIT_CODE: u8 = 78;

/// Loads a broker's configuration.
pub fn load_broker(sources: &Sources) -> Result<Loaded<BrokerConfig>, Report> {
    load::load(sources, load::Program::Broker, broker_check::check)
}

/// Loads a name server's configuration.
pub fn load_namesrv(sources: &Sources) -> Result<Loaded<NamesrvConfig>, Report> {
    load::load(sources, load::Program::Namesrv, |_, _| {})
}

impl BrokerConfig {
    /// All keys that have an effect, with their values as a properties file would have them.
    pub fn get_all(&self) -> Vec<(&'static str, String)> {
        load::all(self).collect()
    }
}

impl NamesrvConfig {
    /// All keys that have an effect, with their values as a properties file would have them.
    pub fn get_all(&self) -> Vec<(&'static str, String)> {
        load::all(self).collect()
    }
}

#[cfg(test)]
mod tests;
