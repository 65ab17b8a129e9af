//! Who a data directory is in its group: the incarnation drawn when it was first used, and the
//! group it belongs to. Written before anything that another node could rely on.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rmq_store::{Disk, OpenMode};

use crate::raft::types::NodeId;

/// `dLegerSelfId`: the number of `n0`, `n1`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SelfId(pub u16);

impl SelfId {
    /// The broker id under which a follower registers. Id 0 is the leader's (Java's
    /// `DLedgerRoleChangeHandler`, 4.9.8).
    pub fn follower_broker_id(self) -> u64 {
        u64::from(self.0) + 1
    }

    /// Of which configured node `node` is an incarnation.
    pub fn of(node: NodeId) -> Self {
        Self(u16::try_from(node >> INCARNATION_BITS).expect("16 bits are left"))
    }
}

impl fmt::Display for SelfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A text that names no node.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("node id {0:?} is not n and a number up to 65535, like n0")]
pub struct SelfIdError(String);

impl FromStr for SelfId {
    type Err = SelfIdError;

    fn from_str(text: &str) -> Result<Self, SelfIdError> {
        text.strip_prefix('n')
            .filter(|number| number.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|number| number.parse().ok())
            .map(Self)
            .ok_or_else(|| SelfIdError(text.to_owned()))
    }
}

/// `dLegerPeers`: the configured nodes with the addresses they listen on for each other. Two lists
/// are equal when they name the same nodes and addresses, in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerList(BTreeMap<SelfId, String>);

impl PeerList {
    /// The nodes in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (SelfId, &str)> {
        self.0.iter().map(|(id, addr)| (*id, addr.as_str()))
    }

    /// The address of one of them.
    pub fn addr(&self, id: SelfId) -> Option<&str> {
        self.0.get(&id).map(String::as_str)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(SelfId, String)> for PeerList {
    fn from_iter<I: IntoIterator<Item = (SelfId, String)>>(peers: I) -> Self {
        Self(peers.into_iter().collect())
    }
}

impl fmt::Display for PeerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (id, addr)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ";" };
            write!(f, "{separator}{id}-{addr}")?;
        }
        Ok(())
    }
}

/// Why a text is no list of peers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerListError {
    /// An item without `-`, or without a port.
    #[error("peer {0:?} is not like n0-host:port")]
    Item(String),
    /// The part before the `-`.
    #[error(transparent)]
    Id(#[from] SelfIdError),
    /// One id twice.
    #[error("peer {0} is listed twice")]
    Twice(SelfId),
}

impl FromStr for PeerList {
    type Err = PeerListError;

    fn from_str(text: &str) -> Result<Self, PeerListError> {
        let mut peers = BTreeMap::new();
        for item in text.split(';').map(str::trim).filter(|i| !i.is_empty()) {
            let bad = || PeerListError::Item(item.to_owned());
            let (id, addr) = item.split_once('-').ok_or_else(bad)?;
            let (host, port) = addr.rsplit_once(':').ok_or_else(bad)?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(bad());
            }
            let id = id.parse()?;
            if peers.insert(id, addr.to_owned()).is_some() {
                return Err(PeerListError::Twice(id));
            }
        }
        Ok(Self(peers))
    }
}

/// Drawn when a group is formed. Two groups never share one, whatever their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::raft) struct GroupId(pub(super) [u8; 16]);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The low bits of a node id; the high ones are its self id.
const INCARNATION_BITS: u32 = 48;

fn draw_node(self_id: SelfId, random: u64) -> NodeId {
    // Zero is what a field never set would read as.
    let incarnation = (random & ((1 << INCARNATION_BITS) - 1)).max(1);
    u64::from(self_id.0) << INCARNATION_BITS | incarnation
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("identity file {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what this program writes.
    #[error("identity file {path} is damaged: {reason}", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A log without an identity must not vote under a new one: its votes could count twice.
    #[error(
        "the store has a Raft log, but its identity file {path} is missing: restore it, or empty \
         the store so that this node joins its group anew",
        path = .path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The directory belongs to another node.
    #[error(
        "this store belongs to {stored} (identity file {path}), but this node is configured as \
         {configured}",
        path = .path.display()
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// Group and self id in it.
        stored: String,
        /// Group and self id in the configuration.
        configured: String,
    },
}

/// The identity of an open data directory.
#[derive(Debug)]
pub(in crate::raft) struct Identity {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    record: Record,
    closed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    group_name: String,
    self_id: SelfId,
    node: NodeId,
    group: Option<GroupId>,
    held: bool,
}

