//! What consumers may see.

use std::collections::{BTreeMap, HashMap};

use crate::client::Outcome;
use crate::history::{Fault, History, OffsetCall, Poll};

/// What was got, of each poll that was answered.
fn answered(history: &History) -> impl Iterator<Item = (&Poll, &[(u64, String)])> {
    history.polls.iter().filter_map(|poll| match &poll.outcome {
        Outcome::Ok(got) => Some((poll, got.as_slice())),
        _ => None,
    })
}

/// A poll that was called after a message was acknowledged, or seen by another poll, does not say that
/// there is nothing at its place or before.
pub fn stale(history: &History) -> Vec<String> {
    // Per queue (time, offset): from then on it is known that the message is there.
    let mut known: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for send in &history.sends {
        if let Outcome::Ok(offset) = send.outcome {
            known
                .entry(send.queue)
                .or_default()
                .push((send.ended, offset));
        }
    }
    let mut empty: BTreeMap<u32, Vec<&Poll>> = BTreeMap::new();
    for (poll, got) in answered(history) {
        match got.last() {
            Some((offset, _)) => {
                let known = known.entry(poll.queue).or_default();
                known.push((poll.ended, *offset));
            }
            None => empty.entry(poll.queue).or_default().push(poll),
        }
    }
    let mut wrong = Vec::new();
    for (queue, mut polls) in empty {
        let mut known = known.remove(&queue).unwrap_or_default();
        known.sort_unstable();
        polls.sort_by_key(|poll| poll.invoked);
        let (mut known, mut highest) = (known.into_iter().peekable(), None);
        for poll in polls {
            while let Some((_, offset)) = known.next_if(|(time, _)| *time < poll.invoked) {
                highest = highest.max(Some(offset));
            }
            if highest >= Some(poll.from) {
                wrong.push(format!(
                    "process {} was told that {queue}/{} is the end when {queue}/{} was known",
                    poll.process,
                    poll.from,
                    highest.unwrap_or_default(),
                ));
            }
        }
    }
    wrong
}

/// A poll gives the messages from its offset on without a gap, and those are what lies there at the end:
/// nobody read what was not committed. A consumer goes on behind what it got, unless messages have left the log.
pub fn polled(history: &History) -> Vec<String> {
    let mut lying: HashMap<(u32, u64), &str> = HashMap::new();
    for (queue, messages) in &history.found {
        lying.extend(
            messages
                .iter()
                .map(|(at, body)| ((*queue, *at), body.as_str())),
        );
    }
    let leaves = |fault: &Fault| fault.what.starts_with("Snapshot");
    let all_stay = !history.faults.iter().any(leaves);
    let mut wrong = Vec::new();
    for (poll, got) in answered(history) {
        let queue = poll.queue;
        let due = poll.from + got.len() as u64;
        if let Some(next) = poll.next.filter(|next| all_stay && *next != due) {
            let from = poll.from;
            wrong.push(format!(
                "a poll of {queue}/{from} got {} messages, and was told to go on at {next}",
                got.len()
            ));
        }
        for (due, (offset, body)) in (poll.from..).zip(got) {
            if *offset != due {
                wrong.push(format!("a poll of {queue}/{due} got what is at {offset}"));
                break;
            }
            match lying.get(&(queue, due)) {
                Some(at_end) if at_end == body => {}
                at_end => wrong.push(format!(
                    "{body} was read at {queue}/{due}, where at the end is {at_end:?}"
                )),
            }
        }
    }
    wrong
}

/// Everything below the offset of the group was delivered to one of its members.
pub fn delivered(history: &History) -> Vec<String> {
    let mut delivered: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for (poll, got) in answered(history).filter(|(poll, _)| poll.delivers) {
        let end = poll.from + got.len() as u64;
        delivered
            .entry(poll.queue)
            .or_default()
            .push((poll.from, end));
    }
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for op in &history.offsets {
        if let OffsetCall::Read(Some(offset)) = op.call {
            last.insert(op.queue, offset);
        }
    }
    let mut wrong = Vec::new();
    for (queue, mut parts) in delivered {
        parts.sort_unstable();
        let mut until = 0;
        for (from, end) in parts {
            if from > until {
                break;
            }
            until = until.max(end);
        }
        if let Some(offset) = last.get(&queue)
            && *offset > until
        {
            wrong.push(format!(
                "the group's offset in queue {queue} is {offset}, but {until} was never delivered"
            ));
        }
    }
    wrong
}

/// How many messages were delivered to a group, and how many of them not for the first time.
pub fn deliveries(history: &History) -> (u64, u64) {
    let (mut all, mut repeated) = (0, 0);
    // Of each queue, how far it was delivered.
    let mut reached: HashMap<u32, u64> = HashMap::new();
    for (poll, got) in answered(history).filter(|(poll, _)| poll.delivers) {
        let end = poll.from + got.len() as u64;
        let reached = reached.entry(poll.queue).or_default();
        all += got.len() as u64;
        repeated += end.min(*reached).saturating_sub(poll.from);
        *reached = end.max(*reached);
    }
    (all, repeated)
}
