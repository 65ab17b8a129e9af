//! What must be so after each step, whatever has gone wrong. The numbers are those of the list of
//! invariants: I1 nothing acknowledged is lost, I2 nothing is made up, I3 queues are dense and say the
//! same everywhere, I4 committed bytes are equal everywhere, I5 queues are in the order of real time,
//! I7 nobody reads what is not committed and no leader is stale, I8 consumer offsets stay, I17 Raft's
//! own promises.

use std::collections::{BTreeMap, BTreeSet};

use rmq::raft::{GroupStatus, NodeId, Role};
use rmq_store::{EntryId, FlushMode, LogIndex, LogReader, PhyOffset, Position, QueueOffset};
use rmq_wire::record::Record;

use crate::network::Place;
use crate::nodes::{Nodes, Running};

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

    /// Looks at all nodes.
    pub(crate) fn check(&mut self, nodes: &Nodes, flush: FlushMode) -> Checked {
        let mut serving = None;
        let now = nodes.views();
        let before = std::mem::replace(&mut self.views, now.clone());
        let mut views = [now, before].concat();
        views.sort_unstable();
        views.dedup();
        for (place, node) in nodes.all_running() {
            let status = node.group.status();
            self.check_status(place, &node, &status)?;
            self.check_committed(place, &node, &status, &views, nodes, flush)?;
            if node.group.serving() {
                if let Some(other) = serving {
                    return Err(format!("I17: n{other} and n{place} serve at once"));
                }
                serving = Some(place);
                self.check_serving(place, &node)?;
            }
        }
        Ok(())
    }

    fn check_status(&mut self, place: Place, node: &Running, status: &GroupStatus) -> Checked {
        let seen = self.nodes.entry(place).or_default();
        let confirm = node.reader.confirm_offset();
        if seen.life != node.life {
            // A wiped node is another one and has promised nothing.
            let same = seen.node == status.node;
            *seen = NodeSeen {
                life: node.life,
                node: status.node,
                term: if same { seen.term } else { 0 },
                ..NodeSeen::default()
            };
        }
        if status.term < seen.term {
            return Err(format!(
                "I17: n{place} goes back from term {} to {}",
                seen.term, status.term
            ));
        }
        for (what, before, now) in [
            ("applied", seen.applied, status.applied_index),
            ("confirm offset", Some(seen.confirm.0), Some(confirm.0)),
        ] {
            if now < before {
                return Err(format!(
                    "I17: {what} of n{place} goes back: {before:?}, {now:?}"
                ));
            }
        }
        if status.applied_index > status.last_index || confirm > node.reader.end_offset() {
            return Err(format!(
                "I17: n{place} has applied {:?} to {confirm}, its log ends with {:?} at {}",
                status.applied_index,
                status.last_index,
                node.reader.end_offset()
            ));
        }
        seen.term = status.term;
        seen.applied = status.applied_index;
        seen.confirm = confirm;
        if status.role == Role::Leader {
            // Votes are ordered by term and node, so a term may have leaders of rising ids; that only
            // one of them can commit is for the other checks to show.
            self.leaders.insert((status.term, status.node));
            self.check_complete(place, &node.reader, status.term)?;
        }
        Ok(())
    }

    /// A leader has what was committed before its term.
    fn check_complete(&self, place: Place, log: &LogReader, term: u64) -> Checked {
        let mut before = self.committed.iter().rev();
        let Some((index, committed)) = before.find(|(_, entry)| entry.id.term.0 < term) else {
            return Ok(());
        };
        if log
            .purged_id()
            .is_some_and(|purged| purged.index.0 >= *index)
        {
            return Ok(());
        }
        match log.id_at(LogIndex(*index)) {
            Ok(Some(id)) if id == committed.id => Ok(()),
            found => Err(format!(
                "I17: n{place} leads term {term} and has {found:?} in place of the committed {}",
                committed.id
            )),
        }
    }

    /// What a node has applied is what every other one has.
    fn check_committed(
        &mut self,
        place: Place,
        node: &Running,
        status: &GroupStatus,
        views: &[Vec<NodeId>],
        nodes: &Nodes,
        flush: FlushMode,
    ) -> Checked {
        let Some(applied) = status.applied_index else {
            return Ok(());
        };
        let seen = self.nodes.entry(place).or_default();
        let first = node.reader.first_index().map_or(0, |first| first.0);
        for index in seen.compared.max(first)..=applied {
            let shown = |e: &dyn std::fmt::Display| format!("I4: n{place}, entry {index}: {e}");
            let entry = node.reader.entry(LogIndex(index)).map_err(|e| shown(&e))?;
            let raw = node.reader.raw(LogIndex(index)).map_err(|e| shown(&e))?;
            let (Some(entry), Some(raw)) = (entry, raw) else {
                return Err(shown(&"is applied and not in the log"));
            };
            let crc = raw
                .iter()
                .fold(0, |crc, bytes| crc32c::crc32c_append(crc, bytes));
            let this = Committed {
                id: entry.id,
                end: entry.end,
                crc,
            };
            let known = self.committed.get(&index).copied();
            if known.is_none() {
                on_quorum(index, &this, views, nodes, flush)?;
                self.committed.insert(index, this);
            } else if known != Some(this) {
                return Err(format!(
                    "I4: entry {index} is {known:?}, on n{place} {this:?}"
                ));
            }
        }
        seen.compared = seen.compared.max(applied + 1);
        Ok(())
    }

    /// Who serves knows all that was acknowledged.
    fn check_serving(&self, place: Place, node: &Running) -> Checked {
        for (queue, seen) in &self.queues {
            let max = node.queues.max_offset(queue.0, queue.1).0;
            if max < seen.acked_end {
                return Err(format!(
                    "I7: n{place} serves and has {queue:?} to {max}, acknowledged are {}",
                    seen.acked_end
                ));
            }
        }
        let meta = node.meta.read();
        for ((group, queue), (acked, tried)) in &self.offsets {
            let offset = meta.offset(group, queue.0, queue.1).unwrap_or(0);
            if offset < *acked || offset > *tried {
                return Err(format!(
                    "I8: n{place} serves and has {group} at {offset} of {queue:?}, acknowledged is \
                     {acked}, tried {tried}"
                ));
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

    /// When nothing is wrong any more: every voter has every acknowledged message at its place, and
    /// nothing else.
    pub(crate) fn check_final(&mut self, nodes: &Nodes) -> Checked {
        let mut all = nodes.all_running();
        // Who is no voter may have nothing yet, or not hear any more.
        let voters = nodes
            .serving()
            .map(|(_, leader)| leader.group.status().members);
        all.retain(|(_, node)| {
            let mut voters = voters.iter().flatten();
            voters.any(|member| member.voter && member.node == node.group.node_id())
        });
        for (place, node) in &all {
            let confirm = node.reader.confirm_offset();
            for (id, attempt) in &self.attempts {
                let Some(position) = attempt.acked else {
                    continue;
                };
                let phy = position.phy;
                if phy < node.reader.min_offset() {
                    continue;
                }
                let record = node.reader.record_at(phy);
                if record.as_deref().and_then(id_of) != Some((*id, attempt.body.clone())) {
                    return Err(format!(
                        "I1: message {id}, acknowledged at {phy} and offset {} of {:?}, is not there on \
                         n{place}, which is committed to {confirm}",
                        position.queue, attempt.queue
                    ));
                }
            }
            for queue in QUEUES {
                let max = node.queues.max_offset(queue.0, queue.1).0;
                let mut offset = node.queues.min_offset(queue.0, queue.1).0;
                while offset < max {
                    let result = node
                        .queues
                        .get(queue.0, queue.1, QueueOffset(offset), 32, 1 << 20, &|_| {
                            true
                        })
                        .map_err(|e| format!("I3: n{place} {queue:?} at {offset}: {e}"))?;
                    if result.records.is_empty() {
                        return Err(format!(
                            "I3: n{place} has no message at {offset} of {queue:?}, which ends at {max}: {:?}",
                            result.status
                        ));
                    }
                    for bytes in &result.records {
                        let record = Record::decode(bytes).map_err(|e| format!("I2: {e}"))?;
                        if u64::try_from(record.queue_offset) != Ok(offset) {
                            return Err(format!(
                                "I3: n{place} has offset {} at {offset} of {queue:?}",
                                record.queue_offset
                            ));
                        }
                        let (id, body) = id_of(bytes).ok_or("I2: a record without an id")?;
                        self.note(queue, offset, id)?;
                        if self.attempts[&id].body != body {
                            return Err(format!("I2: n{place} has another body of message {id}"));
                        }
                        offset += 1;
                    }
                }
            }
        }
        let mut states = all
            .iter()
            .map(|(place, node)| (place, node.meta.snapshot()));
        if let Some((first, state)) = states.next()
            && let Some((other, _)) = states.find(|(_, other)| *other != state)
        {
            return Err(format!("I8: the metadata of n{first} and n{other} differ"));
        }
        Ok(())
    }
}

/// A majority of the voters has the entry, durably where that is promised.
fn on_quorum(
    index: u64,
    entry: &Committed,
    views: &[Vec<NodeId>],
    nodes: &Nodes,
    flush: FlushMode,
) -> Checked {
    // Who lost its power or its store since has lost what it held.
    if nodes.any_lacks() {
        return Ok(());
    }
    let holds = |node: &&NodeId| {
        let Some((log, synced)) = nodes.log_of(**node) else {
            return false;
        };
        let durable = flush != FlushMode::Sync || synced >= entry.end;
        durable && matches!(log.id_at(LogIndex(index)), Ok(Some(id)) if id == entry.id)
    };
    // The members may have changed since, or be about to; all but the last is for the nodes to know.
    let is_quorum = |voters: &Vec<NodeId>| {
        let holders = voters.iter().filter(holds).count();
        holders > voters.len() / 2
    };
    if !views.iter().any(is_quorum) {
        return Err(format!(
            "I17: entry {} is committed and not durable on a majority of the voters {views:x?}",
            entry.id,
        ));
    }
    Ok(())
}
