//! The leader's side: reading and sending, no faster than is good for its clients.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rmq_store::Part;
use tokio::time::{Instant, sleep_until, timeout};

use super::{CHUNK_BYTES, Chunk, Offer, OfferAnswer, Resumed};
use crate::raft::node::blocking;
use crate::raft::peer::caller::{CallError, Connection, Dialer, Target, accepted, connect};
use crate::raft::peer::messages::{Message, Purpose};
use crate::raft::peer::wire::{Kind, OutFrame, Role, write_frames};
use crate::raft::snapshot::{Sending, SnapshotData};
use crate::raft::types::Vote;

/// Chunks without an answer.
const WINDOW: usize = 8;
/// How long an answer may take. The receiver syncs its disk in between.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Keeps all transfers of a node together within so many bytes a second. 0 is no limit.
#[derive(Debug)]
pub(in crate::raft) struct Throttle {
    bytes_per_second: u64,
    /// When what was let through so far has had its time.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(in crate::raft) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::default(),
        }
    }

    /// Returns when so many more bytes may go.
    async fn pass(&self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let begin = free_at.map_or(now, |free_at| free_at.max(now));
            let seconds = bytes as f64 / self.bytes_per_second as f64;
            *free_at = Some(begin + Duration::from_secs_f64(seconds));
            begin
        };
        sleep_until(until).await;
    }
}

/// A snapshot in the hands of one transfer.
struct InUse(SnapshotData);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
    }
}

/// What came of an offer that was not refused.
pub(in crate::raft::peer) enum Sent {
    /// The peer's log has all of it, or it knows of a later leader: its vote.
    Settled(Vote),
    /// Everything was sent just now; the peer is about to install it.
    Installing,
}

/// Brings a snapshot to a peer as the leader that `vote` names.
pub(in crate::raft::peer) async fn send(
    dialer: &Dialer,
    target: &Target,
    throttle: &Throttle,
    vote: Vote,
    snapshot: SnapshotData,
) -> Result<Sent, CallError> {
    let snapshot = InUse(snapshot);
    let mut connection = connect(dialer, target, Purpose::Snapshot).await?;
    let data = snapshot.0.clone();
    let sending = blocking(move || data.send(&vote)).await;
    let sending = match sending {
        Ok(Ok(sending)) => Arc::new(sending),
        Ok(Err(e)) => return Err(CallError::NotSent(e.to_string())),
        Err(e) => return Err(CallError::NotSent(e.to_string())),
    };
    let offer = Offer {
        vote,
        outline: sending.outgoing.outline().clone(),
        rest_bytes: sending.rest.len() as u64,
    };
    let answer = connection.ask(Kind::Offer, &offer, ANSWER_LIMIT).await?;
    let (log, index) = match answer {
        OfferAnswer::Stale(vote) | OfferAnswer::Have(vote) => return Ok(Sent::Settled(vote)),
        OfferAnswer::Send { log, index } => (log, index),
    };
    let begun = Instant::now();
    let peer = connection.peer.self_id;
    let node = connection.peer.node;
    let mut transfer = Transfer {
        connection,
        throttle,
        sending,
        unanswered: 0,
        bytes: 0,
    };
    let log = transfer.start_of(Part::Log, log).await;
    let index = transfer.start_of(Part::Index, index).await;
    let outline = &offer.outline;
    let (start, _) = outline.range(Part::Log);
    let here = log.saturating_sub(start);
    if here > 0 {
        tracing::info!(%peer, node, last = %outline.last, here, "snapshot resumed");
    } else {
        tracing::info!(
            %peer, node, last = %outline.last, bytes = outline.end - outline.start, "snapshot offered"
        );
    }
    transfer.part(Part::Log, log).await?;
    transfer.part(Part::Index, index).await?;
    transfer.rest().await?;
    let Transfer {
        mut connection,
        bytes,
        ..
    } = transfer;
    connection
        .ask::<()>(Kind::Finish, &(), ANSWER_LIMIT)
        .await?;
    tracing::info!(
        %peer, node, last = %outline.last, bytes, here,
        seconds = begun.elapsed().as_secs_f64(),
        "snapshot sent"
    );
    Ok(Sent::Installing)
}

