//! Transactions over the death of a leader, and those that a Java broker left open.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command as Process;

use bytes::{Bytes, BytesMut};
use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use rmq_wire::body::{HeartbeatData, ProducerData};
use rmq_wire::code::{request, response};
use rmq_wire::frame::{self, Command};
use rmq_wire::header::{CheckTransactionState, EndTransaction};
use rmq_wire::record::sys_flag::{TRANSACTION_COMMIT, TRANSACTION_ROLLBACK};
use rmq_wire::{msg_id, name};
use serde_json::Value;

use crate::migrated::{Node, migrate, shared, unpack};
use crate::support::{PATIENCE, Running, free_port, text, until};

const TOPIC: &str = "transactions";
const HALF: &str = "TRAN_MSG\u{1}true\u{2}PGROUP\u{1}p\u{2}";

/// A half message as its producer knows it.
struct Half {
    queue_offset: u64,
    id: String,
}

impl Half {
    fn send(client: &mut Client, body: &str) -> Self {
        let queue_offset = match client.send_with(TOPIC, 0, HALF, body) {
            Outcome::Ok(offset) => offset,
            Outcome::Fail(why) | Outcome::Unknown(why) => panic!("{body}: {why}"),
        };
        let id = until("it can be read", || {
            client
                .message_id(name::TRANS_HALF_TOPIC, 0, queue_offset)
                .ok()
        });
        Self { queue_offset, id }
    }

    /// Says its end until that is acknowledged, to whoever may answer.
    fn end(&self, addresses: &[SocketAddr], how: i32) {
        let end = EndTransaction {
            producer_group: "p".to_owned(),
            tran_state_table_offset: self.queue_offset.try_into().unwrap(),
            commit_log_offset: msg_id::decode(&self.id).unwrap().1,
            commit_or_rollback: how,
            ..EndTransaction::default()
        };
        let end = Command::request(request::END_TRANSACTION).with_header(&end);
        let mut turns = addresses.iter().cycle();
        until("an end is acknowledged", || {
            let mut client = Client::connect(*turns.next()?, PATIENCE).ok()?;
            let answer = client.call(end.clone()).ok()?;
            (answer.code == response::SUCCESS).then_some(())
        });
    }
}

#[test]
fn transactions_end_once_over_the_death_of_a_leader() {
    let mut group = Running::start(&Options::default());
    let leader = group.leading();
    let all = group.addresses().to_vec();
    let mut client = Client::connect(all[leader], PATIENCE).unwrap();
    let halves: Vec<Half> = (0..30)
        .map(|n| Half::send(&mut client, &format!("m{n}")))
        .collect();
    let (committed, later) = halves.split_at(10);
    let (committed_later, rolled_back) = later.split_at(10);
    for half in committed {
        half.end(&all[leader..=leader], TRANSACTION_COMMIT);
    }
    group.cluster().kill(leader).unwrap();
    let living: Vec<SocketAddr> = (0..3).filter(|n| *n != leader).map(|n| all[n]).collect();
    for round in 0..2 {
        for (half, how) in (committed.iter().chain(committed_later))
            .map(|half| (half, TRANSACTION_COMMIT))
            .chain(rolled_back.iter().map(|half| (half, TRANSACTION_ROLLBACK)))
        {
            half.end(&living, how);
        }
        // Then all of it once more, when the node that led before is back.
        if round == 0 {
            group.cluster().start_node(leader).unwrap();
            group.wait_until_even(PATIENCE).unwrap();
        }
    }
    let found = until("the topic is read", || {
        let leader = group.addresses()[group.leader().ok()?];
        let mut client = Client::connect(leader, PATIENCE).ok()?;
        client.read_queue(TOPIC, 0).ok()
    });
    let found: Vec<String> = found.into_iter().map(|(_, body)| body).collect();
    let want: Vec<String> = (0..20).map(|n| format!("m{n}")).collect();
    assert_eq!(found, want);
}

/// What the manifest of an archived store says.
fn manifest(path: &Path) -> Vec<Value> {
    let output = Process::new("xz").arg("-dc").arg(path).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let lines = output.stdout.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// A producer of some groups that says nothing but that it is there.
struct Listening(TcpStream);

impl Listening {
    fn connect(address: SocketAddr, groups: &BTreeSet<String>) -> Option<Self> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let producers = groups.iter().map(|group| ProducerData {
            group_name: group.clone(),
        });
        let mut out = BytesMut::new();
        Command::request(request::HEART_BEAT)
            .with_json(&HeartbeatData {
                client_id: "listening".to_owned(),
                producer_data_set: producers.collect(),
                ..HeartbeatData::default()
            })
            .encode(&mut out);
        stream.write_all(&out).ok()?;
        Some(Self(stream))
    }

    fn next(&mut self) -> Command {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let length = frame::peek_len(&length).unwrap().unwrap();
        let mut frame = vec![0; length];
        self.0.read_exact(&mut frame).unwrap();
        Command::decode(Bytes::from(frame)).unwrap()
    }
}

#[test]
fn producers_are_asked_for_what_a_java_broker_left_open() {
    const ARCHIVE: &str = "classic-4.9.7-clean";
    let Some(root) = shared("fixtures") else {
        return;
    };
    let root = root.join(ARCHIVE);
    let said = manifest(&root.join("broker-a.manifest.jsonl.xz"));
    let halves = || said.iter().filter(|line| line["type"] == "halfMessage");
    let open: BTreeSet<i64> = halves()
        .filter(|half| half["pending"] == true)
        .map(|half| half["halfQueueOffset"].as_i64().unwrap())
        .collect();
    assert!(open.len() > 3 && halves().count() > 2 * open.len());
    let groups = said
        .iter()
        .filter(|line| line["cqTopic"] == name::TRANS_HALF_TOPIC)
        .map(|line| line["properties"]["PGROUP"].as_str().unwrap().to_owned())
        .collect();

    let dir = unpack(&root, |store| store == "broker-a");
    let old = dir.path().join("broker-a");
    let store = dir.path().join("migrated");
    migrate(&old.join("store"), &old.join("broker.conf"), &store, &[]);
    let conf = store.join("conf/broker.conf");
    let more = "transactionTimeOut=100\ntransactionCheckInterval=100\ntransactionCheckMax=1000000";
    let mut node = Node::start(&conf, &store, free_port(), more);
    let mut producer = until("the broker listens", || {
        node.assert_alive();
        Listening::connect(node.address, &groups)
    });
    let mut asked = BTreeSet::new();
    // Each once, and then one of them once more: nothing else was open.
    loop {
        let command = producer.next();
        if command.code != request::CHECK_TRANSACTION_STATE || command.is_response() {
            continue;
        }
        let check: CheckTransactionState = command.header().unwrap();
        if !asked.insert(check.tran_state_table_offset) && asked.len() >= open.len() {
            break;
        }
    }
    assert_eq!(asked, open);
}
