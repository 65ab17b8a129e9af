use super::{GROUP, loaded, refused};

#[test]
fn a_group_is_read() {
    let (config, warnings) = loaded(&format!("{GROUP}listenPort=30911\nbrokerIP1=10.0.0.1\n"));
    assert_eq!(warnings, "");
    assert_eq!(config.broker_name, "g0");
    assert_eq!(config.broker_addr(), "10.0.0.1:30911");
    let own = config.self_peer().unwrap();
    assert_eq!((own.number(), own.addr().as_str()), (0, "127.0.0.1:40911"));
    assert_eq!(
        config.raft_bind().unwrap(),
        "0.0.0.0:40911".parse().unwrap()
    );
    let ids: Vec<_> = config
        .dleger_peers
        .iter()
        .map(|peer| peer.id.as_str())
        .collect();
    assert_eq!(ids, ["n0", "n1", "n2"]);
}

#[test]
fn the_other_spelling_of_dledger_is_the_same() {
    let (config, warnings) = loaded(&GROUP.replace("Leger", "Ledger"));
    assert_eq!(warnings, "");
    assert_eq!(config.dleger_group, "g0");
    assert_eq!(config.dleger_peers.len(), 3);
}

#[test]
fn peers_are_checked_one_by_one() {
    for (peers, want) in [
        (
            "n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1",
            "dLegerPeers: entry 3 `n2-127.0.0.1` has no port; want id-host:port;...",
        ),
        (
            "n0-127.0.0.1:40911;n0-127.0.0.1:40912",
            "dLegerPeers: entry 2 `n0-127.0.0.1:40912` has the same id as entry 1",
        ),
        (
            "n0-127.0.0.1:40911;n1-127.0.0.1:40911",
            "dLegerPeers: entry 2 `n1-127.0.0.1:40911` has the same address as entry 1 `n0`",
        ),
        (
            "n0-127.0.0.1:40911;n00-127.0.0.1:40912",
            "dLegerPeers: entry 2 `n00-127.0.0.1:40912` has the same number as entry 1 `n0`, so both \
             would be broker 1",
        ),
        (
            "n0-127.0.0.1:40911;127.0.0.1:40912",
            "dLegerPeers: entry 2 `127.0.0.1:40912` has no id; want id-host:port;...",
        ),
        (
            "n0-127.0.0.1:40911;b-127.0.0.1:40912",
            "dLegerPeers: entry 2 `b-127.0.0.1:40912` has the id `b`, which is not n and a \
             number up to 65535; want id-host:port;...",
        ),
        (
            "n0-127.0.0.1:70911",
            "dLegerPeers: entry 1 `n0-127.0.0.1:70911` has the port `70911`, which is not from 1 to \
             65535; want id-host:port;...",
        ),
        (
            "n0-::1:40911",
            "dLegerPeers: entry 1 `n0-::1:40911` is an IPv6 address without brackets around it; want \
             id-host:port;...",
        ),
    ] {
        let text = refused(&format!("{GROUP}dLegerPeers={peers}\n"));
        assert!(
            text.contains(&format!("broker.conf:5: error: {want}\n")),
            "{text}"
        );
        assert!(
            text.ends_with("1 error, 1 warning. Nothing was started.\n"),
            "{text}"
        );
    }
}

#[test]
fn the_caret_stands_under_the_bad_entry_even_in_a_continued_line() {
    let conf = "\
enableDLegerCommitLog=true
dLegerGroup=g0
dLegerPeers=n0-127.0.0.1:40911;\\
    n1-127.0.0.1:40912;\\
    n2-127.0.0.1;
dLegerSelfId=n0
";
    assert_eq!(
        refused(conf),
        "\
broker.conf:5: error: dLegerPeers: entry 3 `n2-127.0.0.1` has no port; want id-host:port;...
    5 |     n2-127.0.0.1;
      |     ^^^^^^^^^^^^
1 error. Nothing was started.
"
    );
}

