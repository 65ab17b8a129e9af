//! Messages by key and by id: `QUERY_MESSAGE` and `VIEW_MESSAGE_BY_ID`.
//!
//! `QueryMessageProcessor` (4.9.8).

use std::sync::Arc;

use bytes::Bytes;
use rmq_store::{PhyOffset, bring_in};
use rmq_wire::code::response;
use rmq_wire::header::{QueryMessage, QueryMessageResponse, ViewMessage};
use rmq_wire::name;
use rmq_wire::record::Record;

use super::Broker;
use super::node::blocking;
use super::refusal::{Handled, Refusal};
use crate::remoting::{Reply, Request};

/// Bytes of messages in one answer, well below what fits a frame.
const ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// The remark of an answer without messages.
pub(super) const NOT_FOUND: &str = "can not find message, maybe time range not correct";

/// `QUERY_MESSAGE`.
pub(super) async fn by_key(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: QueryMessage = request.command.header()?;
    let wanted = match header.unique_key_query {
        Some(true) => broker.config.default_query_max_num,
        _ => u32::try_from(header.max_num).unwrap_or(0),
    };
    let max = wanted.min(broker.config.max_msgs_num_batch) as usize;
    let records = {
        let QueryMessage {
            topic,
            key,
            begin_timestamp,
            end_timestamp,
            ..
        } = header;
        blocking(broker, move |broker| {
            let found =
                broker
                    .queues
                    .query_index(&topic, &key, max, begin_timestamp, end_timestamp)?;
            let mut bytes = 0;
            let records = found
                .into_iter()
                .filter_map(|offset| record_at(broker, offset))
                .take_while(|record| {
                    bytes += record.len();
                    bytes <= ANSWER_BYTES
                });
            Ok(records.inspect(bring_in).collect::<Vec<Bytes>>())
        })
        .await?
    };
    let header = QueryMessageResponse {
        index_last_update_timestamp: broker.now_ms(),
        index_last_update_phyoffset: broker.log.confirm_offset().as_i64(),
    };
    if records.is_empty() {
        let mut reply = request
            .command
            .reply_error(response::QUERY_NOT_FOUND, NOT_FOUND);
        reply = reply.with_header(&header);
        return Ok(reply.into());
    }
    let reply = request
        .command
        .reply(response::SUCCESS)
        .with_header(&header);
    Ok(Reply::Parts(reply, records))
}

/// `VIEW_MESSAGE_BY_ID`.
pub(super) async fn by_id(broker: &Arc<Broker>, request: &Request) -> Handled {
    let ViewMessage { offset, .. } = request.command.header()?;
    let record = blocking(broker, move |broker| {
        let at = PhyOffset::from_i64(offset);
        let record = at.and_then(|at| record_at(broker, at));
        record.inspect(bring_in).ok_or_else(|| {
            let damage = at.and_then(|at| broker.log.damage_at(at));
            Refusal::system_error(match damage {
                Some(damage) => format!("the message at {offset} cannot be read: {damage}"),
                None => format!("can not find message by the offset, {offset}"),
            })
        })
    })
    .await?;
    let reply = request.command.reply(response::SUCCESS);
    Ok(Reply::Parts(reply, vec![record]))
}

/// The committed message that starts at this place, if one does. The log's own records are none.
pub(super) fn record_at(broker: &Broker, offset: PhyOffset) -> Option<Bytes> {
    let bytes = broker.log.record_at(offset)?;
    let record = Record::decode(&bytes).ok()?;
    (record.topic != name::RAFT_LOG_TOPIC).then_some(bytes)
}
