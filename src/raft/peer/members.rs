//! The members of a group as its leader sees them, and what an operator changes about them. Every
//! change is planned from the membership and the followers' progress alone, so that it may be asked
//! for again, of any later leader, and is refused where it would cost the group its majority.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{ChangeMembers, Instant as _};

use super::caller::Dialer;
use super::join::Joins;
use super::messages::NodeInfo;
use super::shared::Shared;
use super::{SelfId, unclean};
use crate::raft::types::{BrokerNode, Membership, NodeId};
use crate::raft::{AskingNode, Raft};

/// A node is caught up when it is at most this many entries behind: under load it is always behind
/// by what is in flight.
pub(in crate::raft) const CAUGHT_UP: u64 = 64;
/// A member that has answered within this time is alive. Heartbeats are much more frequent.
pub(in crate::raft) const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// Take in a node that asks to join, as a learner.
    Add,
    /// Give a learner a vote.
    Promote,
    /// Take a member's vote and place away.
    Remove,
}

/// Why the members are not as an operator wants them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The leader is to be removed, and has to hand over leadership first.
    #[error("it is the leader")]
    Leads,
    /// Not now; the same request may be granted later.
    #[error("{0}")]
    Later(String),
    /// Not as things are.
    #[error("{0}")]
    Refused(String),
}

/// What the leader knows of its group.
pub(super) struct View {
    pub(super) members: Membership,
    /// The membership entry is committed.
    pub(super) settled: bool,
    /// It is the one that the group was formed with.
    pub(super) first: bool,
    pub(super) alive: BTreeSet<NodeId>,
    /// Entries that a member is behind, where that is known.
    pub(super) lags: BTreeMap<NodeId, u64>,
    /// This node.
    pub(super) leader: NodeId,
}

/// One change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    /// End a joint configuration that a former leader left.
    Settle,
    AddLearner(NodeId, BrokerNode),
    AddLearners(BTreeMap<NodeId, BrokerNode>),
    /// Makes a learner a voter in the place of its former selves, so that the number of voters
    /// never falls on the way.
    Promote {
        node: NodeId,
        former: Vec<NodeId>,
    },
    Remove(Vec<NodeId>),
    /// A voter is not at the address that the members know.
    Readdress(NodeId, BrokerNode),
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settle => write!(f, "ending a change of members that a former leader began"),
            Self::AddLearner(node, _) => {
                write!(
                    f,
                    "adding {} as learner (node {node:016x})",
                    SelfId::of(*node)
                )
            }
            Self::AddLearners(nodes) => {
                let ids: Vec<String> = nodes
                    .keys()
                    .map(|node| SelfId::of(*node).to_string())
                    .collect();
                write!(f, "adding {} as learners", ids.join(" and "))
            }
            Self::Promote { node, former } => {
                write!(f, "making {} a voter (node {node:016x})", SelfId::of(*node))?;
                for former in former {
                    write!(f, ", in the place of its former node {former:016x}")?;
                }
                Ok(())
            }
            Self::Remove(nodes) => {
                write!(f, "removing")?;
                for (i, node) in nodes.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "," };
                    write!(f, "{separator} {} (node {node:016x})", SelfId::of(*node))?;
                }
                Ok(())
            }
            Self::Readdress(node, addrs) => {
                write!(f, "noting that {} is at {addrs} now", SelfId::of(*node))
            }
        }
    }
}

impl Edit {
    /// Has the edit committed. `voters` are those of now.
    pub(super) async fn make(self, raft: &Raft, voters: &BTreeSet<NodeId>) -> Result<(), String> {
        let without = |nodes: Vec<NodeId>| {
            let (voting, learning) = nodes.into_iter().partition(|node| voters.contains(node));
            [
                ChangeMembers::RemoveVoters(voting),
                ChangeMembers::RemoveNodes(learning),
            ]
        };
        let change = match self {
            Self::Settle => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Self::AddLearner(node, addrs) => ChangeMembers::AddNodes([(node, addrs)].into()),
            Self::AddLearners(nodes) => ChangeMembers::AddNodes(nodes),
            Self::Promote { node, former } => {
                let promoted = ChangeMembers::AddVoterIds([node].into());
                ChangeMembers::Batch([promoted].into_iter().chain(without(former)).collect())
            }
            Self::Remove(nodes) => ChangeMembers::Batch(without(nodes).into()),
            Self::Readdress(node, addrs) => ChangeMembers::SetNodes([(node, addrs)].into()),
        };
        // A voter that is removed does not stay as a learner.
        let changed = raft.change_membership(change, false).await;
        changed
            .map(drop)
            .map_err(|e| format!("the members were not changed: {e}"))
    }
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: it is so.
    Done(String),
    Wait(String),
    Refuse(String),
    /// An edit, and what is so after it.
    Change(Edit, String),
}

