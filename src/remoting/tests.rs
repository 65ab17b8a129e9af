mod crowd;
mod home;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rmq_wire::code::response;
use rmq_wire::frame::{self, Command, Language, SerializeType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::testing::{Port, Switchboard, network};
use super::*;
use crate::shutdown::{Shutdown, Trigger};
use crate::testing::PATIENCE;

const ECHO: i32 = 1;
const SUSPEND: i32 = 2;
const PANIC: i32 = 3;
const PANIC_LATER: i32 = 4;
/// Answers with as many bytes as the body says.
const BYTES: i32 = 5;
/// Calls the client and answers with what it answered.
const ASK_BACK: i32 = 6;
const NOTE: i32 = 7;
/// As `BYTES`, in two parts and after a suspension.
const PARTS: i32 = 8;
/// As `SUSPEND`, with room among sends.
const HOLD: i32 = 9;
/// As `SUSPEND`, with room among pulls.
const PULL: i32 = 10;

#[derive(Default)]
struct Probe {
    opened: AtomicUsize,
    closed: AtomicUsize,
    notes: Mutex<Vec<Bytes>>,
    release: Notify,
    suspended: AtomicUsize,
    answered_bytes: AtomicUsize,
}

impl Probe {
    async fn answer(&self, request: Request) -> Option<Reply> {
        let command = &request.command;
        let conn = request.conn.as_ref().unwrap();
        let reply = command.reply(response::SUCCESS);
        let wanted = || {
            std::str::from_utf8(&command.body)
                .unwrap()
                .parse::<usize>()
                .unwrap()
        };
        match command.code {
            ECHO => Some(reply.with_body(command.body.clone()).into()),
            SUSPEND | HOLD | PULL => {
                self.suspended.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    () = self.release.notified() => {}
                    () = conn.closed() => {}
                }
                self.suspended.fetch_sub(1, Ordering::SeqCst);
                Some(reply.into())
            }
            PANIC => panic!("as asked"),
            PANIC_LATER => {
                tokio::task::yield_now().await;
                panic!("as asked")
            }
            BYTES => {
                self.answered_bytes.fetch_add(wanted(), Ordering::SeqCst);
                Some(reply.with_body(vec![7; wanted()].into()).into())
            }
            PARTS => {
                tokio::task::yield_now().await;
                self.answered_bytes.fetch_add(wanted(), Ordering::SeqCst);
                let body = Bytes::from(vec![7; wanted()]);
                let rest = body.slice(body.len() / 3..);
                let parts = vec![body.slice(..body.len() / 3), Bytes::new(), rest];
                Some(Reply::Parts(reply, parts))
            }
            ASK_BACK => {
                let question = Command::request(ECHO).with_body(command.body.clone());
                let answer = conn.call(question, PATIENCE).await;
                Some(match answer {
                    Ok(answer) => reply.with_body(answer.body).into(),
                    Err(error) => command
                        .reply_error(response::SYSTEM_ERROR, error.to_string())
                        .into(),
                })
            }
            NOTE => {
                self.notes.lock().unwrap().push(command.body.clone());
                Some(reply.into())
            }
            code => Some(
                command
                    .reply_error(response::REQUEST_CODE_NOT_SUPPORTED, code.to_string())
                    .into(),
            ),
        }
    }
}

impl Service for Probe {
    async fn call(self: Arc<Self>, request: Request) -> Option<Reply> {
        self.answer(request).await
    }

    fn class(&self, code: i32) -> Class {
        match code {
            HOLD => Class::Send,
            PULL => Class::Pull,
            _ => Class::Other,
        }
    }

    fn opened(&self, _conn: &Arc<Conn>) {
        self.opened.fetch_add(1, Ordering::SeqCst);
    }

