//! Frames that no client sends. Each connection is closed or answered with an error, the process stays,
//! keeps its size and goes on serving others.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use jepsen::client::{Client, Outcome};
use jepsen::cluster::Options;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::support::{PATIENCE, Running};

/// Writes bytes and reads until the other side closes, answers, or has been silent for a while.
fn throw(address: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .ok()?;
    stream.write_all(bytes).ok()?;
    let mut answer = vec![0; 4096];
    let n = stream.read(&mut answer).ok()?;
    answer.truncate(n);
    Some(answer)
}

/// A frame around a JSON header.
fn json_frame(header: &[u8]) -> Vec<u8> {
    let length = u32::try_from(header.len()).unwrap();
    [&(length + 4).to_be_bytes(), &length.to_be_bytes(), header].concat()
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn hostile_frames_harm_nobody() {
    let group = Running::start(&Options {
        nodes: 1,
        ..Options::default()
    });
    let (node, pid) = (group.addresses()[0], group.pid(0).unwrap());
    let mut good = Client::connect(node, PATIENCE).unwrap();
    assert!(matches!(good.send("hostile", 0, "before"), Outcome::Ok(_)));
    let before = resident_kib(pid);

    let deep = format!(
        r#"{{"code":10,"x":{}{}}}"#,
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let heartbeat = br#"{"code":34,"language":"JAVA","version":409,"opaque":1,"flag":0}"#;
    let mut fixed: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        (-1i32).to_be_bytes().to_vec(),
        i32::MIN.to_be_bytes().to_vec(),
        i32::MAX.to_be_bytes().to_vec(),
        [
            &100u32.to_be_bytes()[..],
            &0x00ff_ffffu32.to_be_bytes(),
            &[0; 96],
        ]
        .concat(),
        [&4u32.to_be_bytes()[..], &0x0700_0000u32.to_be_bytes()].concat(),
        json_frame(deep.as_bytes()),
        json_frame(b"{}"),
        json_frame(br#"{"code":"x","opaque":1e99}"#),
        json_frame(br#"{"code":310,"opaque":7,"extFields":{"b":"../../etc/passwd","e":"-9"}}"#),
        json_frame(br#"{"code":17,"opaque":7,"extFields":{"topic":"a b/c","perm":"6"}}"#),
        json_frame(
            br#"{"code":11,"opaque":7,"extFields":{"topic":"hostile","queueId":"99999999999"}}"#,
        ),
    ];
    let whole = json_frame(heartbeat);
    fixed.extend((1..whole.len()).map(|n| whole[..n].to_vec()));
    let mut rng = StdRng::seed_from_u64(9);
    for round in 0..1500 {
        let bytes = match fixed.get(round) {
            Some(bytes) => bytes.clone(),
            None if round % 2 == 0 => {
                let mut random = vec![0; rng.random_range(1..2000)];
                rng.fill_bytes(&mut random);
                random
            }
            None => {
                // A frame of plausible length around noise, or a good one with a flipped bit.
                let mut frame = json_frame(heartbeat);
                let at = rng.random_range(4..frame.len());
                frame[at] ^= 1 << rng.random_range(0..8);
                frame
            }
        };
        throw(node, &bytes);
    }

    assert!(matches!(good.send("hostile", 0, "after"), Outcome::Ok(_)));
    let names: Vec<String> = good
        .read_queue("hostile", 0)
        .unwrap()
        .into_iter()
        .map(|(_, body)| body)
        .collect();
    assert_eq!(names, ["before", "after"]);
    assert_eq!(group.pid(0), Some(pid));
    let grown = resident_kib(pid).saturating_sub(before);
    assert!(grown < 65_536, "the process grew by {grown} KiB");
    // A frame of noise must not have made a topic either.
    assert!(
        good.queue_number(30, "a b/c", 0).is_err()
            || good.queue_number(30, "a b/c", 0).is_ok_and(|n| n == 0)
    );
}
