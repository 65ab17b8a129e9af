//! Accepts connections and looks after them until their end.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::conn::{self, Conn};
use super::{Bounds, Listener, LogLimit, Service};
use crate::shutdown::Shutdown;

/// Accepting fails while the process has no descriptor left; trying at once again would only
/// burn the processor that could free one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

static REFUSED: LogLimit = LogLimit::new();

/// Serves connections until `shutdown`, then stops accepting, and reading from each connection in its next
/// quiet moment, leaves [`Limits::drain`](super::Limits::drain) to the requests in flight, closes everything and
/// returns. Servers of one process share their bounds.
pub async fn serve<S: Service>(
    mut listener: impl Listener,
    service: Arc<S>,
    bounds: impl Into<Bounds>,
    mut shutdown: Shutdown,
) {
    let bounds = bounds.into();
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
        let Some(slot) = bounds.slot() else {
            if let Some(more) = REFUSED.pass() {
                let (peer, limit) = (stream.peer, bounds.limits().connections);
                tracing::warn!(%peer, limit, more, "connection refused: there are too many");
            }
            continue;
        };
        let conn = Conn::new(&stream, &bounds);
        let home = stream.home.as_ref();
        let runtime = home.map_or_else(Handle::current, |home| home.runtime().clone());
        let task = conn::run(
            stream,
            conn,
            Arc::clone(&service),
            bounds.clone(),
            shutdown.clone(),
        );
        let alive = alive.clone();
        runtime.spawn(async move {
            task.await;
            drop((slot, alive));
        });
    }
    drop((listener, alive));
    all_gone.recv().await;
}
