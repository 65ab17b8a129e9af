//! What the tests of the processors stand on: a real store without Raft, a group of one that commits
//! at once or does what a test tells it to, and a broker over both.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rmq_store::{
    Batch, Disk, EntryId, EntryKind, Log, LogIndex, LogReader, NewEntry, PendingRecord, Position,
    Queues, RealDisk, StoreConfig, Term,
};
use rmq_wire::frame::Command as Frame;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::Broker;
use super::message::{Bounds, Message, Properties};
use super::replica::{ForwardError, ProposeError, Replica, Role};
use crate::config::BrokerConfig;
use crate::meta::{Change, Command, Meta, Reply};
use crate::raft::{
    self, GroupStatus, LeaderInfo, MemberChange, MemberStatus, MembersError, NodeId, Patience,
    SelfId, TransferError,
};
use crate::remoting::testing::{Port, Switchboard, network};
use crate::remoting::{self, Client, Limits, Request, Service};
use crate::shutdown::{Shutdown, Trigger};

/// Answers what is forwarded to a leader.
pub(super) type Leader = Box<dyn Fn(Bytes) -> Result<Option<Bytes>, ForwardError> + Send>;

/// Who leads when this node does not: n6.
const OTHER_NODE: NodeId = 6 << 48 | 1;

/// Leads term 1 from the start, and commits at once unless it is told otherwise.
pub(super) struct FakeReplica {
    pub(super) meta: Meta,
    pub(super) role: watch::Sender<Role>,
    /// Every proposal of a command takes one permit.
    pub(super) gate: Semaphore,
    /// Every transfer of leadership takes one permit.
    pub(super) transfers: Semaphore,
    /// What becomes of the next proposal, if it is not committed.
    pub(super) failure: Mutex<Option<ProposeError>>,
    /// Who answers what is forwarded; nobody by default.
    pub(super) leader: Mutex<Option<Leader>>,
    /// That one answers nothing any more.
    pub(super) is_frozen: AtomicBool,
    /// Nothing gets on its way there.
    pub(super) is_cut_off: AtomicBool,
    /// What the status tells of the members.
    pub(super) members: Mutex<Vec<MemberStatus>>,
    /// What members say of their space that do not have some.
    pub(super) fullness: Mutex<HashMap<NodeId, Option<bool>>>,
    /// What becomes of changes of the members, if they are not made.
    pub(super) members_refusal: Mutex<Option<MembersError>>,
    applied: Mutex<Vec<Change>>,
    store: Mutex<Store>,
    /// How often it was asked to remove old segments.
    pub(super) removals: AtomicU32,
    pub(super) reader: LogReader,
    pub(super) queues: Arc<Queues>,
    _dir: TempDir,
}

struct Store {
    log: Log,
    next: LogIndex,
}

impl FakeReplica {
    pub(super) fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            segment_bytes: 1 << 20,
            max_message_bytes: 64 << 10,
            index_slots: 100,
            index_entries: 1000,
            ..StoreConfig::new(dir.path())
        };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let mut log = Log::open(&config, &disk).unwrap();
        let reader = log.reader();
        let queues = Queues::open(&config, disk, reader.clone()).unwrap();
        log.seed_queue_offsets(queues.maxima(), queues.dispatched())
            .unwrap();
        Arc::new(Self {
            meta: Meta::new(),
            role: watch::Sender::new(Role {
                term: 1,
                leader: None,
                serving: true,
            }),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            transfers: Semaphore::new(Semaphore::MAX_PERMITS),
            failure: Mutex::default(),
            leader: Mutex::default(),
            is_frozen: AtomicBool::new(false),
            is_cut_off: AtomicBool::new(false),
            members: Mutex::default(),
            fullness: Mutex::default(),
            members_refusal: Mutex::default(),
            applied: Mutex::default(),
            store: Mutex::new(Store {
                log,
                next: LogIndex(0),
            }),
            removals: AtomicU32::new(0),
            reader,
            queues,
            _dir: dir,
        })
    }

    pub(super) fn become_leader(&self, term: u64) {
        self.role.send_replace(Role {
            term,
            leader: None,
            serving: true,
        });
    }

    pub(super) fn follow(&self, leader: Option<&str>) {
        self.role.send_modify(|role| {
            role.serving = false;
            role.leader = leader.map(str::to_owned);
        });
    }

    /// The commands that were applied.
    pub(super) fn applied(&self) -> Vec<Change> {
        self.applied.lock().unwrap().clone()
    }

    fn check(&self) -> Result<(), ProposeError> {
        if let Some(error) = self.failure.lock().unwrap().take() {
            return Err(error);
        }
        self.serving().map(drop).ok_or(ProposeError::NotLeader)
    }

    /// A message that another node leads here.
    pub(super) fn replicate(&self, topic: &str, body: &[u8]) {
        let host = "10.0.0.1:10911".parse().unwrap();
        let message = Message {
            topic: topic.into(),
            queue_id: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            properties: Properties::default(),
        };
        let bounds = Bounds {
            body_bytes: 1 << 10,
            delay_levels: 0,
        };
        self.append(vec![message.into_record(bounds).unwrap()]);
    }

    fn append(&self, records: Vec<PendingRecord>) -> Vec<Position> {
        let mut store = self.lock();
        let index = store.next;
        store.next = index.next();
        let batch = Batch::new(records);
        let sealed = Arc::clone(&batch.sealed);
        let entry = NewEntry::Unsealed {
            id: EntryId {
                term: Term(1),
                node: 1,
                index,
            },
            kind: EntryKind::Messages,
            meta: Bytes::new(),
            batch: Some(batch),
        };
        let appended = store.log.append(vec![entry]).unwrap();
        let stored = self.reader.entry(index).unwrap().unwrap();
        self.queues.commit(appended.end, &stored.runs);
        sealed.get().unwrap().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }
}

