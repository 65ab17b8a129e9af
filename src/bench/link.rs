//! One connection to a broker, without anything that a load generator does not need.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use rmq_wire::frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The length field before each frame.
const LENGTH_BYTES: usize = 4;
const READ_BYTES: usize = 64 * 1024;

pub(super) struct Link {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    arrived: BytesMut,
    /// Requests to be written.
    pub(super) out: BytesMut,
}

impl Link {
    pub(super) async fn open(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader,
            writer,
            arrived: BytesMut::new(),
            out: BytesMut::new(),
        })
    }

    /// Writes what is to be written and reads what there is; returns when something was done. Cancel
    /// safe.
    pub(super) async fn work(&mut self) -> io::Result<()> {
        self.arrived.reserve(READ_BYTES);
        tokio::select! {
            biased;
            written = self.writer.write_buf(&mut self.out), if !self.out.is_empty() => {
                if written? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            read = self.reader.read_buf(&mut self.arrived) => {
                if read? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }

    /// The next answer that has arrived, without its length field.
    pub(super) fn answer(&mut self) -> io::Result<Option<Bytes>> {
        let Some(len) = frame::peek_len(&self.arrived).map_err(io::Error::other)? else {
            return Ok(None);
        };
        if self.arrived.len() < LENGTH_BYTES + len {
            return Ok(None);
        }
        self.arrived.advance(LENGTH_BYTES);
        Ok(Some(self.arrived.split_to(len).freeze()))
    }
}
