//! Very many queues, in a few topics or each in one of its own, beside a group that has only eight.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use rmq_wire::body::{CreateTopicListRequest, TopicConfig, perm};
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;

use super::Report;
use super::probe::{Latencies, Load, PATIENCE, Queues, fill, probe_for, until};
use crate::client::{Client, describe};
use crate::cluster::{Cluster, Options};

/// Topics that a request creates.
const AT_ONCE: usize = 1000;
const LOAD: Load = Load {
    connections: 4,
    every: Duration::from_millis(8),
    body: 1 << 10,
};
/// How long a start may take.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// How many queues there are.
    #[arg(long, default_value_t = 100_000)]
    count: u32,
    /// What has them, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "queues,topics")]
    shape: Vec<Shape>,
    /// Nodes of each of the two groups.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How often sends to few and then to many queues are timed.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long each time, seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// SYNC_FLUSH instead of ASYNC_FLUSH.
    #[arg(long)]
    sync_flush: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    /// A hundred topics share them.
    Queues,
    /// Each is alone in its topic.
    Topics,
}

/// Fails when a start takes too long, or sends to many queues have more than twice the 99th percentile of
/// sends to few.
pub(super) fn run(rmq: &Path, dir: &Path, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    for shape in &plan.shape {
        let dir = dir.join(format!("{shape:?}"));
        let topics = match shape {
            Shape::Queues => plan.count.min(100),
            Shape::Topics => plan.count,
        };
        let of_each = plan.count / topics;
        report.line(format!("{topics} topics of {of_each} queues:"));
        run_shape(rmq, &dir, plan, (topics, of_each), report)?;
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn run_shape(
    rmq: &Path,
    dir: &Path,
    plan: &Plan,
    (topics, of_each): (u32, u32),
    report: &mut Report,
) -> anyhow::Result<()> {
    let options = Options {
        nodes: plan.nodes,
        sync_flush: plan.sync_flush,
        ..Options::default()
    };
    let few = Cluster::start(rmq, &dir.join("few"), &options)?;
    let few_queues = Queues::of_topic("few", 8);
    let mut many = Cluster::start(rmq, &dir.join("many"), &options)?;
    let many_queues = Queues {
        topics: (0..topics)
            .map(|n| format!("orders-of-tenant-{n:06}"))
            .collect(),
        of_each,
    };
    let begun = Instant::now();
    create(&few, &few_queues)?;
    create(&many, &many_queues)?;
    let created = begun.elapsed().as_secs_f64();
    for (cluster, queues) in [(&few, &few_queues), (&many, &many_queues)] {
        let leader = cluster.addresses()[cluster.leader()?];
        fill(leader, queues, 16, queues.len(), LOAD.body)?;
    }
    let filled = begun.elapsed().as_secs_f64() - created;
    report.line(format!(
        "topics created in {created:.1} s, a message sent to each queue in {filled:.1} s"
    ));
    report.line(format!("memory of a node with few: {}", used(&few)?));
    report.line(format!("memory of a node with many: {}", used(&many)?));

    for (how, kill) in [("a stop", false), ("kill -9", true)] {
        let nodes = 0..plan.nodes;
        for node in nodes.clone() {
            if kill {
                many.kill(node)?;
            } else {
                let begun = Instant::now();
                ensure!(many.stop(node)?, "node {node} did not stop well");
                let took = begun.elapsed().as_secs_f64();
                report.line(format!("node {node} stopped in {took:.1} s"));
            }
        }
        let begun = Instant::now();
        for node in nodes {
            many.start_node(node)?;
        }
        many.wait_for_leader(PATIENCE)?;
        let took = begun.elapsed();
        until("the name server knows the topics", || {
            let last = many_queues.topics.last().context("there are topics")?;
            is_routed(many.namesrv, last)
        })?;
        let (seconds, routed) = (took.as_secs_f64(), begun.elapsed().as_secs_f64());
        report.line(format!(
            "all nodes started after {how}: {seconds:.1} s until a leader took writes, {routed:.1} s until \
             the name server knew all topics"
        ));
        if took > START_LIMIT {
            report
                .wrong
                .push(format!("{seconds:.1} s to start after {how}"));
        }
    }

    let time = Duration::from_secs(plan.seconds);
    let (mut without, mut with) = (Latencies::default(), Latencies::default());
    for _ in 0..plan.rounds {
        for (cluster, queues, all) in [
            (&few, &few_queues, &mut without),
            (&many, &many_queues, &mut with),
        ] {
            let leader = cluster.addresses()[cluster.leader()?];
            all.add(probe_for(leader, queues, LOAD, time)?);
        }
    }
    report.line(format!("sends to 8 queues: {without}"));
    report.line(format!("sends to {} queues: {with}", many_queues.len()));
    report.compare(&without, &with, 2.0);
    report.line(format!("memory of a node with few: {}", used(&few)?));
    report.line(format!("memory of a node with many: {}", used(&many)?));
    Ok(())
}

/// Creates the topics, and waits until the name server knows them.
fn create(cluster: &Cluster, queues: &Queues) -> anyhow::Result<()> {
    let mut client = Client::connect(cluster.addresses()[cluster.leader()?], PATIENCE)?;
    let of_each = i32::try_from(queues.of_each)?;
    for topics in queues.topics.chunks(AT_ONCE) {
        let topic = |name| TopicConfig::new(name, of_each, perm::READ | perm::WRITE);
        let list = CreateTopicListRequest {
            topic_config_list: topics.iter().map(topic).collect(),
        };
        let command = Command::request(request::UPDATE_AND_CREATE_TOPIC_LIST).with_json(&list);
        let answer = client.call(command)?;
        ensure!(answer.code == response::SUCCESS, "{}", describe(&answer));
    }
    until("the name server knows the topics", || {
        is_routed(
            cluster.namesrv,
            queues.topics.last().context("there are topics")?,
        )
    })
}

fn is_routed(namesrv: SocketAddr, topic: &str) -> anyhow::Result<bool> {
    let mut command = Command::request(request::GET_ROUTEINFO_BY_TOPIC);
    command.ext.insert("topic", topic);
    let answer = Client::connect(namesrv, PATIENCE)?.call(command)?;
    Ok(answer.code == response::SUCCESS)
}

/// Of the node of a group that takes most memory, what it takes.
fn used(cluster: &Cluster) -> anyhow::Result<String> {
    let mut most = (0, String::new());
    for node in cluster.members() {
        let of = format!("/proc/{}", cluster.pid(node).context("the node runs")?);
        let status = fs::read_to_string(format!("{of}/status"))?;
        let mib = |key: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            Ok(kib.context("no such line")?.parse::<u64>()? >> 10)
        };
        let (all, own) = (mib("VmRSS")?, mib("RssAnon")?);
        let descriptors = fs::read_dir(format!("{of}/fd"))?.count();
        let maps = fs::read_to_string(format!("{of}/maps"))?.lines().count();
        let text = format!(
            "{all} MiB resident, {own} MiB of them not of files; {descriptors} descriptors, {maps} mappings"
        );
        most = most.max((own, text));
    }
    Ok(most.1)
}
