//! `GET_BROKER_RUNTIME_INFO`: the numbers of this node, as texts by name.
//!
//! `AdminBrokerProcessor.prepareRuntimeInfo` and what it collects (4.9.8, 5.3.3). The exporter reads
//! some forty of the keys without asking whether they are there, so none may be missing. A number
//! of something that does not exist here is the one that Java gives when it is switched off.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rmq_wire::body::KvTable;
use rmq_wire::frame;
use rmq_wire::name;

use super::{answer, blocking};
use crate::broker::Broker;
use crate::broker::refusal::Handled;
use crate::broker::stats::Totals;
use crate::remoting::{Class, Limits, Request};

/// Name of [`frame::VERSION`] in `MQVersion`.
const VERSION_NAME: &str = "V4_9_8";
const _: () = assert!(frame::VERSION == 409);

/// Over how many seconds rates are told.
const RATE_SECONDS: [usize; 3] = [10, 60, 600];

type Table = BTreeMap<String, String>;

pub(in crate::broker) async fn runtime_info(broker: &Arc<Broker>, request: &Request) -> Handled {
    let table = blocking(broker, |broker| {
        let mut table = Table::new();
        of_process(broker, &mut table);
        of_puts(broker, &mut table);
        of_gets(broker, &mut table);
        of_log(broker, &mut table);
        of_disk(broker, &mut table);
        of_delays(broker, &mut table);
        of_forwards(broker, &mut table);
        of_sends(broker, &mut table);
        absent(&mut table);
        Ok(table)
    })
    .await?;
    answer(request, &KvTable { table })
}

fn put(table: &mut Table, key: impl Into<String>, value: impl ToString) {
    table.insert(key.into(), value.to_string());
}

fn of_process(broker: &Broker, table: &mut Table) {
    let boot_ms = broker.stats.boot_ms;
    put(table, "brokerVersion", frame::VERSION);
    put(table, "brokerVersionDesc", VERSION_NAME);
    put(table, "brokerActive", broker.is_serving());
    put(table, "bootTimestamp", boot_ms);
    put(table, "runtime", uptime(broker.now_ms() - boot_ms));
}

/// As Java's, `[ 0 days, 1 hours, 2 minutes, 3 seconds ]`.
fn uptime(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    format!(
        "[ {days} days, {} hours, {} minutes, {} seconds ]",
        hours % 24,
        minutes % 60,
        seconds % 60
    )
}

fn of_puts(broker: &Broker, table: &mut Table) {
    let stats = &broker.stats;
    let totals = stats.totals.now();
    let (yesterday, today) = stats.totals.mornings();
    put(table, "msgPutTotalTodayNow", totals.put_messages);
    put(table, "msgPutTotalTodayMorning", today.put);
    put(table, "msgPutTotalYesterdayMorning", yesterday.put);
    put(table, "putMessageTimesTotal", totals.put_messages);
    put(table, "putMessageFailedTimes", totals.puts_failed);
    put(table, "putMessageSizeTotal", totals.put_bytes);
    let average = totals.put_bytes as f64 / totals.put_messages.max(1) as f64;
    put(table, "putMessageAverageSize", number(average));
    put(table, "putTps", rates(broker, |totals| totals.put_messages));

    let times = &stats.put_times;
    put(table, "putMessageDistributeTime", times.distribution());
    put(table, "putMessageEntireTimeMax", times.longest_ms());
    for (key, share) in [("putLatency99", 0.99), ("putLatency999", 0.999)] {
        put(table, key, format!("{:.2}", times.quantile(share)));
    }
}

fn of_gets(broker: &Broker, table: &mut Table) {
    let totals = &broker.stats.totals;
    let (yesterday, today) = totals.mornings();
    put(table, "msgGetTotalTodayNow", totals.now().got_messages);
    put(table, "msgGetTotalTodayMorning", today.got);
    put(table, "msgGetTotalYesterdayMorning", yesterday.got);
    put(
        table,
        "getFoundTps",
        rates(broker, |totals| totals.gets_found),
    );
    put(
        table,
        "getMissTps",
        rates(broker, |totals| totals.gets_missed),
    );
    let looks = |totals: &Totals| totals.gets_found + totals.gets_missed;
    put(table, "getTotalTps", rates(broker, looks));
    let transferred = rates(broker, |totals| totals.got_messages);
    // The first is how 4.9 spells it.
    put(table, "getTransferedTps", &transferred);
    put(table, "getTransferredTps", transferred);
    put(table, "getMessageEntireTimeMax", totals.longest_get_ms());
}

/// Rates over 10 s, 60 s and 600 s.
fn rates(broker: &Broker, of: impl Fn(&Totals) -> u64) -> String {
    RATE_SECONDS
        .map(|seconds| number(broker.stats.totals.rate(seconds, &of)))
        .join(" ")
}

/// With a point, as Java prints a double.
fn number(value: f64) -> String {
    format!("{value:?}")
}

fn of_log(broker: &Broker, table: &mut Table) {
    let confirm = broker.log.confirm_offset();
    put(table, "commitLogMinOffset", broker.log.min_offset());
    put(table, "commitLogMaxOffset", confirm);
    let behind = confirm.0.saturating_sub(broker.queues.dispatched().0);
    put(table, "dispatchBehindBytes", behind);
    let unsynced = broker
        .log
        .end_offset()
        .0
        .saturating_sub(broker.log.synced_offset().0);
    put(table, "remainHowManyDataToFlush", bytes(unsynced));
    let earliest = broker.queues.earliest_store_time().unwrap_or(-1);
    put(table, "earliestMessageTimeStamp", earliest);
}

