//! From configured peers to a group, once; and then, for as long as the node runs, back into the
//! group if it is no voter of it.
//!
//! A node whose Raft state is pristine (no vote, no log) holds no group, whatever it agreed to
//! before: an agreement that led to nothing is replaced by a later one. As long as that is so it
//! meets all its configured peers in rounds. If one of them holds a group, this node joins it.
//! If all of them are there, pristine and of one mind, the one with the lowest self id draws a
//! group id and proposes the first members; the others agree durably; then it initialises Raft,
//! which makes it a holder. A crash anywhere leaves pristine nodes, which begin again, or a holder,
//! which the others follow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;

use super::caller::{CallError, Connection, Dialer, Target, connect};
use super::messages::{Form, Join, JoinAnswer, NodeInfo, Purpose, Refusal, RefusalKind};
use super::shared::Shared;
use super::wire::Kind;
use super::{GroupId, Local, PeerList, SelfId};
use crate::raft::Raft;
use crate::raft::types::{BrokerNode, NodeId};

/// Between two rounds of a node that is not part of a group yet.
const ROUND: Duration = Duration::from_millis(200);
/// Between two requests of a node that is to become a voter.
const JOIN_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks of a voter whether the leader still counts it as one.
const CHECK_PAUSE: Duration = Duration::from_secs(10);
/// How long a peer may take to write its agreement.
const FORM_LIMIT: Duration = Duration::from_secs(5);
/// How long a leader may take for one step of a join; the step goes on when that is over.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
/// From a node that is asked to the leader it names, and on to the next if that has changed.
const MAX_REDIRECTS: usize = 3;

/// What came of meeting a peer: what it says of itself, or why it was not met.
type Met = BTreeMap<SelfId, Result<NodeInfo, String>>;

/// What a pristine node does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing is wrong yet; who or what is missing.
    Wait(String),
    /// It cannot go on until an operator changes something.
    Refuse(String),
    /// All agree, and this node initialises the group.
    Form(BTreeMap<NodeId, BrokerNode>),
    /// There is a group already.
    Join(GroupId),
}

/// Decides on `own`, which is pristine. `join_only` says that it must never form a group.
fn decide(own: &NodeInfo, join_only: bool, met: &Met) -> Next {
    let there = || met.values().filter_map(|peer| peer.as_ref().ok());
    let holders = || there().filter(|peer| peer.holds_group);
    if let Some(first) = holders().next() {
        let Some(group) = first.group else {
            return Next::Refuse(format!("{} holds a group without an id", first.self_id));
        };
        if let Some(other) = holders().find(|peer| peer.group != Some(group)) {
            let other_group = other
                .group
                .map_or_else(|| "-".to_owned(), |id| id.to_string());
            return Next::Refuse(format!(
                "two groups share the name {:?}: {} belongs to {group}, {} to {other_group}",
                own.group_name, first.self_id, other.self_id
            ));
        }
        return Next::Join(group);
    }
    if let Some(reason) = there().find_map(|peer| disagreement(own, peer)) {
        return Next::Refuse(reason);
    }
    let with_history = there().find(|peer| !peer.genesis.is_empty());
    if own.genesis.is_empty()
        && let Some(peer) = with_history
    {
        return Next::Wait(format!(
            "{} has taken over a history and forms the group; this node gets it from there",
            peer.self_id
        ));
    }
    let missing: Vec<String> = own
        .peers
        .iter()
        .filter(|(id, _)| *id != own.self_id)
        .filter_map(|(id, addr)| match met.get(&id) {
            Some(Ok(_)) => None,
            Some(Err(reason)) => Some(format!("{id} ({reason})")),
            None => Some(format!("{id} ({addr})")),
        })
        .collect();
    if join_only {
        return Next::Wait("raftJoin=true: no peer that holds the group was met".to_owned());
    }
    if !missing.is_empty() {
        return Next::Wait(format!(
            "the group is formed when all its nodes have been met; missing: {}",
            missing.join(", ")
        ));
    }
    // Those without the history of the others take it from the group later.
    let founders: BTreeMap<SelfId, &NodeInfo> = there()
        .filter(|peer| peer.genesis == own.genesis)
        .chain([own])
        .map(|peer| (peer.self_id, peer))
        .collect();
    if let Some((lowest, _)) = founders.first_key_value()
        && *lowest != own.self_id
    {
        return Next::Wait(format!("all nodes have been met; {lowest} forms the group"));
    }
    let members = founders.values();
    Next::Form(
        members
            .map(|peer| (peer.node, peer.addrs.clone()))
            .collect(),
    )
}

