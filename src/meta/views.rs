//! `config/topics.json`, `subscriptionGroup.json`, `consumerOffset.json` and `delayOffset.json` as
//! a Java broker writes them (`ConfigManager`, 4.9.8): for people, for tools, and for a Java broker
//! that is started on this store. They are written from the state and never read back.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rmq_wire::json;
use tokio::sync::watch;

use super::{Meta, Revisions};

/// Writes those files of one store that are behind the state.
pub struct Views {
    dir: PathBuf,
    meta: Meta,
    revisions: watch::Receiver<Revisions>,
    /// What the files show; `None` before the first write, whatever lies there.
    written: Option<Revisions>,
}

impl Views {
    /// `dir` is the `config` directory of the store; it is created when first needed.
    pub fn new(dir: PathBuf, meta: &Meta) -> Self {
        Self {
            dir,
            meta: meta.clone(),
            revisions: meta.revisions(),
            written: None,
        }
    }

    /// Brings every file that is behind up to date, the previous content going to `.bak`.
    ///
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The first file that could not be written; it and those after it are tried again next time.
    pub fn write_changed(&mut self) -> io::Result<()> {
        // Taken before the state is read: a change in between is then written twice, not missed.
        let now = *self.revisions.borrow_and_update();
        let old = self.written;
        let stale = |part: fn(&Revisions) -> u64| old.is_none_or(|old| part(&old) != part(&now));

        // The state is let go before the table is written out: commands wait for it.
        if stale(|r| r.topics) {
            let table = self.meta.read().topic_table();
            replace(&self.dir, "topics.json", &json::to_java_string(&table))?;
        }
        if stale(|r| r.groups) {
            let table = self.meta.read().group_table();
            replace(
                &self.dir,
                "subscriptionGroup.json",
                &json::to_java_string(&table),
            )?;
        }
        if stale(|r| r.offsets) {
            let table = self.meta.read().offset_table();
            replace(
                &self.dir,
                "consumerOffset.json",
                &json::to_java_string(&table),
            )?;
        }
        if stale(|r| r.delay) {
            let table = self.meta.read().delay_table();
            replace(&self.dir, "delayOffset.json", &json::to_java_string(&table))?;
        }
        self.written = Some(now);
        Ok(())
    }
}

/// Puts `text` in place of `dir/name`. After a crash at any point either the file or its `.bak` is
/// whole, which is what a Java broker looks for.
fn replace(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    fs::create_dir_all(dir)?;
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    if path.try_exists()? {
        fs::rename(&path, dir.join(format!("{name}.bak")))?;
    }
    fs::rename(&temporary, &path)?;
    File::open(dir)?.sync_all()
}
