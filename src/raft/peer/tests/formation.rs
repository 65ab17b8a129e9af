//! What must not become a group, or part of one: too few, strangers under the same name, and nodes that
//! are not of one mind about their peers or their history.

use super::*;

impl Cluster {
    /// The same places with empty directories.
    fn elsewhere(&self) -> Self {
        Self {
            peers: self.peers.clone(),
            dirs: self
                .dirs
                .iter()
                .map(|_| tempfile::tempdir().unwrap())
                .collect(),
        }
    }

    /// The addresses of these nodes alone.
    fn list(&self, ids: &[u16]) -> PeerList {
        let addr = |id: &u16| {
            (
                SelfId(*id),
                self.peers.addr(SelfId(*id)).unwrap().to_owned(),
            )
        };
        ids.iter().map(addr).collect()
    }

    /// Forms a group that has written something, and stops it; its id.
    async fn form_and_stop(&self) -> GroupId {
        let nodes = self.start_all().await;
        write(&nodes, 1).await;
        for node in &nodes {
            node.joined(nodes.len()).await;
            node.applied_all_of(&nodes[0]).await;
        }
        let group = nodes[0].group().await.unwrap();
        for node in nodes {
            node.stop().await;
        }
        group
    }
}

fn with_peers(peers: PeerList) -> Differs {
    Differs {
        peers: Some(peers),
        ..Differs::default()
    }
}

