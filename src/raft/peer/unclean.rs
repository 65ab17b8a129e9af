//! What becomes of a group when so many nodes have lost power under ASYNC_FLUSH that those which lost
//! nothing elect no leader: the node with the longest log among all that answer is to lead, and those
//! in quarantine may vote for it. An operator says so (`mqadmin raftRecover`), or with
//! `uncleanRecovery=longest-log` the nodes decide it themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, sleep};

use super::SelfId;
use super::caller::{CallError, Dialer, Target, connect};
use super::members::MembersError;
use super::messages::{Condition, Purpose, Recover, Refusal};
use super::shared::Shared;
use super::wire::Kind;
use crate::raft::types::{Membership, NodeId};

/// Between two looks of a node in quarantine at the others.
const LOOK: Duration = Duration::from_secs(1);
/// How long a node may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long the nodes wait by themselves for those that do not answer, from when one answered that had
/// not before.
const ABSENT_WAIT: Duration = Duration::from_secs(10);
/// A leader that was heard within this time is alive.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// What the voters say, or why they do not.
type Answers = BTreeMap<NodeId, Result<Condition, String>>;

/// Who is to lead, or why nobody is to be chosen. `without_absent` gives up what only nodes that do not
/// answer may have.
fn choose(members: &Membership, answers: &Answers, without_absent: bool) -> Result<NodeId, String> {
    let heard = || {
        let answers = answers.iter();
        answers.filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)))
    };
    if let Some((node, _)) = heard().find(|(_, condition)| condition.has_leader) {
        let id = SelfId::of(node);
        return Err(format!(
            "{id} knows a leader, from which the others recover"
        ));
    }
    if heard().all(|(_, condition)| !condition.quarantined) {
        return Err("no node is in quarantine".to_owned());
    }
    let is_majority = |nodes: &BTreeSet<NodeId>| {
        let mut configs = members.get_joint_config().iter();
        configs.all(|voters| voters.intersection(nodes).count() > voters.len() / 2)
    };
    let present: BTreeSet<NodeId> = heard().map(|(node, _)| node).collect();
    let safe = heard().filter(|(_, condition)| !condition.quarantined);
    if is_majority(&safe.map(|(node, _)| node).collect()) {
        return Err("the nodes that lost nothing are a majority and elect a leader".to_owned());
    }
    let mut absent = answers.iter().filter_map(|(node, answer)| {
        let reason = answer.as_ref().err()?;
        Some(format!("{} ({reason})", SelfId::of(*node)))
    });
    if !is_majority(&present) {
        let absent: Vec<String> = absent.collect();
        return Err(format!(
            "{} of {} voters answer, which is no majority; missing: {}",
            present.len(),
            answers.len(),
            absent.join(", ")
        ));
    }
    if !without_absent && let Some(absent) = absent.next() {
        return Err(format!(
            "{absent} does not answer, and may have what the others have lost: start it, or go on \
             without it (mqadmin raftRecover --without-absent)"
        ));
    }
    let longest = heard().max_by_key(|(node, condition)| (condition.last, *node));
    longest
        .map(|(node, _)| node)
        .ok_or_else(|| "there is no voter".to_owned())
}

impl Shared {
    fn members(&self) -> Membership {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().clone()
    }

    /// What this node says of itself.
    pub(super) fn condition(&self) -> Condition {
        let leads = self.raft.server_metrics().borrow_watched().state == ServerState::Leader;
        Condition {
            quarantined: self.gate.is_quarantined(),
            // The leader that Raft remembers from before its restart may be gone.
            has_leader: leads
                || self
                    .gate
                    .heard()
                    .is_some_and(|at| at.elapsed() <= HEARD_WITHIN),
            last: self.raft.data_metrics().borrow_watched().last_log,
        }
    }

    /// A peer asks for this node's condition, or has found who is to lead.
    pub(super) async fn recover(
        &self,
        group: Option<super::GroupId>,
        recover: Recover,
    ) -> Result<Condition, Refusal> {
        if group.is_none() || group != self.local.info().await.group {
            return Err(Refusal::refused("you belong to another group"));
        }
        if let Some(leader) = recover.leader {
            self.let_lead(leader);
        }
        Ok(self.condition())
    }

    /// Has this node, if it is in quarantine, vote, and stand for election if it is `leader`.
    fn let_lead(&self, leader: NodeId) {
        if !self.gate.is_quarantined() {
            return;
        }
        tracing::warn!(
            group = self.local.group_name,
            "votes in quarantine, for {} alone, which has the longest log: entries that were acknowledged \
             and that no node has any more are lost",
            SelfId::of(leader)
        );
        self.gate.absolve(leader);
    }
}

/// Asks all voters for their condition.
async fn survey(shared: &Shared, dialer: &Dialer, members: &Membership) -> Answers {
    let voters: BTreeSet<NodeId> = members.voter_ids().collect();
    let asked = voters.into_iter().map(|node| async move {
        let answer = if node == shared.local.node {
            Ok(shared.condition())
        } else {
            ask(dialer, members, node, Recover { leader: None }).await
        };
        (node, answer.map_err(|e| e.to_string()))
    });
    join_all(asked).await.into_iter().collect()
}

