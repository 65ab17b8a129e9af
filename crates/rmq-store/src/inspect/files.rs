//! The files of a commit log, mapped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rmq_wire::record::{self, Peek};

use super::{DamageKind, Damages, InspectError, at};
use crate::disk::{Disk, OpenMode};
use crate::segment::parse_name;

/// How records stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Classic,
    /// Behind a header of 48 bytes each.
    Dledger,
}

/// A file with its place in the log's address space.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) base: u64,
    pub(super) bytes: Bytes,
    pub(super) framing: Framing,
}

/// All files of a log, sorted by their start.
#[derive(Debug)]
pub(super) struct LogFiles {
    pub(super) dir: PathBuf,
    pub(super) list: Vec<LogFile>,
}

impl LogFiles {
    /// Finds and maps the files; says what is wrong with names and lengths.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        root: &Path,
        commit_log: Option<&Path>,
        damage: &mut Damages,
    ) -> Result<Self, InspectError> {
        let classic = commit_log.map_or_else(|| root.join("commitlog"), Path::to_owned);
        let mut dirs = vec![(classic.clone(), Framing::Classic)];
        for name in disk.list(root).map_err(at(root))? {
            if name.starts_with("dledger-") {
                dirs.push((root.join(name).join("data"), Framing::Dledger));
            }
        }
        let mut list = Vec::new();
        let mut first_dir = None;
        for (dir, framing) in dirs {
            for name in disk.list(&dir).map_err(at(&dir))? {
                let path = dir.join(&name);
                let Some(base) = parse_name(&name) else {
                    damage.add(DamageKind::Files, &path, 0, "no file of a commit log");
                    continue;
                };
                let bytes = map(disk, &path)?;
                list.push(LogFile {
                    path,
                    base,
                    bytes,
                    framing,
                });
                first_dir.get_or_insert_with(|| dir.clone());
            }
        }
        if list.is_empty() && disk.list(&classic).map_err(at(&classic))?.is_empty() {
            let there = disk.list(root).map_err(at(root))?;
            if !there.iter().any(|name| name == "commitlog") {
                return Err(InspectError::NoStore {
                    root: root.to_owned(),
                });
            }
        }
        list.sort_by_key(|file| file.base);
        for pair in list.windows(2) {
            let (one, next) = (&pair[0], &pair[1]);
            let end = one.base + one.bytes.len() as u64;
            if end != next.base {
                let what = format!(
                    "starts at {}, the file before ends at {end}: files are missing or have \
                     another length",
                    next.base
                );
                damage.add(DamageKind::Files, &next.path, next.base, what);
            }
        }
        Ok(Self {
            dir: first_dir.unwrap_or(classic),
            list,
        })
    }

    /// Where the first file starts.
    pub(super) fn start(&self) -> u64 {
        self.list.first().map_or(0, |file| file.base)
    }

    /// The bytes from a position on, up to the end of its file.
    pub(super) fn from(&self, pos: u64) -> Option<Bytes> {
        let after = self.list.partition_point(|file| file.base <= pos);
        let file = &self.list[after.checked_sub(1)?];
        let within = usize::try_from(pos - file.base).ok()?;
        (within < file.bytes.len()).then(|| file.bytes.slice(within..))
    }

    /// The whole record at a position, its CRC not compared.
    pub(super) fn record(&self, pos: u64) -> Option<Bytes> {
        let bytes = self.from(pos)?;
        let Peek::Record { size } = record::peek(&bytes) else {
            return None;
        };
        let said = bytes
            .get(record::PHYSICAL_OFFSET_AT..)?
            .first_chunk::<8>()?;
        (size <= bytes.len() && *said == pos.to_be_bytes()).then(|| bytes.slice(..size))
    }
}

/// A whole file, mapped; an empty one too.
pub(super) fn map(disk: &Arc<dyn Disk>, path: &Path) -> Result<Bytes, InspectError> {
    let view = || {
        let file = disk.open(path, OpenMode::Read)?;
        match usize::try_from(file.size()?).map_err(io::Error::other)? {
            0 => Ok(Bytes::new()),
            len => file.view(0, len),
        }
    };
    view().map_err(at(path))
}
