//! What a server does with requests: the trait, the request and the forms of an answer.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rmq_wire::code::response;
use rmq_wire::frame::Command;

use super::{Class, Conn};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    pub command: Command,
    /// The whole frame without its length field, for passing on unchanged.
    pub raw: Bytes,
    /// The connection it came on; none when another node forwarded it.
    pub conn: Option<Arc<Conn>>,
    /// The client, also when another node forwarded the request.
    pub peer: SocketAddr,
}

/// The forms in which an answer can be given.
#[derive(Debug, Clone)]
pub enum Reply {
    Command(Command),
    /// A command whose body is the concatenation of these parts, which are not copied.
    Parts(Command, Vec<Bytes>),
    /// A whole frame without its length field, such as another node's answer to a forwarded
    /// request. Its opaque must already be that of the request.
    Frame(Bytes),
}

/// The answer to a load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether requests shall be sent here.
    pub ok: bool,
    /// JSON for people who look.
    pub body: String,
}

impl Reply {
    /// Bytes of the body, without parts that are mapped.
    pub(super) fn memory(&self) -> usize {
        match self {
            Self::Command(command) => command.body.len(),
            Self::Parts(..) => 0,
            Self::Frame(frame) => frame.len(),
        }
    }
}

impl From<Command> for Reply {
    fn from(command: Command) -> Self {
        Self::Command(command)
    }
}

/// The remark with which Java refuses what its queues have no room for (`NettyRemotingAbstract`).
pub const OVERLOAD: &str = "[OVERLOAD]system busy, start flow control for a while";

/// Answers requests.
///
/// Requests of one connection run concurrently, but each is polled for the first time in the order
/// of arrival, before the next one is looked at. What a handler does before its first suspension
/// point therefore happens in order, among those that are [brief](Service::is_brief) and among those that are not. One task
/// polls all requests of a connection, or one for either kind, so that whatever blocks it delays them all.
pub trait Service: Send + Sync + 'static {
    /// Answers one request; `None` answers nothing. What is returned for a oneway request is
    /// dropped.
    ///
    /// The future is never cancelled, not even by the end of the connection. One that waits long
    /// must therefore also wait for [`Conn::closed`].
    fn call(self: Arc<Self>, request: Request) -> impl Future<Output = Option<Reply>> + Send;

    /// With what a request of this code shares its room.
    fn class(&self, code: i32) -> Class {
        let _ = code;
        Class::Other
    }

    /// Whether this request never keeps its thread for long: no file is read for it, no lock is waited for that others
    /// keep for long. Others are not worked on where they would hold up Raft.
    fn is_brief(&self, command: &Command) -> bool {
        let _ = command;
        true
    }

    /// What a request of this code is told for which there was no room in so long, code and remark;
    /// `None` tells nothing. Nothing was done for it.
    fn busy(&self, code: i32, waited: Duration) -> Option<(i32, String)> {
        let _ = (code, waited);
        Some((response::SYSTEM_BUSY, OVERLOAD.to_owned()))
    }

    /// What a load balancer is told that asks for `path` by HTTP; `None` for an unknown one.
    fn health(&self, path: &str) -> Option<Health> {
        let _ = path;
        None
    }

    /// A connection was opened. Runs before its first request.
    fn opened(&self, conn: &Arc<Conn>) {
        let _ = conn;
    }

    /// The connection is closed. Runs exactly once per opened connection, possibly before its last
    /// requests have finished.
    fn closed(&self, conn: &Arc<Conn>) {
        let _ = conn;
    }
}
