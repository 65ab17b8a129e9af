use super::*;
use crate::history::{
    Ack, Adopted, Batch, Delayed, Delivery, Fault, Lead, LockOp, OffsetOp, Poll, Pop, Send,
    Stretch, Transaction, TransactionEnd,
};

#[test]
fn a_history_survives_being_written() {
    let send = |n: u64, outcome| Send {
        process: 3,
        queue: 1,
        body: format!("3:{n}"),
        invoked: 10 * n,
        ended: 10 * n + 5,
        outcome,
    };
    let poll = |n: u64, outcome| Poll {
        process: 7,
        delivers: n == 1,
        queue: 1,
        from: n,
        invoked: 100 * n,
        ended: 100 * n + 7,
        outcome,
        next: (n < 3).then_some(3),
    };
    let lock = |n: u64, call| LockOp {
        process: 8,
        queue: 2,
        invoked: 50 * n,
        ended: 50 * n + 1,
        call,
    };
    let offset = |n: u64, call| OffsetOp {
        process: 9,
        queue: 0,
        invoked: 30 * n,
        ended: 30 * n + 30,
        call,
    };
    let later = |n: u64, outcome| Delayed {
        process: 45,
        body: format!("later:{n}"),
        delay: 1_000,
        invoked: 20 * n,
        ended: 20 * n + 3,
        outcome,
    };
    let batch = |n: u64, outcome| Batch {
        process: 80,
        sender: 1,
        queue: 2,
        first: 7 * n,
        count: 7,
        invoked: 15 * n,
        ended: 15 * n + 9,
        outcome,
    };
    let stretch = |first| Stretch {
        sender: 1,
        first,
        count: 7,
        offset: first,
    };
    let pop = |n: u64, outcome| Pop {
        process: 46,
        queue: 1,
        hidden: 9,
        invoked: 40 * n,
        ended: 40 * n + 6,
        outcome,
    };
    let ack = |n: u64, acknowledged| Ack {
        process: 46,
        queue: 1,
        offset: n,
        invoked: 40 * n + 10,
        ended: 40 * n + 12,
        acknowledged,
    };
    let transaction = |n: u64, prepared, ends| Transaction {
        process: 47,
        body: format!("t:{n}"),
        invoked: 100 * n,
        ended: 100 * n + 9,
        prepared,
        ends,
    };
    let end = |n: u64, commits| TransactionEnd {
        process: 48,
        commits,
        invoked: 10 * n,
        ended: 10 * n + 3,
        acknowledged: commits,
    };
    let adopted = |place: &str, had: Kept| Adopted {
        place: place.into(),
        shown: [(0, Some(had.clone())), (2, None)].into(),
        had,
    };
    let history = History {
        adopted: vec![
            adopted("T/0/7", Kept::Message("9961".into())),
            adopted("end of T/0", Kept::Offset(8)),
        ],
        pops: vec![
            pop(1, Outcome::Ok(vec![(0, "3:1".into()), (1, "3:2".into())])),
            pop(2, Outcome::Ok(Vec::new())),
            pop(3, Outcome::Fail("code 1".into())),
            pop(4, Outcome::Unknown("reset".into())),
        ],
        acks: vec![ack(1, true), ack(2, false)],
        transactions: vec![
            // It was asked for, and answered, before its send had ended.
            transaction(1, Outcome::Ok(()), vec![end(10, true), end(12, false)]),
            transaction(2, Outcome::Fail("code 14".into()), vec![]),
            transaction(3, Outcome::Unknown("reset".into()), vec![]),
        ],
        visible: vec![Delivery {
            at: 400,
            queue: 1,
            offset: 9,
            body: "t:1".into(),
            last: true,
        }],
        batches: vec![
            batch(1, Outcome::Ok(7)),
            batch(2, Outcome::Fail("code 14".into())),
            batch(3, Outcome::Unknown("reset".into())),
        ],
        stretches: [(2, vec![stretch(7), stretch(21)])].into(),
        sends: vec![
            send(1, Outcome::Ok(4)),
            send(2, Outcome::Unknown("timed \"out\"".into())),
            send(3, Outcome::Fail("code 14".into())),
        ],
        offsets: vec![
            offset(
                1,
                OffsetCall::Commit {
                    offset: 5,
                    acknowledged: true,
                },
            ),
            offset(
                2,
                OffsetCall::Commit {
                    offset: 6,
                    acknowledged: false,
                },
            ),
            offset(3, OffsetCall::Read(Some(6))),
            offset(4, OffsetCall::Read(None)),
        ],
        polls: vec![
            poll(1, Outcome::Ok(vec![(1, "3:1".into()), (2, "3:2".into())])),
            poll(2, Outcome::Ok(Vec::new())),
            poll(3, Outcome::Unknown("reset".into())),
        ],
        locks: vec![
            lock(1, LockCall::Lock(Outcome::Ok(true))),
            lock(2, LockCall::Unlock),
            lock(3, LockCall::Lock(Outcome::Ok(false))),
            lock(4, LockCall::Lock(Outcome::Fail("no".into()))),
            lock(5, LockCall::Lock(Outcome::Unknown("gone".into()))),
        ],
        delayed: vec![
            later(1, Outcome::Ok(())),
            later(2, Outcome::Unknown("reset".into())),
            later(3, Outcome::Fail("code 14".into())),
        ],
        deliveries: vec![Delivery {
            at: 77,
            queue: 3,
            offset: 0,
            body: "later:1".into(),
            last: false,
        }],
        leads: vec![Lead {
            at: 3,
            node: 2,
            term: 9,
        }],
        faults: vec![
            Fault {
                what: "kill-leader n1".into(),
                from: 40,
                until: None,
                seen: Some(1),
            },
            Fault {
                what: "halves n2".into(),
                from: 60,
                until: Some(90),
                seen: None,
            },
        ],
        found: [
            (0, Vec::new()),
            (1, (0..1200).map(|n| (n, format!("m{n}"))).collect()),
        ]
        .into(),
    };
    let text = write(&history);
    assert_eq!(read(&text).unwrap(), history, "{text}");
    assert_eq!(write(&read(&text).unwrap()), text);
    // The process that had an unknown end goes on as another one.
    assert!(text.contains(":process 103, :f :send"), "{text}");
}

#[test]
fn what_is_no_history_is_refused_with_its_line() {
    let good = "{:index 0, :time 1, :type :invoke, :process 0, :f :send, :value [[:send 0 1]]}\n";
    assert_eq!(read(good).unwrap().sends.len(), 1);
    for bad in [
        good,
        "{:time 2, :type :ok, :process 0, :f :send, :value [[:send 0 1]]}",
        "{:time 2, :type :ok, :process 0, :f :send}",
        "{:time 2, :type :ok, :process 1, :f :send, :value []}",
        "{:type :ok}",
        "7",
    ] {
        let error = format!("{:#}", read(&format!("{good}{bad}")).unwrap_err());
        assert!(error.contains("line 2"), "{bad}: {error}");
    }
}
