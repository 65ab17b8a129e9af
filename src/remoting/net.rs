//! The seam through which the network enters: who accepts and who dials is a parameter, so that a
//! test or a simulation can own both ends.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::time::{Instant, Sleep, sleep};

use super::home::Home;

/// How long a connection that ends in order waits for its peer's machine to have the last answers.
const DELIVERY_LIMIT: Duration = Duration::from_secs(1);
/// How often it looks.
const DELIVERY_PAUSE: Duration = Duration::from_millis(1);

/// Both directions of one connection.
pub struct Stream {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// Where its tasks run; with whoever accepts it if there is none.
    pub(super) home: Option<Home>,
}

impl Stream {
    /// A connection that this side opened.
    ///
    /// # Errors
    /// When the socket is already gone.
    pub fn dialled(socket: TcpStream) -> io::Result<Self> {
        Self::tcp(socket, |writer| Box::new(writer))
    }

    /// A connection that a client opened. It ends with a reset, whether it is closed or the process
    /// dies: stock Java clients (4.9) do not notice that a connection was closed quietly, and leave
    /// what waits for an answer to its timeout, 3 s for a send and 30 s for a pull. A reset fails it
    /// at once, and it is tried again.
    ///
    /// # Errors
    /// When the socket is already gone.
    pub fn accepted(socket: TcpStream) -> io::Result<Self> {
        socket.set_zero_linger()?;
        Self::tcp(socket, |writer| Box::new(Resetting::new(writer)))
    }

    fn tcp(
        socket: TcpStream,
        boxed: impl FnOnce(OwnedWriteHalf) -> Box<dyn AsyncWrite + Send + Unpin>,
    ) -> io::Result<Self> {
        // Responses are coalesced before they are written; waiting in the kernel only adds delay.
        socket.set_nodelay(true)?;
        let (peer, local) = (plain(socket.peer_addr()?), plain(socket.local_addr()?));
        let (reader, writer) = socket.into_split();
        Ok(Self {
            reader: Box::new(reader),
            writer: boxed(writer),
            peer,
            local,
            home: None,
        })
    }
}

/// The address as everybody else knows it: a socket that is bound to `::` shows those of IPv4 as of IPv6.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// The writing half of a connection that ends with a reset. A reset overtakes what is still on its
/// way, so its shutdown waits until the peer's machine has everything.
struct Resetting {
    /// Always there but in the moment of the drop.
    half: Option<OwnedWriteHalf>,
    /// The wait of a shutdown, and when it gives up.
    wait: Option<(Pin<Box<Sleep>>, Instant)>,
}

impl Resetting {
    fn new(half: OwnedWriteHalf) -> Self {
        let half = Some(half);
        Self { half, wait: None }
    }

    fn half(&mut self) -> Pin<&mut OwnedWriteHalf> {
        Pin::new(self.half.as_mut().expect("there until the drop"))
    }
}

impl AsyncWrite for Resetting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.half().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.half().poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.half().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some((pause, end)) = &mut self.wait {
                std::task::ready!(pause.as_mut().poll(cx));
                if Instant::now() >= *end {
                    return Poll::Ready(Ok(()));
                }
            }
            if undelivered((*self.half()).as_ref())? == 0 {
                return Poll::Ready(Ok(()));
            }
            let end = self
                .wait
                .take()
                .map_or_else(|| Instant::now() + DELIVERY_LIMIT, |w| w.1);
            self.wait = Some((Box::pin(sleep(DELIVERY_PAUSE)), end));
        }
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        // Or else it would say a quiet end first.
        if let Some(half) = self.half.take() {
            half.forget();
        }
    }
}

/// Bytes that were written and that the peer's machine has not acknowledged yet (`SIOCOUTQ`).
fn undelivered(socket: &TcpStream) -> io::Result<i32> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: tcp(7): the request takes a pointer to an int, which it writes.
    let count =
        unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<SIOCOUTQ, i32>::new()) }?;
    Ok(count)
}

/// Accepts connections.
pub trait Listener: Send + 'static {
    /// The next connection. Must be cancel safe: a dropped call loses no connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<Stream>> + Send;

    /// # Errors
    /// When the listener has no address any more.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<Stream> {
        loop {
            let (socket, _) = Self::accept(self).await?;
            // One that its client has reset meanwhile is no trouble of this machine's.
            if let Ok(stream) = Stream::accepted(socket) {
                return Ok(stream);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// What [`Dialer::dial`] returns.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send + 'a>>;

/// Opens connections to `host:port`.
pub trait Dialer: Send + Sync + 'static {
    fn dial<'a>(&'a self, addr: &'a str) -> Dialing<'a>;
}

/// The real network.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Tcp {
    /// # Errors
    /// When the address is taken or not one of this machine.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<TcpListener> {
        TcpListener::bind(addr).await
    }
}

impl Dialer for Tcp {
    fn dial<'a>(&'a self, addr: &'a str) -> Dialing<'a> {
        Box::pin(async move { Stream::dialled(TcpStream::connect(addr).await?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv4_is_one_whatever_the_socket_is_bound_to() {
        let of = |addr: &str| plain(addr.parse().unwrap()).to_string();
        assert_eq!(of("[::ffff:10.0.0.1]:5"), "10.0.0.1:5");
        assert_eq!(of("10.0.0.1:5"), "10.0.0.1:5");
        assert_eq!(of("[2001:db8::1]:5"), "[2001:db8::1]:5");
    }
}
