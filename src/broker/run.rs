//! From a configuration to a running broker, and back: what is started in which order, and how a stop
//! undoes it without losing or refusing more than it must.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{Local, TimeZone as _, Timelike as _};
use futures_util::FutureExt;
use rmq_store::{Disk, Genesis, OpenStoreError, RealDisk};
use rmq_wire::body::TopicConfigSerializeWrapper;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::alias::AliasPort;
use super::dispatch::forwarded;
use super::hook;
use super::member::Member;
use super::port::Port;
use super::registrar;
use super::topic::READ_WRITE;
use super::vip::MovingAddress;
use super::{Broker, arrival_listener};
use crate::config::{BrokerConfig, UncleanRecovery};
use crate::meta::{Adopted, Meta, Views};
use crate::raft::{
    self, LastWill, NotLeader, PeerListError, PeerOptions, RaftOptions, RetentionRules,
    SelfIdError, Timers,
};
use crate::remoting::{Client, Homes, Housing, serve};
use crate::shutdown::{Shutdown, Trigger};

/// The ports of a broker.
pub struct Listeners {
    /// `listenPort`.
    pub clients: Port,
    /// The VIP channel, two below.
    pub vip: Port,
    /// For requests by the further names of the group, one for each that it has.
    pub aliases: Vec<Port>,
    /// The port of this node's `dLegerPeers` entry; none outside a group.
    pub raft: Option<TcpListener>,
}

