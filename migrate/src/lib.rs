//! `rmq-migrate`: the store of a Java RocketMQ broker becomes the beginning of a group's log.
//!
//! - `source`: which store it is, that nobody uses it; `history`: how far its log goes; `queues`: whether
//!   its queues and index agree with that; `metadata`: what its `config/*.json` say; `unserved`: what
//!   nobody will deliver
//! - `plan`: what will be done; `place` and `transfer`: its files into the target; `dledger`: a DLedger
//!   log written anew
//! - `run`: the steps in their order; `verify`: the result against itself; `compare`: two stores;
//!   `rollback`: the way out
//! - `reverse`: the way back, from a group's store to a Java broker's
//! - `conf`: properties files; `sizes`: what they say of a store's files
//! - `report`, `progress`, `problem`, `estimate`, `stop`: for people
//!
//! The source is opened to read only. All work is done in `TO.partial-<run>`, which is renamed at the
//! end; the name of a run follows from its inputs, so that a run goes on where one with the same inputs
//! stopped.

mod compare;
mod conf;
mod dledger;
mod estimate;
mod history;
mod metadata;
mod place;
mod plan;
mod problem;
mod progress;
mod queues;
mod report;
mod reverse;
mod rollback;
mod run;
mod sizes;
mod source;
mod stop;
mod transfer;
mod unserved;
mod verify;
mod walk;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use history::Verify;
pub use problem::{Code, Problem};
pub use progress::{Progress, Style};
pub use report::Report;
pub use reverse::{Reversed, reverse};
pub use run::{check, run};
pub use transfer::Mode;

/// What the program is told.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "rmq-migrate",
    version,
    about = "Takes the store of a Java RocketMQ broker over into a group of rmq, with its whole history",
    after_help = "Exit codes: 0 done; 1 failed, run it again to go on; 2 usage; 3 the check found blockers; \
                  4 verification found a difference; 75 no space, run it again to go on; 130 Ctrl-C, \
                  the same.\n\
                  docs/migrate.md is the guide."
)]
pub struct Options {
    /// The stopped broker's storePathRootDir. It is never changed.
    #[arg(long, required_unless_present = "rollback")]
    pub from: Option<PathBuf>,
    /// The new storePathRootDir; it must not exist.
    #[arg(long)]
    pub to: PathBuf,
    /// The stopped broker's properties file; files for the new nodes are written from it.
    #[arg(short = 'c', long = "conf")]
    pub conf: Option<PathBuf>,
    /// Name of the group: dLegerGroup of the properties file, or else brokerName. Clients know the
    /// brokerName, which stays.
    #[arg(long)]
    pub group: Option<String>,
    /// The nodes, as in dLegerPeers, if the properties file does not have them.
    #[arg(long)]
    pub peers: Option<String>,
    /// Directory of topics.json and the like, if not config under --from. Nodes that are migrated
    /// separately need the same.
    #[arg(long)]
    pub config_from: Option<PathBuf>,
    /// How sealed files are taken over.
    #[arg(long, value_enum, default_value = "auto")]
    pub mode: Mode,
    /// Look, and write nothing.
    #[arg(long)]
    pub check: bool,
    /// How much of the log is read.
    #[arg(long, value_enum, default_value = "sample")]
    pub verify: Verify,
    /// Cut the log where a crash tore it; the report lists what is left out.
    #[arg(long)]
    pub accept_torn_tail: bool,
    /// Another store of the same broker (a slave's), or of another node of the DLedger group.
    #[arg(long, value_name = "DIR")]
    pub compare_with: Vec<PathBuf>,
    /// Remove what a run made, unless a group has accepted messages on it.
    #[arg(long, conflicts_with_all = ["from", "check"])]
    pub rollback: bool,
    /// The way back: from the store of a stopped node of rmq, frozen before (mqadmin raftFreeze), to one
    /// that a Java broker opens. Without a freeze --compare-with names the stores of all other nodes.
    #[arg(long, conflicts_with_all = ["rollback", "check", "group", "peers", "config_from", "accept_torn_tail"])]
    pub reverse: bool,
    /// With --reverse: go on although acknowledged messages may be in stores that are not given; the
    /// report lists what is known.
    #[arg(long, requires = "reverse")]
    pub accept_unconfirmed: bool,
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: Style,
    /// Where the report goes as JSON, besides the target; `-` is the standard output.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    stop::on_signals(&options);
    raise_descriptor_limit();
    let progress = Progress::new(options.progress);
    let result = if options.rollback {
        rollback::rollback(&options.to).map(|text| report::say(&text))
    } else if options.reverse {
        let done = reverse(&options, &progress);
        progress.finish();
        done.and_then(|done| done.publish(&options))
    } else {
        let report = if options.check {
            check(&options, &progress)
        } else {
            run(&options, &progress)
        };
        progress.finish();
        report.and_then(|report| report.publish(&options))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            progress.finish();
            report::complain(&problem);
            ExitCode::from(problem.exit_code())
        }
    }
}

/// Takes as many descriptors as the system allows: every segment is open while a store is, and of those
/// there may be more than the 1024 that programs get which may still use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        report::tell(&format!(
            "the limit of open descriptors stays {:?}: {error}",
            limit.current
        ));
    }
}
