//! For tests: frames captured between real clients, brokers and name servers of Java.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use bytes::Bytes;
use flate2::read::GzDecoder;

pub(crate) struct Captured {
    pub(crate) conn: String,
    /// From the side that made the connection.
    pub(crate) from_client: bool,
    /// With the length field.
    pub(crate) bytes: Bytes,
}

/// The frames of a capture's connections to a `role`, `broker` or `namesrv`, in their order. None
/// where captures are not at hand, which fails where `CI` is set.
pub(crate) fn captured(name: &str, role: &str) -> Option<Vec<Captured>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/fixtures/wire")
        .join(name);
    let Ok(file) = File::open(&path) else {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "{} is missing",
            path.display()
        );
        println!("skipped: {} is missing", path.display());
        return None;
    };
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    let frames = lines.filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        (line["role"] == role).then(|| {
            let hex = line["hex"].as_str().unwrap();
            let digits = (0..hex.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16));
            Captured {
                conn: line["conn"].to_string(),
                from_client: line["dir"] == "c2s",
                bytes: digits.collect::<Result<Vec<u8>, _>>().unwrap().into(),
            }
        })
    });
    Some(frames.collect())
}
