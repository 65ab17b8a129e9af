//! The side that answers: one listener, a task for each connection, and a place where every request
//! of a peer is let through to Raft, to the broker or to formation.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::caller::MAX_OUTSTANDING;
use super::join::Joins;
use super::messages::{
    Append, AppendResult, DecodeError, Form, Forward, Forwarded, Hello, Join, Message, NodeInfo,
    Purpose, Refusal, RefusalKind, TransferRequest, VoteRequest, decode_append,
};
use super::nag::Nag;
use super::network::MAX_APPENDS;
use super::transport::{Duplex, Listener};
use super::wire::{
    Frame, FrameError, FrameReader, Kind, MAX_FRAME, MAX_HELLO_FRAME, MAX_RAW, OutFrame, ReadError,
    Role, write_frames,
};
use super::{GroupId, Local, SelfId};
use crate::raft::Raft;
use crate::raft::gate::VoteGate;
use crate::raft::types::LogId;

/// How long a new connection may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(3);
/// How long a connection for getting acquainted may be silent.
const MEET_IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long a connection outlives its last request so that the other end gets the last answer. After
/// an append was refused the follower goes on reading for as long: closing with unread bytes would
/// reset the connection.
const LINGER: Duration = Duration::from_secs(1);
/// A group has few nodes and each opens few connections.
const MAX_CONNECTIONS: usize = 256;
/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Frames written in one go.
const MAX_BURST: usize = 64;

/// Answers a client's frame that another node forwarded: the client's address, the frame without
/// its length field; the answer likewise, or `None` for none.
pub type ForwardHandler =
    Arc<dyn Fn(SocketAddr, Bytes) -> BoxFuture<'static, Option<Bytes>> + Send + Sync>;

/// What the requests of peers act on.
pub(in crate::raft) struct Shared {
    pub(in crate::raft) local: Arc<Local>,
    pub(in crate::raft) raft: Raft,
    /// Shut while this node may have promised or lost what it does not remember.
    pub(in crate::raft) gate: VoteGate,
    pub(in crate::raft) forward: ForwardHandler,
    pub(in crate::raft) joins: Joins,
    /// `raftJoin`: this node joins a group and never forms one.
    pub(in crate::raft) join_only: bool,
    /// A stranger that keeps calling is not worth a line each time.
    pub(in crate::raft) nag: Nag,
}

