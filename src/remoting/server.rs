//! Accepts connections and looks after them until their end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::conn::{self, Conn};
use super::limits::Bounds;
use super::{Limits, Listener, LogLimit, Service};
use crate::shutdown::Shutdown;

/// Accepting fails while the process has no descriptor left; trying at once again would only
/// burn the processor that could free one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

static REFUSED: LogLimit = LogLimit::new();

/// Serves connections until `shutdown`, then stops accepting, and reading from each connection in its next
/// quiet moment, leaves [`Limits::drain`] to the requests in flight, closes everything and returns.
pub async fn serve<S: Service>(
    mut listener: impl Listener,
    service: Arc<S>,
    limits: Limits,
    mut shutdown: Shutdown,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let bounds = Bounds::new(limits);
    // Every connection holds a sender; the channel closes with the last of them.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.asked() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                if let Some(more) = REFUSED.pass() {
                    tracing::warn!(more, "no connection could be accepted: {error}");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            if let Some(more) = REFUSED.pass() {
                let (peer, limit) = (stream.peer, bounds.limits.connections);
                tracing::warn!(%peer, limit, more, "connection refused: there are too many");
            }
            continue;
        };
        let conn = Conn::new(&stream, &bounds.limits);
        let task = conn::run(
            stream,
            conn,
            Arc::clone(&service),
            Arc::clone(&bounds),
            shutdown.clone(),
        );
        let alive = alive.clone();
        tokio::spawn(async move {
            task.await;
            drop((slot, alive));
        });
    }
    drop((listener, alive));
    all_gone.recv().await;
}
