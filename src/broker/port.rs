//! The ports for clients. They are taken at once and refuse connections until somebody answers there: what
//! a client sends into a backlog costs it its whole patience, a refusal sends it elsewhere.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::Shutdown;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A port that nobody else can have.
pub struct Port(OwnedFd);

impl Port {
    /// Takes the port; connections are refused. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it is taken, or the address is not one of this machine.
    pub fn take(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // Connections of a former process may still be dying.
        socket.set_reuseaddr(true)?;
        // What it accepts begins with that, and so is reset even if the process dies before it has seen it.
        socket.set_zero_linger()?;
        socket.bind(address)?;
        Ok(Self(socket.as_fd().try_clone_to_owned()?))
    }

    /// Connections are accepted from now on.
    pub(super) fn open(&self) -> io::Result<TcpListener> {
        let socket = self.0.try_clone()?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    }

    /// Connections are refused again, and those that were not accepted yet are reset.
    pub(super) fn refuse(&self) {
        // tcp(7) does not say so, but Linux takes a listening socket back to a bound one.
        if let Err(error) = rustix::net::shutdown(&self.0, Shutdown::Read) {
            tracing::warn!(%error, "a port could not be closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;
    use crate::testing::own_loopback;

    #[tokio::test]
    async fn a_port_refuses_while_nobody_answers() {
        // A port that the kernel chose would be given up when it is closed.
        let free = TcpListener::bind((own_loopback(), 0)).await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let port = Port::take(address).unwrap();
        // Twice, as when a broker starts anew within its process.
        for _ in 0..2 {
            let refused = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            let listener = port.open().unwrap();
            let (accepted, client) = tokio::join!(listener.accept(), TcpStream::connect(address));
            drop(accepted.unwrap());
            let reset = client.unwrap().read(&mut [0]).await.unwrap_err();
            assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
            let mut waiting = TcpStream::connect(address).await.unwrap();
            port.refuse();
            let reset = waiting.read(&mut [0]).await.unwrap_err();
            assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
