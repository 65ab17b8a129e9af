//! The requests of a name server, one function each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use rmq_wire::body::{DataVersion, KvTable, RegisterBrokerBody, TopicConfig, TopicList};
use rmq_wire::code::{request, response};
use rmq_wire::frame::{Command, Language};
use rmq_wire::header::{
    AddWritePermResponse, BrokerIdentity, DeleteTopicInNamesrv, GetKvConfigResponse,
    GetKvListByNamespace, GetRouteInfo, GetTopicsByCluster, HeaderError, KvConfigKey, PutKvConfig,
    QueryDataVersionResponse, RegisterBroker, RegisterBrokerResponse, WipeWritePermResponse,
    WritePermOfBroker,
};
use rmq_wire::json::JsonError;
use rmq_wire::name;
use rmq_wire::record::body_crc;
use serde::Serialize;
use tokio::time::Instant;

use super::answers::Answers;
use super::kv::{Kv, KvError};
use super::routes::{Alias, Registration, Routes};
use crate::remoting::{Conn, LogLimit, Reply, Request, Service};

/// The namespace of the queue order of ordered topics (`NamesrvUtil`).
const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";
/// The one setting that may be changed while running. The others name files or sizes, and whoever
/// reaches the port could change them.
const ORDER_MESSAGE_ENABLE: &str = "orderMessageEnable";
/// `TopicSysFlag`.
const UNIT: i32 = 0b01;
const UNIT_SUB: i32 = 0b10;
const NAME_LEN_MAX: usize = 255;

static REFUSED: LogLimit = LogLimit::new();

pub(super) struct NameServer {
    routes: RwLock<Routes>,
    answers: Answers,
    kv: Kv,
    order_message_enable: AtomicBool,
    /// The configuration as tools may read it.
    properties: BTreeMap<String, String>,
}

/// An answer other than success.
struct Refusal {
    code: i32,
    remark: String,
}

impl Refusal {
    fn error(remark: impl ToString) -> Self {
        Self {
            code: response::SYSTEM_ERROR,
            remark: remark.to_string(),
        }
    }

    fn not_found(remark: String) -> Self {
        Self {
            code: response::QUERY_NOT_FOUND,
            remark,
        }
    }
}

impl From<HeaderError> for Refusal {
    fn from(error: HeaderError) -> Self {
        Self::error(error)
    }
}

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Self {
        Self::error(error)
    }
}

impl From<KvError> for Refusal {
    fn from(error: KvError) -> Self {
        Self::error(error)
    }
}

type Answer = Result<Command, Refusal>;

impl Service for NameServer {
    async fn call(self: Arc<Self>, request: Request) -> Option<Reply> {
        let command = &request.command;
        let reply = self
            .answer(&request)
            .await
            .unwrap_or_else(|refusal| command.reply_error(refusal.code, refusal.remark));
        Some(reply.into())
    }

    fn closed(&self, conn: &Arc<Conn>) {
        self.write(|routes| routes.connection_closed(conn.id()));
    }
}

impl NameServer {
    pub(super) fn new(
        kv: Kv,
        order_message_enable: bool,
        properties: BTreeMap<String, String>,
    ) -> Self {
        Self {
            routes: RwLock::default(),
            answers: Answers::default(),
            kv,
            order_message_enable: AtomicBool::new(order_message_enable),
            properties,
        }
    }

    pub(super) fn expire(&self) {
        self.write(|routes| routes.expire(Instant::now()));
    }

