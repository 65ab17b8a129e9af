//! What an inspection tells of a migrated store, against what the Java broker said of its own: above
//! all that which no client can ask a group for.

use std::collections::BTreeMap;
use std::sync::Arc;

use rmq_migrate::{Code, Progress, Style, run};
use rmq_store::RealDisk;
use rmq_store::inspect::{Inspection, QueueKind, QueuePart, inspect};
use serde_json::Value;

use crate::fixture::Unpacked;

/// What was compared.
#[derive(Debug, Default)]
struct Seen {
    half: u64,
    light: u64,
    inner_batch: u64,
    out_of_range: u64,
    timer: u64,
}

fn number(line: &Value, key: &str) -> u64 {
    line[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {line}"))
}

fn check(archive: &str, name: &str, manifest: &str) -> Option<Seen> {
    let unpacked = Unpacked::new(archive, |store| store == name)?;
    let report = run(&unpacked.options(name, &[]), &Progress::new(Style::None)).unwrap();
    let look = |root: &std::path::Path| inspect(&(Arc::new(RealDisk) as _), root, None).unwrap();
    let (java, ours) = (look(&unpacked.store(name)), look(&unpacked.target()));
    let shown = format!("{archive}/{name}");
    assert_eq!((ours.damages, &ours.damage), (0, &Vec::new()), "{shown}");
    assert_eq!(ours.log.records, java.log.records, "{shown}");
    assert_eq!(
        (&ours.delay, &ours.half, &ours.timer),
        (&java.delay, &java.half, &java.timer),
        "{shown}"
    );
    assert_eq!(report.pending.timer, java.timer.pending, "{shown}");
    let unserved = report.warnings.iter();
    let unserved: Vec<&str> = unserved
        .filter(|note| note.code == Code::Unserved)
        .map(|note| &*note.what)
        .collect();
    let timer = format!("{} timer messages wait for their time", java.timer.pending);
    assert_eq!(
        unserved.contains(&&*timer),
        java.timer.pending > 0,
        "{shown}: {unserved:?}"
    );
    let revive = "queue 0 of rmq_sys_REVIVE_LOG_FxCluster ends at 28, it was read to 4";
    assert_eq!(
        unserved.contains(&revive),
        ["classic-5.5.0-clean", "classic-5.5.0-lmq"].contains(&archive),
        "{shown}: {unserved:?}"
    );
    let tables = |found: &Inspection| {
        let config = &found.config;
        [
            &config.topics,
            &config.groups,
            &config.offsets,
            &config.delay_offsets,
        ]
        .map(|t| t.entries)
    };
    assert_eq!(tables(&ours), tables(&java), "{shown}");

    let lines = unpacked.lines(&format!("{manifest}.manifest.jsonl.xz"), 0);
    let lines: Vec<Value> = lines.into_iter().map(|(_, line)| line).collect();
    let of_type = |of: &'static str| lines.iter().filter(move |line| line["type"] == of);
    let mut seen = Seen {
        timer: ours.timer.pending,
        ..Seen::default()
    };
    seen.half = of_type("halfMessage").count() as u64;
    let open = of_type("halfMessage").filter(|line| line["pending"] == true);
    assert_eq!(ours.half.messages, seen.half, "{shown}");
    assert_eq!(ours.half.pending, open.count() as u64, "{shown}");

    let read_queues: BTreeMap<&str, u64> = of_type("topic")
        .map(|line| {
            (
                line["topic"].as_str().unwrap(),
                number(&line["config"], "readQueueNums"),
            )
        })
        .collect();
    let parts: BTreeMap<(&str, u64), &QueuePart> = ours
        .queues
        .iter()
        .map(|part| ((&*part.topic, u64::try_from(part.queue_id).unwrap()), part))
        .collect();
    for line in of_type("queue") {
        let (topic, id) = (line["topic"].as_str().unwrap(), number(line, "queueId"));
        let (max, messages) = (number(line, "maxOffset"), number(line, "messages"));
        let Some(part) = parts.get(&(topic, id)) else {
            assert_eq!(max, 0, "{shown}: {line}");
            continue;
        };
        let beyond = read_queues.get(topic).is_some_and(|queues| id >= *queues);
        match part.kind {
            QueueKind::Lmq => seen.light += part.log.messages,
            QueueKind::InnerBatch => seen.inner_batch += part.log.messages,
            QueueKind::Classic if beyond => {
                let units = part.units.as_ref().unwrap();
                let found = (units.max_offset, units.messages);
                assert_eq!(found, (max, messages), "{shown}: {line}");
                seen.out_of_range += messages;
                continue;
            }
            QueueKind::Classic => continue,
        }
        assert_eq!(part.log.max_offset, max, "{shown}: {line}");
        assert_eq!(
            part.log.messages,
            max - number(line, "minOffset"),
            "{shown}: {line}"
        );
    }
    println!("{shown}: {seen:?}");
    Some(seen)
}

#[test]
fn what_no_client_can_ask_for_is_in_a_migrated_store() {
    let mut all = Seen::default();
    for (archive, name) in [
        ("classic-4.9.7-clean", "broker-a"),
        ("classic-4.9.7-clean", "broker-a-s"),
        ("classic-4.9.7-clean", "broker-b"),
        ("classic-4.9.7-clean", "broker-b-s"),
        ("classic-4.9.7-crash", "broker-a"),
        ("classic-4.9.7-odd", "broker-a"),
        ("classic-5.5.0-clean", "broker-a"),
        ("classic-5.5.0-lmq", "broker-a"),
        ("classic-5.5.0-v2", "broker-a"),
    ] {
        let Some(seen) = check(archive, name, name) else {
            return;
        };
        all.half += seen.half;
        all.light += seen.light;
        all.inner_batch += seen.inner_batch;
        all.out_of_range += seen.out_of_range;
        all.timer += seen.timer;
    }
    let Seen {
        half,
        light,
        inner_batch,
        out_of_range,
        timer,
    } = all;
    for (count, least) in [
        (half, 100),
        (light, 100),
        (inner_batch, 100),
        (out_of_range, 100),
        (timer, 10),
    ] {
        assert!(count > least, "{all:?}");
    }
}
