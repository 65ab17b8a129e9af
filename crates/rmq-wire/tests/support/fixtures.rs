//! The larger captures beside the project.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says that it is skipped")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use rmq_wire::frame;
use serde::Deserialize;

use crate::golden::{Captured, unhex, without_len};

/// The directory of larger captures, if it is there. It must be where `CI` is set.
pub(crate) fn fixtures() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    if path.is_dir() {
        return Some(path);
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{} is missing",
        path.display()
    );
    println!("skipped: {} is missing", path.display());
    None
}

/// All frames of a capture, in order.
pub(crate) fn captured(path: &Path) -> Vec<Captured> {
    #[derive(Deserialize)]
    struct Line {
        seq: u64,
        conn: u64,
        role: String,
        dir: String,
        hex: Option<String>,
    }
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    let mut requests = BTreeMap::new();
    let mut frames = Vec::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).unwrap();
        let Some(hex) = line.hex.filter(|_| line.role != "ha") else {
            continue;
        };
        let frame = without_len(&unhex(&hex));
        let head = frame::peek(&frame).unwrap();
        let to_server = line.dir == "c2s";
        let request = if head.flag & 1 == 0 {
            requests.insert((line.conn, to_server, head.opaque), head.code);
            Some(head.code)
        } else {
            requests.get(&(line.conn, !to_server, head.opaque)).copied()
        };
        frames.push(Captured {
            what: format!("{name} {}", line.seq),
            request,
            frame,
        });
    }
    frames
}
