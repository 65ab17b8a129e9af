//! The seam through which the network enters: who accepts and who dials is a parameter, so that a
//! test or a simulation can own both ends.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};

/// Both directions of one connection.
pub struct Stream {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

impl Stream {
    /// # Errors
    /// When the socket is already gone.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        // Responses are coalesced before they are written; waiting in the kernel only adds delay.
        socket.set_nodelay(true)?;
        let (peer, local) = (socket.peer_addr()?, socket.local_addr()?);
        let (reader, writer) = socket.into_split();
        Ok(Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
            peer,
            local,
        })
    }
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
        let (socket, _) = Self::accept(self).await?;
        Stream::tcp(socket)
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
        Box::pin(async move { Stream::tcp(TcpStream::connect(addr).await?) })
    }
}
