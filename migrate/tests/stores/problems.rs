//! What is in the way of a migration: each has its code, and does no harm.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use clap::Parser as _;
use rmq_migrate::{Code, Options, Problem, Progress, Report, Style, check, run};
use rmq_store::{
    Batch, Disk as _, EntryId, EntryKind, LogIndex, NewEntry, RealDisk, StoreConfig, Term,
};

use crate::fixture::{Unpacked, tree};

fn quiet() -> Progress {
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
    let unchanged = |(path, (bytes, crc, _)): (&std::path::PathBuf, &(u64, u32, i64))| {
        (path.clone(), *bytes, *crc)
    };
    assert!(
        tree(&store)
            .iter()
            .map(unchanged)
            .eq(before.iter().map(unchanged))
    );
}

fn rollback(unpacked: &Unpacked) {
    let output = Command::new(env!("CARGO_BIN_EXE_rmq-migrate"))
        .args(["--rollback", "--to"])
        .arg(unpacked.target())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
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
    let range = rmq_store::last_record(&bytes[..end], rmq_store::PhyOffset(base), false).unwrap();
    bytes[range].fill(0);
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
fn a_store_that_a_group_has_written_to_is_not_rolled_back() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b-s") else {
        return;
    };
    let target = unpacked.target();
    let config = StoreConfig {
        consume_queue_file_bytes: 6000,
        index_slots: 1000,
        index_entries: 4000,
        max_message_bytes: 512 * 1024,
        segment_bytes: 1 << 20,
        ..StoreConfig::new(&target)
    };
    // A group writes its members and a blank when it starts, and purges the first entry.
    let started = |with_messages: bool| {
        run(&unpacked.options("broker-b-s", &[]), &quiet()).unwrap();
        let mut store = rmq_store::open(&config, Arc::new(RealDisk)).unwrap();
        fs::write(target.join("raft.identity"), "").unwrap();
        let id = |index| EntryId {
            term: Term(1),
            node: 1,
            index: LogIndex(index),
        };
        let mut append = |index, kind, batch| {
            let entry = NewEntry::Unsealed {
                id: id(index),
                kind,
                meta: Default::default(),
                batch,
            };
            store.log.append(vec![entry]).unwrap();
        };
        append(0, EntryKind::Membership, None);
        append(1, EntryKind::Blank, None);
        if with_messages {
            append(2, EntryKind::Messages, Some(Batch::new(Vec::new())));
        }
        store.log.purge(id(0)).unwrap();
        store.queues.stop().unwrap();
        store.log.close().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_rmq-migrate"))
            .args(["--rollback", "--to"])
            .arg(&target)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let (exit, said) = started(false);
    assert_eq!(exit, Some(0), "{said}");
    assert!(!target.try_exists().unwrap());
    let (exit, said) = started(true);
    assert_eq!(exit, Some(3), "{said}");
    assert!(said.contains("has accepted messages"), "{said}");
    assert!(target.join("genesis").try_exists().unwrap());
}

/// A target that fills up, in a name space of its own where this may mount one.
#[test]
fn a_full_target_is_gone_on_from_when_there_is_room() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b-s") else {
        return;
    };
    let disk = unpacked.dir.path().join("disk");
    fs::create_dir_all(&disk).unwrap();
    let mut args = unpacked.args("broker-b-s");
    args[0] = env!("CARGO_BIN_EXE_rmq-migrate").to_owned();
    args[4] = disk.join("migrated").to_str().unwrap().to_owned();
    let command: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let (command, disk) = (command.join(" "), disk.display());
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs '{disk}' || exit 99\n{command}; echo small $?\n\
         ls '{disk}' | wc -l\n\
         mount -o remount,size=300m,nr_inodes=60 '{disk}' || exit 99\n{command}; echo full $?\n\
         mount -o remount,nr_inodes=0 '{disk}' || exit 99\n{command}; echo room $?\nls '{disk}'"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script])
        .output()
        .unwrap();
    if output.status.code() == Some(99) || output.stdout.is_empty() {
        println!("skipped: nothing may be mounted here");
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    for exit in ["small 75\n0", "full 75", "room 0", "\nmigrated\n"] {
        assert!(said.contains(exit), "{exit}: {said}{errors}");
    }
    assert_eq!(errors.matches("E-303").count(), 2, "{errors}");
}

fn codes(report: &Report) -> Vec<Code> {
    report.warnings.iter().map(|note| note.code).collect()
}

#[test]
fn what_is_odd_is_told_and_taken_over_or_left_alone() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b") else {
        return;
    };
    let store = unpacked.store("broker-b");
    let plain = unpacked.options("broker-b", &[]);
    let looked = check(&plain, &quiet()).unwrap();
    assert!(looked.blockers.is_empty());
    let estimate = looked.estimate.unwrap();
    assert!(estimate.bytes_per_second > 0 && estimate.seconds > 0);
    // A group that is ahead of its queue; and the place that the archive's properties name.
    assert_eq!(codes(&looked), [Code::Conf, Code::OffsetBeyondEnd]);

    let foreign = [
        "notes.txt",
        "consumequeue/TopicBatch/old",
        "consumequeue/notes.txt",
    ];
    for name in foreign {
        fs::write(store.join(name), "mine").unwrap();
    }
    let nowhere = unpacked.dir.path().join("config");
    fs::create_dir_all(&nowhere).unwrap();
    let bare = ["--config-from", nowhere.to_str().unwrap()];
    let report = run(&unpacked.options("broker-b", &bare), &quiet()).unwrap();
    let told: Vec<_> = report
        .warnings
        .iter()
        .filter(|note| note.code == Code::ForeignFile)
        .map(|note| note.path.clone().unwrap())
        .collect();
    assert_eq!(told, foreign.map(|name| store.join(name)));
    assert!(
        codes(&report).contains(&Code::Metadata),
        "{:?}",
        report.warnings
    );
    for name in foreign {
        assert!(
            !unpacked.target().join(name).try_exists().unwrap(),
            "{name}"
        );
        assert_eq!(fs::read(store.join(name)).unwrap(), b"mine");
    }
}

