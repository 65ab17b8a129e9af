//! Planted bugs in real processes: a suite that does not find them would not find others.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::attack::Bed;
use crate::schedule::{Kind, Schedule};
use crate::suite::{self, Say, Verdict};
use crate::workload::Kind as Workload;

/// Tries of each bug, with a seed each.
const TRIES: u64 = 5;
/// Seconds of a run.
const TIME: u64 = 30;

/// The command that needs disks.
const POWER: &str = "power";

/// A bug and the run that has to find it.
struct Mutant {
    name: &'static str,
    run: Run,
}

/// What is run.
enum Run {
    /// Of a schedule: workload, faults, and whether each write is synced.
    Schedule(Workload, &'static [Kind], bool),
    /// This program with these arguments, and a seed.
    Command(&'static [&'static str]),
}

/// Those of `rmq_store::mutants` that faults of this suite bring to light. The simulation finds all.
const MUTANTS: [Mutant; 10] = [
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
        run: Run::Schedule(Workload::Queue, &[Kind::Power], true),
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
        run: Run::Schedule(Workload::Queue, &[Kind::Syscall], true),
    },
    Mutant {
        name: "M13",
        run: Run::Command(&["test", "--nemesis", "snapshot", "--rounds", "2"]),
    },
    Mutant {
        name: "Quarantine",
        run: Run::Command(&[POWER, "async-one", "--cuts", "10"]),
    },
];

impl Run {
    fn is_possible(&self, bed: Bed) -> bool {
        match self {
            Self::Schedule(_, kinds, _) => suite::possible(kinds, bed) == *kinds,
            Self::Command(words) => bed.disks || words[0] != POWER,
        }
    }

    /// What is wrong, if anything.
    fn once(
        &self,
        rmq: &Path,
        dir: &Path,
        (seed, planted): (u64, Option<&'static str>),
        bed: Bed,
        say: Say<'_>,
    ) -> anyhow::Result<Option<String>> {
        if dir.try_exists()? {
            fs::remove_dir_all(dir)?;
        }
        match self {
            Self::Schedule(workload, kinds, sync_flush) => {
                let schedule = Schedule::draw(*workload, kinds, TIME, seed, Some(*sync_flush))?;
                let bed = Bed {
                    mutant: planted,
                    ..bed
                };
                Ok(match suite::one(rmq, dir, &schedule, bed, say) {
                    Ok((Verdict::Failed, outcome)) => outcome.wrong.into_iter().next(),
                    Ok(_) => None,
                    Err(e) => Some(format!("{e:#}")),
                })
            }
            Self::Command(arguments) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("--rmq").arg(rmq).arg("--dir").arg(dir);
                command.args(*arguments).args(["--seed", &seed.to_string()]);
                if let Some(planted) = planted {
                    // It is passed on to the nodes.
                    command.env("RMQ_MUTANT", planted);
                }
                let output = command.output()?;
                let told = String::from_utf8_lossy(&output.stdout);
                told.lines().for_each(say);
                let wrong = told.lines().find(|line| line.contains("FAILED"));
                let error = String::from_utf8_lossy(&output.stderr);
                let error = || error.lines().take(4).collect::<Vec<_>>().join(" ");
                let wrong = wrong.map_or_else(error, str::to_owned);
                Ok((!output.status.success()).then_some(wrong))
            }
        }
    }
}

/// Whether each bug is found, and nothing is found with the same seeds without it.
pub fn find_all(rmq: &Path, dir: &Path, which: Option<&str>, say: Say<'_>) -> anyhow::Result<bool> {
    let bed = suite::bed(say);
    let chosen = || {
        MUTANTS
            .iter()
            .filter(|mutant| which.is_none_or(|which| which == mutant.name))
    };
    let names = MUTANTS.map(|mutant| mutant.name).join(", ");
    ensure!(chosen().next().is_some(), "no such bug; there are {names}");
    let mut all = true;
    let mut lines = Vec::new();
    for mutant in chosen() {
        if !mutant.run.is_possible(bed) {
            lines.push(format!(
                "{}: skipped, for its faults do not work here",
                mutant.name
            ));
            continue;
        }
        let found = find(rmq, dir, mutant, bed, say)?;
        all &= found.is_some();
        lines.push(match found {
            Some((tries, by)) => format!("{}: found by try {tries}: {by}", mutant.name),
            None => format!("{}: NOT FOUND in {TRIES} tries", mutant.name),
        });
    }
    for line in lines {
        say(&line);
    }
    Ok(all)
}

/// Which try found it, and what was wrong.
fn find(
    rmq: &Path,
    dir: &Path,
    mutant: &Mutant,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<Option<(u64, String)>> {
    let own = dir.join(mutant.name);
    let run = |seed, planted| mutant.run.once(rmq, &own, (seed, planted), bed, say);
    for seed in 1..=TRIES {
        say(&format!("{} planted", mutant.name));
        let Some(by) = run(seed, Some(mutant.name))? else {
            continue;
        };
        say(&format!("{} not planted", mutant.name));
        let without = run(seed, None)?;
        ensure!(
            without.is_none(),
            "seed {seed} fails without the bug {} too: {}",
            mutant.name,
            without.unwrap_or_default()
        );
        return Ok(Some((seed, by)));
    }
    Ok(None)
}
