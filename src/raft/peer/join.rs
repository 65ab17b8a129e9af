//! The leader's part in taking in a node: the wiped directory of a known node, or a new one that an
//! operator adds (`raftJoin=true`). The node asks again and again; each request moves it by at most
//! one step, which is found from the current membership alone. So every step is safe to repeat, and
//! a new leader goes on where the last one stopped. A voter that asks learns that it is one still.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant};
use tokio::sync::Mutex;

use super::messages::{Join, JoinAnswer, NodeInfo, Refusal};
use super::shared::Shared;
use super::{GroupId, SelfId};

use crate::raft::types::{BrokerNode, Membership, NodeId};

/// A learner is caught up when it is at most this many entries behind: under load it is always
/// behind by what is in flight.
const CAUGHT_UP: u64 = 64;
/// A member that has answered within this time is alive. Heartbeats are much more frequent.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// Takes nodes in, one change of members at a time.
pub(in crate::raft) struct Joins {
    /// `autoRejoin`: take the place of a known node's old directory without being told.
    auto: bool,
    changing: Mutex<()>,
}

/// What the leader knows of its group.
struct View {
    members: Membership,
    /// The membership entry is committed.
    settled: bool,
    alive: BTreeSet<NodeId>,
    /// Entries that the asking node is behind, when that is known.
    lag: Option<u64>,
    auto: bool,
}

/// The next step towards a vote for the asking node.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done,
    Wait(String),
    Refuse(String),
    /// End a joint configuration that a former leader left.
    Settle,
    AddLearner,
    Remove {
        node: NodeId,
        voter: bool,
    },
    Promote,
    /// The node is a voter, but not at the address that the members know.
    Readdress(BrokerNode),
}

fn plan(view: &View, from: &NodeInfo, as_new_member: bool) -> Step {
    let voters: BTreeSet<NodeId> = view.members.voter_ids().collect();
    if !view.settled {
        return Step::Wait("another change of members is being committed".to_owned());
    }
    if view.members.get_joint_config().len() > 1 {
        return Step::Settle;
    }
    let registered = view.members.get_node(&from.node);
    if let Some(registered) = registered
        && voters.contains(&from.node)
    {
        let addrs = addrs_now(registered, &from.addrs);
        return if addrs == *registered {
            Step::Done
        } else {
            Step::Readdress(addrs)
        };
    }
    let is_former = |node: NodeId| SelfId::of(node) == from.self_id && node != from.node;
    let former: Vec<NodeId> = view
        .members
        .nodes()
        .map(|(node, _)| *node)
        .filter(|node| is_former(*node))
        .collect();
    if let Some(alive) = former.iter().find(|node| view.alive.contains(node)) {
        return Step::Wait(format!("{} is alive as node {alive}", from.self_id));
    }
    let known = registered.is_some();
    if !known && former.is_empty() && !as_new_member {
        return Step::Refuse(format!(
            "{} is no member of the group; raftJoin=true adds a new one",
            from.self_id
        ));
    }
    if !former.is_empty() && !view.auto {
        return Step::Refuse(format!(
            "autoRejoin is false, so {} does not get its place back with another directory",
            from.self_id
        ));
    }
    let remaining: BTreeSet<NodeId> = voters
        .iter()
        .copied()
        .filter(|node| !is_former(*node))
        .collect();
    for set in [&voters, &remaining] {
        let alive = set.intersection(&view.alive).count();
        if alive <= set.len() / 2 {
            return Step::Wait(format!(
                "{alive} of {} voters are alive, too few to change the members",
                set.len()
            ));
        }
    }
    if !known {
        return Step::AddLearner;
    }
    if let Some(node) = former.first() {
        return Step::Remove {
            node: *node,
            voter: voters.contains(node),
        };
    }
    match view.lag {
        Some(lag) if lag <= CAUGHT_UP => Step::Promote,
        Some(lag) => Step::Wait(format!("catching up, {lag} entries behind")),
        None => Step::Wait("catching up".to_owned()),
    }
}

/// Where a member is now. It says where its clients find it; where its peers do was agreed when it
/// became a member, except in a group of one, which has none.
fn addrs_now(registered: &BrokerNode, stated: &BrokerNode) -> BrokerNode {
    let raft_addr = match &*registered.raft_addr {
        "" => stated.raft_addr.clone(),
        agreed => agreed.to_owned(),
    };
    BrokerNode {
        raft_addr,
        broker_addr: stated.broker_addr.clone(),
    }
}

impl Joins {
    pub(in crate::raft) fn new(auto: bool) -> Self {
        Self {
            auto,
            changing: Mutex::new(()),
        }
    }