/// Serves whoever dials, until it is dropped.
pub(super) async fn accept(listener: Box<dyn Listener>, shared: Arc<Shared>) {
    // Dropped with this task, which ends the connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok(duplex) if connections.len() < MAX_CONNECTIONS => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let peer = duplex.peer;
                    if let Err(e) = serve(duplex, Arc::clone(&shared)).await {
                        let text = format!("connection from {} closed: {e}", peer.ip());
                        if shared.nag.is_due(&text) {
                            tracing::warn!("{text}");
                        }
                    }
                });
            }
            Ok(duplex) => tracing::warn!(
                peer = %duplex.peer,
                "connection refused: {MAX_CONNECTIONS} are open"
            ),
            Err(e) => {
                tracing::warn!("no connection accepted: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

type Reader = FrameReader<Box<dyn AsyncRead + Send + Sync + Unpin>>;

/// Why this side closes a connection.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{kind:?} request: {source}")]
    Decode { kind: Kind, source: DecodeError },
    #[error("{0}")]
    Stranger(String),
    #[error("it does not begin with a hello")]
    NoHello,
    #[error("it has not said who it is")]
    Silent,
    #[error("a {kind:?} request on a connection for {purpose:?}")]
    OutOfPlace { kind: Kind, purpose: Purpose },
    #[error("an answer where a request is due")]
    NoRequest,
    #[error("more than {MAX_OUTSTANDING} requests wait for their answer")]
    Crowded,
    #[error("this node has agreed to form another group meanwhile")]
    Regrouped,
    #[error("raft has stopped")]
    Stopped,
}

async fn serve(duplex: Duplex, shared: Arc<Shared>) -> Result<(), Closed> {
    let Duplex { read, write, .. } = duplex;
    let (answers, to_write) = mpsc::channel(MAX_OUTSTANDING);
    // Dropped with this task, which closes the connection.
    let mut writer = JoinSet::new();
    writer.spawn(write_answers(write, to_write));
    let end = converse(FrameReader::new(read, MAX_HELLO_FRAME), answers, shared).await;
    // The last answer may say why. It ends by itself unless requests are still being handled.
    drop(timeout(LINGER, writer.join_next()).await);
    end
}

async fn converse(
    mut reader: Reader,
    answers: mpsc::Sender<OutFrame>,
    shared: Arc<Shared>,
) -> Result<(), Closed> {
    let frame = match timeout(HELLO_LIMIT, reader.next()).await {
        Ok(Ok(Some(frame))) => frame,
        Ok(Err(ReadError::Frame(e))) => return Err(e.into()),
        Ok(Ok(None) | Err(ReadError::Io(_) | ReadError::Truncated)) => return Ok(()),
        Err(_) => return Err(Closed::Silent),
    };
    if frame.kind != Kind::Hello || frame.role != Role::Request {
        return Err(Closed::NoHello);
    }
    let own = shared.introduction().await;
    let hello = match Hello::from_head(&frame.head) {
        Ok(hello) => hello,
        Err(source) => {
            // Another version at least understands a refusal.
            refuse(&answers, &frame, Refusal::refused(source.to_string())).await;
            return Err(Closed::Decode {
                kind: Kind::Hello,
                source,
            });
        }
    };
    if let Err(refusal) = admit(&hello, &own) {
        let from = &hello.from;
        let reason = format!("{} (node {}): {refusal}", from.self_id, from.node);
        let expected = refusal.kind == RefusalKind::Later;
        refuse(&answers, &frame, refusal).await;
        if expected {
            return Ok(());
        }
        return Err(Closed::Stranger(reason));
    }
    answer(&answers, &frame, &own).await;
    if hello.purpose != Purpose::Meet {
        reader.set_max(MAX_FRAME);
    }

    let connection = Connection {
        shared,
        hello,
        answers,
        places: Arc::new(Semaphore::new(MAX_OUTSTANDING)),
    };
    match connection.hello.purpose {
        Purpose::Log => connection.follow(reader).await,
        _ => connection.serve(reader).await,
    }
}

async fn write_answers(
    mut write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    mut answers: mpsc::Receiver<OutFrame>,
) {
    let mut batch = Vec::new();
    while answers.recv_many(&mut batch, MAX_BURST).await > 0 {
        if write_frames(&mut write, batch.drain(..)).await.is_err() {
            return;
        }
    }
}

async fn answer(answers: &mpsc::Sender<OutFrame>, request: &Frame, message: &impl Message) {
    send(answers, request, Role::Answer, &message.to_head(), None).await;
}

async fn refuse(answers: &mpsc::Sender<OutFrame>, request: &Frame, refusal: Refusal) {
    send(answers, request, Role::Refusal, &refusal.to_head(), None).await;
}

async fn send(
    answers: &mpsc::Sender<OutFrame>,
    request: &Frame,
    role: Role,
    head: &[u8],
    raw: Option<Bytes>,
) {
    let raw = raw.into_iter().collect();
    let frame = OutFrame::new(request.kind, role, request.id, head, raw);
    // The connection may have ended meanwhile; there is nobody left to tell.
    drop(answers.send(frame).await);
}

/// Decides whether the caller may speak to this node for the purpose that it names.
fn admit(hello: &Hello, own: &NodeInfo) -> Result<(), Refusal> {
    let from = &hello.from;
    if from.group_name != own.group_name {
        return Err(Refusal::refused(format!(
            "this is {} of broker group {:?}, you are of {:?}",
            own.self_id, own.group_name, from.group_name
        )));
    }
    if from.self_id == own.self_id {
        return Err(Refusal::refused(format!(
            "this is {} (node {}), and so are you (node {})",
            own.self_id, own.node, from.node
        )));
    }
    if let Some(target) = hello.target
        && target != own.node
    {
        return Err(Refusal::refused(format!(
            "this is {} (node {}), you want {} (node {target})",
            own.self_id,
            own.node,
            SelfId::of(target)
        )));
    }
    if hello.purpose == Purpose::Meet {
        return Ok(());
    }
    match (own.group, from.group) {
        (Some(own_group), Some(group)) if own_group == group => Ok(()),
        (Some(own_group), Some(group)) => Err(Refusal::refused(format!(
            "this is {} of group {own_group}, you are of group {group}: two groups share the name \
             {:?}",
            own.self_id, own.group_name
        ))),
        (None, _) => Err(Refusal::later(format!(
            "this is {}, which belongs to no group yet",
            own.self_id
        ))),
        (_, None) => Err(Refusal::refused("you belong to no group yet")),
    }
}

impl Shared {
    /// What this node says of itself now.
    async fn introduction(&self) -> NodeInfo {
        self.hold_if_initialized().await;
        self.local.info().await
    }

    /// Notes durably that Raft has begun to act for the group, once it has.
    pub(super) async fn hold_if_initialized(&self) {
        if self.local.identity.read().await.held() {
            return;
        }
        if let Ok(true) = self.raft.is_initialized().await
            && let Err(e) = self.local.identity.write().await.hold()
        {
            // Only an emptied store would go unnoticed, and the next message tries again.
            tracing::warn!("identity file not written: {e}");
        }
    }

    /// Lets Raft act on a message that a member of `group` sent.
    async fn acting_for<T>(
        &self,
        group: GroupId,
        act: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        let identity = self.local.identity.read().await;
        if identity.group() != Some(group) {
            return Err(Refusal::refused(format!(
                "this node has agreed to form another group than {group}"
            )));
        }
        if identity.held() {
            drop(identity);
            return Ok(act.await);
        }
        let result = act.await;
        drop(identity);
        self.hold_if_initialized().await;
        Ok(result)
    }

    fn check_gate(&self, request: &VoteRequest) -> Result<(), Refusal> {
        // When the leader itself asked for this election, its lease does not stand in the way.
        if request.leadership_transfer || self.gate.is_open() {
            return Ok(());
        }
        Err(Refusal::later(format!(
            "{} does not vote yet: it has to keep what it promised before it was restarted",
            self.local.self_id
        )))
    }

    /// Notes what the leader has, once it has proven to be one.
    fn heard(&self, result: &AppendResult, leader_last: Option<LogId>) {
        if result.is_ok()
            && let Some(last) = leader_last
        {
            self.gate.heard_leader(last);
        }
    }

    /// Agrees durably to belong to `group`, unless Raft has already acted for one.
    pub(super) async fn agree_to(&self, group: GroupId) -> Result<(), Refusal> {
        let mut identity = self.local.identity.write().await;
        let initialized = self.raft.is_initialized().await.map_err(stopped)?;
        if identity.held() || initialized {
            let group = identity
                .group()
                .map_or_else(|| "-".to_owned(), |id| id.to_string());
            return Err(Refusal::refused(format!(
                "{} already holds group {group}",
                self.local.self_id
            )));
        }
        identity
            .agree(group)
            .map_err(|e| Refusal::later(format!("{}: identity file: {e}", self.local.self_id)))
    }

    /// Where the other configured nodes listen.
    pub(super) fn peer_addrs(&self) -> impl Iterator<Item = String> {
        let others = self.local.peers.iter();
        let others = others.filter(|(id, _)| *id != self.local.self_id);
        others.map(|(_, addr)| addr.to_owned())
    }

    /// Whether this node believes to lead.
    pub(super) fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().current_leader == Some(self.local.node)
    }
}

