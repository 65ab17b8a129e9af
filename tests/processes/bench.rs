//! `rmq bench` against a real group.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Running, rmq, text};

const COUNT: u64 = 500;

fn bench(namesrv: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(rmq());
    command.args(["bench", "-n", namesrv]).args(arguments);
    command.output().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_bench_sends_it_reads_and_every_message_is_counted() {
    let mut group = Running::start(&Default::default());
    let namesrv = group.namesrv.to_string();
    let leader = group.leader().unwrap();
    let pid = group.cluster().pid(leader).unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (produced, read) = (dir.path().join("produced"), dir.path().join("read"));
    let count = COUNT.to_string();

    let mut arguments = vec!["produce", "-t", "load", "--queues", "3", "-s", "100"];
    arguments.extend(["--warmup", "0", "--count", &count, "-c", "2", "-i", "8"]);
    arguments.extend(["--pid", &pid, "--json", produced.to_str().unwrap()]);
    let output = bench(&namesrv, &arguments);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("per million messages"));
    let found = json(&produced);
    assert_eq!(found["sent"]["messages"], COUNT, "{found}");
    assert_eq!(found["sent"]["failed"], 0, "{found}");
    assert!(found["sent"]["latency_ms"]["p99"].as_f64() > Some(0.0));

    let read_path = read.to_str().unwrap();
    let consume = ["consume", "-t", "load", "-c", "2", "--json", read_path];
    let output = bench(&namesrv, &consume);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(json(&read)["received"]["messages"], COUNT);

    // Batches, a rate, and what is read at once; beside an earlier run.
    let mut arguments = vec!["end-to-end", "-t", "load", "--batch", "5", "--rate", "1000"];
    arguments.extend(["--warmup", "0", "--count", &count, "--json", read_path]);
    arguments.extend(["--compare", produced.to_str().unwrap()]);
    let output = bench(&namesrv, &arguments);
    assert!(output.status.success(), "{}", text(&output));
    let found = json(&read);
    assert_eq!(found["sent"]["messages"], COUNT, "{found}");
    assert_eq!(found["received"]["messages"], COUNT, "{found}");
    let said = text(&output);
    assert!(said.contains("now / before") && said.contains("the runs differ"));
}

#[test]
fn bench_says_what_it_cannot_do() {
    let output = bench("127.0.0.1:1", &["produce"]);
    assert!(!output.status.success());
    assert!(
        text(&output).contains("connect to 127.0.0.1:1"),
        "{output:?}"
    );
    for (arguments, words) in [
        (["produce", "--rate", "0"], "--rate 0: a number above 0"),
        (
            ["end-to-end", "--size", "8"],
            "--size 8: end-to-end needs 16",
        ),
        (["produce", "--size", "99999999"], "a request takes"),
    ] {
        let output = bench("127.0.0.1:1", &arguments);
        assert!(!output.status.success());
        assert!(text(&output).contains(words), "{output:?}");
    }
}