#[test]
fn a_group_needs_its_three_keys_and_an_id_of_its_own() {
    assert_eq!(
        refused("brokerName=b\nenableDLegerCommitLog=true\ndLegerSelfId=\n"),
        "\
broker.conf:2: error: enableDLegerCommitLog=true needs dLegerGroup
    2 | enableDLegerCommitLog=true
      |                       ^^^^ for example dLegerGroup=b
broker.conf:2: error: enableDLegerCommitLog=true needs dLegerPeers
    2 | enableDLegerCommitLog=true
      |                       ^^^^ for example \
dLegerPeers=n0-10.0.0.10:40911;n1-10.0.0.11:40911;n2-10.0.0.12:40911
broker.conf:3: error: enableDLegerCommitLog=true needs dLegerSelfId
    3 | dLegerSelfId=
      |              ^ for example dLegerSelfId=n0
3 errors. Nothing was started.
"
    );
    assert_eq!(
        refused(&GROUP.replace("SelfId=n0", "SelfId=n7")),
        "\
broker.conf:4: error: dLegerSelfId: `n7` is not in dLegerPeers
    4 | dLegerSelfId=n7
      |              ^^ dLegerPeers has n0, n1, n2
1 error. Nothing was started.
"
    );
    assert_eq!(
        refused(&GROUP.replace("SelfId=n0", "SelfId=first")),
        "\
broker.conf:4: error: dLegerSelfId: `first` is not n and a number up to 65535
    4 | dLegerSelfId=first
      |              ^^^^^ want an id like n0
1 error. Nothing was started.
"
    );
}

#[test]
fn what_is_left_over_in_a_group_is_told() {
    let (config, warnings) = loaded(&format!(
        "brokerId=1\nbrokerRole=SLAVE\nbrokerName=x\nbrokerName=y\n{GROUP}"
    ));
    assert_eq!(
        warnings,
        "\
broker.conf:1: warning: brokerId has no effect here: in a group the elected leader is the master
broker.conf:2: warning: brokerRole has no effect here: in a group the elected leader is the master
broker.conf:3: warning: brokerName is given again in line 4, which wins
"
    );
    assert_eq!(config.broker_name, "y");
}

#[test]
fn a_slave_is_refused_with_the_way_to_a_group() {
    assert_eq!(
        refused("brokerName=broker-a\nbrokerId=1\nbrokerRole=SLAVE\n"),
        "\
broker.conf:3: error: brokerRole=SLAVE: replication by the classic protocol is not built yet, and \
without it this would be a second master of the same name
    3 | brokerRole=SLAVE
      |            ^^^^^ make the brokers named broker-a a group, with enableDLegerCommitLog=true, \
dLegerGroup=broker-a, dLegerPeers=n0-host:port;n1-host:port;n2-host:port and dLegerSelfId=n1 (see \
conf/dledger)
1 error. Nothing was started.
"
    );
}

#[test]
fn group_keys_without_a_group_are_told() {
    let (_, warnings) = loaded("dLegerSelfId=n0\nraftJoin=true\nbrokerId=3\n");
    assert_eq!(
        warnings,
        "\
broker.conf:1: warning: dLegerSelfId has no effect here without enableDLegerCommitLog=true
broker.conf:2: warning: raftJoin has no effect here without enableDLegerCommitLog=true
broker.conf:3: warning: brokerId is 0 for a master, as in RocketMQ
"
    );
}

#[test]
fn ports_that_meet_are_refused() {
    for (listen, want) in [
        (
            40911,
            "listenPort 40911 is also this node's port in dLegerPeers (`n0`)",
        ),
        (
            40912,
            "listenPort 40912 is also another node's port in dLegerPeers (`n1`)",
        ),
        (
            40915,
            "listenPort-2 = 40913, which clients use too, is also another node's port in dLegerPeers \
             (`n2`)",
        ),
    ] {
        let text = refused(&format!("{GROUP}listenPort={listen}\n"));
        assert!(text.contains(want), "{text}");
    }
    let (_, warnings) = loaded(&format!("{GROUP}listenPort=40910\n"));
    assert_eq!(
        warnings,
        "broker.conf:5: warning: listenPort+1 = 40911 is kept for the classic protocol, and \
         dLegerPeers uses it\n"
    );
    for port in ["0", "2", "65535"] {
        let text = refused(&format!("listenPort={port}\n"));
        assert!(text.contains("is not from 3 to 65534"), "{text}");
    }
}

