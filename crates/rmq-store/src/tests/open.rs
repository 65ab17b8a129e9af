//! What is found at a start: damage, lost files, other sizes, another broker's records.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::{Disk, OpenMode};
use crate::extent::RAFT_LOG_TOPIC;
use crate::log::Log;
use crate::recovery::OpenError;
use crate::segment::file_name;
use crate::sim::SimDisk;
use crate::types::{LogIndex, PhyOffset, Term, Vote};

struct Bed {
    sim: SimDisk,
    config: StoreConfig,
}

impl Bed {
    fn new(flush: FlushMode) -> Self {
        Self {
            sim: SimDisk::default(),
            config: config(Path::new("/store"), flush),
        }
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.sim.clone())
    }

    fn open(&self) -> Result<Log, OpenError> {
        let mut log = Log::open(&self.config, &self.disk())?;
        let base = log.reader().base_offset();
        // Not while an entry is damaged.
        log.seed_queue_offsets([], base).ok();
        Ok(log)
    }

    /// A log of entries 0 to 99 over several segments, of which those up to 79 are committed,
    /// and that the checkpoint knows.
    fn with_entries(flush: FlushMode) -> Self {
        let bed = Self::new(flush);
        let mut log = bed.open().unwrap();
        for index in 0..100 {
            let records = vec![
                pending("t", 0, &[7; 3000], true),
                pending("u", 1, b"b", true),
            ];
            log.append(vec![messages(id(1, index), records).0]).unwrap();
        }
        log.save_committed(Some(id(1, 79)));
        log.write_checkpoint().unwrap();
        bed
    }

    fn segment(&self, nth: u64) -> std::path::PathBuf {
        self.config
            .commit_log_dir
            .join(file_name(nth * SEGMENT_BYTES))
    }

    fn flip(&self, at: PhyOffset) {
        self.sim
            .flip(&self.segment(at.0 / SEGMENT_BYTES), at.0 % SEGMENT_BYTES);
    }
}

fn damaged(result: Result<Log, OpenError>) {
    assert!(
        matches!(result, Err(OpenError::Damaged { .. })),
        "{result:?}"
    );
}

const SYNC: FlushMode = FlushMode::Sync;
const ASYNC: FlushMode = FlushMode::Async {
    interval_ms: 1_000_000,
};

#[test]
fn damage_below_the_checkpoint_is_not_taken_for_a_torn_tail() {
    let bed = Bed::with_entries(SYNC);
    let reader = bed.open().unwrap().reader();
    let place = |index| {
        let entry = reader.entry(LogIndex(index)).unwrap().unwrap();
        (entry.start, entry.end)
    };
    let (last, tenth) = (place(79), place(10));
    drop(reader);
    let dir = bed.config.raft_index_dir();
    // Of the checkpoint's entry the messages or the header, and with no raft index any header.
    let cases = [
        (last.1.0 - 10, 79, last, false),
        (last.0.0 + 120, 79, last, false),
        (last.0.0 + 120, 79, last, true),
        (tenth.0.0 + 120, 10, tenth, true),
    ];
    for (at, index, (start, end), no_index) in cases {
        bed.flip(PhyOffset(at));
        if no_index {
            bed.sim.unlink(&dir.join(file_name(0))).unwrap();
        }
        let log = bed.open().unwrap();
        let reader = log.reader();
        assert_eq!(reader.last_id(), Some(id(1, 99)), "nothing is cut");
        assert_eq!(log.recovered().cut_bytes, 0);
        assert!(!log.is_suspect());
        let [damage] = &reader.damages()[..] else {
            panic!("{:?}", reader.damages())
        };
        let entries = Some((LogIndex(index), LogIndex(index)));
        assert_eq!(
            (damage.entries, damage.start, damage.end),
            (entries, start, end)
        );
        let shown = damage.to_string();
        let file = bed.segment(start.0 / SEGMENT_BYTES).display().to_string();
        assert!(shown.contains(&file), "{shown}");
        assert!(shown.contains(&format!("offset {start}")), "{shown}");
        assert!(reader.raw(LogIndex(index)).is_err());
        assert!(reader.raw(LogIndex(index - 1)).unwrap().is_some());
        drop((log, reader));
        bed.flip(PhyOffset(at));
        let reader = bed.open().unwrap().reader();
        for damage in reader.damages() {
            assert!(no_index && reader.mend_index(&damage).unwrap());
        }
        assert!(reader.raw(LogIndex(index)).unwrap().is_some());
        assert_eq!(reader.damages(), []);
    }
}

