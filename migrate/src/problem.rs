//! What goes wrong, for people and for scripts: a stable code, where, why, and what to do.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Stable names of problems. 1xx: the source; 2xx: parts that disagree; 3xx: the target; 4xx:
/// verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// There is no store of a Java broker.
    NoStore = 101,
    /// A broker is running on it.
    InUse = 102,
    /// A file or directory cannot be read.
    Unreadable = 103,
    /// It is a store of rmq already.
    OwnStore = 104,
    /// It holds no messages.
    Empty = 105,
    /// It was not stopped cleanly, or ends in the middle of a record.
    TornTail = 106,
    /// A segment is missing between two others.
    Gap = 107,
    /// A segment has another size than the others.
    SegmentSize = 108,
    /// A file that is none of the store's.
    ForeignFile = 109,
    /// A configuration file cannot be read, nor can its `.bak`.
    Metadata = 110,
    /// A queue file has another size than the others.
    QueueFileSize = 111,
    /// A record is damaged, and intact ones follow it.
    BadRecord = 113,
    /// The entries of a DLedger log do not follow one another.
    BadEntry = 114,
    /// The broker's properties file cannot be read or says something impossible.
    Conf = 115,
    /// Queues or index do not agree with the commit log, and are built anew.
    QueuesDiffer = 201,
    /// A topic, group or offset that a group of rmq cannot have.
    MetadataRefused = 202,
    /// A consumer offset beyond the end of its queue.
    OffsetBeyondEnd = 203,
    /// Messages that the Java broker would have delivered yet, and rmq does not.
    Unserved = 204,
    /// Two stores differ.
    StoresDiffer = 207,
    /// Other nodes may have messages that this store lacks.
    Unconfirmed = 208,
    /// The target exists.
    TargetExists = 301,
    /// The target is not a place to write to.
    TargetUnusable = 302,
    /// The target's disk is full, or too small.
    NoSpace = 303,
    /// An earlier run with other inputs left an unfinished target.
    OtherRun = 304,
    /// There is nothing to roll back, or it is too late.
    Rollback = 305,
    /// Writing the target failed.
    Write = 306,
    /// What was taken over is not what the source has.
    Verify = 401,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "E-{}", *self as u16)
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One problem.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    pub code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Byte in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    pub what: String,
    /// What it means.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl Problem {
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self {
            code,
            path: None,
            at: None,
            what: what.into(),
            why: String::new(),
            hint: String::new(),
        }
    }

    /// An error of the operating system on a file that is read.
    pub fn reading(path: &Path, error: &io::Error) -> Self {
        Self::new(Code::Unreadable, error.to_string())
            .at_file(path)
            .hint("check the disk and the permissions; nothing was changed")
    }

    /// An error of the operating system on a file that is written.
    pub fn writing(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(Code::NoSpace, error.to_string())
                    .at_file(path)
                    .hint("make room and run the same command again: it goes on where it stopped")
            }
            _ => Self::new(Code::Write, error.to_string())
                .at_file(path)
                .hint("run the same command again once the cause is gone: it goes on where it stopped"),
        }
    }

    /// A full disk, if that is what is behind an error, however deep.
    pub(crate) fn full_disk(path: &Path, error: &(dyn Error + 'static)) -> Option<Self> {
        // What an `io::Error` holds is not what it gives as its source, but that one's.
        fn cause<'a>(&error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
            match error.downcast_ref::<io::Error>() {
                Some(error) => error
                    .get_ref()
                    .map(|held| -> &(dyn Error + 'static) { held }),
                None => error.source(),
            }
        }
        std::iter::successors(Some(error), cause)
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .map(|cause| Self::writing(path, cause))
            .find(|problem| problem.code == Code::NoSpace)
    }

    #[must_use]
    pub fn at_file(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    #[must_use]
    pub fn at_byte(mut self, at: u64) -> Self {
        self.at = Some(at);
        self
    }

    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// The exit code that this problem ends the program with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.code {
            Code::NoSpace => 75,
            Code::Verify => 4,
            Code::Write | Code::Unreadable => 1,
            Code::Conf => 2,
            _ => 3,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code)?;
        if let Some(path) = &self.path {
            write!(f, "{}", path.display())?;
            match self.at {
                Some(at) => write!(f, " @ {at:#x}: ")?,
                None => f.write_str(": ")?,
            }
        }
        f.write_str(&self.what)?;
        for (mark, text) in [("why", &self.why), ("do", &self.hint)] {
            if !text.is_empty() {
                write!(f, "\n    {mark}: {text}")?;
            }
        }
        Ok(())
    }
}

impl Error for Problem {}

#[cfg(test)]
mod tests {
    use rmq_store::{DispatchError, OpenQueuesError, OpenStoreError, PhyOffset};

    use super::*;

    #[test]
    fn a_disk_that_fills_while_queues_are_built_is_no_failure_to_look_into() {
        let building = |kind: io::ErrorKind| {
            let (at, source) = (PhyOffset(0), kind.into());
            let error = OpenQueuesError::Dispatch(DispatchError::Io { at, source });
            OpenStoreError::Queues(error)
        };
        let exit = |error: &(dyn Error + 'static)| {
            Problem::full_disk(Path::new("/to"), error).map(|problem| problem.exit_code())
        };
        assert_eq!(exit(&building(io::ErrorKind::StorageFull)), Some(75));
        assert_eq!(exit(&building(io::ErrorKind::QuotaExceeded)), Some(75));
        assert_eq!(exit(&building(io::ErrorKind::PermissionDenied)), None);
        // As the queues' thread hands it on.
        let error = io::Error::other(building(io::ErrorKind::StorageFull));
        assert_eq!(exit(&error), Some(75));
        let error = io::Error::other(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(exit(&error), Some(75));
        assert_eq!(exit(&io::Error::from(io::ErrorKind::StorageFull)), Some(75));
    }
}