/// Why a broker did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store was not opened, and nothing in it was changed.
    #[error("cannot open the store: {0}")]
    Store(#[from] OpenStoreError),
    /// Replication did not start.
    #[error("cannot start replication: {0}")]
    Raft(#[from] raft::StartError),
    /// `dLegerSelfId` is not usable.
    #[error("dLegerSelfId: {0}")]
    SelfId(#[from] SelfIdError),
    /// `dLegerPeers` is not usable.
    #[error("dLegerPeers: {0}")]
    Peers(#[from] PeerListError),
    /// `brokerIP1` is no address.
    #[error("brokerIP1: {0} is neither an IP address nor a name that resolves to one")]
    Address(String),
    /// `brokerVip` cannot be moved from here.
    #[error(
        "brokerVip: cannot take {address} on {device}: {source} (it needs the rights CAP_NET_ADMIN and \
         CAP_NET_RAW)"
    )]
    Vip {
        address: Ipv4Addr,
        device: String,
        source: io::Error,
    },
    /// The system has no thread to give, or took a port away.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Replication has failed for good; the store is sound up to what was acknowledged.
    #[error("replication has stopped: {0}")]
    Fatal(String),
}

/// Runs a broker until `shutdown`, which drains it: leadership is handed over, requests in flight are
/// answered, everything is flushed, and the name servers forget this node.
///
/// A snapshot from the leader replaces the whole store, and everything that looks into it is made
/// anew: the broker stops and starts within the process, which keeps its ports. That happens only to
/// a node that is too far behind to be of use to anybody, so no client misses it meanwhile.
///
/// `last_will` takes what proves to the group that this process has ended.
///
/// # Errors
/// See [`RunError`].
pub async fn run(
    config: BrokerConfig,
    listeners: Listeners,
    last_will: Option<LastWill>,
    mut shutdown: Shutdown,
) -> Result<(), RunError> {
    let config = Arc::new(config);
    loop {
        let last_will = last_will.clone();
        match run_on_store(Arc::clone(&config), &listeners, last_will, &mut shutdown).await? {
            End::Stopped => return Ok(()),
            End::Replaced => {}
        }
    }
}

/// Why a broker has let go of its store without a failure.
enum End {
    /// It was asked to stop.
    Stopped,
    /// The store is to be opened again, with the snapshot that has arrived.
    Replaced,
}

async fn run_on_store(
    config: Arc<BrokerConfig>,
    listeners: &Listeners,
    last_will: Option<LastWill>,
    shutdown: &mut Shutdown,
) -> Result<End, RunError> {
    let store_host = store_host(&config).await?;
    let moving = moving_address(&config)?;
    let store_config = config.store_config();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let opening = (store_config.clone(), Arc::clone(&disk));
    let store = tokio::task::spawn_blocking(move || rmq_store::open(&opening.0, opening.1))
        .await
        .map_err(io::Error::other)??;
    let (log, queues) = (store.log.reader(), Arc::clone(&store.queues));
    let meta = store.log.genesis().map_or_else(Meta::new, |genesis| {
        let Genesis { metadata: of, .. } = &**genesis;
        Meta::adopted(Adopted {
            topics: &of.topics,
            groups: &of.groups,
            offsets: &of.offsets,
            delay: &of.delay,
        })
    });

    let (fatal, mut failed) = oneshot::channel::<String>();
    let (arrived, mut snapshot) = mpsc::channel::<()>(1);
    // The group passes on what other nodes forward before there is a broker to answer it.
    let late: Arc<OnceLock<Weak<Broker>>> = Arc::default();
    let options = RaftOptions {
        group: group_name(&config),
        broker_addr: config.broker_addr(),
        peers: match &listeners.raft {
            Some(listener) => {
                let again = listener.as_fd().try_clone_to_owned()?;
                let listener = TcpListener::from_std(again.into())?;
                let late = Arc::clone(&late);
                Some(peer_options(&config, listener, late, last_will)?)
            }
            None => None,
        },
        timers: Timers {
            heartbeat: config.raft_heartbeat_interval_millis,
            election_min: config.raft_election_timeout_min_millis,
            election_max: config.raft_election_timeout_max_millis,
        },
        snapshot_bytes_per_second: config.snapshot_max_bytes_per_second,
        on_install: Arc::new(move || {
            // Whoever was told once need not be told again.
            arrived.try_send(()).ok();
        }),
        longest_log: config.unclean_recovery == UncleanRecovery::LongestLog,
        runtime: None,
        retention: retention_rules(&config),
        on_fatal: Box::new(move |reason| drop(fatal.send(reason.to_owned()))),
    };
    let group = raft::start(
        options,
        store,
        &store_config,
        Arc::clone(&disk),
        meta.clone(),
    )
    .await?;
    let replica = Arc::new(Member::new(group.clone()));
    let broker = Broker::new(
        Arc::clone(&config),
        store_host,
        meta.clone(),
        log.clone(),
        Arc::clone(&queues),
        replica,
        now_ms,
    );
    late.get_or_init(|| Arc::downgrade(&broker));
    queues.start(arrival_listener(&broker))?;

    let (roles, of_hook) = (broker.replica.role(), Arc::clone(&config));
    let (stop_telling, telling_ends) = Shutdown::new();
    let telling = tokio::spawn(async move { hook::run(&of_hook, roles, telling_ends).await });
    let background = [
        tokio::spawn(Arc::clone(&broker).run()),
        tokio::spawn(keep_views(
            Views::new(config.store_path_root_dir.join("config"), &meta),
            config.flush_consumer_offset_interval,
        )),
    ];
    let (stop_serving, serving) = Shutdown::new();
    let mut servers = JoinSet::new();
    let homes = Homes::new(group.runtime());
    let housing = |port: &Port| {
        let (listener, homes) = (port.open()?, homes.clone());
        Ok::<_, io::Error>(Housing { listener, homes })
    };
    let ports = [&listeners.clients, &listeners.vip];
    for port in ports {
        let (listener, service) = (housing(port)?, Arc::clone(&broker));
        let intake = broker.intake.clone();
        servers.spawn(serve(listener, service, intake, serving.clone()));
    }
    for (number, port) in (1..).zip(&listeners.aliases) {
        let (listener, service) = (housing(port)?, AliasPort::new(Arc::clone(&broker), number));
        let intake = broker.intake.clone();
        servers.spawn(serve(listener, service, intake, serving.clone()));
    }
    let (registrar, stop_registering) = register(&broker);
    let (stop_moving, moving_ends) = Shutdown::new();
    let moving = moving.map(|it| tokio::spawn(it.keep(Arc::clone(&broker), moving_ends)));
    tracing::info!(address = %config.broker_addr(), group = %group_name(&config), "the broker is up");

    let result = tokio::select! {
        () = shutdown.asked() => Ok(End::Stopped),
        Some(()) = snapshot.recv() => Ok(End::Replaced),
        reason = &mut failed => Err(RunError::Fatal(reason.unwrap_or_else(|_| "it has ended".into()))),
    };

    // Another node leads first, and answers what still comes here; then consumers are sent elsewhere, and
    // only then are connections taken away.
    if result.is_ok() {
        timeout(config.drain_timeout_millis, broker.drain())
            .await
            .ok();
    }
    broker.leave();
    drop(stop_registering);
    registrar.await.ok();
    if matches!(result, Ok(End::Stopped)) {
        broker.linger().await;
    }
    if result.is_ok() {
        broker.left().await;
    }
    stop_moving.stop();
    if let Some(moving) = moving {
        moving.await.ok();
    }
    stop_serving.stop();
    for port in ports.into_iter().chain(&listeners.aliases) {
        port.refuse();
    }
    while servers.join_next().await.is_some() {}
    for task in background {
        task.abort();
    }
    group.shutdown().await;
    stop_telling.stop();
    match result {
        // It may be under way with the news that another node leads.
        Ok(End::Stopped) => {
            telling.await.ok();
        }
        _ => telling.abort(),
    }
    let views = Views::new(config.store_path_root_dir.join("config"), &meta);
    // Nobody needs them to go on.
    if let (_, Err(error)) = write_views(views).await {
        tracing::warn!("the readable views of the metadata are old: {error}");
    }
    match result {
        Ok(End::Replaced) => {
            let begin = move || rmq_store::begin_install(&store_config, &disk, &log);
            tokio::task::spawn_blocking(begin)
                .await
                .map_err(io::Error::other)??;
        }
        Ok(End::Stopped) => tracing::info!("the broker has stopped"),
        Err(_) => {}
    }
    result
}

fn register(broker: &Arc<Broker>) -> (tokio::task::JoinHandle<()>, Trigger) {
    let config = &broker.config;
    let (stop, stopping) = Shutdown::new();
    let options = registrar::Options {
        cluster: config.broker_cluster_name.clone(),
        name: broker_name(config),
        addr: config.broker_addr(),
        leader_addr: config.leader_addr(),
        ha_addr: format!("{}:{}", config.broker_ip2, config.listen_port + 1),
        alias: alias(broker),
        follower_id: broker.follower_id,
        period: config.register_name_server_period,
        limit: config.register_broker_timeout_mills,
        compressed: config.compressed_register,
    };
    let mut revisions = broker.meta.revisions();
    let (changed, topics_changed) = watch::channel(0);
    tokio::spawn(async move {
        while revisions.changed().await.is_ok() {
            let topics = revisions.borrow_and_update().topics;
            changed.send_if_modified(|seen| std::mem::replace(seen, topics) != topics);
        }
    });
    let (meta, permission) = (broker.meta.clone(), config.broker_permission);
    let topics = registrar::Topics {
        read: Arc::new(move || permitted(meta.read().topic_table(), permission)),
        changed: topics_changed,
        told: broker.told.clone(),
    };
    let task = tokio::spawn(registrar::run(
        options,
        config.namesrv_addr.clone(),
        Client::default(),
        broker.replica.role(),
        topics,
        stopping,
    ));
    (task, stop)
}

/// The topics with no more permissions than `brokerPermission` leaves them, so that clients look for
/// queues elsewhere (`BrokerController.registerBrokerAll`).
fn permitted(
    mut topics: TopicConfigSerializeWrapper,
    of_broker: u8,
) -> TopicConfigSerializeWrapper {
    let of_broker = i32::from(of_broker);
    // Java takes other bits away only together with one of these.
    if of_broker & READ_WRITE != READ_WRITE {
        for topic in topics.topic_config_table.values_mut() {
            topic.perm &= of_broker;
        }
    }
    topics
}

fn alias(broker: &Broker) -> Option<registrar::Alias> {
    let config = &broker.config;
    let port = config.alias_ports().next()?;
    Some(registrar::Alias {
        addr: format!("{}:{port}", config.broker_ip1),
        queues: config.group_alias_queues.into(),
        silent: broker.silent.subscribe(),
    })
}

fn peer_options(
    config: &BrokerConfig,
    listener: TcpListener,
    late: Arc<OnceLock<Weak<Broker>>>,
    last_will: Option<LastWill>,
) -> Result<PeerOptions, RunError> {
    let list: Vec<String> = config
        .dleger_peers
        .iter()
        .map(|p| format!("{}-{}", p.id, p.addr()))
        .collect();
    Ok(PeerOptions {
        self_id: config.dleger_self_id.parse()?,
        list: list.join(";").parse()?,
        listener: Box::new(listener.into_std()?),
        net: Arc::new(raft::Tcp),
        join_only: config.raft_join,
        auto_rejoin: config.auto_rejoin,
        last_will,
        forward: Arc::new(move |client, raw| {
            let broker = late.get().and_then(Weak::upgrade);
            async move {
                match broker {
                    Some(broker) => forwarded(broker, client, raw).await,
                    None => Err(NotLeader),
                }
            }
            .boxed()
        }),
    })
}

fn retention_rules(config: &BrokerConfig) -> RetentionRules {
    RetentionRules {
        delete_when: config.delete_when.0.clone(),
        reserved_hours: config.file_reserved_time,
        max_used: config.disk_max_used_space_ratio,
        forcibly: config
            .clean_file_forcibly_enable
            .then_some(config.disk_space_clean_forcibly_ratio),
        warning: config.disk_space_warning_level_ratio,
        clean: config.disk_space_clean_forcibly_ratio,
        interval: config.clean_resource_interval,
        batch: config.delete_file_batch_max as usize,
        pause: config.delete_commit_log_files_interval,
        scrub_bytes_per_second: config.scrub_max_bytes_per_second,
        hour: local_hour,
    }
}

/// The hour of the day by the machine's time zone, as `deleteWhen` counts it.
fn local_hour(ms: i64) -> u8 {
    let time = Local.timestamp_millis_opt(ms).single();
    time.map_or(0, |time| u8::try_from(time.hour()).unwrap_or(0))
}

/// The group's name: that of the broker outside a group.
fn group_name(config: &BrokerConfig) -> String {
    if config.enable_dleger_commit_log {
        config.dleger_group.clone()
    } else {
        broker_name(config)
    }
}

fn broker_name(config: &BrokerConfig) -> String {
    config.broker_name.clone()
}

fn moving_address(config: &BrokerConfig) -> Result<Option<MovingAddress>, RunError> {
    let vip = config.broker_vip.as_ref();
    let Some((vip, place)) = vip.and_then(|vip| Some((vip, vip.place.as_ref()?))) else {
        return Ok(None);
    };
    MovingAddress::open(vip.ip, place)
        .map(Some)
        .map_err(|source| RunError::Vip {
            address: vip.ip,
            device: place.device.clone(),
            source,
        })
}

/// The address in records and message ids, by which clients come to ask for a message: the one that
/// moves with the leader, or else that of `brokerIP1`.
async fn store_host(config: &BrokerConfig) -> Result<SocketAddr, RunError> {
    if let Some(vip) = &config.broker_vip {
        return Ok(SocketAddr::new(vip.ip.into(), config.listen_port));
    }
    let host = config.broker_ip1.as_str();
    let bad = || RunError::Address(host.to_owned());
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, config.listen_port));
    }
    let mut found = tokio::net::lookup_host((host, config.listen_port))
        .await
        .map_err(|_| bad())?;
    found.next().ok_or_else(bad)
}

