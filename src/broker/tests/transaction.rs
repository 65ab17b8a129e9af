use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rmq_wire::body::{HeartbeatData, ProducerData};
use rmq_wire::header::{CheckTransactionState, EndTransaction, UpdateConsumerOffset};
use rmq_wire::record::sys_flag::{TRANSACTION_COMMIT, TRANSACTION_PREPARED, TRANSACTION_ROLLBACK};
use rmq_wire::{msg_id, name, properties};

use super::clients::Client;
use super::*;
use crate::broker::refusal::Refusal;
use crate::broker::replica::ProposeError;
use crate::broker::transaction::{Ends, State};
use crate::config::BrokerConfig;
use crate::meta::{Change, OffsetCommit};

const HALVES: &str = name::TRANS_HALF_TOPIC;
const OVER: &str = name::TRANS_OP_HALF_TOPIC;

/// A node that asks at once, and gives up after so many times.
async fn impatient(check_max: u32) -> Node {
    Node::with(BrokerConfig {
        transaction_time_out: Duration::ZERO,
        transaction_check_interval: Duration::from_millis(10),
        transaction_check_max: check_max,
        ..BrokerConfig::default()
    })
    .await
}

fn half(more: &str) -> Command {
    let properties =
        format!("TRAN_MSG\x01true\x02PGROUP\x01p\x02UNIQ_KEY\x01u1\x02WAIT\x01true{more}");
    send_with(|header| {
        header.properties = properties.leak();
        header.sys_flag = TRANSACTION_PREPARED;
        header.queue_id = 1;
    })
    .with_body("paid".into())
}

fn ended(sent: &SendMessageResponse, how: i32) -> EndTransaction {
    let (_, offset) = msg_id::decode(&sent.msg_id).unwrap();
    EndTransaction {
        producer_group: "p".to_owned(),
        tran_state_table_offset: sent.queue_offset,
        commit_log_offset: offset,
        commit_or_rollback: how,
        msg_id: "u1".to_owned(),
        ..EndTransaction::default()
    }
}

fn end(end: &EndTransaction) -> Command {
    Command::request(request::END_TRANSACTION).with_header(end)
}

fn from_queue(topic: &str, queue_id: i32) -> PullMessage {
    PullMessage {
        topic: topic.to_owned(),
        queue_id,
        ..pull(0)
    }
}

impl Node {
    async fn ends(&self, sent: &SendMessageResponse, how: i32) {
        let answer = self.told(end(&ended(sent, how))).await;
        assert_eq!(answer.code, response::SUCCESS, "{answer:?}");
    }

    fn count(&self, topic: &str, queue_id: i32) -> u64 {
        self.replica.queues.max_offset(topic, queue_id).0
    }
}

#[tokio::test]
async fn a_half_message_is_seen_once_it_is_committed() {
    let node = Node::start().await;
    let sent = node.sent(half("")).await;
    assert_eq!((sent.queue_id, sent.queue_offset), (1, 0));
    assert_eq!((node.count("T", 1), node.count(HALVES, 0)), (0, 1));
    node.ends(&sent, TRANSACTION_COMMIT).await;

    let answer = node.pulled(&from_queue("T", 1)).await;
    let record = Record::decode(&answer.body).unwrap();
    let (_, half) = msg_id::decode(&sent.msg_id).unwrap();
    assert_eq!((record.topic, record.body), ("T", &b"paid"[..]));
    assert_eq!(record.sys_flag, TRANSACTION_COMMIT);
    assert_eq!(record.prepared_transaction_offset, half);
    // As Java leaves them: a consumer reads the id of the transaction out of them.
    for (key, value) in [
        (properties::TRANSACTION_PREPARED, "true"),
        (properties::PRODUCER_GROUP, "p"),
        (properties::UNIQ_KEY, "u1"),
        (properties::WAIT_STORE_MSG_OK, "true"),
        (properties::REAL_TOPIC, "T"),
        (properties::REAL_QUEUE_ID, "1"),
    ] {
        assert_eq!(record.property(key).as_deref(), Some(value), "{key}");
    }
    let answer = node.pulled(&from_queue(OVER, 0)).await;
    let over = Record::decode(&answer.body).unwrap();
    assert_eq!(over.body, b"0");
    assert_eq!(over.property(properties::TAGS).as_deref(), Some("d"));
}

