//! The network of the simulation: streams of bytes between nodes that come late, stand still or break.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rmq::raft::{Bound, Duplex, Listener, Net};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::trace::Trace;

/// As long as the real dialler waits.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);
/// Bytes under way after which a sender waits.
const BUFFER_BYTES: usize = 256 * 1024;

/// A node's place in the group, from 0.
pub(crate) type Place = usize;

/// The address under which a node is dialled by its peers.
pub(crate) fn addr(place: Place) -> String {
    format!("10.0.0.{}:40911", place + 1)
}

/// One direction between two nodes.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    /// Nothing arrives; it does once the link is whole again, unless the connection is gone by then.
    pub(crate) cut: bool,
    /// Least and most milliseconds on the way.
    pub(crate) delay_ms: (u64, u64),
    /// In a thousand: how often a write loses its connection, or is late as after lost packets.
    pub(crate) loss: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            cut: false,
            delay_ms: (0, 2),
            loss: 0,
        }
    }
}

/// The network. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Fabric(Arc<Mutex<State>>);

struct State {
    rng: StdRng,
    trace: Trace,
    links: BTreeMap<(Place, Place), Link>,
    listeners: BTreeMap<Place, mpsc::Sender<Duplex>>,
    pipes: Vec<Arc<Mutex<Pipe>>>,
    next_port: u16,
}

/// What is under way on one direction of a connection.
struct Pipe {
    from: Place,
    to: Place,
    /// When it arrives, and what.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// No more comes after the chunks.
    ended: bool,
    /// Neither end gets anything through any more, and both learn of it.
    reset: bool,
    /// The receiver's machine is gone without a word.
    lost: bool,
    wakers: Vec<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.wakers.push(cx.waker().clone());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fabric {
    pub(crate) fn new(seed: u64, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed ^ 0x6e65_7477_6f72_6b00),
            trace,
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pipes: Vec::new(),
            next_port: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// The network as the node at `place` has it.
    pub(crate) fn of(&self, place: Place) -> Port {
        Port {
            fabric: self.clone(),
            place,
        }
    }

    /// Changes a direction. What waits on it is looked at again.
    pub(crate) fn change(&self, from: Place, to: Place, change: impl Fn(&mut Link)) {
        let mut state = self.state();
        change(state.links.entry((from, to)).or_default());
        state.wake_all();
    }

    /// Makes all links whole and quick.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.links.clear();
        state.wake_all();
    }

    /// A process ends, and the system closes its connections; or its machine vanishes, and nobody
    /// hears of it before it is back.
    pub(crate) fn disconnect(&self, place: Place, silently: bool) {
        let mut state = self.state();
        state.listeners.remove(&place);
        for pipe in &state.pipes {
            let mut pipe = lock(pipe);
            if pipe.from == place || pipe.to == place {
                pipe.lost |= silently;
                pipe.reset |= !silently;
                pipe.wake();
            }
        }
    }

    /// The machine is back and knows nothing of its connections.
    pub(crate) fn reconnect(&self, place: Place) {
        let state = self.state();
        for pipe in &state.pipes {
            let mut pipe = lock(pipe);
            if pipe.lost && (pipe.from == place || pipe.to == place) {
                pipe.reset = true;
                pipe.wake();
            }
        }
    }

    /// Breaks all connections between two nodes.
    pub(crate) fn reset(&self, one: Place, other: Place) {
        for pipe in &self.state().pipes {
            let mut pipe = lock(pipe);
            if [(one, other), (other, one)].contains(&(pipe.from, pipe.to)) {
                pipe.reset = true;
                pipe.wake();
            }
        }
    }
}

impl State {
    fn wake_all(&mut self) {
        self.pipes.retain(|pipe| Arc::strong_count(pipe) > 1);
        for pipe in &self.pipes {
            lock(pipe).wake();
        }
    }

    fn link(&self, from: Place, to: Place) -> Link {
        self.links.get(&(from, to)).cloned().unwrap_or_default()
    }

    fn delay(&mut self, link: &Link) -> Duration {
        let (least, most) = link.delay_ms;
        // Lost packets are sent again, and all behind them waits.
        let again = if self.rng.random_ratio(link.loss.min(1000), 1000) {
            self.rng.random_range(200..1200)
        } else {
            0
        };
        Duration::from_micros(self.rng.random_range(least * 1000..=most * 1000) + again * 1000)
    }

    fn pipe(&mut self, from: Place, to: Place) -> Arc<Mutex<Pipe>> {
        let pipe = Arc::new(Mutex::new(Pipe {
            from,
            to,
            chunks: VecDeque::new(),
            bytes: 0,
            ended: false,
            reset: false,
            lost: false,
            wakers: Vec::new(),
        }));
        self.pipes.retain(|pipe| Arc::strong_count(pipe) > 1);
        self.pipes.push(Arc::clone(&pipe));
        pipe
    }
}

