//! A benchmark: a node that lost its disk gets a long log back as files, is killed on the way, and the
//! leader's clients are timed meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::Report;
use super::probe::{Load, Queues, fill, joined, probe, probe_for, until};
use crate::cluster::{Cluster, Options, SEGMENT, status};

/// Enough of them that the last ones leave the log at once.
const FILL_BODY: usize = 256 << 10;
const LOAD: Load = Load {
    connections: 1,
    every: Duration::from_millis(5),
    body: 1 << 10,
};

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// GiB of messages; three times that much space is used.
    #[arg(long, default_value_t = 5.0)]
    gib: f64,
    /// Seconds that sends are timed without a transfer.
    #[arg(long, default_value_t = 30)]
    baseline: u64,
    /// How often the node is killed on the way.
    #[arg(long, default_value_t = 3)]
    kills: u32,
    /// `snapshotMaxBytesPerSecond`.
    #[arg(long)]
    bytes_per_second: Option<u64>,
    /// SYNC_FLUSH on every node instead of ASYNC_FLUSH.
    #[arg(long)]
    sync_flush: bool,
}

/// Segments in a directory of a commit log, in order.
pub fn segments(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.len() == 20).collect();
    names.sort();
    names
}

/// Of each snapshot that began to arrive at a node, by what it printed, the bytes that were there
/// already.
pub fn resumed(log: &Path) -> anyhow::Result<Vec<u64>> {
    let log = fs::read_to_string(log)?;
    let lines = log
        .lines()
        .filter(|line| line.contains("a snapshot is arriving"));
    lines
        .map(|line| {
            let (_, bytes) = line.rsplit_once("resumed=").context("no resumed=")?;
            Ok(bytes.parse()?)
        })
        .collect()
}

/// Fails when the transfer more than doubles the 99th percentile, or begins anew.
pub(super) fn run(rmq: &Path, dir: &Path, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let hours: Vec<String> = (0..24).map(|hour| format!("{hour:02}")).collect();
    let mut more = format!(
        "fileReservedTime=0\ndeleteFileBatchMax=1\ndeleteWhen={}\n",
        hours.join(";")
    );
    if let Some(rate) = plan.bytes_per_second {
        more += &format!("snapshotMaxBytesPerSecond={rate}\n");
    }
    let options = Options {
        more,
        sync_flush: plan.sync_flush,
        ..Options::default()
    };
    let mut cluster = Cluster::start(rmq, dir, &options)?;
    let leader = cluster.leader()?;
    let address = cluster.addresses()[leader];
    let lost = (leader + 1) % 3;
    let bytes = (plan.gib * f64::from(1 << 30)) as u64;
    let queues = Queues::of_topic("catch_up", 4);
    fill(address, &queues, 4, bytes / FILL_BODY as u64, FILL_BODY)?;
    let log_of = |cluster: &Cluster, node: usize| cluster.nodes()[node].store.join("commitlog");
    let log = log_of(&cluster, leader);
    until("something has left the log", || {
        let first = segments(&log).into_iter().next();
        Ok(first.is_some_and(|first| first != format!("{:020}", 0)))
    })?;
    cluster.kill(lost)?;
    cluster.wipe(lost)?;

    let without = probe_for(address, &queues, LOAD, Duration::from_secs(plan.baseline))?;
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let with = thread::scope(|scope| {
        let probing = scope.spawn(|| probe(address, &queues, LOAD, &over));
        let taken = take_in(&mut cluster, lost, address, plan.kills, bytes);
        over.store(true, Ordering::Relaxed);
        let with = joined(probing);
        taken?;
        with
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let resumed = resumed(&cluster.nodes()[lost].store.with_extension("log"))?;

    report.line(format!("sends without a transfer: {without}"));
    report.line(format!("sends with a transfer:    {with}"));
    report.compare(&without, &with, 2.0);
    report.line(format!(
        "from the start of the emptied node to its vote: {seconds:.1} s"
    ));
    report.line(format!(
        "bytes that were there when a transfer began: {resumed:?}"
    ));
    if resumed.iter().skip(1).any(|bytes| *bytes == 0) {
        report.wrong.push("a transfer began anew".into());
    }
    Ok(())
}

/// Starts the emptied node, kills it so and so often on the way, and returns when it votes.
fn take_in(
    cluster: &mut Cluster,
    lost: usize,
    leader: SocketAddr,
    kills: u32,
    bytes: u64,
) -> anyhow::Result<()> {
    let incoming = cluster.nodes()[lost].store.join("commitlog/incoming");
    for kill in 1..=u64::from(kills) {
        cluster.start_node(lost)?;
        let share = bytes * kill / (u64::from(kills) + 1);
        until("more of the log has arrived", || {
            Ok(segments(&incoming).len() as u64 * SEGMENT > share)
        })?;
        cluster.kill(lost)?;
    }
    cluster.start_node(lost)?;
    let address = cluster.addresses()[lost];
    until("the node votes", || {
        let (Ok(own), Ok(group)) = (status(address), status(leader)) else {
            return Ok(false);
        };
        let id = own["group"]["node"].as_u64();
        let members = group["group"]["members"].as_array();
        Ok(members
            .into_iter()
            .flatten()
            .any(|member| member["voter"] == true && id.is_some() && member["node"].as_u64() == id))
    })
}
