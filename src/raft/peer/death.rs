//! Proof of death: a leader whose process has ended is replaced without waiting for its lease.
//!
//! Each start of a node draws a *secret*. The *seal* of it opens each of the node's connections, so that
//! a follower knows which process leads by the vote that it follows. The secret itself goes to nobody but
//! somebody on the same machine who outlives the process and knows for certain when it has ended: in the
//! last will, which names what is to be sent to whom then. Whoever comes with the secret therefore proves
//! that nothing of that process can answer anybody any more.
//!
//! The others do as if the dead leader had asked them to take over, which is how openraft lets go of a
//! lease. They stand one after the other, the lowest node id first: openraft has a later, higher one win
//! the term where an earlier one lacks entries.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use rmq_store::mutant;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::Local;
use super::messages::{
    DecodeError, Hello, Message, NodeInfo, Purpose, Reader, Refusal, TransferRequest,
};
use super::shared::{Shared, stopped};
use super::transport::{Duplex, Net};
use super::wire::{FrameReader, Kind, MAX_HELLO_FRAME, OutFrame, Role};
use crate::raft::types::{NodeId, Vote};

/// How long a proof is worth sending; the leases that it is to end are shorter.
const DELIVERY_LIMIT: Duration = Duration::from_secs(1);
/// Before a node that was not reached is tried again.
const DELIVERY_PAUSE: Duration = Duration::from_millis(20);
/// How long after each other those that may follow a dead leader stand for election.
const TURN: Duration = Duration::from_millis(50);
const LEN: usize = 32;

/// Known to the process that drew it, until it is dead.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Secret(pub(super) [u8; LEN]);

impl Secret {
    pub(super) fn draw() -> Self {
        Self(rand::random())
    }

