//! Opening a store as a whole.

use std::sync::Arc;

use thiserror::Error;

use crate::config::StoreConfig;
use crate::disk::Disk;
use crate::log::Log;
use crate::queues::{OpenQueuesError, Queues};
use crate::reader::ReadError;
use crate::recovery::OpenError;
use crate::types::PhyOffset;

/// An open store. To close it, stop the queues first and then close the log.
#[derive(Debug)]
pub struct Store {
    pub log: Log,
    pub queues: Arc<Queues>,
}

/// Why a store was not opened.
#[derive(Debug, Error)]
pub enum OpenStoreError {
    #[error(transparent)]
    Log(#[from] OpenError),
    #[error(transparent)]
    Queues(#[from] OpenQueuesError),
    /// An entry between the dispatched position and the end of the log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Opens the log, then what is derived from it, and continues the queues where the log ends.
pub fn open(config: &StoreConfig, disk: Arc<dyn Disk>) -> Result<Store, OpenStoreError> {
    open_watched(config, disk, &|_| {})
}

/// [`open`], which shows up to where the queues go while they are built.
pub fn open_watched(
    config: &StoreConfig,
    disk: Arc<dyn Disk>,
    dispatched: &dyn Fn(PhyOffset),
) -> Result<Store, OpenStoreError> {
    let mut log = Log::open(config, &disk)?;
    let queues = Queues::open_watched(config, disk, log.reader(), dispatched)?;
    match seed(&mut log, &queues) {
        // It waits for the entries to be mended.
        Ok(()) | Err(ReadError::Damaged { .. } | ReadError::NoCell(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Store { log, queues })
}

/// Continues the queues where the log ends, unless that is done; before the first append.
///
/// # Errors
/// An entry between the dispatched position and the end of the log cannot be read. Once it is mended,
/// this can be called again.
pub fn seed(log: &mut Log, queues: &Queues) -> Result<(), ReadError> {
    if log.is_seeded() {
        return Ok(());
    }
    if !queues.knows_ends() {
        log.expect_missing_queue_offsets();
    }
    let (ends, at) = queues.seeds();
    log.seed_queue_offsets(ends, at)
}
