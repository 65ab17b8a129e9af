//! What is refused for want of space, before anything fails for it.
//!
//! A write of the log that fails ends the node, so none is begun that could fail for want of space.
//! Messages are refused when the disk is fuller than `diskSpaceWarningLevelRatio`, or when the log's
//! next file cannot be made and the last one is nearly full. What is left then is for what must go on:
//! metadata, a new leader's first entry, truncations and votes, whose places are reserved. A follower
//! in that state takes no appends, but heartbeats and votes. All of this ends when there is space again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rmq_store::{LogReader, Space as Used};

use super::ProposeError;

/// Of the reserve of the log, this share stays for what nobody proposes: a follower's appends and
/// metadata commands leave it alone.
const LAST_SHARE: u64 = 2;
/// Bytes that an entry has beside what was proposed.
const ENTRY_BYTES: u64 = 1024;

const GROUP_IS_FULL: &str =
    "service not available now: the disks of a majority of the group are full";

/// The space of one node, and what it permits.
pub(super) struct Space {
    log: LogReader,
    /// Why messages are refused, if they are.
    refusal: Mutex<Option<String>>,
    /// The same for the sake of the others, while this node leads.
    group_is_full: AtomicBool,
}

impl Space {
    /// Everything is permitted at first.
    pub(super) fn new(log: LogReader) -> Self {
        Self {
            log,
            refusal: Mutex::default(),
            group_is_full: AtomicBool::new(false),
        }
    }

    fn refusal(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of how full the disk is: above `warning` percent messages are refused, until not more
    /// than `clean` percent are used (`CleanCommitLogService.isSpaceToDelete`).
    pub(super) fn note(&self, used: Used, warning: u8, clean: u8) {
        let percent = used.used_percent();
        let mut refusal = self.refusal();
        if percent > warning {
            let reason = format!(
                "service not available now: the broker's disk is full, {percent}% of it are used and \
                 diskSpaceWarningLevelRatio is {warning}"
            );
            if refusal.is_none() {
                tracing::error!("messages are refused: {reason}");
            }
            *refusal = Some(reason);
        } else if percent <= clean.min(warning) && refusal.take().is_some() {
            tracing::info!(used_percent = percent, "messages are taken again");
        }
    }

    /// Takes note of whether so many members have no space that no majority could take messages.
    pub(super) fn note_group(&self, is_full: bool) {
        let was_full = self.group_is_full.swap(is_full, Ordering::Relaxed);
        match (was_full, is_full) {
            (false, true) => tracing::error!("{GROUP_IS_FULL}"),
            (true, false) => tracing::info!("a majority of the group has space again"),
            _ => {}
        }
    }

    /// Whether messages of this many bytes may be appended, with what is on its way included.
    pub(super) fn check_messages(&self, bytes: usize) -> Result<(), ProposeError> {
        if let Some(reason) = &*self.refusal() {
            return Err(ProposeError::Full(reason.clone()));
        }
        self.check_room(bytes)?;
        if self.group_is_full.load(Ordering::Relaxed) {
            return Err(ProposeError::Full(GROUP_IS_FULL.to_owned()));
        }
        Ok(())
    }

    fn check_room(&self, bytes: usize) -> Result<(), ProposeError> {
        // A record that does not fit the segment leaves the rest of it blank.
        let needed = bytes as u64 + ENTRY_BYTES + self.log.max_extent_bytes();
        self.check(needed + self.log.reserve_bytes())
    }

    /// The same of a metadata command.
    pub(super) fn check_metadata(&self, bytes: usize) -> Result<(), ProposeError> {
        self.check(bytes as u64 + ENTRY_BYTES + self.last_reserve())
    }

    fn last_reserve(&self) -> u64 {
        self.log.reserve_bytes() / LAST_SHARE
    }

    fn check(&self, needed: u64) -> Result<(), ProposeError> {
        match self.log.room() {
            Some(room) if room < needed => Err(ProposeError::Full(format!(
                "service not available now: the broker's disk has no space for another file of the \
                 commit log, and the last one has {room} bytes left, of which {} are kept free",
                self.log.reserve_bytes()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a follower may append this many raw bytes, with what is on its way included.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        let room = self.log.room();
        room.is_none_or(|room| bytes as u64 + self.last_reserve() <= room)
    }

    /// Whether this node has no space for messages.
    pub(super) fn is_full(&self) -> bool {
        self.refusal().is_some() || self.check_room(0).is_err()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use rmq_store::sim::SimDisk;
    use rmq_store::{Disk, EntryId, EntryKind, Log, LogIndex, NewEntry, StoreConfig, Term};

    use super::*;

    /// However often something is appended: what is asked for a second time finds less.
    #[test]
    fn nothing_is_taken_that_the_last_file_has_no_room_for() {
        let sim = SimDisk::default();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let mut config = StoreConfig::new("/store");
        config.max_message_bytes = 4096;
        config.segment_bytes = 4 * 1024 * 1024;
        let mut log = Log::open(&config, &disk).unwrap();
        let reader = log.reader();
        let append = |log: &mut Log, bytes: usize| {
            let next = reader.last_id().map_or(0, |last| last.index.0 + 1);
            let entry = NewEntry::Unsealed {
                id: EntryId {
                    term: Term(1),
                    node: 1,
                    index: LogIndex(next),
                },
                kind: EntryKind::Meta,
                meta: Bytes::from(vec![1; bytes]),
                batch: None,
            };
            log.append(vec![entry]).unwrap();
        };
        append(&mut log, 100);
        sim.set_space(Used {
            used: 100,
            available: 0,
        });
        let space = Space::new(reader.clone());
        let deadline = Instant::now() + Duration::from_secs(60);
        while reader.room().is_none() {
            assert!(Instant::now() < deadline, "it is never short");
            if reader.end_offset().0 < config.segment_bytes * 2 / 3 {
                append(&mut log, 1000);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        while space.check_messages(1000).is_ok() {
            append(&mut log, 1000);
        }
        assert!(reader.room() >= Some(reader.reserve_bytes()));
        assert!(space.takes(1000));
        while space.check_metadata(1000).is_ok() {
            append(&mut log, 1000);
        }
        let left = reader.room().unwrap();
        assert!(left >= reader.reserve_bytes() / 2, "{left}");
        while space.takes(500) {
            append(&mut log, 100);
        }
        for bytes in [500, 1000, 4000] {
            assert!(!space.takes(bytes), "{bytes} of {:?}", reader.room());
            assert!(space.check_metadata(bytes).is_err(), "{bytes}");
        }
        // What is the last of the reserve for.
        for _ in 0..5 {
            append(&mut log, 100);
        }
    }
}
