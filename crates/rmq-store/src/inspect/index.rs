//! Index files, as far as their headers tell.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::files::{LogFiles, map};
use super::{DamageKind, Damages, InspectError, at};
use crate::disk::Disk;
use crate::index_file::{HEADER_BYTES, Header};

/// What the index files say of themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexPart {
    pub files: u64,
    pub entries: u64,
    /// Positions of the first and the last message in them.
    pub first_offset: Option<u64>,
    pub last_offset: Option<u64>,
    /// Files whose messages have all left the log.
    pub expired_files: u64,
}

pub(super) fn read(
    disk: &Arc<dyn Disk>,
    root: &Path,
    log: &LogFiles,
    end: u64,
    damage: &mut Damages,
) -> Result<IndexPart, InspectError> {
    let dir = root.join("index");
    let mut part = IndexPart::default();
    for name in disk.list(&dir).map_err(at(&dir))? {
        let path = dir.join(&name);
        if name.len() != 17 || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let bytes = map(disk, &path)?;
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>().map(Header::decode) else {
            damage.add(DamageKind::Index, &path, 0, "shorter than a header");
            continue;
        };
        part.files += 1;
        if header.next_entry <= 1 {
            continue;
        }
        part.entries += u64::from(header.next_entry) - 1;
        part.first_offset = part.first_offset.or(Some(header.begin_phy.0));
        part.last_offset = Some(header.end_phy.0);
        if header.end_phy.0 < log.start() {
            part.expired_files += 1;
        }
        if header.end_phy.0 >= end {
            let what = format!("names {}, the log ends at {end}", header.end_phy);
            damage.add(DamageKind::Index, &path, 0, what);
        }
    }
    Ok(part)
}
