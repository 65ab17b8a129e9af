use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rmq_wire::body::{
    ClusterInfo, DataVersion, KvTable, RegisterBrokerBody, TopicConfig, TopicList, TopicRouteData,
};
use rmq_wire::code::{request, response};
use rmq_wire::frame::{Command, SerializeType, peek_len};
use rmq_wire::header::{
    AddWritePermResponse, BrokerIdentity, DeleteTopicInNamesrv, GetKvConfigResponse,
    GetKvListByNamespace, GetRouteInfo, GetTopicsByCluster, KvConfigKey, PutKvConfig,
    QueryDataVersionResponse, RegisterBroker, RegisterBrokerResponse, WipeWritePermResponse,
    WritePermOfBroker,
};
use rmq_wire::json;
use rmq_wire::record::body_crc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::remoting::captured::captured;
use crate::remoting::{Client, Tcp};
use crate::shutdown::Trigger;

const LIMIT: Duration = Duration::from_secs(60);

struct Server {
    addr: String,
    client: Client,
    trigger: Trigger,
    task: JoinHandle<Result<(), KvError>>,
}

async fn start(options: Options) -> Server {
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (trigger, shutdown) = Shutdown::new();
    let task = tokio::spawn(run(options, listener, shutdown));
    Server {
        addr,
        client: Client::default(),
        trigger,
        task,
    }
}

impl Server {
    async fn ask(&self, command: Command) -> Command {
        self.client.call(&self.addr, command, LIMIT).await.unwrap()
    }

    async fn ok(&self, command: Command) -> Command {
        let answer = self.ask(command).await;
        assert_eq!(answer.code, response::SUCCESS, "{:?}", answer.remark);
        answer
    }

    async fn route(&self, topic: &str) -> Option<TopicRouteData> {
        let answer = self.ask(get_route(topic)).await;
        match answer.code {
            response::SUCCESS => Some(answer.json().unwrap()),
            response::TOPIC_NOT_EXIST => None,
            code => panic!("{code} {:?}", answer.remark),
        }
    }

    async fn topics(&self, command: Command) -> Vec<String> {
        let topics: TopicList = self.ok(command).await.json().unwrap();
        topics.topic_list.into_iter().collect()
    }
}

fn get_route(topic: &str) -> Command {
    Command::request(request::GET_ROUTEINFO_BY_TOPIC).with_header(&GetRouteInfo {
        topic: topic.into(),
        ..GetRouteInfo::default()
    })
}

fn header(addr: &str, id: i64, term: Option<i64>) -> RegisterBroker {
    RegisterBroker {
        broker_name: "b".into(),
        broker_addr: addr.into(),
        cluster_name: "C".into(),
        ha_server_addr: "127.0.0.1:10912".into(),
        broker_id: id,
        raft_term: term,
        ..RegisterBroker::default()
    }
}

fn topics(names: &[&str]) -> RegisterBrokerBody {
    let mut body = RegisterBrokerBody::default();
    for name in names {
        let config = TopicConfig::new(*name, 4, 6);
        body.topic_config_serialize_wrapper
            .topic_config_table
            .insert((*name).into(), config);
    }
    body.topic_config_serialize_wrapper.data_version.counter = 7;
    body
}

fn register(mut header: RegisterBroker, body: &RegisterBrokerBody, compressed: bool) -> Command {
    let body = body.encode(compressed);
    header.compressed = compressed;
    header.body_crc32 = body_crc(&body).try_into().unwrap();
    Command::request(request::REGISTER_BROKER)
        .with_header(&header)
        .with_body(body.into())
}

