//! An address that moves with the leader (`brokerVip`), so that no client has to learn another one. Who moves it
//! is this node, where it is told on which device, or something outside.
//!
//! Nothing hangs on it but where a client's packets arrive: a node that has it and does not lead answers
//! as a follower, whoever claims to lead checks its lease at each answer. It is therefore enough that
//! one node has the address soon, and nearly always only one:
//!
//! - the leader takes it when it serves, that is after the lease of the leader before is over, or its
//!   process, and announces it until nobody else answers for it any more;
//! - who leads no longer lets go of it when it hears another host announce it. Before that nobody else
//!   has it, and a client that was sent away would only knock at the same door. If it hears nobody, it
//!   lets go of it after a moment;
//! - the kernel takes it from a node that is dead or frozen: it is added for 3 s, again and again.
//!
//! Who lets go of it resets the connections that came by it, for nothing arrives on them any more.

mod link;

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Broker, pull};
use crate::config::{Vip, VipPlace};
use crate::remoting::{Conn, Request};
use crate::shutdown::Shutdown;
use link::Link;

/// How long the kernel keeps the address without being asked again.
const LIFETIME: Duration = Duration::from_secs(3);
const RENEWAL: Duration = Duration::from_secs(1);
/// How long a node that leads no longer waits for another one to claim the address.
const GRACE: Duration = Duration::from_secs(1);
/// Between two announcements, in the first moment and later.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(500);
const FIRST: Duration = Duration::from_secs(1);
/// The address is announced until nobody else has claimed it for so long. The kernel of a dead node
/// answers for it up to a second longer than [`LIFETIME`].
const ALONE: Duration = Duration::from_secs(5);
/// How often whoever has the address looks at its lease.
const LOOK: Duration = Duration::from_millis(50);
/// Before a consumer is sent to another address: by an old route it comes back at once.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(10);
/// For the resets to leave while the address is there.
const RESET_PAUSE: Duration = Duration::from_millis(20);

/// The connections that came by the moving address.
#[derive(Default)]
pub(super) struct Arrived(Mutex<HashMap<u64, Arc<Conn>>>);

impl Arrived {
    pub(super) fn opened(&self, vip: Option<&Vip>, conn: &Arc<Conn>) {
        if vip.is_some_and(|vip| conn.local().ip() == vip.ip) {
            self.lock().insert(conn.id(), Arc::clone(conn));
        }
    }

    pub(super) fn closed(&self, conn: &Conn) {
        self.lock().remove(&conn.id());
    }

