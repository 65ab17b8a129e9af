//! From record to record through the whole log.

use std::path::Path;

use rmq_wire::record::{self, MAGIC_V1, MAGIC_V2, Peek, Record};

use super::files::{Framing, LogFile, LogFiles};
use super::{DamageKind, Damages, DledgerPart, LogPart};

/// Bytes of the header of a DLedger entry: `i32 magic, i32 size, i64 index, i64 term, i64 position,
/// i32 channel, i32 chain CRC, i32 body CRC, i32 body length` (`DLedgerEntryCoder`, 0.3).
const ENTRY_HEADER: usize = 48;
/// Magic of a DLedger entry, and of the filler at a file's end.
const ENTRY_MAGIC: u32 = 1;
const ENTRY_BLANK_MAGIC: u32 = u32::MAX;

/// Where a record was found.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) pos: u64,
    pub(super) file: &'a Path,
}

/// The walk's own findings.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) log: LogPart,
    pub(super) dledger: Option<DledgerPart>,
}

/// What begins at a place.
enum Found<'a> {
    Record {
        record: Record<'a>,
        /// Where the record itself begins, behind an entry's header.
        at: usize,
        end: usize,
        entry: Option<(u64, u64)>,
    },
    /// Filler up to the end of the file.
    Blank,
    /// Zeros up to the end of the file.
    Unused,
    Bad(String),
}

/// Calls `visit` for every whole record in the order of the log. Behind a damaged place it goes on at
/// the next whole record.
pub(super) fn walk(
    log: &LogFiles,
    damage: &mut Damages,
    visit: &mut dyn FnMut(Place<'_>, &Record<'_>),
) -> Walked {
    let mut walked = Walked::default();
    walked.log.segments = log.list.len() as u64;
    walked.log.segment_bytes = log.list.first().map_or(0, |file| file.bytes.len() as u64);
    walked.log.min_offset = log.start();
    walked.log.max_offset = log.start();
    // A bad place, which is a torn tail unless a whole record follows anywhere.
    let mut open: Option<(&LogFile, u64, String)> = None;
    let mut unused: Option<&LogFile> = None;
    for file in &log.list {
        let mut at = 0;
        while at < file.bytes.len() {
            match look(file, at) {
                Found::Record {
                    record,
                    at: begin,
                    end,
                    entry,
                } => {
                    let pos = file.base + begin as u64;
                    if let Some((file, pos, what)) = open.take() {
                        damage.add(DamageKind::Record, &file.path, pos, what);
                    }
                    if let Some(file) = unused.take() {
                        let what = "the file ends in zeros, though records follow in the next";
                        damage.add(DamageKind::Record, &file.path, file.base, what);
                    }
                    walked.take(&record, entry);
                    let path = &file.path;
                    visit(Place { pos, file: path }, &record);
                    at = end;
                    walked.log.max_offset = file.base + at as u64;
                }
                Found::Blank => break,
                Found::Unused => {
                    unused = unused.or(Some(file));
                    break;
                }
                Found::Bad(what) => {
                    let pos = file.base + at as u64;
                    open.get_or_insert((file, pos, what));
                    match next_record(file, at + 1) {
                        Some(next) => at = next,
                        None => break,
                    }
                }
            }
        }
    }
    if let Some((file, pos, what)) = open {
        damage.add(DamageKind::TornTail, &file.path, pos, what);
    }
    walked
}

impl Walked {
    fn take(&mut self, record: &Record<'_>, entry: Option<(u64, u64)>) {
        self.log.records += 1;
        let stored = Some(record.store_timestamp);
        self.log.first_stored_ms = self.log.first_stored_ms.or(stored);
        self.log.last_stored_ms = stored;
        if let Some((index, term)) = entry {
            let part = self.dledger.get_or_insert_with(|| DledgerPart {
                first_index: index,
                first_term: term,
                ..DledgerPart::default()
            });
            part.entries += 1;
            (part.last_index, part.last_term) = (index, term);
        }
    }
}

