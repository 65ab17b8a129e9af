//! What all processors share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rmq_store::{Arrival, ArrivalListener, LogReader, PendingRecord, Position, Queues};
use rmq_wire::code::response;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::clients::Clients;
use super::forward::Forwarding;
use super::hold::Holds;
use super::lock::LeaseClock;
use super::message::Bounds;
use super::offset_buffer::OffsetBuffer;
use super::pull::{self, Readers};
use super::refusal::Refusal;
use super::registrar::Told;
use super::replica::{ProposeError, Replica};
use super::stats::{self, Stats};
use super::transaction::Transactions;
use super::{heartbeat, intake, leading, transaction, vip};
use crate::config::BrokerConfig;
use crate::meta::{Change, Command, Meta, Reply, SystemNames};
use crate::raft::{SelfId, TransferError};
use crate::remoting;

/// A node that stops is left by its consumers when none of them has asked for so long. The answer that sends
/// them away is a round trip; some are busy with what they got before.
const CALM: Duration = Duration::from_millis(300);
/// It waits no longer than this for it.
const LEAVING_LIMIT: Duration = Duration::from_secs(2);
/// The same for those that came by the address that moves, before leadership is handed over.
const MOVING_CALM: Duration = Duration::from_millis(100);
const MOVING_LIMIT: Duration = Duration::from_millis(500);

/// One node's broker: its part of the group's state, and who is connected to it.
pub struct Broker {
    pub(super) config: Arc<BrokerConfig>,
    pub(super) meta: Meta,
    pub(super) log: LogReader,
    pub(super) queues: Arc<Queues>,
    pub(super) replica: Arc<dyn Replica>,
    pub(super) clients: Clients,
    /// The connection of a consumer has ended without its farewell.
    pub(super) consumer_gone: Notify,
    pub(super) offsets: Arc<OffsetBuffer>,
    pub(super) holds: Holds,
    pub(super) forwarding: Forwarding,
    /// The bounds of all its ports.
    pub(super) intake: remoting::Bounds,
    pub(super) readers: Readers,
    pub(super) arrived: vip::Arrived,
    /// This node's broker id while it does not lead.
    pub(super) follower_id: i64,
    pub(super) stats: Stats,
    /// The address that stands in records and message ids.
    pub(super) store_host: SocketAddr,
    /// Bytes at the end of the log that count as in memory.
    pub(super) recent_bytes: u64,
    /// Pulls that may read from the disk at a time.
    pub(super) disk_reads: tokio::sync::Semaphore,
    /// What the name servers know of the topics.
    pub(super) told: watch::Sender<Told>,
    /// On a leader the broker ids of the followers that do not answer, as routes are to know them.
    pub(super) silent: watch::Sender<Vec<i64>>,
    /// Held while a round of delayed messages and its progress are stored.
    pub(super) delivering: tokio::sync::Mutex<()>,
    pub(super) transactions: Transactions,
    pub(super) leases: LeaseClock,
    /// The one that serves clients, and not that of Raft, where a request may be worked on too.
    runtime: Handle,
    draining: AtomicBool,
    leaving: watch::Sender<bool>,
    /// Leadership is being handed over, and the address that moves with it.
    pub(super) moving: watch::Sender<u32>,
    /// The broker ids that consumers are sent to when this node stops.
    others: OnceLock<Vec<i64>>,
    /// How many have been sent there.
    sent_away: watch::Sender<usize>,
    clock: fn() -> i64,
}

impl Broker {
    /// `store_host` is the address that clients reach this node at; `clock` gives Unix
    /// milliseconds. Must be called on the runtime that serves clients.
    pub fn new(
        config: Arc<BrokerConfig>,
        store_host: SocketAddr,
        meta: Meta,
        log: LogReader,
        queues: Arc<Queues>,
        replica: Arc<dyn Replica>,
        clock: fn() -> i64,
    ) -> Arc<Self> {
        let follower_id = follower_id(&config);
        let intake = intake::bounds(&config);
        Arc::new(Self {
            config,
            meta,
            log,
            queues,
            offsets: OffsetBuffer::new(Arc::clone(&replica), clock),
            replica,
            clients: Clients::default(),
            consumer_gone: Notify::new(),
            holds: Holds::default(),
            forwarding: Forwarding::default(),
            intake,
            readers: Readers::default(),
            arrived: vip::Arrived::default(),
            follower_id,
            stats: Stats::new(clock()),
            store_host,
            recent_bytes: recent_bytes(),
            disk_reads: tokio::sync::Semaphore::new(disk_reads()),
            told: watch::Sender::default(),
            silent: watch::Sender::default(),
            delivering: tokio::sync::Mutex::default(),
            transactions: Transactions::default(),
            leases: LeaseClock::default(),
            runtime: Handle::current(),
            draining: AtomicBool::new(false),
            leaving: watch::Sender::new(false),
            moving: watch::Sender::new(0),
            others: OnceLock::new(),
            sent_away: watch::Sender::new(0),
            clock,
        })
    }

