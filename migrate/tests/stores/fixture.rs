//! Archives of Java stores, unpacked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use clap::Parser as _;
use lzma_rust2::XzReader;
use rmq_migrate::Options;
use ruzstd::decoding::StreamingDecoder;
use serde_json::Value;

/// Files longer than this are unpacked with holes.
const SPARSE_BYTES: u64 = 8 << 20;

/// The directory of the archives; `None` where it is absent, which must not be where `CI` is set.
pub(crate) fn fixtures() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    if root.is_dir() {
        return Some(root);
    }
    let shown = root.display();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{shown} is missing"
    );
    println!("skipped: {shown} is missing");
    None
}

/// One archive in a directory of its own.
pub(crate) struct Unpacked {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) archive: PathBuf,
}

impl Unpacked {
    /// Unpacks those stores of an archive that are wanted.
    pub(crate) fn new(name: &str, wanted: impl Fn(&str) -> bool) -> Option<Self> {
        let archive = fixtures()?.join(name);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let zstd = BufReader::new(File::open(archive.join("store.tar.zst")).unwrap());
        let mut tar = tar::Archive::new(StreamingDecoder::new(zstd).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            let mut parts = path.iter().filter(|part| *part != ".");
            let store = parts.next().unwrap_or_default().to_str().unwrap();
            if !wanted(store) {
                continue;
            }
            let to = dir.path().join(&path);
            if entry.header().entry_type().is_dir() {
                fs::create_dir_all(to).unwrap();
                continue;
            }
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let file = File::create(to).unwrap();
            file.set_len(entry.size()).unwrap();
            if entry.size() > SPARSE_BYTES {
                let mut buf = vec![0; 1 << 20];
                let mut at = 0;
                loop {
                    let read = entry.read(&mut buf).unwrap();
                    if read == 0 {
                        break;
                    }
                    if buf[..read].iter().any(|byte| *byte != 0) {
                        file.write_all_at(&buf[..read], at).unwrap();
                    }
                    at += read as u64;
                }
            } else {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                file.write_all_at(&bytes, 0).unwrap();
            }
        }
        Some(Self { dir, archive })
    }

    pub(crate) fn store(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("store")
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("broker.conf")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.dir.path().join("migrated")
    }

    /// The usual arguments.
    pub(crate) fn args(&self, name: &str) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [
            "rmq-migrate".to_owned(),
            "--from".to_owned(),
            text(self.store(name)),
            "--to".to_owned(),
            text(self.target()),
            "-c".to_owned(),
            text(self.conf(name)),
            "--progress".to_owned(),
            "none".to_owned(),
        ]
        .into()
    }

    pub(crate) fn options(&self, name: &str, more: &[&str]) -> Options {
        let more = more.iter().map(|arg| (*arg).to_owned());
        Options::parse_from(self.args(name).into_iter().chain(more))
    }

    /// Lines of a compressed file of the archive, each after `skip` characters.
    pub(crate) fn lines(&self, name: &str, skip: usize) -> Vec<(String, Value)> {
        let xz = BufReader::new(File::open(self.archive.join(name)).unwrap());
        let lines = BufReader::new(XzReader::new(xz, true)).lines();
        let parse = |line: String| {
            let (mark, json) = line.split_at(skip);
            (mark.to_owned(), serde_json::from_str(json).unwrap())
        };
        lines.map(|line| parse(line.unwrap())).collect()
    }
}

/// Every file under a directory: length, checksum and time of its last change.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (u64, u32, i64)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                dirs.push(path);
                continue;
            }
            let bytes = fs::read(&path).unwrap();
            let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (meta.len(), crc32c::crc32c(&bytes), time));
        }
    }
    found
}
