//! Messages that were sent many at a time. One pass over what was found, in the order of offsets, judges what
//! `lost`, `phantom`, `offsets` and `order` judge of single ones.

use std::collections::HashMap;

use crate::client::Outcome;
use crate::history::{Batch, History, Stretch};

/// Each acknowledged batch lies in its queue from the offset on that its answer named, each message once;
/// nothing else lies there, without gaps; and of two batches the one that was acknowledged before the other was
/// sent stands before it. A batch without an answer lies there whole and in order, or not at all.
pub fn batches(history: &History) -> Vec<String> {
    let mut of_sender: HashMap<u32, Vec<&Batch>> = HashMap::new();
    for batch in &history.batches {
        of_sender.entry(batch.sender).or_default().push(batch);
    }
    for batches in of_sender.values_mut() {
        batches.sort_by_key(|batch| batch.first);
    }
    let mut wrong = Vec::new();
    // Of each batch, by its sender and first message, how many of it were found, and where the first of it
    // lies by the place of what was found first.
    let mut found: HashMap<(u32, u64), (u64, i128)> = HashMap::new();
    for (queue, stretches) in &history.stretches {
        let mut due = 0;
        // The latest start of a batch so far.
        let mut latest = 0;
        for stretch in stretches {
            if stretch.offset != due {
                wrong.push(format!(
                    "in queue {queue} {} stands where offset {due} was due",
                    stretch.offset
                ));
            }
            due = stretch.offset + stretch.count;
            let of_sender = of_sender.get(&stretch.sender).map(Vec::as_slice);
            for (batch, part) in parts(of_sender.unwrap_or_default(), *stretch, &mut wrong) {
                let name = format!("{}:{} of queue {queue}", part.sender, part.first);
                let base = i128::from(part.offset) - i128::from(part.first - batch.first);
                let found = found.entry((batch.sender, batch.first));
                let (times, due) = found.or_insert((0, base));
                *times += part.count;
                match &batch.outcome {
                    _ if batch.queue != *queue => {
                        wrong.push(format!("{name} was sent to queue {}", batch.queue));
                    }
                    Outcome::Fail(why) => {
                        wrong.push(format!("{name} is there although its send failed: {why}"));
                    }
                    Outcome::Ok(offset) if i128::from(*offset) != base => {
                        wrong.push(format!(
                            "{name} is at {}, and its batch was acknowledged at {offset}",
                            part.offset
                        ));
                    }
                    _ if *due != base => {
                        wrong.push(format!("{name} at {} is torn from its batch", part.offset));
                    }
                    outcome => {
                        if matches!(outcome, Outcome::Ok(_)) && batch.ended < latest {
                            wrong.push(format!(
                                "{name} at {} had been acknowledged before one that stands before \
                                 it was sent",
                                part.offset
                            ));
                        }
                        latest = latest.max(batch.invoked);
                    }
                }
            }
        }
    }
    for batch in &history.batches {
        let name = format!("{} from {}:{} on", batch.count, batch.sender, batch.first);
        let found = found.get(&(batch.sender, batch.first));
        match (&batch.outcome, found.map_or(0, |(times, _)| *times)) {
            (_, times) if times > batch.count => {
                wrong.push(format!("of {name} there are {times}"));
            }
            (Outcome::Ok(offset), times) if times < batch.count => wrong.push(format!(
                "of {name}, acknowledged at {}/{offset}, {times} are left",
                batch.queue
            )),
            (Outcome::Unknown(_), times) if (1..batch.count).contains(&times) => {
                wrong.push(format!("of {name}, which has no answer, {times} are there"));
            }
            _ => {}
        }
    }
    wrong
}

