use super::raft::TransferResult;
use super::*;

use std::collections::BTreeSet;
use std::fmt::Debug;

use bytes::Bytes;
use openraft::raft::{StreamAppendError, TransferLeaderError};

use proptest::prelude::*;

use crate::raft::types::{Body, LeaderId, LogEntry, LogId, SealedRef, Vote};

fn log_id() -> impl Strategy<Value = LogId> {
    any::<(u64, u64, u64)>().prop_map(|(term, node_id, index)| LogId {
        leader_id: LeaderId { term, node_id },
        index,
    })
}

fn vote() -> impl Strategy<Value = Vote> {
    any::<(u64, u64, bool)>().prop_map(|(term, node_id, committed)| Vote {
        leader_id: LeaderId { term, node_id },
        committed,
    })
}

fn addrs() -> impl Strategy<Value = BrokerNode> {
    ("[a-z0-9.]{0,20}:[0-9]{1,5}", "[a-z0-9.]{0,20}").prop_map(|(raft_addr, broker_addr)| {
        BrokerNode {
            raft_addr,
            broker_addr,
        }
    })
}

fn info() -> impl Strategy<Value = NodeInfo> {
    let peers = proptest::collection::btree_map(any::<u16>(), "[a-z]{1,9}:1", 0..4);
    (
        ".{0,30}",
        any::<Option<[u8; 16]>>(),
        any::<bool>(),
        any::<u16>(),
        any::<u64>(),
        "[0-9a-f]{0,64}",
        peers,
        addrs(),
    )
        .prop_map(
            |(group_name, group, holds_group, self_id, node, genesis, peers, addrs)| NodeInfo {
                group_name,
                group: group.map(GroupId),
                holds_group,
                self_id: SelfId(self_id),
                node,
                genesis,
                peers: peers
                    .into_iter()
                    .map(|(id, addr)| (SelfId(id), addr))
                    .collect(),
                addrs,
            },
        )
}

fn hello() -> impl Strategy<Value = Hello> {
    let purpose = prop_oneof![
        Just(Purpose::Meet),
        Just(Purpose::Control),
        Just(Purpose::Log),
        Just(Purpose::Forward)
    ];
    let fields = (purpose, any::<Option<u64>>(), any::<[u8; 32]>(), info());
    fields.prop_map(|(purpose, target, seal, from)| Hello {
        purpose,
        target,
        seal: Seal(seal),
        from,
    })
}

fn membership() -> impl Strategy<Value = openraft::Membership<NodeId, BrokerNode>> {
    let voters = proptest::collection::btree_set(any::<u64>(), 1..4);
    (voters, addrs()).prop_map(|(voters, addrs)| {
        let nodes: BTreeMap<_, _> = voters.iter().map(|id| (*id, addrs.clone())).collect();
        let voters: BTreeSet<_> = voters;
        openraft::Membership::new(vec![voters], nodes).unwrap()
    })
}

fn append() -> impl Strategy<Value = AppendRequest> {
    let slices = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..3);
    let entry = (log_id(), slices, proptest::option::of(membership())).prop_map(
        |(id, slices, membership)| LogEntry {
            id,
            body: Body::Sealed(SealedRef {
                raw: slices.into_iter().map(Bytes::from).collect(),
                membership,
            }),
        },
    );
    (
        vote(),
        proptest::option::of(log_id()),
        proptest::option::of(log_id()),
        proptest::collection::vec(entry, 0..4),
    )
        .prop_map(
            |(vote, prev_log_id, leader_commit, entries)| AppendRequest {
                vote,
                prev_log_id,
                entries,
                leader_commit,
            },
        )
}

