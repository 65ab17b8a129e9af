//! The name server: which brokers live, which topics they have, and where clients find them.
//!
//! - `routes`: the tables and their rules, without I/O; `kv`: operators' keys and values
//! - `answers`: routes as they are sent
//! - `service`: the requests; frames and connections are `crate::remoting`'s
//!
//! All it knows of brokers comes from their registrations (`crate::broker::registrar`) and is lost
//! with the process; brokers notice the lost connection and register again.

mod answers;
mod kv;
mod routes;
mod service;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::kv::Kv;
pub use self::kv::KvError;
use self::service::NameServer;
use crate::remoting::{Limits, Listener, serve};
use crate::shutdown::Shutdown;

/// What a name server can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file of the key-value configuration (`kvConfigPath`); none keeps it in memory only.
    pub kv_config_path: Option<PathBuf>,
    /// Whether routes tell the queue order of ordered topics (`orderMessageEnable`).
    pub order_message_enable: bool,
    /// Time between looks for silent brokers (`scanNotActiveBrokerInterval`).
    pub scan_interval: Duration,
    pub limits: Limits,
    /// What `getNamesrvConfig` shows.
    pub properties: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kv_config_path: None,
            order_message_enable: false,
            scan_interval: Duration::from_secs(5),
            limits: Limits::default(),
            properties: BTreeMap::new(),
        }
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the key-value file exists and cannot be read.
pub async fn run(
    options: Options,
    listener: impl Listener,
    shutdown: Shutdown,
) -> Result<(), KvError> {
    let kv = Kv::open(options.kv_config_path).await?;
    let service = Arc::new(NameServer::new(
        kv,
        options.order_message_enable,
        options.properties,
    ));
    let expire = async {
        loop {
            tokio::time::sleep(options.scan_interval).await;
            service.expire();
        }
    };
    tokio::select! {
        () = serve(listener, Arc::clone(&service), options.limits, shutdown) => Ok(()),
        () = expire => unreachable!("it has no end"),
    }
}

#[cfg(test)]
mod tests;
