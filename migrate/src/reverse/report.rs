//! What the way back tells people.

use std::fmt;

use super::Reversed;
use crate::problem::Problem;
use crate::transfer::write_file;
use crate::{Options, report};

impl Reversed {
    /// Prints it, and writes it where the options say.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn publish(&self, options: &Options) -> Result<(), Problem> {
        let json = serde_json::to_string_pretty(self).expect("plain data");
        match &options.report {
            Some(path) if path.as_os_str() == "-" => report::say(&json),
            Some(path) => {
                write_file(path, json.as_bytes())?;
                report::say(&self.to_string());
            }
            None => report::say(&self.to_string()),
        }
        Ok(())
    }
}

impl fmt::Display for Reversed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for missing in &self.unconfirmed {
            writeln!(f, "unconfirmed: {missing}")?;
        }
        writeln!(
            f,
            "{} is a Java broker's store, made from {}",
            self.to.display(),
            self.from.display()
        )?;
        match &self.frozen {
            Some(mark) => writeln!(
                f,
                "the group was frozen at term {} index {}, end offset {}",
                mark.term, mark.index, mark.end_offset
            )?,
            None => writeln!(
                f,
                "up to term {} index {}, end offset {}",
                self.last_term, self.last_index, self.end_offset
            )?,
        }
        writeln!(
            f,
            "{} topics, {} groups, {} consumer offsets; {} files linked, {} reflinked, {} copied",
            self.topics,
            self.groups,
            self.consumer_offsets,
            self.files.linked_files,
            self.files.reflinked_files,
            self.files.copied_files
        )?;
        match &self.conf_file {
            Some(path) => write!(
                f,
                "start the Java master with  mqbroker -c {}",
                path.display()
            ),
            None => write!(
                f,
                "give the Java master this storePathRootDir, and file sizes as they are"
            ),
        }
    }
}
