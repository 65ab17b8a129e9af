//! A store that is migrated: what kind it is, that nobody uses it, and which files it has. Everything
//! is opened to read only.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rmq_store::Locked;
use rustix::fs::FlockOperation;

use crate::conf::Conf;
use crate::problem::{Code, Problem};

/// What a Java broker has in its store's root, beside the directories of DLedger.
const KNOWN: [&str; 16] = [
    "abort",
    "abort.bak",
    "batchconsumequeue",
    "checkpoint",
    "commitlog",
    "compaction",
    "config",
    "consumequeue",
    "consumequeue_ext",
    "index",
    "lock",
    "lost+found",
    "rocksdbstore",
    "timerlog",
    "timerwheel",
    "timerwheel.bak",
];

/// A stopped broker's store, locked while this lives.
#[derive(Debug)]
pub struct Source {
    pub root: PathBuf,
    pub kind: Kind,
    /// Where its log lies, or the first of several directories.
    pub log_dir: PathBuf,
    /// Files of the commit log that a DLedger group began with, up to where its own log begins.
    pub older: Vec<Segment>,
    /// Its log's files, neighbours of one size.
    pub segments: Vec<Segment>,
    pub segment_bytes: u64,
    /// Whether its last stop was a clean one.
    pub clean: bool,
    _lock: Option<Locked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A master's or slave's commit log.
    Classic,
    /// The log of a Java DLedger node.
    DLedger,
}

/// A file of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    pub base: u64,
    pub path: PathBuf,
}

impl Source {
    /// Opens a store by its root directory, `storePathRootDir`.
    pub fn open(
        root: &Path,
        conf: Option<&Conf>,
        notes: &mut Vec<Problem>,
    ) -> Result<Self, Problem> {
        let no_store = |what: &str| Problem::new(Code::NoStore, what).at_file(root);
        if !fs::metadata(root)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => no_store("the directory does not exist")
                    .hint("--from is the broker's storePathRootDir"),
                _ => Problem::reading(root, &error),
            })?
            .is_dir()
        {
            return Err(
                no_store("it is no directory").hint("--from is the broker's storePathRootDir")
            );
        }
        if exists(&root.join("raft.checkpoint"))? || exists(&root.join("raft.identity"))? {
            return Err(Problem::new(Code::OwnStore, "this is a store of rmq")
                .at_file(root)
                .why("it holds a Raft log, and needs no migration")
                .hint("start the broker on it, or copy it as a whole"));
        }
        let lock = lock(root)?;
        foreign(root, notes)?;
        let dirs = log_dirs(root, conf, notes)?;
        let classic = bases(&dirs, notes)?;
        let (kind, log_dir) = match (classic.is_empty(), dledger_dir(root)?) {
            (_, Some(dir)) => (Kind::DLedger, dir),
            (false, None) => (Kind::Classic, dirs[0].clone()),
            (true, None) if exists(&dirs[0])? => return Err(empty(&dirs[0])),
            (true, None) => {
                return Err(no_store("there is no commit log under it")
                    .hint("--from is the broker's storePathRootDir; -c names a storePathCommitLog elsewhere"));
            }
        };
        let (older, (segments, segment_bytes)) = match kind {
            Kind::Classic => (Vec::new(), sized(&classic)?),
            Kind::DLedger => {
                let own = sized(&bases(std::slice::from_ref(&log_dir), notes)?)?;
                (older(&classic, &own, &log_dir)?, own)
            }
        };
        Ok(Self {
            root: root.to_owned(),
            kind,
            log_dir,
            older,
            segments,
            segment_bytes,
            clean: !exists(&root.join("abort"))?,
            _lock: lock,
        })
    }

    /// Where its history begins.
    pub fn start(&self) -> u64 {
        self.older.first().unwrap_or(&self.segments[0]).base
    }

    /// What must be the same when a run goes on where another stopped: name, length and time of
    /// every file of the log.
    pub fn fingerprint(&self) -> Result<Vec<(String, u64, i64)>, Problem> {
        let of = |segment: &Segment| {
            let meta = fs::metadata(&segment.path)
                .map_err(|error| Problem::reading(&segment.path, &error))?;
            let name = segment.path.file_name().unwrap_or_default();
            Ok((
                name.to_string_lossy().into_owned(),
                meta.len(),
                meta.mtime(),
            ))
        };
        self.older.iter().chain(&self.segments).map(of).collect()
    }
}

