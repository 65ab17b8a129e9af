//! openraft's network: what the leader and a candidate send. Replication has a connection of its
//! own for each follower, on which appends are pipelined; heartbeats and votes share a second one,
//! so that a batch of entries never delays them; clients' requests for the leader take a third,
//! pulls among them a fourth, and a snapshot one for as long as it is sent.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, stream_append_sequential};
use openraft::raft::{AppendEntriesResponse, SnapshotResponse, TransferLeaderResponse};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};

use super::caller::{CallError, Caller, Dialer, Target, connect};
use super::messages::{
    AppendRequest, AppendResult, Forward, Forwarded, Message, Purpose, Refusal, TransferRequest,
    VoteRequest, VoteResponse, encode_append,
};
use super::snapshot::{self, Throttle};
use super::transport::Net;
use super::wire::{Frame, FrameReader, Kind, MAX_FRAME, MAX_RAW, OutFrame, Role, write_frames};
use super::{Local, SelfId};
use crate::raft::Patience;
use crate::raft::snapshot::SnapshotData;
use crate::raft::types::{BrokerNode, LogId, NodeId, Snapshot, TypeConfig, Vote};

/// Appends on their way to one follower. openraft itself sets no bound.
pub(super) const MAX_APPENDS: usize = 64;
/// Bytes of appends on their way to one follower.
const MAX_APPEND_BYTES: usize = 32 << 20;
const _: () = assert!(MAX_APPEND_BYTES >= MAX_FRAME);
/// How long an append that only says what is committed waits for one with entries, to be written, read and
/// answered with it. With one send after the other each would follow its entry at once, and cost both sides
/// as much again.
const COMMIT_WAIT: Duration = Duration::from_millis(10);
/// With appends unanswered for this long the connection is given up: a follower's slow disk is
/// slower than that only when something is wrong.
pub(super) const APPEND_LIMIT: Duration = Duration::from_secs(3);
/// Waiting times before a peer that cannot be reached is tried again.
const BACKOFF_MS: [u64; 5] = [20, 40, 80, 160, 320];
const LONGEST_BACKOFF: Duration = Duration::from_millis(500);

type RpcError = RPCError<TypeConfig>;

/// The connections to all peers.
#[derive(Clone)]
pub(in crate::raft) struct Network {
    shared: Arc<Shared>,
}

/// The last entry of this node's own log.
pub(in crate::raft) type LastLogId = Arc<dyn Fn() -> Option<LogId> + Send + Sync>;