    /// Unix milliseconds.
    pub(super) fn now_ms(&self) -> i64 {
        (self.clock)()
    }

    pub(super) fn is_serving(&self) -> bool {
        self.replica.serving().is_some()
    }

    /// Does what goes on besides answering, until the caller stops polling or the group is gone.
    pub async fn run(self: Arc<Self>) {
        // What the others read from the disk does not hold it up.
        let mut apart = JoinSet::new();
        apart.spawn(Arc::clone(&self.offsets).run());
        tokio::select! {
            _ = apart.join_next() => {}
            () = heartbeat::expire_silent(&self) => {}
            () = heartbeat::learn(&self) => {}
            () = leading::run(&self) => {}
            () = transaction::follow(&self) => {}
            () = Readers::keep(&self) => {}
            () = stats::run(&self) => {}
        }
    }

    /// Prepares the stop of this node: has the offset commits it took replicated and hands over
    /// leadership. What comes from then on the successor answers; where there is none, sends are
    /// refused with a code that has clients try elsewhere.
    pub async fn drain(&self) {
        self.others.get_or_init(|| pull::others(self));
        self.hand_over_for_good().await;
        pull::say_goodbye(self).await;
        self.draining.store(true, Ordering::Release);
    }

    async fn hand_over_for_good(&self) {
        if self.is_serving()
            && let Err(error) = self.hand_over(None).await
        {
            // Without a successor the group elects one, or has nobody else.
            tracing::info!(%error, "leadership is not handed over");
        }
    }

    /// Has the offset commits it took replicated, and hands leadership to `to`, or to the node that is
    /// most fit to lead; gives the new leader.
    pub(super) async fn hand_over(&self, to: Option<SelfId>) -> Result<SelfId, TransferError> {
        let _moving = Moving::begin(&self.moving);
        if self.config.broker_vip.is_some() {
            self.calm(MOVING_CALM, MOVING_LIMIT).await;
        }
        self.offsets.all_settled().await;
        let leader = SelfId::of(self.replica.transfer_leader(to).await?);
        tracing::info!(%leader, "leadership is handed over");
        Ok(leader)
    }

    /// Sends consumers to other nodes from now on, those too that wait here for messages.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Resolves after [`Broker::leave`].
    pub(super) async fn leaving(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        self.leaving
            .subscribe()
            .wait_for(|leaving| *leaving)
            .await
            .ok();
    }

    /// Answers, after [`Broker::leave`], until clients have looked for routes without this node
    /// (`lameDuckMillis`), but no longer than another node leads: it may have been elected itself.
    pub async fn linger(&self) {
        let lame_duck = self.config.lame_duck_millis;
        if lame_duck.is_zero() {
            return;
        }
        let mut role = self.replica.role();
        let alone = async { drop(role.wait_for(|role| role.leader.is_none()).await) };
        tokio::select! {
            () = alone => {}
            () = pull::keep_saying_goodbye(self) => {}
            () = sleep(lame_duck) => {}
        }
        let limit = self.config.drain_timeout_millis;
        timeout(limit, self.hand_over_for_good()).await.ok();
    }

    /// Waits, after [`Broker::leave`], until consumers have gone elsewhere, if there is such a place.
    pub async fn left(&self) {
        if self.others.get().is_none_or(Vec::is_empty) {
            return;
        }
        self.calm(CALM, LEAVING_LIMIT).await;
    }

    /// Waits until nobody has been sent away for a while, but no longer than `limit`.
    async fn calm(&self, calm: Duration, limit: Duration) {
        let mut sent_away = self.sent_away.subscribe();
        let calm = async { while timeout(calm, sent_away.changed()).await.is_ok() {} };
        timeout(limit, calm).await.ok();
    }

    /// Where to send a consumer. Which node an id is in its route, and whether that one lives, is not known
    /// here: who comes back is told another id.
    pub(super) fn next_elsewhere(&self) -> Option<i64> {
        self.next_of(self.others.get()?)
    }

