//! Keeps this broker registered with its name servers, ours and Java's.
//!
//! Each name server has a task and an open connection of its own, so that one that hangs delays no
//! other; the end of the connection takes the broker out of that name server's routes, so it is
//! made again at once. What is registered follows the role: the serving leader as id 0 with all
//! topics, a follower under its own id with none. A leader whose lease has ended says nothing for a
//! period, unless it hears of another leader: it may be cut off and yet be heard, and further names of its
//! group would lead to it.
//!
//! With very many topics a registration is long. It is made anew only when there is something new, once
//! for all name servers, and compressed if it fits no frame otherwise.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rmq_wire::body::{RegisterBrokerBody, TopicConfigSerializeWrapper};
use rmq_wire::code::{request, response};
use rmq_wire::frame::{Command, MAX_FRAME};
use rmq_wire::header::{BrokerIdentity, RegisterBroker};
use rmq_wire::record::body_crc;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};

use super::Role;
use crate::remoting::{CallError, Client, Conn};
use crate::shutdown::Shutdown;

/// The pause after a failure or a change of role; it doubles up to the period. A change is so
/// registered again soon, for an older leader's late registration may have overtaken the first.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Topics that are created one after another are registered together after this pause.
const TOPICS_PAUSE: Duration = Duration::from_millis(100);
/// At least so many times as long as a registration takes is the pause before the next one for new topics.
const PAUSE_OF_WORK: u32 = 9;
/// Most bytes of a body: what a frame takes, but for its header.
const BODY_MAX: usize = MAX_FRAME - (64 << 10);
/// What a stopping broker spends on a name server that does not answer.
const UNREGISTER_LIMIT: Duration = Duration::from_secs(1);
const PERIOD_MIN: Duration = Duration::from_secs(10);
const PERIOD_MAX: Duration = Duration::from_secs(60);
const MASTER: i64 = 0;

/// Who registers, and how often.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub cluster: String,
    pub name: String,
    /// `host:port` for clients.
    pub addr: String,
    /// The same while this node leads; another one if the group has an address that moves.
    pub leader_addr: String,
    /// `host:port` of the HA service, which name servers only pass on.
    pub ha_addr: String,
    /// The further names that this node wants for its group.
    pub alias: Option<Alias>,
    /// The id while another node leads.
    pub follower_id: i64,
    /// `registerNameServerPeriod`; less than 10 s and more than 60 s are not taken.
    pub period: Duration,
    /// `registerBrokerTimeoutMills`.
    pub limit: Duration,
    /// `compressedRegister`.
    pub compressed: bool,
}

impl Options {
    fn addr_as(&self, id: i64) -> &str {
        match id {
            MASTER => &self.leader_addr,
            _ => &self.addr,
        }
    }
}

/// Further names for a group, see `namesrv`.
#[derive(Debug, Clone)]
pub(super) struct Alias {
    /// `host:port` of this node's alias port.
    pub addr: String,
    pub queues: i32,
    /// The broker ids of the followers at which no name shall be, as the leader sees them.
    pub silent: watch::Receiver<Vec<i64>>,
}

/// Reads the topics to register, with their counter and timestamp as version.
pub(super) type ReadTopics = Arc<dyn Fn() -> TopicConfigSerializeWrapper + Send + Sync>;

/// For each name server the revision of the topics that it was last told; none while it cannot be told.
pub(super) type Told = Vec<Option<u64>>;

/// The topics to register.
pub(super) struct Topics {
    pub(super) read: ReadTopics,
    /// Their revision; a change announces that there is something new.
    pub(super) changed: watch::Receiver<u64>,
    /// Kept up to date by the registrar.
    pub(super) told: watch::Sender<Told>,
}

