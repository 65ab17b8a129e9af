//! A few faults of each kind in every test run, and a node that lost its disk; the fault suite strikes
//! longer.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use jepsen::client::{Client, Outcome};
use jepsen::cluster::{Cluster, Options, status};
use jepsen::power::Disks;
use jepsen::run::{Nemesis, Plan, run};
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{PATIENCE, Running, rmq, until};

const TOPIC: &str = "failover_topic";
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
fn voters(group: &Running, of: usize) -> Option<BTreeSet<u64>> {
    let status = status(group.addresses()[of]).ok()?;
    let members = status["group"]["members"].as_array()?.iter();
    let voters = members.filter(|m| m["voter"] == true);
    voters.map(|m| m["node"].as_u64()).collect()
}

/// The id of a node, as it says itself.
fn id(group: &Running, node: usize) -> Option<u64> {
    status(group.addresses()[node]).ok()?["group"]["node"].as_u64()
}

fn send(group: &Running, numbers: std::ops::Range<u32>) {
    let mut producer = group.producer();
    for n in numbers {
        producer.send(TOPIC, 0, &format!("m{n}"));
    }
}

#[test]
fn a_node_that_lost_its_store_comes_back_as_another_voter() {
    let mut group = Running::start(&Options::default());
    let leader = group.leading();
    let lost = (leader + 1) % 3;
    send(&group, 0..40);
    let former = until("a node says who it is", || id(&group, lost));
    until("it votes", || {
        voters(&group, leader).filter(|now| now.contains(&former))
    });

    group.cluster().kill(lost).unwrap();
    group.wipe(lost).unwrap();
    send(&group, 40..80);
    group.cluster().start_node(lost).unwrap();

    until("another one votes in its place", || {
        let now = voters(&group, group.leader().ok()?)?;
        let back = id(&group, lost).filter(|id| now.contains(id))?;
        (back != former && now.len() == 3 && !now.contains(&former)).then_some(())
    });
    let even = group.wait_until_even(PATIENCE).unwrap();
    assert_eq!(group.compare_logs(even).unwrap(), None);

    // Of what follows only two nodes know. One of them is killed; only the node that came back can lead.
    let (behind, third) = ((lost + 1) % 3, (lost + 2) % 3);
    group.cluster().kill(behind).unwrap();
    send(&group, 80..120);
    group.cluster().kill(third).unwrap();
    group.cluster().start_node(behind).unwrap();
    assert_eq!(group.leading(), lost);
    let want = (0..120).map(|n| format!("m{n}")).collect::<Vec<_>>();
    assert_eq!(group.bodies(TOPIC, 0), want);
}

/// What the name server tells producers of the topic; none while it is not registered.
fn route(group: &Running) -> Option<serde_json::Value> {
    let mut command = Command::request(request::GET_ROUTEINFO_BY_TOPIC);
    command.ext.insert("topic", TOPIC);
    command.ext.insert("acceptStandardJsonOnly", "true");
    let mut client = Client::connect(group.namesrv, PATIENCE).ok()?;
    let answer = client.call(command).ok()?;
    serde_json::from_slice(&answer.body).ok()
}

/// Address of id 0 by broker name in the route of the topic.
fn producers_route(group: &Running) -> Option<Vec<(String, SocketAddr)>> {
    let route = route(group)?;
    let names = route["brokerDatas"].as_array()?.iter().map(|data| {
        let addr = data["brokerAddrs"]["0"].as_str()?.parse().ok()?;
        Some((data["brokerName"].as_str()?.to_owned(), addr))
    });
    let mut names: Vec<_> = names.collect::<Option<_>>()?;
    names.sort();
    Some(names)
}

/// How many nodes are in the route of the topic, by whatever name.
fn nodes_in_route(group: &Running) -> Option<usize> {
    let route = route(group)?;
    let ids = route["brokerDatas"].as_array()?.iter();
    ids.map(|data| {
        data["brokerAddrs"]
            .as_object()
            .map_or(0, serde_json::Map::len)
    })
    .max()
}

