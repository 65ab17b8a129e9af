//! What a node tells of its group: who leads, its own role, and the members as their leader sees them.

use serde::{Deserialize, Serialize};

use super::TransferError;
use super::peer::{ALIVE_WITHIN, CAUGHT_UP, SelfId};
use super::types::NodeId;

/// Entries that a node may be behind to which leadership goes when no certain one is wanted: it has them before
/// anybody waits for it.
const HAND_OVER_LAG: u64 = 1024;

/// The leader, as far as a node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderInfo {
    /// Its id.
    pub node: NodeId,
    /// Where it listens for its peers, `host:port`.
    pub raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub broker_addr: String,
}

/// The part that this node plays in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleState {
    /// The current term; it never decreases.
    pub term: u64,
    /// The leader of the term, once one is known.
    pub leader: Option<LeaderInfo>,
    /// Whether this node leads, holds its lease, and has applied all that was committed before its
    /// term: only then may it answer for the group.
    pub serving: bool,
    /// This node's own id.
    pub self_id: NodeId,
}

impl RoleState {
    /// Whether this node is the leader, serving or not.
    pub fn leads(&self) -> bool {
        self.leader
            .as_ref()
            .is_some_and(|leader| leader.node == self.self_id)
    }
}

/// What a node is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Votes and has no other part.
    Follower,
    /// Stands for election.
    Candidate,
    /// Is sent the log and does not vote, or has not met its group yet.
    Learner,
}

/// The group as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// The node that was asked.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<LeaderInfo>,
    /// As [`RoleState::serving`].
    pub serving: bool,
    /// Index of the last entry of its log.
    pub last_index: Option<u64>,
    /// Index up to which it knows entries to be committed.
    pub commit_index: Option<u64>,
    /// Index up to which it has applied them.
    pub applied_index: Option<u64>,
    /// All members, by id.
    pub members: Vec<MemberStatus>,
    /// Whether the node lost power under ASYNC_FLUSH and does not yet have again what it may have
    /// lost, so that it does not vote.
    #[serde(default)]
    pub quarantined: bool,
    /// Nodes that ask to become members and wait for an operator; known to the leader only.
    #[serde(default)]
    pub asking: Vec<AskingNode>,
    /// Parts of this node's log that are not what was written: they are not served before another
    /// node has mended them.
    #[serde(default)]
    pub damaged: Vec<String>,
}

impl GroupStatus {
    /// Who is to lead after the leader that sees its group so: `wanted` if it is fit to, or the
    /// living voter with the most of the log.
    pub fn successor(&self, wanted: Option<SelfId>) -> Result<NodeId, TransferError> {
        let others = || {
            let members = self.members.iter();
            members.filter(|member| member.voter && member.node != self.node)
        };
        let alive = |member: &MemberStatus| {
            let within = ALIVE_WITHIN.as_millis();
            member.acked_ms.is_some_and(|ms| u128::from(ms) <= within)
        };
        let Some(wanted) = wanted else {
            let near = |member: &MemberStatus| member.lag.is_none_or(|lag| lag <= HAND_OVER_LAG);
            let best = others().filter(|member| alive(member) && near(member));
            let best = best.max_by_key(|member| member.match_index);
            return best.map(|member| member.node).ok_or(TransferError::Alone);
        };
        let voter = others().find(|member| SelfId::of(member.node) == wanted);
        let voter = voter.ok_or(TransferError::NoVoter(wanted))?;
        if !alive(voter) {
            return Err(TransferError::Silent(wanted));
        }
        match voter.lag {
            Some(lag) if lag > CAUGHT_UP => Err(TransferError::Behind {
                target: wanted,
                lag,
                max: CAUGHT_UP,
            }),
            _ => Ok(voter.node),
        }
    }
}

/// A node that asks to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskingNode {
    /// Its id.
    pub node: NodeId,
    /// Where it listens for its peers, `host:port`.
    pub raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub broker_addr: String,
}

/// One member; the last three are known to the leader only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its id.
    pub node: NodeId,
    /// Where it listens for its peers, `host:port`.
    pub raft_addr: String,
    /// Where it listens for clients, `host:port`.
    pub broker_addr: String,
    /// Whether it votes; a learner does not.
    pub voter: bool,
    /// Index up to which its log is known to equal the leader's.
    pub match_index: Option<u64>,
    /// How many entries it is behind.
    pub lag: Option<u64>,
    /// How many milliseconds ago the last request was sent that it has answered.
    pub acked_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u16, voter: bool, lag: u64, acked_ms: Option<u64>) -> MemberStatus {
        MemberStatus {
            node: u64::from(id) << 48 | 1,
            raft_addr: String::new(),
            broker_addr: String::new(),
            voter,
            match_index: Some(1000 - lag),
            lag: Some(lag),
            acked_ms,
        }
    }

    /// As n0 sees it, which leads.
    fn status(members: Vec<MemberStatus>) -> GroupStatus {
        GroupStatus {
            node: 1,
            role: Role::Leader,
            term: 3,
            leader: None,
            serving: true,
            last_index: Some(1000),
            commit_index: Some(1000),
            applied_index: Some(1000),
            members,
            quarantined: false,
            asking: Vec::new(),
            damaged: Vec::new(),
        }
    }

    #[test]
    fn a_successor_votes_lives_and_is_caught_up() {
        let group = status(vec![
            member(0, true, 0, None),
            member(1, true, 5, Some(40)),
            member(2, true, 2, Some(40)),
            member(3, true, 0, Some(5000)),
            member(4, false, 0, Some(40)),
            member(5, true, CAUGHT_UP + 1, Some(40)),
            member(6, true, 0, None),
        ]);
        let choose = |id: u16| group.successor(Some(SelfId(id)));
        let named = |id: u16| u64::from(id) << 48 | 1;
        assert_eq!(group.successor(None), Ok(named(2)));
        assert_eq!(choose(1), Ok(named(1)));
        for silent in [3, 6] {
            assert_eq!(choose(silent), Err(TransferError::Silent(SelfId(silent))));
        }
        for no_voter in [0, 4, 7] {
            let refused = Err(TransferError::NoVoter(SelfId(no_voter)));
            assert_eq!(choose(no_voter), refused);
        }
        let behind = TransferError::Behind {
            target: SelfId(5),
            lag: 65,
            max: 64,
        };
        assert_eq!(choose(5), Err(behind));
        let alone = status(vec![member(0, true, 0, None), member(1, true, 0, None)]);
        assert_eq!(alone.successor(None), Err(TransferError::Alone));
    }
}
