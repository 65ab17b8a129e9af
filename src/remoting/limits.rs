//! The bounds that keep a peer from costing more than its share, and the log lines about peers
//! that try.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Bounds of a server or client. The durations are measured with tokio's clock.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of all servers together; one more is closed as soon as it is accepted.
    pub connections: usize,
    /// Time a new connection has for its first complete frame.
    pub first_frame: Duration,
    /// Time from the first to the last byte of a frame.
    pub partial_frame: Duration,
    /// A connection on which nothing is read or written for so long is closed
    /// (`serverChannelMaxIdleTimeSeconds` of the Java broker, 120 s).
    pub idle: Duration,
    /// A connection that takes none of the bytes waiting for it for so long is closed; sooner while such bytes of all
    /// connections take more than their share.
    pub write_stall: Duration,
    /// Requests of one connection that are being worked on, in bytes; each counts its length but
    /// at least [`Limits::REQUEST_BYTES_MIN`]. At the limit nothing more is read from it.
    pub in_flight_bytes: usize,
    /// What all connections together may hold: requests that arrive or are worked on, counted as above,
    /// and answers; see [`Bounds`](super::Bounds) for how it is shared out.
    pub memory_bytes: usize,
    /// Requests that bring messages and are worked on at a time, those of all connections together; one
    /// larger than half of [`Limits::REQUEST_BYTES_MIN`] counts as several.
    pub sends: usize,
    /// Pulls of all connections, counted in the same way.
    pub pulls: usize,
    /// How long a send may wait for its place among them, since it was read; `None` for as long as it
    /// takes.
    pub send_wait: Option<Duration>,
    /// How long any other request but a pull may wait for room, since it was read.
    pub request_wait: Duration,
    /// Bytes accepted for one connection and not yet taken by its socket. At the limit no new
    /// request of it is started, and finished ones wait with their answers.
    pub outbound_bytes: usize,
    /// Bytes of the answers that wait so. A connection that exceeds this is closed.
    pub waiting_bytes: usize,
    /// Time that a stopping server leaves to requests in flight and unwritten answers; with none its
    /// connections just end.
    pub drain: Duration,
}

impl Limits {
    /// What a request costs beside its bytes: its state.
    pub const REQUEST_BYTES_MIN: usize = 8 * 1024;

    /// The smallest share of [`Limits::memory_bytes`] that one kind of what is held has.
    pub(super) fn eighth(&self) -> usize {
        self.memory_bytes / 8
    }

    /// The most that answers on their way have of it, and those that wait.
    pub(super) fn quarter(&self) -> usize {
        self.memory_bytes / 4
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 15_000,
            first_frame: Duration::from_secs(10),
            partial_frame: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            write_stall: Duration::from_secs(30),
            in_flight_bytes: 64 << 20,
            memory_bytes: 512 << 20,
            sends: 10_000,
            pulls: 100_000,
            send_wait: Some(Duration::from_millis(200)),
            request_wait: Duration::from_secs(5),
            outbound_bytes: 4 << 20,
            waiting_bytes: 256 << 20,
            drain: Duration::from_secs(5),
        }
    }
}

/// Lets a few log lines per second pass and counts the others, so that a flood of bad peers does
/// not become a flood of log lines.
#[derive(Debug)]
pub struct LogLimit(Mutex<Window>);

#[derive(Debug)]
struct Window {
    started: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl LogLimit {
    const LINES_PER_SECOND: u32 = 10;

    pub const fn new() -> Self {
        Self(Mutex::new(Window {
            started: None,
            passed: 0,
            suppressed: 0,
        }))
    }

    /// `Some(n)` when a line may be written, `n` being the number of lines suppressed since the
    /// last one that was.
    pub fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut window = self.0.lock().expect("no panic under this lock");
        if window
            .started
            .is_none_or(|started| now - started >= Duration::from_secs(1))
        {
            window.started = Some(now);
            window.passed = 0;
        }
        if window.passed == Self::LINES_PER_SECOND {
            window.suppressed += 1;
            return None;
        }
        window.passed += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn log_lines_beyond_the_rate_are_counted_not_written() {
        let limit = LogLimit::new();
        assert_eq!((0..100).filter_map(|_| limit.pass()).count(), 10);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(limit.pass(), Some(90));
        assert_eq!(limit.pass(), Some(0));
    }
}
