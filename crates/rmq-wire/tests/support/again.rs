//! What was read, written again.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use rmq_wire::record::{NewRecord, Record, seal};

/// The bytes of a record with these properties, which are its own as text.
pub(crate) fn written_again(record: &Record<'_>, properties: &str) -> Vec<u8> {
    let new = NewRecord {
        queue_id: record.queue_id,
        flag: record.flag,
        sys_flag: record.sys_flag,
        born_timestamp: record.born_timestamp,
        born_host: record.born_host,
        store_host: record.store_host,
        reconsume_times: record.reconsume_times,
        prepared_transaction_offset: record.prepared_transaction_offset,
        body: record.body,
        topic: record.topic,
        properties,
    };
    let mut again = Vec::new();
    new.encode(&mut again)
        .expect("what was decoded can be encoded");
    seal(
        &mut again,
        record.queue_offset,
        record.physical_offset,
        record.store_timestamp,
    );
    again
}
