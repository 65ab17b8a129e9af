//! Stores of Java brokers with what those brokers said about them, unpacked in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;
use serde::Deserialize;

/// Undamaged stores that have manifests: archive, store.
const STORES: [(&str, &str); 9] = [
    ("classic-4.9.7-clean", "broker-a"),
    ("classic-4.9.7-clean", "broker-a-s"),
    ("classic-4.9.7-clean", "broker-b"),
    ("classic-4.9.7-clean", "broker-b-s"),
    ("classic-4.9.7-crash", "broker-a"),
    ("classic-4.9.7-odd", "broker-a"),
    ("classic-5.5.0-clean", "broker-a"),
    ("classic-5.5.0-lmq", "broker-a"),
    ("classic-5.5.0-v2", "broker-a"),
];

/// A store and its manifests.
pub(crate) struct JavaStore {
    pub(crate) archive: &'static str,
    pub(crate) name: &'static str,
    /// Files by their path in the store, the large ones of timers and compaction left out.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// `broker.conf`.
    pub(crate) config: BTreeMap<String, String>,
    /// What a walk over the commit log with Java's decoder found.
    pub(crate) log: Vec<LogLine>,
    /// What a broker that was started on the store answered.
    pub(crate) manifest: Vec<ManifestLine>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LogLine {
    pub(crate) r#type: String,
    pub(crate) name: Option<String>,
    pub(crate) length: Option<usize>,
    pub(crate) phy_offset: Option<u64>,
    pub(crate) phy_offset_field: Option<i64>,
    pub(crate) size: Option<usize>,
    pub(crate) magic: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) queue_id: Option<i32>,
    pub(crate) queue_offset: Option<i64>,
    pub(crate) sys_flag: Option<i32>,
    pub(crate) store_timestamp: Option<i64>,
    pub(crate) reconsume_times: Option<i32>,
    pub(crate) crc_ok: Option<bool>,
    pub(crate) body_len: Option<usize>,
    pub(crate) uniq_key: Option<String>,
    pub(crate) record_sha16: Option<String>,
    pub(crate) size_field: Option<usize>,
    pub(crate) rest_of_file: Option<usize>,
    pub(crate) records: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub(crate) enum ManifestLine {
    Queue {
        topic: String,
        queue_id: i32,
        min_offset: u64,
        max_offset: u64,
        messages: usize,
    },
    Msg(Box<MsgLine>),
    OffsetByTime {
        topic: String,
        queue_id: i32,
        timestamp: i64,
        offset: u64,
    },
    Query {
        topic: String,
        key: String,
        phy_offsets: Vec<u64>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MsgLine {
    /// The queue it was reached through.
    pub(crate) cq_topic: String,
    pub(crate) topic: String,
    pub(crate) queue_id: i32,
    pub(crate) queue_offset: i64,
    pub(crate) phy_offset: u64,
    pub(crate) store_size: usize,
    pub(crate) magic: String,
    pub(crate) msg_id: String,
    pub(crate) uniq_key: Option<String>,
    pub(crate) keys: Option<String>,
    pub(crate) tags: Option<String>,
    pub(crate) body_len: usize,
    pub(crate) body_sha256: String,
    #[serde(rename = "bodyCRC")]
    pub(crate) body_crc: u32,
    pub(crate) born_timestamp: i64,
    pub(crate) store_timestamp: i64,
    pub(crate) born_host: String,
    pub(crate) store_host: String,
    pub(crate) sys_flag: i32,
    pub(crate) flag: i32,
    pub(crate) reconsume_times: i32,
    pub(crate) prepared_transaction_offset: i64,
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) record_sha256: String,
}

impl JavaStore {
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.archive, self.name)
    }

    pub(crate) fn is_5(&self) -> bool {
        self.archive.contains("-5.")
    }

    /// Files below a directory, by the rest of their path.
    pub(crate) fn files_in(&self, dir: &str) -> impl Iterator<Item = (&str, &[u8])> {
        let prefix = format!("{dir}/");
        let files = self.files.iter();
        files.filter_map(move |(path, bytes)| Some((path.strip_prefix(&prefix)?, &bytes[..])))
    }

    /// Segments by the position of their first byte.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.files_in("commitlog")
            .map(|(name, bytes)| (name.parse().unwrap(), bytes))
    }

    /// The first position of the log.
    pub(crate) fn min_offset(&self) -> u64 {
        self.segments().next().expect("a segment").0
    }
}

/// All stores, or none where the archives are absent; they must be there where `CI` is set.
pub(crate) fn stores() -> &'static [JavaStore] {
    static STORES: LazyLock<Vec<JavaStore>> = LazyLock::new(load);
    &STORES
}

/// Where the archives are, if they are there.
pub(crate) fn root() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    if root.is_dir() {
        return Some(root);
    }
    let root = root.display();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{root} is missing"
    );
    println!("skipped: {root} is missing");
    None
}

fn load() -> Vec<JavaStore> {
    let Some(root) = root() else {
        return Vec::new();
    };
    let archives: std::collections::BTreeSet<_> =
        STORES.iter().map(|(archive, _)| *archive).collect();
    let unpack = |archive: &'static str| {
        let root = root.clone();
        std::thread::spawn(move || load_archive(&root, archive))
    };
    let threads: Vec<_> = archives.into_iter().map(unpack).collect();
    threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect()
}

fn load_archive(root: &Path, archive: &'static str) -> Vec<JavaStore> {
    let dir = root.join(archive);
    let zstd = File::open(dir.join("store.tar.zst")).unwrap();
    let mut tar = tar::Archive::new(StreamingDecoder::new(BufReader::new(zstd)).unwrap());
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        if entry.header().entry_type().is_dir() || !is_wanted(&path, archive) {
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    let names = STORES
        .iter()
        .filter(|(of, _)| *of == archive)
        .map(|(_, name)| *name);
    names
        .map(|name| load_store(&dir, archive, name, &files))
        .collect()
}

fn is_wanted(path: &Path, archive: &str) -> bool {
    const DIRS: [&str; 5] = [
        "commitlog",
        "consumequeue",
        "consumequeue_ext",
        "batchconsumequeue",
        "index",
    ];
    let mut parts = path
        .iter()
        .filter(|part| *part != ".")
        .map(|part| part.to_str().unwrap());
    let store = parts.next().unwrap_or_default();
    STORES.contains(&(archive, store))
        && match parts.next() {
            Some("broker.conf") => true,
            Some("store") => DIRS.contains(&parts.next().unwrap_or_default()),
            _ => false,
        }
}

fn load_store(
    dir: &Path,
    archive: &'static str,
    name: &'static str,
    files: &BTreeMap<PathBuf, Vec<u8>>,
) -> JavaStore {
    let config =
        String::from_utf8(files[&PathBuf::from(format!("./{name}/broker.conf"))].clone()).unwrap();
    let config = config.lines().filter_map(|line| line.split_once('='));
    let prefix = PathBuf::from(format!("./{name}/store"));
    let own = files.iter().filter_map(|(path, bytes)| {
        let path = path.strip_prefix(&prefix).ok()?;
        Some((path.to_str().unwrap().to_owned(), bytes.clone()))
    });
    JavaStore {
        archive,
        name,
        files: own.collect(),
        config: config
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        log: lines(&dir.join(format!("{name}.commitlog.jsonl.xz"))),
        manifest: lines(&dir.join(format!("{name}.manifest.jsonl.xz"))),
    }
}

pub(crate) fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Vec<T> {
    let xz = BufReader::new(File::open(path).unwrap());
    let lines = BufReader::new(XzReader::new(xz, true)).lines();
    lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}
