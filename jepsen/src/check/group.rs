//! What a group of nodes keeps for its clients: offsets, locks, and who leads.

use std::collections::{BTreeMap, HashMap};

use crate::client::Outcome;
use crate::history::{History, LEASE, LockCall, OffsetCall, OffsetOp};

/// The offset of a group in a queue is a register: a query answers a value that was committed, and none
/// that another commit had overwritten for certain, by its acknowledgement or because it was read.
///
/// While a fault lasts, a request may lie in the network or before a node that hangs: a commit that its
/// client has given up may then still come, after what was done later.
pub fn group_offset(history: &History) -> Vec<String> {
    let may_be_late = history.faults.iter().any(|fault| fault.until.is_some());
    let mut queues: BTreeMap<u32, Vec<&OffsetOp>> = BTreeMap::new();
    for op in &history.offsets {
        queues.entry(op.queue).or_default().push(op);
    }
    let mut wrong = Vec::new();
    for (queue, ops) in queues {
        let found = register(&ops, may_be_late);
        wrong.extend(found.into_iter().map(|w| format!("queue {queue}: {w}")));
    }
    wrong
}

/// When a value was written at the earliest, and when at the latest.
#[derive(Clone, Copy)]
struct Written {
    from: u64,
    until: u64,
}

fn register(ops: &[&OffsetOp], may_be_late: bool) -> Vec<String> {
    let mut values: HashMap<u64, Written> = HashMap::new();
    // (when it is certain, the earliest writing of what it makes certain, the value)
    let mut certain: Vec<(u64, u64, u64)> = Vec::new();
    for op in ops {
        let OffsetCall::Commit {
            offset,
            acknowledged,
        } = op.call
        else {
            continue;
        };
        let until = match acknowledged || !may_be_late {
            true => op.ended,
            false => u64::MAX,
        };
        let written = values.entry(offset).or_insert(Written {
            from: op.invoked,
            until,
        });
        written.from = written.from.min(op.invoked);
        written.until = written.until.max(until);
        if acknowledged {
            certain.push((op.ended, op.invoked, offset));
        }
    }
    let mut reads: Vec<(&OffsetOp, Option<u64>)> = Vec::new();
    for &op in ops {
        if let OffsetCall::Read(read) = op.call {
            // A group without an offset may be told to begin at 0.
            let read = read.filter(|value| *value > 0 || values.contains_key(value));
            reads.push((op, read));
            if let Some(written) = read.and_then(|value| values.get(&value)) {
                certain.push((op.ended, written.from, read.unwrap_or_default()));
            }
        }
    }
    reads.sort_by_key(|(op, _)| op.invoked);
    certain.sort_unstable();
    let (mut certain, mut newest) = (certain.into_iter().peekable(), None::<(u64, u64)>);
    let mut wrong = Vec::new();
    for (op, read) in reads {
        while let Some((_, from, value)) = certain.next_if(|(at, ..)| *at < op.invoked) {
            newest = newest.max(Some((from, value)));
        }
        let written = read.map(|value| values.get(&value));
        let what = match (written, newest) {
            (Some(None), _) => "was never committed".to_owned(),
            (Some(Some(written)), _) if written.from > op.ended => {
                "was committed only later".to_owned()
            }
            (Some(Some(written)), Some((from, newer))) if written.until < from => {
                format!("had been overwritten by {newer}")
            }
            (None, Some((_, newer))) => format!("is older than {newer}"),
            _ => continue,
        };
        wrong.push(format!("read {read:?}, which {what}"));
    }
    wrong
}

/// No two clients hold the lock of a queue at once. A client holds it from the answer until it gives it
/// up or the lease ends, counted from its question.
pub fn locks(history: &History) -> Vec<String> {
    // Per queue: (from, until, process)
    let mut held: BTreeMap<u32, Vec<(u64, u64, u64)>> = BTreeMap::new();
    let mut open: HashMap<(u32, u64), (u64, u64)> = HashMap::new();
    let mut ops: Vec<_> = history.locks.iter().collect();
    ops.sort_by_key(|op| op.invoked);
    for op in ops {
        let key = (op.queue, op.process);
        let mut close = |open: &mut HashMap<_, (u64, u64)>, at: u64| {
            if let Some((from, until)) = open.remove(&key) {
                let holds = held.entry(op.queue).or_default();
                holds.push((from, until.min(at), op.process));
            }
        };
        match &op.call {
            LockCall::Lock(Outcome::Ok(true)) => {
                // A renewal holds on; after a lease that has ended it is another hold.
                let end = op.invoked + LEASE;
                match open.get_mut(&key) {
                    Some((_, until)) if *until >= op.ended => *until = end,
                    _ => {
                        close(&mut open, u64::MAX);
                        open.insert(key, (op.ended, end));
                    }
                }
            }
            LockCall::Unlock | LockCall::Lock(Outcome::Ok(false)) => close(&mut open, op.invoked),
            LockCall::Lock(_) => {}
        }
    }
    for ((queue, process), (from, until)) in open {
        held.entry(queue).or_default().push((from, until, process));
    }
    let mut wrong = Vec::new();
    for (queue, mut holds) in held {
        holds.sort_unstable();
        let mut last: Option<(u64, u64)> = None;
        for (from, until, process) in holds.into_iter().filter(|(from, until, _)| from < until) {
            if let Some((end, other)) = last
                && other != process
                && from < end
            {
                wrong.push(format!(
                    "queue {queue}: process {process} got the lock at {from} ns, which {other} held until {end}"
                ));
            }
            if last.is_none_or(|(end, _)| end < until) {
                last = Some((until, process));
            }
        }
    }
    wrong
}

/// A term has one leader that serves. It may have others before: a vote is for a term and a node here, so that
/// of two that stand in one term the second may win too, as long as the first has committed nothing.
pub fn leaders(history: &History) -> Vec<String> {
    let mut of_term: BTreeMap<u64, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for lead in &history.leads {
        let node = *of_term.entry(lead.term).or_insert(lead.node);
        if node != lead.node {
            wrong.push(format!(
                "nodes {node} and {} both served in term {}",
                lead.node, lead.term
            ));
        }
    }
    wrong
}