struct Shared {
    dialer: Dialer,
    last_log_id: LastLogId,
    throttle: Arc<Throttle>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

struct Peer {
    target: Target,
    control: Caller,
    forward: Caller,
    /// None of the others waits behind them.
    pulls: Caller,
}

/// Why a client's request has no answer from the leader.
#[derive(Debug, thiserror::Error)]
pub(in crate::raft) enum ForwardError {
    /// It was not done: the leader was not reached, or does not lead any more.
    #[error("the leader did not take the request: {0}")]
    NotDone(String),
    /// It may have been done.
    #[error("the outcome of the forwarded request is unknown: {0}")]
    Unknown(String),
}

impl Network {
    /// Must be called within the runtime on which the connections are to live.
    pub(in crate::raft) fn new(
        net: Arc<dyn Net>,
        local: Arc<Local>,
        last_log_id: LastLogId,
        throttle: Throttle,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                dialer: Dialer {
                    net,
                    local,
                    runtime: Handle::current(),
                },
                last_log_id,
                throttle: Arc::new(throttle),
                peers: Mutex::default(),
            }),
        }
    }

    fn peer(&self, node: NodeId, addr: &str) -> Arc<Peer> {
        let mut peers = self
            .shared
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&node)
            && peer.target.addr == addr
        {
            return Arc::clone(peer);
        }
        let target = Target {
            addr: addr.to_owned(),
            node: Some(node),
        };
        let of_raft = self.shared.dialer.clone();
        let of_clients = Dialer {
            runtime: of_raft.local.clients.clone(),
            ..of_raft.clone()
        };
        let peer = Arc::new(Peer {
            control: Caller::new(of_raft, target.clone(), Purpose::Control),
            forward: Caller::new(of_clients.clone(), target.clone(), Purpose::Forward),
            pulls: Caller::new(of_clients, target.clone(), Purpose::Forward),
            target,
        });
        // A former incarnation is not dialled again; who still holds it can finish with it.
        peers.retain(|other, _| SelfId::of(*other) != SelfId::of(node));
        peers.insert(node, Arc::clone(&peer));
        peer
    }

    /// Has the leader `node` at `addr` (its peer address) answer a client's frame. `Ok(None)` when
    /// there is nothing to answer.
    pub(in crate::raft) async fn forward(
        &self,
        node: NodeId,
        addr: &str,
        client: SocketAddr,
        frame: Bytes,
        patience: impl Into<Patience>,
    ) -> Result<Option<Bytes>, ForwardError> {
        if frame.len() > MAX_RAW {
            let reason = format!(
                "it has {} bytes, at most {MAX_RAW} can be forwarded",
                frame.len()
            );
            return Err(ForwardError::NotDone(reason));
        }
        let peer = self.peer(node, addr);
        let head = Forward { client }.to_head();
        let Patience {
            limit,
            is_pull,
            departure,
        } = patience.into();
        let caller = match is_pull {
            true => &peer.pulls,
            false => &peer.forward,
        };
        let answer = caller
            .call_unless(departure, Kind::Forward, head, frame, limit)
            .await
            .map_err(|e| match e {
                CallError::NotSent(reason) | CallError::Refused(Refusal { reason, .. }) => {
                    ForwardError::NotDone(reason)
                }
                CallError::Lost(reason) => ForwardError::Unknown(reason),
            })?;
        match Forwarded::from_head(&answer.head) {
            Ok(Forwarded { answered: true }) => Ok(Some(answer.raw)),
            Ok(Forwarded { answered: false }) => Ok(None),
            Err(e) => Err(ForwardError::Unknown(e.to_string())),
        }
    }

    /// Whether a node has no space for messages; `None` if it does not say.
    pub(in crate::raft) async fn is_full(
        &self,
        node: NodeId,
        addr: &str,
        limit: Duration,
    ) -> Option<bool> {
        self.whether(Kind::Full, node, addr, limit).await
    }

    /// Whether a node could lead now; `None` if it does not say.
    pub(in crate::raft) async fn can_lead(
        &self,
        node: NodeId,
        addr: &str,
        limit: Duration,
    ) -> Option<bool> {
        self.whether(Kind::CanLead, node, addr, limit).await
    }

    async fn whether(&self, kind: Kind, node: NodeId, addr: &str, limit: Duration) -> Option<bool> {
        let peer = self.peer(node, addr);
        let answer = peer.control.ask(kind, &(), limit).await;
        answer.ok()
    }

    fn link(&self, node: NodeId, addrs: &BrokerNode, pipelined: bool) -> Link {
        Link {
            dialer: self.shared.dialer.clone(),
            last_log_id: Arc::clone(&self.shared.last_log_id),
            throttle: Arc::clone(&self.shared.throttle),
            node,
            peer: self.peer(node, &addrs.raft_addr),
            pipelined,
            idle: None,
        }
    }
}

/// A connection for replication with nothing outstanding on it.
struct LogConnection {
    reader: FrameReader<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    next_id: u64,
}

impl LogConnection {
    async fn open(dialer: &Dialer, target: &Target) -> Result<Self, CallError> {
        let connection = connect(dialer, target, Purpose::Log).await?;
        Ok(Self {
            reader: connection.reader,
            writer: connection.writer,
            next_id: 1,
        })
    }
}

/// Appends sent and not answered yet.
struct Window {
    places: Semaphore,
    bytes: Semaphore,
    sent: Mutex<VecDeque<Sent>>,
}

struct Sent {
    id: u64,
    bytes: usize,
    at: Instant,
}

