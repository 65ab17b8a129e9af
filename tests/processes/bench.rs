//! `rmq bench` against a real group.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Running, rmq, text, until};

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
    let leader = group.leading();
    let pid = group.cluster().pid(leader).unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (produced, read) = (dir.path().join("produced"), dir.path().join("read"));
    let (produced_path, read_path) = (produced.to_str().unwrap(), read.to_str().unwrap());
    let count = COUNT.to_string();
    // Another topic each time that an election came in between.
    let mut topics = (0..).map(|n| format!("load{n}"));

    let topic = until("every send is acknowledged", || {
        let topic = topics.next()?;
        let mut arguments = vec!["produce", "-t", &topic, "--queues", "3", "-s", "100"];
        arguments.extend(["--warmup", "0", "--count", &count, "-c", "2", "-i", "8"]);
        arguments.extend(["--pid", &pid, "--json", produced_path]);
        let said = succeeds(&namesrv, &arguments)?;
        assert!(said.contains("per million messages"), "{said}");
        let found = json(&produced);
        assert_eq!(found["sent"]["messages"], COUNT, "{found}");
        assert!(found["sent"]["latency_ms"]["p99"].as_f64() > Some(0.0));
        (found["sent"]["failed"] == 0).then_some(topic)
    });

    // Large ones, of which few fit what is made before it is written.
    until("every large send is acknowledged", || {
        let topic = topics.next()?;
        let mut arguments = vec!["produce", "-t", &topic, "-s", "262144", "-i", "64"];
        arguments.extend(["--warmup", "0", "--count", "100", "--json", read_path]);
        succeeds(&namesrv, &arguments)?;
        let sent = &json(&read)["sent"];
        (sent["messages"] == 100 && sent["failed"] == 0).then_some(())
    });

    until("every message is read", || {
        let consume = ["consume", "-t", &topic, "-c", "2", "--json", read_path];
        succeeds(&namesrv, &consume)?;
        is_all(&json(&read)["received"]["messages"])
    });

    // Batches, a rate, and what is read at once; beside an earlier run.
    let said = until("every message is read at once", || {
        let topic = topics.next()?;
        let mut arguments = vec!["end-to-end", "-t", &topic, "--batch", "5", "--rate", "1000"];
        arguments.extend(["--warmup", "0", "--count", &count, "--json", read_path]);
        arguments.extend(["--compare", produced_path]);
        let said = succeeds(&namesrv, &arguments)?;
        let found = json(&read);
        assert_eq!(found["sent"]["messages"], COUNT, "{found}");
        is_all(&found["received"]["messages"]).map(|()| said)
    });
    assert!(said.contains("now / before") && said.contains("the runs differ"));
}

/// What a run prints; none where it fails, as while nobody leads.
fn succeeds(namesrv: &str, arguments: &[&str]) -> Option<String> {
    let output = bench(namesrv, arguments);
    if !output.status.success() {
        eprintln!("{}", text(&output));
    }
    output.status.success().then(|| text(&output))
}

/// Fewer may have been read on a slow machine, but never more than there are.
fn is_all(messages: &Value) -> Option<()> {
    let messages = messages.as_u64().unwrap();
    assert!(messages <= COUNT, "{messages}");
    (messages == COUNT).then_some(())
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
