//! The promises, each judged by one function over a history. A checker returns what it found wrong; an
//! empty list is a pass. Each is tried on hand-made bad histories below, because a checker that cannot
//! fail proves nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use crate::client::Outcome;
use crate::history::{History, OffsetOp, Send};

/// Judges a history; what it returns is what it found wrong.
pub type Checker = fn(&History) -> Vec<String>;

/// How many of [`CHECKERS`], the first ones, hold where what was acknowledged may be lost and forgiven.
pub const WITHOUT_OFFSETS: usize = 4;

/// All checkers with their names.
pub const CHECKERS: [(&str, Checker); 6] = [
    ("no acknowledged message is lost", lost),
    ("no message is found that was not sent", phantom),
    ("one message at one offset, offsets without gaps", offsets),
    (
        "messages stand in the order of their acknowledgements",
        order,
    ),
    ("a group's offset never goes back", group_offset),
    ("the run exercised its faults", exercised),
];

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

/// Every acknowledged message is found, in its queue and at the offset that the answer named.
pub fn lost(history: &History) -> Vec<String> {
    let places = places(history);
    let mut wrong = Vec::new();
    for s in &history.sends {
        let Outcome::Ok(offset) = s.outcome else {
            continue;
        };
        match places.get(s.body.as_str()).map(Vec::as_slice) {
            None => wrong.push(format!(
                "{} was acknowledged at {}/{offset} and is lost",
                s.body, s.queue
            )),
            Some(at) if !at.contains(&(s.queue, offset)) => wrong.push(format!(
                "{} was acknowledged at {}/{offset} and found at {at:?}",
                s.body, s.queue
            )),
            Some(_) => {}
        }
    }
    wrong
}

