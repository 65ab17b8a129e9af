//! Vote and checkpoint as they are found at a start.

use std::path::Path;
use std::sync::Arc;

use super::history::end_of_history;
use super::{OpenError, at};
use crate::checkpoint::{
    CHECKPOINT_FILE, CHECKPOINT_MAGIC, Checkpoint, VOTE_FILE, VOTE_MAGIC, decode_vote, encode_vote,
};
use crate::config::{FlushMode, StoreConfig};
use crate::disk::Disk;
use crate::genesis::{GENESIS_FILE, Genesis};
use crate::slots::{Slots, SlotsError};
use crate::types::Vote;

/// The two small files, open, and their content.
pub(super) struct Notes {
    pub(super) vote: Option<Vote>,
    pub(super) vote_slots: Slots,
    pub(super) checkpoint: Checkpoint,
    pub(super) checkpoint_slots: Slots,
    pub(super) created: bool,
}

impl Notes {
    /// `config` has the generation of the genesis, if there is one.
    pub(super) fn open(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        genesis: Option<&Genesis>,
    ) -> Result<Self, OpenError> {
        let (vote_path, path) = (config.path(VOTE_FILE), config.path(CHECKPOINT_FILE));
        let vote = match Slots::open(&**disk, &vote_path, VOTE_MAGIC) {
            Ok(None) => None,
            Ok(Some((slots, content))) => match decode_vote(&content) {
                Some(vote) => Some((slots, vote)),
                None => return Err(OpenError::Vote { path: vote_path }),
            },
            Err(SlotsError::Damaged) => return Err(OpenError::Vote { path: vote_path }),
            Err(SlotsError::Io(e)) => return Err(at(&vote_path)(e)),
        };
        let checkpoint = match Slots::open(&**disk, &path, CHECKPOINT_MAGIC) {
            Ok(None) => None,
            Ok(Some((slots, content))) => match Checkpoint::decode(&content) {
                Some(checkpoint) if checkpoint.segment_bytes > 0 => Some((slots, checkpoint)),
                _ => return Err(OpenError::Checkpoint { path }),
            },
            Err(SlotsError::Damaged) => return Err(OpenError::Checkpoint { path }),
            Err(SlotsError::Io(e)) => return Err(at(&path)(e)),
        };
        match (vote, checkpoint) {
            (Some((vote_slots, vote)), Some((checkpoint_slots, checkpoint))) => {
                if genesis.is_none() && config.generation == 0 && checkpoint.generation != 0 {
                    let path = config.path(GENESIS_FILE);
                    return Err(OpenError::Missing { path });
                }
                if checkpoint.generation != config.generation {
                    let (found, expected) = (checkpoint.generation, config.generation);
                    return Err(OpenError::Generation {
                        path,
                        found,
                        expected,
                    });
                }
                Ok(Self {
                    vote,
                    vote_slots,
                    checkpoint,
                    checkpoint_slots,
                    created: false,
                })
            }
            (None, Some(_)) => Err(OpenError::Missing { path: vote_path }),
            (Some((_, Some(_))), None) => Err(OpenError::Missing { path }),
            (None | Some((_, None)), None) => {
                Self::create(config, disk, genesis, (&vote_path, &path))
            }
        }
    }

    /// Begins a log, behind the genesis, or the history that lies in the commit log's directory
    /// without one.
    fn create(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        genesis: Option<&Genesis>,
        (vote_path, path): (&Path, &Path),
    ) -> Result<Self, OpenError> {
        let (segment_bytes, base) = match genesis {
            Some(genesis) => {
                genesis.check(&**disk, &config.commit_log_dir, genesis.start)?;
                (genesis.segment_bytes, genesis.end)
            }
            None => end_of_history(config, disk)?,
        };
        let checkpoint = Checkpoint {
            generation: config.generation,
            segment_bytes,
            base,
            committed: None,
            confirm: base,
            purged: None,
            boot_id: disk.boot_id().map_err(at(Path::new("boot id")))?,
            lazy: config.flush != FlushMode::Sync,
            suspect: false,
            clean_end: None,
        };
        // The checkpoint comes last: with it there, both have to be.
        let vote_slots = Slots::create(&**disk, vote_path, VOTE_MAGIC, &encode_vote(None));
        let vote_slots = vote_slots.map_err(at(vote_path))?;
        let content = checkpoint.encode();
        let checkpoint_slots = Slots::create(&**disk, path, CHECKPOINT_MAGIC, &content);
        let checkpoint_slots = checkpoint_slots.map_err(at(path))?;
        Ok(Self {
            vote: None,
            vote_slots,
            checkpoint,
            checkpoint_slots,
            created: true,
        })
    }
}
