//! Work in the background, in turns: a worker is woken, does one piece of work, and says when it
//! wants to go on. Who gives it its turns is the machine's affair: a thread, or a simulation.

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// When a worker wants its next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// At once: there may be more to do.
    Again,
    /// When it is woken.
    Wait,
    /// When it is woken, but after this time at the latest.
    WaitFor(Duration),
    /// After this time, woken or not.
    Pause(Duration),
    /// Never.
    End,
}

/// One turn of a worker. Given the time since some moment of the past, always the same one; it says
/// [`Turn::End`] soon after its owner has told it to stop.
pub type Work = Box<dyn FnMut(Duration) -> Turn + Send>;

/// A worker at work, as its owner sees it. Dropping it does not end it.
pub trait Worker: Send + Sync + Debug {
    /// Gives it a turn soon: at least one that begins after this call.
    fn wake(&self);

    /// Waits until it has said [`Turn::End`].
    ///
    /// # Errors
    /// If a turn panicked.
    fn join(&self) -> io::Result<()>;
}

/// Has a thread of its own do the work.
pub(crate) fn thread(name: &str, mut work: Work) -> io::Result<Arc<dyn Worker>> {
    let bell = Arc::new(Bell::default());
    let listening = Arc::clone(&bell);
    let run = move || {
        let start = Instant::now();
        loop {
            listening.answer();
            match work(start.elapsed()) {
                Turn::Again => {}
                Turn::Wait => listening.wait(None),
                Turn::WaitFor(most) => listening.wait(Some(most)),
                Turn::Pause(time) => std::thread::sleep(time),
                Turn::End => return,
            }
        }
    };
    let thread = Builder::new().name(name.to_owned()).spawn(run)?;
    Ok(Arc::new(Thread {
        bell,
        thread: Mutex::new(Some(thread)),
    }))
}

#[derive(Debug)]
struct Thread {
    bell: Arc<Bell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker for Thread {
    fn wake(&self) {
        self.bell.ring();
    }

    fn join(&self) -> io::Result<()> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match thread.map(JoinHandle::join) {
            Some(Err(_)) => Err(io::Error::other("a thread of the store panicked")),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// Remembers that it was rung until it is answered.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    sound: Condvar,
}

impl Bell {
    fn ring(&self) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !*rung {
            *rung = true;
            self.sound.notify_one();
        }
    }

    fn answer(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    fn wait(&self, most: Option<Duration>) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = |rung: &mut bool| !*rung;
        match most {
            None => drop(self.sound.wait_while(rung, silent)),
            Some(most) => drop(self.sound.wait_timeout_while(rung, most, silent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_worker_gets_a_turn_for_every_way_to_ask_for_one_until_it_ends() {
        let (turn, turns) = mpsc::channel();
        let mut next = [
            Turn::Again,
            Turn::Wait,
            Turn::WaitFor(LONG),
            Turn::WaitFor(Duration::ZERO),
            Turn::Pause(Duration::ZERO),
            Turn::End,
        ]
        .into_iter();
        let mut last = Duration::ZERO;
        let worker = thread(
            "test",
            Box::new(move |now| {
                assert!(now >= last, "time goes back");
                last = now;
                let next = next.next().unwrap();
                turn.send(next).unwrap();
                next
            }),
        )
        .unwrap();
        let took = || turns.recv().unwrap();
        assert_eq!(took(), Turn::Again);
        assert_eq!(took(), Turn::Wait);
        worker.wake();
        assert_eq!(took(), Turn::WaitFor(LONG));
        worker.wake();
        assert_eq!(took(), Turn::WaitFor(Duration::ZERO));
        assert_eq!(took(), Turn::Pause(Duration::ZERO));
        assert_eq!(took(), Turn::End);
        worker.join().unwrap();
        assert!(turns.recv().is_err(), "the work is dropped with the thread");
    }

    #[test]
    fn a_call_during_a_turn_is_not_lost_and_a_panic_is_reported() {
        let (go, gone) = mpsc::channel();
        let (began, begun) = mpsc::channel();
        let worker = thread(
            "test",
            Box::new(move |_| {
                began.send(()).unwrap();
                gone.recv().unwrap();
                Turn::Wait
            }),
        )
        .unwrap();
        begun.recv().unwrap();
        worker.wake();
        go.send(()).unwrap();
        begun.recv().unwrap();
        drop(go);
        assert!(worker.join().is_err());
    }
}
