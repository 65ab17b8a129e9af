//! What real clients asked real brokers is asked again here, in the order of the capture.

use std::collections::{BTreeSet, HashMap};

use rmq_wire::record::sys_flag::TRANSACTION_MASK;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::config::BrokerConfig;
use crate::remoting::captured::{Captured, captured};

/// A connection of the capture, made again.
struct Replayed {
    socket: TcpStream,
    /// Answers that came before they were looked for.
    early: HashMap<i32, Command>,
}

impl Replayed {
    async fn answer(&mut self, opaque: i32) -> Command {
        loop {
            if let Some(answer) = self.early.remove(&opaque) {
                return answer;
            }
            let read = async {
                let len = self.socket.read_u32().await.unwrap();
                let mut frame = vec![0; len as usize];
                self.socket.read_exact(&mut frame).await.unwrap();
                Command::decode(frame.into()).unwrap()
            };
            let frame = tokio::time::timeout(PATIENCE, read).await.unwrap();
            if frame.is_response() {
                self.early.insert(frame.opaque, frame);
            }
        }
    }
}

/// Whether a request can have the same answer here: not if it names a place in the log of that
/// broker, is about SQL, which this one refuses, or waits for what comes of that.
fn is_comparable(request: &Command) -> bool {
    !matches!(
        request.code,
        request::PULL_MESSAGE
            | request::CONSUMER_SEND_MSG_BACK
            | request::VIEW_MESSAGE_BY_ID
            | request::END_TRANSACTION
            | request::CHECK_CLIENT_CONFIG
    )
}

#[tokio::test]
async fn captured_clients_are_answered_as_by_java() {
    // One broker served them one after the other.
    let node = Node::with(BrokerConfig::default()).await;
    for name in [
        "broker-4.9.7.java-client-4.9.8.jsonl.gz",
        "broker-4.9.7.java-client-5.5.0.jsonl.gz",
        "broker-4.9.7.go-client-2.1.2.jsonl.gz",
    ] {
        let Some(frames) = captured(name, "broker") else {
            return;
        };
        let mut conns: HashMap<String, Replayed> = HashMap::new();
        let mut asked: HashMap<(String, i32), Command> = HashMap::new();
        let mut compared = 0;
        for frame in frames {
            let Captured {
                conn,
                from_client,
                bytes,
            } = frame;
            let command = Command::decode(bytes.slice(4..)).unwrap();
            let opaque = command.opaque;
            match (from_client, command.is_response()) {
                (true, false) => {
                    if !conns.contains_key(&conn) {
                        let socket = TcpStream::connect(&node.addr).await.unwrap();
                        conns.insert(
                            conn.clone(),
                            Replayed {
                                socket,
                                early: HashMap::new(),
                            },
                        );
                    }
                    conns
                        .get_mut(&conn)
                        .unwrap()
                        .socket
                        .write_all(&bytes)
                        .await
                        .unwrap();
                    asked.insert((conn, opaque), command);
                }
                (false, true) => {
                    let Some(request) = asked.remove(&(conn.clone(), opaque)) else {
                        continue;
                    };
                    if !is_comparable(&request) {
                        continue;
                    }
                    let ours = conns.get_mut(&conn).unwrap().answer(opaque).await;
                    compared += 1;
                    compare(name, &request, &ours, &command);
                }
                // What a client answers to its broker, and what a broker asks it.
                (true, true) | (false, false) => {}
            }
        }
        assert!(compared > 10, "{name}: {compared}");
    }
}

fn compare(name: &str, request: &Command, ours: &Command, theirs: &Command) {
    let what = format!("{name}: {request:?}\n ours: {ours:?}\n theirs: {theirs:?}");
    assert_eq!(ours.code, theirs.code, "{what}");
    let fields = |command: &Command| {
        command
            .ext
            .iter()
            .map(|(field, _)| field.to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(fields(ours), fields(theirs), "{what}");
    assert_eq!(ours.body.is_empty(), theirs.body.is_empty(), "{what}");
    assert_eq!(ours.serialize, theirs.serialize, "{what}");
    if matches!(
        request.code,
        request::SEND_MESSAGE | request::SEND_MESSAGE_V2
    ) {
        let header = SendMessage::decode(request.code, &request.ext).unwrap();
        assert_eq!(ours.ext.get("queueId"), theirs.ext.get("queueId"), "{what}");
        // This topic also takes delayed messages, whenever those are due; and Java stores a half
        // message anew with each question.
        if header.topic != "CapTopic" && header.sys_flag & TRANSACTION_MASK == 0 {
            assert_eq!(
                ours.ext.get("queueOffset"),
                theirs.ext.get("queueOffset"),
                "{what}"
            );
        }
    }
}
