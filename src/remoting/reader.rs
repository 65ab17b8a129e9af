//! The reading half of a connection: frames out of bytes, handlers out of frames, as far as there is room
//! for them ([`Bounds`]).

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rmq_wire::code::response;
use rmq_wire::frame::{self, Command, FrameError, Language};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::bounds::{READ_BYTES_MIN, Room, UNIT_BYTES, units};
use super::http::{self, Head};
use super::outbox::PushError;
use super::{Bounds, Class, Conn, LogLimit, Reply, Request, Service};
use crate::shutdown::Shutdown;

/// Frames up to this size are copied out of the read buffer, so that a request that waits long
/// does not keep the buffer and its other frames alive.
const COPY_FRAME_BYTES_MAX: usize = 4 * 1024;
/// The length field before each frame.
const LENGTH_BYTES: usize = 4;
/// The wait of those that may wait for as long as it takes.
const VERY_LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A frame without the header that it announces, after a stopping server's last answer to a Java client. The
/// stock ones, of all versions, close a connection on which they read what they cannot decode, and that is the
/// one end with which they always fail whatever they have sent there at once, so that it is tried elsewhere. A
/// reset that a write of theirs meets before their read does leaves it to its timeout. Clients in other languages
/// do not know what to make of it.
const SIGN_OFF: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 1];

/// A stopping server answers on until nothing was read for so long, nothing is in flight and all is written.
const QUIET: Duration = Duration::from_millis(2);
/// But no longer than this: what comes all the time never becomes quiet.
const QUIET_LIMIT: Duration = Duration::from_millis(200);

/// How long a client that was signed off has for closing the connection.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

static BAD_FRAMES: LogLimit = LogLimit::new();
static BUSY: LogLimit = LogLimit::new();
static OVERRUNS: LogLimit = LogLimit::new();
static PANICS: LogLimit = LogLimit::new();

/// How reading came to its end.
#[derive(Debug, PartialEq)]
pub(super) enum Ended {
    /// The connection is of no more use.
    Over,
    /// Nothing more is read; requests in flight may finish.
    Drain,
    /// An HTTP request is answered, and nothing else comes.
    Told,
}

pub(super) struct Reader<'a, S> {
    input: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    /// Space for one read, doubled while reads fill it: an idle connection holds the least, a busy one
    /// needs few system calls.
    read_bytes: usize,
    /// When the first byte of the frame that is incomplete in the buffer was seen.
    partial_since: Option<Instant>,
    had_frame: bool,
    /// The peer takes a sign-off.
    java: bool,
    conn: &'a Arc<Conn>,
    service: &'a Arc<S>,
    bounds: &'a Bounds,
    /// That of the large request that is arriving.
    room: Option<Room>,
    /// Bytes that are still to come of a large request that was refused.
    unwanted: usize,
    shutdown: Shutdown,
    /// Who works on requests that may take long.
    elsewhere: Option<Elsewhere>,
    in_flight: Arc<Semaphore>,
    in_flight_units: u32,
    /// Requests that were begun and wait for something.
    working: FuturesUnordered<Working>,
}