#[test]
fn damage_behind_the_checkpoint_cuts_the_log_of_a_node_that_does_not_vote() {
    let bed = Bed::with_entries(SYNC);
    let reader = bed.open().unwrap().reader();
    let entry = reader.entry(LogIndex(90)).unwrap().unwrap();
    let end = reader.end_offset();
    drop(reader);
    bed.flip(PhyOffset(entry.end.0 - 10));
    let log = bed.open().unwrap();
    assert_eq!(log.reader().last_id(), Some(id(1, 89)));
    assert_eq!(log.reader().end_offset(), entry.start);
    assert!(log.recovered().cut_bytes > 0);
    assert!(end > entry.end);
    let walked = walk(&bed.sim, &bed.config.commit_log_dir);
    assert_eq!(messages_of(&walked).len(), 180);
    assert_eq!(log.next_queue_offset("t", 0).0, 90);
    // The process was killed and the machine goes on: what was written cannot be torn.
    assert!(log.is_suspect());
    drop(log);
    assert!(bed.open().unwrap().is_suspect(), "until it is cleared");

    // After a power cut it can.
    let bed = Bed::with_entries(SYNC);
    bed.flip(PhyOffset(entry.end.0 - 10));
    let bed = Bed {
        sim: bed.sim.cut_at(bed.sim.done(), &mut |n| n - 1),
        ..bed
    };
    let log = bed.open().unwrap();
    assert_eq!(log.reader().last_id(), Some(id(1, 89)));
    assert!(!log.is_suspect());
    drop(log);

    // After a clean stop nothing can be missing.
    let bed = Bed::with_entries(SYNC);
    bed.open().unwrap().close().unwrap();
    bed.flip(PhyOffset(entry.end.0 - 10));
    let log = bed.open().unwrap();
    assert_eq!(log.reader().last_id(), Some(id(1, 89)));
    assert!(log.is_suspect());
}

/// What tells of the loss does not outlive the start.
#[test]
fn a_start_that_broke_off_knows_the_next_time_what_is_lost() {
    for clean in [false, true] {
        let bed = Bed::with_entries(SYNC);
        let log = bed.open().unwrap();
        let entry = log.reader().entry(LogIndex(90)).unwrap().unwrap();
        if clean {
            log.close().unwrap();
        } else {
            drop(log);
        }
        bed.flip(PhyOffset(entry.end.0 - 10));
        let before = bed.sim.done();
        drop(bed.open().unwrap());
        for done in before..=bed.sim.done() {
            let left = Bed {
                sim: bed.sim.killed_at(done),
                config: bed.config.clone(),
            };
            let log = left.open().unwrap();
            assert_eq!(log.reader().last_id(), Some(id(1, 89)));
            assert!(
                log.is_suspect(),
                "killed after {} operations",
                done - before
            );
        }
    }
}

#[test]
fn a_lost_raft_index_is_written_again() {
    let bed = Bed::with_entries(SYNC);
    let dir = bed.config.raft_index_dir();
    let all = raw_entries(&bed.open().unwrap().reader()).len();
    bed.sim.unlink(&dir.join(file_name(0))).unwrap();
    assert_eq!(raw_entries(&bed.open().unwrap().reader()).len(), all);

    // A short file, as of a store that was copied without it being whole.
    bed.sim.unlink(&dir.join(file_name(0))).unwrap();
    let file = bed
        .sim
        .open(&dir.join(file_name(0)), OpenMode::Create)
        .unwrap();
    file.set_len(100).unwrap();
    assert_eq!(raw_entries(&bed.open().unwrap().reader()).len(), all);

    // The checkpoint's cell names another place, and there are cells of entries that never were.
    let file = bed
        .sim
        .open(&dir.join(file_name(0)), OpenMode::Write)
        .unwrap();
    file.write_at(79 * 20, &[IoSlice::new(&[0, 0, 0, 0, 0, 0, 0, 9])])
        .unwrap();
    file.write_at(100 * 20, &[IoSlice::new(&[1; 4000])])
        .unwrap();
    let mut log = bed.open().unwrap();
    assert_eq!(raw_entries(&log.reader()).len(), all);
    assert!(log.reader().entry(LogIndex(100)).unwrap().is_none());
    log.append(vec![blank(id(2, 100))]).unwrap();
    assert_eq!(log.reader().id_at(LogIndex(100)).unwrap(), Some(id(2, 100)));
}

