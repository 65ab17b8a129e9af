//! What the tests of all modules wait by, and where they listen.

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Far beyond what anything takes that works, on a slow machine too; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Patience::new(what);
    while !is_so() {
        patience.pause("it is not so").await;
    }
}

/// Tries again and again, until something comes of it: what a leader does may fail on a stalled machine
/// because another one is elected.
pub(crate) async fn until_ok<T, E: Debug>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let patience = Patience::new(what);
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(why) => patience.pause(why).await,
        }
    }
}

/// The machine's time, for a test may have stopped its own.
struct Patience<'a>(&'a str, Instant);

impl<'a> Patience<'a> {
    fn new(what: &'a str) -> Self {
        Self(what, Instant::now())
    }

    async fn pause(&self, why: impl Debug) {
        let Self(what, begun) = self;
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}: {why:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A loopback address of the test's own. A port that is free there stays free until the test binds it
/// again, whatever others bind and connect meanwhile.
pub(crate) fn own_loopback() -> Ipv4Addr {
    let [place, node]: [u8; 2] = rand::random();
    Ipv4Addr::new(127, rand::random_range(1..255), place, node)
}