/// A stretch cut where batches end, each part with its batch.
fn parts<'a>(
    batches: &[&'a Batch],
    mut stretch: Stretch,
    wrong: &mut Vec<String>,
) -> Vec<(&'a Batch, Stretch)> {
    let mut parts = Vec::new();
    while stretch.count > 0 {
        let at = batches.partition_point(|batch| batch.first <= stretch.first);
        let batch = at.checked_sub(1).map(|at| batches[at]);
        let batch = batch.filter(|batch| stretch.first < batch.first + batch.count);
        let Some(batch) = batch else {
            wrong.push(format!(
                "{}:{} at {} was never sent",
                stretch.sender, stretch.first, stretch.offset
            ));
            break;
        };
        let count = stretch.count.min(batch.first + batch.count - stretch.first);
        parts.push((batch, Stretch { count, ..stretch }));
        stretch.first += count;
        stretch.offset += count;
        stretch.count -= count;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64, count: u64, outcome: Outcome<u64>) -> Batch {
        Batch {
            process: 80,
            sender: 0,
            queue: 1,
            first,
            count,
            invoked: 10 * first,
            ended: 10 * first + 5,
            outcome,
        }
    }

    fn stretch(first: u64, count: u64, offset: u64) -> Stretch {
        Stretch {
            sender: 0,
            first,
            count,
            offset,
        }
    }

    /// 0..4 acknowledged, 4..6 unknown and there, 6..9 refused, 9..12 acknowledged.
    fn good() -> History {
        History {
            batches: vec![
                batch(0, 4, Outcome::Ok(0)),
                batch(4, 2, Outcome::Unknown("reset".into())),
                batch(6, 3, Outcome::Fail("code 14".into())),
                batch(9, 3, Outcome::Ok(6)),
            ],
            stretches: [(1, vec![stretch(0, 6, 0), stretch(9, 3, 6)])].into(),
            ..History::default()
        }
    }

    #[test]
    fn what_is_whole_passes() {
        assert_eq!(batches(&good()), Vec::<String>::new());
        let mut without = good();
        without.stretches = [(1, vec![stretch(0, 4, 0), stretch(9, 3, 4)])].into();
        without.batches[3].outcome = Outcome::Ok(4);
        assert_eq!(
            batches(&without),
            Vec::<String>::new(),
            "unknown and not there"
        );
    }

    #[test]
    fn each_kind_of_wrong_is_seen() {
        type Case = (&'static str, fn(&mut History), &'static str);
        let cases: [Case; 12] = [
            (
                "a part of an unknown one",
                |h| {
                    *h.stretches.get_mut(&1).unwrap() = vec![stretch(0, 5, 0), stretch(9, 3, 5)];
                    h.batches[3].outcome = Outcome::Ok(5);
                },
                "which has no answer, 1 are there",
            ),
            (
                "an unknown one in another order",
                |h| {
                    *h.stretches.get_mut(&1).unwrap() = vec![
                        stretch(0, 4, 0),
                        stretch(5, 1, 4),
                        stretch(4, 1, 5),
                        stretch(9, 3, 6),
                    ];
                },
                "is torn from its batch",
            ),
            (
                "the first half of an unknown one twice",
                |h| {
                    *h.stretches.get_mut(&1).unwrap() =
                        vec![stretch(0, 5, 0), stretch(4, 1, 5), stretch(9, 3, 6)];
                },
                "is torn from its batch",
            ),
            (
                "order after an unknown one",
                |h| (h.batches[1].invoked, h.batches[1].ended) = (200, 210),
                "had been acknowledged before",
            ),
            (
                "a lost end",
                |h| h.stretches.get_mut(&1).unwrap().truncate(1),
                "0 are left",
            ),
            (
                "a lost message",
                |h| h.stretches.get_mut(&1).unwrap()[1].count = 2,
                "2 are left",
            ),
            (
                "a gap",
                |h| h.stretches.get_mut(&1).unwrap()[1].offset = 7,
                "where offset 6 was due",
            ),
            (
                "elsewhere",
                |h| h.batches[3].outcome = Outcome::Ok(5),
                "acknowledged at 5",
            ),
            (
                "twice",
                |h| h.stretches.get_mut(&1).unwrap().push(stretch(9, 1, 9)),
                "there are 4",
            ),
            (
                "refused",
                |h| h.stretches.get_mut(&1).unwrap().push(stretch(6, 1, 9)),
                "although its send failed",
            ),
            (
                "nobody's",
                |h| h.stretches.get_mut(&1).unwrap().push(stretch(12, 1, 9)),
                "was never sent",
            ),
            (
                "order",
                |h| (h.batches[0].invoked, h.batches[0].ended) = (200, 210),
                "had been acknowledged before",
            ),
        ];
        for (name, change, due) in cases {
            let mut history = good();
            change(&mut history);
            let wrong = batches(&history);
            assert!(
                wrong.iter().any(|line| line.contains(due)),
                "{name}: {wrong:?}"
            );
        }
        let mut other = good();
        let moved = other.stretches.remove(&1).unwrap();
        other.stretches.insert(2, moved);
        assert!(batches(&other)[0].contains("was sent to queue 1"));
    }
}
