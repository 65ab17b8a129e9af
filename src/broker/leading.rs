//! What a node does because of its role, besides answering requests.

use std::sync::Arc;
use std::time::Duration;

use super::Broker;
use super::refusal::Refusal;
use super::{preferred, schedule, transaction};
use crate::meta::{self, Change};

/// Pause before a leader tries again what every group must have.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Follows the role until the group is gone.
pub(super) async fn run(broker: &Arc<Broker>) {
    let mut roles = broker.replica.role();
    loop {
        let term = {
            let role = roles.borrow_and_update();
            role.serving.then_some(role.term)
        };
        // A pull that waits here asks the wrong node now, or can be answered at last.
        broker.holds.wake_all();
        let changed = match term {
            Some(term) => tokio::select! {
                changed = roles.wait_for(|role| !(role.serving && role.term == term)) => {
                    changed.is_ok()
                }
                () = lead(broker, term) => false,
            },
            None => roles.changed().await.is_ok(),
        };
        if !changed {
            return;
        }
    }
}

async fn lead(broker: &Arc<Broker>, term: u64) {
    broker.leases.begin(broker, term);
    while let Err(refusal) = create_system_entries(broker).await {
        tracing::warn!(?refusal, "system topics and groups could not be created");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    tokio::join!(
        schedule::run(broker, term),
        transaction::run(broker),
        preferred::run(broker)
    );
}

/// Creates the topics and groups that every broker has, as far as they are missing.
async fn create_system_entries(broker: &Arc<Broker>) -> Result<(), Refusal> {
    let (topics, groups) = {
        let state = broker.meta.read();
        let mut topics = meta::system_topics(&broker.system_names());
        topics.retain(|(name, _)| !state.topics.contains_key(name));
        let mut groups = meta::system_groups();
        groups.retain(|(name, _)| !state.groups.contains_key(name));
        (topics, groups)
    };
    if !topics.is_empty() {
        broker.propose(Change::CreateTopics(topics)).await?;
    }
    if !groups.is_empty() {
        broker.propose(Change::CreateGroups(groups)).await?;
    }
    Ok(())
}
