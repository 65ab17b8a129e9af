//! On which threads a connection lives.
//!
//! Each hand-over from thread to thread costs a wake-up, most of what a send costs that has an entry of the log for itself. A
//! connection that lives with Raft needs none between its requests, their entries and their answers. But what it works on there
//! holds up Raft's heartbeats, so that only a few live with Raft, which work on nothing there that takes long.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use super::{Listener, Stream};

/// Connections that live with Raft at most: with the most that each does before others have their turn, a millisecond or two, they
/// are far from holding up a heartbeat for as long as an election takes.
const NEAR_MAX: usize = 4;
/// So many of the first connections do, for one of a tool that comes first must not keep out the only producer.
const NEAR_FIRST: usize = 2;

/// Where the connections of a process live. Its clones are the same.
#[derive(Clone)]
pub struct Homes(Arc<Inner>);

struct Inner {
    /// Raft's threads, if connections may live there.
    near: Option<Handle>,
    /// All others.
    far: Handle,
    count: Mutex<Count>,
}

/// Connections that are open.
#[derive(Default)]
struct Count {
    near: usize,
    far: usize,
}

impl Count {
    /// Whether the next one lives with Raft: as many as with each of the other threads, but for the first.
    fn is_next_near(&self, far_threads: usize) -> bool {
        self.near < NEAR_MAX.min(NEAR_FIRST + self.far / far_threads.max(1))
    }
}

/// The home of one connection, until dropped.
pub(super) struct Home {
    homes: Arc<Inner>,
    is_near: bool,
}

impl Homes {
    /// `near` is Raft's runtime, if it has threads of its own. Must be called on the runtime that serves clients.
    pub fn new(near: Option<Handle>) -> Self {
        Self(Arc::new(Inner {
            near,
            far: Handle::current(),
            count: Mutex::default(),
        }))
    }

    fn next(&self) -> Home {
        let mut count = self.0.count();
        let threads = self.0.far.metrics().num_workers();
        let is_near = self.0.near.is_some() && count.is_next_near(threads);
        match is_near {
            true => count.near += 1,
            false => count.far += 1,
        }
        Home {
            homes: Arc::clone(&self.0),
            is_near,
        }
    }
}

impl Inner {
    fn count(&self) -> std::sync::MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home {
    /// The runtime of its tasks.
    pub(super) fn runtime(&self) -> &Handle {
        match &self.homes.near {
            Some(near) if self.is_near => near,
            _ => &self.homes.far,
        }
    }

    /// The one for what must not be done at home.
    pub(super) fn elsewhere(&self) -> Option<Handle> {
        self.is_near.then(|| self.homes.far.clone())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let mut count = self.homes.count();
        match self.is_near {
            true => count.near -= 1,
            false => count.far -= 1,
        }
    }
}

/// Accepts connections and gives each its home.
pub struct Housing {
    pub listener: TcpListener,
    pub homes: Homes,
}

impl Listener for Housing {
    async fn accept(&mut self) -> io::Result<Stream> {
        loop {
            let (socket, _) = self.listener.accept().await?;
            let home = self.homes.next();
            let socket = match home.is_near {
                // A socket wakes the runtime on which it was made.
                true => {
                    let _there = home.runtime().enter();
                    TcpStream::from_std(socket.into_std()?)?
                }
                false => socket,
            };
            // One that its client has reset meanwhile is no trouble of this machine's.
            if let Ok(stream) = Stream::accepted(socket) {
                let home = Some(home);
                return Ok(Stream { home, ..stream });
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_first_two_live_with_raft_and_then_one_in_three_up_to_four() {
        let raft = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let homes = Homes::new(Some(raft.handle().clone()));
        let mut all: Vec<Home> = (0..30).map(|_| homes.next()).collect();
        let near = |homes: &[Home]| -> String {
            let letter = |home: &Home| if home.is_near { 'n' } else { '-' };
            homes.iter().map(letter).collect()
        };
        assert_eq!(near(&all), "nn--n--n----------------------");
        assert!(
            all.iter()
                .all(|home| home.is_near == (home.runtime().id() == raft.handle().id()))
        );
        assert!(
            all.iter()
                .all(|home| home.elsewhere().is_some() == home.is_near)
        );
        // The place of one that has ended is given again.
        drop(all.remove(0));
        assert!(homes.next().is_near);
        drop(all);
        assert!(homes.next().is_near);
        raft.shutdown_background();
    }

    #[tokio::test]
    async fn without_threads_of_raft_s_own_all_live_together() {
        let homes = Homes::new(None);
        let home = homes.next();
        assert!(!home.is_near && home.elsewhere().is_none());
        assert_eq!(home.runtime().id(), Handle::current().id());
    }
}
