//! The side that answers: one listener, a task for each connection, and a place where every request
//! of a peer is let through to Raft, to the broker or to formation.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use rmq_store::ExtentError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::task::coop::{consume_budget, unconstrained};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::caller::outstanding;
use super::death::Secret;
use super::messages::{
    Append, AppendRequest, AppendResult, DecodeError, Form, Forward, Forwarded, Hello, Join,
    Message, NodeInfo, Purpose, Recover, Refusal, RefusalKind, TransferRequest, VoteRequest,
    decode_append,
};
use super::network::{APPEND_LIMIT, MAX_APPENDS};
use super::repair::{self, Wanted};
use super::shared::{Shared, stopped};
use super::snapshot::{Chunk, Offer, SENDER_SILENCE_LIMIT};
use super::transport::{Duplex, Listener};
use super::wire::{
    Frame, FrameError, FrameReader, Kind, MAX_FRAME, MAX_HELLO_FRAME, MAX_RAW, OutFrame, ReadError,
    Role, write_frames,
};
use super::{GroupId, SelfId};
use crate::raft::types::Body;

/// How long a new connection may take to say who it is.
pub(super) const HELLO_LIMIT: Duration = Duration::from_secs(3);
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
/// How often a node without space looks whether it has some again.
const SPACE_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of answers on one connection above which nothing more is read from it.
const MAX_UNSENT: usize = 32 << 20;
/// Frames written in one go.
const MAX_BURST: usize = 64;

/// This node does not lead, and has done nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotLeader;

/// Answers a client's frame that another node forwarded: the client's address, the frame without
/// its length field; the answer likewise, or `None` for none.
///
/// Each of a connection is polled for the first time in the order of arrival, before the next one is looked at,
/// so that what clients send one behind the other keeps its order. What may take long suspends before it begins.
pub type ForwardHandler = Arc<
    dyn Fn(SocketAddr, Bytes) -> BoxFuture<'static, Result<Option<Bytes>, NotLeader>> + Send + Sync,
>;

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
type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

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
    #[error("more than {0} requests wait for their answer")]
    Crowded(usize),
    #[error("this node has agreed to form another group meanwhile")]
    Regrouped,
    #[error("entry {index} came damaged: {source}")]
    Damaged { index: u64, source: ExtentError },
    #[error("there was no space for its append, and by now it has given that up")]
    Full,
    #[error("raft has stopped")]
    Stopped,
}

async fn serve(duplex: Duplex, shared: Arc<Shared>) -> Result<(), Closed> {
    let mut reader = FrameReader::new(duplex.read, MAX_HELLO_FRAME);
    let mut writer = duplex.write;
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
    let hello = Hello::from_head(&frame.head);
    let admitted = match &hello {
        Ok(hello) => admit(hello, &own),
        // Another version at least understands a refusal.
        Err(e) => Err(Refusal::refused(e.to_string())),
    };
    let answer = match &admitted {
        Ok(()) => answer(&frame, &own),
        Err(refusal) => refuse(&frame, refusal),
    };
    if write_frames(&mut writer, [answer]).await.is_err() {
        return Ok(());
    }
    let hello = hello.map_err(|source| Closed::Decode {
        kind: Kind::Hello,
        source,
    })?;
    match admitted {
        Ok(()) => {}
        Err(refusal) if refusal.kind == RefusalKind::Later => return Ok(()),
        Err(refusal) => {
            let NodeInfo { self_id, node, .. } = hello.from;
            return Err(Closed::Stranger(format!(
                "{self_id} (node {node}): {refusal}"
            )));
        }
    }
    if hello.purpose != Purpose::Meet {
        reader.set_max(MAX_FRAME);
    }
    let connection = Connection { shared, hello };
    match connection.hello.purpose {
        Purpose::Log => connection.follow(reader, writer).await,
        Purpose::Snapshot => connection.receive(reader, writer).await,
        Purpose::Forward => {
            let clients = connection.shared.local.clients.clone();
            let mut serving = JoinSet::new();
            serving.spawn_on(connection.serve(reader, writer), &clients);
            serving
                .join_next()
                .await
                .and_then(Result::ok)
                .unwrap_or(Ok(()))
        }
        _ => connection.serve(reader, writer).await,
    }
}

