//! Planted bugs in real processes: a suite that does not find them would not find others.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use rmq_store::mutants::{OF_BROKER, OF_LOG, OF_MIGRATION};

use crate::attack::Bed;
use crate::check::{self, CHECKERS};
use crate::history::History;
use crate::migration;
use crate::schedule::{Fault, Kind, Schedule, value_name};
use crate::suite::{self, Say, Verdict};
use crate::workload::Kind as Workload;

/// Tries of each bug, with a seed each.
const TRIES: u64 = 5;
/// Seconds of a run.
const TIME: u64 = 30;
/// The command that needs disks.
const POWER: &str = "power";
/// The bug that is none of a node: of what a run reads back in the end, the checkers do not get every message.
const BLIND: (&str, &str) = ("M15", "hides one message of a thousand from the checkers");
const HIDDEN: usize = 1_000;

/// A bug and the run that has to find it.
struct Mutant {
    name: &'static str,
    run: Run,
}

/// What is run.
enum Run {
    /// Of a schedule: workload, faults, and whether each write is synced.
    Schedule(Workload, &'static [Kind], bool),
    /// Of one where only this fault strikes.
    Fault(Workload, Fault, bool),
    /// This program with these arguments, and a seed.
    Command(&'static [&'static str]),
}

/// Those of `rmq_store::mutants`, and what has to bring each to light.
const MUTANTS: [Mutant; 16] = [
    Mutant {
        name: "M1",
        run: Run::Schedule(Workload::Queue, &[Kind::Partition, Kind::Kill], false),
    },
    Mutant {
        name: "M2",
        run: Run::Schedule(Workload::Queue, &[Kind::Power], true),
    },
    Mutant {
        name: "M3",
        // Cut after cut, soon after each election: votes are on a disk by themselves a few seconds later.
        run: Run::Command(&[POWER, "sync", "--cuts", "15"]),
    },
    Mutant {
        name: "M4",
        run: Run::Schedule(Workload::Queue, &[Kind::Partition], false),
    },
    Mutant {
        name: "M5",
        run: Run::Schedule(Workload::Queue, &[Kind::Partition, Kind::Pause], false),
    },
    Mutant {
        name: "M6",
        run: Run::Schedule(Workload::Offset, &[Kind::Kill, Kind::Transfer], false),
    },
    Mutant {
        name: "M7",
        run: Run::Command(&["test", "--nemesis", "damage-one", "--rounds", "3"]),
    },
    Mutant {
        name: "M8",
        // Each other sync that fails ends the node, whatever it makes of those of its log.
        run: Run::Fault(Workload::Queue, Fault::SyscallSync, true),
    },
    Mutant {
        name: "M9",
        run: Run::Schedule(Workload::Transaction, &[Kind::Kill], false),
    },
    Mutant {
        name: "M10",
        run: Run::Schedule(Workload::Delay, &[Kind::Kill], false),
    },
    Mutant {
        name: "M11",
        run: Run::Schedule(Workload::Ordered, &[Kind::Kill, Kind::Transfer], false),
    },
    Mutant {
        name: "M12",
        // A node that is killed builds anew what it has indexed since it was last stopped.
        run: Run::Schedule(Workload::Queue, &[Kind::Kill, Kind::Restart], false),
    },
    Mutant {
        name: "M13",
        run: Run::Command(&["test", "--nemesis", "snapshot", "--rounds", "2"]),
    },
    Mutant {
        name: "M14",
        run: Run::Schedule(Workload::Migrate, &[Kind::Kill], false),
    },
    Mutant {
        name: BLIND.0,
        run: Run::Schedule(Workload::Queue, &[Kind::Kill], false),
    },
    Mutant {
        name: "Quarantine",
        run: Run::Command(&[POWER, "async-one", "--cuts", "10"]),
    },
];

