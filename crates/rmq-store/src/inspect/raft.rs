//! Our own part of a store: extents in the log, and the notes beside it.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rmq_wire::record::Record;
use serde::Serialize;

use super::files::LogFiles;
use super::walk::Place;
use super::{DamageKind, Damages, InspectError, at};
use crate::checkpoint::{
    CHECKPOINT_FILE, CHECKPOINT_MAGIC, Checkpoint, VOTE_FILE, VOTE_MAGIC, decode_vote,
};
use crate::disk::Disk;
use crate::extent::{Header, RAFT_LOG_TOPIC, split, verify};
use crate::frozen::FreezeMark;
use crate::slots::{SlotsError, read};
use crate::types::{EntryId, EntryKind, PhyOffset};

/// The Raft log of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RaftPart {
    /// By number; all but the newest are history.
    pub generations: Vec<Generation>,
    pub notes: NotesPart,
}

/// The entries of one generation that the log holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Generation {
    pub generation: i32,
    /// Whole extents.
    pub extents: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub first_term: u64,
    pub last_term: u64,
    pub blank: u64,
    pub membership: u64,
    pub metadata: u64,
    pub messages: u64,
    /// Records in the extents, headers not counted.
    pub records: u64,
    /// Where the first extent starts, and behind the last one.
    pub start_offset: u64,
    pub end_offset: u64,
    /// Behind the last extent with messages; 0 if there is none.
    pub messages_end_offset: u64,
}

/// What the files beside the log note.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotesPart {
    pub generation: Option<i32>,
    /// Where the Raft log begins.
    pub base_offset: Option<u64>,
    /// An entry that is known to be committed, and where it ends.
    pub committed: Option<String>,
    pub confirm_offset: Option<u64>,
    pub purged: Option<String>,
    /// Whether acknowledged entries may be missing.
    pub suspect: Option<bool>,
    /// Where the log ended at a clean stop.
    pub clean_end: Option<u64>,
    /// Term and node of the vote, and whether a majority gave it.
    pub vote: Option<String>,
    /// Entry and end of a freeze, see `mqadmin raftFreeze`.
    pub frozen: Option<FrozenPart>,
}

/// A freeze, as its mark says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenPart {
    pub term: u64,
    pub index: u64,
    /// Behind the entry.
    pub end_offset: u64,
    /// Milliseconds since 1970.
    pub at_ms: i64,
}

/// Reads vote, checkpoint and mark; `None` if none of them is there.
pub(super) fn notes(
    disk: &Arc<dyn Disk>,
    root: &Path,
    damage: &mut Damages,
) -> Result<Option<NotesPart>, InspectError> {
    let mut notes = None;
    let mut slots = |name: &str, magic: u32| {
        let path = root.join(name);
        let unusable = "both slots are damaged";
        match read(&**disk, &path, magic) {
            Ok(content) => Ok(content),
            Err(SlotsError::Damaged) => {
                damage.add(DamageKind::Notes, &path, 0, unusable);
                Ok(None)
            }
            Err(SlotsError::Io(e)) => Err(at(&path)(e)),
        }
    };
    let shown = |id: Option<EntryId>| id.map(|id| id.to_string());
    if let Some(content) = slots(CHECKPOINT_FILE, CHECKPOINT_MAGIC)?
        && let Some(checkpoint) = Checkpoint::decode(&content)
    {
        notes = Some(NotesPart {
            generation: Some(checkpoint.generation),
            base_offset: Some(checkpoint.base.0),
            committed: shown(checkpoint.committed),
            confirm_offset: Some(checkpoint.confirm.0),
            purged: shown(checkpoint.purged),
            suspect: Some(checkpoint.suspect),
            clean_end: checkpoint.clean_end.map(|end| end.0),
            ..NotesPart::default()
        });
    }
    if let Some(content) = slots(VOTE_FILE, VOTE_MAGIC)? {
        let vote = decode_vote(&content).flatten();
        notes.get_or_insert_default().vote = vote.map(|vote| {
            let given = if vote.committed { ", elected" } else { "" };
            format!("term {} for node {:016x}{given}", vote.term, vote.node)
        });
    }
    let mark = FreezeMark::read(&**disk, root).map_err(at(root))?;
    if let Some(mark) = mark {
        notes.get_or_insert_default().frozen = Some(FrozenPart {
            term: mark.id.term.0,
            index: mark.id.index.0,
            end_offset: mark.end.0,
            at_ms: mark.at_ms,
        });
    }
    Ok(notes)
}

