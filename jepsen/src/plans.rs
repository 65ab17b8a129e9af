//! What is run for the words of the command line.

use clap::ValueEnum;
use jepsen::attack::Bed;
use jepsen::cluster::Target;
use jepsen::power;
use jepsen::run::{Nemesis, Plan};
use jepsen::schedule::{Kind, Schedule};
use jepsen::suite;
use jepsen::workload::Kind as Workload;

use crate::arguments::Power;

/// Power cuts that one group of nodes lives through.
const CUTS_OF_A_GROUP: u32 = 20;
/// The runs of every change.
pub(crate) fn short() -> Vec<Plan> {
    let plan = |nemeses: &[Nemesis], rounds, seed, sync_flush| Plan {
        nemeses: nemeses.to_vec(),
        rounds,
        seed,
        sync_flush,
    };
    let everywhere = [
        plan(&[Nemesis::KillLeader], 20, 7, false),
        plan(&[Nemesis::KillFollower, Nemesis::KillAll], 2, 11, true),
        plan(&[Nemesis::PauseLeader], 1, 13, false),
    ];
    let as_root = [
        plan(&[Nemesis::Power], 3, 17, true),
        plan(&[Nemesis::PowerOne], 2, 19, false),
        plan(&[Nemesis::Blackout], 1, 23, false),
    ];
    let as_root = as_root.into_iter().filter(|_| power::is_possible());
    everywhere.into_iter().chain(as_root).collect()
}

/// The schedules of every change: some faults at once, as far as this machine has them.
pub(crate) fn short_schedules(bed: Bed) -> anyhow::Result<Vec<Schedule>> {
    const TIME: u64 = 20;
    let runs = [
        (Workload::Queue, [Kind::Partition, Kind::Kill], 7),
        (Workload::Offset, [Kind::Power, Kind::Pause], 11),
    ];
    let mut schedules = Vec::new();
    for (workload, kinds, seed) in runs {
        let kinds = suite::possible(&kinds, bed);
        schedules.push(Schedule::draw(workload, &kinds, TIME, seed, None)?);
    }
    Ok(schedules)
}

/// Power cuts, by groups of nodes that live through a few.
pub(crate) fn cutting_power(of: Power, cuts: u32, seed: u64) -> Vec<Plan> {
    let (nemesis, sync_flush) = match of {
        Power::Sync => (Nemesis::Power, true),
        Power::AsyncOne => (Nemesis::PowerOne, false),
        Power::AsyncAll => (Nemesis::Blackout, false),
        Power::AsyncAllLongest => (Nemesis::BlackoutLongest, false),
    };
    let groups = (0..cuts).step_by(CUTS_OF_A_GROUP as usize);
    let plan = |(done, seed)| Plan {
        nemeses: vec![nemesis],
        rounds: CUTS_OF_A_GROUP.min(cuts - done),
        seed,
        sync_flush,
    };
    groups.zip(seed..).map(plan).collect()
}

/// The families of faults that are named; `all` are those against which such nodes promise anything to such
/// clients.
pub(crate) fn families(
    names: &[String],
    target: Target,
    workload: Workload,
) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for name in names {
        if name == "all" {
            let all = Kind::value_variants().iter().copied();
            kinds.extend(all.filter(|kind| kind.works_on(target) && kind.works_with(workload)));
        } else {
            let kind = Kind::from_str(name, false);
            kinds.push(kind.map_err(|e| anyhow::anyhow!("--nemesis {name} with --time: {e}"))?);
        }
    }
    Ok(kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_families_can_be_drawn_with_each_workload() {
        for workload in Workload::value_variants() {
            let all = families(&["all".into()], Target::Rmq, *workload).unwrap();
            Schedule::draw(*workload, &all, 60, 7, None).unwrap();
        }
    }
}
