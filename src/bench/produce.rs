//! One sending connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmq_wire::code::response;
use rmq_wire::frame::{self, Command};
use tokio::time::{sleep, timeout};

use super::cluster::{Cluster, Queue};
use super::frames::{FIRST_OPAQUE, Stamp, Template};
use super::link::Link;
use super::meter::{Clock, Meter, Turn, Window};
use super::pace::Pace;
use super::{DRAIN, Plan};

/// Between two attempts to reach a broker's master.
const PAUSE: Duration = Duration::from_millis(100);
/// Numbers of a connection's messages: none meets another's.
const NUMBERS: u64 = 1 << 40;
/// Most bytes of requests made before they are written.
const MADE_BYTES: usize = 256 * 1024;

pub(super) struct Sender {
    /// The connection among those of the run.
    pub(super) number: u32,
    pub(super) cluster: Arc<Cluster>,
    pub(super) plan: Arc<Plan>,
    pub(super) clock: Clock,
    pub(super) window: Arc<Window>,
    pub(super) meter: Arc<Meter>,
    /// All of one broker.
    pub(super) queues: Vec<Queue>,
    pub(super) pace: Pace,
}

/// Requests that are under way, by slot.
struct Flying {
    /// When each was due, and whether it is measured.
    slots: Vec<(u64, bool)>,
    free: Vec<u32>,
}

impl Flying {
    fn new(slots: u32) -> Self {
        Self {
            slots: vec![(0, false); slots as usize],
            free: (0..slots).rev().collect(),
        }
    }

    fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// When requests are due.
struct Schedule {
    next: u64,
    start: u64,
    /// Nanoseconds between two; `None` is at once.
    gap: Option<f64>,
    sent: u64,
    is_over: bool,
}

impl Schedule {
    fn new(plan: &Plan, number: u32, now: u64) -> Self {
        let gap = plan
            .rate
            .map(|rate| 1e9 * f64::from(plan.batch) * f64::from(plan.connections) / rate);
        let shift = gap.map_or(0.0, |gap| {
            gap * f64::from(number) / f64::from(plan.connections)
        });
        let start = now + whole(shift);
        Self {
            next: start,
            start,
            gap,
            sent: 0,
            is_over: false,
        }
    }

    /// When the next request is due.
    fn due(&self, now: u64) -> u64 {
        self.gap.map_or(now, |_| self.next)
    }

