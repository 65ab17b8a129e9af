//! How far a run is: a bar on a terminal, lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Style {
    /// A bar on a terminal, plain lines elsewhere.
    Auto,
    Bar,
    Plain,
    /// A JSON object a line.
    Json,
    None,
}

/// Between two looks of a bar, and of lines.
const BAR_PERIOD: Duration = Duration::from_millis(100);
const LINE_PERIOD: Duration = Duration::from_secs(5);
const BAR_CELLS: u64 = 24;

/// Progress of a run, on the standard error.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    done: AtomicU64,
    messages: AtomicU64,
    phase: Mutex<Phase>,
}

#[derive(Debug)]
struct Phase {
    name: String,
    total: u64,
    since: Instant,
    shown: Option<Instant>,
    open: bool,
}

impl Progress {
    pub fn new(style: Style) -> Self {
        let style = match style {
            Style::Auto if std::io::stderr().is_terminal() => Style::Bar,
            Style::Auto => Style::Plain,
            other => other,
        };
        Self {
            style,
            done: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            phase: Mutex::new(Phase {
                name: String::new(),
                total: 0,
                since: Instant::now(),
                shown: None,
                open: false,
            }),
        }
    }

    /// Begins a phase of `total` bytes, 0 if that is not known, and ends the one before.
    pub fn phase(&self, name: &str, total: u64) {
        let mut phase = self.lock();
        self.end(&mut phase);
        self.done.store(0, Ordering::Relaxed);
        self.messages.store(0, Ordering::Relaxed);
        *phase = Phase {
            name: name.to_owned(),
            total,
            since: Instant::now(),
            shown: None,
            open: true,
        };
    }

    /// Ends the last phase.
    pub fn finish(&self) {
        let mut phase = self.lock();
        self.end(&mut phase);
    }

    /// Counts a message of so many bytes.
    pub fn add_record(&self, bytes: u64) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.add(bytes);
    }

    /// Shows that so many bytes of a phase are done, as whoever does the work counts them.
    pub fn set(&self, bytes: u64) {
        let done = self.done.load(Ordering::Relaxed);
        self.add(bytes.saturating_sub(done));
    }

    /// Counts bytes.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // A look at the clock for each record would cost more than the record.
        if done >> 20 == (done - bytes) >> 20 {
            return;
        }
        let period = if self.style == Style::Bar {
            BAR_PERIOD
        } else {
            LINE_PERIOD
        };
        let mut phase = self.lock();
        let last = phase.shown.unwrap_or(phase.since);
        if last.elapsed() >= period {
            phase.shown = Some(Instant::now());
            self.show(&phase, done, false);
        }
    }

    fn end(&self, phase: &mut Phase) {
        if std::mem::take(&mut phase.open) {
            self.show(phase, self.done.load(Ordering::Relaxed), true);
        }
    }

    fn show(&self, phase: &Phase, done: u64, ended: bool) {
        let messages = self.messages.load(Ordering::Relaxed);
        let seconds = phase.since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = done as f64 / seconds.max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let eta = phase.total.saturating_sub(done) as f64 / rate.max(1.0);
        let text = match self.style {
            Style::Json => {
                let line = serde_json::json!({
                    "phase": phase.name, "bytes_done": done, "bytes_total": phase.total,
                    "messages": messages, "rate": rate.round(), "eta_s": eta.round(),
                    "elapsed_s": (seconds * 1000.0).round() / 1000.0, "ended": ended,
                });
                format!("{line}\n")
            }
            Style::Plain if done == 0 => format!("{}: {seconds:.1} s\n", phase.name),
            Style::Plain => format!(
                "{}: {} of {}, {}/s, {seconds:.1} s\n",
                phase.name,
                bytes(done),
                bytes(phase.total.max(done)),
                bytes_f(rate)
            ),
            Style::Bar => {
                let cells = (done * BAR_CELLS)
                    .checked_div(phase.total)
                    .unwrap_or(BAR_CELLS);
                let bar: String = (0..BAR_CELLS)
                    .map(|cell| if cell < cells || ended { '█' } else { '·' })
                    .collect();
                let end = if ended {
                    format!("{seconds:.1} s\n")
                } else {
                    format!("{}/s  eta {eta:.0} s", bytes_f(rate))
                };
                format!("\r\x1b[K{:24} {bar} {}  {end}", phase.name, bytes(done))
            }
            Style::Auto | Style::None => return,
        };
        // Whoever does not read it any more misses nothing of the work.
        let _unread = std::io::stderr().write_all(text.as_bytes());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.phase
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    bytes_f(count as f64)
}

fn bytes_f(mut count: f64) -> String {
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if count < 1024.0 {
            return if unit == "B" {
                format!("{count:.0} B")
            } else {
                format!("{count:.1} {unit}")
            };
        }
        count /= 1024.0;
    }
    format!("{count:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (count, text) in [(0, "0 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