#[tokio::test]
async fn a_broker_is_found_by_its_topics_until_its_connection_ends() {
    let server = start(Options::default()).await;
    assert!(server.route("T").await.is_none());
    let broker = Client::default();
    for (compressed, topic) in [(false, "T"), (true, "U")] {
        let mut body = topics(&[topic, "illegal/../name"]);
        body.topic_config_serialize_wrapper.data_version.timestamp += i64::from(compressed);
        let mut command = register(header("127.0.0.1:10911", 0, None), &body, compressed);
        command.serialize = [SerializeType::Json, SerializeType::RocketMq][usize::from(compressed)];
        let answer = broker.call(&server.addr, command, LIMIT).await.unwrap();
        assert_eq!(answer.code, response::SUCCESS);
    }
    let route = server.route("U").await.unwrap();
    assert_eq!(route.broker_datas[0].broker_addrs[&0], "127.0.0.1:10911");
    assert_eq!(
        (
            route.queue_datas[0].perm,
            route.queue_datas[0].write_queue_nums
        ),
        (6, 4)
    );
    let all = || Command::request(request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER);
    assert_eq!(server.topics(all()).await, ["T", "U"]);

    drop(broker);
    let gone = async { while server.route("T").await.is_some() {} };
    timeout(LIMIT, gone)
        .await
        .expect("the broker's end is noticed");
    assert!(server.topics(all()).await.is_empty());

    server.trigger.stop();
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn slaves_are_told_their_master_and_old_leaders_are_refused() {
    let server = start(Options::default()).await;
    server
        .ok(register(
            header("127.0.0.1:1", 0, Some(3)),
            &topics(&["T"]),
            false,
        ))
        .await;
    let answer = server
        .ok(register(
            header("127.0.0.1:2", 2, Some(3)),
            &topics(&[]),
            false,
        ))
        .await;
    let master: RegisterBrokerResponse = answer.header().unwrap();
    assert_eq!(master.master_addr.as_deref(), Some("127.0.0.1:1"));
    assert_eq!(master.ha_server_addr.as_deref(), Some("127.0.0.1:10912"));
    let answer = server
        .ask(register(
            header("127.0.0.1:3", 0, Some(2)),
            &topics(&[]),
            false,
        ))
        .await;
    assert_eq!(answer.code, response::SYSTEM_ERROR);
    assert!(answer.remark.unwrap().contains("has a leader of term 3"));
    let addrs = server
        .route("T")
        .await
        .unwrap()
        .broker_datas
        .remove(0)
        .broker_addrs;
    assert_eq!(
        addrs.into_values().collect::<Vec<_>>(),
        ["127.0.0.1:1", "127.0.0.1:2"]
    );

    let identity = BrokerIdentity {
        broker_name: "b".into(),
        broker_addr: "127.0.0.1:1".into(),
        cluster_name: "C".into(),
        broker_id: 0,
    };
    let unregister = Command::request(request::UNREGISTER_BROKER).with_header(&identity);
    server.ok(unregister).await;
    let info = server
        .ok(Command::request(request::GET_BROKER_CLUSTER_INFO))
        .await;
    let info: ClusterInfo = info.json().unwrap();
    assert_eq!(info.broker_addr_table["b"].broker_addrs[&0], "127.0.0.1:2");
}

#[tokio::test]
async fn a_registration_that_makes_no_sense_is_answered_with_an_error() {
    let server = start(Options::default()).await;
    let good = register(header("127.0.0.1:1", 0, None), &topics(&["T"]), false);
    let mut bad_crc = good.clone();
    bad_crc.body = b"{}"[..].into();
    let mut no_name = good.clone();
    no_name.ext.remove("brokerName");
    let mut bad_id = good.clone();
    bad_id.ext.insert("brokerId", "zero");
    let mut bad_body = Command::request(request::REGISTER_BROKER)
        .with_header(&header("127.0.0.1:1", 0, None))
        .with_body("[".repeat(1 << 20).into());
    let bad_json = bad_body.clone();
    bad_body.ext.insert("compressed", true);
    let cases = [
        bad_crc,
        no_name,
        bad_id,
        bad_json,
        bad_body,
        register(header("127.0.0.1", 0, None), &topics(&[]), false),
        register(header("127.0.0.1:0", 0, None), &topics(&[]), false),
        register(header("127.0.0.1:1", -1, None), &topics(&[]), false),
        register(
            header(&format!("{}:1", "a".repeat(300)), 0, None),
            &topics(&[]),
            false,
        ),
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let answer = server.ask(case).await;
        assert_eq!(answer.code, response::SYSTEM_ERROR, "case {i}");
        assert!(!answer.remark.unwrap().is_empty());
    }
    let info: ClusterInfo = server
        .ok(Command::request(request::GET_BROKER_CLUSTER_INFO))
        .await
        .json()
        .unwrap();
    assert_eq!(info, ClusterInfo::default());
    server.ok(good).await;
    // Neither crc nor body are needed.
    let bare =
        Command::request(request::REGISTER_BROKER).with_header(&header("127.0.0.1:1", 0, None));
    server.ok(bare).await;
    assert!(server.route("T").await.is_some());
    let unknown = server.ask(Command::request(9999)).await;
    assert_eq!(unknown.code, response::REQUEST_CODE_NOT_SUPPORTED);
}

#[tokio::test]
async fn versions_are_compared() {
    let server = start(Options::default()).await;
    server
        .ok(register(
            header("127.0.0.1:1", 0, None),
            &topics(&[]),
            false,
        ))
        .await;
    let query = |addr: &str, counter: i64| {
        let identity = BrokerIdentity {
            broker_name: "b".into(),
            broker_addr: addr.into(),
            cluster_name: "C".into(),
            broker_id: 0,
        };
        Command::request(request::QUERY_DATA_VERSION)
            .with_header(&identity)
            .with_json(&DataVersion {
                counter,
                ..DataVersion::default()
            })
    };
    for (addr, counter, changed) in [
        ("127.0.0.1:1", 7, false),
        ("127.0.0.1:1", 8, true),
        ("127.0.0.1:2", 7, true),
    ] {
        let answer = server.ok(query(addr, counter)).await;
        let header: QueryDataVersionResponse = answer.header().unwrap();
        assert_eq!(header.changed, changed, "{addr} {counter}");
        assert_eq!(answer.body.is_empty(), addr == "127.0.0.1:2");
    }
}

#[tokio::test]
async fn the_tools_lists_and_changes() {
    let server = start(Options::default()).await;
    let mut body = topics(&["T", "Unit", "Sub", "UnitSub"]);
    for (topic, flag) in [("Unit", 1), ("Sub", 2), ("UnitSub", 3)] {
        let table = &mut body.topic_config_serialize_wrapper.topic_config_table;
        table.get_mut(topic).unwrap().topic_sys_flag = flag;
    }
    server
        .ok(register(header("127.0.0.1:1", 0, None), &body, false))
        .await;
    let list = Command::request;
    assert_eq!(
        server.topics(list(request::GET_UNIT_TOPIC_LIST)).await,
        ["Unit", "UnitSub"]
    );
    assert_eq!(
        server
            .topics(list(request::GET_HAS_UNIT_SUB_TOPIC_LIST))
            .await,
        ["Sub", "UnitSub"]
    );
    assert_eq!(
        server
            .topics(list(request::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST))
            .await,
        ["Sub"]
    );
    let system = server
        .ok(list(request::GET_SYSTEM_TOPIC_LIST_FROM_NS))
        .await;
    let system: TopicList = system.json().unwrap();
    assert_eq!(system.broker_addr.as_deref(), Some("127.0.0.1:1"));
    assert_eq!(
        system.topic_list.into_iter().collect::<Vec<_>>(),
        ["C", "b"]
    );
    let of = |cluster: &str| {
        list(request::GET_TOPICS_BY_CLUSTER).with_header(&GetTopicsByCluster {
            cluster: cluster.into(),
        })
    };
    assert_eq!(server.topics(of("C")).await.len(), 4);
    assert!(server.topics(of("other")).await.is_empty());

    let broker = WritePermOfBroker {
        broker_name: "b".into(),
    };
    let wipe = list(request::WIPE_WRITE_PERM_OF_BROKER).with_header(&broker);
    let wiped: WipeWritePermResponse = server.ok(wipe).await.header().unwrap();
    assert_eq!(wiped.wipe_topic_count, 4);
    assert_eq!(server.route("T").await.unwrap().queue_datas[0].perm, 4);
    let add = list(request::ADD_WRITE_PERM_OF_BROKER).with_header(&broker);
    let added: AddWritePermResponse = server.ok(add).await.header().unwrap();
    assert_eq!(added.add_topic_count, 4);
    assert_eq!(server.route("T").await.unwrap().queue_datas[0].perm, 6);

    let delete = |cluster: Option<&str>| {
        let cluster_name = cluster.map(String::from);
        list(request::DELETE_TOPIC_IN_NAMESRV).with_header(&DeleteTopicInNamesrv {
            topic: "T".into(),
            cluster_name,
        })
    };
    server.ok(delete(Some("other"))).await;
    assert!(server.route("T").await.is_some());
    server.ok(delete(Some(""))).await;
    assert!(server.route("T").await.is_none());
}

#[tokio::test]
async fn keys_order_topics_and_configuration() {
    let properties = BTreeMap::from([
        ("listenPort".to_owned(), "9876".to_owned()),
        ("orderMessageEnable".to_owned(), "false".to_owned()),
    ]);
    let server = start(Options {
        properties,
        ..Options::default()
    })
    .await;
    let (namespace, key) = ("ORDER_TOPIC_CONFIG".to_owned(), "T".to_owned());
    let name = KvConfigKey {
        namespace: namespace.clone(),
        key: key.clone(),
    };
    let get = || Command::request(request::GET_KV_CONFIG).with_header(&name);
    let list = || {
        Command::request(request::GET_KVLIST_BY_NAMESPACE).with_header(&GetKvListByNamespace {
            namespace: namespace.clone(),
        })
    };
    assert_eq!(server.ask(get()).await.code, response::QUERY_NOT_FOUND);
    assert_eq!(server.ask(list()).await.code, response::QUERY_NOT_FOUND);
    let value = "b:4".to_owned();
    let put = PutKvConfig {
        namespace: namespace.clone(),
        key,
        value,
    };
    server
        .ok(Command::request(request::PUT_KV_CONFIG).with_header(&put))
        .await;
    let answer: GetKvConfigResponse = server.ok(get()).await.header().unwrap();
    assert_eq!(answer.value.as_deref(), Some("b:4"));
    let table: KvTable = server.ok(list()).await.json().unwrap();
    assert_eq!(table.table["T"], "b:4");

    // Brokers are told with their registration, clients with their routes if that is enabled.
    let answer = server
        .ok(register(
            header("127.0.0.1:1", 0, None),
            &topics(&["T"]),
            false,
        ))
        .await;
    assert_eq!(answer.json::<KvTable>().unwrap(), table);
    assert_eq!(server.route("T").await.unwrap().order_topic_conf, None);
    let update = |text: &str| {
        Command::request(request::UPDATE_NAMESRV_CONFIG).with_body(Bytes::from(text.to_owned()))
    };
    server
        .ok(update("# comment\n orderMessageEnable = true\n"))
        .await;
    assert_eq!(
        server.route("T").await.unwrap().order_topic_conf.as_deref(),
        Some("b:4")
    );
    for (text, code) in [
        (
            "orderMessageEnable=false\nkvConfigPath=/tmp/x",
            response::NO_PERMISSION,
        ),
        ("configStorePath=/tmp/x", response::NO_PERMISSION),
        ("rocketmqHome=/tmp/x", response::NO_PERMISSION),
        ("nonsense", response::NO_PERMISSION),
        ("orderMessageEnable=perhaps", response::SYSTEM_ERROR),
    ] {
        assert_eq!(server.ask(update(text)).await.code, code, "{text}");
    }
    let text = server
        .ok(Command::request(request::GET_NAMESRV_CONFIG))
        .await
        .body;
    assert_eq!(&text[..], b"listenPort=9876\norderMessageEnable=true\n");

    server
        .ok(Command::request(request::DELETE_KV_CONFIG).with_header(&name))
        .await;
    assert_eq!(server.ask(get()).await.code, response::QUERY_NOT_FOUND);
}

async fn receive(socket: &mut TcpStream) -> Command {
    let mut len = [0; 4];
    socket.read_exact(&mut len).await.unwrap();
    let mut frame = vec![0; peek_len(&len).unwrap().unwrap()];
    socket.read_exact(&mut frame).await.unwrap();
    Command::decode(frame.into()).unwrap()
}

/// What brokers of 4.9.7 and 5.5.0 asked is answered as their own name servers answered it.
#[tokio::test]
async fn captured_brokers_are_answered_as_by_java() {
    for (name, master) in [
        ("broker-4.9.7.broker-and-namesrv-start.jsonl.gz", None),
        ("broker-5.5.0.broker-and-namesrv-start.jsonl.gz", None),
        (
            "broker-4.9.7.slave-4.9.7-joins.jsonl.gz",
            Some("127.0.0.1:24911"),
        ),
        (
            "broker-5.5.0.slave-5.5.0-joins.jsonl.gz",
            Some("127.0.0.1:24911"),
        ),
    ] {
        let Some(frames) = captured(name, "namesrv") else {
            return;
        };
        let server = start(Options::default()).await;
        if let Some(master) = master {
            let header = RegisterBroker {
                broker_name: "broker-a".into(),
                cluster_name: "FxCluster".into(),
                ha_server_addr: "127.0.0.1:24912".into(),
                ..header(master, 0, None)
            };
            server.ok(register(header, &topics(&[]), false)).await;
        }
        let mut socket = TcpStream::connect(&server.addr).await.unwrap();
        let mut answers = 0;
        for frame in frames {
            if frame.from_client {
                socket.write_all(&frame.bytes).await.unwrap();
                continue;
            }
            answers += 1;
            let theirs = Command::decode(frame.bytes.slice(4..)).unwrap();
            let ours = receive(&mut socket).await;
            assert_eq!(
                (ours.opaque, ours.code),
                (theirs.opaque, theirs.code),
                "{name}"
            );
            assert_eq!(ours.ext, theirs.ext, "{name}");
            let info = |body: &[u8]| {
                let mut info: ClusterInfo = json::from_slice(body).unwrap();
                // Of 5.x, and not what clients go by.
                info.broker_addr_table
                    .values_mut()
                    .for_each(|b| b.enable_acting_master = None);
                info
            };
            match (theirs.body.is_empty(), ours.body.is_empty()) {
                (true, true) => {}
                (false, false) => assert_eq!(info(&ours.body), info(&theirs.body), "{name}"),
                _ => panic!("{name}: {:?} instead of {:?}", ours.body, theirs.body),
            }
        }
        assert!(answers > 0);
    }
}

#[tokio::test]
async fn a_key_value_file_that_cannot_be_read_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("kv.json");
    std::fs::write(&path, "{").unwrap();
    let server = start(Options {
        kv_config_path: Some(path),
        ..Options::default()
    })
    .await;
    assert!(matches!(
        server.task.await.unwrap(),
        Err(KvError::Syntax { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every request is answered or ends its connection, whatever is in it.
    #[test]
    fn any_request_is_survived(
        code in prop_oneof![100i32..107, 200i32..225, 300i32..330],
        fields in proptest::collection::vec(("(topic|brokerName|brokerAddr|clusterName|haServerAddr|brokerId|compressed|namespace|key|value|raftTerm|cluster)", ".{0,40}"), 0..10),
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = start(Options::default()).await;
            let mut command = Command::request(code).with_body(body.into());
            for (name, value) in &fields {
                command.ext.insert(name, value);
            }
            let mut frame = BytesMut::new();
            command.encode(&mut frame);
            let mut socket = TcpStream::connect(&server.addr).await.unwrap();
            socket.write_all(&frame).await.unwrap();
            let answered = timeout(LIMIT, socket.read_u8()).await;
            prop_assert!(answered.is_ok());
            let info = server.ask(Command::request(request::GET_BROKER_CLUSTER_INFO)).await;
            prop_assert_eq!(info.code, response::SUCCESS);
            Ok(())
        })?;
    }
}
