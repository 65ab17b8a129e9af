//! What an inspection tells of our own stores.

use std::os::unix::fs::FileExt as _;

use super::support::*;
use crate::config::FlushMode;
use crate::inspect::{DamageKind, InspectError, Inspection, inspect};
use crate::log::Log;
use crate::segment::file_name;
use crate::types::{PhyOffset, Term, Vote};

struct Bed {
    dir: tempfile::TempDir,
    /// Where each extent starts.
    starts: Vec<u64>,
    end: u64,
}

impl Bed {
    /// A closed log of 100 entries in two terms over several segments.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), FlushMode::Sync);
        let mut log = Log::open(&config, &real()).unwrap();
        let vote = Vote {
            term: Term(2),
            node: 1,
            committed: true,
        };
        log.save_vote(vote).unwrap();
        let mut starts = Vec::new();
        for index in 0..100 {
            starts.push(log.reader().end_offset().0);
            let entry = match index {
                0 | 50 => blank(id(1 + index / 50, index)),
                index if index % 10 == 1 => meta(id(1 + index / 50, index), &b"command"[..]),
                index => {
                    let records = vec![
                        pending("t", 0, &[7; 3000], true),
                        pending("u", 1, b"b", true),
                    ];
                    messages(id(1 + index / 50, index), records).0
                }
            };
            log.append(vec![entry]).unwrap();
        }
        let end = log.reader().end_offset().0;
        log.close().unwrap();
        Self { dir, starts, end }
    }

    fn look(&self) -> Inspection {
        inspect(&real(), self.dir.path(), None).unwrap()
    }

    fn write(&self, pos: u64, bytes: &[u8]) {
        let base = pos - pos % SEGMENT_BYTES;
        let path = self.dir.path().join("commitlog").join(file_name(base));
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, pos - base).unwrap();
    }
}

#[test]
fn a_raft_log_is_followed_entry_by_entry() {
    let bed = Bed::new();
    let found = bed.look();
    assert_eq!((found.damages, &found.damage[..]), (0, &[][..]));
    assert!(found.stopped_cleanly);
    let raft = found.raft.unwrap();
    assert_eq!(raft.generations.len(), 1);
    let log = &raft.generations[0];
    assert_eq!((log.extents, log.first_index, log.last_index), (100, 0, 99));
    assert_eq!((log.first_term, log.last_term), (1, 2));
    assert_eq!((log.blank, log.metadata, log.messages), (2, 10, 88));
    assert_eq!((log.records, found.log.records), (176, 276));
    assert_eq!((log.start_offset, log.end_offset), (0, bed.end));
    assert_eq!(raft.notes.clean_end, Some(bed.end));
    assert!(raft.notes.vote.unwrap().starts_with("term 2 "));
    let queue = &found.queues[0];
    assert_eq!(
        (&*queue.topic, queue.log.messages, queue.missing),
        ("t", 88, 88)
    );
    assert_eq!(found.queues.len(), 2);
}

#[test]
fn a_store_in_use_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let _log = Log::open(&config(dir.path(), FlushMode::Sync), &real()).unwrap();
    let refused = inspect(&real(), dir.path(), None);
    assert!(matches!(refused, Err(InspectError::InUse { .. })));
    let elsewhere = dir.path().join("other");
    let refused = inspect(&real(), &elsewhere, None);
    assert!(matches!(refused, Err(InspectError::NoStore { .. })));
}

#[test]
fn damage_in_an_extent_is_told_from_a_torn_end() {
    // A header's body is covered by its CRC, the payload by the header.
    let bed = Bed::new();
    bed.write(bed.starts[60] + 400, &[0x55]);
    let found = bed.look();
    let kinds: Vec<DamageKind> = found.damage.iter().map(|damage| damage.kind).collect();
    assert_eq!(
        kinds,
        [DamageKind::Record, DamageKind::Extent],
        "{:?}",
        found.damage
    );
    assert!(
        found
            .damage
            .iter()
            .all(|d| d.offset >= bed.starts[60] && d.offset < bed.starts[61])
    );
    assert_eq!(found.raft.unwrap().generations[0].extents, 99);

    let bed = Bed::new();
    bed.write(bed.end - 40, &[0; 40]);
    let found = bed.look();
    assert!(
        found
            .damage
            .iter()
            .all(|damage| damage.kind == DamageKind::TornTail)
    );
    assert_eq!(found.damage.last().unwrap().offset, bed.starts[99]);
    assert_eq!(found.raft.unwrap().generations[0].last_index, 98);
}

#[test]
fn a_mark_is_told() {
    let bed = Bed::new();
    let mark = crate::FreezeMark {
        id: id(2, 99),
        end: PhyOffset(bed.end),
        at_ms: 4,
    };
    mark.write(&*real(), bed.dir.path()).unwrap();
    let frozen = bed.look().raft.unwrap().notes.frozen.unwrap();
    assert_eq!(
        (frozen.term, frozen.index, frozen.end_offset),
        (2, 99, bed.end)
    );
}
