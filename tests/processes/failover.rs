//! A few faults of each kind in every test run, and a node that lost its disk; the fault suite strikes
//! longer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jepsen::client::{Client, Outcome};
use jepsen::cluster::{Options, status};
use jepsen::run::{Nemesis, Plan, run};
use tempfile::TempDir;

use crate::support::{Running, rmq};

const TOPIC: &str = "failover_topic";
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

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
fn a_group_that_grows_to_five_and_shrinks_to_three_loses_nothing() {
    survives(&[Nemesis::Members], 1, false);
}

#[test]
fn a_dead_node_is_replaced_and_nothing_lost() {
    survives(&[Nemesis::Replace], 1, false);
}

#[test]
fn kill_of_all_nodes_loses_nothing() {
    survives(&[Nemesis::KillAll], 2, true);
}

/// The ids of the group's voters, as the node at `of` knows them.
fn voters(group: &Running, of: usize) -> BTreeSet<u64> {
    let status = status(group.addresses()[of]).unwrap();
    let members = status["group"]["members"].as_array().unwrap().iter();
    members
        .filter(|m| m["voter"] == true)
        .map(|m| m["node"].as_u64().unwrap())
        .collect()
}

/// The id of a node, as it says itself.
fn id(group: &Running, node: usize) -> Option<u64> {
    status(group.addresses()[node]).ok()?["group"]["node"].as_u64()
}

fn send(group: &Running, to: usize, bodies: std::ops::Range<u32>) {
    let mut client = Client::connect(group.addresses()[to], PATIENCE).unwrap();
    for n in bodies {
        let sent = client.send(TOPIC, 0, &format!("m{n}"));
        assert!(matches!(sent, Outcome::Ok(_)), "m{n}: {sent:?}");
    }
}

#[test]
fn a_node_that_lost_its_store_comes_back_as_another_voter() {
    let mut group = Running::start(&Options::default());
    let leader = group.leader().unwrap();
    let lost = (leader + 1) % 3;
    send(&group, leader, 0..40);
    let former = id(&group, lost).unwrap();
    assert!(voters(&group, leader).contains(&former));

    group.cluster().kill(lost).unwrap();
    group.wipe(lost).unwrap();
    send(&group, leader, 40..80);
    group.cluster().start_node(lost).unwrap();

    let end = Instant::now() + PATIENCE;
    loop {
        let leader = group.wait_for_leader(PATIENCE).unwrap();
        let now = voters(&group, leader);
        let back = id(&group, lost).filter(|id| now.contains(id));
        if back.is_some_and(|id| id != former) && now.len() == 3 && !now.contains(&former) {
            break;
        }
        assert!(
            Instant::now() < end,
            "{former} was lost, and voters are {now:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let even = group.wait_until_even(PATIENCE).unwrap();
    assert_eq!(group.compare_logs(even).unwrap(), None);

    // Of what follows only two nodes know. One of them is killed; only the node that came back can lead.
    let (behind, third) = ((lost + 1) % 3, (lost + 2) % 3);
    group.cluster().kill(behind).unwrap();
    let leader = group.wait_for_leader(PATIENCE).unwrap();
    send(&group, leader, 80..120);
    group.cluster().kill(third).unwrap();
    group.cluster().start_node(behind).unwrap();
    assert_eq!(group.wait_for_leader(PATIENCE).unwrap(), lost);
    let mut client = Client::connect(group.addresses()[lost], PATIENCE).unwrap();
    let found = client.read_queue(TOPIC, 0).unwrap();
    let want = (0..120).map(|n| (n, format!("m{n}"))).collect::<Vec<_>>();
    assert_eq!(found, want);
}
