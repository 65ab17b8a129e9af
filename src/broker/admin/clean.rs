//! `DELETE_EXPIRED_COMMITLOG`; `CLEAN_EXPIRED_CONSUMEQUEUE`, `CLEAN_UNUSED_TOPIC`.

use std::sync::Arc;

use rmq_wire::code::response;

use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::remoting::Request;

/// Has the segments removed that are older than `fileReservedTime`, whatever the hour, on this node.
pub(in crate::broker) async fn delete_expired(broker: &Arc<Broker>, request: &Request) -> Handled {
    tracing::info!(client = %request.peer, "a tool has asked for the removal of old segments");
    broker.replica.remove_old_segments();
    Ok(request.command.reply(response::SUCCESS).into())
}

/// Refuses, for success would tell an operator who fights for disk space that some was freed.
pub(in crate::broker) async fn clean(_: &Arc<Broker>, request: &Request) -> Handled {
    let code = request.command.code;
    tracing::info!(code, client = %request.peer, "a tool's request to clean up was refused");
    let remark = "nothing was removed: this broker does not remove parts of its store on request";
    Err(Refusal::new(response::REQUEST_CODE_NOT_SUPPORTED, remark))
}