    pub(super) fn seal(&self) -> Seal {
        Seal(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The hash of a [`Secret`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal(pub(super) [u8; LEN]);

impl Message for Secret {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Message::decode(from).map(Self)
    }
}

impl Message for Seal {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Message::decode(from).map(Self)
    }
}

/// Takes what is to be sent once this process has ended, in the place of what it was given before. It
/// must not be sent while anything of the process can still run.
pub type LastWill = Arc<dyn Fn(Vec<Letter>) + Send + Sync>;

/// What one peer is to get.
#[derive(Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its peer address, `host:port`.
    pub to: String,
    /// To be written to a connection as they are.
    pub bytes: Vec<u8>,
}

/// Sends the letters of a process that has ended, for a second at most, and says how many of their
/// readers gave up a leader for them.
pub async fn deliver(net: &dyn Net, letters: &[Letter]) -> usize {
    let each = letters.iter().map(|letter| async move {
        let delivery = async {
            loop {
                match hand_over(net, letter).await {
                    Ok(believed) => return believed,
                    // Nobody is there who could lead.
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return false,
                    Err(_) => sleep(DELIVERY_PAUSE).await,
                }
            }
        };
        timeout(DELIVERY_LIMIT, delivery).await.unwrap_or(false)
    });
    let believed = join_all(each).await;
    believed.into_iter().filter(|believed| *believed).count()
}

async fn hand_over(net: &dyn Net, letter: &Letter) -> io::Result<bool> {
    let Duplex {
        read, mut write, ..
    } = net.dial(&letter.to).await?;
    write.write_all(&letter.bytes).await?;
    let mut reader = FrameReader::new(read, MAX_HELLO_FRAME);
    while let Some(answer) = reader.next().await.map_err(io::Error::other)? {
        match (answer.kind, answer.role) {
            (Kind::Hello, Role::Answer) => {}
            (Kind::Dead, Role::Answer) => return Ok(bool::from_head(&answer.head) == Ok(true)),
            _ => return Ok(false),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Keeps the last will addressed to the voters of the group.
pub(super) async fn keep_will(shared: Arc<Shared>, will: LastWill) {
    let mut server = shared.raft.server_metrics();
    let mut kept = Vec::new();
    loop {
        let voters: Vec<_> = {
            let server = server.borrow_watched();
            let members = server.membership_config.membership();
            let addr = |node| Some((node, members.get_node(&node)?.raft_addr.clone()));
            members.voter_ids().filter_map(addr).collect()
        };
        let local = &shared.local;
        let info = local.info().await;
        let others = voters.into_iter().filter(|(node, _)| *node != local.node);
        let letters: Vec<_> = others
            .filter(|_| info.group.is_some())
            .map(|(node, to)| letter(local, node, to, info.clone()))
            .collect();
        if letters != kept {
            kept.clone_from(&letters);
            will(letters);
        }
        if server.changed().await.is_err() {
            return;
        }
    }
}

fn letter(local: &Local, node: NodeId, to: String, from: NodeInfo) -> Letter {
    let hello = Hello {
        purpose: Purpose::Control,
        target: Some(node),
        seal: local.secret.seal(),
        from,
    };
    let frames = [
        (Kind::Hello, hello.to_head()),
        (Kind::Dead, local.secret.to_head()),
    ];
    let frames = (0..).zip(frames).map(|(id, (kind, head))| {
        let frame = OutFrame::new(kind, Role::Request, id, &head, vec![]);
        frame.lead
    });
    Letter {
        to,
        bytes: frames.collect::<Vec<_>>().concat(),
    }
}

/// The highest vote that this node has followed since it was started, and the seal of the process that
/// led by it: no two ever lead by the same.
#[derive(Default)]
pub(super) struct Followed(Mutex<Option<(Vote, Seal)>>);

impl Followed {
    /// An append by `vote` was accepted from the process with this seal.
    pub(super) fn note(&self, vote: Vote, seal: Seal) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none_or(|(known, _)| known < vote) {
            *known = Some((vote, seal));
        }
    }

    /// The vote by which the process of `node` with this secret led, if it was the last to lead.
    pub(super) fn led_by(&self, node: NodeId, secret: &Secret) -> Option<Vote> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (vote, seal) = known?;
        let same = vote.leader_id.node_id == node && (seal == secret.seal() || mutant!(Proof));
        same.then_some(vote)
    }

    #[cfg(test)]
    pub(super) fn follows(&self, node: NodeId) -> bool {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_some_and(|(vote, _)| vote.leader_id.node_id == node)
    }
}

impl Shared {
    /// Somebody knows the secret of a process of the node `dead`. Says whether the leader that this node
    /// follows is that process: then its lease is over here, and this node may stand for election.
    pub(super) async fn hear_of_death(
        self: &Arc<Self>,
        dead: NodeId,
        secret: Secret,
    ) -> Result<bool, Refusal> {
        let Some(vote) = self.followed.led_by(dead, &secret) else {
            return Ok(false);
        };
        let (own, term) = (self.local.node, vote.leader_id.term);
        let place = {
            let server = self.raft.server_metrics();
            let server = server.borrow_watched();
            if server.vote != vote {
                return Ok(false);
            }
            let voters = server.membership_config.voter_ids();
            let left: BTreeSet<NodeId> = voters.filter(|voter| *voter != dead).collect();
            left.iter().position(|voter| *voter == own)
        };
        tracing::info!(
            node = own,
            term,
            leader = dead,
            "proof of death: the leader's process has ended"
        );
        // To be taken over by the dead, this only ends the lease.
        let request = TransferRequest::new(vote, dead, None);
        let released = self.raft.handle_transfer_leader(request).await;
        released.map_err(stopped)?.ok();
        if let Some(place) = place {
            tokio::spawn(stand(Arc::clone(self), vote, place));
        }
        Ok(true)
    }
}

/// Stands for election in the place of the leader by `vote`, unless another one of those in front has
/// been voted for by then.
async fn stand(shared: Arc<Shared>, vote: Vote, place: usize) {
    sleep(TURN * u32::try_from(place).unwrap_or(u32::MAX)).await;
    let own = shared.local.node;
    if !shared.receiver.queues.is_built() || !shared.gate.is_open_to(own) {
        return;
    }
    let request = TransferRequest::new(vote, own, None);
    // Raft may have stopped, or the vote changed; then there is nothing to be done.
    drop(shared.raft.handle_transfer_leader(request).await);
}
