//! A [`History`] as Jepsen writes it: a map for each invocation and each completion, in the order of
//! their times. `send`, `poll` and `assign` have the shapes of Jepsen's own checker for queues with
//! offsets, so that it can judge a history too.
//!
//! A completion is `:ok` when the operation was done, `:fail` when it certainly was not, and `:info` when
//! nobody knows. As Jepsen wants it, a process ends with its first `:info`, and the client goes on as
//! another one, [`CLIENTS`] above it.

mod read;

use std::collections::HashMap;

pub use read::read;

use crate::client::Outcome;
use crate::edn::Edn;
use crate::history::{History, Kept, LockCall, OffsetCall};

/// No run has more clients.
pub const CLIENTS: u64 = 100;
/// The reader of what lies in the queues at the end.
const READER: u64 = CLIENTS - 1;
/// Messages in one poll of that reader.
const CHUNK: usize = 500;

/// An operation, whichever it is.
struct Op {
    process: u64,
    invoked: u64,
    ended: u64,
    name: &'static str,
    call: Edn,
    /// Of a poll, where.
    at: Option<Edn>,
    /// The completion's type and value, and why, if it is not ok.
    end: (&'static str, Edn, Option<String>),
}

/// A history in EDN, a line for each event.
pub fn write(history: &History) -> String {
    let mut ops = operations(history);
    ops.sort_by_key(|op| op.invoked);
    let mut events: Vec<(u64, Vec<(&str, Edn)>)> = Vec::new();
    let mut crashes: HashMap<u64, u64> = HashMap::new();
    for op in ops {
        let crashed = crashes.entry(op.process).or_default();
        let process = Edn::from(op.process + CLIENTS * *crashed);
        let (kind, value, error) = op.end;
        *crashed += u64::from(kind == "info");
        let event = |kind, value| {
            let mut event = vec![
                ("type", Edn::key(kind)),
                ("process", process.clone()),
                ("f", Edn::key(op.name)),
                ("value", value),
            ];
            event.extend(op.at.iter().map(|at| ("at", at.clone())));
            event
        };
        events.push((op.invoked, event("invoke", op.call)));
        let mut end = event(kind, value);
        end.extend(error.map(|why| ("error", Edn::from(&*why))));
        events.push((op.ended, end));
    }
    events.extend(notes(history));
    // Stable: of one process the completion stands before the next invocation.
    events.sort_by_key(|(time, _)| *time);
    let mut text = String::new();
    for (index, (time, event)) in (0u64..).zip(events) {
        let head = [("index", Edn::from(index)), ("time", Edn::from(time))];
        let entries = head.into_iter().chain(event);
        let entries = entries.map(|(key, value)| (Edn::key(key), value)).collect();
        text += &format!("{}\n", Edn::Map(entries));
    }
    text
}

fn operations(history: &History) -> Vec<Op> {
    let end_of = history.end() + 1;
    let mut ops = Vec::new();
    for s in &history.sends {
        let call = |what: Edn| list([list([Edn::key("send"), s.queue.into(), what])]);
        let body = Edn::from(&*s.body);
        let end = match &s.outcome {
            Outcome::Ok(offset) => ("ok", call(list([(*offset).into(), body.clone()])), None),
            Outcome::Fail(why) => ("fail", call(body.clone()), Some(why.clone())),
            Outcome::Unknown(why) => ("info", call(body.clone()), Some(why.clone())),
        };
        ops.push(op(s.process, (s.invoked, s.ended), "send", call(body), end));
    }
    for b in &history.batches {
        let call = |offset: Option<u64>| {
            let mut entries = vec![
                ("sender", u64::from(b.sender)),
                ("queue", u64::from(b.queue)),
                ("first", b.first),
                ("count", b.count),
            ];
            entries.extend(offset.map(|offset| ("offset", offset)));
            let entries = entries.into_iter();
            Edn::Map(
                entries
                    .map(|(key, value)| (Edn::key(key), value.into()))
                    .collect(),
            )
        };
        let end = match &b.outcome {
            Outcome::Ok(offset) => ("ok", call(Some(*offset)), None),
            Outcome::Fail(why) => ("fail", call(None), Some(why.clone())),
            Outcome::Unknown(why) => ("info", call(None), Some(why.clone())),
        };
        ops.push(op(
            b.process,
            (b.invoked, b.ended),
            "send-batch",
            call(None),
            end,
        ));
    }
    for p in &history.polls {
        let mut value = vec![("queue", p.queue.into()), ("from", p.from.into())];
        if p.delivers {
            value.push(("group", Edn::Bool(true)));
        }
        if let Some(next) = p.next {
            value.push(("next", next.into()));
        }
        ops.push(poll(
            p.process,
            (p.invoked, p.ended),
            value,
            p.queue,
            &p.outcome,
        ));
    }
    for (queue, messages) in &history.found {
        let chunks: Vec<&[(u64, String)]> = match messages.is_empty() {
            true => vec![&[]],
            false => messages.chunks(CHUNK).collect(),
        };
        for chunk in chunks {
            let at = vec![("queue", (*queue).into()), ("final", Edn::Bool(true))];
            let got = Outcome::Ok(chunk.to_vec());
            ops.push(poll(READER, (end_of, end_of), at, *queue, &got));
        }
    }
    for o in &history.offsets {
        let queue = ("queue", o.queue.into());
        let (name, call, end) = match &o.call {
            OffsetCall::Commit {
                offset,
                acknowledged,
            } => {
                let call = Edn::map([queue, ("offset", (*offset).into())]);
                let kind = if *acknowledged { "ok" } else { "info" };
                ("commit", call.clone(), (kind, call, None))
            }
            OffsetCall::Read(read) => {
                let call = Edn::map([queue.clone()]);
                let read = read.map_or(Edn::Nil, Edn::from);
                let got = Edn::map([queue, ("offset", read)]);
                ("committed", call, ("ok", got, None))
            }
        };
        ops.push(op(o.process, (o.invoked, o.ended), name, call, end));
    }
    for d in &history.delayed {
        let call = Edn::map([("body", Edn::from(&*d.body)), ("delay", d.delay.into())]);
        let end = match &d.outcome {
            Outcome::Ok(()) => ("ok", call.clone(), None),
            Outcome::Fail(why) => ("fail", call.clone(), Some(why.clone())),
            Outcome::Unknown(why) => ("info", call.clone(), Some(why.clone())),
        };
        ops.push(op(d.process, (d.invoked, d.ended), "send-later", call, end));
    }
    ops.extend(popped(history));
    ops.extend(transactions(history));
    for l in &history.locks {
        let call = Edn::map([("queue", l.queue.into())]);
        let (name, end) = match &l.call {
            LockCall::Unlock => ("unlock", ("ok", call.clone(), None)),
            LockCall::Lock(Outcome::Ok(true)) => ("lock", ("ok", call.clone(), None)),
            LockCall::Lock(Outcome::Ok(false)) => ("lock", ("fail", call.clone(), None)),
            LockCall::Lock(Outcome::Fail(why)) => {
                ("lock", ("fail", call.clone(), Some(why.clone())))
            }
            LockCall::Lock(Outcome::Unknown(why)) => {
                ("lock", ("info", call.clone(), Some(why.clone())))
            }
        };
        ops.push(op(l.process, (l.invoked, l.ended), name, call, end));
    }
    ops
}

fn popped(history: &History) -> Vec<Op> {
    let pops = history.pops.iter().map(|p| {
        let call = Edn::map([("queue", p.queue.into()), ("hidden", p.hidden.into())]);
        let end = match &p.outcome {
            Outcome::Ok(got) => {
                let got = got
                    .iter()
                    .map(|(offset, body)| list([(*offset).into(), Edn::from(&**body)]));
                ("ok", list(got), None)
            }
            Outcome::Fail(why) => ("fail", call.clone(), Some(why.clone())),
            Outcome::Unknown(why) => ("info", call.clone(), Some(why.clone())),
        };
        op(p.process, (p.invoked, p.ended), "pop", call, end)
    });
    let acks = history.acks.iter().map(|a| {
        let call = Edn::map([("queue", a.queue.into()), ("offset", a.offset.into())]);
        let end = (sure(a.acknowledged), call.clone(), None);
        op(a.process, (a.invoked, a.ended), "ack", call, end)
    });
    pops.chain(acks).collect()
}

fn transactions(history: &History) -> Vec<Op> {
    let mut ops = Vec::new();
    for t in &history.transactions {
        let body = ("body", Edn::from(&*t.body));
        let call = Edn::map([body.clone()]);
        let end = match &t.prepared {
            Outcome::Ok(()) => ("ok", call.clone(), None),
            Outcome::Fail(why) => ("fail", call.clone(), Some(why.clone())),
            Outcome::Unknown(why) => ("info", call.clone(), Some(why.clone())),
        };
        ops.push(op(t.process, (t.invoked, t.ended), "prepare", call, end));
        for e in &t.ends {
            let call = Edn::map([body.clone(), ("commit", Edn::Bool(e.commits))]);
            let end = (sure(e.acknowledged), call.clone(), None);
            ops.push(op(e.process, (e.invoked, e.ended), "end", call, end));
        }
    }
    ops
}

fn sure(acknowledged: bool) -> &'static str {
    if acknowledged { "ok" } else { "info" }
}

