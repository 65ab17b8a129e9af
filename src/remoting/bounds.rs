//! The one budget of memory for all connections of a process, and how it is shared out.
//!
//! | what | share | at its end |
//! |---|---|---|
//! | sends | 1/4, at most [`Limits::sends`] | a connection with another one is not read until there is room, and it is refused after [`Limits::send_wait`] |
//! | pulls, most of which wait for messages | 1/4, at most [`Limits::pulls`] | one more is refused |
//! | all other requests | 1/8 | as sends, after [`Limits::request_wait`] |
//! | what is read and no whole frame yet | 1/8 | connections read less at a time |
//! | answers that are being written | 1/8 | connections that have many get no new ones made, at 1/4 none do |
//! | answers that wait to be written | 1/8 | a connection with another one is closed, at 1/4 one with its first too |
//!
//! A request has its room from before it is worked on until its answer is queued, a large one from when its
//! first bytes are there; a send counts twice, for its message is copied into a record. Shares rather than one
//! count, so that no kind of request takes the room of another: heartbeats are taken whatever the flood of
//! sends. Within a share, each connection waits with one request at a time and in line with the others, so that
//! all get the same turns. A few answers of each connection have room beyond their share, and so beyond the budget, a
//! quarter of it at most, so that nobody suffers for others who do not read theirs; those are closed soon when that
//! is used ([`Bounds::is_pressing`]). Mapped parts of the log that wait to be written take no memory, and do not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::Limits;

/// The unit in which requests are counted; a semaphore's permits would not suffice for bytes on a 32-bit
/// machine.
pub(super) const UNIT_BYTES: usize = 1024;
/// What is read from a connection at a time, and kept of a frame before it counts as large.
pub(super) const READ_BYTES_MIN: usize = 4 * 1024;
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;
/// Answers that a connection may have on their way while those of others fill the share.
const UNSENT_MIN: usize = 64 * 1024;

/// What kind of request shares its room with others of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It brings messages.
    Send,
    /// It may wait long for messages. It never waits for room.
    Pull,
    Other,
}

/// The limits of servers, with what all their connections hold together. Made once for a process; its
/// clones are the same.
#[derive(Debug, Clone)]
pub struct Bounds(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    slots: Arc<Semaphore>,
    sends: Share,
    pulls: Share,
    others: Share,
    /// Bytes of answers on their way.
    unsent: AtomicUsize,
    /// Wakes those who wait for fewer of them.
    fewer_unsent: Notify,
    /// Bytes of answers that wait for room among those.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Share {
    units: u32,
    /// How often the bytes of a request are in memory.
    copies: usize,
    free: Arc<Semaphore>,
}

impl Share {
    fn of(bytes: usize, copies: usize) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self {
            units,
            copies,
            free: Arc::new(Semaphore::new(units as usize)),
        }
    }

    /// What is larger than the whole share takes all of it.
    fn units(&self, bytes: usize) -> u32 {
        units(bytes.saturating_mul(self.copies)).min(self.units)
    }
}

