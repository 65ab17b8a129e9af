use rmq_wire::body::{
    CreateTopicListRequest, LockBatchRequest, LockBatchResponse, MessageQueue,
    SubscriptionGroupConfig, SubscriptionGroupList, SubscriptionGroupWrapper, TopicConfig,
    TopicConfigSerializeWrapper,
};
use rmq_wire::header::{CreateTopic, DeleteSubscriptionGroup, TopicOnly};

use super::*;
use crate::broker::testing;
use crate::config::BrokerConfig;
use crate::meta::{Change, Queue};

fn create(topic: &str, queues: i32) -> Command {
    Command::request(request::UPDATE_AND_CREATE_TOPIC).with_header(&CreateTopic {
        topic: topic.to_owned(),
        default_topic: "TBW102".to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        perm: 6,
        topic_filter_type: "SINGLE_TAG".to_owned(),
        ..CreateTopic::default()
    })
}

#[tokio::test]
async fn tools_make_show_and_delete_topics() {
    let node = Node::start().await;
    assert_eq!(node.told(create("new", 3)).await.code, response::SUCCESS);
    let answer = node
        .told(Command::request(request::GET_ALL_TOPIC_CONFIG))
        .await;
    let table: TopicConfigSerializeWrapper = answer.json().unwrap();
    assert_eq!(table.topic_config_table["new"].read_queue_nums, 3);
    assert!(table.data_version.counter > 0);

    let only = TopicOnly {
        topic: "new".to_owned(),
    };
    let one = Command::request(request::GET_TOPIC_CONFIG).with_header(&only);
    let config: TopicConfig = node.told(one.clone()).await.json().unwrap();
    assert_eq!((&*config.topic_name, config.write_queue_nums), ("new", 3));

    let delete = Command::request(request::DELETE_TOPIC_IN_BROKER).with_header(&only);
    assert_eq!(node.told(delete).await.code, response::SUCCESS);
    assert_eq!(node.told(one).await.code, response::TOPIC_NOT_EXIST);
}

/// What a tool puts that names a topic's queues so.
async fn changed(node: &Node, read: i32, write: i32) -> (i32, i32, i32) {
    let command = Command::request(request::UPDATE_AND_CREATE_TOPIC).with_header(&CreateTopic {
        topic: "new".to_owned(),
        default_topic: "TBW102".to_owned(),
        read_queue_nums: read,
        write_queue_nums: write,
        perm: 4,
        topic_filter_type: "SINGLE_TAG".to_owned(),
        ..CreateTopic::default()
    });
    assert_eq!(node.told(command).await.code, response::SUCCESS);
    let state = node.broker.meta.read();
    let topic = &state.topics["new"];
    (topic.read_queues, topic.write_queues, topic.perm)
}

#[tokio::test]
async fn a_topic_that_is_changed_by_what_its_route_shows_keeps_its_queues() {
    let node = Node::with(BrokerConfig {
        enable_dleger_commit_log: true,
        dleger_peers: peers(),
        group_alias_routes: true,
        ..BrokerConfig::default()
    })
    .await;
    let change = async |read, write| changed(&node, read, write).await;
    assert_eq!(change(8, 80).await, (8, 80, 4), "there was none");
    assert_eq!(change(8, 8).await, (8, 8, 4));
    assert_eq!(change(8, 80).await, (8, 8, 4), "as its route shows it");
    assert_eq!(change(4, 80).await, (4, 4, 4), "as that of another broker");
    assert_eq!(change(4, 79).await, (4, 79, 4));
    assert_eq!(change(4, 2).await, (4, 2, 4));
    assert_eq!(change(4, 78).await, (4, 2, 4));
    assert_eq!(change(80, 8).await, (80, 8, 4));
    assert_eq!(change(80, 80).await, (80, 80, 4), "grown in two steps");

    let node = Node::start().await;
    for (read, write) in [(8, 8), (8, 80)] {
        let kept = changed(&node, read, write).await;
        assert_eq!(kept, (read, write, 4), "its route shows what it has");
    }
}

#[tokio::test]
async fn lists_of_topics_and_groups_are_made_whole_or_not_at_all() {
    let node = Node::start().await;
    let topics = |names: [&str; 2]| {
        let config = |name: &str| TopicConfig {
            attributes: Some([("+message.type".to_owned(), "FIFO".to_owned())].into()),
            order: true,
            ..TopicConfig::new(name, 3, 4)
        };
        Command::request(request::UPDATE_AND_CREATE_TOPIC_LIST).with_json(&CreateTopicListRequest {
            topic_config_list: names.map(config).into(),
        })
    };
    let refused = node.told(topics(["one", "TBW102"])).await;
    assert_eq!(refused.code, response::SYSTEM_ERROR);
    assert!(!node.replica.meta.read().topics.contains_key("one"));
    assert_eq!(
        node.told(topics(["one", "two"])).await.code,
        response::SUCCESS
    );
    let made = node.replica.meta.read().topics["two"].clone();
    assert_eq!((made.read_queues, made.perm, made.order), (3, 4, true));
    assert_eq!(made.attributes["message.type"], "FIFO");

    let groups = |names: [&str; 2]| {
        let body = SubscriptionGroupList {
            group_config_list: names.map(SubscriptionGroupConfig::new).into(),
        };
        Command::request(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST).with_json(&body)
    };
    assert_eq!(
        node.told(groups(["g", "a/b"])).await.code,
        response::SYSTEM_ERROR
    );
    assert!(!node.replica.meta.read().groups.contains_key("g"));
    assert_eq!(node.told(groups(["g", "h"])).await.code, response::SUCCESS);
    assert!(node.replica.meta.read().groups.contains_key("h"));
}

