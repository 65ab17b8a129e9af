//! What is odd about a source and in nobody's way.

use std::fs;

use rmq_migrate::{Code, Report, check, run};

use crate::fixture::Unpacked;
use crate::problems::{quiet, rollback};

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

#[test]
fn symbolic_links_are_followed() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b") else {
        return;
    };
    let (store, target) = (unpacked.store("broker-b"), unpacked.target());
    let elsewhere = unpacked.dir.path().join("elsewhere");
    fs::create_dir_all(&elsewhere).unwrap();
    let segment = "commitlog/00000000000000000000";
    let topics = fs::read(store.join("config/topics.json")).unwrap();
    for (nth, name) in [segment, "config/topics.json", "config"].iter().enumerate() {
        let moved = elsewhere.join(nth.to_string());
        fs::rename(store.join(name), &moved).unwrap();
        std::os::unix::fs::symlink(moved, store.join(name)).unwrap();
    }
    run(
        &unpacked.options("broker-b", &["--verify", "full"]),
        &quiet(),
    )
    .unwrap();
    let taken = fs::symlink_metadata(target.join(segment)).unwrap();
    assert!(taken.is_file() && taken.len() == 1 << 20, "{taken:?}");
    assert_eq!(
        fs::read(target.join("adopted/config/topics.json")).unwrap(),
        topics
    );
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
    let [one, two] = dirs.each_ref().map(|dir| dir.display());
    let both = format!(
        "{text}\nstorePathCommitLog={one},{two}\nreadOnlyCommitLogStorePaths={one}/../one\n"
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
    let written = fs::read_to_string(&report.conf_files[0]).unwrap();
    assert!(
        !written.contains("\nreadOnlyCommitLogStorePaths"),
        "{written}"
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