impl View {
    pub(super) fn of(shared: &Shared) -> Self {
        let metrics = shared.raft.metrics().borrow_watched().clone();
        let acked = metrics.heartbeat.unwrap_or_default();
        let mut alive: BTreeSet<NodeId> = acked
            .into_iter()
            .filter(|(_, at)| at.is_some_and(|at| at.elapsed() <= ALIVE_WITHIN))
            .map(|(node, _)| node)
            .collect();
        alive.insert(shared.local.node);
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.unwrap_or_default().into_iter();
        let lags = matched
            .filter_map(|(node, at)| Some((node, last.saturating_sub(at?.index))))
            .collect();
        Self {
            members: metrics.membership_config.membership().clone(),
            settled: metrics.membership_config.log_id()
                == metrics.committed_membership_config.log_id(),
            first: (metrics.membership_config.log_id().as_ref()).is_some_and(|id| id.index == 0),
            alive,
            lags,
            leader: shared.local.node,
        }
    }

    pub(super) fn voters(&self) -> BTreeSet<NodeId> {
        self.members.voter_ids().collect()
    }

    /// All incarnations of a configured node.
    pub(super) fn nodes_of(&self, self_id: SelfId) -> Vec<NodeId> {
        let nodes = self.members.nodes().map(|(node, _)| *node);
        nodes.filter(|node| SelfId::of(*node) == self_id).collect()
    }

    /// Another change that has to end before one can begin.
    pub(super) fn unfinished(&self) -> Option<Step> {
        if !self.settled {
            let text = "another change of members is being committed";
            return Some(Step::Wait(text.to_owned()));
        }
        (self.members.get_joint_config().len() > 1).then(|| {
            let text = "a change that a former leader began has been ended".to_owned();
            Step::Change(Edit::Settle, text)
        })
    }

    /// How many of `voters` are alive, in words, if that is no majority.
    pub(super) fn too_few(&self, voters: &BTreeSet<NodeId>) -> Option<String> {
        let alive = voters.intersection(&self.alive).count();
        (alive <= voters.len() / 2).then(|| format!("{alive} of {} voters are alive", voters.len()))
    }

    /// [`Self::too_few`] for a change from the voters of now to `next`.
    pub(super) fn cannot_change_to(&self, next: &BTreeSet<NodeId>) -> Option<String> {
        let few = self
            .too_few(&self.voters())
            .or_else(|| self.too_few(next))?;
        Some(format!("{few}, too few to change the members"))
    }

    /// The step that gives `node`, a learner, its vote. The caller has checked that its former
    /// selves, whom it replaces, are dead.
    pub(super) fn promotion(&self, node: NodeId, former: Vec<NodeId>) -> Step {
        let self_id = SelfId::of(node);
        let mut next = self.voters();
        next.retain(|voter| !former.contains(voter));
        next.insert(node);
        match self.lags.get(&node) {
            Some(lag) if *lag <= CAUGHT_UP => {}
            Some(lag) => {
                return Step::Wait(format!(
                    "{self_id} is catching up, {lag} entries behind (at most {CAUGHT_UP} to vote)"
                ));
            }
            None => return Step::Wait(format!("{self_id} is catching up")),
        }
        if let Some(reason) = self.cannot_change_to(&next) {
            return Step::Wait(reason);
        }
        let text = format!("{self_id} is a voter now (node {node:016x})");
        Step::Change(Edit::Promote { node, former }, text)
    }

    /// What `self_id` is, if it is a member as `node`.
    fn already(&self, self_id: SelfId, node: NodeId) -> Step {
        let part = match self.voters().contains(&node) {
            true => "voter",
            false => "learner",
        };
        Step::Done(format!("{self_id} is a {part} already (node {node:016x})"))
    }
}

