//! The way back: a Java broker, started as a plain master on a copy of our store after a clean stop,
//! serves every message.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jepsen::client::Client;
use jepsen::cluster::{Options, status};
use rmq_store::{RealDisk, StoreConfig};
use rmq_wire::record::Record;

use crate::migrated::copy;
use crate::support::{JavaServer, Line, PATIENCE, Running, real_clients, until};

const TOPIC: &str = "way_back";
const QUEUES: u32 = 4;

/// All messages of the topic by queue, as the broker at this address serves them.
fn read(address: SocketAddr) -> BTreeMap<u32, Vec<(u64, String)>> {
    until("a broker serves", || {
        let mut client = Client::connect(address, PATIENCE).ok()?;
        let queues = (0..QUEUES).map(|q| Some((q, client.read_queue(TOPIC, q).ok()?)));
        queues.collect()
    })
}

/// A Java master of `line` on a copy of a stopped node's store.
fn start(cache: &Path, line: Line, store: &Path) -> JavaServer {
    JavaServer::broker(
        cache,
        line,
        &format!(
            "brokerClusterName=jepsen\nbrokerName=jepsen\nbrokerIP1=127.0.0.1\nbrokerId=0\n\
             brokerRole=ASYNC_MASTER\nstorePathRootDir={0}\nstorePathCommitLog={0}/commitlog\n\
             mappedFileSizeCommitLog=8388608\nmappedFileSizeConsumeQueue=60000\n\
             maxHashSlotNum=50000\nmaxIndexNum=200000\ndiskMaxUsedSpaceRatio=99\n\
             cleanFileForciblyEnable=false\nfileReservedTime=876000\n",
            store.display()
        ),
    )
}

fn served_by_java(line: Line) {
    let Some(cache) = real_clients() else { return };
    let mut group = Running::start(&Options::default());
    let mut producer = group.producer();
    for i in 0..2000u32 {
        // Large enough together that the log has rolled over to another segment.
        let body = format!("{i}:{}", "x".repeat(usize::try_from(i * 7 % 9000).unwrap()));
        producer.send(TOPIC, i % QUEUES, &body);
    }
    let before = read(group.addresses()[group.leading()]);
    assert!(before.values().map(Vec::len).sum::<usize>() >= 2000);
    group.wait_until_even(PATIENCE).unwrap();
    for node in 0..3 {
        assert!(
            group.cluster().stop(node).unwrap(),
            "node {node} did not stop cleanly"
        );
    }
    for node in 0..3 {
        let store = group
            .dir
            .as_ref()
            .unwrap()
            .path()
            .join(format!("java-{node}"));
        copy(&group.nodes()[node].store, &store);
        let broker = start(cache, line, &store);
        assert_eq!(
            read(broker.address),
            before,
            "what Java serves from node {node}'s store"
        );
    }
}

/// What a stopped store has of the topic, from its first message on.
fn stored(root: &Path) -> BTreeMap<u32, Vec<(u64, String)>> {
    let config = StoreConfig {
        segment_bytes: 8 << 20,
        max_message_bytes: 1 << 20,
        consume_queue_file_bytes: 60_000,
        index_slots: 50_000,
        index_entries: 200_000,
        ..StoreConfig::new(root)
    };
    let store = rmq_store::open(&config, Arc::new(RealDisk)).unwrap();
    let reader = store.log.reader();
    let of_queue = |queue: u32| {
        let id = i32::try_from(queue).unwrap();
        let first = store.queues.min_offset(TOPIC, id);
        let count = store.queues.max_offset(TOPIC, id).0 - first.0;
        let count = usize::try_from(count).unwrap();
        let units = store.queues.units(TOPIC, id, first, count).unwrap();
        let units = units.into_iter().map(|unit| unit.expect("no holes"));
        let read = units.zip(first.0..).map(|(unit, at)| {
            let bytes = reader.slice(unit.phy, unit.size as usize).unwrap();
            let body = Record::decode(&bytes).unwrap().body.to_vec();
            (at, String::from_utf8(body).unwrap())
        });
        (queue, read.collect())
    };
    let found = (0..QUEUES).map(of_queue).collect();
    store.queues.stop().unwrap();
    store.log.close().unwrap();
    found
}

