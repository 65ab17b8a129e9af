//! A broker's properties file: what the migration needs of it, and the three files that a group is
//! started from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::problem::{Code, Problem};
use crate::sizes::Sizes;

/// A properties file, its keys in order.
#[derive(Clone, Debug, Default)]
pub struct Conf {
    path: PathBuf,
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
enum Line {
    Text(String),
    Entry { key: String, value: String },
}

/// A node that a file is written for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `n0`.
    pub id: String,
    pub host: String,
    pub port: u16,
}

/// What the target has to say in such a file.
pub(crate) struct Target<'a> {
    pub root: &'a Path,
    pub group: &'a str,
    pub peers: &'a [Peer],
    pub(crate) sizes: &'a Sizes,
}

/// Keys of the old roles and places, and why they have no line any more.
const GONE: [(&str, &str); 15] = [
    (
        "storePathCommitLog",
        "the commit log lies under storePathRootDir",
    ),
    (
        "readOnlyCommitLogStorePaths",
        "the commit log lies under storePathRootDir",
    ),
    (
        "storePathDLedgerCommitLog",
        "the commit log lies under storePathRootDir",
    ),
    (
        "storePathConsumeQueue",
        "the queues lie under storePathRootDir",
    ),
    ("storePathIndex", "the index lies under storePathRootDir"),
    ("storeCheckpoint", "it lies under storePathRootDir"),
    ("abortFile", "it lies under storePathRootDir"),
    (
        "brokerId",
        "the leader is 0, the others follow from dLegerSelfId",
    ),
    ("brokerRole", "the group elects its leader"),
    ("haMasterAddress", "the group replicates by itself"),
    (
        "mapedFileSizeCommitLog",
        "an old spelling; the size of the files is given below",
    ),
    (
        "mapedFileSizeConsumeQueue",
        "an old spelling; the size of the files is given below",
    ),
    ("enableDLedgerCommitLog", "see enableDLegerCommitLog"),
    ("storeType", "the store has the classic file format"),
    (
        "configManagerVersion",
        "topics, groups and offsets are in the log of the group",
    ),
];

/// Keys of a group's nodes that a Java master does not know or must not have.
const GONE_BACK: [(&str, &str); 21] = [
    (
        "readOnlyCommitLogStorePaths",
        "the commit log lies under storePathRootDir",
    ),
    ("dLeger*", "a classic master has no peers"),
    ("dLedger*", "a classic master has no peers"),
    ("raft*", "a key of rmq"),
    ("autoRejoin", "a key of rmq"),
    ("uncleanRecovery", "a key of rmq"),
    ("groupAlias*", "a key of rmq"),
    ("groupHoldMillis", "a key of rmq"),
    ("snapshotMaxBytesPerSecond", "a key of rmq"),
    ("scrubMaxBytesPerSecond", "a key of rmq"),
    ("brokerVip", "a key of rmq"),
    ("roleChangeHook*", "a key of rmq"),
    ("drainTimeoutMillis", "a key of rmq"),
    ("lameDuckMillis", "a key of rmq"),
    ("proofOfDeath", "a key of rmq"),
    ("requestMemoryMaxBytes", "a key of rmq"),
    ("preferredLeaderId", "a classic master has no peers"),
    ("haMasterAddress", "this is the master"),
    (
        "storePathDLedgerCommitLog",
        "a classic master has no such log",
    ),
    ("storeType", "the store has the classic file format"),
    (
        "configManagerVersion",
        "topics, groups and offsets are in config/*.json",
    ),
];

/// Room that a segment needs beside the largest message, as rmq has it.
const SEGMENT_ROOM: u64 = rmq_store::ENTRY_OVERHEAD_BYTES;

