//! What an operator meets at the start and at the end: bad files, taken ports and stores, `up`, drain.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use jepsen::cluster::Options;
use tempfile::TempDir;

use crate::support::{Running, free_port, rmq, text};

/// Exit code for wrong configuration (`EX_CONFIG` of `sysexits.h`).
const EX_CONFIG: i32 = 78;

/// A single broker with this properties file; it must end by itself.
fn broker(dir: &Path, properties: &str) -> Output {
    let conf = dir.join("broker.conf");
    fs::write(&conf, properties).unwrap();
    Command::new(rmq())
        .args(["broker", "-c"])
        .arg(conf)
        .output()
        .unwrap()
}

fn properties(store: &Path, port: u16) -> String {
    format!(
        "brokerIP1=127.0.0.1\nbindAddress=127.0.0.1\nlistenPort={port}\nstorePathRootDir={}\n\
         namesrvAddr=127.0.0.1:1\n",
        store.display()
    )
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_a_suggestion() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let output = broker(
        dir.path(),
        &(properties(&store, free_port()) + "brokerIp2=1.2.3.4\n"),
    );
    assert_eq!(output.status.code(), Some(EX_CONFIG));
    let said = text(&output);
    assert!(
        said.contains("broker.conf:6") && said.contains("brokerIP2"),
        "{said}"
    );
    assert!(
        !store.try_exists().unwrap(),
        "a refused start must touch nothing"
    );
}

#[test]
fn check_judges_a_file_and_starts_nothing() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let conf = dir.path().join("broker.conf");
    fs::write(&conf, properties(&store, free_port())).unwrap();
    let judged = |log: &str| {
        Command::new(rmq())
            .args(["broker", "--check", "-c"])
            .arg(&conf)
            .env("RMQ_LOG", log)
            .output()
            .unwrap()
    };
    let good = judged("debug");
    assert!(good.status.success(), "{}", text(&good));
    let bad = judged("info,rmq=loud");
    assert_eq!(bad.status.code(), Some(EX_CONFIG));
    assert!(text(&bad).contains("RMQ_LOG=info,rmq=loud"));
    assert!(!store.try_exists().unwrap());
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    let dir = TempDir::new().unwrap();
    let port = free_port();
    let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let output = broker(dir.path(), &properties(&dir.path().join("store"), port));
    assert!(!output.status.success());
    let said = text(&output);
    let holder = format!("process {}", std::process::id());
    assert!(
        said.contains(&port.to_string()) && said.contains(&holder),
        "{said}"
    );
}

#[test]
fn a_second_process_on_a_store_is_refused_and_harms_nothing() {
    let group = Running::start(&Options {
        nodes: 1,
        ..Options::default()
    });
    let dir = TempDir::new().unwrap();
    let output = broker(
        dir.path(),
        &properties(&group.nodes()[0].store, free_port()),
    );
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("Lock failed, MQ already started"), "{said}");
    assert!(group.pid(0).is_some() && group.leader().is_ok());
}

#[test]
fn an_unwritable_directory_is_one_clear_line() {
    let dir = TempDir::new().unwrap();
    // A file where the directory should be refuses everybody, root too.
    let store = dir.path().join("store");
    fs::write(&store, "in the way").unwrap();
    let output = broker(dir.path(), &properties(&store, free_port()));
    assert!(!output.status.success());
    let said = text(&output);
    let named = said
        .lines()
        .filter(|l| l.contains("error: "))
        .collect::<Vec<_>>();
    assert!(
        named.len() == 1 && named[0].contains(&store.display().to_string()),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&store).unwrap(), "in the way");
}

#[test]
fn sigterm_drains_every_node_and_exits_with_zero() {
    let mut group = Running::start(&Options::default());
    for node in 0..3 {
        assert!(group.cluster().stop(node).unwrap(), "node {node}");
        let log = fs::read_to_string(group.nodes()[node].store.with_extension("log")).unwrap();
        let after = &log[log.find("asked to stop").expect("it tells of the stop")..];
        assert!(!after.contains("ERROR"), "{after}");
    }
}
