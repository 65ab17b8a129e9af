//! Strangers, garbage, and clients' requests for the leader.

use super::*;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::coop::unconstrained;

use crate::raft::peer::caller::{CallError, Target, connect};
use crate::raft::peer::messages::{
    Forward, Hello, Message, PROTOCOL_VERSION, Purpose, VoteRequest,
};
use crate::raft::peer::server::NotLeader;
use crate::raft::peer::wire::{FrameReader, Kind, MAX_FRAME, OutFrame, Role};
use crate::raft::types::Vote;
use crate::raft::{Departure, Patience};

/// A node that has nothing but an introduction.
fn caller(group_name: &str, id: u16, group: Option<GroupId>, peers: &PeerList) -> Dialer {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk);
    let path = dir.path().join("raft.identity");
    let identity = Identity::open(disk, &path, group_name, SelfId(id), true, 5);
    let mut identity = identity.unwrap();
    if let Some(group) = group {
        identity.agree(group).unwrap();
    }
    let local = Local::new(
        group_name.to_owned(),
        SelfId(id),
        String::new(),
        peers.clone(),
        BrokerNode::default(),
        identity,
    );
    Dialer {
        net: Arc::new(Tcp),
        local: Arc::new(local),
        runtime: Handle::current(),
    }
}

async fn refusal(
    dialer: &Dialer,
    cluster: &Cluster,
    node: Option<NodeId>,
    purpose: Purpose,
) -> String {
    let target = Target {
        addr: cluster.peers.addr(SelfId(0)).unwrap().to_owned(),
        node,
    };
    match connect(dialer, &target, purpose).await {
        Err(CallError::Refused(refusal)) => refusal.reason,
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it was let in"),
    }
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let cluster = Cluster::new(3).await;
    let node = cluster.start(0).await;
    let here = node.local.node;
    let peers = &cluster.peers;

    let stranger = caller("broker-b", 1, None, peers);
    assert_eq!(
        refusal(&stranger, &cluster, None, Purpose::Meet).await,
        "this is n0 of broker group \"broker-a\", you are of \"broker-b\""
    );
    let twin = caller("broker-a", 0, None, peers);
    assert_eq!(
        refusal(&twin, &cluster, None, Purpose::Meet).await,
        format!("this is n0 (node {here}), and so are you (node 5)")
    );
    let group = GroupId([1; 16]);
    let peer = caller("broker-a", 1, Some(group), peers);
    assert_eq!(
        refusal(&peer, &cluster, Some(77), Purpose::Control).await,
        format!("this is n0 (node {here}), you want n0 (node 77)")
    );
    assert_eq!(
        refusal(&peer, &cluster, Some(here), Purpose::Log).await,
        "this is n0, which belongs to no group yet"
    );
    let own = GroupId([2; 16]);
    node.local.identity.write().await.agree(own).unwrap();
    assert_eq!(
        refusal(&peer, &cluster, Some(here), Purpose::Control).await,
        format!(
            "this is n0 of group {own}, you are of group {group}: two groups share the name \
             \"broker-a\""
        )
    );
    let lonely = caller("broker-a", 1, None, peers);
    assert_eq!(
        refusal(&lonely, &cluster, Some(here), Purpose::Log).await,
        "you belong to no group yet"
    );
}