    fn closed(&self, _conn: &Arc<Conn>) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

struct Server {
    probe: Arc<Probe>,
    port: Port,
    trigger: Trigger,
    task: JoinHandle<()>,
}

fn start(bounds: impl Into<Bounds>) -> Server {
    let (net, port) = network();
    let (trigger, shutdown) = Shutdown::new();
    let probe = Arc::new(Probe::default());
    let bounds = bounds.into();
    let task = tokio::spawn(serve(net, Arc::clone(&probe), bounds, shutdown));
    Server {
        probe,
        port,
        trigger,
        task,
    }
}

fn switchboard(port: Port) -> Switchboard {
    let switchboard = Switchboard::default();
    switchboard.plug("any:1", port);
    switchboard
}

fn request(code: i32, opaque: i32, body: impl Into<Bytes>) -> Command {
    let mut command = Command::request(code).with_body(body.into());
    command.opaque = opaque;
    command.language = Language::OTHER;
    command
}

async fn send(io: &mut (impl AsyncWriteExt + Unpin), command: &Command) {
    let mut frame = BytesMut::new();
    command.encode(&mut frame);
    io.write_all(&frame).await.unwrap();
}

async fn receive(io: &mut (impl AsyncReadExt + Unpin)) -> Command {
    let mut len = [0; 4];
    io.read_exact(&mut len).await.unwrap();
    let mut frame = vec![0; frame::peek_len(&len).unwrap().unwrap()];
    io.read_exact(&mut frame).await.unwrap();
    Command::decode(frame.into()).unwrap()
}

/// Whether the server ends the connection, discarding what it still sends.
async fn is_closed_by_server(io: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut sink = [0; 4096];
    let drain = async { while !matches!(io.read(&mut sink).await, Ok(0) | Err(_)) {} };
    timeout(Duration::from_secs(600), drain).await.is_ok()
}

async fn until(condition: impl Fn() -> bool) {
    crate::testing::until("the condition comes true", condition).await;
}

#[tokio::test]
async fn answers_over_tcp_in_the_form_of_the_request() {
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (trigger, shutdown) = Shutdown::new();
    let probe = Arc::new(Probe::default());
    let server = tokio::spawn(serve(
        listener,
        Arc::clone(&probe),
        Limits::default(),
        shutdown,
    ));

    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    for (opaque, serialize) in [(7, SerializeType::Json), (-1, SerializeType::RocketMq)] {
        let mut command = request(ECHO, opaque, "hello");
        command.serialize = serialize;
        send(&mut socket, &command).await;
        let answer = receive(&mut socket).await;
        assert_eq!((answer.opaque, answer.serialize), (opaque, serialize));
        assert!(answer.is_response());
        assert_eq!(&answer.body[..], b"hello");
    }
    drop(socket);
    until(|| probe.closed.load(Ordering::SeqCst) == 1).await;

    let client = Client::default();
    let addr = addr.to_string();
    let big = Bytes::from(vec![1; 3 << 20]);
    let answer = client
        .call(
            &addr,
            Command::request(ECHO).with_body(big.clone()),
            PATIENCE,
        )
        .await
        .unwrap();
    assert_eq!(answer.body, big);
    trigger.stop();
    server.await.unwrap();
    let refused = client.call(&addr, Command::request(ECHO), PATIENCE).await;
    assert!(matches!(
        refused,
        Err(CallError::Connect { .. } | CallError::Closed { .. })
    ));
}

#[tokio::test]
async fn a_tcp_connection_ends_with_all_answers_and_then_a_reset() {
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (trigger, shutdown) = Shutdown::new();
    let probe = Arc::new(Probe::default());
    let server = tokio::spawn(serve(
        listener,
        Arc::clone(&probe),
        Limits {
            drain: PATIENCE,
            write_stall: PATIENCE,
            ..Limits::default()
        },
        shutdown,
    ));
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    // More than the kernel's buffers hold, so that the end comes while some of it is on its way.
    let big = 10 << 20;
    send(&mut socket, &request(BYTES, 1, big.to_string())).await;
    until(|| probe.answered_bytes.load(Ordering::SeqCst) == big).await;
    trigger.stop();
    assert_eq!(receive(&mut socket).await.body.len(), big);
    let end = socket.read(&mut [0; 16]).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    server.await.unwrap();
}

#[tokio::test]
async fn a_suspended_request_does_not_delay_later_ones() {
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &request(SUSPEND, 1, "")).await;
    send(&mut io, &request(ECHO, 2, "x")).await;
    assert_eq!(receive(&mut io).await.opaque, 2);
    server.probe.release.notify_one();
    assert_eq!(receive(&mut io).await.opaque, 1);
}