#[tokio::test]
async fn what_is_rolled_back_or_not_known_is_not_seen() {
    let node = Node::start().await;
    let rolled_back = node.sent(half("")).await;
    let unknown = node.sent(half("")).await;
    node.ends(&rolled_back, TRANSACTION_ROLLBACK).await;
    assert_eq!(node.ask(end(&ended(&unknown, 0))).await, None);
    assert_eq!((node.count("T", 1), node.count(OVER, 0)), (0, 1));
    // The second may still be ended, the first not.
    node.ends(&rolled_back, TRANSACTION_COMMIT).await;
    assert_eq!((node.count("T", 1), node.count(OVER, 0)), (0, 1));
    node.ends(&unknown, TRANSACTION_COMMIT).await;
    assert_eq!((node.count("T", 1), node.count(OVER, 0)), (1, 2));
}

#[tokio::test]
async fn a_delay_begins_with_the_commit() {
    let node = Node::start().await;
    let sent = node.sent(half("\x02DELAY\x0118")).await;
    assert_eq!(
        (node.count(HALVES, 0), node.count(name::SCHEDULE_TOPIC, 17)),
        (1, 0)
    );
    node.ends(&sent, TRANSACTION_COMMIT).await;
    assert_eq!(
        (node.count("T", 1), node.count(name::SCHEDULE_TOPIC, 17)),
        (0, 1)
    );
}

#[tokio::test]
async fn an_end_names_its_half_message() {
    let node = Node::start().await;
    let sent = node.sent(half("")).await;
    let plain = node.sent(send("PGROUP\x01p", b"x")).await;
    let right = ended(&sent, TRANSACTION_COMMIT);
    let wrong = [
        (
            "group",
            EndTransaction {
                producer_group: "q".to_owned(),
                ..right.clone()
            },
        ),
        (
            "state table",
            EndTransaction {
                tran_state_table_offset: 1,
                ..right.clone()
            },
        ),
        (
            "Find",
            EndTransaction {
                commit_log_offset: right.commit_log_offset + 1,
                ..right.clone()
            },
        ),
        (
            "Find",
            EndTransaction {
                commit_log_offset: -1,
                ..right.clone()
            },
        ),
        (
            "Find",
            EndTransaction {
                commit_log_offset: i64::MAX,
                ..right.clone()
            },
        ),
        ("Find", ended(&plain, TRANSACTION_COMMIT)),
    ];
    for (why, wrong) in wrong {
        let answer = node.told(end(&wrong)).await;
        assert_eq!(answer.code, response::SYSTEM_ERROR, "{wrong:?}");
        assert!(answer.remark.unwrap().contains(why), "{wrong:?}");
    }
    assert_eq!((node.count("T", 1), node.count(OVER, 0)), (0, 0));
    node.ends(&sent, TRANSACTION_COMMIT).await;
    assert_eq!(node.count("T", 1), 1);
}

#[tokio::test]
async fn half_messages_can_be_switched_off() {
    let node = Node::with(BrokerConfig {
        reject_transaction_message: true,
        ..BrokerConfig::default()
    })
    .await;
    assert_eq!(node.told(half("")).await.code, response::NO_PERMISSION);
}

#[tokio::test]
async fn an_end_that_was_not_stored_can_be_said_again() {
    let node = Node::start().await;
    let sent = node.sent(half("")).await;
    node.ends(&node.sent(half("")).await, TRANSACTION_ROLLBACK)
        .await;
    let fail = |error| *node.replica.failure.lock().unwrap() = Some(error);

    fail(ProposeError::Failed("full".to_owned()));
    let answer = node.told(end(&ended(&sent, TRANSACTION_COMMIT))).await;
    assert_eq!(answer.code, response::SERVICE_NOT_AVAILABLE);
    // This one may yet be stored, so in this term nobody ends the transaction any more.
    for error in [Some(ProposeError::Unknown), None] {
        error.map(fail);
        let answer = node.told(end(&ended(&sent, TRANSACTION_COMMIT))).await;
        assert_eq!(answer.code, response::SYSTEM_ERROR);
    }
    assert_eq!(node.count("T", 1), 0);
    // The next leader sees that it was not.
    node.replica.become_leader(2);
    node.ends(&sent, TRANSACTION_COMMIT).await;
    node.ends(&sent, TRANSACTION_COMMIT).await;
    assert_eq!(node.count("T", 1), 1);
}

fn producer() -> Command {
    Command::request(request::HEART_BEAT).with_json(&HeartbeatData {
        client_id: "c".to_owned(),
        producer_data_set: vec![ProducerData {
            group_name: "p".to_owned(),
        }],
        ..HeartbeatData::default()
    })
}

