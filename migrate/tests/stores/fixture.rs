//! Archives of Java stores, unpacked.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use rmq_migrate::Options;
use serde_json::Value;

use crate::archive::{json_lines, unpack};

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
        unpack(&archive, dir.path(), wanted);
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
        json_lines(&self.archive.join(name), skip)
    }
}
