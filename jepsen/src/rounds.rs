//! Runs that strike fault after fault, and time each.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use jepsen::run::{self, Gap, Nemesis, Plan, Report};
use jepsen::suite;

/// Until the group acknowledges again after a fault, in milliseconds.
const MEDIAN_LIMIT_MS: u64 = 1500;
const WORST_LIMIT_MS: u64 = 3000;

/// Runs one plan and prints what came of it. Whether it passed.
pub(crate) fn judge(rmq: &Path, dir: &Path, plan: &Plan, limits: bool) -> anyhow::Result<bool> {
    println!("run: {plan:?}");
    let report = suite::running(dir, || run::run(rmq, dir, plan))?
        .with_context(|| format!("the run did not finish; its files are in {}", dir.display()))?;
    println!("  {}", report.summary);
    let mut too_slow = Vec::new();
    for nemesis in &plan.nemeses {
        let of_probe = distribution(&report, *nemesis, |gap| gap.probe_ms);
        let of_producers = distribution(&report, *nemesis, |gap| gap.producers_ms);
        println!(
            "  {nemesis:?}: next acknowledgement after {of_probe} by a probe of all nodes, \
             {of_producers} by a producer"
        );
        // Nodes have to start again first.
        let is_limited = !nemesis.cuts_power() && *nemesis != Nemesis::DamageOne;
        if is_limited && (of_probe.median > MEDIAN_LIMIT_MS || of_probe.worst > WORST_LIMIT_MS) {
            too_slow.push(format!(
                "{nemesis:?}: {of_probe}; the limits are {MEDIAN_LIMIT_MS} ms (median) and \
                 {WORST_LIMIT_MS} ms (worst)"
            ));
        }
    }
    let without_failure = plan.nemeses.iter().all(|n| *n == Nemesis::Saturate);
    if without_failure && report.terms > 0 {
        let terms = report.terms;
        too_slow.push(format!("{terms} terms began although no node had failed"));
    }
    let mut wrong = report.wrong;
    for line in too_slow {
        if limits {
            wrong.push(line);
        } else {
            println!("  beyond the limits, which are not enforced: {line}");
        }
    }
    if wrong.is_empty() {
        println!("  passed");
        fs::remove_dir_all(dir)?;
        return Ok(true);
    }
    for line in &wrong {
        println!("  FAILED {line}");
    }
    println!("  files are kept in {}; seed {}", dir.display(), plan.seed);
    Ok(false)
}

/// Of a set of times in milliseconds.
struct Distribution {
    median: u64,
    worst: u64,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms (median), {} ms (worst)", self.median, self.worst)
    }
}

fn distribution(report: &Report, of: Nemesis, time: fn(&Gap) -> u64) -> Distribution {
    let gaps = report.gaps.iter().filter(|gap| gap.nemesis == of);
    let mut times: Vec<u64> = gaps.map(time).collect();
    times.sort_unstable();
    Distribution {
        median: times.get(times.len() / 2).copied().unwrap_or(0),
        worst: times.last().copied().unwrap_or(0),
    }
}