#[tokio::test]
async fn a_producer_is_asked_for_what_it_left_open() {
    let node = impatient(u32::MAX).await;
    let sent = node.sent(half("")).await;
    let immune = node
        .sent(half("\x02CHECK_IMMUNITY_TIME_IN_SECONDS\x01600"))
        .await;
    let mut client = Client::connect(&node).await;
    client.call(producer()).await;

    let asked = client.notice().await;
    assert_eq!(asked.code, request::CHECK_TRANSACTION_STATE);
    let header: CheckTransactionState = asked.header().unwrap();
    let (_, offset) = msg_id::decode(&sent.msg_id).unwrap();
    assert_eq!(
        (header.tran_state_table_offset, header.commit_log_offset),
        (0, offset)
    );
    assert_eq!(header.transaction_id.as_deref(), Some("u1"));
    assert_eq!(header.offset_msg_id, Some(sent.msg_id.clone()));
    let message = Record::decode(&asked.body).unwrap();
    assert!(message.crc_matches());
    assert_eq!(
        (message.topic, message.queue_id, message.body),
        ("T", 1, &b"paid"[..])
    );
    assert_eq!(message.physical_offset, offset);

    let answer = EndTransaction {
        from_transaction_check: true,
        ..ended(&sent, TRANSACTION_COMMIT)
    };
    node.told(end(&answer)).await;
    assert_eq!(node.count("T", 1), 1);
    // What is over goes out of the next leader's sight; the other one is not asked for yet.
    until("the progress is kept", || {
        let state = node.replica.meta.read();
        state.offset(name::TRANS_GROUP, HALVES, 0) == Some(1)
    })
    .await;
    node.replica.become_leader(2);
    node.ends(&sent, TRANSACTION_COMMIT).await;
    assert_eq!(node.count("T", 1), 1);
    node.ends(&immune, TRANSACTION_COMMIT).await;
    assert_eq!(node.count("T", 1), 2);
    until("all is over", || {
        let state = node.replica.meta.read();
        let offset = |topic| state.offset(name::TRANS_GROUP, topic, 0);
        (offset(HALVES), offset(OVER)) == (Some(2), Some(2))
    })
    .await;
}

#[tokio::test]
async fn what_nobody_can_tell_is_put_aside() {
    let node = impatient(2).await;
    // Java has asked once.
    let sent = node.sent(half("\x02TRANSACTION_CHECK_TIMES\x011")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        node.count(name::TRANS_CHECK_MAX_TIME_TOPIC, 0),
        0,
        "nobody was asked"
    );
    let mut client = Client::connect(&node).await;
    client.call(producer()).await;
    assert_eq!(client.notice().await.code, request::CHECK_TRANSACTION_STATE);

    let answer = node
        .pulled(&from_queue(name::TRANS_CHECK_MAX_TIME_TOPIC, 0))
        .await;
    let record = Record::decode(&answer.body).unwrap();
    assert_eq!((record.body, record.sys_flag), (&b"paid"[..], 0));
    assert_eq!(
        record.property(properties::REAL_TOPIC).as_deref(),
        Some("T")
    );
    node.ends(&sent, TRANSACTION_COMMIT).await;
    assert_eq!((node.count("T", 1), node.count(OVER, 0)), (0, 1));
}

#[tokio::test]
async fn what_a_former_term_asks_ends_nothing() {
    let node = Node::start().await;
    let sent = node.sent(half("")).await;
    node.replica.become_leader(3);
    let (_, phy) = msg_id::decode(&sent.msg_id).unwrap();
    let begun = |term| node.broker.transactions.begin(&node.broker, term, (0, phy));
    assert_eq!(begun(2).await, Err(Refusal::NotLeader));
    assert_eq!(begun(3).await, Ok(true));
    // It is under way, whatever a request of an earlier term finds.
    assert_eq!(begun(2).await, Err(Refusal::NotLeader));
    assert!(matches!(begun(3).await, Err(Refusal::Code(..))));
    for place in [(0, phy + 1), (1, phy), (i64::MAX, phy)] {
        let elsewhere = node.broker.transactions.begin(&node.broker, 3, place);
        assert!(
            matches!(elsewhere.await, Err(Refusal::Code(..))),
            "{place:?}"
        );
    }
}

