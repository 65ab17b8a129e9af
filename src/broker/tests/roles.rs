use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rmq_wire::header::{PullMessageResponse, QueryConsumerOffset, UpdateConsumerOffset};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::broker::ForwardError;
use crate::config::{BrokerConfig, Vip};
use crate::raft::MemberStatus;
use crate::remoting::Client;

fn query_offset() -> Command {
    Command::request(request::QUERY_CONSUMER_OFFSET).with_header(&QueryConsumerOffset {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        set_zero_if_not_found: None,
    })
}

/// Answers every request with a code of its own.
fn leader(code: i32) -> crate::broker::testing::Leader {
    Box::new(move |raw| {
        let request = Command::decode(raw).unwrap();
        let mut out = BytesMut::new();
        request.reply(code).encode(&mut out);
        Ok(Some(out.split_off(4).freeze()))
    })
}

#[tokio::test]
async fn a_follower_has_its_leader_answer() {
    let node = Node::start().await;
    node.replica.follow(Some("leader:1"));
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    let client = Client::default();
    for command in [send("", b"1"), query_offset(), pull_request(&pull(0))] {
        let answer = client.call(&node.addr, command, PATIENCE).await.unwrap();
        assert_eq!(answer.code, 77);
    }
    // An unknown code is nobody's.
    let answer = client
        .call(&node.addr, Command::request(9999), PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer.code, response::REQUEST_CODE_NOT_SUPPORTED);
}

#[tokio::test]
async fn a_leader_that_says_nothing_is_not_spoken_for() {
    let node = Node::start().await;
    node.replica.follow(Some("leader:1"));
    *node.replica.leader.lock().unwrap() = Some(Box::new(|_| Ok(None)));
    let client = Client::default();
    let limit = Duration::from_millis(200);
    assert!(
        client
            .call(&node.addr, query_offset(), limit)
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_nothing_is_guessed() {
    let node = Node::start().await;
    node.replica.follow(None);
    assert_eq!(
        node.told(send("", b"1")).await.code,
        response::SERVICE_NOT_AVAILABLE
    );
    assert!(node.ask(query_offset()).await.is_none());
    let answer = node.told(pull_request(&pull(42))).await;
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.next_begin_offset, 42);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_an_unknown_outcome() {
    let node = Node::start().await;
    node.replica.follow(Some("leader:1"));
    *node.replica.leader.lock().unwrap() =
        Some(Box::new(|_| Err(ForwardError::Unknown("gone".to_owned()))));
    let client = Client::default();
    let answer = client
        .call(&node.addr, send("", b"1"), PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer.code, response::SYSTEM_ERROR);
    assert!(answer.remark.unwrap().contains("unknown"));
    let answer = client
        .call(&node.addr, pull_request(&pull(3)), PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
}

/// Stock clients try thrice, each time at once.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_told_when_trying_again_is_of_use() {
    let node = Node::start().await;
    node.replica.follow(Some("dead:1"));
    *node.replica.leader.lock().unwrap() =
        Some(Box::new(|_| Err(ForwardError::Unknown("reset".to_owned()))));
    let client = node.client_in_memory();
    let ask = || {
        let (client, addr) = (client.clone(), node.addr.clone());
        tokio::spawn(async move { client.call(&addr, send("", b"1"), PATIENCE).await.unwrap() })
    };
    let sending = ask();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!sending.is_finished(), "nobody leads");
    node.replica.follow(Some("next:2"));
    let answer = sending.await.unwrap();
    assert!(answer.remark.unwrap().contains("outcome unknown"));
    // It may also be that only the connection to the leader was lost.
    let begun = tokio::time::Instant::now();
    let answer = ask().await.unwrap();
    assert!(answer.remark.unwrap().contains("outcome unknown"));
    let hold = node.broker.config.group_hold_millis;
    assert!((hold..hold * 2).contains(&begun.elapsed()));
}

#[tokio::test]
async fn a_request_waits_for_the_next_leader() {
    let node = Arc::new(Node::start().await);
    node.replica.follow(None);
    let sending = {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.told(send("", b"1")).await })
    };
    tokio::task::yield_now().await;
    node.replica.become_leader(2);
    assert_eq!(sending.await.unwrap().code, response::SUCCESS);
}