pub(crate) fn empty(path: &Path) -> Problem {
    Problem::new(Code::Empty, "the store holds no message")
        .at_file(path)
        .hint("there is nothing to migrate: start the group on empty directories")
}

/// Locks the store against a broker that is started meanwhile, without writing to it. Java's brokers
/// lock the first byte of the file `lock`.
fn lock(root: &Path) -> Result<Option<Locked>, Problem> {
    let path = root.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Problem::reading(&path, &error)),
    };
    let shared = FlockOperation::NonBlockingLockShared;
    match rustix::fs::fcntl_lock(&file, shared).and_then(|()| rustix::fs::flock(&file, shared)) {
        Ok(()) => Ok(Some(Locked::new(file))),
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::AGAIN) => Err(Problem::new(
            Code::InUse,
            "a broker is running on this store",
        )
        .at_file(&path)
        .why("what it still writes would be missing")
        .hint("stop it with mqshutdown broker, wait for its end, and run this again")),
        Err(error) => Err(Problem::reading(&path, &error.into())),
    }
}

/// Where the commit log lies: several directories share it where `storePathCommitLog` has commas.
fn log_dirs(
    root: &Path,
    conf: Option<&Conf>,
    notes: &mut Vec<Problem>,
) -> Result<Vec<PathBuf>, Problem> {
    let usual = root.join("commitlog");
    let said = |key| conf.and_then(|conf| conf.get(key)).unwrap_or_default();
    let own = said("storePathCommitLog").split(',');
    let all = own.chain(said("readOnlyCommitLogStorePaths").split(','));
    let mut dirs = Vec::new();
    // One that is read only is named by both keys as a rule.
    let mut seen = BTreeSet::new();
    for dir in all.map(str::trim).filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        if exists(&dir)? {
            let real = fs::canonicalize(&dir).map_err(|error| Problem::reading(&dir, &error))?;
            if seen.insert(real) {
                dirs.push(dir);
            }
        } else if exists(&usual)? {
            notes.push(
                Problem::new(
                    Code::Conf,
                    "this directory of the commit log does not exist",
                )
                .at_file(&dir)
                .why(format!("{} is looked at instead", usual.display())),
            );
        }
    }
    if dirs.is_empty() {
        dirs.push(usual);
    }
    Ok(dirs)
}

/// The log of a stopped DLedger node, locked while this lives. Of what else is in its store nothing is looked at.
#[derive(Debug)]
pub(crate) struct NodeLog {
    pub(crate) dir: PathBuf,
    pub(crate) segments: Vec<Segment>,
    pub(crate) segment_bytes: u64,
    _lock: Option<Locked>,
}

impl NodeLog {
    /// Of a store; `None` if it has no such log.
    pub(crate) fn open(root: &Path) -> Result<Option<Self>, Problem> {
        let lock = lock(root)?;
        let Some(dir) = dledger_dir(root)? else {
            return Ok(None);
        };
        let (segments, segment_bytes) =
            sized(&bases(std::slice::from_ref(&dir), &mut Vec::new())?)?;
        Ok(Some(Self {
            dir,
            segments,
            segment_bytes,
            _lock: lock,
        }))
    }
}

/// The directory of a DLedger log that is not empty, if there is one: `dledger-<id>/data`.
fn dledger_dir(root: &Path) -> Result<Option<PathBuf>, Problem> {
    let mut dirs = Vec::new();
    for name in list(root)? {
        let data = root.join(&name).join("data");
        if name.starts_with("dledger-")
            && exists(&data)?
            && !bases(std::slice::from_ref(&data), &mut Vec::new())?.is_empty()
        {
            dirs.push(data);
        }
    }
    if dirs.len() > 1 {
        let what = "there are several DLedger logs under it";
        return Err(Problem::new(Code::NoStore, what)
            .at_file(root)
            .why("which of them has the history cannot be told")
            .hint("move those that are out of use away"));
    }
    Ok(dirs.pop())
}