impl Run {
    fn is_possible(&self, bed: Bed) -> bool {
        match self {
            Self::Schedule(workload, kinds, _) => {
                let is_there = *workload != Workload::Migrate || migration::archive().is_some();
                is_there && suite::possible(kinds, bed) == *kinds
            }
            Self::Fault(_, fault, _) => bed.allows(fault.kind()),
            Self::Command(words) => bed.disks || words[0] != POWER,
        }
    }

    /// For people: the workload and its faults, or the command.
    fn words(&self) -> String {
        match self {
            Self::Schedule(workload, kinds, _) => {
                let kinds: Vec<String> = kinds.iter().map(value_name).collect();
                format!("`{}`, `{}`", value_name(workload), kinds.join(","))
            }
            Self::Fault(workload, fault, _) => {
                format!("`{}`, `{}`", value_name(workload), fault.name())
            }
            Self::Command(words) => format!("`{}`", words.join(" ")),
        }
    }
}

impl Mutant {
    fn what(&self) -> &'static str {
        let known = OF_LOG.iter().chain(&OF_BROKER).chain(&OF_MIGRATION);
        let known = known.chain([&BLIND]);
        let what = known.filter(|(name, _)| *name == self.name);
        what.map(|(_, what)| *what).next().unwrap_or_default()
    }

    /// Runs it with a seed, with or without the bug. What is wrong, if anything.
    fn once(&self, at: Place<'_>, seed: u64, planted: bool) -> anyhow::Result<Option<String>> {
        let Place { rmq, dir, bed, say } = at;
        if dir.try_exists()? {
            fs::remove_dir_all(dir)?;
        }
        let is_blind = self.name == BLIND.0;
        let of_nodes = (planted && !is_blind).then_some(self.name);
        let schedule = match &self.run {
            Run::Schedule(workload, kinds, sync_flush) => {
                Schedule::draw(*workload, kinds, TIME, seed, Some(*sync_flush))?
            }
            Run::Fault(workload, fault, sync_flush) => {
                let kinds = [fault.kind()];
                let drawn = Schedule::draw(*workload, &kinds, TIME, seed, Some(*sync_flush))?;
                drawn.only(*fault)
            }
            Run::Command(words) => return command(at, words, seed, of_nodes),
        };
        let bed = Bed {
            mutant: of_nodes,
            ..bed
        };
        Ok(match suite::one(rmq, dir, &schedule, bed, say) {
            Ok((Verdict::Failed, outcome)) => outcome.wrong.into_iter().next(),
            Ok((_, outcome)) if planted && is_blind => judge_blindly(outcome.history),
            Ok(_) => None,
            Err(e) => Some(format!("{e:#}")),
        })
    }

    /// Looks for it, and runs each seed without it too.
    fn find(&self, at: Place<'_>) -> anyhow::Result<Found> {
        let say = at.say;
        let mut found = Found::Never;
        for seed in 1..=TRIES {
            say(&format!("{} planted", self.name));
            let by = self.once(at, seed, true)?;
            if let Some(by) = &by {
                say(&format!("{} found: {by}", self.name));
            }
            say(&format!("{} not planted", self.name));
            if let Some(without) = self.once(at, seed, false)? {
                return Ok(Found::Without(seed, without));
            }
            if let Some(by) = by {
                found = Found::Seed(seed, by);
                break;
            }
        }
        if at.dir.try_exists()? {
            fs::remove_dir_all(at.dir)?;
        }
        Ok(found)
    }
}

/// Runs this program with these words and a seed, and its nodes with a bug, if any. What is wrong, if anything.
fn command(
    at: Place<'_>,
    words: &[&str],
    seed: u64,
    of_nodes: Option<&str>,
) -> anyhow::Result<Option<String>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--rmq").arg(at.rmq).arg("--dir").arg(at.dir);
    command.args(words).args(["--seed", &seed.to_string()]);
    if let Some(planted) = of_nodes {
        // It is passed on to the nodes.
        command.env("RMQ_MUTANT", planted);
    }
    let output = command.output()?;
    let told = String::from_utf8_lossy(&output.stdout);
    told.lines().for_each(at.say);
    let wrong = told
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("FAILED "));
    let error = String::from_utf8_lossy(&output.stderr);
    let error = || error.lines().take(4).collect::<Vec<_>>().join(" ");
    let wrong = wrong.map_or_else(error, str::to_owned);
    Ok((!output.status.success()).then_some(wrong))
}

