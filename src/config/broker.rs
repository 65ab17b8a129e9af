//! The configuration of a broker.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rmq_store::{FlushMode, StoreConfig};
use rmq_wire::header::GROUP_ALIAS_PORTS;

use super::host;
use super::schema::config_struct;
use super::value::{BrokerRole, FlushDiskType, Hours, Peer, UncleanRecovery, Vip};

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

config_struct! {
    /// Everything that a broker is told. Names, meanings and defaults are those of RocketMQ's
    /// `BrokerConfig`, `MessageStoreConfig` and `NettyServerConfig` (4.9.8) in one struct, because
    /// they come from one file; the keys of this broker's own stand at the end.
    pub struct BrokerConfig {
        /// What `${ROCKETMQ_HOME}` stands for in a value; by default that environment variable.
        "rocketmqHome" => rocketmq_home: Option<PathBuf> = None;
        /// The cluster that the broker belongs to.
        "brokerClusterName" => broker_cluster_name: String = "DefaultCluster".into();
        /// The name under which clients know the broker, the same for all nodes of a group. The
        /// machine's name by default; in a group, `dLegerGroup`.
        "brokerName" => broker_name: String = host::host_name();
        /// 0 is the master. In a group the role decides: 0 for the leader, for a follower one more
        /// than the number in its self id.
        "brokerId" => broker_id: u64 = 0;
        /// The address that clients are told.
        "brokerIP1" => broker_ip1: String = host::local_address().to_string();
        /// The address that name servers are told for replication by the classic protocol.
        "brokerIP2" => broker_ip2: String = host::local_address().to_string();
        /// Name servers, `host:port` with semicolons between them.
        "namesrvAddr" => namesrv_addr: Vec<String> = Vec::new();
        /// Port for clients. The port two below it is open too (Java's VIP channel); the one above
        /// is kept for replication by the classic protocol.
        "listenPort" => listen_port: u16 = 10911, in 3..=65534;
        /// The address that `listenPort` is opened on.
        "bindAddress" => bind_address: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        /// What the broker lets clients do: 4 read, 2 write, 6 both.
        "brokerPermission" => broker_permission: u8 = 6, in 0..=7;

        /// Queues of a topic that is created automatically.
        "defaultTopicQueueNums" => default_topic_queue_nums: u32 = 8, in 1..=65535;
        /// Whether a send to an unknown topic creates it.
        "autoCreateTopicEnable" => auto_create_topic_enable: bool = true;
        /// Whether a topic of the cluster's name exists.
        "clusterTopicEnable" => cluster_topic_enable: bool = true;
        /// Whether a topic of the broker's name exists.
        "brokerTopicEnable" => broker_topic_enable: bool = true;
        /// Whether an unknown consumer group is created when it appears.
        "autoCreateSubscriptionGroup" => auto_create_subscription_group: bool = true;
        /// Whether the topic for message traces exists.
        "traceTopicEnable" => trace_topic_enable: bool = false;
        /// The topic for message traces.
        "msgTraceTopicName" => msg_trace_topic_name: String = "RMQ_SYS_TRACE_TOPIC".into();
        /// The region that send responses name.
        "regionId" => region_id: String = "DefaultRegion".into();
        /// Whether send responses ask clients to trace.
        "traceOn" => trace_on: bool = true;

        /// Whether replies to requests among clients are stored besides being passed on.
        "storeReplyMessageEnable" => store_reply_message_enable: bool = true;

        /// Whether a pull that finds nothing waits for messages.
        "longPollingEnable" => long_polling_enable: bool = true;
        /// Milliseconds that such a pull waits if long polling is off.
        "shortPollingTimeMills" => short_polling_time_mills: Duration = Duration::from_secs(1),
            in 1..=60_000;
        /// Whether consumers read from followers too: the leader spreads the queues of a group over the
        /// followers that keep up, which go on when the leader is gone.
        "slaveReadEnable" => slave_read_enable: bool = false;
        /// Whether consumers are told at once that their group has changed.
        "notifyConsumerIdsChangedEnable" => notify_consumer_ids_changed_enable: bool = true;
        /// Bytes in one answer to a pull from the newest part of the log.
        "maxTransferBytesOnMessageInMemory" => max_transfer_bytes_on_message_in_memory: u32
            = 256 * KIB, in 1..=67_108_864;
        /// Messages in such an answer.
        "maxTransferCountOnMessageInMemory" => max_transfer_count_on_message_in_memory: u32 = 32,
            in 1..=65_536;
        /// Bytes in one answer to a pull from older parts of the log.
        "maxTransferBytesOnMessageInDisk" => max_transfer_bytes_on_message_in_disk: u32 = 64 * KIB,
            in 1..=67_108_864;
        /// Messages in such an answer.
        "maxTransferCountOnMessageInDisk" => max_transfer_count_on_message_in_disk: u32 = 8,
            in 1..=65_536;
        /// Messages that a query by key gives if it does not say how many.
        "defaultQueryMaxNum" => default_query_max_num: u32 = 32, in 1..=65_536;
        /// Messages that a query by key gives at most.
        "maxMsgsNumBatch" => max_msgs_num_batch: u32 = 64, in 1..=65_536;
        /// Delays of the levels 1, 2, … of delayed messages and retries.
        "messageDelayLevel" => message_delay_level: Vec<Duration> = default_delay_levels();

        /// Whether half messages of transactions are refused.
        "rejectTransactionMessage" => reject_transaction_message: bool = false;
        /// Milliseconds that a producer has, unless its message says otherwise, to say how a transaction
        /// ended before it is asked.
        "transactionTimeOut" => transaction_time_out: Duration = Duration::from_secs(6);
        /// How often one leader asks, and reaches a producer, before a transaction goes to
        /// `TRANS_CHECK_MAX_TIME_TOPIC`. One that is older than `fileReservedTime` goes there too.
        "transactionCheckMax" => transaction_check_max: u32 = 15;
        /// Milliseconds between two times at which producers are asked.
        "transactionCheckInterval" => transaction_check_interval: Duration
            = Duration::from_secs(60), in 1..=86_400_000;

        /// Milliseconds between registrations with the name servers.
        "registerNameServerPeriod" => register_name_server_period: Duration
            = Duration::from_secs(30);
        /// Milliseconds that a registration may take.
        "registerBrokerTimeoutMills" => register_broker_timeout_mills: Duration
            = Duration::from_secs(6), in 100..=600_000;
        /// Whether registrations are compressed, without the flags and attributes of topics. What fits
        /// no frame otherwise, some 80,000 topics, is compressed anyway.
        "compressedRegister" => compressed_register: bool = false;
        /// Seconds after which a silent client connection is closed.
        "serverChannelMaxIdleTimeSeconds" => server_channel_max_idle_time_seconds: u32 = 120,
            in 1..=86_400;

        /// Sends of all clients together that are worked on at a time; one larger than 4 KiB counts as
        /// several. Connections with more are not read meanwhile.
        "sendThreadPoolQueueCapacity" => send_thread_pool_queue_capacity: u32 = 10_000,
            in 1..=10_000_000;
        /// Pulls of all clients together that are worked on or wait for messages. More are refused, and
        /// consumers repeat them after 3 s.
        "pullThreadPoolQueueCapacity" => pull_thread_pool_queue_capacity: u32 = 100_000,
            in 1..=10_000_000;
        /// Whether a send that could not be begun in time is refused with the code `SYSTEM_BUSY`. Else it
        /// waits for as long as it takes.
        "brokerFastFailureEnable" => broker_fast_failure_enable: bool = true;
        /// Milliseconds after which it is.
        "waitTimeMillsInSendQueue" => wait_time_mills_in_send_queue: Duration
            = Duration::from_millis(200), in 0..=600_000;

        /// The directory of everything that the broker stores.
        "storePathRootDir" => store_path_root_dir: PathBuf = host::user_home().join("store");
        /// The directory of the commit log; `commitlog` under the root by default.
        "storePathCommitLog" => store_path_commit_log: Option<PathBuf> = None;
        /// Bytes of a commit log file.
        "mappedFileSizeCommitLog" => mapped_file_size_commit_log: u32 = 1024 * MIB,
            in 4096..=2_147_483_647;
        /// Bytes of a consume queue file, 20 for each message.
        "mappedFileSizeConsumeQueue" => mapped_file_size_consume_queue: u32 = 300_000 * 20,
            in 20..=2_147_483_640;
        /// Hash slots of a key index file.
        "maxHashSlotNum" => max_hash_slot_num: u32 = 5_000_000, in 1..=100_000_000;
        /// Entries of a key index file.
        "maxIndexNum" => max_index_num: u32 = 20_000_000, in 2..=100_000_000;
        /// Bytes of a message's body at most. A request of more than 16 MiB is refused whatever this says, and so is what
        /// does not fit 15 MiB, or a segment of the commit log, with all that is stored beside it.
        "maxMessageSize" => max_message_size: u32 = 4 * MIB, in 1..=2_147_352_575;
        /// When a send is acknowledged: once a majority has synced it (`SYNC_FLUSH`), or has it in the page cache
        /// (`ASYNC_FLUSH`).
        "flushDiskType" => flush_disk_type: FlushDiskType = FlushDiskType::AsyncFlush;
        /// Milliseconds between flushes of the commit log if they are asynchronous.
        "flushIntervalCommitLog" => flush_interval_commit_log: Duration
            = Duration::from_millis(500), in 1..=60_000;
        /// Milliseconds between flushes of the consume queues.
        "flushIntervalConsumeQueue" => flush_interval_consume_queue: Duration
            = Duration::from_secs(1), in 1..=600_000;
        /// Milliseconds between writes of the readable view of the consumer offsets.
        "flushConsumerOffsetInterval" => flush_consumer_offset_interval: Duration
            = Duration::from_secs(5), in 100..=600_000;

        /// Hours of the day, 00 to 23 by the machine's time zone and with semicolons between them, at
        /// which files of the commit log that are too old are removed.
        "deleteWhen" => delete_when: Hours = Hours(vec![4]);
        /// Hours after which a file of the commit log is too old, by the store time of its messages.
        "fileReservedTime" => file_reserved_time: u32 = 72, in 0..=2_147_483_647;
        /// Percent of the disk; where more is used, files that are too old are removed at any hour.
        "diskMaxUsedSpaceRatio" => disk_max_used_space_ratio: u8 = 75;
        /// Percent of the disk; where more is used, files are removed whatever their age, unless
        /// `cleanFileForciblyEnable` is false.
        "diskSpaceCleanForciblyRatio" => disk_space_clean_forcibly_ratio: u8 = 85;
        /// Percent of the disk; where more is used, sends are refused.
        "diskSpaceWarningLevelRatio" => disk_space_warning_level_ratio: u8 = 90;
        /// Whether a disk that is nearly full takes files before they are too old.
        "cleanFileForciblyEnable" => clean_file_forcibly_enable: bool = true;
        /// Milliseconds between two looks at the disk and at the age of the files.
        "cleanResourceInterval" => clean_resource_interval: Duration = Duration::from_secs(10),
            in 10..=3_600_000;
        /// Commit log files that are removed after one look at most.
        "deleteFileBatchMax" => delete_file_batch_max: u32 = 10, in 1..=10_000;
        /// Milliseconds between the removals of two commit log files.
        "deleteCommitLogFilesInterval" => delete_commit_log_files_interval: Duration
            = Duration::from_millis(100), in 0..=60_000;

        /// The part that the broker plays outside a group: `ASYNC_MASTER`, or `SYNC_MASTER`, which is the same here;
        /// `SLAVE` is refused.
        "brokerRole" => broker_role: BrokerRole = BrokerRole::AsyncMaster;
        /// Whether the broker is a node of a Raft group.
        "enableDLegerCommitLog" => enable_dleger_commit_log: bool = false;
        /// The name of the group.
        "dLegerGroup" => dleger_group: String = String::new();
        /// The nodes that form the group: `n0-host:port;n1-host:port;n2-host:port`.
        "dLegerPeers" => dleger_peers: Vec<Peer> = Vec::new();
        /// Which of them this node is.
        "dLegerSelfId" => dleger_self_id: String = String::new();

        /// The node that leads whenever it can: leadership moves to it once it has been caught up, and
        /// had space, for some seconds. With several, separated by semicolons, the first that is fit to lead.
        "preferredLeaderId" => preferred_leader_id: String = String::new();

        /// The address that the Raft listener is opened on, `address` or `address:port`; by default
        /// `bindAddress` and the port of this node's entry of `dLegerPeers`.
        "raftBindAddress" => raft_bind_address: String = String::new();
        /// Whether this node asks to join a group that exists, and never forms one: an operator takes
        /// it in with `mqadmin raftAddNode` and gives it a vote with `mqadmin raftPromote`.
        "raftJoin" => raft_join: bool = false;
        /// Whether a node that lost its store is taken back by the leader without an operator; else
        /// as with `raftJoin`.
        "autoRejoin" => auto_rejoin: bool = true;
        /// A node that a power failure may have cost entries it acknowledged (`ASYNC_FLUSH` only)
        /// does not vote until it has all that a leader has. If so many nodes are in that state that
        /// the others can elect no leader, a group with `manual` waits for `mqadmin raftRecover`; with
        /// `longest-log` the longest log leads at once, or after 10 s without the nodes that do not
        /// answer, and messages that only these had are lost.
        "uncleanRecovery" => unclean_recovery: UncleanRecovery = UncleanRecovery::Manual;
        /// Whether a child process, `rmq-deathwatch`, proves the end of this broker's process to the
        /// group, which then replaces a leader at once and not after its lease.
        "proofOfDeath" => proof_of_death: bool = true;
        /// Milliseconds between a leader's heartbeats, at most half of `raftElectionTimeoutMinMillis`.
        "raftHeartbeatIntervalMillis" => raft_heartbeat_interval_millis: Duration
            = Duration::from_millis(100), in 5..=10_000;
        /// Least milliseconds of the random wait with which a node calls an election after the lease.
        "raftElectionTimeoutMinMillis" => raft_election_timeout_min_millis: Duration
            = Duration::from_millis(200), in 20..=60_000;
        /// Most milliseconds of that wait, and how long a leader's lease lasts without contact.
        "raftElectionTimeoutMaxMillis" => raft_election_timeout_max_millis: Duration
            = Duration::from_millis(300), in 30..=120_000;
        /// Whether name servers of rmq show the group under further broker names, which producers can
        /// write to and whose addresses are living followers, and for Go clients the leader too: a stock
        /// client whose send to the leader fails tries another name at once. Alike on all nodes, and
        /// changed while no order of messages hangs on it.
        "groupAliasRoutes" => group_alias_routes: bool = false;
        /// Write queues of each topic under each of these names, at most all that it has. What is sent by the
        /// name of a follower takes the way over it. With 1 the group's own name shows its queues several times
        /// over (queue `i` is queue `i % n`), so that one send in forty takes that way; with more it does not.
        "groupAliasQueues" => group_alias_queues: u16 = 1, in 1..=32_767;
        /// Port for what is sent by the first of these names, the next ones being for the others; 0 for the
        /// one two above `listenPort`. There are five.
        "groupAliasPort" => group_alias_port: u16 = 0;
        /// Milliseconds that a node holds a request that only a leader may answer while there is
        /// none. An election takes about 600 ms; stock clients wait 3 s for an answer.
        "groupHoldMillis" => group_hold_millis: Duration = Duration::from_secs(1), in 0..=60_000;
        /// Bytes a second that this node sends at most, as leader, to nodes that take the log from
        /// files because the entries they lack have left it; 0 for no limit.
        "snapshotMaxBytesPerSecond" => snapshot_max_bytes_per_second: u64 = 64 * u64::from(MIB),
            in 0..=1_000_000_000_000;
        /// An address that moves with the leader, `10.0.0.100/24@eth0`: the leader takes it on this
        /// device once it leads, and tells the network so. Name servers then show the group under it.
        /// Needs the rights CAP_NET_ADMIN and CAP_NET_RAW, and all nodes on one link; not together with
        /// `bindAddress`. Without network and device, `10.0.0.100`, something else has it lead to the
        /// leader: a load balancer that asks for `GET /leader` at `listenPort`, or `roleChangeHook`. Alike
        /// on all nodes but for the device.
        "brokerVip" => broker_vip: Option<Vip> = None;
        /// A program that is called at the start and whenever this node's role changes, as `PROGRAM
        /// ROLE GROUP TERM`, `ROLE` being `leader`, `follower` or `no-leader` and `GROUP` the
        /// `brokerName`, with the leader's address in `RMQ_LEADER` and this node's in `RMQ_NODE`. Of
        /// changes that come while it runs it is told the last.
        "roleChangeHook" => role_change_hook: Option<PathBuf> = None;
        /// Milliseconds after which that program is ended, with all that it has started.
        "roleChangeHookTimeoutMillis" => role_change_hook_timeout_millis: Duration
            = Duration::from_secs(5), in 100..=600_000;
        /// Bytes a second of old files of the commit log that are read and verified; what is damaged is
        /// fetched again from the other nodes. 0 for none.
        "scrubMaxBytesPerSecond" => scrub_max_bytes_per_second: u64 = 4 * u64::from(MIB),
            in 0..=1_000_000_000_000;
        /// Bytes of memory for requests and answers of all connections together: a quarter of it for sends,
        /// a quarter for pulls. 0 for a quarter of the machine's memory, or of the container's; else at
        /// least 134217728.
        "requestMemoryMaxBytes" => request_memory_max_bytes: u64 = 0, in 0..=1_000_000_000_000;
        /// Milliseconds that a stop may take before unanswered requests are given up.
        "drainTimeoutMillis" => drain_timeout_millis: Duration = Duration::from_secs(10),
            in 0..=600_000;
        /// Milliseconds that a node of a group which is stopped goes on answering when it no longer leads and
        /// is out of the routes, until clients have looked for them again: stock clients do every 30 s, so that
        /// with 35000 they notice nothing of a restart. It ends at once when no other node leads.
        "lameDuckMillis" => lame_duck_millis: Duration = Duration::ZERO, in 0..=600_000;
    }
}

