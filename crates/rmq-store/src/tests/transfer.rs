//! A log that comes from another node takes the place of the own one, whatever interrupts it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::retention::{ALL, Bed, settings};
use super::support::*;
use crate::disk::Disk;
use crate::log::Log;
use crate::queues::GetStatus;
use crate::sim::SimDisk;
use crate::store::{self, Store};
use crate::transfer::{
    Incoming, IncomingError, Outgoing, Part, Rest, begin_install, forget_incoming,
};
use crate::types::{NewEntry, PhyOffset, QueueOffset, Term, Vote};

const GROUP: [u8; 16] = [7; 16];
const CHUNK: usize = 20_000;

/// A node with what others are to get, of which the oldest segments have gone.
struct Source {
    bed: Bed,
    outgoing: Outgoing,
    rest: Vec<u8>,
}

impl Source {
    fn new() -> Self {
        let mut bed = Bed::filled();
        let cut = bed.retention.choose(ALL).unwrap().unwrap();
        let keep = PhyOffset(2 * SEGMENT_BYTES);
        assert!(cut.keep > keep);
        let cut = bed
            .retention
            .choose(crate::retention::RetentionLimits { segments: 2, ..ALL })
            .unwrap()
            .unwrap();
        assert_eq!(cut.keep, keep);
        bed.remove(cut);
        let reader = bed.log.reader();
        let outgoing =
            Outgoing::new(&reader, reader.last_id().unwrap(), reader.confirm_offset()).unwrap();
        let start = outgoing.outline().start;
        assert_eq!(start, keep);
        let queues = bed.queues.ends_for(&bed.queues.ends(), start).unwrap();
        assert_eq!(queues.iter().filter(|end| end.gone.is_some()).count(), 1);
        let rest = Rest {
            vote: Some(vote(5, true)),
            applied: Bytes::from_static(b"state"),
            genesis: None,
            queues,
        };
        Self {
            rest: rest.encode(),
            bed,
            outgoing,
        }
    }

    /// Sends everything that is not there yet; the bytes of the log that were.
    fn send(&self, disk: &Arc<dyn Disk>) -> u64 {
        let outline = self.outgoing.outline().clone();
        let mut incoming = Incoming::open(&settings(), Arc::clone(disk), GROUP, outline).unwrap();
        let (kept, ..) = incoming.resumed(Part::Log).unwrap();
        for part in [Part::Log, Part::Index] {
            let (_, end) = self.outgoing.outline().range(part);
            let (_, compared, crc) = incoming.resumed(part).unwrap();
            let mut at = incoming.position(part);
            if compared > 0 {
                // What is taken for durable is.
                assert_eq!(self.outgoing.crc_before(part, at, compared), Some(crc));
            }
            while at < end {
                let bytes = self.outgoing.read(part, at, CHUNK).unwrap();
                incoming.write(part, at, &bytes).unwrap();
                at += bytes.len() as u64;
            }
        }
        incoming.finish(&self.rest).unwrap();
        kept
    }
}

fn vote(term: u64, committed: bool) -> Vote {
    Vote {
        term: Term(term),
        node: 1,
        committed,
    }
}

fn entries(log: &Log) -> Vec<Vec<u8>> {
    let raw = |entry| match entry {
        NewEntry::Sealed { bytes, .. } => bytes.concat(),
        NewEntry::Unsealed { .. } => unreachable!(),
    };
    raw_entries(&log.reader()).into_iter().map(raw).collect()
}

/// A node with a log of its own, closed.
fn target() -> SimDisk {
    let sim = SimDisk::default();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let Store { mut log, queues } = store::open(&settings(), disk).unwrap();
    log.save_vote(vote(3, false)).unwrap();
    for index in 0..40 {
        let (entry, _) = messages(id(1, index), vec![pending("old", 3, &[9; 4000], true)]);
        let end = log.append(vec![entry]).unwrap().end;
        let entry = log.reader().entry(id(1, index).index).unwrap().unwrap();
        log.save_committed(Some(entry.id));
        queues.commit(end, &entry.runs);
    }
    queues.stop().unwrap();
    log.close().unwrap();
    sim
}

