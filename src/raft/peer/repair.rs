//! Mending damaged parts of the log with the bytes of other nodes, and giving them to those that ask.
//!
//! Committed bytes are the same everywhere and verified on both sides, so any node of the group can
//! help, whoever leads and whether or not Raft runs yet. That matters where several nodes are damaged in
//! different places: each answers the others while it still waits for what it needs itself to start.
//! A node that does not know an entry to be committed gives it to one that can tell whose it is: a new
//! leader may need it to commit anything.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use rmq_store::{Damage, LogIndex, LogReader, PhyOffset, Term};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::caller::{Caller, Dialer, Target};
use super::messages::{DecodeError, Hello, Message, Purpose, Reader, Refusal};
use super::nag::Nag;
use super::server::{HELLO_LIMIT, admit, answer, refuse};
use super::transport::{Duplex, Listener, Net};
use super::wire::{FrameReader, Kind, MAX_FRAME, MAX_HELLO_FRAME, OutFrame, Role, write_frames};
use super::{Local, SelfId};
use crate::raft::node::blocking;

/// Between two steps of mending, or of answering.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two tries to mend what no node could help with.
const RETRY: Duration = Duration::from_millis(500);
/// How long a node may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that are fetched before they are written.
const BATCH_BYTES: usize = 64 << 20;
/// A start that takes this long waits for others, who may wait for this node.
const START_LIMIT: Duration = Duration::from_millis(200);
/// Nodes that ask at once while this one starts.
const MAX_ASKING: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The raw extent of an entry, which need not be committed if it is of this leader (term, node).
    Entry(u64, Option<(Term, u64)>),
    /// The record at a position, or the blank.
    Record(u64),
}

impl Wanted {
    /// Whether a node has sent that. An entry of another leader, which a node has that knows it to be
    /// committed, does not belong where it is missing here.
    fn is_met_by(self, log: &LogReader, raw: &Bytes) -> bool {
        match self {
            Self::Entry(index, leader) => {
                log.check_raw(std::slice::from_ref(raw)).is_ok_and(|found| {
                    found.index.0 == index && leader.is_none_or(|leader| leader == found.leader())
                })
            }
            Self::Record(_) => !raw.is_empty(),
        }
    }
}

impl Message for Wanted {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Entry(index, leader) => {
                out.put_u8(0);
                out.put_u64(*index);
                out.put_u8(u8::from(leader.is_some()));
                if let Some((term, node)) = leader {
                    out.put_u64(term.0);
                    out.put_u64(*node);
                }
            }
            Self::Record(pos) => {
                out.put_u8(1);
                out.put_u64(*pos);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let is_record = from.flag("record")?;
        let number = from.u64()?;
        if is_record {
            return Ok(Self::Record(number));
        }
        let leader = if from.flag("leader")? {
            Some((Term(from.u64()?), from.u64()?))
        } else {
            None
        };
        Ok(Self::Entry(number, leader))
    }
}

/// What this node gives to one that asks: verified bytes, or none.
pub(super) async fn give(
    log: &LogReader,
    self_id: SelfId,
    wanted: Wanted,
) -> Result<Bytes, Refusal> {
    let log = log.clone();
    let found = blocking(move || match wanted {
        Wanted::Entry(index, leader) => log
            .sound_entry(LogIndex(index), leader)
            .map(|raw| raw.concat().into()),
        Wanted::Record(pos) => log.sound_record(PhyOffset(pos)),
    });
    let what = match wanted {
        Wanted::Entry(index, None) => format!("committed entry {index}"),
        Wanted::Entry(index, Some((term, node))) => format!("entry {term}-{node}.{index}"),
        Wanted::Record(pos) => format!("committed record at {pos}"),
    };
    let found = found.await.ok().flatten();
    found.ok_or_else(|| Refusal::refused(format!("{self_id} has no whole {what}")))
}

