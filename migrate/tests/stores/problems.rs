//! What is in the way of a migration: each has its code, and does no harm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser as _;
use rmq_migrate::{Code, Options, Problem, Progress, Report, Style, check, run};
use rmq_store::{Disk as _, RealDisk};
use rmq_wire::record::{self, Peek};

use crate::archive::tree;
use crate::fixture::Unpacked;

pub(crate) fn quiet() -> Progress {
    Progress::new(Style::None)
}

fn code(result: Result<Report, Problem>) -> Code {
    let problem = result.expect_err("something is in the way");
    assert!(
        !problem.hint.is_empty() || !problem.why.is_empty(),
        "{problem}"
    );
    assert!(problem.to_string().starts_with("E-"), "{problem}");
    problem.code
}

/// Both a check and a run tell the problem; neither leaves anything behind.
fn assert_refused(unpacked: &Unpacked, options: &Options, expected: Code) {
    let parent = unpacked.dir.path();
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    let before = (names(parent), unpacked.target().try_exists().unwrap());
    let looked = check(options, &quiet()).unwrap();
    let codes: Vec<Code> = looked.blockers.iter().map(|problem| problem.code).collect();
    assert!(codes.contains(&expected), "{expected}: {codes:?}");
    assert_eq!(code(run(options, &quiet())), expected);
    assert_eq!(
        (names(parent), unpacked.target().try_exists().unwrap()),
        before,
        "{expected}"
    );
}

pub(crate) fn rollback(unpacked: &Unpacked) {
    let output = Command::new(env!("CARGO_BIN_EXE_rmq-migrate"))
        .args(["--rollback", "--to"])
        .arg(unpacked.target())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}

#[test]
fn sources_that_are_not_whole_are_refused() {
    let name = "broker-b";
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store.starts_with("broker-"))
    else {
        return;
    };
    let store = unpacked.store(name);
    let before = tree(&store);
    let segment = |nth: u64| store.join("commitlog").join(format!("{:020}", nth << 20));
    let aside = unpacked.dir.path().join("aside");
    let plain = unpacked.options(name, &[]);
    let full = unpacked.options(name, &["--verify", "full"]);

    // A live broker: a Java one locks the same file.
    let lock = RealDisk.lock(&store.join("lock")).unwrap();
    assert_refused(&unpacked, &plain, Code::InUse);
    drop(lock);

    fs::rename(segment(3), &aside).unwrap();
    assert_refused(&unpacked, &plain, Code::Gap);
    std::os::unix::fs::symlink("/nowhere", segment(3)).unwrap();
    assert_refused(&unpacked, &plain, Code::Unreadable);
    fs::remove_file(segment(3)).unwrap();
    let bytes = fs::read(&aside).unwrap();
    fs::write(segment(3), &bytes[..bytes.len() / 2]).unwrap();
    assert_refused(&unpacked, &plain, Code::SegmentSize);
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(segment(3), &damaged).unwrap();
    let looked = check(&full, &quiet()).unwrap();
    assert_eq!(looked.blockers[0].code, Code::BadRecord);
    assert_eq!(looked.blockers[0].path.as_deref(), Some(&*segment(3)));
    let problem = run(&full, &quiet()).unwrap_err();
    assert_eq!((problem.code, problem.exit_code()), (Code::Verify, 4));
    rollback(&unpacked);
    fs::remove_file(segment(3)).unwrap();
    fs::rename(&aside, segment(3)).unwrap();

    std::os::unix::fs::symlink("/nowhere", store.join("config/gone")).unwrap();
    assert_refused(&unpacked, &plain, Code::Unreadable);
    fs::remove_file(store.join("config/gone")).unwrap();

    let topics = store.join("config/topics.json");
    for file in [&topics, &topics.with_extension("json.bak")] {
        fs::rename(file, file.with_extension("kept")).unwrap();
        fs::write(file, "{\"topic").unwrap();
    }
    assert_refused(&unpacked, &plain, Code::Metadata);
    for file in [&topics, &topics.with_extension("json.bak")] {
        fs::rename(file.with_extension("kept"), file).unwrap();
    }

    let queue = store.join("consumequeue/TopicBatch/0/00000000000000000000");
    let bytes = fs::read(&queue).unwrap();
    let odd = store.join("consumequeue/TopicBatch/0/00000000000000999999");
    fs::write(&odd, &bytes[..40]).unwrap();
    assert_refused(&unpacked, &plain, Code::QueueFileSize);
    fs::remove_file(odd).unwrap();

    // Another broker's store.
    let other = unpacked.store("broker-a");
    let compared = unpacked.options(name, &["--compare-with", other.to_str().unwrap()]);
    assert_refused(&unpacked, &compared, Code::StoresDiffer);

    // Nothing of that changed the store.
    let unchanged =
        |(path, (bytes, crc, _)): (&PathBuf, &(u64, u32, i64))| (path.clone(), *bytes, *crc);
    assert!(
        tree(&store)
            .iter()
            .map(unchanged)
            .eq(before.iter().map(unchanged))
    );
}

