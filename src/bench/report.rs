//! What a run has found, for people and as JSON, and beside an earlier one.

use std::fmt::Write as _;
use std::io;

use serde::{Deserialize, Serialize};

use super::meter::{self, Meter};
use super::{BenchError, Mode, Plan};

/// What is told each second.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Seconds since the first request.
    pub elapsed: f64,
    pub is_warmup: bool,
    pub sent: Option<Lap>,
    pub received: Option<Lap>,
}

/// The time since the last progress.
#[derive(Debug, Clone)]
pub struct Lap {
    pub per_second: f64,
    /// Since the start.
    pub messages: u64,
    /// Since the start.
    pub failed: u64,
    /// Milliseconds; `None` if nothing was measured.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Of the program that measured.
    pub version: String,
    pub namesrv: String,
    pub started_unix_ms: i64,
    pub plan: Plan,
    pub sent: Option<Side>,
    pub received: Option<Side>,
    pub cpu: Option<Cpu>,
}

/// One direction of a run, its warm-up left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    pub messages: u64,
    /// From the begin of the measurement to the last message.
    pub seconds: f64,
    pub per_second: f64,
    /// Of bodies.
    pub mib_per_second: f64,
    /// Messages whose requests failed, in the warm-up too.
    pub failed: u64,
    /// Each kind of failure: how often, and its first words.
    pub failures: Vec<String>,
    /// Messages that were due and could not be sent: the rate was too high, and latencies are at least
    /// what is told here.
    pub unsent: u64,
    pub latency_ms: Latency,
}

/// In milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
}

/// CPU time of the processes that were named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// While it was measured, in user and kernel mode.
    pub seconds: f64,
    pub per_million_messages: f64,
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn side(meter: &Meter, seconds: f64) -> Side {
    let measured = meter.measured();
    let latency = &measured.latency;
    let at = |quantile| meter::ms(latency.value_at_quantile(quantile));
    let per_second = |amount: f64| match seconds > 0.0 {
        true => amount / seconds,
        false => 0.0,
    };
    Side {
        messages: measured.messages,
        seconds,
        per_second: per_second(measured.messages as f64),
        mib_per_second: per_second(measured.bytes as f64 / f64::from(1 << 20)),
        failed: measured.failed,
        failures: measured
            .failures
            .into_iter()
            .map(|(kind, (count, words))| format!("{count} x {kind}: {words}"))
            .collect(),
        unsent: measured.unsent,
        latency_ms: Latency {
            min: meter::ms(latency.min()),
            mean: latency.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: meter::ms(latency.max()),
        },
    }
}

/// CPU seconds of each of these processes so far.
pub(super) fn cpu_seconds(pids: &[u32]) -> Result<Vec<f64>, BenchError> {
    let ticks = rustix::param::clock_ticks_per_second();
    pids.iter()
        .map(|&pid| cpu_ticks(pid).map_err(|source| BenchError::Process { pid, source }))
        .map(|found| {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            found.map(|found| found as f64 / ticks as f64)
        })
        .collect()
}

/// proc_pid_stat(5): utime and stime are fields 14 and 15; the second is a name in parentheses, which
/// may itself have some.
fn cpu_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let unreadable = || io::Error::other(format!("/proc/{pid}/stat is not as expected"));
    let (_, fields) = stat.rsplit_once(')').ok_or_else(unreadable)?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    Ok(ticks(11).ok_or_else(unreadable)? + ticks(12).ok_or_else(unreadable)?)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn cpu(before: &[f64], after: &[f64], messages: u64) -> Option<Cpu> {
    let seconds: f64 = after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .sum();
    (!before.is_empty() && messages > 0).then(|| Cpu {
        seconds,
        per_million_messages: seconds * 1e6 / messages as f64,
    })
}

impl Plan {
    /// In one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let mode = match self.mode {
            Mode::Produce => "produce",
            Mode::Consume => "consume",
            Mode::EndToEnd => "end to end",
        };
        let topics = match self.topics {
            1 => self.topic.clone(),
            several => format!("{several} topics {}_*", self.topic),
        };
        if self.mode == Mode::Consume {
            return format!("{mode}: {topics}, at most {} connections", self.connections);
        }
        let rate = match self.rate {
            Some(rate) => format!("{rate} messages/s"),
            None => "as fast as possible".to_owned(),
        };
        let batch = match self.batch {
            1 => String::new(),
            several => format!(" in batches of {several}"),
        };
        format!(
            "{mode}: {} B to {topics}{batch}, {} x {} requests under way, {rate}",
            self.size, self.connections, self.in_flight
        )
    }
}