#[test]
fn a_producer_that_tries_another_name_outlives_the_leader() {
    let mut group = Running::start(&Options {
        // Longer than a slow machine takes to elect.
        more: "groupAliasRoutes=true\ngroupHoldMillis=60000".to_owned(),
        ..Options::default()
    });
    send(&group, 0..1);
    let route = until(
        "the names are at all nodes, and the first is the leader's",
        || {
            let route = producers_route(&group)?;
            let addrs: BTreeSet<_> = route.iter().map(|(_, addr)| *addr).collect();
            let leader = group.addresses()[group.leader().ok()?];
            // Until all followers have registered their names share a node.
            (addrs.len() == 3 && route[0].1 == leader).then_some(route)
        },
    );
    let (names, addrs): (Vec<_>, Vec<_>) = route.iter().cloned().unzip();
    assert_eq!(names, ["jepsen", "jepsen@1", "jepsen@2"]);
    let leader = group.addresses().iter().position(|addr| *addr == addrs[0]);
    let leader = leader.unwrap();

    // Sent by another name in peace, it is a queue of the leader all the same: of four the next one.
    let mut other = Client::connect(addrs[1], PATIENCE).unwrap();
    let mut send_on = |body: &str| {
        until("a message is taken", || match other.send(TOPIC, 3, body) {
            Outcome::Ok(offset) => Some(offset),
            // It was forwarded before the follower saw that the leader is dead; a client tries again.
            Outcome::Unknown(_) => None,
            Outcome::Fail(why) => panic!("it was not held: {why}"),
        })
    };
    let in_peace = send_on("m1");
    assert!(in_peace > 0, "it is in another queue");

    // None is at a follower that is frozen, which name servers take for alive long after.
    let frozen = (leader + 1) % 3;
    let first = group.addresses()[frozen].port();
    group.signal(frozen, Signal::STOP).unwrap();
    until("no name is at the frozen node", || {
        let route = producers_route(&group)?;
        let is_frozen = |addr: &SocketAddr| (first..first + 3).contains(&addr.port());
        (!route.iter().any(|(_, addr)| is_frozen(addr))).then_some(())
    });
    assert_eq!(nodes_in_route(&group), Some(3));
    group.signal(frozen, Signal::CONT).unwrap();
    until("all names are where they were", || {
        (producers_route(&group)? == route).then_some(())
    });

    // The dead leader's connections are reset, not just closed, and its successor has the next send
    // though it went out before there was one.
    let mut idle = TcpStream::connect(addrs[0]).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    group.cluster().kill(leader).unwrap();
    assert!(send_on("m2") > in_peace);
    let reset = idle.read(&mut [0; 1]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);

    // The names stay, at nodes that live.
    let of_dead = addrs[0].port()..addrs[0].port() + 3;
    until("all names are at nodes that live", || {
        let (now, addrs): (Vec<_>, Vec<_>) = producers_route(&group)?.into_iter().unzip();
        let is_alive = |addr: &SocketAddr| !of_dead.contains(&addr.port());
        (now == names && addrs.iter().all(is_alive)).then_some(())
    });
}

/// What a follower says when its leader's process is proven to have ended.
const PROOF: &str = "proof of death";

#[test]
fn a_lame_duck_answers_those_whose_route_is_old_while_another_node_leads() {
    let mut group = Running::start(&Options {
        more: "lameDuckMillis=600000".to_owned(),
        ..Options::default()
    });
    send(&group, 0..1);
    let in_route = |group: &Running, nodes| {
        until("the nodes that live are in the route", || {
            (nodes_in_route(group)? == nodes).then_some(())
        });
    };
    in_route(&group, 3);
    let old = group.leading();
    group.signal(old, Signal::TERM).unwrap();
    in_route(&group, 2);
    let mut client = Client::connect(group.addresses()[old], PATIENCE).unwrap();
    until("a message is taken", || match client.send(TOPIC, 0, "m1") {
        Outcome::Ok(offset) => Some(offset),
        Outcome::Unknown(_) => None,
        Outcome::Fail(why) => panic!("it was not passed on: {why}"),
    });
    for other in (0..3).filter(|node| *node != old) {
        group.cluster().kill(other).unwrap();
    }
    let ended = until("it ends by itself", || group.cluster().ended(old).unwrap());
    assert_eq!(ended.code(), Some(0));
}

/// The process that proves the end of this one; `None` while there is none.
fn deathwatch_of(pid: u32) -> Option<Pid> {
    let status = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status"));
    let parent = format!("PPid:\t{pid}\n");
    let mut all = std::fs::read_dir("/proc").unwrap().flatten();
    let child = all.find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // It may have ended by now.
        let status = status(pid).ok()?;
        let is_it = status.starts_with("Name:\trmq-deathwatch") && status.contains(&parent);
        is_it.then_some(pid)
    })?;
    Pid::from_raw(i32::try_from(child).unwrap())
}

