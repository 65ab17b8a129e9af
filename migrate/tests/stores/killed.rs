//! Runs that are killed and gone on with: the result is the same, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{Unpacked, tree};

/// Everything but the report, which tells times.
fn result(root: &Path) -> BTreeMap<PathBuf, (u64, u32)> {
    let is_report = |path: &Path| {
        path.extension()
            .is_some_and(|of| of == "html" || of == "json")
    };
    tree(root)
        .into_iter()
        .filter(|(path, _)| !(path.parent() == Some(Path::new("")) && is_report(path)))
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

fn kill_at_many_points(archive: &str, name: &str, points: u32) {
    let Some(unpacked) = Unpacked::new(archive, |store| store == name) else {
        return;
    };
    let store = unpacked.store(name);
    // Large and all zero: they would take most of the time.
    for large in ["timerlog", "timerwheel"] {
        let path = store.join(large);
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.ok();
    }
    let before = tree(&store);
    let mut args = unpacked.args(name);
    args.extend(["--mode".to_owned(), "copy".to_owned()]);
    let target = unpacked.target();
    let begun = Instant::now();
    finish(&args);
    let whole = begun.elapsed();
    let expected = result(&target);
    fs::remove_dir_all(&target).unwrap();

    let mut state = u64::from(std::process::id());
    let mut interrupted = 0;
    for point in 0..points {
        // Three kills in a row at most, then it may go on to its end.
        for _ in 0..=point % 3 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let part = Duration::from_micros(whole.as_micros() as u64 * (state >> 44) / (1 << 20));
            let mut child = start(&args);
            std::thread::sleep(part);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        interrupted += u32::from(!target.try_exists().unwrap());
        finish(&args);
        let found = result(&target);
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (path, content) in found {
            assert_eq!(content, expected[&path], "{}", path.display());
        }
        let left: Vec<_> = fs::read_dir(unpacked.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains(".partial-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        fs::remove_dir_all(&target).unwrap();
    }
    assert_eq!(tree(&store), before, "the source has changed");
    assert!(interrupted > points / 3, "{interrupted} of {points}");
    println!("{archive}/{name}: {interrupted} of {points} runs were killed before their end");
}

#[test]
fn taking_over_goes_on_after_a_kill_anywhere() {
    kill_at_many_points("classic-5.5.0-v2", "broker-a", 100);
}

#[test]
fn building_queues_anew_goes_on_after_a_kill_anywhere() {
    kill_at_many_points("classic-4.9.7-crash", "broker-a.no_cq", 10);
}

#[test]
fn writing_a_dledger_log_anew_goes_on_after_a_kill_anywhere() {
    kill_at_many_points("dledger-4.9.7", "n0", 10);
}