/// A node's plug.
#[derive(Clone)]
pub(crate) struct Port {
    fabric: Fabric,
    place: Place,
}

impl Net for Port {
    fn dial(&self, addr: &str) -> BoxFuture<'static, io::Result<Duplex>> {
        let (fabric, from, addr) = (self.fabric.clone(), self.place, addr.to_owned());
        Box::pin(async move {
            let addr: SocketAddr = addr.parse().expect("peers have addresses");
            let SocketAddr::V4(v4) = addr else {
                unreachable!()
            };
            let to = usize::from(v4.ip().octets()[3]) - 1;
            let (there, back) = {
                let mut state = fabric.state();
                let (there, back) = (state.link(from, to), state.link(to, from));
                let delay = state.delay(&there) + state.delay(&back);
                (!there.cut && !back.cut, delay)
            };
            if !there || back > CONNECT_LIMIT {
                sleep(CONNECT_LIMIT).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep(back).await;
            let (near, far, listener) = {
                let mut state = fabric.state();
                let Some(listener) = state.listeners.get(&to).cloned() else {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                };
                let (up, down) = (state.pipe(from, to), state.pipe(to, from));
                state.next_port = state.next_port.wrapping_add(1);
                let ip = [10, 0, 0, u8::try_from(from + 1).expect("few nodes")];
                let caller = SocketAddr::from((ip, state.next_port));
                let half = |pipe: &Arc<Mutex<Pipe>>| (fabric.clone(), Arc::clone(pipe));
                let near = duplex(half(&down), half(&up), addr);
                (near, duplex(half(&up), half(&down), caller), listener)
            };
            let accepted = listener.try_send(far);
            accepted.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(near)
        })
    }
}

impl Bound for Port {
    fn listen(&self) -> io::Result<Box<dyn Listener>> {
        let (dialled, incoming) = mpsc::channel(64);
        self.fabric.state().listeners.insert(self.place, dialled);
        Ok(Box::new(Incoming(tokio::sync::Mutex::new(incoming))))
    }
}

struct Incoming(tokio::sync::Mutex<mpsc::Receiver<Duplex>>);

impl Listener for Incoming {
    fn accept(&self) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            match self.0.lock().await.recv().await {
                Some(duplex) => Ok(duplex),
                // The node was taken off the network.
                None => std::future::pending().await,
            }
        })
    }
}

type Half = (Fabric, Arc<Mutex<Pipe>>);

fn duplex(read: Half, write: Half, peer: SocketAddr) -> Duplex {
    Duplex {
        read: Box::new(Reader {
            fabric: read.0,
            pipe: read.1,
            timer: Box::pin(sleep_until(Instant::now())),
        }),
        write: Box::new(Writer {
            fabric: write.0,
            pipe: write.1,
        }),
        peer,
    }
}

struct Reader {
    fabric: Fabric,
    pipe: Arc<Mutex<Pipe>>,
    timer: Pin<Box<Sleep>>,
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let state = this.fabric.state();
        let mut pipe = lock(&this.pipe);
        pipe.wait(cx);
        if pipe.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.lost || state.link(pipe.from, pipe.to).cut {
            return Poll::Pending;
        }
        let Some((at, _)) = pipe.chunks.front() else {
            return if pipe.ended {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        };
        if *at > Instant::now() {
            this.timer.as_mut().reset(*at);
            if this.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        let (at, mut chunk) = pipe.chunks.pop_front().expect("was there");
        let n = chunk.len().min(buf.remaining());
        state.trace.bytes(pipe.from, pipe.to, &chunk[..n]);
        buf.put_slice(&chunk[..n]);
        pipe.bytes -= n;
        if n < chunk.len() {
            chunk.drain(..n);
            pipe.chunks.push_front((at, chunk));
        }
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut pipe = lock(&self.pipe);
        // What comes from now on is answered with a reset, unless the machine is gone.
        if !pipe.lost {
            pipe.reset = true;
            pipe.wake();
        }
    }
}

struct Writer {
    fabric: Fabric,
    pipe: Arc<Mutex<Pipe>>,
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.fabric.state();
        let mut pipe = lock(&self.pipe);
        if pipe.reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.bytes >= BUFFER_BYTES {
            pipe.wait(cx);
            return Poll::Pending;
        }
        let link = state.link(pipe.from, pipe.to);
        if link.loss > 0 && state.rng.random_ratio(link.loss, 4000) {
            pipe.reset = true;
            pipe.wake();
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let at = Instant::now() + state.delay(&link);
        let at = pipe.chunks.back().map_or(at, |(last, _)| at.max(*last));
        pipe.chunks.push_back((at, data.to_vec()));
        pipe.bytes += data.len();
        pipe.wake();
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.pipe);
        pipe.ended = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut pipe = lock(&self.pipe);
        pipe.ended = true;
        pipe.wake();
    }
}
