//! A switch in user space: it carries frames between network devices and does to each link, in each
//! direction, what it is told. Its dice are seeded, and it needs no kernel module.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest wait for a frame; so soon a switch ends.
const TICK: Duration = Duration::from_millis(20);
/// More than a frame of Ethernet.
const FRAME: usize = 2048;
/// Frames that wait on one link; what comes then is dropped, as by every switch.
const QUEUE: usize = 1000;

/// What a link does to the frames of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// Of each frame, from 0 to 1, that it is lost.
    pub loss: f64,
    /// Of each frame, from 0 to 1, that it comes twice.
    pub twice: f64,
    /// Of each frame, from 0 to 1, that one of its bits is flipped.
    pub corrupt: f64,
    /// Of each frame.
    pub delay: Duration,
    /// Up to so much more delay, drawn for each frame: what comes later may overtake.
    pub jitter: Duration,
    /// Bytes a second; 0 for no limit.
    pub rate: u64,
}

impl Link {
    /// A link that nothing passes.
    pub const CUT: Self = Self {
        cut: true,
        loss: 0.0,
        twice: 0.0,
        corrupt: 0.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        rate: 0,
    };

    /// Both faults at once.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        let slower = |a: u64, b: u64| if a == 0 || b == 0 { a.max(b) } else { a.min(b) };
        Self {
            cut: self.cut || other.cut,
            loss: self.loss.max(other.loss),
            twice: self.twice.max(other.twice),
            corrupt: self.corrupt.max(other.corrupt),
            delay: self.delay.max(other.delay),
            jitter: self.jitter.max(other.jitter),
            rate: slower(self.rate, other.rate),
        }
    }
}

/// From one port to another.
pub type Direction = (usize, usize);

/// A switch; it stops when this is dropped.
pub struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ports: usize,
    stop: AtomicBool,
    links: Mutex<Vec<State>>,
}

#[derive(Clone)]
struct State {
    link: Link,
    /// Frames that were cut, lost, doubled, corrupted or delayed.
    touched: u64,
    /// When the last frame will have passed a link of limited rate.
    free: Instant,
    waiting: usize,
}

impl Switch {
    /// Carries frames between `ports`, each a device's frames without further headers. The port of a
    /// frame's destination is the last byte of its address, see [`address`].
    pub fn start(ports: Vec<File>, seed: u64) -> std::io::Result<Self> {
        let state = State {
            link: Link::default(),
            touched: 0,
            free: Instant::now(),
            waiting: 0,
        };
        let shared = Arc::new(Shared {
            ports: ports.len(),
            stop: AtomicBool::new(false),
            links: Mutex::new(vec![state; ports.len() * ports.len()]),
        });
        let mut carrier = Carrier {
            shared: shared.clone(),
            ports,
            dice: StdRng::seed_from_u64(seed),
            late: BinaryHeap::new(),
            count: 0,
        };
        let thread = thread::Builder::new()
            .name("switch".into())
            .spawn(move || carrier.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Has these links have these faults, and all others none.
    pub fn set(&self, faults: &[(Direction, Link)]) {
        let mut links = self.shared.links();
        for state in links.iter_mut() {
            state.link = Link::default();
        }
        for &((from, to), fault) in faults {
            let state = &mut links[from * self.shared.ports + to];
            state.link = state.link.with(fault);
        }
    }

    /// How many frames of these directions a fault has hit so far.
    pub fn touched(&self, of: impl IntoIterator<Item = Direction>) -> u64 {
        let links = self.shared.links();
        let of = of.into_iter();
        of.map(|(from, to)| links[from * self.shared.ports + to].touched)
            .sum()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the switch panicked");
        }
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, Vec<State>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address of the device at a port.
pub fn address(port: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, u8::try_from(port).unwrap_or(u8::MAX)]
}

struct Carrier {
    shared: Arc<Shared>,
    ports: Vec<File>,
    dice: StdRng,
    late: BinaryHeap<Reverse<Late>>,
    /// Numbers frames, so that those that are due at once keep their order.
    count: u64,
}

/// A frame that is due later.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    count: u64,
    direction: Direction,
    frame: Vec<u8>,
}

impl Carrier {
    fn run(&mut self) {
        let mut buffer = [0; FRAME];
        while !self.shared.stop.load(Ordering::Relaxed) {
            for port in self.ready() {
                // Not for ever, for others wait.
                for _ in 0..64 {
                    match (&self.ports[port]).read(&mut buffer) {
                        Ok(length) => self.pass(port, &mut buffer[..length]),
                        Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                        Err(e) => {
                            eprintln!("port {port} of the switch: {e}");
                            break;
                        }
                    }
                }
            }
            self.deliver();
        }
    }

