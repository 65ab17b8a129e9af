//! Targets that a run cannot write to, or that are used by now.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use clap::Parser as _;
use rmq_migrate::{Code, Options, run};
use rmq_store::{Batch, EntryId, EntryKind, LogIndex, NewEntry, RealDisk, StoreConfig, Term};

use crate::fixture::Unpacked;
use crate::problems::quiet;

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
