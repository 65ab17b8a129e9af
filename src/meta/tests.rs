use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn command(at_ms: i64, change: Change) -> Vec<u8> {
    Command { at_ms, change }.encode().unwrap()
}

fn commit(group: &str, topic: &str, queue_id: i32, offset: i64) -> OffsetCommit {
    OffsetCommit {
        group: group.into(),
        topic: topic.into(),
        queue_id,
        offset,
    }
}

fn queue(queue_id: i32) -> Queue {
    Queue {
        topic: "T".into(),
        broker_name: "b".into(),
        queue_id,
    }
}

fn lock(client: &str, queues: &[i32]) -> Change {
    let queues = queues.iter().copied().map(queue).collect();
    Change::LockQueues {
        group: "g".into(),
        client: client.into(),
        queues,
    }
}

#[test]
fn a_topic_is_created_once_and_counted_in_the_data_version() {
    let meta = Meta::new();
    let two = vec![("T".to_owned(), Topic::with_queues(2, 6))];
    let eight = vec![("T".to_owned(), Topic::with_queues(8, 6))];
    assert_eq!(
        meta.apply(1, &command(100, Change::CreateTopics(two))),
        Reply::Done
    );
    assert_eq!(
        meta.apply(2, &command(200, Change::CreateTopics(eight))),
        Reply::Done
    );
    let state = meta.read();
    assert_eq!(state.topics["T"].read_queues, 2);
    assert_eq!(
        state.topics_version,
        DataVersion {
            timestamp_ms: 100,
            counter: 1
        }
    );
}

#[test]
fn an_index_is_applied_once() {
    let meta = Meta::new();
    meta.apply(
        5,
        &command(0, Change::CommitOffsets(vec![commit("g", "T", 0, 9)])),
    );
    meta.apply(
        5,
        &command(0, Change::CommitOffsets(vec![commit("g", "T", 0, 3)])),
    );
    meta.apply(
        4,
        &command(0, Change::CommitOffsets(vec![commit("g", "T", 0, 2)])),
    );
    assert_eq!(meta.read().offset("g", "T", 0), Some(9));
    assert_eq!(meta.applied(), Some(5));
}

#[test]
fn offsets_take_the_last_value_also_a_lower_one() {
    let meta = Meta::new();
    meta.apply(
        1,
        &command(0, Change::CommitOffsets(vec![commit("g", "T", 0, 9)])),
    );
    meta.apply(
        2,
        &command(0, Change::CommitOffsets(vec![commit("g", "T", 0, 3)])),
    );
    assert_eq!(meta.read().offset("g", "T", 0), Some(3));
    assert_eq!(meta.read().topics_of_group("g").collect::<Vec<_>>(), ["T"]);
    assert_eq!(meta.read().groups_of_topic("T").collect::<Vec<_>>(), ["g"]);
}

#[test]
fn delayed_delivery_never_goes_back() {
    let meta = Meta::new();
    meta.apply(1, &command(0, Change::DelayProgress(vec![(1, 10), (2, 1)])));
    meta.apply(2, &command(0, Change::DelayProgress(vec![(1, 4), (2, 2)])));
    assert_eq!(meta.read().delay, BTreeMap::from([(1, 10), (2, 2)]));
}

