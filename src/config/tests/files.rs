//! Files of published deployments, and those that come with rmq.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Files, write_segment};
use crate::config::*;

/// The files of published deployments; `None`, said aloud, where they are not there.
fn fixtures() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/conf");
    if dir.is_dir() {
        return Some(dir);
    }
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{} is not there",
        dir.display()
    );
    eprintln!("skipped: {} is not there", dir.display());
    None
}

/// Loads one of them with the paths of its deployment moved into `root`.
fn load_fixture(
    dir: &Path,
    name: &str,
    root: &Files,
) -> (Result<Loaded<BrokerConfig>, Report>, String) {
    let conf = fs::read_to_string(dir.join(name)).unwrap();
    let moved = conf.replace("/opt/rocketmq", root.dir.path().to_str().unwrap());
    let moved = moved.replace("/usr/local/rocketmq", root.dir.path().to_str().unwrap());
    fs::write(root.path("broker.conf"), moved).unwrap();
    let result = load_broker(&root.sources());
    let text = match &result {
        Ok(loaded) => root.text(&loaded.report),
        Err(report) => root.text(report),
    };
    (result, text)
}

#[test]
fn the_masters_of_a_published_deployment_load() {
    let Some(dir) = fixtures() else { return };
    for name in ["broker-a", "broker-b"] {
        let files = Files::new("");
        let (result, text) = load_fixture(&dir, &format!("2m-2s-sync/{name}.properties"), &files);
        let config = result.unwrap().config;
        assert_eq!(config.broker_name, name);
        assert_eq!(config.flush_disk_type, FlushDiskType::SyncFlush);
        assert_eq!(config.mapped_file_size_commit_log, 1 << 30);
        assert_eq!(config.mapped_file_size_consume_queue, 6_000_000);
        assert_eq!(config.namesrv_addr.len(), 2);
        let keys = [
            "mapedFileSizeCommitLog",
            "mapedFileSizeConsumeQueue",
            "storePathConsumeQueue",
            "storePathIndex",
            "storeCheckpoint",
            "abortFile",
            "brokerRole=SYNC_MASTER",
        ];
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), keys.len(), "{text}");
        for (line, key) in lines.iter().zip(keys) {
            assert!(line.contains(&format!("warning: {key}")), "{key}: {line}");
        }
    }
}

#[test]
fn the_slaves_of_a_published_deployment_are_refused_with_the_way_to_a_group() {
    let Some(dir) = fixtures() else { return };
    for name in ["broker-a-s", "broker-b-s"] {
        let files = Files::new("");
        let (result, text) = load_fixture(&dir, &format!("2m-2s-sync/{name}.properties"), &files);
        assert_eq!(result.unwrap_err().errors(), 1, "{text}");
        assert!(
            text.contains("broker.conf:29: error: brokerRole=SLAVE"),
            "{text}"
        );
        assert!(text.contains("dLegerPeers=n0-host:port"), "{text}");
    }
}

#[test]
fn the_files_of_a_published_upgrade_start_with_warnings_or_are_refused_with_the_command() {
    let Some(dir) = fixtures() else { return };
    for (i, root_lines, log_line) in [(0, (10, 16), 11), (1, (11, 17), 12), (2, (11, 17), 12)] {
        let name = format!("dledger/broker-n{i}.conf");
        let files = Files::new("");
        let (result, text) = load_fixture(&dir, &name, &files);
        let config = result.unwrap().config;
        assert_eq!(config.broker_name, "broker-a");
        assert_eq!(config.self_peer().unwrap().number(), i);
        assert_eq!(
            config.store_path_root_dir,
            files.path("store/dledger_store")
        );
        let (first, second) = root_lines;
        for want in [
            format!(
                "broker.conf:{first}: warning: storePathRootDir is given again in line {second}"
            ),
            format!(
                "storePathCommitLog (broker.conf:{log_line}) lies outside storePathRootDir (broker.conf:{second})"
            ),
            "warning: brokerRole has no effect here".to_owned(),
            "warning: brokerId has no effect here".to_owned(),
        ] {
            assert!(text.contains(&want), "{want}\n{text}");
        }

        write_segment(&files.path("store/commitlog"), 4096);
        let (result, text) = load_fixture(&dir, &name, &files);
        assert_eq!(result.unwrap_err().errors(), 1, "{text}");
        let command = "rmq-migrate --from store --to store/dledger_store";
        assert!(text.contains(command), "{text}");
    }
}

/// All files under a directory.
fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_under(&path))
        } else {
            files.push(path)
        }
    }
    files
}

#[test]
fn the_files_that_come_with_rmq_load_without_a_word() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let (namesrv, brokers): (Vec<_>, Vec<_>) = files_under(&conf)
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "conf" || e == "properties")
        })
        .partition(|path| path.ends_with("namesrv.conf"));
    assert_eq!((namesrv.len(), brokers.len()), (1, 12));
    for path in namesrv {
        let loaded = load_namesrv(&Sources {
            file: Some(path),
            ..Sources::default()
        })
        .unwrap();
        assert_eq!(loaded.report, Report::default());
    }
    for path in brokers {
        let sources = Sources {
            file: Some(path.clone()),
            ..Sources::default()
        };
        let loaded = load_broker(&sources).unwrap_or_else(|report| panic!("{report}"));
        assert_eq!(loaded.report, Report::default(), "{}", loaded.report);
    }
}

#[test]
fn the_nodes_of_a_sample_group_fit_together() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let groups = [
        "dledger/broker-n",
        "2-groups/broker-g0-n",
        "2-groups/broker-g1-n",
    ];
    let load = |prefix: &str| -> Vec<BrokerConfig> {
        let path = |i| conf.join(format!("{prefix}{i}.conf"));
        let load = |i| {
            load_broker(&Sources {
                file: Some(path(i)),
                ..Sources::default()
            })
        };
        (0..3).map(|i| load(i).unwrap().config).collect()
    };
    for prefix in groups {
        let nodes = load(prefix);
        for (i, node) in nodes.iter().enumerate() {
            assert_eq!(node.dleger_self_id, format!("n{i}"));
            assert_eq!(node.dleger_peers, nodes[0].dleger_peers);
            assert_eq!(node.broker_name, nodes[0].dleger_group);
        }
    }
    // Two groups on one machine share nothing.
    let both: Vec<_> = [load(groups[1]), load(groups[2])].concat();
    let mut ports: Vec<u16> = both
        .iter()
        .flat_map(|n| {
            [
                n.listen_port,
                n.listen_port - 2,
                n.listen_port + 1,
                n.self_peer().unwrap().port,
            ]
        })
        .collect();
    let mut roots: Vec<_> = both.iter().map(|n| n.store_path_root_dir.clone()).collect();
    ports.sort_unstable();
    ports.dedup();
    roots.sort();
    roots.dedup();
    assert_eq!((ports.len(), roots.len()), (24, 6));
}