impl Identity {
    /// Reads the identity of a store from the file at `path`, or draws one for a store that has
    /// none. `pristine` says that the store has neither a vote nor a log; `random` is the source of
    /// a new incarnation.
    pub(in crate::raft) fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        group_name: &str,
        self_id: SelfId,
        pristine: bool,
        random: u64,
    ) -> Result<Self, IdentityError> {
        let io_error = |source| IdentityError::Io {
            path: path.to_owned(),
            source,
        };
        let stored = match read(&*disk, path).map_err(io_error)? {
            Some(bytes) => {
                let record = Record::parse(&bytes).map_err(|reason| IdentityError::Damaged {
                    path: path.to_owned(),
                    reason,
                })?;
                Some(record)
            }
            None => None,
        };
        let record = match stored {
            Some(stored) if (stored.self_id, &*stored.group_name) != (self_id, group_name) => {
                return Err(IdentityError::OtherNode {
                    path: path.to_owned(),
                    stored: format!("node {} of group {}", stored.self_id, stored.group_name),
                    configured: format!("node {self_id} of group {group_name}"),
                });
            }
            // What this incarnation voted for and acknowledged is gone, so it must not speak again.
            Some(stored) if stored.held && pristine => {
                tracing::warn!(
                    node = stored.node,
                    "the store was emptied: this node joins its group as a new incarnation"
                );
                None
            }
            None if !pristine => {
                return Err(IdentityError::Missing {
                    path: path.to_owned(),
                });
            }
            stored => stored,
        };
        let identity = Self {
            disk,
            path: path.to_owned(),
            record: record.unwrap_or_else(|| Record {
                group_name: group_name.to_owned(),
                self_id,
                node: draw_node(self_id, random),
                group: None,
                held: false,
            }),
            closed: false,
        };
        identity.save(&identity.record).map_err(io_error)?;
        Ok(identity)
    }

    /// Becomes another node of the same group, for the vote of this one is lost: it might be given a
    /// second time. Durable on return. The group takes it in as it does an emptied one.
    pub(in crate::raft) fn renew(&mut self, random: u64) -> io::Result<()> {
        self.update(|record| record.node = draw_node(record.self_id, random))
    }

    /// The id of this directory's node.
    pub(in crate::raft) fn node(&self) -> NodeId {
        self.record.node
    }

    /// The group it belongs to, or has agreed to form.
    pub(in crate::raft) fn group(&self) -> Option<GroupId> {
        self.record.group
    }

    /// It is known to have taken part in its group: `group` never changes again.
    pub(in crate::raft) fn held(&self) -> bool {
        self.record.held
    }

    /// Agrees to belong to `group`. Durable on return. Must not be called once [`Self::held`].
    pub(super) fn agree(&mut self, group: GroupId) -> io::Result<()> {
        assert!(
            !self.record.held || self.record.group == Some(group),
            "a node that took part in a group never changes to another"
        );
        self.update(|record| record.group = Some(group))
    }

    /// Remembers that it has taken part in its group, so that an emptied store is noticed.
    /// Durable on return.
    pub(super) fn hold(&mut self) -> io::Result<()> {
        self.update(|record| record.held = true)
    }

    /// Refuses all further changes: the file may now belong to a successor in this process.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    fn update(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        if record != self.record {
            if self.closed {
                return Err(io::Error::other("the node is shut down"));
            }
            self.save(&record)?;
            self.record = record;
        }
        Ok(())
    }

    /// Replaces the file; after a crash there is the old one or the new one.
    fn save(&self, record: &Record) -> io::Result<()> {
        let text = record.format();
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        let new = self.path.with_extension("identity.new");
        self.disk.create_dir_all(dir)?;
        let file = self.disk.open(&new, OpenMode::Create)?;
        file.set_len(text.len() as u64)?;
        file.write_at(0, &[IoSlice::new(text.as_bytes())])?;
        file.sync()?;
        self.disk.rename(&new, &self.path)?;
        self.disk.sync_dir(dir)
    }
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, OpenMode::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; MAX_FILE_BYTES];
    let len = file.read_at(0, &mut bytes)?;
    bytes.truncate(len);
    Ok(Some(bytes))
}

/// Far more than the file takes.
const MAX_FILE_BYTES: usize = 4096;
const HEADING: &str = "# Who this data directory is in its broker group. Never copy it to another.";