/// A leader's last message was in no other log and has left its own; retention has removed segments; one
/// node has its log from a snapshot.
#[test]
fn java_serves_what_truncation_retention_and_a_snapshot_left() {
    let Some(cache) = real_clients() else { return };
    let hours: Vec<String> = (0..24).map(|hour| format!("{hour:02}")).collect();
    let mut group = Running::start(&Options {
        more: format!(
            "fileReservedTime=0\ndeleteFileBatchMax=1\ndeleteWhen={}\n",
            hours.join(";")
        ),
        ..Options::default()
    });
    let body = |n: u32| format!("{n}:{}", "x".repeat(128 << 10));
    let keys = |n: u32| format!("KEYS\u{1}k{n}\u{2}");
    let send_all = |group: &Running, numbers: std::ops::Range<u32>| {
        let mut producer = group.producer();
        for n in numbers {
            producer.send_with(TOPIC, n % QUEUES, &keys(n), &body(n));
        }
    };
    send_all(&group, 0..200);
    let last = |group: &Running, node: usize| {
        status(group.addresses()[node]).ok()?["group"]["lastIndex"].as_u64()
    };
    // What the leader appends once it is alone is in no other log.
    let (cut, others) = until("a leader has what no other log has", || {
        let cut = group.leading();
        let others = [(cut + 1) % 3, (cut + 2) % 3];
        let mut client = Client::connect(group.addresses()[cut], Duration::from_secs(1)).ok()?;
        for node in others {
            group.cluster().kill(node).unwrap();
        }
        let before = last(&group, cut);
        let n = 1_000_000;
        // It is not acknowledged.
        drop(client.send_with(TOPIC, n % QUEUES, &keys(n), &body(n)));
        if before.is_some() && last(&group, cut) > before {
            return Some((cut, others));
        }
        // Its lease was over before it came to that.
        for node in others {
            group.cluster().start_node(node).unwrap();
        }
        None
    });
    group.cluster().kill(cut).unwrap();
    for node in others {
        group.cluster().start_node(node).unwrap();
    }
    send_all(&group, 200..230);
    group.cluster().start_node(cut).unwrap();
    let log = |group: &Running, node: usize| {
        let log = group.nodes()[node].store.with_extension("log");
        fs::read_to_string(log).unwrap()
    };
    until("the old leader's log is truncated", || {
        log(&group, cut).contains("log truncated").then_some(())
    });

    let first_file = |group: &Running, node: usize| {
        let log = group.nodes()[node].store.join("commitlog");
        let names = fs::read_dir(log).unwrap();
        let names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.len() == 20).min().unwrap()
    };
    // Whoever of them leads when the third one is filled.
    let leader = group.leading();
    let filled = others.into_iter().find(|node| *node != leader).unwrap();
    for node in (0..3).filter(|node| *node != filled) {
        until("old segments are removed", || {
            (first_file(&group, node) > "0".repeat(20)).then_some(())
        });
    }
    group.cluster().kill(filled).unwrap();
    group.wipe(filled).unwrap();
    group.cluster().start_node(filled).unwrap();
    until("a snapshot has arrived and the node votes", || {
        let arrived = log(&group, filled).contains("a snapshot is arriving");
        let id = status(group.addresses()[filled]).ok()?["group"]["node"].as_u64()?;
        let leads = group.leader().ok()?;
        let of_leader = status(group.addresses()[leads]).ok()?;
        let members = of_leader["group"]["members"].as_array()?.clone();
        let votes = members
            .iter()
            .any(|m| m["voter"] == true && m["node"].as_u64() == Some(id));
        (arrived && votes).then_some(())
    });
    send_all(&group, 230..250);
    group.wait_until_even(PATIENCE).unwrap();
    for node in 0..3 {
        assert!(group.cluster().stop(node).unwrap());
    }
    let dir = group.dir.as_ref().unwrap().path();
    for node in [cut, filled] {
        for line in [Line::V49, Line::V55] {
            let store = dir.join(format!("java-{node}-{line:?}"));
            copy(&group.nodes()[node].store, &store);
            let expected = stored(&store);
            let count: usize = expected.values().map(Vec::len).sum();
            assert!(count > 0);
            let mut firsts = expected.values().filter_map(|queue| queue.first());
            assert!(firsts.all(|(first, _)| *first > 0), "nothing was removed");
            let broker = start(cache, line, &store);
            assert!(
                read(broker.address) == expected,
                "what Java {line:?} serves of node {node}"
            );
        }
    }
}

#[test]
fn java_4_9_serves_our_store() {
    served_by_java(Line::V49);
}

#[test]
fn java_5_5_serves_our_store() {
    served_by_java(Line::V55);
}
