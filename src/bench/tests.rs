use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rmq_wire::code::request;
use rmq_wire::frame::Command;
use rmq_wire::header::SendMessage;
use rmq_wire::properties;
use rmq_wire::record::split_batch;

use super::cluster::Queue;
use super::frames::{FIRST_OPAQUE, Stamp, Template, due_of};
use super::meter::{Meter, Turn, Window};
use super::pace::Pace;
use super::{BenchError, Mode, Plan, consume, report, shares};

fn plan() -> Plan {
    Plan {
        mode: Mode::Produce,
        topic: "load".into(),
        topics: 1,
        queues: 4,
        size: 100,
        batch: 1,
        rate: None,
        connections: 1,
        in_flight: 64,
        warmup: 2,
        duration: Some(10),
        count: None,
    }
}

fn queue(broker: &str, id: i32) -> Queue {
    let (topic, broker) = ("load".into(), broker.into());
    Queue { topic, broker, id }
}

fn stamped(plan: &Plan, stamp: &Stamp) -> Command {
    let mut out = BytesMut::from(&b"before"[..]);
    Template::new(plan, &queue("a", 3)).stamp(stamp, &mut out);
    Command::decode(Bytes::from(out).slice(b"before".len() + 4..)).unwrap()
}

const STAMP: Stamp = Stamp {
    slot: 77,
    born: 1_700_000_000_123,
    run: 0xABCD_EF01,
    due: 5_000_000_001,
    number: 0x10,
};

#[test]
fn a_stamped_request_is_what_a_client_sends() {
    let command = stamped(&plan(), &STAMP);
    assert_eq!(command.code, request::SEND_MESSAGE_V2);
    assert_eq!(command.opaque, FIRST_OPAQUE + 77);
    let header = SendMessage::decode(command.code, &command.ext).unwrap();
    assert_eq!((header.topic, header.queue_id), ("load", 3));
    assert_eq!(header.born_timestamp, 1_700_000_000_123);
    let found: Vec<_> = properties::iter(header.properties).collect();
    let key = "00000000ABCDEF010000000000000010";
    assert_eq!(found, [("UNIQ_KEY", key), ("WAIT", "true")]);
    assert_eq!(command.body.len(), 100);
    assert_eq!(due_of(&command.body, STAMP.run), Some(STAMP.due));
    assert_eq!(due_of(&command.body, 1), None);
}

#[test]
fn each_message_of_a_batch_is_stamped() {
    let plan = Plan {
        batch: 20,
        ..plan()
    };
    let command = stamped(&plan, &STAMP);
    let header = SendMessage::decode(command.code, &command.ext).unwrap();
    assert!(header.batch);
    let messages: Vec<_> = split_batch(&command.body).map(Result::unwrap).collect();
    assert_eq!(messages.len(), 20);
    for (message, number) in messages.iter().zip(0x10..) {
        assert_eq!(due_of(message.body, STAMP.run), Some(STAMP.due));
        let text = std::str::from_utf8(message.raw_properties).unwrap();
        let key = properties::iter(text).next().unwrap().1;
        assert_eq!(key, format!("00000000ABCDEF01{number:016X}"));
    }
}

#[test]
fn a_body_without_room_for_a_stamp_stays_as_it_is() {
    let plan = Plan { size: 15, ..plan() };
    let other = Stamp { due: 1, ..STAMP };
    assert_eq!(stamped(&plan, &STAMP).body, stamped(&plan, &other).body);
}

#[test]
fn what_is_due_in_the_window_is_measured_up_to_the_count() {
    let window = Window::new(&Plan {
        count: Some(10),
        ..plan()
    });
    assert_eq!(window.take(0, 4), Turn::WarmUp, "not open yet");
    window.open(500);
    let begin = 500 + 2_000_000_000;
    assert_eq!(window.take(begin - 1, 4), Turn::WarmUp);
    let turns: Vec<Turn> = (0..4).map(|_| window.take(begin, 4)).collect();
    assert_eq!(turns[..3], [Turn::Measure; 3]);
    assert_eq!(turns[3], Turn::Over);
    let window = Window::new(&plan());
    window.open(0);
    assert_eq!(window.take(11_999_999_999, 1), Turn::Measure);
    assert_eq!(window.take(12_000_000_000, 1), Turn::Over);
    assert!(!window.is_closed(21_999_999_999) && window.is_closed(22_000_000_000));
    let endless = Window::new(&Plan {
        duration: None,
        ..plan()
    });
    endless.open(0);
    assert!(!endless.is_closed(u64::MAX - 1));
}

#[test]
fn latency_counts_from_the_time_at_which_a_request_was_due() {
    let meter = Meter::default();
    // A stall of 2 s with a request due each 100 ms: one of 20 was under way, all had to wait.
    for due in 0..20 {
        let due = due * 100_000_000;
        meter.entry().done(true, due, 2_000_000_000, 1, 100);
    }
    meter.entry().done(false, 0, 9_000_000_000, 1, 100);
    let side = report::side(&meter, 2.0);
    assert_eq!((side.messages, side.per_second), (20, 10.0));
    assert!((side.latency_ms.p50 - 1000.0).abs() < 2.0, "{side:?}");
    assert!((side.latency_ms.max - 2000.0).abs() < 2.0, "{side:?}");
}

#[test]
fn connections_share_brokers_and_readers_share_queues() {
    let queues: Vec<Queue> = (0..3)
        .flat_map(|id| [queue("a", id), queue("b", id)])
        .collect();
    let plan = Plan {
        connections: 4,
        ..plan()
    };
    let shares = shares(&plan, &queues).unwrap();
    assert_eq!(shares.len(), 4);
    for share in &shares {
        assert_eq!(share.len(), 3);
        assert!(share.iter().all(|queue| queue.broker == share[0].broker));
    }
    let spread = consume::spread(&shares);
    let mut read: Vec<(String, i32)> = spread
        .iter()
        .flatten()
        .map(|queue| (queue.broker.to_string(), queue.id))
        .collect();
    read.sort();
    read.dedup();
    assert_eq!(read.len(), 6);
    assert_eq!(spread.iter().map(Vec::len).sum::<usize>(), 6);
}

#[test]
fn a_broker_without_a_connection_is_an_error() {
    let queues = [queue("a", 0), queue("b", 0)];
    let error = shares(&plan(), &queues).unwrap_err();
    assert!(matches!(error, BenchError::TooFewConnections { .. }));
}

#[tokio::test]
async fn the_pace_waits_and_can_be_set_again() {
    let mut pace = Pace::new().unwrap();
    let begun = std::time::Instant::now();
    let long = pace.until(1, Duration::from_secs(3600));
    tokio::time::timeout(Duration::from_millis(1), long)
        .await
        .unwrap_err();
    for due in 2..5 {
        pace.until(due, Duration::from_millis(2)).await.unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(7));
    pace.until(5, Duration::ZERO).await.unwrap();
}
