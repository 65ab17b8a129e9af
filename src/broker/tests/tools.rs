//! What tools ask of the node, of topics and of groups.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::atomic::Ordering;

use flate2::read::GzDecoder;
use rmq_wire::body::{
    BrokerStatsData, ConsumeStats, ConsumeStatsList, ConsumerOffsetSerializeWrapper, DataVersion,
    DelayOffsetSerializeWrapper, GroupList, KvTable, MessageQueue, QueryConsumeQueueResponse,
    QueryConsumeTimeSpanBody, QueryCorrectionOffsetBody, SubscriptionGroupConfig, TopicList,
    TopicStatsTable,
};
use rmq_wire::header::{
    CloneGroupOffset, GetBrokerConfigResponse, GetBrokerConsumeStats, GetConsumeStats, GroupTopic,
    QueryConsumeQueue, QueryCorrectionOffset, TopicOnly, UpdateConsumerOffset, ViewBrokerStatsData,
};
use serde::de::DeserializeOwned;

use super::*;
use crate::broker::NodeStatus;
use crate::broker::testing::now_ms;
use crate::config::BrokerConfig;
use crate::raft::MembersError;

/// A node with three messages in queue 0 of `T` and one in queue 1; group `g` has pulled queue 0 up
/// to its end, and stored position 2 in it.
async fn busy() -> Node {
    let node = Node::with(BrokerConfig {
        store_path_root_dir: std::env::temp_dir(),
        ..BrokerConfig::default()
    })
    .await;
    for _ in 0..3 {
        node.sent(send("TAGS\x01a", b"123")).await;
    }
    node.sent(send_with(|header| header.queue_id = 1)).await;
    node.pulled(&pull(0)).await;
    node.store_offset("g", 0, 2).await;
    node
}

impl Node {
    async fn store_offset(&self, group: &str, queue_id: i32, offset: i64) {
        let header = UpdateConsumerOffset {
            consumer_group: group.to_owned(),
            topic: "T".to_owned(),
            queue_id,
            commit_offset: offset,
        };
        let commit = Command::request(request::UPDATE_CONSUMER_OFFSET).with_header(&header);
        assert_eq!(self.told(commit).await.code, response::SUCCESS);
    }

    /// The body of the successful answer.
    async fn shown<B: DeserializeOwned>(&self, command: Command) -> B {
        let answer = self.told(command).await;
        assert_eq!(answer.code, response::SUCCESS, "{answer:?}");
        answer.json().unwrap()
    }
}

pub(super) fn queue(queue_id: i32) -> MessageQueue {
    MessageQueue {
        broker_name: BrokerConfig::default().broker_name,
        queue_id,
        topic: "T".to_owned(),
    }
}

fn of_topic(code: i32, topic: &str) -> Command {
    Command::request(code).with_header(&TopicOnly {
        topic: topic.to_owned(),
    })
}

fn of_group(code: i32, group: &str) -> Command {
    Command::request(code).with_header(&GroupTopic {
        group: group.to_owned(),
        topic: Some("T".to_owned()),
    })
}

fn consume_stats(group: &str) -> GetConsumeStats {
    GetConsumeStats {
        consumer_group: group.to_owned(),
        ..GetConsumeStats::default()
    }
}

/// What the names of the numbers of delay levels begin with.
const LEVEL: &str = "scheduleMessageOffset_";

/// Names of members in a text that fastjson wrote, wherever they stand.
fn members(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut parts = text.split('"').skip(1);
    while let (Some(name), Some(rest)) = (parts.next(), parts.next()) {
        if rest.starts_with(':') {
            // The rest of these names is a directory, or a delay level.
            let open = ["commitLogDiskRatio_", LEVEL];
            let begin = open.iter().find(|begin| name.starts_with(**begin));
            names.insert((*begin.unwrap_or(&name)).to_owned());
        }
    }
    names
}