#[tokio::test]
async fn topics_of_the_system_are_not_the_users() {
    let node = Node::start().await;
    let system = [
        "TBW102",
        "rmq_sys_x",
        "rmq_sys_raft_log",
        "DefaultCluster",
        "a/b",
        "",
    ];
    for topic in system {
        assert_eq!(
            node.told(create(topic, 3)).await.code,
            response::SYSTEM_ERROR,
            "{topic}"
        );
    }
    for queues in [-1, i32::MAX] {
        let refused = node.told(create("T", queues)).await;
        assert_eq!(refused.code, response::SYSTEM_ERROR);
        let remark = refused.remark.unwrap();
        assert!(remark.contains("QueueNums"), "{remark}");
    }
}

#[tokio::test]
async fn tools_make_show_and_delete_groups() {
    let node = Node::start().await;
    let config = SubscriptionGroupConfig {
        retry_max_times: 5,
        ..SubscriptionGroupConfig::new("g")
    };
    let put = Command::request(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP).with_json(&config);
    assert_eq!(node.told(put).await.code, response::SUCCESS);
    let all = Command::request(request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG);
    let table: SubscriptionGroupWrapper = node.told(all.clone()).await.json().unwrap();
    assert_eq!(table.subscription_group_table["g"], config);
    let delete =
        Command::request(request::DELETE_SUBSCRIPTIONGROUP).with_header(&DeleteSubscriptionGroup {
            group_name: "g".to_owned(),
            ..DeleteSubscriptionGroup::default()
        });
    assert_eq!(node.told(delete).await.code, response::SUCCESS);
    let table: SubscriptionGroupWrapper = node.told(all).await.json().unwrap();
    assert!(!table.subscription_group_table.contains_key("g"));
}

#[tokio::test]
async fn a_queue_is_locked_by_one_client() {
    let node = Node::start().await;
    let queue = |queue_id| MessageQueue {
        broker_name: "b".to_owned(),
        queue_id,
        topic: "T".to_owned(),
    };
    let body = |client: &str, queues: &[i32]| LockBatchRequest {
        client_id: client.to_owned(),
        consumer_group: "g".to_owned(),
        mq_set: queues.iter().copied().map(queue).collect(),
        only_this_broker: None,
    };
    let lock = |client: &str, queues: &[i32]| {
        Command::request(request::LOCK_BATCH_MQ).with_json(&body(client, queues))
    };
    let held: LockBatchResponse = node.told(lock("a", &[0, 1])).await.json().unwrap();
    assert_eq!(held.lock_ok_mq_set, [queue(0), queue(1)].into());
    let held: LockBatchResponse = node.told(lock("b", &[1, 2])).await.json().unwrap();
    assert_eq!(held.lock_ok_mq_set, [queue(2)].into());
    let unlock = Command::request(request::UNLOCK_BATCH_MQ).with_json(&body("a", &[1]));
    assert_eq!(node.told(unlock).await.code, response::SUCCESS);
    let held: LockBatchResponse = node.told(lock("b", &[1, 2])).await.json().unwrap();
    assert_eq!(held.lock_ok_mq_set, [queue(1), queue(2)].into());
}

/// The clock of the leader before was another one, or this one's was set since.
#[tokio::test]
async fn a_clock_that_is_wrong_ends_no_lock() {
    for apart_ms in [-100_000, 0, 100_000] {
        let node = Node::start().await;
        let taken = Change::LockQueues {
            group: "g".to_owned(),
            client: "a".to_owned(),
            queues: vec![Queue {
                topic: "T".to_owned(),
                broker_name: "b".to_owned(),
                queue_id: 0,
            }],
        };
        let at_ms = testing::now_ms() + apart_ms;
        node.broker.propose_at(at_ms, taken).await.unwrap();
        node.replica.become_leader(2);
        let lock = Command::request(request::LOCK_BATCH_MQ).with_json(&LockBatchRequest {
            client_id: "b".to_owned(),
            consumer_group: "g".to_owned(),
            mq_set: [MessageQueue {
                broker_name: "b".to_owned(),
                queue_id: 0,
                topic: "T".to_owned(),
            }]
            .into(),
            only_this_broker: None,
        });
        let held: LockBatchResponse = node.told(lock).await.json().unwrap();
        assert_eq!(held.lock_ok_mq_set, [].into(), "{apart_ms}");
    }
}
