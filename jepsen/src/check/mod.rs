//! The promises, each judged by one function over a history. A checker returns what it found wrong; an
//! empty list is a pass. Each is tried on hand-made bad histories below, because a checker that cannot
//! fail proves nothing.

mod batches;
mod consume;
mod delay;
mod figures;
mod group;
mod pop;
mod transaction;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

pub use batches::batches;
pub use consume::{delivered, deliveries, polled, stale};
pub use delay::{delayed, delayed_again};
pub use figures::Figures;
pub use group::{group_offset, leaders, locks};
pub use pop::pops;
pub use transaction::transactions;

use crate::client::Outcome;
use crate::history::{History, OffsetCall, Send};
use crate::schedule::Fault as Kind;

/// Judges a history; what it returns is what it found wrong.
pub type Checker = fn(&History) -> Vec<String>;

/// How many of [`CHECKERS`], the first ones, hold where what was acknowledged may be lost and forgiven.
pub const WITHOUT_OFFSETS: usize = 4;

/// All checkers with their names.
pub const CHECKERS: [(&str, Checker); 15] = [
    ("no acknowledged message is lost", lost),
    ("no message is found that was not sent", phantom),
    ("one message at one offset, offsets without gaps", offsets),
    (
        "messages stand in the order of their acknowledgements",
        order,
    ),
    ("batches are whole, at their place, in order", batches),
    ("a poll sees all that was acknowledged before", stale),
    ("what is polled is what lies there at the end", polled),
    ("what a group has behind it was delivered to it", delivered),
    ("a group's offset never goes back", group_offset),
    ("a lock has one holder", locks),
    ("what is delayed comes, and not before its time", delayed),
    (
        "what is committed is visible, and nothing else",
        transactions,
    ),
    ("what is popped is hidden, and done with for good", pops),
    ("a term has one leader that serves", leaders),
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

/// The bodies of the messages that [`lost`] tells of, if anything was read at the end.
pub fn lost_bodies(history: &History) -> HashSet<&str> {
    let places = places(history);
    let is_lost = |send: &&Send| match send.outcome {
        Outcome::Ok(offset) => {
            let at = places.get(send.body.as_str());
            at.is_none_or(|at| !at.contains(&(send.queue, offset)))
        }
        _ => false,
    };
    let sends = history.sends.iter().filter(|_| !history.found.is_empty());
    sends
        .filter(is_lost)
        .map(|send| send.body.as_str())
        .collect()
}

/// The times between an acknowledgement and the next one, nanoseconds since the start.
pub fn gaps(history: &History) -> Vec<(u64, u64)> {
    let acknowledged = history
        .sends
        .iter()
        .filter(|send| matches!(send.outcome, Outcome::Ok(_)));
    let mut ends: Vec<u64> = acknowledged.map(|send| send.ended).collect();
    ends.sort_unstable();
    ends.windows(2).map(|pair| (pair[0], pair[1])).collect()
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

/// A run whose faults were not felt by any acknowledged send says nothing.
pub fn exercised(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    if history.faults.is_empty() {
        wrong.push("no fault was injected".into());
    }
    for f in &history.faults {
        if history.first_ack(f.from).is_none() {
            wrong.push(format!("{}: nothing was acknowledged afterwards", f.what));
        }
    }
    if !history
        .offsets
        .iter()
        .any(|o| matches!(o.call, OffsetCall::Read(Some(_))))
    {
        wrong.push("no consumer offset was read".into());
    }
    wrong
}

/// Why a run proves nothing, if so: a kind of fault was never felt, or nobody was served meanwhile.
pub fn void(history: &History) -> Vec<String> {
    const LEAST: usize = 10;
    // Nobody can be served without a majority, but soon after.
    const RECOVERY: u64 = 5_000_000_000;
    let mut void = Vec::new();
    let mut felt: BTreeMap<&str, u64> = BTreeMap::new();
    let mut windows: Vec<(u64, u64)> = Vec::new();
    for fault in &history.faults {
        let kind = fault.what.split(['-', ' ']).next().unwrap_or_default();
        *felt.entry(kind).or_default() += fault.seen.unwrap_or(1);
        let mut words = fault.what.split(' ');
        let name = words.next().unwrap_or_default();
        let struck = words.next().map_or(0, |nodes| nodes.split(',').count());
        let nobody_can = Kind::from_str(name, false).is_ok_and(|kind| kind.takes_most(struck));
        let more = if nobody_can { RECOVERY } else { 0 };
        windows.extend(fault.until.map(|until| (fault.from, until + more)));
    }
    if felt.is_empty() {
        void.push("no fault was injected".into());
    }
    let unfelt = felt.iter().filter(|(_, seen)| **seen == 0);
    void.extend(unfelt.map(|(kind, _)| format!("no fault of the kind {kind} was felt")));
    let within = |send: &&Send| {
        let is_within = |(from, until): &(u64, u64)| *from < send.invoked && send.ended < *until;
        matches!(send.outcome, Outcome::Ok(_)) && windows.iter().any(is_within)
    };
    let served = history.sends.iter().filter(within).take(LEAST).count();
    if !windows.is_empty() && served < LEAST {
        void.push(format!(
            "only {served} messages were acknowledged while a fault lasted"
        ));
    }
    void
}

/// Judges by these checkers. What they found wrong, a few lines of each.
pub fn judge(history: &History, checkers: &[(&str, Checker)]) -> Vec<String> {
    const LINES: usize = 5;
    let mut wrong = Vec::new();
    for (name, checker) in checkers {
        let found = checker(history);
        let more = found.len().saturating_sub(LINES);
        wrong.extend(
            found
                .into_iter()
                .take(LINES)
                .map(|f| format!("{name}: {f}")),
        );
        if more > 0 {
            wrong.push(format!("{name}: and {more} more"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Fault, OffsetOp};

    fn offset(invoked: u64, call: OffsetCall) -> OffsetOp {
        OffsetOp {
            process: 9,
            queue: 0,
            invoked,
            ended: invoked + 1,
            call,
        }
    }

    fn send(queue: u32, body: &str, invoked: u64, ended: u64, outcome: Outcome<u64>) -> Send {
        Send {
            process: 0,
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
                offset(
                    1,
                    OffsetCall::Commit {
                        offset: 1,
                        acknowledged: true,
                    },
                ),
                offset(
                    3,
                    OffsetCall::Commit {
                        offset: 2,
                        acknowledged: false,
                    },
                ),
                offset(5, OffsetCall::Read(Some(2))),
            ],
            faults: vec![Fault {
                what: "kill".into(),
                from: 20,
                until: None,
                seen: None,
            }],
            found: [(0, vec![(0, "a".into()), (1, "b".into()), (2, "c".into())])].into(),
            ..History::default()
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

    /// Sends that are acknowledged in the five seconds after a fault count where it has left no majority.
    #[test]
    fn what_was_served_after_a_fault_counts_where_nobody_could_be_served_before() {
        let ack = |n: u64| send(0, "a", 3_000_000_000 + n, 3_000_000_001 + n, Outcome::Ok(n));
        let is_void = |what: &str| {
            let faults = vec![Fault {
                what: what.into(),
                from: 1_000_000_000,
                until: Some(2_000_000_000),
                seen: Some(1),
            }];
            let sends = (0..20).map(ack).collect();
            let history = History {
                sends,
                faults,
                ..History::default()
            };
            !void(&history).is_empty()
        };
        for name in ["kill-all n0,n1,n2", "partition-all", "power-storm n0,n2"] {
            assert!(!is_void(name), "{name}");
        }
        for name in [
            "partition-leader-from-all n0>n1",
            "power-storm n1",
            "slow-all",
            "flaky-all",
            "kill-leader n1",
        ] {
            assert!(is_void(name), "{name}");
        }
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
                bad(|h| h.offsets.push(offset(7, OffsetCall::Read(Some(1))))),
            ),
            (
                "offset from nowhere",
                group_offset,
                bad(|h| {
                    h.offsets.push(offset(7, OffsetCall::Read(Some(9))));
                }),
            ),
            (
                "no ack after the fault",
                exercised,
                bad(|h| h.faults[0].from = 40),
            ),
        ];
        for (name, checker, history) in cases {
            assert!(!checker(&history).is_empty(), "{name} was not noticed");
        }
    }
}