/// Opens and closes the log as a node does that has received something, and then begins to install.
fn begin(disk: &Arc<dyn Disk>) -> bool {
    let log = Log::open(&settings(), disk).unwrap();
    let reader = log.reader();
    log.close().unwrap();
    begin_install(&settings(), disk, &reader).unwrap()
}

/// The store is the source's in everything; it builds its queues on the way.
fn assert_is(store: Store, source: &Source) {
    let Store { log, queues } = store;
    let (own, others) = (log.reader(), source.bed.log.reader());
    assert_eq!(own.last_id(), others.last_id());
    assert_eq!(own.purged_id(), others.purged_id());
    assert_eq!(own.min_offset(), others.min_offset());
    assert_eq!(own.confirm_offset(), others.confirm_offset());
    assert_eq!(entries(&log), entries(&source.bed.log));
    assert_eq!(log.read_vote(), Some(vote(5, true)));
    for (topic, queue_id) in [("t", 0), ("t", 1), ("early", 0), ("old", 3)] {
        let next = source.bed.log.next_queue_offset(topic, queue_id);
        assert_eq!(log.next_queue_offset(topic, queue_id), next, "{topic}");
        assert_eq!(queues.max_offset(topic, queue_id), next, "{topic}");
    }
    queues.start(Arc::new(|_| true)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !queues.is_built() {
        assert!(Instant::now() < deadline, "not built in time");
        std::thread::sleep(Duration::from_millis(1));
    }
    for queue_id in [0, 1] {
        let (min, next) = (
            queues.min_offset("t", queue_id),
            queues.max_offset("t", queue_id),
        );
        assert_eq!(min, source.bed.queues.min_offset("t", queue_id));
        let got = queues.get("t", queue_id, min, 1000, 1 << 30, &|_| true);
        let got = got.unwrap();
        assert_eq!(got.status, GetStatus::Found);
        assert_eq!(got.records.len() as u64, next.0 - min.0);
    }
    let gone = queues.get("early", 0, QueueOffset(0), 1, 1, &|_| true);
    assert_eq!(gone.unwrap().status, GetStatus::OffsetTooSmall);
    queues.stop().unwrap();
    log.close().unwrap();
}

#[test]
fn a_crash_at_any_point_leaves_the_old_log_or_the_new_one() {
    let source = Source::new();
    let sim = target();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let old = Log::open(&settings(), &disk).unwrap();
    let (old_last, old_entries) = (old.reader().last_id(), entries(&old));
    old.close().unwrap();

    let began = sim.done();
    assert_eq!(source.send(&disk), 0);
    let arrived = sim.done();
    assert!(begin(&disk));
    let given_up = sim.done();
    assert_is(
        store::open(&settings(), Arc::clone(&disk)).unwrap(),
        &source,
    );
    let all = sim.done();

    let mut seed = 1_u64;
    let (mut resumed, mut news) = (0, 0);
    // While it arrives one point is much like the next.
    for done in (began..=all).filter(|done| *done >= arrived || done % 3 == 0) {
        for cut in [false, true] {
            let mut dice = |n: usize| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                usize::try_from(seed >> 33).unwrap() % n
            };
            let left = if cut {
                sim.cut_at(done, &mut dice)
            } else {
                sim.killed_at(done)
            };
            let disk: Arc<dyn Disk> = Arc::new(left);
            let store = store::open(&settings(), Arc::clone(&disk)).unwrap();
            if store.log.reader().last_id() == old_last {
                assert!(done <= given_up, "the old log is back after {done}");
                assert_eq!(entries(&store.log), old_entries);
                assert_eq!(store.log.read_vote(), Some(vote(3, false)));
                store.queues.stop().unwrap();
                store.log.close().unwrap();
                resumed += usize::from(source.send(&disk) > 0);
                assert!(begin(&disk));
                let store = store::open(&settings(), disk).unwrap();
                // Once for some is enough: it is done in full behind the intent.
                if done % 8 == 0 {
                    assert_is(store, &source);
                }
            } else {
                assert!(done > arrived, "installed before all was there");
                news += 1;
                assert_is(store, &source);
            }
        }
    }
    assert!(resumed > 10 && news > 10, "{resumed} resumed, {news} new");
}

