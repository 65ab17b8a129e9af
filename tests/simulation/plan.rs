//! What a seed stands for: the group, and how often what goes wrong.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rmq_store::FlushMode;

/// What the nemesis of a run can do, and how much it wants to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Processes end without a word.
    Kill,
    /// Machines lose what they have not synced.
    PowerCut,
    /// A process or machine ends within an operation of its disk.
    CrashPoint,
    /// A node is stopped as an operator does it.
    Restart,
    /// A write or a sync fails, or there is no space.
    Disk,
    /// Syncs take long.
    SlowDisk,
    /// Nodes do not reach each other.
    Partition,
    /// In one direction only.
    OneWay,
    /// Links are slow, and lose packets and connections.
    BadLinks,
    /// Leadership is handed over.
    Transfer,
    /// A node's store is emptied.
    Wipe,
    /// A disk changes bytes that were written.
    Rot,
    /// A disk has no space, for a while.
    Full,
    /// A node is added and given a vote, or removed.
    Members,
}

/// Everything that can go wrong.
pub(crate) const ALL: [Fault; 14] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::CrashPoint,
    Fault::Restart,
    Fault::Disk,
    Fault::SlowDisk,
    Fault::Partition,
    Fault::OneWay,
    Fault::BadLinks,
    Fault::Transfer,
    Fault::Wipe,
    Fault::Rot,
    Fault::Full,
    Fault::Members,
];

/// The parameters of one run, all from its seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Members at first.
    pub(crate) nodes: usize,
    /// Places that may become members, by an operator's doing.
    pub(crate) spares: usize,
    pub(crate) flush: FlushMode,
    /// Whether whole segments leave the log at once.
    pub(crate) purges: bool,
    pub(crate) producers: usize,
    /// Milliseconds of trouble.
    pub(crate) trouble_ms: u64,
    /// Most milliseconds between two faults.
    pub(crate) pause_ms: u64,
    /// The faults of this run: some, so that each combination comes alone sometimes.
    pub(crate) faults: Vec<Fault>,
    /// Most milliseconds that a producer waits between two sends.
    pub(crate) think_ms: u64,
    /// Most bytes of a message.
    pub(crate) message_bytes: usize,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let flush = if rng.random_ratio(1, 3) {
            FlushMode::Async {
                interval_ms: rng.random_range(50..500),
            }
        } else {
            FlushMode::Sync
        };
        let count = rng.random_range(2..=6);
        let faults: Vec<_> = ALL.choose_multiple(&mut rng, count).copied().collect();
        Self {
            seed,
            nodes: if rng.random_ratio(1, 4) { 5 } else { 3 },
            spares: if faults.contains(&Fault::Members) {
                2
            } else {
                0
            },
            flush,
            purges: rng.random(),
            producers: rng.random_range(1..=4),
            trouble_ms: rng.random_range(4000..12_000),
            pause_ms: rng.random_range(200..2000),
            faults,
            think_ms: rng.random_range(5..60),
            message_bytes: *[100, 1000, 3900].choose(&mut rng).expect("some"),
        }
    }
}
