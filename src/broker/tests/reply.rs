use std::time::Duration;

use rmq_wire::body::{HeartbeatData, ProducerData};
use rmq_wire::header::{ReplyMessage, UnregisterClient};
use rmq_wire::properties;

use super::clients::Client;
use super::*;
use crate::config::BrokerConfig;

const TOPIC: &str = "DefaultCluster_REPLY_TOPIC";

fn producer(client: &str) -> Command {
    Command::request(request::HEART_BEAT).with_json(&HeartbeatData {
        client_id: client.to_owned(),
        producer_data_set: vec![ProducerData {
            group_name: "p".to_owned(),
        }],
        ..HeartbeatData::default()
    })
}

fn reply_to(client: &str) -> Command {
    let properties = format!("REPLY_TO_CLIENT\x01{client}\x02CORRELATION_ID\x01c7");
    let mut command = send_to(TOPIC, &properties, b"done");
    command.code = request::SEND_REPLY_MESSAGE_V2;
    command
}

/// Sends a reply, has the requester answer what it is passed with this code, and gives both.
async fn replied(node: &Node, requester: &mut Client, code: i32) -> (Command, Command) {
    let requester = async {
        let passed_on = requester.notice().await;
        requester.send(&passed_on.reply(code)).await;
        passed_on
    };
    tokio::join!(requester, node.told(reply_to("asker")))
}

#[tokio::test]
async fn a_reply_goes_to_the_producer_that_waits_for_it() {
    let node = Node::start().await;
    let mut requester = Client::connect(&node).await;
    requester.call(producer("asker")).await;

    let (passed_on, answer) = replied(&node, &mut requester, response::SUCCESS).await;
    assert_eq!(passed_on.code, request::PUSH_REPLY_MESSAGE_TO_CLIENT);
    assert_eq!(&passed_on.body[..], b"done");
    let header: ReplyMessage = passed_on.header().unwrap();
    assert_eq!((&*header.topic, &*header.producer_group), (TOPIC, "p"));
    assert_eq!(header.born_host, "10.0.0.9:555");
    assert_eq!(header.store_host, "10.0.0.1:10911");
    let text = header.properties.unwrap();
    let value = |key| properties::iter(&text).find(|(name, _)| *name == key);
    assert_eq!(value("CORRELATION_ID"), Some(("CORRELATION_ID", "c7")));
    let (_, pushed) = value(properties::PUSH_REPLY_TIME).unwrap();
    assert_eq!(pushed.parse(), Ok(header.store_timestamp));

    assert_eq!(answer.code, response::SUCCESS);
    assert_eq!(answer.ext.get("MSG_REGION"), Some("DefaultRegion"));
    let sent: SendMessageResponse = answer.header().unwrap();
    assert_eq!(sent.queue_offset, 0);
    let stored = PullMessage {
        topic: TOPIC.to_owned(),
        queue_id: sent.queue_id,
        ..pull(0)
    };
    assert_eq!(bodies(&node.told(pull_request(&stored)).await), [b"done"]);
}

#[tokio::test]
async fn a_reply_that_reaches_nobody_is_an_error() {
    let node = Node::start().await;
    let fails = async |command: Command, why: &str| {
        let answer = node.told(command).await;
        assert_eq!(answer.code, response::SYSTEM_ERROR);
        let remark = answer.remark.unwrap_or_default();
        assert!(remark.contains(why), "{remark}");
    };
    let mut nobodys = send_to(TOPIC, "", b"done");
    nobodys.code = request::SEND_REPLY_MESSAGE_V2;
    fails(nobodys, "REPLY_TO_CLIENT").await;
    fails(reply_to("asker"), "channel of <asker> not found").await;

    let mut requester = Client::connect(&node).await;
    requester.call(producer("asker")).await;
    let (_, answer) = replied(&node, &mut requester, response::SYSTEM_ERROR).await;
    assert_eq!(answer.code, response::SYSTEM_ERROR);

    let leave = Command::request(request::UNREGISTER_CLIENT).with_header(&UnregisterClient {
        client_id: "asker".to_owned(),
        producer_group: Some("p".to_owned()),
        consumer_group: None,
    });
    requester.call(leave).await;
    fails(reply_to("asker"), "channel of <asker> not found").await;

    requester.call(producer("asker")).await;
    requester.call(producer("another")).await;
    fails(reply_to("asker"), "channel of <asker> not found").await;
    assert!(node.broker.clients.producer("another").is_some());
    drop(requester);
    while node.broker.clients.producer("another").is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn replies_need_not_be_stored() {
    let node = Node::with(BrokerConfig {
        store_reply_message_enable: false,
        ..BrokerConfig::default()
    })
    .await;
    let mut requester = Client::connect(&node).await;
    requester.call(producer("asker")).await;
    let (_, answer) = replied(&node, &mut requester, response::SUCCESS).await;
    let sent: SendMessageResponse = answer.header().unwrap();
    assert_eq!((answer.code, &*sent.msg_id), (response::SUCCESS, "0"));
    let end = node.broker.queues.max_offset(TOPIC, sent.queue_id);
    assert_eq!(end.as_i64(), 0);
}
