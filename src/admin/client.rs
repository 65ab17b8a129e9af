//! Questions to a name server and the brokers that it knows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rmq_wire::body::ClusterInfo;
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{PullMessage, SendMessage, SendMessageResponse, pull_sys_flag};
use rmq_wire::record::Record;
use rmq_wire::{json, name};

use crate::broker::NodeStatus;
use crate::remoting::{CallError, Client};

/// One question's patience.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts of [`Admin::steer`].
const STEER_PAUSE: Duration = Duration::from_millis(300);
/// The topic of [`Admin::echo`].
const ECHO_TOPIC: &str = "SELF_CHECK";
/// Its producer and consumer group.
const ECHO_GROUP: &str = "rmq_self_check";

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection failed or the answer did not come.
    #[error("{addr}: {source}")]
    Call {
        /// Who was asked.
        addr: String,
        /// What happened.
        source: CallError,
    },
    /// The answer was a refusal.
    #[error("{addr} answered code {code}: {remark}")]
    Refused {
        /// Who was asked.
        addr: String,
        /// The response code.
        code: i32,
        /// Its remark.
        remark: String,
    },
    /// The answer's body was not what it should be.
    #[error("{addr} answered with a body that is not {what}")]
    Body {
        /// Who was asked.
        addr: String,
        /// What was expected.
        what: &'static str,
    },
    /// The name server knows no broker of that name.
    #[error("name server {namesrv} knows no broker named {broker_name}")]
    NoBroker {
        /// Who was asked.
        namesrv: String,
        /// The name.
        broker_name: String,
    },
    /// What was sent did not come back.
    #[error(
        "the message was acknowledged at queue offset {offset} but could not be read back: {why}"
    )]
    NotReadBack {
        /// Where it should be.
        offset: i64,
        /// The last answer.
        why: String,
    },
}

/// Asks a cluster through one of its name servers.
pub struct Admin {
    client: Client,
    namesrv: String,
}

impl Admin {
    /// `namesrv` is `host:port`.
    #[must_use]
    pub fn new(namesrv: String) -> Self {
        Self {
            client: Client::default(),
            namesrv,
        }
    }

    /// Names of all brokers with the addresses of their nodes, by broker id.
    ///
    /// # Errors
    /// When the name server does not answer with its cluster information.
    pub async fn brokers(&self) -> Result<BTreeMap<String, Vec<String>>, AskError> {
        let answer = self
            .ask(
                &self.namesrv,
                Command::request(request::GET_BROKER_CLUSTER_INFO),
            )
            .await?;
        let bad = || AskError::Body {
            addr: self.namesrv.clone(),
            what: "cluster information",
        };
        let info: ClusterInfo = json::from_slice(&answer.body).map_err(|_| bad())?;
        Ok(info
            .broker_addr_table
            .into_iter()
            .map(|(name, broker)| (name, broker.broker_addrs.into_values().collect()))
            .collect())
    }

    /// What each node of a group says of itself; nodes that do not answer are left out.
    ///
    /// # Errors
    /// When the name server does not answer or does not know the name.
    pub async fn group(&self, broker_name: &str) -> Result<Vec<NodeStatus>, AskError> {
        let addresses =
            self.brokers()
                .await?
                .remove(broker_name)
                .ok_or_else(|| AskError::NoBroker {
                    namesrv: self.namesrv.clone(),
                    broker_name: broker_name.into(),
                })?;
        let mut statuses = Vec::new();
        for address in addresses {
            if let Ok(status) = self.status(&address).await {
                statuses.push(status);
            }
        }
        statuses.sort_by(|a, b| a.self_id.cmp(&b.self_id));
        Ok(statuses)
    }

