//! Messages that are to be delivered later.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::client::Outcome;
use crate::history::History;

/// Brokers count in milliseconds.
const PRECISION: u64 = 1_000_000;

/// Each message that was acknowledged is delivered, and lies there to the end, none before its time, and none that was not sent. One may
/// be delivered again after a change of leaders, at another offset; see [`delayed_again`].
pub fn delayed(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut first: HashMap<&str, u64> = HashMap::new();
    let mut places: HashMap<(u32, u64), &str> = HashMap::new();
    for delivery in &history.deliveries {
        let at = first.entry(&delivery.body).or_insert(delivery.at);
        *at = delivery.at.min(*at);
        let (queue, offset) = (delivery.queue, delivery.offset);
        let body = *places.entry((queue, offset)).or_insert(&delivery.body);
        if body != delivery.body {
            wrong.push(format!(
                "{body} and {} were both delivered at {queue}/{offset}",
                delivery.body
            ));
        }
    }
    let all = history.deliveries.iter();
    let last: HashSet<&str> = all.filter(|d| d.last).map(|d| &*d.body).collect();
    for sent in &history.delayed {
        let at = first.remove(sent.body.as_str());
        match (&sent.outcome, at) {
            (Outcome::Ok(()), None) => {
                wrong.push(format!(
                    "{} was acknowledged and never delivered",
                    sent.body
                ));
            }
            (Outcome::Ok(()), Some(_)) if !last.contains(sent.body.as_str()) => {
                wrong.push(format!("{} was delivered and is lost", sent.body));
            }
            (Outcome::Fail(why), Some(_)) => wrong.push(format!(
                "{} was delivered although its send failed: {why}",
                sent.body
            )),
            (_, Some(at)) if at + PRECISION < sent.invoked + sent.delay => {
                let early = (sent.invoked + sent.delay - at) / 1_000_000;
                wrong.push(format!("{} was delivered {early} ms too early", sent.body));
            }
            _ => {}
        }
    }
    wrong.extend(
        first
            .keys()
            .map(|body| format!("{body} was delivered and never sent")),
    );
    wrong
}

/// How many deliveries there were beyond the first of each message.
pub fn delayed_again(history: &History) -> usize {
    let places: BTreeSet<_> = history
        .deliveries
        .iter()
        .map(|d| (d.queue, d.offset))
        .collect();
    let bodies: BTreeSet<_> = history.deliveries.iter().map(|d| &d.body).collect();
    places.len() - bodies.len().min(places.len())
}
