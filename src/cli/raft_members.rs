//! `mqadmin raftAddNode`, `raftPromote`, `raftRemoveNode`, `raftTransferLeader`, `raftRecover`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;

use super::namesrv::Namesrv;
use crate::raft::SelfId;

/// Which group is changed.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    namesrv: Namesrv,
    /// The group's broker name; needed where the name server knows several.
    #[arg(short = 'b')]
    broker_name: Option<String>,
    /// Seconds to go on asking while the answer is that it may be done later: no leader yet, a node
    /// that is catching up.
    #[arg(long, default_value_t = 10)]
    wait: u64,
}

/// Whom it is about.
#[derive(Debug, clap::Args)]
pub(super) struct NodeOptions {
    /// The node's self id, like n3.
    #[arg(long)]
    node: SelfId,
    #[command(flatten)]
    group: Options,
}

/// Who is to lead.
#[derive(Debug, clap::Args)]
pub(super) struct TransferOptions {
    /// The new leader's self id, like n2; by default the node with the most of the log.
    #[arg(long)]
    to: Option<SelfId>,
    #[command(flatten)]
    group: Options,
}

/// How a group recovers from a loss of power.
#[derive(Debug, clap::Args)]
pub(super) struct RecoverOptions {
    /// Go on without the nodes that do not answer, and lose what only they have.
    #[arg(long)]
    without_absent: bool,
    #[command(flatten)]
    group: Options,
}

pub(super) async fn recover(code: i32, options: RecoverOptions) -> anyhow::Result<ExitCode> {
    let field = options.without_absent.then(|| "true".to_owned());
    steer(
        code,
        field.map(|value| ("withoutAbsent", value)),
        options.group,
    )
    .await
}

pub(super) async fn change(code: i32, options: NodeOptions) -> anyhow::Result<ExitCode> {
    steer(
        code,
        Some(("node", options.node.to_string())),
        options.group,
    )
    .await
}

pub(super) async fn transfer(code: i32, options: TransferOptions) -> anyhow::Result<ExitCode> {
    let field = options.to.map(|to| ("node", to.to_string()));
    steer(code, field, options.group).await
}

async fn steer(
    code: i32,
    field: Option<(&str, String)>,
    options: Options,
) -> anyhow::Result<ExitCode> {
    let admin = options.namesrv.admin().await;
    let name = match options.broker_name {
        Some(name) => name,
        None => {
            let names: Vec<String> = admin.brokers().await?.into_keys().collect();
            match <[String; 1]>::try_from(names) {
                Ok([name]) => name,
                Err(names) if names.is_empty() => bail!("the name server knows no broker"),
                Err(names) => bail!("name a group with -b: {}", names.join(", ")),
            }
        }
    };
    let field = field.as_ref().map(|(name, value)| (*name, value.as_str()));
    let patience = Duration::from_secs(options.wait);
    let done = admin.steer(&name, code, field, patience).await?;
    println!("{name}: {done}");
    Ok(ExitCode::SUCCESS)
}
