//! What leaves the log, and when: the rules of `CleanCommitLogService` (4.9.7), each replica for
//! itself.
//!
//! A round looks at the disk and the clock, has the store choose segments, and then goes step by
//! step: openraft takes a snapshot, which makes the applied state durable, for the entries that led to
//! it are about to go, and purges the entries; then the files are removed. A round that ends early, for
//! a crash or because openraft has other things to do, leaves nothing but files that the next one
//! removes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use rmq_store::{Cut, LogIndex, Retention, RetentionLimits, Space};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::leadership::Leadership;
use super::node::{self, Node};
use super::peer::{Network, SelfId};
use super::{MemberStatus, Raft};

/// How long openraft may take for a snapshot or a purge before the round ends without it. A purge
/// waits for the replication of entries that it concerns.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// How often it looks how full the disk is, at least.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a member may take to say whether it is full.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// A member that is at most this many entries behind can take over.
const CAUGHT_UP: u64 = 64;
/// A member that has answered within this time is alive.
const ALIVE_WITHIN_MS: u64 = 5_000;
/// Rounds that a tool's request is good for (`MAX_MANUAL_DELETE_FILE_TIMES`).
const MANUAL_ROUNDS: u32 = 20;
const HOUR_MS: i64 = 3_600_000;

/// When segments are too old, and when the disk is too full.
#[derive(Clone, Debug)]
pub struct RetentionRules {
    /// `deleteWhen`: hours of the day, from 0 to 23.
    pub delete_when: Vec<u8>,
    /// `fileReservedTime`, in hours.
    pub reserved_hours: u32,
    /// `diskMaxUsedSpaceRatio`, in percent.
    pub max_used: u8,
    /// `diskSpaceCleanForciblyRatio`, in percent; `None` if `cleanFileForciblyEnable` is false.
    pub forcibly: Option<u8>,
    /// `diskSpaceWarningLevelRatio`, in percent: above it, messages are refused.
    pub warning: u8,
    /// `diskSpaceCleanForciblyRatio`, in percent, whatever `forcibly` says: down to it, they go on to be.
    pub clean: u8,
    /// `cleanResourceInterval`.
    pub interval: Duration,
    /// `deleteFileBatchMax`: segments in one round.
    pub batch: usize,
    /// `deleteCommitLogFilesInterval`: between two removals.
    pub pause: Duration,
    /// Bytes of what stays that are looked through for damage in a second; 0 for none.
    pub scrub_bytes_per_second: u64,
    /// The hour of the day, 0 to 23, of a time in milliseconds.
    pub hour: fn(i64) -> u8,
}

impl Default for RetentionRules {
    /// RocketMQ's, with hours by UTC.
    fn default() -> Self {
        Self {
            delete_when: vec![4],
            reserved_hours: 72,
            max_used: 75,
            forcibly: Some(85),
            warning: 90,
            clean: 85,
            interval: Duration::from_secs(10),
            batch: 10,
            pause: Duration::from_millis(100),
            scrub_bytes_per_second: 4 << 20,
            hour: |ms| u8::try_from(ms / HOUR_MS % 24).unwrap_or(0),
        }
    }
}

/// Why a round removes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// It is an hour of `deleteWhen`.
    Hour,
    /// A tool has asked for it.
    Asked,
    /// More than `diskMaxUsedSpaceRatio` is used.
    Space,
    /// More than `diskSpaceCleanForciblyRatio` is used.
    Forced,
}

impl RetentionRules {
    fn judge(&self, now_ms: i64, space: Space, asked: bool) -> Option<Reason> {
        let used = space.used_percent();
        if self.forcibly.is_some_and(|most| used > most) {
            Some(Reason::Forced)
        } else if used > self.max_used {
            Some(Reason::Space)
        } else if self.delete_when.contains(&(self.hour)(now_ms)) {
            Some(Reason::Hour)
        } else {
            asked.then_some(Reason::Asked)
        }
    }

    /// `still_needed` is the first entry that a living member still needs.
    fn limits(
        &self,
        reason: Reason,
        now_ms: i64,
        still_needed: Option<LogIndex>,
    ) -> RetentionLimits {
        let reserved_ms = i64::from(self.reserved_hours) * HOUR_MS;
        RetentionLimits {
            stored_before: (reason != Reason::Forced).then_some(now_ms.saturating_sub(reserved_ms)),
            segments: self.batch,
            // A member that lags gets a snapshot if it has to, which costs more than the space here.
            keep_from: still_needed.filter(|_| matches!(reason, Reason::Hour | Reason::Asked)),
        }
    }
}