impl Conf {
    /// Reads a properties file. The last of equal keys counts, as in Java.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Problem::new(Code::Conf, error.to_string())
                .at_file(path)
                .hint("give the broker's properties file with -c")
        })?;
        Ok(Self {
            path: path.to_owned(),
            lines: text.lines().map(line).collect(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().rev().find_map(|line| match line {
            Line::Entry { key: of, value } if of == key => Some(value.as_str()),
            _ => None,
        })
    }

    /// The value of a key as a number.
    pub fn number(&self, key: &str) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let parsed = value.parse().map(Some);
        parsed.map_err(|_| {
            Problem::new(Code::Conf, format!("{key}={value} is no number")).at_file(&self.path)
        })
    }

    /// The nodes of `dLegerPeers`, if it is there.
    pub fn peers(&self) -> Result<Option<Vec<Peer>>, Problem> {
        let text = self.get("dLegerPeers").or_else(|| self.get("dLedgerPeers"));
        text.map(|text| peers(text).map_err(|problem| problem.at_file(&self.path)))
            .transpose()
    }

    /// The ids of the nodes that `dLegerPeers` has, whether or not this can be read as a list of new ones.
    pub(crate) fn nodes(&self) -> Option<Vec<String>> {
        let text = self
            .get("dLegerPeers")
            .or_else(|| self.get("dLedgerPeers"))?;
        let peers = text
            .split(';')
            .map(str::trim)
            .filter(|peer| !peer.is_empty());
        let id = |peer: &str| peer.split('-').next().unwrap_or_default().to_owned();
        let ids: Vec<String> = peers.map(id).collect();
        (!ids.is_empty()).then_some(ids)
    }

    /// Warns of a broker without `brokerName`, which Java then calls as its host (`BrokerConfig`, 4.9.8;
    /// `BrokerIdentity`, 5.3): clients know it by that name, and nothing here tells which that is.
    pub(crate) fn unnamed(&self) -> Option<Problem> {
        let is_named = self.get("brokerName").is_some_and(|name| !name.is_empty());
        (!is_named).then(|| {
            Problem::new(Code::Conf, "brokerName is not set")
                .at_file(&self.path)
                .why("the Java broker is called as its host then, the nodes are called as their group")
                .hint("set it to the name that mqadmin clusterList shows, so that clients find it under that")
        })
    }

    /// The file for one node, or for a broker alone without peers.
    pub(crate) fn for_node(&self, target: &Target<'_>, node: Option<&Peer>) -> String {
        let mut new: Vec<(&str, String, &str)> = vec![(
            "storePathRootDir",
            target.root.display().to_string(),
            "the migrated store",
        )];
        match node {
            Some(node) => {
                let list: Vec<String> = target
                    .peers
                    .iter()
                    .map(|peer| format!("{}-{}:{}", peer.id, peer.host, peer.port))
                    .collect();
                new.extend([
                    (
                        "enableDLegerCommitLog",
                        "true".to_owned(),
                        "a group of nodes",
                    ),
                    ("dLegerGroup", target.group.to_owned(), "the group's name"),
                    ("dLegerPeers", list.join(";"), "the same on all nodes"),
                    ("dLegerSelfId", node.id.clone(), "this node"),
                    (
                        "brokerIP1",
                        node.host.clone(),
                        "where clients reach this node",
                    ),
                    ("brokerIP2", node.host.clone(), "as brokerIP1"),
                ]);
                // Clients know the broker by the name it had, whatever the group is called.
                if self.get("brokerName").is_none_or(str::is_empty) {
                    let name = target.group.to_owned();
                    new.push(("brokerName", name, "as clients know it"));
                }
            }
            None => new.push((
                "enableDLegerCommitLog",
                "false".to_owned(),
                "a broker alone; give --peers for a group",
            )),
        }
        new.extend([
            (
                "mappedFileSizeCommitLog",
                target.sizes.segment.to_string(),
                "as the files are",
            ),
            (
                "mappedFileSizeConsumeQueue",
                target.sizes.consume_queue_file.to_string(),
                "as the files are",
            ),
            (
                "maxHashSlotNum",
                target.sizes.index.0.to_string(),
                "as the files are",
            ),
            (
                "maxIndexNum",
                target.sizes.index.1.to_string(),
                "as the files are",
            ),
        ]);
        let said: u64 = self
            .get("maxMessageSize")
            .and_then(|value| value.parse().ok())
            .unwrap_or(4 << 20);
        let most = target.sizes.segment.saturating_sub(SEGMENT_ROOM);
        if said > most {
            let why = "a segment of this store holds no larger message";
            new.push(("maxMessageSize", most.to_string(), why));
        }
        self.rewritten(&new, &GONE)
    }

    /// The file for a Java master on a store that came back.
    pub(crate) fn for_master(&self, root: &Path, sizes: &Sizes) -> String {
        let path = |dir: &str| root.join(dir).display().to_string();
        let role = self.get("brokerRole").filter(|role| *role == "SYNC_MASTER");
        let size = "as the files are";
        let new: Vec<(&str, String, &str)> = vec![
            (
                "storePathRootDir",
                root.display().to_string(),
                "the store that came back",
            ),
            ("storePathCommitLog", path("commitlog"), "in it"),
            (
                "enableDLegerCommitLog",
                "false".to_owned(),
                "a classic master",
            ),
            ("brokerId", "0".to_owned(), "the master"),
            (
                "brokerRole",
                role.unwrap_or("ASYNC_MASTER").to_owned(),
                "a classic master",
            ),
            ("mappedFileSizeCommitLog", sizes.segment.to_string(), size),
            (
                "mappedFileSizeConsumeQueue",
                sizes.consume_queue_file.to_string(),
                size,
            ),
            ("maxHashSlotNum", sizes.index.0.to_string(), size),
            ("maxIndexNum", sizes.index.1.to_string(), size),
        ];
        self.rewritten(&new, &GONE_BACK)
    }

    fn rewritten(&self, new: &[(&str, String, &str)], gone: &[(&str, &str)]) -> String {
        let mut out = format!("# Written by rmq-migrate from {}\n", self.path.display());
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, line) in self.lines.iter().enumerate() {
            if let Line::Entry { key, .. } = line {
                last.insert(key, at);
            }
        }
        let mut note = |text: std::fmt::Arguments<'_>| {
            writeln!(out, "{text}").expect("text into memory");
        };
        for (at, line) in self.lines.iter().enumerate() {
            match line {
                Line::Text(text) => note(format_args!("{text}")),
                Line::Entry { key, value } => {
                    let gone = gone.iter().find(|(of, _)| is_named(of, key));
                    let changed = new.iter().find(|(of, ..)| of == key);
                    if last[key.as_str()] != at {
                        note(format_args!(
                            "#{key}={value}\n# ^ rmq-migrate: the key comes again below, where it counts"
                        ));
                    } else if let Some((_, why)) = gone {
                        note(format_args!(
                            "#{key}={value}\n# ^ rmq-migrate: dropped; {why}"
                        ));
                    } else if let Some((_, to, why)) = changed {
                        if to == value {
                            note(format_args!("{key}={value}"));
                        } else {
                            note(format_args!(
                                "#{key}={value}\n# ^ rmq-migrate: {why}\n{key}={to}"
                            ));
                        }
                    } else {
                        note(format_args!("{key}={value}"));
                    }
                }
            }
        }
        for (key, value, why) in new {
            if !last.contains_key(key) {
                note(format_args!("# rmq-migrate: {why}\n{key}={value}"));
            }
        }
        out
    }
}