impl Replica for FakeReplica {
    fn propose_messages(
        &self,
        records: Vec<PendingRecord>,
        term: Option<u64>,
    ) -> BoxFuture<'_, Result<Vec<Position>, ProposeError>> {
        async move {
            self.check()?;
            if term.is_some_and(|term| self.serving() != Some(term)) {
                return Err(ProposeError::NotLeader);
            }
            Ok(self.append(records))
        }
        .boxed()
    }

    fn propose_meta(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, ProposeError>> {
        async move {
            self.gate.acquire().await.unwrap().forget();
            self.check()?;
            let change = Command::decode(&command).unwrap().change;
            let mut applied = self.applied.lock().unwrap();
            applied.push(change);
            Ok(self.meta.apply(applied.len() as u64, &command))
        }
        .boxed()
    }

    fn propose_meta_behind(&self, command: Bytes) -> BoxFuture<'_, Result<Reply, ProposeError>> {
        self.propose_meta(command)
    }

    fn serving(&self) -> Option<u64> {
        let role = self.role.borrow();
        role.serving.then_some(role.term)
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    fn status(&self) -> GroupStatus {
        let role = self.role.borrow();
        let node = match role.serving {
            true => Some(u64::MAX),
            false => role.leader.as_ref().map(|_| OTHER_NODE),
        };
        let leader = node.map(|node| LeaderInfo {
            node,
            raft_addr: "10.0.0.1:40911".to_owned(),
            broker_addr: "10.0.0.1:10911".to_owned(),
        });
        GroupStatus {
            node: u64::MAX,
            role: raft::Role::Leader,
            term: role.term,
            leader,
            serving: role.serving,
            last_index: None,
            commit_index: None,
            applied_index: Some(3),
            members: self.members.lock().unwrap().clone(),
            quarantined: false,
            asking: Vec::new(),
            damaged: Vec::new(),
        }
    }

    fn forward(
        &self,
        raw: Bytes,
        _: SocketAddr,
        patience: Patience,
    ) -> BoxFuture<'_, Result<Option<Bytes>, ForwardError>> {
        if self.is_cut_off.load(Ordering::Relaxed) {
            return std::future::pending().boxed();
        }
        assert!(patience.departure.decide(), "given up before");
        if self.is_frozen.load(Ordering::Relaxed) {
            return std::future::pending().boxed();
        }
        let answer = match &*self.leader.lock().unwrap() {
            Some(leader) => leader(raw),
            None => Err(ForwardError::NoLeader),
        };
        async move { answer }.boxed()
    }

    fn is_full(&self, node: NodeId) -> BoxFuture<'_, Option<bool>> {
        let told = self.fullness.lock().unwrap().get(&node).copied();
        async move { told.unwrap_or(Some(false)) }.boxed()
    }

    fn remove_old_segments(&self) {
        self.removals.fetch_add(1, Ordering::Relaxed);
    }

    fn transfer_leader(&self, to: Option<SelfId>) -> BoxFuture<'_, Result<NodeId, TransferError>> {
        async move {
            self.transfers.acquire().await.unwrap().forget();
            self.follow(Some("other:1"));
            Ok(u64::from(to.map_or(1, |to| to.0)) << 48 | 1)
        }
        .boxed()
    }

    fn recover(&self, without_absent: bool) -> BoxFuture<'_, Result<SelfId, MembersError>> {
        let refusal = MembersError::Refused("n2 does not answer".to_owned());
        let recovered = without_absent.then_some(SelfId(1)).ok_or(refusal);
        async move { recovered }.boxed()
    }

    fn change_members(
        &self,
        change: MemberChange,
        node: SelfId,
    ) -> BoxFuture<'_, Result<String, MembersError>> {
        let refusal = self.members_refusal.lock().unwrap().clone();
        let done = format!("{change:?} {node}");
        async move { refusal.map_or(Ok(done), Err) }.boxed()
    }
}