#[test]
fn a_queue_has_one_holder_until_its_lease_ends() {
    let meta = Meta::new();
    let held = |reply| match reply {
        Reply::Locked(queues) => queues
            .iter()
            .map(|q: &Queue| q.queue_id)
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(held(meta.apply(1, &command(0, lock("a", &[0, 1])))), [0, 1]);
    assert_eq!(
        held(meta.apply(2, &command(1_000, lock("b", &[1, 2])))),
        [2]
    );
    // Renewed by its holder, it lives on from then.
    assert_eq!(held(meta.apply(3, &command(50_000, lock("a", &[1])))), [1]);
    assert_eq!(
        held(meta.apply(4, &command(60_000, lock("b", &[0, 1])))),
        [] as [i32; 0]
    );
    assert_eq!(
        held(meta.apply(5, &command(60_001, lock("b", &[0, 1])))),
        [0]
    );
    // A new leader's clock a little behind does not end a lease.
    assert_eq!(
        held(meta.apply(6, &command(40_000, lock("c", &[1])))),
        [] as [i32; 0]
    );
    // Unlocking takes only one's own.
    let unlock = |client: &str| Change::UnlockQueues {
        group: "g".into(),
        client: client.into(),
        queues: vec![queue(1)],
    };
    meta.apply(7, &command(41_000, unlock("b")));
    assert_eq!(
        held(meta.apply(8, &command(41_000, lock("c", &[1])))),
        [] as [i32; 0]
    );
    meta.apply(9, &command(41_000, unlock("a")));
    assert_eq!(held(meta.apply(10, &command(41_000, lock("c", &[1])))), [1]);
}

#[test]
fn dead_locks_of_all_groups_go_now_and_then() {
    let meta = Meta::new();
    let lock_of = |group: &str| match lock("a", &[0]) {
        Change::LockQueues { client, queues, .. } => Change::LockQueues {
            group: group.to_owned(),
            client,
            queues,
        },
        other => other,
    };
    let groups = || meta.read().locks.keys().cloned().collect::<Vec<_>>();
    meta.apply(1, &command(0, lock_of("gone")));
    meta.apply(1023, &command(LOCK_LEASE_MS + 1, lock_of("here")));
    assert_eq!(groups(), ["gone", "here"]);
    meta.apply(1024, &command(LOCK_LEASE_MS + 2, lock_of("here")));
    assert_eq!(groups(), ["here"]);
}

#[test]
fn a_lock_from_a_clock_far_ahead_does_not_last() {
    let meta = Meta::new();
    meta.apply(1, &command(10_000_000, lock("a", &[0])));
    assert_eq!(
        meta.apply(2, &command(0, lock("b", &[0]))),
        Reply::Locked(vec![queue(0)])
    );
}

#[test]
fn illegal_content_is_refused_and_changes_nothing() {
    let meta = Meta::new();
    let long = "x".repeat(300);
    let changes = [
        Change::PutTopic {
            name: "a b".into(),
            topic: Topic::default(),
        },
        Change::PutTopic {
            name: String::new(),
            topic: Topic::default(),
        },
        Change::PutTopic {
            name: long,
            topic: Topic::default(),
        },
        Change::PutTopic {
            name: "rmq_sys_raft_log".into(),
            topic: Topic::default(),
        },
        Change::PutTopic {
            name: "T".into(),
            topic: Topic::with_queues(-1, 6),
        },
        Change::CreateTopics(vec![
            ("ok".into(), Topic::default()),
            ("../etc".into(), Topic::default()),
        ]),
        Change::PutGroup {
            name: "g@x".into(),
            group: Group::default(),
        },
        Change::CommitOffsets(vec![commit("g", "T", 0, 1), commit("g", "T", -1, 1)]),
        Change::CommitOffsets(vec![commit("g", "T", 0, 1), commit("g", "T@x", 0, 1)]),
        Change::DelayProgress(vec![(1, 1), (0, 1)]),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let reply = meta.apply(index as u64, &command(1, change.clone()));
        assert!(
            matches!(reply, Reply::Refused { code: 1, .. }),
            "{change:?}: {reply:?}"
        );
    }
    assert_eq!(
        *meta.read(),
        State {
            applied: Some(9),
            ..State::default()
        }
    );
    assert!(matches!(
        meta.apply(10, b"\x01garbage"),
        Reply::Refused { .. }
    ));
}

#[test]
fn a_deleted_group_leaves_its_offsets_unless_asked() {
    let meta = Meta::new();
    let put = |name: &str| Change::PutGroup {
        name: name.into(),
        group: Group::default(),
    };
    let delete = |clean_offsets| Change::DeleteGroup {
        name: "g".into(),
        clean_offsets,
    };
    meta.apply(1, &command(0, put("g")));
    meta.apply(
        2,
        &command(0, Change::CommitOffsets(vec![commit("g", "T", 0, 9)])),
    );
    meta.apply(3, &command(0, delete(false)));
    assert_eq!(meta.read().offset("g", "T", 0), Some(9));
    assert!(meta.read().groups.is_empty());
    meta.apply(4, &command(0, delete(true)));
    assert_eq!(meta.read().offset("g", "T", 0), None);
}

#[test]
fn views_speak_the_dialect_of_java() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let meta = Meta::new();
    let mut views = Views::new(config.clone(), &meta);
    let topic = |perm| Change::PutTopic {
        name: "T".into(),
        topic: Topic::with_queues(4, perm),
    };
    meta.apply(1, &command(77, topic(6)));
    meta.apply(
        2,
        &command(
            78,
            Change::CreateGroups(vec![("g".into(), Group::default())]),
        ),
    );
    let commits = vec![
        commit("g", "T", 1, 7),
        commit("g", "T", 0, 9),
        commit("g", "U", 3, 5),
    ];
    meta.apply(3, &command(79, Change::CommitOffsets(commits)));
    meta.apply(
        4,
        &command(80, Change::DelayProgress(vec![(1, 17), (2, 7)])),
    );
    views.write_changed().unwrap();

    let read = |name: &str| std::fs::read_to_string(config.join(name)).unwrap();
    let compact = |name: &str| read(name).replace(['\n', '\t'], "");
    assert_eq!(
        compact("topics.json"),
        r#"{"dataVersion":{"counter":1,"timestamp":77},"topicConfigTable":{"T":{"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":4}}}"#
    );
    assert_eq!(
        compact("subscriptionGroup.json"),
        r#"{"dataVersion":{"counter":1,"timestamp":78},"subscriptionGroupTable":{"g":{"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"groupName":"g","notifyConsumerIdsChangedEnable":true,"retryMaxTimes":16,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}}}"#
    );
    assert_eq!(
        compact("consumerOffset.json"),
        r#"{"offsetTable":{"T@g":{0:9,1:7},"U@g":{3:5}}}"#
    );
    assert_eq!(compact("delayOffset.json"), r#"{"offsetTable":{1:17,2:7}}"#);

    // Only what changed is written again, and the previous content stays beside it.
    meta.apply(5, &command(81, topic(4)));
    views.write_changed().unwrap();
    assert!(read("topics.json").contains("\"perm\":4"));
    assert!(read("topics.json.bak").contains("\"perm\":6"));
    assert!(!config.join("delayOffset.json.bak").try_exists().unwrap());
}

#[test]
fn a_frozen_state_changes_only_by_thawing() {
    let meta = Meta::new();
    let commit = || command(9, Change::CommitOffsets(vec![commit("g", "T", 0, 5)]));
    assert_eq!(meta.apply(1, &command(100, Change::Freeze)), Reply::Done);
    assert_eq!(meta.apply(2, &command(200, Change::Freeze)), Reply::Done);
    let frozen = Frozen {
        index: 1,
        at_ms: 100,
    };
    assert_eq!(meta.read().frozen, Some(frozen));
    assert!(meta.is_frozen());
    assert_eq!(meta.apply(3, &commit()), Reply::frozen());
    assert_eq!(meta.read().offset("g", "T", 0), None);

    let again = Meta::new();
    again.restore(&meta.snapshot()).unwrap();
    assert!(again.is_frozen());
    assert_eq!(again.apply(4, &command(300, Change::Thaw)), Reply::Done);
    assert!(!again.is_frozen());
    assert_eq!(again.apply(5, &commit()), Reply::Done);
}

#[test]
fn a_snapshot_without_the_freeze_is_read() {
    let meta = Meta::new();
    meta.apply(
        7,
        &command(9, Change::CommitOffsets(vec![commit("g", "T", 0, 5)])),
    );
    let mut old = meta.snapshot();
    assert_eq!((old[0], old.pop()), (2, Some(0)));
    old[0] = 1;
    let again = Meta::new();
    again.restore(&old).unwrap();
    assert_eq!(*again.read(), *meta.read());
    old[0] = 3;
    assert!(again.restore(&old).is_err());
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[ab]", 1 => "[a-z%_|-]{0,6}", 1 => ".{0,4}"]
}

fn any_topic() -> impl Strategy<Value = Topic> {
    (-1..9i32, 0..9i32, 0..8i32, any::<bool>()).prop_map(|(read, write, perm, order)| Topic {
        read_queues: read,
        write_queues: write,
        order,
        ..Topic::with_queues(0, perm)
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let name = any_name;
    let queues = || prop::collection::vec((0..4i32).prop_map(queue), 0..4);
    let commits = prop::collection::vec(
        (name(), name(), -1..4i32, -1..99i64).prop_map(|(g, t, q, o)| commit(&g, &t, q, o)),
        0..4,
    );
    prop_oneof![
        (name(), any_topic()).prop_map(|(name, topic)| Change::PutTopic { name, topic }),
        prop::collection::vec((name(), any_topic()), 0..3).prop_map(Change::CreateTopics),
        name().prop_map(|name| Change::DeleteTopic { name }),
        name().prop_map(|name| Change::PutGroup {
            name,
            group: Group::default()
        }),
        prop::collection::vec((name(), Just(Group::default())), 0..3)
            .prop_map(Change::CreateGroups),
        (name(), any::<bool>()).prop_map(|(name, clean_offsets)| Change::DeleteGroup {
            name,
            clean_offsets
        }),
        commits.prop_map(Change::CommitOffsets),
        (name(), name(), prop::option::of(name()))
            .prop_map(|(from, to, topic)| Change::CloneOffsets { from, to, topic }),
        (name(), name(), queues()).prop_map(|(group, client, queues)| Change::LockQueues {
            group,
            client,
            queues
        }),
        (name(), name(), queues()).prop_map(|(group, client, queues)| Change::UnlockQueues {
            group,
            client,
            queues
        }),
        prop::collection::vec((0..5i32, -1..99i64), 0..4).prop_map(Change::DelayProgress),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    // Leaders' clocks differ, so time may go back a little or leap.
    (prop_oneof![0..200_000i64, any::<i64>()], any_change())
        .prop_map(|(at_ms, change)| Command { at_ms, change })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn replicas_agree_byte_for_byte(
        commands in prop::collection::vec(any_command(), 1..40),
        cut in 0..40usize,
    ) {
        let bytes: Vec<_> = commands.iter().map(|c| c.encode().unwrap()).collect();
        let (one, two) = (Meta::new(), Meta::new());
        let mut replies = Vec::new();
        for (index, command) in bytes.iter().enumerate() {
            replies.push(one.apply(index as u64, command));
        }
        // The second replica takes a snapshot from itself on the way and starts again from it,
        // with a replay of what it already holds.
        let cut = cut.min(bytes.len());
        for (index, command) in bytes[..cut].iter().enumerate() {
            prop_assert_eq!(&two.apply(index as u64, command), &replies[index]);
        }
        let restored = Meta::new();
        restored.restore(&two.snapshot()).unwrap();
        prop_assert_eq!(restored.snapshot(), two.snapshot());
        for (index, command) in bytes.iter().enumerate() {
            let reply = restored.apply(index as u64, command);
            if index >= cut {
                prop_assert_eq!(&reply, &replies[index]);
            }
        }
        prop_assert_eq!(restored.snapshot(), one.snapshot());
    }

    #[test]
    fn commands_round_trip(command in any_command()) {
        prop_assert_eq!(Command::decode(&command.encode().unwrap()).unwrap(), command);
    }

    #[test]
    fn other_bytes_are_no_command(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // Whatever is read means what is written: nothing is lost or added on the way.
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(Command::decode(&command.encode().unwrap()).unwrap(), command);
        }
        let meta = Meta::new();
        meta.apply(1, &bytes);
        prop_assert!(meta.restore(&bytes).is_err() || meta.snapshot().len() <= bytes.len());
    }

    #[test]
    fn a_torn_command_is_no_command(command in any_command(), keep in any::<prop::sample::Index>()) {
        let bytes = command.encode().unwrap();
        let torn = &bytes[..keep.index(bytes.len())];
        prop_assert!(Command::decode(torn).is_err());
    }
}

#[test]
fn the_state_of_another_broker_comes_from_its_files_but_for_what_no_command_allows() {
    let original = Meta::new();
    let topics = vec![("T".to_owned(), Topic::with_queues(2, 6))];
    original.apply(1, &command(100, Change::CreateTopics(topics)));
    let groups = vec![("g".to_owned(), Group::default())];
    original.apply(2, &command(200, Change::CreateGroups(groups)));
    let commits = vec![commit("g", "T", 0, 7), commit("g", "gone", 3, 9)];
    original.apply(3, &command(300, Change::CommitOffsets(commits)));
    original.apply(4, &command(400, Change::DelayProgress(vec![(3, 8)])));

    let (mut topics, groups, mut offsets, mut delay) = {
        let state = original.read();
        let tables = (state.topic_table(), state.group_table());
        (
            tables.0,
            tables.1,
            state.offset_table(),
            state.delay_table(),
        )
    };
    topics
        .topic_config_table
        .insert("no/topic".to_owned(), Topic::default().named("no/topic"));
    offsets
        .offset_table
        .insert("no offset".to_owned(), [(0, 1)].into());
    offsets.offset_table.get_mut("T@g").unwrap().insert(1, -1);
    delay.offset_table.insert(0, 5);
    let adopted = Meta::adopted(Adopted {
        topics: &topics,
        groups: &groups,
        offsets: &offsets,
        delay: &delay,
    });
    let expected = State {
        applied: None,
        ..original.read().clone()
    };
    assert_eq!(*adopted.read(), expected);
}
