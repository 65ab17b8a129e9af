//! More names for a group, under which producers find its living nodes.
//!
//! A stock client knows one address for a broker name, and looks for another one every 30 s. But when
//! a send fails it tries another broker name at once. So a group that asks for it is shown under
//! further names, `NAME@1` and `NAME@2`. The names never come or go while
//! a node lives, so that a hash over the queues of a topic stays what it is; only their addresses
//! move, to living nodes, which answer their leader: for all but Go clients to the leader's only when there is no other.
//! They can be
//! written to and not read from, and show a few queues of each topic, which are queues of the group's own name. What stands
//! behind an address is a port of the node for this name, which has the leader answer. With one queue each, the group's
//! own name shows its queues several times over, so that few sends take that way.
//!
//! A Go client forgets between its three attempts which name has failed, and takes the next queue of its list.
//! It is shown one queue of each name, and so many names more that it sends to several queues: at the leader and
//! at the followers in turn, so that three in a row are never at one node, even if one has died and the route is
//! from before it came back.
//!
//! Tools that walk a cluster do not see the names, those that walk a topic's route do; the port tells
//! them that there is nothing to count twice.

use std::collections::{BTreeMap, BTreeSet};

use rmq_wire::body::{BrokerData, QueueData, perm};
use rmq_wire::header::{GROUP_ALIAS_NAMES, GROUP_ALIAS_PORTS, group_shown_queues};

use super::{MASTER, Name};

/// What a node registers for the further names of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::namesrv) struct Alias {
    /// `host:port` where it takes requests that came by the first such name; the port for the next one is the
    /// next.
    pub(in crate::namesrv) addr: String,
    /// The number of queues of each topic that each shows.
    pub(in crate::namesrv) queues: i32,
    /// The ids of the followers that do not answer their leader; told by the leader.
    pub(in crate::namesrv) silent: BTreeSet<i64>,
}

/// The further names that a leader last asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aliases {
    queues: i32,
    silent: BTreeSet<i64>,
}

impl From<&Alias> for Aliases {
    fn from(alias: &Alias) -> Self {
        Self {
            queues: alias.queues.max(0),
            silent: alias.silent.clone(),
        }
    }
}

impl Name {
    /// The further names of the group `name`, with the address of each; all that there is a port for, or those that
    /// most clients are shown.
    fn alias_data(&self, name: &str, all: bool) -> Vec<BrokerData> {
        let Some(Aliases { silent, .. }) = &self.aliases else {
            return Vec::new();
        };
        let leader = self.addrs().remove(&MASTER);
        let mut own = None;
        let mut others = Vec::new();
        for (addr, member) in &self.members {
            let Some(alias) = member.alias_addr.as_deref() else {
                continue;
            };
            if leader.as_ref() == Some(addr) {
                own = Some(alias);
            } else {
                others.push((member.id, alias));
            }
        }
        // Whoever is frozen or cut off does not answer its leader, and has said nothing, if it led before, since another one
        // has replaced it.
        let spoke = |id: Option<i64>| id.is_some();
        let lives = |id: Option<i64>| id.is_some_and(|id| !silent.contains(&id));
        for fit in [&spoke as &dyn Fn(_) -> bool, &lives] {
            if others.iter().any(|(id, _)| fit(*id)) {
                others.retain(|(id, _)| fit(*id));
            }
        }
        // By id, so that each name keeps its node while nobody comes or goes.
        others.sort_unstable();
        let mut others: Vec<_> = others.into_iter().map(|(_, alias)| alias).collect();
        let Some(own) = own.or_else(|| others.first().copied()) else {
            return Vec::new();
        };
        if others.is_empty() {
            others.push(own);
        }
        let own = match &self.vip {
            Some(vip) => at_host_of(vip, own),
            None => own.to_owned(),
        };
        let names = match all {
            true => GROUP_ALIAS_PORTS,
            false => GROUP_ALIAS_NAMES,
        };
        (1..=names)
            .map(|number| {
                let place = usize::from(number % (GROUP_ALIAS_NAMES + 1));
                let addr = match place.checked_sub(1) {
                    // Where the group's own name is.
                    None => &own,
                    Some(at) => others[at % others.len()],
                };
                BrokerData {
                    cluster: self.cluster.clone(),
                    broker_name: alias_name(name, number),
                    broker_addrs: BTreeMap::from([(MASTER, port_of(addr, number))]),
                    ..BrokerData::default()
                }
            })
            .collect()
    }

