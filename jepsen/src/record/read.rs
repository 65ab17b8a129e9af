//! Reading a history.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};

use super::CLIENTS;
use crate::client::Outcome;
use crate::edn::Edn;
use crate::history::{
    Ack, Adopted, Batch, Delayed, Delivery, Fault, History, Kept, Lead, LockCall, LockOp,
    OffsetCall, OffsetOp, Poll, Pop, Send, Stretch, Transaction, TransactionEnd,
};

/// Reads a history that [`write`](super::write) wrote, or another tool in the same shapes.
///
/// # Errors
/// At the first event that is none, with its line.
pub fn read(text: &str) -> anyhow::Result<History> {
    let mut history = History::default();
    let mut open: HashMap<u64, (u64, Edn)> = HashMap::new();
    // They belong to what was prepared, which another process may end after them.
    let mut ends = Vec::new();
    let mut last = 0;
    for (line, event) in Edn::read_all(text)? {
        let here = || format!("line {line}");
        let time = event
            .get("time")
            .and_then(Edn::number)
            .context("no :time")
            .with_context(here)?;
        last = last.max(time);
        let kind = event
            .get("type")
            .and_then(Edn::text)
            .context("no :type")
            .with_context(here)?;
        match event
            .get("process")
            .context("no :process")
            .with_context(here)?
        {
            Edn::Key(_) => take_note(&mut history, time, &event).with_context(here)?,
            process => {
                let process = process.number().context("no :process").with_context(here)?;
                if kind == "invoke" {
                    ensure!(
                        open.insert(process, (time, event)).is_none(),
                        "line {line}: process {process} has not ended its operation before"
                    );
                } else {
                    let (invoked, call) = open.remove(&process).with_context(|| {
                        format!("line {line}: process {process} has begun nothing")
                    })?;
                    if call.get("f").and_then(Edn::text) == Some("end") {
                        ends.push((call, event, (invoked, time)));
                    } else {
                        take(&mut history, &call, &event, (invoked, time)).with_context(here)?;
                    }
                }
            }
        }
    }
    for (invoked, call) in open.into_values() {
        let never = Edn::map([("type", Edn::key("info"))]);
        if call.get("f").and_then(Edn::text) == Some("end") {
            ends.push((call, never, (invoked, last)));
        } else {
            take(&mut history, &call, &never, (invoked, last))
                .context("an operation without an end")?;
        }
    }
    for (call, event, times) in ends {
        take(&mut history, &call, &event, times).context("what a transaction came to")?;
    }
    Ok(history)
}

fn take_note(history: &mut History, time: u64, event: &Edn) -> anyhow::Result<()> {
    let value = event.get("value").context("no :value")?;
    let number = |key| value.get(key).and_then(Edn::number);
    let text = |key| Some(value.get(key)?.text()?.to_owned());
    match event.get("f").and_then(Edn::text) {
        Some("stop") => history.faults.push(Fault {
            what: value
                .get("what")
                .and_then(Edn::text)
                .context("no :what")?
                .into(),
            from: number("from").context("no :from")?,
            until: number("until"),
            seen: number("seen"),
        }),
        Some("leader") => history.leads.push(Lead {
            at: time,
            node: number("node").context("no :node")?,
            term: number("term").context("no :term")?,
        }),
        Some("stretch") => {
            let number = |key| number(key).with_context(|| format!("no :{key}"));
            let queue = u32::try_from(number("queue")?)?;
            history.stretches.entry(queue).or_default().push(Stretch {
                sender: u32::try_from(number("sender")?)?,
                first: number("first")?,
                count: number("count")?,
                offset: number("offset")?,
            });
        }
        Some("adopted") => {
            let shown = value.get("shown").and_then(Edn::list);
            history.adopted.push(Adopted {
                place: text("place").context("no :place")?,
                had: value.get("had").and_then(kept).context("no :had")?,
                shown: shown
                    .context("no :shown")?
                    .iter()
                    .map(shown_by)
                    .collect::<Result<_, _>>()?,
            });
        }
        Some(name @ ("delivered" | "visible")) => {
            let list = match name {
                "visible" => &mut history.visible,
                _ => &mut history.deliveries,
            };
            list.push(Delivery {
                at: time,
                queue: u32::try_from(number("queue").context("no :queue")?)?,
                offset: number("offset").context("no :offset")?,
                body: text("body").context("no :body")?,
                last: value.get("final").is_some(),
            });
        }
        // What other tools note.
        _ => {}
    }
    history.faults.sort_by_key(|fault| fault.from);
    Ok(())
}

