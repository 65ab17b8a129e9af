//! Bringing the files to a known state when a store is opened.
//!
//! The dispatch checkpoint names a position and the ends that all queues had there, as one digest. If
//! the queues still show these ends, everything below the position is there, and dispatch goes on from
//! it; whatever an earlier run wrote beyond is cut off first, for after a power cut it may have holes.
//! With very many queues the ends are looked up in a table that was saved at some position (`saved`),
//! and only the last unit of each queue is looked at; dispatch then goes on from there.
//!
//! If they do not, something was lost that the files cannot tell, and all of them are built anew from
//! the log. Only a queue whose messages have all left the log is kept as it is, since nothing but its last
//! unit and that table remembers its end.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use thiserror::Error;
use tracing::{info, warn};

use super::read::store_time;
use super::saved::{self, SavedAt};
use super::{Checkpoints, Queues, Shared, building};
use crate::config::StoreConfig;
use crate::consume_queue::{
    QueueFiles, QueueState, Slot, Table, UNIT_BYTES, Unit, first_unit_from, fnv_1a, last_unit_below,
};
use crate::disk::Disk;
use crate::dispatch::{Checkpoint, CheckpointFile, CommittedLog, DispatchError};
use crate::index_file::{Index, Layout, Saved};
use crate::reader::LogReader;
use crate::transfer::{forget_installed, installed_ends};
use crate::types::{PhyOffset, QueueOffset};

/// Name of the dispatch checkpoint in the store's root.
const DISPATCHED_FILE: &str = "dispatched";

