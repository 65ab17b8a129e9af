//! A store whose commit log was begun by a master, and gone on with by a DLedger group: what the guide
//! for operators of RocketMQ leads to. No archive is one, so one is made of a DLedger node's: the first
//! part of its log as the commit log of a master, the rest behind it as DLedger's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rmq_migrate::{Code, Progress, Style, check, run};
use serde_json::Value;

use crate::archive::tree;
use crate::fixture::Unpacked;
use crate::manifest::{Moved, close, compare, conf, moved, open};

const HEADER: usize = 48;
const SEGMENT: usize = 1 << 20;
/// Segments of the commit log.
const OLDER: usize = 3;

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn int(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// All entries of a DLedger log, one after the other.
fn entries(data: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for path in tree(data).keys() {
        let bytes = fs::read(data.join(path)).unwrap();
        let mut at = 0;
        while at + HEADER <= bytes.len() && int(&bytes, at) == 1 {
            let size = usize::try_from(int(&bytes, at + 4)).unwrap();
            found.push(bytes[at..at + size].to_vec());
            at += size;
        }
    }
    found
}

/// Writes entries as a DLedger log that begins at `base`; where each record was, and is now.
fn write(root: &Path, base: usize, entries: &[Vec<u8>]) -> Moved {
    let (data, index) = (root.join("data"), root.join("index"));
    fs::create_dir_all(&data).unwrap();
    fs::create_dir_all(&index).unwrap();
    let mut moved = Moved::new();
    let (mut log, mut units) = (Vec::new(), Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        let left = SEGMENT - log.len() % SEGMENT;
        if entry.len() + 8 > left {
            log.extend((-1_i32).to_be_bytes());
            log.extend(u32::try_from(left).unwrap().to_be_bytes());
            log.resize(log.len() + left - 8, 0);
        }
        let at = (base + log.len()) as u64;
        let number = (number as u64).to_be_bytes();
        let mut entry = entry.clone();
        let record = at + HEADER as u64;
        moved.insert(long(&entry, HEADER + 28), record);
        entry[8..16].copy_from_slice(&number);
        entry[24..32].copy_from_slice(&at.to_be_bytes());
        entry[HEADER + 28..HEADER + 36].copy_from_slice(&record.to_be_bytes());
        units.extend(1_i32.to_be_bytes());
        units.extend(at.to_be_bytes());
        units.extend(u32::try_from(entry.len()).unwrap().to_be_bytes());
        units.extend(number);
        units.extend(&entry[16..24]);
        log.extend(entry);
    }
    log.resize(log.len().next_multiple_of(SEGMENT), 0);
    for (nth, segment) in log.chunks(SEGMENT).enumerate() {
        fs::write(data.join(format!("{:020}", base + nth * SEGMENT)), segment).unwrap();
    }
    fs::write(index.join(format!("{:020}", 0)), units).unwrap();
    let last = entries.len() - 1;
    fs::write(
        root.join("checkpoint"),
        format!("endIndex={last}\ncommittedIndex={last}\n"),
    )
    .unwrap();
    moved
}

#[test]
fn a_dledger_log_goes_on_where_a_commit_log_ends() {
    let Some(unpacked) = Unpacked::new("dledger-4.9.7", |store| store == "n0") else {
        return;
    };
    let quiet = || Progress::new(Style::None);
    let (store, target) = (unpacked.store("n0"), unpacked.target());
    run(&unpacked.options("n0", &[]), &quiet()).unwrap();
    let classic: Moved = moved(&target);
    let end = (OLDER * SEGMENT) as u64;
    let older = classic.values().filter(|now| **now < end).count();
    fs::create_dir_all(store.join("commitlog")).unwrap();
    for nth in 0..OLDER {
        let name = format!("commitlog/{:020}", nth * SEGMENT);
        fs::copy(target.join(&name), store.join(&name)).unwrap();
    }
    fs::remove_dir_all(&target).unwrap();
    let own = store.join("dledger-n0");
    let all = entries(&own.join("data"));
    fs::remove_dir_all(&own).unwrap();
    let begun = write(&own, OLDER * SEGMENT, &all[older..]);

    let before = tree(&store);
    let options = unpacked.options("n0", &["--verify", "full"]);
    let report = run(&options, &quiet()).unwrap();
    assert!(tree(&store) == before, "the source has changed");
    assert!(
        report.source.contains("above 3 segments"),
        "{}",
        report.source
    );
    assert_eq!(report.verified.unwrap().records, all.len() as u64);
    assert_eq!(
        report.files.linked_files + report.files.reflinked_files,
        OLDER as u64
    );
    let again = moved(&target);
    let mut now: Moved = BTreeMap::new();
    for (was, at) in classic {
        let at = begun.get(&was).map_or(at, |at| again[at]);
        now.insert(was, at);
    }
    let lines = unpacked.lines("group.manifest.jsonl.xz", 0).into_iter();
    let here = |line: &Value| {
        line["type"] == "msg" && now.contains_key(&line["phyOffset"].as_u64().unwrap())
    };
    let lines: Vec<Value> = lines.map(|(_, line)| line).filter(here).collect();
    let opened = open(&target, &conf(&unpacked, "n0"));
    let messages = compare("dledger-4.9.7", "n0", &opened, &lines, Some(&now));
    assert!(messages > 4000, "{messages}");
    close(opened);

    // The commit log of another time is none of this history.
    fs::remove_dir_all(&target).unwrap();
    fs::remove_file(store.join(format!("commitlog/{:020}", (OLDER - 1) * SEGMENT))).unwrap();
    let looked = check(&options, &quiet()).unwrap();
    assert_eq!(looked.blockers[0].code, Code::NoStore);
    assert!(
        looked.blockers[0].what.contains("two logs"),
        "{}",
        looked.blockers[0]
    );
}
