//! The replicated metadata of a broker group: topics, subscription groups, consumer offsets, queue
//! locks and the progress of delayed delivery.
//!
//! It is a plain state machine. Commands come out of the Raft log, [`Meta::apply`] turns them into
//! the next [`State`]; every replica that applied the same commands holds the same state, so time
//! is part of a command and no map with a random order is used.
//!
//! - `command.rs`: what can be changed, and what is answered
//! - `state.rs`: the state and the rules of each change
//! - `codec.rs`: bytes of commands, replies and snapshots (the only user of bincode)
//! - `defaults.rs`: topics and groups that every broker has
//! - `adopted.rs`: the first state of a group that has taken over another broker's history
//! - `wire.rs`: the state as the protocol and Java's files have it
//! - `views.rs`: `config/*.json` for people and for Java brokers, never read back
//!
//! Who proposes commands, and when, is the business of `broker`; the log is that of `raft`.

mod adopted;
mod codec;
mod command;
mod defaults;
mod state;
mod views;
mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use rmq_store::FreezeMark;
use tokio::sync::watch;

pub use adopted::Adopted;
pub use codec::{CodecError, MAX_COMMAND_BYTES};
pub use command::{Change, Command, OffsetCommit, Reply};
pub use defaults::{SystemNames, system_groups, system_topics};
pub use state::{DataVersion, FilterType, Frozen, Group, LOCK_LEASE_MS, Lock, Queue, State, Topic};
pub use views::Views;

/// What is said to those whom a frozen group refuses.
pub const FROZEN: &str =
    "the group is frozen and takes nothing until mqadmin raftThaw, or until it has moved";

/// A cheap handle to the one metadata state of this process.
#[derive(Clone)]
pub struct Meta {
    shared: Arc<Shared>,
}

struct Shared {
    state: RwLock<State>,
    /// As the state says, for those who ask before every message.
    is_frozen: AtomicBool,
    /// What the mark of this node's store says. Not replicated.
    mark: Mutex<Option<FreezeMark>>,
    revisions: watch::Sender<Revisions>,
}

/// How often each part of the state has changed in this process. Not replicated: it only tells
/// listeners (registration, views) that there is something new to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    pub topics: u64,
    pub groups: u64,
    pub offsets: u64,
    pub delay: u64,
}

/// Why a snapshot was not taken over. The state stays as it was.
#[derive(Debug, thiserror::Error)]
#[error("metadata snapshot of {bytes} bytes is unreadable: {source}")]
pub struct RestoreError {
    bytes: usize,
    source: CodecError,
}

impl Default for Meta {
    fn default() -> Self {
        Self::new()
    }
}

impl Meta {
    /// An empty state, as before the first entry of the log.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: RwLock::new(State::default()),
                is_frozen: AtomicBool::new(false),
                mark: Mutex::default(),
                revisions: watch::Sender::new(Revisions::default()),
            }),
        }
    }

    /// The state of a broker whose history the log goes on from.
    pub fn adopted(from: Adopted<'_>) -> Self {
        let meta = Self::new();
        *meta.write() = from.into();
        meta.shared.revisions.send_modify(Revisions::bump_all);
        meta
    }

    /// Applies the command of log entry `index`.
    ///
    /// Must be called in log order. An index that was applied before changes nothing, so a replay
    /// may start anywhere at or before [`Meta::applied`]. Never panics on content: what cannot be
    /// read or is not allowed is answered with [`Reply::Refused`], by every replica alike.
    pub fn apply(&self, index: u64, command: &[u8]) -> Reply {
        let command = match Command::decode(command) {
            Ok(command) => command,
            Err(error) => {
                // Every replica runs the same decoder over the same bytes; that none of them can
                // read it means a newer version wrote it, and this one must be replaced.
                tracing::error!(index, %error, "metadata command is unreadable");
                return Reply::refused(format!("metadata command is unreadable: {error}"));
            }
        };
        let reply = {
            let mut state = self.write();
            let reply = state.apply(index, &command);
            self.note_frozen(&state);
            reply
        };
        if !matches!(reply, Reply::Refused { .. }) {
            self.shared
                .revisions
                .send_modify(|r| r.bump(&command.change));
        }
        reply
    }

    /// Index of the last command that is part of the state.
    pub fn applied(&self) -> Option<u64> {
        self.read().applied
    }

    /// The whole state as bytes. Equal states give equal bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        codec::encode_state(&self.read())
    }

    /// Replaces the state by that of a snapshot.
    ///
    /// # Errors
    /// The bytes are not a snapshot of this version; nothing is changed then.
    pub fn restore(&self, snapshot: &[u8]) -> Result<(), RestoreError> {
        let state = codec::decode_state(snapshot).map_err(|source| RestoreError {
            bytes: snapshot.len(),
            source,
        })?;
        let mut old = self.write();
        *old = state;
        self.note_frozen(&old);
        drop(old);
        self.shared.revisions.send_modify(Revisions::bump_all);
        Ok(())
    }

    fn note_frozen(&self, state: &State) {
        let is_frozen = state.frozen.is_some();
        self.shared.is_frozen.store(is_frozen, Ordering::Release);
    }

    /// Whether nothing may be changed and no message appended.
    pub fn is_frozen(&self) -> bool {
        self.shared.is_frozen.load(Ordering::Acquire)
    }

    /// The mark that this node's store bears.
    pub fn mark(&self) -> Option<FreezeMark> {
        *self.mark_slot()
    }

    /// Says which mark the store bears by now.
    pub fn set_mark(&self, mark: Option<FreezeMark>) {
        *self.mark_slot() = mark;
    }

    fn mark_slot(&self) -> MutexGuard<'_, Option<FreezeMark>> {
        let slot = self.shared.mark.lock();
        slot.unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state. Hold the guard briefly and never across an await: `apply` waits for it.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        // A state is replaced or changed by code that cannot panic half-way; see `State::apply`.
        self.shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of changes. The value itself is only good for comparing.
    pub fn revisions(&self) -> watch::Receiver<Revisions> {
        self.shared.revisions.subscribe()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Revisions {
    fn bump(&mut self, change: &Change) {
        match change {
            Change::PutTopic { .. } | Change::CreateTopics(_) | Change::DeleteTopic { .. } => {
                self.topics += 1;
            }
            Change::PutGroup { .. } | Change::CreateGroups(_) => self.groups += 1,
            Change::DeleteGroup { .. } => {
                self.groups += 1;
                self.offsets += 1;
            }
            Change::CommitOffsets(_) | Change::CloneOffsets { .. } => self.offsets += 1,
            Change::DelayProgress(_) => self.delay += 1,
            Change::LockQueues { .. }
            | Change::UnlockQueues { .. }
            | Change::Freeze
            | Change::Thaw => {}
        }
    }

    fn bump_all(&mut self) {
        self.topics += 1;
        self.groups += 1;
        self.offsets += 1;
        self.delay += 1;
    }
}

#[cfg(test)]
mod tests;