#[test]
fn a_vote_is_not_forgotten() {
    let bed = Bed::with_entries(SYNC);
    let vote = Vote {
        term: Term(5),
        node: 3,
        committed: false,
    };
    bed.open().unwrap().save_vote(vote).unwrap();
    let path = bed.config.path("raft.vote");
    // A disk that spoils one slot does not bring back an older vote.
    for slot in [0, 4096, 0] {
        bed.sim.flip(&path, slot + 6);
        assert_eq!(bed.open().unwrap().read_vote(), Some(vote));
    }
}

#[test]
fn a_lost_vote_is_not_made_up() {
    for missing in [false, true] {
        let bed = Bed::with_entries(SYNC);
        let vote = |term| Vote {
            term: Term(term),
            node: 3,
            committed: false,
        };
        bed.open().unwrap().save_vote(vote(5)).unwrap();
        let path = bed.config.path("raft.vote");
        if missing {
            bed.sim.unlink(&path).unwrap();
        } else {
            bed.sim.flip(&path, 6);
            bed.sim.flip(&path, 4096 + 6);
        }
        // However often it is opened before somebody says what to do.
        for _ in 0..2 {
            let mut log = bed.open().unwrap();
            assert!(log.has_lost_vote() && log.read_vote().is_none());
            assert!(log.save_vote(vote(6)).is_err());
        }
        let mut log = bed.open().unwrap();
        let last = log.reader().last_id().unwrap();
        log.renew_vote().unwrap();
        drop(log);
        let mut log = bed.open().unwrap();
        let of_last = Vote {
            term: last.term,
            node: last.node,
            committed: true,
        };
        assert_eq!(
            (log.has_lost_vote(), log.read_vote()),
            (false, Some(of_last))
        );
        log.save_vote(vote(7)).unwrap();
        drop(log);
        assert_eq!(bed.open().unwrap().read_vote(), Some(vote(7)));
    }
}

#[test]
fn a_checkpoint_is_not_done_without() {
    let bed = Bed::with_entries(SYNC);
    let path = bed.config.path("raft.checkpoint");
    bed.sim.flip(&path, 6);
    bed.sim.flip(&path, 4096 + 6);
    assert!(matches!(bed.open(), Err(OpenError::Checkpoint { .. })));
    bed.sim.unlink(&path).unwrap();
    // There is a vote file with no vote in it, but the log has entries.
    assert!(matches!(bed.open(), Err(OpenError::Missing { .. })));
    bed.sim.unlink(&bed.config.path("raft.vote")).unwrap();
    assert!(matches!(bed.open(), Err(OpenError::Missing { .. })));
}

#[test]
fn another_generation_is_another_log() {
    let mut bed = Bed::with_entries(SYNC);
    bed.config.generation = 1;
    assert!(matches!(
        bed.open(),
        Err(OpenError::Generation {
            found: 0,
            expected: 1,
            ..
        })
    ));
}

#[test]
fn a_store_is_opened_once() {
    let bed = Bed::with_entries(SYNC);
    let log = bed.open().unwrap();
    let error = bed.open().unwrap_err().to_string();
    assert!(error.contains("Lock failed, MQ already started"), "{error}");
    assert!(error.contains("/store"), "{error}");
    drop(log);
    bed.open().unwrap();
}

#[test]
fn a_configuration_that_cannot_work_makes_nothing() {
    let mut bed = Bed::new(SYNC);
    bed.config.max_message_bytes = 1 << 20;
    assert!(matches!(bed.open(), Err(OpenError::Config(_))));
    assert_eq!(bed.sim.done(), 0);
}