impl<'a, S: Service> Reader<'a, S> {
    pub(super) fn new(
        input: Box<dyn AsyncRead + Send + Unpin>,
        conn: &'a Arc<Conn>,
        service: &'a Arc<S>,
        bounds: &'a Bounds,
        shutdown: Shutdown,
        elsewhere: Option<Handle>,
    ) -> Self {
        let units = bounds.limits().in_flight_bytes / UNIT_BYTES;
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Self {
            input,
            buffer: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            partial_since: None,
            had_frame: false,
            java: false,
            conn,
            service,
            bounds,
            room: None,
            unwanted: 0,
            shutdown,
            elsewhere: elsewhere.map(|runtime| Elsewhere::on(runtime, units as usize)),
            in_flight: Arc::new(Semaphore::new(units as usize)),
            in_flight_units: units,
            working: FuturesUnordered::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.available_permits() == self.in_flight_units as usize
    }

    /// Waits until no request is in flight.
    pub(super) async fn in_flight_done(&mut self) {
        let all = self.in_flight.acquire_many(self.in_flight_units);
        let all = meanwhile(&mut self.working, all).await;
        all.expect("never closed").forget();
    }

    /// Tells a Java client, behind all answers, to close the connection.
    pub(super) fn sign_off(&self) {
        if self.java {
            self.conn.outbox.push_text(Bytes::from_static(SIGN_OFF));
        }
    }

    /// Waits until a client that was signed off has closed the connection. What it still sends is dropped: it
    /// tries that elsewhere.
    pub(super) async fn left(&mut self) {
        let leaving = async {
            while self.java {
                self.buffer.clear();
                self.buffer.reserve(READ_BYTES_MIN);
                let read = self.input.read_buf(&mut self.buffer).await;
                self.java = read.is_ok_and(|count| count > 0);
            }
        };
        timeout(LEAVE_LIMIT, leaving).await.ok();
    }

    /// Has what is still in flight go on without the connection: what was begun is not cut short.
    pub(super) fn leave(self) {
        let mut working = self.working;
        if !working.is_empty() {
            tokio::spawn(async move { while working.next().await.is_some() {} });
        }
    }

    pub(super) async fn run(&mut self) -> Ended {
        let conn = Arc::clone(self.conn);
        let mut shutdown = self.shutdown.clone();
        let ended = tokio::select! {
            biased;
            () = conn.closed() => Ended::Over,
            () = async {
                shutdown.asked().await;
                sleep(QUIET_LIMIT).await;
            } => Ended::Drain,
            ended = self.read() => ended.unwrap_or_else(|reason| {
                if let Some(more) = BAD_FRAMES.pass() {
                    tracing::warn!(peer = %conn.peer(), more, "connection closed: {reason}");
                }
                Ended::Over
            }),
        };
        ended
    }

    /// Reads until the end of the input, a broken rule or a quiet moment of a server that stops.
    async fn read(&mut self) -> Result<Ended, Broken> {
        let mut alarm = pin!(sleep_until(self.deadline()));
        let mut shutdown = self.shutdown.clone();
        let mut asked = pin!(async move { shutdown.asked().await });
        let mut stopping = false;
        loop {
            self.make_room();
            tokio::select! {
                biased;
                never = work_on(&mut self.working) => match never {},
                read = self.input.read_buf(&mut self.buffer) => match read {
                    Ok(0) | Err(_) => return Ok(Ended::Over),
                    Ok(count) => {
                        let head = match self.had_frame {
                            true => Head::No,
                            false => http::head(&self.buffer),
                        };
                        match head {
                            Head::No => self.has_read(count).await?,
                            Head::Partial => self.conn.has_read(),
                            Head::Bad => return Err(Broken::Http),
                            Head::Path(path) => {
                                let health = self.service.health(path);
                                self.conn.outbox.push_text(http::answer(health));
                                return Ok(Ended::Told);
                            }
                        }
                        // The alarm may be set for the end of an idle time, long after that of
                        // a partial frame; moving it only then keeps it cheap.
                        if self.deadline() < alarm.deadline() {
                            alarm.as_mut().reset(self.deadline());
                        }
                    }
                },
                () = &mut asked, if !stopping => stopping = true,
                // A timer is made only then.
                () = async { sleep(QUIET).await }, if stopping => {
                    if self.is_idle() && self.conn.outbox.is_sent() {
                        return Ok(Ended::Drain);
                    }
                }
                () = &mut alarm => {
                    if self.deadline() <= Instant::now() {
                        return self.overdue();
                    }
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new();
                        self.read_bytes = READ_BYTES_MIN;
                    }
                    alarm.as_mut().reset(self.deadline());
                }
            }
        }
    }

    fn deadline(&self) -> Instant {
        match self.partial_since {
            Some(since) => since + self.bounds.limits().partial_frame,
            None if !self.had_frame => self.conn.opened() + self.bounds.limits().first_frame,
            None => self.conn.last_active() + self.bounds.limits().idle,
        }
    }