    /// The next in turn of these broker ids, to send a consumer there.
    pub(super) fn next_of(&self, others: &[i64]) -> Option<i64> {
        if others.is_empty() {
            return None;
        }
        let mut turn = 0;
        self.sent_away.send_modify(|sent| {
            turn = *sent;
            *sent = sent.wrapping_add(1);
        });
        Some(others[turn % others.len()])
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Has the records appended as one unit, and resolves once they are committed and readable here.
    /// Keeps order as [`Replica::propose_messages`] does.
    pub(super) async fn store(
        &self,
        records: Vec<PendingRecord>,
    ) -> Result<Vec<Position>, ProposeError> {
        self.store_in(None, records).await
    }

    /// The same, only if this node still leads this term when they are appended.
    pub(super) async fn store_in(
        &self,
        term: Option<u64>,
        records: Vec<PendingRecord>,
    ) -> Result<Vec<Position>, ProposeError> {
        let put = Stats::begin_put(&records);
        let stored = self.replica.propose_messages(records, term).await;
        self.stats.end_put(&put, stored.is_ok());
        stored
    }

    /// Changes the group's metadata and resolves once that is applied here.
    pub(super) async fn propose(&self, change: Change) -> Result<Reply, Refusal> {
        self.propose_at(self.now_ms(), change).await
    }

    /// The same, at another time than the clock's.
    pub(super) async fn propose_at(&self, at_ms: i64, change: Change) -> Result<Reply, Refusal> {
        let command = Command { at_ms, change };
        let bytes = command
            .encode()
            .map_err(|error| Refusal::system_error(error.to_string()))?;
        match self.replica.propose_meta(bytes.into()).await? {
            Reply::Refused { code, remark } => Err(Refusal::Code(code, remark)),
            reply => Ok(reply),
        }
    }

    /// What names and sizes of system topics depend on.
    pub(super) fn system_names(&self) -> SystemNames {
        let config = &self.config;
        SystemNames {
            cluster: config.broker_cluster_name.clone(),
            broker: config.broker_name.clone(),
            auto_create_topic: config.auto_create_topic_enable,
            default_queues: i32::try_from(config.default_topic_queue_nums).unwrap_or(i32::MAX),
            cluster_topic_enable: config.cluster_topic_enable,
            broker_topic_enable: config.broker_topic_enable,
            trace_topic: config
                .trace_topic_enable
                .then(|| config.msg_trace_topic_name.clone()),
        }
    }

    /// The bounds of a message.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            body_bytes: self.config.max_message_size as usize,
            delay_levels: self.config.message_delay_level.len(),
        }
    }

    /// Refuses a send while the broker stops or the group is frozen.
    pub(super) fn check_accepts_sends(&self) -> Result<(), Refusal> {
        if self.is_draining() {
            let remark = "the broker is stopping";
            return Err(Refusal::new(response::SERVICE_NOT_AVAILABLE, remark));
        }
        self.check_thawed()
    }

    /// Refuses what changes anything while the group is frozen.
    pub(super) fn check_thawed(&self) -> Result<(), Refusal> {
        if self.meta.is_frozen() {
            return Err(ProposeError::Frozen.into());
        }
        Ok(())
    }
}

/// Runs what reads files that nobody may have read for days where it holds up nobody.
pub(super) async fn blocking<R: Send + 'static>(
    broker: &Arc<Broker>,
    read: impl FnOnce(&Broker) -> Result<R, Refusal> + Send + 'static,
) -> Result<R, Refusal> {
    let broker = Arc::clone(broker);
    let runtime = broker.runtime.clone();
    runtime
        .spawn_blocking(move || read(&broker))
        .await
        .map_err(|error| Refusal::system_error(error.to_string()))?
}

/// A hand-over that is under way, until dropped: it ends too when whoever waits for it gives it up.
struct Moving<'a>(&'a watch::Sender<u32>);

impl<'a> Moving<'a> {
    fn begin(count: &'a watch::Sender<u32>) -> Self {
        count.send_modify(|under_way| *under_way += 1);
        Self(count)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|under_way| *under_way -= 1);
    }
}

/// Wakes the pulls that wait for messages; for [`Queues::start`].
pub fn arrival_listener(broker: &Arc<Broker>) -> ArrivalListener {
    // The broker owns the queues.
    let broker = Arc::downgrade(broker);
    Arc::new(move |arrivals| {
        let Some(broker) = broker.upgrade() else {
            return false;
        };
        for Arrival {
            topic,
            queue_id,
            next,
            tags_code,
            ..
        } in arrivals
        {
            broker
                .holds
                .arrived(topic, *queue_id, next.as_i64(), *tags_code);
        }
        !broker.holds.is_empty()
    })
}

/// A follower's broker id, one more than the number of its self id, as in Java's DLedger mode.
fn follower_id(config: &BrokerConfig) -> i64 {
    let id = config.dleger_self_id.parse::<SelfId>();
    id.map_or(0, |id| {
        i64::try_from(id.follower_broker_id()).unwrap_or(i64::MAX)
    })
}

/// `accessMessageInMemoryMaxRatio`: the share of the machine's memory that holds the end of the log.
fn recent_bytes() -> u64 {
    const PERCENT: u64 = 40;
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into()) / 100 * PERCENT
}

/// How many reads for consumers may wait for the disk at a time. Each one that the disk has answered
/// takes a processor for a while, to copy and check: half of them is left to the sends.
fn disk_reads() -> usize {
    const ENOUGH: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, ENOUGH)
}