/// An introduced connection.
struct Connection {
    shared: Arc<Shared>,
    hello: Hello,
    answers: mpsc::Sender<OutFrame>,
    places: Arc<Semaphore>,
}

impl Connection {
    /// The group that both ends belong to, on connections that need one.
    fn group(&self) -> GroupId {
        let group = self.hello.from.group;
        group.expect("admitted for a purpose that needs a group")
    }

    /// Reads the next frame; `None` where the peer is gone.
    async fn next(&self, reader: &mut Reader, limit: Duration) -> Result<Option<Frame>, Closed> {
        match timeout(limit, reader.next()).await {
            Ok(Ok(Some(frame))) if frame.role == Role::Request => Ok(Some(frame)),
            Ok(Ok(Some(_))) => Err(Closed::NoRequest),
            Ok(Err(ReadError::Frame(e))) => Err(e.into()),
            Ok(Ok(None) | Err(ReadError::Io(_) | ReadError::Truncated)) | Err(_) => Ok(None),
        }
    }

    /// Requests that are independent of each other: each on a task of its own.
    async fn serve(self, mut reader: Reader) -> Result<(), Closed> {
        let limit = match self.hello.purpose {
            Purpose::Meet => MEET_IDLE_LIMIT,
            // The kernel finds out when the other machine is gone.
            _ => Duration::MAX,
        };
        let this = Arc::new(self);
        while let Some(frame) = this.next(&mut reader, limit).await? {
            let request = Request::read(&frame, this.hello.purpose)?;
            if matches!(request, Request::Ping) {
                answer(&this.answers, &frame, &()).await;
                continue;
            }
            let place = Arc::clone(&this.places).try_acquire_owned();
            let place = place.map_err(|_| Closed::Crowded)?;
            let this = Arc::clone(&this);
            // Goes on when the connection breaks: what was begun for a client is not cut short.
            tokio::spawn(async move {
                match this.handle(request, frame.raw.clone()).await {
                    Ok((head, raw)) => {
                        send(&this.answers, &frame, Role::Answer, &head, raw).await;
                    }
                    Err(refusal) => refuse(&this.answers, &frame, refusal).await,
                }
                drop(place);
            });
        }
        Ok(())
    }