/// The answers with this code that a real broker gave to a real mqadmin; none, with words, where the
/// captures are not at hand.
fn captured(version: &str, code: i32) -> Vec<String> {
    let name = format!("broker-{version}.mqadmin-{version}.jsonl.gz");
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/fixtures/wire")
        .join(name);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) => {
            let ci = std::env::var("CI");
            assert_ne!(ci.as_deref(), Ok("true"), "{}: {error}", path.display());
            println!("skipped: {}: {error}", path.display());
            return Vec::new();
        }
    };
    let mut asked = BTreeSet::new();
    let mut answers = Vec::new();
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let header = &line["header"];
        let id = (line["conn"].as_i64(), header["opaque"].as_i64());
        if line["dir"] == "c2s" && header["code"] == code {
            asked.insert(id);
        } else if line["dir"] == "s2c" && asked.remove(&id) && header["code"] == 0 {
            let hex = line["hex"].as_str().unwrap();
            let body = hex.len() - 2 * line["bodyLen"].as_u64().unwrap() as usize;
            let bytes = (body..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
            answers.push(String::from_utf8(bytes.collect()).unwrap());
        }
    }
    assert!(!answers.is_empty(), "{code} of {version}");
    answers
}

/// Holds an answer to what both lines of tools got from a real broker: no member may be missing.
fn assert_has_members_of_java(answer: &Command, code: i32) {
    let ours = members(std::str::from_utf8(&answer.body).unwrap());
    for version in ["4.9.7", "5.5.0"] {
        for body in captured(version, code) {
            let java = members(&body);
            let missing: Vec<&String> = java
                .difference(&ours)
                // Levels that are in use; and the pool for POP's acknowledgements, of which tools
                // show that there is none.
                .filter(|name| *name != LEVEL && !name.starts_with("ackThreadPool"))
                .collect();
            assert!(missing.is_empty(), "{version} {code}: {missing:?}");
        }
    }
}

#[tokio::test]
async fn a_node_tells_what_it_did() {
    let node = busy().await;
    let ask = Command::request(request::GET_BROKER_RUNTIME_INFO);
    let answer = node.told(ask.clone()).await;
    let KvTable { table } = answer.json().unwrap();
    let number = |key: &str| table[key].parse::<i64>().unwrap();
    assert_eq!(number("putMessageTimesTotal"), 4);
    assert_eq!(number("msgPutTotalTodayNow"), 4);
    assert_eq!(number("msgGetTotalTodayNow"), 3);
    assert_eq!(number("putMessageFailedTimes"), 0);
    let bytes = number("putMessageSizeTotal");
    let average: f64 = table["putMessageAverageSize"].parse().unwrap();
    assert!(bytes > 4 * 91, "{bytes}");
    assert_eq!(average, bytes as f64 / 4.0);
    let confirm = node.replica.reader.confirm_offset();
    assert_eq!(number("commitLogMaxOffset"), confirm.as_i64());
    assert_eq!(number("commitLogMinOffset"), 0);
    assert_eq!(number("dispatchBehindBytes"), 0);
    let age = now_ms() - number("earliestMessageTimeStamp");
    assert!((0..60_000).contains(&age), "{age}");
    assert_eq!(table["brokerVersionDesc"], "V4_9_8");
    assert_eq!(table["brokerActive"], "true");
    for key in [
        "putTps",
        "getTransferedTps",
        "getTransferredTps",
        "getTotalTps",
    ] {
        let rates = table[key].split(' ').map(str::parse::<f64>);
        assert_eq!(rates.filter(Result::is_ok).count(), 3, "{key}");
    }
    assert_has_members_of_java(&answer, request::GET_BROKER_RUNTIME_INFO);

    // It is about the node, so whoever is asked answers.
    node.replica.follow(None);
    let KvTable { table } = node.shown(ask).await;
    assert_eq!(table["brokerActive"], "false");
}