    /// Does the next step for `from`. Not cancel safe: a step once begun is to be waited for.
    pub(super) async fn advance(
        &self,
        shared: &Shared,
        from: &NodeInfo,
        join: Join,
    ) -> Result<JoinAnswer, Refusal> {
        let raft = &shared.raft;
        if !shared.leads() {
            let metrics = raft.server_metrics().borrow_watched().clone();
            let leader = metrics.current_leader;
            let members = metrics.membership_config.membership();
            return match leader.and_then(|node| members.get_node(&node)) {
                Some(addrs) => Ok(JoinAnswer::Leader(addrs.raft_addr.clone())),
                None => Err(Refusal::later(format!(
                    "{} knows no leader of the group",
                    shared.local.self_id
                ))),
            };
        }
        let own = shared.local.info().await;
        if from.group != own.group {
            let named = |group: Option<GroupId>| match group {
                Some(group) => format!("group {group}"),
                None => "no group".to_owned(),
            };
            return Err(Refusal::refused(format!(
                "this is {} of {}, you belong to {}",
                own.self_id,
                named(own.group),
                named(from.group)
            )));
        }
        if from.genesis != own.genesis {
            return Err(Refusal::refused(
                "the adopted history below the log differs, so the log alone cannot be sent",
            ));
        }
        let Ok(_changing) = self.changing.try_lock() else {
            return under_way("another change of members is under way");
        };
        let step = plan(&self.view(shared, from.node), from, join.as_new_member);
        let self_id = from.self_id;
        let text = match &step {
            Step::Done => return Ok(JoinAnswer::Voter),
            Step::Wait(reason) => return under_way(reason),
            Step::Refuse(reason) => return Err(Refusal::refused(reason)),
            Step::Settle => "ending a change of members that a former leader began".to_owned(),
            Step::AddLearner => format!("adding {self_id} as learner (node {})", from.node),
            Step::Remove { node, .. } => format!("removing {self_id}'s former node {node}"),
            Step::Promote => format!("making {self_id} a voter (node {})", from.node),
            Step::Readdress(addrs) => format!("noting that {self_id} is at {addrs} now"),
        };
        tracing::info!(group = own.group_name, "{text}");
        let ids = |node| BTreeSet::from([node]);
        let (change, retain): (ChangeMembers<NodeId, BrokerNode>, bool) = match step {
            Step::AddLearner => {
                let addrs = from.addrs.clone();
                let changed = raft.add_learner(from.node, addrs, false).await;
                return changed.map_err(failed).and_then(|_| under_way(text));
            }
            Step::Remove { node, voter: true } => (ChangeMembers::RemoveVoters(ids(node)), false),
            Step::Remove { node, .. } => (ChangeMembers::RemoveNodes(ids(node)), false),
            Step::Promote => (ChangeMembers::AddVoterIds(ids(from.node)), true),
            Step::Readdress(addrs) => (ChangeMembers::SetNodes([(from.node, addrs)].into()), true),
            _ => (ChangeMembers::AddVoterIds(BTreeSet::new()), false),
        };
        let changed = raft.change_membership(change, retain).await;
        changed.map_err(failed).and_then(|_| under_way(text))
    }

    fn view(&self, shared: &Shared, node: NodeId) -> View {
        let metrics = shared.raft.metrics().borrow_watched().clone();
        let acked = metrics.heartbeat.unwrap_or_default();
        let mut alive: BTreeSet<NodeId> = acked
            .into_iter()
            .filter(|(_, at)| at.is_some_and(|at| at.elapsed() <= ALIVE_WITHIN))
            .map(|(node, _)| node)
            .collect();
        alive.insert(shared.local.node);
        let matched = metrics.replication.as_ref().and_then(|r| *r.get(&node)?);
        View {
            members: metrics.membership_config.membership().clone(),
            settled: metrics.membership_config.log_id()
                == metrics.committed_membership_config.log_id(),
            alive,
            lag: matched.map(|at| metrics.last_log_index.unwrap_or(0).saturating_sub(at.index)),
            auto: self.auto,
        }
    }
}

fn under_way(step: impl Into<String>) -> Result<JoinAnswer, Refusal> {
    Ok(JoinAnswer::UnderWay(step.into()))
}