/// Reads back as itself; every beginning of it, and more than it, is refused.
fn check<M: Message + Debug + PartialEq>(message: &M) -> Result<(), TestCaseError> {
    let mut head = message.to_head();
    let back = M::from_head(&head);
    prop_assert_eq!(back.as_ref(), Ok(message));
    for cut in 0..head.len() {
        prop_assert_eq!(M::from_head(&head[..cut]), Err(DecodeError::Short));
    }
    head.push(0);
    prop_assert_eq!(M::from_head(&head), Err(DecodeError::Trailing(1)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn introductions_round_trip(hello in hello()) {
        check(&hello)?;
        check(&hello.from)?;
    }

    #[test]
    fn votes_round_trip(
        vote in vote(), other in vote(), last in proptest::option::of(log_id()),
        node in any::<u64>(), flag in any::<bool>(),
    ) {
        let mut request = VoteRequest::new(vote, last);
        request.leadership_transfer = flag;
        check(&request)?;
        check(&VoteResponse::new(vote, last, flag))?;
        check(&TransferRequest::new(vote, node, last))?;
        check(&TransferResult::Ok(()))?;
        check(&TransferResult::Err(TransferLeaderError::VoteChanged {
            expected: vote,
            actual: other,
        }))?;
        check(&TransferResult::Err(TransferLeaderError::LogNotFlushed {
            expected: last,
            actual: None,
        }))?;
        check(&AppendResult::Ok(last))?;
        check(&AppendResult::Err(StreamAppendError::HigherVote(vote)))?;
        if let Some(last) = last {
            check(&AppendResult::Err(StreamAppendError::Conflict(last)))?;
        }
    }

    #[test]
    fn the_rest_round_trips(
        group in any::<[u8; 16]>(),
        members in proptest::collection::btree_map(any::<u64>(), addrs(), 0..4),
        text in ".{0,40}", flag in any::<bool>(), client in any::<(std::net::IpAddr, u16)>(),
    ) {
        check(&Form { group: GroupId(group), members })?;
        check(&Join { as_new_member: flag })?;
        check(&Recover { leader: flag.then_some(7) })?;
        check(&Condition { quarantined: flag, has_leader: !flag, last: None })?;
        check(&JoinAnswer::Voter)?;
        check(&JoinAnswer::UnderWay(text.clone()))?;
        check(&JoinAnswer::Leader(text.clone()))?;
        check(&Forward { client: client.into() })?;
        check(&Forwarded { answered: flag })?;
        for kind in [RefusalKind::Refused, RefusalKind::NotLeader, RefusalKind::Later] {
            check(&Refusal { kind, reason: text.clone() })?;
        }
    }

    #[test]
    fn appends_round_trip(request in append(), last in proptest::option::of(log_id())) {
        let (head, raw) = encode_append(&request, last);
        let raw: Bytes = raw.concat().into();
        let Append { request: back, leader_last } = decode_append(&head, raw.clone()).unwrap();
        prop_assert_eq!(leader_last, last);
        prop_assert_eq!(back.vote, request.vote);
        prop_assert_eq!(back.prev_log_id, request.prev_log_id);
        prop_assert_eq!(back.leader_commit, request.leader_commit);
        prop_assert_eq!(back.entries.len(), request.entries.len());
        for (back, entry) in back.entries.iter().zip(&request.entries) {
            let (Body::Sealed(back_extent), Body::Sealed(extent)) = (&back.body, &entry.body)
            else {
                panic!("only sealed entries travel");
            };
            prop_assert_eq!(back.id, entry.id);
            prop_assert_eq!(back_extent.raw.concat(), extent.raw.concat());
            prop_assert_eq!(&back_extent.membership, &extent.membership);
        }
        for cut in 0..head.len() {
            prop_assert!(decode_append(&head[..cut], raw.clone()).is_err());
        }
        let mut longer = raw.to_vec();
        longer.push(0);
        prop_assert!(
            matches!(decode_append(&head, longer.into()), Err(DecodeError::Raw { .. })),
            "a byte that belongs to no entry"
        );
        if !raw.is_empty() {
            let shorter = raw.slice(1..);
            prop_assert!(
                matches!(decode_append(&head, shorter), Err(DecodeError::Raw { .. })),
                "an entry that is not all there"
            );
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fn read<M: Message>(bytes: &[u8]) {
            if let Ok(message) = M::from_head(bytes) {
                assert_eq!(message.to_head().len(), bytes.len());
            }
        }
        read::<VoteRequest>(&bytes);
        read::<VoteResponse>(&bytes);
        read::<TransferRequest>(&bytes);
        read::<TransferResult>(&bytes);
        read::<AppendResult>(&bytes);
        read::<Refusal>(&bytes);
        read::<JoinAnswer>(&bytes);
        drop(Hello::from_head(&bytes));
        drop(NodeInfo::from_head(&bytes));
        drop(Form::from_head(&bytes));
        drop(Forward::from_head(&bytes));
        drop(decode_append(&bytes, Bytes::new()));
    }
}

#[test]
fn strangers_and_other_versions_are_told_apart() {
    assert_eq!(Hello::from_head(b"GET / HT"), Err(DecodeError::Magic));
    assert_eq!(
        Hello::from_head(b"rmqP\x00\x63whatever it says"),
        Err(DecodeError::Version { theirs: 99 })
    );
}

#[test]
fn a_count_of_entries_that_cannot_be_there_allocates_nothing() {
    let mut head = Vec::new();
    Vote::new(1, 2).encode(&mut head);
    head.extend([0, 0, 0]);
    head.extend(u32::MAX.to_be_bytes());
    assert_eq!(
        decode_append(&head, Bytes::new()).unwrap_err(),
        DecodeError::Short
    );
}

#[test]
fn a_reason_too_long_for_its_field_is_cut_between_characters() {
    let refusal = Refusal::refused("ä".repeat(40_000));
    let back = Refusal::from_head(&refusal.to_head()).unwrap();
    assert_eq!(back.reason.len(), 65_534);
}