fn look(file: &LogFile, at: usize) -> Found<'_> {
    let bytes = &file.bytes[at..];
    if file.framing == Framing::Dledger {
        return look_at_entry(file, at);
    }
    match record::peek(bytes) {
        Peek::Record { size } => match whole(file, at, size) {
            Ok(record) => Found::Record {
                record,
                at,
                end: at + size,
                entry: None,
            },
            Err(what) => Found::Bad(what),
        },
        Peek::Blank { size } if size == bytes.len() => Found::Blank,
        Peek::Blank { size } => Found::Bad(format!(
            "a blank of {size} bytes, though the file ends after {}",
            bytes.len()
        )),
        Peek::End if bytes.iter().all(|&byte| byte == 0) => Found::Unused,
        Peek::End => Found::Bad("no record".to_owned()),
    }
}

fn look_at_entry(file: &LogFile, at: usize) -> Found<'_> {
    let bytes = &file.bytes[at..];
    let word = |at: usize| {
        let four = bytes.get(at..at + 4)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*four))
    };
    let long = |at: usize| {
        let eight = bytes.get(at..at + 8)?.first_chunk::<8>()?;
        Some(u64::from_be_bytes(*eight))
    };
    match (word(0), word(4), long(8), long(16)) {
        (Some(ENTRY_BLANK_MAGIC), Some(_), ..) => Found::Blank,
        (Some(ENTRY_MAGIC), Some(size), Some(index), Some(term)) => {
            let size = size as usize;
            if size <= ENTRY_HEADER || size > bytes.len() {
                return Found::Bad(format!("an entry of {size} bytes"));
            }
            let begin = at + ENTRY_HEADER;
            match whole(file, begin, size - ENTRY_HEADER) {
                Ok(record) => Found::Record {
                    record,
                    at: begin,
                    end: at + size,
                    entry: Some((index, term)),
                },
                Err(what) => Found::Bad(what),
            }
        }
        _ if bytes.iter().all(|&byte| byte == 0) => Found::Unused,
        _ => Found::Bad("no entry".to_owned()),
    }
}

/// The record of `size` bytes at a place of a file, if that is whole.
fn whole(file: &LogFile, at: usize, size: usize) -> Result<Record<'_>, String> {
    let bytes = file
        .bytes
        .get(at..at + size)
        .ok_or_else(|| format!("a record of {size} bytes runs over the end of the file"))?;
    let record = Record::decode(bytes).map_err(|e| e.to_string())?;
    let pos = file.base + at as u64;
    if record.size != size {
        return Err(format!(
            "a record of {} bytes where {size} were meant",
            record.size
        ));
    }
    if u64::try_from(record.physical_offset) != Ok(pos) {
        return Err(format!(
            "a record that says it lies at {}",
            record.physical_offset
        ));
    }
    if !record.crc_matches() {
        let (said, found) = (record.body_crc, record::body_crc(record.body));
        return Err(format!(
            "topic {} queue {} offset {}: the body has CRC {found:08x}, the record says {said:08x}",
            record.topic, record.queue_id, record.queue_offset
        ));
    }
    Ok(record)
}

/// The next place in the file, at or behind `from`, where a whole record, with its entry's header if
/// there are such, begins.
fn next_record(file: &LogFile, from: usize) -> Option<usize> {
    let bytes = &file.bytes;
    let before = match file.framing {
        Framing::Classic => 0,
        Framing::Dledger => ENTRY_HEADER,
    };
    let first = from + before + record::MAGIC_AT;
    let mut words = bytes.get(first..)?.windows(4).zip(from..);
    words.find_map(|(word, at)| {
        let magic = u32::from_be_bytes(*word.first_chunk()?);
        let is_record =
            matches!(magic, MAGIC_V1 | MAGIC_V2) && matches!(look(file, at), Found::Record { .. });
        is_record.then_some(at)
    })
}
