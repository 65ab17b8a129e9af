//! A store's inspection, as it is shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rmq_store::inspect::{DelayPart, Generation, Inspection, QueueKind, QueuePart, RaftPart};

use super::table;

/// Damaged places that are shown; all of them are in the JSON.
const DAMAGE_SHOWN: usize = 20;

/// The inspection in words; a line for each topic, or for each queue.
#[must_use]
pub fn describe(found: &Inspection, queues: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<12}{value}").expect("a String takes every write");
    };
    let stop = match found.stopped_cleanly {
        true => "stopped cleanly",
        false => "not stopped cleanly (abort is there)",
    };
    line("store", format!("{}, {stop}", found.root.display()));
    let log = &found.log;
    line(
        "log",
        format!(
            "{} segments of {} bytes in {}, offsets {} to {}, {} records",
            log.segments,
            log.segment_bytes,
            found.commit_log.display(),
            log.min_offset,
            log.max_offset,
            log.records
        ),
    );
    if let Some(dledger) = &found.dledger {
        line(
            "dledger",
            format!(
                "{} entries, index {} to {}, term {} to {}",
                dledger.entries,
                dledger.first_index,
                dledger.last_index,
                dledger.first_term,
                dledger.last_term
            ),
        );
    }
    for (name, value) in found.raft.iter().flat_map(raft_lines) {
        line(name, value);
    }
    let index = &found.index;
    let ends = match (index.first_offset, index.last_offset) {
        (Some(first), Some(last)) => format!(", offsets {first} to {last}"),
        _ => String::new(),
    };
    line(
        "index",
        format!("{} files, {} entries{ends}", index.files, index.entries),
    );
    let config = &found.config;
    line(
        "config",
        format!(
            "{} topics, {} groups, {} consumer offsets, {} delay offsets",
            config.topics.entries,
            config.groups.entries,
            config.offsets.entries,
            config.delay_offsets.entries
        ),
    );
    line("delayed", delayed(&found.delay));
    if found.timer.messages > 0 {
        line(
            "timers",
            format!(
                "{} pending, {} messages in the queue, {} taken into the wheel",
                found.timer.pending, found.timer.messages, found.timer.taken
            ),
        );
    }
    let half = &found.half;
    line(
        "half",
        format!(
            "{} pending of {} messages, checked up to {}",
            half.pending, half.messages, half.checked
        ),
    );
    for (name, sum) in [
        ("retry", found.retry),
        ("dlq", found.dlq),
        ("inner batch", found.inner_batch),
        ("lmq", found.lmq),
    ] {
        if sum.queues > 0 {
            line(
                name,
                format!("{} messages in {} queues", sum.messages, sum.queues),
            );
        }
    }
    line("damage", damages(found));
    text.push('\n');
    text += &match queues {
        true => queue_table(&found.queues),
        false => topic_table(&found.queues),
    };
    text
}

fn raft_lines(raft: &RaftPart) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let notes = &raft.notes;
    for generation in &raft.generations {
        let Generation {
            generation: number,
            extents,
            first_index,
            last_index,
            first_term,
            last_term,
            start_offset,
            end_offset,
            ..
        } = generation;
        let history = match notes.generation {
            Some(current) if current != *number => " (history)",
            _ => "",
        };
        lines.push((
            "raft log",
            format!(
                "generation {number}{history}: {extents} extents, index {first_index} to \
                 {last_index}, term {first_term} to {last_term}, offsets {start_offset} to \
                 {end_offset}"
            ),
        ));
    }
    let none = || "none".to_owned();
    lines.push((
        "raft notes",
        format!(
            "committed {}, purged {}, vote {}",
            notes.committed.clone().unwrap_or_else(none),
            notes.purged.clone().unwrap_or_else(none),
            notes.vote.clone().unwrap_or_else(none)
        ),
    ));
    if let Some(frozen) = &notes.frozen {
        lines.push((
            "frozen",
            format!(
                "at term {} index {}, end offset {}",
                frozen.term, frozen.index, frozen.end_offset
            ),
        ));
    }
    lines
}

fn delayed(delay: &DelayPart) -> String {
    let levels = delay.levels.iter().filter(|level| level.pending > 0);
    let levels: Vec<String> = levels
        .map(|level| format!("level {}: {}", level.level, level.pending))
        .collect();
    let retries: u64 = delay.levels.iter().map(|level| level.pending_retries).sum();
    match levels.is_empty() {
        true => "0 pending".to_owned(),
        false => format!(
            "{} pending, {retries} of them retries ({})",
            delay.pending,
            levels.join(", ")
        ),
    }
}

fn damages(found: &Inspection) -> String {
    if found.damages == 0 {
        return "none".to_owned();
    }
    let mut text = format!("{} places", found.damages);
    for damage in found.damage.iter().take(DAMAGE_SHOWN) {
        write!(
            text,
            "\n  {}, offset {}: {}",
            damage.file.display(),
            damage.offset,
            damage.what
        )
        .expect("a String takes every write");
    }
    if found.damages > DAMAGE_SHOWN as u64 {
        text += "\n  … (--json lists more)";
    }
    text
}

const HEAD: [&str; 7] = [
    "topic", "queues", "records", "messages", "min", "max", "missing",
];

/// A row for each topic, its offsets being the lowest and the highest of its queues.
fn topic_table(queues: &[QueuePart]) -> String {
    let mut topics: BTreeMap<&str, (u64, u64, u64, u64, u64, u64)> = BTreeMap::new();
    for queue in queues {
        let (min, max) = queue.range();
        let sum = topics
            .entry(&queue.topic)
            .or_insert((0, 0, 0, u64::MAX, 0, 0));
        sum.0 += 1;
        sum.1 += queue.log.records;
        sum.2 += queue.messages();
        sum.3 = sum.3.min(min);
        sum.4 = sum.4.max(max);
        sum.5 += queue.missing;
    }
    let mut rows = vec![HEAD.map(String::from)];
    for (topic, (queues, records, messages, min, max, missing)) in topics {
        let numbers = [queues, records, messages, min, max, missing].map(|n| n.to_string());
        let [queues, records, messages, min, max, missing] = numbers;
        rows.push([topic.into(), queues, records, messages, min, max, missing]);
    }
    table(&rows)
}

fn queue_table(queues: &[QueuePart]) -> String {
    let head = [
        "topic", "queue", "kind", "records", "messages", "min", "max", "missing",
    ];
    let mut rows = vec![head.map(String::from)];
    for queue in queues {
        let kind = match queue.kind {
            QueueKind::Classic => "classic",
            QueueKind::InnerBatch => "batch",
            QueueKind::Lmq => "lmq",
        };
        let (min, max) = queue.range();
        rows.push([
            queue.topic.clone(),
            queue.queue_id.to_string(),
            kind.into(),
            queue.log.records.to_string(),
            queue.messages().to_string(),
            min.to_string(),
            max.to_string(),
            queue.missing.to_string(),
        ]);
    }
    table(&rows)
}