    async fn handle(
        &self,
        request: Request,
        raw: Bytes,
    ) -> Result<(Vec<u8>, Option<Bytes>), Refusal> {
        let shared = &self.shared;
        let raft = &shared.raft;
        let head = match request {
            Request::Heartbeat(append) => append_one(shared, self.group(), append).await?.to_head(),
            Request::Vote(request) => {
                shared.check_gate(&request)?;
                let vote = shared.acting_for(self.group(), raft.vote(request)).await?;
                vote.map_err(stopped)?.to_head()
            }
            Request::PreVote(request) => {
                shared.check_gate(&request)?;
                raft.pre_vote(request).await.map_err(stopped)?.to_head()
            }
            Request::Transfer(request) => {
                let transfer = raft.handle_transfer_leader(request);
                let transfer = shared.acting_for(self.group(), transfer).await?;
                transfer.map_err(stopped)?.to_head()
            }
            Request::Form(form) => {
                shared.agree_to_form(&self.hello.from, &form).await?;
                Vec::new()
            }
            Request::Join(join) => {
                let answer = shared.joins.advance(shared, &self.hello.from, join).await?;
                answer.to_head()
            }
            Request::Forward(Forward { client }) => {
                if !shared.leads() {
                    return Err(Refusal {
                        kind: RefusalKind::NotLeader,
                        reason: format!("{} does not lead", shared.local.self_id),
                    });
                }
                let raw = (shared.forward)(client, raw).await;
                let raw = raw.filter(|raw| {
                    let fits = raw.len() <= MAX_RAW;
                    if !fits {
                        tracing::warn!(%client, "forwarded answer of {} bytes dropped", raw.len());
                    }
                    fits
                });
                let answered = raw.is_some();
                return Ok((Forwarded { answered }.to_head(), raw));
            }
            Request::Ping => Vec::new(),
        };
        Ok((head, None))
    }

