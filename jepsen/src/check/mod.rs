//! The promises, each judged by one function over a history. A checker returns what it found wrong; an
//! empty list is a pass. Each is tried on hand-made bad histories below, because a checker that cannot
//! fail proves nothing.

mod adopted;
mod batches;
mod consume;
mod coverage;
mod delay;
mod figures;
mod found;
mod group;
mod pop;
mod transaction;

use std::collections::BTreeMap;

pub use adopted::adopted;
pub use batches::batches;
pub use consume::{delivered, deliveries, polled, stale};
pub use coverage::{exercised, unserved, void};
pub use delay::{delayed, delayed_again};
pub use figures::Figures;
pub use found::{Loss, forgive, lost, lost_bodies, offsets, phantom};
pub use group::{group_offset, leaders, locks};
pub use pop::pops;
pub use transaction::transactions;

use crate::client::Outcome;
use crate::history::{History, Send};

/// Judges a history; what it returns is what it found wrong.
pub type Checker = fn(&History) -> Vec<String>;

/// How many of [`CHECKERS`], the first ones, hold where what was acknowledged may be lost and forgiven.
pub const WITHOUT_OFFSETS: usize = 4;

/// All checkers with their names.
pub const CHECKERS: [(&str, Checker); 16] = [
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
    ("what was taken over is there, on each node", adopted),
    ("a term has one leader that serves", leaders),
    ("the run exercised its faults", exercised),
];

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
    use crate::history::{Fault, OffsetCall, OffsetOp, Poll};

    fn offset(invoked: u64, call: OffsetCall) -> OffsetOp {
        OffsetOp {
            process: 9,
            queue: 0,
            invoked,
            ended: invoked + 1,
            call,
        }
    }

    pub(super) fn send(
        queue: u32,
        body: &str,
        invoked: u64,
        ended: u64,
        outcome: Outcome<u64>,
    ) -> Send {
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
    pub(super) fn good() -> History {
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

    /// A poll of queue 0 from an offset on, which was told to go on at `next`.
    pub(super) fn poll(from: u64, got: &[&str], next: u64) -> Poll {
        let got = (from..).zip(got);
        let got = got.map(|(at, body)| (at, (*body).to_owned()));
        Poll {
            process: 5,
            delivers: false,
            queue: 0,
            from,
            invoked: 50,
            ended: 51,
            outcome: Outcome::Ok(got.collect()),
            next: Some(next),
        }
    }

    #[test]
    fn a_consumer_goes_on_behind_what_it_got_or_behind_what_has_left_the_log() {
        let mut h = good();
        h.polls = vec![poll(1, &["b", "c"], 3), poll(3, &[], 3)];
        assert_eq!(polled(&h), Vec::<String>::new());
        h.polls.push(poll(0, &[], 1));
        assert!(!polled(&h).is_empty());
        h.faults[0].what = "Snapshot round 0".into();
        assert_eq!(polled(&h), Vec::<String>::new());
    }

    #[test]
    fn every_checker_rejects_its_bad_history() {
        let bad = |change: fn(&mut History)| {
            let mut h = good();
            change(&mut h);
            h
        };
        let cases: [(&str, Checker, History); 14] = [
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
                "sent back",
                polled,
                bad(|h| h.polls.push(poll(1, &["b"], 1))),
            ),
            ("skipped", polled, bad(|h| h.polls.push(poll(1, &["b"], 3)))),
            (
                "told to begin anew",
                polled,
                bad(|h| h.polls.push(poll(3, &[], 0))),
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