/// Sends `bytes` on a new connection and reads until the node hangs up.
async fn answer_to(cluster: &Cluster, bytes: &[u8]) -> Vec<u8> {
    let addr = cluster.peers.addr(SelfId(0)).unwrap();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // A reset is as good an end as any.
    drop(
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("it hangs up"),
    );
    answer
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let cluster = Cluster::new(3).await;
    let node = cluster.start(0).await;
    let peer = caller("broker-a", 1, None, &cluster.peers);
    let hello = Hello {
        purpose: Purpose::Meet,
        target: None,
        seal: peer.local.secret.seal(),
        from: peer.local.info().await,
    };
    let frame = |kind, head: &[u8]| OutFrame::new(kind, Role::Request, 1, head, vec![]).lead;
    let good = frame(Kind::Hello, &hello.to_head()).to_vec();
    let vote = VoteRequest::new(Vote::new(1, 1), None).to_head();

    let not_a_hello = frame(Kind::Vote, &vote);
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        &[0; 64],
        &not_a_hello,
    ] {
        assert!(answer_to(&cluster, bytes).await.is_empty());
    }
    for second in [frame(Kind::Vote, &vote), frame(Kind::Form, b"no such form")] {
        let mut bytes = good.clone();
        bytes.extend_from_slice(&second);
        // The hello alone is answered.
        assert!(!answer_to(&cluster, &bytes).await.is_empty());
    }
    let later_version = frame(Kind::Hello, b"rmqP\x00\x63");
    let answer = answer_to(&cluster, &later_version).await;
    let reason = format!("protocol version 99, this node speaks {PROTOCOL_VERSION}");
    let said = |part: &[u8]| part == reason.as_bytes();
    assert!(answer.windows(reason.len()).any(said));
    node.stop().await;
}

