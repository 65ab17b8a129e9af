//! What must be there when all is well again.

use rmq_store::QueueOffset;
use rmq_wire::record::Record;

use super::{Checked, Oracle, QUEUES, id_of};
use crate::nodes::Nodes;

impl Oracle {
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
