use std::sync::Mutex;

use rmq_wire::body::{ClusterInfo, TopicConfig, TopicList};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::remoting::testing::{Port, Switchboard, network};
use crate::remoting::{Limits, Reply, Request, Service, serve};
use crate::shutdown::Trigger;

const ADDR: &str = "127.0.0.1:10911";

/// Registers whoever asks and remembers it.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<Seen>>,
    open: Mutex<usize>,
    refuse: Mutex<bool>,
}

/// Request code, broker id, term, version and number of topics.
type Seen = (i32, i64, Option<i64>, i64, usize);

impl Service for Recorder {
    async fn call(self: Arc<Self>, request: Request) -> Option<Reply> {
        let command = &request.command;
        let seen = match command.code {
            request::REGISTER_BROKER => {
                let header: RegisterBroker = command.header().unwrap();
                let crc = i32::try_from(body_crc(&command.body)).unwrap();
                assert_eq!(header.body_crc32, crc);
                assert_eq!((&*header.broker_addr, &*header.cluster_name), (ADDR, "C"));
                let topics = RegisterBrokerBody::decode(&command.body, header.compressed).unwrap();
                let topics = topics.topic_config_serialize_wrapper;
                let version = topics.data_version;
                assert_eq!(version.state_version, header.raft_term);
                let count = topics.topic_config_table.len();
                (
                    command.code,
                    header.broker_id,
                    header.raft_term,
                    version.counter,
                    count,
                )
            }
            code => {
                let header: BrokerIdentity = command.header().unwrap();
                (code, header.broker_id, None, 0, 0)
            }
        };
        self.seen.lock().unwrap().push(seen);
        let refuse = *self.refuse.lock().unwrap();
        let code = if refuse {
            response::SYSTEM_ERROR
        } else {
            response::SUCCESS
        };
        Some(command.reply(code).into())
    }

    fn opened(&self, _conn: &Arc<Conn>) {
        *self.open.lock().unwrap() += 1;
    }

    fn closed(&self, _conn: &Arc<Conn>) {
        *self.open.lock().unwrap() -= 1;
    }
}

