//! Messages that consumers pop: each is hidden from the others for a time, and comes again unless it is
//! acknowledged.

use std::collections::{BTreeMap, HashSet};

use crate::client::Outcome;
use crate::history::{History, Pop};

/// One delivery of a message.
struct Given {
    invoked: u64,
    ended: u64,
    hidden: u64,
    process: u64,
}

/// A message that is hidden is given to nobody, one whose acknowledgement was taken to nobody ever again, and one
/// that nobody has acknowledged is there when it is not hidden any more; what is popped lies in its queue, and all
/// that does was popped in the end.
pub fn pops(history: &History) -> Vec<String> {
    let mut given: BTreeMap<(u32, u64), Vec<Given>> = BTreeMap::new();
    let mut wrong = Vec::new();
    let lying: HashSet<(u32, u64, &str)> = history
        .found
        .iter()
        .flat_map(|(queue, list)| list.iter().map(|(at, body)| (*queue, *at, body.as_str())))
        .collect();
    for pop in &history.pops {
        for (offset, body) in got(pop) {
            if !lying.contains(&(pop.queue, *offset, body)) {
                wrong.push(format!(
                    "{body} was popped from {}/{offset}, where it does not lie",
                    pop.queue
                ));
            }
            given.entry((pop.queue, *offset)).or_default().push(Given {
                invoked: pop.invoked,
                ended: pop.ended,
                hidden: pop.hidden,
                process: pop.process,
            });
        }
    }
    // Of each message, when it was known first that it is done with.
    let mut done: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    for ack in history.acks.iter().filter(|ack| ack.acknowledged) {
        let at = done.entry((ack.queue, ack.offset)).or_insert(ack.ended);
        *at = ack.ended.min(*at);
    }
    for ((queue, offset), times) in &mut given {
        times.sort_by_key(|given| given.ended);
        let done = done.get(&(*queue, *offset)).copied().unwrap_or(u64::MAX);
        for (n, given) in times.iter().enumerate() {
            let process = given.process;
            // Hiding begins with a request at the earliest; of two that were under way at once either may have
            // come first.
            let is_hidden_by = |other: &Given| {
                given.ended < other.invoked + other.hidden
                    && other.ended < given.invoked + given.hidden
            };
            if given.invoked > done {
                wrong.push(format!(
                    "process {process} popped {queue}/{offset}, which had been acknowledged"
                ));
            } else if times[..n].iter().any(is_hidden_by) {
                wrong.push(format!(
                    "process {process} popped {queue}/{offset}, which was hidden"
                ));
            }
        }
    }
    wrong.extend(gone(history, &given));
    // Without pops in a history nobody has asked for any.
    for (queue, offset, body) in lying.iter().filter(|_| !history.pops.is_empty()) {
        if !given.contains_key(&(*queue, *offset)) {
            wrong.push(format!("{body} at {queue}/{offset} was never popped"));
        }
    }
    wrong
}

/// Messages that nobody has acknowledged, nor tried to, and that a pop did not find which came when they were not
/// hidden any more.
fn gone(history: &History, given: &BTreeMap<(u32, u64), Vec<Given>>) -> Vec<String> {
    let tried: HashSet<(u32, u64)> = history.acks.iter().map(|a| (a.queue, a.offset)).collect();
    let mut wrong = Vec::new();
    for ((queue, offset), times) in given.iter().filter(|(at, _)| !tried.contains(at)) {
        let of_queue = || history.pops.iter().filter(|pop| pop.queue == *queue);
        let is_empty = |pop: &&Pop| matches!(&pop.outcome, Outcome::Ok(got) if got.is_empty());
        let Some(empty) = of_queue().filter(is_empty).max_by_key(|pop| pop.invoked) else {
            continue;
        };
        // One without an answer may have got it.
        let unknown = of_queue().filter(|pop| matches!(pop.outcome, Outcome::Unknown(_)));
        let ends = times.iter().map(|given| given.ended + given.hidden);
        let ends = ends.chain(unknown.map(|pop| pop.ended + pop.hidden));
        if ends.max().is_some_and(|end| end < empty.invoked) {
            wrong.push(format!(
                "{queue}/{offset} was not hidden any more, and process {} did not get it",
                empty.process
            ));
        }
    }
    wrong
}

fn got(pop: &Pop) -> &[(u64, String)] {
    match &pop.outcome {
        Outcome::Ok(got) => got,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Ack;

    fn pop(process: u64, invoked: u64, offset: u64) -> Pop {
        Pop {
            process,
            queue: 0,
            hidden: 100,
            invoked,
            ended: invoked + 5,
            outcome: Outcome::Ok(vec![(offset, format!("m{offset}"))]),
        }
    }

    fn lasting(process: u64, invoked: u64, time: u64) -> Pop {
        Pop {
            ended: invoked + time,
            ..pop(process, invoked, 0)
        }
    }

    fn empty(invoked: u64) -> Pop {
        Pop {
            outcome: Outcome::Ok(vec![]),
            ..pop(3, invoked, 0)
        }
    }

    fn ack(invoked: u64, acknowledged: bool) -> Ack {
        Ack {
            process: 1,
            queue: 0,
            offset: 0,
            invoked,
            ended: invoked + 5,
            acknowledged,
        }
    }

    fn judged(pops_: Vec<Pop>, acks: Vec<Ack>) -> Vec<String> {
        pops(&History {
            pops: pops_,
            acks,
            found: [(0, vec![(0, "m0".into())])].into(),
            ..History::default()
        })
    }

    #[test]
    fn what_is_hidden_or_done_with_is_not_given_again() {
        let good = [
            judged(vec![pop(1, 0, 0)], vec![ack(10, true)]),
            judged(vec![pop(1, 0, 0), pop(2, 200, 0)], vec![]),
            judged(vec![pop(1, 0, 0), pop(2, 200, 0)], vec![ack(50, false)]),
            // Both were under way at once.
            judged(vec![pop(1, 0, 0), pop(2, 200, 0)], vec![ack(198, true)]),
            // The second one came first.
            judged(vec![lasting(1, 0, 130), lasting(2, 10, 5)], vec![]),
            judged(vec![pop(1, 0, 0), empty(50)], vec![]),
            judged(vec![pop(1, 0, 0), empty(200)], vec![ack(50, false)]),
            judged(
                vec![
                    pop(1, 0, 0),
                    Pop {
                        outcome: Outcome::Unknown("reset".into()),
                        ..pop(2, 150, 0)
                    },
                    empty(200),
                ],
                vec![],
            ),
        ];
        for (n, wrong) in good.into_iter().enumerate() {
            assert_eq!(wrong, Vec::<String>::new(), "{n}");
        }
        let bad = [
            (
                judged(vec![pop(1, 0, 0), pop(2, 50, 0)], vec![]),
                "was hidden",
            ),
            (
                judged(vec![pop(1, 0, 0), pop(2, 200, 0)], vec![ack(50, true)]),
                "had been acknowledged",
            ),
            (
                judged(vec![pop(1, 0, 0), pop(1, 200, 1)], vec![]),
                "does not lie",
            ),
            (
                judged(vec![pop(1, 0, 0), empty(200)], vec![]),
                "did not get it",
            ),
            (
                judged(
                    vec![Pop {
                        outcome: Outcome::Ok(vec![]),
                        ..pop(1, 0, 0)
                    }],
                    vec![],
                ),
                "never popped",
            ),
        ];
        for (wrong, due) in bad {
            assert!(
                wrong.len() == 1 && wrong[0].contains(due),
                "{due}: {wrong:?}"
            );
        }
    }
}
