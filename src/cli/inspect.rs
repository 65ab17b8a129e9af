//! `mqadmin inspect store`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use rmq_store::inspect::inspect;
use rmq_store::{Disk, RealDisk};

use crate::admin::describe;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Counts and positions of a store, and what is damaged in it. Writes nothing. Exit code 1 if
    /// anything is damaged.
    Store(Options),
}

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// `storePathRootDir`.
    dir: PathBuf,
    /// `storePathCommitLog`, where that is not `commitlog` in the same directory.
    #[arg(long = "commitlog", value_name = "DIR")]
    commit_log: Option<PathBuf>,
    /// Print everything as JSON, also queue by queue.
    #[arg(long)]
    json: bool,
    /// List every queue.
    #[arg(long, conflicts_with = "json")]
    queues: bool,
}

pub(super) fn run(action: &Action) -> anyhow::Result<ExitCode> {
    let Action::Store(options) = action;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let found = inspect(&disk, &options.dir, options.commit_log.as_deref())?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print!("{}", describe(&found, options.queues));
    }
    Ok(match found.damages {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
