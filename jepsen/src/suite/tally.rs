//! What runs came to: each for itself, as a line of a file, and all of them together.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::{Verdict, command};
use crate::attack::{self, Cuts};
use crate::check;
use crate::schedule::{Schedule, named, number, value_name};

/// What one run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Of its schedule.
    pub seed: u64,
    /// The outcome.
    pub verdict: Verdict,
    /// What was found wrong first, and the command that repeats it; or why it proves nothing. Empty if it
    /// passed.
    pub why: String,
    /// Messages that were acknowledged, all of which were looked for.
    pub acknowledged: u64,
    /// Messages that the consumer group got.
    pub delivered: u64,
    /// Power cuts.
    pub cuts: Cuts,
    /// Of each fault that was felt, milliseconds from its beginning to the next acknowledgement.
    pub faults: BTreeMap<String, Vec<u64>>,
    /// Milliseconds from the end of the last fault to the next acknowledgement, if the run came to its end.
    pub recovery: Option<u64>,
    /// Milliseconds that the run took, with its beginning and its end.
    pub took: u64,
}

impl Run {
    /// Of a run that came to its end.
    pub(super) fn of(schedule: &Schedule, verdict: Verdict, outcome: &attack::Outcome) -> Self {
        let first = |lines: &[String]| lines.first().cloned().unwrap_or_default();
        let why = match verdict {
            Verdict::Passed => String::new(),
            Verdict::Void => first(&outcome.void),
            Verdict::Failed => again(&first(&outcome.wrong), schedule),
        };
        let history = &outcome.history;
        let mut faults: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for fault in history.faults.iter().filter(|fault| fault.seen != Some(0)) {
            let name = fault.what.split(' ').next().unwrap_or_default();
            let next = history.first_ack(fault.from).map(|ack| ack - fault.from);
            let times = faults.entry(name.to_owned()).or_default();
            times.push(next.unwrap_or(u64::MAX) / 1_000_000);
        }
        Self {
            seed: schedule.seed,
            verdict,
            why,
            acknowledged: history.acknowledged(),
            delivered: check::deliveries(history).0,
            cuts: outcome.cuts,
            faults,
            recovery: Some(outcome.recovery),
            took: 0,
        }
    }

    /// Of a run that did not.
    pub(super) fn broken(schedule: &Schedule, why: &str) -> Self {
        Self {
            seed: schedule.seed,
            verdict: Verdict::Failed,
            why: again(why, schedule),
            acknowledged: 0,
            delivered: 0,
            cuts: Cuts::default(),
            faults: BTreeMap::new(),
            recovery: None,
            took: 0,
        }
    }

    /// One line.
    pub(super) fn to_json(&self) -> String {
        let run = json!({
            "seed": self.seed,
            "verdict": value_name(&self.verdict),
            "why": self.why,
            "acknowledged": self.acknowledged,
            "read_by_consumers": self.delivered,
            "power_cuts": self.cuts.times,
            "power_cuts_of_nodes": self.cuts.nodes,
            "torn_sectors": self.cuts.sectors,
            "faults": self.faults,
            "recovery_ms": self.recovery,
            "took_ms": self.took,
        });
        format!("{run}\n")
    }

    /// What [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// With the field that is missing or wrong.
    pub(super) fn from_json(text: &str) -> anyhow::Result<Self> {
        let run: Value = serde_json::from_str(text)?;
        let mut faults = BTreeMap::new();
        let all = run["faults"].as_object().context("faults: a map is due")?;
        for (fault, times) in all {
            let times = times.as_array().into_iter().flatten().map(Value::as_u64);
            let times: Option<Vec<u64>> = times.collect();
            let times = times.with_context(|| format!("faults: {fault}: whole numbers are due"))?;
            faults.insert(fault.clone(), times);
        }
        Ok(Self {
            seed: number(&run, "seed")?,
            verdict: named(&run["verdict"], "verdict")?,
            why: run["why"].as_str().context("why: a text is due")?.into(),
            acknowledged: number(&run, "acknowledged")?,
            delivered: number(&run, "read_by_consumers")?,
            cuts: Cuts {
                times: number(&run, "power_cuts")?,
                nodes: number(&run, "power_cuts_of_nodes")?,
                sectors: number(&run, "torn_sectors")?,
            },
            faults,
            recovery: run["recovery_ms"].as_u64(),
            took: number(&run, "took_ms")?,
        })
    }
}