#[test]
fn segments_keep_their_size() {
    let mut bed = Bed::with_entries(SYNC);
    bed.config.segment_bytes = 1 << 20;
    let mut log = bed.open().unwrap();
    let reader = log.reader();
    assert_eq!(reader.segment_bytes(), SEGMENT_BYTES);
    assert_eq!(
        reader.max_extent_bytes(),
        bed.config.max_extent_bytes().min(SEGMENT_BYTES - 8)
    );
    for index in 100..200 {
        let record = vec![pending("t", 0, &[1; 4000], true)];
        log.append(vec![messages(id(1, index), record).0]).unwrap();
    }
    log.close().unwrap();
    let names = bed.sim.list(&bed.config.commit_log_dir).unwrap();
    assert_eq!(names[1], file_name(SEGMENT_BYTES));
    assert_eq!(bed.open().unwrap().reader().last_id(), Some(id(1, 199)));
}

#[test]
fn unfinished_segments_behind_the_log_are_put_in_order() {
    let bed = Bed::with_entries(SYNC);
    let last = bed.sim.list(&bed.config.commit_log_dir).unwrap().len() as u64 - 1;
    for nth in [last + 1, last + 3] {
        let file = bed.sim.open(&bed.segment(nth), OpenMode::Create).unwrap();
        file.set_len(5000).unwrap();
    }
    assert_eq!(bed.open().unwrap().reader().last_id(), Some(id(1, 99)));

    // The first one has only committed entries: it is damaged, and none of its entries was not there.
    bed.sim.unlink(&bed.segment(0)).unwrap();
    let reader = bed.open().unwrap().reader();
    assert_eq!(reader.last_id(), Some(id(1, 99)));
    assert!(reader.raw(LogIndex(0)).is_err() && reader.raw(LogIndex(99)).is_ok());
}

#[test]
fn a_longer_segment_is_refused() {
    let bed = Bed::with_entries(SYNC);
    let file = bed.sim.open(&bed.segment(0), OpenMode::Write).unwrap();
    file.set_len(SEGMENT_BYTES + 1).unwrap();
    let error = bed.open().unwrap_err().to_string();
    assert!(error.contains("mappedFileSizeCommitLog"), "{error}");
}

#[test]
fn only_a_power_cut_with_lazy_syncs_makes_a_log_suspect() {
    for (flush, cut, suspect) in [
        (SYNC, true, false),
        (ASYNC, false, false),
        (ASYNC, true, true),
    ] {
        let mut bed = Bed::with_entries(flush);
        let done = bed.sim.done();
        bed.sim = if cut {
            bed.sim.cut_at(done, &mut |_| 0)
        } else {
            bed.sim.killed_at(done)
        };
        let mut log = bed.open().unwrap();
        assert_eq!(log.is_suspect(), suspect, "{flush:?}, power cut: {cut}");
        if suspect {
            drop(log);
            log = bed.open().unwrap();
            assert!(log.is_suspect(), "another start does not change that");
            log.clear_suspect().unwrap();
            drop(log);
            log = bed.open().unwrap();
            assert!(!log.is_suspect());
        }
        log.close().unwrap();
        bed.sim = bed.sim.cut_at(bed.sim.done(), &mut |n| n - 1);
        assert!(
            !bed.open().unwrap().is_suspect(),
            "nothing is lost after a clean stop"
        );
    }
}

#[test]
fn a_clean_stop_leaves_what_a_java_broker_expects() {
    let bed = Bed::with_entries(ASYNC);
    let log = bed.open().unwrap();
    let abort = bed.config.path("abort");
    bed.sim.open(&abort, OpenMode::Read).unwrap();
    let last = log.reader().entry(LogIndex(99)).unwrap().unwrap();
    log.close().unwrap();
    assert!(bed.sim.open(&abort, OpenMode::Read).is_err());
    let file = bed
        .sim
        .open(&bed.config.path("checkpoint"), OpenMode::Read)
        .unwrap();
    let mut content = [0; 5000];
    assert_eq!(file.read_at(0, &mut content).unwrap(), 4096);
    assert_eq!(content[..8], last.store_timestamp.to_be_bytes());

    let log = bed.open().unwrap();
    assert!(log.recovered().clean);
    assert_eq!(log.recovered().entries, 20);
}

