//! Keeps a lasting condition from filling the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often the same thing is said.
const INTERVAL: Duration = Duration::from_secs(10);
/// Different things remembered.
const MAX_TEXTS: usize = 64;

/// Remembers what was said when.
#[derive(Default)]
pub(in crate::raft) struct Nag {
    said: Mutex<HashMap<String, Instant>>,
}

impl Nag {
    /// Whether `text` was not said lately; it is taken to be said now.
    pub(super) fn is_due(&self, text: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(text).is_some_and(|at| at.elapsed() < INTERVAL) {
            return false;
        }
        if said.len() >= MAX_TEXTS {
            said.clear();
        }
        said.insert(text.to_owned(), Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_text_is_due_again_after_a_while() {
        let nag = Nag::default();
        assert!(nag.is_due("a"));
        assert!(nag.is_due("b"));
        assert!(!nag.is_due("a"));
        tokio::time::advance(INTERVAL).await;
        assert!(nag.is_due("a"));
        for i in 0..1000 {
            assert!(nag.is_due(&i.to_string()));
        }
        assert!(nag.said.lock().unwrap().len() <= MAX_TEXTS);
    }
}