/// Follows extents while the log is read.
#[derive(Debug, Default)]
pub(super) struct Extents {
    generations: Vec<Generation>,
    last: Option<EntryId>,
    /// The last extent that is not whole, which is what a crash leaves unless something follows.
    open: Option<Damage>,
    found: Vec<Damage>,
}

#[derive(Debug)]
struct Damage {
    file: std::path::PathBuf,
    pos: u64,
    what: String,
}

impl Extents {
    /// Takes a header record; whether it is one.
    pub(super) fn take(&mut self, log: &LogFiles, place: Place<'_>, record: &Record<'_>) -> bool {
        if record.topic != RAFT_LOG_TOPIC {
            return false;
        }
        self.found.extend(self.open.take());
        match self.check(log, place.pos, record) {
            Ok(()) => {}
            Err(what) => {
                self.open = Some(Damage {
                    file: place.file.to_owned(),
                    pos: place.pos,
                    what,
                });
            }
        }
        true
    }

    fn check(&mut self, log: &LogFiles, pos: u64, record: &Record<'_>) -> Result<(), String> {
        let number = record.queue_id;
        let bytes = log.record(pos).ok_or("is cut")?;
        let (header, _) =
            Header::decode(&bytes, number, PhyOffset(pos)).map_err(|e| e.to_string())?;
        if self.generations.last().map(|g| g.generation) != Some(number) {
            self.generations.push(Generation {
                generation: number,
                first_index: header.id.index.0,
                first_term: header.id.term.0,
                start_offset: header.start.0,
                ..Generation::default()
            });
            self.last = None;
        }
        if let Some(last) = self.last
            && (header.id.index != last.index.next()
                || header.prev_term != last.term
                || header.id.leader() < last.leader())
        {
            let what = format!("entry {} does not follow {last}", header.id);
            self.last = Some(header.id);
            return Err(what);
        }
        self.last = Some(header.id);
        // What began in a file that has expired cannot be compared any more.
        if header.start.0 >= log.start() {
            let parts = parts(log, &header).ok_or("the log ends inside the extent")?;
            let segment_bytes = log.list.first().map_or(0, |file| file.bytes.len() as u64);
            let parts = split(header.start, &parts, segment_bytes);
            verify(&parts, number, segment_bytes).map_err(|e| e.to_string())?;
        }
        let generation = self.generations.last_mut().expect("one was pushed");
        generation.extents += 1;
        generation.last_index = header.id.index.0;
        generation.last_term = header.id.term.0;
        generation.end_offset = header.end().0;
        generation.records += u64::from(header.record_count);
        if header.kind == EntryKind::Messages {
            generation.messages_end_offset = header.end().0;
        }
        *match header.kind {
            EntryKind::Blank => &mut generation.blank,
            EntryKind::Membership => &mut generation.membership,
            EntryKind::Meta => &mut generation.metadata,
            EntryKind::Messages => &mut generation.messages,
        } += 1;
        Ok(())
    }

    /// Tells of what was wrong.
    pub(super) fn finish(&mut self, damage: &mut Damages) {
        for Damage { file, pos, what } in self.found.drain(..) {
            damage.add(DamageKind::Extent, &file, pos, what);
        }
        if let Some(Damage { file, pos, what }) = self.open.take() {
            damage.add(DamageKind::TornTail, &file, pos, what);
        }
    }
}

/// The bytes of an extent, a slice for each file.
fn parts(log: &LogFiles, header: &Header) -> Option<Vec<Bytes>> {
    let mut parts = Vec::new();
    let (mut pos, end) = (header.start.0, header.end().0);
    while pos < end {
        let rest = log.from(pos)?;
        let take = usize::try_from(end - pos).ok()?.min(rest.len());
        parts.push(rest.slice(..take));
        pos += take as u64;
    }
    Some(parts)
}

/// Both together; `None` for a store without either.
pub(super) fn part(notes: Option<NotesPart>, extents: Extents) -> Option<RaftPart> {
    if notes.is_none() && extents.generations.is_empty() {
        return None;
    }
    Some(RaftPart {
        generations: extents.generations,
        notes: notes.unwrap_or_default(),
    })
}