/// Its client may be gone, and have committed a newer one elsewhere.
#[tokio::test]
async fn a_forwarded_offset_does_not_wait_for_the_next_leader() {
    let node = Arc::new(Node::start().await);
    node.replica.follow(None);
    let mut out = BytesMut::new();
    let commit = UpdateConsumerOffset {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_id: 0,
        commit_offset: 7,
    };
    Command::request(request::UPDATE_CONSUMER_OFFSET)
        .with_header(&commit)
        .encode(&mut out);
    let raw = out.split_off(4).freeze();
    let client = "10.0.0.7:1".parse().unwrap();
    let broker = Arc::clone(&node.broker);
    let waiting = tokio::spawn(crate::broker::dispatch::forwarded(broker, client, raw));
    until("it is held", || node.broker.forwarding.held() > 0).await;
    node.replica.become_leader(2);
    assert_eq!(waiting.await.unwrap(), Err(crate::raft::NotLeader));
    assert_eq!(node.replica.meta.read().offset("g", "T", 0), None);
}

/// By then it may have committed a newer one.
#[tokio::test(start_paused = true)]
async fn a_commit_that_its_client_may_not_wait_for_any_more_is_not_made() {
    let node = Node::with(BrokerConfig {
        group_hold_millis: Duration::from_secs(10),
        ..BrokerConfig::default()
    })
    .await;
    node.replica.follow(None);
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    let client = node.client_in_memory();
    for (seconds, code) in [(0, 77), (2, response::SERVICE_NOT_AVAILABLE)] {
        let commit = Command::request(request::UPDATE_CONSUMER_OFFSET);
        let commit = commit.with_header(&UpdateConsumerOffset::default());
        let (client, addr) = (client.clone(), node.addr.clone());
        let committing =
            tokio::spawn(async move { client.call(&addr, commit, PATIENCE).await.unwrap() });
        until("it is held", || node.broker.forwarding.held() > 0).await;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        node.replica.follow(Some("leader:1"));
        assert_eq!(committing.await.unwrap().code, code);
        node.replica.follow(None);
    }
}