async fn write_answers(
    mut writer: Writer,
    mut answers: mpsc::Receiver<OutFrame>,
    unsent: Arc<Unsent>,
) {
    let mut batch = Vec::new();
    while answers.recv_many(&mut batch, MAX_BURST).await > 0 {
        let bytes = batch.iter().map(OutFrame::len).sum();
        if write_frames(&mut writer, batch.drain(..)).await.is_err() {
            return;
        }
        unsent.remove(bytes);
    }
}

/// Bytes of answers that the other end has not taken. While there are many no more requests are read: clients'
/// answers are large, and no budget counts them here.
#[derive(Default)]
struct Unsent {
    bytes: AtomicUsize,
    fewer: Notify,
}

impl Unsent {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.fewer.notify_one();
    }

    /// Waits until there are few, or nobody sends them any more.
    async fn are_few(&self, answers: &mpsc::Sender<OutFrame>) {
        while self.bytes.load(Ordering::Relaxed) > MAX_UNSENT {
            tokio::select! {
                () = self.fewer.notified() => {}
                () = answers.closed() => return,
            }
        }
    }
}

pub(super) fn answer(request: &Frame, message: &impl Message) -> OutFrame {
    let head = message.to_head();
    OutFrame::new(request.kind, Role::Answer, request.id, &head, vec![])
}

pub(super) fn refuse(request: &Frame, refusal: &Refusal) -> OutFrame {
    let head = refusal.to_head();
    OutFrame::new(request.kind, Role::Refusal, request.id, &head, vec![])
}

