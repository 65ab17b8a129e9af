//! More is sent than is taken.

use super::*;

fn held(bounds: &Bounds) -> usize {
    [Class::Send, Class::Pull, Class::Other]
        .map(|class| bounds.held(class))
        .iter()
        .sum()
}

fn few_sends(send_wait: Option<Duration>) -> Bounds {
    Bounds::new(Limits {
        sends: 4,
        pulls: 1,
        send_wait,
        ..Limits::default()
    })
}

/// Lets everything go on that can, where time is paused.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_send_without_room_is_refused_in_time_and_delays_nothing_else() {
    let server = start(few_sends(Some(Duration::from_millis(200))));
    let mut first = server.port.connect(1 << 16).await.unwrap();
    for i in 0..4 {
        send(&mut first, &request(HOLD, i, "")).await;
    }
    settle().await;
    assert_eq!(server.probe.suspended.load(Ordering::SeqCst), 4);

    let begun = Instant::now();
    let mut second = server.port.connect(1 << 16).await.unwrap();
    send(&mut second, &request(HOLD, 7, "")).await;
    send(&mut second, &request(ECHO, 8, "heartbeat")).await;
    // Requests of other kinds do not notice.
    let mut third = server.port.connect(1 << 16).await.unwrap();
    send(&mut third, &request(ECHO, 1, "")).await;
    assert_eq!(receive(&mut third).await.opaque, 1);
    assert_eq!(begun.elapsed().as_millis(), 0);

    let refused = receive(&mut second).await;
    assert_eq!((refused.opaque, refused.code), (7, response::SYSTEM_BUSY));
    assert_eq!(refused.remark.as_deref(), Some(OVERLOAD));
    let ms = begun.elapsed().as_millis();
    assert!((200..=202).contains(&ms), "{ms}");
    assert_eq!(receive(&mut second).await.opaque, 8);

    // A flood is refused with one wait for all that was read together.
    for i in 0..100 {
        send(&mut second, &request(HOLD, i, "")).await;
    }
    let begun = Instant::now();
    for i in 0..100 {
        let refused = receive(&mut second).await;
        assert_eq!((refused.opaque, refused.code), (i, response::SYSTEM_BUSY));
    }
    assert!(begun.elapsed().as_millis() <= 1000, "{:?}", begun.elapsed());

    server.probe.release.notify_one();
    receive(&mut first).await;
    send(&mut second, &request(HOLD, 9, "")).await;
    settle().await;
    assert_eq!(server.probe.suspended.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn one_connection_with_many_sends_does_not_starve_another_with_one() {
    let server = start(few_sends(None));
    let mut greedy = server.port.connect(1 << 20).await.unwrap();
    for i in 0..200 {
        send(&mut greedy, &request(HOLD, i, "")).await;
    }
    settle().await;
    let mut modest = server.port.connect(1 << 16).await.unwrap();
    send(&mut modest, &request(HOLD, 1, "")).await;
    settle().await;
    // Four are worked on, one of the same connection is first in line, then comes the other one.
    for _ in 0..8 {
        server.probe.release.notify_one();
        settle().await;
    }
    let answer = timeout(Duration::from_millis(1), receive(&mut modest)).await;
    assert_eq!(answer.unwrap().code, response::SUCCESS);
}

#[tokio::test(start_paused = true)]
async fn a_pull_without_room_is_refused_at_once() {
    let server = start(few_sends(None));
    let mut io = server.port.connect(1 << 16).await.unwrap();
    let begun = Instant::now();
    send(&mut io, &request(PULL, 1, "")).await;
    send(&mut io, &request(PULL, 2, "")).await;
    let refused = receive(&mut io).await;
    assert_eq!((refused.opaque, refused.code), (2, response::SYSTEM_BUSY));
    assert_eq!(begun.elapsed().as_millis(), 0);
}

#[tokio::test(start_paused = true)]
async fn all_is_given_back_however_a_connection_ends() {
    let bounds = Bounds::new(Limits {
        memory_bytes: 8 * 500_000,
        ..Limits::default()
    });
    let server = start(bounds.clone());
    let mut frame = BytesMut::new();
    request(HOLD, 1, vec![0; 300_000]).encode(&mut frame);
    for cut in [1, 5, 100_000, frame.len() - 1, frame.len()] {
        let mut io = server.port.connect(1 << 20).await.unwrap();
        io.write_all(&frame[..cut]).await.unwrap();
        settle().await;
        // The room for all of it and its record, from the beginning of a large one on.
        let expected = if cut < 100_000 { 0 } else { 600_000 };
        let now = held(&bounds);
        assert!((expected..=expected + 2048).contains(&now), "{cut}: {now}");
        drop(io);
        settle().await;
        assert_eq!(held(&bounds), 0, "{cut}");
    }
    // Answers that nobody reads are given back too.
    let mut io = server.port.connect(1 << 12).await.unwrap();
    for i in 0..10 {
        send(&mut io, &request(PARTS, i, "200000")).await;
    }
    settle().await;
    assert!(bounds.answers() > 0);
    drop(io);
    settle().await;
    assert_eq!((bounds.answers(), held(&bounds)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_has_its_whole_time_for_each_frame() {
    let server = start(Limits {
        memory_bytes: 8 * 500_000,
        send_wait: Some(Duration::from_secs(20)),
        ..Limits::default()
    });
    let mut first = server.port.connect(1 << 20).await.unwrap();
    send(&mut first, &request(HOLD, 1, vec![0; 300_000])).await;
    let begun = Instant::now();
    let at = |second| tokio::time::sleep_until(begun + Duration::from_secs(second));
    // It is not read for 20 s, then refused.
    let mut slow = server.port.connect(1 << 20).await.unwrap();
    let mut frames = BytesMut::new();
    request(HOLD, 2, vec![0; 300_000]).encode(&mut frames);
    let refused = frames.len();
    request(ECHO, 3, vec![0; 1000]).encode(&mut frames);
    slow.write_all(&frames[..200_000]).await.unwrap();
    assert_eq!(receive(&mut slow).await.code, response::SYSTEM_BUSY);
    assert_eq!(begun.elapsed().as_secs(), 20);
    at(45).await;
    slow.write_all(&frames[200_000..refused + 500])
        .await
        .unwrap();
    at(70).await;
    slow.write_all(&frames[refused + 500..]).await.unwrap();
    assert_eq!(receive(&mut slow).await.opaque, 3);
}

#[tokio::test(start_paused = true)]
async fn a_header_without_an_end_has_its_room_too() {
    const FRAME: u32 = 8_000_000;
    let bounds = Bounds::new(Limits {
        memory_bytes: 8 * 15_000_000,
        ..Limits::default()
    });
    let server = start(bounds.clone());
    let begin = async || {
        let mut io = server.port.connect(1 << 20).await.unwrap();
        // JSON of 200,000 bytes, of which half is here.
        let head = [FRAME, 200_000].map(u32::to_be_bytes).concat();
        io.write_all(&head).await.unwrap();
        io.write_all(&[b' '; 100_000]).await.unwrap();
        settle().await;
        io
    };
    let first = begin().await;
    let taken = held(&bounds);
    assert!((FRAME as usize..=FRAME as usize + 1024).contains(&taken));
    let mut second = begin().await;
    assert!(is_closed_by_server(&mut second).await);
    drop((first, second));
    settle().await;
    assert_eq!(held(&bounds), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_taken_from_a_peer_that_reads_none() {
    let bounds = Bounds::new(Limits {
        outbound_bytes: 100_000,
        ..Limits::default()
    });
    let server = start(bounds.clone());
    let mut io = server.port.connect(1 << 20).await.unwrap();
    send(&mut io, &request(ASK_BACK, 1, "")).await;
    let question = receive(&mut io).await;
    send(&mut io, &request(BYTES, 2, "2000000")).await;
    settle().await;
    let unread = bounds.answers();
    assert!(unread > 100_000, "{unread}");
    let answer = question.reply(response::SUCCESS);
    send(&mut io, &answer.with_body(vec![0; 200_000].into())).await;
    settle().await;
    // Who asked for it has it, and waits with its own.
    assert!(bounds.answers() >= unread + 200_000);
}

#[tokio::test(start_paused = true)]
async fn peers_that_read_nothing_hold_up_no_others() {
    const ANSWER: usize = 300_000;
    const SHARE: usize = 1 << 20;
    let bounds = Bounds::new(Limits {
        memory_bytes: 8 * SHARE,
        ..Limits::default()
    });
    let server = start(bounds.clone());
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut io = server.port.connect(1 << 12).await.unwrap();
        for i in 0..20 {
            send(&mut io, &request(BYTES, i, ANSWER.to_string())).await;
        }
        slow.push(io);
    }
    settle().await;
    // However many they are: one more on its way than a quarter of the budget, and another quarter that waits.
    let most = 4 * SHARE + ANSWER + 1000;
    assert!(bounds.answers() <= most, "{}", bounds.answers());
    let begun = Instant::now();
    let mut good = server.port.connect(1 << 16).await.unwrap();
    for i in 0..3 {
        send(&mut good, &request(BYTES, i, ANSWER.to_string())).await;
        assert_eq!(receive(&mut good).await.body.len(), ANSWER);
    }
    assert!(begun.elapsed() <= Duration::from_secs(10));
    // Most of them were closed for it, long before they would be for themselves.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(bounds.answers() < 3 * SHARE, "{}", bounds.answers());
    for io in &mut slow[..10] {
        assert!(is_closed_by_server(io).await);
    }
    assert!(begun.elapsed() <= Duration::from_secs(17));
    drop((slow, good));
    settle().await;
    assert_eq!((bounds.answers(), held(&bounds)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn servers_of_a_process_share_their_bounds() {
    let bounds = Bounds::new(Limits {
        connections: 2,
        sends: 1,
        ..Limits::default()
    });
    let (one, other) = (start(bounds.clone()), start(bounds));
    let mut first = one.port.connect(1 << 16).await.unwrap();
    send(&mut first, &request(HOLD, 1, "")).await;
    settle().await;
    let mut second = other.port.connect(1 << 16).await.unwrap();
    send(&mut second, &request(HOLD, 2, "")).await;
    assert_eq!(receive(&mut second).await.code, response::SYSTEM_BUSY);
    let mut third = other.port.connect(1 << 16).await.unwrap();
    assert!(is_closed_by_server(&mut third).await);
}