    /// What one node says of itself.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn status(&self, address: &str) -> Result<NodeStatus, AskError> {
        let answer = self
            .ask(address, Command::request(request::RAFT_STATUS))
            .await?;
        serde_json::from_slice(&answer.body).map_err(|_| AskError::Body {
            addr: address.into(),
            what: "a node's status",
        })
    }

    /// Has the leader of a group do what an operator wants (`code`, with this field), through
    /// whichever node answers, and gives its words. Goes on asking for `patience` where the answer is
    /// that it may be done later.
    ///
    /// # Errors
    /// The last answer, or why there was none; see [`AskError`].
    pub async fn steer(
        &self,
        broker_name: &str,
        code: i32,
        field: Option<(&str, &str)>,
        patience: Duration,
    ) -> Result<String, AskError> {
        let begun = Instant::now();
        loop {
            let error = match self.steer_once(broker_name, code, field).await {
                Ok(text) => return Ok(text),
                Err(error) => error,
            };
            let later = match &error {
                AskError::Refused { code, .. } => *code == response::SERVICE_NOT_AVAILABLE,
                AskError::Call { .. } => true,
                _ => false,
            };
            if !later || begun.elapsed() >= patience {
                return Err(error);
            }
            tokio::time::sleep(STEER_PAUSE).await;
        }
    }

    async fn steer_once(
        &self,
        broker_name: &str,
        code: i32,
        field: Option<(&str, &str)>,
    ) -> Result<String, AskError> {
        let mut command = Command::request(code);
        if let Some((name, value)) = field {
            command.ext.insert(name, value);
        }
        let mut failed = AskError::NoBroker {
            namesrv: self.namesrv.clone(),
            broker_name: broker_name.into(),
        };
        for address in self
            .brokers()
            .await?
            .remove(broker_name)
            .unwrap_or_default()
        {
            match self.ask(&address, command.clone()).await {
                Ok(answer) => return Ok(answer.remark.unwrap_or_default()),
                // A dead node's address may still be in the route.
                Err(error @ AskError::Call { .. }) => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// Sends one message to a broker's leader and reads it back through the protocol.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn echo(&self, broker_name: &str) -> Result<(), AskError> {
        let address = self
            .brokers()
            .await?
            .remove(broker_name)
            .and_then(|a| a.into_iter().next());
        let address = address.ok_or_else(|| AskError::NoBroker {
            namesrv: self.namesrv.clone(),
            broker_name: broker_name.into(),
        })?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let body = format!("self-check {now}");
        let mut send = Command::request(request::SEND_MESSAGE_V2);
        let header = SendMessage {
            producer_group: ECHO_GROUP,
            topic: ECHO_TOPIC,
            default_topic: name::AUTO_CREATE_TOPIC,
            default_topic_queue_nums: 1,
            born_timestamp: i64::try_from(now).unwrap_or(i64::MAX),
            ..SendMessage::default()
        };
        header.encode(send.code, &mut send.ext);
        let sent = self
            .ask(&address, send.with_body(Bytes::from(body.clone())))
            .await?;
        let sent: SendMessageResponse = sent.header().map_err(|_| AskError::Body {
            addr: address.clone(),
            what: "an acknowledgement with queueOffset",
        })?;
        let offset = sent.queue_offset;

        let header = PullMessage {
            consumer_group: ECHO_GROUP.into(),
            topic: ECHO_TOPIC.into(),
            queue_id: 0,
            queue_offset: offset,
            max_msg_nums: 1,
            sys_flag: pull_sys_flag::SUBSCRIPTION,
            subscription: Some("*".into()),
            expression_type: Some("TAG".into()),
            ..PullMessage::default()
        };
        let pull = Command::request(request::PULL_MESSAGE).with_header(&header);
        let found = self.ask(&address, pull).await?;
        match Record::decode(&found.body) {
            Ok(record) if record.body == body.as_bytes() => Ok(()),
            Ok(_) => Err(AskError::NotReadBack {
                offset,
                why: "another body".into(),
            }),
            Err(e) => Err(AskError::NotReadBack {
                offset,
                why: e.to_string(),
            }),
        }
    }

    async fn ask(&self, address: &str, command: Command) -> Result<Command, AskError> {
        let answer = self
            .client
            .call(address, command, LIMIT)
            .await
            .map_err(|source| AskError::Call {
                addr: address.into(),
                source,
            })?;
        if answer.code == response::SUCCESS {
            return Ok(answer);
        }
        Err(AskError::Refused {
            addr: address.into(),
            code: answer.code,
            remark: answer.remark.unwrap_or_default(),
        })
    }
}
