//! One connection, the same from both ends: a task that reads frames and works on their requests, a
//! task that writes, and the handle through which requests are sent to the other side.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Buf;
use rmq_wire::frame::Command;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::home::Home;
use super::outbox::{Outbox, Pieces, PushError};
use super::reader::{Ended, Reader};
use super::{Bounds, Reply, Service, Stream};
use crate::shutdown::Shutdown;

/// Calls in one direction of one connection that wait for their answers.
const PENDING_MAX: usize = 16 * 1024;

/// Longest time for the answer to an HTTP request to leave.
const TOLD_LIMIT: Duration = Duration::from_secs(1);
/// How long a connection may take none of its answers while those of all take more than their share.
const STALL_UNDER_PRESSURE: Duration = Duration::from_secs(2);

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("connect to {addr}: {source}")]
    Connect {
        addr: String,
        source: std::io::Error,
    },
    /// The other side may have received the request, or may yet receive it.
    #[error("no answer from {peer} within {ms} ms")]
    Timeout { peer: String, ms: u128 },
    /// The other side may have received the request.
    #[error("connection to {peer} is closed")]
    Closed { peer: SocketAddr },
    /// Nothing was sent.
    #[error("connection to {peer} has no room for another request")]
    Busy { peer: SocketAddr },
}

/// A connection, from its opening until after its end.
pub struct Conn {
    id: u64,
    peer: SocketAddr,
    local: SocketAddr,
    pub(super) outbox: Outbox,
    pending: Mutex<Pending>,
    closed: watch::Sender<bool>,
    opened: Instant,
    /// Milliseconds after `opened`.
    last_read_ms: AtomicU64,
    last_write_ms: AtomicU64,
}

#[derive(Default)]
struct Pending {
    next_opaque: i32,
    calls: HashMap<i32, oneshot::Sender<Command>>,
    closed: bool,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conn({} {})", self.id, self.peer)
    }
}

impl Conn {
    pub(super) fn new(stream: &Stream, bounds: &Bounds) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            peer: stream.peer,
            local: stream.local,
            outbox: Outbox::new(bounds.clone()),
            pending: Mutex::default(),
            closed: watch::Sender::new(false),
            opened: Instant::now(),
            last_read_ms: AtomicU64::new(0),
            last_write_ms: AtomicU64::new(0),
        })
    }

    /// Differs for every connection of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Returns once the connection is closed; at once if it already is. Cancel safe.
    pub async fn closed(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        self.closed
            .subscribe()
            .wait_for(|closed| *closed)
            .await
            .ok();
    }

    /// Closes without waiting for anything. Idempotent.
    pub fn close(&self) {
        self.closed.send_replace(true);
        self.outbox.close();
        let mut pending = self.pending.lock().expect("no panic under this lock");
        pending.closed = true;
        // Dropping the senders tells the callers.
        pending.calls = HashMap::new();
    }

    /// Sends a request to the other side and waits for its answer. The opaque is chosen here.
    ///
    /// # Errors
    /// `Busy` when nothing was sent; otherwise it is unknown whether the other side acted.
    pub async fn call(&self, command: Command, limit: Duration) -> Result<Command, CallError> {
        self.call_until(command, Instant::now() + limit, limit)
            .await
    }

    pub(super) async fn call_until(
        &self,
        mut command: Command,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Command, CallError> {
        let (opaque, answer) = self.expect_answer()?;
        let _forget = Forget { conn: self, opaque };
        command.opaque = opaque;
        let reply = Reply::Command(command);
        let exchange = async {
            self.outbox
                .push(&reply)
                .await
                .map_err(|refused| self.refused(refused))?;
            answer
                .await
                .map_err(|_| CallError::Closed { peer: self.peer })
        };
        match timeout_at(deadline, exchange).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout {
                peer: self.peer.to_string(),
                ms: limit.as_millis(),
            }),
        }
    }

    /// Sends a request that is not answered. Never waits: it is for notices that may be lost.
    ///
    /// # Errors
    /// `Busy` when the other side reads too slowly, `Closed`.
    pub fn oneway(&self, mut command: Command) -> Result<(), CallError> {
        command.mark_oneway();
        command.opaque = {
            let mut pending = self.pending.lock().expect("no panic under this lock");
            pending.take_opaque()
        };
        match self.outbox.try_push(&Reply::Command(command)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(CallError::Busy { peer: self.peer }),
            Err(refused) => Err(self.refused(refused)),
        }
    }

    fn refused(&self, refused: PushError) -> CallError {
        match refused {
            PushError::Closed => CallError::Closed { peer: self.peer },
            PushError::Overrun(_) => CallError::Busy { peer: self.peer },
        }
    }

    fn expect_answer(&self) -> Result<(i32, oneshot::Receiver<Command>), CallError> {
        let (sender, receiver) = oneshot::channel();
        let mut pending = self.pending.lock().expect("no panic under this lock");
        if pending.closed {
            return Err(CallError::Closed { peer: self.peer });
        }
        if pending.calls.len() >= PENDING_MAX {
            return Err(CallError::Busy { peer: self.peer });
        }
        let opaque = loop {
            let opaque = pending.take_opaque();
            if !pending.calls.contains_key(&opaque) {
                break opaque;
            }
        };
        pending.calls.insert(opaque, sender);
        Ok((opaque, receiver))
    }

    /// Hands an answer to its caller; one that nobody waits for any more is dropped.
    pub(super) fn complete(&self, answer: Command) {
        let waiting = {
            let mut pending = self.pending.lock().expect("no panic under this lock");
            pending.calls.remove(&answer.opaque)
        };
        if let Some(waiting) = waiting {
            // The caller may have given up in this moment.
            waiting.send(answer).ok();
        }
    }

    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    pub(super) fn has_read(&self) {
        self.last_read_ms.store(self.age_ms(), Ordering::Relaxed);
    }

    pub(super) fn last_read(&self) -> Instant {
        self.opened + Duration::from_millis(self.last_read_ms.load(Ordering::Relaxed))
    }

    pub(super) fn last_active(&self) -> Instant {
        let written = self.last_write_ms.load(Ordering::Relaxed);
        self.last_read()
            .max(self.opened + Duration::from_millis(written))
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Pending {
    fn take_opaque(&mut self) -> i32 {
        let opaque = self.next_opaque;
        self.next_opaque = opaque.wrapping_add(1);
        opaque
    }
}

/// Forgets a call when its caller gives up.
struct Forget<'a> {
    conn: &'a Conn,
    opaque: i32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        // Not under a panic: another thread's panic must not abort this one.
        if let Ok(mut pending) = self.conn.pending.lock() {
            pending.calls.remove(&self.opaque);
        }
    }
}