#[test]
fn slaves_are_compared_with_their_master() {
    let Some(unpacked) =
        Unpacked::new("classic-4.9.7-clean", |store| store.starts_with("broker-a"))
    else {
        return;
    };
    let slave = unpacked.store("broker-a-s");
    let options = unpacked.options("broker-a", &["--compare-with", slave.to_str().unwrap()]);
    let report = check(&options, &quiet()).unwrap();
    assert!(report.blockers.is_empty(), "{:?}", report.blockers);
    let [found] = &report.comparisons[..] else {
        panic!("one comparison")
    };
    assert_eq!(
        (found.common_start, found.common_end),
        (2 << 20, found.its_end)
    );

    // The master lacks what its slave has: the last message.
    let log = unpacked.store("broker-a").join("commitlog");
    let mut names: Vec<_> = fs::read_dir(&log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    let last = report.log.end;
    let path = names.iter().rev().find(|path| {
        let base: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        base < last
    });
    let path = path.unwrap();
    let base: u64 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let end = usize::try_from(last - base).unwrap();
    let (mut start, mut next) = (0, 0);
    while let Peek::Record { size } = record::peek(&bytes[next..end]) {
        (start, next) = (next, next + size);
    }
    assert_eq!(next, end);
    bytes[start..end].fill(0);
    fs::write(path, bytes).unwrap();
    assert_refused(&unpacked, &options, Code::StoresDiffer);
    let looked = check(&options, &quiet()).unwrap();
    assert!(
        looked.blockers[0].hint.contains("broker-a-s"),
        "{}",
        looked.blockers[0]
    );
}

#[test]
fn places_that_hold_no_store_or_none_to_be_are_refused() {
    let Some(unpacked) = Unpacked::new("classic-5.5.0-v2", |store| store == "broker-a") else {
        return;
    };
    let (store, target) = (unpacked.store("broker-a"), unpacked.target());
    for large in ["timerlog", "timerwheel"] {
        let path = store.join(large);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).ok();
        }
    }
    let to = |from: &Path, to: &Path| {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Options::parse_from(["rmq-migrate", "--from", &text(from), "--to", &text(to)])
    };
    let empty = unpacked.dir.path().join("empty");
    fs::create_dir_all(&empty).unwrap();
    assert_refused(&unpacked, &to(&empty, &target), Code::NoStore);
    assert_refused(&unpacked, &to(&empty.join("not"), &target), Code::NoStore);
    fs::create_dir_all(empty.join("commitlog")).unwrap();
    assert_refused(&unpacked, &to(&empty, &target), Code::Empty);
    fs::write(empty.join("commitlog/00000000000000000000"), [0; 1 << 20]).unwrap();
    assert_refused(&unpacked, &to(&empty, &target), Code::Empty);
    assert_refused(
        &unpacked,
        &to(&store, &store.join("new")),
        Code::TargetUnusable,
    );
    assert_refused(&unpacked, &to(&store, &empty), Code::TargetExists);
    assert_refused(
        &unpacked,
        &to(&store, &empty.join("no/such")),
        Code::TargetUnusable,
    );
    assert_eq!(
        code(run(
            &unpacked.options("broker-a", &["--peers", "here"]),
            &quiet()
        )),
        Code::Conf
    );

    // A file that is none of the store's stays where it is.
    fs::write(store.join("commitlog/notes.txt"), "mine").unwrap();
    let options = unpacked.options("broker-a", &[]);
    let report = run(&options, &quiet()).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|problem| problem.code == Code::ForeignFile)
    );
    assert!(!target.join("commitlog/notes.txt").try_exists().unwrap());
    fs::remove_file(store.join("commitlog/notes.txt")).unwrap();

    // What it made is no source, and no target of another run.
    let elsewhere = unpacked.dir.path().join("elsewhere");
    assert_eq!(
        code(run(&to(&target, &elsewhere), &quiet())),
        Code::OwnStore
    );
    let other = unpacked.options("broker-a", &["--mode", "copy"]);
    assert_eq!(code(run(&other, &quiet())), Code::TargetExists);

    // It goes away as a whole, but not with what somebody else put there.
    fs::write(target.join("notes.txt"), "mine").unwrap();
    let program = || Command::new(env!("CARGO_BIN_EXE_rmq-migrate"));
    let undo = || {
        let output = program()
            .args(["--rollback", "--to"])
            .arg(&target)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (exit, said) = undo();
    assert_eq!(exit, Some(3));
    assert!(
        said.contains("E-305") && said.contains("files that no run made"),
        "{said}"
    );
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    fs::remove_dir_all(&target).unwrap();
    assert!(undo().1.contains("no run of rmq-migrate made it"));

    // An unfinished run is gone on from with the same inputs, or removed.
    let options = unpacked.options("broker-a", &[]);
    run(&options, &quiet()).unwrap();
    let partial = unpacked.dir.path().join("migrated.partial-00000000");
    fs::rename(&target, &partial).unwrap();
    assert_eq!(code(run(&options, &quiet())), Code::OtherRun);
    rollback(&unpacked);
    assert!(!partial.try_exists().unwrap());
}

