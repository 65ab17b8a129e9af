//! Which nodes do not hold all that they have acknowledged, so that no more goes wrong at a time than the
//! group is to survive.

use std::sync::atomic::Ordering;

use rmq::raft::{NodeId, SelfId};
use rmq_store::FlushMode;

use super::{End, Node, Nodes, Running};

/// What keeps a node from holding all that it has acknowledged, after its store was lost or, with
/// ASYNC_FLUSH, its power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// It has not heard a leader since.
    Unheard,
    /// It has not applied this much, or has no vote.
    Behind(Option<u64>),
    /// That it has a vote, and the node that it was has none, is not committed before this much is.
    Unsettled(Option<u64>),
}

impl Node {
    fn is_lacking(&self) -> bool {
        self.lacks.is_some() || !self.rot.is_empty()
    }
}

impl Running {
    /// Who votes, as this node knows it.
    fn voters(&self) -> Vec<NodeId> {
        let members = self.group.status().members.into_iter();
        let voters = members.filter(|member| member.voter);
        voters.map(|member| member.node).collect()
    }
}

impl Nodes {
    /// Whether the power of one more machine may go without taking a majority's memory with it.
    pub(crate) fn may_cut(&self, wanted: usize) -> bool {
        if self.plan.flush == FlushMode::Sync {
            return true;
        }
        let voters = self.least_voters();
        // A cut that is still to come counts too.
        let is_lost = |node: &&Node| node.is_lacking() || node.crash == Some(End::PowerCut);
        let lacking = self.nodes().iter().filter(is_lost).count();
        lacking + wanted <= voters.saturating_sub(1) / 2
    }

    /// Whether the store of a node may go without taking what only a majority has.
    pub(crate) fn may_wipe(&self) -> bool {
        !self.any_lacks() && self.least_voters() >= 3
    }

    /// The voters of the smallest group that this may be. A node that is down counts too: it may be the
    /// only one that has heard of the last change.
    pub(crate) fn least_voters(&self) -> usize {
        let nodes = self.nodes();
        let views = nodes.iter().map(|node| node.view.len());
        views.filter(|voters| *voters > 0).min().unwrap_or(0)
    }

    /// The voters, as each running node knows them.
    pub(crate) fn views(&self) -> Vec<Vec<NodeId>> {
        let views = self.all_running().into_iter();
        let views = views.map(|(_, running)| running.voters());
        views.filter(|voters| !voters.is_empty()).collect()
    }

    /// Whether a node may lack what it acknowledged.
    pub(crate) fn any_lacks(&self) -> bool {
        self.nodes().iter().any(Node::is_lacking)
    }

    /// Whether a disk has changed something that is not mended yet.
    pub(crate) fn any_rot(&self) -> bool {
        self.nodes().iter().any(|node| !node.rot.is_empty())
    }

    /// Follows those that lost something until they have all again.
    pub(crate) fn follow_recovery(&self) {
        for node in self.nodes().iter_mut() {
            let before = node.rot.len();
            node.rot.retain(|rot| !rot.is_mended(&node.disk));
            let mended = (before - node.rot.len()) as u64;
            self.mended.fetch_add(mended, Ordering::Relaxed);
        }
        let all = self.all_running();
        let most = all
            .iter()
            .map(|(_, node)| node.group.status().last_index)
            .max()
            .flatten();
        for (place, running) in &all {
            let voters = running.voters();
            if !voters.is_empty() {
                self.nodes()[*place].view = voters;
            }
        }
        let mut nodes = self.nodes();
        let voters: Vec<NodeId> = nodes.iter().flat_map(|node| node.view.clone()).collect();
        if !voters.is_empty() {
            for (node, place) in nodes.iter_mut().zip(0..) {
                node.voter = voters
                    .iter()
                    .any(|voter| SelfId::of(*voter) == SelfId(place));
            }
        }
        drop(nodes);
        for (place, running) in &all {
            let status = running.group.status();
            let voters = status.members.iter().filter(|member| member.voter);
            let own: Vec<NodeId> = voters
                .map(|member| member.node)
                .filter(|node| SelfId::of(*node) == SelfId::of(status.node))
                .collect();
            let votes = own == [status.node];
            let node = &mut self.nodes()[*place];
            let applied = status.applied_index;
            node.lacks = match node.lacks {
                // What the leader has when it hears of the node again, or later.
                Some(Lack::Unheard) if status.leader.is_some() => Some(Lack::Behind(most)),
                Some(Lack::Behind(target)) if applied >= target && votes => {
                    Some(Lack::Unsettled(most))
                }
                Some(Lack::Unsettled(target)) if !votes => Some(Lack::Behind(target)),
                Some(Lack::Unsettled(target)) if applied >= target => None,
                lacks => lacks,
            };
        }
    }
}
