//! What tools ask about clients, of clients, and have them do.

use rmq_wire::body::{
    ConsumeType, ConsumerConnection, GetConsumerStatusBody, HeartbeatData, MessageModel,
    ProducerConnection, ProducerData, ProducerTableInfo, QuerySubscriptionResponse,
    ResetOffsetBody, ResetOffsetBodyForC, TopicList,
};
use rmq_wire::frame::Language;
use rmq_wire::header::{
    ConsumeMessageDirectly, ConsumerGroup, GetConsumeStats, GetConsumerRunningInfo,
    GetConsumerStatus, GroupTopic, ProducerGroup, ResetOffset,
};
use rmq_wire::{body, msg_id};

use super::clients::{Client, heartbeat};
use super::tools::queue;
use super::*;
use crate::broker::testing::now_ms;
use crate::meta::OffsetCommit;

async fn consumer(node: &Node, id: &str) -> Client {
    let mut client = Client::connect(node).await;
    let answer = client.call(heartbeat(id, &["T"])).await;
    assert_eq!(answer.code, response::SUCCESS);
    client
}

impl Client {
    /// The next request with this code; others are passed over.
    async fn asked_for(&mut self, code: i32) -> Command {
        loop {
            let notice = self.notice().await;
            if notice.code == code {
                return notice;
            }
        }
    }
}

impl Node {
    async fn commit(&self, queue_id: i32, offset: i64) {
        let commit = OffsetCommit {
            group: "g".to_owned(),
            topic: "T".to_owned(),
            queue_id,
            offset,
        };
        let pending = self.broker.offsets.commit(commit).unwrap();
        self.broker.offsets.hurry();
        pending.applied().await.unwrap();
    }

    fn stored(&self, queue_id: i32) -> Option<i64> {
        self.replica.meta.read().offset("g", "T", queue_id)
    }
}

#[tokio::test]
async fn connections_of_consumers_are_shown() {
    let node = Node::start().await;
    let ask = Command::request(request::GET_CONSUMER_CONNECTION_LIST).with_header(&ConsumerGroup {
        consumer_group: "g".to_owned(),
    });
    let offline = node.told(ask.clone()).await;
    assert_eq!(offline.code, response::CONSUMER_NOT_ONLINE);
    assert_eq!(offline.remark.unwrap(), "the consumer group[g] not online");

    let _one = consumer(&node, "one").await;
    let _two = consumer(&node, "two").await;
    let shown: ConsumerConnection = node.told(ask).await.json().unwrap();
    let ids: Vec<&str> = shown.connection_set.iter().map(|c| &*c.client_id).collect();
    assert_eq!(ids, ["one", "two"]);
    let connection = &shown.connection_set[0];
    assert!(connection.client_addr.starts_with("127.0.0.1:"));
    assert_eq!(
        (connection.language, connection.version),
        (Language::JAVA, 409)
    );
    assert_eq!(shown.subscription_table["T"].sub_string, "*");
    assert_eq!(shown.consume_type, Some(ConsumeType::Passively));
    assert_eq!(shown.message_model, Some(MessageModel::Clustering));

    let ask = |topic: &str| {
        Command::request(request::QUERY_SUBSCRIPTION_BY_CONSUMER).with_header(&GroupTopic {
            group: "g".to_owned(),
            topic: Some(topic.to_owned()),
        })
    };
    let shown: QuerySubscriptionResponse = node.told(ask("T")).await.json().unwrap();
    assert_eq!(shown.subscription_data.unwrap().topic, "T");
    let shown: QuerySubscriptionResponse = node.told(ask("U")).await.json().unwrap();
    assert_eq!((&*shown.topic, shown.subscription_data), ("U", None));
}

