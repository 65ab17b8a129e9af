//! Whether a run says anything: its faults were felt, and clients were served meanwhile.

use std::collections::BTreeMap;

use clap::ValueEnum;

use crate::client::Outcome;
use crate::history::{Delivery, History, LockCall, OffsetCall, Send};
use crate::schedule::Fault as Kind;
use crate::workload::Kind as Workload;

/// A run whose faults were not felt by any acknowledged send says nothing.
pub fn exercised(history: &History) -> Vec<String> {
    let mut wrong = Vec::new();
    if history.faults.is_empty() {
        wrong.push("no fault was injected".into());
    }
    for f in &history.faults {
        if history.first_ack(f.from).is_none() {
            wrong.push(format!("{}: nothing was acknowledged afterwards", f.what));
        }
    }
    if !history
        .offsets
        .iter()
        .any(|o| matches!(o.call, OffsetCall::Read(Some(_))))
    {
        wrong.push("no consumer offset was read".into());
    }
    wrong
}

/// Why a run proves nothing, if so: a kind of fault was never felt, or nobody was served meanwhile.
pub fn void(history: &History) -> Vec<String> {
    const LEAST: usize = 10;
    // Nobody can be served without a majority, but soon after.
    const RECOVERY: u64 = 5_000_000_000;
    let mut void = Vec::new();
    let mut felt: BTreeMap<&str, u64> = BTreeMap::new();
    let mut windows: Vec<(u64, u64)> = Vec::new();
    for fault in &history.faults {
        let kind = fault.what.split(['-', ' ']).next().unwrap_or_default();
        *felt.entry(kind).or_default() += fault.seen.unwrap_or(1);
        let mut words = fault.what.split(' ');
        let name = words.next().unwrap_or_default();
        let struck = words.next().map_or(0, |nodes| nodes.split(',').count());
        let nobody_can = Kind::from_str(name, false).is_ok_and(|kind| kind.takes_most(struck));
        let more = if nobody_can { RECOVERY } else { 0 };
        windows.extend(fault.until.map(|until| (fault.from, until + more)));
    }
    if felt.is_empty() {
        void.push("no fault was injected".into());
    }
    let unfelt = felt.iter().filter(|(_, seen)| **seen == 0);
    void.extend(unfelt.map(|(kind, _)| format!("no fault of the kind {kind} was felt")));
    let within = |send: &&Send| {
        let is_within = |(from, until): &(u64, u64)| *from < send.invoked && send.ended < *until;
        matches!(send.outcome, Outcome::Ok(_)) && windows.iter().any(is_within)
    };
    let served = history.sends.iter().filter(within).take(LEAST).count();
    if !windows.is_empty() && served < LEAST {
        void.push(format!(
            "only {served} messages were acknowledged while a fault lasted"
        ));
    }
    void
}

/// What these clients are there for and was never done for them: of that a run proves nothing either.
pub fn unserved(history: &History, clients: Workload) -> Vec<String> {
    let got = |delivers| {
        let mut polls = history.polls.iter();
        polls.any(|poll| {
            let is_some = matches!(&poll.outcome, Outcome::Ok(got) if !got.is_empty());
            is_some && poll.delivers == delivers
        })
    };
    let seen_in_time = |list: &[Delivery]| list.iter().any(|delivery| !delivery.last);
    let committed = history
        .offsets
        .iter()
        .any(|op| matches!(op.call, OffsetCall::Commit { acknowledged, .. } if acknowledged));
    let ended = |commits| {
        let mut ends = history.transactions.iter().flat_map(|half| &half.ends);
        ends.any(|end| end.acknowledged && end.commits == commits)
    };
    let mut done = vec![("no commit of an offset was acknowledged", committed)];
    match clients {
        Workload::Queue | Workload::Load | Workload::Migrate => {
            done.push(("no reader got a message", got(false)));
            if clients == Workload::Load {
                let mut batches = history.batches.iter();
                let acknowledged = batches.any(|batch| matches!(batch.outcome, Outcome::Ok(_)));
                done.push(("no batch was acknowledged", acknowledged));
            }
            if clients == Workload::Migrate {
                done.push(("nothing was taken over", !history.adopted.is_empty()));
            }
        }
        Workload::Offset => done.push(("no member got a message", got(true))),
        Workload::Ordered => {
            let mut locks = history.locks.iter();
            let had = locks.any(|op| matches!(op.call, LockCall::Lock(Outcome::Ok(true))));
            done.push(("no lock was had", had));
            done.push(("no member got a message", got(true)));
        }
        Workload::Delay => {
            let seen = seen_in_time(&history.deliveries);
            done.push(("no delayed message was seen to come", seen));
        }
        Workload::Transaction => {
            let seen = seen_in_time(&history.visible);
            done.push(("no committed message was seen to come", seen));
            done.push(("no commit of a transaction was acknowledged", ended(true)));
            done.push(("no rollback was acknowledged", ended(false)));
        }
    }
    let missing = done.into_iter().filter(|(_, is_done)| !is_done);
    missing.map(|(what, _)| what.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{good, poll, send};
    use crate::history::Fault;

    /// Sends that are acknowledged in the five seconds after a fault count where it has left no majority.
    #[test]
    fn what_was_served_after_a_fault_counts_where_nobody_could_be_served_before() {
        let ack = |n: u64| send(0, "a", 3_000_000_000 + n, 3_000_000_001 + n, Outcome::Ok(n));
        let is_void = |what: &str| {
            let faults = vec![Fault {
                what: what.into(),
                from: 1_000_000_000,
                until: Some(2_000_000_000),
                seen: Some(1),
            }];
            let sends = (0..20).map(ack).collect();
            let history = History {
                sends,
                faults,
                ..History::default()
            };
            !void(&history).is_empty()
        };
        for name in ["kill-all n0,n1,n2", "partition-all", "power-storm n0,n2"] {
            assert!(!is_void(name), "{name}");
        }
        for name in [
            "partition-leader-from-all n0>n1",
            "power-storm n1",
            "slow-all",
            "flaky-all",
            "kill-leader n1",
        ] {
            assert!(is_void(name), "{name}");
        }
    }
    #[test]
    fn a_run_whose_clients_were_never_served_proves_nothing_of_what_they_do() {
        let mut history = good();
        history.polls = vec![poll(0, &[], 0)];
        assert_eq!(
            unserved(&history, Workload::Queue),
            ["no reader got a message"]
        );
        history.polls.push(poll(0, &["a"], 1));
        assert_eq!(unserved(&history, Workload::Queue), Vec::<String>::new());
        assert_eq!(
            unserved(&history, Workload::Load),
            ["no batch was acknowledged"]
        );
        assert_eq!(
            unserved(&history, Workload::Ordered),
            ["no lock was had", "no member got a message"]
        );
        for (clients, count) in [
            (Workload::Offset, 1),
            (Workload::Delay, 1),
            (Workload::Transaction, 3),
        ] {
            assert_eq!(unserved(&history, clients).len(), count, "{clients:?}");
        }
        history.offsets.clear();
        assert_eq!(
            unserved(&history, Workload::Queue),
            ["no commit of an offset was acknowledged"]
        );
    }
}