/// Runs the connection until its end: the other side closes it, breaks the rules or a limit, or
/// `shutdown` is asked for. In the last case what is in flight may finish within `limits.drain`. Must be called on the
/// runtime of the connection's home.
pub(super) async fn run<S: Service>(
    stream: Stream,
    conn: Arc<Conn>,
    service: Arc<S>,
    bounds: Bounds,
    shutdown: Shutdown,
) {
    let writer = tokio::spawn(write(stream.writer, Arc::clone(&conn), bounds.clone()));
    let home = stream.home;
    let elsewhere = home.as_ref().and_then(Home::elsewhere);
    service.opened(&conn);
    let mut reader = Reader::new(
        stream.reader,
        &conn,
        &service,
        &bounds,
        shutdown,
        elsewhere.clone(),
    );
    let ended = reader.run().await;
    let limit = match ended {
        Ended::Over => Duration::ZERO,
        Ended::Drain => bounds.limits().drain,
        Ended::Told => TOLD_LIMIT,
    };
    if !limit.is_zero() {
        let drain = async {
            reader.in_flight_done().await;
            reader.sign_off();
            conn.outbox.finish();
            writer.await.ok();
            reader.left().await;
        };
        timeout(limit, drain).await.ok();
    }
    conn.close();
    reader.leave();
    // It may wait for locks.
    match elsewhere {
        Some(elsewhere) => drop(elsewhere.spawn(async move { service.closed(&conn) })),
        None => service.closed(&conn),
    }
    drop(home);
}

async fn write(writer: Box<dyn AsyncWrite + Send + Unpin>, conn: Arc<Conn>, bounds: Bounds) {
    tokio::select! {
        biased;
        () = write_queued(writer, &conn, &bounds) => conn.close(),
        () = conn.closed() => {}
    }
}

async fn write_queued(
    mut writer: Box<dyn AsyncWrite + Send + Unpin>,
    conn: &Conn,
    bounds: &Bounds,
) {
    while let Some(chunks) = conn.outbox.take().await {
        let mut pieces = Pieces::from(chunks);
        while pieces.has_remaining() {
            match in_time(writer.write_buf(&mut pieces), bounds).await {
                Some(Ok(written)) if written > 0 => {
                    conn.outbox.sent(written);
                    conn.last_write_ms.store(conn.age_ms(), Ordering::Relaxed);
                }
                Some(_) => return,
                None => {
                    tracing::warn!(peer = %conn.peer, "closed: it takes none of its answers");
                    return;
                }
            }
        }
    }
    // The peer learns of the end from this or from the drop that follows.
    writer.shutdown().await.ok();
}

/// `None` when the write has waited for as long as it may.
async fn in_time<T>(write: impl Future<Output = T>, bounds: &Bounds) -> Option<T> {
    let mut write = pin!(write);
    let mut stalled = Duration::ZERO;
    while stalled < bounds.limits().write_stall {
        let part = STALL_UNDER_PRESSURE.min(bounds.limits().write_stall - stalled);
        if let Ok(written) = timeout(part, &mut write).await {
            return Some(written);
        }
        stalled += part;
        if bounds.is_pressing() {
            break;
        }
    }
    None
}
