//! Java's own mqadmin, both lines, against a group that holds known messages: no exception, right numbers.

use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use rmq_wire::body::TopicConfig;
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use rmq_wire::header::TopicOnly;
use tempfile::TempDir;

use crate::support::{Line, PATIENCE, Running, heartbeat, mqadmin, real_clients, rmq, text, until};

const TOPIC: &str = "admin_topic";
const GROUP: &str = "admin_group";

/// The cells of the first line that starts with `first`.
fn row<'a>(output: &'a str, first: &str) -> Vec<&'a str> {
    let line = output
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>());
    let found = line.into_iter().find(|cells| cells.first() == Some(&first));
    found.unwrap_or_else(|| panic!("no line starts with {first}:\n{output}"))
}

/// The cells of the line that has this cell.
fn row_of<'a>(output: &'a str, cell: &str) -> Vec<&'a str> {
    let mut rows = output
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>());
    let found = rows.find(|cells| cells.contains(&cell));
    found.unwrap_or_else(|| panic!("no line has {cell}:\n{output}"))
}

fn official_tools(line: Line) {
    let Some(cache) = real_clients() else { return };
    // Further names are in every route, and nothing is counted by them. The leader stays the same.
    let group = Running::start(&Options {
        more: "groupAliasRoutes=true\n\
               raftElectionTimeoutMinMillis=10000\nraftElectionTimeoutMaxMillis=12000"
            .to_owned(),
        ..Options::default()
    });
    let leader = group.addresses()[group.leading()];
    let home = TempDir::new().unwrap();
    let mqadmin = |arguments: &[&str]| {
        until(&format!("{arguments:?} succeeds"), || {
            mqadmin(cache, line, home.path(), &group, arguments)
        })
    };

    let created = mqadmin(&[
        "updateTopic",
        "-c",
        "jepsen",
        "-t",
        TOPIC,
        "-r",
        "2",
        "-w",
        "2",
    ]);
    assert!(
        created.contains(&format!("create topic to {leader} success")),
        "{created}"
    );
    assert_eq!(created.matches("create topic to").count(), 1, "{created}");
    let mut client = Client::connect(leader, PATIENCE).unwrap();
    for i in 0..10u32 {
        let sent = client.send(TOPIC, u32::from(i >= 7), &format!("admin{i}"));
        assert!(matches!(sent, Outcome::Ok(_)), "{sent:?}");
    }

    let list = mqadmin(&["clusterList"]);
    let addresses = group
        .addresses()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    for address in &addresses {
        let line = list.lines().find(|l| l.contains(address.as_str()));
        let cells: Vec<&str> = line
            .expect("every node is listed")
            .split_whitespace()
            .collect();
        assert_eq!(cells[..2], ["jepsen", "jepsen"]);
        assert_eq!(cells[2] == "0", *address == leader.to_string(), "{list}");
    }
    let listed = list.lines().filter(|l| l.starts_with("jepsen")).count();
    assert_eq!(listed, 3, "{list}");

    assert!(mqadmin(&["topicList"]).lines().any(|l| l.trim() == TOPIC));

    let route = mqadmin(&["topicRoute", "-t", TOPIC]);
    let compact: String = route.split_whitespace().collect();
    assert!(compact.contains("\"readQueueNums\":2"), "{route}");
    assert!(addresses.iter().all(|a| compact.contains(a)), "{route}");
    for name in ["jepsen@1", "jepsen@2"] {
        assert!(compact.contains(name), "{route}");
    }
    // The two queues over and over, which a tool gives back where it changes something else.
    assert!(compact.contains("\"writeQueueNums\":78"), "{route}");
    for (perm, changed) in [("4", "from 6 to 4"), ("6", "from 4 to 6")] {
        let said = mqadmin(&["updateTopicPerm", "-c", "jepsen", "-t", TOPIC, "-p", perm]);
        assert!(said.contains(changed), "{said}");
        let mut client = Client::connect(leader, PATIENCE).unwrap();
        let only = TopicOnly {
            topic: TOPIC.to_owned(),
        };
        let asked = Command::request(request::GET_TOPIC_CONFIG).with_header(&only);
        let topic: TopicConfig = client.call(asked).unwrap().json().unwrap();
        assert_eq!((topic.read_queue_nums, topic.write_queue_nums), (2, 2));
    }

    let status = mqadmin(&["topicStatus", "-t", TOPIC]);
    let queues: Vec<Vec<&str>> = status
        .lines()
        .filter(|l| l.starts_with("jepsen"))
        .map(|l| l.split_whitespace().take(4).collect())
        .collect();
    assert_eq!(
        queues,
        [["jepsen", "0", "0", "7"], ["jepsen", "1", "0", "3"]],
        "{status}"
    );

    let broker = mqadmin(&["brokerStatus", "-b", &leader.to_string()]);
    assert_eq!(
        row(&broker, "brokerVersionDesc")
            .last()
            .map(|v| v.starts_with('V')),
        Some(true)
    );
    let end: u64 = row(&broker, "commitLogMaxOffset")
        .last()
        .unwrap()
        .parse()
        .unwrap();
    assert!(end > 0, "{broker}");

    let by_key = mqadmin(&["queryMsgByKey", "-t", TOPIC, "-k", "admin8"]);
    assert_eq!(
        by_key.lines().filter(|l| l.contains(" 1 ")).count(),
        1,
        "{by_key}"
    );

    // the offset message id of the first record of queue 1, from the store host and its position
    let id = client.message_id(TOPIC, 1, 0).unwrap();
    let topic: &[&str] = if line == Line::V55 {
        &["-t", TOPIC]
    } else {
        &[]
    };
    let by_id = mqadmin(&[&["queryMsgById", "-i", &id], topic].concat());
    for want in [
        format!("Topic: {TOPIC}"),
        "Queue Offset: 0".into(),
        "Queue ID: 1".into(),
    ] {
        let folded = by_id
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "));
        assert!(
            folded.into_iter().any(|l| l == want),
            "{want} is not in {by_id}"
        );
    }

    // Like any consumer, it tells every node of itself; that is what makes its retry topic.
    let connect = |address| Client::connect(address, PATIENCE).unwrap();
    let mut consumer: Vec<Client> = group.addresses().into_iter().map(connect).collect();
    for connection in &mut consumer {
        assert_eq!(connection.call(heartbeat(GROUP, TOPIC)).unwrap().code, 0);
    }
    assert_eq!(client.commit_offset(GROUP, TOPIC, 5), Outcome::Ok(()));
    let progress = mqadmin(&["consumerProgress", "-g", GROUP]);
    assert_eq!(
        row(&progress, TOPIC)[..6],
        [TOPIC, "jepsen", "0", "7", "5", "2"],
        "{progress}"
    );
    mqadmin(&["consumerProgress"]);
    let stats = mqadmin(&["statsAll", "-t", TOPIC]);
    let shown = stats.lines().filter(|l| l.starts_with(TOPIC)).count();
    assert_eq!(shown, 1, "{stats}");

    // A producer may take any of the names.
    let sent = mqadmin(&["sendMessage", "-t", TOPIC, "-p", "by a producer", "-k", "K"]);
    let cells = row_of(&sent, "SEND_OK");
    assert!(cells[0].starts_with("jepsen"), "{sent}");
    let id = cells.last().expect("a message id");
    let found = mqadmin(&["queryMsgByUniqueKey", "-t", TOPIC, "-i", id]);
    assert_eq!(found.matches("Queue Offset:").count(), 1, "{found}");
    let by_key = mqadmin(&["queryMsgByKey", "-t", TOPIC, "-k", "K"]);
    let found = by_key.lines().filter(|l| l.starts_with(id)).count();
    assert_eq!(found, 1, "{by_key}");

    let deleted = mqadmin(&["deleteTopic", "-c", "jepsen", "-t", TOPIC]);
    assert!(deleted.contains("success"), "{deleted}");
    assert!(!mqadmin(&["topicList"]).lines().any(|l| l.trim() == TOPIC));
}

#[test]
fn mqadmin_4_9() {
    official_tools(Line::V49);
}

#[test]
fn mqadmin_5_5() {
    official_tools(Line::V55);
}

#[test]
fn raft_status_shows_every_member_and_its_lag() {
    let group = Running::start(&Options::default());
    group.wait_until_even(PATIENCE).unwrap();
    let shown = until("a leader and two followers", || {
        let output = std::process::Command::new(rmq())
            .args(["admin", "raftStatus", "-n", &group.namesrv.to_string()])
            .output()
            .unwrap();
        let shown = text(&output);
        let roles = |role| {
            let lines = shown.lines();
            lines
                .filter(|l| l.split_whitespace().nth(1) == Some(role))
                .count()
        };
        let is_whole = (roles("leader"), roles("follower")) == (1, 2);
        (output.status.success() && is_whole).then_some(shown)
    });
    for address in group.addresses() {
        assert!(shown.contains(&address.to_string()), "{shown}");
    }
}
