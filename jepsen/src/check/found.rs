//! What lies in the queues in the end: all that was acknowledged, nothing else, each message at one place.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use crate::client::Outcome;
use crate::history::{History, Send};

/// Where each body was found: (queue, offset).
fn places(history: &History) -> HashMap<&str, Vec<(u32, u64)>> {
    let mut places: HashMap<&str, Vec<(u32, u64)>> = HashMap::new();
    for (queue, messages) in &history.found {
        for (offset, body) in messages {
            places.entry(body).or_default().push((*queue, *offset));
        }
    }
    places
}

/// The offset at which a message was acknowledged, and where it lies instead, nowhere perhaps. `None` if it is where
/// it should be, or was not acknowledged.
fn misplaced<'a>(
    send: &Send,
    places: &'a HashMap<&str, Vec<(u32, u64)>>,
) -> Option<(u64, &'a [(u32, u64)])> {
    let Outcome::Ok(offset) = send.outcome else {
        return None;
    };
    let at = places.get(&*send.body).map_or(&[][..], Vec::as_slice);
    (!at.contains(&(send.queue, offset))).then_some((offset, at))
}

/// Every acknowledged message is found, in its queue and at the offset that the answer named.
pub fn lost(history: &History) -> Vec<String> {
    let places = places(history);
    let told = |send: &Send| {
        let (offset, at) = misplaced(send, &places)?;
        let (body, queue) = (&send.body, send.queue);
        Some(match at {
            [] => format!("{body} was acknowledged at {queue}/{offset} and is lost"),
            _ => format!("{body} was acknowledged at {queue}/{offset} and found at {at:?}"),
        })
    };
    history.sends.iter().filter_map(told).collect()
}

/// The bodies of the messages that [`lost`] tells of, if anything was read at the end.
pub fn lost_bodies(history: &History) -> HashSet<&str> {
    let places = places(history);
    let sends = history.sends.iter().filter(|_| !history.found.is_empty());
    let lost = sends.filter(|send| misplaced(send, &places).is_some());
    lost.map(|send| send.body.as_str()).collect()
}

/// Messages that were acknowledged and are lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub messages: usize,
    /// From the acknowledgement of the oldest one to the fault that it did not survive.
    pub age: Duration,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, age) = (self.messages, self.age.as_millis());
        write!(
            f,
            "{messages} acknowledged messages lost, the oldest {age} ms before a fault"
        )
    }
}

/// Takes from a history what is lost, as if its sends had ended without an answer.
pub fn forgive(history: &mut History) -> Loss {
    let mut loss = Loss::default();
    let places = places(history);
    let sends = history.sends.iter().enumerate();
    let lost = sends.filter(|(_, send)| misplaced(send, &places).is_some());
    let lost: Vec<usize> = lost.map(|(n, _)| n).collect();
    // What is got of a node that has power has survived all cuts before.
    let mut last_seen: HashMap<&str, u64> = HashMap::new();
    for poll in &history.polls {
        let Outcome::Ok(got) = &poll.outcome else {
            continue;
        };
        for (_, body) in got {
            let at = last_seen.entry(body).or_default();
            *at = poll.invoked.max(*at);
        }
    }
    for n in lost {
        let send = &mut history.sends[n];
        send.outcome = Outcome::Unknown("forgiven".into());
        let faults = history.faults.iter().map(|fault| fault.from);
        let there = last_seen.get(&*send.body).copied().unwrap_or(0);
        // A loss without a fault after it is forgiven to nobody.
        let age = faults
            .filter(|from| *from > there.max(send.invoked))
            .min()
            .map_or(Duration::MAX, |from| {
                Duration::from_nanos(from.saturating_sub(send.ended))
            });
        loss.messages += 1;
        loss.age = loss.age.max(age);
    }
    loss
}

/// What is found was attempted, and not by a send that certainly failed.
pub fn phantom(history: &History) -> Vec<String> {
    let sent: HashMap<&str, &Send> = history.sends.iter().map(|s| (s.body.as_str(), s)).collect();
    let mut wrong = Vec::new();
    for (body, at) in places(history) {
        match sent.get(body).map(|s| &s.outcome) {
            None => wrong.push(format!("{body:?} at {at:?} was never sent")),
            Some(Outcome::Fail(why)) => {
                wrong.push(format!("{body} at {at:?} although its send failed: {why}"));
            }
            Some(_) => {}
        }
    }
    wrong
}

/// Clients resend nothing here, so a body stands once; and the offsets of a queue count 0, 1, 2, ….
pub fn offsets(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    for (body, at) in places(history) {
        if at.len() > 1 {
            wrong.push(format!("{body} stands at {at:?}"));
        }
    }
    for (queue, messages) in &history.found {
        for (want, (offset, body)) in (0..).zip(messages) {
            if want != *offset {
                wrong.push(format!(
                    "{body} at {queue}/{offset} where offset {want} was due"
                ));
                break;
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{good, poll};

    #[test]
    fn what_was_acknowledged_long_before_a_fault_is_not_forgiven() {
        let mut h = good();
        h.faults[0].from = 100;
        h.found.get_mut(&0).unwrap().pop();
        let loss = forgive(&mut h);
        assert_eq!(loss.messages, 1);
        assert_eq!(loss.age, Duration::from_nanos(60));
        assert_eq!(lost(&h), Vec::<String>::new());
        assert_eq!(forgive(&mut h), Loss::default());

        let mut h = good();
        h.found.get_mut(&0).unwrap().pop();
        assert_eq!(forgive(&mut h).age, Duration::MAX, "no fault explains it");
    }

    #[test]
    fn what_was_read_after_a_fault_was_not_lost_in_it() {
        let mut h = good();
        h.found.get_mut(&0).unwrap().pop();
        h.faults[0].from = 45;
        let mut later = h.faults[0].clone();
        later.from = 1_000;
        h.faults.push(later);
        let mut unread = History {
            sends: h.sends.clone(),
            faults: h.faults.clone(),
            found: h.found.clone(),
            ..History::default()
        };
        assert_eq!(forgive(&mut unread).age, Duration::from_nanos(5));
        h.polls = vec![poll(2, &["c"], 3)];
        assert_eq!(forgive(&mut h).age, Duration::from_nanos(960));
    }
}