    #[expect(clippy::cast_precision_loss, reason = "2^53 requests are not sent")]
    fn advance(&mut self) {
        self.sent += 1;
        if let Some(gap) = self.gap {
            self.next = self.start + whole(self.sent as f64 * gap);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a positive time"
)]
fn whole(nanos: f64) -> u64 {
    nanos.round() as u64
}

/// Sends until the window is over and everything is answered or given up.
pub(super) async fn run(mut sender: Sender) {
    let templates: Vec<Template> = sender
        .queues
        .iter()
        .map(|queue| Template::new(&sender.plan, queue))
        .collect();
    let mut schedule = Schedule::new(&sender.plan, sender.number, sender.clock.now());
    let messages = u64::from(sender.plan.batch);
    while !schedule.is_over {
        let mut flying = Flying::new(sender.plan.in_flight);
        let ended = match sender.connect().await {
            Ok(mut link) => {
                let served = sender.serve(&mut link, &templates, &mut schedule, &mut flying);
                served.await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            let lost = flying.count() as u64 * messages;
            let mut entry = sender.meter.entry();
            entry.failed(lost, "connection", || error.to_string());
        }
        if sender.clock.now() >= sender.window.end() {
            schedule.is_over = true;
        } else if !schedule.is_over {
            sleep(PAUSE).await;
        }
    }
    // What was due before the end and could not be sent.
    let mut unsent = 0;
    while schedule.gap.is_some() && schedule.next < sender.window.end().min(sender.clock.now()) {
        match sender.window.take(schedule.next, messages) {
            Turn::Over => break,
            Turn::WarmUp => {}
            Turn::Measure => unsent += messages,
        }
        schedule.advance();
    }
    sender.meter.entry().unsent(unsent);
}

impl Sender {
    async fn connect(&self) -> io::Result<Link> {
        let broker = &self.queues[0].broker;
        let master = self.cluster.master(broker).await;
        let master = master.map_err(io::Error::other)?;
        let addr = master.ok_or_else(|| io::Error::other(format!("{broker} has no master")))?;
        Link::open(&addr).await
    }

    /// Ends when the window is over and nothing is under way, or with the connection.
    async fn serve(
        &mut self,
        link: &mut Link,
        templates: &[Template],
        schedule: &mut Schedule,
        flying: &mut Flying,
    ) -> io::Result<()> {
        loop {
            let now = self.make(link, templates, schedule, flying);
            if schedule.is_over && flying.count() == 0 {
                return Ok(());
            }
            // More can be made only when something has been written or answered.
            if schedule.is_over || flying.free.is_empty() || link.out.len() >= MADE_BYTES {
                let silent = |_| io::Error::other(format!("no answer within {DRAIN:?}"));
                timeout(DRAIN, link.work()).await.map_err(silent)??;
            } else {
                let due = schedule.due(now);
                let wait = Duration::from_nanos(due.saturating_sub(now));
                tokio::select! {
                    biased;
                    worked = link.work() => worked?,
                    waited = self.pace.until(due, wait) => waited?,
                }
            }
            self.account(link, flying)?;
        }
    }

    /// Makes all requests that are due and have a slot. Gives the time.
    fn make(
        &self,
        link: &mut Link,
        templates: &[Template],
        schedule: &mut Schedule,
        flying: &mut Flying,
    ) -> u64 {
        let now = self.clock.now();
        let messages = u64::from(self.plan.batch);
        schedule.is_over |= self.window.is_closed(now);
        while !schedule.is_over && link.out.len() < MADE_BYTES {
            let due = schedule.due(now);
            if due > now {
                break;
            }
            let Some(slot) = flying.free.pop() else { break };
            let turn = self.window.take(due, messages);
            if turn == Turn::Over {
                schedule.is_over = true;
                flying.free.push(slot);
                break;
            }
            flying.slots[slot as usize] = (due, turn == Turn::Measure);
            let number = u64::from(self.number) * NUMBERS + schedule.sent * messages;
            // Connections begin with different queues.
            let queue = (schedule.sent + u64::from(self.number)) % templates.len() as u64;
            let stamp = Stamp {
                slot,
                born: self.clock.unix_ms(now),
                run: self.clock.run,
                due,
                number,
            };
            templates[usize::try_from(queue).unwrap_or(0)].stamp(&stamp, &mut link.out);
            schedule.advance();
        }
        now
    }

    /// Counts the answers that have arrived.
    fn account(&self, link: &mut Link, flying: &mut Flying) -> io::Result<()> {
        let Some(mut answer) = link.answer()? else {
            return Ok(());
        };
        let now = self.clock.now();
        let messages = u64::from(self.plan.batch);
        let bytes = messages * self.plan.size as u64;
        let mut entry = self.meter.entry();
        loop {
            let head = frame::peek(&answer).map_err(io::Error::other)?;
            let slot = head.opaque.wrapping_sub(FIRST_OPAQUE);
            let slot = u32::try_from(slot).ok();
            let due = slot.and_then(|slot| flying.slots.get(slot as usize).copied());
            // A broker asks clients things too; none of that is for us.
            if let (Some(slot), Some((due, measured))) = (slot, due) {
                flying.free.push(slot);
                match head.code {
                    response::SUCCESS => entry.done(measured, due, now, messages, bytes),
                    code => entry.failed(messages, &format!("code {code}"), || remark(answer)),
                }
            }
            match link.answer()? {
                Some(next) => answer = next,
                None => return Ok(()),
            }
        }
    }
}

pub(super) fn remark(answer: bytes::Bytes) -> String {
    let answer = Command::decode(answer).ok();
    answer.and_then(|answer| answer.remark).unwrap_or_default()
}
