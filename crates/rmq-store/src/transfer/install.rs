//! Putting a transfer that has arrived in the place of the store's own log.
//!
//! With the rename of `incoming/manifest` to `install.intent` the old log is given up. All that
//! follows can be done again from its beginning, and is until the intent is gone.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::incoming::{Places, read_whole, unlink_if_there, write_whole};
use super::outline::{Outline, Part, Rest, decode_intent};
use crate::checkpoint::{
    CHECKPOINT_FILE, CHECKPOINT_MAGIC, Checkpoint, VOTE_FILE, VOTE_MAGIC, decode_vote, encode_vote,
};
use crate::config::{FlushMode, StoreConfig};
use crate::consume_queue::QueueFiles;
use crate::disk::Disk;
use crate::genesis::GENESIS_FILE;
use crate::queues::TABLE_FILE;
use crate::raft_index::FILE_LEN;
use crate::reader::LogReader;
use crate::recovery::OpenError;
use crate::segment::parse_name;
use crate::slots::{Slots, SlotsError};
use crate::types::{PhyOffset, QueueOffset, Vote};

/// The file that says that an install has begun.
const INTENT_FILE: &str = "install.intent";
/// What the intent becomes: it says where the queues end while they are built from the log.
pub(crate) const INSTALLED_FILE: &str = "installed";
/// The applied state.
pub const APPLIED_FILE: &str = "raft.applied";

/// Begins to install the transfer that has arrived, if there is one that `log` does not have. The
/// next opening of the store does the work. Says whether there is anything to do.
///
/// `log` has been closed: nothing may be appended any more that would be given up unseen.
///
/// # Errors
/// The disk's; the store is as it was then, or about to be installed.
pub fn begin_install(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
    log: &LogReader,
) -> io::Result<bool> {
    let places = Places::of(config);
    let Some(content) = read_whole(&**disk, &places.manifest())? else {
        return Ok(false);
    };
    let outline = match decode_intent(content) {
        Ok((outline, _)) => outline,
        Err(error) => {
            tracing::warn!(%error, "the snapshot that has arrived is damaged and not installed");
            unlink_if_there(&**disk, &places.manifest())?;
            return Ok(false);
        }
    };
    let last = outline.last;
    let here = log.id_at(last.index).map_err(io::Error::other)?;
    if here == Some(last) || log.purged_id().is_some_and(|id| id.index >= last.index) {
        tracing::info!(%last, "the log has what the snapshot brings");
        unlink_if_there(&**disk, &places.manifest())?;
        return Ok(false);
    }
    disk.rename(&places.manifest(), &config.path(INTENT_FILE))?;
    disk.sync_dir(config.root())?;
    disk.sync_dir(&places.notes)?;
    Ok(true)
}

/// Finishes an install that has begun.
pub(crate) fn finish_install(config: &StoreConfig, disk: &Arc<dyn Disk>) -> Result<(), OpenError> {
    let path = config.path(INTENT_FILE);
    let at_root = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let Some(content) = read_whole(&**disk, &path).map_err(at_root)? else {
        return Ok(());
    };
    let (outline, rest) = decode_intent(content).map_err(|source| OpenError::Intent {
        path: path.clone(),
        source,
    })?;
    let begun = Instant::now();
    let install = Install {
        config,
        disk,
        outline,
        rest,
    };
    install.run().map_err(at_root)?;
    tracing::info!(
        last = %install.outline.last,
        start = %install.outline.start,
        end = %install.outline.end,
        seconds = begun.elapsed().as_secs_f64(),
        "snapshot installed"
    );
    Ok(())
}

struct Install<'a> {
    config: &'a StoreConfig,
    disk: &'a Arc<dyn Disk>,
    outline: Outline,
    rest: Rest,
}

