//! Keeps the mark of a freeze in the store as the applied state says.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rmq_store::{Disk, FreezeMark, StoredEntry};

use crate::meta::Meta;

/// The mark's place, and the state that it follows.
pub(super) struct Marker {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    meta: Meta,
}

impl Marker {
    /// Reads the mark that the last life left.
    pub(super) fn open(disk: Arc<dyn Disk>, root: &Path, meta: Meta) -> io::Result<Self> {
        meta.set_mark(FreezeMark::read(&*disk, root)?);
        let root = root.to_owned();
        Ok(Self { disk, root, meta })
    }

    /// Writes or removes the mark where the state, of which `last` is the last entry, wants another.
    /// Durable on return, and known to the state only then.
    pub(super) fn follow(&self, last: &StoredEntry) -> io::Result<()> {
        let frozen = self.meta.read().frozen;
        let mark = match (frozen, self.meta.mark()) {
            (Some(frozen), mark) if mark.is_none_or(|mark| mark.id.index.0 < frozen.index) => {
                let mark = FreezeMark {
                    id: last.id,
                    end: last.end,
                    at_ms: frozen.at_ms,
                };
                mark.write(&*self.disk, &self.root)?;
                Some(mark)
            }
            (None, Some(_)) => {
                FreezeMark::remove(&*self.disk, &self.root)?;
                None
            }
            _ => return Ok(()),
        };
        self.meta.set_mark(mark);
        Ok(())
    }
}