fn op(
    process: u64,
    (invoked, ended): (u64, u64),
    name: &'static str,
    call: Edn,
    end: (&'static str, Edn, Option<String>),
) -> Op {
    Op {
        process,
        invoked,
        ended,
        name,
        call,
        at: None,
        end,
    }
}

/// A poll; `at` says where, in a map beside the value, which has the shape that Jepsen knows.
fn poll(
    process: u64,
    (invoked, ended): (u64, u64),
    at: Vec<(&str, Edn)>,
    queue: u32,
    outcome: &Outcome<Vec<(u64, String)>>,
) -> Op {
    let at = Edn::Map(
        at.into_iter()
            .map(|(key, value)| (Edn::key(key), value))
            .collect(),
    );
    let call = list([list([Edn::key("poll")])]);
    let end = match outcome {
        Outcome::Ok(got) => {
            let got = got
                .iter()
                .map(|(offset, body)| list([(*offset).into(), Edn::from(&**body)]));
            let got = Edn::Map(vec![(queue.into(), list(got))]);
            ("ok", list([list([Edn::key("poll"), got])]), None)
        }
        Outcome::Fail(why) => ("fail", call.clone(), Some(why.clone())),
        Outcome::Unknown(why) => ("info", call.clone(), Some(why.clone())),
    };
    Op {
        process,
        invoked,
        ended,
        name: "poll",
        call,
        at: Some(at),
        end,
    }
}

/// What no client did.
fn notes(history: &History) -> Vec<(u64, Vec<(&'static str, Edn)>)> {
    let note = |process, name, value| {
        vec![
            ("type", Edn::key("info")),
            ("process", Edn::key(process)),
            ("f", Edn::key(name)),
            ("value", value),
        ]
    };
    let mut notes = Vec::new();
    for f in &history.faults {
        notes.push((f.from, note("nemesis", "start", Edn::from(&*f.what))));
        let until = f.until.map_or(Edn::Nil, Edn::from);
        let seen = f.seen.map_or(Edn::Nil, Edn::from);
        let value = Edn::map([
            ("what", Edn::from(&*f.what)),
            ("from", f.from.into()),
            ("until", until),
            ("seen", seen),
        ]);
        notes.push((f.until.unwrap_or(f.from), note("nemesis", "stop", value)));
    }
    for lead in &history.leads {
        let value = Edn::map([("node", lead.node.into()), ("term", lead.term.into())]);
        notes.push((lead.at, note("monitor", "leader", value)));
    }
    for (queue, stretches) in &history.stretches {
        for s in stretches {
            let value = Edn::map([
                ("queue", (*queue).into()),
                ("sender", s.sender.into()),
                ("first", s.first.into()),
                ("count", s.count.into()),
                ("offset", s.offset.into()),
            ]);
            notes.push((history.end(), note("reader", "stretch", value)));
        }
    }
    for a in &history.adopted {
        let shown = a.shown.iter().map(|(node, kept)| {
            let kept = kept.as_ref().map_or(Edn::Nil, kept_as);
            list([(*node).into(), kept])
        });
        let value = Edn::map([
            ("place", Edn::from(&*a.place)),
            ("had", kept_as(&a.had)),
            ("shown", list(shown)),
        ]);
        notes.push((history.end(), note("reader", "adopted", value)));
    }
    for (name, all) in [
        ("delivered", &history.deliveries),
        ("visible", &history.visible),
    ] {
        for d in all {
            let body = ("body", Edn::from(&*d.body));
            let mut value = vec![("queue", d.queue.into()), ("offset", d.offset.into()), body];
            value.extend(d.last.then_some(("final", Edn::Bool(true))));
            let value = value.into_iter().map(|(key, value)| (Edn::key(key), value));
            let value = Edn::Map(value.collect());
            notes.push((d.at, note("reader", name, value)));
        }
    }
    notes
}

fn kept_as(kept: &Kept) -> Edn {
    match kept {
        Kept::Message(digest) => Edn::from(&**digest),
        Kept::Offset(offset) => (*offset).into(),
    }
}

fn list(values: impl IntoIterator<Item = Edn>) -> Edn {
    Edn::List(values.into_iter().collect())
}

#[cfg(test)]
mod tests;
