//! Waits finer than tokio's timer, whose milliseconds would be most of a latency that is below one.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// One timer of the kernel.
pub(super) struct Pace {
    timer: AsyncFd<OwnedFd>,
    /// For when it is set, so that it is not set again for the same time.
    armed: Option<u64>,
}

impl Pace {
    /// Must be called within a runtime.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an `OwnedFd` is a descriptor that stays the same and open until it is dropped.
        let timer = unsafe { AsyncFd::register(timer) }?;
        Ok(Self { timer, armed: None })
    }

    /// Waits until `due`, which is `wait` from now. Cancel safe.
    pub(super) async fn until(&mut self, due: u64, wait: Duration) -> io::Result<()> {
        const NEVER: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if self.armed != Some(due) {
            let wait = wait.max(Duration::from_nanos(1));
            let it_value = Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            };
            let spec = Itimerspec {
                it_interval: NEVER,
                it_value,
            };
            timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &spec)?;
            self.armed = Some(due);
        }
        loop {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?));
            // Otherwise it was ready for an earlier time.
            if let Ok(result) = read {
                self.armed = None;
                return result.map(|_| ());
            }
        }
    }
}