    /// How many queues the group's own name shows of a topic that has so many.
    fn own_queues(&self, queues: i32) -> i32 {
        match self.aliases {
            Some(Aliases { queues: 1, .. }) => group_shown_queues(queues),
            _ => queues,
        }
    }

    /// What each further name shows of a topic, of which the group's own name shows `queue`.
    fn alias_queues(&self, queue: &QueueData) -> Option<QueueData> {
        let write_queue_nums = self.aliases.as_ref()?.queues.min(queue.write_queue_nums);
        // A topic that is the model for others has no messages of its own.
        let is_plain = queue.perm & (perm::WRITE | perm::INHERIT) == perm::WRITE;
        (is_plain && write_queue_nums > 0).then(|| QueueData {
            perm: perm::WRITE,
            read_queue_nums: 0,
            write_queue_nums,
            ..queue.clone()
        })
    }
}

/// Adds the further names of the groups that have a topic to its route. A broker that is really
/// called so goes first. Who forgets which name has failed is shown more names and one queue of each.
pub(super) fn add(
    forgets: bool,
    groups: &[(&String, &Name)],
    taken: &BTreeMap<String, Name>,
    brokers: &mut Vec<BrokerData>,
    queues: &mut Vec<QueueData>,
) {
    let mut seen = BTreeSet::new();
    for (name, group) in groups {
        let Some(own) = queues.iter_mut().find(|queue| queue.broker_name == **name) else {
            continue;
        };
        let Some(mut shown) = group.alias_queues(own) else {
            continue;
        };
        own.write_queue_nums = group.own_queues(own.write_queue_nums);
        if forgets {
            for queue in [own, &mut shown] {
                queue.write_queue_nums = 1;
            }
        }
        for data in group.alias_data(name, forgets) {
            if taken.contains_key(&data.broker_name) || !seen.insert(data.broker_name.clone()) {
                continue;
            }
            queues.push(QueueData {
                broker_name: data.broker_name.clone(),
                ..shown.clone()
            });
            brokers.push(data);
        }
    }
}

/// The port of `addr` at the host of `vip`.
fn at_host_of(vip: &str, addr: &str) -> String {
    let host = vip.rsplit_once(':').map_or(vip, |(host, _)| host);
    let port = addr.rsplit_once(':').map_or("", |(_, port)| port);
    format!("{host}:{port}")
}

/// The address for a name, of which the first has `addr`.
fn port_of(addr: &str, number: u16) -> String {
    let (host, port) = addr.rsplit_once(':').unwrap_or((addr, ""));
    let port = port
        .parse::<u32>()
        .map_or(0, |port| port + u32::from(number) - 1);
    format!("{host}:{port}")
}

