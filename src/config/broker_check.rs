//! What has to hold between the values of a broker's configuration; `store_check` has what
//! concerns the disk.

use std::net::IpAddr;
use std::time::Duration;

use super::broker::BrokerConfig;
use super::load::Settings;
use super::store_check;
use super::value::{BrokerRole, id_number};

/// RocketMQ keeps `registerNameServerPeriod` between these.
const REGISTER_PERIOD: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

pub(super) fn check(config: &mut BrokerConfig, settings: &mut Settings) {
    check_names(config, settings);
    if config.enable_dleger_commit_log {
        check_group(config, settings);
    } else {
        check_single(config, settings);
    }
    check_ports(config, settings);
    check_vip(config, settings);
    check_timers(config, settings);
    check_disk_ratios(config, settings);
    check_memory(config, settings);
    store_check::check_file_sizes(config, settings);
    store_check::check_paths(config, settings);
}

fn check_names(config: &mut BrokerConfig, settings: &mut Settings) {
    if config.enable_dleger_commit_log
        && settings.get("brokerName").is_none()
        && !config.dleger_group.is_empty()
    {
        config.broker_name.clone_from(&config.dleger_group);
    }
    for (key, value) in [
        ("brokerName", &config.broker_name),
        ("brokerClusterName", &config.broker_cluster_name),
        ("brokerIP1", &config.broker_ip1),
    ] {
        if value.is_empty() {
            settings.error(key, format!("{key} is empty"), None);
        } else if value.contains(|c: char| c.is_whitespace() || ";,@".contains(c)) {
            settings.error(
                key,
                format!("{key}: `{value}` has a character that names cannot have"),
                None,
            );
        }
    }
    if let Err(error) = rmq_wire::name::check_topic(&config.msg_trace_topic_name) {
        settings.error(
            "msgTraceTopicName",
            format!("msgTraceTopicName: {error}"),
            None,
        );
    }
    let ip1 = &config.broker_ip1;
    if ip1.contains(':') && ip1.parse::<IpAddr>().is_err() {
        let hint = Some("the port is listenPort".to_owned());
        settings.error(
            "brokerIP1",
            format!("brokerIP1: `{ip1}` is not an address"),
            hint,
        );
    }
    let period = &mut config.register_name_server_period;
    let kept = (*period).clamp(REGISTER_PERIOD.0, REGISTER_PERIOD.1);
    if kept != *period {
        *period = kept;
        settings.warn(
            "registerNameServerPeriod",
            format!(
                "registerNameServerPeriod is kept from 10000 to 60000; {} is taken",
                kept.as_millis()
            ),
        );
    }
}

/// RocketMQ keeps these within bounds too, without a word.
fn check_disk_ratios(config: &mut BrokerConfig, settings: &mut Settings) {
    for (key, ratio, (low, high)) in [
        (
            "diskMaxUsedSpaceRatio",
            &mut config.disk_max_used_space_ratio,
            (10, 95),
        ),
        (
            "diskSpaceCleanForciblyRatio",
            &mut config.disk_space_clean_forcibly_ratio,
            (30, 99),
        ),
        (
            "diskSpaceWarningLevelRatio",
            &mut config.disk_space_warning_level_ratio,
            (35, 99),
        ),
    ] {
        let kept = (*ratio).clamp(low, high);
        if kept != *ratio {
            *ratio = kept;
            settings.warn(
                key,
                format!("{key} is kept from {low} to {high}; {kept} is taken"),
            );
        }
    }
}

fn check_memory(config: &BrokerConfig, settings: &mut Settings) {
    let (bytes, least) = (
        config.request_memory_max_bytes,
        BrokerConfig::REQUEST_MEMORY_MIN,
    );
    if bytes > 0 && bytes < least {
        settings.error(
            "requestMemoryMaxBytes",
            format!(
                "requestMemoryMaxBytes: {bytes} bytes have no room for a frame of the largest size"
            ),
            Some(format!(
                "want {least} or more, or 0 for a quarter of the memory"
            )),
        );
    }
}

/// A node of a Raft group.
fn check_group(config: &BrokerConfig, settings: &mut Settings) {
    for (key, missing, example) in [
        (
            "dLegerGroup",
            config.dleger_group.is_empty(),
            config.broker_name.as_str(),
        ),
        (
            "dLegerPeers",
            config.dleger_peers.is_empty(),
            "n0-10.0.0.10:40911;n1-10.0.0.11:40911;n2-10.0.0.12:40911",
        ),
        ("dLegerSelfId", config.dleger_self_id.is_empty(), "n0"),
    ] {
        if missing && !settings.is_bad(key) {
            let anchor = if settings.get(key).is_some() {
                key
            } else {
                "enableDLegerCommitLog"
            };
            let message = format!("enableDLegerCommitLog=true needs {key}");
            settings.error(
                anchor,
                message,
                Some(format!("for example {key}={example}")),
            );
        }
    }
    let id = &config.dleger_self_id;
    if !id.is_empty() && id_number(id).is_none() {
        let message = format!("dLegerSelfId: `{id}` is not n and a number up to 65535");
        settings.error(
            "dLegerSelfId",
            message,
            Some("want an id like n0".to_owned()),
        );
    } else if !id.is_empty() && !config.dleger_peers.is_empty() && config.self_peer().is_none() {
        let ids: Vec<&str> = config
            .dleger_peers
            .iter()
            .map(|peer| peer.id.as_str())
            .collect();
        let message = format!("dLegerSelfId: `{id}` is not in dLegerPeers");
        let hint = format!("dLegerPeers has {}", ids.join(", "));
        settings.error("dLegerSelfId", message, Some(hint));
    }
    for id in config.preferred_leaders() {
        if id_number(id).is_none() {
            let message = format!("preferredLeaderId: `{id}` is no self id");
            let hint = "want n0, or n0;n1 in the order of preference".to_owned();
            settings.error("preferredLeaderId", message, Some(hint));
        } else if !config.dleger_peers.iter().any(|peer| peer.id == id) {
            let message = format!("preferredLeaderId: `{id}` is not in dLegerPeers");
            settings.warn("preferredLeaderId", message);
        }
    }
    if config.dleger_peers.len() == 2 {
        settings.warn(
            "dLegerPeers",
            "a group of 2 stops when one node stops; 3 go on",
        );
    }
    for key in ["brokerRole", "brokerId"] {
        if settings.get(key).is_some() {
            settings.warn(
                key,
                format!("{key} has no effect here: in a group the elected leader is the master"),
            );
        }
    }
}

