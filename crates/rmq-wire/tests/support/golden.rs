//! Captured bytes that the crate keeps for its tests.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use bytes::Bytes;
use rmq_wire::frame;

/// A captured frame, without its length field.
pub(crate) struct Captured {
    pub(crate) what: String,
    /// Code of the request, also for a response; `None` where the request was not captured.
    pub(crate) request: Option<i32>,
    pub(crate) frame: Bytes,
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0, "hexadecimal digits come in pairs");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

pub(crate) fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The frames in the crate.
pub(crate) fn golden_frames() -> Vec<Captured> {
    let text = golden("frames.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (what, hex) = line.rsplit_once(' ').unwrap();
            let request = what.split(' ').nth(1).unwrap().parse().unwrap();
            Captured {
                what: what.into(),
                request: Some(request),
                frame: without_len(&unhex(hex)),
            }
        })
        .collect()
}

pub(crate) fn without_len(bytes: &[u8]) -> Bytes {
    let len = frame::peek_len(bytes).unwrap().unwrap();
    assert_eq!(bytes.len(), 4 + len);
    Bytes::copy_from_slice(&bytes[4..])
}
