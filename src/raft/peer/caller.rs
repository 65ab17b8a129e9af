//! Requests to one peer: [`connect`] introduces this node and leaves a connection on which one
//! request follows another; a [`Caller`] keeps such a connection up on its own task and has many
//! requests outstanding on it, told apart by their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::Local;
use super::messages::{DecodeError, Hello, Message, NodeInfo, Purpose, Refusal};
use super::transport::Net;
use super::wire::{
    Frame, FrameReader, Kind, MAX_FRAME, MAX_HELLO_FRAME, OutFrame, Role, write_frames,
};
use crate::raft::Departure;
use crate::raft::types::NodeId;

/// How long a peer may take to answer a `Hello`: longer than a connect, for its program has to run.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// A caller that has said or heard nothing for so long asks for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// A connection on which nothing comes for this long is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(3);
/// After a failed dial the peer is left alone, at first for the one and at most for the other.
const REDIAL_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// Requests waiting for their answer on one connection. The server closes a connection with more.
const MAX_OUTSTANDING: usize = 1024;
/// The same of clients' requests, most of which are pulls that wait for messages: one for each queue of each consumer.
/// Their bytes are bounded with those of all requests.
const MAX_FORWARDED: usize = 64 * 1024;
/// Frames written in one go.
const MAX_BURST: usize = 64;

/// How many requests may wait for their answer on a connection.
pub(super) fn outstanding(purpose: Purpose) -> usize {
    match purpose {
        Purpose::Forward => MAX_FORWARDED,
        _ => MAX_OUTSTANDING,
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum CallError {
    /// The peer never saw it.
    #[error("{0}")]
    NotSent(String),
    /// The peer answered that it will not do it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The peer may or may not have done it.
    #[error("{0}")]
    Lost(String),
}

impl From<DecodeError> for CallError {
    fn from(e: DecodeError) -> Self {
        Self::Lost(format!("answer: {e}"))
    }
}

/// What dialling needs: the network, and who calls.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) net: Arc<dyn Net>,
    pub(super) local: Arc<Local>,
    /// Where the tasks that hold connections run.
    pub(super) runtime: Handle,
}

/// Whom to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) addr: String,
    /// The incarnation expected there, unless any will do.
    pub(super) node: Option<NodeId>,
}

/// An introduced connection.
pub(super) struct Connection {
    pub(super) reader: FrameReader<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    pub(super) writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// What the peer says of itself.
    pub(super) peer: NodeInfo,
}

