//! Frames on their way out of one connection: encoded in order, written as few large pieces.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::Notify;

use super::{Bounds, Reply};

/// A body up to this size is copied behind its header; a larger one is queued as it is, which
/// costs a slice of its own in the vectored write.
const COPY_BYTES_MAX: usize = 8 * 1024;

/// The bounded queue between those who answer and the task that writes.
///
/// What it holds, written or being written, is at most what [`Bounds`] leaves it plus one frame; what
/// those hold who wait for room is bounded there too.
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    /// Wakes the writer.
    filled: Notify,
    /// Wakes everyone who waits for room.
    room: Notify,
    bounds: Bounds,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Encoded frames behind the last chunk.
    tail: BytesMut,
    /// Bytes accepted and not yet taken by the peer's socket.
    unsent: usize,
    /// What those have in memory who wait for room.
    waiting: usize,
    end: End,
}

#[derive(Default, PartialEq, Clone, Copy)]
enum End {
    #[default]
    Open,
    /// Write what is there, then end.
    Finish,
    /// Write nothing more.
    Closed,
}

#[derive(Debug, PartialEq, Clone, Copy)]
pub(super) enum PushError {
    /// The connection is closed or closing.
    Closed,
    /// So many bytes wait for room already.
    Overrun(usize),
}

impl Outbox {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (filled, room) = (Notify::new(), Notify::new());
        Self {
            queue: Mutex::default(),
            filled,
            room,
            bounds,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no panic under this lock")
    }

    /// Queues a frame, after waiting for room.
    pub(super) async fn push(&self, reply: &Reply) -> Result<(), PushError> {
        if self.try_push(reply)? {
            return Ok(());
        }
        let _waiting = self.wait_with(reply.memory())?;
        loop {
            self.has_room().await;
            if self.try_push(reply)? {
                return Ok(());
            }
        }
    }

    /// Queues a frame if there is room; `false` says that there is none.
    pub(super) fn try_push(&self, reply: &Reply) -> Result<bool, PushError> {
        let mut queue = self.lock();
        if queue.end != End::Open {
            return Err(PushError::Closed);
        }
        if !self.bounds.may_answer(queue.unsent) {
            return Ok(false);
        }
        let before = queue.unsent;
        queue.append(reply);
        self.bounds.add_unsent(queue.unsent - before);
        drop(queue);
        self.filled.notify_one();
        Ok(true)
    }

    /// Queues bytes that are no frame, whether there is room or not.
    pub(super) fn push_text(&self, text: Bytes) {
        let mut queue = self.lock();
        if queue.end != End::Open {
            return;
        }
        queue.unsent += text.len();
        self.bounds.add_unsent(text.len());
        queue.seal_tail();
        queue.chunks.push_back(text);
        drop(queue);
        self.filled.notify_one();
    }

    /// Returns when there is room for a frame, or never will be.
    pub(super) async fn has_room(&self) {
        while !self.is_room_or_end() {
            // Registered before looking again, so that room made in between is not missed.
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            let mut others = pin!(self.bounds.fewer_unsent().notified());
            others.as_mut().enable();
            if self.is_room_or_end() {
                return;
            }
            tokio::select! {
                () = room => {}
                () = others => {}
            }
        }
    }

    fn is_room_or_end(&self) -> bool {
        let queue = self.lock();
        self.bounds.may_answer(queue.unsent) || queue.end != End::Open
    }

    fn wait_with(&self, bytes: usize) -> Result<Waiting<'_>, PushError> {
        let mut queue = self.lock();
        if !self.bounds.add_waiting(queue.waiting, bytes) {
            return Err(PushError::Overrun(queue.waiting));
        }
        queue.waiting += bytes;
        Ok(Waiting {
            outbox: self,
            bytes,
        })
    }

    /// For the one writer: everything queued, or `None` at the end.
    pub(super) async fn take(&self) -> Option<VecDeque<Bytes>> {
        loop {
            {
                let mut queue = self.lock();
                if queue.end == End::Closed {
                    return None;
                }
                queue.seal_tail();
                if !queue.chunks.is_empty() {
                    return Some(std::mem::take(&mut queue.chunks));
                }
                if queue.end == End::Finish {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    /// For the writer: so many bytes were taken by the socket.
    pub(super) fn sent(&self, bytes: usize) {
        let mut queue = self.lock();
        // Nothing is left of them if the connection was closed meanwhile.
        let bytes = bytes.min(queue.unsent);
        queue.unsent -= bytes;
        let unsent = queue.unsent;
        drop(queue);
        self.bounds.remove_unsent(bytes);
        if self.bounds.may_answer(unsent) {
            self.room.notify_waiters();
        }
    }

    /// The socket has taken everything, and nobody waits for room.
    pub(super) fn is_sent(&self) -> bool {
        let queue = self.lock();
        queue.unsent == 0 && queue.waiting == 0
    }

    /// Refuses new frames; the writer ends after those that are queued.
    pub(super) fn finish(&self) {
        let mut queue = self.lock();
        if queue.end == End::Open {
            queue.end = End::Finish;
        }
        drop(queue);
        self.wake_all();
    }

    /// Drops what is queued and refuses more.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.end = End::Closed;
        queue.chunks = VecDeque::new();
        queue.tail = BytesMut::new();
        let unsent = std::mem::take(&mut queue.unsent);
        drop(queue);
        self.bounds.remove_unsent(unsent);
        self.wake_all();
    }

    fn wake_all(&self) {
        self.filled.notify_one();
        self.room.notify_waiters();
    }
}

/// Counts someone who waits for room, until dropped.
struct Waiting<'a> {
    outbox: &'a Outbox,
    bytes: usize,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.outbox.lock().waiting -= self.bytes;
        self.outbox.bounds.remove_waiting(self.bytes);
    }
}

impl Queue {
    fn append(&mut self, reply: &Reply) {
        let start = self.tail.len();
        let body = match reply {
            Reply::Command(command) => {
                command.encode_head(command.body.len(), &mut self.tail);
                std::slice::from_ref(&command.body)
            }
            Reply::Parts(command, parts) => {
                command.encode_head(parts.iter().map(Bytes::len).sum(), &mut self.tail);
                parts.as_slice()
            }
            Reply::Frame(frame) => {
                let len = u32::try_from(frame.len()).expect("a frame that was received");
                self.tail.put_u32(len);
                std::slice::from_ref(frame)
            }
        };
        let body_len: usize = body.iter().map(Bytes::len).sum();
        self.unsent += self.tail.len() - start + body_len;
        if body_len <= COPY_BYTES_MAX {
            body.iter()
                .for_each(|part| self.tail.extend_from_slice(part));
        } else {
            self.seal_tail();
            self.chunks
                .extend(body.iter().filter(|part| !part.is_empty()).cloned());
        }
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.chunks.push_back(tail);
        }
    }
}

/// The pieces that the writer has in hand, as one buffer.
#[derive(Default)]
pub(super) struct Pieces(VecDeque<Bytes>);

impl From<VecDeque<Bytes>> for Pieces {
    fn from(chunks: VecDeque<Bytes>) -> Self {
        Self(chunks)
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |chunk| chunk)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        dst.iter_mut()
            .zip(&self.0)
            .map(|(slot, chunk)| *slot = IoSlice::new(chunk))
            .count()
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(front) = self.0.front_mut() {
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.0.pop_front();
        }
        assert_eq!(count, 0, "advanced beyond the end");
    }
}