/// What the checkers say if they do not get every message that was read back.
fn judge_blindly(mut history: History) -> Option<String> {
    for found in history.found.values_mut() {
        let mut nth = 0..;
        found.retain(|_| nth.next().is_none_or(|n: usize| n % HIDDEN != HIDDEN / 2));
    }
    check::judge(&history, &CHECKERS).into_iter().next()
}

/// Where runs are, and what they have.
#[derive(Clone, Copy)]
struct Place<'a> {
    rmq: &'a Path,
    dir: &'a Path,
    bed: Bed,
    say: Say<'a>,
}

/// What came of the search for a bug.
enum Found {
    /// By this seed, and what was wrong then.
    Seed(u64, String),
    Never,
    /// This seed finds something without it.
    Without(u64, String),
    /// This machine has not what it takes.
    Skipped,
}

impl Found {
    fn to_row(&self) -> String {
        match self {
            Self::Seed(seed, by) => format!("{seed} | {}", by.replace('|', "/")),
            Self::Never => format!("- | NOT FOUND in {TRIES} tries"),
            Self::Without(seed, what) => format!("{seed} | FOUND WITHOUT IT, TOO: {what}"),
            Self::Skipped => "- | skipped, for its faults do not work here".to_owned(),
        }
    }
}

/// Whether each bug is found, or each of these, and nothing is found with the same seeds without it. Says so in a
/// table.
pub fn find_all(rmq: &Path, dir: &Path, which: &[String], say: Say<'_>) -> anyhow::Result<bool> {
    let names = MUTANTS.map(|mutant| mutant.name);
    for name in which {
        ensure!(
            names.contains(&name.as_str()),
            "no such bug: {name}; there are {}",
            names.join(", ")
        );
    }
    let bed = suite::bed(say);
    let mut all = true;
    let mut table = "| bug | run | seed | found by |\n|---|---|---|---|".to_owned();
    let is_chosen = |name: &str| which.is_empty() || which.iter().any(|which| which == name);
    for mutant in MUTANTS.iter().filter(|mutant| is_chosen(mutant.name)) {
        let dir = &dir.join(mutant.name);
        let found = match mutant.run.is_possible(bed) {
            true => mutant.find(Place { rmq, dir, bed, say })?,
            false => Found::Skipped,
        };
        all &= matches!(found, Found::Seed(..));
        let Mutant { name, run } = mutant;
        let (what, run) = (mutant.what(), run.words());
        table += &format!("\n| {name}: {what} | {run} | {} |", found.to_row());
    }
    say(&table);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::history::Send;

    #[test]
    fn what_is_hidden_from_the_checkers_is_missed() {
        let body = |n: u64| format!("0:{n}");
        let send = |n: u64| Send {
            process: 0,
            queue: 0,
            body: body(n),
            invoked: 2 * n,
            ended: 2 * n + 1,
            outcome: Outcome::Ok(n),
        };
        let history = History {
            sends: (0..HIDDEN as u64).map(send).collect(),
            found: [(0, (0..HIDDEN as u64).map(|n| (n, body(n))).collect())].into(),
            ..History::default()
        };
        let wrong = judge_blindly(history).unwrap();
        assert!(wrong.contains("0:500 was acknowledged at 0/500"), "{wrong}");
    }

    #[test]
    fn every_bug_has_a_run_and_every_run_a_bug() {
        for mutant in &MUTANTS {
            assert_ne!(mutant.what(), "", "{}", mutant.name);
        }
        for (name, _) in OF_LOG.iter().chain(&OF_BROKER).chain(&OF_MIGRATION) {
            assert!(MUTANTS.iter().any(|mutant| mutant.name == *name), "{name}");
        }
    }
}
