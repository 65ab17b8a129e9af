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
    /// `None` if the vote is lost.
    pub(super) vote_slots: Option<Slots>,
    pub(super) checkpoint: Checkpoint,
    pub(super) checkpoint_slots: Slots,
    pub(super) created: bool,
}

/// What has become of the vote.
enum Found {
    Absent,
    Damaged,
    Whole(Slots, Option<Vote>),
}

impl Found {
    fn open(disk: &dyn Disk, path: &Path) -> Result<Self, OpenError> {
        let (mut slots, content) = match Slots::open(disk, path, VOTE_MAGIC) {
            Ok(None) => return Ok(Self::Absent),
            Ok(Some(opened)) => opened,
            Err(SlotsError::Damaged) => return Ok(Self::Damaged),
            Err(SlotsError::Io(e)) => return Err(at(path)(e)),
        };
        let Some(vote) = decode_vote(&content) else {
            return Ok(Self::Damaged);
        };
        // See `Log::save_vote`; a crash may have come between the two.
        slots.write(&content).map_err(at(path))?;
        Ok(Self::Whole(slots, vote))
    }
}

impl Notes {
    /// `config` has the generation of the genesis, if there is one.
    pub(super) fn open(
        config: &StoreConfig,
        disk: &Arc<dyn Disk>,
        genesis: Option<&Genesis>,
    ) -> Result<Self, OpenError> {
        let (vote_path, path) = (config.path(VOTE_FILE), config.path(CHECKPOINT_FILE));
        let vote = Found::open(&**disk, &vote_path)?;
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
            (vote, Some((checkpoint_slots, checkpoint))) => {
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
                let (vote_slots, vote) = match vote {
                    Found::Whole(slots, vote) => (Some(slots), vote),
                    Found::Absent | Found::Damaged => (None, None),
                };
                Ok(Self {
                    vote,
                    vote_slots,
                    checkpoint,
                    checkpoint_slots,
                    created: false,
                })
            }
            (Found::Damaged | Found::Whole(_, Some(_)), None) => Err(OpenError::Missing { path }),
            (Found::Absent | Found::Whole(_, None), None) => {
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
            vote_slots: Some(vote_slots),
            checkpoint,
            checkpoint_slots,
            created: true,
        })
    }
}
