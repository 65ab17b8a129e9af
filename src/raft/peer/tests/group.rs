//! Formation, joining and replication.

use super::*;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_form_one_group_and_replicate() {
    let cluster = Cluster::new(3).await;
    let nodes = cluster.start_all().await;
    for i in 0..60 {
        write(&nodes, i).await;
    }
    until("all logs are the same", || {
        let logs: Vec<_> = nodes.iter().map(|node| raw_log(&node.log)).collect();
        logs[0].len() > 60 && logs.iter().all(|log| *log == logs[0])
    })
    .await;
    let group = nodes[0].group().await;
    assert!(group.is_some());
    for node in &nodes {
        node.joined(3).await;
        assert_eq!(node.group().await, group);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agreement_that_led_to_nothing_is_replaced() {
    let cluster = Cluster::new(3).await;
    let stale = GroupId([7; 16]);
    for id in [0, 1] {
        let dir = cluster.dirs[usize::from(id)].path();
        let mut identity = open_identity(dir, SelfId(id), true);
        identity.agree(stale).unwrap();
    }
    let nodes = cluster.start_all().await;
    leader(&nodes).await;
    let group = nodes[0].group().await;
    assert_ne!(group, Some(stale));
    for node in &nodes {
        node.joined(3).await;
        assert_eq!(node.group().await, group);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_initialised_by_a_node_that_crashed_then_is_completed() {
    let cluster = Cluster::new(3).await;
    let group = GroupId([7; 16]);
    let mut members = std::collections::BTreeMap::new();
    for (id, addr) in cluster.peers.iter() {
        let mut identity = open_identity(cluster.dirs[usize::from(id.0)].path(), id, true);
        // The last node crashed too, before it had agreed.
        if id != SelfId(2) {
            identity.agree(group).unwrap();
        }
        let addrs = BrokerNode {
            raft_addr: addr.to_owned(),
            broker_addr: String::new(),
        };
        members.insert(identity.node(), addrs);
    }
    let first = cluster.start(0).await;
    first.raft.initialize(members).await.unwrap();
    first.stop().await;
    let nodes = cluster.start_all().await;
    for node in &nodes {
        node.joined(3).await;
        assert_eq!(node.group().await, Some(group));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_group_comes_out_however_often_nodes_are_killed_while_they_form_it() {
    for seed in 0..2 {
        let mut rng = StdRng::seed_from_u64(seed);
        let cluster = Cluster::new(3).await;
        let mut nodes: Vec<Option<Running>> = vec![None, None, None];
        for _ in 0..5 {
            for (id, node) in (0..).zip(&mut nodes) {
                if node.is_none() {
                    *node = Some(cluster.start(id).await);
                }
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..250))).await;
            for node in &mut nodes {
                if rng.random_bool(0.6)
                    && let Some(node) = node.take()
                {
                    node.kill().await;
                }
            }
        }
        for (id, node) in (0..).zip(&mut nodes) {
            if node.is_none() {
                *node = Some(cluster.start(id).await);
            }
        }
        let nodes: Vec<Running> = nodes.into_iter().flatten().collect();
        write(&nodes, 1).await;
        let group = nodes[0].group().await;
        for node in &nodes {
            node.joined(3).await;
            assert_eq!(node.group().await, group, "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_goes_on_under_another_leader() {
    let mut cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    write(&nodes, 1).await;
    for node in &nodes {
        node.joined(3).await;
    }
    let first = leader(&nodes).await.local.node;
    let wiped = nodes
        .iter()
        .position(|node| node.local.node != first)
        .unwrap();
    nodes.remove(wiped).stop().await;
    let id = u16::try_from(wiped).unwrap();
    cluster.wipe(id);
    let back = cluster.start(id).await;
    let other = nodes.iter().find(|node| node.local.node != first).unwrap();
    let former = nodes.iter().find(|node| node.local.node == first).unwrap();
    let known = former.wait_for("the new directory is a member", |metrics| {
        metrics
            .membership_config
            .nodes()
            .any(|(node, _)| *node == back.local.node)
    });
    known.await;
    former
        .raft
        .trigger()
        .transfer_leader(other.local.node)
        .await
        .unwrap();
    back.joined(3).await;
    for node in &nodes {
        node.joined(3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_learn_where_a_voter_serves_its_clients_now() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    for node in &nodes {
        node.joined(3).await;
    }
    let leader = leader(&nodes).await.local.node;
    let moved = nodes
        .iter()
        .position(|node| node.local.node != leader)
        .unwrap();
    nodes.remove(moved).stop().await;
    let differs = Differs {
        broker_addr: Some("elsewhere:10911"),
        ..Differs::default()
    };
    let id = u16::try_from(moved).unwrap();
    let moved = cluster.start_as(id, differs).await;
    for node in &nodes {
        let known = node.wait_for("the new address is known", |metrics| {
            let members = metrics.membership_config.membership();
            let addrs = members.get_node(&moved.local.node).unwrap();
            addrs.broker_addr == "elsewhere:10911" && addrs.raft_addr == moved.local.addrs.raft_addr
        });
        known.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_follower_takes_its_place_again() {
    let mut cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let leader = leader(&nodes).await.local.node;
    let wiped = nodes
        .iter()
        .position(|node| node.local.node != leader)
        .unwrap();
    for node in &nodes {
        node.joined(3).await;
    }
    let former = nodes.remove(wiped);
    let former_node = former.local.node;
    former.stop().await;
    write(&nodes, 1).await;
    let id = u16::try_from(wiped).unwrap();
    let former_dir = cluster.wipe(id);
    let back = cluster.start(id).await;
    assert_ne!(back.local.node, former_node);
    back.joined(3).await;
    for node in &nodes {
        node.joined(3).await;
        back.applied_all_of(node).await;
    }
    assert!(!back.voters().contains(&former_node));
    assert_eq!(back.group().await, nodes[0].group().await);

    // The former directory turns up again, and does not know that it was replaced.
    back.stop().await;
    cluster.dirs[wiped] = former_dir;
    let restored = cluster.start(id).await;
    assert_eq!(restored.local.node, former_node);
    for node in &nodes {
        let back = node.wait_for("the restored directory votes", |metrics| {
            let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
            voters.len() == 3 && voters.contains(&former_node)
        });
        back.await;
        restored.applied_all_of(node).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_joins_when_an_operator_adds_it() {
    let mut cluster = Cluster::new(4).await;
    let all = cluster.peers.clone();
    cluster.peers = all
        .iter()
        .take(3)
        .map(|(id, addr)| (id, addr.to_owned()))
        .collect();
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(cluster.start(id).await);
    }
    leader(&nodes).await;
    cluster.peers = all;
    let newcomer = Differs {
        join_only: true,
        ..Differs::default()
    };
    let new = cluster.start_as(3, newcomer).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(!new.raft.is_initialized().await.unwrap());

    let changed = |change| {
        let nodes = &nodes;
        async move { change_members(nodes, change, SelfId(3)).await }
    };
    // A leader that was deposed meanwhile has done it nevertheless: its successor says "already".
    let is_so = |text: &str, part: &str| {
        let said = ["now", "already"].map(|when| format!("n3 is a {part} {when}"));
        said.iter().any(|said| text.starts_with(said))
    };
    let text = changed(MemberChange::Add).await.unwrap();
    assert!(is_so(&text, "learner"), "{text}");
    let text = changed(MemberChange::Add).await.unwrap();
    assert!(text.starts_with("n3 is a learner already"), "{text}");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(nodes[0].voters().len(), 3, "it got a vote by itself");
    let text = changed(MemberChange::Promote).await.unwrap();
    assert!(is_so(&text, "voter"), "{text}");
    new.joined(4).await;
    let text = changed(MemberChange::Promote).await.unwrap();
    assert!(text.starts_with("n3 is a voter already"), "{text}");

    let text = changed(MemberChange::Remove).await.unwrap();
    assert!(text.starts_with("n3 is no member of the group"), "{text}");
    let text = changed(MemberChange::Remove).await.unwrap();
    assert_eq!(text, "n3 is no member of the group");
    for node in &nodes {
        node.joined(3).await;
    }
    write(&nodes, 1).await;
}

/// Asks whichever of `nodes` leads, as long as it says that it may be done later.
async fn change_members(
    nodes: &[Running],
    change: MemberChange,
    self_id: SelfId,
) -> Result<String, MembersError> {
    let mut answer = None;
    until_ok("it is granted or refused", async || {
        let leader = nodes.iter().find(|node| node.peers.shared.leads());
        let leader = leader.ok_or_else(|| "nobody leads".to_owned())?;
        match leader.peers.members().change(change, self_id).await {
            Err(MembersError::Later(reason)) => Err(reason),
            told => {
                answer = Some(told);
                Ok(())
            }
        }
    })
    .await;
    answer.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_that_must_be_told_is_added_and_promoted_by_an_operator() {
    let mut cluster = Cluster::new(3).await;
    let manual = Differs {
        no_auto_rejoin: true,
        ..Differs::default()
    };
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(cluster.start_as(id, manual.clone()).await);
    }
    let leader = leader(&nodes).await.local.node;
    for node in &nodes {
        node.joined(3).await;
    }
    let wiped = nodes.iter().position(|node| node.local.node != leader);
    let wiped = wiped.unwrap();
    let former = nodes.remove(wiped);
    let former_node = former.local.node;
    former.stop().await;
    let id = u16::try_from(wiped).unwrap();
    cluster.wipe(id);
    let back = cluster.start_as(id, manual).await;
    tokio::time::sleep(A_WHILE).await;
    assert!(!back.raft.is_initialized().await.unwrap());
    for change in [MemberChange::Add, MemberChange::Promote] {
        change_members(&nodes, change, SelfId(id)).await.unwrap();
    }
    back.joined(3).await;
    assert!(!back.voters().contains(&former_node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_replaced_and_leadership_handed_over() {
    let cluster = Cluster::new(3).await;
    let mut nodes = cluster.start_all().await;
    let first = leader(&nodes).await;
    for node in &nodes {
        node.joined(3).await;
    }
    let heir = nodes
        .iter()
        .find(|node| node.local.node != first.local.node)
        .unwrap();
    heir.applied_all_of(first).await;
    let heir_node = heir.local.node;
    until_ok("the heir is elected", async || {
        let leading = leader(&nodes).await;
        let own = leading.local.node;
        if own == heir_node {
            return Ok(());
        }
        let handed_over = leading.raft.trigger().transfer_leader(heir_node).await;
        handed_over.unwrap();
        let wait = leading.raft.wait(Some(Duration::from_secs(2)));
        let replaced = wait.metrics(|metrics| metrics.current_leader != Some(own), "replaced");
        Err(replaced.await.map(|metrics| metrics.current_leader))
    })
    .await;
    for node in &nodes {
        node.wait_for("the heir leads", |metrics| {
            metrics.current_leader == Some(heir_node)
        })
        .await;
    }
    let at = nodes
        .iter()
        .position(|node| node.local.node == heir_node)
        .unwrap();
    nodes.remove(at).stop().await;
    let elected = nodes[0].wait_for("another leader", |metrics| {
        metrics.current_leader.is_some_and(|node| node != heir_node)
    });
    elected.await;
}