#[test]
fn files_beside_metadata_in_rocksdb_are_not_taken_for_it() {
    let Some(unpacked) = Unpacked::new("classic-5.5.0-v2", |store| store == "broker-a") else {
        return;
    };
    let (store, conf) = (unpacked.store("broker-a"), unpacked.conf("broker-a"));
    let plain = unpacked.options("broker-a", &[]);
    let config = store.join("config");
    let chosen = ["--config-from", config.to_str().unwrap()];
    let chosen = unpacked.options("broker-a", &chosen);
    let text = fs::read_to_string(&conf).unwrap();
    for (more, refused) in [
        ("storeType=DefaultRocksDB", true),
        ("configManagerVersion=v2", true),
        ("storeType=default\nconfigManagerVersion=v1", false),
    ] {
        fs::write(&conf, format!("{text}\n{more}\n")).unwrap();
        if refused {
            assert_refused(&unpacked, &plain, Code::Metadata);
        }
        let open = if refused { &chosen } else { &plain };
        let looked = check(open, &quiet()).unwrap();
        assert!(looked.blockers.is_empty(), "{:?}", looked.blockers);
    }
    fs::write(&conf, &text).unwrap();
    for dir in ["topics", "rdb/of"] {
        let dir = config.join(dir);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("CURRENT"), "MANIFEST-000005\n").unwrap();
        assert_refused(&unpacked, &plain, Code::Metadata);
        assert!(check(&chosen, &quiet()).unwrap().blockers.is_empty());
        fs::remove_file(dir.join("CURRENT")).unwrap();
    }

    let told = |what: &str| {
        let looked = check(&plain, &quiet()).unwrap();
        assert!(looked.blockers.is_empty(), "{:?}", looked.blockers);
        looked.warnings.iter().any(|note| note.what.contains(what))
    };
    assert!(!told("no consumerOffset.json"));
    for name in ["consumerOffset.json", "consumerOffset.json.bak"] {
        fs::remove_file(config.join(name)).unwrap();
    }
    assert!(told("no consumerOffset.json"));
}