/// Notes what lies in the root of a store and is not the broker's.
fn foreign(root: &Path, notes: &mut Vec<Problem>) -> Result<(), Problem> {
    for name in list(root)? {
        if !KNOWN.contains(&name.as_str()) && !name.starts_with("dledger-") {
            notes.push(
                Problem::new(
                    Code::ForeignFile,
                    "a broker's store has no file of this name",
                )
                .at_file(&root.join(name))
                .why("it is not taken over"),
            );
        }
    }
    Ok(())
}

/// Segments in some directories, sorted by where they start.
pub(crate) fn bases(dirs: &[PathBuf], notes: &mut Vec<Problem>) -> Result<Vec<Segment>, Problem> {
    let mut found = Vec::new();
    for dir in dirs {
        for name in list(dir)? {
            let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
            let path = dir.join(&name);
            match name.parse().ok().filter(|_| digits) {
                Some(base) => found.push(Segment { base, path }),
                None => notes.push(
                    Problem::new(Code::ForeignFile, "it is no segment of the log")
                        .at_file(&path)
                        .why(
                            "it is not taken over; the name of a segment is its start in 20 digits",
                        ),
                ),
            }
        }
    }
    found.sort_by_key(|segment| segment.base);
    Ok(found)
}

/// The commit log below a DLedger log, checked to end where that begins: Java fills its last file up
/// when DLedger is switched on, and goes on behind it.
fn older(
    classic: &[Segment],
    (own, own_bytes): &(Vec<Segment>, u64),
    dledger: &Path,
) -> Result<Vec<Segment>, Problem> {
    let Some(first) = classic.first() else {
        return Ok(Vec::new());
    };
    let (older, bytes) = sized(classic)?;
    let end = first.base + bytes * older.len() as u64;
    if (end, bytes) == (own[0].base, *own_bytes) {
        return Ok(older);
    }
    let what = format!(
        "there are two logs: a commit log up to {end}, segments of {bytes} bytes, and a DLedger log \
         from {} on, segments of {own_bytes}",
        own[0].base
    );
    Err(Problem::new(Code::NoStore, what)
        .at_file(dledger)
        .why(format!(
            "the DLedger log does not go on where {} ends, so one of them is not of this history",
            first.path.parent().unwrap_or(dledger).display()
        ))
        .hint(
            "move the log that is out of use away, or give -c without the storePathCommitLog that \
             names it",
        ))
}

/// The segments with their common size. One that a crash left without its full size is not counted
/// if it is the last one and nothing is in it.
fn sized(found: &[Segment]) -> Result<(Vec<Segment>, u64), Problem> {
    let mut segments = Vec::new();
    let mut size = None;
    for (nth, Segment { base, path }) in found.iter().enumerate() {
        let bytes = fs::metadata(path)
            .map_err(|error| Problem::reading(path, &error))?
            .len();
        File::open(path).map_err(|error| Problem::reading(path, &error))?;
        if bytes == 0 && nth + 1 == found.len() {
            break;
        }
        let expected = *size.get_or_insert(bytes);
        if bytes != expected || bytes == 0 {
            let what = format!("{bytes} bytes, the segments before have {expected}");
            return Err(Problem::new(Code::SegmentSize, what)
                .at_file(path)
                .why("all segments of a log have one size, so this one was cut or comes from another log")
                .hint("restore the file from the slave or a backup"));
        }
        let next = segments
            .last()
            .map_or(*base, |last: &Segment| last.base + expected);
        if *base != next || !base.is_multiple_of(expected) {
            let missing = path.with_file_name(format!("{next:020}"));
            let what = format!(
                "the segments are not neighbours: {} is missing",
                missing.display()
            );
            return Err(Problem::new(Code::Gap, what)
                .at_file(path)
                .why("messages between the two would be lost, and positions behind them wrong")
                .hint("restore the missing file from the slave or a backup"));
        }
        segments.push(Segment {
            base: *base,
            path: path.clone(),
        });
    }
    match (size, found.first()) {
        (None, Some(only)) => Err(empty(&only.path)),
        (size, _) => Ok((segments, size.unwrap_or_default())),
    }
}

/// Names in a directory, sorted; empty if it is absent.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>, Problem> {
    let at = |error| Problem::reading(dir, &error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(at)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .map_err(at)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn exists(path: &Path) -> Result<bool, Problem> {
    path.try_exists()
        .map_err(|error| Problem::reading(path, &error))
}
