//! The follower's side: what arrives goes to disk beside the log, and is installed when it is whole.

use std::sync::Arc;
use std::time::Duration;

use rmq_store::{
    Disk, EntryId, Incoming, IncomingError, LogReader, Outline, Part, Queues, StoreConfig,
    forget_incoming,
};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};

use super::{CHUNK_BYTES, Chunk, Offer, OfferAnswer, Resumed};
use crate::raft::log_store::to_log_id;
use crate::raft::node::blocking;
use crate::raft::peer::GroupId;
use crate::raft::peer::messages::Refusal;
use crate::raft::peer::shared::{Shared, stopped};
use crate::raft::start::OnInstall;

/// A sender that is silent for this long is taken for dead, and another may begin.
pub(in crate::raft::peer) const SENDER_SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// How often is looked whether what a transfer has left is still of use.
const TIDY_INTERVAL: Duration = Duration::from_secs(10);

/// What receiving needs of the node.
pub(in crate::raft) struct Receiver {
    pub(in crate::raft) config: StoreConfig,
    pub(in crate::raft) disk: Arc<dyn Disk>,
    pub(in crate::raft) log: LogReader,
    pub(in crate::raft) queues: Arc<Queues>,
    pub(in crate::raft) on_install: OnInstall,
    /// One at a time.
    pub(in crate::raft) receiving: Mutex<Left>,
}

/// What transfers have left on the disk.
pub(in crate::raft) struct Left {
    /// There may be something, for a next transfer to go on from.
    any: bool,
    /// All of a transfer is there, and the node is about to install it.
    arrived: bool,
    /// The last entry of the log when the last transfer, or this process, began.
    last: Option<EntryId>,
}

impl Left {
    /// What was left to a node that starts with this log.
    pub(in crate::raft) fn to(log: &LogReader) -> Self {
        Self {
            any: true,
            arrived: false,
            last: log.last_id(),
        }
    }
}

/// Removes what a transfer has left that broke off, once the node does without it: its log has grown by
/// entries that came one by one.
pub(in crate::raft::peer) async fn tidy(shared: Arc<Shared>) {
    loop {
        sleep(TIDY_INTERVAL).await;
        shared.receiver.tidy().await;
    }
}

/// A transfer that arrives.
pub(in crate::raft::peer) struct Receiving<'a> {
    receiver: &'a Receiver,
    left: MutexGuard<'a, Left>,
    /// Lent to a thread while it works.
    incoming: Option<Incoming>,
    rest: Vec<u8>,
    rest_bytes: u64,
    bytes: u64,
    begun: Instant,
}

impl Shared {
    /// Answers an offer, and makes ready for what follows if it is taken.
    pub(in crate::raft::peer) async fn take_offer(
        &self,
        group: GroupId,
        offer: Offer,
    ) -> Result<(OfferAnswer, Option<Receiving<'_>>), Refusal> {
        if self.local.identity.read().await.group() != Some(group) {
            return Err(Refusal::refused(
                "this node belongs to another group by now",
            ));
        }
        let own = self.raft.with_raft_state(|state| *state.vote_ref()).await;
        let own = own.map_err(stopped)?;
        if own > offer.vote {
            return Ok((OfferAnswer::Stale(own), None));
        }
        if self.receiver.has(&offer.outline).map_err(Refusal::later)? {
            return Ok((OfferAnswer::Have(own), None));
        }
        let Ok(mut left) = self.receiver.receiving.try_lock() else {
            return Err(Refusal::later("another snapshot is arriving"));
        };
        if left.arrived {
            // To begin anew would take it back.
            return Err(Refusal::later("a snapshot is about to be installed"));
        }
        *left = Left::to(&self.receiver.log);
        let Receiver { config, disk, .. } = &self.receiver;
        let (config, disk, outline) = (config.clone(), Arc::clone(disk), offer.outline.clone());
        let opened = on_thread(move || {
            let mut incoming = Incoming::open(&config, disk, group.0, outline)?;
            let mut resumed = |part| {
                let at = incoming.position(part);
                let (kept, compared, crc) = incoming.resumed(part)?;
                Ok::<_, IncomingError>(Resumed {
                    at,
                    kept,
                    compared,
                    crc,
                })
            };
            let (log, index) = (resumed(Part::Log)?, resumed(Part::Index)?);
            Ok((incoming, log, index))
        });
        let (incoming, log, index) = opened.await?;
        let Outline {
            start, end, last, ..
        } = offer.outline;
        tracing::info!(
            last = %last, bytes = end - start, resumed = log.kept,
            "a snapshot is arriving"
        );
        let receiving = Receiving {
            receiver: &self.receiver,
            left,
            incoming: Some(incoming),
            rest: Vec::new(),
            rest_bytes: offer.rest_bytes,
            bytes: 0,
            begun: Instant::now(),
        };
        Ok((OfferAnswer::Send { log, index }, Some(receiving)))
    }
}