/// Writes the readable views of what has changed, once a period (`flushConsumerOffsetInterval`).
async fn keep_views(mut views: Views, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let (back, result) = write_views(views).await;
        views = back;
        if let Err(error) = result {
            tracing::warn!("the readable views of the metadata are old: {error}");
        }
    }
}

async fn write_views(mut views: Views) -> (Views, io::Result<()>) {
    let written = tokio::task::spawn_blocking(move || {
        let result = views.write_changed();
        (views, result)
    });
    written.await.expect("writing views does not panic")
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{State, Topic};

    #[test]
    fn a_broker_that_may_not_write_registers_no_topic_to_write_to() {
        let mut state = State::default();
        for (name, perm) in [("plain", 6), ("model", 7), ("write_only", 2)] {
            let topic = Topic {
                order: true,
                ..Topic::with_queues(4, perm)
            };
            state.topics.insert(name.into(), topic);
        }
        let registered = |of_broker| {
            let topics = permitted(state.topic_table(), of_broker).topic_config_table;
            assert!(topics.values().all(|t| t.order && t.write_queue_nums == 4));
            ["plain", "model", "write_only"].map(|name| topics[name].perm)
        };
        assert_eq!(registered(6), [6, 7, 2]);
        assert_eq!(registered(4), [4, 4, 0]);
    }
}
