//! A leader whose disk stalls goes on sending heartbeats, so nobody else is elected, and makes all
//! clients wait. This task notices, and hands leadership over.
//!
//! Nor does a leader notice by itself that its disk has failed while nobody appends, if syncs are not
//! waited for. This task ends it.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use rmq_store::LogReader;
use tokio::time::Instant;

use super::Raft;
use super::leadership::Leadership;
use super::types::LogId;

/// A sync that takes longer is a stall. It is longer than a busy disk needs and shorter than the
/// usual timeout of a client.
const STALL: Duration = Duration::from_secs(2);
/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long the log has been waiting to be synced.
#[derive(Default)]
struct Stall {
    /// What was synced when the waiting was first seen, and when that was.
    since: Option<(Option<LogId>, Instant)>,
}

impl Stall {
    /// Takes a look; how long nothing was synced although something is to be.
    fn look(&mut self, last: Option<LogId>, synced: Option<LogId>, now: Instant) -> Duration {
        match self.since {
            _ if last <= synced => self.since = None,
            Some((before, since)) if before == synced => return now - since,
            _ => self.since = Some((synced, now)),
        }
        Duration::ZERO
    }
}

/// Watches until it is dropped.
pub(super) async fn watch(raft: &Raft, leadership: &Leadership, log: &LogReader) {
    let progress = raft.watch_log_progress();
    let data = raft.data_metrics();
    let mut stall = Stall::default();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if let Err(error) = log.check_writable() {
            leadership.fail(&error.to_string());
            let raft = raft.clone();
            // On its own: this task may end before, and openraft cannot bear a shutdown half done.
            tokio::spawn(async move { raft.shutdown().await.ok() });
            return std::future::pending().await;
        }
        if leadership.leading().is_none() {
            stall = Stall::default();
            continue;
        }
        let last = data.borrow_watched().last_log;
        let synced = progress.get().and_then(|synced| synced.last_log_id);
        let stalled = stall.look(last, synced, Instant::now());
        if stalled < STALL {
            continue;
        }
        let node = leadership.self_id();
        tracing::error!(node, ?stalled, "the disk of the commit log does not sync");
        stall = Stall::default();
        if let Err(error) = leadership.transfer(None).await {
            tracing::error!(node, %error, "no other node can lead instead");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::LeaderId;

    #[test]
    fn only_waiting_without_progress_is_a_stall() {
        let id = |index| {
            Some(LogId {
                leader_id: LeaderId {
                    term: 1,
                    node_id: 1,
                },
                index,
            })
        };
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut stall = Stall::default();
        assert_eq!(stall.look(id(5), id(5), at(0)), Duration::ZERO);
        assert_eq!(stall.look(id(6), id(5), at(10)), Duration::ZERO);
        assert_eq!(stall.look(id(9), id(5), at(13)), Duration::from_secs(3));
        assert_eq!(stall.look(id(9), id(7), at(14)), Duration::ZERO);
        assert_eq!(stall.look(id(9), id(7), at(15)), Duration::from_secs(1));
        assert_eq!(stall.look(id(9), id(9), at(16)), Duration::ZERO);
        assert_eq!(stall.look(id(10), id(9), at(17)), Duration::ZERO);
    }
}
