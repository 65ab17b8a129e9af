//! `mqadmin raftStatus`.

use std::process::ExitCode;

use crate::admin::{Admin, quarantined, render};

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// A name server, `host:port`.
    #[arg(short = 'n', env = "NAMESRV_ADDR", default_value = "127.0.0.1:9876")]
    namesrv: String,
    /// Only this broker name; all that the name server knows by default.
    #[arg(short = 'b')]
    broker_name: Option<String>,
}

/// Prints the state of each group as its leader sees it, or as any node does where there is none.
pub(super) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let namesrv = options.namesrv.split(';').next().unwrap_or_default();
    let admin = Admin::new(namesrv.to_owned());
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
                print!("{}", quarantined(&statuses));
            }
            None => {
                println!("group {name}: no node answers");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
