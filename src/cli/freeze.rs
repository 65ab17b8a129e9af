//! `mqadmin raftFreeze` and `mqadmin raftThaw`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rmq_wire::code::request;

use super::namesrv::Namesrv;
use crate::admin::table;
use crate::broker::{FrozenAt, NodeStatus};

/// How often nodes are asked whether they bear the mark.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a thaw is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// What was asked for is done in part: the group is frozen and a node is behind.
const EXIT_PARTIAL: u8 = 3;

/// Which group.
#[derive(Debug, clap::Args)]
pub(super) struct Whom {
    #[command(flatten)]
    namesrv: Namesrv,
    /// The broker name that the group's nodes share.
    #[arg(short = 'b')]
    broker_name: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    whom: Whom,
    /// How many seconds to wait until all nodes have the same end.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

pub(super) async fn freeze(options: Options) -> anyhow::Result<ExitCode> {
    let Options { whom, timeout } = options;
    let admin = whom.namesrv.admin().await;
    let name = &whom.broker_name;
    let patience = Duration::from_secs(timeout);
    let end = Instant::now() + patience;
    admin
        .steer(name, request::RAFT_FREEZE, None, patience)
        .await?;
    loop {
        let statuses = admin.group(name).await?;
        match even(&statuses) {
            Ok(mark) => {
                print!("{}", shown(name, &mark, &statuses));
                return Ok(ExitCode::SUCCESS);
            }
            Err(reason) if Instant::now() > end => {
                eprintln!(
                    "error: group {name} is frozen, but {reason}. Start or repair that node and \
                     repeat this command, or end the freeze with raftThaw."
                );
                return Ok(ExitCode::from(EXIT_PARTIAL));
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) async fn thaw(whom: Whom) -> anyhow::Result<ExitCode> {
    let name = &whom.broker_name;
    let admin = whom.namesrv.admin().await;
    admin
        .steer(name, request::RAFT_THAW, None, PATIENCE)
        .await?;
    println!("group {name} takes messages again");
    Ok(ExitCode::SUCCESS)
}

/// The mark that all members bear, or why there is none.
fn even(statuses: &[NodeStatus]) -> Result<FrozenAt, String> {
    let leader = statuses.iter().find(|status| status.group.serving);
    let marked = leader.and_then(|leader| Some((leader, leader.frozen?)));
    let (leader, mark) = marked.ok_or("no leader answers")?;
    let bears = |node: u64| {
        let status = statuses.iter().find(|status| status.group.node == node);
        status.is_some_and(|status| status.frozen == Some(mark))
    };
    let members = leader.group.members.iter();
    let behind: Vec<&str> = members
        .filter(|member| !bears(member.node))
        .map(|member| member.broker_addr.as_str())
        .collect();
    match behind.is_empty() {
        true => Ok(mark),
        false => Err(format!(
            "{} has not confirmed that it has the same end",
            behind.join(", ")
        )),
    }
}

fn shown(name: &str, mark: &FrozenAt, statuses: &[NodeStatus]) -> String {
    let mut rows = vec![["node", "store", "end offset"].map(String::from)];
    rows.extend(statuses.iter().map(|status| {
        let end = mark.end_offset.to_string();
        [status.self_id.clone(), status.store.clone(), end]
    }));
    format!(
        "group {name} is frozen at term {} index {}, end offset {}; all nodes have the same end:\n{}\
         Stop all nodes now (mqshutdown broker); each of these stores can go back. \
         raftThaw ends the freeze instead.\n",
        mark.term,
        mark.index,
        mark.end_offset,
        table(&rows)
    )
}