#[test]
fn what_has_arrived_is_kept_for_the_same_group_and_as_far_as_it_is_still_wanted() {
    let source = Source::new();
    let disk: Arc<dyn Disk> = Arc::new(target());
    source.send(&disk);
    let outline = source.outgoing.outline().clone();
    let (start, end) = outline.range(Part::Log);
    let open = |group, outline| Incoming::open(&settings(), Arc::clone(&disk), group, outline);

    // Another leader has let go of more.
    let mut later = outline.clone();
    later.start = later.start + SEGMENT_BYTES;
    later.base = later.base.max(later.start + 1);
    let mut incoming = open(GROUP, later).unwrap();
    assert_eq!(incoming.position(Part::Log), end);
    assert_eq!(
        incoming.resumed(Part::Log).unwrap().0,
        end - start - SEGMENT_BYTES
    );
    // This one has more than is here.
    let mut incoming = open(GROUP, outline.clone()).unwrap();
    assert_eq!(incoming.position(Part::Log), start);
    assert_eq!(incoming.resumed(Part::Log).unwrap().0, 0);

    source.send(&disk);
    let incoming = open([8; 16], outline.clone()).unwrap();
    assert_eq!(
        incoming.position(Part::Log),
        start,
        "bytes of another group"
    );

    source.send(&disk);
    let mut incoming = open(GROUP, outline).unwrap();
    assert_eq!(incoming.position(Part::Log), end);
    incoming.restart(Part::Log).unwrap();
    assert_eq!(incoming.position(Part::Log), start);
    let wrong = incoming.write(Part::Log, start + 1, b"x");
    assert!(
        matches!(wrong, Err(IncomingError::Place { .. })),
        "{wrong:?}"
    );
    let too_much = vec![0; usize::try_from(SEGMENT_BYTES).unwrap() + 1];
    let wrong = incoming.write(Part::Log, start, &too_much);
    assert!(
        matches!(wrong, Err(IncomingError::Place { .. })),
        "{wrong:?}"
    );
    let incomplete = incoming.finish(&source.rest);
    assert!(matches!(incomplete, Err(IncomingError::Incomplete)));
    assert!(!begin(&disk), "nothing complete has arrived");
}

#[test]
fn what_a_transfer_left_can_be_removed() {
    let source = Source::new();
    let sim = target();
    let disk: Arc<dyn Disk> = Arc::new(sim);
    let config = settings();
    let forget = || forget_incoming(&config, &*disk).unwrap();
    assert!(!forget());
    source.send(&disk);
    assert!(forget());
    for dir in [
        config.root().join("incoming"),
        config.commit_log_dir.join("incoming"),
        config.raft_index_dir().join("incoming"),
    ] {
        assert_eq!(disk.list(&dir).unwrap(), Vec::<String>::new());
    }
    assert!(!begin(&disk));
    let outline = source.outgoing.outline().clone();
    let incoming = Incoming::open(&config, Arc::clone(&disk), GROUP, outline.clone()).unwrap();
    assert_eq!(
        incoming.position(Part::Log),
        outline.range(Part::Log).0,
        "the next one begins anew"
    );
}

#[test]
fn a_log_that_has_all_of_a_snapshot_is_not_given_up_for_it() {
    let source = Source::new();
    let disk: Arc<dyn Disk> = Arc::new(target());
    source.send(&disk);
    assert!(begin(&disk));
    assert_is(
        store::open(&settings(), Arc::clone(&disk)).unwrap(),
        &source,
    );
    source.send(&disk);
    assert!(!begin(&disk));
    assert!(!begin(&disk));
}

#[test]
fn a_damaged_intent_is_refused_with_what_to_do() {
    let source = Source::new();
    let sim = target();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    source.send(&disk);
    assert!(begin(&disk));
    let path = settings().path("install.intent");
    sim.flip(&path, 100);
    let error = Log::open(&settings(), &disk).unwrap_err().to_string();
    assert!(
        error.contains("install.intent") && error.contains("empty store"),
        "{error}"
    );
}