impl BrokerConfig {
    /// Least `requestMemoryMaxBytes` but 0: the largest frame has room as a send, of which there are two copies.
    pub const REQUEST_MEMORY_MIN: u64 = 128 * MIB as u64;

    /// Where the commit log lies.
    pub fn commit_log_dir(&self) -> PathBuf {
        match &self.store_path_commit_log {
            Some(dir) => dir.clone(),
            None => self.store_path_root_dir.join("commitlog"),
        }
    }

    /// What the store is opened with.
    pub fn store_config(&self) -> StoreConfig {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        StoreConfig {
            commit_log_dir: self.commit_log_dir(),
            segment_bytes: self.mapped_file_size_commit_log.into(),
            consume_queue_file_bytes: self.mapped_file_size_consume_queue.into(),
            index_slots: self.max_hash_slot_num,
            index_entries: self.max_index_num,
            flush: match self.flush_disk_type {
                FlushDiskType::SyncFlush => FlushMode::Sync,
                FlushDiskType::AsyncFlush => FlushMode::Async {
                    interval_ms: ms(self.flush_interval_commit_log),
                },
            },
            max_message_bytes: self.max_message_size,
            consume_queue_flush_interval_ms: ms(self.flush_interval_consume_queue),
            // Units of delayed messages hold their due times, so the store has to know the levels.
            delay_levels: self
                .message_delay_level
                .iter()
                .map(|delay| ms(*delay))
                .collect(),
            ..StoreConfig::new(&self.store_path_root_dir)
        }
    }

