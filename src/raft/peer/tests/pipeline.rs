//! Replication to followers that misbehave, over a network within the process and in virtual time.

use super::*;

use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt, stream};
use openraft::errors::RPCError;
use openraft::network::RPCOption;
use openraft::raft::StreamAppendError;
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::mpsc;

use crate::raft::peer::messages::{
    AppendRequest, AppendResult, Hello, Message, NodeInfo, VoteRequest, decode_append,
};
use crate::raft::peer::network::{Link, MAX_APPENDS};
use crate::raft::peer::wire::{Frame, FrameReader, Kind, MAX_FRAME, OutFrame, Role, write_frames};
use crate::raft::types::{Body, LeaderId, LogEntry, SealedRef, Vote};

/// Gives the other end of each dialled connection to whoever plays the peer.
struct Inside(Mutex<mpsc::UnboundedSender<Duplex>>);

fn inside() -> (Arc<Inside>, mpsc::UnboundedReceiver<Duplex>) {
    #[expect(clippy::disallowed_methods, reason = "a test dials a few times")]
    let (dialled, accepted) = mpsc::unbounded_channel();
    (Arc::new(Inside(Mutex::new(dialled))), accepted)
}

impl Net for Inside {
    fn dial(&self, _addr: &str) -> BoxFuture<'static, std::io::Result<Duplex>> {
        let (here, there) = tokio::io::duplex(1 << 16);
        let half = |end| {
            let (read, write) = tokio::io::split(end);
            Duplex {
                read: Box::new(read),
                write: Box::new(write),
                peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            }
        };
        let dialled = self.0.lock().unwrap().send(half(there)).is_ok();
        Box::pin(async move {
            if dialled {
                Ok(half(here))
            } else {
                Err(std::io::ErrorKind::ConnectionRefused.into())
            }
        })
    }
}

const PEER: NodeId = 1 << 48 | 9;

fn info(id: u16, node: NodeId) -> NodeInfo {
    NodeInfo {
        group_name: "broker-a".into(),
        group: Some(GroupId([1; 16])),
        holds_group: true,
        self_id: SelfId(id),
        node,
        genesis: String::new(),
        peers: PeerList::default(),
        addrs: BrokerNode::default(),
    }
}

async fn link(net: Arc<Inside>, pipelined: bool) -> Link {
    let dir = tempfile::tempdir().unwrap();
    let mut identity = open_identity(dir.path(), SelfId(0), true);
    identity.agree(GroupId([1; 16])).unwrap();
    let local = Local::new(
        "broker-a".to_owned(),
        SelfId(0),
        String::new(),
        PeerList::default(),
        BrokerNode::default(),
        identity,
    );
    let mut network = Network::new(
        net,
        Arc::new(local),
        Arc::new(|| Some(id(9))),
        Throttle::new(0),
    );
    if pipelined {
        network.new_client(PEER, &BrokerNode::default()).await
    } else {
        network
            .new_heartbeat_client(PEER, &BrokerNode::default())
            .await
    }
}

/// A peer's end of a connection.
struct End {
    reader: FrameReader<Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin>>,
    write: Box<dyn tokio::io::AsyncWrite + Send + Sync + Unpin>,
}

impl End {
    /// Accepts the next connection and introduces the peer.
    async fn accept(accepted: &mut mpsc::UnboundedReceiver<Duplex>) -> Self {
        let duplex = accepted.recv().await.unwrap();
        let mut end = Self {
            reader: FrameReader::new(duplex.read, MAX_FRAME),
            write: duplex.write,
        };
        let hello = end.read().await.unwrap();
        assert_eq!(Hello::from_head(&hello.head).unwrap().target, Some(PEER));
        end.answer(&hello, &info(1, PEER)).await;
        end
    }

    async fn read(&mut self) -> Option<Frame> {
        self.reader.next().await.unwrap()
    }

