//! Random lives of a log against a plain list of entries.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::support::*;
use crate::config::{FlushMode, StoreConfig};
use crate::disk::{Disk, OpenMode};
use crate::log::Log;
use crate::sim::SimDisk;
use crate::types::{
    EntryId, EntryKind, LogIndex, NewEntry, PhyOffset, Position, QueueOffset, Term, Vote,
};

#[derive(Debug, Clone)]
enum Step {
    /// Entries of one call: what they carry.
    Append(Vec<Load>),
    Truncate(u64),
    /// Commits and purges up to this many entries before the last one; beyond it if negative.
    Purge(i64),
    Commit(u64),
    Vote(u64),
    Reopen {
        clean: bool,
    },
}

#[derive(Debug, Clone)]
enum Load {
    Blank,
    Meta(usize),
    /// Topic, queue, size, whether it takes an offset.
    Messages(Vec<(u8, i32, usize, bool)>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![8 => 0..200_usize, 1 => 2000..4097_usize];
    let message = (0..3_u8, 0..3, size, prop::bool::weighted(0.9));
    let load = prop_oneof![
        1 => Just(Load::Blank),
        2 => (0..5000_usize).prop_map(Load::Meta),
        8 => prop::collection::vec(message, 0..30).prop_map(Load::Messages),
    ];
    let step = prop_oneof![
        12 => prop::collection::vec(load, 1..6).prop_map(Step::Append),
        2 => (0..8_u64).prop_map(Step::Truncate),
        1 => (-2..10_i64).prop_map(Step::Purge),
        2 => (0..6_u64).prop_map(Step::Commit),
        1 => (1..100_u64).prop_map(Step::Vote),
        2 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
    ];
    prop::collection::vec(step, 1..40)
}

#[derive(Debug, Clone)]
struct Entry {
    id: EntryId,
    load: Load,
    positions: Vec<Position>,
}

struct Model {
    sim: SimDisk,
    config: StoreConfig,
    log: Log,
    entries: Vec<Entry>,
    purged: Option<EntryId>,
    committed: Option<EntryId>,
    vote: Option<Vote>,
    term: u64,
    offsets: BTreeMap<(String, i32), u64>,
}

fn open(sim: &SimDisk, config: &StoreConfig) -> Log {
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    Log::open(config, &disk).unwrap()
}

fn topic(n: u8) -> String {
    format!("topic{n}")
}

impl Model {
    fn new() -> Self {
        let sim = SimDisk::default();
        let config = config(
            Path::new("/store"),
            FlushMode::Async {
                interval_ms: 1_000_000,
            },
        );
        let log = open(&sim, &config);
        Self {
            sim,
            config,
            log,
            entries: Vec::new(),
            purged: None,
            committed: None,
            vote: None,
            term: 1,
            offsets: BTreeMap::new(),
        }
    }

    fn last(&self) -> Option<EntryId> {
        let last = self.entries.last().map(|entry| entry.id);
        if self.purged.map(|id| id.index) > last.map(|id| id.index) {
            self.purged
        } else {
            last
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append(loads) => self.append(loads),
            Step::Truncate(back) => self.truncate(*back),
            Step::Purge(back) => self.purge(*back),
            Step::Commit(back) => {
                let at = self
                    .entries
                    .len()
                    .checked_sub(usize::try_from(*back).unwrap() + 1);
                if let Some(entry) = at.map(|at| &self.entries[at])
                    && entry.id.index > self.committed.map(|id| id.index).unwrap_or_default()
                {
                    self.committed = Some(entry.id);
                    self.log.save_committed(self.committed);
                }
            }
            Step::Vote(term) => {
                self.vote = Some(Vote {
                    term: Term(*term),
                    node: 4,
                    committed: term % 2 == 0,
                });
                self.log.save_vote(self.vote.unwrap()).unwrap();
            }
            Step::Reopen { clean } => self.reopen(*clean),
        }
    }

    fn append(&mut self, loads: &[Load]) {
        let first = self.last().map_or(0, |id| id.index.0 + 1);
        let mut new = Vec::new();
        let mut cells = Vec::new();
        for (index, load) in (first..).zip(loads) {
            let id = id(self.term, index);
            let (entry, cell) = match load {
                Load::Blank => (blank(id), None),
                Load::Meta(size) => (meta(id, vec![6; *size]), None),
                Load::Messages(all) => {
                    let record = |(t, queue, size, queued): &(u8, i32, usize, bool)| {
                        pending(&topic(*t), *queue, &vec![8; *size], *queued)
                    };
                    let (entry, cell) = messages(id, all.iter().map(record).collect());
                    (entry, Some(cell))
                }
            };
            new.push(entry);
            cells.push((id, load.clone(), cell));
        }
        self.log.append(new).unwrap();
        for (id, load, cell) in cells {
            let positions = cell
                .map(|cell| cell.get().unwrap().clone())
                .unwrap_or_default();
            if let Load::Messages(all) = &load {
                assert_eq!(positions.len(), all.len());
                for ((t, queue, _, queued), position) in all.iter().zip(&positions) {
                    let next = self.offsets.entry((topic(*t), *queue)).or_default();
                    assert_eq!(position.queue.0, if *queued { *next } else { 0 });
                    *next += u64::from(*queued);
                }
            }
            self.entries.push(Entry {
                id,
                load,
                positions,
            });
        }
    }

