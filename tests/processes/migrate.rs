//! The store of a Java broker, migrated: a broker alone and a group of three start from the files that
//! `rmq-migrate` writes, serve what was there, and go on.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser as _;
use jepsen::client::{Client, Outcome};
use rmq_migrate::{Options, Progress, Style};
use rmq_store::{Genesis, RealDisk};
use rmq_wire::code::{request, response};
use rmq_wire::frame;
use rmq_wire::header::QueryMessage;
use rmq_wire::record::Record;
use tempfile::TempDir;

use crate::migrated::{shared, unpack};
use crate::support::{PATIENCE, free_port, rmq, until};

const ARCHIVE: &str = "classic-4.9.7-clean";
const STORE: &str = "broker-b";
/// A topic of the archive with messages in queue 0, and a group with an offset there.
const TOPIC: &str = "TopicPlain4";

/// A migrated store beside its source.
struct Migrated {
    dir: TempDir,
    /// What the Java broker had in the queue: offset, body, key, position.
    expected: Vec<(u64, String, String, i64)>,
}

impl Migrated {
    /// `None` where the archives are absent.
    fn new(more: &[&str]) -> Option<Self> {
        let root = shared("fixtures")?;
        let dir = unpack(&root.join(ARCHIVE), |store| store == STORE);
        migrate(dir.path(), "migrated", more);
        let expected = messages(&dir.path().join("migrated"));
        assert!(expected.len() > 10);
        Some(Self { dir, expected })
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("migrated")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file that was written for a node of the group.
    fn conf(&self, node: usize) -> PathBuf {
        self.target().join(format!("conf/broker-n{node}.conf"))
    }

    fn start(&self, node: usize) -> Node {
        Node::start(&self.conf(node), &self.path(&format!("n{node}")))
    }

    fn group_offset(&self) -> (String, u64) {
        let genesis = Genesis::read(&RealDisk, &self.target()).unwrap().unwrap();
        let mut offsets = genesis.metadata.offsets.offset_table.into_iter();
        offsets
            .find_map(|(key, queues)| {
                let group = key.strip_prefix(&format!("{TOPIC}@"))?.to_owned();
                Some((group, u64::try_from(*queues.get(&0)?).ok()?))
            })
            .unwrap()
    }

    /// Everything that was there is there, by offset, time order, key and group offset, and the queue
    /// goes on where it ended; `sent` messages have been sent since.
    fn assert_served(&self, address: SocketAddr, sent: u64) {
        // Again where there is no leader for a moment.
        let connect = || Client::connect(address, PATIENCE).ok();
        let found = until("the queue is read", || connect()?.read_queue(TOPIC, 0).ok());
        let old = &found[..self.expected.len()];
        let expected = self
            .expected
            .iter()
            .map(|(at, body, ..)| (*at, body.clone()));
        assert_eq!(old, expected.collect::<Vec<_>>());
        assert_eq!(found.len() as u64, self.expected.len() as u64 + sent);
        let (group, offset) = self.group_offset();
        let kept = until("an offset", || connect()?.query_offset(&group, TOPIC).ok());
        assert_eq!(kept, Some(offset));
        for (at, _, key, position) in self.expected.iter().step_by(17) {
            let header = QueryMessage {
                topic: TOPIC.into(),
                key: key.clone(),
                max_num: 32,
                begin_timestamp: 0,
                end_timestamp: i64::MAX,
                ..QueryMessage::default()
            };
            let query = frame::Command::request(request::QUERY_MESSAGE).with_header(&header);
            let answer = until(&format!("{key} at {at}"), || {
                let answer = connect()?.call(query.clone()).ok()?;
                (answer.code == response::SUCCESS).then_some(answer)
            });
            let record = Record::decode(&answer.body).unwrap();
            assert_eq!(record.physical_offset, *position, "{key} at {at}");
        }
    }

    /// What is left of the nodes serves all that was there, and takes more.
    fn assert_sent_again(&self, nodes: &mut [Node]) {
        let next = self.next_offset();
        // What was sent while there was no leader may have been done without an answer.
        let after = nodes[0].send("new 1");
        assert!(after > next, "{after}");
        self.assert_served(nodes[1].address, after - next + 1);
    }

    fn next_offset(&self) -> u64 {
        self.expected.last().unwrap().0 + 1
    }
}

/// Migrates the unpacked store under `dir` to a directory beside it.
fn migrate(dir: &Path, to: &str, more: &[&str]) {
    let source = dir.join(STORE);
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let args = [
        "rmq-migrate".to_owned(),
        "--from".to_owned(),
        text(source.join("store")),
        "--to".to_owned(),
        text(dir.join(to)),
        "-c".to_owned(),
        text(source.join("broker.conf")),
        "--verify".to_owned(),
        "full".to_owned(),
    ];
    let more = more.iter().map(|arg| (*arg).to_owned());
    let options = Options::parse_from(args.into_iter().chain(more));
    let report = rmq_migrate::run(&options, &Progress::new(Style::None)).unwrap();
    assert!(!report.conf_files.is_empty());
}

/// `--peers` of three nodes on this machine.
fn peers() -> String {
    let peers = [0, 1, 2].map(|n| format!("n{n}-127.0.0.1:{}", free_port()));
    peers.join(";")
}

/// What the queue holds, read without a broker.
fn messages(root: &Path) -> Vec<(u64, String, String, i64)> {
    let config = rmq_store::StoreConfig {
        segment_bytes: 1 << 20,
        max_message_bytes: 512 * 1024,
        consume_queue_file_bytes: 6000,
        index_slots: 1000,
        index_entries: 4000,
        ..rmq_store::StoreConfig::new(root)
    };
    let store = rmq_store::open(&config, Arc::new(RealDisk)).unwrap();
    let reader = store.log.reader();
    let (first, end) = (
        store.queues.min_offset(TOPIC, 0),
        store.queues.max_offset(TOPIC, 0),
    );
    let count = usize::try_from(end.0 - first.0).unwrap();
    let units = store.queues.units(TOPIC, 0, first, count).unwrap();
    let found = units
        .into_iter()
        .flatten()
        .zip(first.0..)
        .map(|(unit, at)| {
            let bytes = reader.slice(unit.phy, unit.size as usize).unwrap();
            let record = Record::decode(&bytes).unwrap();
            let properties = record.properties();
            let key = rmq_wire::properties::iter(&properties).find(|(name, _)| *name == "UNIQ_KEY");
            let key = key.map(|(_, key)| key.to_owned()).unwrap_or_default();
            (
                at,
                String::from_utf8_lossy(record.body).into_owned(),
                key,
                record.physical_offset,
            )
        });
    let found = found.collect();
    store.queues.stop().unwrap();
    store.log.close().unwrap();
    found
}

/// A node started from a written file.
struct Node {
    child: Child,
    address: SocketAddr,
}

impl Node {
    /// What a test on one machine has to have otherwise is appended: the last of equal keys counts.
    fn start(conf: &Path, store: &Path) -> Self {
        let port = free_port();
        let mut text = fs::read_to_string(conf).unwrap();
        text += &format!(
            "listenPort={port}\nbindAddress=127.0.0.1\nstorePathRootDir={}\nnamesrvAddr=127.0.0.1:1\n\
             fileReservedTime=876000\ndiskMaxUsedSpaceRatio=99\ndiskSpaceWarningLevelRatio=99\n\
             cleanFileForciblyEnable=false\n",
            store.display()
        );
        let own = store.with_extension("conf");
        fs::write(&own, text).unwrap();
        let log = File::create(store.with_extension("log")).unwrap();
        let child = Command::new(rmq())
            .args(["broker", "-c"])
            .arg(own)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Self { child, address }
    }

