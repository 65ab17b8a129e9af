//! Planted bugs, which the simulation or the fault suite has to find: what these would not notice in them they would
//! not notice elsewhere. They exist with the feature `mutants` only, and one of them is chosen for the life of a
//! process by the environment variable `RMQ_MUTANT`.

#[cfg(all(
    feature = "mutants",
    not(debug_assertions),
    not(rmq_mutants_in_release)
))]
compile_error!("planted bugs in a release: ask for them with --cfg rmq_mutants_in_release");

/// Those of the log and its replication, which the simulation finds: their names, and what each does.
pub const OF_LOG: [(&str, &str); 10] = [
    ("M1", "acknowledges what only the leader has"),
    ("M2", "acknowledges what is not synced"),
    ("M3", "does not sync votes"),
    ("M4", "keeps the queue offsets of truncated messages"),
    ("M5", "serves when its lease is over"),
    ("M6", "keeps metadata on the node where it was proposed"),
    ("M7", "cuts the log at its first damaged entry"),
    ("M8", "goes on after a failed sync"),
    ("M13", "sends snapshots without metadata"),
    (
        "Quarantine",
        "votes after a power cut in which it lost entries",
    ),
];

/// Those of word that a process has ended, which only the simulation can give of one that lives.
pub const OF_DEATH: [(&str, &str); 2] = [
    ("Alive", "vouches for the death of a leader that lives"),
    (
        "Proof",
        "takes a proof of death for that of a later process",
    ),
];

/// Those of what a broker makes of the log, for which it takes real clients.
pub const OF_BROKER: [(&str, &str); 4] = [
    ("M9", "ends a transaction that is over"),
    ("M10", "notes delayed messages as delivered before they are"),
    ("M11", "keeps queue locks on the node where they were taken"),
    ("M12", "drops the newest index file after a crash"),
];

/// Those of a migration, which only one that was stopped shows.
pub const OF_MIGRATION: [(&str, &str); 1] = [(
    "M14",
    "goes on one file late with a migration that was stopped",
)];

/// Whether this bug is in: `mutant!(M1)`.
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::is_on(stringify!($name))
    };
}

/// See [`mutant!`].
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn is_on(_: &str) -> bool {
    false
}

/// See [`mutant!`].
///
/// # Panics
///
/// If `RMQ_MUTANT` names none of them: whoever sets it relies on the bug.
#[cfg(feature = "mutants")]
#[must_use]
pub fn is_on(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let chosen = std::env::var("RMQ_MUTANT").ok()?;
        let known = OF_LOG
            .iter()
            .chain(&OF_DEATH)
            .chain(&OF_BROKER)
            .chain(&OF_MIGRATION)
            .any(|(known, _)| *known == chosen);
        assert!(
            known,
            "RMQ_MUTANT={chosen} is none of {OF_LOG:?}, {OF_DEATH:?}, {OF_BROKER:?}, {OF_MIGRATION:?}"
        );
        Some(chosen)
    });
    chosen.as_deref() == Some(name)
}
