//! The topics of a run and where their queues are, as any client learns it from a name server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rmq_wire::body::{ClusterInfo, TopicRouteData, perm};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{OffsetResponse, TopicOnly, TopicQueue};
use rmq_wire::{json, name};
use tokio::time::{Instant, sleep};

use super::Plan;
use crate::remoting::{CallError, Client};

const LIMIT: Duration = Duration::from_secs(5);
/// How long a new topic may take to be in the route; Java's brokers register it at once.
const ROUTE_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

/// Why the cluster cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{addr} answered code {code} to request {request}: {remark}")]
    Refused {
        addr: String,
        request: i32,
        code: i32,
        remark: String,
    },
    #[error("{addr} answered request {request} with a body that cannot be read")]
    Body { addr: String, request: i32 },
    #[error("name server {0} knows no broker")]
    NoBroker(String),
    #[error("topic {topic} has no queue at a master that name server {namesrv} knows")]
    NoQueue { topic: String, namesrv: String },
}

/// One queue of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) topic: Arc<str>,
    /// The name that the nodes of its broker share.
    pub(super) broker: Arc<str>,
    pub(super) id: i32,
}

/// What is to be read of a queue.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) queue: Queue,
    pub(super) next: i64,
    /// Where it ends, if it does.
    pub(super) end: Option<i64>,
}

pub(super) struct Cluster {
    client: Client,
    namesrv: String,
}

impl Cluster {
    pub(super) fn new(namesrv: &str) -> Self {
        Self {
            client: Client::default(),
            namesrv: namesrv.to_owned(),
        }
    }

    /// All queues of the plan's topics; topics that do not exist are created.
    pub(super) async fn queues(&self, plan: &Plan) -> Result<Vec<Queue>, ClusterError> {
        let topics: Vec<Arc<str>> = match plan.topics {
            1 => vec![plan.topic.as_str().into()],
            several => (0..several)
                .map(|number| format!("{}_{number}", plan.topic).into())
                .collect(),
        };
        let mut queues = Vec::new();
        for topic in topics {
            let mut route = self.route(&topic).await?;
            if route.is_none() {
                self.create(&topic, plan.queues).await?;
                let end = Instant::now() + ROUTE_PATIENCE;
                loop {
                    route = self.route(&topic).await?;
                    if route.is_some() || Instant::now() >= end {
                        break;
                    }
                    sleep(PAUSE).await;
                }
            }
            let before = queues.len();
            for data in route.unwrap_or_default().queue_datas {
                let broker: Arc<str> = data.broker_name.into();
                let writable = if data.perm & perm::WRITE == 0 {
                    0
                } else {
                    data.write_queue_nums
                };
                queues.extend((0..writable).map(|id| Queue {
                    topic: Arc::clone(&topic),
                    broker: Arc::clone(&broker),
                    id,
                }));
            }
            if queues.len() == before {
                return Err(ClusterError::NoQueue {
                    topic: topic.to_string(),
                    namesrv: self.namesrv.clone(),
                });
            }
        }
        Ok(queues)
    }

    /// The address of a broker's master at present.
    pub(super) async fn master(&self, broker: &str) -> Result<Option<String>, ClusterError> {
        Ok(self.masters().await?.remove(broker))
    }

    /// What there is to read of these queues: all, or from their ends on.
    pub(super) async fn spans(
        &self,
        queues: Vec<Queue>,
        is_all: bool,
    ) -> Result<Vec<Span>, ClusterError> {
        let masters = self.masters().await?;
        let mut spans = Vec::with_capacity(queues.len());
        for queue in queues {
            let addr = masters
                .get(&*queue.broker)
                .ok_or_else(|| ClusterError::NoBroker(self.namesrv.clone()))?;
            let end = self.offset(addr, request::GET_MAX_OFFSET, &queue).await?;
            let (next, end) = match is_all {
                true => {
                    let first = self.offset(addr, request::GET_MIN_OFFSET, &queue).await?;
                    (first, Some(end))
                }
                false => (end, None),
            };
            spans.push(Span { queue, next, end });
        }
        Ok(spans)
    }

    async fn offset(&self, addr: &str, code: i32, queue: &Queue) -> Result<i64, ClusterError> {
        let header = TopicQueue {
            topic: queue.topic.to_string(),
            queue_id: queue.id,
        };
        let answer = self
            .ask(addr, Command::request(code).with_header(&header))
            .await?;
        let found: Result<OffsetResponse, _> = answer.header();
        found
            .map(|found| found.offset)
            .map_err(|_| unreadable(addr, code))
    }

    async fn masters(&self) -> Result<BTreeMap<String, String>, ClusterError> {
        let code = request::GET_BROKER_CLUSTER_INFO;
        let answer = self.ask(&self.namesrv, Command::request(code)).await?;
        let info: ClusterInfo =
            json::from_slice(&answer.body).map_err(|_| unreadable(&self.namesrv, code))?;
        let masters = info.broker_addr_table.into_iter();
        Ok(masters
            .filter_map(|(name, mut broker)| Some((name, broker.broker_addrs.remove(&0)?)))
            .collect())
    }

    async fn route(&self, topic: &str) -> Result<Option<TopicRouteData>, ClusterError> {
        let code = request::GET_ROUTEINFO_BY_TOPIC;
        let header = TopicOnly {
            topic: topic.to_owned(),
        };
        let command = Command::request(code).with_header(&header);
        match self.ask(&self.namesrv, command).await {
            Ok(answer) => json::from_slice(&answer.body)
                .map(Some)
                .map_err(|_| unreadable(&self.namesrv, code)),
            Err(ClusterError::Refused {
                code: response::TOPIC_NOT_EXIST,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, topic: &str, queues: u32) -> Result<(), ClusterError> {
        let masters = self.masters().await?;
        if masters.is_empty() {
            return Err(ClusterError::NoBroker(self.namesrv.clone()));
        }
        for addr in masters.values() {
            let mut command = Command::request(request::UPDATE_AND_CREATE_TOPIC);
            command.ext.insert("topic", topic);
            command.ext.insert("defaultTopic", name::AUTO_CREATE_TOPIC);
            command.ext.insert("readQueueNums", queues);
            command.ext.insert("writeQueueNums", queues);
            command.ext.insert("perm", 6);
            command.ext.insert("topicFilterType", "SINGLE_TAG");
            command.ext.insert("topicSysFlag", 0);
            command.ext.insert("order", false);
            self.ask(addr, command).await?;
        }
        Ok(())
    }

    async fn ask(&self, addr: &str, command: Command) -> Result<Command, ClusterError> {
        let request = command.code;
        let answer = self.client.call(addr, command, LIMIT).await?;
        if answer.code == response::SUCCESS {
            return Ok(answer);
        }
        Err(ClusterError::Refused {
            addr: addr.to_owned(),
            request,
            code: answer.code,
            remark: answer.remark.unwrap_or_default(),
        })
    }
}

fn unreadable(addr: &str, request: i32) -> ClusterError {
    let addr = addr.to_owned();
    ClusterError::Body { addr, request }
}