/// Nobody may be there to have taken note of its end.
fn has_ended(process: Pid) -> bool {
    let status = format!("/proc/{}/status", process.as_raw_nonzero());
    std::fs::read_to_string(status).map_or(true, |status| status.contains("State:\tZ"))
}

#[test]
fn a_killed_leader_is_replaced_on_proof_and_a_frozen_one_is_not() {
    let mut group = Running::start(&Options {
        // Nobody but on proof stands within the lease; the first election takes as long, too.
        more: "raftElectionTimeoutMinMillis=20000\nraftElectionTimeoutMaxMillis=30000".to_owned(),
        ..Options::default()
    });
    let leader = group.leader().unwrap();
    send(&group, 0..10);
    let pid = group.pid(leader).unwrap();
    let watch = until("a process watches the leader", || deathwatch_of(pid));
    let proven = |group: &Running| {
        let of = (0..3).filter(|node| *node != leader);
        of.filter(|node| group.last_life(*node).unwrap().contains(PROOF))
            .count()
    };

    group.signal(leader, Signal::STOP).unwrap();
    // What ends a service tells each of its processes.
    kill_process(watch, Signal::TERM).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(proven(&group), 0);
    group.signal(leader, Signal::CONT).unwrap();
    send(&group, 10..20);
    assert_eq!(group.leader().unwrap(), leader);

    group.cluster().kill(leader).unwrap();
    let next = group.wait_for_leader(PATIENCE).unwrap();
    assert_ne!(next, leader);
    assert!(proven(&group) > 0);
    send(&group, 20..30);
    let mut client = Client::connect(group.addresses()[next], PATIENCE).unwrap();
    let want = (0..30).map(|n| (n, format!("m{n}"))).collect::<Vec<_>>();
    assert_eq!(client.read_queue(TOPIC, 0).unwrap(), want);
    until("the process that told it has ended", || {
        has_ended(watch).then_some(())
    });

    // A broker whose watch is gone goes on, and says so.
    let watch = deathwatch_of(group.pid(next).unwrap()).unwrap();
    kill_process(watch, Signal::KILL).unwrap();
    until("the broker has noticed", || {
        let printed = group.last_life(next).unwrap();
        printed.contains("rmq-deathwatch has ended").then_some(())
    });
    send(&group, 30..40);
}

#[test]
fn a_power_cut_takes_the_witness_too_and_proves_nothing() {
    let dir = TempDir::new().unwrap();
    let disks = match Disks::mount(dir.path(), 3) {
        Ok(disks) => disks,
        Err(e) => return eprintln!("skipped, because no disk can be mounted: {e:#}"),
    };
    let options = Options {
        machines: true,
        leashed: true,
        // A node that lost power votes again when the next one is killed.
        sync_flush: true,
        // A proof is not late on a slow machine either.
        more: "raftElectionTimeoutMinMillis=2000\nraftElectionTimeoutMaxMillis=3000".to_owned(),
        ..Options::default()
    };
    let mut cluster = Cluster::start(rmq(), dir.path(), &options).unwrap();
    let proven = |cluster: &Cluster| {
        let lives = (0..3).map(|node| cluster.last_life(node).unwrap());
        lives.filter(|life| life.contains(PROOF)).count()
    };

    let leader = cluster.leader().unwrap();
    let pid = cluster.pid(leader).unwrap();
    let watch = until("a process watches the leader", || deathwatch_of(pid));
    cluster.signal(leader, Signal::STOP).unwrap();
    let cut = disks.cut(&[leader], &[pid], None, || cluster.kill(leader));
    cut.unwrap();
    assert!(has_ended(watch));
    let next = cluster.wait_for_leader(PATIENCE).unwrap();
    assert_ne!(next, leader);
    assert_eq!(proven(&cluster), 0, "nothing was left that could know");

    // The machine is there again. When another one's process ends, its machine goes on.
    cluster.start_node(leader).unwrap();
    until("the node is back", || {
        cluster.is_up(leader).unwrap().then_some(())
    });
    cluster.kill(next).unwrap();
    assert_ne!(cluster.wait_for_leader(PATIENCE).unwrap(), next);
    assert!(proven(&cluster) > 0);
}
