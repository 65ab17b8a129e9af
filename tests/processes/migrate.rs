//! The store of a Java broker, migrated: a broker alone and a group of three start from the files that
//! `rmq-migrate` writes, serve what was there, and go on.

use std::fs::{self, File};
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use jepsen::client::{Client, Outcome};
use rmq_migrate::{Options, Progress, Style};
use rmq_store::{Genesis, RealDisk};
use rmq_wire::code::{request, response};
use rmq_wire::frame;
use rmq_wire::header::QueryMessage;
use rmq_wire::record::Record;
use ruzstd::decoding::StreamingDecoder;
use tempfile::TempDir;

use crate::support::{free_port, rmq};

const ARCHIVE: &str = "classic-4.9.7-clean";
const STORE: &str = "broker-b";
/// A topic of the archive with messages in queue 0, and a group with an offset there.
const TOPIC: &str = "TopicPlain4";
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A migrated store beside its source.
struct Migrated {
    dir: TempDir,
    /// What the Java broker had in the queue: offset, body, key, position.
    expected: Vec<(u64, String, String, i64)>,
}

impl Migrated {
    /// `None` where the archives are absent.
    fn new(more: &[&str]) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures");
        if !root.try_exists().unwrap() {
            assert!(
                std::env::var_os("CI").is_none(),
                "{} is missing",
                root.display()
            );
            eprintln!("skipped: {} is missing", root.display());
            return None;
        }
        let dir = TempDir::new().unwrap();
        let zstd = BufReader::new(File::open(root.join(ARCHIVE).join("store.tar.zst")).unwrap());
        let mut tar = tar::Archive::new(StreamingDecoder::new(zstd).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            if path.iter().any(|part| part == STORE) {
                entry.unpack_in(dir.path()).unwrap();
            }
        }
        let source = dir.path().join(STORE);
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let args = [
            "rmq-migrate".to_owned(),
            "--from".to_owned(),
            text(source.join("store")),
            "--to".to_owned(),
            text(dir.path().join("migrated")),
            "-c".to_owned(),
            text(source.join("broker.conf")),
            "--verify".to_owned(),
            "full".to_owned(),
        ];
        let more = more.iter().map(|arg| (*arg).to_owned());
        let options = Options::parse_from(args.into_iter().chain(more));
        let report = rmq_migrate::run(&options, &Progress::new(Style::None)).unwrap();
        assert!(!report.conf_files.is_empty());
        let expected = messages(&dir.path().join("migrated"));
        assert!(expected.len() > 10);
        Some(Self { dir, expected })
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("migrated")
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
        let mut client = Client::connect(address, PATIENCE).unwrap();
        let found = client.read_queue(TOPIC, 0).unwrap();
        let old = &found[..self.expected.len()];
        let expected = self
            .expected
            .iter()
            .map(|(at, body, ..)| (*at, body.clone()));
        assert_eq!(old, expected.collect::<Vec<_>>());
        assert_eq!(found.len() as u64, self.expected.len() as u64 + sent);
        let (group, offset) = self.group_offset();
        assert_eq!(client.query_offset(&group, TOPIC).unwrap(), Some(offset));
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
            let answer = client.call(query).unwrap();
            assert_eq!(answer.code, response::SUCCESS, "{key} at {at}");
            let record = Record::decode(&answer.body).unwrap();
            assert_eq!(record.physical_offset, *position, "{key} at {at}");
        }
    }

    fn next_offset(&self) -> u64 {
        self.expected.last().unwrap().0 + 1
    }
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
             diskMaxUsedSpaceRatio=99\n",
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
fn a_group_goes_on_from_a_java_store_and_outlives_its_leader() {
    let ports = [(); 3].map(|()| free_port());
    let peers: Vec<String> = (0..3)
        .map(|n| format!("n{n}-127.0.0.1:{}", ports[n]))
        .collect();
    let Some(migrated) = Migrated::new(&["--peers", &peers.join(";")]) else {
        return;
    };
    let stores: Vec<PathBuf> = (0..3)
        .map(|n| migrated.dir.path().join(format!("n{n}")))
        .collect();
    for store in &stores {
        let copied = Command::new("cp")
            .arg("-a")
            .arg(migrated.target())
            .arg(store)
            .status();
        assert!(copied.unwrap().success());
    }
    let conf = |n: usize| migrated.target().join(format!("conf/broker-n{n}.conf"));
    let mut nodes: Vec<Node> = (0..3).map(|n| Node::start(&conf(n), &stores[n])).collect();
    let next = migrated.next_offset();
    assert_eq!(nodes[1].send("new 0"), next);
    for node in &nodes {
        migrated.assert_served(node.address, 1);
    }
    let status = jepsen::cluster::status(nodes[0].address).unwrap();
    let leader = &status["group"]["leader"];
    let leads = |node: &Node| {
        let status = jepsen::cluster::status(node.address).unwrap();
        status["group"]["node"] == *leader
    };
    let leader = nodes.iter().position(leads).unwrap_or(0);
    drop(nodes.remove(leader));
    // What was sent while there was no leader may have been done without an answer.
    let after = nodes[0].send("new 1");
    assert!(after > next, "{after}");
    migrated.assert_served(nodes[1].address, after - next + 1);
}
