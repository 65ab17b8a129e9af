//! `RAFT_FREEZE` and `RAFT_THAW`: the group takes nothing, so that it can be stopped with all its nodes
//! at one end, or it takes everything again.

use std::sync::Arc;
use std::time::Duration;

use rmq_wire::code::response;
use tokio::time::timeout;

use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::meta::{Change, Command, Reply};
use crate::remoting::Request;

/// How long what is on its way may take to be committed, less than tools wait for an answer.
const LIMIT: Duration = Duration::from_secs(3);

/// Freezes the group: what was taken before is stored, nothing is taken after.
pub(in crate::broker) async fn freeze(broker: &Arc<Broker>, request: &Request) -> Handled {
    let frozen = timeout(LIMIT, async {
        let _round = broker.delivering.lock().await;
        broker.offsets.all_settled().await;
        let command = Command {
            at_ms: broker.now_ms(),
            change: Change::Freeze,
        };
        let bytes = command
            .encode()
            .map_err(|error| Refusal::system_error(error.to_string()))?;
        match broker.replica.propose_meta_behind(bytes.into()).await? {
            Reply::Refused { code, remark } => Err(Refusal::Code(code, remark)),
            _ => Ok(()),
        }
    });
    frozen.await.unwrap_or_else(|_| {
        let remark = "messages that are on their way are not committed yet: is a majority of the \
                      nodes running? (mqadmin raftStatus)";
        Err(Refusal::new(response::SERVICE_NOT_AVAILABLE, remark))
    })?;
    tracing::info!(client = %request.peer, "the group is frozen");
    Ok(request.command.reply(response::SUCCESS).into())
}

/// Ends a freeze.
pub(in crate::broker) async fn thaw(broker: &Arc<Broker>, request: &Request) -> Handled {
    broker.propose(Change::Thaw).await?;
    tracing::info!(client = %request.peer, "the group is not frozen any more");
    Ok(request.command.reply(response::SUCCESS).into())
}