    /// Sends as soon as there is a leader, and returns the message's offset.
    fn send(&mut self, body: &str) -> u64 {
        let end = Instant::now() + PATIENCE;
        loop {
            assert_eq!(self.child.try_wait().unwrap(), None, "the broker has ended");
            let client = Client::connect(self.address, PATIENCE);
            match client.map(|mut client| client.send(TOPIC, 0, body)) {
                Ok(Outcome::Ok(offset)) => return offset,
                other => {
                    let other = other.map_err(|error| error.to_string());
                    assert!(Instant::now() < end, "{other:?}");
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

#[test]
fn a_broker_alone_goes_on_from_a_java_store() {
    let Some(migrated) = Migrated::new(&[]) else {
        return;
    };
    let conf = migrated.target().join("conf/broker.conf");
    let mut node = Node::start(&conf, &migrated.target());
    let next = migrated.next_offset();
    assert_eq!(node.send("new 0"), next);
    assert_eq!(node.send("new 1"), next + 1);
    migrated.assert_served(node.address, 2);
    drop(node);
    // Killed, it comes back with all of it.
    let mut node = Node::start(&conf, &migrated.target());
    assert_eq!(node.send("new 2"), next + 2);
    migrated.assert_served(node.address, 3);
}

#[test]
fn a_group_of_nodes_that_were_migrated_separately_outlives_its_leader() {
    let peers = peers();
    let Some(migrated) = Migrated::new(&["--peers", &peers]) else {
        return;
    };
    for to in ["n0", "n1", "n2"] {
        migrate(migrated.dir.path(), to, &["--peers", &peers]);
    }
    let mut nodes: Vec<Node> = [0, 1, 2].map(|n| migrated.start(n)).into();
    assert_goes_on(&migrated, &mut nodes);
    let leader = position_of_leader(&nodes);
    drop(nodes.remove(leader));
    migrated.assert_sent_again(&mut nodes);
}

#[test]
fn empty_nodes_take_the_history_from_the_one_that_was_migrated() {
    let Some(migrated) = Migrated::new(&["--peers", &peers()]) else {
        return;
    };
    // The store's place is in the middle of the list: it need not be the lowest node's.
    copy(&migrated.target(), &migrated.path("n1"));
    let mut nodes: Vec<Node> = [0, 1, 2].map(|n| migrated.start(n)).into();
    // Producers do not wait until all have it.
    let load = Load::start(nodes[1].address);
    assert_goes_on(&migrated, &mut nodes);
    drop(load);
    // The others have it by themselves now.
    drop(nodes.remove(1));
    migrated.assert_sent_again(&mut nodes);
}

#[test]
fn nodes_with_different_histories_say_so_until_one_is_chosen() {
    let peers = peers();
    let Some(migrated) = Migrated::new(&["--peers", &peers]) else {
        return;
    };
    let dir = migrated.dir.path();
    let config = migrated.path("config");
    copy(&dir.join(STORE).join("store/config"), &config);
    for name in ["consumerOffset.json", "consumerOffset.json.bak"] {
        fs::remove_file(config.join(name)).unwrap();
    }
    let other = ["--peers", &peers, "--config-from", config.to_str().unwrap()];
    migrate(dir, "n0", &["--peers", &peers]);
    migrate(dir, "n1", &["--peers", &peers]);
    migrate(dir, "n2", &other);
    let mut nodes: Vec<Node> = [0, 1, 2].map(|n| migrated.start(n)).into();
    let end = Instant::now() + PATIENCE;
    let wanted = "the adopted histories differ: n0 has metadata ";
    while !fs::read_to_string(migrated.path("n0.log"))
        .unwrap()
        .contains(wanted)
    {
        assert!(Instant::now() < end, "n0 does not say what differs");
        std::thread::sleep(Duration::from_millis(100));
    }
    // An empty directory takes it over from the others.
    drop(nodes.pop());
    fs::remove_dir_all(migrated.path("n2")).unwrap();
    nodes.push(migrated.start(2));
    assert_goes_on(&migrated, &mut nodes);
}

/// Sends to a queue that nothing else is sent to, until it is dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start(address: SocketAddr) -> Self {
        let goes_on = Arc::new(AtomicBool::new(true));
        let load = Self(Arc::clone(&goes_on));
        std::thread::spawn(move || {
            while goes_on.load(Ordering::Relaxed) {
                if let Ok(mut client) = Client::connect(address, PATIENCE) {
                    let mut send = || matches!(client.send(TOPIC, 1, "load"), Outcome::Ok(_));
                    while goes_on.load(Ordering::Relaxed) && send() {}
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        load
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// All nodes become voters, and serve what was there and what is new.
fn assert_goes_on(migrated: &Migrated, nodes: &mut [Node]) {
    // What was sent while there was no leader may have been done without an answer.
    let sent = nodes[1].send("new 0") + 1 - migrated.next_offset();
    let end = Instant::now() + PATIENCE;
    let voting = |node: &Node| {
        let status = jepsen::cluster::status(node.address).ok()?;
        let members = status["group"]["members"].as_array()?.clone();
        let voting = members.iter().filter(|member| member["voter"] == true);
        Some(voting.count())
    };
    while voting(&nodes[1]) != Some(nodes.len()) {
        assert!(Instant::now() < end, "{:?} voters", voting(&nodes[1]));
        std::thread::sleep(Duration::from_millis(200));
    }
    for node in nodes {
        migrated.assert_served(node.address, sent);
    }
}

fn position_of_leader(nodes: &[Node]) -> usize {
    let leads = |node: &Node| {
        let status = jepsen::cluster::status(node.address);
        status.is_ok_and(|status| status["group"]["serving"] == true)
    };
    until("a node leads", || nodes.iter().position(leads))
}
