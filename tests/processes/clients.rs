//! Ordinary applications on unmodified clients against a three-node group. The applications are under
//! `tests/clients`, and each checks its own result.

use std::process::Command;

use jepsen::cluster::Options;
use tempfile::TempDir;

use crate::support::{JavaServer, Line, Running, java, real_clients, text};

/// Producers are asked for their transactions soon.
const SOON: &str = "transactionTimeOut=1000\ntransactionCheckInterval=1000\n";

/// Runs every flow of the Java client of `line` against a group that knows `namesrv`.
fn java_flows(line: Line, java_namesrv: bool) {
    let Some(cache) = real_clients() else { return };
    let namesrv = java_namesrv.then(|| JavaServer::namesrv(cache, line));
    let options = Options {
        namesrv: namesrv.as_ref().map(|n| n.address),
        more: SOON.to_owned(),
        ..Options::default()
    };
    let group = Running::start(&options);
    let home = TempDir::new().unwrap();
    let output = java(cache, line, home.path(), "Clients")
        .arg(group.namesrv.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn java_client_4_9_with_our_name_server() {
    java_flows(Line::V49, false);
}

#[test]
fn java_client_5_5_with_our_name_server() {
    java_flows(Line::V55, false);
}

#[test]
fn java_client_4_9_with_the_java_name_server() {
    java_flows(Line::V49, true);
}

#[test]
fn java_client_5_5_with_the_java_name_server() {
    java_flows(Line::V55, true);
}

/// Runs every flow of the Go client against a group that knows our name server or a Java one.
fn go_flows(java_namesrv: Option<Line>) {
    let Some(cache) = real_clients() else { return };
    let namesrv = java_namesrv.map(|line| JavaServer::namesrv(cache, line));
    let group = Running::start(&Options {
        namesrv: namesrv.as_ref().map(|n| n.address),
        more: SOON.to_owned(),
        ..Options::default()
    });
    let leader = group.leading();
    let output = Command::new(cache.join("goclients"))
        .arg(group.namesrv.to_string())
        .env("RMQ_BROKER_ADDR", group.addresses()[leader].to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn go_client_with_our_name_server() {
    go_flows(None);
}

#[test]
fn go_client_with_the_java_name_server() {
    go_flows(Some(Line::V49));
}

#[test]
fn java_client_with_a_single_broker() {
    let Some(cache) = real_clients() else { return };
    let single = Running::start(&Options {
        nodes: 1,
        ..Options::default()
    });
    let home = TempDir::new().unwrap();
    let output = java(cache, Line::V49, home.path(), "Clients")
        .arg(single.namesrv.to_string())
        .args(["sync", "batch", "pull", "tags", "query"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}
