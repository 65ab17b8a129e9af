//! The log of a Java DLedger node. Each of its entries is a header of 48 bytes and one record, so the
//! records are written anew, without the headers and at other positions; a file keeps which.
//!
//! Entry (`DLedgerEntryCoder`, 0.3): `magic i32 = 1 | size i32 | index i64 | term i64 | pos i64 |
//! channel i32 | chain crc i32 | body crc i32 | body length i32 | body`. A filler has magic −1 and its
//! size. A unit of the index is `magic i32 | pos i64 | size i32 | index i64 | term i64`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use rmq_wire::name;
use rmq_wire::record::{
    self, BLANK_LEN, BORN_HOST_AT, HOST_V4_LEN, HOST_V6_LEN, MIN_LEN, PHYSICAL_OFFSET_AT, Record,
    sys_flag,
};
use serde::{Deserialize, Serialize};

use crate::problem::{Code, Problem};
use crate::progress::Progress;
use crate::source::{NodeLog, Segment, Source, list};
use crate::walk::{check, read_up_to};

const HEADER_LEN: u64 = 48;
const ENTRY_MAGIC: i32 = 1;
const FILLER_MAGIC: i32 = -1;
const INDEX_UNIT: u64 = 32;
/// Units of the index that are read at once.
const UNITS: usize = 1 << 15;

/// What became of a DLedger log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewritten {
    pub start: u64,
    pub end: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub last_term: u64,
    /// Entries at the end that no majority is known to have.
    pub unconfirmed: u64,
    /// Entries that were left out because no majority can have them.
    pub left_out: u64,
    pub by_topic: BTreeMap<String, u64>,
}

/// The index of a DLedger log: the term of any entry without reading the log.
#[derive(Debug)]
struct Index {
    dir: PathBuf,
    file_bytes: u64,
    first_file: u64,
    first: u64,
    last: u64,
}

impl Index {
    /// Of the log whose `data` directory this is. `None` if it has no entries.
    fn open(data: &Path) -> Result<Option<Self>, Problem> {
        let dir = data.with_file_name("index");
        let names: Vec<u64> = list(&dir)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        let Some(&first_file) = names.first() else {
            return Ok(None);
        };
        let path = dir.join(format!("{first_file:020}"));
        let meta = std::fs::metadata(&path).map_err(|error| Problem::reading(&path, &error))?;
        let mut index = Self {
            dir,
            file_bytes: meta.len().max(INDEX_UNIT),
            first_file,
            first: first_file / INDEX_UNIT,
            last: 0,
        };
        // The first file may begin in the middle of what was deleted; entries are consecutive.
        let last_file = names.last().copied().unwrap_or(first_file);
        let (mut low, mut high) = (index.first, (last_file + index.file_bytes) / INDEX_UNIT);
        while low < high {
            let middle = low + (high - low) / 2;
            if index.term(middle)?.is_some() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == index.first {
            return Ok(None);
        }
        index.last = low - 1;
        index.last = index.before_terms_fall()?;
        Ok(Some(index))
    }

    /// Its last entry, or the one before which terms fall: a node that had to take entries back writes on in their
    /// place, and the units of those behind keep their older terms until they are overwritten.
    fn before_terms_fall(&self) -> Result<u64, Problem> {
        let (mut entry, mut term) = (self.first, 0);
        let mut buf = vec![0; UNITS * INDEX_UNIT as usize];
        while entry <= self.last {
            let units = usize::try_from(self.last - entry + 1).unwrap_or(UNITS);
            let read = self.read(entry, &mut buf[..units.min(UNITS) * INDEX_UNIT as usize])?;
            let (units, _) = buf[..read.unwrap_or(0)].as_chunks::<{ INDEX_UNIT as usize }>();
            if units.is_empty() {
                break;
            }
            for unit in units {
                if long(unit, 24) < term {
                    return Ok(entry - 1);
                }
                term = long(unit, 24);
                entry += 1;
            }
        }
        Ok(self.last)
    }

    /// Reads units from that of an entry on, as far as their file goes; how many bytes. `None` without a file.
    fn read(&self, entry: u64, units: &mut [u8]) -> Result<Option<usize>, Problem> {
        let at = entry * INDEX_UNIT;
        if at < self.first_file {
            return Ok(None);
        }
        let start = at - (at - self.first_file) % self.file_bytes;
        let path = self.dir.join(format!("{start:020}"));
        let reading = |error| Problem::reading(&path, &error);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(reading)?,
        };
        let read = read_up_to(&file, at - start, units).map_err(reading)?;
        Ok(Some(read))
    }