/// Decides whether the caller may speak to this node for the purpose that it names.
pub(super) fn admit(hello: &Hello, own: &NodeInfo) -> Result<(), Refusal> {
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

/// The group that both ends belong to, on connections that need one.
fn group_of(hello: &Hello) -> GroupId {
    let group = hello.from.group;
    group.expect("admitted for a purpose that needs a group")
}

/// An introduced connection.
struct Connection {
    shared: Arc<Shared>,
    hello: Hello,
}

impl Connection {
    fn group(&self) -> GroupId {
        group_of(&self.hello)
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
    async fn serve(self, mut reader: Reader, writer: Writer) -> Result<(), Closed> {
        let (answers, to_write) = mpsc::channel(outstanding(self.hello.purpose));
        // Dropped with this task, which closes the connection.
        let mut writing = JoinSet::new();
        let unsent = Arc::new(Unsent::default());
        writing.spawn(write_answers(writer, to_write, Arc::clone(&unsent)));
        let this = Arc::new(self);
        let end = this.take_requests(&mut reader, answers, unsent).await;
        // The last answer may say why. It ends by itself unless requests are still being handled.
        drop(timeout(LINGER, writing.join_next()).await);
        end
    }

    async fn take_requests(
        self: Arc<Self>,
        reader: &mut Reader,
        answers: mpsc::Sender<OutFrame>,
        unsent: Arc<Unsent>,
    ) -> Result<(), Closed> {
        let limit = match self.hello.purpose {
            Purpose::Meet => MEET_IDLE_LIMIT,
            // The kernel finds out when the other machine is gone.
            _ => Duration::MAX,
        };
        let most = outstanding(self.hello.purpose);
        let places = Arc::new(Semaphore::new(most));
        while let Some(frame) = self.next(reader, limit).await? {
            let request = Request::read(&frame, self.hello.purpose)?;
            if matches!(request, Request::Ping) {
                // Takes no place: a caller also pings when all are taken.
                let pong = answer(&frame, &());
                unsent.add(pong.len());
                drop(answers.send(pong).await);
                continue;
            }
            unsent.are_few(&answers).await;
            let place = Arc::clone(&places).try_acquire_owned();
            let place = place.map_err(|_| Closed::Crowded(most))?;
            let (this, answers) = (Arc::clone(&self), answers.clone());
            let unsent = Arc::clone(&unsent);
            let is_forwarded = matches!(request, Request::Forward(_));
            let work = async move {
                let answer = match this.handle(request, frame.raw.clone()).await {
                    Ok((head, raw)) => {
                        let raw = raw.into_iter().collect();
                        OutFrame::new(frame.kind, Role::Answer, frame.id, &head, raw)
                    }
                    Err(refusal) => refuse(&frame, &refusal),
                };
                // Before the caller can have the answer, and send its next request in its place.
                drop(place);
                unsent.add(answer.len());
                // The connection may have ended meanwhile; there is nobody left to tell.
                drop(answers.send(answer).await);
            };
            // Goes on when the connection breaks: what was begun for a client is not cut short.
            if is_forwarded {
                begin(work).await;
            } else {
                tokio::spawn(work);
            }
        }
        Ok(())
    }

    async fn handle(
        &self,
        request: Request,
        raw: Bytes,
    ) -> Result<(Vec<u8>, Option<Bytes>), Refusal> {
        match request {
            Request::Forward(Forward { client }) => self.pass_on(client, raw).await,
            // An allocation of its own: clients' requests are many, and would be as large.
            request => Box::pin(self.handle_own(request)).await,
        }
    }

    /// Has the broker answer a client's request.
    async fn pass_on(
        &self,
        client: SocketAddr,
        raw: Bytes,
    ) -> Result<(Vec<u8>, Option<Bytes>), Refusal> {
        let shared = &self.shared;
        let not_leader = |NotLeader| Refusal {
            kind: RefusalKind::NotLeader,
            reason: format!("{} does not lead", shared.local.self_id),
        };
        if !shared.leads() {
            return Err(not_leader(NotLeader));
        }
        let raw = (shared.forward)(client, raw).await.map_err(not_leader)?;
        let raw = raw.filter(|raw| {
            let fits = raw.len() <= MAX_RAW;
            if !fits {
                tracing::warn!(%client, "forwarded answer of {} bytes dropped", raw.len());
            }
            fits
        });
        let answered = raw.is_some();
        Ok((Forwarded { answered }.to_head(), raw))
    }

    async fn handle_own(&self, request: Request) -> Result<(Vec<u8>, Option<Bytes>), Refusal> {
        let shared = &self.shared;
        let raft = &shared.raft;
        let head = match request {
            Request::Heartbeat(append) => append_one(shared, &self.hello, append).await?.to_head(),
            Request::Vote(request) => {
                shared.check_gate(&request)?;
                let vote = shared.acting_for(self.group(), raft.vote(request)).await?;
                vote.map_err(stopped)?.to_head()
            }
            Request::PreVote(request) => {
                shared.check_gate(&request)?;
                raft.pre_vote(request).await.map_err(stopped)?.to_head()
            }
            Request::Transfer(_) if !shared.can_lead() => {
                return Err(Refusal::later(format!(
                    "{} has just started or still builds its queues, so it cannot lead",
                    shared.local.self_id
                )));
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
            Request::Recover(recover) => {
                let condition = shared.recover(self.hello.from.group, recover).await?;
                condition.to_head()
            }
            Request::Read(wanted) => {
                let log = &shared.receiver.log;
                let raw = repair::give(log, shared.local.self_id, wanted).await?;
                return Ok((Vec::new(), Some(raw)));
            }
            Request::Dead(secret) => {
                let dead = self.hello.from.node;
                shared.hear_of_death(dead, secret).await?.to_head()
            }
            Request::Full => shared.space.is_full().to_head(),
            Request::CanLead => shared.can_lead().to_head(),
            // Answered before.
            Request::Forward(_) | Request::Ping => Vec::new(),
        };
        Ok((head, None))
    }

    /// Appends of the log, in order and pipelined.
    async fn follow(self, mut reader: Reader, mut writer: Writer) -> Result<(), Closed> {
        let shared = &self.shared;
        // Until the identity is held, one by one: see `Shared::acting_for`.
        while !shared.local.identity.read().await.held() {
            let Some((frame, append)) = self.next_append(&mut reader).await? else {
                return Ok(());
            };
            let result = append_one(shared, &self.hello, append).await;
            let done = matches!(result, Ok(Ok(_)));
            let answer = match result {
                Ok(result) => answer(&frame, &result),
                Err(refusal) => refuse(&frame, &refusal),
            };
            if write_frames(&mut writer, [answer]).await.is_err() {
                return Ok(());
            }
            if !done {
                return linger(&mut reader).await;
            }
        }
        if shared.local.identity.read().await.group() != Some(self.group()) {
            return Err(Closed::Regrouped);
        }

        let (requests, mut input) = mpsc::channel(MAX_APPENDS);
        let (frames, mut unanswered) = mpsc::channel(MAX_APPENDS);
        let unanswered_bytes = AtomicUsize::new(0);
        let input = stream::poll_fn(move |cx| input.poll_recv(cx));
        let mut results = pin!(shared.raft.stream_append(input).ready_chunks(MAX_BURST));
        let read = async {
            while let Some((mut frame, append)) = self.next_append(&mut reader).await? {
                self.check_extents(&append.request)?;
                let bytes = frame.raw.len();
                self.wait_for_space(bytes, &unanswered_bytes).await?;
                unanswered_bytes.fetch_add(bytes, Ordering::Relaxed);
                // Only what an answer needs is kept.
                frame.head = Bytes::new();
                frame.raw = Bytes::new();
                let vote = append.request.vote;
                let unanswered = (frame, vote, append.leader_last, bytes);
                frames
                    .try_send(unanswered)
                    .map_err(|_| Closed::Crowded(MAX_APPENDS))?;
                if requests.send(append.request).await.is_err() {
                    return Err(Closed::Stopped);
                }
            }
            Ok(())
        };
        let respond = async {
            while let Some(results) = results.next().await {
                let mut answers = Vec::with_capacity(results.len());
                let mut done = true;
                for result in results {
                    let result = result.map_err(|_| Closed::Stopped)?;
                    let (frame, vote, leader_last, bytes) =
                        unanswered.recv().await.ok_or(Closed::Stopped)?;
                    unanswered_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    shared.heard(&result, (vote, self.hello.seal), leader_last);
                    done &= result.is_ok();
                    answers.push(answer(&frame, &result));
                }
                if write_frames(&mut writer, answers).await.is_err() || !done {
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

    /// A snapshot, in order.
    async fn receive(self, mut reader: Reader, mut writer: Writer) -> Result<(), Closed> {
        let mut receiving = None;
        while let Some(frame) = self.next(&mut reader, SENDER_SILENCE_LIMIT).await? {
            let kind = frame.kind;
            let decoded = |source| Closed::Decode { kind, source };
            let done = match (kind, &mut receiving) {
                (Kind::Offer, None) => {
                    let offer = Offer::from_head(&frame.head).map_err(decoded)?;
                    let taken = self.shared.take_offer(self.group(), offer).await;
                    taken.map(|(answer, begun)| {
                        receiving = begun;
                        answer.to_head()
                    })
                }
                (Kind::Chunk, Some(receiving)) => {
                    let chunk = Chunk::from_head(&frame.head).map_err(decoded)?;
                    let taken = receiving.take(chunk, frame.raw.clone()).await;
                    taken.map(|()| Vec::new())
                }
                (Kind::Finish, Some(_)) => match receiving.take() {
                    Some(receiving) => receiving.finish().await.map(|()| Vec::new()),
                    None => Ok(Vec::new()),
                },
                _ => {
                    let purpose = Purpose::Snapshot;
                    return Err(Closed::OutOfPlace { kind, purpose });
                }
            };
            let refused = done.is_err();
            let answer = match done {
                Ok(head) => OutFrame::new(kind, Role::Answer, frame.id, &head, vec![]),
                Err(refusal) => refuse(&frame, &refusal),
            };
            if write_frames(&mut writer, [answer]).await.is_err() {
                return Ok(());
            }
            if refused {
                drop(receiving);
                return linger(&mut reader).await;
            }
        }
        Ok(())
    }

    /// Refuses extents that are damaged, at the leader or on the way: taken to the log they would end
    /// this node, which is whole.
    fn check_extents(&self, request: &AppendRequest) -> Result<(), Closed> {
        let log = &self.shared.receiver.log;
        // Nothing follows on a log that has nothing: Raft answers so, and the leader sends the files. A
        // history among them is of another generation than this log, and may have other segments.
        let is_empty = log.last_id().is_none() && log.purged_id().is_none();
        if is_empty && request.prev_log_id.is_some() {
            return Ok(());
        }
        for entry in &request.entries {
            if let Body::Sealed(extent) = &entry.body {
                let checked = log.check_raw(&extent.raw);
                checked.map_err(|source| Closed::Damaged {
                    index: entry.id.index,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Waits until the log has room for an append behind those that are not answered yet: an append
    /// that fails would end this node. It waits no longer than the leader, who tries again on another
    /// connection: nothing is read here meanwhile that would tell of its hanging up.
    async fn wait_for_space(&self, bytes: usize, unanswered: &AtomicUsize) -> Result<(), Closed> {
        let takes = || {
            let all = bytes + unanswered.load(Ordering::Relaxed);
            bytes == 0 || self.shared.space.takes(all)
        };
        if !takes() && self.shared.nag.is_due("no space") {
            tracing::error!("no space for the log: this node falls behind its group");
        }
        let until = Instant::now() + APPEND_LIMIT;
        while !takes() {
            if Instant::now() >= until {
                return Err(Closed::Full);
            }
            sleep(SPACE_PAUSE).await;
        }
        Ok(())
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

/// Polls it for the first time, and leaves it to a task of its own if it waits for something.
async fn begin(work: impl Future<Output = ()> + Send + 'static) {
    // Many requests come with one read.
    consume_budget().await;
    let mut work = Box::pin(work);
    // A wait for nothing but this task's turn would let the next one begin before it.
    let begun = poll_fn(|cx| Poll::Ready(pin!(unconstrained(&mut work)).poll(cx)));
    if begun.await.is_pending() {
        tokio::spawn(work);
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
    hello: &Hello,
    append: Append,
) -> Result<AppendResult, Refusal> {
    let request = append.request;
    let leader = (request.vote, hello.seal);
    let before = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.id).or(before);
    let appended = shared.raft.append_entries(request);
    let response = shared
        .acting_for(group_of(hello), appended)
        .await?
        .map_err(stopped)?;
    let result = response.into_stream_result(before, last);
    shared.heard(&result, leader, append.leader_last);
    Ok(result)
}

/// A request whose head was read.
enum Request {
    Heartbeat(Append),
    Vote(VoteRequest),
    PreVote(VoteRequest),
    Transfer(TransferRequest),
    Form(Form),
    Join(Join),
    Recover(Recover),
    Forward(Forward),
    Full,
    CanLead,
    Dead(Secret),
    Read(Wanted),
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
            (Purpose::Meet, Kind::Recover) => Message::from_head(head).map(Self::Recover),
            (Purpose::Control, Kind::Heartbeat) => {
                decode_append(head, frame.raw.clone()).map(Self::Heartbeat)
            }
            (Purpose::Control, Kind::Vote) => Message::from_head(head).map(Self::Vote),
            (Purpose::Control, Kind::PreVote) => Message::from_head(head).map(Self::PreVote),
            (Purpose::Control, Kind::TransferLeader) => {
                Message::from_head(head).map(Self::Transfer)
            }
            (Purpose::Repair, Kind::Read) => Message::from_head(head).map(Self::Read),
            (Purpose::Control, Kind::Full) => <()>::from_head(head).map(|()| Self::Full),
            (Purpose::Control, Kind::CanLead) => <()>::from_head(head).map(|()| Self::CanLead),
            (Purpose::Control, Kind::Dead) => Message::from_head(head).map(Self::Dead),
            (Purpose::Forward, Kind::Forward) => Message::from_head(head).map(Self::Forward),
            _ => return Err(Closed::OutOfPlace { kind, purpose }),
        };
        request.map_err(|source| Closed::Decode { kind, source })
    }
}
