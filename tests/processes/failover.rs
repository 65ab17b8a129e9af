//! A few faults of each kind in every test run; the fault suite strikes longer.

use jepsen::run::{Nemesis, Plan, run};
use tempfile::TempDir;

use crate::support::rmq;

fn survives(nemeses: &[Nemesis], rounds: u32, sync_flush: bool) {
    let dir = TempDir::new().unwrap();
    let plan = Plan {
        nemeses: nemeses.to_vec(),
        rounds,
        seed: 42,
        sync_flush,
    };
    match run(rmq(), dir.path(), &plan) {
        Ok(report) if report.wrong.is_empty() => {}
        Ok(report) => panic!(
            "{:#?}; files are kept in {}",
            report.wrong,
            dir.keep().display()
        ),
        Err(e) => panic!("{e:#}; files are kept in {}", dir.keep().display()),
    }
}

#[test]
fn kill_of_leader_and_follower_loses_nothing() {
    survives(&[Nemesis::KillLeader, Nemesis::KillFollower], 2, false);
}

#[test]
fn kill_of_all_nodes_loses_nothing() {
    survives(&[Nemesis::KillAll], 2, true);
}