impl Progress {
    /// In one line.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut line = format!("{:6.1} s", self.elapsed);
        for (name, lap) in [("sent", &self.sent), ("read", &self.received)] {
            let Some(lap) = lap else { continue };
            write!(line, "  {name} {:>9.0}/s", lap.per_second).expect(STRING);
            if let (Some(p50), Some(p99)) = (lap.p50, lap.p99) {
                write!(line, "  p50 {p50:.2} ms  p99 {p99:.2} ms").expect(STRING);
            }
            if lap.failed > 0 {
                write!(line, "  failed {}", lap.failed).expect(STRING);
            }
        }
        if self.is_warmup {
            line.push_str("  (warm-up)");
        }
        line
    }
}

const STRING: &str = "a String takes every write";

impl Report {
    /// Whether something was done and nothing failed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let sides = [&self.sent, &self.received];
        let mut sides = sides.into_iter().flatten();
        sides.all(|side| side.failed == 0 && side.failures.is_empty() && side.messages > 0)
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("{}\n", self.plan.describe());
        for (name, side) in [("sent", &self.sent), ("read", &self.received)] {
            let Some(side) = side else { continue };
            let latency = &side.latency_ms;
            writeln!(
                text,
                "{name:<8} {} messages in {:.1} s: {:.0}/s, {:.1} MiB/s",
                side.messages, side.seconds, side.per_second, side.mib_per_second
            )
            .expect(STRING);
            writeln!(
                text,
                "ms       min {:.2}  mean {:.2}  p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  \
                 p99.99 {:.2}  max {:.2}",
                latency.min,
                latency.mean,
                latency.p50,
                latency.p90,
                latency.p99,
                latency.p99_9,
                latency.p99_99,
                latency.max
            )
            .expect(STRING);
            for failure in &side.failures {
                writeln!(text, "failed   {failure}").expect(STRING);
            }
            if side.unsent > 0 {
                writeln!(
                    text,
                    "unsent   {} messages that were due: the rate is beyond what was reached, and \
                     latencies are at least these",
                    side.unsent
                )
                .expect(STRING);
            }
        }
        if let Some(cpu) = &self.cpu {
            writeln!(
                text,
                "CPU      {:.2} s of the processes, {:.2} s per million messages",
                cpu.seconds, cpu.per_million_messages
            )
            .expect(STRING);
        }
        text
    }

    /// The figures of an earlier run beside these.
    #[must_use]
    pub fn compare(&self, old: &Self) -> String {
        let mut rows = vec![["", "before", "now", "now / before"].map(String::from)];
        let mut row = |name: String, old: Option<f64>, new: Option<f64>| {
            let (Some(old), Some(new)) = (old, new) else {
                return;
            };
            let ratio = match old > 0.0 {
                true => format!("{:.2}", new / old),
                false => "-".to_owned(),
            };
            rows.push([name, format!("{old:.2}"), format!("{new:.2}"), ratio]);
        };
        let sides = [
            ("sent", &old.sent, &self.sent),
            ("read", &old.received, &self.received),
        ];
        for (name, old, new) in sides {
            let mut figure = |what: &str, of: fn(&Side) -> f64| {
                let (old, new) = (old.as_ref().map(of), new.as_ref().map(of));
                row(format!("{name} {what}"), old, new);
            };
            figure("messages/s", |side| side.per_second);
            figure("p50 ms", |side| side.latency_ms.p50);
            figure("p90 ms", |side| side.latency_ms.p90);
            figure("p99 ms", |side| side.latency_ms.p99);
            figure("p99.9 ms", |side| side.latency_ms.p99_9);
            figure("max ms", |side| side.latency_ms.max);
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            figure("failed", |side| side.failed as f64);
        }
        let cpu = |report: &Self| report.cpu.as_ref().map(|cpu| cpu.per_million_messages);
        row("CPU s per million".to_owned(), cpu(old), cpu(self));
        let mut text = crate::admin::table(&rows);
        if old.plan != self.plan {
            writeln!(text, "the runs differ; before: {}", old.plan.describe()).expect(STRING);
        }
        text
    }
}
