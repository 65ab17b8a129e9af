//! Histories made by hand, each with one thing wrong, and the checker that has to see it.
#![expect(
    clippy::unwrap_used,
    reason = "what fails here is a broken file of this repository"
)]

use std::fs;
use std::path::PathBuf;

use jepsen::check::{CHECKERS, judge, void};
use jepsen::history::History;
use jepsen::record;

fn golden() -> Vec<(String, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        all.push((name, fs::read_to_string(path).unwrap()));
    }
    assert!(all.len() > 20, "{} histories", all.len());
    all
}

/// The checker that a history names.
fn rejected_by(text: &str) -> &str {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("; rejected by: "));
    line.expect("a line that says which checker rejects it")
}

fn read(text: &str) -> History {
    record::read(text).unwrap()
}

#[test]
fn each_bad_history_is_rejected_by_its_checker_and_the_good_one_by_none() {
    for (name, text) in golden() {
        let (by, history) = (rejected_by(&text), read(&text));
        let (wrong, void) = (judge(&history, &CHECKERS), void(&history));
        match by {
            "nothing" => assert_eq!((wrong, void), (Vec::new(), Vec::new()), "{name}"),
            "void" => {
                assert_eq!(wrong, Vec::<String>::new(), "{name}");
                assert_eq!(void.len(), 1, "{name}: {void:?}");
            }
            _ => assert!(
                wrong
                    .iter()
                    .any(|line| line.starts_with(&format!("{by}: "))),
                "{name}: {by} said nothing, but: {wrong:#?}"
            ),
        }
    }
}

#[test]
fn every_checker_has_a_bad_history() {
    let golden = golden();
    for (name, _) in CHECKERS {
        let has = golden.iter().any(|(_, text)| rejected_by(text) == name);
        assert!(has, "{name}");
    }
}

/// Checkers that were fed less than there was would pass for nothing: each line of the good history that tells
/// what was found is missed.
#[test]
fn a_history_that_lacks_a_message_is_rejected() {
    let (_, good) = golden()
        .into_iter()
        .find(|(name, _)| name == "good")
        .unwrap();
    let whole = read(&good);
    for queue in whole.found.keys() {
        for n in 0..whole.found[queue].len() {
            let mut history = read(&good);
            history.found.get_mut(queue).unwrap().remove(n);
            assert!(
                !judge(&history, &CHECKERS).is_empty(),
                "{queue}: message {n}"
            );
        }
    }
}