/// What was wrong, and how to see it again.
fn again(why: &str, schedule: &Schedule) -> String {
    format!("{why} (`{}`)", command(schedule))
}

/// Many runs.
#[derive(Debug, Default)]
pub struct Tally {
    /// When the first began, UTC.
    pub begun: String,
    /// The commit of the code.
    pub commit: String,
    /// In their order.
    pub runs: Vec<Run>,
}

impl Tally {
    fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.verdict == verdict)
    }

    fn sum(&self, of: impl Fn(&Run) -> u64) -> u64 {
        self.runs.iter().map(of).sum()
    }

    fn faults(&self) -> BTreeMap<&str, Vec<u64>> {
        let mut faults: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (fault, times) in self.runs.iter().flat_map(|run| &run.faults) {
            faults.entry(fault).or_default().extend(times);
        }
        for times in faults.values_mut() {
            times.sort_unstable();
        }
        faults
    }

    /// A line for each of these runs.
    fn lines(&self, verdict: Verdict) -> Vec<String> {
        let runs = self.with(verdict);
        runs.map(|run| format!("seed {}: {}", run.seed, run.why))
            .collect()
    }

    /// How long all of them took.
    pub fn took(&self) -> Duration {
        Duration::from_millis(self.sum(|run| run.took))
    }

    /// Whether nothing was found wrong.
    pub fn is_clean(&self) -> bool {
        self.with(Verdict::Failed).next().is_none()
    }

    /// One line for people.
    pub fn to_line(&self) -> String {
        format!(
            "{} runs in {} min: {} passed, {} void, {} with a finding; {} acknowledged, {} power cuts",
            self.runs.len(),
            self.took().as_secs() / 60,
            self.with(Verdict::Passed).count(),
            self.with(Verdict::Void).count(),
            self.with(Verdict::Failed).count(),
            self.sum(|run| run.acknowledged),
            self.sum(|run| run.cuts.times),
        )
    }

    /// For a file that people read.
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "| runs | passed | void | anomalies | acknowledged, all checked | read by consumers | power \
             cuts | of nodes | torn sectors | minutes |\n|---|---|---|---|---|---|---|---|---|---|\n\
             | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n\n",
            self.runs.len(),
            self.with(Verdict::Passed).count(),
            self.with(Verdict::Void).count(),
            self.with(Verdict::Failed).count(),
            self.sum(|run| run.acknowledged),
            self.sum(|run| run.delivered),
            self.sum(|run| run.cuts.times),
            self.sum(|run| run.cuts.nodes),
            self.sum(|run| run.cuts.sectors),
            self.took().as_secs() / 60,
        );
        text += &format!(
            "Begun {} UTC; code of commit {}.\n\n| fault | times felt | next \
             acknowledgement after, ms: median | worst |\n|---|---|---|---|\n",
            self.begun, self.commit
        );
        for (fault, times) in self.faults() {
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let count = times.len();
            text += &format!("| `{fault}` | {count} | {median} | {worst} |\n");
        }
        for (name, verdict) in [("Anomalies", Verdict::Failed), ("Void", Verdict::Void)] {
            let lines = self.lines(verdict);
            if !lines.is_empty() {
                text += &format!("\n{name}:\n\n* {}\n", lines.join("\n* "));
            }
        }
        text
    }

    /// For a file that programs read.
    pub fn to_json(&self) -> String {
        let recoveries: Vec<u64> = self.runs.iter().filter_map(|run| run.recovery).collect();
        let tally = json!({
            "begun": self.begun,
            "commit": self.commit,
            "runs": self.runs.len(),
            "passed": self.with(Verdict::Passed).count(),
            "void": self.lines(Verdict::Void),
            "anomalies": self.lines(Verdict::Failed),
            "acknowledged": self.sum(|run| run.acknowledged),
            "read_by_consumers": self.sum(|run| run.delivered),
            "power_cuts": self.sum(|run| run.cuts.times),
            "power_cuts_of_nodes": self.sum(|run| run.cuts.nodes),
            "torn_sectors": self.sum(|run| run.cuts.sectors),
            "seconds": self.took().as_secs(),
            "faults": self.faults(),
            "recoveries_ms": recoveries,
        });
        format!("{tally:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::history::{Fault, History, Send};
    use crate::schedule::Kind;
    use crate::workload::Kind as Workload;

    fn ended(wrong: &[&str], void: &[&str]) -> attack::Outcome {
        let send = |n: u64| Send {
            process: 0,
            queue: 0,
            body: n.to_string(),
            invoked: n * 1_000_000,
            ended: n * 1_000_000 + 1,
            outcome: Outcome::Ok(n),
        };
        let fault = |what: &str, seen| Fault {
            what: what.into(),
            from: 1_500_000,
            until: Some(3_000_000),
            seen: Some(seen),
        };
        let texts = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
        attack::Outcome {
            wrong: texts(wrong),
            void: texts(void),
            history: History {
                sends: vec![send(1), send(9)],
                faults: vec![fault("kill-leader n1", 1), fault("slow-all", 0)],
                ..History::default()
            },
            cuts: Cuts {
                times: 2,
                nodes: 3,
                sectors: 4,
            },
            recovery: 5,
        }
    }

    #[test]
    fn a_tally_counts_what_was_felt_and_names_what_was_wrong() {
        let schedule = Schedule::draw(Workload::Queue, &[Kind::Kill], 20, 77, None).unwrap();
        let run = |verdict, outcome: &attack::Outcome| Run::of(&schedule, verdict, outcome);
        let mut tally = Tally {
            runs: vec![
                run(Verdict::Passed, &ended(&[], &[])),
                run(Verdict::Void, &ended(&[], &["unfelt"])),
            ],
            ..Tally::default()
        };
        assert!(tally.is_clean());
        tally
            .runs
            .push(run(Verdict::Failed, &ended(&["lost"], &[])));
        tally.runs.push(Run {
            took: 125_000,
            ..Run::broken(&schedule, "stuck")
        });
        assert!(!tally.is_clean());
        let text = tally.to_markdown();
        assert!(
            text.contains("| 4 | 1 | 1 | 2 | 6 | 0 | 6 | 9 | 12 | 2 |"),
            "{text}"
        );
        assert!(text.contains("| `kill-leader` | 3 | 7 | 7 |"), "{text}");
        assert!(!text.contains("slow-all"), "{text}");
        let again = command(&schedule);
        for line in [
            format!("* seed 77: lost (`{again}`)\n"),
            format!("* seed 77: stuck (`{again}`)\n"),
            "* seed 77: unfelt\n".into(),
        ] {
            assert!(text.contains(&line), "{text}");
        }
        let json: Value = serde_json::from_str(&tally.to_json()).unwrap();
        assert_eq!(json["acknowledged"], 6);
        assert_eq!(json["recoveries_ms"], json!([5, 5, 5]));
    }

    #[test]
    fn a_line_keeps_a_run() {
        let schedule = Schedule::draw(Workload::Queue, &[Kind::Kill], 20, 77, None).unwrap();
        for run in [
            Run::of(
                &schedule,
                Verdict::Void,
                &ended(&[], &["unfelt\nby \"all\""]),
            ),
            Run::broken(&schedule, "stuck"),
        ] {
            let line = run.to_json();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(Run::from_json(&line).unwrap(), run);
            let error = Run::from_json(&line.replace("took_ms", "took")).unwrap_err();
            assert!(error.to_string().contains("took_ms"), "{error}");
        }
    }
}
