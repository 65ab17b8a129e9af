//! Planted bugs in real processes: a suite that does not find them would not find others.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::attack::Bed;
use crate::schedule::{Kind, Schedule};
use crate::suite::{self, Say, Verdict};
use crate::workload::Kind as Workload;

/// Tries of each bug, with a seed each.
const TRIES: u64 = 5;
/// Seconds of a run.
const TIME: u64 = 30;

/// A bug and the run that has to find it.
struct Mutant {
    name: &'static str,
    workload: Workload,
    kinds: &'static [Kind],
    sync_flush: bool,
}

/// Those of `rmq_store::mutants` that faults of this suite bring to light. The simulation finds all.
const MUTANTS: [Mutant; 5] = [
    Mutant {
        name: "M1",
        workload: Workload::Queue,
        kinds: &[Kind::Partition, Kind::Kill],
        sync_flush: false,
    },
    Mutant {
        name: "M2",
        workload: Workload::Queue,
        kinds: &[Kind::Power],
        sync_flush: true,
    },
    Mutant {
        name: "M4",
        workload: Workload::Queue,
        kinds: &[Kind::Partition],
        sync_flush: false,
    },
    Mutant {
        name: "M5",
        workload: Workload::Queue,
        kinds: &[Kind::Partition, Kind::Pause],
        sync_flush: false,
    },
    Mutant {
        name: "M6",
        workload: Workload::Offset,
        kinds: &[Kind::Kill, Kind::Transfer],
        sync_flush: false,
    },
];

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
        if suite::possible(mutant.kinds, bed) != mutant.kinds {
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
    for seed in 1..=TRIES {
        let schedule = Schedule::draw(
            mutant.workload,
            mutant.kinds,
            TIME,
            seed,
            Some(mutant.sync_flush),
        )?;
        let run = |planted| {
            let own = dir.join(mutant.name);
            if own.try_exists()? {
                fs::remove_dir_all(&own)?;
            }
            let bed = Bed {
                mutant: planted,
                ..bed
            };
            suite::one(rmq, &own, &schedule, bed, say)
        };
        say(&format!("{} planted", mutant.name));
        let by = match run(Some(mutant.name)) {
            Ok((Verdict::Failed, outcome)) => outcome.wrong.first().cloned().unwrap_or_default(),
            Ok(_) => continue,
            Err(e) => format!("{e:#}"),
        };
        say(&format!("{} not planted", mutant.name));
        let (verdict, _) = run(None)?;
        ensure!(
            verdict != Verdict::Failed,
            "seed {seed} fails without the bug {} too",
            mutant.name
        );
        return Ok(Some((seed, by)));
    }
    Ok(None)
}