#[tokio::test]
async fn failed_puts_and_vain_looks_count_as_such() {
    let node = Node::start().await;
    node.sent(send("", b"")).await;
    *node.replica.failure.lock().unwrap() = Some(crate::broker::ProposeError::Unknown);
    node.told(send("", b"")).await;
    node.pulled(&pull(0)).await;
    node.told(pull_request(&pull(1))).await;
    let totals = node.broker.stats.totals.now();
    assert_eq!((totals.put_messages, totals.puts_failed), (1, 1));
    assert_eq!((totals.got_messages, totals.gets_found), (1, 1));
    assert!(totals.gets_missed >= 1);
}

#[tokio::test]
async fn delayed_messages_show_how_far_their_levels_are() {
    let node = Node::start().await;
    node.sent(send("DELAY\x011", b"late")).await;
    node.pulled(&pull(0)).await;
    let ask = Command::request(request::GET_ALL_DELAY_OFFSET);
    // The progress is stored behind the message.
    until_ok("the progress is stored", async || {
        let delays: DelayOffsetSerializeWrapper = node.shown(ask.clone()).await;
        match delays.offset_table == [(1, 1)].into() {
            true => Ok(()),
            false => Err(delays.offset_table),
        }
    })
    .await;
    let KvTable { table } = node
        .shown(Command::request(request::GET_BROKER_RUNTIME_INFO))
        .await;
    assert_eq!(table["scheduleMessageOffset_1"], "1,1");
}

#[tokio::test]
async fn a_node_tells_how_it_sees_its_group() {
    let node = busy().await;
    node.replica.follow(None);
    let status: NodeStatus = node.shown(Command::request(request::RAFT_STATUS)).await;
    assert_eq!(status.self_id, status.broker_name);
    assert_eq!(status.pid, std::process::id());
    let confirm = node.replica.reader.confirm_offset();
    assert_eq!(status.confirm_offset, confirm.0);
    // Numbers that no signed integer holds come through.
    assert_eq!(
        (status.group.node, status.group.applied_index),
        (u64::MAX, Some(3))
    );
    assert_eq!((status.group.last_index, status.group.leader), (None, None));
}

#[tokio::test]
async fn an_operator_changes_the_group_and_is_told_what_came_of_it() {
    let node = Node::start().await;
    let steer = |code, id: Option<&str>| {
        let mut command = Command::request(code);
        if let Some(id) = id {
            command.ext.insert("node", id);
        }
        let node = &node;
        async move {
            let answer = node.told(command).await;
            (answer.code, answer.remark.unwrap_or_default())
        }
    };
    for (code, done) in [
        (request::RAFT_ADD_NODE, "Add n3"),
        (request::RAFT_PROMOTE, "Promote n3"),
        (request::RAFT_REMOVE_NODE, "Remove n3"),
    ] {
        let answer = steer(code, Some("n3")).await;
        assert_eq!(answer, (response::SUCCESS, done.to_owned()));
        for bad in [None, Some("3"), Some("n99999")] {
            assert_eq!(steer(code, bad).await.0, response::SYSTEM_ERROR);
        }
        for (refusal, code_of_it) in [
            (
                MembersError::Later("why".into()),
                response::SERVICE_NOT_AVAILABLE,
            ),
            (MembersError::Refused("why".into()), response::SYSTEM_ERROR),
        ] {
            *node.replica.members_refusal.lock().unwrap() = Some(refusal);
            assert_eq!(
                steer(code, Some("n3")).await,
                (code_of_it, "why".to_owned())
            );
        }
        *node.replica.members_refusal.lock().unwrap() = None;
    }
    let answer = steer(request::RAFT_TRANSFER_LEADER, Some("n2")).await;
    assert_eq!(answer, (response::SUCCESS, "n2 leads".to_owned()));
    assert!(!node.broker.is_serving());

    // Any node answers this, for there is no leader when it is needed.
    let mut recover = Command::request(request::RAFT_RECOVER);
    let answer = node.told(recover.clone()).await;
    assert_eq!(answer.code, response::SYSTEM_ERROR);
    recover.ext.insert("withoutAbsent", "true");
    let answer = node.told(recover).await;
    assert_eq!(answer.code, response::SUCCESS);
    assert!(answer.remark.unwrap().starts_with("n1 has the longest log"));

    // A leader that is to go hands over, and is removed by its successor.
    node.replica.become_leader(2);
    *node.replica.members_refusal.lock().unwrap() = Some(MembersError::Leads);
    let (code, remark) = steer(request::RAFT_REMOVE_NODE, Some("n0")).await;
    assert_eq!(code, response::SERVICE_NOT_AVAILABLE);
    assert!(
        remark.contains("n0 has handed leadership to n1"),
        "{remark}"
    );
    assert!(!node.broker.is_serving());
}

