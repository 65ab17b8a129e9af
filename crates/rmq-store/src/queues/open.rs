//! Bringing the files to a known state when a store is opened.
//!
//! The dispatch checkpoint names a position and the ends that all queues had there, as one digest. If
//! the queues still show these ends, everything below the position is there, and dispatch goes on from
//! it; whatever an earlier run wrote beyond is cut off first, for after a power cut it may have holes.
//! If they do not, something was lost that the files cannot tell, and all of them are built anew from
//! the log. Only a queue whose messages have all left the log is kept as it is, since nothing else
//! remembers its end.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use thiserror::Error;
use tracing::{info, warn};

use super::read::store_time;
use super::{Checkpoints, Queues, Shared};
use crate::config::StoreConfig;
use crate::consume_queue::{QueueFiles, QueueState, Table, first_unit_from, last_unit_below};
use crate::disk::Disk;
use crate::dispatch::{Checkpoint, CheckpointFile, CommittedLog, DispatchError};
use crate::index_file::{Index, Layout};
use crate::reader::LogReader;
use crate::types::{PhyOffset, QueueOffset};

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
        Queues::open_over(config, &disk, Box::new(log))
    }

    pub(super) fn open_over(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        log: Box<dyn CommittedLog>,
    ) -> Result<Arc<Queues>, OpenQueuesError> {
        let files = QueueFiles::new(
            Arc::clone(disk),
            config.consume_queue_dir(),
            config.consume_queue_file_bytes,
        )?;
        let layout = Layout {
            slots: config.index_slots,
            entries: config.index_entries,
        };
        let mut checkpoints = CheckpointFile::open(disk, config.root.join("dispatched"))?;
        let (min, confirm) = (log.min_offset(), log.confirm_offset());

        let saved = checkpoints.last();
        if let Some(clean) = saved.filter(|saved| saved.clean) {
            // Before anything is touched.
            checkpoints.write(Checkpoint {
                clean: false,
                ..clean
            })?;
        }
        let trusted = saved
            .map(|saved| trusted_table(&files, saved, min, confirm))
            .transpose()?;
        let (table, queues_from) = match trusted.flatten() {
            Some((table, from)) => (table, from),
            None => {
                if saved.is_some() {
                    warn!(%min, "consume queues are not what their checkpoint says: building them anew");
                }
                (expired_table(&files, min)?, min)
            }
        };
        let saved_index = saved.map(|saved| (saved.index, saved.clean));
        let index_dir = config.index_dir();
        let store_time = |phy| store_time(&*log, phy);
        let limit = saved.map_or(min, |saved| saved.dispatched.min(confirm).max(min));
        let (index, index_from) = match Index::open(
            disk,
            index_dir.clone(),
            layout,
            saved_index,
            limit,
            &store_time,
        )? {
            Some(index) => (index, limit),
            None => (Index::empty(disk, index_dir, layout, min), min),
        };

        let from = queues_from.min(index_from);
        let queues = Queues {
            log,
            files,
            levels: config.delay_levels.clone(),
            flush_interval: Duration::from_millis(config.consume_queue_flush_interval_ms),
            stepping: Mutex::default(),
            index: Mutex::new(index),
            shared: Mutex::new(Shared {
                table,
                dispatched: from,
                ..Shared::default()
            }),
            work: Condvar::new(),
            progress: Condvar::new(),
            upkeep: Condvar::new(),
            checkpoint: Mutex::new(Checkpoints {
                file: checkpoints,
                failed: false,
            }),
            threads: Mutex::default(),
        };
        if from < confirm {
            info!(%from, %confirm, "bringing consume queues and index up to the confirm offset");
        }
        while queues.step()?.is_some() {}
        // From here on they are told apart.
        queues.shared().table.commit_all();
        queues.flush(false)?;
        Ok(Arc::new(queues))
    }
}

/// The queues as they were at a checkpoint, or at the confirm offset if that lies below; nothing is
/// left in the files beyond. `None` if some are not what the checkpoint says.
fn trusted_table(
    files: &QueueFiles,
    saved: Checkpoint,
    min: PhyOffset,
    confirm: PhyOffset,
) -> io::Result<Option<(Table, PhyOffset)>> {
    let mut found = table_below(files, saved.dispatched, min)?;
    if found.digest() != saved.digest {
        return Ok(None);
    }
    if confirm < saved.dispatched {
        found = table_below(files, confirm, min)?;
    }
    if !saved.clean || confirm < saved.dispatched {
        for (topic, queue_id) in all_queues(files)? {
            let next = found
                .get(&topic, queue_id)
                .map_or(QueueOffset(0), |(_, state)| state.next);
            files.cut(&topic, queue_id, next)?;
        }
    }
    // Not below what the log still has, which only a store without its first segments can show.
    Ok(Some((found, saved.dispatched.min(confirm).max(min))))
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

/// The queues whose messages have all left the log; the files of all others are removed.
fn expired_table(files: &QueueFiles, min: PhyOffset) -> io::Result<Table> {
    let mut table = Table::default();
    for (topic, queue_id) in all_queues(files)? {
        let starts = files.starts(&topic, queue_id)?;
        let last = last_unit_below(files, &topic, queue_id, &starts, PhyOffset(u64::MAX))?;
        match last {
            Some((last, unit)) if unit.end() <= min => {
                let next = last + 1;
                let end_phy = unit.end();
                table.put(
                    &topic,
                    QueueState {
                        queue_id,
                        min: next,
                        next,
                        end_phy,
                        committed: next,
                    },
                );
            }
            _ => files.cut(&topic, queue_id, QueueOffset(0))?,
        }
    }
    Ok(table)
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
