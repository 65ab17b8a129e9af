//! The leader's part in taking in a node: the wiped directory of a known node, by itself, or a new
//! one that an operator adds. The node asks again and again; each request moves it by at most one
//! step, which is found from the current membership alone. So every step is safe to repeat, and a
//! new leader goes on where the last one stopped. A voter that asks learns that it is one still.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex as SyncMutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::members::{Edit, Step, View};
use super::messages::{Join, JoinAnswer, NodeInfo, Refusal};
use super::shared::Shared;
use super::{GroupId, SelfId};
use crate::raft::AskingNode;
use crate::raft::types::{BrokerNode, NodeId};

/// A node that has not asked for so long does not wait any more. It asks twice a second.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
/// Different nodes remembered that ask.
const MAX_ASKING: usize = 64;

/// Takes nodes in, one change of members at a time.
pub(in crate::raft) struct Joins {
    /// `autoRejoin`: take the place of a known node's old directory without being told.
    auto: bool,
    pub(super) changing: Mutex<()>,
    /// Who asks and is no member, and when it last did.
    asking: SyncMutex<HashMap<NodeId, (NodeInfo, Instant)>>,
}

/// Those that a group with an adopted history was to be formed of, and that are no members: they may
/// have met the others with nothing, and get the history from the group.
///
/// Nothing tells one of them from a member that was removed and emptied later. So they are taken in by
/// themselves as the first change of the group's members, all of them together.
struct Guests {
    asking: BTreeMap<NodeId, BrokerNode>,
    absent: Vec<SelfId>,
}

impl Guests {
    fn of(own: &NodeInfo, view: &View, joins: &Joins) -> Self {
        let mut guests = Self {
            asking: BTreeMap::new(),
            absent: Vec::new(),
        };
        for (self_id, _) in own.peers.iter() {
            if view.nodes_of(self_id).is_empty() {
                let asks = joins.asking(self_id).filter(|info| info.genesis.is_empty());
                match asks {
                    Some(info) => drop(guests.asking.insert(info.node, info.addrs)),
                    None => guests.absent.push(self_id),
                }
            }
        }
        guests
    }

    fn take_in(&self, view: &View, self_id: SelfId) -> Step {
        if let [absent, ..] = self.absent[..] {
            return Step::Wait(format!(
                "{self_id} and {absent} come to the group without its history, and {absent} does not ask: \
                 they are taken in together, or one by one by mqadmin raftAddNode"
            ));
        }
        if let Some(reason) = view.cannot_change_to(&view.voters()) {
            return Step::Wait(reason);
        }
        let text = format!("{self_id} is a learner now");
        Step::Change(Edit::AddLearners(self.asking.clone()), text)
    }
}