#[tokio::test]
async fn the_configuration_is_shown_and_kept() {
    let node = Node::start().await;
    let answer = node
        .told(Command::request(request::GET_BROKER_CONFIG))
        .await;
    let GetBrokerConfigResponse { version } = answer.header().unwrap();
    let version: DataVersion = rmq_wire::json::from_str(&version).unwrap();
    assert_eq!(version.timestamp, node.broker.stats.boot_ms);
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let lines: BTreeSet<&str> = text.lines().collect();
    assert!(lines.contains("maxMessageSize=1024"), "{text}");
    for (key, value) in node.broker.config.get_all() {
        assert!(lines.contains(&*format!("{key}={value}")), "{key}");
    }
    assert!(lines.contains("useTLS=false"), "{text}");

    let change = Command::request(request::UPDATE_BROKER_CONFIG);
    let refused = node.told(change.with_body("maxMessageSize=1".into())).await;
    assert_eq!(refused.code, response::NO_PERMISSION);
    assert!(refused.remark.unwrap().contains("file"));
}

#[tokio::test]
async fn queues_of_a_topic_are_shown_with_their_bounds() {
    let node = busy().await;
    let ask = of_topic(request::GET_TOPIC_STATS_INFO, "T");
    let answer = node.told(ask).await;
    let stats: TopicStatsTable = answer.json().unwrap();
    assert_eq!(stats.offset_table.len(), 2);
    let first = stats.offset_table[&queue(0)];
    assert_eq!((first.min_offset, first.max_offset), (0, 3));
    let age = now_ms() - first.last_update_timestamp;
    assert!((0..60_000).contains(&age), "{age}");
    assert_eq!(stats.offset_table[&queue(1)].max_offset, 1);
    // Four messages, in no less than the ten seconds between two samples.
    assert!(
        stats
            .topic_put_tps
            .is_some_and(|tps| tps > 0.0 && tps <= 0.4)
    );
    assert_has_members_of_java(&answer, request::GET_TOPIC_STATS_INFO);

    let empty = of_topic(request::GET_TOPIC_STATS_INFO, "SELF_TEST_TOPIC");
    let stats: TopicStatsTable = node.shown(empty).await;
    let only = stats.offset_table.values().next().unwrap();
    assert_eq!((only.max_offset, only.last_update_timestamp), (0, 0));

    let unknown = node
        .told(of_topic(request::GET_TOPIC_STATS_INFO, "U"))
        .await;
    assert_eq!(unknown.code, response::TOPIC_NOT_EXIST);
}