/// Why the two cannot form a group together.
fn disagreement(own: &NodeInfo, peer: &NodeInfo) -> Option<String> {
    if peer.peers != own.peers {
        Some(format!(
            "dLegerPeers differ: {} has {:?}, {} has {:?}",
            own.self_id,
            own.peers.to_string(),
            peer.self_id,
            peer.peers.to_string()
        ))
    } else if peer.genesis != own.genesis && !peer.genesis.is_empty() && !own.genesis.is_empty() {
        let (mine, its) = first_difference(&own.genesis, &peer.genesis);
        Some(format!(
            "the adopted histories differ: {} has {mine}, {} has {its}; choose the node that has all \
             and give the others a copy of its directory, or empty ones",
            own.self_id, peer.self_id
        ))
    } else {
        None
    }
}

/// The first of the parts of two digests that differs.
fn first_difference<'a>(one: &'a str, other: &'a str) -> (&'a str, &'a str) {
    let mut parts = one.split(", ").zip(other.split(", "));
    parts.find(|(a, b)| a != b).unwrap_or((one, other))
}

/// Makes a node without peers a group of its own, unless it is one.
pub(in crate::raft) async fn form_alone(local: &Local, raft: &Raft) -> Result<(), String> {
    if !raft.is_initialized().await.map_err(|e| e.to_string())? {
        let agreed = local.identity.write().await.agree(draw_group());
        agreed.map_err(|e| format!("identity file: {e}"))?;
        let members = BTreeMap::from([(local.node, local.addrs.clone())]);
        raft.initialize(members).await.map_err(|e| e.to_string())?;
    }
    let held = local.identity.write().await.hold();
    held.map_err(|e| format!("identity file: {e}"))
}

/// Nothing is ever decided by the value of a group id, only by whether two are equal.
fn draw_group() -> GroupId {
    GroupId(rand::random())
}

impl Shared {
    /// Agrees to the first membership of a group that `from` proposes. Durable on return.
    pub(super) async fn agree_to_form(&self, from: &NodeInfo, form: &Form) -> Result<(), Refusal> {
        let own = self.local.info().await;
        if self.join_only {
            return Err(Refusal::refused(format!(
                "{} has raftJoin=true and never forms a group",
                own.self_id
            )));
        }
        if let Some(reason) = disagreement(&own, from) {
            return Err(Refusal::refused(reason));
        }
        let configured: Vec<SelfId> = own.peers.iter().map(|(id, _)| id).collect();
        let proposed: Vec<SelfId> = form.members.keys().map(|node| SelfId::of(*node)).collect();
        // Those without the history of the others come to the group later, and get it then.
        let founds = |id: &SelfId| configured.contains(id);
        let right = if own.genesis.is_empty() {
            proposed == configured
        } else {
            proposed.iter().all(founds)
        };
        if !right || from.genesis != own.genesis || proposed.first() != Some(&from.self_id) {
            return Err(Refusal::refused(format!(
                "{} proposes a group of {proposed:?}, configured are {configured:?}",
                from.self_id
            )));
        }
        if !form.members.contains_key(&own.node) {
            return Err(Refusal::later(format!(
                "{} is node {}, which is not among the proposed members",
                own.self_id, own.node
            )));
        }
        self.agree_to(form.group).await
    }

    fn say(&self, text: &str) {
        self.say_on(text, text);
    }

    /// [`Self::say`], where what is said on a subject changes all the time.
    fn say_on(&self, subject: &str, text: &str) {
        if self.nag.is_due(subject) {
            tracing::info!(group = self.local.group_name, "{text}");
        }
    }

    fn complain(&self, text: &str) {
        if self.nag.is_due(text) {
            tracing::error!(group = self.local.group_name, "{text}");
        }
    }
}