impl Record {
    fn format(&self) -> String {
        let group = self
            .group
            .map_or_else(|| "-".to_owned(), |group| group.to_string());
        let body = format!(
            "{HEADING}\nversion=1\ngroupName={}\nselfId={}\nnode={:016x}\ngroup={group}\nheld={}\n",
            self.group_name, self.self_id, self.node, self.held
        );
        let crc = crc32c::crc32c(body.as_bytes());
        format!("{body}crc32c={crc:08x}\n")
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let (body, crc) = text
            .rsplit_once("crc32c=")
            .ok_or("it has no checksum line")?;
        let computed = crc32c::crc32c(body.as_bytes());
        if crc.trim_end() != format!("{computed:08x}") {
            return Err(format!(
                "its checksum is {}, not {computed:08x}",
                crc.trim_end()
            ));
        }
        let field = |name: &str| {
            body.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| format!("it has no {name}"))
        };
        let wrong = |name: &str, value: &str| format!("{name} is {value:?}");
        let version = field("version")?;
        if version != "1" {
            return Err(wrong("version", version));
        }
        let (node, group, held) = (field("node")?, field("group")?, field("held")?);
        Ok(Self {
            group_name: field("groupName")?.to_owned(),
            self_id: field("selfId")?
                .parse()
                .map_err(|e: SelfIdError| e.to_string())?,
            node: NodeId::from_str_radix(node, 16).map_err(|_| wrong("node", node))?,
            group: match group {
                "-" => None,
                _ => Some(GroupId(
                    u128::from_str_radix(group, 16)
                        .map_err(|_| wrong("group", group))?
                        .to_be_bytes(),
                )),
            },
            held: held.parse().map_err(|_| wrong("held", held))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    use proptest::prelude::*;
    use rmq_store::RealDisk;

    fn open(dir: &Path, pristine: bool, random: u64) -> Result<Identity, IdentityError> {
        Identity::open(
            Arc::new(RealDisk),
            &dir.join("raft.identity"),
            "broker-a",
            SelfId(2),
            pristine,
            random,
        )
    }

    #[test]
    fn an_identity_is_drawn_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), true, 7 << 50 | 5).unwrap();
        assert_eq!(first.node(), 2 << 48 | 5);
        assert_eq!(SelfId::of(first.node()), SelfId(2));
        let mut again = open(dir.path(), true, 99).unwrap();
        assert_eq!(again.record, first.record);
        again.agree(GroupId([3; 16])).unwrap();
        again.agree(GroupId([4; 16])).unwrap();
        let mut again = open(dir.path(), false, 99).unwrap();
        assert_eq!(
            (again.group(), again.held()),
            (Some(GroupId([4; 16])), false)
        );
        again.hold().unwrap();
        assert!(open(dir.path(), false, 99).unwrap().held());
    }

    #[test]
    fn an_emptied_store_gets_a_new_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        let mut old = open(dir.path(), true, 5).unwrap();
        old.agree(GroupId([3; 16])).unwrap();
        old.hold().unwrap();
        let new = open(dir.path(), true, 6).unwrap();
        assert_ne!(new.node(), old.node());
        assert_eq!((new.group(), new.held()), (None, false));
    }

    #[test]
    fn a_node_that_lost_its_vote_is_another_one_of_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = open(dir.path(), true, 5).unwrap();
        identity.agree(GroupId([3; 16])).unwrap();
        identity.hold().unwrap();
        let before = identity.node();
        identity.renew(6).unwrap();
        assert_ne!(identity.node(), before);
        let again = open(dir.path(), false, 7).unwrap();
        assert_eq!(again.record, identity.record);
        assert_eq!(
            (again.group(), again.held()),
            (Some(GroupId([3; 16])), true)
        );
    }

    #[test]
    fn a_log_without_identity_a_foreign_store_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(dir.path(), false, 5),
            Err(IdentityError::Missing { .. })
        ));
        open(dir.path(), true, 5).unwrap();
        let path = dir.path().join("raft.identity");
        for (group, id) in [("broker-a", SelfId(1)), ("broker-b", SelfId(2))] {
            let error = Identity::open(Arc::new(RealDisk), &path, group, id, true, 5).unwrap_err();
            assert!(matches!(error, IdentityError::OtherNode { .. }), "{error}");
        }
        let text = fs::read_to_string(&path).unwrap();
        for damaged in [
            text.replace("n2", "n1"),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ] {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(
                open(dir.path(), true, 5),
                Err(IdentityError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn peer_lists_are_equal_in_any_order() {
        let a: PeerList = "n1-b:2;n0-a:1; n2-c-d:3".parse().unwrap();
        let b: PeerList = "n0-a:1;n1-b:2;n2-c-d:3;".parse().unwrap();
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "n0-a:1;n1-b:2;n2-c-d:3");
        assert_eq!(a.addr(SelfId(2)), Some("c-d:3"));
    }

    #[test]
    fn bad_peers_are_named() {
        for (text, error) in [
            ("n0", "peer \"n0\" is not like n0-host:port"),
            ("n0-a", "peer \"n0-a\" is not like n0-host:port"),
            ("n0-a:x", "peer \"n0-a:x\" is not like n0-host:port"),
            ("n0-a:1;n0-b:2", "peer n0 is listed twice"),
            (
                "x0-a:1",
                "node id \"x0\" is not n and a number up to 65535, like n0",
            ),
        ] {
            assert_eq!(text.parse::<PeerList>().unwrap_err().to_string(), error);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn records_round_trip_and_no_text_panics(
            group_name in "[a-zA-Z0-9_-]{0,20}",
            self_id in any::<u16>(),
            node in any::<u64>(),
            group in any::<Option<[u8; 16]>>(),
            held in any::<bool>(),
            text in ".{0,200}",
        ) {
            let record = Record {
                group_name,
                self_id: SelfId(self_id),
                node,
                group: group.map(GroupId),
                held,
            };
            prop_assert_eq!(Record::parse(record.format().as_bytes()), Ok(record));
            prop_assert!(Record::parse(text.as_bytes()).is_err());
        }
    }
}