fn kept(value: &Edn) -> Option<Kept> {
    match value {
        Edn::Text(digest) => Some(Kept::Message(digest.clone())),
        _ => value.number().map(Kept::Offset),
    }
}

/// A node, and what it has.
fn shown_by(pair: &Edn) -> anyhow::Result<(u64, Option<Kept>)> {
    let of = |pair: &Edn| match pair.list()? {
        [node, Edn::Nil] => Some((node.number()?, None)),
        [node, had] => Some((node.number()?, Some(kept(had)?))),
        _ => None,
    };
    of(pair).with_context(|| format!("{pair} is not [node, what it has]"))
}

fn take(
    history: &mut History,
    call: &Edn,
    end: &Edn,
    (invoked, ended): (u64, u64),
) -> anyhow::Result<()> {
    let value = call.get("value").context("no :value")?;
    let got = end.get("value").unwrap_or(&Edn::Nil);
    let kind = end.get("type").and_then(Edn::text).context("no :type")?;
    let process = call
        .get("process")
        .and_then(Edn::number)
        .context("no :process")?
        % CLIENTS;
    let number = |of: &Edn, key| of.get(key).and_then(Edn::number);
    let queue_of = |of: &Edn| {
        let queue = number(of, "queue").context("no :queue")?;
        u32::try_from(queue).context("queue")
    };
    match call.get("f").and_then(Edn::text).context("no :f")? {
        "send" => {
            let (queue, body) = sent(value)?;
            let outcome = outcome(end, || {
                let (_, answer) = sent(got)?;
                let offset = answer.list().and_then(|pair| pair.first()?.number());
                offset.context("a send without an offset is no :ok")
            })?;
            history.sends.push(Send {
                process,
                queue,
                body: plain(body),
                invoked,
                ended,
                outcome,
            });
        }
        "poll" => {
            let at = call.get("at").context("a poll without :at")?;
            let queue = queue_of(at)?;
            let outcome = outcome(end, || polled(got, queue))?;
            if at.get("final").is_some() {
                let Outcome::Ok(messages) = outcome else {
                    bail!("the final reader failed");
                };
                history.found.entry(queue).or_default().extend(messages);
                return Ok(());
            }
            history.polls.push(Poll {
                process,
                delivers: at.get("group").is_some(),
                queue,
                from: number(at, "from").context("no :from")?,
                invoked,
                ended,
                outcome,
                next: number(at, "next"),
            });
        }
        name @ ("commit" | "committed") => {
            let call = if name == "commit" {
                OffsetCall::Commit {
                    offset: number(value, "offset").context("no :offset")?,
                    acknowledged: kind == "ok",
                }
            } else {
                OffsetCall::Read(number(got, "offset"))
            };
            history.offsets.push(OffsetOp {
                process,
                queue: queue_of(value)?,
                invoked,
                ended,
                call,
            });
        }
        "send-later" => {
            history.delayed.push(Delayed {
                process,
                body: body_of(value)?,
                delay: number(value, "delay").context("no :delay")?,
                invoked,
                ended,
                outcome: outcome(end, || Ok(()))?,
            });
        }
        "send-batch" => {
            let of = |key| number(value, key).with_context(|| format!("no :{key}"));
            history.batches.push(Batch {
                process,
                sender: u32::try_from(of("sender")?)?,
                queue: queue_of(value)?,
                first: of("first")?,
                count: of("count")?,
                invoked,
                ended,
                outcome: outcome(end, || {
                    number(got, "offset").context("a batch without :offset is no :ok")
                })?,
            });
        }
        "pop" => history.pops.push(Pop {
            process,
            queue: queue_of(value)?,
            hidden: number(value, "hidden").context("no :hidden")?,
            invoked,
            ended,
            outcome: outcome(end, || pairs(got.list().context("no list of messages")?))?,
        }),
        "ack" => history.acks.push(Ack {
            process,
            queue: queue_of(value)?,
            offset: number(value, "offset").context("no :offset")?,
            invoked,
            ended,
            acknowledged: kind == "ok",
        }),
        "prepare" => history.transactions.push(Transaction {
            process,
            body: body_of(value)?,
            invoked,
            ended,
            prepared: outcome(end, || Ok(()))?,
            ends: Vec::new(),
        }),
        "end" => {
            let body = body_of(value)?;
            let mut all = history.transactions.iter_mut();
            let of = all.rfind(|transaction| transaction.body == body);
            let of = of.with_context(|| format!("{body} was never prepared"))?;
            of.ends.push(TransactionEnd {
                process,
                commits: value.get("commit") == Some(&Edn::Bool(true)),
                invoked,
                ended,
                acknowledged: kind == "ok",
            });
        }
        name @ ("lock" | "unlock") => {
            let call = match (name, kind) {
                ("unlock", _) => LockCall::Unlock,
                (_, "fail") if end.get("error").is_none() => LockCall::Lock(Outcome::Ok(false)),
                _ => LockCall::Lock(outcome(end, || Ok(true))?),
            };
            history.locks.push(LockOp {
                process,
                queue: queue_of(value)?,
                invoked,
                ended,
                call,
            });
        }
        other => {
            bail!(
                ":f {other} is none of send, send-batch, send-later, poll, commit, committed, lock, \
                 unlock, prepare, end, pop, ack"
            )
        }
    }
    Ok(())
}

