//! Runs that are killed and gone on with: the result is the same, byte for byte. `KILLS=100` kills each
//! kind of run at a hundred points.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::archive::tree;
use crate::fixture::Unpacked;

/// Kills of each kind of run without `KILLS`.
const FEW: u32 = 8;

/// Everything but the report, which tells times.
fn result(root: &Path) -> BTreeMap<PathBuf, (u64, u32)> {
    let is_report = |path: &Path| {
        path.extension()
            .is_some_and(|of| of == "html" || of == "json")
    };
    // An empty file for entries to come, which the log makes ahead when it comes to it.
    let is_ahead = |path: &Path| path.parent() == Some(Path::new("raftindex"));
    tree(root)
        .into_iter()
        .filter(|(path, _)| !(path.parent() == Some(Path::new("")) && is_report(path)))
        .filter(|(path, _)| !is_ahead(path))
        .map(|(path, (bytes, crc, _))| (path, (bytes, crc)))
        .collect()
}

fn start(args: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rmq-migrate"))
        .args(&args[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(args: &[String]) {
    let output = start(args).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
}

/// kill -9 after a time; false if the run had ended by then.
fn kill_after(args: &[String], time: Duration) -> bool {
    let mut child = start(args);
    std::thread::sleep(time);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().ok();
    child.wait().unwrap();
    !ended
}

/// How far a run has come, by what it has left.
fn stage(dir: &Path, target: &Path) -> &'static str {
    let partial = partials(dir).pop();
    let Some(partial) = partial else {
        return match target.try_exists().unwrap() {
            true => "8 renamed",
            false => "0 nothing written",
        };
    };
    let has = |name: &str| partial.join(name).try_exists().unwrap();
    [
        ("conf", "7 result checked"),
        ("raftindex", "6 queues and index built"),
        ("genesis", "5 genesis written"),
        ("adopted/config", "4 the rest kept"),
        ("consumequeue", "3 queues taken over"),
        ("commitlog", "2 log taken over"),
    ]
    .into_iter()
    .find(|(name, _)| has(name))
    .map_or("1 begun", |(_, stage)| stage)
}

fn partials(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_partial = |path: &PathBuf| path.to_str().unwrap().contains(".partial-");
    names.filter(is_partial).collect()
}

/// A migration of a store of an archive.
fn kill_migrations(archive: &str, name: &str, more: &[&str]) {
    let Some(unpacked) = Unpacked::new(archive, |store| store == name) else {
        return;
    };
    let mut args = unpacked.args(name);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    let shown = format!("{archive}/{name} {more:?}");
    kill_at_many_points(&shown, &args, &unpacked.store(name), &unpacked.target());
}

/// Runs a command that makes `target` from `store`, is killed, and run again.
fn kill_at_many_points(shown: &str, args: &[String], store: &Path, target: &Path) {
    let points = std::env::var("KILLS").map_or(FEW, |kills| kills.parse().unwrap());
    let before = tree(store);
    let dir = target.parent().unwrap();
    let begun = Instant::now();
    finish(args);
    let mut whole = begun.elapsed();
    let expected = result(target);
    fs::remove_dir_all(target).unwrap();

    let mut state = u64::from(std::process::id());
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(state >> 32).unwrap()) / f64::from(u32::MAX)
    };
    let mut stages: BTreeMap<&str, u32> = BTreeMap::new();
    for point in 0..points {
        // Spread over all of the run's time, at random within each part of it.
        let part = (f64::from(point) + random()) / f64::from(points);
        while !kill_after(args, whole.mul_f64(part)) {
            // It was measured when the machine was busier.
            fs::remove_dir_all(target).unwrap();
            whole = whole.mul_f64(0.8);
        }
        *stages.entry(stage(dir, target)).or_default() += 1;
        // What goes on may be killed as well.
        if point % 3 == 0 {
            kill_after(args, whole.mul_f64(random()));
        }
        if !target.try_exists().unwrap() {
            finish(args);
        }
        let found = result(target);
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (path, content) in found {
            assert_eq!(content, expected[&path], "{}", path.display());
        }
        assert!(partials(dir).is_empty());
        fs::remove_dir_all(target).unwrap();
    }
    assert!(tree(store) == before, "the source has changed");
    println!("{shown}: {points} kills, by stage {stages:?}");
}

#[test]
fn linking_goes_on_after_a_kill_anywhere() {
    kill_migrations("classic-4.9.7-clean", "broker-b", &[]);
}

#[test]
fn copying_goes_on_after_a_kill_anywhere() {
    let more = ["--mode", "copy", "--verify", "full"];
    kill_migrations("classic-4.9.7-clean", "broker-b", &more);
}

#[test]
fn building_queues_anew_goes_on_after_a_kill_anywhere() {
    kill_migrations("classic-4.9.7-crash", "broker-a.no_cq", &[]);
}

#[test]
fn writing_a_dledger_log_anew_goes_on_after_a_kill_anywhere() {
    kill_migrations("dledger-4.9.7", "n0", &[]);
}

#[test]
fn coming_back_begins_anew_after_a_kill_anywhere() {
    let Some(unpacked) = Unpacked::new("classic-4.9.7-clean", |store| store == "broker-b") else {
        return;
    };
    finish(&unpacked.args("broker-b"));
    let (node, back) = (unpacked.target(), unpacked.dir.path().join("back"));
    let mut args = unpacked.args("broker-b");
    args[2] = node.to_str().unwrap().to_owned();
    args[4] = back.to_str().unwrap().to_owned();
    args[6] = node.join("conf/broker.conf").to_str().unwrap().to_owned();
    args.extend(["--reverse", "--accept-unconfirmed"].map(str::to_owned));
    kill_at_many_points("the way back", &args, &node, &back);
}
