use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rmq_wire::body::{
    CheckClientRequest, ConsumeType, ConsumerData, ConsumerList, HeartbeatData, SubscriptionData,
};
use rmq_wire::header::{ConsumerGroup, UnregisterClient};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::broker::dispatch;
use crate::broker::heartbeat::was_paused;
use crate::remoting::{Request, Service as _};

/// A client that speaks and listens on one connection.
pub(super) struct Client {
    socket: TcpStream,
    opaque: i32,
    notices: Vec<Command>,
}

impl Client {
    pub(super) async fn connect(node: &Node) -> Self {
        let socket = TcpStream::connect(&node.addr).await.unwrap();
        Self {
            socket,
            opaque: 0,
            notices: Vec::new(),
        }
    }

    pub(super) async fn call(&mut self, mut command: Command) -> Command {
        self.opaque += 1;
        command.opaque = self.opaque;
        self.send(&command).await;
        loop {
            let frame = self.read().await;
            if frame.is_response() {
                assert_eq!(frame.opaque, self.opaque);
                return frame;
            }
            self.notices.push(frame);
        }
    }

    pub(super) async fn send(&mut self, command: &Command) {
        let mut out = BytesMut::new();
        command.encode(&mut out);
        self.socket.write_all(&out).await.unwrap();
    }

    pub(super) async fn read(&mut self) -> Command {
        let read = async {
            let len = self.socket.read_u32().await.unwrap();
            let mut frame = vec![0; len as usize];
            self.socket.read_exact(&mut frame).await.unwrap();
            Command::decode(frame.into()).unwrap()
        };
        timeout(PATIENCE, read).await.unwrap()
    }

    /// Leaves the connection open.
    fn keep(self) {
        std::mem::forget(self);
    }

    pub(super) async fn notice(&mut self) -> Command {
        match self.notices.pop() {
            Some(notice) => notice,
            None => self.read().await,
        }
    }
}

pub(super) fn heartbeat(client: &str, topics: &[&str]) -> Command {
    let subscription = |topic: &&str| SubscriptionData {
        topic: (*topic).to_owned(),
        sub_string: "*".to_owned(),
        sub_version: 1,
        ..SubscriptionData::default()
    };
    let consumer = ConsumerData {
        group_name: "g".to_owned(),
        consume_type: ConsumeType::Passively,
        subscription_data_set: topics.iter().map(subscription).collect(),
        ..ConsumerData::default()
    };
    Command::request(request::HEART_BEAT).with_json(&HeartbeatData {
        client_id: client.to_owned(),
        consumer_data_set: vec![consumer],
        ..HeartbeatData::default()
    })
}

fn list() -> Command {
    let header = ConsumerGroup {
        consumer_group: "g".to_owned(),
    };
    Command::request(request::GET_CONSUMER_LIST_BY_GROUP).with_header(&header)
}

#[tokio::test]
async fn members_of_a_group_know_of_each_other() {
    let node = Node::start().await;
    let (mut one, mut two) = (Client::connect(&node).await, Client::connect(&node).await);
    assert_eq!(one.call(list()).await.code, response::SYSTEM_ERROR);
    assert_eq!(
        one.call(heartbeat("one", &["T"])).await.code,
        response::SUCCESS
    );
    one.notice().await;
    assert_eq!(
        two.call(heartbeat("two", &["T"])).await.code,
        response::SUCCESS
    );
    let notice = one.notice().await;
    assert_eq!(notice.code, request::NOTIFY_CONSUMER_IDS_CHANGED);
    assert!(notice.is_oneway());
    let members: ConsumerList = one.call(list()).await.json().unwrap();
    assert_eq!(members.consumer_id_list, ["one", "two"]);

    // A heartbeat that says nothing new is no news.
    one.call(heartbeat("one", &["T"])).await;
    two.notices.clear();
    drop(one);
    assert_eq!(
        two.notice().await.code,
        request::NOTIFY_CONSUMER_IDS_CHANGED
    );
    let members: ConsumerList = two.call(list()).await.json().unwrap();
    assert_eq!(members.consumer_id_list, ["two"]);

    let leave = Command::request(request::UNREGISTER_CLIENT).with_header(&UnregisterClient {
        client_id: "two".to_owned(),
        producer_group: None,
        consumer_group: Some("g".to_owned()),
    });
    assert_eq!(two.call(leave).await.code, response::SUCCESS);
    assert_eq!(two.call(list()).await.code, response::SYSTEM_ERROR);
}

