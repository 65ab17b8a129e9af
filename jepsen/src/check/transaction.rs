//! Messages of transactions.

use std::collections::{BTreeSet, HashMap};

use crate::client::Outcome;
use crate::history::{History, Transaction};

/// Where a message was seen, by queue and offset, when first, and whether when all was over.
struct Seen {
    places: BTreeSet<(u32, u64)>,
    first: u64,
    last: bool,
}

/// What was committed is visible once, to the end; what was rolled back, refused or never decided is not; and nothing is
/// visible before its commit was asked for.
pub fn transactions(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut visible: HashMap<&str, Seen> = HashMap::new();
    for delivery in &history.visible {
        let seen = visible.entry(&delivery.body).or_insert(Seen {
            places: BTreeSet::new(),
            first: delivery.at,
            last: false,
        });
        seen.last |= delivery.last;
        seen.places.insert((delivery.queue, delivery.offset));
        seen.first = delivery.at.min(seen.first);
    }
    for transaction in &history.transactions {
        let body = &transaction.body;
        let seen = visible.remove(body.as_str());
        let Some(Seen {
            places,
            first,
            last,
        }) = seen
        else {
            if is_decided(transaction, true) {
                wrong.push(format!("{body} was committed and is not visible"));
            }
            continue;
        };
        if !last && is_decided(transaction, true) {
            wrong.push(format!("{body} was committed, and visible, and is lost"));
        }
        if places.len() > 1 {
            wrong.push(format!("{body} is visible at {places:?}"));
        }
        let commits = transaction.ends.iter().filter(|end| end.commits);
        match commits.map(|end| end.invoked).min() {
            _ if let Outcome::Fail(why) = &transaction.prepared => {
                wrong.push(format!("{body} is visible although its send failed: {why}"));
            }
            None => wrong.push(format!("{body} is visible and was never committed")),
            Some(asked) if first < asked => {
                wrong.push(format!("{body} was visible before its commit"));
            }
            Some(_) if is_decided(transaction, false) => {
                wrong.push(format!("{body} was rolled back and is visible"));
            }
            Some(_) => {}
        }
    }
    wrong.extend(
        visible
            .keys()
            .map(|body| format!("{body} is visible and was never sent")),
    );
    wrong
}

/// Whether an end of this kind was acknowledged, and none of the other kind was begun before that.
fn is_decided(transaction: &Transaction, commits: bool) -> bool {
    let mine = transaction.ends.iter().filter(|end| end.commits == commits);
    let sure = mine.filter(|end| end.acknowledged).map(|end| end.ended);
    let others = transaction.ends.iter().filter(|end| end.commits != commits);
    let other = others.map(|end| end.invoked).min().unwrap_or(u64::MAX);
    sure.min().is_some_and(|sure| sure < other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Delivery, TransactionEnd};

    fn end(commits: bool, invoked: u64, acknowledged: bool) -> TransactionEnd {
        TransactionEnd {
            process: 1,
            commits,
            invoked,
            ended: invoked + 5,
            acknowledged,
        }
    }

    fn transaction(body: &str, ends: Vec<TransactionEnd>) -> Transaction {
        Transaction {
            process: 0,
            body: body.into(),
            invoked: 0,
            ended: 10,
            prepared: Outcome::Ok(()),
            ends,
        }
    }

    fn seen(body: &str, at: u64, offset: u64) -> Delivery {
        Delivery {
            at,
            queue: 0,
            offset,
            body: body.into(),
            last: true,
        }
    }

    fn judged(transaction: Transaction, visible: Vec<Delivery>) -> Vec<String> {
        transactions(&History {
            transactions: vec![transaction],
            visible,
            ..History::default()
        })
    }

    #[test]
    fn what_is_decided_for_certain_binds_and_what_is_not_does_not() {
        let good: [(Vec<TransactionEnd>, usize); 7] = [
            (vec![end(true, 20, true)], 1),
            (vec![end(false, 20, true)], 0),
            (vec![], 0),
            // Nobody knows.
            (vec![end(true, 20, false)], 0),
            (vec![end(true, 20, false)], 1),
            // The rollback came too late, or the commit did.
            (vec![end(true, 20, true), end(false, 30, true)], 1),
            (vec![end(false, 20, false), end(true, 30, true)], 1),
        ];
        for (ends, times) in good {
            let visible = (0..times).map(|n| seen("a", 40, n as u64)).collect();
            let wrong = judged(transaction("a", ends.clone()), visible);
            assert_eq!(wrong, Vec::<String>::new(), "{ends:?}");
        }
        let bad: [(Vec<TransactionEnd>, Vec<Delivery>, &str); 7] = [
            (
                vec![end(true, 20, true)],
                vec![Delivery {
                    last: false,
                    ..seen("a", 40, 0)
                }],
                "is lost",
            ),
            (vec![end(true, 20, true)], vec![], "is not visible"),
            (
                vec![end(false, 20, true), end(true, 30, false)],
                vec![seen("a", 40, 0)],
                "rolled back",
            ),
            (vec![], vec![seen("a", 40, 0)], "never committed"),
            (
                vec![end(true, 50, true)],
                vec![seen("a", 40, 0)],
                "before its commit",
            ),
            (
                vec![end(true, 20, true)],
                vec![seen("a", 40, 0), seen("a", 41, 1)],
                "visible at",
            ),
            (
                vec![end(true, 20, true)],
                vec![seen("a", 40, 0), seen("b", 41, 1)],
                "never sent",
            ),
        ];
        for (ends, visible, due) in bad {
            let wrong = judged(transaction("a", ends), visible);
            assert!(
                wrong.len() == 1 && wrong[0].contains(due),
                "{due}: {wrong:?}"
            );
        }
    }
}
