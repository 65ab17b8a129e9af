//! The way back: a Java broker, started as a plain master on a copy of our store after a clean stop,
//! serves every message.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;

use crate::support::{JavaServer, Line, Running, real_clients};

const TOPIC: &str = "way_back";
const QUEUES: u32 = 4;

/// All messages of the topic by queue, as a broker serves them.
fn read(client: &mut Client) -> BTreeMap<u32, Vec<(u64, String)>> {
    (0..QUEUES)
        .map(|q| (q, client.read_queue(TOPIC, q).unwrap()))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn served_by_java(line: Line) {
    let Some(cache) = real_clients() else { return };
    let mut group = Running::start(&Options::default());
    let leader = group.leader().unwrap();
    let patience = Duration::from_secs(30);
    let mut client = Client::connect(group.addresses()[leader], patience).unwrap();
    for i in 0..2000u32 {
        // Large enough together that the log has rolled over to another segment.
        let body = format!("{i}:{}", "x".repeat(usize::try_from(i * 7 % 9000).unwrap()));
        assert!(
            matches!(client.send(TOPIC, i % QUEUES, &body), Outcome::Ok(_)),
            "send {i}"
        );
    }
    let before = read(&mut client);
    assert_eq!(before.values().map(Vec::len).sum::<usize>(), 2000);
    drop(client);
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
        let broker = JavaServer::broker(
            cache,
            line,
            &format!(
                "brokerClusterName=jepsen\nbrokerName=jepsen\nbrokerIP1=127.0.0.1\nbrokerId=0\n\
                 brokerRole=ASYNC_MASTER\nstorePathRootDir={0}\nstorePathCommitLog={0}/commitlog\n\
                 mappedFileSizeCommitLog=8388608\nmappedFileSizeConsumeQueue=60000\n\
                 maxHashSlotNum=50000\nmaxIndexNum=200000\ndiskMaxUsedSpaceRatio=99\n",
                store.display()
            ),
        );
        let mut client = Client::connect(broker.address, patience).unwrap();
        assert_eq!(
            read(&mut client),
            before,
            "what Java serves from node {node}'s store"
        );
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