    /// Ports with frames, waiting for one until a late frame is due.
    fn ready(&self) -> Vec<usize> {
        let now = Instant::now();
        let wait = self.late.peek().map_or(TICK, |Reverse(next)| {
            next.due.saturating_duration_since(now).min(TICK)
        });
        let mut polled: Vec<PollFd<'_>> = self
            .ports
            .iter()
            .map(|port| PollFd::new(port, PollFlags::IN))
            .collect();
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        // An interrupted wait is a short one.
        if poll(&mut polled, Some(&wait)).is_err() {
            return Vec::new();
        }
        let with_frames = |(_, fd): &(usize, &PollFd<'_>)| fd.revents().contains(PollFlags::IN);
        let ready = polled.iter().enumerate().filter(with_frames);
        ready.map(|(port, _)| port).collect()
    }

    fn pass(&mut self, from: usize, frame: &mut [u8]) {
        let Some(to) = (0..self.ports.len()).find(|to| frame.starts_with(&address(*to))) else {
            // A broadcast; all neighbours are known.
            return;
        };
        let mut links = self.shared.links();
        let state = &mut links[from * self.ports.len() + to];
        let link = state.link;
        if link == Link::default() {
            drop(links);
            self.write(to, frame);
            return;
        }
        if link.cut || self.dice.random_bool(link.loss) || state.waiting >= QUEUE {
            state.touched += 1;
            return;
        }
        let copies = 1 + usize::from(self.dice.random_bool(link.twice));
        let is_corrupt = self.dice.random_bool(link.corrupt);
        if is_corrupt {
            // Behind the addresses, so that it arrives.
            let at = self.dice.random_range(14.min(frame.len() - 1)..frame.len());
            frame[at] ^= 1 << self.dice.random_range(0..8);
        }
        let now = Instant::now();
        let mut due = now + link.delay;
        if !link.jitter.is_zero() {
            due += self.dice.random_range(Duration::ZERO..link.jitter);
        }
        if let Some(seconds) = (frame.len() as u64 * 1_000_000_000).checked_div(link.rate) {
            state.free = state.free.max(now) + Duration::from_nanos(seconds);
            due += state.free - now;
        }
        state.touched += u64::from(copies > 1 || is_corrupt || due > now);
        state.waiting += copies;
        drop(links);
        for _ in 0..copies {
            self.count += 1;
            self.late.push(Reverse(Late {
                due,
                count: self.count,
                direction: (from, to),
                frame: frame.to_vec(),
            }));
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self
            .late
            .peek()
            .is_some_and(|Reverse(next)| next.due <= now)
        {
            let Some(Reverse(late)) = self.late.pop() else {
                return;
            };
            let (from, to) = late.direction;
            self.shared.links()[from * self.ports.len() + to].waiting -= 1;
            self.write(to, &late.frame);
        }
    }

    /// A device that takes no more frames loses this one, and TCP sends it again.
    fn write(&self, to: usize, frame: &[u8]) {
        if let Err(e) = (&self.ports[to]).write(frame)
            && e.kind() != ErrorKind::WouldBlock
        {
            eprintln!("port {to} of the switch: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_one_link_add_up() {
        let slow = Link {
            delay: Duration::from_millis(5),
            rate: 1000,
            ..Link::default()
        };
        let narrow = Link {
            rate: 10,
            loss: 0.5,
            ..Link::default()
        };
        let both = slow.with(narrow);
        assert_eq!((both.delay, both.rate, both.loss), (slow.delay, 10, 0.5));
        assert!(both.with(Link::CUT).cut);
        assert_eq!(Link::default().with(slow), slow);
    }
}
