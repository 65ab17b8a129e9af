//! One reading connection: a pull at a time for each of its queues, as push consumers do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rmq_wire::code::{request, response};
use rmq_wire::frame::Command;
use rmq_wire::header::{PullMessage, PullMessageResponse, pull_sys_flag};
use rmq_wire::record::Record;
use tokio::time::sleep;

use super::cluster::{Cluster, Queue, Span};
use super::frames::{FIRST_OPAQUE, due_of};
use super::link::Link;
use super::meter::{Clock, Meter, Turn, Window};
use super::{Mode, Plan};

const GROUP: &str = "rmq_bench";
const PAUSE: Duration = Duration::from_millis(100);
/// How long a broker holds a pull that finds nothing, as for push consumers.
const SUSPEND_MS: i64 = 15_000;

pub(super) struct Reader {
    pub(super) cluster: Arc<Cluster>,
    pub(super) plan: Arc<Plan>,
    pub(super) clock: Clock,
    pub(super) window: Arc<Window>,
    pub(super) meter: Arc<Meter>,
    /// All of one broker.
    pub(super) spans: Vec<Span>,
}

/// Each queue once: those that a connection shares with others go round among them.
pub(super) fn spread(shares: &[Vec<Queue>]) -> Vec<Vec<Queue>> {
    let mut spread = vec![Vec::new(); shares.len()];
    for (first, share) in shares.iter().enumerate() {
        let broker = share.first().map(|queue| &queue.broker);
        let of_broker = |other: &Vec<Queue>| other.first().map(|queue| &queue.broker) == broker;
        let equals: Vec<usize> = (0..shares.len())
            .filter(|&i| of_broker(&shares[i]))
            .collect();
        if equals.first() != Some(&first) {
            continue;
        }
        for (at, queue) in share.iter().enumerate() {
            spread[equals[at % equals.len()]].push(queue.clone());
        }
    }
    spread.retain(|queues| !queues.is_empty());
    spread
}

/// Reads until the ends of its queues, or until it is aborted.
pub(super) async fn run(mut reader: Reader) {
    while reader.spans.iter().any(|span| !is_read(span)) {
        if let Err(error) = reader.serve().await {
            let words = || error.to_string();
            reader.meter.entry().failed(0, "connection", words);
            sleep(PAUSE).await;
        }
    }
}

fn is_read(span: &Span) -> bool {
    span.end.is_some_and(|end| span.next >= end)
}

impl Reader {
    async fn serve(&mut self) -> io::Result<()> {
        let broker = &self.spans[0].queue.broker;
        let master = self.cluster.master(broker).await;
        let master = master.map_err(io::Error::other)?;
        let addr = master.ok_or_else(|| io::Error::other(format!("{broker} has no master")))?;
        let mut link = Link::open(&addr).await?;
        let mut asked = vec![0; self.spans.len()];
        let mut waiting = 0;
        for at in 0..self.spans.len() {
            waiting += usize::from(self.pull(at, &mut link, &mut asked));
        }
        while waiting > 0 {
            link.work().await?;
            while let Some(answer) = link.answer()? {
                let Some(at) = self.take(answer, &asked)? else {
                    continue;
                };
                waiting -= 1;
                waiting += usize::from(self.pull(at, &mut link, &mut asked));
            }
        }
        Ok(())
    }

    /// Asks for more of a queue, unless all of it is read.
    fn pull(&self, at: usize, link: &mut Link, asked: &mut [u64]) -> bool {
        let span = &self.spans[at];
        if is_read(span) {
            return false;
        }
        let suspend = match self.plan.mode {
            Mode::EndToEnd => pull_sys_flag::SUSPEND,
            Mode::Produce | Mode::Consume => 0,
        };
        let header = PullMessage {
            consumer_group: GROUP.into(),
            topic: span.queue.topic.to_string(),
            queue_id: span.queue.id,
            queue_offset: span.next,
            max_msg_nums: i32::try_from(self.plan.batch.max(32)).unwrap_or(i32::MAX),
            sys_flag: pull_sys_flag::SUBSCRIPTION | suspend,
            suspend_timeout_millis: SUSPEND_MS,
            subscription: Some("*".into()),
            expression_type: Some("TAG".into()),
            ..PullMessage::default()
        };
        let mut command = Command::request(request::PULL_MESSAGE).with_header(&header);
        command.opaque = FIRST_OPAQUE + i32::try_from(at).unwrap_or(0);
        command.encode(&mut link.out);
        asked[at] = self.clock.now();
        true
    }

    /// Counts the messages of an answer; gives the queue that they are of.
    fn take(&mut self, answer: Bytes, asked: &[u64]) -> io::Result<Option<usize>> {
        let answer = Command::decode(answer).map_err(io::Error::other)?;
        let at = usize::try_from(answer.opaque.wrapping_sub(FIRST_OPAQUE)).unwrap_or(usize::MAX);
        let Some(span) = self.spans.get_mut(at).filter(|_| answer.is_response()) else {
            return Ok(None);
        };
        match answer.code {
            response::SUCCESS
            | response::PULL_NOT_FOUND
            | response::PULL_RETRY_IMMEDIATELY
            | response::PULL_OFFSET_MOVED => {}
            code => {
                let remark = answer.remark.unwrap_or_default();
                return Err(io::Error::other(format!("code {code}: {remark}")));
            }
        }
        let head: PullMessageResponse = answer.header().map_err(io::Error::other)?;
        span.next = head.next_begin_offset;
        if answer.code != response::SUCCESS {
            return Ok(Some(at));
        }
        let now = self.clock.now();
        let mut entry = self.meter.entry();
        let (mut messages, mut bytes) = (0, 0);
        let mut rest = &answer.body[..];
        while !rest.is_empty() {
            let record = Record::decode(rest).map_err(io::Error::other)?;
            rest = &rest[record.size..];
            if self.plan.mode == Mode::EndToEnd {
                // Others may write to this topic too.
                if let Some(due) = due_of(record.body, self.clock.run) {
                    let measured = self.window.is_measured(due);
                    entry.done(measured, due, now, 1, record.body.len() as u64);
                }
            } else {
                messages += 1;
                bytes += record.body.len() as u64;
            }
        }
        if messages > 0 {
            match self.window.take(now, messages) {
                Turn::Over => span.end = Some(span.next),
                turn => entry.done(turn == Turn::Measure, asked[at], now, messages, bytes),
            }
        }
        Ok(Some(at))
    }
}