/// Messages that were acknowledged and are lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub messages: usize,
    /// From the acknowledgement of the oldest one to the fault after it.
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
    let lost: Vec<usize> = (0..history.sends.len())
        .filter(|n| {
            let send = &history.sends[*n];
            let at = places.get(send.body.as_str());
            matches!(send.outcome, Outcome::Ok(offset)
                if at.is_none_or(|at| !at.contains(&(send.queue, offset))))
        })
        .collect();
    for n in lost {
        let send = &mut history.sends[n];
        send.outcome = Outcome::Unknown("forgiven".into());
        let faults = history.faults.iter().map(|fault| fault.from);
        // A loss without a fault after it is forgiven to nobody.
        let age = faults
            .filter(|from| *from > send.invoked)
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

/// A message whose send was acknowledged before another's was invoked stands before it. Together with
/// the checks above this makes each queue a linearizable log.
pub fn order(history: &History) -> Vec<String> {
    let mut queues: BTreeMap<u32, Vec<(&Send, u64)>> = BTreeMap::new();
    for s in &history.sends {
        if let Outcome::Ok(offset) = s.outcome {
            queues.entry(s.queue).or_default().push((s, offset));
        }
    }
    let mut wrong = Vec::new();
    for (queue, acked) in queues {
        let mut by_end: Vec<_> = acked.iter().collect();
        by_end.sort_by_key(|(s, _)| s.ended);
        let mut by_start: Vec<_> = acked.iter().collect();
        by_start.sort_by_key(|(s, _)| s.invoked);
        let (mut ended, mut highest) = (by_end.into_iter().peekable(), None::<(u64, &str)>);
        for (s, offset) in by_start {
            while let Some((before, at)) = ended.next_if(|(e, _)| e.ended < s.invoked) {
                if highest.is_none_or(|(h, _)| h < *at) {
                    highest = Some((*at, &before.body));
                }
            }
            if let Some((h, body)) = highest
                && h >= *offset
            {
                wrong.push(format!(
                    "{} got {queue}/{offset} after {body} had been acknowledged at {h}",
                    s.body
                ));
            }
        }
    }
    wrong
}

/// A query never answers less than the last acknowledged commit, nor more than was ever committed.
pub fn group_offset(history: &History) -> Vec<String> {
    let (mut least, mut most, mut wrong) = (None::<u64>, None::<u64>, Vec::new());
    for op in &history.offsets {
        match op {
            OffsetOp::Commit {
                offset,
                acknowledged,
            } => {
                most = most.max(Some(*offset));
                if *acknowledged {
                    least = least.max(Some(*offset));
                }
            }
            OffsetOp::Read(read) => {
                if *read < least {
                    wrong.push(format!(
                        "read {read:?} after {least:?} had been acknowledged"
                    ));
                }
                if *read > most {
                    wrong.push(format!(
                        "read {read:?} although at most {most:?} was committed"
                    ));
                }
                least = least.max(*read);
            }
        }
    }
    wrong
}

/// A run whose faults were not felt by any acknowledged send says nothing.
pub fn exercised(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    if history.faults.is_empty() {
        wrong.push("no fault was injected".into());
    }
    for f in history.faults.iter().filter(|f| f.first_ack.is_none()) {
        wrong.push(format!("{}: nothing was acknowledged afterwards", f.what));
    }
    if !history
        .offsets
        .iter()
        .any(|o| matches!(o, OffsetOp::Read(Some(_))))
    {
        wrong.push("no consumer offset was read".into());
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Fault;

    fn send(queue: u32, body: &str, invoked: u64, ended: u64, outcome: Outcome<u64>) -> Send {
        Send {
            queue,
            body: body.into(),
            invoked,
            ended,
            outcome,
        }
    }

    /// Two producers on one queue, one unknown outcome that did happen, one fault: nothing wrong.
    fn good() -> History {
        History {
            sends: vec![
                send(0, "a", 0, 10, Outcome::Ok(0)),
                send(0, "b", 5, 20, Outcome::Unknown("timed out".into())),
                send(0, "c", 30, 40, Outcome::Ok(2)),
                send(0, "d", 30, 31, Outcome::Fail("code 14".into())),
            ],
            offsets: vec![
                OffsetOp::Commit {
                    offset: 1,
                    acknowledged: true,
                },
                OffsetOp::Commit {
                    offset: 2,
                    acknowledged: false,
                },
                OffsetOp::Read(Some(2)),
            ],
            faults: vec![Fault {
                what: "kill".into(),
                from: 20,
                first_ack: Some(40),
            }],
            found: [(0, vec![(0, "a".into()), (1, "b".into()), (2, "c".into())])].into(),
        }
    }

    #[test]
    fn a_good_history_passes_every_checker() {
        for (name, checker) in CHECKERS {
            assert_eq!(checker(&good()), Vec::<String>::new(), "{name}");
        }
    }

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
    fn every_checker_rejects_its_bad_history() {
        let bad = |change: fn(&mut History)| {
            let mut h = good();
            change(&mut h);
            h
        };
        let cases: [(&str, Checker, History); 11] = [
            (
                "lost suffix",
                lost,
                bad(|h| drop(h.found.get_mut(&0).unwrap().pop())),
            ),
            (
                "moved",
                lost,
                bad(|h| h.found.get_mut(&0).unwrap()[2].0 = 3),
            ),
            (
                "other queue",
                lost,
                bad(|h| {
                    let m = h.found.remove(&0).unwrap();
                    h.found.insert(1, m);
                }),
            ),
            (
                "failed yet there",
                phantom,
                bad(|h| {
                    h.found.get_mut(&0).unwrap().push((3, "d".into()));
                }),
            ),
            (
                "never sent",
                phantom,
                bad(|h| {
                    h.found.get_mut(&0).unwrap().push((3, "e".into()));
                }),
            ),
            (
                "twice",
                offsets,
                bad(|h| h.found.get_mut(&0).unwrap().push((3, "a".into()))),
            ),
            (
                "gap",
                offsets,
                bad(|h| drop(h.found.get_mut(&0).unwrap().remove(1))),
            ),
            (
                "out of order",
                order,
                bad(|h| {
                    h.sends[0].outcome = Outcome::Ok(2);
                    h.sends[2].outcome = Outcome::Ok(0);
                }),
            ),
            (
                "offset back",
                group_offset,
                bad(|h| h.offsets.push(OffsetOp::Read(Some(1)))),
            ),
            (
                "offset from nowhere",
                group_offset,
                bad(|h| {
                    h.offsets.push(OffsetOp::Read(Some(9)));
                }),
            ),
            (
                "no ack after the fault",
                exercised,
                bad(|h| h.faults[0].first_ack = None),
            ),
        ];
        for (name, checker, history) in cases {
            assert!(!checker(&history).is_empty(), "{name} was not noticed");
        }
    }
}