    /// Appends of the log, in order and pipelined.
    async fn follow(self, mut reader: Reader) -> Result<(), Closed> {
        let Self { shared, .. } = &self;
        // Until the identity is held, one by one: see `Shared::acting_for`.
        while !shared.local.identity.read().await.held() {
            let Some((frame, append)) = self.next_append(&mut reader).await? else {
                return Ok(());
            };
            match append_one(shared, self.group(), append).await {
                Ok(result) => {
                    answer(&self.answers, &frame, &result).await;
                    if result.is_err() {
                        return linger(&mut reader).await;
                    }
                }
                Err(refusal) => {
                    refuse(&self.answers, &frame, refusal).await;
                    return linger(&mut reader).await;
                }
            }
        }
        if shared.local.identity.read().await.group() != Some(self.group()) {
            return Err(Closed::Regrouped);
        }

        let (requests, mut input) = mpsc::channel(MAX_APPENDS);
        let (frames, mut unanswered) = mpsc::channel(MAX_APPENDS);
        let results = shared
            .raft
            .stream_append(stream::poll_fn(move |cx| input.poll_recv(cx)));
        let mut results = std::pin::pin!(results);
        let read = async {
            while let Some((mut frame, append)) = self.next_append(&mut reader).await? {
                // Only what an answer needs is kept.
                frame.head = Bytes::new();
                frame.raw = Bytes::new();
                let unanswered = (frame, append.leader_last);
                frames.try_send(unanswered).map_err(|_| Closed::Crowded)?;
                if requests.send(append.request).await.is_err() {
                    return Err(Closed::Stopped);
                }
            }
            Ok(())
        };
        let respond = async {
            while let Some(result) = results.next().await {
                let result = result.map_err(|_| Closed::Stopped)?;
                let (frame, leader_last) = unanswered.recv().await.ok_or(Closed::Stopped)?;
                shared.heard(&result, leader_last);
                answer(&self.answers, &frame, &result).await;
                if result.is_err() {
                    return Ok(());
                }
            }
            Err(Closed::Stopped)
        };
        tokio::select! {
            end = read => return end,
            end = respond => end?,
        }
        linger(&mut reader).await
    }

    /// The next append.
    async fn next_append(&self, reader: &mut Reader) -> Result<Option<(Frame, Append)>, Closed> {
        let Some(frame) = self.next(reader, Duration::MAX).await? else {
            return Ok(None);
        };
        if frame.kind != Kind::Append {
            return Err(Closed::OutOfPlace {
                kind: frame.kind,
                purpose: Purpose::Log,
            });
        }
        let append = decode_append(&frame.head, frame.raw.clone());
        let append = append.map_err(|source| Closed::Decode {
            kind: frame.kind,
            source,
        })?;
        Ok(Some((frame, append)))
    }
}

/// Reads on until the leader has seen the refusal and hangs up, see [`LINGER`].
async fn linger(reader: &mut Reader) -> Result<(), Closed> {
    let until = Instant::now() + LINGER;
    while let Ok(Ok(Some(_))) = timeout_at(until, reader.next()).await {}
    Ok(())
}

async fn append_one(
    shared: &Shared,
    group: GroupId,
    append: Append,
) -> Result<AppendResult, Refusal> {
    let request = append.request;
    let before = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.id).or(before);
    let appended = shared.raft.append_entries(request);
    let response = shared.acting_for(group, appended).await?.map_err(stopped)?;
    let result = response.into_stream_result(before, last);
    shared.heard(&result, append.leader_last);
    Ok(result)
}

fn stopped(e: impl std::fmt::Display) -> Refusal {
    Refusal::later(format!("raft has stopped: {e}"))
}

/// A request whose head was read.
enum Request {
    Heartbeat(Append),
    Vote(VoteRequest),
    PreVote(VoteRequest),
    Transfer(TransferRequest),
    Form(Form),
    Join(Join),
    Forward(Forward),
    Ping,
}

impl Request {
    fn read(frame: &Frame, purpose: Purpose) -> Result<Self, Closed> {
        let kind = frame.kind;
        let head = &frame.head;
        let request = match (purpose, kind) {
            (_, Kind::Ping) => Ok(Self::Ping),
            (Purpose::Meet, Kind::Form) => Message::from_head(head).map(Self::Form),
            (Purpose::Meet, Kind::Join) => Message::from_head(head).map(Self::Join),
            (Purpose::Control, Kind::Heartbeat) => {
                decode_append(head, frame.raw.clone()).map(Self::Heartbeat)
            }
            (Purpose::Control, Kind::Vote) => Message::from_head(head).map(Self::Vote),
            (Purpose::Control, Kind::PreVote) => Message::from_head(head).map(Self::PreVote),
            (Purpose::Control, Kind::TransferLeader) => {
                Message::from_head(head).map(Self::Transfer)
            }
            (Purpose::Forward, Kind::Forward) => Message::from_head(head).map(Self::Forward),
            _ => return Err(Closed::OutOfPlace { kind, purpose }),
        };
        request.map_err(|source| Closed::Decode { kind, source })
    }
}