#[tokio::test]
async fn requests_in_flight_go_on_without_their_connection() {
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &request(SUSPEND, 1, "")).await;
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 1).await;
    drop(io);
    until(|| server.probe.closed.load(Ordering::SeqCst) == 1).await;
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn oneway_requests_start_in_order_and_are_not_answered() {
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    for i in 0..100 {
        let mut note = request(NOTE, i, i.to_string());
        note.mark_oneway();
        send(&mut io, &note).await;
    }
    send(&mut io, &request(ECHO, 1000, "")).await;
    assert_eq!(receive(&mut io).await.opaque, 1000);
    let notes = server.probe.notes.lock().unwrap().clone();
    assert_eq!(
        notes,
        (0..100)
            .map(|i| Bytes::from(i.to_string()))
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_panicking_handler_is_answered_and_the_connection_lives_on() {
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    for code in [PANIC, PANIC_LATER] {
        send(&mut io, &request(code, code, "")).await;
        let answer = receive(&mut io).await;
        assert_eq!((answer.code, answer.opaque), (response::SYSTEM_ERROR, code));
    }
    send(&mut io, &request(ECHO, 9, "")).await;
    assert_eq!(receive(&mut io).await.opaque, 9);
}

#[tokio::test]
async fn both_sides_number_their_requests_on_their_own() {
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    // The server's first call has the number 0 too.
    send(&mut io, &request(ASK_BACK, 0, "ping")).await;
    let question = receive(&mut io).await;
    assert!(!question.is_response());
    assert_eq!((question.code, question.opaque), (ECHO, 0));
    send(
        &mut io,
        &question.reply(response::SUCCESS).with_body("pong".into()),
    )
    .await;
    let answer = receive(&mut io).await;
    assert!(answer.is_response());
    assert_eq!((answer.opaque, &answer.body[..]), (0, &b"pong"[..]));
    // An answer that nobody waits for is ignored.
    send(&mut io, &question.reply(response::SUCCESS)).await;
    send(&mut io, &request(ECHO, 5, "")).await;
    assert_eq!(receive(&mut io).await.opaque, 5);
}

#[tokio::test]
async fn a_call_ends_with_its_connection() {
    let server = start(Limits::default());
    let client = Client::new(switchboard(server.port), Limits::default());
    let pending = client.call("any:1", Command::request(SUSPEND), PATIENCE);
    let closing = async {
        until(|| server.probe.suspended.load(Ordering::SeqCst) == 1).await;
        client.disconnect("any:1").await;
    };
    let (result, ()) = tokio::join!(pending, closing);
    assert!(matches!(result, Err(CallError::Closed { .. })));
    // A handler that waits for the end of its connection sees it.
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 0).await;
    // The next call dials again.
    client
        .call("any:1", Command::request(ECHO), PATIENCE)
        .await
        .unwrap();
    assert_eq!(server.probe.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_silent_through_a_call_is_replaced() {
    let server = start(Limits::default());
    let client = Client::new(switchboard(server.port), Limits::default());
    let limit = Duration::from_secs(3);
    let result = client.call("any:1", Command::request(SUSPEND), limit).await;
    assert!(matches!(result, Err(CallError::Timeout { ms: 3000, .. })));
    client
        .call("any:1", Command::request(ECHO), limit)
        .await
        .unwrap();
    assert_eq!(server.probe.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_last_client_closes_its_connections() {
    let server = start(Limits::default());
    let client = Client::new(switchboard(server.port), Limits::default());
    client
        .call("any:1", Command::request(ECHO), PATIENCE)
        .await
        .unwrap();
    drop(client);
    until(|| server.probe.closed.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn bad_frames_end_their_connection_only() {
    let server = start(Limits::default());
    let mut good = server.port.connect(1 << 16).await.unwrap();
    let deep = {
        let header = "[".repeat(100_000);
        let mut frame = (header.len() as u32 + 4).to_be_bytes().to_vec();
        frame.extend((header.len() as u32).to_be_bytes());
        frame.extend(header.bytes());
        frame
    };
    let cases: [&[u8]; 8] = [
        &[0xFF; 64],
        &(-1i32).to_be_bytes(),
        &i32::MAX.to_be_bytes(),
        &(16i32 << 20).to_be_bytes(),
        &[0, 0, 0, 3],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 8, 0, 0, 0, 200, 1, 2, 3, 4],
        &deep,
    ];
    for (i, bytes) in cases.iter().enumerate() {
        let mut bad = server.port.connect(1 << 20).await.unwrap();
        bad.write_all(bytes).await.unwrap();
        assert!(is_closed_by_server(&mut bad).await, "case {i}");
        send(&mut good, &request(ECHO, 1, "still")).await;
        assert_eq!(&receive(&mut good).await.body[..], b"still");
    }
    until(|| server.probe.closed.load(Ordering::SeqCst) == cases.len()).await;
}

#[tokio::test]
async fn whoever_asks_for_health_is_told_even_if_nothing_else_is_drained() {
    let server = start(Limits {
        drain: Duration::ZERO,
        ..Limits::default()
    });
    let mut balancer = server.port.connect(1 << 10).await.unwrap();
    balancer
        .write_all(b"GET /leader HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut told = String::new();
    balancer.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 404"), "{told:?}");
}

#[tokio::test]
async fn a_connection_that_was_reset_before_it_is_accepted_is_no_trouble() {
    let mut listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    for _ in 0..3 {
        let gone = tokio::net::TcpStream::connect(addr).await.unwrap();
        gone.set_zero_linger().unwrap();
    }
    let here = tokio::net::TcpStream::connect(addr).await.unwrap();
    let accepted = Listener::accept(&mut listener).await.unwrap();
    assert_eq!(accepted.peer, here.local_addr().unwrap());
}

#[tokio::test(start_paused = true)]
async fn slow_or_silent_peers_are_closed_and_busy_ones_are_not() {
    let server = start(Limits::default());

    let begun = Instant::now();
    let mut silent = server.port.connect(64).await.unwrap();
    assert!(is_closed_by_server(&mut silent).await);
    assert_eq!(begun.elapsed().as_secs(), 10);

    let begun = Instant::now();
    let mut partial = server.port.connect(64).await.unwrap();
    partial.write_all(&[0, 0, 1]).await.unwrap();
    assert!(is_closed_by_server(&mut partial).await);
    assert_eq!(begun.elapsed().as_secs(), 30);

    let mut idle = server.port.connect(1 << 16).await.unwrap();
    send(&mut idle, &request(ECHO, 1, "")).await;
    receive(&mut idle).await;
    let begun = Instant::now();
    assert!(is_closed_by_server(&mut idle).await);
    assert_eq!(begun.elapsed().as_secs(), 120);

    // A frame begun long after the last one has the time of a frame, not the idle time.
    let mut late = server.port.connect(1 << 16).await.unwrap();
    send(&mut late, &request(ECHO, 1, "")).await;
    receive(&mut late).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        send(&mut late, &request(ECHO, 1, "")).await;
        receive(&mut late).await;
    }
    let begun = Instant::now();
    late.write_all(&[0]).await.unwrap();
    assert!(is_closed_by_server(&mut late).await);
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_until_one_ends() {
    let server = start(Limits {
        connections: 2,
        ..Limits::default()
    });
    let mut first = server.port.connect(1 << 16).await.unwrap();
    let mut second = server.port.connect(1 << 16).await.unwrap();
    send(&mut second, &request(ECHO, 1, "")).await;
    receive(&mut second).await;
    let mut third = server.port.connect(1 << 16).await.unwrap();
    assert!(is_closed_by_server(&mut third).await);
    send(&mut first, &request(ECHO, 1, "")).await;
    receive(&mut first).await;
    drop(first);
    until(|| server.probe.closed.load(Ordering::SeqCst) == 1).await;
    // The slot is free a moment after the callback.
    let served = async {
        loop {
            let mut next = server.port.connect(1 << 16).await.unwrap();
            let mut frame = BytesMut::new();
            request(ECHO, 1, "").encode(&mut frame);
            if next.write_all(&frame).await.is_ok() && next.read_u32().await.is_ok() {
                break;
            }
        }
    };
    timeout(PATIENCE, served).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_costs_a_bounded_amount_and_is_closed() {
    let limits = Limits {
        outbound_bytes: 100_000,
        ..Limits::default()
    };
    let server = start(limits);
    for code in [BYTES, PARTS] {
        server.probe.answered_bytes.store(0, Ordering::SeqCst);
        let mut slow = server.port.connect(1 << 12).await.unwrap();
        let begun = Instant::now();
        let mut frames = BytesMut::new();
        for i in 0..1000 {
            request(code, i, "50000").encode(&mut frames);
        }
        // The server stops reading, so this write does not end before the connection does.
        let written = timeout(Duration::from_secs(600), slow.write_all(&frames))
            .await
            .unwrap();
        assert!(written.is_err());
        assert_eq!(begun.elapsed().as_secs(), 30);
        // All that was read at once may have been started, no more.
        let answered = server.probe.answered_bytes.load(Ordering::SeqCst);
        assert!(answered <= 100_000 + 50_000 * 64, "{answered}");
    }
    let mut good = server.port.connect(1 << 16).await.unwrap();
    send(&mut good, &request(PARTS, 1, "300000")).await;
    assert_eq!(receive(&mut good).await.body, vec![7; 300_000]);
}

#[tokio::test]
async fn requests_beyond_what_may_be_in_flight_are_left_unread() {
    let limits = Limits {
        in_flight_bytes: 3 * Limits::REQUEST_BYTES_MIN,
        ..Limits::default()
    };
    let server = start(limits);
    let mut io = server.port.connect(1 << 16).await.unwrap();
    for i in 0..3 {
        send(&mut io, &request(SUSPEND, i, "")).await;
    }
    send(&mut io, &request(ECHO, 3, "")).await;
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 3).await;
    server.probe.release.notify_one();
    assert!(receive(&mut io).await.opaque < 3);
    assert_eq!(receive(&mut io).await.opaque, 3);
}

#[tokio::test]
async fn large_requests_of_all_connections_have_one_limit() {
    let server = start(Limits {
        memory_bytes: 8 * 500_000,
        request_wait: Duration::ZERO,
        ..Limits::default()
    });
    let mut frame = BytesMut::new();
    request(SUSPEND, 1, vec![0; 400_000]).encode(&mut frame);
    // Incomplete, then complete and being worked on: both count.
    for held in [frame.len() - 1, frame.len()] {
        // The network holds little, so nearly all of it has been read when this returns.
        let mut first = server.port.connect(1 << 10).await.unwrap();
        first.write_all(&frame[..held]).await.unwrap();
        let mut small = server.port.connect(1 << 16).await.unwrap();
        send(&mut small, &request(ECHO, 1, "")).await;
        receive(&mut small).await;
        let complete = usize::from(held == frame.len());
        until(|| server.probe.suspended.load(Ordering::SeqCst) == complete).await;
        let closed = server.probe.closed.load(Ordering::SeqCst);

        let mut second = server.port.connect(1 << 20).await.unwrap();
        second.write_all(&frame[..200_000]).await.unwrap();
        let refused = receive(&mut second).await;
        assert_eq!((refused.opaque, refused.code), (1, response::SYSTEM_BUSY));
        // The rest of it is not taken for anything else.
        second.write_all(&frame[200_000..]).await.unwrap();
        send(&mut second, &request(ECHO, 2, "next")).await;
        assert_eq!(&receive(&mut second).await.body[..], b"next");
        send(&mut small, &request(ECHO, 1, vec![1; 50_000])).await;
        assert_eq!(receive(&mut small).await.body.len(), 50_000);
        // Room again when the first is gone.
        drop((first, second, small));
        until(|| server.probe.closed.load(Ordering::SeqCst) == closed + 3).await;
        until(|| server.probe.suspended.load(Ordering::SeqCst) == 0).await;
    }
    let mut io = server.port.connect(1 << 20).await.unwrap();
    send(&mut io, &request(ECHO, 1, vec![1; 400_000])).await;
    assert_eq!(receive(&mut io).await.body.len(), 400_000);
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_requests_finish_within_the_deadline() {
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &request(SUSPEND, 1, "")).await;
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 1).await;
    server.trigger.stop();
    // It was under way when the client could not know.
    tokio::time::sleep(Duration::from_millis(20)).await;
    send(&mut io, &request(ECHO, 2, "in time")).await;
    assert_eq!(receive(&mut io).await.opaque, 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    send(&mut io, &request(ECHO, 3, "too late")).await;
    server.probe.release.notify_one();
    assert_eq!(receive(&mut io).await.opaque, 1);
    assert!(is_closed_by_server(&mut io).await);
    server.task.await.unwrap();
    assert_eq!(server.probe.closed.load(Ordering::SeqCst), 1);

    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &request(SUSPEND, 1, "")).await;
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 1).await;
    let begun = Instant::now();
    server.trigger.stop();
    server.task.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 5);
    assert!(is_closed_by_server(&mut io).await);

    // Where nothing is in flight it takes a moment of silence.
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &request(ECHO, 1, "")).await;
    assert_eq!(receive(&mut io).await.opaque, 1);
    let begun = Instant::now();
    server.trigger.stop();
    server.task.await.unwrap();
    assert!(begun.elapsed().as_millis() < 50);
    assert!(is_closed_by_server(&mut io).await);
}

#[tokio::test(start_paused = true)]
async fn a_java_client_is_signed_off_behind_all_answers_and_closes_by_itself() {
    let note = |opaque| Command {
        language: Language::JAVA,
        ..request(NOTE, opaque, opaque.to_string())
    };
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &request(SUSPEND, 1, "")).await;
    until(|| server.probe.suspended.load(Ordering::SeqCst) == 1).await;
    server.trigger.stop();
    // It writes without a pause, so that there is no quiet moment at all.
    let (mut input, mut output) = split(io);
    let writing = tokio::spawn(async move {
        for opaque in 2..2000 {
            send(&mut output, &note(opaque)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        output
    });
    let mut answered = Vec::new();
    loop {
        let mut frame = vec![0; 4];
        input.read_exact(&mut frame).await.unwrap();
        let len = frame::peek_len(&frame).unwrap().unwrap();
        frame.resize(4 + len, 0);
        input.read_exact(&mut frame[4..]).await.unwrap();
        if frame == [0, 0, 0, 4, 0, 0, 0, 1] {
            break;
        }
        let answer = Command::decode(Bytes::from(frame).slice(4..)).unwrap();
        answered.push(answer.opaque);
        if answered.len() == 100 {
            server.probe.release.notify_one();
        }
    }
    // What was begun is answered, and nothing else was begun: it may be tried elsewhere.
    let noted = server.probe.notes.lock().unwrap().len();
    assert!(noted > 100);
    answered.sort_unstable();
    assert!(answered.into_iter().eq((1..).take(noted + 1)));
    // What it has written before it saw that meets no reset.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!server.task.is_finished());
    assert!(!writing.is_finished());
    writing.abort();
    drop((input, writing.await));
    server.task.await.unwrap();
    assert_eq!(server.probe.notes.lock().unwrap().len(), noted);

    // One that stays is closed.
    let server = start(Limits::default());
    let mut io = server.port.connect(1 << 16).await.unwrap();
    send(&mut io, &note(1)).await;
    receive(&mut io).await;
    let begun = Instant::now();
    server.trigger.stop();
    server.task.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 1);

    // Our own client takes it for the end that it is.
    let server = start(Limits::default());
    let client = Client::new(switchboard(server.port.clone()), Limits::default());
    let conn = client.connect("any:1", PATIENCE).await.unwrap();
    let noted = client.call("any:1", note(1), PATIENCE).await;
    assert_eq!(noted.unwrap().code, response::SUCCESS);
    let begun = Instant::now();
    server.trigger.stop();
    server.task.await.unwrap();
    assert!(begun.elapsed().as_millis() < 50);
    assert!(conn.is_closed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever arrives in whatever pieces, the server ends the connection or answers, and goes on.
    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        plausible in any::<bool>(),
        cut in 0usize..200,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let server = start(Limits::default());
            let mut io = server.port.connect(1 << 12).await.unwrap();
            let mut sent = Vec::new();
            if plausible {
                // A frame of right length whose content is arbitrary.
                sent.extend((bytes.len() as u32 + 4).to_be_bytes());
                sent.extend([bytes.len() as u8 & 1, 0, 0, bytes.len() as u8]);
            }
            sent.extend(&bytes);
            let (head, tail) = sent.split_at(cut.min(sent.len()));
            // The server may close in between.
            io.write_all(head).await.ok();
            tokio::task::yield_now().await;
            io.write_all(tail).await.ok();
            prop_assert!(is_closed_by_server(&mut io).await);
            let mut good = server.port.connect(1 << 12).await.unwrap();
            send(&mut good, &request(ECHO, 1, "")).await;
            prop_assert_eq!(receive(&mut good).await.opaque, 1);
            Ok(())
        })?;
    }

    /// Frames cut anywhere come out whole and in order.
    #[test]
    fn frames_are_found_in_any_pieces(
        sizes in proptest::collection::vec(0usize..20_000, 1..8),
        cuts in proptest::collection::vec(1usize..9_000, 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let server = start(Limits::default());
            let io = server.port.connect(1 << 20).await.unwrap();
            let (mut reader, mut writer) = split(io);
            let mut sent = BytesMut::new();
            for (i, size) in sizes.iter().enumerate() {
                request(ECHO, i as i32, vec![i as u8; *size]).encode(&mut sent);
            }
            let writing = async {
                let mut cuts = cuts.iter().cycle();
                while !sent.is_empty() {
                    let piece = sent.split_to(sent.len().min(*cuts.next().unwrap()));
                    writer.write_all(&piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let reading = async {
                let mut answers = Vec::new();
                for _ in &sizes {
                    answers.push(receive(&mut reader).await);
                }
                answers
            };
            let ((), answers) = tokio::join!(writing, reading);
            for (i, (answer, size)) in answers.iter().zip(&sizes).enumerate() {
                prop_assert_eq!(answer.opaque, i as i32);
                prop_assert_eq!(&answer.body[..], &vec![i as u8; *size][..]);
            }
            Ok(())
        })?;
    }
}