    fn truncate(&mut self, back: u64) {
        let Some(last) = self.entries.last().map(|entry| entry.id.index.0) else {
            return;
        };
        let low = [self.purged, self.committed]
            .into_iter()
            .flatten()
            .map(|id| id.index.0)
            .max();
        let keep = (last + 1)
            .saturating_sub(back)
            .max(low.map_or(0, |low| low + 1));
        self.log
            .truncate_after(keep.checked_sub(1).map(LogIndex))
            .unwrap();
        while let Some(entry) = self.entries.pop_if(|entry| entry.id.index.0 >= keep) {
            if let Load::Messages(all) = entry.load {
                for (t, queue, _, queued) in all {
                    *self.offsets.get_mut(&(topic(t), queue)).unwrap() -= u64::from(queued);
                }
            }
        }
        self.term += 1;
    }

    fn purge(&mut self, back: i64) {
        let Some(last) = self.last() else { return };
        let Some(index) = last.index.0.checked_add_signed(-back) else {
            return;
        };
        if self.purged.is_some_and(|purged| purged.index.0 >= index) {
            return;
        }
        let there = self.entries.iter().find(|entry| entry.id.index.0 == index);
        let purged = there.map_or(
            EntryId {
                index: LogIndex(index),
                ..last
            },
            |entry| entry.id,
        );
        self.log.purge(purged).unwrap();
        self.purged = Some(purged);
        self.entries.retain(|entry| entry.id.index > purged.index);
    }

    fn reopen(&mut self, clean: bool) {
        let fresh = open(&SimDisk::default(), &self.config);
        let log = std::mem::replace(&mut self.log, fresh);
        if clean {
            log.close().unwrap();
        } else {
            drop(log);
        }
        self.log = open(&self.sim, &self.config);
        // The purged entries' offsets come from the queues; the others from the log.
        let first = self.log.reader().first_index();
        let mut maxima = self.offsets.clone();
        for entry in self
            .entries
            .iter()
            .filter(|entry| Some(entry.id.index) >= first)
        {
            if let Load::Messages(all) = &entry.load {
                for (t, queue, _, queued) in all {
                    *maxima.get_mut(&(topic(*t), *queue)).unwrap() -= u64::from(*queued);
                }
            }
        }
        let maxima = maxima
            .into_iter()
            .map(|((t, q), n)| (t.as_str().into(), q, QueueOffset(n)));
        self.log.seed_queue_offsets(maxima, PhyOffset(0)).unwrap();
    }

    fn check(&self) {
        let reader = self.log.reader();
        assert_eq!(reader.last_id(), self.last());
        assert_eq!(reader.purged_id(), self.purged);
        assert_eq!(
            reader.first_index(),
            self.entries.first().map(|entry| entry.id.index)
        );
        assert_eq!(self.log.read_vote(), self.vote);
        for ((topic, queue), next) in &self.offsets {
            assert_eq!(self.log.next_queue_offset(topic, *queue).0, *next);
        }
        let mut end = None;
        for entry in &self.entries {
            let stored = reader.entry(entry.id.index).unwrap().unwrap();
            assert_eq!(stored.id, entry.id);
            assert!(end.is_none_or(|end| end == stored.start));
            end = Some(stored.end);
            match &entry.load {
                Load::Blank => assert_eq!(stored.kind, EntryKind::Blank),
                Load::Meta(size) => assert_eq!(stored.meta.len(), *size),
                Load::Messages(all) => assert_eq!(stored.record_count as usize, all.len()),
            }
            for position in &entry.positions {
                let bytes = reader.slice(position.phy, 91).unwrap();
                assert_eq!(bytes[28..36], position.phy.0.to_be_bytes());
                assert_eq!(bytes[20..28], position.queue.0.to_be_bytes());
            }
        }
        assert_eq!(
            end.unwrap_or_else(|| reader.end_offset()),
            reader.end_offset()
        );
    }

    /// Another log that gets the same entries from this one has the same bytes.
    fn check_follower(&self, chunk: usize) {
        let sim = SimDisk::default();
        let mut follower = open(&sim, &self.config);
        let entries = raw_entries(&self.log.reader());
        for entries in entries.chunks(chunk) {
            let whole = |entry: &NewEntry| match entry {
                NewEntry::Sealed { id, bytes } => NewEntry::Sealed {
                    id: *id,
                    bytes: vec![bytes.concat().into()],
                },
                NewEntry::Unsealed { .. } => unreachable!(),
            };
            follower
                .append(entries.iter().map(whole).collect())
                .unwrap();
        }
        assert_eq!(
            follower.reader().end_offset(),
            self.log.reader().end_offset()
        );
        for ((topic, queue), next) in &self.offsets {
            assert_eq!(follower.next_queue_offset(topic, *queue).0, *next);
        }
        let bytes = |sim: &SimDisk, pos: u64| {
            let name = crate::segment::file_name(pos);
            let path = self.config.commit_log_dir.join(name);
            let mut content = vec![0; usize::try_from(SEGMENT_BYTES).unwrap()];
            sim.open(&path, OpenMode::Read)
                .unwrap()
                .read_at(0, &mut content)
                .unwrap();
            content
        };
        for pos in (0..self.log.reader().end_offset().0.max(1)).step_by(132 * 1024) {
            assert!(bytes(&self.sim, pos) == bytes(&sim, pos), "segment {pos}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_log_is_a_list_of_entries(steps in steps(), chunk in 1..9_usize) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
            model.check();
        }
        model.reopen(false);
        model.check();
        let walked = walk(&model.sim, &model.config.commit_log_dir);
        if model.purged.is_none() {
            let count: usize = model.entries.iter().map(|entry| entry.positions.len()).sum();
            prop_assert_eq!(messages_of(&walked).len(), count);
            model.check_follower(chunk);
        }
    }
}
