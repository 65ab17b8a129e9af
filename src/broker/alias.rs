//! The port behind the further names of a group, see `namesrv::routes::alias`: what is sent to one of
//! these names arrives here, at a node that most likely does not lead, and is answered as anywhere.
//!
//! Tools add up what all broker names of a route say of a topic or a group. The group has said it under
//! its own name, so here there is nothing more to add.

use std::sync::Arc;
use std::time::Duration;

use rmq_wire::body::{
    ConsumeStats, HeartbeatData, QueryConsumeTimeSpanBody, ResetOffsetBody, TopicStatsTable,
};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::json::JsonError;
use serde::Serialize;

use super::Broker;
use super::dispatch::frame;
use crate::remoting::{Class, Conn, Health, Reply, Request, Service};

/// Answers what is asked by a further name.
pub(super) struct AliasPort {
    broker: Arc<Broker>,
    /// How far the queues of this name are from those of the group's own name.
    shift: i32,
}

impl AliasPort {
    /// `number` is that of the name, from 1 on.
    pub(super) fn new(broker: Arc<Broker>, number: usize) -> Arc<Self> {
        let shift = i32::try_from(number).unwrap_or(0);
        Arc::new(Self { broker, shift })
    }

    /// Puts the number into a send that its queue has under the group's own name. The order of messages
    /// hangs on it: it is the same for good.
    fn shift(&self, request: &mut Request) {
        let command = &mut request.command;
        let [topic, model, model_queues, queue] = match command.code {
            request::SEND_MESSAGE => ["topic", "defaultTopic", "defaultTopicQueueNums", "queueId"],
            request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE => ["b", "c", "d", "e"],
            _ => return,
        };
        let asked = command.ext.get(queue).and_then(|id| id.parse::<i32>().ok());
        // A negative number leaves the choice to the broker.
        let Some(asked) = asked.filter(|id| *id >= 0) else {
            return;
        };
        let queues = {
            let state = self.broker.meta.read();
            let find = |field| {
                command
                    .ext
                    .get(field)
                    .and_then(|name| state.topics.get(name))
            };
            match (find(topic), find(model)) {
                (Some(topic), _) => topic.write_queues,
                // As many as it will be made with (`send::create_topic`).
                (None, Some(model)) => {
                    let wanted = command.ext.get(model_queues).and_then(|n| n.parse().ok());
                    model.write_queues.min(wanted.unwrap_or(0))
                }
                (None, None) => 0,
            }
        };
        if asked < queues && self.shift % queues != 0 {
            command
                .ext
                .insert(queue, (asked + self.shift % queues) % queues);
            request.raw = frame(command.clone().into());
        }
    }
}

impl Service for AliasPort {
    async fn call(self: Arc<Self>, mut request: Request) -> Option<Reply> {
        if let Some(answer) = nothing_more(&request.command) {
            return Some(answer.into());
        }
        self.shift(&mut request);
        if request.command.code == request::HEART_BEAT {
            request.command = match producers_only(request.command.clone()) {
                Ok(command) => command,
                Err(error) => {
                    let code = response::SYSTEM_ERROR;
                    return Some(request.command.reply_error(code, error.to_string()).into());
                }
            };
        }
        Arc::clone(&self.broker).call(request).await
    }

    fn is_brief(&self, command: &Command) -> bool {
        self.broker.is_brief(command)
    }

    fn class(&self, code: i32) -> Class {
        self.broker.class(code)
    }

    fn busy(&self, code: i32, waited: Duration) -> Option<(i32, String)> {
        self.broker.busy(code, waited)
    }

    fn health(&self, path: &str) -> Option<Health> {
        self.broker.health(path)
    }

    fn opened(&self, conn: &Arc<Conn>) {
        self.broker.opened(conn);
    }

    fn closed(&self, conn: &Arc<Conn>) {
        self.broker.closed(conn);
    }
}

/// The answer to what would be counted twice.
fn nothing_more(command: &Command) -> Option<Command> {
    fn empty(command: &Command, body: &impl Serialize) -> Command {
        command.reply(response::SUCCESS).with_json(body)
    }
    Some(match command.code {
        request::GET_TOPIC_STATS_INFO => empty(command, &TopicStatsTable::default()),
        request::GET_CONSUME_STATS => empty(command, &ConsumeStats::default()),
        request::QUERY_CONSUME_TIME_SPAN => empty(command, &QueryConsumeTimeSpanBody::default()),
        request::INVOKE_BROKER_TO_RESET_OFFSET => empty(command, &ResetOffsetBody::default()),
        request::QUERY_MESSAGE => {
            command.reply_error(response::QUERY_NOT_FOUND, super::query::NOT_FOUND)
        }
        request::VIEW_BROKER_STATS_DATA => {
            let remark = "statistics are told under the group's own name";
            command.reply_error(response::SYSTEM_ERROR, remark)
        }
        _ => return None,
    })
}

/// A heartbeat without consumers: they send theirs to every address of the group's own name too, and
/// are not to be counted twice. Of producers a node is only told here, until it leads.
fn producers_only(command: Command) -> Result<Command, JsonError> {
    let mut data: HeartbeatData = command.json()?;
    data.consumer_data_set.clear();
    Ok(command.with_json(&data))
}