#[tokio::test]
async fn the_progress_is_for_the_broker_to_keep() {
    let node = Node::start().await;
    let first = node.sent(half("")).await;
    node.ends(&first, TRANSACTION_ROLLBACK).await;
    let commit = |offset| OffsetCommit {
        group: name::TRANS_GROUP.to_owned(),
        topic: HALVES.to_owned(),
        queue_id: 0,
        offset,
    };
    let asked = UpdateConsumerOffset {
        consumer_group: name::TRANS_GROUP.to_owned(),
        topic: HALVES.to_owned(),
        commit_offset: 1 << 40,
        ..UpdateConsumerOffset::default()
    };
    let asked = Command::request(request::UPDATE_CONSUMER_OFFSET).with_header(&asked);
    assert_eq!(node.told(asked).await.code, response::NO_PERMISSION);
    // A store may have come with one that is ahead of it.
    let wrong = Change::CommitOffsets(vec![commit(1 << 40)]);
    node.broker.propose(wrong).await.unwrap();
    let sent = node.sent(half("")).await;
    node.replica.become_leader(2);
    node.ends(&sent, TRANSACTION_COMMIT).await;
    assert_eq!(node.count("T", 1), 1);
    until("it is mended", || {
        let state = node.replica.meta.read();
        state.offset(name::TRANS_GROUP, HALVES, 0) == Some(2)
    })
    .await;
}

#[tokio::test]
async fn half_messages_that_could_not_be_ended_are_refused() {
    let node = Node::start().await;
    for properties in [
        "TRAN_MSG\x01true",
        "TRAN_MSG\x01true\x02PGROUP\x01p\x02DELAY\x01soon",
    ] {
        let answer = node.told(send(properties, b"x")).await;
        assert_eq!(answer.code, response::MESSAGE_ILLEGAL, "{properties}");
    }
}

/// A node that follows reads both queues while they grow, and knows all that is open when it comes to lead.
#[tokio::test]
async fn a_follower_knows_what_is_open() {
    let node = Node::start().await;
    let mut open = Vec::new();
    let mut follower = State::default();
    let mut ends = Ends::now(&node.broker);
    for n in 0..300 {
        let sent = node.sent(half("")).await;
        if n % 7 == 0 {
            open.push(sent.queue_offset);
        } else {
            node.ends(&sent, TRANSACTION_ROLLBACK).await;
        }
        // Its look began before some of that was there.
        if n % 3 == 0 && follower.look(&node.broker, ends).unwrap() {
            ends = Ends::now(&node.broker);
        }
    }
    until("it has seen all", || {
        let ends = Ends::now(&node.broker);
        follower.look(&node.broker, ends).unwrap()
    })
    .await;
    assert_eq!(follower.open.keys().copied().collect::<Vec<_>>(), open);
    assert_eq!(follower.progress(), (0, 0));
}

/// Ends are said late, twice and otherwise, leaders come and go, proposals fail: each transaction ends as
/// it was first said with success, once.
#[tokio::test]
async fn a_transaction_ends_once_whoever_leads() {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let node = impatient(u32::MAX).await;
        let mut term = 1;
        let mut halves: Vec<(SendMessageResponse, Option<i32>)> = Vec::new();
        for _ in 0..80 {
            match random.random_range(0..10) {
                0..3 => halves.push((node.sent(half("")).await, None)),
                3 => {
                    term += 1;
                    node.replica.follow(None);
                    node.replica.become_leader(term);
                }
                4 => tokio::time::sleep(Duration::from_millis(15)).await,
                _ if halves.is_empty() => {}
                step => {
                    let at = random.random_range(0..halves.len());
                    let how = [TRANSACTION_COMMIT, TRANSACTION_ROLLBACK][random.random_range(0..2)];
                    let (sent, first) = &mut halves[at];
                    // The progress goes by the same way, and may be what fails.
                    *node.replica.failure.lock().unwrap() =
                        (step == 5).then(|| ProposeError::Failed("full".to_owned()));
                    let answer = node.told(end(&ended(sent, how))).await;
                    node.replica.failure.lock().unwrap().take();
                    if answer.code == response::SUCCESS {
                        first.get_or_insert(how);
                    }
                }
            }
        }
        let ended = |how| halves.iter().filter(|(_, end)| *end == Some(how)).count() as u64;
        let commits = ended(TRANSACTION_COMMIT);
        assert_eq!(node.count("T", 1), commits, "seed {seed}");
        assert_eq!(
            node.count(OVER, 0),
            commits + ended(TRANSACTION_ROLLBACK),
            "seed {seed}"
        );
        assert_eq!(node.count(HALVES, 0), halves.len() as u64);
    }
}