    fn read<T>(&self, read: impl FnOnce(&Routes) -> T) -> T {
        read(&self.routes.read().expect("no panic under this lock"))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Routes) -> T) -> T {
        write(&mut self.routes.write().expect("no panic under this lock"))
    }

    async fn answer(&self, request: &Request) -> Answer {
        let command = &request.command;
        match command.code {
            request::GET_ROUTEINFO_BY_TOPIC => self.get_route(command).await,
            request::REGISTER_BROKER => {
                self.register_broker(request).await.inspect_err(|refusal| {
                    // The broker tells nobody but its own log, if it waits for the answer at all.
                    if let Some(more) = REFUSED.pass() {
                        let reason = &refusal.remark;
                        tracing::warn!(peer = %request.peer, more, "registration refused: {reason}");
                    }
                })
            }
            request::UNREGISTER_BROKER => self.unregister_broker(command),
            request::QUERY_DATA_VERSION => self.query_data_version(command),
            request::GET_BROKER_CLUSTER_INFO => Ok(ok(command, &self.read(Routes::cluster_info))),
            request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => {
                Ok(topic_list(command, self.read(Routes::all_topics)))
            }
            request::GET_TOPICS_BY_CLUSTER => {
                let header: GetTopicsByCluster = command.header()?;
                Ok(topic_list(
                    command,
                    self.read(|r| r.topics_of_cluster(&header.cluster)),
                ))
            }
            request::GET_SYSTEM_TOPIC_LIST_FROM_NS => {
                let (topic_list, broker_addr) = self.read(Routes::system_topics);
                Ok(ok(
                    command,
                    &TopicList {
                        topic_list,
                        broker_addr,
                    },
                ))
            }
            request::GET_UNIT_TOPIC_LIST => {
                Ok(self.topics_by_flag(command, |flag| flag & UNIT != 0))
            }
            request::GET_HAS_UNIT_SUB_TOPIC_LIST => {
                Ok(self.topics_by_flag(command, |flag| flag & UNIT_SUB != 0))
            }
            request::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => {
                Ok(self.topics_by_flag(command, |flag| flag & (UNIT | UNIT_SUB) == UNIT_SUB))
            }
            request::DELETE_TOPIC_IN_NAMESRV => self.delete_topic(request),
            request::WIPE_WRITE_PERM_OF_BROKER => {
                let wipe_topic_count = self.set_write_perm(request, false)?;
                Ok(command
                    .reply(response::SUCCESS)
                    .with_header(&WipeWritePermResponse { wipe_topic_count }))
            }
            request::ADD_WRITE_PERM_OF_BROKER => {
                let add_topic_count = self.set_write_perm(request, true)?;
                Ok(command
                    .reply(response::SUCCESS)
                    .with_header(&AddWritePermResponse { add_topic_count }))
            }
            request::PUT_KV_CONFIG => {
                let header: PutKvConfig = command.header()?;
                self.kv
                    .put(header.namespace, header.key, header.value)
                    .await?;
                Ok(command.reply(response::SUCCESS))
            }
            request::GET_KV_CONFIG => self.get_kv(command).await,
            request::DELETE_KV_CONFIG => {
                let header: KvConfigKey = command.header()?;
                self.kv.delete(&header.namespace, &header.key).await?;
                Ok(command.reply(response::SUCCESS))
            }
            request::GET_KVLIST_BY_NAMESPACE => self.get_kv_list(command).await,
            request::GET_NAMESRV_CONFIG => Ok(command
                .reply(response::SUCCESS)
                .with_body(self.properties_text())),
            request::UPDATE_NAMESRV_CONFIG => self.update_config(request),
            code => Err(Refusal {
                code: response::REQUEST_CODE_NOT_SUPPORTED,
                remark: format!(" request type {code} not supported"),
            }),
        }
    }

    async fn get_route(&self, command: &Command) -> Answer {
        let GetRouteInfo { topic, .. } = command.header()?;
        let missing = || Refusal {
            code: response::TOPIC_NOT_EXIST,
            remark: format!("No topic route info in name server for the topic: {topic}"),
        };
        let forgets = command.language == Language::GO;
        if self.order_message_enable.load(Ordering::Relaxed)
            && let Some(order) = self.kv.get(ORDER_TOPIC_CONFIG, &topic).await
        {
            let route = self.read(|routes| routes.route(&topic, forgets));
            let mut route = route.ok_or_else(missing)?;
            route.order_topic_conf = Some(order);
            return Ok(ok(command, &route));
        }
        let body = self.read(|routes| self.answers.of(routes, &topic, forgets));
        let body = body.ok_or_else(missing)?;
        Ok(command.reply(response::SUCCESS).with_body(body))
    }

    async fn register_broker(&self, request: &Request) -> Answer {
        let command = &request.command;
        let header: RegisterBroker = command.header()?;
        let Some(conn) = &request.conn else {
            return Err(Refusal::error(
                "a broker must register over its own connection",
            ));
        };
        let crc = body_crc(&command.body);
        if header.body_crc32 != 0 && i32::try_from(crc) != Ok(header.body_crc32) {
            return Err(Refusal::error("crc32 not match"));
        }
        check_identity(&header)?;
        let body = match &command.body[..] {
            [] => RegisterBrokerBody::default(),
            body => RegisterBrokerBody::decode(body, header.compressed).map_err(Refusal::error)?,
        };
        let topics = body.topic_config_serialize_wrapper;
        let registration = Registration {
            topics: legal_topics(&header, topics.topic_config_table.into_values()),
            alias: alias(&header),
            // A classic broker has nobody who could take it.
            vip: header.raft_term.and(header.group_vip),
            cluster: header.cluster_name,
            name: header.broker_name,
            addr: header.broker_addr,
            id: header.broker_id,
            ha_addr: header.ha_server_addr,
            term: header.raft_term,
            version: topics.data_version,
            filter_servers: Some(body.filter_server_list),
            conn: conn.id(),
        };
        let master = self.write(|routes| {
            // A connection that is closed by now will not be closed again.
            if conn.is_closed() {
                return Err(Refusal::error("the connection is closed"));
            }
            routes
                .register(registration, Instant::now())
                .map_err(Refusal::error)
        })?;
        let reply = command
            .reply(response::SUCCESS)
            .with_header(&RegisterBrokerResponse {
                ha_server_addr: master.ha_addr,
                master_addr: master.addr,
            });
        Ok(match self.kv.namespace(ORDER_TOPIC_CONFIG).await {
            Some(table) => reply.with_json(&KvTable { table }),
            None => reply,
        })
    }

    fn unregister_broker(&self, command: &Command) -> Answer {
        let header: BrokerIdentity = command.header()?;
        self.write(|routes| routes.unregister(&header.broker_name, &header.broker_addr));
        Ok(command.reply(response::SUCCESS))
    }

    fn query_data_version(&self, command: &Command) -> Answer {
        let header: BrokerIdentity = command.header()?;
        let version: DataVersion = command.json()?;
        let (changed, known) = self.write(|routes| {
            let now = Instant::now();
            routes.query_version(&header.broker_name, &header.broker_addr, &version, now)
        });
        let reply = command
            .reply(response::SUCCESS)
            .with_header(&QueryDataVersionResponse { changed });
        Ok(match known {
            Some(known) => reply.with_json(&known),
            None => reply,
        })
    }

    fn topics_by_flag(&self, command: &Command, pick: impl Fn(i32) -> bool) -> Command {
        topic_list(command, self.read(|routes| routes.topics_by_flag(pick)))
    }

    fn delete_topic(&self, request: &Request) -> Answer {
        let DeleteTopicInNamesrv {
            topic,
            cluster_name,
        } = request.command.header()?;
        let cluster = cluster_name.filter(|cluster| !cluster.is_empty());
        tracing::info!(topic, cluster, peer = %request.peer, "delete topic");
        self.write(|routes| routes.delete_topic(&topic, cluster.as_deref()));
        Ok(request.command.reply(response::SUCCESS))
    }

    fn set_write_perm(&self, request: &Request, write: bool) -> Result<i32, Refusal> {
        let header: WritePermOfBroker = request.command.header()?;
        let count = self.write(|routes| routes.set_write_perm(&header.broker_name, write));
        let name = header.broker_name;
        tracing::info!(name, write, topics = count, peer = %request.peer, "set write permission");
        Ok(count)
    }

    async fn get_kv(&self, command: &Command) -> Answer {
        let KvConfigKey { namespace, key } = command.header()?;
        match self.kv.get(&namespace, &key).await {
            Some(value) => Ok(command
                .reply(response::SUCCESS)
                .with_header(&GetKvConfigResponse { value: Some(value) })),
            None => Err(Refusal::not_found(format!(
                "No config item, Namespace: {namespace} Key: {key}"
            ))),
        }
    }

    async fn get_kv_list(&self, command: &Command) -> Answer {
        let GetKvListByNamespace { namespace } = command.header()?;
        match self.kv.namespace(&namespace).await {
            Some(table) => Ok(ok(command, &KvTable { table })),
            None => Err(Refusal::not_found(format!(
                "No config item, Namespace: {namespace}"
            ))),
        }
    }

    fn properties_text(&self) -> Bytes {
        let order = self
            .order_message_enable
            .load(Ordering::Relaxed)
            .to_string();
        let fixed = self
            .properties
            .iter()
            .filter(|(key, _)| *key != ORDER_MESSAGE_ENABLE);
        let lines = fixed.map(|(key, value)| format!("{key}={value}\n"));
        lines
            .chain([format!("{ORDER_MESSAGE_ENABLE}={order}\n")])
            .collect::<String>()
            .into()
    }

    fn update_config(&self, request: &Request) -> Answer {
        let text = std::str::from_utf8(&request.command.body).map_err(Refusal::error)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut order = None;
        for line in lines.filter(|line| !line.starts_with(['#', '!'])) {
            match line
                .split_once('=')
                .map(|(key, value)| (key.trim(), value.trim()))
            {
                Some((ORDER_MESSAGE_ENABLE, value)) => {
                    let value = value.parse::<bool>();
                    order = Some(value.map_err(|_| {
                        Refusal::error(format!("{ORDER_MESSAGE_ENABLE} is true or false"))
                    })?);
                }
                _ => {
                    return Err(Refusal {
                        code: response::NO_PERMISSION,
                        remark: format!(
                            "only {ORDER_MESSAGE_ENABLE} can be changed while running, not: {line}"
                        ),
                    });
                }
            }
        }
        if let Some(order) = order {
            tracing::info!(orderMessageEnable = order, peer = %request.peer, "configuration changed");
            self.order_message_enable.store(order, Ordering::Relaxed);
        }
        Ok(request.command.reply(response::SUCCESS))
    }
}