impl Window {
    fn sent(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of appends: a task of its own writes them while the answers are read, so neither
/// direction ever waits for the other. Dropping it closes the connection.
struct Pipeline {
    reader: FrameReader<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    writing: JoinSet<io::Result<(Box<dyn AsyncWrite + Send + Sync + Unpin>, u64)>>,
    /// What the writing task left when it had no more to send.
    written: Option<(Box<dyn AsyncWrite + Send + Sync + Unpin>, u64)>,
    window: Arc<Window>,
    last_answer: Instant,
    check: Interval,
}

enum PipelineError {
    /// The connection broke; it may be made again at once.
    Broken(String),
    /// No answer came within [`APPEND_LIMIT`].
    Stuck,
}

impl Pipeline {
    fn start<S>(connection: LogConnection, input: S, last_log_id: LastLogId) -> Self
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
    {
        let window = Arc::new(Window {
            places: Semaphore::new(MAX_APPENDS),
            bytes: Semaphore::new(MAX_APPEND_BYTES),
            sent: Mutex::default(),
        });
        let LogConnection {
            reader,
            writer,
            next_id,
        } = connection;
        let mut writing = JoinSet::new();
        let sent = Arc::clone(&window);
        writing.spawn(send_appends(writer, input, last_log_id, sent, next_id));
        let mut check = interval(APPEND_LIMIT / 4);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            reader,
            writing,
            written: None,
            window,
            last_answer: Instant::now(),
            check,
        }
    }

    /// The next answer; `None` when everything was sent and answered.
    async fn next(&mut self) -> Result<Option<AppendResult>, PipelineError> {
        loop {
            if self.written.is_some() && self.window.sent().is_empty() {
                return Ok(None);
            }
            tokio::select! {
                read = self.reader.next() => match read {
                    Ok(Some(answer)) => return self.answered(answer).map(Some),
                    Ok(None) => return Err(broken("the peer closed the connection")),
                    Err(e) => return Err(broken(e)),
                },
                Some(ended) = self.writing.join_next(), if self.written.is_none() => {
                    match ended {
                        Ok(Ok(written)) => self.written = Some(written),
                        // The follower's last answer may say why it hung up: it is read first.
                        Ok(Err(e)) => tracing::debug!("appends cannot be written: {e}"),
                        Err(e) => return Err(broken(e)),
                    }
                }
                _ = self.check.tick() => {
                    let oldest = self.window.sent().front().map(|sent| sent.at);
                    if oldest.is_some_and(|at| at.max(self.last_answer).elapsed() > APPEND_LIMIT) {
                        return Err(PipelineError::Stuck);
                    }
                }
            }
        }
    }

    fn answered(&mut self, answer: Frame) -> Result<AppendResult, PipelineError> {
        let sent = self.window.sent().pop_front();
        let sent = sent.ok_or_else(|| broken("an answer without a request"))?;
        if sent.id != answer.id {
            return Err(broken("answers out of order"));
        }
        self.window.places.add_permits(1);
        self.window.bytes.add_permits(sent.bytes);
        self.last_answer = Instant::now();
        if answer.role == Role::Refusal {
            return Err(broken(
                Refusal::from_head(&answer.head).map_or_else(|e| e.to_string(), |r| r.reason),
            ));
        }
        AppendResult::from_head(&answer.head).map_err(broken)
    }

    /// The connection, after the last answer.
    fn finish(self) -> Option<LogConnection> {
        let (writer, next_id) = self.written?;
        Some(LogConnection {
            reader: self.reader,
            writer,
            next_id,
        })
    }
}

fn broken(reason: impl ToString) -> PipelineError {
    PipelineError::Broken(reason.to_string())
}

async fn send_appends<S>(
    mut writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    mut input: S,
    last_log_id: LastLogId,
    window: Arc<Window>,
    mut next_id: u64,
) -> io::Result<(Box<dyn AsyncWrite + Send + Sync + Unpin>, u64)>
where
    S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
{
    const NEVER_CLOSED: &str = "the window is never closed";
    // Frames without entries, and how long they wait.
    let mut waiting = Vec::new();
    let mut until = Instant::now();
    loop {
        // Before the request is made: one made later brings all that was appended meanwhile.
        let next = async {
            let place = window.places.acquire().await.expect(NEVER_CLOSED);
            input.next().await.map(|request| (place, request))
        };
        let next = match waiting.is_empty() {
            true => next.await,
            false => match timeout_at(until, next).await {
                Ok(next) => next,
                Err(_) => {
                    write_frames(&mut writer, waiting.drain(..)).await?;
                    continue;
                }
            },
        };
        let Some((place, request)) = next else {
            write_frames(&mut writer, waiting).await?;
            return Ok((writer, next_id));
        };
        place.forget();
        let (head, raw) = encode_append(&request, last_log_id());
        let frame = OutFrame::new(Kind::Append, Role::Request, next_id, &head, raw);
        let bytes = frame.len();
        let permits = u32::try_from(bytes).ok().filter(|_| bytes <= MAX_FRAME);
        let permits = permits.ok_or_else(|| {
            io::Error::other(format!(
                "append of {bytes} bytes, a frame takes {MAX_FRAME}"
            ))
        })?;
        let room = match window.bytes.try_acquire_many(permits) {
            Ok(room) => room,
            Err(_) => {
                // What waits may be what there has to be an answer to.
                write_frames(&mut writer, waiting.drain(..)).await?;
                let room = window.bytes.acquire_many(permits).await;
                room.expect(NEVER_CLOSED)
            }
        };
        room.forget();
        window.sent().push_back(Sent {
            id: next_id,
            bytes,
            at: Instant::now(),
        });
        next_id += 1;
        if waiting.is_empty() {
            until = Instant::now() + COMMIT_WAIT;
        }
        waiting.push(frame);
        if !request.entries.is_empty() {
            write_frames(&mut writer, waiting.drain(..)).await?;
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, node: NodeId, addrs: &BrokerNode) -> Link {
        self.link(node, addrs, true)
    }

    async fn new_heartbeat_client(&mut self, node: NodeId, addrs: &BrokerNode) -> Link {
        self.link(node, addrs, false)
    }
}

/// What openraft sends to one peer.
pub(in crate::raft) struct Link {
    dialer: Dialer,
    last_log_id: LastLogId,
    throttle: Arc<Throttle>,
    node: NodeId,
    peer: Arc<Peer>,
    /// Appends go over a connection of this link's own; else, as heartbeats, over the shared one.
    pipelined: bool,
    /// That connection between two streams, with nothing outstanding on it.
    idle: Option<LogConnection>,
}

impl Link {
    async fn ask<A: Message>(
        &self,
        kind: Kind,
        rpc: RPCTypes,
        request: &impl Message,
        option: &RPCOption,
    ) -> Result<A, RpcError> {
        let limit = option.hard_ttl();
        self.peer
            .control
            .ask(kind, request, limit)
            .await
            .map_err(|e| self.rpc_error(rpc, limit, e))
    }

    fn rpc_error(&self, action: RPCTypes, limit: Duration, error: CallError) -> RpcError {
        match error {
            CallError::NotSent(reason) | CallError::Refused(Refusal { reason, .. }) => {
                RPCError::Unreachable(Unreachable::from_string(reason))
            }
            CallError::Lost(_) => RPCError::Timeout(Timeout {
                action,
                id: self.dialer.local.node,
                target: self.node,
                timeout: limit,
            }),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    /// A heartbeat: answered out of order with whatever else is on the connection.
    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let (head, raw) = encode_append(&request, (self.last_log_id)());
        let raw = raw.concat().into();
        let limit = option.hard_ttl();
        let answer = self
            .peer
            .control
            .call(Kind::Heartbeat, head, raw, limit)
            .await
            .and_then(|answer| Ok(AppendResult::from_head(&answer.head)?))
            .map_err(|e| self.rpc_error(RPCTypes::AppendEntries, limit, e))?;
        Ok(answer.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        if !self.pipelined {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let connection = match self.idle.take() {
                Some(connection) => connection,
                None => LogConnection::open(&self.dialer, &self.peer.target)
                    .await
                    .map_err(|e| self.rpc_error(RPCTypes::AppendEntries, APPEND_LIMIT, e))?,
            };
            let pipeline = Pipeline::start(connection, input, Arc::clone(&self.last_log_id));
            let answers = stream::unfold(Some((self, pipeline)), |state| async move {
                let (link, mut pipeline) = state?;
                match pipeline.next().await {
                    Ok(Some(result)) => {
                        // The follower hangs up after a refusal: what was sent behind it is void.
                        let state = result.is_ok().then_some((link, pipeline));
                        Some((Ok(result), state))
                    }
                    Ok(None) => {
                        link.idle = pipeline.finish();
                        None
                    }
                    Err(PipelineError::Broken(reason)) => {
                        let error = NetworkError::from_string(reason);
                        Some((Err(RPCError::Network(error)), None))
                    }
                    Err(PipelineError::Stuck) => {
                        let error = link.rpc_error(
                            RPCTypes::AppendEntries,
                            APPEND_LIMIT,
                            CallError::Lost("stuck".to_owned()),
                        );
                        Some((Err(error), None))
                    }
                }
            });
            let answers: BoxStream<'s, _> = Box::pin(answers);
            Ok(answers)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RpcError> {
        self.ask(Kind::Vote, RPCTypes::Vote, &request, &option)
            .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RpcError> {
        self.ask(Kind::PreVote, RPCTypes::Vote, &request, &option)
            .await
    }

    /// Ends well once the follower has installed the snapshot, which is seen from its answer to a
    /// later offer; openraft calls again until then.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let data = snapshot.snapshot;
        let (dialer, target) = (&self.dialer, &self.peer.target);
        let sent = tokio::select! {
            sent = snapshot::send(dialer, target, &self.throttle, vote, data) => sent,
            closed = cancel => return Err(closed.into()),
        };
        let reason = match sent {
            Ok(snapshot::Sent::Settled(vote)) => return Ok(SnapshotResponse::new(vote)),
            Ok(snapshot::Sent::Installing) => "it installs the snapshot".to_owned(),
            Err(error @ CallError::NotSent(_)) => error.to_string(),
            Err(error) => {
                tracing::warn!(node = self.node, "snapshot not sent: {error}");
                error.to_string()
            }
        };
        Err(Unreachable::from_string(reason).into())
    }

    async fn transfer_leader(
        &mut self,
        request: TransferRequest,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let rpc = RPCTypes::TransferLeader;
        self.ask(Kind::TransferLeader, rpc, &request, &option).await
    }

    fn backoff(&self) -> Option<Backoff> {
        let first = BACKOFF_MS.into_iter().map(Duration::from_millis);
        Some(Backoff::new(
            first.chain(std::iter::repeat(LONGEST_BACKOFF)),
        ))
    }
}
