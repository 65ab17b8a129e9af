//! Calls to other processes, one kept connection per address.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rmq_wire::code::response;
use rmq_wire::frame::Command;
use tokio::time::{Instant, timeout};

use super::conn::{self, CallError, Conn};
use super::{Bounds, Dialer, Limits, Reply, Request, Service, Tcp};
use crate::shutdown::{Shutdown, Trigger};

/// Longest wait for a connection, as in the Java client (`connectTimeoutMillis`).
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Beyond so many addresses, those without a connection are forgotten.
const SLOTS_KEPT: usize = 64;

/// Dials on first use, shares one connection per address and dials again after its end. Cheap to
/// clone; the last clone closes the connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    dialer: Box<dyn Dialer>,
    bounds: Bounds,
    slots: Mutex<HashMap<String, Slot>>,
    shutdown: Shutdown,
    _trigger: Trigger,
}

/// Held over dialing, so that concurrent callers of one address share the attempt.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Conn>>>>;

impl Default for Client {
    fn default() -> Self {
        Self::new(Tcp, Limits::default())
    }
}

impl Client {
    /// Requests that come up a connection from the other side are answered as not supported.
    pub fn new(dialer: impl Dialer, limits: Limits) -> Self {
        let (trigger, shutdown) = Shutdown::new();
        // A client's connection owes no first frame, and nothing of it needs draining.
        let limits = Limits {
            first_frame: limits.idle,
            drain: Duration::ZERO,
            ..limits
        };
        Self(Arc::new(Inner {
            dialer: Box::new(dialer),
            bounds: Bounds::new(limits),
            slots: Mutex::default(),
            shutdown,
            _trigger: trigger,
        }))
    }

    /// Sends a request to `addr` (`host:port`) and waits for its answer, whatever its code.
    ///
    /// A connection from which nothing at all came within `limit` is closed, so that the next call
    /// does not meet a dead peer's silence again.
    ///
    /// # Errors
    /// See [`CallError`]; after `Connect` and `Busy` nothing was sent.
    pub async fn call(
        &self,
        addr: &str,
        command: Command,
        limit: Duration,
    ) -> Result<Command, CallError> {
        let begun = Instant::now();
        let conn = self.connect(addr, limit).await?;
        let result = conn.call_until(command, begun + limit, limit).await;
        if matches!(result, Err(CallError::Timeout { .. })) && conn.last_read() <= begun {
            conn.close();
        }
        result
    }

    /// Sends a request that is not answered, connecting first if need be.
    ///
    /// # Errors
    /// See [`CallError`]. Success does not say that the request has arrived.
    pub async fn oneway(
        &self,
        addr: &str,
        command: Command,
        limit: Duration,
    ) -> Result<(), CallError> {
        self.connect(addr, limit).await?.oneway(command)
    }

    /// Closes the connection to `addr`, if there is one.
    #[cfg(test)]
    pub(crate) async fn disconnect(&self, addr: &str) {
        let slot = self.slot(addr);
        if let Some(conn) = slot.lock().await.take() {
            conn.close();
        }
    }

    /// The connection to `addr`, dialed if need be. It stays the one that [`Client::call`] uses.
    ///
    /// # Errors
    /// [`CallError::Connect`], also after `limit` or 3 s, whichever is shorter.
    pub async fn connect(&self, addr: &str, limit: Duration) -> Result<Arc<Conn>, CallError> {
        let limit = limit.min(CONNECT_LIMIT);
        let slot = self.slot(addr);
        let connecting = async {
            let mut slot = slot.lock().await;
            if let Some(conn) = slot.as_ref().filter(|conn| !conn.is_closed()) {
                return Ok(Arc::clone(conn));
            }
            let stream = self.0.dialer.dial(addr).await?;
            let conn = Conn::new(&stream, &self.0.bounds);
            let bounds = self.0.bounds.clone();
            let shutdown = self.0.shutdown.clone();
            tokio::spawn(conn::run(
                stream,
                Arc::clone(&conn),
                Arc::new(Nothing),
                bounds,
                shutdown,
            ));
            Ok(Arc::clone(slot.insert(conn)))
        };
        let connected = timeout(limit, connecting).await.unwrap_or_else(|_| {
            let words = format!("no connection within {} ms", limit.as_millis());
            Err(io::Error::new(io::ErrorKind::TimedOut, words))
        });
        connected.map_err(|source| CallError::Connect {
            addr: addr.to_owned(),
            source,
        })
    }

    fn slot(&self, addr: &str) -> Slot {
        let mut slots = self.0.slots.lock().expect("no panic under this lock");
        if let Some(slot) = slots.get(addr) {
            return Arc::clone(slot);
        }
        if slots.len() >= SLOTS_KEPT {
            // A locked slot is being dialed.
            slots.retain(|_, slot| {
                slot.try_lock().map_or(true, |conn| {
                    conn.as_ref().is_some_and(|conn| !conn.is_closed())
                })
            });
        }
        Arc::clone(slots.entry(addr.to_owned()).or_default())
    }
}

/// Serves nobody.
struct Nothing;

impl Service for Nothing {
    fn call(self: Arc<Self>, request: Request) -> impl Future<Output = Option<Reply>> + Send {
        let code = request.command.code;
        let remark = format!("request type {code} not supported");
        let reply = request
            .command
            .reply_error(response::REQUEST_CODE_NOT_SUPPORTED, remark);
        std::future::ready(Some(reply.into()))
    }
}
