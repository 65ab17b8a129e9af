//! Far more is sent than is taken. The group stays one, keeps its size, refuses what it does not take with a
//! code that clients know, loses nothing that it took, and answers others meanwhile and everybody afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use rmq_wire::code::{request, response};
use rmq_wire::frame::{self, Command};
use rmq_wire::header::SendMessage;
use rmq_wire::name;

use crate::support::Running;

const TOPIC: &str = "overload";
const QUEUE: i32 = 0;
const CONNECTIONS: i32 = 4;
/// Messages of each connection, all sent before an answer is waited for.
const COUNT: i32 = 60;
const BODY: usize = 1 << 20;
/// `requestMemoryMaxBytes`. A quarter of it is for sends and their records: 240 MiB are sent where 16 are taken.
const BUDGET: usize = 128 << 20;
/// For an answer of a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(300);

fn a_send(opaque: i32) -> Command {
    let mut command = Command::request(request::SEND_MESSAGE_V2);
    let header = SendMessage {
        producer_group: "p",
        topic: TOPIC,
        default_topic: name::AUTO_CREATE_TOPIC,
        default_topic_queue_nums: 1,
        queue_id: QUEUE,
        ..SendMessage::default()
    };
    header.encode(command.code, &mut command.ext);
    command.opaque = opaque;
    command.with_body(vec![b'x'; BODY].into())
}

/// Sends all at once, and counts the codes of the answers.
fn flood(leader: SocketAddr) -> BTreeMap<i32, i32> {
    let mut stream = TcpStream::connect(leader).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let mut codes = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for opaque in 0..COUNT {
                let mut out = BytesMut::new();
                a_send(opaque).encode(&mut out);
                writing.write_all(&out).unwrap();
            }
        });
        for _ in 0..COUNT {
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; frame::peek_len(&length).unwrap().unwrap()];
            stream.read_exact(&mut answer).unwrap();
            let answer = Command::decode(Bytes::from(answer)).unwrap();
            *codes.entry(answer.code).or_insert(0) += 1;
        }
    });
    codes
}

/// What is on the process's own heap: mapped files are the page cache's.
fn anonymous_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

/// What a load balancer is told of the leader.
fn health(leader: SocketAddr) -> String {
    let mut stream = TcpStream::connect(leader).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /leader HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_group_takes_what_it_can_of_far_too_much() {
    // The timers are long enough for a machine that works on other things too: elections are to come from
    // load on the group alone.
    let more = format!(
        "requestMemoryMaxBytes={BUDGET}\nwaitTimeMillsInSendQueue=0\nraftHeartbeatIntervalMillis=500\n\
         raftElectionTimeoutMinMillis=10000\nraftElectionTimeoutMaxMillis=15000\n"
    );
    let group = Running::start(&Options {
        more,
        ..Options::default()
    });
    let node = group.leader().unwrap();
    let leader = group.addresses()[node];
    let mut client = Client::connect(leader, PATIENCE).unwrap();
    assert!(matches!(client.send(TOPIC, 0, "before"), Outcome::Ok(0)));
    let term = group.term().unwrap();
    let pids: Vec<u32> = (0..3).map(|node| group.pid(node).unwrap()).collect();
    let before: Vec<usize> = pids.iter().map(|pid| anonymous_bytes(*pid)).collect();

    let over = AtomicBool::new(false);
    let (codes, largest) = std::thread::scope(|scope| {
        let floods: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| flood(leader)))
            .collect();
        let others = scope.spawn(|| {
            let mut largest = vec![0; pids.len()];
            let mut beats = Client::connect(leader, PATIENCE).unwrap();
            while !over.load(Ordering::Relaxed) {
                beats.beat("member", "group", TOPIC).unwrap();
                assert_eq!(health(leader), "HTTP/1.1 200");
                for (largest, pid) in largest.iter_mut().zip(&pids) {
                    *largest = anonymous_bytes(*pid).max(*largest);
                }
            }
            largest
        });
        let mut codes = BTreeMap::new();
        for flood in floods {
            for (code, count) in flood.join().unwrap() {
                *codes.entry(code).or_insert(0) += count;
            }
        }
        over.store(true, Ordering::Relaxed);
        (codes, others.join().unwrap())
    });
    println!("answers by code {codes:?}, largest {largest:?}");

    // Each is answered, stored or refused with the code that Java has for it.
    let count = |code| codes.get(&code).copied().unwrap_or(0);
    let (stored, refused) = (count(response::SUCCESS), count(response::SYSTEM_BUSY));
    assert_eq!(stored + refused, CONNECTIONS * COUNT, "{codes:?}");
    assert!(stored > 0 && refused > 0, "{codes:?}");
    for (largest, before) in largest.iter().zip(before) {
        let grown = largest.saturating_sub(before);
        // What an allocator keeps is not its user's.
        assert!(grown < BUDGET + BUDGET / 4, "the process grew by {grown}");
    }
    assert_eq!(group.term().unwrap(), term);
    assert_eq!(group.leader().unwrap(), node);
    let next = u64::try_from(stored).unwrap() + 1;
    assert_eq!(client.send(TOPIC, 0, "after"), Outcome::Ok(next));
}