impl Install<'_> {
    fn run(&self) -> io::Result<()> {
        let Self {
            config,
            disk,
            outline,
            rest,
        } = self;
        let disk = &***disk;
        self.clear_derived()?;
        self.keep_ends()?;
        let places = Places::of(config);
        unlink_if_there(disk, &places.progress())?;
        let log = outline.range(Part::Log);
        self.take_in(
            &places.log,
            &config.commit_log_dir,
            log,
            outline.segment_bytes,
        )?;
        let index = outline.range(Part::Index);
        self.take_in(&places.index, &config.raft_index_dir(), index, FILE_LEN)?;
        match &rest.genesis {
            Some(record) => write_whole(disk, &config.path(GENESIS_FILE), record)?,
            None => drop(unlink_if_there(disk, &config.path(GENESIS_FILE))?),
        }
        write_whole(disk, &config.path(APPLIED_FILE), &rest.applied)?;
        self.raise_vote()?;
        self.write_checkpoint()?;
        disk.rename(&config.path(INTENT_FILE), &config.path(INSTALLED_FILE))?;
        disk.sync_dir(config.root())
    }

    /// Removes what was derived from the old log.
    fn clear_derived(&self) -> io::Result<()> {
        let disk = &**self.disk;
        unlink_if_there(disk, &self.config.path("dispatched"))?;
        unlink_if_there(disk, &self.config.path(TABLE_FILE))?;
        let queues = self.config.consume_queue_dir();
        for topic in disk.list(&queues)? {
            let topic = queues.join(topic);
            for queue in disk.list(&topic)? {
                remove_all(disk, &topic.join(queue))?;
            }
        }
        remove_all(disk, &self.config.index_dir())?;
        disk.sync_all(self.config.root())
    }

    /// Leaves the last unit of each queue whose messages have all left the log: nothing else
    /// remembers its end.
    fn keep_ends(&self) -> io::Result<()> {
        let (dir, bytes) = (
            self.config.consume_queue_dir(),
            self.config.consume_queue_file_bytes,
        );
        let files = QueueFiles::new(Arc::clone(self.disk), dir, bytes);
        for end in &self.rest.queues {
            if let Some(unit) = &end.gone {
                let (topic, last) = (&end.topic, QueueOffset(end.next.0 - 1));
                files.fill_blank(topic, end.queue_id, QueueOffset(0), last)?;
                files.write(topic, end.queue_id, last, &unit.encode())?;
            }
        }
        files.sync()
    }

    /// Has `dir` hold the files of a range that have arrived in `from`, and no others.
    fn take_in(
        &self,
        from: &Path,
        dir: &Path,
        range: (u64, u64),
        file_bytes: u64,
    ) -> io::Result<()> {
        let disk = &**self.disk;
        let (start, end) = range;
        let is_of_range = |name: &str| {
            parse_name(name).is_some_and(|base| base + file_bytes > start && base < end)
        };
        for name in disk.list(from)? {
            if is_of_range(&name) {
                disk.rename(&from.join(&name), &dir.join(&name))?;
            } else {
                disk.unlink(&from.join(&name))?;
            }
        }
        for name in disk.list(dir)? {
            if parse_name(&name).is_some() && !is_of_range(&name) {
                disk.unlink(&dir.join(&name))?;
            }
        }
        match disk.sync_dir(from) {
            // It was removed before an interruption.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        // A Java broker of 4.9 does not load a commit log with a directory in it.
        disk.remove_dir(from)?;
        disk.sync_dir(dir)
    }

    /// Promises the sender at least what its own vote says.
    fn raise_vote(&self) -> io::Result<()> {
        let order = |vote: Vote| (vote.term, vote.node, vote.committed);
        let Some(sender) = self.rest.vote else {
            return Ok(());
        };
        let path = self.config.path(VOTE_FILE);
        match Slots::open(&**self.disk, &path, VOTE_MAGIC) {
            Ok(Some((mut slots, content))) => {
                let own = decode_vote(&content)
                    .ok_or_else(|| io::Error::other(format!("{} is damaged", path.display())))?;
                if own.is_none_or(|own| order(own) < order(sender)) {
                    slots.write(&encode_vote(Some(sender)))?;
                }
                Ok(())
            }
            Ok(None) => Err(io::Error::other(format!("{} is missing", path.display()))),
            Err(SlotsError::Damaged) => {
                Err(io::Error::other(format!("{} is damaged", path.display())))
            }
            Err(SlotsError::Io(e)) => Err(e),
        }
    }

    fn write_checkpoint(&self) -> io::Result<()> {
        let Outline {
            generation,
            segment_bytes,
            base,
            purged,
            last,
            end,
            ..
        } = self.outline;
        let path = self.config.path(CHECKPOINT_FILE);
        let (slots, before) = match Slots::open(&**self.disk, &path, CHECKPOINT_MAGIC) {
            Ok(Some((slots, content))) => (Some(slots), Checkpoint::decode(&content)),
            Ok(None) | Err(SlotsError::Damaged) => (None, None),
            Err(SlotsError::Io(e)) => return Err(e),
        };
        let has_entries = base < end;
        let content = Checkpoint {
            generation,
            segment_bytes,
            base,
            committed: has_entries.then_some(last),
            confirm: end,
            purged: if has_entries { purged } else { Some(last) },
            boot_id: self.disk.boot_id()?,
            lazy: self.config.flush != FlushMode::Sync,
            suspect: before.is_some_and(|before| before.suspect),
            clean_end: None,
        }
        .encode();
        match slots {
            Some(mut slots) => slots.write(&content),
            None => Slots::create(&**self.disk, &path, CHECKPOINT_MAGIC, &content).map(drop),
        }
    }
}

fn remove_all(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    disk.list(dir)?
        .iter()
        .try_for_each(|name| disk.unlink(&dir.join(name)))
}

/// Where queues end that are to be built from the log again, and at which position that is so.
pub(crate) type InstalledEnds = (Vec<super::QueueEnd>, PhyOffset);

/// Reads what the last install left for the queues; `None` once they are built.
pub(crate) fn installed_ends(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
) -> io::Result<Option<InstalledEnds>> {
    let path = config.path(INSTALLED_FILE);
    let Some(content) = read_whole(&**disk, &path)? else {
        return Ok(None);
    };
    let (outline, rest) =
        decode_intent(content).map_err(|e| io::Error::other(format!("{}: {e}", path.display())))?;
    Ok(Some((rest.queues, outline.end)))
}

/// Forgets it, for the queues are built.
pub(crate) fn forget_installed(config_root: &Path, disk: &Arc<dyn Disk>) -> io::Result<()> {
    unlink_if_there(&**disk, &config_root.join(INSTALLED_FILE)).map(drop)
}