    fn overdue(&self) -> Result<Ended, Broken> {
        match self.partial_since {
            Some(_) => Err(Broken::Partial(self.buffer.len())),
            None if !self.had_frame => Err(Broken::Silent),
            // An idle connection has done nothing wrong.
            None => Ok(Ended::Over),
        }
    }

    /// Space for the next read. It follows what arrives and not what a length field announces.
    fn make_room(&mut self) {
        if self.buffer.capacity() - self.buffer.len() < self.read_bytes {
            self.buffer.reserve(self.read_bytes);
        }
    }

    async fn has_read(&mut self, count: usize) -> Result<(), Broken> {
        self.conn.has_read();
        let most = self.bounds.read_bytes();
        if count >= self.read_bytes {
            self.read_bytes *= 2;
        }
        self.read_bytes = self.read_bytes.min(most);
        let arrived = Instant::now();
        loop {
            self.drop_unwanted();
            if let Some(raw) = self.next_frame()? {
                self.had_frame = true;
                self.start(raw, arrived).await?;
            } else if self.room.is_none() && self.buffer.len() > most {
                self.begin_large(arrived).await?;
            } else {
                break;
            }
        }
        let is_between = self.buffer.is_empty() && self.unwanted == 0;
        self.partial_since = match (is_between, self.partial_since) {
            (true, _) => None,
            (false, since) => Some(since.unwrap_or_else(Instant::now)),
        };
        Ok(())
    }

    /// The next complete frame without its length field.
    fn next_frame(&mut self) -> Result<Option<Bytes>, Broken> {
        let Some(len) = frame::peek_len(&self.buffer)? else {
            return Ok(None);
        };
        let total = LENGTH_BYTES + len;
        if self.buffer.len() < total {
            return Ok(None);
        }
        self.partial_since = None;
        self.buffer.advance(LENGTH_BYTES);
        if len > COPY_FRAME_BYTES_MAX {
            return Ok(Some(self.buffer.split_to(len).freeze()));
        }
        let raw = Bytes::copy_from_slice(&self.buffer[..len]);
        self.buffer.advance(len);
        Ok(Some(raw))
    }

    /// Takes room for the frame that is arriving, all that it needs at once: two that had half of it each
    /// would wait for each other.
    async fn begin_large(&mut self, arrived: Instant) -> Result<(), Broken> {
        let len = frame::peek_len(&self.buffer)?.expect("more than a length is here");
        let here = Bytes::copy_from_slice(&self.buffer[LENGTH_BYTES..]);
        let command = match Command::decode(here) {
            // Nobody's header is that long: what it asks for, and how to refuse it, is not known yet.
            Err(FrameError::HeaderOverrun { .. }) => {
                let room = self.bounds.try_enter(Class::Other, len);
                self.room = Some(room.ok_or(Broken::LongHeader)?);
                return Ok(());
            }
            decoded => decoded?,
        };
        self.room = self.enter(&command, len, arrived).await;
        if self.room.is_none() {
            self.had_frame = true;
            self.unwanted = LENGTH_BYTES + len;
        }
        // Its peer could not go on while nothing was read.
        self.partial_since = None;
        Ok(())
    }

    fn drop_unwanted(&mut self) {
        if self.unwanted == 0 {
            return;
        }
        let here = self.unwanted.min(self.buffer.len());
        self.buffer.advance(here);
        self.unwanted -= here;
        if self.unwanted == 0 {
            self.partial_since = None;
        }
    }