/// Plans [`MemberChange::Add`]; `asking` is the node of that self id that asks to join.
fn plan_add(view: &View, self_id: SelfId, asking: Option<&NodeInfo>) -> Step {
    let members = view.nodes_of(self_id);
    let Some(asking) = asking else {
        return match members.last() {
            Some(node) => view.already(self_id, *node),
            None => Step::Wait(format!(
                "{self_id} does not ask to join: start it with raftJoin=true and with dLegerPeers \
                 that name a node of this group"
            )),
        };
    };
    if members.contains(&asking.node) {
        return view.already(self_id, asking.node);
    }
    if let Some(node) = members.iter().find(|node| view.alive.contains(node)) {
        return Step::Refuse(format!(
            "{self_id} is alive as node {node:016x}, and another directory (node {:016x}) asks to \
             join under its name",
            asking.node
        ));
    }
    if let Some(few) = view.too_few(&view.voters()) {
        return Step::Wait(format!("{few}, too few to change the members"));
    }
    let text = format!("{self_id} is a learner now (node {:016x})", asking.node);
    let edit = Edit::AddLearner(asking.node, asking.addrs.clone());
    Step::Change(edit, text)
}

/// Plans [`MemberChange::Promote`].
fn plan_promote(view: &View, self_id: SelfId) -> Step {
    let members = view.nodes_of(self_id);
    let voters = view.voters();
    let (voting, learning): (Vec<_>, Vec<_>) =
        members.iter().partition(|node| voters.contains(node));
    if learning.is_empty() {
        return match voting.last() {
            Some(node) => view.already(self_id, *node),
            None => Step::Refuse(format!(
                "{self_id} is no member of the group: mqadmin raftAddNode adds it"
            )),
        };
    }
    if let Some(node) = voting.iter().find(|node| view.alive.contains(node)) {
        return Step::Refuse(format!("{self_id} votes as node {node:016x} and is alive"));
    }
    let Some(node) = learning.into_iter().find(|node| view.alive.contains(node)) else {
        return Step::Wait(format!("{self_id} does not answer"));
    };
    let former = members.into_iter().filter(|other| *other != node);
    view.promotion(node, former.collect())
}

/// Plans [`MemberChange::Remove`].
fn plan_remove(view: &View, self_id: SelfId) -> Step {
    let members = view.nodes_of(self_id);
    if members.is_empty() {
        return Step::Done(format!("{self_id} is no member of the group"));
    }
    let voters = view.voters();
    let mut next = voters.clone();
    next.retain(|node| !members.contains(node));
    if next.is_empty() {
        return Step::Refuse(format!("{self_id} is the only voter of the group"));
    }
    if next != voters
        && let Some(few) = view.too_few(&next)
    {
        return Step::Refuse(format!(
            "without {self_id} the group would have no majority: {few} of those that remain"
        ));
    }
    if let Some(few) = view.too_few(&voters) {
        return Step::Wait(format!("{few}, too few to change the members"));
    }
    Step::Change(
        Edit::Remove(members),
        format!("{self_id} is no member of the group any more"),
    )
}

/// An operator's access to the members.
#[derive(Clone)]
pub(in crate::raft) struct Members {
    pub(super) shared: Arc<Shared>,
    pub(super) dialer: Dialer,
}

impl Members {
    /// Changes the members as asked, if this node leads; what is so then, in words.
    pub(in crate::raft) async fn change(
        &self,
        change: MemberChange,
        self_id: SelfId,
    ) -> Result<String, MembersError> {
        let shared = Arc::clone(&self.shared);
        // A change once begun is to be waited for, whether the one who asked for it does so or not.
        let changed = tokio::spawn(async move {
            let joins: &Joins = &shared.joins;
            let Ok(_changing) = joins.changing.try_lock() else {
                let text = "another change of members is under way";
                return Err(MembersError::Later(text.to_owned()));
            };
            let view = View::of(&shared);
            let step = match (view.unfinished(), change) {
                (Some(step), _) => step,
                (None, MemberChange::Add) => {
                    plan_add(&view, self_id, joins.asking(self_id).as_ref())
                }
                (None, MemberChange::Promote) => plan_promote(&view, self_id),
                (None, MemberChange::Remove) => plan_remove(&view, self_id),
            };
            match step {
                Step::Done(text) => Ok(text),
                Step::Wait(reason) => Err(MembersError::Later(reason)),
                Step::Refuse(reason) => Err(MembersError::Refused(reason)),
                Step::Change(Edit::Remove(nodes), _) if nodes.contains(&view.leader) => {
                    Err(MembersError::Leads)
                }
                Step::Change(edit, text) => {
                    tracing::info!(
                        group = shared.local.group_name,
                        "{edit}, as an operator asks"
                    );
                    let settles = edit == Edit::Settle;
                    let made = edit.make(&shared.raft, &view.voters()).await;
                    made.map_err(MembersError::Later)?;
                    match settles {
                        true => Err(MembersError::Later(text)),
                        false => Ok(text),
                    }
                }
            }
        });
        changed
            .await
            .unwrap_or_else(|e| Err(MembersError::Later(e.to_string())))
    }