/// Why the queues of a store could not be opened.
#[derive(Debug, Error)]
pub enum OpenQueuesError {
    #[error("consume queues and index: {0}")]
    Io(#[from] io::Error),
    #[error("consume queues and index: {0}")]
    Dispatch(#[from] DispatchError),
}

impl Queues {
    /// Opens the derived files of a log whose confirm offset is known, and brings them up to it.
    /// Nothing runs until [`Queues::start`].
    ///
    /// # Errors
    /// The disk's, a committed range of the log that holds no records, or consume queue files whose
    /// length is not the configured one.
    pub fn open(
        config: &StoreConfig,
        disk: Arc<dyn Disk>,
        log: LogReader,
    ) -> Result<Arc<Queues>, OpenQueuesError> {
        Queues::open_watched(config, disk, log, &|_| {})
    }

    /// [`Queues::open`], which shows up to where they go while they are built.
    pub(crate) fn open_watched(
        config: &StoreConfig,
        disk: Arc<dyn Disk>,
        log: LogReader,
        dispatched: &dyn Fn(PhyOffset),
    ) -> Result<Arc<Queues>, OpenQueuesError> {
        Queues::open_over(config, &disk, Box::new(log), dispatched)
    }

    /// Takes consume queues and index files that another broker wrote and closed, and that lie in
    /// place, for what they show of a log that ends at `end`: the first opening goes on from there
    /// instead of building them anew. Index files of another layout than the configured are built
    /// anew all the same.
    ///
    /// Returns where dispatch goes on: behind the last record that any queue has.
    ///
    /// # Errors
    /// The disk's, or consume queue files whose length is not the configured one.
    pub fn adopt(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        end: PhyOffset,
    ) -> io::Result<PhyOffset> {
        let files = QueueFiles::new(
            Arc::clone(disk),
            config.consume_queue_dir(),
            config.consume_queue_file_bytes,
        );
        let table = table_below(&files, end, PhyOffset(0))?;
        let ends = table.iter().map(|(_, state)| state.end_phy);
        let dispatched = ends.max().unwrap_or_default();
        let layout = Layout {
            slots: config.index_slots,
            entries: config.index_entries,
        };
        let index = Index::saved_by_another(disk, config.index_dir(), layout)?;
        let mut file = CheckpointFile::open(disk, config.root.join(DISPATCHED_FILE))?;
        file.write(Checkpoint {
            dispatched,
            digest: table.digest(),
            last_anew: PhyOffset(0),
            index,
            clean: true,
            boot: 0,
        })?;
        Ok(dispatched)
    }

    pub(super) fn open_over(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        log: Box<dyn CommittedLog>,
        dispatched: &dyn Fn(PhyOffset),
    ) -> Result<Arc<Queues>, OpenQueuesError> {
        let (queue_dir, index_dir) = (config.consume_queue_dir(), config.index_dir());
        for dir in [&queue_dir, &index_dir] {
            disk.create_dir_all(dir)?;
        }
        disk.sync_dir(config.root())?;
        let files = QueueFiles::new(Arc::clone(disk), queue_dir, config.consume_queue_file_bytes);
        let mut checkpoints = CheckpointFile::open(disk, config.root.join(DISPATCHED_FILE))?;

        let boot = fnv_1a(disk.boot_id()?.into_bytes());
        let saved = checkpoints.last();
        let has_holes = saved.is_none_or(|saved| saved.boot != boot);
        let table = saved::read(config, &**disk)?;
        let start = Start::find(&files, saved, table, has_holes, &*log)?;
        if start.saved_at.is_none() {
            saved::keep_expired(config, &**disk, &start.table, log.min_offset())?;
        }
        // What is about to be changed must not be taken for what it was, should this be interrupted.
        let opening = start.checkpoint();
        checkpoints.write(opening)?;
        start.cut(&files, has_holes)?;
        start.mark_ends(&files)?;
        let layout = Layout {
            slots: config.index_slots,
            entries: config.index_entries,
        };
        let min = log.min_offset();
        let (index, from) = match start.open_index(disk, &index_dir, layout, &*log)? {
            Some(index) => (index, start.from),
            None => {
                checkpoints.write(Checkpoint {
                    index: None,
                    ..opening
                })?;
                (Index::anew(disk, index_dir, layout, min)?, min)
            }
        };

        let confirm = log.confirm_offset();
        let mut seeds = installed_ends(config, disk)?;
        if seeds.as_ref().is_some_and(|(_, at)| from >= *at) {
            forget_installed(&config.root, disk)?;
            seeds = None;
        }
        let mut table = start.table;
        if let Some((ends, _)) = &seeds {
            building::expect(&mut table, ends);
        }
        let queues = Queues {
            disk: Arc::clone(disk),
            log,
            root: config.root.clone(),
            files,
            levels: config.delay_levels.clone(),
            boot,
            flush_interval: Duration::from_millis(config.consume_queue_flush_interval_ms),
            stepping: Mutex::default(),
            index: Mutex::new(index),
            shared: Mutex::new(Shared {
                table,
                dispatched: from,
                last_anew: start.last_anew,
                expired_to: min,
                built_at: seeds.is_some().then_some(confirm),
                ..Shared::default()
            }),
            progress: Condvar::new(),
            checkpoint: Mutex::new(Checkpoints {
                file: checkpoints,
                table: start.saved_at,
                failed: false,
            }),
            seeds,
            workers: OnceLock::new(),
        };
        if queues.is_built() && !queues.catch_up(config.catch_up_bytes, dispatched)? {
            queues.shared().built_at = Some(confirm);
        }
        if queues.is_built() {
            // From here on they are told apart.
            queues.shared().table.commit_all();
        } else {
            let from = queues.dispatched();
            info!(%from, %confirm, "building consume queues and index in the background");
        }
        queues.flush(false)?;
        Ok(Arc::new(queues))
    }
}

impl Queues {
    /// Dispatches all that is committed, if that is at most so much; false if some is left, which
    /// others need not wait for.
    fn catch_up(&self, most: u64, dispatched: &dyn Fn(PhyOffset)) -> Result<bool, DispatchError> {
        let (from, confirm) = (self.dispatched(), self.log.confirm_offset());
        if confirm.0.saturating_sub(from.0) > most {
            return Ok(false);
        }
        if from < confirm {
            info!(%from, %confirm, "bringing consume queues and index up to the confirm offset");
        }
        loop {
            match self.step() {
                Ok(Some(_)) => dispatched(self.dispatched()),
                Ok(None) => return Ok(true),
                Err(error @ DispatchError::Damaged(_)) => {
                    warn!(%error, "consume queues and index have to wait");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Queues, by topic.
type States = Vec<(Arc<str>, QueueState)>;

/// Where dispatch goes on, and what is there by then.
struct Start {
    table: Table,
    from: PhyOffset,
    last_anew: PhyOffset,
    /// `None` if the index is to be built anew.
    index: Option<Saved>,
    /// Nothing was written beyond.
    clean: bool,
    /// The table that it goes on from, if that was saved.
    saved_at: Option<SavedAt>,
    /// The queues that hold more than the table says; `None` if any may.
    longer: Option<Vec<(Arc<str>, i32)>>,
    /// The queues whose last unit is lost, and only the table that was saved knows their end.
    unfiled: States,
}

impl Start {
    /// Looks at the files without changing what they say.
    fn find(
        files: &QueueFiles,
        saved: Option<Checkpoint>,
        table: Option<(SavedAt, Table)>,
        has_holes: bool,
        log: &dyn CommittedLog,
    ) -> io::Result<Start> {
        let (min, confirm) = (log.min_offset(), log.confirm_offset());
        if let (Some(saved), Some((at, table))) = (saved, &table)
            && (saved.clean || !has_holes)
            && at.min == min
            && at.last_anew == saved.last_anew
            && at.file_bytes == files.file_bytes()
            && at.dispatched <= saved.dispatched.min(confirm)
            && let Some(start) = Start::from_table(files, saved, *at, table)?
        {
            return Ok(start);
        }
        if let Some(saved) = saved {
            if let Some(start) = Start::trusted(files, saved, min, confirm)? {
                return Ok(start);
            }
            warn!(%min, "consume queues are not what their checkpoint says: building them anew");
        }
        let (table, unfiled) = expired_table(files, table.as_ref().map(|(_, table)| table), min)?;
        Ok(Start {
            table,
            unfiled,
            from: min,
            last_anew: PhyOffset(0),
            index: None,
            clean: false,
            saved_at: None,
            longer: None,
        })
    }

    /// What a saved table says. `None` if a queue has not what it says.
    fn from_table(
        files: &QueueFiles,
        saved: Checkpoint,
        at: SavedAt,
        table: &Table,
    ) -> io::Result<Option<Start>> {
        let clean = saved.clean && at.dispatched == saved.dispatched;
        let mut longer = Vec::new();
        for (topic, state) in table.iter() {
            let mut units = [0; 2 * UNIT_BYTES];
            let last = QueueOffset(state.next.0 - 1);
            files.read(topic, state.queue_id, last, &mut units)?;
            let (unit, behind) = units.split_first_chunk().expect("the first of two units");
            match Slot::decode(unit) {
                Slot::Message(unit) if unit.end() == state.end_phy => {}
                _ => return Ok(None),
            }
            if behind != [0; UNIT_BYTES] {
                longer.push((Arc::clone(topic), state.queue_id));
            }
        }
        Ok(Some(Start {
            table: table.clone(),
            from: at.dispatched,
            last_anew: saved.last_anew,
            index: saved.index,
            clean,
            saved_at: Some(at),
            longer: Some(longer),
            unfiled: Vec::new(),
        }))
    }

    /// What a checkpoint says, down to the confirm offset if that lies below. `None` if the queues
    /// are not what it says.
    fn trusted(
        files: &QueueFiles,
        saved: Checkpoint,
        min: PhyOffset,
        confirm: PhyOffset,
    ) -> io::Result<Option<Start>> {
        let mut table = table_below(files, saved.dispatched, min)?;
        let shorter = confirm < saved.dispatched;
        if table.digest() != saved.digest || shorter && confirm <= saved.last_anew {
            return Ok(None);
        }
        if shorter {
            table = table_below(files, confirm, min)?;
        }
        Ok(Some(Start {
            table,
            // Below what the log still has there is nothing to dispatch.
            from: saved.dispatched.min(confirm).max(min),
            last_anew: saved.last_anew,
            index: saved.index,
            clean: saved.clean && !shorter,
            saved_at: None,
            longer: None,
            unfiled: Vec::new(),
        }))
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            dispatched: self.from,
            digest: self.table.digest(),
            last_anew: self.last_anew,
            index: self.index,
            clean: false,
            // Until all is synced, there may be holes of another time.
            boot: 0,
        }
    }

    /// Leaves in the consume queues only what the table has. Unless there may be holes, a queue whose
    /// next place is empty has nothing behind it either.
    fn cut(&self, files: &QueueFiles, has_holes: bool) -> io::Result<()> {
        if self.clean {
            return Ok(());
        }
        let (queues, longer) = match &self.longer {
            Some(longer) => (longer.clone(), true),
            None => (all_queues(files)?, has_holes),
        };
        for (topic, queue_id) in queues {
            let state = self.table.get(&topic, queue_id);
            let next = state.map_or(QueueOffset(0), |(_, state)| state.next);
            if longer || !files.ends_at(&topic, queue_id, next)? {
                files.cut(&topic, queue_id, next)?;
            }
        }
        // A process that was killed may have changed others, and that is not durable yet.
        files.sync_all_later();
        Ok(())
    }

    /// Gives queues whose last unit is lost another one, of the last byte of what it was: what it points to has left the
    /// log, and it says where the queue goes on.
    fn mark_ends(&self, files: &QueueFiles) -> io::Result<()> {
        for (topic, state) in &self.unfiled {
            let last = QueueOffset(state.next.0 - 1);
            let unit = Unit {
                phy: PhyOffset(state.end_phy.0 - 1),
                size: 1,
                tags_code: 0,
            };
            files.fill_blank(topic, state.queue_id, QueueOffset(0), last)?;
            files.write(topic, state.queue_id, last, &unit.encode())?;
        }
        Ok(())
    }

    /// The index as the checkpoint has it; `None` if it is to be built anew.
    fn open_index(
        &self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        layout: Layout,
        log: &dyn CommittedLog,
    ) -> io::Result<Option<Index>> {
        let Some(saved) = self.index else {
            return Ok(None);
        };
        let store_time = |phy| store_time(log, phy);
        Index::open(
            disk,
            dir.to_owned(),
            layout,
            (saved, self.clean),
            self.from,
            &store_time,
        )
    }
}

/// All queues with what they hold below `limit`.
fn table_below(files: &QueueFiles, limit: PhyOffset, min: PhyOffset) -> io::Result<Table> {
    let mut table = Table::default();
    for (topic, queue_id) in all_queues(files)? {
        let starts = files.starts(&topic, queue_id)?;
        if let Some((last, unit)) = last_unit_below(files, &topic, queue_id, &starts, limit)? {
            let next = last + 1;
            let min = first_unit_from(files, &topic, queue_id, &starts, next, min)?;
            let end_phy = unit.end();
            table.put(
                &topic,
                QueueState {
                    queue_id,
                    min,
                    next,
                    end_phy,
                    committed: next,
                },
            );
        }
    }
    Ok(table)
}

/// The queues whose messages have all left the log: nothing but their last units says where they go on, or, where
/// these are lost, the table that was saved last. Also those that only that table has.
fn expired_table(
    files: &QueueFiles,
    saved: Option<&Table>,
    min: PhyOffset,
) -> io::Result<(Table, States)> {
    let mut table = Table::default();
    for (topic, queue_id) in all_queues(files)? {
        let starts = files.starts(&topic, queue_id)?;
        let last = last_unit_below(files, &topic, queue_id, &starts, PhyOffset(u64::MAX))?;
        if let Some((last, unit)) = last.filter(|(_, unit)| unit.end() <= min) {
            let next = last + 1;
            let state = QueueState {
                queue_id,
                min: next,
                next,
                end_phy: unit.end(),
                committed: next,
            };
            table.put(&topic, state);
        }
    }
    let mut unfiled = Vec::new();
    for (topic, state) in saved.into_iter().flat_map(Table::iter) {
        let filed = table.get(topic, state.queue_id);
        let is_newer = filed.is_none_or(|(_, filed)| filed.end_phy < state.end_phy);
        if state.end_phy <= min && is_newer {
            let state = QueueState {
                min: state.next,
                ..*state
            };
            unfiled.push((Arc::clone(topic), state));
        }
    }
    for (topic, state) in &unfiled {
        table.put(topic, *state);
    }
    Ok((table, unfiled))
}

/// Topic and id of every queue that has a directory.
fn all_queues(files: &QueueFiles) -> io::Result<Vec<(Arc<str>, i32)>> {
    let mut queues = Vec::new();
    for topic in files.topics()? {
        let topic: Arc<str> = topic.into();
        for queue_id in files.queue_ids(&topic)? {
            queues.push((Arc::clone(&topic), queue_id));
        }
    }
    Ok(queues)
}