#[tokio::test]
async fn groups_are_shown_with_how_far_they_are() {
    let node = busy().await;
    let ask =
        |header: &GetConsumeStats| Command::request(request::GET_CONSUME_STATS).with_header(header);
    let answer = node.told(ask(&consume_stats("g"))).await;
    let stats: ConsumeStats = answer.json().unwrap();
    let first = stats.offset_table[&queue(0)];
    assert_eq!((first.broker_offset, first.consumer_offset), (3, 2));
    assert_eq!(first.pull_offset, Some(3));
    assert!(first.last_timestamp > 0);
    let second = stats.offset_table[&queue(1)];
    assert_eq!((second.broker_offset, second.consumer_offset), (1, 0));
    assert_eq!((second.pull_offset, second.last_timestamp), (Some(0), 0));
    assert!(stats.consume_tps > 0.0 && stats.consume_tps <= 0.3);
    assert_has_members_of_java(&answer, request::GET_CONSUME_STATS);

    let none: ConsumeStats = node.shown(ask(&consume_stats("h"))).await;
    assert_eq!(none, ConsumeStats::default());
    let by_topic = GetConsumeStats {
        topic: Some("T".to_owned()),
        ..consume_stats("h")
    };
    let stats: ConsumeStats = node.shown(ask(&by_topic)).await;
    assert_eq!(stats.offset_table.len(), 2);
    let by_list = GetConsumeStats {
        topic_list: Some("T; SELF_TEST_TOPIC;U".to_owned()),
        ..consume_stats("h")
    };
    let stats: ConsumeStats = node.shown(ask(&by_list)).await;
    assert_eq!(stats.offset_table.len(), 3);
}

#[tokio::test]
async fn all_groups_are_shown_at_once() {
    let node = busy().await;
    let ask = |is_order| {
        Command::request(request::GET_BROKER_CONSUME_STATS)
            .with_header(&GetBrokerConsumeStats { is_order })
    };
    let all: ConsumeStatsList = node.shown(ask(false)).await;
    assert_eq!((all.total_diff, all.total_inflight_diff), (2, Some(1)));
    let groups = node.broker.meta.read().groups.len();
    assert_eq!(all.consume_stats_list.len(), groups);
    let of_g = all
        .consume_stats_list
        .iter()
        .find_map(|group| group.get("g"));
    assert_eq!(of_g.unwrap()[0].offset_table.len(), 2);
    let ordered: ConsumeStatsList = node.shown(ask(true)).await;
    assert_eq!(ordered.total_diff, 0);
}

#[tokio::test]
async fn times_of_a_group_are_shown_by_queue() {
    let node = busy().await;
    let ask = of_group(request::QUERY_CONSUME_TIME_SPAN, "g");
    let spans: QueryConsumeTimeSpanBody = node.shown(ask).await;
    let [first, second] = &spans.consume_time_span_set[..] else {
        panic!("{spans:?}")
    };
    assert_eq!(first.message_queue, Some(queue(0)));
    assert!(first.min_time_stamp > 0 && first.min_time_stamp <= first.consume_time_stamp);
    assert!(first.consume_time_stamp <= first.max_time_stamp);
    assert!((0..60_000).contains(&first.delay_time));
    assert_eq!(second.consume_time_stamp, second.min_time_stamp);
    let unknown = GroupTopic {
        group: "g".to_owned(),
        topic: Some("U".to_owned()),
    };
    let ask = Command::request(request::QUERY_CONSUME_TIME_SPAN).with_header(&unknown);
    assert_eq!(node.told(ask).await.code, response::TOPIC_NOT_EXIST);
}

#[tokio::test]
async fn who_consumes_what_is_listed() {
    let node = busy().await;
    let ask = of_topic(request::QUERY_TOPIC_CONSUME_BY_WHO, "T");
    let answer = node.told(ask).await;
    let groups: GroupList = answer.json().unwrap();
    assert_eq!(groups.group_list, ["g".to_owned()].into());
    assert_has_members_of_java(&answer, request::QUERY_TOPIC_CONSUME_BY_WHO);

    let topics: TopicList = node
        .shown(of_group(request::QUERY_TOPICS_BY_CONSUMER, "g"))
        .await;
    assert_eq!(topics.topic_list, ["T".to_owned()].into());

    let system: TopicList = node
        .shown(Command::request(request::GET_SYSTEM_TOPIC_LIST_FROM_BROKER))
        .await;
    for topic in ["TBW102", "SELF_TEST_TOPIC", "DefaultCluster_REPLY_TOPIC"] {
        assert!(system.topic_list.contains(topic), "{topic}");
    }
    assert!(!system.topic_list.contains("T"));

    let config: SubscriptionGroupConfig = node
        .shown(of_group(request::GET_SUBSCRIPTIONGROUP_CONFIG, "g"))
        .await;
    assert_eq!(config.group_name, "g");
    let unknown = of_group(request::GET_SUBSCRIPTIONGROUP_CONFIG, "h");
    let code = node.told(unknown).await.code;
    assert_eq!(code, response::SUBSCRIPTION_GROUP_NOT_EXIST);
}