#[tokio::test]
async fn a_heartbeat_that_is_later_than_the_end_of_its_connection_leaves_nothing() {
    let node = Node::start().await;
    let mut client = Client::connect(&node).await;
    client.call(heartbeat("one", &["T"])).await;
    let clients = &node.broker.clients;
    let member = clients.members("g").pop().unwrap();
    drop(client);
    until("it is forgotten", || clients.members("g").is_empty()).await;
    let request = Request {
        command: heartbeat("one", &["T"]),
        raw: Bytes::new(),
        conn: Some(Arc::clone(&member.conn)),
        peer: member.conn.peer(),
    };
    Arc::clone(&node.broker).call(request).await.unwrap();
    assert!(clients.members("g").is_empty());

    // Whatever way it has got in.
    let data: HeartbeatData = heartbeat("one", &["T"]).json().unwrap();
    clients.register_consumer(member, &data.consumer_data_set[0]);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(140)).await;
    assert!(clients.members("g").is_empty());
}

#[tokio::test]
async fn a_registered_consumer_pulls_without_saying_what_it_wants() {
    let node = Node::start().await;
    node.sent(send("", b"1")).await;
    let mut client = Client::connect(&node).await;
    client.call(heartbeat("one", &["T"])).await;
    node.pulled(&pull(0)).await;
    let registered = PullMessage {
        sys_flag: 0,
        sub_version: 1,
        ..pull(0)
    };
    assert_eq!(
        bodies(&client.call(pull_request(&registered)).await),
        [b"1"]
    );
    client.call(heartbeat("one", &["U"])).await;
    let answer = client.call(pull_request(&registered)).await;
    assert_eq!(answer.code, response::SUBSCRIPTION_NOT_EXIST);
}

/// It gets what its new subscription may name besides what the old one names, and picks itself.
#[tokio::test]
async fn a_consumer_that_is_ahead_of_its_heartbeat_is_not_kept_waiting() {
    let node = Node::start().await;
    for tag in ["A", "B"] {
        node.sent(send(&format!("TAGS\x01{tag}"), tag.as_bytes()))
            .await;
    }
    // Once both can be read.
    node.pulled(&pull(0)).await;
    let mut client = Client::connect(&node).await;
    let mut data: HeartbeatData = heartbeat("one", &["T"]).json().unwrap();
    data.consumer_data_set[0].subscription_data_set[0].sub_string = "A".to_owned();
    client
        .call(Command::request(request::HEART_BEAT).with_json(&data))
        .await;
    let at = |sub_version| PullMessage {
        sys_flag: 0,
        sub_version,
        expression_type: Some("TAG".to_owned()),
        ..pull(0)
    };
    let found = client.call(pull_request(&at(1))).await;
    assert_eq!(bodies(&found), [b"A"]);
    let found = client.call(pull_request(&at(2))).await;
    assert_eq!(bodies(&found), [b"A", b"B"]);

    let unfiltered = PullMessage {
        sys_flag: pull_sys_flag::CLASS_FILTER,
        ..at(2)
    };
    let answer = client.call(pull_request(&unfiltered)).await;
    assert_eq!(answer.code, response::SUBSCRIPTION_NOT_LATEST);
    let by_sql = PullMessage {
        expression_type: Some("SQL92".to_owned()),
        ..at(2)
    };
    let answer = client.call(pull_request(&by_sql)).await;
    assert_eq!(answer.code, response::SYSTEM_ERROR);
}

#[tokio::test]
async fn a_consumer_group_has_its_topic_of_retries_from_the_start() {
    let node = Node::start().await;
    let mut client = Client::connect(&node).await;
    client.call(heartbeat("one", &["T"])).await;
    let state = node.replica.meta.read();
    assert!(state.groups.contains_key("g"));
    assert_eq!(state.topics["%RETRY%g"].read_queues, 1);
}

#[tokio::test]
async fn a_follower_knows_its_consumers_too() {
    let node = Node::start().await;
    node.replica.follow(None);
    let mut client = Client::connect(&node).await;
    assert_eq!(
        client.call(heartbeat("one", &["T"])).await.code,
        response::SUCCESS
    );
    node.replica.become_leader(2);
    let members: ConsumerList = client.call(list()).await.json().unwrap();
    assert_eq!(members.consumer_id_list, ["one"]);
}

/// What a leader tells other nodes that has had heartbeats of these consumers.
async fn told_by_leader_of(names: &[&str]) -> Bytes {
    let leader = Node::start().await;
    for name in names {
        let mut client = Client::connect(&leader).await;
        client.call(heartbeat(name, &["T"])).await;
        client.keep();
    }
    let question = dispatch::frame(Command::request(request::RAFT_CONSUMERS).into());
    let from = "10.0.0.7:1".parse().unwrap();
    let told = dispatch::forwarded(Arc::clone(&leader.broker), from, question).await;
    told.unwrap().unwrap()
}

/// Has the node follow a leader that tells this.
fn follow(node: &Node, addr: &str, told: Bytes) {
    *node.replica.leader.lock().unwrap() = Some(Box::new(move |_| Ok(Some(told.clone()))));
    node.replica.follow(Some(addr));
}

async fn until_known(node: &Node, ids: &[&str]) {
    until("it has learned", || {
        let clients = node.broker.clients.read();
        let known = clients.consumers.get("g").map(|group| group.client_ids());
        known.is_some_and(|known| known.iter().eq(ids))
    })
    .await;
}