    /// Room for a request among those of all connections; without any in time it is refused.
    async fn enter(&mut self, command: &Command, bytes: usize, arrived: Instant) -> Option<Room> {
        if !command.is_response() {
            // A peer that does not read its answers gets no new ones made.
            meanwhile(&mut self.working, self.conn.outbox.has_room()).await;
        }
        let class = self.service.class(command.code);
        if let Some(room) = self.bounds.try_enter(class, bytes) {
            return Some(room);
        }
        let patience = self.bounds.patience(class).unwrap_or(VERY_LONG);
        let room = timeout_at(arrived + patience, self.bounds.enter(class, bytes));
        if let Ok(room) = meanwhile(&mut self.working, room).await {
            return Some(room);
        }
        self.refuse(command, arrived.elapsed());
        None
    }

    fn refuse(&self, command: &Command, waited: Duration) {
        if let Some(more) = BUSY.pass() {
            let (peer, code, ms) = (self.conn.peer(), command.code, waited.as_millis());
            tracing::warn!(%peer, code, ms, more, "request refused: too many are worked on");
        }
        if command.is_oneway() || command.is_response() {
            return;
        }
        if let Some((code, remark)) = self.service.busy(command.code, waited) {
            let reply = command.reply_error(code, remark);
            // There was room for it a moment ago; a client that gets none asks again by itself.
            self.conn.outbox.try_push(&reply.into()).ok();
        }
    }

    async fn start(&mut self, raw: Bytes, arrived: Instant) -> Result<(), Broken> {
        let room = self.room.take();
        if raw == SIGN_OFF[LENGTH_BYTES..] {
            self.conn.close();
            return Ok(());
        }
        let command = Command::decode(raw.clone())?;
        if command.is_response() {
            self.conn.complete(command);
            return Ok(());
        }
        self.java = command.language == Language::JAVA;
        let in_flight = self.admit(raw.len()).await;
        let room = match room {
            Some(room) => Some(room),
            None => self.enter(&command, raw.len(), arrived).await,
        };
        let Some(room) = room else {
            return Ok(());
        };
        let answer = Answer::to(&command, self.conn, (in_flight, room));
        let request = Request {
            command,
            raw,
            conn: Some(Arc::clone(self.conn)),
            peer: self.conn.peer(),
        };
        let is_brief = self.elsewhere.is_none() || self.service.is_brief(&request.command);
        let working = Working {
            work: Guarded(Box::pin(Arc::clone(self.service).call(request))),
            answer: Some(answer),
        };
        match &mut self.elsewhere {
            Some(elsewhere) if !is_brief => elsewhere.begin(working),
            _ => begin(&mut self.working, working).await,
        }
        Ok(())
    }

    async fn admit(&mut self, bytes: usize) -> OwnedSemaphorePermit {
        let units = units(bytes).min(self.in_flight_units);
        let in_flight = || Arc::clone(&self.in_flight);
        // A wait, even for nothing, is counted against the requests that one turn of this task begins.
        match in_flight().try_acquire_many_owned(units) {
            Ok(admitted) => admitted,
            Err(_) => {
                let admitted = in_flight().acquire_many_owned(units);
                let admitted = meanwhile(&mut self.working, admitted).await;
                admitted.expect("never closed")
            }
        }
    }
}

/// Polls a request for the first time, and keeps it if it waits for something.
async fn begin(working: &mut FuturesUnordered<Working>, mut request: Working) {
    let begun = poll_fn(|cx| Poll::Ready(Pin::new(&mut request).poll(cx)));
    if begun.await.is_pending() {
        working.push(request);
    }
}

/// A task on another runtime for requests that would hold up this one, made for the first of them.
struct Elsewhere {
    runtime: Handle,
    /// The most that can be in flight.
    bound: usize,
    requests: Option<mpsc::Sender<Working>>,
}

impl Elsewhere {
    fn on(runtime: Handle, bound: usize) -> Self {
        Self {
            runtime,
            bound,
            requests: None,
        }
    }

    /// Has it begun there, in order.
    fn begin(&mut self, request: Working) {
        let requests = self.requests.get_or_insert_with(|| {
            let (requests, begun) = mpsc::channel(self.bound);
            self.runtime.spawn(work_on_all(begun));
            requests
        });
        // That task ends before this one only with its runtime.
        requests.try_send(request).ok();
    }
}

