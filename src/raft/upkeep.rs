//! What keeps the log whole beside Raft: damage is looked for at leisure, and mended by other nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmq_store::{Damage, LogReader, PhyOffset, Queues, ReadError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::node::blocking;
use super::peer::Mender;

/// How often is looked whether what could not be read has been mended.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes that are looked through at once.
const STEP_BYTES: u64 = 1 << 20;
/// How often a node that has nobody to ask looks what is damaged.
const ALONE_PAUSE: Duration = Duration::from_secs(5);
/// A log is looked through this often at most.
const SCRUB_INTERVAL: Duration = Duration::from_secs(3600);

/// Waits before something is tried again that could not be read.
///
/// # Errors
/// If that is for another reason than damage that is going to be mended.
pub(super) async fn until_mended(log: &LogReader, error: io::Error) -> io::Result<()> {
    let read = error.get_ref().and_then(|error| error.downcast_ref());
    let is_damage = matches!(read, Some(ReadError::Damaged { .. } | ReadError::NoCell(_)));
    match is_damage {
        true if log.is_mending() => sleep(LOOK).await,
        true if find_again(log)?.0 => {}
        _ => return Err(error),
    }
    Ok(())
}

/// Reads again what is whole after all, where only the raft index was wrong; whether there was something, and what stays
/// damaged.
fn find_again(log: &LogReader) -> io::Result<(bool, Vec<Damage>)> {
    let mut any = false;
    loop {
        let damages = log.damages();
        let mut found = false;
        for damage in &damages {
            // The first entry of each.
            if log.mend_index(damage)? {
                tracing::info!(%damage, "an entry is found again");
                found = true;
            }
        }
        if !found {
            return Ok((any, damages));
        }
        any = true;
    }
}

/// The tasks that do it.
pub(super) struct Upkeep {
    log: LogReader,
    tasks: JoinSet<()>,
}

impl Upkeep {
    /// `bytes_per_second` are looked through, 0 for none. Without a mender, what is damaged stays so. Must be called
    /// within the Raft runtime.
    pub(super) fn start(
        log: &LogReader,
        queues: &Arc<Queues>,
        mender: Option<Mender>,
        bytes_per_second: u64,
    ) -> Self {
        let mut tasks = JoinSet::new();
        match mender {
            Some(mender) => tasks.spawn(mender.run()),
            None => tasks.spawn(make_do(log.clone(), Arc::clone(queues))),
        };
        if bytes_per_second > 0 {
            tasks.spawn(scrub(log.clone(), bytes_per_second));
        }
        let log = log.clone();
        Self { log, tasks }
    }

    /// Ends them. Nothing is written after this.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
        // What one of them has begun on another thread.
        let log = self.log;
        let ended = blocking(move || log.finish_mending()).await;
        drop(ended);
    }
}

/// Finds again what is whole after all, and has dispatch go on behind the rest, for nobody has what belongs there.
async fn make_do(log: LogReader, queues: Arc<Queues>) {
    loop {
        sleep(ALONE_PAUSE).await;
        if log.damages().is_empty() {
            continue;
        }
        let (log, queues) = (log.clone(), Arc::clone(&queues));
        let done = blocking(move || {
            let (_, lost) = find_again(&log)?;
            lost.iter().for_each(|damage| queues.pass_over(damage));
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = done.await {
            tracing::error!(%error, "cannot write to the raft index");
        }
    }
}

/// Looks through the log again and again, oldest first.
async fn scrub(log: LogReader, bytes_per_second: u64) {
    let step = STEP_BYTES.min(bytes_per_second);
    loop {
        let begun = Instant::now();
        let (mut at, mut bytes) = (PhyOffset(0), 0);
        loop {
            let reader = log.clone();
            let done = blocking(move || reader.scrub(at, step)).await;
            let scrubbed = match done {
                Ok(Ok(scrubbed)) => scrubbed,
                Ok(Err(error)) => {
                    tracing::error!(%at, %error, "cannot look through the log");
                    break;
                }
                Err(_) => return,
            };
            let Some(next) = scrubbed.next else { break };
            at = next;
            bytes += scrubbed.bytes;
            let pause =
                Duration::from_secs(1).mul_f64(scrubbed.bytes as f64 / bytes_per_second as f64);
            sleep(pause).await;
        }
        if bytes > 0 {
            let damaged = log.damages().len();
            tracing::info!(bytes, damaged, until = %at, "the log was looked through for damage");
        }
        sleep(
            SCRUB_INTERVAL
                .saturating_sub(begun.elapsed())
                .max(Duration::from_secs(1)),
        )
        .await;
    }
}
