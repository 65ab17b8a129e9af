//! Connections that live with Raft, on its only thread.

use std::sync::mpsc;
use std::thread;

use super::*;
use crate::testing::own_loopback;

/// Brief, and alone in that: answers with the name of the thread that works on it.
const WHERE: i32 = 1;
/// Keeps its thread until released, and then answers as the other.
const BLOCK: i32 = 2;
const FAIL: i32 = 3;
/// Is written down.
const LIST: i32 = 4;

struct Threads {
    begun: AtomicUsize,
    notes: Mutex<Vec<Bytes>>,
    release: Mutex<mpsc::Receiver<()>>,
}

impl Service for Threads {
    async fn call(self: Arc<Self>, request: Request) -> Option<Reply> {
        match request.command.code {
            BLOCK => {
                self.begun.fetch_add(1, Ordering::SeqCst);
                self.release.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            FAIL => panic!("as asked"),
            LIST => self
                .notes
                .lock()
                .unwrap()
                .push(request.command.body.clone()),
            _ => tokio::task::yield_now().await,
        }
        let name = thread::current().name().unwrap_or_default().to_owned();
        let reply = request.command.reply(response::SUCCESS);
        Some(reply.with_body(name.into_bytes().into()).into())
    }

    fn is_brief(&self, command: &Command) -> bool {
        command.code == WHERE
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_take_long_never_holds_up_the_thread_of_raft() {
    let raft = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("raft")
        .enable_all()
        .build()
        .unwrap();
    let listener = Tcp::bind((own_loopback(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (release, released) = mpsc::channel();
    let service = Arc::new(Threads {
        begun: AtomicUsize::new(0),
        notes: Mutex::default(),
        release: Mutex::new(released),
    });
    let (stop, stopping) = Shutdown::new();
    let housing = Housing {
        listener,
        homes: Homes::new(Some(raft.handle().clone())),
    };
    let limits = Limits::default();
    let server = tokio::spawn(serve(housing, Arc::clone(&service), limits, stopping));

    let clients = [(); 3].map(|()| Client::default());
    let ask = |client: usize, code| {
        let (client, address) = (clients[client].clone(), address.clone());
        async move {
            let answer = client.call(&address, Command::request(code), PATIENCE);
            let answer = answer.await.unwrap();
            (
                answer.code,
                String::from_utf8(answer.body.to_vec()).unwrap(),
            )
        }
    };
    let raft_thread = (response::SUCCESS, "raft".to_owned());
    for (client, is_near) in [(0, true), (1, true), (2, false)] {
        assert_eq!(ask(client, WHERE).await == raft_thread, is_near, "{client}");
    }

    let blocked = tokio::spawn(ask(0, BLOCK));
    crate::testing::until("it is worked on", || {
        service.begun.load(Ordering::SeqCst) == 1
    })
    .await;
    for client in 0..2 {
        assert_eq!(ask(client, WHERE).await, raft_thread, "{client}");
    }
    release.send(()).unwrap();
    let (code, thread) = blocked.await.unwrap();
    assert_eq!(code, response::SUCCESS);
    assert_ne!(thread, "raft");

    assert_eq!(ask(0, FAIL).await.0, response::SYSTEM_ERROR);
    assert_eq!(ask(0, WHERE).await, raft_thread);

    let numbers = || (0..100u8).map(|number| Bytes::from(vec![number]));
    for number in numbers() {
        let note = Command::request(LIST).with_body(number);
        clients[1].oneway(&address, note, PATIENCE).await.unwrap();
    }
    let noted = || service.notes.lock().unwrap().clone();
    crate::testing::until("all is noted", || noted().len() == 100).await;
    assert!(noted().into_iter().eq(numbers()));

    // A server that stops waits for what is worked on elsewhere, too.
    let last = tokio::spawn(ask(1, BLOCK));
    crate::testing::until("it is worked on", || {
        service.begun.load(Ordering::SeqCst) == 2
    })
    .await;
    stop.stop();
    release.send(()).unwrap();
    assert_eq!(last.await.unwrap().0, response::SUCCESS);
    drop(clients);
    server.await.unwrap();
    raft.shutdown_background();
}
