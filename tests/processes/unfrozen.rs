//! The way back of a group that nobody froze, and that a power failure stopped: from the stores of all
//! nodes with all that was acknowledged, or from one of them with what it has.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser as _;
use jepsen::client::Client;
use jepsen::cluster::Options;
use rmq_migrate::{Code, Progress, Reversed, Style};

use crate::support::{JavaServer, Line, PATIENCE, Running, free_port, real_clients, until};

const TOPIC: &str = "unfrozen";
const QUEUES: u32 = 4;

/// What was acknowledged: in each queue, from its first offset on.
type Sent = BTreeMap<u32, Vec<String>>;

fn send(group: &Running, count: u32, sent: &mut Sent) {
    let mut producer = group.producer();
    for _ in 0..count {
        for queue in 0..QUEUES {
            let of_queue = sent.entry(queue).or_default();
            let body = format!("{queue}:{}", of_queue.len());
            producer.send(TOPIC, queue, &body);
            of_queue.push(body);
        }
    }
}

/// What a Java broker serves from a store that came back.
fn served(back: &Reversed) -> Option<Sent> {
    let cache = real_clients()?;
    let port = free_port();
    let written = back.conf_file.as_ref().unwrap();
    let mut text = std::fs::read_to_string(written).unwrap();
    assert!(
        !text.contains("\nraft") && !text.contains("\ngroupAlias"),
        "{text}"
    );
    // The last of equal keys counts; the group's port may be another's by now.
    text += &format!("\nlistenPort={port}\ndiskMaxUsedSpaceRatio=99\n");
    let conf = written.with_extension("here");
    std::fs::write(&conf, text).unwrap();
    let broker = JavaServer::broker_of(cache, Line::V49, &conf, port);
    let read = |queue| {
        let found = until("it serves", || {
            let mut client = Client::connect(broker.address, PATIENCE).ok()?;
            client.read_queue(TOPIC, queue).ok()
        });
        let mut bodies: Vec<_> = found.into_iter().map(|(_, body)| body).collect();
        // One that was sent again may be there twice.
        bodies.dedup();
        bodies
    };
    Some((0..QUEUES).map(|queue| (queue, read(queue))).collect())
}

#[test]
fn a_group_that_was_not_frozen_comes_back_from_its_newest_store() {
    let mut group = Running::start(&Options {
        more: "flushConsumerOffsetInterval=100\n".to_owned(),
        ..Options::default()
    });
    let leader = group.leading();
    let behind = (leader + 1) % 3;
    let mut sent = Sent::new();
    send(&group, 50, &mut sent);
    let end = group.cluster().wait_until_even(PATIENCE).unwrap();
    group.cluster().kill(behind).unwrap();
    let early = sent.clone();
    send(&group, 50, &mut sent);
    for node in (0..3).filter(|node| *node != behind) {
        group.cluster().kill(node).unwrap();
    }
    let dir = group.dir.as_ref().unwrap().path();
    let stores: Vec<PathBuf> = group
        .nodes()
        .iter()
        .map(|node| node.store.clone())
        .collect();
    let back = |name: &str, others: &[usize], more: &[&str]| {
        let args = ["rmq-migrate", "--reverse", "--progress", "none", "--from"];
        let mut words: Vec<PathBuf> = args.map(PathBuf::from).into();
        words.extend([stores[behind].clone(), "--to".into(), dir.join(name)]);
        words.extend(["-c".into(), dir.join(format!("n{behind}.conf"))]);
        for other in others {
            words.extend(["--compare-with".into(), stores[*other].clone()]);
        }
        words.extend(more.iter().map(PathBuf::from));
        let options = rmq_migrate::Options::parse_from(words);
        rmq_migrate::reverse(&options, &Progress::new(Style::None))
    };
    let others = [leader, 3 - leader - behind];

    // One store, or two of three, may lack what was acknowledged.
    for given in [&others[..0], &others[..1]] {
        let refused = back("refused", given, &[]).unwrap_err();
        assert_eq!((refused.code, refused.exit_code()), (Code::Unconfirmed, 3));
        let how_many = format!("{} of 3", 1 + given.len());
        assert!(refused.what.contains(&how_many), "{refused}");
        assert!(!dir.join("refused").try_exists().unwrap());
    }
    let one = back("one", &[], &["--accept-unconfirmed"]).unwrap();
    assert_eq!(
        (one.frozen.is_none(), one.from.as_path()),
        (true, &*stores[behind])
    );
    let told = one.unconfirmed.join("\n");
    for what in ["1 of 3", &*stores[behind].to_string_lossy(), "is missing"] {
        assert!(told.contains(what), "{what}: {told}");
    }
    assert!(one.end_offset >= end, "{} and {end}", one.end_offset);
    // The node was killed while it ran, so its settings may be older than its log.
    assert!(one.warnings.iter().any(|note| note.code == Code::Metadata));

    let all = back("all", &others, &[]).unwrap();
    assert!(all.unconfirmed.is_empty() && all.frozen.is_none());
    assert!(all.from != stores[behind] && all.end_offset > one.end_offset);
    for (back, expected) in [(one, early), (all, sent)] {
        if let Some(served) = served(&back) {
            assert!(served == expected, "{}: {served:?}", back.from.display());
        }
    }
}