    fn reset(&self) {
        for conn in self.lock().values() {
            conn.close();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Conn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resolves when a request that came by the address had better not wait here: because leadership is handed over, or
/// another node leads by now. Its connection ends with the address; some clients then wait for 30 s in vain.
pub(super) async fn moves(broker: &Broker, request: &Request) {
    let vip = broker.config.broker_vip.as_ref();
    let by_vip = |conn: &Arc<Conn>| vip.is_some_and(|vip| conn.local().ip() == vip.ip);
    if !request.conn.as_ref().is_some_and(by_vip) {
        return std::future::pending().await;
    }
    let (mut roles, mut moving) = (broker.replica.role(), broker.moving.subscribe());
    loop {
        sleep(ELSEWHERE_PAUSE).await;
        let is_over = *moving.borrow_and_update() > 0 || roles.borrow_and_update().leader.is_some();
        if is_over && !pull::addressed(broker).is_empty() {
            return;
        }
        let changed = tokio::select! {
            changed = roles.changed() => changed,
            changed = moving.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

/// What is to be done with the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Leave,
    /// Add it, be it there or not.
    Add,
    Announce,
    Drop,
}

/// What this node knows of the address.
struct Hold {
    /// Since when it has it, and when it last asked for it.
    held: Option<(Instant, Instant)>,
    announced: Instant,
    /// When it last led.
    served: Instant,
    /// When another host last claimed the address.
    claimed: Option<Instant>,
}

impl Hold {
    fn new(now: Instant) -> Self {
        Self {
            held: None,
            announced: now,
            served: now,
            claimed: None,
        }
    }

    /// One thing to do; [`Step::Leave`] when nothing is left.
    fn step(&mut self, now: Instant, serving: bool) -> Step {
        if serving {
            self.served = now;
        }
        match self.held {
            None if serving => Step::Add,
            None => Step::Leave,
            Some((_, added)) if serving && now - added >= RENEWAL => Step::Add,
            Some((since, _)) if serving => {
                let is_first = now - since < FIRST;
                let recently = |at: Instant| now - at < ALONE;
                let is_contested = recently(since) || self.claimed.is_some_and(recently);
                let pause = if is_first { FIRST_PAUSE } else { PAUSE };
                match is_contested && (self.announced < since || now - self.announced >= pause) {
                    true => Step::Announce,
                    false => Step::Leave,
                }
            }
            Some(_) if now - self.served >= GRACE => Step::Drop,
            Some(_) if self.claimed.is_some_and(|at| at > self.served) => Step::Drop,
            Some(_) => Step::Leave,
        }
    }

    fn added(&mut self, now: Instant) {
        // Where the kernel has taken it away meanwhile it is as good as new.
        let since = self.held.filter(|(_, added)| now - *added < LIFETIME);
        self.held = Some((since.map_or(now, |(since, _)| since), now));
        if since.is_none() {
            self.announced = now.checked_sub(FIRST_PAUSE).unwrap_or(now);
        }
    }
}

/// The address, on a node that may take it.
pub(super) struct MovingAddress {
    address: Ipv4Addr,
    device: String,
    link: Link,
}

impl MovingAddress {
    /// Takes away what a former process of this node may have left. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is no such device, or this process lacks the rights.
    pub(super) fn open(address: Ipv4Addr, place: &VipPlace) -> io::Result<Self> {
        let link = Link::open(address, place)?;
        link.remove()?;
        Ok(Self {
            address,
            device: place.device.clone(),
            link,
        })
    }

    /// Has this node hold the address while it leads, until `shutdown` and until somebody else has it.
    pub(super) async fn keep(self, broker: Arc<Broker>, mut shutdown: Shutdown) {
        let mut roles = broker.replica.role();
        let mut hold = Hold::new(Instant::now());
        let mut failing = false;
        loop {
            let serving = broker.is_serving();
            if shutdown.is_asked() && (serving || hold.held.is_none()) {
                break;
            }
            let done = self.take_steps(&broker, &mut hold, serving).await;
            if let Err(error) = &done
                && !failing
            {
                let address = self.address;
                tracing::error!(%address, device = self.device, "the address cannot be moved: {error}");
            }
            failing = done.is_err();
            tokio::select! {
                changed = roles.changed() => if changed.is_err() { break },
                claimed = self.link.claimed() => match claimed {
                    Ok(()) => hold.claimed = Some(Instant::now()),
                    // The device is gone or down, which the next step finds too.
                    Err(_) => sleep(PAUSE).await,
                },
                () = sleep(LOOK), if serving || hold.held.is_some() => {}
                () = shutdown.asked(), if !shutdown.is_asked() => {}
            }
        }
        if hold.held.is_some()
            && let Err(error) = self.drop(&broker).await
        {
            tracing::warn!(address = %self.address, "the address was not given up: {error}");
        }
    }

    async fn take_steps(&self, broker: &Broker, hold: &mut Hold, serving: bool) -> io::Result<()> {
        loop {
            let now = Instant::now();
            match hold.step(now, serving) {
                Step::Leave => return Ok(()),
                Step::Add => {
                    self.link.add(LIFETIME)?;
                    if hold.held.is_none() {
                        tracing::info!(address = %self.address, device = self.device, "has the moving address");
                    }
                    hold.added(now);
                }
                Step::Announce => {
                    hold.announced = now;
                    self.link.announce()?;
                    self.link.probe()?;
                }
                Step::Drop => {
                    hold.held = None;
                    self.drop(broker).await?;
                }
            }
        }
    }

    async fn drop(&self, broker: &Broker) -> io::Result<()> {
        broker.arrived.reset();
        sleep(RESET_PAUSE).await;
        self.link.remove()?;
        tracing::info!(address = %self.address, "has given the moving address up");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// What it does in the time from `from` to `to` in milliseconds, looking each 10.
    fn steps(
        hold: &mut Hold,
        start: Instant,
        (from, to): (u32, u32),
        serving: bool,
    ) -> Vec<(u32, Step)> {
        let mut done = Vec::new();
        for at in (from..to).step_by(10) {
            let now = start + MS * at;
            loop {
                let step = hold.step(now, serving);
                match step {
                    Step::Leave => break,
                    Step::Add => hold.added(now),
                    Step::Announce => hold.announced = now,
                    Step::Drop => hold.held = None,
                }
                done.push((at, step));
            }
        }
        done
    }

    fn count(done: &[(u32, Step)], wanted: Step) -> usize {
        done.iter().filter(|(_, step)| *step == wanted).count()
    }

    #[test]
    fn a_leader_takes_it_and_announces_it_until_it_is_alone() {
        let start = Instant::now();
        let mut hold = Hold::new(start);
        assert_eq!(steps(&mut hold, start, (0, 100), false), []);
        let done = steps(&mut hold, start, (100, 5_100), true);
        assert_eq!(done[..2], [(100, Step::Add), (100, Step::Announce)]);
        assert_eq!(count(&done, Step::Add), 5, "once a second");
        assert!(count(&done, Step::Announce) > 15, "{done:?}");
        let done = steps(&mut hold, start, (5_200, 20_000), true);
        assert_eq!(count(&done, Step::Announce), 0);
        assert_eq!(count(&done, Step::Add), 15);
        // Somebody answers for it.
        hold.claimed = Some(start + MS * 20_000);
        let done = steps(&mut hold, start, (20_000, 30_000), true);
        assert_eq!(count(&done, Step::Announce), 10);
    }

    #[test]
    fn who_leads_no_longer_gives_it_to_whoever_claims_it() {
        let start = Instant::now();
        let mut hold = Hold::new(start);
        steps(&mut hold, start, (0, 1000), true);
        // What it heard while it led says nothing.
        hold.claimed = Some(start + MS * 500);
        assert_eq!(steps(&mut hold, start, (1000, 1500), false), []);
        hold.claimed = Some(start + MS * 1500);
        let done = steps(&mut hold, start, (1500, 3000), false);
        assert_eq!(done, [(1500, Step::Drop)]);
    }

    #[test]
    fn who_leads_no_longer_gives_it_up_after_a_moment() {
        let start = Instant::now();
        let mut hold = Hold::new(start);
        steps(&mut hold, start, (0, 1000), true);
        let done = steps(&mut hold, start, (1000, 3000), false);
        assert_eq!(done, [(1990, Step::Drop)]);
        // Frozen for long, it does so at its first look.
        let mut hold = Hold::new(start);
        steps(&mut hold, start, (0, 1000), true);
        let done = steps(&mut hold, start, (21_000, 22_000), false);
        assert_eq!(done, [(21_000, Step::Drop)]);
    }

    #[test]
    fn what_the_kernel_took_away_is_announced_anew() {
        let start = Instant::now();
        let mut hold = Hold::new(start);
        steps(&mut hold, start, (0, 10_000), true);
        let done = steps(&mut hold, start, (14_000, 14_010), true);
        assert_eq!(done, [(14_000, Step::Add), (14_000, Step::Announce)]);
    }
}
