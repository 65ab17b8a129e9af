//! What Raft and the log promise, looked at while things go wrong.

use rmq::raft::{GroupStatus, NodeId, Role};
use rmq_store::{FlushMode, LogIndex, LogReader, ReadError};

use super::{Checked, Committed, NodeSeen, Oracle};
use crate::network::Place;
use crate::nodes::{Nodes, Running};

impl Oracle {
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
            // One in quarantine knows that it has lost something.
            if same && !status.quarantined && status.last_index < seen.kept {
                return Err(format!(
                    "I17: n{place} comes back with entries to {:?}, {:?} was committed and on its disk",
                    status.last_index, seen.kept
                ));
            }
            *seen = NodeSeen {
                life: node.life,
                node: status.node,
                term: if same { seen.term } else { 0 },
                kept: seen.kept.filter(|_| same),
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
        if node.reader.synced_offset() >= confirm {
            seen.kept = seen.kept.max(status.applied_index);
        }
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
            Err(ReadError::Damaged { .. }) => Ok(()),
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
        let reader = &node.reader;
        for index in seen.compared.max(first)..=applied {
            let shown = |e: &dyn std::fmt::Display| format!("I4: n{place}, entry {index}: {e}");
            let read = reader.entry(LogIndex(index));
            let read = read.and_then(|entry| Ok((entry, reader.raw(LogIndex(index))?)));
            let (entry, raw) = match read {
                Ok((Some(entry), Some(raw))) => (entry, raw),
                Ok(_) => return Err(shown(&"is applied and not in the log")),
                // It is looked at once it is mended.
                Err(ReadError::Damaged { .. }) => {
                    seen.compared = index;
                    return Ok(());
                }
                Err(e) => return Err(shown(&e)),
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