#[tokio::test]
async fn connections_of_producers_are_shown() {
    let node = Node::start().await;
    let ask = Command::request(request::GET_PRODUCER_CONNECTION_LIST).with_header(&ProducerGroup {
        producer_group: "p".to_owned(),
    });
    assert_eq!(node.told(ask.clone()).await.code, response::SYSTEM_ERROR);

    let mut client = Client::connect(&node).await;
    let beat = HeartbeatData {
        client_id: "one".to_owned(),
        producer_data_set: vec![ProducerData {
            group_name: "p".to_owned(),
        }],
        ..HeartbeatData::default()
    };
    client
        .call(Command::request(request::HEART_BEAT).with_json(&beat))
        .await;
    let shown: ProducerConnection = node.told(ask).await.json().unwrap();
    assert_eq!(shown.connection_set[0].client_id, "one");

    let all = Command::request(request::GET_ALL_PRODUCER_INFO);
    let shown: ProducerTableInfo = node.told(all).await.json().unwrap();
    let info = &shown.data["p"][0];
    assert_eq!(info.client_id, "one");
    assert!(info.remote_ip.starts_with("/127.0.0.1:"));
    let age = now_ms() - info.last_update_timestamp;
    assert!((0..60_000).contains(&age), "{age}");
}

#[tokio::test]
async fn a_group_that_is_online_consumes_what_it_says() {
    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    node.sent(send_to("U", "", b"1")).await;
    node.commit(0, 1).await;
    let _one = consumer(&node, "one").await;
    let ask = |topic: &str| {
        Command::request(request::GET_CONSUME_STATS).with_header(&GetConsumeStats {
            consumer_group: "g".to_owned(),
            topic: Some(topic.to_owned()),
            topic_list: None,
        })
    };
    let shown: body::ConsumeStats = node.told(ask("T")).await.json().unwrap();
    assert!(!shown.offset_table.is_empty());
    let shown: body::ConsumeStats = node.told(ask("U")).await.json().unwrap();
    assert!(shown.offset_table.is_empty());
    // It is among the topic's groups before it has stored a position.
    let ask = Command::request(request::QUERY_TOPICS_BY_CONSUMER).with_header(&GroupTopic {
        group: "g".to_owned(),
        topic: None,
    });
    let topics: TopicList = node.told(ask).await.json().unwrap();
    assert_eq!(topics.topic_list, ["T".to_owned()].into());
}

fn running_info(client: &str) -> Command {
    Command::request(request::GET_CONSUMER_RUNNING_INFO).with_header(&GetConsumerRunningInfo {
        consumer_group: "g".to_owned(),
        client_id: client.to_owned(),
        jstack_enable: true,
    })
}

#[tokio::test]
async fn a_question_for_a_client_is_passed_on() {
    let node = Node::start().await;
    let offline = node.told(running_info("one")).await;
    assert_eq!(offline.code, response::SYSTEM_ERROR);
    assert_eq!(offline.remark.unwrap(), "The Consumer <g> <one> not online");

    let mut one = consumer(&node, "one").await;
    let mut ask = running_info("one");
    ask.opaque = 4711;
    ask.ext.insert("unknown", "kept");
    let client = async {
        let asked = one.asked_for(request::GET_CONSUMER_RUNNING_INFO).await;
        assert_eq!(asked.ext.get("jstackEnable"), Some("true"));
        assert_eq!(asked.ext.get("unknown"), Some("kept"));
        let mut answer = asked.reply(response::SUCCESS).with_body("{odd}".into());
        answer.remark = Some("said the client".to_owned());
        one.send(&answer).await;
    };
    let (answer, ()) = tokio::join!(node.told(ask), client);
    assert_eq!((answer.code, answer.opaque), (response::SUCCESS, 4711));
    assert_eq!(answer.remark.as_deref(), Some("said the client"));
    assert_eq!(answer.body, "{odd}");
}