/// The task, which ends when this is stopped or dropped.
pub(super) struct Retaining {
    store: Arc<Retention>,
    asked: Arc<AtomicU32>,
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Retaining {
    pub(super) fn start(
        node: &Node,
        network: Network,
        store: Retention,
        rules: RetentionRules,
    ) -> Self {
        let store = Arc::new(store);
        let asked = Arc::new(AtomicU32::new(0));
        let (stop, mut stopping) = watch::channel(false);
        let rounds = Rounds {
            raft: node.raft.clone(),
            leadership: Arc::clone(&node.leadership),
            space: Arc::clone(&node.space),
            network,
            store: Arc::clone(&store),
            asked: Arc::clone(&asked),
            rules,
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            tokio::select! {
                () = rounds.run() => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        });
        Self {
            store,
            asked,
            stop,
            task,
        }
    }

    /// `DELETE_EXPIRED_COMMITLOG`: removes what is too old in the next rounds, whatever the hour.
    pub(super) fn ask(&self) {
        self.asked.store(MANUAL_ROUNDS, Ordering::Relaxed);
    }

    /// Ends the task. No file is removed after this.
    pub(super) async fn stop(self) {
        let Self {
            store,
            stop,
            mut task,
            ..
        } = self;
        store.stop();
        stop.send_replace(true);
        task.join_next().await;
        // A removal on another thread ends with the file that it is at, and then lets go of the store.
        while Arc::strong_count(&store) > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Rounds {
    raft: Raft,
    leadership: Arc<Leadership>,
    space: Arc<super::space::Space>,
    network: Network,
    store: Arc<Retention>,
    asked: Arc<AtomicU32>,
    rules: RetentionRules,
}

impl Rounds {
    async fn run(self) {
        let look = async {
            loop {
                sleep(self.rules.interval.min(LOOK_INTERVAL)).await;
                self.look().await;
            }
        };
        // A round may take long, and messages are not to be refused for that.
        tokio::join!(look, self.rounds());
    }

    async fn rounds(&self) {
        let mut failing = false;
        loop {
            sleep(self.rules.interval).await;
            match self.round().await {
                Ok(()) => failing = false,
                // Once, for the reason of a failure stays for many rounds.
                Err(_) if failing => {}
                Err(error) => {
                    failing = true;
                    tracing::warn!("old segments of the log are not removed: {error}");
                }
            }
        }
    }

    /// Notes how full the disk is, and as leader those of the others: a leader without space hands over
    /// to a member that has some, if there is one, and refuses messages if a majority has none.
    async fn look(&self) {
        let used = self.blocking(|store| store.space().map_err(|e| e.to_string()));
        if let Ok(used) = used.await {
            let RetentionRules { warning, clean, .. } = self.rules;
            self.space.note(used, warning, clean);
        }
        if self.leadership.leading().is_none() {
            return self.space.note_group(false);
        }
        let own = self.leadership.self_id();
        let members = self.leadership.status().members;
        let voters: Vec<MemberStatus> = members.into_iter().filter(|m| m.voter).collect();
        let asked = voters
            .iter()
            .filter(|voter| voter.node != own)
            .map(|voter| async move {
                let full = self
                    .network
                    .is_full(voter.node, &voter.raft_addr, ASK_LIMIT);
                (voter, full.await)
            });
        let told: Vec<(&MemberStatus, Option<bool>)> = join_all(asked).await;
        let is_full = self.space.is_full();
        let others = told.iter().filter(|(_, full)| *full == Some(true)).count();
        let with_space = voters.len() - others - usize::from(is_full);
        self.space.note_group(with_space <= voters.len() / 2);
        let successor = told.iter().find(|(voter, full)| {
            *full == Some(false) && voter.lag.is_some_and(|lag| lag <= CAUGHT_UP)
        });
        if let Some((successor, _)) = successor.filter(|_| is_full) {
            tracing::warn!(
                to = successor.node,
                "hands leadership over for want of space"
            );
            if let Err(error) = self
                .leadership
                .transfer(Some(SelfId::of(successor.node)))
                .await
            {
                tracing::warn!(%error, "leadership is not handed over");
            }
        }
    }

    async fn round(&self) -> Result<(), String> {
        let asked = self.asked.load(Ordering::Relaxed);
        self.asked.store(asked.saturating_sub(1), Ordering::Relaxed);
        let rules = self.rules.clone();
        let still_needed = self.still_needed();
        let chosen = self
            .blocking(move |store| {
                let space = store.space().map_err(|e| e.to_string())?;
                let now_ms = store.now_ms();
                let Some(reason) = rules.judge(now_ms, space, asked > 0) else {
                    return Ok(None);
                };
                let limits = rules.limits(reason, now_ms, still_needed);
                let cut = store.choose(limits).map_err(|e| e.to_string())?;
                Ok(cut.map(|cut| (reason, space, cut)))
            })
            .await?;
        let Some((reason, space, Cut { keep, purge })) = chosen else {
            return Ok(());
        };
        tracing::info!(
            ?reason,
            used_percent = space.used_percent(),
            reserved_hours = self.rules.reserved_hours,
            %keep,
            "removing the segments of the log before"
        );
        if let Some(last) = purge {
            self.purge(last).await?;
        }
        let pause = self.rules.pause;
        self.blocking(move |store| store.remove_before(keep, pause).map_err(|e| e.to_string()))
            .await
    }

    /// Has the entries up to this one purged. They are in the applied state, and that is durable then.
    async fn purge(&self, last: LogIndex) -> Result<(), String> {
        let stopped = |e: &dyn std::fmt::Display| format!("raft has stopped: {e}");
        let trigger = self.raft.trigger();
        trigger.snapshot().await.map_err(|e| stopped(&e))?;
        self.until("a snapshot", |data| data.snapshot, last).await?;
        trigger.purge_log(last.0).await.map_err(|e| stopped(&e))?;
        self.until("the purge", |data| data.purged, last).await
    }

    async fn until(
        &self,
        what: &str,
        done: fn(&Metrics) -> Option<super::types::LogId>,
        last: LogIndex,
    ) -> Result<(), String> {
        let mut data = self.raft.data_metrics();
        let reached = async {
            loop {
                if done(&data.borrow_watched()).is_some_and(|id| id.index >= last.0) {
                    return Ok(());
                }
                if data.changed().await.is_err() {
                    return Err("raft has stopped".to_owned());
                }
            }
        };
        timeout(STEP_LIMIT, reached)
            .await
            .unwrap_or_else(|_| Err(format!("{what} up to entry {last} takes long")))
    }

    /// The first entry that a living member may not have; `None` if there is none, or if this node
    /// does not lead and cannot know.
    fn still_needed(&self) -> Option<LogIndex> {
        self.leadership.leading()?;
        let members = self.leadership.status().members;
        let living = members
            .iter()
            .filter(|member| member.acked_ms.is_some_and(|ms| ms <= ALIVE_WITHIN_MS));
        living
            .map(|member| LogIndex(member.match_index.map_or(0, |index| index + 1)))
            .min()
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Retention) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let store = Arc::clone(&self.store);
        let done = node::blocking(move || work(&store)).await;
        done.map_err(|e| e.to_string())?
    }
}

type Metrics = openraft::metrics::RaftDataMetrics<super::types::TypeConfig>;

#[cfg(test)]
mod tests {
    use super::*;

    fn used(percent: u64) -> Space {
        Space {
            used: percent,
            available: 100 - percent,
        }
    }

    #[test]
    fn age_counts_at_its_hour_or_when_space_is_short_and_not_when_it_runs_out() {
        let rules = RetentionRules::default();
        let judge = |hour: i64, percent, asked| rules.judge(hour * HOUR_MS, used(percent), asked);
        assert_eq!(judge(3, 75, false), None);
        assert_eq!(judge(28, 75, false), Some(Reason::Hour));
        assert_eq!(judge(3, 10, true), Some(Reason::Asked));
        assert_eq!(judge(3, 76, false), Some(Reason::Space));
        assert_eq!(judge(4, 85, true), Some(Reason::Space));
        assert_eq!(judge(3, 86, false), Some(Reason::Forced));

        let unforced = RetentionRules {
            forcibly: None,
            ..rules.clone()
        };
        assert_eq!(unforced.judge(0, used(100), false), Some(Reason::Space));

        let needed = Some(LogIndex(7));
        let limits = |reason| rules.limits(reason, 100 * HOUR_MS, needed);
        for (reason, stored_before, keep_from) in [
            (Reason::Hour, Some(28 * HOUR_MS), needed),
            (Reason::Asked, Some(28 * HOUR_MS), needed),
            (Reason::Space, Some(28 * HOUR_MS), None),
            (Reason::Forced, None, None),
        ] {
            let expected = RetentionLimits {
                stored_before,
                segments: 10,
                keep_from,
            };
            assert_eq!(limits(reason), expected, "{reason:?}");
        }
    }
}
