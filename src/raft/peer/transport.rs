//! The one place where connections between nodes begin: dialling and accepting are behind [`Net`],
//! so that a simulation can be the network.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// How long a peer may take to accept a connection.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_millis(200);

/// One connection, as its two independent halves.
pub struct Duplex {
    /// What the other end sends.
    pub read: Box<dyn AsyncRead + Send + Sync + Unpin>,
    /// To the other end.
    pub write: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// Where the other end is.
    pub peer: SocketAddr,
}

/// A network.
pub trait Net: Send + Sync + 'static {
    /// Connects to `addr` (`host:port`). The caller limits how long it waits.
    fn dial(&self, addr: &str) -> BoxFuture<'static, io::Result<Duplex>>;
}

/// The end of a network that peers dial.
pub trait Listener: Send + Sync + 'static {
    /// The next connection. Cancel safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<Duplex>>;
}

/// The network of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Net for Tcp {
    fn dial(&self, addr: &str) -> BoxFuture<'static, io::Result<Duplex>> {
        let addr = addr.to_owned();
        Box::pin(async move { TcpStream::connect(addr).await.and_then(halves) })
    }
}

impl Listener for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let (stream, _) = self.accept().await?;
            halves(stream)
        })
    }
}

fn halves(stream: TcpStream) -> io::Result<Duplex> {
    stream.set_nodelay(true)?;
    // A machine that vanished leaves its connections open at this end until they are probed.
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(10))?;
    rustix::net::sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(5))?;
    rustix::net::sockopt::set_tcp_keepcnt(&stream, 3)?;
    let peer = stream.peer_addr()?;
    let (read, write) = stream.into_split();
    Ok(Duplex {
        read: Box::new(read),
        write: Box::new(write),
        peer,
    })
}
