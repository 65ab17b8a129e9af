//! Consumers that read a log from its start, while memory holds only a small part of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rmq_wire::code::{request, response};

use super::Report;
use super::limit::Memory;
use super::probe::{Latencies, Load, PATIENCE, Queues, fill, joined, probe_for};
use crate::client::{Client, describe, number};
use crate::cluster::{Cluster, Options};

const TOPIC: &str = "backlog";
const FILL_BODY: usize = 4 << 10;
const LOAD: Load = Load {
    connections: 4,
    every: Duration::from_millis(8),
    body: 1 << 10,
};

/// What to do.
#[derive(Debug, Clone, clap::Args)]
pub struct Plan {
    /// GiB of messages.
    #[arg(long, default_value_t = 20.0)]
    gib: f64,
    /// MiB that the broker and the page cache of its files may take together.
    #[arg(long, default_value_t = 1024)]
    memory_mib: u64,
    /// Consumers, each with a queue of its own.
    #[arg(long, default_value_t = 4)]
    consumers: u32,
    /// How often sends are timed without and then with the consumers.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long each time, seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// SYNC_FLUSH instead of ASYNC_FLUSH.
    #[arg(long)]
    sync_flush: bool,
}

/// Fails when the consumers raise the 99th percentile of sends more than threefold.
pub(super) fn run(rmq: &Path, dir: &Path, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let memory = Memory::limit(plan.memory_mib << 20)?;
    let options = Options {
        nodes: 1,
        sync_flush: plan.sync_flush,
        segment: 256 << 20,
        more: format!("defaultTopicQueueNums={}\n", plan.consumers),
        ..Options::default()
    };
    let cluster = Cluster::start(rmq, dir, &options)?;
    let pid = cluster.pid(0).context("the broker runs")?;
    memory.add(pid)?;
    let address = cluster.addresses()[0];
    let queues = Queues::of_topic(TOPIC, plan.consumers);
    let bytes = (plan.gib * f64::from(1 << 30)) as u64;
    let begun = Instant::now();
    fill(address, &queues, 16, bytes / FILL_BODY as u64, FILL_BODY)?;
    let filled = begun.elapsed().as_secs_f64();
    report.line(format!("filled in {filled:.0} s"));

    let time = Duration::from_secs(plan.seconds);
    let (mut without, mut with) = (Latencies::default(), Latencies::default());
    let mut at = vec![0; plan.consumers as usize];
    let (mut got, mut from_disk) = (0, 0);
    for _ in 0..plan.rounds {
        without.add(probe_for(address, &queues, LOAD, time)?);
        let before = read_from_disk(pid)?;
        let over = AtomicBool::new(false);
        with.add(thread::scope(|scope| {
            let readers: Vec<_> = (0..)
                .zip(&mut at)
                .map(|(queue, at)| {
                    let over = &over;
                    scope.spawn(move || read(address, queue, at, over))
                })
                .collect();
            let probed = probe_for(address, &queues, LOAD, time);
            over.store(true, Ordering::Relaxed);
            for reader in readers {
                got += joined(reader)?;
            }
            probed
        })?);
        from_disk += read_from_disk(pid)? - before;
    }

    let mib_per_second =
        |bytes: u64| bytes as f64 / f64::from(1 << 20) / (time * plan.rounds).as_secs_f64();
    report.line(format!("sends without consumers: {without}"));
    report.line(format!("sends with consumers:    {with}"));
    report.line(format!(
        "consumers got {:.0} MiB/s, of which the disk gave {:.0}",
        mib_per_second(got),
        mib_per_second(from_disk)
    ));
    report.compare(&without, &with, 3.0);
    if from_disk < got / 2 {
        let wrong = "most of what was read was in memory: this measures nothing";
        report.wrong.push(wrong.into());
    }
    Ok(())
}

/// Reads a queue on from `at`, and from its start again, until `over`. Returns the bytes that came.
fn read(address: SocketAddr, queue: u32, at: &mut u64, over: &AtomicBool) -> anyhow::Result<u64> {
    let mut client = Client::connect(address, PATIENCE)?;
    let end = client.queue_number(request::GET_MAX_OFFSET, TOPIC, queue)?;
    let mut bytes = 0;
    while !over.load(Ordering::Relaxed) {
        let answer = client.pull(TOPIC, queue, *at)?;
        ensure!(answer.code == response::SUCCESS, "{}", describe(&answer));
        bytes += answer.body.len() as u64;
        let next = number(&answer, "nextBeginOffset").context("no nextBeginOffset")?;
        *at = if next < end { next } else { 0 };
    }
    Ok(bytes)
}

/// Bytes that a process has had read from disks.
fn read_from_disk(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    let fields: BTreeMap<_, _> = lines.collect();
    Ok(fields.get("read_bytes").context("no read_bytes")?.parse()?)
}