impl Receiver {
    /// Whether the log has all that a snapshot would bring.
    fn has(&self, outline: &Outline) -> Result<bool, String> {
        let last = outline.last;
        let purged = self.log.purged_id();
        let here = self.log.id_at(last.index).map_err(|e| e.to_string())?;
        Ok(here.map(to_log_id) == Some(to_log_id(last))
            || purged.is_some_and(|purged| purged.index >= last.index))
    }

    async fn tidy(&self) {
        let Ok(mut left) = self.receiving.try_lock() else {
            return;
        };
        if !left.any || left.arrived || self.log.last_id() == left.last {
            return;
        }
        let (config, disk) = (self.config.clone(), Arc::clone(&self.disk));
        match blocking(move || forget_incoming(&config, &*disk)).await {
            Ok(Ok(found)) => {
                left.any = false;
                if found {
                    tracing::info!("what a snapshot had left that broke off is removed");
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "what a snapshot has left is not removed"),
            Err(_) => {}
        }
    }
}

impl Receiving<'_> {
    pub(in crate::raft::peer) async fn take(
        &mut self,
        chunk: Chunk,
        bytes: bytes::Bytes,
    ) -> Result<(), Refusal> {
        if bytes.len() > CHUNK_BYTES {
            return Err(Refusal::refused(format!(
                "a chunk of {} bytes",
                bytes.len()
            )));
        }
        self.bytes += bytes.len() as u64;
        let Chunk { part, at, crc } = chunk;
        let Some(part) = part else {
            if at != self.rest.len() as u64
                || crc32c::crc32c(&bytes) != crc
                || at + bytes.len() as u64 > self.rest_bytes
            {
                return Err(Refusal::later("a chunk was damaged on its way"));
            }
            self.rest.extend_from_slice(&bytes);
            return Ok(());
        };
        let mut incoming = self.incoming.take().ok_or_else(broken)?;
        let written = on_thread(move || {
            if crc32c::crc32c(&bytes) != crc {
                return Err(IncomingError::Damaged { part, at });
            }
            if at == incoming.outline().range(part).0 && incoming.position(part) != at {
                incoming.restart(part)?;
            }
            incoming.write(part, at, &bytes)?;
            Ok(incoming)
        });
        self.incoming = Some(written.await?);
        Ok(())
    }

    /// Has what has arrived installed.
    pub(in crate::raft::peer) async fn finish(mut self) -> Result<(), Refusal> {
        let incoming = self.incoming.take().ok_or_else(broken)?;
        let last = incoming.outline().last;
        let rest = std::mem::take(&mut self.rest);
        if rest.len() as u64 != self.rest_bytes {
            return Err(Refusal::refused("not all of the snapshot was sent"));
        }
        self.left.arrived = true;
        if let Err(refusal) = on_thread(move || incoming.finish(&rest)).await {
            self.left.arrived = false;
            return Err(refusal);
        }
        tracing::info!(
            %last, bytes = self.bytes, seconds = self.begun.elapsed().as_secs_f64(),
            "a snapshot has arrived, the node opens again with it"
        );
        (self.receiver.on_install)();
        Ok(())
    }
}

fn broken() -> Refusal {
    Refusal::later("an earlier chunk was not written")
}

/// Runs what uses the disk where nothing else waits.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IncomingError> + Send + 'static,
) -> Result<T, Refusal> {
    match blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => {
            tracing::warn!("the snapshot that is arriving: {e}");
            Err(Refusal::later(e.to_string()))
        }
        Err(e) => Err(Refusal::later(e.to_string())),
    }
}