fn client(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

/// Three nodes that answer clients' requests like this.
async fn answering(cluster: &Cluster, handler: &ForwardHandler) -> Vec<Running> {
    let mut nodes = Vec::new();
    for id in 0..3 {
        let differs = Differs {
            forward: Some(Arc::clone(handler)),
            ..Differs::default()
        };
        nodes.push(cluster.start_as(id, differs).await);
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_forwarded_to_the_leader_and_to_nobody_else() {
    let cluster = Cluster::new(3).await;
    let handler: ForwardHandler = Arc::new(|client, frame| {
        Box::pin(async move {
            // Later requests are answered first.
            let left = 200u64.saturating_sub(client.port().into());
            tokio::time::sleep(Duration::from_millis(left / 4)).await;
            if client.port() == 7 {
                return Err(NotLeader);
            }
            Ok((client.port() % 5 != 0).then(|| Bytes::from([&frame[..], b"!"].concat())))
        })
    });
    let nodes = answering(&cluster, &handler).await;
    let newest_term = || {
        let terms = nodes
            .iter()
            .map(|node| node.raft.metrics().borrow_watched().current_term);
        terms.max()
    };
    until_ok("nobody is elected meanwhile", async || {
        let term = newest_term();
        let leader = leader(&nodes).await;
        let followers: Vec<_> = nodes
            .iter()
            .filter(|node| node.local.node != leader.local.node)
            .collect();
        let from = followers[0];
        let calls = (0..200).map(|port| async move {
            let frame = Bytes::from(format!("request {port}"));
            let addr = &leader.local.addrs.raft_addr;
            let answer =
                from.network
                    .forward(leader.local.node, addr, client(port), frame, PATIENCE);
            answer.await
        });
        let answers = join_all(calls).await;
        let to = &followers[1].local;
        let addr = &to.addrs.raft_addr;
        let elsewhere = from
            .network
            .forward(to.node, addr, client(1), Bytes::new(), PATIENCE);
        let elsewhere = elsewhere.await;
        if !leader.peers.shared.leads() || newest_term() != term {
            return Err(answers);
        }
        for (port, answer) in answers.into_iter().enumerate() {
            if port == 7 {
                assert!(
                    matches!(answer, Err(ForwardError::NotDone(_))),
                    "{answer:?}"
                );
                continue;
            }
            let expected = (port % 5 != 0).then(|| Bytes::from(format!("request {port}!")));
            assert_eq!(answer.unwrap(), expected);
        }
        match elsewhere {
            Err(ForwardError::NotDone(reason)) => {
                assert_eq!(reason, format!("{} does not lead", to.self_id));
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_behind_what_the_leader_lets_wait() {
    const PULLS: usize = 2000;
    let cluster = Cluster::new(3).await;
    let waiting = Arc::new(AtomicUsize::new(0));
    let pulls_at_leader = Arc::clone(&waiting);
    let handler: ForwardHandler = Arc::new(move |_, frame| {
        let waiting = Arc::clone(&pulls_at_leader);
        Box::pin(async move {
            if &frame[..] == b"pull" {
                waiting.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            Ok(Some(frame))
        })
    });
    let nodes = answering(&cluster, &handler).await;
    until_ok("a send is answered", async || {
        waiting.store(0, Ordering::SeqCst);
        let leader = leader(&nodes).await;
        let from = nodes
            .iter()
            .find(|node| node.local.node != leader.local.node);
        let network = &from.unwrap().network;
        let (node, addr) = (leader.local.node, &leader.local.addrs.raft_addr);
        let pull = || Patience {
            limit: PATIENCE,
            is_pull: true,
            departure: Departure::default(),
        };
        let mut pulls: FuturesUnordered<_> = (0..PULLS)
            .map(|_| network.forward(node, addr, client(1), "pull".into(), pull()))
            .collect();
        let send = async {
            // One that waits here hears of no message.
            until("each pull waits at the leader", || {
                waiting.load(Ordering::SeqCst) >= PULLS
            })
            .await;
            let limit = Duration::from_secs(5);
            network
                .forward(node, addr, client(2), "send".into(), limit)
                .await
        };
        tokio::select! {
            biased;
            // As when another one is elected meanwhile.
            ended = pulls.next() => Err(format!("{ended:?}")),
            answer = send => match answer {
                Ok(Some(answer)) if answer == "send" => Ok(()),
                other => Err(format!("{other:?}")),
            },
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_requests_begin_in_the_order_of_their_arrival() {
    const CALLS: u16 = 500;
    let cluster = Cluster::new(3).await;
    let begun = Arc::new(Mutex::new(Vec::new()));
    let handler: ForwardHandler = {
        let begun = Arc::clone(&begun);
        Arc::new(move |client, frame| {
            let begun = Arc::clone(&begun);
            Box::pin(async move {
                // As a place in the log is taken: a wait even for nothing would come too late.
                tokio::task::consume_budget().await;
                begun.lock().unwrap().push(client.port());
                if client.port() % 3 != 0 {
                    tokio::task::yield_now().await;
                }
                Ok(Some(frame))
            })
        })
    };
    let nodes = answering(&cluster, &handler).await;
    until_ok("nobody is elected meanwhile", async || {
        let leader = leader(&nodes).await;
        let from = nodes
            .iter()
            .find(|node| node.local.node != leader.local.node);
        let network = &from.unwrap().network;
        let (node, addr) = (leader.local.node, &leader.local.addrs.raft_addr);
        begun.lock().unwrap().clear();
        let calls = (0..CALLS).map(|port| async move {
            let frame = Bytes::from(port.to_string());
            let answer = network.forward(node, addr, client(port), frame, PATIENCE);
            (port, answer.await)
        });
        // They go on their way in this order.
        for (port, answer) in unconstrained(join_all(calls)).await {
            match answer {
                Ok(answer) => assert_eq!(answer.unwrap(), port.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })
    .await;
    let begun = begun.lock().unwrap();
    assert!(begun.is_sorted(), "{begun:?}");
    assert_eq!(begun.len(), usize::from(CALLS));
}

/// A follower that reads nothing, as behind a link that is far slower than the leader.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_end_the_reading_of_requests() {
    // Another cluster each time that an election comes in between.
    until_ok("all requests are answered", forward_and_read_late).await;
}

/// Otherwise how many requests were begun, or answered.
async fn forward_and_read_late() -> Result<(), u64> {
    const ANSWER: usize = 1 << 20;
    const CALLS: u64 = 200;
    let cluster = Cluster::new(3).await;
    let begun = Arc::new(AtomicU64::new(0));
    let handler: ForwardHandler = {
        let begun = Arc::clone(&begun);
        Arc::new(move |_, _| {
            begun.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(Some(vec![0; ANSWER].into())) })
        })
    };
    let nodes = answering(&cluster, &handler).await;
    let leader = leader(&nodes).await;
    let group = leader.local.info().await.group;
    let id = SelfId((SelfId::of(leader.local.node).0 + 1) % 3);
    let peer = caller("broker-a", id.0, group, &cluster.peers);
    let hello = Hello {
        purpose: Purpose::Forward,
        target: None,
        seal: peer.local.secret.seal(),
        from: peer.local.info().await,
    };
    let mut stream = TcpStream::connect(&leader.local.addrs.raft_addr)
        .await
        .unwrap();
    let request = |kind, id, head: &[u8]| OutFrame::new(kind, Role::Request, id, head, vec![]).lead;
    let hello = request(Kind::Hello, 0, &hello.to_head());
    stream.write_all(&hello).await.unwrap();
    let forward = Forward { client: client(1) }.to_head();
    for id in 1..=CALLS {
        stream
            .write_all(&request(Kind::Forward, id, &forward))
            .await
            .unwrap();
    }
    let (mut before, mut last) = (u64::MAX, 0);
    while last != before {
        tokio::time::sleep(Duration::from_millis(200)).await;
        before = std::mem::replace(&mut last, begun.load(Ordering::SeqCst));
    }
    assert!(last < 100, "{last} answers of {ANSWER} bytes are in memory");
    if last <= 10 {
        return Err(last);
    }
    // Whoever reads gets them all.
    let mut reader = FrameReader::new(stream, MAX_FRAME);
    let mut answers = 0;
    while answers < CALLS {
        let Ok(Some(frame)) = reader.next().await else {
            return Err(answers);
        };
        answers += u64::from(frame.kind == Kind::Forward);
    }
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_request_whose_connection_dies_has_an_unknown_outcome() {
    // Another cluster each time that an election comes in between.
    until_ok("all outcomes are unknown", forward_to_one_that_hangs_up).await;
}

async fn forward_to_one_that_hangs_up() -> Result<(), Vec<Result<Option<Bytes>, ForwardError>>> {
    const CALLS: u16 = 20;
    let cluster = Cluster::new(3).await;
    // Requests that have arrived, or have an answer without.
    let seen = Arc::new((AtomicUsize::new(0), Notify::new()));
    let see = {
        let seen = Arc::clone(&seen);
        move || {
            seen.0.fetch_add(1, Ordering::Relaxed);
            seen.1.notify_one();
        }
    };
    let handler: ForwardHandler = {
        let see = see.clone();
        Arc::new(move |_, _| {
            see();
            Box::pin(std::future::pending())
        })
    };
    let mut nodes = answering(&cluster, &handler).await;
    let leading = leader(&nodes).await.local.node;
    let at = nodes
        .iter()
        .position(|node| node.local.node == leading)
        .unwrap();
    let leader = nodes.remove(at);
    let addr = leader.local.addrs.raft_addr.clone();
    let network = &nodes[0].network;
    let forward = |port| network.forward(leading, &addr, client(port), Bytes::new(), PATIENCE);
    let calls = join_all((0..CALLS).map(|port| {
        let (call, see) = (forward(port), &see);
        async move {
            let answer = call.await;
            see();
            answer
        }
    }));
    let stop = async {
        while seen.0.load(Ordering::Relaxed) < usize::from(CALLS) {
            seen.1.notified().await;
        }
        leader.peers.shutdown().await;
    };
    let (answers, ()) = tokio::join!(calls, stop);
    let is_unknown = |answer: &Result<_, _>| matches!(answer, Err(ForwardError::Unknown(_)));
    if !answers.iter().all(is_unknown) {
        return Err(answers);
    }
    assert!(matches!(forward(1).await, Err(ForwardError::NotDone(_))));
    Ok(())
}