/// Whether a key is the named one, or begins as it does where that ends in a star.
fn is_named(name: &str, key: &str) -> bool {
    match name.strip_suffix('*') {
        Some(begin) => key.starts_with(begin),
        None => name == key,
    }
}

fn line(text: &str) -> Line {
    let trimmed = text.trim();
    if trimmed.is_empty() || trimmed.starts_with(['#', '!']) {
        return Line::Text(text.to_owned());
    }
    let (key, value) = trimmed.split_once(['=', ':']).unwrap_or((trimmed, ""));
    Line::Entry {
        key: key.trim().to_owned(),
        value: value.trim().to_owned(),
    }
}

/// Reads a list as `dLegerPeers` has it: `n0-host:port;n1-host:port`.
pub(crate) fn peers(text: &str) -> Result<Vec<Peer>, Problem> {
    let entries = text
        .split(';')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let peers: Option<Vec<Peer>> = entries
        .map(|entry| {
            let (id, addr) = entry.split_once('-')?;
            let (host, port) = addr.rsplit_once(':')?;
            let number = id.strip_prefix('n')?.parse::<u16>().ok()?;
            Some(Peer {
                id: format!("n{number}"),
                host: host.to_owned(),
                port: port.parse().ok()?,
            })
        })
        .collect();
    peers.filter(|peers| !peers.is_empty()).ok_or_else(|| {
        Problem::new(Code::Conf, format!("{text:?} is no list of peers"))
            .hint("it looks like n0-10.0.0.10:40911;n1-10.0.0.11:40911;n2-10.0.0.12:40911")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Conf {
        Conf {
            path: "broker.conf".into(),
            lines: text.lines().map(line).collect(),
        }
    }

    #[test]
    fn a_file_is_written_for_each_node_and_says_what_changed() {
        let conf = conf(
            "# ours\nbrokerName = broker-a\nbrokerId=0\nstorePathRootDir=/a\nstorePathRootDir=/b\n\
             listenPort=20911\nmapedFileSizeCommitLog=1\nfileReservedTime=48",
        );
        assert_eq!(conf.get("storePathRootDir"), Some("/b"));
        let peers = peers("n0-10.0.0.10:40911; n1-h:1").unwrap();
        let target = Target {
            root: Path::new("/new"),
            group: "broker-a",
            peers: &peers,
            sizes: &Sizes {
                segment: 1 << 20,
                consume_queue_file: 6000,
                index: (1000, 4000),
                levels: rmq_store::DelayLevels::default(),
            },
        };
        let text = conf.for_node(&target, Some(&peers[1]));
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "brokerName=broker-a",
                "storePathRootDir=/new",
                "listenPort=20911",
                "fileReservedTime=48",
                "enableDLegerCommitLog=true",
                "dLegerGroup=broker-a",
                "dLegerPeers=n0-10.0.0.10:40911;n1-h:1",
                "dLegerSelfId=n1",
                "brokerIP1=h",
                "brokerIP2=h",
                "mappedFileSizeCommitLog=1048576",
                "mappedFileSizeConsumeQueue=6000",
                "maxHashSlotNum=1000",
                "maxIndexNum=4000",
                "maxMessageSize=917504",
            ]
        );
        for note in [
            "# ours",
            "the key comes again",
            "#brokerId=0\n",
            "#mapedFileSizeCommitLog=1\n",
        ] {
            assert!(text.contains(note), "{text}");
        }
    }

    #[test]
    fn clients_find_the_broker_under_the_name_it_had() {
        let peers = peers("n0-h:1;n1-i:1").unwrap();
        let target = Target {
            root: Path::new("/new"),
            group: "raft-1",
            peers: &peers,
            sizes: &Sizes {
                segment: 1 << 30,
                consume_queue_file: 6000,
                index: (1000, 4000),
                levels: rmq_store::DelayLevels::default(),
            },
        };
        for (text, name) in [
            ("brokerName=orders\ndLegerGroup=raft-1", "orders"),
            ("brokerName=\ndLegerGroup=raft-1", "raft-1"),
            ("dLegerGroup=raft-1", "raft-1"),
        ] {
            let read = conf(text);
            assert_eq!(read.unnamed().is_some(), name != "orders", "{text}");
            let written = read.for_node(&target, Some(&peers[0]));
            let conf = conf(&written);
            let said = (conf.get("brokerName"), conf.get("dLegerGroup"));
            assert_eq!(said, (Some(name), Some("raft-1")), "{written}");
        }
    }

    #[test]
    fn lists_of_peers_are_checked() {
        for bad in ["", "n0", "n0-h", "x0-h:1", "n0-h:99999"] {
            assert!(peers(bad).is_err(), "{bad}");
        }
    }
}