/// A broker over a [`FakeReplica`], with what runs beside the processors.
pub(super) struct Node {
    pub(super) broker: Arc<Broker>,
    pub(super) replica: Arc<FakeReplica>,
    /// Where it listens.
    pub(super) addr: String,
    /// The same in memory: there the clock of a test can be stopped.
    pub(super) port: Port,
    _stop: Trigger,
}

/// Unix milliseconds in tests: the real time, for the store has no other.
pub(super) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis()
        .try_into()
        .unwrap()
}

impl Node {
    pub(super) async fn start() -> Self {
        Self::with(BrokerConfig {
            max_message_size: 1 << 10,
            // Longer than a slow machine takes from one line of a test to the next.
            group_hold_millis: Duration::from_secs(30),
            ..BrokerConfig::default()
        })
        .await
    }

    pub(super) async fn with(config: BrokerConfig) -> Self {
        let replica = FakeReplica::new();
        let broker = Broker::new(
            Arc::new(config),
            "10.0.0.1:10911".parse().unwrap(),
            replica.meta.clone(),
            replica.reader.clone(),
            Arc::clone(&replica.queues),
            Arc::<FakeReplica>::clone(&replica),
            now_ms,
        );
        replica
            .queues
            .start(super::arrival_listener(&broker))
            .unwrap();
        tokio::spawn(Arc::clone(&broker).run());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (trigger, shutdown) = Shutdown::new();
        let service = || Arc::clone(&broker);
        let (net, port) = network();
        let (limits, ends) = (Limits::default(), shutdown.clone());
        tokio::spawn(remoting::serve(net, service(), limits, ends));
        let limits = Limits::default();
        tokio::spawn(remoting::serve(listener, service(), limits, shutdown));
        let node = Self {
            broker,
            replica,
            addr,
            port,
            _stop: trigger,
        };
        node.system_topics().await;
        node
    }

    /// A client of [`Self::port`], whatever address it is told.
    pub(super) fn client_in_memory(&self) -> Client {
        let switchboard = Switchboard::default();
        switchboard.plug(&self.addr, self.port.clone());
        Client::new(switchboard, Limits::default())
    }

    async fn system_topics(&self) {
        let mut revisions = self.replica.meta.revisions();
        while !self
            .replica
            .meta
            .read()
            .groups
            .contains_key("TOOLS_CONSUMER")
        {
            revisions.changed().await.unwrap();
        }
    }

    /// The answer to a request, as if another node had forwarded it.
    pub(super) async fn ask(&self, command: Frame) -> Option<Frame> {
        let request = Request {
            command,
            raw: Bytes::new(),
            conn: None,
            peer: "10.0.0.9:555".parse().unwrap(),
        };
        let reply = Arc::clone(&self.broker).call(request).await?;
        Some(match reply {
            remoting::Reply::Command(command) => command,
            remoting::Reply::Parts(command, parts) => command.with_body(parts.concat().into()),
            remoting::Reply::Frame(frame) => Frame::decode(frame).unwrap(),
        })
    }

    /// The answer, which there must be.
    pub(super) async fn told(&self, command: Frame) -> Frame {
        self.ask(command).await.expect("an answer")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.replica.queues.stop().unwrap();
    }
}
