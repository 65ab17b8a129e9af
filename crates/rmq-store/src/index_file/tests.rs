use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::RealDisk;

const LAYOUT: Layout = Layout {
    slots: 5,
    entries: 9,
};
const TOPIC: &str = "Topic";

/// A message of a log: position, store timestamp, keys.
type Message = (u64, i64, Vec<u8>);

fn open(dir: &std::path::Path, log: &[Message], saved: (Saved, bool), limit: u64) -> Option<Index> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let time = |phy| {
        log.iter()
            .find(|message| message.0 == phy)
            .map(|message| message.1)
    };
    let time = |phy: PhyOffset| time(phy.0);
    Index::open(
        &disk,
        dir.to_owned(),
        LAYOUT,
        saved,
        PhyOffset(limit),
        &time,
    )
    .unwrap()
}

fn empty(dir: &std::path::Path) -> Index {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    Index::anew(&disk, dir.to_owned(), LAYOUT, PhyOffset(0)).unwrap()
}

fn add(index: &mut Index, (phy, time, keys): &Message) {
    let keys: Vec<String> = keys.iter().map(|key| format!("key{key}")).collect();
    index
        .add(
            TOPIC,
            keys.iter().map(String::as_str),
            PhyOffset(*phy),
            *time,
        )
        .unwrap();
}

fn find(index: &Index, log: &[Message], key: u8, search: Search) -> Vec<u64> {
    let in_window = |phy: PhyOffset| {
        let message = log
            .iter()
            .find(|message| message.0 == phy.0)
            .expect("a position of the log");
        message.2.contains(&key) && (search.begin..=search.end).contains(&message.1)
    };
    let found = index
        .snapshot(TOPIC, &format!("key{key}"))
        .find(search, in_window)
        .unwrap();
    found.into_iter().map(|phy| phy.0).collect()
}

fn find_in(log: &[Message], key: u8, search: Search) -> Vec<u64> {
    let hits = log.iter().rev().filter(|(_, time, keys)| {
        keys.contains(&key) && (search.begin..=search.end).contains(time)
    });
    hits.map(|(phy, ..)| *phy).take(search.max).collect()
}

const ALL: Search = Search {
    max: 1000,
    begin: 0,
    end: i64::MAX,
};

fn log_of(keys: &[(u16, Vec<u8>)]) -> Vec<Message> {
    let mut time = 1_700_000_000_000;
    let messages = keys.iter().zip(1..).map(|((pause, keys), phy)| {
        time += i64::from(*pause);
        (phy * 100, time, keys.clone())
    });
    messages.collect()
}

#[test]
fn files_are_full_length_and_roll() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = empty(dir.path());
    let log = log_of(&vec![(1, vec![1]); 20]);
    for message in &log {
        add(&mut index, message);
    }
    let (saved, _) = index.flush().unwrap();
    let names = RealDisk.list(dir.path()).unwrap();
    // Eight entries in each of two files, four in the third; a millisecond apart.
    assert_eq!(
        names,
        [
            "20231114221320001",
            "20231114221320009",
            "20231114221320017"
        ]
    );
    for name in &names {
        assert_eq!(
            std::fs::metadata(dir.path().join(name)).unwrap().len(),
            LAYOUT.file_bytes()
        );
    }
    assert_eq!(saved.name, 20_231_114_221_320_017);
    assert_eq!(saved.header.next_entry, 5);
    assert_eq!(saved.header.used_slots, 1);
    assert_eq!(
        (saved.header.begin_phy, saved.header.end_phy),
        (PhyOffset(1700), PhyOffset(2000))
    );
    assert_eq!(
        find(&index, &log, 1, Search { max: 3, ..ALL }),
        [2000, 1900, 1800]
    );
}

#[test]
fn a_name_follows_the_last_one_even_if_the_clock_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = empty(dir.path());
    let mut log = log_of(&vec![(0, vec![1]); 17]);
    log.iter_mut().skip(8).for_each(|message| message.1 -= 5000);
    for message in &log {
        add(&mut index, message);
    }
    let names = RealDisk.list(dir.path()).unwrap();
    assert_eq!(
        names,
        [
            "20231114221320000",
            "20231114221320001",
            "20231114221320002"
        ]
    );
}