/// Registers until `shutdown`, then takes this broker out of the routes and returns.
///
/// The connections of `client` to the name servers belong to this registrar.
pub(super) async fn run(
    options: Options,
    name_servers: Vec<String>,
    client: Client,
    role: watch::Receiver<Role>,
    topics: Topics,
    shutdown: Shutdown,
) {
    // As `BrokerController` does, so that 120 s of silence are several lost registrations.
    let period = options.period.clamp(PERIOD_MIN, PERIOD_MAX);
    let options = Arc::new(Options { period, ..options });
    let mut tasks = JoinSet::new();
    let body = Arc::new(Body {
        read: topics.read,
        compressed: options.compressed,
        last: Mutex::default(),
    });
    topics.told.send_replace(vec![None; name_servers.len()]);
    for (number, name_server) in name_servers.into_iter().enumerate() {
        let registration = Registration {
            options: Arc::clone(&options),
            name_server,
            client: client.clone(),
            role: role.clone(),
            body: Arc::clone(&body),
            conn: None,
            accepted_as: None,
            deposed: None,
            failing: false,
            number,
            told: topics.told.clone(),
        };
        tasks.spawn(registration.keep(topics.changed.clone(), shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

/// What a leader registers.
struct Body {
    read: ReadTopics,
    compressed: bool,
    /// The last one, with the term and the revision of the topics that it is of.
    last: Mutex<Option<((u64, u64), Encoded)>>,
}

#[derive(Clone)]
struct Encoded {
    bytes: Bytes,
    crc32: i32,
    compressed: bool,
}

impl Body {
    /// The body with the topics of this revision, or newer ones.
    async fn of(&self, term: u64, revision: u64) -> Result<Encoded, RegisterError> {
        let mut last = self.last.lock().await;
        if let Some((of, encoded)) = &*last
            && *of == (term, revision)
        {
            return Ok(encoded.clone());
        }
        let (read, compressed) = (Arc::clone(&self.read), self.compressed);
        // A hundred thousand topics take a while.
        let encoded = spawn_blocking(move || encode(read(), term, compressed))
            .await
            .expect("a registration is made without a panic")?;
        *last = Some(((term, revision), encoded.clone()));
        Ok(encoded)
    }
}

fn encode(
    mut topics: TopicConfigSerializeWrapper,
    term: u64,
    compressed: bool,
) -> Result<Encoded, RegisterError> {
    topics.data_version.state_version = Some(i64::try_from(term).unwrap_or(i64::MAX));
    let body = RegisterBrokerBody {
        topic_config_serialize_wrapper: topics,
        ..Default::default()
    };
    let mut bytes = body.encode(compressed);
    let compress = !compressed && bytes.len() > BODY_MAX;
    if compress {
        bytes = body.encode(true);
    }
    if bytes.len() > BODY_MAX {
        let topics = body.topic_config_serialize_wrapper.topic_config_table.len();
        return Err(RegisterError::TooLong(topics, bytes.len()));
    }
    Ok(Encoded {
        crc32: i32::try_from(body_crc(&bytes)).expect("31 bits"),
        compressed: compressed || compress,
        bytes: bytes.into(),
    })
}

/// The registration with one name server.
struct Registration {
    options: Arc<Options>,
    name_server: String,
    client: Client,
    role: watch::Receiver<Role>,
    body: Arc<Body>,
    conn: Option<Arc<Conn>>,
    /// The id under which this name server last accepted this broker.
    accepted_as: Option<i64>,
    /// Since when it has no lease and knows no leader, although it is registered as leader.
    deposed: Option<Instant>,
    /// So that an outage is one line in the log, not one per attempt.
    failing: bool,
    /// Its place in `told`.
    number: usize,
    told: watch::Sender<Told>,
}

#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("refused with code {0}: {1}")]
    Refused(i32, String),
    #[error("{0} topics take {1} bytes, compressed; name servers take {BODY_MAX}")]
    TooLong(usize, usize),
}

impl Registration {
    async fn keep(mut self, mut topics_changed: watch::Receiver<u64>, mut shutdown: Shutdown) {
        let mut role = self.role.clone();
        let mut silent = (self.options.alias.as_ref()).map(|alias| alias.silent.clone());
        let mut pause = PAUSE_MIN;
        let mut last = Instant::now();
        let mut topics_due = last;
        let mut due = last;
        loop {
            tokio::select! {
                biased;
                () = shutdown.asked() => break,
                Ok(()) = role.changed() => {
                    pause = PAUSE_MIN;
                    due = Instant::now();
                }
                Ok(()) = topics_changed.changed() => due = due.min(topics_due),
                () = changed(silent.as_mut()) => due = due.min(topics_due),
                () = closed(self.conn.as_ref()) => {
                    self.conn = None;
                    self.accepted_as = None;
                    pause = PAUSE_MIN;
                    due = due.min(last + PAUSE_MIN);
                }
                () = sleep_until(due) => {
                    last = Instant::now();
                    let revision = *topics_changed.borrow_and_update();
                    let outcome = tokio::select! {
                        outcome = self.register(revision) => outcome,
                        // Its answer would be about a role that is over.
                        Ok(()) = role.changed() => {
                            pause = PAUSE_MIN;
                            due = Instant::now();
                            continue;
                        }
                        () = shutdown.asked() => break,
                    };
                    let revision = outcome.is_ok().then_some(revision);
                    self.told.send_modify(|told| told[self.number] = revision);
                    let longest = match &outcome {
                        Ok(()) => self.options.period,
                        Err(_) => self.options.period.min(FAILURE_PAUSE_MAX),
                    };
                    self.log(outcome);
                    let now = Instant::now();
                    topics_due = now + TOPICS_PAUSE.max((now - last) * PAUSE_OF_WORK);
                    due = now + pause;
                    pause = (pause * 2).min(longest);
                }
            }
        }
        self.unregister().await;
    }

    /// The id to register with now; none for a leader without a lease.
    fn wanted_id(&mut self, role: &Role) -> Option<i64> {
        if role.serving {
            self.deposed = None;
            return Some(MASTER);
        }
        if role.leader.is_some() || self.accepted_as != Some(MASTER) {
            self.deposed = None;
            return Some(self.options.follower_id);
        }
        let since = *self.deposed.get_or_insert_with(Instant::now);
        (since.elapsed() >= self.options.period).then_some(self.options.follower_id)
    }

    async fn register(&mut self, revision: u64) -> Result<(), RegisterError> {
        let limit = self.options.limit;
        self.conn = Some(self.client.connect(&self.name_server, limit).await?);
        // Read as late as possible: what is sent must not be older than the connection.
        let role = self.role.borrow().clone();
        let Some(id) = self.wanted_id(&role) else {
            return Ok(());
        };
        let command = self.registration(id, role.term, revision).await?;
        // Until it answers, it may have either.
        let before = self.accepted_as.take();
        let answer = self.client.call(&self.name_server, command, limit).await?;
        if answer.code != response::SUCCESS {
            let remark = answer.remark.unwrap_or_default();
            return Err(RegisterError::Refused(answer.code, remark));
        }
        if id == MASTER && before != Some(id) && self.options.leader_addr != self.options.addr {
            // Registering at another address does not end the registration at this one.
            let command = self.unregistration(self.options.follower_id);
            self.client.call(&self.name_server, command, limit).await?;
        }
        self.accepted_as = Some(id);
        Ok(())
    }

    async fn registration(
        &self,
        id: i64,
        term: u64,
        revision: u64,
    ) -> Result<Command, RegisterError> {
        let body = if id == MASTER {
            self.body.of(term, revision).await?
        } else {
            // Not the leader's version: 4.9.7 would then take the topics of this broker for
            // known when it registers as leader.
            encode(TopicConfigSerializeWrapper::default(), term, false)?
        };
        let options = &self.options;
        let header = RegisterBroker {
            broker_name: options.name.clone(),
            broker_addr: options.addr_as(id).to_owned(),
            cluster_name: options.cluster.clone(),
            ha_server_addr: options.ha_addr.clone(),
            broker_id: id,
            compressed: body.compressed,
            body_crc32: body.crc32,
            raft_term: Some(i64::try_from(term).unwrap_or(i64::MAX)),
            group_vip: (options.leader_addr != options.addr).then(|| options.leader_addr.clone()),
            group_alias_addr: options.alias.as_ref().map(|alias| alias.addr.clone()),
            group_alias_queues: options.alias.as_ref().map(|alias| alias.queues),
            group_silent: (options.alias.as_ref())
                .filter(|_| id == MASTER)
                .map(|alias| ids(&alias.silent.borrow())),
            ..RegisterBroker::default()
        };
        let command = Command::request(request::REGISTER_BROKER).with_header(&header);
        Ok(command.with_body(body.bytes))
    }

    fn unregistration(&self, id: i64) -> Command {
        let options = &self.options;
        let header = BrokerIdentity {
            broker_name: options.name.clone(),
            broker_addr: options.addr_as(id).to_owned(),
            cluster_name: options.cluster.clone(),
            broker_id: id,
        };
        Command::request(request::UNREGISTER_BROKER).with_header(&header)
    }

    async fn unregister(&mut self) {
        let Some(conn) = self.conn.take() else { return };
        let role = self.role.borrow().clone();
        let wanted = self.wanted_id(&role);
        // 4.9.7 removes whoever has the id, so it must still be this broker's. Otherwise the end
        // of the connection has to do, which removes by address.
        if let Some(id) = wanted
            && self.accepted_as == wanted
        {
            let command = self.unregistration(id);
            if let Err(error) = conn.call(command, UNREGISTER_LIMIT).await {
                tracing::warn!(name_server = self.name_server, "not unregistered: {error}");
            }
        }
        conn.close();
    }

    fn log(&mut self, outcome: Result<(), RegisterError>) {
        let name_server = &self.name_server;
        match outcome {
            Ok(()) if self.failing => {
                tracing::info!(name_server, id = self.accepted_as, "registered again");
                self.failing = false;
            }
            Err(error) if !self.failing => {
                tracing::warn!(name_server, "not registered, trying again: {error}");
                self.failing = true;
            }
            _ => {}
        }
    }
}

fn ids(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    ids.join(";")
}

/// Waits for a change of what is watched; for ever for nothing.
async fn changed(watched: Option<&mut watch::Receiver<Vec<i64>>>) {
    if let Some(watched) = watched
        && watched.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn closed(conn: Option<&Arc<Conn>>) {
    match conn {
        Some(conn) => conn.closed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