    /// The nodes that ask to join and wait.
    pub(in crate::raft) fn waiting(&self) -> Vec<AskingNode> {
        self.shared.joins.waiting()
    }

    /// After a loss of power under ASYNC_FLUSH that leaves no majority without loss: has the node with
    /// the longest log lead, and names it. `without_absent` gives up what only nodes that do not answer
    /// may have.
    pub(in crate::raft) async fn recover(
        &self,
        without_absent: bool,
    ) -> Result<SelfId, MembersError> {
        unclean::recover(&self.shared, &self.dialer, without_absent).await
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::raft::peer::{GroupId, PeerList};

    /// The `incarnation`th directory of a node.
    pub(in crate::raft::peer) fn node(id: u16, incarnation: u64) -> NodeId {
        u64::from(id) << 48 | incarnation
    }

    pub(in crate::raft::peer) fn info(node: NodeId) -> NodeInfo {
        NodeInfo {
            group_name: "broker-a".into(),
            group: Some(GroupId([1; 16])),
            holds_group: false,
            self_id: SelfId::of(node),
            node,
            genesis: String::new(),
            peers: PeerList::default(),
            addrs: BrokerNode::default(),
        }
    }

    /// As the first voter sees it, with everybody caught up.
    pub(in crate::raft::peer) fn view(
        voters: &[NodeId],
        learners: &[NodeId],
        alive: &[NodeId],
    ) -> View {
        let nodes = voters.iter().chain(learners);
        let nodes: BTreeMap<_, _> = nodes.map(|node| (*node, BrokerNode::default())).collect();
        View {
            lags: nodes.keys().map(|node| (*node, 0)).collect(),
            members: Membership::new(vec![voters.iter().copied().collect()], nodes).unwrap(),
            settled: true,
            first: false,
            alive: alive.iter().copied().collect(),
            leader: voters[0],
        }
    }

    const ZERO: NodeId = 1;
    const ONE: NodeId = 1 << 48 | 1;
    const TWO: NodeId = 2 << 48 | 1;
    const THREE: NodeId = 3 << 48 | 1;
    const VOTERS: [NodeId; 3] = [ZERO, ONE, TWO];

    fn refused(step: Step) -> String {
        match step {
            Step::Refuse(reason) => reason,
            other => panic!("{other:?} is no refusal"),
        }
    }

    fn waits(step: Step) -> String {
        match step {
            Step::Wait(reason) => reason,
            other => panic!("{other:?} does not wait"),
        }
    }

    fn done(step: Step) -> String {
        match step {
            Step::Done(text) => text,
            other => panic!("{other:?} is not done"),
        }
    }

    fn edit(step: Step) -> Edit {
        match step {
            Step::Change(edit, _) => edit,
            other => panic!("{other:?} changes nothing"),
        }
    }

    #[test]
    fn a_node_that_asks_is_added_once() {
        let new = info(THREE);
        let before = view(&VOTERS, &[], &VOTERS);
        let add = |view: &View, asking| plan_add(view, SelfId(3), asking);
        assert_eq!(
            edit(add(&before, Some(&new))),
            Edit::AddLearner(THREE, BrokerNode::default())
        );
        assert!(waits(add(&before, None)).contains("raftJoin=true"));
        let after = view(&VOTERS, &[THREE], &VOTERS);
        for asking in [Some(&new), None] {
            assert!(done(add(&after, asking)).contains("n3 is a learner already"));
        }
        let voter = view(&[ZERO, ONE, TWO, THREE], &[], &VOTERS);
        assert!(done(add(&voter, None)).contains("n3 is a voter already"));
    }

    #[test]
    fn a_second_directory_of_a_living_node_is_refused() {
        let twin = info(node(1, 2));
        let reason = refused(plan_add(
            &view(&VOTERS, &[], &VOTERS),
            SelfId(1),
            Some(&twin),
        ));
        assert!(
            reason.contains("n1 is alive as node 0001000000000001"),
            "{reason}"
        );
        // A dead one's place is free.
        let view = view(&VOTERS, &[], &[ZERO, TWO]);
        assert_eq!(
            edit(plan_add(&view, SelfId(1), Some(&twin))),
            Edit::AddLearner(twin.node, BrokerNode::default())
        );
    }

    #[test]
    fn without_a_majority_nothing_is_changed() {
        let few = view(&VOTERS, &[THREE], &[ZERO, THREE]);
        for reason in [
            waits(plan_add(&few, SelfId(4), Some(&info(node(4, 1))))),
            waits(plan_promote(&few, SelfId(3))),
            waits(plan_remove(&few, SelfId(3))),
        ] {
            let want = "1 of 3 voters are alive, too few to change the members";
            assert_eq!(reason, want);
        }
    }

    #[test]
    fn only_a_learner_that_lives_and_is_caught_up_gets_a_vote() {
        let all = [ZERO, ONE, TWO, THREE];
        let promote = |view: &View| plan_promote(view, SelfId(3));
        let mut ready = view(&VOTERS, &[THREE], &all);
        assert_eq!(
            edit(promote(&ready)),
            Edit::Promote {
                node: THREE,
                former: vec![]
            }
        );
        ready.lags.insert(THREE, CAUGHT_UP + 1);
        assert!(waits(promote(&ready)).contains("n3 is catching up, 65 entries behind"));
        ready.lags.remove(&THREE);
        assert_eq!(waits(promote(&ready)), "n3 is catching up");
        let silent = view(&VOTERS, &[THREE], &VOTERS);
        assert_eq!(waits(promote(&silent)), "n3 does not answer");
        assert!(refused(promote(&view(&VOTERS, &[], &VOTERS))).contains("raftAddNode"));
        assert!(done(promote(&view(&all, &[], &all))).contains("n3 is a voter already"));
    }

    #[test]
    fn a_promoted_learner_replaces_its_dead_former_self_and_no_living_one() {
        let new = node(1, 2);
        let dead = view(&VOTERS, &[new], &[ZERO, TWO, new]);
        assert_eq!(
            edit(plan_promote(&dead, SelfId(1))),
            Edit::Promote {
                node: new,
                former: vec![ONE]
            }
        );
        let alive = view(&VOTERS, &[new], &[ZERO, ONE, TWO, new]);
        assert!(refused(plan_promote(&alive, SelfId(1))).contains("is alive"));
    }

    #[test]
    fn a_member_is_removed_unless_that_costs_the_majority() {
        let remove = |view: &View, id| plan_remove(view, SelfId(id));
        let all = view(&VOTERS, &[THREE], &VOTERS);
        assert_eq!(edit(remove(&all, 1)), Edit::Remove(vec![ONE]));
        assert_eq!(edit(remove(&all, 3)), Edit::Remove(vec![THREE]));
        assert!(done(remove(&all, 7)).contains("n7 is no member"));
        // A dead node may go, a living one whose vote is needed may not.
        let one_dead = view(&VOTERS, &[], &[ZERO, ONE]);
        assert_eq!(edit(remove(&one_dead, 2)), Edit::Remove(vec![TWO]));
        let reason = refused(remove(&one_dead, 1));
        assert!(
            reason.contains("would have no majority: 1 of 2 voters are alive"),
            "{reason}"
        );
        let alone = view(&[ZERO], &[], &[ZERO]);
        assert!(refused(remove(&alone, 0)).contains("the only voter"));
    }

    #[test]
    fn one_change_ends_before_the_next_begins() {
        let mut view = view(&VOTERS, &[], &VOTERS);
        assert_eq!(view.unfinished(), None);
        let sets = vec![VOTERS.into(), [ZERO, TWO].into()];
        let nodes = VOTERS.map(|node| (node, BrokerNode::default()));
        view.members = Membership::new(sets, BTreeMap::from(nodes)).unwrap();
        assert_eq!(edit(view.unfinished().unwrap()), Edit::Settle);
        view.settled = false;
        assert!(waits(view.unfinished().unwrap()).contains("being committed"));
    }
}