impl Recorder {
    /// What came since the last look, after everything that happens by itself at once.
    async fn news(&self) -> Vec<Seen> {
        // The clock is paused: it advances when nothing else is left to do.
        sleep(Duration::from_millis(200)).await;
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

struct Fixture {
    role: watch::Sender<Role>,
    topics: Arc<Mutex<TopicConfigSerializeWrapper>>,
    topics_changed: watch::Sender<u64>,
    told: watch::Receiver<Told>,
    trigger: Trigger,
    task: JoinHandle<()>,
}

fn role(term: u64, leader: Option<&str>, serving: bool) -> Role {
    Role {
        term,
        leader: leader.map(String::from),
        serving,
    }
}

/// With name servers `ns1:1`, `ns2:1` and so on.
fn start(switchboard: &Switchboard, name_servers: usize, first: Role) -> Fixture {
    start_at(ADDR, switchboard, name_servers, first)
}

/// The same for a node that is at `leader_addr` while it leads.
fn start_at(
    leader_addr: &str,
    switchboard: &Switchboard,
    name_servers: usize,
    first: Role,
) -> Fixture {
    let (role, roles) = watch::channel(first);
    let (topics_changed, changes) = watch::channel(0);
    let (tell, told) = watch::channel(Told::new());
    let (trigger, shutdown) = Shutdown::new();
    let topics = Arc::new(Mutex::new(TopicConfigSerializeWrapper::default()));
    let read = Arc::clone(&topics);
    let options = Options {
        cluster: "C".into(),
        name: "b".into(),
        addr: ADDR.into(),
        leader_addr: leader_addr.into(),
        ha_addr: "127.0.0.1:10912".into(),
        alias: None,
        follower_id: 1,
        period: Duration::from_secs(30),
        limit: Duration::from_secs(6),
        compressed: false,
    };
    let read: ReadTopics = Arc::new(move || read.lock().unwrap().clone());
    let name_servers = (1..=name_servers).map(|i| format!("ns{i}:1")).collect();
    let client = Client::new(switchboard.clone(), Limits::default());
    let task = tokio::spawn(run(
        options,
        name_servers,
        client,
        roles,
        Topics {
            read,
            changed: changes,
            told: tell,
        },
        shutdown,
    ));
    let fixture = Fixture {
        role,
        topics,
        topics_changed,
        told,
        trigger,
        task,
    };
    fixture.create("T");
    fixture
}

impl Fixture {
    fn create(&self, topic: &str) {
        let mut topics = self.topics.lock().unwrap();
        topics
            .topic_config_table
            .insert(topic.into(), TopicConfig::new(topic, 4, 6));
        topics.data_version.counter += 1;
        self.topics_changed.send_modify(|count| *count += 1);
    }

    async fn stop(self) {
        self.trigger.stop();
        self.task.await.unwrap();
    }
}

struct Server {
    recorder: Arc<Recorder>,
    trigger: Trigger,
    task: JoinHandle<()>,
}

fn recorder(switchboard: &Switchboard, addr: &str) -> Server {
    let (net, port) = network();
    switchboard.plug(addr, port);
    let recorder = Arc::new(Recorder::default());
    let (trigger, shutdown) = Shutdown::new();
    let task = tokio::spawn(serve(
        net,
        Arc::clone(&recorder),
        Limits::default(),
        shutdown,
    ));
    Server {
        recorder,
        trigger,
        task,
    }
}

fn registered(id: i64, term: i64, version: i64) -> Seen {
    let topics = usize::try_from(version).unwrap();
    (request::REGISTER_BROKER, id, Some(term), version, topics)
}

fn unregistered(id: i64) -> Seen {
    (request::UNREGISTER_BROKER, id, None, 0, 0)
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_follows_the_role() {
    let switchboard = Switchboard::default();
    let Server {
        recorder,
        trigger: _trigger,
        ..
    } = recorder(&switchboard, "ns1:1");
    let fixture = start(&switchboard, 1, role(1, None, false));
    assert_eq!(recorder.news().await, [registered(1, 1, 0)]);
    fixture.role.send_replace(role(2, Some("other:1"), false));
    assert_eq!(recorder.news().await, [registered(1, 2, 0)]);
    // Elected, and not ready to serve yet.
    fixture.role.send_replace(role(3, None, false));
    assert_eq!(recorder.news().await, [registered(1, 3, 0)]);
    fixture.role.send_replace(role(3, None, true));
    assert_eq!(recorder.news().await, [registered(0, 3, 1)]);
    fixture.create("U");
    fixture.create("V");
    assert_eq!(recorder.news().await, [registered(0, 3, 3)]);
    // Its lease has ended: topics do not make it speak.
    fixture.role.send_replace(role(3, None, false));
    fixture.create("W");
    sleep(Duration::from_secs(25)).await;
    assert_eq!(recorder.news().await, []);
    fixture.role.send_replace(role(4, Some("other:1"), false));
    assert_eq!(recorder.news().await, [registered(1, 4, 0)]);
    // Nor does a short time, but a group that stays without a leader is not to vanish.
    fixture.role.send_replace(role(5, None, true));
    assert_eq!(recorder.news().await, [registered(0, 5, 4)]);
    fixture.role.send_replace(role(6, None, false));
    sleep(Duration::from_secs(25)).await;
    assert_eq!(recorder.news().await, []);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(recorder.news().await.first(), Some(&registered(1, 6, 0)));
    fixture.stop().await;
    assert_eq!(recorder.news().await, [unregistered(1)]);
    assert_eq!(*recorder.open.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_repeated_soon_and_then_once_a_period() {
    let switchboard = Switchboard::default();
    let Server {
        recorder,
        trigger: _trigger,
        ..
    } = recorder(&switchboard, "ns1:1");
    let fixture = start(&switchboard, 1, role(1, None, true));
    sleep(Duration::from_secs(40)).await;
    // At 0, 1, 3, 7, 15 and 31 s.
    assert_eq!(recorder.news().await, [registered(0, 1, 1); 6]);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(recorder.news().await, [registered(0, 1, 1); 2]);
    assert_eq!(*recorder.open.lock().unwrap(), 1);
    fixture.stop().await;
}

#[test]
fn what_fits_no_frame_is_compressed() {
    let topics = |count, name_bytes| {
        let mut topics = TopicConfigSerializeWrapper::default();
        for n in 0..count {
            let name = format!("{n:0name_bytes$}");
            let topic = TopicConfig::new(&name, 4, 6);
            topics.topic_config_table.insert(name, topic);
        }
        topics
    };
    for (count, name_bytes, asked, is_compressed) in [
        (3, 10, false, false),
        (3, 10, true, true),
        (40_000, 200, false, true),
    ] {
        let body = encode(topics(count, name_bytes), 7, asked).unwrap();
        assert_eq!(body.compressed, is_compressed, "{count}");
        assert!(body.bytes.len() < BODY_MAX);
        assert_eq!(i32::try_from(body_crc(&body.bytes)), Ok(body.crc32));
        let read = RegisterBrokerBody::decode(&body.bytes, body.compressed).unwrap();
        let read = read.topic_config_serialize_wrapper;
        assert_eq!(read.data_version.state_version, Some(7));
        assert_eq!(read.topic_config_table.len(), count);
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_known_which_topics_each_name_server_was_told() {
    let switchboard = Switchboard::default();
    let server = recorder(&switchboard, "ns1:1");
    // Nobody is at the second one's address.
    let mut fixture = start(&switchboard, 2, role(1, None, true));
    let told = fixture.told.wait_for(|told| told.first() == Some(&Some(1)));
    assert_eq!(*told.await.unwrap(), [Some(1), None]);
    fixture.create("U");
    let told = fixture.told.wait_for(|told| told[0] == Some(2));
    assert_eq!(*told.await.unwrap(), [Some(2), None]);
    let last = server.recorder.news().await.pop().unwrap();
    assert_eq!(last, registered(0, 1, 2));
    fixture.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_leader_unregisters_and_one_without_a_lease_only_hangs_up() {
    let switchboard = Switchboard::default();
    let Server {
        recorder,
        trigger: _trigger,
        ..
    } = recorder(&switchboard, "ns1:1");
    let fixture = start(&switchboard, 1, role(1, None, true));
    assert_eq!(recorder.news().await, [registered(0, 1, 1)]);
    fixture.stop().await;
    assert_eq!(recorder.news().await, [unregistered(0)]);

    let fixture = start(&switchboard, 1, role(1, None, true));
    assert_eq!(recorder.news().await, [registered(0, 1, 1)]);
    fixture.role.send_replace(role(1, None, false));
    fixture.stop().await;
    assert_eq!(recorder.news().await, []);
    assert_eq!(*recorder.open.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn dead_and_hanging_name_servers_delay_no_other() {
    let switchboard = Switchboard::default();
    // ns1 refuses; nobody accepts at ns2; ns3 never answers.
    let (_net, port) = network();
    switchboard.plug("ns2:1", port);
    let (silent, accepted) = silent();
    switchboard.plug("ns3:1", silent);
    let Server {
        recorder,
        trigger: _trigger,
        ..
    } = recorder(&switchboard, "ns4:1");
    let fixture = start(&switchboard, 4, role(1, Some("other:1"), false));
    assert_eq!(recorder.news().await, [registered(1, 1, 0)]);
    for term in 2..6 {
        fixture.role.send_replace(role(term, None, true));
        assert_eq!(
            recorder.news().await,
            [registered(0, i64::try_from(term).unwrap(), 1)]
        );
    }
    let begun = Instant::now();
    fixture.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(recorder.news().await, [unregistered(0)]);
    accepted.abort();
}

/// Reads and never answers.
fn silent() -> (Port, JoinHandle<()>) {
    struct Silent;
    impl Service for Silent {
        async fn call(self: Arc<Self>, _: Request) -> Option<Reply> {
            None
        }
    }
    let (net, port) = network();
    let (trigger, shutdown) = Shutdown::new();
    let task = tokio::spawn(async move {
        serve(net, Arc::new(Silent), Limits::default(), shutdown).await;
        drop(trigger);
    });
    (port, task)
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_comes_back_is_told_again() {
    let switchboard = Switchboard::default();
    let first = recorder(&switchboard, "ns1:1");
    let fixture = start(&switchboard, 1, role(1, None, true));
    assert_eq!(first.recorder.news().await, [registered(0, 1, 1)]);
    sleep(Duration::from_secs(100)).await;
    // Only its connections break: told again at once.
    first.recorder.news().await;
    first.trigger.stop();
    let second = recorder(&switchboard, "ns1:1");
    first.task.await.unwrap();
    assert_eq!(second.recorder.news().await, [registered(0, 1, 1)]);

    // It is away for long: told again within 5 s.
    second.trigger.stop();
    second.task.await.unwrap();
    sleep(Duration::from_secs(100)).await;
    let third = recorder(&switchboard, "ns1:1");
    sleep(Duration::from_secs(5)).await;
    assert!(third.recorder.news().await.contains(&registered(0, 1, 1)));

    // It refuses: asked again.
    *third.recorder.refuse.lock().unwrap() = true;
    fixture.role.send_replace(role(2, None, true));
    sleep(Duration::from_secs(100)).await;
    assert!(third.recorder.news().await.len() > 10);
    fixture.stop().await;
    // What was never accepted needs no unregistering.
    assert_eq!(third.recorder.news().await, []);
}

#[tokio::test(start_paused = true)]
async fn the_route_shows_the_address_that_moves_with_the_leader() {
    const VIP: &str = "127.0.0.100:10911";
    let switchboard = Switchboard::default();
    let (net, port) = network();
    switchboard.plug("ns1:1", port);
    let (_trigger, shutdown) = Shutdown::new();
    let options = crate::namesrv::Options::default();
    tokio::spawn(crate::namesrv::run(options, net, shutdown));
    let fixture = start_at(VIP, &switchboard, 1, role(1, Some("other:1"), false));
    let client = Client::new(switchboard, Limits::default());
    let addrs = async || {
        sleep(Duration::from_millis(200)).await;
        let command = Command::request(request::GET_BROKER_CLUSTER_INFO);
        let limit = Duration::from_secs(5);
        let info = client.call("ns1:1", command, limit).await.unwrap();
        let mut info: ClusterInfo = info.json().unwrap();
        let broker = info.broker_addr_table.remove("b");
        broker.map_or_else(Vec::new, |broker| broker.broker_addrs.into_iter().collect())
    };
    // Nobody has registered there yet, and nowhere else will the leader be.
    assert_eq!(addrs().await, [(0, VIP.to_owned()), (1, ADDR.to_owned())]);
    fixture.role.send_replace(role(2, None, true));
    assert_eq!(addrs().await, [(0, VIP.to_owned())]);
    fixture.role.send_replace(role(3, Some("other:1"), false));
    assert_eq!(addrs().await, [(0, VIP.to_owned()), (1, ADDR.to_owned())]);
    fixture.stop().await;
    assert_eq!(addrs().await, []);
}

/// The two sides together.
#[tokio::test(start_paused = true)]
async fn our_name_server_shows_the_leader_and_forgets_a_broker_that_stops() {
    let switchboard = Switchboard::default();
    let (net, port) = network();
    switchboard.plug("ns1:1", port);
    let (_trigger, shutdown) = Shutdown::new();
    tokio::spawn(crate::namesrv::run(
        crate::namesrv::Options::default(),
        net,
        shutdown,
    ));
    let fixture = start(&switchboard, 1, role(1, Some("other:1"), false));
    let client = Client::new(switchboard, Limits::default());
    let ask = async |code| {
        sleep(Duration::from_millis(200)).await;
        client
            .call("ns1:1", Command::request(code), Duration::from_secs(5))
            .await
            .unwrap()
    };
    let topics = async || {
        let list = ask(request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER).await;
        list.json::<TopicList>()
            .unwrap()
            .topic_list
            .into_iter()
            .collect::<Vec<_>>()
    };
    let addrs = async || {
        let info = ask(request::GET_BROKER_CLUSTER_INFO).await;
        let mut info: ClusterInfo = info.json().unwrap();
        let broker = info.broker_addr_table.remove("b");
        broker.map_or_else(Vec::new, |broker| broker.broker_addrs.into_iter().collect())
    };
    // A follower stands in while there is no leader.
    assert_eq!(addrs().await, [(0, ADDR.to_owned())]);
    assert!(topics().await.is_empty());
    fixture.role.send_replace(role(2, None, true));
    assert_eq!(topics().await, ["T"]);
    assert_eq!(addrs().await, [(0, ADDR.to_owned())]);
    fixture.stop().await;
    assert_eq!(addrs().await, []);
    assert!(
        timeout(Duration::from_secs(5), topics())
            .await
            .unwrap()
            .is_empty()
    );
}