fn failed(e: impl std::fmt::Display) -> Refusal {
    Refusal::later(format!("the members were not changed: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    /// The `incarnation`th directory of a node.
    fn node(id: u16, incarnation: u64) -> NodeId {
        u64::from(id) << 48 | incarnation
    }

    fn info(node: NodeId) -> NodeInfo {
        NodeInfo {
            group_name: "broker-a".into(),
            group: Some(GroupId([1; 16])),
            holds_group: false,
            self_id: SelfId::of(node),
            node,
            genesis: String::new(),
            peers: super::super::PeerList::default(),
            addrs: BrokerNode::default(),
        }
    }

    fn view(voters: &[NodeId], learners: &[NodeId], alive: &[NodeId]) -> View {
        let nodes = voters.iter().chain(learners);
        let nodes: BTreeMap<_, _> = nodes.map(|node| (*node, BrokerNode::default())).collect();
        let voters = voters.iter().copied().collect();
        View {
            members: Membership::new(vec![voters], nodes).unwrap(),
            settled: true,
            alive: alive.iter().copied().collect(),
            lag: None,
            auto: true,
        }
    }

    #[test]
    fn a_wiped_node_is_added_replaces_its_former_self_and_votes_when_caught_up() {
        let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
        let new = node(1, 2);
        let voters = [zero, one, two];
        let step = |view: &View| plan(view, &info(new), false);

        assert_eq!(step(&view(&voters, &[], &[zero, two])), Step::AddLearner);
        assert_eq!(
            step(&view(&voters, &[new], &[zero, two])),
            Step::Remove {
                node: one,
                voter: true
            }
        );
        let mut caught_up = view(&[zero, two], &[new], &[zero, two]);
        assert!(matches!(step(&caught_up), Step::Wait(_)));
        caught_up.lag = Some(CAUGHT_UP + 1);
        assert_eq!(
            step(&caught_up),
            Step::Wait("catching up, 65 entries behind".into())
        );
        caught_up.lag = Some(CAUGHT_UP);
        assert_eq!(step(&caught_up), Step::Promote);
        assert_eq!(step(&view(&[zero, two, new], &[], &[zero])), Step::Done);
    }

    #[test]
    fn nothing_is_changed_without_need_or_a_majority() {
        let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
        let voters = [zero, one, two];
        let new = info(node(1, 2));
        assert_eq!(
            plan(&view(&voters, &[], &voters), &new, false),
            Step::Wait(format!("n1 is alive as node {one}"))
        );
        assert_eq!(
            plan(&view(&voters, &[], &[zero]), &new, false),
            Step::Wait("1 of 3 voters are alive, too few to change the members".into())
        );
        let mut manual = view(&voters, &[], &[zero, two]);
        manual.auto = false;
        assert!(matches!(plan(&manual, &new, false), Step::Refuse(_)));
        let mut unsettled = view(&voters, &[], &[zero, two]);
        unsettled.settled = false;
        assert!(matches!(plan(&unsettled, &new, false), Step::Wait(_)));
    }

    #[test]
    fn only_a_node_that_says_so_is_added_to_the_known_ones() {
        let voters = [node(0, 1), node(1, 1), node(2, 1)];
        let new = info(node(3, 1));
        let view = view(&voters, &[], &voters);
        assert!(matches!(plan(&view, &new, false), Step::Refuse(_)));
        assert_eq!(plan(&view, &new, true), Step::AddLearner);
    }

    #[test]
    fn a_voter_says_where_its_clients_find_it_now() {
        let addrs = |raft_addr: &str, broker_addr: &str| BrokerNode {
            raft_addr: raft_addr.to_owned(),
            broker_addr: broker_addr.to_owned(),
        };
        let here = node(0, 1);
        let mut alone = view(&[here], &[], &[here]);
        let mut from = info(here);
        for (registered, stated, now) in [
            (addrs("a:1", "a:2"), addrs("a:1", "a:2"), None),
            (
                addrs("a:1", "a:2"),
                addrs("b:1", "b:2"),
                Some(addrs("a:1", "b:2")),
            ),
            (
                addrs("", "a:2"),
                addrs("b:1", "a:2"),
                Some(addrs("b:1", "a:2")),
            ),
        ] {
            let nodes = BTreeMap::from([(here, registered)]);
            alone.members = Membership::new(vec![[here].into()], nodes).unwrap();
            from.addrs = stated;
            let step = now.map_or(Step::Done, Step::Readdress);
            assert_eq!(plan(&alone, &from, false), step);
        }
    }

    #[test]
    fn what_a_former_leader_left_is_ended_first() {
        let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
        let mut joint = view(&[zero, one, two], &[], &[zero, two]);
        let sets = vec![[zero, one, two].into(), [zero, two].into()];
        let nodes = [zero, one, two].map(|node| (node, BrokerNode::default()));
        joint.members = Membership::new(sets, BTreeMap::from(nodes)).unwrap();
        assert_eq!(plan(&joint, &info(node(1, 2)), false), Step::Settle);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever was left behind, a dead node's latest directory becomes a voter in a few steps,
        /// its former ones go, and all others stay what they were.
        #[test]
        fn every_beginning_leads_to_a_vote(
            leftover in proptest::collection::btree_set(1..5u64, 0..4),
            former_voter in any::<bool>(),
        ) {
            let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
            let new = node(1, 9);
            let mut voters = BTreeSet::from([zero, two]);
            if former_voter {
                voters.insert(one);
            }
            let mut nodes = voters.clone();
            nodes.insert(one);
            nodes.extend(leftover.into_iter().map(|incarnation| node(1, incarnation)));
            for _ in 0..12 {
                let voting: Vec<_> = voters.iter().copied().collect();
                let learning: Vec<_> = nodes.difference(&voters).copied().collect();
                let mut view = view(&voting, &learning, &[zero, two]);
                view.lag = Some(0);
                match plan(&view, &info(new), false) {
                    Step::AddLearner => prop_assert!(nodes.insert(new)),
                    Step::Remove { node, voter } => {
                        prop_assert_eq!(voters.remove(&node), voter);
                        prop_assert!(nodes.remove(&node));
                    }
                    Step::Promote => prop_assert!(voters.insert(new)),
                    Step::Done => break,
                    other => prop_assert!(false, "{:?}", other),
                }
                prop_assert!(voters.contains(&zero) && voters.contains(&two));
            }
            prop_assert_eq!(&voters, &BTreeSet::from([zero, two, new]));
            prop_assert_eq!(&nodes, &voters);
        }
    }
}