/// Runs until it is aborted, see the module.
pub(super) async fn run(shared: Arc<Shared>, dialer: Dialer) {
    loop {
        shared.hold_if_initialized().await;
        if shared.local.identity.read().await.held() {
            break;
        }
        round(&shared, &dialer).await;
        sleep(ROUND).await;
    }
    let mut compared = false;
    loop {
        let metrics = shared.raft.server_metrics().borrow_watched().clone();
        let members = metrics.membership_config.membership();
        if !compared && members.nodes().next().is_some() {
            compared = true;
            let nodes = members.nodes();
            warn_of_difference(
                &shared.local.peers,
                &nodes
                    .map(|(node, addrs)| (SelfId::of(*node), addrs.raft_addr.clone()))
                    .collect(),
            );
        }
        let voter = members.voter_ids().any(|node| node == shared.local.node);
        let settled = if shared.leads() {
            let own = shared.local.info().await;
            let join = Join {
                as_new_member: false,
            };
            shared.joins.advance(&shared, &own, join).await == Ok(JoinAnswer::Voter)
        } else {
            let of_members = members.nodes().map(|(_, addrs)| addrs.raft_addr.clone());
            let mut addrs: Vec<String> = of_members.chain(shared.peer_addrs()).collect();
            addrs.sort();
            addrs.dedup();
            ask_to_join(&shared, &dialer, addrs, voter).await
        };
        sleep(if settled { CHECK_PAUSE } else { JOIN_PAUSE }).await;
    }
}

fn warn_of_difference(configured: &PeerList, members: &PeerList) {
    if configured != members {
        tracing::warn!(
            "dLegerPeers is {:?}, but the members of the group are {:?}: the latter holds",
            configured.to_string(),
            members.to_string()
        );
    }
}

/// One attempt of a pristine node to come to a group.
async fn round(shared: &Shared, dialer: &Dialer) {
    let own = shared.local.info().await;
    let meetings = shared
        .local
        .peers
        .iter()
        .filter(|(id, _)| *id != own.self_id);
    let meetings = meetings.map(|(id, addr)| async move { (id, meet(dialer, id, addr).await) });
    let mut connections = BTreeMap::new();
    let mut met = Met::new();
    for (id, meeting) in join_all(meetings).await {
        match meeting {
            Ok(connection) => {
                met.insert(id, Ok(connection.peer.clone()));
                connections.insert(id, connection);
            }
            Err(reason) => {
                met.insert(id, Err(reason));
            }
        }
    }
    match decide(&own, shared.join_only, &met) {
        Next::Wait(what) => shared.say(&what),
        Next::Refuse(reason) => shared.complain(&reason),
        Next::Form(members) => {
            if let Err(reason) = form(shared, connections, members).await {
                shared.say(&format!("the group is not formed yet: {reason}"));
            }
        }
        Next::Join(group) => {
            if let Err(refusal) = shared.agree_to(group).await {
                return shared.say(&refusal.reason);
            }
            drop(connections);
            ask_to_join(shared, dialer, shared.peer_addrs().collect(), false).await;
        }
    }
}

async fn meet(dialer: &Dialer, id: SelfId, addr: &str) -> Result<Connection, String> {
    let target = Target {
        addr: addr.to_owned(),
        node: None,
    };
    let connection = connect(dialer, &target, Purpose::Meet).await;
    let connection = connection.map_err(|e| e.to_string())?;
    if connection.peer.self_id == id {
        Ok(connection)
    } else {
        Err(format!("{addr}: {} answers", connection.peer.self_id))
    }
}

/// Proposes the group to all peers and initialises it when all have agreed.
async fn form(
    shared: &Shared,
    mut connections: BTreeMap<SelfId, Connection>,
    members: BTreeMap<NodeId, BrokerNode>,
) -> Result<(), String> {
    let group = draw_group();
    shared.agree_to(group).await.map_err(|e| e.reason)?;
    let form = Form {
        group,
        members: members.clone(),
    };
    let founders: Vec<SelfId> = members.keys().map(|node| SelfId::of(*node)).collect();
    let founding = connections.iter_mut();
    let founding = founding.filter(|(id, _)| founders.contains(id));
    let answers = founding.map(|(id, connection)| {
        let form = &form;
        async move {
            let agreed = connection.ask::<()>(Kind::Form, form, FORM_LIMIT).await;
            agreed.map_err(|e| format!("{id}: {e}"))
        }
    });
    for answer in join_all(answers).await {
        answer?;
    }
    let initialized = shared.raft.initialize(members.clone()).await;
    initialized.map_err(|e| e.to_string())?;
    shared.hold_if_initialized().await;
    let nodes: Vec<String> = members
        .iter()
        .map(|(node, addrs)| format!("{} (node {node}, {addrs})", SelfId::of(*node)))
        .collect();
    tracing::info!(
        group = shared.local.group_name,
        "formed group {group} of {}",
        nodes.join(", ")
    );
    Ok(())
}