fn of_disk(broker: &Broker, table: &mut Table) {
    let config = &broker.config;
    let log_dir = config.commit_log_dir();
    let log_share = used_share(&log_dir);
    put(table, "commitLogDiskRatio", log_share);
    let of_dir = format!("commitLogDiskRatio_{}", log_dir.display());
    put(table, of_dir, log_share);
    let root = &config.store_path_root_dir;
    put(table, "consumeQueueDiskRatio", used_share(root));
    if let Ok(space) = rustix::fs::statvfs(root) {
        let total = space.f_blocks.saturating_mul(space.f_frsize);
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let capacity = format!("Total : {}, Free : {}.", bytes(total), bytes(free));
        put(table, "commitLogDirCapacity", capacity);
    }
}

/// Used space of the file system that has this directory, of what its owner may use, rounded up to
/// hundredths; -1 if it cannot be told (`UtilAll.getDiskPartitionSpaceUsedPercent`).
fn used_share(dir: &Path) -> f64 {
    let Ok(space) = rustix::fs::statvfs(dir) else {
        return -1.0;
    };
    let used = space.f_blocks.saturating_sub(space.f_bfree);
    match used.saturating_add(space.f_bavail) {
        0 => -1.0,
        all => (used.saturating_mul(100).div_ceil(all)) as f64 / 100.0,
    }
}

/// As Java's `MixAll.humanReadableByteCount`, `1.5 KiB`.
fn bytes(count: u64) -> String {
    const UNIT: f64 = 1024.0;
    if count < 1024 {
        return format!("{count} B");
    }
    let exponent = (count.ilog2() / 10) as usize;
    let prefix = ["K", "M", "G", "T", "P", "E"][exponent - 1];
    format!(
        "{:.1} {prefix}iB",
        count as f64 / UNIT.powi(exponent as i32)
    )
}

/// `scheduleMessageOffset_<level>`: up to where the level is delivered, and where its queue ends.
fn of_delays(broker: &Broker, table: &mut Table) {
    let delays = broker.meta.read().delay.clone();
    for (level, offset) in delays {
        let end = broker.queues.max_offset(name::SCHEDULE_TOPIC, level - 1);
        put(
            table,
            format!("scheduleMessageOffset_{level}"),
            format!("{offset},{end}"),
        );
    }
}

/// What became of requests that only a leader may answer and that reached this node otherwise.
fn of_forwards(broker: &Broker, table: &mut Table) {
    let forwarding = &broker.forwarding;
    for (key, counter) in [
        ("forwardAnsweredTotal", &forwarding.answered),
        ("forwardHeldTotal", &forwarding.waited),
        ("forwardOutcomeUnknownTotal", &forwarding.unknown),
    ] {
        put(table, key, counter.load(Ordering::Relaxed));
    }
}

/// The sends that are worked on: they are what waits in the queue of Java's pool for them.
fn of_sends(broker: &Broker, table: &mut Table) {
    let held = broker.intake.held(Class::Send) / Limits::REQUEST_BYTES_MIN;
    let capacity = broker.config.send_thread_pool_queue_capacity;
    put(table, "sendThreadPoolQueueSize", held);
    put(table, "sendThreadPoolQueueCapacity", capacity);
    put(table, "sendThreadPoolQueueHeadWaitTimeMills", 0);
}

/// What Java has and we do not: no other request waits in the queue of a pool of threads, no buffer
/// stands before the page cache, no lock is held while a message is written, and there is neither a
/// pause before sends are taken nor a timer wheel.
fn absent(table: &mut Table) {
    for pool in ["pull", "query", "litePull"] {
        put(table, format!("{pool}ThreadPoolQueueSize"), 0);
        put(table, format!("{pool}ThreadPoolQueueCapacity"), 0);
        put(table, format!("{pool}ThreadPoolQueueHeadWaitTimeMills"), 0);
    }
    put(table, "EndTransactionQueueSize", 0);
    put(table, "EndTransactionThreadPoolQueueCapacity", 0);
    put(table, "remainTransientStoreBufferNumbs", i32::MAX);
    put(table, "pageCacheLockTimeMills", 0);
    put(table, "dispatchMaxBuffer", 0);
    put(table, "startAcceptSendRequestTimeStamp", 0);
    for key in ["timerReadBehind", "timerOffsetBehind", "timerCongestNum"] {
        put(table, key, 0);
    }
    for key in ["timerEnqueueTps", "timerDequeueTps"] {
        put(table, key, number(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_javas_do() {
        let sizes = [0, 1023, 1024, 1536, 1 << 30, 252 << 30, u64::MAX];
        let shown = [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.5 KiB",
            "1.0 GiB",
            "252.0 GiB",
            "16.0 EiB",
        ];
        assert_eq!(sizes.map(bytes), shown);
        let ms = ((26 * 60 + 3) * 60 + 4) * 1000 + 999;
        assert_eq!(uptime(ms), "[ 1 days, 2 hours, 3 minutes, 4 seconds ]");
        assert_eq!(uptime(-5), "[ 0 days, 0 hours, 0 minutes, 0 seconds ]");
        assert_eq!((number(0.0), number(0.125)), ("0.0".into(), "0.125".into()));
    }

    #[test]
    fn the_share_of_a_disk_is_one_of_hundredths() {
        let share = used_share(Path::new("/"));
        assert!((0.0..=1.0).contains(&share), "{share}");
        assert_eq!(share, (share * 100.0).round() / 100.0);
        assert_eq!(used_share(Path::new("/no/such/place")), -1.0);
    }
}