#[test]
fn files_that_do_not_fit_the_checkpoint_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = empty(dir.path());
    add(&mut index, &(100, 5, vec![1]));
    let (saved, _) = index.flush().unwrap();
    let other = Saved {
        name: saved.name - 1,
        ..saved
    };
    assert!(open(dir.path(), &[], (other, true), 1000).is_none());
    let mut wrong = saved;
    wrong.header.end_phy = PhyOffset(99);
    assert!(open(dir.path(), &[], (wrong, false), 1000).is_none());
    index = empty(dir.path());
    assert!(RealDisk.list(dir.path()).unwrap().is_empty());
    add(&mut index, &(100, 5, vec![1]));
    index.flush().unwrap();
    assert!(open(dir.path(), &[], (saved, true), 1000).is_some());
    std::fs::write(dir.path().join(name_of(saved.name)), [0; 40]).unwrap();
    assert!(open(dir.path(), &[], (saved, true), 1000).is_none());
}

#[test]
fn a_damaged_chain_ends_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = empty(dir.path());
    let log = log_of(&vec![(1, vec![1]); 5]);
    for message in &log {
        add(&mut index, message);
    }
    index.flush().unwrap();
    let newest = index.newest.as_ref().unwrap();
    // The third entry now names itself, the fourth a later one.
    for (number, previous) in [(3_u32, 3_u32), (4, 5)] {
        let at = LAYOUT.entry_at(number) + 16;
        newest
            .file
            .write_at(at, &[IoSlice::new(&previous.to_be_bytes())])
            .unwrap();
    }
    assert_eq!(find(&index, &log, 1, ALL), [500, 400]);
}

#[derive(Clone, Debug)]
enum Op {
    Add(usize),
    WriteEntries,
    Flush,
    CleanReopen,
    /// The process dies; what was written stays.
    Crash,
    /// The same, and the log has lost its tail down to this many messages below the last flush.
    CrashWithShorterLog(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (1_usize..6).prop_map(Op::Add),
        2 => Just(Op::WriteEntries),
        3 => Just(Op::Flush),
        1 => Just(Op::CleanReopen),
        1 => Just(Op::Crash),
        1 => (0_usize..6).prop_map(Op::CrashWithShorterLog),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn finds_what_a_scan_of_the_log_finds(
        keys in proptest::collection::vec((0..2500_u16, proptest::collection::vec(0..4_u8, 0..4)), 60),
        ops in proptest::collection::vec(op(), 1..30),
        window in (-5000..150_000_i64, 0..100_000_i64),
    ) {
        let log = log_of(&keys);
        let dir = tempfile::tempdir().unwrap();
        let mut index = empty(dir.path());
        let mut added = 0;
        let mut flushed: Option<(Saved, usize)> = None;
        for op in ops {
            match op {
                Op::Add(count) => {
                    let end = log.len().min(added + count);
                    log[added..end].iter().for_each(|message| add(&mut index, message));
                    added = end;
                }
                Op::WriteEntries => index.write_entries().unwrap(),
                Op::Flush => flushed = Some((index.flush().unwrap().0, added)),
                Op::CleanReopen => {
                    let saved = index.flush().unwrap().0;
                    flushed = Some((saved, added));
                    let limit = log.get(added).map_or(u64::MAX, |message| message.0);
                    index = open(dir.path(), &log, (saved, true), limit).expect("it fits");
                }
                Op::Crash | Op::CrashWithShorterLog(_) => {
                    let lost = if let Op::CrashWithShorterLog(lost) = op { lost } else { 0 };
                    added = flushed.map_or(0, |(_, at)| at.saturating_sub(lost));
                    index = match flushed {
                        Some((saved, _)) => {
                            open(dir.path(), &log, (saved, false), log[added].0).expect("it fits")
                        }
                        None => empty(dir.path()),
                    };
                    // As the store does: what was cut off must not come back.
                    flushed = Some((index.flush().unwrap().0, added));
                }
            }
            if added == log.len() {
                break;
            }
        }
        let log = &log[..added];
        let start = 1_700_000_000_000 + window.0;
        for search in [
            ALL,
            Search { max: 2, ..ALL },
            Search { max: 5, begin: start, end: start + window.1 },
        ] {
            for key in 0..4 {
                prop_assert_eq!(find(&index, log, key, search), find_in(log, key, search), "{:?}", search);
            }
        }
        // The same as an index that was never interrupted, byte for byte.
        let whole = tempfile::tempdir().unwrap();
        let mut other = empty(whole.path());
        log.iter().for_each(|message| add(&mut other, message));
        index.flush().unwrap();
        other.flush().unwrap();
        let names = RealDisk.list(dir.path()).unwrap();
        prop_assert_eq!(&names, &RealDisk.list(whole.path()).unwrap());
        for name in names {
            let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(&name)).unwrap();
            prop_assert!(read(&dir) == read(&whole), "{} differs", name);
        }
    }
}
