//! What must be so after each step, whatever has gone wrong. The numbers are those of the list of
//! invariants: I1 nothing acknowledged is lost, I2 nothing is made up, I3 queues are dense and say the
//! same everywhere, I4 committed bytes are equal everywhere, I5 queues are in the order of real time,
//! I7 nobody reads what is not committed and no leader is stale, I8 consumer offsets stay, I17 Raft's
//! own promises. `raft` has what is
//! looked at all the time, `reckoning` what is when all is over.

mod raft;
mod reckoning;

use std::collections::{BTreeMap, BTreeSet};

use rmq::raft::NodeId;
use rmq_store::{EntryId, PhyOffset, Position, QueueOffset};
use rmq_wire::record::Record;

use crate::network::Place;
use crate::nodes::Running;

/// A queue: topic and id.
pub(crate) type Queue = (&'static str, i32);

/// All queues of the simulation.
pub(crate) const QUEUES: [Queue; 5] = [
    ("orders", 0),
    ("orders", 1),
    ("orders", 2),
    ("events", 0),
    ("events", 1),
];

/// What is known of one message.
#[derive(Debug)]
struct Attempt {
    queue: Queue,
    body: Vec<u8>,
    /// It will never be in the log.
    refused: bool,
    acked: Option<Position>,
}

#[derive(Debug, Default)]
struct QueueSeen {
    /// Which message has an offset, from acknowledgements and reads.
    ids: BTreeMap<u64, u64>,
    /// Behind the highest acknowledged offset.
    acked_end: u64,
}

/// What one node showed.
#[derive(Debug, Default)]
struct NodeSeen {
    life: u32,
    node: u64,
    term: u64,
    applied: Option<u64>,
    /// What it had applied and on its disk at some time; no end of it takes that away.
    kept: Option<u64>,
    confirm: PhyOffset,
    /// Entries below are compared.
    compared: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Committed {
    id: EntryId,
    end: PhyOffset,
    crc: u32,
}

/// What has been seen so far.
#[derive(Default)]
pub(crate) struct Oracle {
    attempts: BTreeMap<u64, Attempt>,
    queues: BTreeMap<Queue, QueueSeen>,
    committed: BTreeMap<u64, Committed>,
    leaders: BTreeSet<(u64, u64)>,
    nodes: BTreeMap<Place, NodeSeen>,
    /// Who votes, as the nodes knew it at the last look.
    views: Vec<Vec<NodeId>>,
    /// Acknowledged and attempted consumer offsets.
    offsets: BTreeMap<(String, Queue), (i64, i64)>,
    next_id: u64,
    pub(crate) acked: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) reads: u64,
    pub(crate) commits: u64,
}

type Checked = Result<(), String>;

/// The message that a record holds.
fn id_of(record: &[u8]) -> Option<(u64, Vec<u8>)> {
    let record = Record::decode(record).ok()?;
    let body = record.body.to_vec();
    let id = body.first_chunk::<8>()?;
    Some((u64::from_be_bytes(*id), body))
}

impl Oracle {
    /// A message that is about to be sent, by its body; the body begins with its id. Also the end of
    /// its queue as acknowledged by now, which it must not come before.
    pub(crate) fn invoke(&mut self, queue: Queue, bytes: usize) -> (u64, Vec<u8>, u64) {
        let id = self.next_id;
        self.next_id += 1;
        let mut body = id.to_be_bytes().to_vec();
        body.resize(bytes.max(8), b'a' + u8::try_from(id % 26).expect("small"));
        let attempt = Attempt {
            queue,
            body: body.clone(),
            refused: false,
            acked: None,
        };
        self.attempts.insert(id, attempt);
        let floor = self.queues.entry(queue).or_default().acked_end;
        (id, body, floor)
    }

    /// A message that was refused for good.
    pub(crate) fn refuse(&mut self, id: u64) {
        self.refused += 1;
        self.attempts.get_mut(&id).expect("was invoked").refused = true;
    }

    /// A message that was acknowledged.
    pub(crate) fn ack(&mut self, id: u64, position: Position, floor: u64) -> Checked {
        self.acked += 1;
        let attempt = self.attempts.get_mut(&id).expect("was invoked");
        attempt.acked = Some(position);
        let queue = attempt.queue;
        let offset = position.queue.0;
        if offset < floor {
            return Err(format!(
                "I5: message {id} got offset {offset} of {queue:?}, though {floor} were acknowledged before \
                 it was sent"
            ));
        }
        let seen = self.queues.entry(queue).or_default();
        seen.acked_end = seen.acked_end.max(offset + 1);
        self.note(queue, offset, id)
    }

    /// One message for one offset, and the other way round.
    fn note(&mut self, queue: Queue, offset: u64, id: u64) -> Checked {
        let Some(attempt) = self.attempts.get(&id) else {
            return Err(format!(
                "I2: {queue:?} has message {id} at {offset}, nobody sent it"
            ));
        };
        if attempt.queue != queue {
            return Err(format!(
                "I2: message {id} of {:?} is in {queue:?}",
                attempt.queue
            ));
        }
        if attempt.refused {
            return Err(format!(
                "I2: message {id} is at {offset} of {queue:?}, it was refused"
            ));
        }
        if let Some(position) = attempt.acked
            && position.queue.0 != offset
        {
            return Err(format!(
                "I3: message {id} was acknowledged at {} of {queue:?} and is at {offset}",
                position.queue
            ));
        }
        let before = *self
            .queues
            .entry(queue)
            .or_default()
            .ids
            .entry(offset)
            .or_insert(id);
        if before != id {
            return Err(format!(
                "I3: {queue:?} has messages {before} and {id} at offset {offset}"
            ));
        }
        Ok(())
    }

    /// Notes that a group's offset is about to be committed, and gives it.
    pub(crate) fn commit_next(&mut self, group: &str, queue: Queue) -> i64 {
        let (_, tried) = self.offsets.entry((group.to_owned(), queue)).or_default();
        *tried += 1;
        *tried
    }

    pub(crate) fn committed(&mut self, group: &str, queue: Queue, offset: i64) {
        self.commits += 1;
        let (acked, _) = self.offsets.entry((group.to_owned(), queue)).or_default();
        *acked = offset.max(*acked);
    }

    /// Reads a queue of a node, as a consumer does, from `offset` on.
    pub(crate) fn read(
        &mut self,
        place: Place,
        node: &Running,
        queue: Queue,
        offset: u64,
    ) -> Checked {
        let confirm = node.reader.confirm_offset();
        if node.queues.dispatched() < confirm {
            return Ok(());
        }
        let (topic, queue_id) = queue;
        let result = node
            .queues
            .get(topic, queue_id, QueueOffset(offset), 32, 64 * 1024, &|_| {
                true
            })
            .map_err(|e| format!("n{place} cannot read {queue:?} at {offset}: {e}"))?;
        self.reads += 1;
        for bytes in result.records {
            let record = Record::decode(&bytes).map_err(|e| format!("I2: n{place}: {e}"))?;
            let (at, end) = (record.queue_offset, record.physical_offset);
            let (id, body) = id_of(&bytes).ok_or("I2: a record without an id")?;
            let at = u64::try_from(at).map_err(|_| "I2: a negative queue offset")?;
            let phy = u64::try_from(end).map_err(|_| "I2: a negative position")?;
            if phy + bytes.len() as u64 > confirm.0 {
                return Err(format!(
                    "I7: n{place} shows message {id} at {phy}, its log is committed to {confirm}"
                ));
            }
            self.note(queue, at, id)?;
            if self.attempts[&id].body != body {
                return Err(format!("I2: n{place} shows another body of message {id}"));
            }
        }
        Ok(())
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The end of the log that a node has to have applied to be level with the others.
    pub(crate) fn last_committed(&self) -> Option<u64> {
        self.committed.keys().next_back().copied()
    }
}
