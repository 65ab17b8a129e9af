//! What a run did to its clients, in figures that set brokers side by side, whatever each of them promises.

use std::collections::HashMap;

use super::{deliveries, gaps, group_offset, lost_bodies, stale};
use crate::history::History;

/// A group is away when it has acknowledged nothing for longer than this, nanoseconds.
const AWAY: u64 = 1_000_000_000;

/// What runs did to their clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Runs that came to their end.
    pub runs: u64,
    /// Sends that were acknowledged.
    pub acknowledged: u64,
    /// Those of them that were not in their queue in the end, at the offset that the answer named.
    pub lost: u64,
    /// Messages that lay in the queues more than once.
    pub stored_again: u64,
    /// Messages that the group got again.
    pub delivered_again: u64,
    /// Sends that were refused.
    pub refused: u64,
    /// Sends that ended without an answer, or with one that does not tell.
    pub unknown: u64,
    /// Polls that were told of nothing where an acknowledged message was.
    pub stale: u64,
    /// Reads of the group's offset that had gone back or came from nowhere.
    pub went_back: u64,
    /// Milliseconds of all times in which the group was away, and of the longest.
    pub away: u64,
    /// See [`away`](Self::away).
    pub longest: u64,
}

impl Figures {
    /// Of one run.
    pub fn of(history: &History) -> Self {
        let (acknowledged, unknown) = history.counts();
        let mut times: HashMap<&str, u64> = HashMap::new();
        for (_, body) in history.found.values().flatten() {
            *times.entry(body).or_default() += 1;
        }
        let gaps = gaps(history).into_iter().map(|(from, until)| until - from);
        let away = gaps.filter(|gap| *gap > AWAY).map(|gap| gap / 1_000_000);
        let away: Vec<u64> = away.collect();
        Self {
            runs: 1,
            acknowledged: acknowledged as u64,
            lost: lost_bodies(history).len() as u64,
            stored_again: times.values().map(|times| times - 1).sum(),
            delivered_again: deliveries(history).1,
            refused: (history.sends.len() - acknowledged - unknown) as u64,
            unknown: unknown as u64,
            stale: stale(history).len() as u64,
            went_back: group_offset(history).len() as u64,
            away: away.iter().sum(),
            longest: away.into_iter().max().unwrap_or(0),
        }
    }

    /// Those of another run, too.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.stored_again += other.stored_again;
        self.delivered_again += other.delivered_again;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.stale += other.stale;
        self.went_back += other.went_back;
        self.away += other.away;
        self.longest = self.longest.max(other.longest);
    }

    /// The head of a table of them, after a column of names.
    pub const HEAD: &str = "runs | acknowledged | lost | stored again | delivered again | refused | unknown | \
         stale polls | offsets back | away, s | longest, s |";

    /// A row of that table.
    pub fn to_row(&self) -> String {
        let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
        format!(
            "{} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {:.1} |",
            self.runs,
            self.acknowledged,
            self.lost,
            self.stored_again,
            self.delivered_again,
            self.refused,
            self.unknown,
            self.stale,
            self.went_back,
            seconds(self.away),
            seconds(self.longest),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::history::Send;

    #[test]
    fn figures_count_what_clients_saw() {
        let send = |n: u64, outcome| Send {
            process: 0,
            queue: 0,
            body: format!("0:{n}"),
            invoked: n * 1_000_000_000,
            ended: n * 1_000_000_000 + 1,
            outcome,
        };
        let history = History {
            sends: vec![
                send(0, Outcome::Ok(0)),
                send(1, Outcome::Fail("code 14".into())),
                send(2, Outcome::Unknown("reset".into())),
                send(3, Outcome::Ok(1)),
                send(8, Outcome::Ok(5)),
            ],
            found: [(
                0,
                vec![(0, "0:0".into()), (1, "0:3".into()), (2, "0:3".into())],
            )]
            .into(),
            ..History::default()
        };
        let of_one = Figures::of(&history);
        let due = Figures {
            runs: 1,
            acknowledged: 3,
            lost: 1,
            stored_again: 1,
            refused: 1,
            unknown: 1,
            away: 8_000,
            longest: 5_000,
            ..Figures::default()
        };
        assert_eq!(of_one, due);
        let mut two = of_one.clone();
        two.add(&of_one);
        assert_eq!(
            (two.runs, two.lost, two.away, two.longest),
            (2, 2, 16_000, 5_000)
        );
        assert!(
            two.to_row()
                .starts_with("2 | 6 | 2 | 2 | 0 | 2 | 2 | 0 | 0 | 16.0 | 5.0 |")
        );
    }
}
