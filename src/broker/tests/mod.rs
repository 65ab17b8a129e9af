//! Requests as clients make them, answered over a real store and a fake group.

mod admin;
mod captured;
mod clients;
mod consume;
mod hostile;
mod produce;
mod reply;
mod retry;
mod roles;
mod tools;
mod tools_and_clients;
mod transaction;

use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{Header, PullMessage, SendMessage, SendMessageResponse, pull_sys_flag};
use rmq_wire::record::Record;

use super::testing::Node;
use crate::config::Peer;
use crate::testing::{PATIENCE, until, until_ok};

/// A send by the short header, to topic `T` with two queues at most.
pub(super) fn send(properties: &str, body: &'static [u8]) -> Command {
    send_to("T", properties, body)
}

/// Three of a group.
fn peers() -> Vec<Peer> {
    let peer = |number: u16| Peer {
        id: format!("n{number}"),
        host: "127.0.0.1".to_owned(),
        port: 40910 + number,
    };
    (0..3).map(peer).collect()
}

fn send_to(topic: &str, properties: &str, body: &'static [u8]) -> Command {
    send_with(|header| {
        header.topic = topic.to_owned().leak();
        header.properties = properties.to_owned().leak();
    })
    .with_body(body.into())
}

fn send_with(change: impl FnOnce(&mut SendMessage<'static>)) -> Command {
    let mut header = SendMessage {
        producer_group: "p",
        topic: "T",
        default_topic: "TBW102",
        default_topic_queue_nums: 2,
        born_timestamp: 5,
        ..SendMessage::default()
    };
    change(&mut header);
    let mut command = Command::request(request::SEND_MESSAGE_V2);
    header.encode(request::SEND_MESSAGE_V2, &mut command.ext);
    command
}

fn pull(offset: i64) -> PullMessage {
    PullMessage {
        consumer_group: "g".to_owned(),
        topic: "T".to_owned(),
        queue_offset: offset,
        max_msg_nums: 32,
        sys_flag: pull_sys_flag::SUBSCRIPTION,
        subscription: Some("*".to_owned()),
        ..PullMessage::default()
    }
}

fn pull_request(pull: &PullMessage) -> Command {
    Command::request(request::PULL_MESSAGE).with_header(pull)
}

/// What an answer to a pull brought.
fn bodies(answer: &Command) -> Vec<Vec<u8>> {
    let mut rest = &answer.body[..];
    let mut bodies = Vec::new();
    while !rest.is_empty() {
        let record = Record::decode(rest).unwrap();
        bodies.push(record.body.to_vec());
        rest = &rest[record.size..];
    }
    bodies
}

/// What comes at once, however long the machine takes: the broker's clock stands still.
async fn at_once<T>(what: impl Future<Output = T>) -> T {
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    // As long as something blocks the clock does not go on by itself.
    let (over, wait) = std::sync::mpsc::channel::<()>();
    let blocking = tokio::task::spawn_blocking(move || wait.recv_timeout(PATIENCE).is_err());
    let came = what.await;
    drop(over);
    blocking.await.unwrap();
    assert!(begun.elapsed().is_zero(), "it came as time passed");
    tokio::time::resume();
    came
}

impl Node {
    /// Sends, and gives the header of the successful answer.
    async fn sent(&self, command: Command) -> SendMessageResponse {
        let answer = self.told(command).await;
        assert_eq!(answer.code, response::SUCCESS, "{answer:?}");
        answer.header().unwrap()
    }

    /// Pulls until there is something, once all that was sent can be read.
    async fn pulled(&self, wanted: &PullMessage) -> Command {
        until_ok("something comes", async || {
            if self.replica.queues.dispatched() < self.replica.reader.confirm_offset() {
                return Err("not all is dispatched".to_owned());
            }
            let answer = self.told(pull_request(wanted)).await;
            match answer.code {
                response::SUCCESS => Ok(answer),
                _ => Err(format!("{answer:?}")),
            }
        })
        .await
    }

    async fn asked<H: Header>(&self, code: i32, header: &impl Header) -> H {
        let answer = self.told(Command::request(code).with_header(header)).await;
        assert_eq!(answer.code, response::SUCCESS, "{answer:?}");
        answer.header().unwrap()
    }
}