/// A broker on its own.
fn check_single(config: &mut BrokerConfig, settings: &mut Settings) {
    if config.broker_role == BrokerRole::Slave {
        let hint = format!(
            "make the brokers named {name} a group, with enableDLegerCommitLog=true, dLegerGroup={name}, \
             dLegerPeers=n0-host:port;n1-host:port;n2-host:port and dLegerSelfId=n1 (see conf/dledger)",
            name = config.broker_name
        );
        settings.error(
            "brokerRole",
            "brokerRole=SLAVE: replication by the classic protocol is not built yet, and without it \
             this would be a second master of the same name",
            Some(hint),
        );
    } else if config.broker_id != 0 {
        config.broker_id = 0;
        settings.warn("brokerId", "brokerId is 0 for a master, as in RocketMQ");
    }
    if config.broker_role == BrokerRole::SyncMaster {
        settings.warn(
            "brokerRole",
            "brokerRole=SYNC_MASTER: no slave can take part yet, so each message has one copy; \
             for more make the brokers a group (see conf/dledger)",
        );
    }
    for key in [
        "dLegerGroup",
        "dLegerPeers",
        "dLegerSelfId",
        "preferredLeaderId",
        "raftBindAddress",
        "raftJoin",
    ] {
        if settings.get(key).is_some() {
            settings.warn(
                key,
                format!("{key} has no effect here without enableDLegerCommitLog=true"),
            );
        }
    }
}

fn check_ports(config: &BrokerConfig, settings: &mut Settings) {
    let Some(own) = config.self_peer() else {
        return;
    };
    let (listen, raft) = (config.listen_port, own.port);
    if settings.is_bad("listenPort") {
        return;
    }
    let anchor = if settings.get("listenPort").is_some() {
        "listenPort"
    } else {
        "dLegerPeers"
    };
    // Nodes on the same machine show by the same host.
    for peer in config
        .dleger_peers
        .iter()
        .filter(|peer| peer.host == own.host)
    {
        let what = if peer.id == own.id {
            "this node's"
        } else {
            "another node's"
        };
        let clash = if peer.port == listen {
            format!("listenPort {listen}")
        } else if peer.port == listen - 2 {
            format!("listenPort-2 = {}, which clients use too,", listen - 2)
        } else if config.alias_ports().contains(&peer.port) {
            format!("groupAliasPort {}", peer.port)
        } else {
            continue;
        };
        let message = format!("{clash} is also {what} port in dLegerPeers (`{}`)", peer.id);
        settings.error(anchor, message, Some("move one of them".to_owned()));
    }
    if raft == listen + 1 {
        settings.warn(
            anchor,
            format!(
                "listenPort+1 = {raft} is kept for the classic protocol, and dLegerPeers uses it"
            ),
        );
    }
    let bind = &config.raft_bind_address;
    if !bind.is_empty() && config.raft_bind().is_none() {
        let message = format!("raftBindAddress: `{bind}` is not an address");
        settings.error(
            "raftBindAddress",
            message,
            Some("want 10.0.0.1 or 10.0.0.1:40911".to_owned()),
        );
    }
}

fn check_vip(config: &BrokerConfig, settings: &mut Settings) {
    let Some(vip) = &config.broker_vip else {
        return;
    };
    let wrong = if vip.place.is_some() && !config.bind_address.is_unspecified() {
        let bound = config.bind_address;
        Some((
            format!("no connection to it is accepted with bindAddress={bound}"),
            "leave bindAddress out",
        ))
    } else if config.broker_ip1 == vip.ip.to_string() {
        Some((
            "it is also brokerIP1, which is this node's own".to_owned(),
            "brokerVip is an address that no machine has by itself",
        ))
    } else {
        None
    };
    if let Some((what, hint)) = wrong {
        let message = format!("brokerVip: `{}`: {what}", vip.ip);
        settings.error("brokerVip", message, Some(hint.to_owned()));
    }
}

fn check_timers(config: &BrokerConfig, settings: &mut Settings) {
    let heartbeat = config.raft_heartbeat_interval_millis;
    let (min, max) = (
        config.raft_election_timeout_min_millis,
        config.raft_election_timeout_max_millis,
    );
    let keys = [
        "raftHeartbeatIntervalMillis",
        "raftElectionTimeoutMinMillis",
        "raftElectionTimeoutMaxMillis",
    ];
    let Some(anchor) = keys.into_iter().find(|key| settings.get(key).is_some()) else {
        return;
    };
    if min < heartbeat * 2 || max <= min {
        settings.error(
            anchor,
            format!(
                "raftElectionTimeoutMinMillis={} must be at least twice \
                 raftHeartbeatIntervalMillis={} and less than raftElectionTimeoutMaxMillis={}",
                min.as_millis(),
                heartbeat.as_millis(),
                max.as_millis()
            ),
            None,
        );
    }
}