    async fn answer(&mut self, request: &Frame, message: &impl Message) {
        let head = message.to_head();
        let frame = OutFrame::new(request.kind, Role::Answer, request.id, &head, vec![]);
        write_frames(&mut self.write, [frame]).await.unwrap();
    }
}

fn id(index: u64) -> LogId {
    LogId {
        leader_id: LeaderId {
            term: 1,
            node_id: 5,
        },
        index,
    }
}

/// Appends of one entry of `bytes` each, at 0, 1, 2 and so on.
fn appends(bytes: usize) -> impl Stream<Item = AppendRequest> + Send + Unpin {
    let payload = Bytes::from(vec![7; bytes]);
    stream::iter((0..).map(move |index: u64| AppendRequest {
        vote: Vote::new_committed(1, 5),
        prev_log_id: index.checked_sub(1).map(id),
        entries: vec![LogEntry {
            id: id(index),
            body: Body::Sealed(SealedRef {
                raw: vec![payload.clone()],
                membership: None,
            }),
        }],
        leader_commit: None,
    }))
}

fn option() -> RPCOption {
    RPCOption::new(Duration::from_millis(50))
}

#[tokio::test(start_paused = true)]
async fn no_more_is_sent_to_a_silent_follower_than_the_window_holds() {
    for (bytes, most) in [(10, MAX_APPENDS), (4 << 20, 7)] {
        let (net, mut accepted) = inside();
        let mut link = link(net, true).await;
        let follower = async {
            let mut end = End::accept(&mut accepted).await;
            let mut received = 0;
            while let Some(frame) = end.read().await {
                assert_eq!(frame.kind, Kind::Append);
                received += 1;
            }
            received
        };
        let leader = async {
            let mut answers = link.stream_append(appends(bytes), option()).await.unwrap();
            let first = answers.next().await.unwrap();
            assert!(matches!(first, Err(RPCError::Timeout(_))), "{first:?}");
            assert!(answers.next().await.is_none());
        };
        let (received, ()) = tokio::join!(follower, leader);
        assert_eq!(received, most, "appends of {bytes} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_order_and_the_connection_is_used_again() {
    let (net, mut accepted) = inside();
    let mut link = link(net, true).await;
    let follower = async {
        let mut end = End::accept(&mut accepted).await;
        for _ in 0..2 {
            for index in 0..200 {
                let frame = end.read().await.unwrap();
                let append = decode_append(&frame.head, frame.raw.clone()).unwrap();
                assert_eq!(append.request.entries[0].id, id(index));
                assert_eq!(append.leader_last, Some(id(9)));
                end.answer(&frame, &AppendResult::Ok(Some(id(index)))).await;
            }
        }
        end
    };
    let leader = async {
        for _ in 0..2 {
            let input = appends(100).take(200);
            let answers = link.stream_append(input, option()).await.unwrap();
            let answers: Vec<_> = answers
                .map(|answer| answer.unwrap().unwrap())
                .collect()
                .await;
            assert_eq!(
                answers,
                (0..200).map(|index| Some(id(index))).collect::<Vec<_>>()
            );
        }
    };
    let (_end, ()) = tokio::join!(follower, leader);
    assert!(accepted.try_recv().is_err(), "one connection was enough");
}

#[tokio::test(start_paused = true)]
async fn what_only_says_what_is_committed_goes_with_the_next_entries() {
    let (net, mut accepted) = inside();
    let mut link = link(net, true).await;
    let (requests, mut input) = mpsc::channel(1);
    let input = stream::poll_fn(move |cx| input.poll_recv(cx));
    let follower = async {
        let mut end = End::accept(&mut accepted).await;
        let begun = tokio::time::Instant::now();
        let mut arrived = Vec::new();
        while let Some(frame) = end.read().await {
            let append = decode_append(&frame.head, frame.raw.clone()).unwrap();
            let entries = append.request.entries.len();
            arrived.push((begun.elapsed().as_millis(), entries));
            end.answer(&frame, &AppendResult::Ok(Some(id(0)))).await;
        }
        arrived
    };
    let leader = async move {
        let answers = link.stream_append(input, option()).await.unwrap();
        let feed = async {
            for (after_ms, entries) in [(0, 0), (100, 0), (3, 1), (100, 0)] {
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                let mut request = appends(10).next().await.unwrap();
                request.entries.truncate(entries);
                requests.send(request).await.unwrap();
            }
            drop(requests);
        };
        let (answers, ()) = tokio::join!(answers.count(), feed);
        assert_eq!(answers, 4);
    };
    let (arrived, ()) = tokio::join!(follower, leader);
    let (at, entries): (Vec<_>, Vec<_>) = arrived.into_iter().unzip();
    assert_eq!(entries, [0, 0, 1, 0]);
    // Alone after its wait, with an entry, and with the end of the stream.
    let early = |ms: u128, due: u128| (due..=due + 3).contains(&ms);
    assert!(
        early(at[0], 10) && early(at[1], 103) && early(at[3], 203),
        "{at:?}"
    );
    assert_eq!(at[1], at[2]);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_ends_the_stream_and_the_next_one_dials_again() {
    let (net, mut accepted) = inside();
    let mut link = link(net, true).await;
    let follower = async {
        for _ in 0..2 {
            let mut end = End::accept(&mut accepted).await;
            let frame = end.read().await.unwrap();
            let conflict = AppendResult::Err(StreamAppendError::Conflict(id(3)));
            end.answer(&frame, &conflict).await;
            while end.reader.next().await.is_ok_and(|frame| frame.is_some()) {}
        }
    };
    let leader = async {
        for _ in 0..2 {
            let mut answers = link.stream_append(appends(100), option()).await.unwrap();
            let conflict = answers.next().await.unwrap().unwrap();
            assert_eq!(conflict, Err(StreamAppendError::Conflict(id(3))));
            assert!(answers.next().await.is_none());
        }
    };
    tokio::join!(follower, leader);
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_and_wrong_answers_end_the_stream() {
    for wrong_answer in [false, true] {
        let (net, mut accepted) = inside();
        let mut link = link(net, true).await;
        let follower = async {
            let mut end = End::accept(&mut accepted).await;
            let mut frame = end.read().await.unwrap();
            if wrong_answer {
                frame.id += 1;
                end.answer(&frame, &AppendResult::Ok(None)).await;
                while end.reader.next().await.is_ok_and(|frame| frame.is_some()) {}
            }
        };
        let leader = async {
            let mut answers = link.stream_append(appends(100), option()).await.unwrap();
            let error = answers.next().await.unwrap();
            assert!(matches!(error, Err(RPCError::Network(_))), "{error:?}");
            assert!(answers.next().await.is_none());
        };
        tokio::join!(follower, leader);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_there_or_does_not_answer_is_unreachable() {
    let vote = || VoteRequest::new(Vote::new(1, 5), None);
    let patient = || RPCOption::new(Duration::from_secs(5));

    let (net, accepted) = inside();
    drop(accepted);
    let mut nobody = link(net, true).await;
    let error = nobody.pre_vote(vote(), patient()).await;
    assert!(matches!(error, Err(RPCError::Unreachable(_))), "{error:?}");
    let error = nobody.stream_append(appends(1), option()).await.err();
    assert!(matches!(error, Some(RPCError::Unreachable(_))), "{error:?}");

    let (net, _accepted) = inside();
    let mut silent = link(net, true).await;
    let error = silent.vote(vote(), patient()).await;
    assert!(matches!(error, Err(RPCError::Unreachable(_))), "{error:?}");

    let (net, mut accepted) = inside();
    let mut frozen = link(net, false).await;
    let peer = async {
        let end = End::accept(&mut accepted).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        drop(end);
    };
    let candidate = async {
        let error = frozen.vote(vote(), patient()).await;
        assert!(matches!(error, Err(RPCError::Timeout(_))), "{error:?}");
    };
    tokio::join!(peer, candidate);
}