fn ok(command: &Command, body: &impl Serialize) -> Command {
    command.reply(response::SUCCESS).with_json(body)
}

fn topic_list(command: &Command, topic_list: BTreeSet<String>) -> Command {
    ok(
        command,
        &TopicList {
            topic_list,
            broker_addr: None,
        },
    )
}

/// What a node of a group wants of further names.
fn alias(header: &RegisterBroker) -> Option<Alias> {
    // A classic broker has nobody who could take its place.
    header.raft_term?;
    Some(Alias {
        addr: header.group_alias_addr.clone()?,
        queues: header.group_alias_queues?,
        silent: (header.group_silent.iter())
            .flat_map(|ids| ids.split(';'))
            .filter_map(|id| id.parse().ok())
            .collect(),
    })
}

/// What every client would stumble over.
fn check_identity(header: &RegisterBroker) -> Result<(), Refusal> {
    for name in [
        &header.cluster_name,
        &header.broker_name,
        &header.broker_addr,
    ] {
        if name.is_empty() || name.len() > NAME_LEN_MAX || name.chars().any(char::is_control) {
            return Err(Refusal::error(
                "cluster, broker name and address have 1 to 255 characters",
            ));
        }
    }
    let has_port = |addr: &str| {
        let port = addr
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        port.is_some_and(|port: u16| port != 0) && addr.len() <= NAME_LEN_MAX
    };
    if !has_port(&header.broker_addr) || header.broker_id < 0 {
        let (addr, id) = (&header.broker_addr, header.broker_id);
        return Err(Refusal::error(format!(
            "a broker cannot be id {id} at {addr:?}"
        )));
    }
    for (addr, what) in [
        (&header.group_alias_addr, "for further names of a group"),
        (&header.group_vip, "that could move with a leader"),
    ] {
        if let Some(addr) = addr
            && !has_port(addr)
        {
            return Err(Refusal::error(format!("{addr:?} is no address {what}")));
        }
    }
    Ok(())
}

/// The topics with names that clients can ask for. Brokers make some names from their own and
/// their cluster's, which may be host names; what remains of those must be legal.
fn legal_topics(
    header: &RegisterBroker,
    topics: impl Iterator<Item = TopicConfig>,
) -> Vec<TopicConfig> {
    let legal = |topic: &TopicConfig| {
        let own = topic.topic_name.replace(&header.broker_name, "b");
        let own = own.replace(&header.cluster_name, "c");
        let legal = topic.topic_name.len() <= NAME_LEN_MAX && name::check_topic(&own).is_ok();
        if !legal && let Some(more) = REFUSED.pass() {
            let (addr, topic) = (&header.broker_addr, &topic.topic_name);
            tracing::warn!(addr, topic, more, "topic left out: illegal name");
        }
        legal
    };
    topics.filter(legal).collect()
}