/// The offset that it commits is that of the time when it began to wait.
#[tokio::test]
async fn a_pull_that_waited_does_not_go_on_to_the_next_leader() {
    let node = Node::start().await;
    node.sent(send("", b"first")).await;
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    let client = Client::default();
    let waiting = wait_for(&node, &client, &next_message()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.replica.follow(Some("leader:2"));
    let answer = waiting.await.unwrap();
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
    let again = pull_request(&next_message());
    let answer = client.call(&node.addr, again, PATIENCE).await.unwrap();
    assert_eq!(answer.code, 77);
}

#[tokio::test]
async fn an_unreachable_leader_is_one_that_is_not_there_yet() {
    let node = Node::start().await;
    node.replica.follow(Some("dead:1"));
    let client = Client::default();
    let addr = node.addr.clone();
    let sending =
        tokio::spawn(async move { client.call(&addr, send("", b"1"), PATIENCE).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(100)).await;
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    assert_eq!(sending.await.unwrap().code, 77);
}

#[tokio::test(start_paused = true)]
async fn what_another_node_forwarded_is_not_forwarded_again() {
    let node = Node::start().await;
    node.replica.follow(Some("leader:1"));
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    // `ask` comes as if another node had forwarded it.
    assert_eq!(
        node.told(send("", b"1")).await.code,
        response::SERVICE_NOT_AVAILABLE
    );
}

#[tokio::test]
async fn a_forwarded_frame_is_answered_as_a_frame() {
    let node = Node::start().await;
    let mut out = BytesMut::new();
    send("", b"1").encode(&mut out);
    let raw = out.split_off(4).freeze();
    let client = "10.0.0.7:1".parse().unwrap();
    let broker = Arc::clone(&node.broker);
    let frame = crate::broker::dispatch::forwarded(broker, client, raw)
        .await
        .unwrap()
        .unwrap();
    let answer = Command::decode(frame).unwrap();
    assert_eq!(answer.code, response::SUCCESS);

    let mut out = BytesMut::new();
    pull_request(&pull(0)).encode(&mut out);
    let raw = out.split_off(4).freeze();
    node.pulled(&pull(0)).await;
    let frame = crate::broker::dispatch::forwarded(Arc::clone(&node.broker), client, raw)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bodies(&Command::decode(frame).unwrap()), [b"1"]);
}

#[tokio::test]
async fn a_new_leader_has_what_every_broker_has() {
    let node = Node::start().await;
    let state = node.replica.meta.read();
    for topic in [
        "TBW102",
        "SCHEDULE_TOPIC_XXXX",
        "DefaultCluster",
        "SELF_TEST_TOPIC",
    ] {
        assert!(state.topics.contains_key(topic), "{topic}");
    }
    assert_eq!(state.topics["SCHEDULE_TOPIC_XXXX"].write_queues, 18);
    assert!(state.groups.contains_key("CID_ONSAPI_OWNER"));
}

#[tokio::test(start_paused = true)]
async fn who_forwards_is_told_that_nothing_was_done() {
    let node = Node::start().await;
    node.replica.follow(Some("leader:1"));
    let mut out = BytesMut::new();
    send("", b"1").encode(&mut out);
    let raw = out.split_off(4).freeze();
    let client = "10.0.0.7:1".parse().unwrap();
    let answer = crate::broker::dispatch::forwarded(Arc::clone(&node.broker), client, raw).await;
    assert_eq!(answer, Err(crate::raft::NotLeader));
}

#[tokio::test]
async fn what_a_leader_could_not_begin_its_successor_does() {
    let node = Node::start().await;
    let client = Client::default();
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    let sending = {
        let (client, addr) = (client.clone(), node.addr.clone());
        // Leadership goes while the proposal is on its way.
        *node.replica.failure.lock().unwrap() = Some(crate::broker::ProposeError::NotLeader);
        node.replica.gate.forget_permits(Semaphore::MAX_PERMITS);
        tokio::spawn(async move { client.call(&addr, send("", b"1"), PATIENCE).await.unwrap() })
    };
    tokio::task::yield_now().await;
    node.replica.follow(Some("leader:2"));
    node.replica.gate.add_permits(Semaphore::MAX_PERMITS);
    assert_eq!(sending.await.unwrap().code, 77);
}

#[tokio::test]
async fn a_held_request_goes_with_its_connection() {
    let node = Node::start().await;
    node.replica.follow(None);
    let client = Client::default();
    let held = || node.broker.forwarding.held();
    let sending = {
        let (client, addr) = (client.clone(), node.addr.clone());
        tokio::spawn(async move { client.call(&addr, send("", b"1"), PATIENCE).await })
    };
    until("it is held", || held() > 0).await;
    client.disconnect(&node.addr).await;
    assert!(sending.await.unwrap().is_err());
    until("it is given up", || held() == 0).await;
    node.replica.become_leader(2);
    assert_eq!(node.replica.queues.max_offset("T", 0).as_i64(), 0);
}

#[tokio::test]
async fn no_more_is_held_than_there_is_room_for() {
    let node = Node::with(BrokerConfig {
        group_hold_millis: Duration::from_secs(600),
        ..BrokerConfig::default()
    })
    .await;
    node.replica.follow(None);
    let places: Vec<_> = (0..10_000)
        .map(|_| node.broker.forwarding.hold(1).unwrap())
        .collect();
    let client = Client::default();
    let refused = client.call(&node.addr, send("", b"1"), PATIENCE).await;
    assert_eq!(refused.unwrap().code, response::SERVICE_NOT_AVAILABLE);
    drop(places);
    assert!(node.broker.forwarding.hold(65 << 20).is_none());
    assert_eq!(node.broker.forwarding.held(), 0);
}

#[tokio::test]
async fn a_load_balancer_is_told_the_role() {
    let node = Node::start().await;
    for (leads, path, expected) in [
        (true, "/leader", "200"),
        (true, "/follower", "503"),
        (false, "/leader", "503"),
        (false, "/follower", "200"),
        (false, "/else", "404"),
    ] {
        match leads {
            true => node.replica.become_leader(2),
            false => node.replica.follow(Some("leader:1")),
        }
        let mut socket = TcpStream::connect(&node.addr).await.unwrap();
        // As it may arrive.
        for part in ["GE", "T ", path, " HTTP/1.1\r\nHost: x\r", "\n\r\n"] {
            socket.write_all(part.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut answer = Vec::new();
        // It ends as all connections do, behind the answer.
        socket.read_to_end(&mut answer).await.unwrap_err();
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{path}: {answer}"
        );
        assert_eq!(
            answer.contains("\"serving\":true"),
            leads && expected != "404",
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_follower_gives_out_what_is_committed_and_claims_nothing_else() {
    let node = Node::with(BrokerConfig {
        dleger_self_id: "n1".to_owned(),
        slave_read_enable: true,
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("", b"1")).await;
    let mut wanted = pull(0);
    wanted.sys_flag |= pull_sys_flag::SUSPEND;
    wanted.suspend_timeout_millis = 60_000;
    node.pulled(&wanted).await;
    node.replica.follow(Some("leader:1"));
    *node.replica.leader.lock().unwrap() = Some(leader(77));

    let client = Client::default();
    let ask = |wanted: &PullMessage| {
        let (client, addr) = (client.clone(), node.addr.clone());
        let command = pull_request(wanted);
        async move { client.call(&addr, command, PATIENCE).await.unwrap() }
    };
    let answer = ask(&wanted).await;
    assert_eq!(
        (answer.code, bodies(&answer)),
        (response::SUCCESS, vec![b"1".to_vec()])
    );
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.suggest_which_broker_id, 2, "its own id");
    // Beyond its end, in a topic that it does not know, and without a wait: for the leader to say.
    for (offset, topic, suspend) in [(5, "T", true), (0, "U", true), (1, "T", false)] {
        let mut wanted = wanted.clone();
        wanted.queue_offset = offset;
        wanted.topic = topic.to_owned();
        if !suspend {
            wanted.sys_flag &= !pull_sys_flag::SUSPEND;
        }
        assert_eq!(ask(&wanted).await.code, 77, "{offset} {topic} {suspend}");
    }
    // Without a leader it goes on with what it has, and sends nobody to a leader that may be dead.
    node.replica.follow(None);
    let mut first = wanted.clone();
    first.queue_offset = 0;
    assert_eq!(bodies(&ask(&first).await), [b"1"]);
    wanted.queue_offset = 1;
    let held = tokio::spawn(ask(&wanted));
    until("it is held", || node.broker.forwarding.held() > 0).await;
    node.replica.follow(Some("leader:1"));
    let answer = held.await.unwrap();
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.suggest_which_broker_id, 2, "its own id");
    // At its end it waits, here for a message that it gets from the leader.
    wanted.queue_offset = 1;
    let waiting = tokio::spawn(ask(&wanted));
    until("it waits", || !node.broker.holds.is_empty()).await;
    node.replica.replicate("T", b"2");
    let answer = waiting.await.unwrap();
    assert_eq!(bodies(&answer), [b"2"]);
    // When the time is up it does not say that there is nothing.
    wanted.queue_offset = 2;
    wanted.suspend_timeout_millis = 10;
    assert_eq!(ask(&wanted).await.code, response::PULL_RETRY_IMMEDIATELY);
}

#[tokio::test]
async fn a_leader_that_is_behind_a_follower_names_no_end() {
    let node = Node::with(BrokerConfig {
        dleger_self_id: "n1".to_owned(),
        slave_read_enable: true,
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("", b"1")).await;
    // The consumer has read the next message from a follower.
    let mut wanted = pull(2);
    wanted.sys_flag |= pull_sys_flag::SUSPEND;
    wanted.suspend_timeout_millis = 60_000;
    let (client, addr) = (Client::default(), node.addr.clone());
    let command = pull_request(&wanted);
    let asked = tokio::spawn(async move { client.call(&addr, command, PATIENCE).await.unwrap() });
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.replica.replicate("T", b"2");
    node.replica.replicate("T", b"3");
    let answer = asked.await.unwrap();
    assert_eq!(
        (answer.code, bodies(&answer)),
        (response::SUCCESS, vec![b"3".to_vec()])
    );
    // It leads anew: to an old route id 0 is somebody else.
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.suggest_which_broker_id, 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_frozen_leader_is_told_when_another_one_leads() {
    let node = Node::start().await;
    node.replica.follow(Some("frozen:1"));
    node.replica.is_frozen.store(true, Ordering::Relaxed);
    let client = node.client_in_memory();
    let sending = {
        let (client, addr) = (client.clone(), node.addr.clone());
        tokio::spawn(async move { client.call(&addr, send("", b"1"), PATIENCE).await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = tokio::time::Instant::now();
    node.replica.follow(Some("leader:2"));
    let answer = sending.await.unwrap();
    assert_eq!(answer.code, response::SYSTEM_ERROR);
    assert!(answer.remark.unwrap().contains("outcome unknown"));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn what_never_left_for_a_leader_goes_to_the_next_one() {
    let node = Node::start().await;
    node.replica.follow(Some("gone:1"));
    node.replica.is_cut_off.store(true, Ordering::Relaxed);
    let client = node.client_in_memory();
    let sending = {
        let (client, addr) = (client.clone(), node.addr.clone());
        tokio::spawn(async move { client.call(&addr, send("", b"1"), PATIENCE).await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.replica.is_cut_off.store(false, Ordering::Relaxed);
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    node.replica.follow(Some("leader:2"));
    assert_eq!(sending.await.unwrap().code, 77);
}

#[tokio::test(start_paused = true)]
async fn a_leader_tells_which_followers_do_not_answer() {
    let node = Node::with(BrokerConfig {
        group_alias_routes: true,
        ..BrokerConfig::default()
    })
    .await;
    let mut told = node.broker.silent.subscribe();
    let mut told = async || {
        told.changed().await.unwrap();
        told.borrow_and_update().clone()
    };
    let never_heard = MemberStatus {
        acked_ms: None,
        ..member(4, 0)
    };
    let members = vec![member(2, 10), member(3, 60_000), never_heard];
    *node.replica.members.lock().unwrap() = members;
    assert_eq!(told().await, [4, 5]);
    *node.replica.members.lock().unwrap() = vec![member(2, 10), member(3, 10)];
    assert!(told().await.is_empty());
    *node.replica.members.lock().unwrap() = vec![member(2, 60_000), member(3, 10)];
    assert_eq!(told().await, [3]);
    node.replica.follow(Some("leader:2"));
    assert!(told().await.is_empty(), "that is for the leader to say");
    // Who has just been elected has heard of nobody yet.
    node.replica.become_leader(3);
    let begun = tokio::time::Instant::now();
    assert_eq!(told().await, [3]);
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

/// A follower that keeps up.
fn member(id: u64, acked_ms: u64) -> MemberStatus {
    MemberStatus {
        node: id << 48 | 1,
        raft_addr: String::new(),
        broker_addr: String::new(),
        voter: true,
        match_index: Some(1),
        lag: Some(0),
        acked_ms: Some(acked_ms),
    }
}

/// The broker id at which a pull is to be repeated.
async fn sent_to(node: &Node, client: &Client, pull: &PullMessage) -> i64 {
    let answer = client.call(&node.addr, pull_request(pull), PATIENCE).await;
    let answer = answer.unwrap();
    assert_eq!(answer.code, response::PULL_RETRY_IMMEDIATELY);
    let header: PullMessageResponse = answer.header().unwrap();
    assert_eq!(header.next_begin_offset, pull.queue_offset);
    header.suggest_which_broker_id
}

/// Until it has gone where it is not sent away from.
async fn all_sent_to(node: &Node, client: &Client) -> BTreeSet<i64> {
    let mut ids = BTreeSet::new();
    for _ in 0..20 {
        let mut wanted = pull(0);
        // There is nothing: it would wait.
        wanted.sys_flag |= pull_sys_flag::SUSPEND;
        wanted.suspend_timeout_millis = 60_000;
        ids.insert(sent_to(node, client, &wanted).await);
    }
    ids
}

#[tokio::test]
async fn who_stops_sends_its_consumers_to_other_nodes() {
    let config = || BrokerConfig {
        dleger_self_id: "n1".to_owned(),
        slave_read_enable: true,
        ..BrokerConfig::default()
    };
    let client = Client::default();
    let node = Node::with(config()).await;
    node.sent(send("", b"1")).await;
    node.replica.follow(Some("leader:1"));
    node.broker.drain().await;
    node.broker.leave();
    // Where the route is old, 0 is this node; the leader is found by its own id then.
    node.replica.is_frozen.store(true, Ordering::Relaxed);
    assert_eq!(all_sent_to(&node, &client).await, BTreeSet::from([0, 7]));
    let begun = Instant::now();
    node.broker.left().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(300),
        "nobody came any more"
    );

    let node = Node::with(config()).await;
    node.sent(send("", b"1")).await;
    *node.replica.members.lock().unwrap() = vec![member(2, 10), member(3, 60_000)];
    node.broker.drain().await;
    node.broker.leave();
    node.replica.is_frozen.store(true, Ordering::Relaxed);
    assert_eq!(
        all_sent_to(&node, &client).await,
        BTreeSet::from([3]),
        "n2 lives"
    );
}

#[tokio::test]
async fn a_lame_duck_answers_while_another_node_leads() {
    let node = Node::with(BrokerConfig {
        lame_duck_millis: Duration::from_secs(600),
        ..BrokerConfig::default()
    })
    .await;
    node.replica.follow(Some("leader:1"));
    node.broker.drain().await;
    node.broker.leave();
    let broker = Arc::clone(&node.broker);
    let lame_duck = tokio::spawn(async move { broker.linger().await });
    node.replica.follow(Some("leader:2"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!lame_duck.is_finished(), "the one or the other leads");
    // That one has gone too, and this one was elected.
    let transfers = || node.replica.transfers.available_permits();
    let before = transfers();
    node.replica.become_leader(3);
    timeout(PATIENCE, lame_duck).await.unwrap().unwrap();
    assert_eq!(transfers(), before - 1, "leadership was handed on");

    let node = Node::with(BrokerConfig::default()).await;
    node.replica.follow(Some("leader:1"));
    timeout(PATIENCE, node.broker.linger()).await.unwrap();
}

/// A node whose address moves with the leader, which it is; leadership does not go before the test lets it.
async fn at_a_moving_address() -> Node {
    let node = Node::with(BrokerConfig {
        dleger_self_id: "n1".to_owned(),
        slave_read_enable: true,
        broker_vip: Some(Vip {
            ip: Ipv4Addr::LOCALHOST,
            place: None,
        }),
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("", b"1")).await;
    *node.replica.members.lock().unwrap() = vec![member(2, 10), member(3, 60_000)];
    node.replica
        .transfers
        .forget_permits(Semaphore::MAX_PERMITS);
    node
}

/// A pull that waits for the second message of its queue.
fn next_message() -> PullMessage {
    PullMessage {
        sys_flag: pull_sys_flag::SUBSCRIPTION | pull_sys_flag::SUSPEND,
        suspend_timeout_millis: 600_000,
        ..pull(1)
    }
}

/// Its answer to come, once it waits.
async fn wait_for(node: &Node, client: &Client, wanted: &PullMessage) -> JoinHandle<Command> {
    let (client, addr, command) = (client.clone(), node.addr.clone(), pull_request(wanted));
    let waiting = tokio::spawn(async move { client.call(&addr, command, PATIENCE).await.unwrap() });
    until("it waits", || !node.broker.holds.is_empty()).await;
    waiting
}

/// A Go client waits for 30 s for an answer on a connection that has ended.
#[tokio::test]
async fn consumers_leave_an_address_before_it_moves() {
    let node = at_a_moving_address().await;
    let client = Client::default();
    let wanted = next_message();
    let waiting = wait_for(&node, &client, &wanted).await;
    let handing_over = {
        let broker = Arc::clone(&node.broker);
        tokio::spawn(async move { broker.hand_over(None).await.unwrap() })
    };
    let answer: PullMessageResponse = waiting.await.unwrap().header().unwrap();
    assert_eq!(answer.suggest_which_broker_id, 3, "n2, which lives");
    assert!(node.broker.is_serving(), "it moves before they have left");
    node.replica.transfers.add_permits(1);
    handing_over.await.unwrap();
    assert_eq!(*node.broker.moving.borrow(), 0);
    // As long as it has the address it sends them to who leads, by its own id.
    node.replica.is_frozen.store(true, Ordering::Relaxed);
    assert_eq!(sent_to(&node, &client, &wanted).await, 7);
}

#[tokio::test]
async fn consumers_stay_at_an_address_when_its_hand_over_is_given_up() {
    let node = at_a_moving_address().await;
    let client = Client::default();
    let handing_over = {
        let broker = Arc::clone(&node.broker);
        tokio::spawn(async move { broker.hand_over(None).await })
    };
    until("it begins", || *node.broker.moving.borrow() == 1).await;
    let wanted = next_message();
    assert_eq!(sent_to(&node, &client, &wanted).await, 3);
    handing_over.abort();
    assert!(handing_over.await.unwrap_err().is_cancelled());
    assert_eq!(*node.broker.moving.borrow(), 0);
    let waiting = wait_for(&node, &client, &wanted).await;
    node.sent(send("", b"2")).await;
    assert_eq!(bodies(&waiting.await.unwrap()), [b"2"]);
}

#[tokio::test]
async fn nobody_is_sent_to_a_node_that_says_that_it_goes() {
    let node = Node::with(BrokerConfig {
        slave_read_enable: true,
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("", b"1")).await;
    *node.replica.members.lock().unwrap() = vec![member(2, 10), member(3, 10)];
    // Has it look anew.
    node.replica.become_leader(2);
    let client = Client::default();
    let suggested = || async {
        let mut ids = BTreeSet::new();
        for queue_id in 0..2 {
            let wanted = PullMessage {
                queue_id,
                ..pull(0)
            };
            let answer = client
                .call(&node.addr, pull_request(&wanted), PATIENCE)
                .await;
            let header: PullMessageResponse = answer.unwrap().header().unwrap();
            ids.insert(header.suggest_which_broker_id);
        }
        ids
    };
    until_ok("it has looked", async || {
        let found = suggested().await;
        if found == BTreeSet::from([3, 4]) {
            Ok(())
        } else {
            Err(found)
        }
    })
    .await;
    let goodbye = || {
        let mut command = Command::request(request::RAFT_LEAVING);
        command.ext.insert("brokerId", 3);
        command
    };
    // Only a node may say so.
    let answer = client.call(&node.addr, goodbye(), PATIENCE).await.unwrap();
    assert_eq!(answer.code, response::REQUEST_CODE_NOT_SUPPORTED);
    assert_eq!(node.told(goodbye()).await.code, response::SUCCESS);
    assert_eq!(suggested().await, BTreeSet::from([4]));
    // With the next look too.
    node.replica.become_leader(3);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(suggested().await, BTreeSet::from([4]));
}

#[tokio::test]
async fn whoever_led_is_not_asked_by_its_own_id_and_answers_by_the_one_it_was_found_by() {
    let node = Node::with(BrokerConfig {
        dleger_self_id: "n1".to_owned(),
        slave_read_enable: true,
        ..BrokerConfig::default()
    })
    .await;
    node.sent(send("", b"1")).await;
    node.pulled(&pull(0)).await;
    let client = Client::default();
    node.replica.follow(Some("leader:1"));
    *node.replica.leader.lock().unwrap() = Some(leader(77));
    for (flag, id) in [(0, 2), (pull_sys_flag::COMMIT_OFFSET, 0)] {
        let mut wanted = pull(0);
        wanted.sys_flag |= flag;
        let answer = client
            .call(&node.addr, pull_request(&wanted), PATIENCE)
            .await;
        let header: PullMessageResponse = answer.unwrap().header().unwrap();
        assert_eq!(header.suggest_which_broker_id, id);
    }
    // n6 led before; only n2 can be found by its id in routes of that time.
    *node.replica.members.lock().unwrap() = vec![member(2, 10), member(6, 10)];
    node.replica.become_leader(2);
    until_ok("it has looked", async || {
        let answer = client
            .call(&node.addr, pull_request(&pull(0)), PATIENCE)
            .await;
        let header: PullMessageResponse = answer.unwrap().header().unwrap();
        match header.suggest_which_broker_id {
            3 => Ok(()),
            2 => Err(2),
            other => panic!("{other}"),
        }
    })
    .await;
}
