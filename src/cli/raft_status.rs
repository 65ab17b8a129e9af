//! `mqadmin raftStatus`.

use std::process::ExitCode;

use super::namesrv::Namesrv;
use crate::admin::{damaged, quarantined, render};

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    namesrv: Namesrv,
    /// Only this broker name; all that the name server knows by default.
    #[arg(short = 'b')]
    broker_name: Option<String>,
}

/// Prints the state of each group as its leader sees it, or as any node does where there is none.
pub(super) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let admin = options.namesrv.admin().await;
    let names = match options.broker_name {
        Some(name) => vec![name],
        None => admin.brokers().await?.into_keys().collect(),
    };
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let statuses = admin.group(&name).await?;
        let best = statuses
            .iter()
            .find(|s| s.group.serving)
            .or_else(|| statuses.first());
        match best {
            Some(status) => {
                print!("{}", render(status));
                print!("{}{}", damaged(&statuses), quarantined(&statuses));
            }
            None => {
                println!("group {name}: no node answers");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
