//! A store that is migrated: what kind it is, that nobody uses it, and which files it has. Everything
//! is opened to read only.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::conf::Conf;
use crate::problem::{Code, Problem};

/// A stopped broker's store, locked while this lives.
#[derive(Debug)]
pub struct Source {
    pub root: PathBuf,
    pub kind: Kind,
    /// Where its log lies.
    pub log_dir: PathBuf,
    /// Its log's files, neighbours of one size.
    pub segments: Vec<Segment>,
    pub segment_bytes: u64,
    /// Whether its last stop was a clean one.
    pub clean: bool,
    _lock: Option<File>,
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
        let mut classic = root.join("commitlog");
        if let Some(said) = conf.and_then(|conf| conf.get("storePathCommitLog")) {
            let said = PathBuf::from(said);
            if exists(&said)? || !exists(&classic)? {
                classic = said;
            } else {
                notes.push(
                    Problem::new(Code::Conf, "storePathCommitLog does not exist")
                        .at_file(&said)
                        .why(format!("{} is taken", classic.display())),
                );
            }
        }
        let dledger = dledger_dirs(root)?;
        let has_classic = exists(&classic)? && !bases(&classic, &mut Vec::new())?.is_empty();
        let (kind, log_dir) = match (has_classic, &dledger[..]) {
            (true, []) => (Kind::Classic, classic),
            (false, [one]) => (Kind::DLedger, one.clone()),
            (false, []) if exists(&classic)? => {
                return Err(empty(&classic));
            }
            (false, []) => {
                return Err(no_store("there is no commit log under it")
                    .hint("--from is the broker's storePathRootDir; -c names a storePathCommitLog elsewhere"));
            }
            _ => {
                return Err(no_store("there are several logs under it")
                    .why("which of them has the history cannot be told")
                    .hint("move the one that is out of use away"));
            }
        };
        let bases = bases(&log_dir, notes)?;
        let (segments, segment_bytes) = sized(&log_dir, &bases)?;
        Ok(Self {
            root: root.to_owned(),
            kind,
            log_dir,
            segments,
            segment_bytes,
            clean: !exists(&root.join("abort"))?,
            _lock: lock,
        })
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
        self.segments.iter().map(of).collect()
    }
}

pub(crate) fn empty(path: &Path) -> Problem {
    Problem::new(Code::Empty, "the store holds no message")
        .at_file(path)
        .hint("there is nothing to migrate: start the group on empty directories")
}

/// Locks the store against a broker that is started meanwhile, without writing to it. Java's brokers
/// lock the first byte of the file `lock`.
fn lock(root: &Path) -> Result<Option<File>, Problem> {
    let path = root.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Problem::reading(&path, &error)),
    };
    let shared = FlockOperation::NonBlockingLockShared;
    match rustix::fs::fcntl_lock(&file, shared).and_then(|()| rustix::fs::flock(&file, shared)) {
        Ok(()) => Ok(Some(file)),
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

/// Directories of DLedger logs: `dledger-<id>/data`.
fn dledger_dirs(root: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut dirs = Vec::new();
    for name in list(root)? {
        let data = root.join(&name).join("data");
        if name.starts_with("dledger-")
            && exists(&data)?
            && !bases(&data, &mut Vec::new())?.is_empty()
        {
            dirs.push(data);
        }
    }
    Ok(dirs)
}

/// Starts of the segments in a directory, sorted.
pub(crate) fn bases(dir: &Path, notes: &mut Vec<Problem>) -> Result<Vec<u64>, Problem> {
    let mut bases = Vec::new();
    for name in list(dir)? {
        let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
        match name.parse().ok().filter(|_| digits) {
            Some(base) => bases.push(base),
            None => notes.push(
                Problem::new(Code::ForeignFile, "it is no segment of the log")
                    .at_file(&dir.join(&name))
                    .why("it is not taken over; the name of a segment is its start in 20 digits"),
            ),
        }
    }
    Ok(bases)
}

/// The segments with their common size. One that a crash left without its full size is not counted
/// if it is the last one and nothing is in it.
fn sized(dir: &Path, bases: &[u64]) -> Result<(Vec<Segment>, u64), Problem> {
    let mut segments = Vec::new();
    let mut size = None;
    for (nth, &base) in bases.iter().enumerate() {
        let path = dir.join(format!("{base:020}"));
        let found = fs::metadata(&path)
            .map_err(|error| Problem::reading(&path, &error))?
            .len();
        File::open(&path).map_err(|error| Problem::reading(&path, &error))?;
        if found == 0 && nth + 1 == bases.len() && nth > 0 {
            break;
        }
        let expected = *size.get_or_insert(found);
        if found != expected || found == 0 {
            return Err(Problem::new(Code::SegmentSize, format!("{found} bytes, the segments before have {expected}"))
                .at_file(&path)
                .why("all segments of a log have one size, so this one was cut or comes from another log")
                .hint("restore the file from the slave or a backup"));
        }
        let next = segments
            .last()
            .map_or(base, |last: &Segment| last.base + expected);
        if base != next || !base.is_multiple_of(expected) {
            let missing = dir.join(format!("{next:020}"));
            return Err(Problem::new(
                Code::Gap,
                format!(
                    "the segments are not neighbours: {} is missing",
                    missing.display()
                ),
            )
            .at_file(&path)
            .why("messages between the two would be lost, and positions behind them wrong")
            .hint("restore the missing file from the slave or a backup"));
        }
        segments.push(Segment { base, path });
    }
    match size {
        Some(size) if !segments.is_empty() => Ok((segments, size)),
        _ => Err(empty(dir)),
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