#[tokio::test]
async fn a_client_consumes_a_message_when_told() {
    let node = Node::start().await;
    let sent = node.sent(send("", b"again")).await;
    let ask = |id: &str| {
        Command::request(request::CONSUME_MESSAGE_DIRECTLY).with_header(&ConsumeMessageDirectly {
            consumer_group: "g".to_owned(),
            client_id: Some("one".to_owned()),
            msg_id: Some(id.to_owned()),
            ..ConsumeMessageDirectly::default()
        })
    };
    let mut one = consumer(&node, "one").await;
    let client = async {
        let asked = one.asked_for(request::CONSUME_MESSAGE_DIRECTLY).await;
        let record = Record::decode(&asked.body).unwrap();
        assert_eq!((record.topic, record.body), ("T", &b"again"[..]));
        let name = node.broker.config.broker_name.as_str();
        assert_eq!(asked.ext.get("brokerName"), Some(name));
        one.send(&asked.reply(response::SUCCESS)).await;
    };
    let (answer, ()) = tokio::join!(node.told(ask(&sent.msg_id)), client);
    assert_eq!(answer.code, response::SUCCESS);

    let host = "10.0.0.1:10911".parse().unwrap();
    for id in [
        "",
        "xyz",
        &msg_id::encode(host, 1),
        &msg_id::encode(host, -1),
    ] {
        assert_eq!(
            node.told(ask(id)).await.code,
            response::SYSTEM_ERROR,
            "{id}"
        );
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_a_question_unanswered() {
    let node = Node::start().await;
    let mut one = consumer(&node, "one").await;
    let client = async {
        one.asked_for(request::GET_CONSUMER_RUNNING_INFO).await;
        drop(one);
    };
    let (answer, ()) = tokio::join!(node.told(running_info("one")), client);
    assert_eq!(answer.code, response::SYSTEM_ERROR);
    let remark = answer.remark.unwrap();
    assert!(remark.starts_with("invoke consumer <g> <one>"), "{remark}");
}

#[tokio::test]
async fn members_of_a_group_tell_where_they_are() {
    let node = Node::start().await;
    let ask = |client: Option<&str>| {
        let header = GetConsumerStatus {
            topic: "T".to_owned(),
            group: "g".to_owned(),
            client_addr: client.map(str::to_owned),
        };
        Command::request(request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS).with_header(&header)
    };
    let offline = node.told(ask(None)).await;
    assert_eq!(offline.code, response::SYSTEM_ERROR);

    let (mut one, mut two) = (consumer(&node, "one").await, consumer(&node, "two").await);
    let status = GetConsumerStatusBody {
        message_queue_table: [(queue(0), 7)].into(),
        ..GetConsumerStatusBody::default()
    };
    let clients = async {
        let asked = one
            .asked_for(request::GET_CONSUMER_STATUS_FROM_CLIENT)
            .await;
        one.send(&asked.reply(response::SUCCESS).with_json(&status))
            .await;
        // What one of them says badly does not spoil the answer.
        let asked = two
            .asked_for(request::GET_CONSUMER_STATUS_FROM_CLIENT)
            .await;
        two.send(&asked.reply(response::SUCCESS).with_body("{".into()))
            .await;
    };
    let (answer, ()) = tokio::join!(node.told(ask(Some(" "))), clients);
    let shown: GetConsumerStatusBody = answer.json().unwrap();
    assert_eq!(shown.consumer_table.len(), 1);
    assert_eq!(shown.consumer_table["one"], [(queue(0), 7)].into());

    let clients = async {
        let asked = two
            .asked_for(request::GET_CONSUMER_STATUS_FROM_CLIENT)
            .await;
        two.send(&asked.reply(response::SUCCESS).with_json(&status))
            .await;
    };
    let (answer, ()) = tokio::join!(node.told(ask(Some("two"))), clients);
    let shown: GetConsumerStatusBody = answer.json().unwrap();
    assert_eq!(shown.consumer_table.keys().collect::<Vec<_>>(), ["two"]);
}

/// A reset as tools of 4.9 ask for it.
fn reset(timestamp: i64, is_force: bool) -> ResetOffset {
    ResetOffset {
        topic: "T".to_owned(),
        group: "g".to_owned(),
        timestamp,
        is_force,
        queue_id: None,
        offset: None,
    }
}

fn reset_request(header: &ResetOffset) -> Command {
    Command::request(request::INVOKE_BROKER_TO_RESET_OFFSET).with_header(header)
}

/// A node with three messages in queue 0 and position 2 of group `g` there.
async fn resettable() -> Node {
    let node = Node::start().await;
    for _ in 0..3 {
        node.sent(send("", b"")).await;
    }
    node.pulled(&pull(0)).await;
    node.commit(0, 2).await;
    node
}

#[tokio::test]
async fn members_are_told_of_a_reset_that_is_stored_too() {
    let node = resettable().await;
    let mut one = consumer(&node, "one").await;
    let answer = node.told(reset_request(&reset(0, true))).await;
    assert_eq!(answer.code, response::SUCCESS);
    let table: ResetOffsetBody = answer.json().unwrap();
    assert_eq!(table.offset_table, [(queue(0), 0), (queue(1), 0)].into());
    assert_eq!((node.stored(0), node.stored(1)), (Some(0), Some(0)));
    let order = one.asked_for(request::RESET_CONSUMER_CLIENT_OFFSET).await;
    assert!(order.is_oneway());
    let told: ResetOffset = order.header().unwrap();
    assert_eq!(told, reset(0, true));
    assert_eq!(order.json::<ResetOffsetBody>().unwrap(), table);
    // What was pulled before is pulled again.
    let item = node.broker.stats.items.of_group("T", "g").unwrap();
    assert_eq!(item.pulled_to(0), None);

    node.told(reset_request(&reset(-1, true))).await;
    assert_eq!(node.stored(0), Some(3));
    // Only back, unless it is forced.
    node.commit(0, 1).await;
    node.told(reset_request(&reset(-1, false))).await;
    assert_eq!(node.stored(0), Some(1));
}

#[tokio::test]
async fn tools_in_cpp_get_members_a_list() {
    let node = resettable().await;
    let mut one = consumer(&node, "one").await;
    let mut ask = reset_request(&reset(0, true));
    ask.language = Language::CPP;
    assert_eq!(node.told(ask).await.code, response::SUCCESS);
    let order = one.asked_for(request::RESET_CONSUMER_CLIENT_OFFSET).await;
    let list: ResetOffsetBodyForC = order.json().unwrap();
    let queues: Vec<i32> = list
        .offset_table
        .iter()
        .map(|queue| queue.queue_id)
        .collect();
    assert_eq!(queues, [0, 1]);
}

#[tokio::test]
async fn a_group_that_is_offline_is_reset_by_the_tool_itself_or_by_us() {
    let node = resettable().await;
    let answer = node.told(reset_request(&reset(0, true))).await;
    assert_eq!(answer.code, response::CONSUMER_NOT_ONLINE);
    assert_eq!(node.stored(0), Some(2));

    let newer = |queue_id, offset| ResetOffset {
        queue_id: Some(queue_id),
        offset: Some(offset),
        ..reset(0, true)
    };
    let answer = node.told(reset_request(&newer(-1, -1))).await;
    assert_eq!(answer.code, response::SUCCESS);
    assert_eq!((node.stored(0), node.stored(1)), (Some(0), Some(0)));
    let answer = node.told(reset_request(&newer(0, 3))).await;
    let table: ResetOffsetBody = answer.json().unwrap();
    assert_eq!(table.offset_table, [(queue(0), 3)].into());
    assert_eq!(node.stored(0), Some(3));
    for (queue_id, offset) in [(0, 4), (0, -2), (2, 0), (i32::MAX, 0)] {
        let answer = node.told(reset_request(&newer(queue_id, offset))).await;
        assert_eq!(answer.code, response::SYSTEM_ERROR, "{queue_id} {offset}");
    }
    assert_eq!(node.stored(0), Some(3));
}

#[tokio::test]
async fn what_is_unknown_cannot_be_reset() {
    let node = resettable().await;
    let of = |topic: &str, group: &str| ResetOffset {
        topic: topic.to_owned(),
        group: group.to_owned(),
        queue_id: Some(-1),
        ..reset(0, true)
    };
    let code = node.told(reset_request(&of("U", "g"))).await.code;
    assert_eq!(code, response::TOPIC_NOT_EXIST);
    let code = node.told(reset_request(&of("T", "h"))).await.code;
    assert_eq!(code, response::SUBSCRIPTION_GROUP_NOT_EXIST);
}

#[tokio::test]
async fn a_reset_that_is_not_stored_is_none() {
    let node = resettable().await;
    let mut one = consumer(&node, "one").await;
    *node.replica.failure.lock().unwrap() = Some(crate::broker::ProposeError::Unknown);
    let answer = node.told(reset_request(&reset(0, true))).await;
    assert_eq!(answer.code, response::SYSTEM_ERROR);
    assert_eq!(node.stored(0), Some(2));
    // The next thing that the member hears is something else.
    node.told(reset_request(&reset(-1, true))).await;
    let order = one.asked_for(request::RESET_CONSUMER_CLIENT_OFFSET).await;
    assert_eq!(order.header::<ResetOffset>().unwrap().timestamp, -1);
}