/// The next step towards a vote for the node that asks.
///
/// `guests` says that the node is one of those that the group was to be formed of, and may have begun
/// without the history that the others had: it gets its vote by itself then, too.
fn plan(view: &View, from: &NodeInfo, auto: bool, guests: Option<&Guests>) -> Step {
    if let Some(step) = view.unfinished() {
        return step;
    }
    let mut voters = view.voters();
    let self_id = from.self_id;
    let registered = view.members.get_node(&from.node);
    if let Some(registered) = registered
        && voters.contains(&from.node)
    {
        let addrs = addrs_now(registered, &from.addrs);
        if addrs == *registered {
            return Step::Done(format!("{self_id} is a voter"));
        }
        let text = format!("{self_id} is at {addrs} now");
        return Step::Change(Edit::Readdress(from.node, addrs), text);
    }
    let mut former = view.nodes_of(self_id);
    former.retain(|node| *node != from.node);
    if let Some(alive) = former.iter().find(|node| view.alive.contains(node)) {
        return Step::Wait(format!("{self_id} is alive as node {alive:016x}"));
    }
    let known = registered.is_some();
    match (known, former.is_empty()) {
        (false, true) => {
            return match guests {
                Some(guests) if view.first && from.genesis.is_empty() => {
                    guests.take_in(view, self_id)
                }
                _ => Step::Refuse(format!(
                    "{self_id} is no member of the group: mqadmin raftAddNode adds it"
                )),
            };
        }
        (false, false) if !auto => {
            return Step::Refuse(format!(
                "autoRejoin is false, so {self_id} does not get its place back with another \
                 directory by itself: mqadmin raftAddNode adds it"
            ));
        }
        (false, false) => {}
        (true, _) => {
            let takes_place = match former.is_empty() {
                true => guests.is_some(),
                false => auto && former.iter().any(|node| voters.contains(node)),
            };
            return match view.promotion(from.node, former) {
                Step::Change(..) if !takes_place => Step::Wait(format!(
                    "{self_id} is a learner and caught up: mqadmin raftPromote gives it a vote"
                )),
                step => step,
            };
        }
    }
    voters.retain(|node| !former.contains(node));
    if let Some(reason) = view.cannot_change_to(&voters) {
        return Step::Wait(reason);
    }
    let edit = Edit::AddLearner(from.node, from.addrs.clone());
    Step::Change(edit, format!("{self_id} is a learner now"))
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
            asking: SyncMutex::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<NodeId, (NodeInfo, Instant)>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, from: &NodeInfo) {
        let mut asking = self.table();
        asking.retain(|_, (_, at)| at.elapsed() < ASKED_WITHIN);
        if asking.len() < MAX_ASKING || asking.contains_key(&from.node) {
            asking.insert(from.node, (from.clone(), Instant::now()));
        }
    }

    /// The node of that self id that asked last.
    pub(super) fn asking(&self, self_id: SelfId) -> Option<NodeInfo> {
        let asking = self.table();
        let asking = asking
            .values()
            .filter(|(info, at)| info.self_id == self_id && at.elapsed() < ASKED_WITHIN);
        asking
            .max_by_key(|(_, at)| *at)
            .map(|(info, _)| info.clone())
    }

    /// Who asks and is no member.
    pub(super) fn waiting(&self) -> Vec<AskingNode> {
        let asking = self.table();
        let asking = asking
            .values()
            .filter(|(_, at)| at.elapsed() < ASKED_WITHIN);
        let mut waiting: Vec<AskingNode> = asking
            .map(|(info, _)| AskingNode {
                node: info.node,
                raft_addr: info.addrs.raft_addr.clone(),
                broker_addr: info.addrs.broker_addr.clone(),
            })
            .collect();
        waiting.sort_by_key(|waiting| waiting.node);
        waiting
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
        // A node that has none yet gets it with a snapshot.
        if from.genesis != own.genesis && !from.genesis.is_empty() {
            return Err(Refusal::refused(
                "the adopted history below the log differs, so the log alone cannot be sent",
            ));
        }
        let Ok(_changing) = self.changing.try_lock() else {
            return under_way("another change of members is under way");
        };
        let view = View::of(shared);
        match view.members.get_node(&from.node) {
            Some(_) => drop(self.table().remove(&from.node)),
            None => self.note(from),
        }
        let expected = own.peers.addr(from.self_id).is_some() && !join.as_new_member;
        let guests = (expected && !own.genesis.is_empty()).then(|| Guests::of(&own, &view, self));
        let lacks_history = from.genesis != own.genesis;
        if lacks_history && shared.holds_all_entries() {
            return under_way("making ready to send the adopted history");
        }
        match plan(&view, from, self.auto, guests.as_ref()) {
            Step::Done(_) => Ok(JoinAnswer::Voter),
            // It was started to be added, so there is nothing wrong yet.
            Step::Refuse(reason) if join.as_new_member => under_way(reason),
            Step::Refuse(reason) => Err(Refusal::refused(reason)),
            Step::Wait(reason) => under_way(reason),
            Step::Change(edit, _) => {
                let text = edit.to_string();
                tracing::info!(group = own.group_name, "{text}");
                let made = edit.make(raft, &view.voters()).await;
                made.map_err(Refusal::later)?;
                under_way(text)
            }
        }
    }
}

