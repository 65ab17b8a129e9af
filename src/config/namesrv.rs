//! The configuration of a name server.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::host;
use super::schema::config_struct;

config_struct! {
    /// Everything that a name server is told, by the names of RocketMQ's `NamesrvConfig` and
    /// `NettyServerConfig` (5.5.0).
    pub struct NamesrvConfig {
        /// What `${ROCKETMQ_HOME}` stands for in a value; by default that environment variable.
        "rocketmqHome" => rocketmq_home: Option<PathBuf> = None;
        /// Port for brokers and clients.
        "listenPort" => listen_port: u16 = 9876, in 1..=65535;
        /// The address that `listenPort` is opened on.
        "bindAddress" => bind_address: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        /// The file that keeps the key-value configuration.
        "kvConfigPath" => kv_config_path: PathBuf
            = host::user_home().join("namesrv").join("kvConfig.json");
        /// Whether routes carry the queue order of ordered topics.
        "orderMessageEnable" => order_message_enable: bool = false;
        /// Milliseconds between searches for brokers that fell silent.
        "scanNotActiveBrokerInterval" => scan_not_active_broker_interval: Duration
            = Duration::from_secs(5), in 10..=600_000;
        /// Seconds after which a silent connection is closed.
        "serverChannelMaxIdleTimeSeconds" => server_channel_max_idle_time_seconds: u32 = 120,
            in 1..=86_400;
    }
}