    /// The self ids of `preferredLeaderId`, in the order of preference.
    pub fn preferred_leaders(&self) -> impl Iterator<Item = &str> {
        let ids = self.preferred_leader_id.split(';').map(str::trim);
        ids.filter(|id| !id.is_empty())
    }

    /// This node's own entry of `dLegerPeers`; `None` outside a group.
    pub fn self_peer(&self) -> Option<&Peer> {
        if !self.enable_dleger_commit_log {
            return None;
        }
        self.dleger_peers
            .iter()
            .find(|peer| peer.id == self.dleger_self_id)
    }

    /// The address that clients are told, `brokerIP1:listenPort`.
    pub fn broker_addr(&self) -> String {
        format!("{}:{}", self.broker_ip1, self.listen_port)
    }

    /// The address that clients are told of the leader: `brokerVip` with `listenPort`, if there is one.
    pub fn leader_addr(&self) -> String {
        match &self.broker_vip {
            Some(vip) => format!("{}:{}", vip.ip, self.listen_port),
            None => self.broker_addr(),
        }
    }

    /// The ports for requests by the further names of the group, see [`GROUP_ALIAS_PORTS`].
    pub fn alias_ports(&self) -> std::ops::Range<u16> {
        let first = match self.group_alias_port {
            0 => self.listen_port.saturating_add(2),
            port => port,
        };
        let count = match self.group_alias_routes && self.enable_dleger_commit_log {
            true => GROUP_ALIAS_PORTS,
            false => 0,
        };
        first..first.saturating_add(count)
    }

