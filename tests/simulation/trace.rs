//! What happened, as one number, and the last of it as text.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Lines kept for a failure.
const TAIL: usize = 400;

/// The record of one run. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Trace(Arc<Mutex<State>>);

struct State {
    start: Instant,
    hash: u64,
    events: u64,
    verbose: bool,
    tail: VecDeque<String>,
}

impl State {
    /// FNV-1a.
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.events += 1;
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("runs are short")
    }
}

impl Trace {
    /// Must be called on the simulation's runtime. `verbose` prints every event.
    pub(crate) fn new(verbose: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            start: Instant::now(),
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            verbose,
            tail: VecDeque::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a node read bytes of another.
    pub(crate) fn bytes(&self, from: usize, to: usize, bytes: &[u8]) {
        let mut state = self.state();
        let at = state.micros();
        state.add(&at.to_le_bytes());
        state.add(&[from as u8, to as u8]);
        state.add(bytes);
    }

    /// Notes what happened.
    pub(crate) fn event(&self, text: fmt::Arguments<'_>) {
        let mut state = self.state();
        let at = state.micros();
        let line = format!("{:>10.3} ms  {text}", at as f64 / 1000.0);
        state.add(line.as_bytes());
        if state.verbose {
            println!("{line}");
        }
        if state.tail.len() == TAIL {
            state.tail.pop_front();
        }
        state.tail.push_back(line);
    }

    /// Equal for runs in which the same happened at the same times.
    pub(crate) fn hash(&self) -> u64 {
        self.state().hash
    }

    /// How much happened.
    pub(crate) fn events(&self) -> u64 {
        self.state().events
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let state = self.state();
        let lines: Vec<&str> = state.tail.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
