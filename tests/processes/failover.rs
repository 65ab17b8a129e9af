//! A few faults of each kind in every test run, and a node that lost its disk; the fault suite strikes
//! longer.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use jepsen::client::{Client, Outcome};
use jepsen::cluster::{Options, status};
use jepsen::run::{Nemesis, Plan, run};
use rmq_wire::code::request;
use rmq_wire::frame::Command;
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

/// Address of id 0 by broker name, as the name server tells producers of the topic.
fn producers_route(group: &Running) -> Vec<(String, SocketAddr)> {
    let mut command = Command::request(request::GET_ROUTEINFO_BY_TOPIC);
    command.ext.insert("topic", TOPIC);
    command.ext.insert("acceptStandardJsonOnly", "true");
    let answer = Client::connect(group.namesrv, PATIENCE)
        .unwrap()
        .call(command);
    // None while the topic is not registered.
    let route = serde_json::from_slice::<serde_json::Value>(&answer.unwrap().body);
    let route = route.unwrap_or_default();
    let mut names: Vec<_> = route["brokerDatas"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|data| {
            let addr = data["brokerAddrs"]["0"].as_str().unwrap().parse().unwrap();
            (data["brokerName"].as_str().unwrap().to_owned(), addr)
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_producer_that_tries_another_name_outlives_the_leader() {
    let mut group = Running::start(&Options {
        // Longer than a slow machine takes to elect.
        more: "groupAliasRoutes=true\ngroupHoldMillis=60000".to_owned(),
        ..Options::default()
    });
    let leader = group.leader().unwrap();
    send(&group, leader, 0..1);
    let end = Instant::now() + PATIENCE;
    let (names, addrs): (Vec<_>, Vec<_>) = loop {
        let route = producers_route(&group);
        let addrs: BTreeSet<_> = route.iter().map(|(_, addr)| *addr).collect();
        // Until all followers have registered their names share a node.
        if addrs.len() == 3 {
            break route.into_iter().unzip();
        }
        assert!(Instant::now() < end, "{route:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(names, ["jepsen", "jepsen@1", "jepsen@2"]);
    assert_eq!(addrs[0], group.addresses()[leader]);

    // Sent by another name in peace, it is a queue of the leader all the same: of four the next one.
    let mut other = Client::connect(addrs[1], PATIENCE).unwrap();
    assert_eq!(other.send(TOPIC, 3, "m1"), Outcome::Ok(1));

    // The dead leader's connections are reset, not just closed, and its successor has the next send
    // though it went out before there was one.
    let mut idle = TcpStream::connect(addrs[0]).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut used = Client::connect(addrs[0], PATIENCE).unwrap();
    assert_eq!(used.send(TOPIC, 0, "m2"), Outcome::Ok(2));
    group.cluster().kill(leader).unwrap();
    let sent = loop {
        match other.send(TOPIC, 3, "m3") {
            // It was forwarded before the follower saw that the leader is dead; a client tries again.
            Outcome::Unknown(_) => {}
            sent => break sent,
        }
    };
    assert_eq!(sent, Outcome::Ok(3));
    let reset = idle.read(&mut [0; 1]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);

    // The names stay, at nodes that live.
    group.wait_for_leader(PATIENCE).unwrap();
    let route = producers_route(&group);
    assert_eq!(
        route.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
    assert!(
        route
            .iter()
            .all(|(_, addr)| !(addrs[0].port()..addrs[0].port() + 3).contains(&addr.port())),
        "{route:?}"
    );
}
