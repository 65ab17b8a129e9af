//! Whether a run says anything: its faults were felt, and clients were served meanwhile.

use std::collections::BTreeMap;

use clap::ValueEnum;

use crate::client::Outcome;
use crate::history::{History, OffsetCall, Send};
use crate::schedule::Fault as Kind;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::send;
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
}