fn alias_name(name: &str, number: u16) -> String {
    format!("{name}@{number}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::Instant;

    use super::super::tests::registration;
    use super::super::{Registration, Routes};
    use super::*;

    const FIRST_PORT: u16 = 10913;

    struct Group {
        routes: Routes,
        now: Instant,
    }

    fn alias(addr: &str) -> Alias {
        Alias {
            addr: format!("{addr}:{FIRST_PORT}"),
            queues: 1,
            silent: BTreeSet::new(),
        }
    }

    impl Group {
        fn new() -> Self {
            let mut group = Self {
                routes: Routes::default(),
                now: Instant::now(),
            };
            group.register("a1", 0, 1);
            group.register("a2", 2, 1);
            group.register("a3", 3, 1);
            group
        }

        fn register(&mut self, addr: &str, id: i64, term: i64) {
            let registration = Registration {
                alias: Some(alias(addr)),
                ..registration(addr, id, term)
            };
            self.routes.register(registration, self.now).unwrap();
        }

        fn die(&mut self, addr: &str) {
            self.routes.connection_closed(addr[1..].parse().unwrap());
        }

        /// name=address of all names that can be written to, in the order of stock clients.
        fn shown(&self) -> Vec<String> {
            let route = self.routes.route("T", false).unwrap();
            let addrs: BTreeMap<_, _> = route
                .broker_datas
                .iter()
                .map(|data| {
                    (
                        data.broker_name.as_str(),
                        data.broker_addrs[&MASTER]
                            .replace(":10913", "-alias")
                            .replace(":10914", "-alias"),
                    )
                })
                .collect();
            let mut queues = route.queue_datas.clone();
            queues.sort_by(|a, b| a.broker_name.cmp(&b.broker_name));
            queues
                .iter()
                .map(|queue| {
                    format!(
                        "{}={}",
                        queue.broker_name,
                        addrs[queue.broker_name.as_str()]
                    )
                })
                .collect()
        }
    }

    #[test]
    fn a_group_of_three_has_two_more_names_at_nodes_that_live() {
        let mut group = Group::new();
        assert_eq!(group.shown(), ["b=a1", "b@1=a2-alias", "b@2=a3-alias"]);
        let route = group.routes.route("T", false).unwrap();
        let queue = &route.queue_datas[1];
        assert_eq!(
            (queue.perm, queue.read_queue_nums, queue.write_queue_nums),
            (2, 0, 1)
        );
        let addrs = &route.broker_datas[2].broker_addrs;
        assert_eq!(addrs[&0], "a3:10914", "a port for each name");

        // A stand-in has the group's name while there is no leader.
        group.die("a1");
        assert_eq!(group.shown(), ["b=a2", "b@1=a3-alias", "b@2=a3-alias"]);
        group.register("a3", 0, 2);
        assert_eq!(group.shown(), ["b=a3", "b@1=a2-alias", "b@2=a2-alias"]);
        group.register("a1", 1, 2);
        assert_eq!(group.shown(), ["b=a3", "b@1=a1-alias", "b@2=a2-alias"]);

        // The leader's own address is better than none.
        group.die("a1");
        group.die("a2");
        assert_eq!(group.shown(), ["b=a3", "b@1=a3-alias", "b@2=a3-alias"]);
        group.die("a3");
        assert_eq!(group.routes.route("T", false), None);
    }

    #[test]
    fn the_own_name_shows_its_queues_over_and_over_where_others_show_one() {
        let mut group = Group::new();
        let shown = |group: &Group, forgets| {
            let route = group.routes.route("T", forgets).unwrap();
            let of = |queue: &QueueData| (queue.read_queue_nums, queue.write_queue_nums);
            route.queue_datas.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(shown(&group, false), [(4, 80), (0, 1), (0, 1)]);
        assert!(shown(&group, true).iter().all(|(_, write)| *write == 1));
        // Neither while nobody may write, nor where the others show several.
        group.routes.set_write_perm("b", false);
        assert_eq!(shown(&group, false), [(4, 4)]);
        group.routes.set_write_perm("b", true);
        let queues = 2;
        let alias = Alias {
            queues,
            ..alias("a1")
        };
        let registration = Registration {
            alias: Some(alias),
            ..registration("a1", 0, 2)
        };
        group.routes.register(registration, group.now).unwrap();
        assert_eq!(shown(&group, false), [(4, 4), (0, 2), (0, 2)]);
    }

    #[test]
    fn no_name_is_at_a_leader_that_was_replaced_until_it_speaks_again() {
        let mut group = Group::new();
        group.register("a3", 0, 2);
        assert_eq!(group.shown(), ["b=a3", "b@1=a2-alias", "b@2=a2-alias"]);
        group.register("a1", 1, 2);
        assert_eq!(group.shown(), ["b=a3", "b@1=a1-alias", "b@2=a2-alias"]);
        // Where there is no other, it is better than none.
        group.register("a2", 0, 3);
        group.die("a1");
        assert_eq!(group.shown(), ["b=a2", "b@1=a3-alias", "b@2=a3-alias"]);
    }

    #[test]
    fn no_name_is_at_a_follower_that_does_not_answer_its_leader() {
        let mut group = Group::new();
        let mut silent = |ids: &[i64]| {
            let alias = Alias {
                silent: ids.iter().copied().collect(),
                ..alias("a1")
            };
            let registration = Registration {
                alias: Some(alias),
                ..registration("a1", 0, 1)
            };
            group.routes.register(registration, group.now).unwrap();
            group.shown()
        };
        assert_eq!(silent(&[2]), ["b=a1", "b@1=a3-alias", "b@2=a3-alias"]);
        assert_eq!(silent(&[]), ["b=a1", "b@1=a2-alias", "b@2=a3-alias"]);
        // A leader that hears nobody may itself be the one that is cut off.
        let all = ["b=a1", "b@1=a2-alias", "b@2=a3-alias"];
        assert_eq!(silent(&[2, 3]), all);
    }

    #[test]
    fn who_forgets_what_failed_meets_two_nodes_in_any_three_queues_in_a_row() {
        let mut group = Group::new();
        // The nodes of the queues in the order of their names, in which Go clients go round or back.
        let nodes = |group: &Group| {
            let route = group.routes.route("T", true).unwrap();
            let addrs: BTreeMap<_, _> = (route.broker_datas.iter())
                .map(|data| (data.broker_name.clone(), data.broker_addrs[&MASTER].clone()))
                .collect();
            let mut queues = route.queue_datas;
            assert!(queues.iter().all(|queue| queue.write_queue_nums == 1));
            assert_eq!(queues[0].read_queue_nums, 4);
            queues.sort_by(|a, b| a.broker_name.cmp(&b.broker_name));
            let addr = |queue: &QueueData| addrs[&queue.broker_name].clone();
            queues.iter().map(addr).collect::<Vec<_>>()
        };
        let all = [
            "a1:1", "a2:10913", "a3:10914", "a1:10915", "a2:10916", "a3:10917",
        ];
        let all = all.map(|addr| addr.trim_end_matches(":1").to_owned());
        assert_eq!(nodes(&group), all);
        // One is down, and another one dies while this route is still about.
        group.die("a1");
        group.register("a3", 0, 2);
        let seen = nodes(&group);
        let at = |n: usize| seen[n % seen.len()].split(':').next().unwrap();
        for n in 0..seen.len() {
            let three: BTreeSet<_> = (n..n + 3).map(at).collect();
            assert_eq!(three, BTreeSet::from(["a2", "a3"]), "{n}");
        }
        // What is at the leader moves with it.
        for (addr, of, id) in [("vip:1", "a3", 0), ("a2", "a2", 2)] {
            let registration = Registration {
                addr: addr.to_owned(),
                vip: Some("vip:1".to_owned()),
                alias: Some(alias(of)),
                ..registration(of, id, 2)
            };
            group.routes.register(registration, group.now).unwrap();
        }
        assert_eq!(nodes(&group)[3], "vip:10915");
        // Without further names nothing is gained by it.
        let plain = registration("a3", 0, 3);
        group.routes.register(plain, group.now).unwrap();
        let route = group.routes.route("T", true).unwrap();
        assert_eq!(route.queue_datas[0].write_queue_nums, 4);
    }

    #[test]
    fn two_groups_with_the_same_topic_have_names_of_their_own() {
        let mut group = Group::new();
        for (addr, id) in [("a4", 0), ("a5", 2)] {
            let registration = Registration {
                name: "c".into(),
                alias: Some(alias(addr)),
                ..registration(addr, id, 1)
            };
            group.routes.register(registration, group.now).unwrap();
        }
        let first = ["b=a1", "b@1=a2-alias", "b@2=a3-alias"];
        let second = ["c=a4", "c@1=a5-alias", "c@2=a5-alias"];
        assert_eq!(group.shown(), [first, second].concat());
        let info = group.routes.cluster_info();
        assert_eq!(info.cluster_addr_table["C"].len(), 2);
    }

    #[test]
    fn who_walks_the_cluster_sees_the_group_once() {
        let group = Group::new();
        let info = group.routes.cluster_info();
        assert_eq!(info.broker_addr_table.len(), 1);
        assert_eq!(info.cluster_addr_table["C"].len(), 1);
    }

    #[test]
    fn what_cannot_be_written_to_has_no_further_names() {
        let mut group = Group::new();
        group.routes.set_write_perm("b", false);
        assert_eq!(group.shown(), ["b=a1"]);
        group.routes.set_write_perm("b", true);
        assert_eq!(group.shown().len(), 3);
    }

    #[test]
    fn a_leader_that_does_not_ask_for_them_ends_them() {
        let mut group = Group::new();
        let now = group.now;
        let registration = registration("a1", 0, 2);
        group.routes.register(registration, now).unwrap();
        assert_eq!(group.shown(), ["b=a1"]);
    }

    #[test]
    fn a_broker_of_such_a_name_keeps_it() {
        let mut group = Group::new();
        let taken = Registration {
            name: "b@1".into(),
            ..registration("a7", 0, None)
        };
        group.routes.register(taken, group.now).unwrap();
        assert_eq!(group.shown(), ["b=a1", "b@1=a7", "b@2=a3-alias"]);
    }
}
