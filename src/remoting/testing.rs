//! A network in memory for tests: with it, tokio's paused clock is the only time there is.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{DuplexStream, duplex, split};
use tokio::sync::mpsc;

use super::{Dialer, Dialing, Listener, Stream};

const ADDR: ([u8; 4], u16) = ([127, 0, 0, 1], 9);

/// Accepts what is connected to its [`Port`].
pub(crate) struct Net(mpsc::Receiver<Stream>);

/// The way to a [`Net`].
#[derive(Clone)]
pub(crate) struct Port(mpsc::Sender<Stream>);

pub(crate) fn network() -> (Net, Port) {
    let (sender, receiver) = mpsc::channel(64);
    (Net(receiver), Port(sender))
}

fn stream(io: DuplexStream) -> Stream {
    let (reader, writer) = split(io);
    let addr = SocketAddr::from(ADDR);
    Stream {
        reader: Box::new(reader),
        writer: Box::new(writer),
        peer: addr,
        local: addr,
        home: None,
    }
}

impl Listener for Net {
    async fn accept(&mut self) -> io::Result<Stream> {
        match self.0.recv().await {
            Some(stream) => Ok(stream),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from(ADDR))
    }
}

impl Port {
    /// A connection that holds at most `buffer` bytes on the way, in each direction.
    pub(crate) async fn connect(&self, buffer: usize) -> io::Result<DuplexStream> {
        let (ours, theirs) = duplex(buffer);
        self.0
            .send(stream(theirs))
            .await
            .map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }
}

/// Ports by address; other addresses refuse.
#[derive(Clone, Default)]
pub(crate) struct Switchboard(Arc<Mutex<HashMap<String, Port>>>);

impl Switchboard {
    pub(crate) fn plug(&self, addr: &str, port: Port) {
        self.0.lock().unwrap().insert(addr.to_owned(), port);
    }
}

impl Dialer for Switchboard {
    fn dial<'a>(&'a self, addr: &'a str) -> Dialing<'a> {
        let port = self.0.lock().unwrap().get(addr).cloned();
        Box::pin(async move {
            let port = port.ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(stream(port.connect(64 * 1024).await?))
        })
    }
}