fn under_way(step: impl Into<String>) -> Result<JoinAnswer, Refusal> {
    Ok(JoinAnswer::UnderWay(step.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::raft::peer::members::CAUGHT_UP;
    use crate::raft::peer::members::tests::{info, node, view};
    use crate::raft::types::Membership;

    fn edit(step: Step) -> Edit {
        match step {
            Step::Change(edit, _) => edit,
            other => panic!("{other:?} changes nothing"),
        }
    }

    #[test]
    fn a_wiped_node_is_added_and_replaces_its_former_self_when_caught_up() {
        let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
        let new = node(1, 2);
        let voters = [zero, one, two];
        let step = |view: &View| plan(view, &info(new), true, None);

        let added = Edit::AddLearner(new, BrokerNode::default());
        assert_eq!(edit(step(&view(&voters, &[], &[zero, two]))), added);
        let mut learner = view(&voters, &[new], &[zero, two, new]);
        learner.lags.insert(new, CAUGHT_UP + 1);
        let Step::Wait(reason) = step(&learner) else {
            panic!("it is behind")
        };
        assert!(reason.contains("65 entries behind"), "{reason}");
        learner.lags.insert(new, CAUGHT_UP);
        assert_eq!(
            edit(step(&learner)),
            Edit::Promote {
                node: new,
                former: vec![one]
            }
        );
        let voter = view(&[zero, two, new], &[], &[zero]);
        assert!(matches!(step(&voter), Step::Done(_)));
    }

    #[test]
    fn nothing_is_changed_without_need_or_a_majority() {
        let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
        let voters = [zero, one, two];
        let new = info(node(1, 2));
        assert_eq!(
            plan(&view(&voters, &[], &voters), &new, true, None),
            Step::Wait("n1 is alive as node 0001000000000001".into())
        );
        assert_eq!(
            plan(&view(&voters, &[], &[zero]), &new, true, None),
            Step::Wait("1 of 3 voters are alive, too few to change the members".into())
        );
        let manual = view(&voters, &[], &[zero, two]);
        assert!(matches!(plan(&manual, &new, false, None), Step::Refuse(_)));
        let mut unsettled = view(&voters, &[], &[zero, two]);
        unsettled.settled = false;
        assert!(matches!(plan(&unsettled, &new, true, None), Step::Wait(_)));
    }

    #[test]
    fn a_node_without_a_former_self_waits_for_the_operator() {
        let voters = [node(0, 1), node(1, 1), node(2, 1)];
        let new = node(3, 1);
        let stranger = view(&voters, &[], &voters);
        let Step::Refuse(reason) = plan(&stranger, &info(new), true, None) else {
            panic!("it joined by itself")
        };
        assert!(reason.contains("mqadmin raftAddNode"), "{reason}");
        let alive = [voters[0], voters[1], voters[2], new];
        let learner = view(&voters, &[new], &alive);
        let Step::Wait(reason) = plan(&learner, &info(new), true, None) else {
            panic!("it votes by itself")
        };
        assert!(reason.contains("mqadmin raftPromote"), "{reason}");
    }

    /// A node with the history has formed a group of itself, and the two others come without it.
    #[test]
    fn those_without_the_history_come_together_and_once() {
        let [zero, one, two] = [node(0, 1), node(1, 1), node(2, 1)];
        let own = NodeInfo {
            genesis: "5eed".into(),
            peers: "n0-a:1;n1-b:1;n2-c:1".parse().unwrap(),
            ..info(zero)
        };
        let joins = Joins::new(true);
        let ask = |view: &View, from: NodeId| {
            let guests = Guests::of(&own, view, &joins);
            plan(view, &info(from), true, Some(&guests))
        };
        let mut begun = view(&[zero], &[], &[zero]);
        begun.first = true;
        joins.note(&info(one));
        let Step::Wait(reason) = ask(&begun, one) else {
            panic!("n2 would have to be let in later, like one that was removed")
        };
        assert!(reason.contains("n2 does not ask"), "{reason}");
        joins.note(&info(two));
        let both = [one, two].map(|node| (node, BrokerNode::default()));
        assert_eq!(edit(ask(&begun, one)), Edit::AddLearners(both.into()));
        let learners = view(&[zero], &[one, two], &[zero, one, two]);
        assert!(matches!(
            edit(ask(&learners, two)),
            Edit::Promote { node, .. } if node == two
        ));

        // An operator has removed n2, which was then emptied.
        let emptied = node(2, 2);
        joins.note(&info(emptied));
        let without = view(&[zero, one], &[], &[zero, one]);
        let Step::Refuse(reason) = ask(&without, emptied) else {
            panic!("it came back by itself")
        };
        assert!(reason.contains("mqadmin raftAddNode"), "{reason}");
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
            let step = plan(&alone, &from, true, None);
            match now {
                None => assert!(matches!(step, Step::Done(_)), "{step:?}"),
                Some(now) => assert_eq!(edit(step), Edit::Readdress(here, now)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_is_known_until_it_asks_no_more() {
        let joins = Joins::new(true);
        let (first, second) = (info(node(3, 1)), info(node(3, 2)));
        joins.note(&first);
        tokio::time::advance(Duration::from_secs(1)).await;
        joins.note(&second);
        assert_eq!(joins.asking(SelfId(3)), Some(second));
        assert_eq!(joins.asking(SelfId(4)), None);
        assert_eq!(joins.waiting().len(), 2);
        tokio::time::advance(ASKED_WITHIN).await;
        assert_eq!(joins.asking(SelfId(3)), None);
        for incarnation in 0..200 {
            joins.note(&info(node(4, incarnation)));
        }
        assert_eq!(joins.waiting().len(), MAX_ASKING);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever was left behind, a dead voter's latest directory becomes a voter in a few steps,
        /// its former ones go, all others stay what they were, and at no time are there fewer voters.
        #[test]
        fn every_beginning_leads_to_a_vote(
            leftover in proptest::collection::btree_set(2..5u64, 0..4),
        ) {
            let (zero, one, two) = (node(0, 1), node(1, 1), node(2, 1));
            let new = node(1, 9);
            let mut voters = BTreeSet::from([zero, one, two]);
            let mut nodes = voters.clone();
            nodes.extend(leftover.into_iter().map(|incarnation| node(1, incarnation)));
            for _ in 0..12 {
                let voting: Vec<_> = voters.iter().copied().collect();
                let learning: Vec<_> = nodes.difference(&voters).copied().collect();
                let view = view(&voting, &learning, &[zero, two]);
                match plan(&view, &info(new), true, None) {
                    Step::Change(Edit::AddLearner(node, _), _) => prop_assert!(nodes.insert(node)),
                    Step::Change(Edit::Promote { node, former }, _) => {
                        prop_assert!(nodes.contains(&node) && voters.insert(node));
                        voters.retain(|node| !former.contains(node));
                        nodes.retain(|node| !former.contains(node));
                    }
                    Step::Done(_) => break,
                    other => prop_assert!(false, "{:?}", other),
                }
                prop_assert!(voters.contains(&zero) && voters.contains(&two));
                prop_assert_eq!(voters.len(), 3);
            }
            prop_assert_eq!(&voters, &BTreeSet::from([zero, two, new]));
            prop_assert_eq!(&nodes, &voters);
        }
    }
}