    /// The unit of an entry, if it is there.
    fn unit(&self, entry: u64) -> Result<Option<[u8; INDEX_UNIT as usize]>, Problem> {
        let mut unit = [0; INDEX_UNIT as usize];
        self.read(entry, &mut unit)?;
        let there = int(&unit, 0) == ENTRY_MAGIC && long(&unit, 16) == entry && int(&unit, 12) > 0;
        Ok(there.then_some(unit))
    }

    /// The term of an entry, if it is there.
    fn term(&self, entry: u64) -> Result<Option<u64>, Problem> {
        Ok(self.unit(entry)?.map(|unit| long(&unit, 24)))
    }

    /// Refuses a log that goes on behind the last entry of its index, as after a power cut: what is there may be
    /// confirmed.
    fn check_end(&self, segments: &[Segment], segment_bytes: u64) -> Result<(), Problem> {
        let Some(unit) = self.unit(self.last)? else {
            return Ok(());
        };
        let end = long(&unit, 4).checked_add(u64::from(int(&unit, 12).unsigned_abs()));
        // It may be the first of the next file.
        let next = end.and_then(|end| end.checked_next_multiple_of(segment_bytes));
        for at in end.into_iter().chain(next) {
            let Some(segment) = segments
                .iter()
                .find(|of| at - at % segment_bytes == of.base)
            else {
                continue;
            };
            let reading = |error| Problem::reading(&segment.path, &error);
            let file = File::open(&segment.path).map_err(reading)?;
            let mut head = [0; HEADER_LEN as usize];
            read_up_to(&file, at - segment.base, &mut head).map_err(reading)?;
            let goes_on = int(&head, 0) == ENTRY_MAGIC
                && long(&head, 8) == self.last + 1
                && long(&head, 16) >= long(&unit, 24)
                && long(&head, 24) == at;
            if goes_on {
                let what = format!(
                    "the log has entry {}, its index ends before it",
                    self.last + 1
                );
                return Err(Problem::new(Code::BadEntry, what)
                    .at_file(&segment.path)
                    .at_byte(at - segment.base)
                    .why("the node was not stopped cleanly; entries that the index lacks may be confirmed")
                    .hint("start the Java node once, so that it mends the index, and stop it again"));
            }
        }
        Ok(())
    }

    /// The last entry that this log and another have in common.
    fn common(&self, other: &Self) -> Result<Option<u64>, Problem> {
        let from = self.first.max(other.first);
        let (mut low, mut high) = (from, self.last.min(other.last) + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.term(middle)?.is_some() && self.term(middle)? == other.term(middle)? {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok((low > from).then(|| low - 1))
    }
}

/// What a group has confirmed, told by the logs of those of its nodes whose stores are given, own first.
struct Votes<'a> {
    all: &'a [Index],
    /// How many have to have an entry for a majority; `None` if nobody says how many nodes there are.
    majority: Option<usize>,
    /// Nodes of which nothing is known: they may have any entry.
    unknown: usize,
}

impl Votes<'_> {
    /// How many of the given have to have an entry that a majority may have.
    fn least(&self) -> usize {
        let least = self.majority.unwrap_or(1).saturating_sub(self.unknown);
        least.max(1)
    }

    /// What each log has in common with one of them.
    fn common(&self, one: &Index) -> Result<Vec<Option<u64>>, Problem> {
        let of = |other: &Index| {
            if std::ptr::eq(one, other) {
                Ok(Some(one.last))
            } else {
                one.common(other)
            }
        };
        self.all.iter().map(of).collect()
    }

    /// The last own entry that this many have.
    fn shared(&self, by: usize) -> Result<Option<u64>, Problem> {
        let mut common = self.common(&self.all[0])?;
        common.sort_unstable_by(|a, b| b.cmp(a));
        Ok(common.get(by - 1).copied().flatten())
    }

