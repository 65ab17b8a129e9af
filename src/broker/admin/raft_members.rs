//! `RAFT_ADD_NODE`, `RAFT_PROMOTE`, `RAFT_REMOVE_NODE`, `RAFT_TRANSFER_LEADER`, `RAFT_RECOVER`:
//! an operator's changes of the group. Code `SERVICE_NOT_AVAILABLE` says that the same request may be granted later.

use std::sync::Arc;

use rmq_wire::code::{request, response};

use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::raft::{MemberChange, MembersError, SelfId, TransferError};
use crate::remoting::Request;

/// The field that names a node of the group.
const NODE: &str = "node";

pub(in crate::broker) async fn change_members(broker: &Arc<Broker>, request: &Request) -> Handled {
    let change = match request.command.code {
        request::RAFT_ADD_NODE => MemberChange::Add,
        request::RAFT_PROMOTE => MemberChange::Promote,
        _ => MemberChange::Remove,
    };
    let Some(node) = node(request)? else {
        let remark = "field node is missing: it names a self id, like n3";
        return Err(Refusal::system_error(remark));
    };
    match broker.replica.change_members(change, node).await {
        Ok(text) => Ok(done(request, text)),
        Err(MembersError::Leads) => {
            let leader = broker.hand_over(None).await.map_err(refusal)?;
            let remark = format!("{node} has handed leadership to {leader} and can be removed now");
            Err(not_now(remark))
        }
        Err(MembersError::Later(reason)) => Err(not_now(reason)),
        Err(MembersError::Refused(reason)) => Err(Refusal::system_error(reason)),
    }
}

pub(in crate::broker) async fn transfer_leader(broker: &Arc<Broker>, request: &Request) -> Handled {
    let leader = broker.hand_over(node(request)?).await.map_err(refusal)?;
    Ok(done(request, format!("{leader} leads")))
}

pub(in crate::broker) async fn recover(broker: &Arc<Broker>, request: &Request) -> Handled {
    let without_absent = request.command.ext.get("withoutAbsent") == Some("true");
    tracing::warn!(client = %request.peer, without_absent, "an operator asks for recovery");
    match broker.replica.recover(without_absent).await {
        Ok(leader) => {
            let text = format!("{leader} has the longest log and is to lead");
            Ok(done(request, text))
        }
        Err(error) => Err(Refusal::system_error(error.to_string())),
    }
}

fn node(request: &Request) -> Result<Option<SelfId>, Refusal> {
    let node = request.command.ext.get(NODE).map(str::parse).transpose();
    node.map_err(|error| Refusal::system_error(format!("field {NODE}: {error}")))
}

fn done(request: &Request, text: String) -> crate::remoting::Reply {
    request.command.reply_error(response::SUCCESS, text).into()
}

fn not_now(reason: impl Into<String>) -> Refusal {
    Refusal::new(response::SERVICE_NOT_AVAILABLE, reason)
}

fn refusal(error: TransferError) -> Refusal {
    match error {
        TransferError::NotLeader(_)
        | TransferError::Behind { .. }
        | TransferError::Silent(_)
        | TransferError::NotReady(_)
        | TransferError::Timeout { .. } => not_now(error.to_string()),
        TransferError::Alone | TransferError::NoVoter(_) | TransferError::Fatal(_) => {
            Refusal::system_error(error.to_string())
        }
    }
}