/// A transfer under way.
struct Transfer<'a> {
    connection: Connection,
    throttle: &'a Throttle,
    sending: Arc<Sending>,
    unanswered: usize,
    /// Sent so far.
    bytes: u64,
}

impl Transfer<'_> {
    /// Where to begin a part of which the peer has something: at its start again, if that is not what
    /// this node has.
    async fn start_of(&self, part: Part, resumed: Resumed) -> u64 {
        let (start, end) = self.sending.outgoing.outline().range(part);
        if resumed.kept == 0 || resumed.at > end {
            // Beyond the end it has what another leader sent it, all of it committed.
            return if resumed.kept == 0 { start } else { end };
        }
        let sending = Arc::clone(&self.sending);
        let crc = blocking(move || {
            sending
                .outgoing
                .crc_before(part, resumed.at, resumed.compared)
        });
        if crc.await.ok().flatten() == Some(resumed.crc) {
            resumed.at
        } else {
            tracing::warn!(
                ?part,
                at = resumed.at,
                "the peer has other bytes, sends all again"
            );
            start
        }
    }

    async fn part(&mut self, part: Part, mut at: u64) -> Result<(), CallError> {
        let (_, end) = self.sending.outgoing.outline().range(part);
        while at < end {
            let sending = Arc::clone(&self.sending);
            let read = blocking(move || {
                let bytes = sending.outgoing.read(part, at, CHUNK_BYTES)?;
                let crc = crc32c::crc32c(&bytes);
                std::io::Result::Ok((bytes, crc))
            });
            let (bytes, crc) = match read.await {
                Ok(Ok(read)) => read,
                Ok(Err(e)) => {
                    return Err(CallError::Lost(format!(
                        "cannot read the {part:?} at {at}: {e}"
                    )));
                }
                Err(e) => return Err(CallError::Lost(e.to_string())),
            };
            let chunk = Chunk {
                part: Some(part),
                at,
                crc,
            };
            at += bytes.len() as u64;
            self.chunk(chunk, bytes.into()).await?;
        }
        self.answers(0).await
    }

    async fn rest(&mut self) -> Result<(), CallError> {
        let mut rest = self.sending.rest.clone();
        let mut at = 0;
        while !rest.is_empty() {
            let bytes = rest.split_to(rest.len().min(CHUNK_BYTES));
            let chunk = Chunk {
                part: None,
                at,
                crc: crc32c::crc32c(&bytes),
            };
            at += bytes.len() as u64;
            self.chunk(chunk, bytes).await?;
        }
        self.answers(0).await
    }

    async fn chunk(&mut self, chunk: Chunk, bytes: Bytes) -> Result<(), CallError> {
        self.throttle.pass(bytes.len()).await;
        self.bytes += bytes.len() as u64;
        let head = chunk.to_head();
        let frame = OutFrame::new(Kind::Chunk, Role::Request, 0, &head, vec![bytes]);
        let written = timeout(
            ANSWER_LIMIT,
            write_frames(&mut self.connection.writer, [frame]),
        );
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(CallError::Lost(e.to_string())),
            Err(_) => return Err(CallError::Lost("the peer takes no more".to_owned())),
        }
        self.unanswered += 1;
        self.answers(WINDOW - 1).await
    }

    /// Waits until no more than `most` chunks are without an answer.
    async fn answers(&mut self, most: usize) -> Result<(), CallError> {
        while self.unanswered > most {
            match timeout(ANSWER_LIMIT, self.connection.reader.next()).await {
                Ok(Ok(Some(answer))) if answer.kind == Kind::Chunk => drop(accepted(answer)?),
                Ok(Ok(_)) => return Err(CallError::Lost("the peer closed the connection".into())),
                Ok(Err(e)) => return Err(CallError::Lost(e.to_string())),
                Err(_) => return Err(CallError::Lost(format!("no answer in {ANSWER_LIMIT:?}"))),
            }
            self.unanswered -= 1;
        }
        Ok(())
    }
}