/// Connects to `target` and introduces this node.
pub(super) async fn connect(
    dialer: &Dialer,
    target: &Target,
    purpose: Purpose,
) -> Result<Connection, CallError> {
    let Target { addr, node } = target;
    let not_sent = |what: String| CallError::NotSent(format!("{addr}: {what}"));
    let duplex = dialer.net.dial(addr).await;
    let duplex = duplex.map_err(|e| not_sent(e.to_string()))?;
    let hello = Hello {
        purpose,
        target: *node,
        seal: dialer.local.secret.seal(),
        from: dialer.local.info().await,
    };
    let mut reader = FrameReader::new(duplex.read, MAX_HELLO_FRAME);
    let mut writer = duplex.write;
    let answer = timeout(HELLO_TIMEOUT, async {
        let frame = OutFrame::new(Kind::Hello, Role::Request, 0, &hello.to_head(), vec![]);
        write_frames(&mut writer, [frame])
            .await
            .map_err(|e| e.to_string())?;
        match reader.next().await {
            Ok(Some(answer)) if answer.kind == Kind::Hello => Ok(answer),
            Ok(Some(_)) => Err("it does not answer a hello with one".to_owned()),
            Ok(None) => Err("it closed the connection".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    })
    .await
    .unwrap_or_else(|_| Err(format!("no answer to a hello in {HELLO_TIMEOUT:?}")))
    .map_err(not_sent)?;
    let answer = accepted(answer)?;
    let peer = NodeInfo::from_head(&answer.head).map_err(|e| not_sent(e.to_string()))?;
    reader.set_max(MAX_FRAME);
    Ok(Connection {
        reader,
        writer,
        peer,
    })
}

/// The answer, unless it is a refusal.
pub(super) fn accepted(answer: Frame) -> Result<Frame, CallError> {
    match answer.role {
        Role::Answer => Ok(answer),
        Role::Refusal => Err(CallError::Refused(Refusal::from_head(&answer.head)?)),
        Role::Request => Err(CallError::Lost(
            "a request came where an answer is due".into(),
        )),
    }
}

impl Connection {
    /// Sends a request and waits for its answer. After an error but a refusal the connection is of
    /// no further use.
    pub(super) async fn ask<A: Message>(
        &mut self,
        kind: Kind,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let answer = timeout(limit, async {
            let frame = OutFrame::new(kind, Role::Request, 0, &request.to_head(), vec![]);
            write_frames(&mut self.writer, [frame])
                .await
                .map_err(|e| CallError::Lost(e.to_string()))?;
            match self.reader.next().await {
                Ok(Some(answer)) if answer.kind == kind => Ok(answer),
                Ok(_) => Err(CallError::Lost("the peer closed the connection".into())),
                Err(e) => Err(CallError::Lost(e.to_string())),
            }
        });
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(CallError::Lost(format!("no answer in {limit:?}"))))?;
        Ok(A::from_head(&accepted(answer)?.head)?)
    }
}

/// A request on its way to the task that holds the connection.
struct Call {
    kind: Kind,
    head: Vec<u8>,
    raw: Bytes,
    departure: Departure,
    waiter: Waiter,
}

/// Who waits for an answer, and the place it takes among the outstanding requests.
struct Waiter {
    answer: oneshot::Sender<Result<Frame, CallError>>,
    _place: OwnedSemaphorePermit,
}

impl Waiter {
    fn end(self, outcome: Result<Frame, CallError>) {
        // Nobody waits any longer where the caller gave up.
        drop(self.answer.send(outcome));
    }
}

/// A connection to one peer that is dialled when it is needed and again after it broke. Its task
/// ends when the caller is dropped.
pub(super) struct Caller {
    calls: mpsc::Sender<Call>,
    places: Arc<Semaphore>,
    /// How many there are.
    most: usize,
}

impl Caller {
    /// Nothing is dialled before the first request.
    pub(super) fn new(dialer: Dialer, target: Target, purpose: Purpose) -> Self {
        let most = outstanding(purpose);
        let (calls, incoming) = mpsc::channel(most);
        let runtime = dialer.runtime.clone();
        runtime.spawn(run(dialer, target, purpose, incoming));
        Self {
            calls,
            places: Arc::new(Semaphore::new(most)),
            most,
        }
    }

    /// Sends a request and waits at most `limit` for the answer. An answer that comes later is
    /// dropped.
    pub(super) async fn call(
        &self,
        kind: Kind,
        head: Vec<u8>,
        raw: Bytes,
        limit: Duration,
    ) -> Result<Frame, CallError> {
        self.call_unless(Departure::default(), kind, head, raw, limit)
            .await
    }

    /// The same for a request that may be given up before it is sent.
    pub(super) async fn call_unless(
        &self,
        departure: Departure,
        kind: Kind,
        head: Vec<u8>,
        raw: Bytes,
        limit: Duration,
    ) -> Result<Frame, CallError> {
        let deadline = Instant::now() + limit;
        let place = timeout_at(deadline, Arc::clone(&self.places).acquire_owned())
            .await
            .map_err(|_| {
                CallError::NotSent(format!("{} requests wait for their answer", self.most))
            })?
            .expect("the semaphore is never closed");
        let (answer, answered) = oneshot::channel();
        let call = Call {
            kind,
            head,
            raw,
            departure: departure.clone(),
            waiter: Waiter {
                answer,
                _place: place,
            },
        };
        if self.calls.try_send(call).is_err() {
            return Err(CallError::NotSent("the connection is shut down".into()));
        }
        let reason = match timeout_at(deadline, answered).await {
            Ok(Ok(outcome)) => return accepted(outcome?),
            Ok(Err(_)) => "the connection is shut down".to_owned(),
            Err(_) => format!("no answer in {limit:?}"),
        };
        Err(match departure.decide() {
            true => CallError::NotSent(reason),
            false => CallError::Lost(reason),
        })
    }

    /// [`Self::call`] for a request that is all head, as its answer is.
    pub(super) async fn ask<A: Message>(
        &self,
        kind: Kind,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let answer = self
            .call(kind, request.to_head(), Bytes::new(), limit)
            .await?;
        Ok(A::from_head(&answer.head)?)
    }
}

async fn run(dialer: Dialer, target: Target, purpose: Purpose, mut incoming: mpsc::Receiver<Call>) {
    let (first_pause, longest_pause) = REDIAL_PAUSE;
    let mut pause = first_pause;
    let mut failure: Option<(Instant, CallError)> = None;
    while let Some(call) = incoming.recv().await {
        // Only a dial that somebody still waits for is worth it.
        if call.waiter.answer.is_closed() {
            continue;
        }
        if let Some((until, error)) = &failure
            && Instant::now() < *until
        {
            call.waiter.end(Err(error.clone()));
            continue;
        }
        match connect(&dialer, &target, purpose).await {
            Ok(connection) => {
                failure = None;
                pause = first_pause;
                let reason = converse(connection, call, &mut incoming).await;
                tracing::debug!(addr = target.addr, ?purpose, reason, "connection ended");
            }
            Err(error) => {
                // Said once per outage: a dead peer is tried for as long as it is dead.
                if failure.is_none() {
                    tracing::warn!(?purpose, "peer not reached: {error}");
                }
                call.waiter.end(Err(error.clone()));
                failure = Some((Instant::now() + pause, error));
                pause = (pause * 2).min(longest_pause);
            }
        }
    }
}

/// What the two directions of a connection have in common.
struct Exchange {
    /// Who waits for the answer of which request.
    waiting: HashMap<u64, Waiter>,
    /// When anything was heard last.
    heard: Instant,
}

/// Sends requests and hands their answers out until the connection breaks or nobody can call any
/// more; returns which. Each request still outstanding then ends as [`CallError::Lost`].
async fn converse(
    connection: Connection,
    first: Call,
    incoming: &mut mpsc::Receiver<Call>,
) -> String {
    let exchange = Mutex::new(Exchange {
        waiting: HashMap::new(),
        heard: Instant::now(),
    });
    let locked = || exchange.lock().unwrap_or_else(PoisonError::into_inner);
    let Connection {
        mut reader,
        mut writer,
        ..
    } = connection;

    let send = async {
        let mut next_id = 1u64;
        let mut batch = vec![first];
        let (mut said, mut pinged) = (Instant::now(), Instant::now());
        loop {
            let mut frames = Vec::with_capacity(batch.len().max(1));
            for call in batch.drain(..) {
                if call.waiter.answer.is_closed() || !call.departure.decide() {
                    continue;
                }
                locked().waiting.insert(next_id, call.waiter);
                let raw = vec![call.raw];
                frames.push(OutFrame::new(
                    call.kind,
                    Role::Request,
                    next_id,
                    &call.head,
                    raw,
                ));
                next_id += 1;
            }
            if let Err(e) = write_frames(&mut writer, frames).await {
                return e.to_string();
            }
            // Made anew with all that is said, so that no timer ends while much is. A peer may give up who says nothing.
            let due = locked().heard.min(said).max(pinged) + PING_INTERVAL;
            tokio::select! {
                received = incoming.recv_many(&mut batch, MAX_BURST) => match received {
                    0 => return "not needed any more".to_owned(),
                    _ => said = Instant::now(),
                },
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if locked().heard.min(said) + PING_INTERVAL > now {
                        continue;
                    }
                    (said, pinged) = (now, now);
                    let frame = OutFrame::new(Kind::Ping, Role::Request, 0, &[], vec![]);
                    if let Err(e) = write_frames(&mut writer, [frame]).await {
                        return e.to_string();
                    }
                }
            }
        }
    };
    let receive = async {
        loop {
            match timeout(SILENCE_LIMIT, reader.next()).await {
                Ok(Ok(Some(frame))) => {
                    let mut exchange = locked();
                    exchange.heard = Instant::now();
                    if frame.kind == Kind::Ping {
                        continue;
                    }
                    // An answer that nobody waits for came after its request was given up.
                    let waiter = exchange.waiting.remove(&frame.id);
                    drop(exchange);
                    if let Some(waiter) = waiter {
                        waiter.end(Ok(frame));
                    }
                }
                Ok(Ok(None)) => return "the peer closed the connection".to_owned(),
                Ok(Err(e)) => return e.to_string(),
                Err(_) => return format!("nothing heard for {SILENCE_LIMIT:?}"),
            }
        }
    };
    let reason = tokio::select! {
        reason = send => reason,
        reason = receive => reason,
    };
    let left = std::mem::take(&mut locked().waiting);
    for waiter in left.into_values() {
        waiter.end(Err(CallError::Lost(reason.clone())));
    }
    reason
}