#[tokio::test]
async fn stored_positions_are_shown_compared_and_copied() {
    let node = busy().await;
    node.store_offset("h", 0, 1).await;
    node.store_offset("h", 1, 1).await;
    let all = Command::request(request::GET_ALL_CONSUMER_OFFSET);
    let offsets: ConsumerOffsetSerializeWrapper = node.shown(all.clone()).await;
    assert_eq!(offsets.offset_table["T@g"], [(0, 2)].into());

    let correction = |compare: &str, but: &str| {
        Command::request(request::QUERY_CORRECTION_OFFSET).with_header(&QueryCorrectionOffset {
            filter_groups: Some(but.to_owned()),
            compare_group: compare.to_owned(),
            topic: "T".to_owned(),
        })
    };
    let lowest: QueryCorrectionOffsetBody = node.shown(correction("x", "")).await;
    assert_eq!(lowest.correction_offsets, [(0, 1), (1, 1)].into());
    let lowest: QueryCorrectionOffsetBody = node.shown(correction("x", "x, h")).await;
    assert_eq!(lowest.correction_offsets, [(0, 2)].into());
    let lowest: QueryCorrectionOffsetBody = node.shown(correction("h", "h")).await;
    assert_eq!(lowest.correction_offsets, [(0, i64::MAX)].into());

    let copy = |topic: Option<&str>, to: &str| {
        Command::request(request::CLONE_GROUP_OFFSET).with_header(&CloneGroupOffset {
            src_group: "h".to_owned(),
            dest_group: to.to_owned(),
            topic: topic.map(str::to_owned),
            offline: false,
        })
    };
    assert_eq!(node.told(copy(None, "i")).await.code, response::SUCCESS);
    assert_eq!(
        node.told(copy(Some("U"), "j")).await.code,
        response::SUCCESS
    );
    assert_eq!(
        node.told(copy(None, "a/b")).await.code,
        response::SYSTEM_ERROR
    );
    let offsets: ConsumerOffsetSerializeWrapper = node.shown(all).await;
    assert_eq!(offsets.offset_table["T@i"], [(0, 1), (1, 1)].into());
    assert!(!offsets.offset_table.contains_key("T@j"));
}

#[tokio::test]
async fn what_went_on_lately_is_told_by_name() {
    let node = busy().await;
    let ask = |name: &str, key: &str| {
        Command::request(request::VIEW_BROKER_STATS_DATA).with_header(&ViewBrokerStatsData {
            stats_name: name.to_owned(),
            stats_key: key.to_owned(),
        })
    };
    let cluster = &node.broker.config.broker_cluster_name;
    for (name, key, sum, average) in [
        ("TOPIC_PUT_NUMS", "T", 4, 1.0),
        ("GROUP_GET_NUMS", "T@g", 3, 3.0),
        ("BROKER_PUT_NUMS", cluster, 4, 1.0),
        ("BROKER_GET_NUMS", cluster, 3, 3.0),
    ] {
        let data: BrokerStatsData = node.shown(ask(name, key)).await;
        for item in [data.stats_minute, data.stats_hour, data.stats_day] {
            assert_eq!((item.sum, item.avgpt), (sum, average), "{name}");
            assert!(item.tps > 0.0);
        }
    }
    let size: BrokerStatsData = node.shown(ask("TOPIC_PUT_SIZE", "T")).await;
    let total = node.broker.stats.totals.now().put_bytes;
    assert_eq!(size.stats_day.sum as u64, total);
    for (name, key) in [
        ("TOPIC_PUT_NUMS", "U"),
        ("NO_SUCH", "T"),
        ("BROKER_PUT_NUMS", "T"),
    ] {
        let answer = node.told(ask(name, key)).await;
        assert_eq!(answer.code, response::SYSTEM_ERROR);
        assert_eq!(
            answer.remark.unwrap(),
            format!("The stats <{name}> <{key}> not exist")
        );
    }
}

