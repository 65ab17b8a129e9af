//! `preferredLeaderId`: leadership moves to a preferred node when that costs the clients least, which
//! is when the node is caught up and has space, and both for a while.

use std::sync::Arc;
use std::time::Duration;

use super::Broker;
use super::replica::Replica;
use crate::raft::SelfId;

/// Between two looks of a leader at its group.
const LOOK: Duration = Duration::from_secs(1);
/// The preferred node has to be fit to lead at so many looks in a row.
const CALM_LOOKS: u32 = 5;
/// After a transfer that failed, the group is left alone for this long.
const FAILURE_PAUSE: Duration = Duration::from_secs(60);

/// Looks after the preference for as long as this node leads.
pub(super) async fn run(broker: &Arc<Broker>) {
    let preferred = broker.config.preferred_leaders();
    // The configuration was checked when it was loaded.
    let preferred: Vec<SelfId> = preferred.filter_map(|id| id.parse().ok()).collect();
    if preferred.is_empty() {
        return std::future::pending().await;
    }
    let mut chosen = None;
    let mut looks = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let best = better_leader(&*broker.replica, &preferred).await;
        looks = if best == chosen { looks + 1 } else { 1 };
        chosen = best;
        let Some(better) = chosen.filter(|_| looks >= CALM_LOOKS) else {
            continue;
        };
        tracing::info!(to = %better, "hands leadership to the preferred node");
        if let Err(error) = broker.hand_over(Some(better)).await {
            tracing::warn!(%error, "the preferred node does not lead");
            tokio::time::sleep(FAILURE_PAUSE).await;
        }
        looks = 0;
    }
}

/// The first node of `preferred` that could lead, unless this node, which leads, comes before it. A
/// node without space would hand leadership back at once.
async fn better_leader(replica: &dyn Replica, preferred: &[SelfId]) -> Option<SelfId> {
    let status = replica.status();
    let own = SelfId::of(status.node);
    for id in preferred.iter().take_while(|id| **id != own) {
        if let Ok(node) = status.successor(Some(*id))
            && replica.is_full(node).await == Some(false)
        {
            return Some(*id);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    use crate::broker::testing::Node;
    use crate::config::BrokerConfig;
    use crate::raft::MemberStatus;

    fn voter(id: u64, lag: u64) -> MemberStatus {
        MemberStatus {
            node: id << 48 | 1,
            raft_addr: String::new(),
            broker_addr: String::new(),
            voter: true,
            match_index: Some(100),
            lag: Some(lag),
            acked_ms: Some(10),
        }
    }

    async fn node(preferred: &str) -> Node {
        Node::with(BrokerConfig {
            preferred_leader_id: preferred.to_owned(),
            ..BrokerConfig::default()
        })
        .await
    }

    #[tokio::test]
    async fn the_first_that_is_fit_is_better_than_whoever_comes_later() {
        let node = node("").await;
        *node.replica.members.lock().unwrap() = vec![voter(1, 0), voter(2, 0), voter(3, 1000)];
        let ids = |ids: &[u16]| ids.iter().map(|id| SelfId(*id)).collect::<Vec<_>>();
        for (preferred, better) in [
            (&[][..], None),
            (&[2][..], Some(SelfId(2))),
            (&[3, 1, 2][..], Some(SelfId(1))),
            (&[3][..], None),
            (&[7][..], None),
            // The test's node, which leads.
            (&[u16::MAX, 1][..], None),
            (&[1, u16::MAX][..], Some(SelfId(1))),
        ] {
            assert_eq!(
                better_leader(&*node.replica, &ids(preferred)).await,
                better,
                "{preferred:?}"
            );
        }
        // One that is full is passed over, and so is one that does not say.
        for fullness in [Some(true), None] {
            *node.replica.fullness.lock().unwrap() = HashMap::from([(voter(1, 0).node, fullness)]);
            for (preferred, better) in [(&[1, 2][..], Some(SelfId(2))), (&[1][..], None)] {
                assert_eq!(
                    better_leader(&*node.replica, &ids(preferred)).await,
                    better,
                    "{preferred:?} {fullness:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn leadership_moves_once_the_preferred_node_has_been_fit_for_a_while() {
        let node = node("n1").await;
        tokio::time::pause();
        *node.replica.members.lock().unwrap() = vec![voter(1, 1000)];
        tokio::time::sleep(LOOK * 60).await;
        assert!(node.broker.is_serving(), "n1 is behind");
        *node.replica.members.lock().unwrap() = vec![voter(1, 0)];
        tokio::time::sleep(LOOK * (CALM_LOOKS - 1)).await;
        assert!(node.broker.is_serving(), "not at the first sight");
        let mut roles = node.replica.role();
        roles.wait_for(|role| !role.serving).await.unwrap();
    }
}