fn body_of(value: &Edn) -> anyhow::Result<String> {
    let body = value.get("body").and_then(Edn::text).context("no :body")?;
    Ok(body.into())
}

/// How an operation ended; `answer` reads what it was answered.
fn outcome<T>(end: &Edn, answer: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Outcome<T>> {
    let why = || {
        let error = end.get("error").and_then(Edn::text);
        error.unwrap_or_default().to_owned()
    };
    Ok(match end.get("type").and_then(Edn::text) {
        Some("ok") => Outcome::Ok(answer()?),
        Some("fail") => Outcome::Fail(why()),
        _ => Outcome::Unknown(why()),
    })
}

/// A body, which others may have written as a number.
fn plain(body: &Edn) -> String {
    body.text().map_or_else(|| body.to_string(), str::to_owned)
}

/// Queue and value of `[[:send queue value]]`.
fn sent(value: &Edn) -> anyhow::Result<(u32, &Edn)> {
    let op = value.list().and_then(|list| list.first()?.list());
    let op = op.with_context(|| format!("{value} is not [[:send queue value]]"))?;
    let queue = op.get(1).and_then(Edn::number).context("no queue")?;
    Ok((u32::try_from(queue)?, op.get(2).context("no value")?))
}

/// The messages of a queue in `[[:poll {queue [[offset body] …]}]]`.
fn polled(value: &Edn, queue: u32) -> anyhow::Result<Vec<(u64, String)>> {
    let shape = || format!("{value} is not [[:poll {{queue [[offset body]]}}]]");
    let op = value
        .list()
        .and_then(|list| list.first()?.list())
        .with_context(shape)?;
    let Some(Edn::Map(queues)) = op.get(1) else {
        return Ok(Vec::new());
    };
    let of_queue = queues.iter().filter(|(of, _)| *of == queue.into());
    pairs(of_queue.flat_map(|(_, list)| list.list().unwrap_or_default())).with_context(shape)
}

/// Messages as [offset body].
fn pairs<'a>(list: impl IntoIterator<Item = &'a Edn>) -> anyhow::Result<Vec<(u64, String)>> {
    let of = |message: &Edn| {
        let pair = message.list().filter(|pair| pair.len() == 2)?;
        Some((pair[0].number()?, plain(&pair[1])))
    };
    let shape = |message: &Edn| format!("{message} is not [offset body]");
    list.into_iter()
        .map(|message| of(message).with_context(|| shape(message)))
        .collect()
}