/// A commit log in two directories, and the properties that a published group was made with.
#[test]
fn properties_as_operators_have_them_are_understood() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b") else {
        return;
    };
    let store = unpacked.store("broker-b");
    let before = check(&unpacked.options("broker-b", &[]), &quiet()).unwrap();
    let dirs = ["one", "two"].map(|name| unpacked.dir.path().join(name));
    for (nth, entry) in fs::read_dir(store.join("commitlog")).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::create_dir_all(&dirs[nth % 2]).unwrap();
        fs::rename(entry.path(), dirs[nth % 2].join(entry.file_name())).unwrap();
    }
    fs::remove_dir(store.join("commitlog")).unwrap();
    let text = fs::read_to_string(unpacked.conf("broker-b")).unwrap();
    let both = format!(
        "{text}\nstorePathCommitLog={},{}\n",
        dirs[0].display(),
        dirs[1].display()
    );
    fs::write(unpacked.conf("broker-b"), both).unwrap();
    let report = run(
        &unpacked.options("broker-b", &["--verify", "full"]),
        &quiet(),
    )
    .unwrap();
    assert_eq!(
        (report.log.end, report.segments),
        (before.log.end, before.segments)
    );
    rollback(&unpacked);

    // The path of the history that was left behind is on another machine here.
    let published = unpacked.archive.join("../conf/dledger/broker-n0.conf");
    fs::create_dir_all(store.join("commitlog")).unwrap();
    for dir in dirs {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            fs::rename(
                entry.path(),
                store.join("commitlog").join(entry.file_name()),
            )
            .unwrap();
        }
    }
    let sizes = text.lines().filter(|line| line.starts_with("max"));
    let sizes: Vec<&str> = sizes.collect();
    let mixed = fs::read_to_string(published).unwrap() + "\n" + &sizes.join("\n");
    fs::write(unpacked.conf("broker-b"), mixed).unwrap();
    let report = run(&unpacked.options("broker-b", &[]), &quiet()).unwrap();
    assert!(
        codes(&report).contains(&Code::Conf),
        "{:?}",
        report.warnings
    );
    assert_eq!(report.conf_files.len(), 3);
    let text = fs::read_to_string(&report.conf_files[1]).unwrap();
    let said = |key: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| line.split_once('=').filter(|(of, _)| *of == key));
        values
            .map(|(_, value)| value.to_owned())
            .collect::<Vec<_>>()
    };
    let root = unpacked.target().display().to_string();
    for (key, values) in [
        ("storePathRootDir", vec![&*root]),
        ("storePathCommitLog", vec![]),
        ("brokerRole", vec![]),
        ("brokerName", vec!["broker-a"]),
        ("brokerIP1", vec!["10.0.0.11"]),
        ("dLegerSelfId", vec!["n1"]),
        ("fileReservedTime", vec!["48"]),
        ("mappedFileSizeCommitLog", vec!["1048576"]),
    ] {
        assert_eq!(said(key), values, "{key} in {text}");
    }
    assert!(text.contains("#storePathCommitLog=/opt/rocketmq/store/commitlog\n# ^ rmq-migrate:"));
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
    fs::rename(dir.join("index"), dir.join("aside")).unwrap();
    assert_refused(&unpacked, &options, Code::BadEntry);
}

#[test]
fn links_to_another_file_system_are_refused_or_copied() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b-s") else {
        return;
    };
    let elsewhere = tempfile::tempdir_in("/dev/shm");
    let dev = |path: &Path| fs::metadata(path).unwrap().dev();
    let other = elsewhere
        .ok()
        .filter(|dir| dev(dir.path()) != dev(unpacked.dir.path()));
    let Some(elsewhere) = other else {
        println!("skipped: /dev/shm is no other file system");
        return;
    };
    let to = elsewhere.path().join("migrated");
    let mut args = unpacked.args("broker-b-s");
    args[4] = to.to_str().unwrap().to_owned();
    let link = args.iter().map(String::as_str).chain(["--mode", "link"]);
    // It holds one segment, which is copied; a queue file is what cannot be linked.
    let problem = run(&Options::parse_from(link), &quiet()).unwrap_err();
    assert_eq!((problem.code, problem.exit_code()), (Code::Write, 1));
    assert!(problem.hint.contains("--mode copy"), "{problem}");
    fs::remove_dir_all(elsewhere.path()).unwrap();
    fs::create_dir_all(elsewhere.path()).unwrap();
    let report = run(&Options::parse_from(args), &quiet()).unwrap();
    assert_eq!(report.files.linked_files + report.files.reflinked_files, 0);
    assert!(report.files.copied_files > 50);
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