/// Works on requests until there will be no more and all are answered.
async fn work_on_all(mut requests: mpsc::Receiver<Working>) {
    let mut working = FuturesUnordered::new();
    while let Some(request) = meanwhile(&mut working, requests.recv()).await {
        begin(&mut working, request).await;
    }
    while working.next().await.is_some() {}
}

/// Goes on with requests, for as long as it is polled. Those that have become ready together are
/// answered together: the writer is not run in between.
async fn work_on(working: &mut FuturesUnordered<Working>) -> Infallible {
    poll_fn(|cx| {
        while let Poll::Ready(Some(())) = working.poll_next_unpin(cx) {}
        Poll::Pending
    })
    .await
}

/// Waits for something while requests go on.
async fn meanwhile<T>(
    working: &mut FuturesUnordered<Working>,
    something: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        never = work_on(working) => match never {},
        done = something => done,
    }
}

/// The rule that a peer broke.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    #[error("no complete frame in time, {0} bytes of one")]
    Partial(usize),
    #[error("no frame at all in time")]
    Silent,
    #[error("no HTTP question either")]
    Http,
    #[error("no room for a frame with so long a header")]
    LongHeader,
}

/// What a request counts for while it is worked on.
type Held = (OwnedSemaphorePermit, Room);

/// Where the outcome of one request goes.
struct Answer {
    conn: Arc<Conn>,
    /// What an answer needs of its request, without the request's fields and body.
    request: Command,
    _held: Held,
}

impl Answer {
    fn to(command: &Command, conn: &Arc<Conn>, held: Held) -> Self {
        let mut request = Command::request(command.code);
        request.opaque = command.opaque;
        request.flag = command.flag;
        request.serialize = command.serialize;
        Self {
            conn: Arc::clone(conn),
            request,
            _held: held,
        }
    }

    /// Sends the answer, if there is one to send; gives it back if there is no room for it.
    fn try_send(&self, outcome: Result<Option<Reply>, Panicked>) -> Option<Reply> {
        let reply = match outcome {
            Ok(reply) => reply?,
            Err(Panicked) => {
                if let Some(more) = PANICS.pass() {
                    let (code, peer) = (self.request.code, self.conn.peer());
                    tracing::error!(code, %peer, more, "the handler of a request panicked");
                }
                self.request
                    .reply_error(response::SYSTEM_ERROR, "internal error")
                    .into()
            }
        };
        if self.request.is_oneway() {
            return None;
        }
        // A closed connection needs no answer.
        (self.conn.outbox.try_push(&reply) == Ok(false)).then_some(reply)
    }

    /// Sends the answer when there is room for it; until then the request is in flight.
    async fn push(self, reply: Reply) {
        match self.conn.outbox.push(&reply).await {
            Ok(()) | Err(PushError::Closed) => {}
            Err(PushError::Overrun(bytes)) => {
                if let Some(more) = OVERRUNS.pass() {
                    let peer = self.conn.peer();
                    tracing::warn!(%peer, bytes, more, "connection closed: too many unread answers");
                }
                self.conn.close();
            }
        }
    }
}

/// A request that is worked on, up to its answer.
struct Working {
    work: Guarded,
    /// Until it is answered.
    answer: Option<Answer>,
}

impl Future for Working {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Poll::Ready(outcome) = Pin::new(&mut self.work).poll(cx) else {
            return Poll::Pending;
        };
        if let Some(answer) = self.answer.take()
            && let Some(reply) = answer.try_send(outcome)
        {
            tokio::spawn(async move { answer.push(reply).await });
        }
        Poll::Ready(())
    }
}

/// A handler panicked; the panic hook has said where.
struct Panicked;

/// Turns a panic of a handler into a value (release builds abort instead).
struct Guarded(Pin<Box<dyn Future<Output = Option<Reply>> + Send>>);

impl Future for Guarded {
    type Output = Result<Option<Reply>, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A handler that panicked is never polled again; what it shared is its own to protect.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    }
}