/// Units of a request of so many bytes.
pub(super) fn units(bytes: usize) -> u32 {
    let bytes = bytes.max(Limits::REQUEST_BYTES_MIN);
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// The room of one request, until dropped.
#[derive(Debug)]
pub struct Room {
    _units: OwnedSemaphorePermit,
}

impl From<OwnedSemaphorePermit> for Room {
    fn from(units: OwnedSemaphorePermit) -> Self {
        Self { _units: units }
    }
}

impl From<Limits> for Bounds {
    fn from(limits: Limits) -> Self {
        Self::new(limits)
    }
}

impl Bounds {
    /// Nothing is held yet.
    pub fn new(limits: Limits) -> Self {
        let quarter = limits.memory_bytes / 4;
        let at_most = |count: usize| quarter.min(count.saturating_mul(Limits::REQUEST_BYTES_MIN));
        let (sends, pulls) = (at_most(limits.sends), at_most(limits.pulls));
        Self(Arc::new(Inner {
            slots: Arc::new(Semaphore::new(limits.connections)),
            sends: Share::of(sends, 2),
            pulls: Share::of(pulls, 1),
            others: Share::of(limits.eighth(), 1),
            unsent: AtomicUsize::new(0),
            fewer_unsent: Notify::new(),
            waiting: AtomicUsize::new(0),
            limits,
        }))
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The whole budget.
    pub fn memory_bytes(&self) -> usize {
        self.0.limits.memory_bytes
    }

    /// Room for one more connection.
    pub(super) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.slots).try_acquire_owned().ok()
    }

    fn share(&self, class: Class) -> &Share {
        match class {
            Class::Send => &self.0.sends,
            Class::Pull => &self.0.pulls,
            Class::Other => &self.0.others,
        }
    }

    /// How long a request may wait for room; `None` for as long as it takes.
    pub fn patience(&self, class: Class) -> Option<Duration> {
        match class {
            Class::Send => self.0.limits.send_wait,
            Class::Pull => Some(Duration::ZERO),
            Class::Other => Some(self.0.limits.request_wait),
        }
    }

    /// Room for a request of so many bytes, if there is some and nobody waits for it.
    pub fn try_enter(&self, class: Class, bytes: usize) -> Option<Room> {
        let share = self.share(class);
        let free = Arc::clone(&share.free);
        free.try_acquire_many_owned(share.units(bytes))
            .ok()
            .map(Room::from)
    }

    /// Waits for room, behind those who wait already. Cancel safe.
    pub(super) async fn enter(&self, class: Class, bytes: usize) -> Room {
        let share = self.share(class);
        let free = Arc::clone(&share.free);
        let room = free.acquire_many_owned(share.units(bytes)).await;
        room.expect("never closed").into()
    }

    /// The same for a request that came by no connection of this server; `None` when it has waited for as
    /// long as one may.
    pub async fn enter_in_time(&self, class: Class, bytes: usize) -> Option<Room> {
        if let Some(room) = self.try_enter(class, bytes) {
            return Some(room);
        }
        match self.patience(class) {
            Some(limit) => tokio::time::timeout(limit, self.enter(class, bytes))
                .await
                .ok(),
            None => Some(self.enter(class, bytes).await),
        }
    }

    /// Bytes that requests of this kind hold now.
    pub fn held(&self, class: Class) -> usize {
        let share = self.share(class);
        (share.units as usize - share.free.available_permits()) * UNIT_BYTES
    }

    /// Bytes that a connection reads at a time, and keeps of a frame before it has room for it.
    pub(super) fn read_bytes(&self) -> usize {
        let limits = &self.0.limits;
        let open = limits.connections - self.0.slots.available_permits();
        (limits.eighth() / open.max(1)).clamp(READ_BYTES_MIN, READ_BYTES_MAX)
    }

    /// Whether a connection that has so many bytes of answers on their way may have more.
    pub(super) fn may_answer(&self, unsent: usize) -> bool {
        let most = match unsent < UNSENT_MIN {
            true => self.0.limits.quarter(),
            false => self.0.limits.eighth(),
        };
        unsent < self.0.limits.outbound_bytes && self.0.unsent.load(Ordering::Relaxed) < most
    }

    /// Whether answers have taken much more than their share, so that connections soon wait for those that do not read
    /// theirs.
    pub(super) fn is_pressing(&self) -> bool {
        let much = self.0.limits.eighth() / 2 * 3;
        self.0.unsent.load(Ordering::Relaxed) >= much
            || self.0.waiting.load(Ordering::Relaxed) >= much
    }

    pub(super) fn add_unsent(&self, bytes: usize) {
        self.0.unsent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove_unsent(&self, bytes: usize) {
        let before = self.0.unsent.fetch_sub(bytes, Ordering::Relaxed);
        let has_left = |full| before >= full && before - bytes < full;
        if has_left(self.0.limits.eighth()) || has_left(self.0.limits.quarter()) {
            self.0.fewer_unsent.notify_waiters();
        }
    }

    /// Wakes who waits until [`Bounds::may_answer`] says yes for the sake of other connections.
    pub(super) fn fewer_unsent(&self) -> &Notify {
        &self.0.fewer_unsent
    }

    /// Whether a connection that has `own` bytes of answers waiting may have more; they count from then on.
    pub(super) fn add_waiting(&self, own: usize, bytes: usize) -> bool {
        let limits = &self.0.limits;
        let (most, most_own) = match own {
            0 => (limits.quarter(), usize::MAX),
            _ => (limits.eighth(), limits.waiting_bytes),
        };
        let add =
            |all: usize| (all + bytes <= most && own + bytes <= most_own).then_some(all + bytes);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        bytes == 0 || self.0.waiting.fetch_update(set, fetch, add).is_ok()
    }

    pub(super) fn remove_waiting(&self, bytes: usize) {
        self.0.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of answers on their way or waiting for it.
    #[cfg(test)]
    pub(super) fn answers(&self) -> usize {
        self.0.unsent.load(Ordering::Relaxed) + self.0.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const CLASSES: [Class; 3] = [Class::Send, Class::Pull, Class::Other];

    fn bounds(memory_bytes: usize) -> Bounds {
        Bounds::new(Limits {
            memory_bytes,
            ..Limits::default()
        })
    }

    proptest! {
        /// Whatever enters and leaves in whatever order, or gives up waiting, no share is exceeded, nor
        /// taken by another kind, and in the end all is given back.
        #[test]
        fn no_share_is_exceeded_and_all_is_given_back(
            steps in prop::collection::vec((0usize..3, 0usize..60_000, any::<prop::sample::Index>()), 1..200),
            memory_bytes in 64 * 1024usize..4 << 20,
        ) {
            let bounds = bounds(memory_bytes);
            let mut rooms: Vec<(Class, usize, Room)> = Vec::new();
            for (class, bytes, leaves) in steps {
                let class = CLASSES[class];
                let share = (memory_bytes / if class == Class::Other { 8 } else { 4 }) / UNIT_BYTES * UNIT_BYTES;
                let copies = if class == Class::Send { 2 } else { 1 };
                let counted = (units(bytes * copies) as usize * UNIT_BYTES).min(share);
                let held: usize = rooms.iter().filter(|(c, ..)| *c == class).map(|(_, n, _)| n).sum();
                let entered = bounds.try_enter(class, bytes);
                prop_assert_eq!(entered.is_some(), held + counted <= share);
                if let Some(room) = entered {
                    rooms.push((class, counted, room));
                } else {
                    // Who stops waiting leaves nothing behind.
                    prop_assert!(bounds.enter(class, bytes).now_or_never().is_none());
                    rooms.swap_remove(leaves.index(rooms.len()));
                }
                for class in CLASSES {
                    let held: usize = rooms.iter().filter(|(c, ..)| *c == class).map(|(_, n, _)| n).sum();
                    prop_assert_eq!(bounds.held(class), held);
                }
                let all: usize = CLASSES.iter().map(|class| bounds.held(*class)).sum();
                prop_assert!(all <= memory_bytes);
            }
            rooms.clear();
            for class in CLASSES {
                prop_assert_eq!(bounds.held(class), 0);
            }
        }
    }

    #[test]
    fn a_request_that_waits_is_not_overtaken_by_smaller_ones() {
        let bounds = bounds(1 << 20);
        let first = bounds.try_enter(Class::Other, 100 << 10).unwrap();
        let large = bounds.enter(Class::Other, 120 << 10);
        let mut large = std::pin::pin!(large);
        assert!(large.as_mut().now_or_never().is_none());
        assert!(bounds.try_enter(Class::Other, 1).is_none());
        // Neither of them is of another kind.
        assert!(bounds.try_enter(Class::Send, 1).is_some());
        drop(first);
        assert!(large.now_or_never().is_some());
    }

    #[test]
    fn sends_and_pulls_have_a_number_beside_their_share() {
        let bounds = Bounds::new(Limits {
            sends: 3,
            pulls: 2,
            ..Limits::default()
        });
        for (class, count) in [(Class::Send, 3), (Class::Pull, 2)] {
            let rooms: Vec<_> = (0..count).map(|_| bounds.try_enter(class, 1)).collect();
            assert!(rooms.iter().all(Option::is_some));
            assert!(bounds.try_enter(class, 1).is_none());
        }
        // One that is larger than all of them is taken alone.
        assert!(bounds.try_enter(Class::Send, 1 << 20).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_too_long_gets_no_room() {
        let bounds = Bounds::new(Limits {
            sends: 1,
            pulls: 1,
            ..Limits::default()
        });
        let rooms = CLASSES.map(|class| bounds.try_enter(class, usize::MAX).unwrap());
        for (class, ms) in CLASSES.into_iter().zip([200, 0, 5000]) {
            let begun = tokio::time::Instant::now();
            assert!(bounds.enter_in_time(class, 1).await.is_none());
            let waited = begun.elapsed().as_millis();
            assert!((ms..=ms + 2).contains(&waited), "{waited}");
        }
        drop(rooms);
        assert!(bounds.enter_in_time(Class::Send, 1).await.is_some());
    }

    #[test]
    fn many_connections_read_little_at_a_time() {
        let bounds = bounds(8 << 20);
        let slots: Vec<_> = (0..16).map(|_| bounds.slot().unwrap()).collect();
        assert_eq!(bounds.read_bytes(), READ_BYTES_MAX);
        let more: Vec<_> = (0..16).map(|_| bounds.slot().unwrap()).collect();
        assert_eq!(bounds.read_bytes(), READ_BYTES_MAX / 2);
        drop((slots, more));
        assert_eq!(bounds.read_bytes(), READ_BYTES_MAX);
    }
}