#[test]
fn records_of_another_broker_behind_a_clean_end_are_left_alone() {
    let bed = Bed::with_entries(SYNC);
    let log = bed.open().unwrap();
    let end = log.reader().end_offset();
    log.close().unwrap();
    let file = bed
        .sim
        .open(&bed.segment(end.0 / SEGMENT_BYTES), OpenMode::Write)
        .unwrap();
    let mut record = pending("java", 0, b"body", true).buf;
    rmq_wire::record::seal(&mut record, 0, end.as_i64(), 1);
    file.write_at(end.0 % SEGMENT_BYTES, &[IoSlice::new(&record)])
        .unwrap();
    let error = bed.open().unwrap_err();
    assert!(
        matches!(error, OpenError::Foreign { at, .. } if at == end),
        "{error}"
    );
}

/// Segments of a broker that had no Raft log: 50 records, none of them in the last segment.
fn write_history(bed: &Bed) -> PhyOffset {
    bed.sim.create_dir_all(&bed.config.commit_log_dir).unwrap();
    let mut pos = SEGMENT_BYTES;
    for offset in 0..50 {
        let mut record = pending("old", 0, &[3; 4000], true).buf;
        let left = SEGMENT_BYTES - pos % SEGMENT_BYTES;
        let file = bed
            .sim
            .open(&bed.segment(pos / SEGMENT_BYTES), OpenMode::Create)
            .unwrap();
        if record.len() as u64 + 8 > left {
            let blank = rmq_wire::record::blank(u32::try_from(left).unwrap());
            file.write_at(pos % SEGMENT_BYTES, &[IoSlice::new(&blank)])
                .unwrap();
            file.allocate(SEGMENT_BYTES).unwrap();
            pos += left;
        }
        let file = bed
            .sim
            .open(&bed.segment(pos / SEGMENT_BYTES), OpenMode::Create)
            .unwrap();
        file.allocate(SEGMENT_BYTES).unwrap();
        rmq_wire::record::seal(&mut record, offset, i64::try_from(pos).unwrap(), 1 + offset);
        file.write_at(pos % SEGMENT_BYTES, &[IoSlice::new(&record)])
            .unwrap();
        pos += record.len() as u64;
    }
    let ahead = bed
        .sim
        .open(&bed.segment(pos / SEGMENT_BYTES + 1), OpenMode::Create)
        .unwrap();
    ahead.allocate(SEGMENT_BYTES).unwrap();
    PhyOffset(pos)
}

#[test]
fn a_log_goes_on_behind_the_history_of_another_broker() {
    let bed = Bed::new(SYNC);
    let end = write_history(&bed);
    let history = walk(&bed.sim, &bed.config.commit_log_dir);
    assert_eq!(history.len(), 50);
    let mut log = bed.open().unwrap();
    let reader = log.reader();
    assert_eq!(reader.min_offset(), PhyOffset(SEGMENT_BYTES));
    assert_eq!(
        (
            reader.base_offset(),
            reader.end_offset(),
            reader.confirm_offset()
        ),
        (end, end, end)
    );
    assert!(reader.record_at(phy(&history[0])).is_some());
    log.append(vec![blank(id(1, 0)), meta(id(1, 1), "x")])
        .unwrap();
    drop(log);
    let log = bed.open().unwrap();
    assert_eq!(log.reader().last_id(), Some(id(1, 1)));
    let walked = walk(&bed.sim, &bed.config.commit_log_dir);
    assert_eq!(walked[..50], history);
    assert!(walked[50..].iter().all(|record| record.1 == RAFT_LOG_TOPIC));
}

#[test]
fn a_history_with_damage_in_its_last_segment_is_refused() {
    for within in [4, 9000] {
        let bed = Bed::new(SYNC);
        let end = write_history(&bed);
        let base = end.0 - end.0 % SEGMENT_BYTES;
        bed.flip(PhyOffset(base + within));
        damaged(bed.open());
        let names = bed.sim.list(&bed.config.root).unwrap();
        assert!(
            !names.contains(&"raft.vote".to_owned()),
            "nothing is begun: {names:?}"
        );
    }
    // A torn last record is none.
    let bed = Bed::new(SYNC);
    let end = write_history(&bed);
    bed.flip(PhyOffset(end.0 - 100));
    let base = bed.open().unwrap().reader().base_offset();
    assert!(base < end && end.0 - base.0 < 5000);
}