/// Answers those that mend their logs while this node starts, if that takes long, and puts everybody
/// else off.
pub(in crate::raft) async fn answer_repairs(
    listener: &dyn Listener,
    local: &Arc<Local>,
    log: &LogReader,
) -> Infallible {
    sleep(START_LIMIT).await;
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok(duplex) if connections.len() < MAX_ASKING => {
                connections.spawn(answer_one(duplex, Arc::clone(local), log.clone()));
            }
            Ok(_) => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Serves a connection to its end.
async fn answer_one(duplex: Duplex, local: Arc<Local>, log: LogReader) -> Option<()> {
    let mut reader = FrameReader::new(duplex.read, MAX_HELLO_FRAME);
    let mut writer = duplex.write;
    let frame = timeout(HELLO_LIMIT, reader.next()).await.ok()?.ok()??;
    if frame.kind != Kind::Hello || frame.role != Role::Request {
        return None;
    }
    let own = local.info().await;
    let hello = Hello::from_head(&frame.head).ok()?;
    let later = || Refusal::later(format!("{} mends its log before it starts", own.self_id));
    let admitted = admit(&hello, &own).and_then(|()| {
        let repairs = hello.purpose == Purpose::Repair;
        repairs.then_some(()).ok_or_else(later)
    });
    let first = match &admitted {
        Ok(()) => answer(&frame, &own),
        Err(refusal) => refuse(&frame, refusal),
    };
    write_frames(&mut writer, [first]).await.ok()?;
    admitted.ok()?;
    reader.set_max(MAX_FRAME);
    loop {
        let frame = reader.next().await.ok()??;
        let reply = match frame.kind {
            Kind::Ping => answer(&frame, &()),
            Kind::Read => {
                let wanted = Wanted::from_head(&frame.head).ok()?;
                match give(&log, own.self_id, wanted).await {
                    Ok(raw) => OutFrame::new(frame.kind, Role::Answer, frame.id, &[], vec![raw]),
                    Err(refusal) => refuse(&frame, &refusal),
                }
            }
            _ => return None,
        };
        write_frames(&mut writer, [reply]).await.ok()?;
    }
}

/// Mends the log, as long as it runs.
pub(in crate::raft) struct Mender {
    log: LogReader,
    others: Vec<(SelfId, Caller)>,
    nag: Nag,
}

impl Mender {
    /// Asks the other configured nodes. Must be called within the Raft runtime.
    pub(in crate::raft) fn new(log: LogReader, net: Arc<dyn Net>, local: Arc<Local>) -> Self {
        let dialer = Dialer {
            net,
            local: Arc::clone(&local),
            runtime: tokio::runtime::Handle::current(),
        };
        let others = local.peers.iter().filter(|(id, _)| *id != local.self_id);
        let caller = |(id, addr): (SelfId, &str)| {
            let target = Target {
                addr: addr.to_owned(),
                node: None,
            };
            (id, Caller::new(dialer.clone(), target, Purpose::Repair))
        };
        Self {
            others: others.map(caller).collect(),
            log,
            nag: Nag::default(),
        }
    }

    /// Mends what is found to be damaged, from this call on.
    pub(in crate::raft) fn run(self) -> impl Future<Output = ()> {
        let found = Arc::new(Notify::new());
        let call = Arc::clone(&found);
        self.log
            .expect_mending(Some(Box::new(move || call.notify_one())));
        async move {
            loop {
                let damages = self.log.damages();
                if damages.is_empty() {
                    found.notified().await;
                    continue;
                }
                let mut stuck = false;
                for damage in damages {
                    stuck |= !self.mend(damage).await;
                }
                sleep(if stuck { RETRY } else { PAUSE }).await;
            }
        }
    }

    /// Whether at least some of it is mended.
    async fn mend(&self, damage: Damage) -> bool {
        let (log, known) = (self.log.clone(), damage.clone());
        match blocking(move || log.mend_index(&known)).await {
            Ok(Ok(true)) => {
                tracing::info!(%damage, "an entry is found again");
                return true;
            }
            Ok(Ok(false)) => {}
            failed => tracing::error!(?failed, "cannot write to the raft index"),
        }
        let (pieces, missing) = self.gather(&damage).await;
        if let Some(missing) = missing
            && self.nag.is_due(&damage.to_string())
        {
            tracing::error!(
                "{damage}; no other node has what belongs there: it is not served, and waits for one \
                 that has it ({missing})"
            );
        }
        if pieces.is_empty() {
            return false;
        }
        let (log, at) = (self.log.clone(), damage.clone());
        let count = pieces.len();
        match blocking(move || log.mend(&at, &pieces)).await {
            Ok(Ok(())) => {
                tracing::info!(%damage, pieces = count, "mended with the bytes of another node");
                true
            }
            failed => {
                tracing::error!(%damage, ?failed, "not mended");
                false
            }
        }
    }

    /// What the others have of a damaged part, and why not all of it.
    async fn gather(&self, damage: &Damage) -> (Vec<Vec<Bytes>>, Option<String>) {
        let mut pieces: Vec<Vec<Bytes>> = Vec::new();
        let mut missing = None;
        let mut bytes = 0;
        let (mut at, mut index) = (damage.start, damage.entries.map(|(first, _)| first));
        while at < damage.end && bytes < BATCH_BYTES {
            let wanted = match (index, damage.entries) {
                (Some(index), Some((_, last))) if index > last => break,
                (Some(index), _) => Wanted::Entry(index.0, self.log.leader_of(damage, index)),
                (None, _) => Wanted::Record(at.0),
            };
            index = index.map(LogIndex::next);
            match self.fetch(wanted).await {
                Ok(piece) => {
                    bytes += piece.len();
                    if index.is_none() {
                        at = at + piece.len() as u64;
                    }
                    pieces.push(vec![piece]);
                }
                Err(reason) => {
                    missing = Some(reason);
                    if index.is_none() {
                        break;
                    }
                }
            }
        }
        (pieces, missing)
    }

    /// The first whole copy that another node has.
    async fn fetch(&self, wanted: Wanted) -> Result<Bytes, String> {
        let mut reasons = Vec::new();
        for (id, caller) in &self.others {
            let head = wanted.to_head();
            let asked = caller.call(Kind::Read, head, Bytes::new(), ASK_LIMIT).await;
            match asked {
                Ok(answer) if wanted.is_met_by(&self.log, &answer.raw) => return Ok(answer.raw),
                Ok(_) => reasons.push(format!("{id} sent other bytes, or damaged ones")),
                Err(error) => reasons.push(format!("{id}: {error}")),
            }
        }
        Err(reasons.join("; "))
    }
}

impl Drop for Mender {
    fn drop(&mut self) {
        self.log.expect_mending(None);
    }
}

#[cfg(test)]
mod tests {
    use rmq_store::{EntryId, EntryKind, Log, NewEntry, RealDisk, StoreConfig};

    use super::*;

    #[test]
    fn an_entry_of_another_leader_is_not_what_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let disk: Arc<dyn rmq_store::Disk> = Arc::new(RealDisk);
        let mut config = StoreConfig::new(dir.path());
        config.max_message_bytes = 4096;
        config.segment_bytes = 256 * 1024;
        let mut log = Log::open(&config, &disk).unwrap();
        let entry = NewEntry::Unsealed {
            id: EntryId {
                term: Term(3),
                node: 7,
                index: LogIndex(0),
            },
            kind: EntryKind::Blank,
            meta: Bytes::new(),
            batch: None,
        };
        log.append(vec![entry]).unwrap();
        let reader = log.reader();
        let raw = reader.raw(LogIndex(0)).unwrap().unwrap().concat().into();
        for (index, leader, is_met) in [
            (0, None, true),
            (0, Some((Term(3), 7)), true),
            (0, Some((Term(4), 7)), false),
            (0, Some((Term(3), 8)), false),
            (1, None, false),
        ] {
            let wanted = Wanted::Entry(index, leader);
            assert_eq!(wanted.is_met_by(&reader, &raw), is_met, "{wanted:?}");
        }
        assert!(!Wanted::Entry(0, None).is_met_by(&reader, &raw.slice(1..)));
    }

    #[test]
    fn what_is_wanted_reads_as_written() {
        for wanted in [
            Wanted::Entry(7, None),
            Wanted::Entry(7, Some((Term(3), u64::MAX))),
            Wanted::Record(9),
        ] {
            let head = wanted.to_head();
            assert_eq!(Wanted::from_head(&head), Ok(wanted));
            assert!(Wanted::from_head(&head[..head.len() - 1]).is_err());
        }
    }
}