async fn ask(
    dialer: &Dialer,
    members: &Membership,
    node: NodeId,
    recover: Recover,
) -> Result<Condition, CallError> {
    let addrs = members.get_node(&node);
    let target = Target {
        addr: addrs
            .map(|addrs| addrs.raft_addr.clone())
            .unwrap_or_default(),
        node: Some(node),
    };
    let mut connection = connect(dialer, &target, Purpose::Meet).await?;
    connection.ask(Kind::Recover, &recover, ASK_LIMIT).await
}

/// Has the node with the longest log lead, where nothing better is to be had; its name.
pub(super) async fn recover(
    shared: &Shared,
    dialer: &Dialer,
    without_absent: bool,
) -> Result<SelfId, MembersError> {
    let members = shared.members();
    let answers = survey(shared, dialer, &members).await;
    let leader = choose(&members, &answers, without_absent).map_err(MembersError::Refused)?;
    announce(shared, dialer, &members, leader).await;
    Ok(SelfId::of(leader))
}

/// Tells all voters who is to lead.
async fn announce(shared: &Shared, dialer: &Dialer, members: &Membership, leader: NodeId) {
    let told = members.voter_ids().map(|node| async move {
        if node == shared.local.node {
            shared.let_lead(leader);
        } else {
            let leader = Some(leader);
            // Who does not get it votes when it is asked again, or has a leader by then.
            drop(ask(dialer, members, node, Recover { leader }).await);
        }
    });
    join_all(told).await;
}

/// Decides without an operator for as long as this node is in quarantine: always where it is the only
/// voter, for nobody could have more; and with `longest-log` (`by_itself`).
pub(super) async fn run(shared: Arc<Shared>, dialer: Dialer, by_itself: bool) {
    let mut present = (BTreeSet::new(), Instant::now());
    while shared.gate.is_quarantined() {
        sleep(LOOK).await;
        let members = shared.members();
        if !by_itself && !members.voter_ids().eq([shared.local.node]) {
            continue;
        }
        let answers = survey(&shared, &dialer, &members).await;
        let there = answers.iter().filter(|(_, answer)| answer.is_ok());
        let there = there.map(|(node, _)| *node).collect();
        if there != present.0 {
            present = (there, Instant::now());
        }
        match choose(&members, &answers, present.1.elapsed() >= ABSENT_WAIT) {
            Ok(leader) => announce(&shared, &dialer, &members, leader).await,
            Err(reason) if shared.nag.is_due("unclean recovery") => tracing::warn!(
                group = shared.local.group_name,
                "not recovered yet: {reason}"
            ),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::{BrokerNode, LeaderId, LogId};

    const VOTERS: [NodeId; 3] = [1, 1 << 48 | 1, 2 << 48 | 1];

    fn members() -> Membership {
        let nodes = VOTERS.map(|node| (node, BrokerNode::default()));
        Membership::new(vec![VOTERS.into()], BTreeMap::from(nodes)).unwrap()
    }

    fn lost(index: u64) -> Result<Condition, String> {
        Ok(Condition {
            quarantined: true,
            has_leader: false,
            last: Some(LogId {
                leader_id: LeaderId {
                    term: 1,
                    node_id: 1,
                },
                index,
            }),
        })
    }

    fn safe(index: u64) -> Result<Condition, String> {
        lost(index).map(|condition| Condition {
            quarantined: false,
            ..condition
        })
    }

    fn chosen(
        answers: [Result<Condition, String>; 3],
        without_absent: bool,
    ) -> Result<NodeId, String> {
        let answers = VOTERS.into_iter().zip(answers).collect();
        choose(&members(), &answers, without_absent)
    }

    fn away() -> Result<Condition, String> {
        Err("connection refused".to_owned())
    }

    #[test]
    fn the_longest_log_of_all_leads_whether_it_lost_something_or_not() {
        for without_absent in [false, true] {
            let leader = chosen([lost(7), lost(9), lost(8)], without_absent);
            assert_eq!(leader, Ok(VOTERS[1]));
            let leader = chosen([lost(7), lost(9), safe(10)], without_absent);
            assert_eq!(leader, Ok(VOTERS[2]));
        }
    }

    #[test]
    fn nothing_is_decided_where_it_could_cost_more_than_it_must() {
        for (answers, want) in [
            ([lost(9), safe(7), safe(8)], "a majority and elect a leader"),
            ([lost(9), away(), away()], "no majority; missing: n1"),
            ([safe(9), safe(9), away()], "no node is in quarantine"),
        ] {
            for without_absent in [false, true] {
                let reason = chosen(answers.clone(), without_absent).unwrap_err();
                assert!(reason.contains(want), "{reason}");
            }
        }
        let led = safe(9).map(|condition| Condition {
            has_leader: true,
            ..condition
        });
        let reason = chosen([lost(1), lost(2), led], true).unwrap_err();
        assert!(reason.contains("n2 knows a leader"), "{reason}");
    }

    #[test]
    fn an_absent_node_is_waited_for_unless_it_is_given_up() {
        for other in [lost(8), safe(8)] {
            let answers = [lost(9), other, away()];
            let reason = chosen(answers.clone(), false).unwrap_err();
            assert!(
                reason.starts_with("n2 (connection refused) does not answer"),
                "{reason}"
            );
            assert_eq!(chosen(answers, true), Ok(VOTERS[0]));
        }
    }
}