#[test]
fn damaged_dledger_logs_are_refused() {
    let Some(unpacked) = Unpacked::new("dledger-4.9.7", |store| store == "n0") else {
        return;
    };
    let options = unpacked.options("n0", &[]);
    let dir = unpacked.store("n0").join("dledger-n0");
    let path = dir.join("data/00000000000002097152");
    let whole = fs::read(&path).unwrap();
    // The position in the header of an entry; a body.
    for at in [31, 48 + 200] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let problem = run(&options, &quiet()).unwrap_err();
        assert_eq!((problem.code, problem.exit_code()), (Code::BadEntry, 3));
        assert_eq!(
            (problem.path.as_deref(), problem.at),
            (Some(&*path), Some(0))
        );
        assert!(!unpacked.target().try_exists().unwrap());
        rollback(&unpacked);
    }
    fs::write(&path, whole).unwrap();

    // What a power cut leaves: the log, without the end of its index.
    let (path, at) = index_unit(&dir, 4322);
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[at..at + 32].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_refused(&unpacked, &options, Code::BadEntry);
    fs::write(&path, whole).unwrap();

    fs::rename(dir.join("index"), dir.join("aside")).unwrap();
    assert_refused(&unpacked, &options, Code::BadEntry);
}

/// The file of a DLedger node's index that has an entry, and where in it.
fn index_unit(node: &Path, entry: usize) -> (PathBuf, usize) {
    let files = fs::read_dir(node.join("index")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let start = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<usize>();
    let files = files.map(|path| (start(&path).unwrap(), path));
    let file = files.filter(|(start, _)| *start <= entry * 32).max();
    let (start, path) = file.unwrap();
    (path, entry * 32 - start)
}

/// The group has three nodes, whatever number of stores is given.
#[test]
fn a_majority_is_one_of_the_nodes_of_dledger_and_not_of_the_stores() {
    let Some(unpacked) = Unpacked::new("dledger-4.9.7", |_| true) else {
        return;
    };
    let [n0, n1, n2] = ["n0", "n1", "n2"].map(|name| unpacked.store(name));
    let with = |names: &[&PathBuf]| {
        let text = |name: &&PathBuf| ["--compare-with".to_owned(), name.display().to_string()];
        names.iter().flat_map(text).collect::<Vec<_>>()
    };
    let options = |name: &str, others: &[&PathBuf]| {
        let more = with(others);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        unpacked.options(name, &more)
    };
    let told = |report: &Report, what: &str| {
        let mut all = report.warnings.iter();
        all.any(|note| note.what.contains(what))
    };

    // The killed node lacks what the other two had confirmed.
    let looked = check(&options("n0", &[&n1]), &quiet()).unwrap();
    assert!(looked.blockers.is_empty(), "{:?}", looked.blockers);
    assert!(!told(&looked, "left out"), "{:?}", looked.warnings);
    let report = run(&options("n0", &[&n1]), &quiet()).unwrap();
    let done = report.dledger.unwrap();
    assert_eq!((done.last_index, done.left_out), (4322, 0));
    let problem = run(&options("n1", &[&n0]), &quiet()).unwrap_err();
    assert_eq!(problem.code, Code::Unconfirmed, "{problem}");
    assert!(problem.what.contains("from 4181 on"), "{problem}");
    let problem = run(&options("n1", &[&n0, &n0]), &quiet()).unwrap_err();
    assert_eq!(problem.code, Code::StoresDiffer, "{problem}");
    assert!(problem.what.contains("same node"), "{problem}");
    let alone = check(&options("n1", &[]), &quiet()).unwrap();
    assert!(told(&alone, "1 of 3"), "{:?}", alone.warnings);

    // Nobody says how many nodes there are.
    let to = unpacked.target();
    let mut bare = vec!["rmq-migrate".to_owned()];
    for (key, path) in [("--from", &n1), ("--to", &to)] {
        bare.extend([key.to_owned(), path.display().to_string()]);
    }
    bare.extend(with(&[&n0, &n2]));
    let problem = run(&Options::parse_from(bare), &quiet()).unwrap_err();
    assert_eq!(problem.code, Code::Unconfirmed, "{problem}");
    assert!(problem.what.contains("3 of an unknown number"), "{problem}");

    // A store without an index is as one that is not given.
    let checkpoint = n0.join("dledger-n0/checkpoint");
    fs::write(&checkpoint, "committedIndex=4000\n").unwrap();
    let index = n2.join("dledger-n2/index");
    let aside = index.with_file_name("aside");
    fs::rename(&index, &aside).unwrap();
    let looked = check(&options("n0", &[&n1, &n2]), &quiet()).unwrap();
    assert!(told(&looked, "index"), "{:?}", looked.warnings);
    assert!(told(
        &looked,
        "last 142 entries, from 4181 on, are not known"
    ));
    assert!(!told(&looked, "left out"), "{:?}", looked.warnings);
    fs::rename(&aside, &index).unwrap();

    // A file of the group's properties that is of another group.
    let properties = unpacked.conf("n0");
    let text = fs::read_to_string(&properties).unwrap();
    let others = text.replace("=n0-", "=n5-");
    assert_ne!(others, text);
    fs::write(&properties, others).unwrap();
    assert_refused(&unpacked, &options("n0", &[&n1]), Code::StoresDiffer);
    fs::write(&properties, text).unwrap();

    // What another node has beside its log is not looked at.
    fs::create_dir_all(n1.join("commitlog")).unwrap();
    fs::write(n1.join("commitlog/00000000000000000000"), [0; 100]).unwrap();
    let looked = check(&options("n0", &[&n1, &n2]), &quiet()).unwrap();
    let mut blockers = looked.blockers.iter();
    assert!(
        blockers.all(|of| of.code == Code::TargetExists),
        "{looked:?}"
    );

    // No other node has the entries from 4181 on.
    let (path, at) = index_unit(&n2.join("dledger-n2"), 4181);
    let unit = &fs::read(path).unwrap()[at..];
    let position = u64::from_be_bytes(unit[4..12].try_into().unwrap());
    let segment = n2.join(format!("dledger-n2/data/{:020}", position >> 20 << 20));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[usize::try_from(position % (1 << 20)).unwrap()..].fill(0);
    fs::write(&segment, bytes).unwrap();
    for entry in fs::read_dir(&index).unwrap() {
        let path = entry.unwrap().path();
        let first: usize = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let keep = (4181 * 32_usize).saturating_sub(first).min(bytes.len());
        bytes[keep..].fill(0);
        fs::write(&path, bytes).unwrap();
    }
    let looked = check(&options("n0", &[&n1, &n2]), &quiet()).unwrap();
    let what = "last 142 entries, from 4181 on, are left out";
    assert!(told(&looked, what), "{:?}", looked.warnings);
}

/// Every segment is open while the result is; the soft limit is what shells give, not what the system has.
#[test]
fn more_files_are_open_than_the_soft_limit_allows() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b") else {
        return;
    };
    let args = unpacked.args("broker-b");
    let program = env!("CARGO_BIN_EXE_rmq-migrate");
    let output = Command::new("sh")
        .args(["-c", "ulimit -S -n 12; exec \"$0\" \"$@\"", program])
        .args(&args[1..])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
}

/// Of two that want a store, a broker and a migration, the later one is sent away. A run that is
/// stopped says how to go on.
#[test]
fn a_broker_and_a_migration_keep_each_other_out() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b-s") else {
        return;
    };
    let store = unpacked.store("broker-b-s");
    let args = unpacked.args("broker-b-s");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rmq-migrate"));
    command
        .args(&args[1..])
        .stderr(std::process::Stdio::piped());
    let running = RealDisk.lock(&store.join("lock")).unwrap();
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("E-102") && said.contains("mqshutdown"),
        "{said}"
    );
    drop(running);

    // It waits for the end of this pipe when it has the store already.
    let config = unpacked.dir.path().join("config");
    fs::create_dir_all(&config).unwrap();
    let pipe = config.join("topics.json");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    command.arg("--config-from").arg(&config);
    let child = command.spawn().unwrap();
    let held = fs::File::options().write(true).open(&pipe).unwrap();
    let refused = RealDisk.lock(&store.join("lock")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command goes on"), "{said}");
    drop(held);
    assert!(RealDisk.lock(&store.join("lock")).is_ok());
}
