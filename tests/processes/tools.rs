//! The rest of Java's mqadmin: the commands of an operator's day beyond those of `admin`, both lines.

use std::net::SocketAddr;
use std::path::Path;

use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use tempfile::TempDir;

use crate::support::{Line, PATIENCE, Running, heartbeat, mqadmin, real_clients, until};

const TOPIC: &str = "tools_topic";
const GROUP: &str = "tools_group";

/// Java's mqadmin with a group of ours to talk to.
struct Mqadmin<'a> {
    cache: &'a Path,
    line: Line,
    home: TempDir,
    group: &'a Running,
}

impl Mqadmin<'_> {
    /// What a command prints that succeeds.
    fn done(&self, arguments: &[&str]) -> String {
        until(&format!("{arguments:?} succeeds"), || {
            mqadmin(
                self.cache,
                self.line,
                self.home.path(),
                self.group,
                arguments,
            )
        })
    }
}

/// The cells of the lines that start with `first`.
fn rows<'a>(output: &'a str, first: &str) -> Vec<Vec<&'a str>> {
    let cells = output.lines().map(|l| l.split_whitespace().collect());
    cells
        .filter(|cells: &Vec<&str>| cells.first() == Some(&first))
        .collect()
}

fn connect(address: SocketAddr) -> Client {
    Client::connect(address, PATIENCE).unwrap()
}

fn the_rest_of_the_tools(line: Line) {
    let Some(cache) = real_clients() else { return };
    let group = Running::start(&Options {
        // The leader stays the same.
        more: "raftElectionTimeoutMinMillis=10000\nraftElectionTimeoutMaxMillis=12000".to_owned(),
        ..Options::default()
    });
    let leader_at = group.leading();
    let leader = group.addresses()[leader_at];
    let follower = group.addresses()[(leader_at + 1) % 3].to_string();
    let mqadmin = Mqadmin {
        cache,
        line,
        home: TempDir::new().unwrap(),
        group: &group,
    };

    let queues = ["-r", "1", "-w", "1"];
    mqadmin.done(&[&["updateTopic", "-c", "jepsen", "-t", TOPIC], &queues[..]].concat());
    let mut client = connect(leader);
    for i in 0..10u32 {
        let sent = client.send(TOPIC, 0, &format!("tools{i}"));
        assert!(matches!(sent, Outcome::Ok(_)), "{sent:?}");
    }
    // Like any consumer, it tells every node of itself.
    let mut consumer: Vec<Client> = group.addresses().into_iter().map(connect).collect();
    for connection in &mut consumer {
        assert_eq!(connection.call(heartbeat(GROUP, TOPIC)).unwrap().code, 0);
    }
    assert_eq!(client.commit_offset(GROUP, TOPIC, 6), Outcome::Ok(()));

    // A node that does not lead has the leader answer.
    let stats = mqadmin.done(&["brokerConsumeStats", "-b", &follower]);
    let row = &rows(&stats, TOPIC)[0];
    assert_eq!(
        row[..7],
        [TOPIC, GROUP, "jepsen", "0", "10", "6", "4"],
        "{stats}"
    );
    let stats = mqadmin.done(&["statsAll", "-t", TOPIC]);
    assert_eq!(rows(&stats, TOPIC)[0][..3], [TOPIC, GROUP, "4"], "{stats}");

    let online = mqadmin.done(&["consumerConnection", "-g", GROUP]);
    assert_eq!(
        rows(&online, "tools_client")[0][2..],
        ["OTHER", "V4_9_8"],
        "{online}"
    );
    assert_eq!(rows(&online, TOPIC)[0], [TOPIC, "*"], "{online}");

    let units = mqadmin.done(&[
        "queryCq", "-t", TOPIC, "-q", "0", "-i", "8", "-c", "9", "-b", &follower,
    ]);
    assert!(units.contains("max: 10, min: 0"), "{units}");
    assert_eq!(units.matches("ConsumeQueueData{").count(), 2, "{units}");

    let dir = mqadmin.home.path().to_str().unwrap();
    let exported = mqadmin.done(&["exportConfigs", "-c", "jepsen", "-f", dir]);
    assert!(exported.contains("configs.json success"), "{exported}");

    // Online, then offline, when tools of 4.9 move the group themselves.
    let reset = |to: &str| mqadmin.done(&["resetOffsetByTime", "-g", GROUP, "-t", TOPIC, "-s", to]);
    let told = reset("0");
    assert_eq!(rows(&told, "jepsen"), [["jepsen", "0", "0"]], "{told}");
    assert_eq!(client.query_offset(GROUP, TOPIC).unwrap(), Some(0));
    drop(consumer);
    let told = reset("-1");
    assert_eq!(rows(&told, "jepsen")[0].last(), Some(&"10"), "{told}");
    let progress = mqadmin.done(&["consumerProgress", "-g", GROUP]);
    assert_eq!(
        rows(&progress, TOPIC)[0][1..6],
        ["jepsen", "0", "10", "10", "0"],
        "{progress}"
    );

    if line == Line::V55 {
        let file = mqadmin.home.path().join("topics.json");
        let topics = r#"[{"topicName":"list_a","readQueueNums":2,"writeQueueNums":2,"perm":6}]"#;
        std::fs::write(&file, topics).unwrap();
        let file = file.to_str().unwrap();
        mqadmin.done(&["updateTopicList", "-c", "jepsen", "-f", file]);
        let mut ask = Command::request(request::GET_TOPIC_CONFIG);
        ask.ext.insert("topic", "list_a");
        assert_eq!(connect(leader).call(ask).unwrap().code, 0);
    }
}

#[test]
fn the_rest_of_mqadmin_4_9() {
    the_rest_of_the_tools(Line::V49);
}

#[test]
fn the_rest_of_mqadmin_5_5() {
    the_rest_of_the_tools(Line::V55);
}