#[tokio::test]
async fn units_of_a_queue_are_shown() {
    let node = busy().await;
    let ask = |queue_id, index| {
        Command::request(request::QUERY_CONSUME_QUEUE).with_header(&QueryConsumeQueue {
            topic: "T".to_owned(),
            queue_id,
            index,
            count: 5,
            consumer_group: Some("g".to_owned()),
        })
    };
    let shown: QueryConsumeQueueResponse = node.shown(ask(0, 1)).await;
    assert_eq!((shown.min_queue_index, shown.max_queue_index), (0, 3));
    assert_eq!(shown.queue_data.len(), 2);
    for unit in &shown.queue_data {
        assert_eq!(unit.tags_code, rmq_wire::record::tags_code("a"));
        let at = rmq_store::PhyOffset::from_i64(unit.physic_offset).unwrap();
        let record = node.replica.reader.record_at(at).unwrap();
        assert_eq!(record.len(), unit.physic_size as usize);
    }
    assert_eq!(shown.filter_data.as_deref(), Some("g@T is not online!"));
    for (queue_id, index) in [(9, 0), (0, 3), (0, -1), (0, i64::MAX)] {
        let code = node.told(ask(queue_id, index)).await.code;
        assert_eq!(code, response::SYSTEM_ERROR);
    }
}

#[tokio::test]
async fn nothing_is_said_to_be_cleaned_that_was_not() {
    let node = Node::start().await;
    for code in [
        request::CLEAN_EXPIRED_CONSUMEQUEUE,
        request::CLEAN_UNUSED_TOPIC,
    ] {
        let answer = node.told(Command::request(code)).await;
        assert_eq!(answer.code, response::REQUEST_CODE_NOT_SUPPORTED);
        assert!(answer.remark.unwrap().contains("nothing was removed"));
    }
    let removals = || node.replica.removals.load(Ordering::Relaxed);
    assert_eq!(removals(), 0);
    let command = Command::request(request::DELETE_EXPIRED_COMMITLOG);
    assert_eq!(node.told(command).await.code, response::SUCCESS);
    assert_eq!(removals(), 1);
}

#[test]
fn members_are_found_in_javas_json() {
    let text = r#"{"a":{{"b":"c","d":1}:{"e":[{"f":"x:y"}]}},"commitLogDiskRatio_/x":"1",0:1}"#;
    let found: Vec<String> = members(text).into_iter().collect();
    assert_eq!(found, ["a", "b", "commitLogDiskRatio_", "d", "e", "f"]);
}

#[tokio::test]
async fn an_offset_that_no_queue_can_have_breaks_nothing() {
    let node = busy().await;
    for queue_id in 0..2 {
        node.store_offset("g", queue_id, i64::MAX).await;
    }
    let ask = Command::request(request::GET_CONSUME_STATS).with_header(&consume_stats("g"));
    let stats: ConsumeStats = node.shown(ask).await;
    assert_eq!(stats.offset_table[&queue(0)].consumer_offset, i64::MAX);
    let of_all = Command::request(request::GET_BROKER_CONSUME_STATS)
        .with_header(&GetBrokerConsumeStats { is_order: false });
    let all: ConsumeStatsList = node.shown(of_all).await;
    assert_eq!(all.total_diff, i64::MIN);
    let spans = node
        .told(of_group(request::QUERY_CONSUME_TIME_SPAN, "g"))
        .await;
    assert_eq!(spans.code, response::SUCCESS);
}