async fn assert_uninitialised(nodes: &[&Running]) {
    for node in nodes {
        assert!(
            !node.raft.is_initialized().await.unwrap(),
            "{} is part of a group",
            node.local.self_id
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_new_nodes_form_nothing() {
    let cluster = Cluster::new(3).await;
    let nodes = [cluster.start(0).await, cluster.start(2).await];
    tokio::time::sleep(A_WHILE).await;
    assert_uninitialised(&[&nodes[0], &nodes[1]]).await;
    let last = cluster.start(1).await;
    last.joined(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_wiped_nodes_and_a_full_one_never_form_a_new_group() {
    let mut cluster = Cluster::new(3).await;
    let group = cluster.form_and_stop().await;
    let (first, second) = (cluster.wipe(0), cluster.wipe(1));
    let nodes = cluster.start_all().await;
    let log = raw_log(&nodes[2].log);
    tokio::time::sleep(A_WHILE).await;
    assert_uninitialised(&[&nodes[0], &nodes[1]]).await;
    assert_eq!(nodes[2].group().await, Some(group));
    assert_eq!(nodes[2].voters().len(), 3);
    assert_eq!(raw_log(&nodes[2].log), log);
    // With one of the lost directories there is a majority again, and the other wiped node is let in.
    let mut nodes = nodes;
    nodes.remove(0).stop().await;
    drop(second);
    cluster.dirs[0] = first;
    nodes.insert(0, cluster.start(0).await);
    for node in &nodes {
        node.joined(3).await;
        assert_eq!(node.group().await, Some(group));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_has_no_part_in_the_group_that_wiped_ones_form_without_it() {
    let mut cluster = Cluster::new(3).await;
    let group = cluster.form_and_stop().await;
    cluster.wipe(0);
    cluster.wipe(1);
    // An operator who leaves the full node out of dLegerPeers gets a new group.
    let pair = with_peers(cluster.list(&[0, 1]));
    let rival = [
        cluster.start_as(0, pair.clone()).await,
        cluster.start_as(1, pair).await,
    ];
    let full = cluster.start(2).await;
    let log = raw_log(&full.log);
    for node in &rival {
        node.joined(2).await;
    }
    write(&rival, 2).await;
    tokio::time::sleep(A_WHILE).await;
    assert_ne!(rival[0].group().await, Some(group));
    assert_eq!(full.group().await, Some(group));
    assert_eq!(full.voters().len(), 3);
    assert_eq!(raw_log(&full.log), log, "its log is another group's now");
    assert_eq!(rival[0].voters().len(), 2);
    // Emptied, it still is a stranger to them, for they never had a node of that name.
    full.stop().await;
    cluster.wipe(2);
    let emptied = cluster.start(2).await;
    tokio::time::sleep(A_WHILE).await;
    assert_uninitialised(&[&emptied]).await;
    assert_eq!(rival[0].voters().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_between_two_groups_of_one_name_joins_neither() {
    let mut ours = Cluster::new(3).await;
    let mut theirs = ours.elsewhere();
    let group = ours.form_and_stop().await;
    let rival = theirs.form_and_stop().await;
    assert_ne!(group, rival);
    ours.wipe(0);
    let last = std::mem::replace(&mut ours.dirs[2], theirs.wipe(2));
    let wiped = ours.start(0).await;
    let second = ours.start(1).await;
    let stranger = ours.start(2).await;
    let logs = [raw_log(&second.log), raw_log(&stranger.log)];
    tokio::time::sleep(A_WHILE).await;
    assert_uninitialised(&[&wiped]).await;
    assert_eq!([raw_log(&second.log), raw_log(&stranger.log)], logs);
    assert_eq!(second.group().await, Some(group));
    assert_eq!(stranger.group().await, Some(rival));

    // Once the stranger is gone there is one group left.
    stranger.stop().await;
    ours.dirs[2] = last;
    let third = ours.start(2).await;
    for node in [&wiped, &second, &third] {
        node.joined(3).await;
        assert_eq!(node.group().await, Some(group));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_a_rival_group_in_the_place_of_a_node_takes_no_part() {
    let mut ours = Cluster::new(3).await;
    let mut theirs = ours.elsewhere();
    let group = ours.form_and_stop().await;
    let rival = theirs.form_and_stop().await;
    ours.dirs[2] = theirs.wipe(2);
    let stranger = ours.start(2).await;
    let log = raw_log(&stranger.log);
    let nodes = [ours.start(0).await, ours.start(1).await];
    for offset in 2..20 {
        write(&nodes, offset).await;
    }
    tokio::time::sleep(A_WHILE).await;
    for node in &nodes {
        assert_eq!(node.group().await, Some(group));
        assert!(!node.voters().contains(&stranger.local.node));
        assert!(!stranger.voters().contains(&node.local.node));
        assert_eq!(node.voters().len(), 3);
    }
    assert_eq!(stranger.group().await, Some(rival));
    assert_eq!(
        raw_log(&stranger.log),
        log,
        "it took entries of another group"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_differ_about_their_peers_form_nothing_before_they_agree() {
    let cluster = Cluster::new(3).await;
    let addr = |id| cluster.peers.addr(SelfId(id)).unwrap().to_owned();
    let swapped = [(0, addr(0)), (1, addr(2)), (2, addr(1))];
    let moved = [(0, addr(0)), (1, addr(1)), (2, "127.0.0.1:1".to_owned())];
    let more = [(0, addr(0)), (1, addr(1)), (2, addr(2)), (3, addr(2))];
    let list = |peers: &[(u16, String)]| {
        let peers = peers.iter().map(|(id, addr)| (SelfId(*id), addr.clone()));
        with_peers(peers.collect())
    };
    for (who, differs) in [
        (0, list(&swapped)),
        (1, list(&moved)),
        (2, list(&more)),
        (0, with_peers(cluster.list(&[0, 1]))),
        (2, with_peers(cluster.list(&[1, 2]))),
    ] {
        let mut nodes = Vec::new();
        for id in 0..3 {
            let differs = if id == who {
                differs.clone()
            } else {
                Differs::default()
            };
            nodes.push(cluster.start_as(id, differs).await);
        }
        tokio::time::sleep(A_WHILE).await;
        assert_uninitialised(&nodes.iter().collect::<Vec<_>>()).await;
        for node in nodes {
            node.stop().await;
        }
    }
    leader(&cluster.start_all().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_leave_the_third_out_are_a_group_without_it() {
    let cluster = Cluster::new(3).await;
    let pair = with_peers(cluster.list(&[0, 1]));
    let left_out = cluster.start(2).await;
    let nodes = [
        cluster.start_as(0, pair.clone()).await,
        cluster.start_as(1, pair).await,
    ];
    for node in &nodes {
        node.joined(2).await;
    }
    tokio::time::sleep(A_WHILE).await;
    assert_uninitialised(&[&left_out]).await;
    assert_eq!(nodes[0].voters().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_group_need_not_agree_about_their_peers() {
    let cluster = Cluster::new(3).await;
    let group = cluster.form_and_stop().await;
    let mut wrong: PeerList = "n0-127.0.0.1:1;n5-127.0.0.1:2".parse().unwrap();
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(cluster.start_as(id, with_peers(wrong)).await);
        wrong = cluster.list(&[id]);
    }
    write(&nodes, 2).await;
    for node in &nodes {
        node.joined(3).await;
        assert_eq!(node.group().await, Some(group));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_different_histories_form_nothing_before_they_agree() {
    let cluster = Cluster::new(3).await;
    for histories in [["a", "a", "b"], ["", "a", "b"], ["a", "b", "c"]] {
        let mut nodes = Vec::new();
        for (id, genesis) in (0..).zip(histories) {
            let differs = Differs {
                genesis,
                ..Differs::default()
            };
            nodes.push(cluster.start_as(id, differs).await);
        }
        tokio::time::sleep(A_WHILE).await;
        assert_uninitialised(&nodes.iter().collect::<Vec<_>>()).await;
        for node in nodes {
            node.stop().await;
        }
    }
    let adopted = Differs {
        genesis: "5eed",
        ..Differs::default()
    };
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(cluster.start_as(id, adopted.clone()).await);
    }
    leader(&nodes).await;
    for node in &nodes {
        node.joined(3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_history_is_not_taken_into_a_group() {
    let mut cluster = Cluster::new(3).await;
    cluster.form_and_stop().await;
    cluster.wipe(0);
    let other = Differs {
        genesis: "5eed",
        ..Differs::default()
    };
    let wiped = cluster.start_as(0, other).await;
    let nodes = [cluster.start(1).await, cluster.start(2).await];
    write(&nodes, 2).await;
    tokio::time::sleep(A_WHILE).await;
    assert_uninitialised(&[&wiped]).await;
    for node in &nodes {
        assert!(!node.voters().contains(&wiped.local.node));
    }
    wiped.stop().await;
    let back = cluster.start(0).await;
    back.joined(3).await;
}
