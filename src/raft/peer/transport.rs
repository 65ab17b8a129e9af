//! The one place where connections between nodes begin: dialling and accepting are behind [`Net`],
//! so that a simulation can be the network.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::time::timeout;

/// How long a peer may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);
/// How long it may take to find out where a name points.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

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
    /// Connects to `addr` (`host:port`), or fails soon: in 200 ms unless its name is to be looked up.
    fn dial(&self, addr: &str) -> BoxFuture<'static, io::Result<Duplex>>;
}

/// The end of a network that peers dial.
pub trait Listener: Send + Sync + 'static {
    /// The next connection. Cancel safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<Duplex>>;
}

/// A place that peers may dial at, before anybody listens there.
pub trait Bound: Send + Sync + 'static {
    /// Listens on the current runtime.
    fn listen(&self) -> io::Result<Box<dyn Listener>>;
}

/// The network of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Net for Tcp {
    fn dial(&self, addr: &str) -> BoxFuture<'static, io::Result<Duplex>> {
        let addr = addr.to_owned();
        Box::pin(async move {
            let addrs = timeout(RESOLVE_LIMIT, lookup_host(addr))
                .await
                .map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        "its name was not looked up in time",
                    )
                })??;
            let mut error = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
            for addr in addrs {
                match timeout(CONNECT_LIMIT, TcpStream::connect(addr)).await {
                    Ok(Ok(stream)) => {
                        // What is given up with it is not sent on: a kernel tries for minutes, and a
                        // partition that ends then would bring what was another leader's long ago.
                        stream.set_zero_linger()?;
                        return halves(stream);
                    }
                    Ok(Err(e)) => error = e,
                    Err(_) => {
                        let text = format!("no connection in {CONNECT_LIMIT:?}");
                        error = io::Error::new(io::ErrorKind::TimedOut, text);
                    }
                }
            }
            Err(error)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            loop {
                let (stream, _) = self.accept().await?;
                // One that the other node has reset meanwhile is no trouble of this machine's.
                if let Ok(duplex) = halves(stream) {
                    return Ok(duplex);
                }
            }
        })
    }
}

impl Bound for std::net::TcpListener {
    fn listen(&self) -> io::Result<Box<dyn Listener>> {
        let listener = self.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(Box::new(TcpListener::from_std(listener)?))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// More than the buffers of two sockets hold.
    const MUCH: usize = 64 << 20;

    #[tokio::test]
    async fn what_was_not_sent_when_a_connection_is_given_up_never_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (dialed, accepted) = tokio::join!(Tcp.dial(&addr), Listener::accept(&listener));
        let (
            Duplex {
                mut write, read, ..
            },
            mut accepted,
        ) = (dialed.unwrap(), accepted.unwrap());
        let stuck = timeout(Duration::from_millis(300), write.write_all(&vec![1; MUCH])).await;
        assert!(stuck.is_err(), "the sockets take everything");
        drop((write, read));
        let mut got = Vec::new();
        let end = accepted.read.read_to_end(&mut got).await;
        let end = end.map_err(|e| e.kind());
        assert_eq!(
            end,
            Err(io::ErrorKind::ConnectionReset),
            "after {} bytes",
            got.len()
        );
    }
}