/// Asks the leader, through the nodes at `addrs`, to make this node a voter, and returns whether it
/// is one. A `voter` that finds no leader has nothing to say about it.
async fn ask_to_join(shared: &Shared, dialer: &Dialer, addrs: Vec<String>, voter: bool) -> bool {
    let mut answers = Vec::new();
    for addr in addrs {
        if shared.local.addrs.raft_addr == addr {
            continue;
        }
        match ask_via(shared, dialer, addr).await {
            Ok(JoinAnswer::Voter) => return true,
            Ok(JoinAnswer::UnderWay(step)) => {
                if !voter {
                    shared.say_on("joining", &format!("joining the group: {step}"));
                }
                return false;
            }
            Ok(JoinAnswer::Leader(addr)) => answers.push(format!("{addr} leads no more")),
            Err(CallError::Refused(refusal)) if refusal.kind == RefusalKind::Refused => {
                shared.complain(&format!("not taken into the group: {refusal}"));
            }
            Err(e) => answers.push(e.to_string()),
        }
    }
    if !voter && !answers.is_empty() {
        shared.say(&format!("not joined yet: {}", answers.join("; ")));
    }
    false
}

/// Asks the node at `addr`, or the leader that it names.
async fn ask_via(shared: &Shared, dialer: &Dialer, addr: String) -> Result<JoinAnswer, CallError> {
    let join = Join {
        as_new_member: shared.join_only,
    };
    let mut target = Target { addr, node: None };
    let mut redirects = 0;
    loop {
        let mut connection = connect(dialer, &target, Purpose::Meet).await?;
        match connection.ask(Kind::Join, &join, JOIN_LIMIT).await? {
            JoinAnswer::Leader(addr) if redirects < MAX_REDIRECTS => {
                target.addr = addr;
                redirects += 1;
            }
            answer => return Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const PEERS: &str = "n0-a:1;n1-b:2;n2-c:3";

    fn info(id: u16) -> NodeInfo {
        NodeInfo {
            group_name: "broker-a".into(),
            group: None,
            holds_group: false,
            self_id: SelfId(id),
            node: u64::from(id) << 48 | 5,
            genesis: String::new(),
            peers: PEERS.parse().unwrap(),
            addrs: BrokerNode::default(),
        }
    }

    fn met(peers: impl IntoIterator<Item = NodeInfo>) -> Met {
        peers
            .into_iter()
            .map(|peer| (peer.self_id, Ok(peer)))
            .collect()
    }

    fn holder(id: u16, group: u8) -> NodeInfo {
        NodeInfo {
            group: Some(GroupId([group; 16])),
            holds_group: true,
            ..info(id)
        }
    }

    #[test]
    fn the_lowest_of_all_forms_and_the_others_wait() {
        let Next::Form(members) = decide(&info(0), false, &met([info(1), info(2)])) else {
            panic!("all are there");
        };
        let ids: Vec<_> = members.keys().map(|node| SelfId::of(*node)).collect();
        assert_eq!(ids, [SelfId(0), SelfId(1), SelfId(2)]);
        assert_eq!(
            decide(&info(1), false, &met([info(0), info(2)])),
            Next::Wait("all nodes have been met; n0 forms the group".into())
        );
    }

    #[test]
    fn who_is_missing_is_named() {
        let mut met = met([info(1)]);
        met.insert(SelfId(2), Err("c:3: connection refused".into()));
        assert_eq!(
            decide(&info(0), false, &met),
            Next::Wait(
                "the group is formed when all its nodes have been met; missing: n2 (c:3: \
                 connection refused)"
                    .into()
            )
        );
    }

    #[test]
    fn differences_are_named_even_while_a_node_is_missing() {
        let mut other = info(1);
        other.peers = "n0-a:1;n1-b:2".parse().unwrap();
        assert_eq!(
            decide(&info(0), false, &met([other])),
            Next::Refuse(
                "dLegerPeers differ: n0 has \"n0-a:1;n1-b:2;n2-c:3\", n1 has \"n0-a:1;n1-b:2\""
                    .into()
            )
        );
        let [mut own, mut other] = [info(0), info(1)];
        own.genesis = "bytes 0 to 100, log 5eed, metadata 1".into();
        other.genesis = "bytes 0 to 100, log 0ther, metadata 2".into();
        assert_eq!(
            decide(&own, false, &met([other, info(2)])),
            Next::Refuse(
                "the adopted histories differ: n0 has log 5eed, n1 has log 0ther; choose the node \
                 that has all and give the others a copy of its directory, or empty ones"
                    .into()
            )
        );
    }

    #[test]
    fn those_with_a_history_form_the_group_when_all_have_been_met() {
        let [mut one, mut two] = [info(1), info(2)];
        (one.genesis, two.genesis) = ("5eed".into(), "5eed".into());
        let Next::Wait(reason) = decide(&info(0), false, &met([one.clone(), two.clone()])) else {
            panic!("n0 has nothing to begin with");
        };
        assert!(reason.contains("n1 has taken over a history"), "{reason}");
        let Next::Form(members) = decide(&one, false, &met([info(0), two.clone()])) else {
            panic!("n1 is the lowest with a history");
        };
        let ids: Vec<_> = members.keys().map(|node| SelfId::of(*node)).collect();
        assert_eq!(ids, [SelfId(1), SelfId(2)]);
        assert!(matches!(
            decide(&two, false, &met([info(0), one.clone()])),
            Next::Wait(_)
        ));
        assert!(
            matches!(decide(&one, false, &met([two])), Next::Wait(_)),
            "n0 is missing"
        );
    }

    #[test]
    fn a_group_that_exists_is_joined_unless_there_are_two() {
        assert_eq!(
            decide(&info(0), false, &met([info(1), holder(2, 7)])),
            Next::Join(GroupId([7; 16]))
        );
        let Next::Refuse(reason) = decide(&info(0), false, &met([holder(1, 8), holder(2, 7)]))
        else {
            panic!("which one?");
        };
        assert!(reason.contains(&GroupId([8; 16]).to_string()), "{reason}");
        assert!(reason.contains(&GroupId([7; 16]).to_string()), "{reason}");
    }

    #[test]
    fn a_node_that_only_joins_never_forms() {
        assert!(matches!(
            decide(&info(0), true, &met([info(1), info(2)])),
            Next::Wait(_)
        ));
    }

    fn peer(id: u16) -> impl Strategy<Value = Option<Result<NodeInfo, String>>> {
        let parts = (0..8u8, any::<Option<u8>>(), any::<bool>());
        parts.prop_map(move |(kind, group, holds_group)| {
            let peer = NodeInfo {
                group: group.map(|group| GroupId([group; 16])),
                holds_group: holds_group && kind == 0,
                ..info(id)
            };
            match kind {
                1 => None,
                2 => Some(Err("away".to_owned())),
                3 => Some(Ok(NodeInfo {
                    genesis: "5eed".into(),
                    ..peer
                })),
                4 => Some(Ok(NodeInfo {
                    peers: "n0-a:1".parse().unwrap(),
                    ..peer
                })),
                _ => Some(Ok(peer)),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Safety: whoever forms has met everybody, all pristine and of one mind.
        #[test]
        fn nobody_forms_a_group_without_the_consent_of_all(
            one in peer(1), two in peer(2), join_only in any::<bool>(),
        ) {
            let peers = [(SelfId(1), one), (SelfId(2), two)];
            let met: Met = peers.into_iter().filter_map(|(id, peer)| Some((id, peer?))).collect();
            if let Next::Form(members) = decide(&info(0), join_only, &met) {
                prop_assert!(!join_only);
                prop_assert_eq!(members.len(), 3);
                for id in [1, 2] {
                    let peer = met[&SelfId(id)].as_ref().unwrap();
                    prop_assert!(!peer.holds_group);
                    prop_assert_eq!(&peer.peers, &info(0).peers);
                    prop_assert_eq!(&peer.genesis, "");
                    prop_assert!(members.contains_key(&peer.node));
                }
            }
        }
    }
}
