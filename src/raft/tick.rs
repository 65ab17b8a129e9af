//! What Raft does by the clock. openraft's tick looks five times in each heartbeat interval whether a heartbeat or an
//! election is due, which would be most of what an idle node does. So it rests while that is known here.

use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, sleep_until};

use super::Raft;
use super::gate::VoteGate;

/// Sends a leader's heartbeats, and has the tick rest on a leader and on who knows one that it has just heard, until openraft
/// stops. Nobody stands for election later by that: between the last word of a leader and an election that the tick begins is
/// its lease and then a random time. Where the lease is ended before its time, whoever is to lead stands at once.
pub(super) async fn pace(raft: Raft, gate: VoteGate) {
    let config = raft.config();
    let interval = Duration::from_millis(config.heartbeat_interval);
    let quiet = Duration::from_millis(config.election_timeout_max);
    let mut server = raft.server_metrics();
    let mut heartbeat = Instant::now();
    loop {
        let (state, leader) = {
            let server = server.borrow_watched();
            (server.state, server.current_leader)
        };
        let now = Instant::now();
        let rests_until = match state {
            ServerState::Leader => {
                if heartbeat <= now {
                    if raft.trigger().heartbeat().await.is_err() {
                        return;
                    }
                    heartbeat = now + interval;
                }
                Some(heartbeat)
            }
            ServerState::Follower | ServerState::Learner => {
                leader.and_then(|_| gate.heard()).map(|at| at + quiet)
            }
            _ => None,
        };
        let rests_until = rests_until.filter(|end| *end > now);
        raft.runtime_config().tick(rests_until.is_none());
        let look = rests_until.unwrap_or(now + quiet);
        tokio::select! {
            changed = server.changed() => if changed.is_err() { return },
            // A timer that is moved in time wakes nobody.
            () = gate.next_word() => {}
            () = sleep_until(look) => {}
        }
    }
}