    /// Of the entries that others have and own has not, the first one that may be confirmed, and
    /// whether it is so for certain.
    fn lacking(&self) -> Result<Option<(u64, bool)>, Problem> {
        let own = &self.all[0];
        let own_term = own.term(own.last)?;
        let mut first: Option<(u64, bool)> = None;
        for other in &self.all[1..] {
            let from = other
                .common(own)?
                .map_or_else(|| own.first.max(other.first), |last| last + 1);
            if from > other.last {
                continue;
            }
            let common = self.common(other)?;
            let holders = common.iter().filter(|last| **last >= Some(from)).count();
            let certain = self.majority.is_some_and(|majority| holders >= majority);
            // The leader of a later term had all that was confirmed before it.
            let possible = holders >= self.least() && other.term(other.last)? >= own_term;
            if certain || possible {
                let (at, sure) = first.unwrap_or((from, false));
                first = Some((at.min(from), sure || certain));
            }
        }
        Ok(first)
    }
}

/// The last entry that a node itself knows to be confirmed.
fn noted(data: &Path) -> u64 {
    let path = data.with_file_name("checkpoint");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let committed = text.lines().find_map(|line| {
        line.strip_prefix("committedIndex=")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    committed.unwrap_or(0)
}

/// The id of the node whose log lies in `dledger-<id>/data`, which has to be one of the group's.
fn member(root: &Path, data: &Path, nodes: Option<&[String]>) -> Result<String, Problem> {
    let dir = data.parent().and_then(Path::file_name).unwrap_or_default();
    let dir = dir.to_string_lossy();
    let id = dir.strip_prefix("dledger-").unwrap_or_default();
    match nodes {
        Some(nodes) if !nodes.iter().any(|node| node == id) => {
            let of = nodes.join(", ");
            let what = format!("this is the store of node {id}, dLegerPeers has {of}");
            Err(Problem::new(Code::StoresDiffer, what)
                .at_file(root)
                .why("how many nodes are a majority is told by dLegerPeers")
                .hint("give -c the properties of one of the group's nodes"))
        }
        _ => Ok(id.to_owned()),
    }
}

/// The logs of the other nodes. One without an index is noted, and counts as not given.
fn open_others(
    source: &Source,
    others: &[PathBuf],
    nodes: Option<&[String]>,
    notes: &mut Vec<Problem>,
) -> Result<Vec<Index>, Problem> {
    let mut seen = vec![member(&source.root, &source.log_dir, nodes)?];
    let mut found = Vec::new();
    for other in others {
        let Some(opened) = NodeLog::open(other)? else {
            return Err(
                Problem::new(Code::StoresDiffer, "this is no store of a DLedger node")
                    .at_file(other)
                    .hint("--compare-with names the stores of the group's other nodes"),
            );
        };
        let id = member(other, &opened.dir, nodes)?;
        if seen.contains(&id) {
            return Err(Problem::new(
                Code::StoresDiffer,
                "a store of the same node is given already",
            )
            .at_file(other)
            .why("the second one would count as another node's vote")
            .hint("give one store of each node"));
        }
        seen.push(id);
        match Index::open(&opened.dir)? {
            Some(index) => {
                index.check_end(&opened.segments, opened.segment_bytes)?;
                found.push(index);
            }
            None => notes.push(
                Problem::new(
                    Code::BadEntry,
                    "the index of this DLedger log has no entries",
                )
                .at_file(other)
                .why("the node counts as one whose store is not given"),
            ),
        }
    }
    Ok(found)
}

/// Which entries to take, given the logs of other nodes of a group of those with these ids: `last_index` is the last
/// one. An entry that may be confirmed is taken. What is odd goes to `notes`.
pub(crate) fn plan(
    source: &Source,
    others: &[PathBuf],
    nodes: Option<&[String]>,
    notes: &mut Vec<Problem>,
) -> Result<Rewritten, Problem> {
    let mut done = Rewritten {
        start: source.segments[0].base,
        ..Rewritten::default()
    };
    let index = Index::open(&source.log_dir)?.ok_or_else(|| {
        Problem::new(
            Code::BadEntry,
            "the index of the DLedger log has no entries",
        )
        .at_file(&source.log_dir.with_file_name("index"))
        .hint("start the Java node once, so that it builds the index, and stop it again")
    })?;
    index.check_end(&source.segments, source.segment_bytes)?;
    let (first, last) = (index.first, index.last);
    let mut all = vec![index];
    all.extend(open_others(source, others, nodes, notes)?);
    let nodes = nodes.map(<[String]>::len);
    let votes = Votes {
        all: &all,
        majority: nodes.map(|nodes| nodes / 2 + 1),
        unknown: nodes.map_or(usize::MAX, |nodes| nodes - all.len()),
    };
    let of = nodes.map_or_else(
        || "an unknown number of".to_owned(),
        |nodes| nodes.to_string(),
    );
    let given = format!("the stores of {} of {of} nodes are given", all.len());
    match votes.lacking()? {
        None => {}
        Some((from, true)) => {
            let what = format!(
                "a majority of the group's nodes has entries that this one lacks, from {from} on"
            );
            return Err(Problem::new(Code::StoresDiffer, what)
                .at_file(&source.root)
                .why("messages were confirmed by that majority; they would be lost")
                .hint("give one of the other nodes as --from"));
        }
        Some((from, false)) => {
            let what = format!("{given}, and one has entries that this one lacks, from {from} on");
            return Err(Problem::new(Code::Unconfirmed, what)
                .at_file(&source.root)
                .why("with those that are not given a majority may have confirmed them")
                .hint(
                    "give the stores of all other nodes with --compare-with and a node's \
                     properties with -c, or the node that has them as --from",
                ));
        }
    }
    (done.first_index, done.last_index) = (first, last);
    let noted = noted(&source.log_dir).min(last);
    let possible = votes.shared(votes.least())?.max(Some(noted));
    let Some(possible) = possible.filter(|possible| *possible >= first) else {
        return Err(Problem::new(
            Code::StoresDiffer,
            "the logs of the other nodes have no entry of this one",
        )
        .at_file(&source.root)
        .hint("give the stores of one group's nodes, as they were stopped together"));
    };
    done.left_out = last - possible;
    done.last_index = possible;
    let confirmed = match votes.majority {
        Some(majority) => votes.shared(majority)?.unwrap_or(0),
        None => 0,
    };
    done.unconfirmed = possible - confirmed.max(noted).min(possible);
    // Fewer stores than any majority has a part in.
    if votes
        .majority
        .is_none_or(|majority| votes.unknown >= majority)
    {
        notes.push(
            Problem::new(Code::Unconfirmed, given)
                .at_file(&source.root)
                .why("the others may have confirmed messages that this one lacks")
                .hint(
                    "give the other nodes' stores with --compare-with, and a node's properties with \
                     -c, to be sure",
                ),
        );
    }
    Ok(done)
}

/// Writes the planned records of the log into `dir` as a classic commit log, and the positions into `map`:
/// pairs of `u64`, big endian, where a record was and where it is, in rising order.
pub(crate) fn rewrite(
    source: &Source,
    mut done: Rewritten,
    dir: &Path,
    map: &Path,
    progress: &Progress,
) -> Result<Rewritten, Problem> {
    let last = done.last_index;
    let map_file = File::create(map).map_err(|error| Problem::writing(map, &error))?;
    let mut map_out = BufWriter::new(map_file);
    let mut out = Out::new(dir, done.start, source.segment_bytes)?;
    // Where half messages went, for those that name one.
    let mut half: BTreeMap<u64, u64> = BTreeMap::new();
    let mut next_index = None;
    progress.phase(
        "writing the log anew",
        source.segment_bytes * source.segments.len() as u64,
    );
    'segments: for segment in &source.segments {
        let file =
            File::open(&segment.path).map_err(|error| Problem::reading(&segment.path, &error))?;
        let mut at = 0;
        while at + HEADER_LEN <= source.segment_bytes {
            let reading = |error| Problem::reading(&segment.path, &error);
            let mut head = [0; HEADER_LEN as usize];
            read_up_to(&file, at, &mut head).map_err(reading)?;
            let bad = |what: String| {
                Problem::new(Code::BadEntry, what)
                    .at_file(&segment.path)
                    .at_byte(at)
                    .why("the log of this node is damaged here")
                    .hint("give another node of the group as --from")
            };
            let (magic, size) = (int(&head, 0), int(&head, 4));
            if magic == FILLER_MAGIC {
                break;
            }
            let index = long(&head, 8);
            let position = segment.base + at;
            let right = magic == ENTRY_MAGIC
                && u64::try_from(size).is_ok_and(|size| size >= HEADER_LEN + MIN_LEN as u64)
                && long(&head, 24) == position
                && next_index.is_none_or(|next| next == index);
            if !right {
                if next_index.is_some_and(|next| next > last) {
                    break 'segments;
                }
                let wanted = next_index.map_or_else(String::new, |next: u64| format!(" {next}"));
                return Err(bad(format!(
                    "no entry{wanted}, though the index goes to {last}"
                )));
            }
            if index > last {
                break 'segments;
            }
            next_index = Some(index + 1);
            done.last_index = index;
            done.last_term = long(&head, 16);
            let size = u64::from(size.unsigned_abs());
            let mut raw = vec![0; usize::try_from(size - HEADER_LEN).unwrap_or(0)];
            read_up_to(&file, at + HEADER_LEN, &mut raw).map_err(reading)?;
            let old = position + HEADER_LEN;
            let record = check(&raw, old).map_err(&bad)?;
            *done.by_topic.entry(record.topic.to_owned()).or_default() += 1;
            let is_half = record.topic == name::TRANS_HALF_TOPIC;
            let prepared = u64::try_from(record.prepared_transaction_offset).unwrap_or(0);
            let prepared_at = prepared_offset_at(&record);
            let new = out.place(raw.len())?;
            if is_half {
                half.insert(old, new);
            }
            raw[PHYSICAL_OFFSET_AT..][..8].copy_from_slice(&new.to_be_bytes());
            if let Some(moved) = half.get(&prepared).filter(|_| prepared > 0) {
                raw[prepared_at..][..8].copy_from_slice(&moved.to_be_bytes());
            }
            out.write(&raw)?;
            let pair = [old.to_be_bytes(), new.to_be_bytes()].concat();
            map_out
                .write_all(&pair)
                .map_err(|error| Problem::writing(map, &error))?;
            at += size;
            progress.add_record(size);
        }
    }
    let Some(next) = next_index else {
        return Err(crate::source::empty(&source.log_dir));
    };
    if next <= last {
        let what = format!(
            "the log ends with entry {}, the index goes to {last}",
            next - 1
        );
        return Err(Problem::new(Code::BadEntry, what)
            .at_file(&source.log_dir)
            .hint("give another node of the group as --from"));
    }
    done.end = out.finish()?;
    map_out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .and_then(|file| file.sync_all())
        .map_err(|error| Problem::writing(map, &error))?;
    Ok(done)
}

fn prepared_offset_at(record: &Record<'_>) -> usize {
    let host = |bit| {
        if record.sys_flag & bit == 0 {
            HOST_V4_LEN
        } else {
            HOST_V6_LEN
        }
    };
    let hosts = host(sys_flag::BORN_HOST_V6) + host(sys_flag::STORE_HOST_V6);
    BORN_HOST_AT + hosts + 8 + 4
}

/// A commit log that is being written.
struct Out {
    dir: PathBuf,
    segment_bytes: u64,
    base: u64,
    file: BufWriter<File>,
    path: PathBuf,
    at: u64,
}

impl Out {
    fn new(dir: &Path, base: u64, segment_bytes: u64) -> Result<Self, Problem> {
        let (file, path) = Self::create(dir, base, segment_bytes)?;
        Ok(Self {
            dir: dir.to_owned(),
            segment_bytes,
            base,
            file,
            path,
            at: 0,
        })
    }

    fn create(dir: &Path, base: u64, bytes: u64) -> Result<(BufWriter<File>, PathBuf), Problem> {
        let path = dir.join(format!("{base:020}"));
        let file = File::create(&path).and_then(|file| {
            file.set_len(bytes)?;
            Ok(file)
        });
        let file = file.map_err(|error| Problem::writing(&path, &error))?;
        Ok((BufWriter::with_capacity(1 << 20, file), path))
    }

    /// Where a record of this length comes to lie, a segment's end filled up before it if need be.
    fn place(&mut self, len: usize) -> Result<u64, Problem> {
        let left = self.segment_bytes - self.at;
        if (len + BLANK_LEN) as u64 > left {
            let blank = record::blank(u32::try_from(left).unwrap_or(u32::MAX));
            self.write(&blank)?;
            self.close()?;
            self.base += self.segment_bytes;
            (self.file, self.path) = Self::create(&self.dir, self.base, self.segment_bytes)?;
            self.at = 0;
        }
        Ok(self.base + self.at)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.at += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| Problem::writing(&self.path, &error))
    }

    fn close(&mut self) -> Result<(), Problem> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(|error| Problem::writing(&self.path, &error))
    }

    fn finish(mut self) -> Result<u64, Problem> {
        self.close()?;
        Ok(self.base + self.at)
    }
}