#[cfg(test)]
mod tests {
    use rmq_wire::body::{ConsumerData, ProducerData};
    use rmq_wire::frame::ExtFields;
    use rmq_wire::header::{SendMessage, SendMessageResponse};
    use tokio::net::TcpListener;

    use super::*;
    use crate::broker::testing::Node;
    use crate::broker::tests::send;
    use crate::meta::{Change, Topic};
    use crate::remoting::{Client, Limits, serve};
    use crate::shutdown::{Shutdown, Trigger};
    use crate::testing::PATIENCE;

    async fn port(node: &Node, number: usize) -> (String, Trigger) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (trigger, shutdown) = Shutdown::new();
        let service = AliasPort::new(Arc::clone(&node.broker), number);
        tokio::spawn(serve(listener, service, Limits::default(), shutdown));
        (addr, trigger)
    }

    #[tokio::test]
    async fn a_send_is_stored_and_statistics_are_not_told_twice() {
        let node = Node::start().await;
        let (addr, _trigger) = port(&node, 1).await;
        let client = Client::default();
        let ask = |command| client.call(&addr, command, PATIENCE);
        let sent = ask(send("KEYS\u{1}k", b"1")).await.unwrap();
        let sent: SendMessageResponse = sent.header().unwrap();
        assert_eq!((sent.queue_id, sent.queue_offset), (1, 0));
        for (code, expected) in [
            (request::GET_TOPIC_STATS_INFO, response::SUCCESS),
            (request::GET_CONSUME_STATS, response::SUCCESS),
            (request::QUERY_CONSUME_TIME_SPAN, response::SUCCESS),
            (request::INVOKE_BROKER_TO_RESET_OFFSET, response::SUCCESS),
            (request::QUERY_MESSAGE, response::QUERY_NOT_FOUND),
            (request::VIEW_BROKER_STATS_DATA, response::SYSTEM_ERROR),
        ] {
            let mut command = Command::request(code);
            for (key, value) in [("topic", "T"), ("consumerGroup", "g"), ("group", "g")] {
                command.ext.insert(key, value);
            }
            let answer = ask(command).await.unwrap();
            assert_eq!(answer.code, expected, "{code}");
            if let Ok(stats) = answer.json::<TopicStatsTable>() {
                assert!(stats.offset_table.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn each_name_has_queues_of_its_own_for_good() {
        let node = Node::start().await;
        let client = Client::default();
        let topic = Topic::with_queues(5, 6);
        let create = Change::CreateTopics(vec![("T".to_owned(), topic)]);
        node.broker.propose(create).await.unwrap();
        let mut seen = Vec::new();
        for number in 1..=2 {
            let (addr, _trigger) = port(&node, number).await;
            for queue in 0..5 {
                for (code, field) in [
                    (request::SEND_MESSAGE_V2, "e"),
                    (request::SEND_MESSAGE, "queueId"),
                ] {
                    let mut command = send("", b"1");
                    let header = SendMessage::decode(command.code, &command.ext).unwrap();
                    let mut ext = ExtFields::default();
                    header.encode(code, &mut ext);
                    command.code = code;
                    command.ext = ext.clone();
                    command.ext.insert(field, queue);
                    let sent = client.call(&addr, command, PATIENCE).await.unwrap();
                    let sent: SendMessageResponse = sent.header().unwrap();
                    seen.push(sent.queue_id);
                }
            }
        }
        let twice = |ids: [i32; 5]| ids.into_iter().flat_map(|id| [id, id]);
        let expected: Vec<_> = twice([1, 2, 3, 4, 0])
            .chain(twice([2, 3, 4, 0, 1]))
            .collect();
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn the_first_message_of_a_topic_is_in_the_queue_of_its_key() {
        let node = Node::start().await;
        let client = Client::default();
        let (addr, _trigger) = port(&node, 1).await;
        for count in 0..2 {
            let mut command = send("", b"1");
            command.ext.insert("e", 1);
            let sent = client.call(&addr, command, PATIENCE).await.unwrap();
            let sent: SendMessageResponse = sent.header().unwrap();
            assert_eq!((sent.queue_id, sent.queue_offset), (0, count));
        }
    }

    #[tokio::test]
    async fn producers_are_known_by_it_and_consumers_are_not() {
        let node = Node::start().await;
        let (addr, _trigger) = port(&node, 1).await;
        let client = Client::default();
        let heartbeat = Command::request(request::HEART_BEAT).with_json(&HeartbeatData {
            client_id: "c".to_owned(),
            producer_data_set: vec![ProducerData {
                group_name: "p".to_owned(),
            }],
            consumer_data_set: vec![ConsumerData {
                group_name: "g".to_owned(),
                ..ConsumerData::default()
            }],
            ..HeartbeatData::default()
        });
        let answer = client.call(&addr, heartbeat, PATIENCE).await.unwrap();
        assert_eq!(answer.code, response::SUCCESS);
        let clients = node.broker.clients.read();
        assert!(clients.producers.contains_key("p"));
        assert!(clients.consumers.is_empty());
    }
}