    /// Where the Raft listener is opened: `raftBindAddress`, else `bindAddress`, at the port of this
    /// node's entry of `dLegerPeers` if it has no other. `None` outside a group.
    pub fn raft_bind(&self) -> Option<SocketAddr> {
        let port = self.self_peer()?.port;
        let bind = self.raft_bind_address.as_str();
        if bind.is_empty() {
            return Some(SocketAddr::new(self.bind_address, port));
        }
        bind.parse()
            .ok()
            .or_else(|| Some(SocketAddr::new(bind.parse().ok()?, port)))
    }
}

/// `1s 5s 10s 30s 1m … 10m 20m 30m 1h 2h`.
fn default_delay_levels() -> Vec<Duration> {
    let minutes = (1..=10).chain([20, 30, 60, 120]).map(|n| n * 60);
    [1, 5, 10, 30]
        .into_iter()
        .chain(minutes)
        .map(Duration::from_secs)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_knows_the_delay_levels_that_the_broker_delivers_by() {
        let config = BrokerConfig {
            message_delay_level: vec![Duration::from_secs(1), Duration::from_secs(90)],
            ..BrokerConfig::default()
        };
        let levels = config.store_config().delay_levels;
        assert_eq!(levels, [1_000, 90_000].into_iter().collect());
    }
}