fn int(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of entries from 0 on with these terms, in two files, in a directory as of a node.
    fn index(terms: &[u64]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("dledger-n0/data");
        std::fs::create_dir_all(&data).unwrap();
        let path = data.with_file_name("index");
        std::fs::create_dir_all(&path).unwrap();
        let mut units = Vec::new();
        for (entry, term) in (0_u64..).zip(terms) {
            units.extend(ENTRY_MAGIC.to_be_bytes());
            units.extend((entry * 100).to_be_bytes());
            units.extend(100_i32.to_be_bytes());
            units.extend(entry.to_be_bytes());
            units.extend(term.to_be_bytes());
        }
        units.resize(8 * INDEX_UNIT as usize, 0);
        let (one, two) = units.split_at(4 * INDEX_UNIT as usize);
        std::fs::write(path.join(format!("{:020}", 0)), one).unwrap();
        std::fs::write(path.join(format!("{:020}", one.len())), two).unwrap();
        (dir, data)
    }

    #[test]
    fn units_of_entries_that_were_taken_back_are_not_of_the_log() {
        for (terms, last) in [
            (&[1, 1, 2, 2, 3, 3][..], 5),
            (&[1, 1, 3, 3, 2, 2], 3),
            (&[1, 3, 2, 2, 4, 4], 1),
            (&[1, 1, 2, 5, 2, 2, 2, 2], 3),
        ] {
            let (_dir, data) = index(terms);
            let index = Index::open(&data).unwrap().unwrap();
            assert_eq!((index.first, index.last), (0, last), "{terms:?}");
        }
        let (_dir, data) = index(&[]);
        assert!(Index::open(&data).unwrap().is_none());
    }

    #[test]
    fn a_log_that_goes_on_behind_its_index_is_refused() {
        let (_dir, data) = index(&[1, 1, 2]);
        let index = Index::open(&data).unwrap().unwrap();
        // A file ends behind its last entry, or with a filler.
        for (bytes, at) in [(1000, 300_u64), (300, 300), (350, 350)] {
            let segments = [0, bytes].map(|base| Segment {
                base,
                path: data.join(format!("{base:020}")),
            });
            for (entry, term, refused) in [
                (3_u64, 2_u64, true),
                (3, 3, true),
                (3, 1, false),
                (4, 2, false),
            ] {
                for segment in &segments {
                    std::fs::write(&segment.path, vec![0; 1000]).unwrap();
                }
                let segment = &segments[usize::from(at >= bytes)];
                let mut log = vec![0; 1000];
                let entry = [
                    &ENTRY_MAGIC.to_be_bytes()[..],
                    &100_i32.to_be_bytes(),
                    &entry.to_be_bytes(),
                    &term.to_be_bytes(),
                    &at.to_be_bytes(),
                ]
                .concat();
                let from = usize::try_from(at - segment.base).unwrap();
                log[from..from + entry.len()].copy_from_slice(&entry);
                std::fs::write(&segment.path, &log).unwrap();
                let found = index.check_end(&segments, bytes);
                assert_eq!(found.is_err(), refused, "{bytes} {at} {term} {found:?}");
            }
        }
    }
}