#[test]
fn election_timers_must_fit() {
    assert_eq!(
        refused("raftHeartbeatIntervalMillis=200\n"),
        "\
broker.conf:1: error: raftElectionTimeoutMinMillis=200 must be at least twice \
raftHeartbeatIntervalMillis=200 and less than raftElectionTimeoutMaxMillis=300
    1 | raftHeartbeatIntervalMillis=200
      |                             ^^^
1 error. Nothing was started.
"
    );
}

#[test]
fn a_preferred_leader_is_a_self_id() {
    let (config, warnings) = loaded(&format!("{GROUP}preferredLeaderId=n1;n0\n"));
    assert_eq!(warnings, "");
    assert_eq!(config.preferred_leaders().collect::<Vec<_>>(), ["n1", "n0"]);
    let (_, warnings) = loaded(&format!("{GROUP}preferredLeaderIds=n7\n"));
    assert!(
        warnings.contains("`n7` is not in dLegerPeers"),
        "{warnings}"
    );
    let text = refused(&format!("{GROUP}preferredLeaderId=10.0.0.1\n"));
    assert!(
        text.contains("preferredLeaderId: `10.0.0.1` is no self id"),
        "{text}"
    );
}

#[test]
fn an_address_that_moves_with_the_leader_is_checked() {
    let conf = format!("{GROUP}listenPort=30911\nbrokerIP1=10.0.0.1\n");
    let (config, warnings) = loaded(&format!("{conf}brokerVip=10.0.0.100/24@eth0.5\n"));
    assert_eq!(warnings, "");
    let place = config.broker_vip.clone().unwrap().place.unwrap();
    assert_eq!((place.prefix, place.device.as_str()), (24, "eth0.5"));
    assert_eq!(config.leader_addr(), "10.0.0.100:30911");
    assert_eq!(config.broker_addr(), "10.0.0.1:30911");
    let moved_by_others = format!("{conf}brokerVip=10.0.0.100\nbindAddress=10.0.0.1\n");
    let (config, warnings) = loaded(&moved_by_others);
    assert_eq!(warnings, "");
    assert_eq!(config.broker_vip.as_ref().unwrap().place, None);
    assert_eq!(config.leader_addr(), "10.0.0.100:30911");
    for bad in [
        "10.0.0.100/24",
        "10.0.0.100@eth0",
        "10.0.0.100/33@eth0",
        "10.0.0.100/0@eth0",
        "10.0.0/24@eth0",
        "::1/64@eth0",
        "0.0.0.0/8@eth0",
        "224.0.0.1/8@eth0",
        "10.0.0.100/24@",
        "10.0.0.100/24@a_device_name_16",
        "10.0.0.100/24@e/0",
    ] {
        let text = refused(&format!("{conf}brokerVip={bad}\n"));
        let want = format!(
            "broker.conf:7: error: brokerVip: `{bad}` is not an IPv4 address with its network and its \
             device, or alone if something else moves it; want 10.0.0.100/24@eth0 or 10.0.0.100\n"
        );
        assert!(text.contains(&want), "{text}");
    }
    for (more, want) in [
        (
            "bindAddress=10.0.0.1",
            "no connection to it is accepted with bindAddress=10.0.0.1",
        ),
        (
            "brokerIP1=10.0.0.100",
            "it is also brokerIP1, which is this node's own",
        ),
    ] {
        let text = refused(&format!("{conf}brokerVip=10.0.0.100/24@eth0\n{more}\n"));
        assert!(
            text.contains(&format!("brokerVip: `10.0.0.100`: {want}\n")),
            "{text}"
        );
    }
}
