//! How large a store's files are, and how its messages are delayed: what a broker has to be told to open
//! it, whether of rmq or Java's.

use std::path::Path;

use rmq_store::{DelayLevels, FlushMode, StoreConfig};

use crate::conf::Conf;
use crate::problem::{Code, Problem};

/// Slots and entries of an index file where nobody says otherwise.
const DEFAULT_INDEX: (u32, u32) = (5_000_000, 20_000_000);

/// What a store's files are like.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// Bytes of a segment.
    pub segment: u64,
    /// Bytes of a queue file.
    pub consume_queue_file: u64,
    /// Slots and entries of an index file.
    pub index: (u32, u32),
    pub levels: DelayLevels,
}

impl Sizes {
    /// Settings under which rmq opens such a store, building all that is not built at once.
    pub(crate) fn config(&self, root: &Path) -> StoreConfig {
        let mut config = config_for(root, self.segment);
        config.consume_queue_file_bytes = self.consume_queue_file;
        (config.index_slots, config.index_entries) = self.index;
        config.delay_levels = self.levels.clone();
        config.flush = FlushMode::Sync;
        config.catch_up_bytes = u64::MAX;
        config
    }
}

/// Settings under which the log of a store with segments of this size opens.
pub(crate) fn config_for(root: &Path, segment_bytes: u64) -> StoreConfig {
    let mut config = StoreConfig::new(root);
    config.segment_bytes = segment_bytes;
    let most = segment_bytes.saturating_sub(rmq_store::ENTRY_OVERHEAD_BYTES);
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    config.max_message_bytes = config.max_message_bytes.min(most);
    config
}

/// Slots and entries of index files, as a properties file has them.
pub(crate) fn index(conf: Option<&Conf>) -> Result<(u32, u32), Problem> {
    let number = |key: &str, default: u32| -> Result<u32, Problem> {
        let said = conf.map_or(Ok(None), |conf| conf.number(key))?;
        let fits = said.and_then(|value| u32::try_from(value).ok());
        Ok(fits.unwrap_or(default))
    };
    Ok((
        number("maxHashSlotNum", DEFAULT_INDEX.0)?,
        number("maxIndexNum", DEFAULT_INDEX.1)?,
    ))
}

/// The levels of delay, as a properties file has them.
pub(crate) fn levels(conf: Option<&Conf>) -> Result<DelayLevels, Problem> {
    let said = conf.and_then(|conf| Some((conf, conf.get("messageDelayLevel")?)));
    said.map_or_else(
        || Ok(DelayLevels::default()),
        |(conf, text)| {
            DelayLevels::parse(text).map_err(|error| {
                Problem::new(Code::Conf, format!("messageDelayLevel: {error}")).at_file(conf.path())
            })
        },
    )
}
