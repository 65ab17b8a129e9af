//! What was read, written again.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use rmq_wire::record::{Record, seal};

/// The bytes of a record with these properties, which are its own as text.
pub(crate) fn written_again(record: &Record<'_>, properties: &str) -> Vec<u8> {
    let mut again = Vec::new();
    record
        .again(properties)
        .encode(&mut again)
        .expect("what was decoded can be encoded");
    seal(
        &mut again,
        record.queue_offset,
        record.physical_offset,
        record.store_timestamp,
    );
    again
}