/// A node that has heard of two consumers from the one that led when it started.
async fn learned() -> Node {
    let told = told_by_leader_of(&["one", "two"]).await;
    let node = Node::start().await;
    follow(&node, "old:1", told);
    until_known(&node, &["one", "two"]).await;
    node.replica.become_leader(2);
    node
}

#[tokio::test]
async fn a_node_hears_of_consumers_again_from_the_next_leader() {
    let first = told_by_leader_of(&["one"]).await;
    let next = told_by_leader_of(&["two"]).await;
    let node = Node::start().await;
    follow(&node, "old:1", first);
    until_known(&node, &["one"]).await;
    follow(&node, "new:1", next);
    until_known(&node, &["one", "two"]).await;
}

/// As when its link to this node was cut for longer than a heartbeat waits.
#[tokio::test]
async fn a_follower_whose_connection_to_a_consumer_ends_asks_the_leader_for_it() {
    let later = told_by_leader_of(&["one", "two"]).await;
    let node = Node::start().await;
    follow(&node, "old:1", told_by_leader_of(&["three"]).await);
    let mut client = Client::connect(&node).await;
    client.call(heartbeat("one", &["T"])).await;
    until_known(&node, &["one", "three"]).await;
    *node.replica.leader.lock().unwrap() = Some(Box::new(move |_| Ok(Some(later.clone()))));
    drop(client);
    until_known(&node, &["one", "three", "two"]).await;
    assert!(node.broker.clients.members("g").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_process_is_noticed() {
    let paused = tokio::spawn(was_paused());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!paused.is_finished());
    tokio::time::advance(Duration::from_secs(20)).await;
    timeout(Duration::from_secs(1), paused)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_node_that_has_started_knows_the_consumers_of_its_group() {
    let node = learned().await;
    let mut client = Client::connect(&node).await;
    let members: ConsumerList = client.call(list()).await.json().unwrap();
    assert_eq!(members.consumer_id_list, ["one", "two"]);
    // It pulls before its heartbeat.
    node.sent(send("", b"1")).await;
    node.pulled(&pull(0)).await;
    let registered = PullMessage {
        sys_flag: 0,
        sub_version: 1,
        ..pull(0)
    };
    let found = client.call(pull_request(&registered)).await;
    assert_eq!(bodies(&found), [b"1"]);
    // Its own heartbeat is no news, and who leaves is not there any more, wherever it was known.
    client.call(heartbeat("one", &["T"])).await;
    assert!(client.notices.is_empty());
    let leave = Command::request(request::UNREGISTER_CLIENT).with_header(&UnregisterClient {
        client_id: "two".to_owned(),
        producer_group: None,
        consumer_group: Some("g".to_owned()),
    });
    Client::connect(&node).await.call(leave).await;
    client.notice().await;
    let members: ConsumerList = client.call(list()).await.json().unwrap();
    assert_eq!(members.consumer_id_list, ["one"]);
    // This is for nodes.
    let asked = client.call(Command::request(request::RAFT_CONSUMERS)).await;
    assert_eq!(asked.code, response::REQUEST_CODE_NOT_SUPPORTED);
}

#[tokio::test]
async fn who_is_not_heard_again_is_forgotten() {
    let before = tokio::time::Instant::now();
    let node = learned().await;
    let after = tokio::time::Instant::now();
    let s = Duration::from_secs;
    node.broker.clients.forget_absent(before + s(60));
    assert_eq!(
        node.broker.clients.read().consumers["g"].client_ids().len(),
        2
    );
    node.broker.clients.forget_absent(after + s(66));
    assert!(node.broker.clients.read().consumers.is_empty());
}

#[tokio::test]
async fn only_filters_by_tag_are_supported() {
    let node = Node::start().await;
    let check = |kind: &str| {
        Command::request(request::CHECK_CLIENT_CONFIG).with_json(&CheckClientRequest {
            subscription_data: SubscriptionData {
                expression_type: Some(kind.to_owned()),
                ..SubscriptionData::default()
            },
            ..CheckClientRequest::default()
        })
    };
    assert_eq!(node.told(check("TAG")).await.code, response::SUCCESS);
    assert_eq!(node.told(check("SQL92")).await.code, response::SYSTEM_ERROR);
}

#[tokio::test]
async fn a_pull_of_a_client_that_is_gone_is_given_up() {
    let node = Arc::new(Node::start().await);
    node.sent(send("", b"1")).await;
    let mut client = Client::connect(&node).await;
    let waiting = PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 30_000,
        ..pull(1)
    };
    let mut out = BytesMut::new();
    pull_request(&waiting).encode(&mut out);
    client.socket.write_all(&out).await.unwrap();
    while node.broker.holds.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(client);
    until("it waits no longer", || node.broker.holds.is_empty()).await;
}
