use super::*;

struct Bench {
    routes: Routes,
    now: Instant,
}

fn version(counter: i64) -> DataVersion {
    DataVersion {
        counter,
        ..DataVersion::default()
    }
}

fn topic(name: &str, queues: i32) -> TopicConfig {
    TopicConfig::new(name, queues, perm::READ | perm::WRITE)
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(String::from).into()
}

/// A registration of `addr` by its last character: connection 1 for `n1` and so on.
pub(in crate::namesrv) fn registration(
    addr: &str,
    id: i64,
    term: impl Into<Option<i64>>,
) -> Registration {
    Registration {
        cluster: "C".into(),
        name: "b".into(),
        addr: addr.into(),
        id,
        ha_addr: format!("{addr}-ha"),
        term: term.into(),
        version: version(1),
        topics: if id == MASTER {
            vec![topic("T", 4)]
        } else {
            vec![]
        },
        alias: None,
        vip: None,
        filter_servers: None,
        conn: addr[1..].parse().unwrap(),
    }
}

impl Bench {
    fn new() -> Self {
        Self {
            routes: Routes::default(),
            now: Instant::now(),
        }
    }

    fn register(&mut self, addr: &str, id: i64, term: impl Into<Option<i64>>) -> Master {
        self.routes
            .register(registration(addr, id, term), self.now)
            .unwrap()
    }

    fn refused(&mut self, addr: &str, id: i64, term: impl Into<Option<i64>>) -> RegisterError {
        self.routes
            .register(registration(addr, id, term), self.now)
            .unwrap_err()
    }

    /// `id=addr` of the only broker name.
    fn addrs(&self) -> String {
        let info = self.routes.cluster_info();
        let Some(broker) = info.broker_addr_table.get("b") else {
            return String::new();
        };
        if let Some(route) = self.routes.route("T", false) {
            assert_eq!(route.broker_datas, std::slice::from_ref(broker));
        }
        let mut seen = BTreeSet::new();
        assert!(
            broker.broker_addrs.values().all(|addr| seen.insert(addr)),
            "{broker:?}"
        );
        let addrs = broker
            .broker_addrs
            .iter()
            .map(|(id, addr)| format!("{id}={addr}"));
        addrs.collect::<Vec<_>>().join(" ")
    }

    fn close(&mut self, addr: &str) {
        self.routes.connection_closed(addr[1..].parse().unwrap());
    }

    /// A group of three in `term` that `n1` leads.
    fn group(term: i64) -> Self {
        let mut bench = Self::new();
        bench.register("n1", 0, term);
        bench.register("n2", 2, term);
        bench.register("n3", 3, term);
        assert_eq!(bench.addrs(), "0=n1 2=n2 3=n3");
        bench
    }
}

#[test]
fn a_dead_leader_leaves_at_once_and_a_living_node_stands_in() {
    let mut bench = Bench::group(5);
    bench.close("n1");
    assert_eq!(bench.addrs(), "0=n2 3=n3");
    bench.close("n2");
    assert_eq!(bench.addrs(), "0=n3");
    bench.register("n1", 1, 6);
    assert_eq!(bench.addrs(), "0=n1 3=n3");
    bench.register("n3", 0, 7);
    assert_eq!(bench.addrs(), "0=n3 1=n1");
}

#[test]
fn an_address_that_moves_with_the_leader_stays_id_0() {
    let mut bench = Bench::new();
    let register = |bench: &mut Bench, conn: u64, addr: &str, id, term| {
        let registration = Registration {
            addr: addr.into(),
            vip: Some("vip".into()),
            conn,
            ..registration("n0", id, term)
        };
        bench.routes.register(registration, bench.now).unwrap();
        bench.addrs()
    };
    assert_eq!(register(&mut bench, 2, "n2", 2, 4), "0=vip 2=n2");
    assert_eq!(register(&mut bench, 3, "n3", 3, 5), "0=vip 2=n2 3=n3");
    assert_eq!(register(&mut bench, 1, "vip", 0, 5), "0=vip 2=n2 3=n3");
    bench.close("n1");
    assert_eq!(bench.addrs(), "0=vip 2=n2 3=n3");
    // It has it from another node by now when the old one's connection ends.
    register(&mut bench, 2, "vip", 0, 6);
    register(&mut bench, 3, "vip", 0, 7);
    bench.routes.unregister("b", "n3");
    bench.close("n2");
    assert_eq!(bench.addrs(), "0=vip");
    bench.close("n3");
    assert_eq!(bench.addrs(), "");
}

#[test]
fn a_new_leader_takes_id_0_from_one_that_still_lives() {
    let mut bench = Bench::group(5);
    bench.register("n2", 0, 6);
    assert_eq!(bench.addrs(), "0=n2 3=n3");
    bench.register("n1", 1, 6);
    assert_eq!(bench.addrs(), "0=n2 1=n1 3=n3");
    // A leader that steps down before the next one is known goes on as a stand-in.
    bench.register("n2", 2, 7);
    assert_eq!(bench.addrs(), "0=n1 2=n2 3=n3");
}

#[test]
fn a_deposed_leader_is_the_last_to_stand_in() {
    let mut bench = Bench::group(5);
    bench.register("n2", 0, 6);
    bench.close("n2");
    assert_eq!(bench.addrs(), "0=n3");
    bench.close("n3");
    assert_eq!(bench.addrs(), "0=n1");
    bench.close("n1");
    assert_eq!(bench.addrs(), "");
    assert!(bench.routes.all_topics().is_empty());
}

#[test]
fn a_leader_of_an_older_term_is_refused_and_one_of_the_same_term_is_not() {
    let mut bench = Bench::group(5);
    bench.register("n2", 0, 6);
    let refused = bench.refused("n1", 0, 5);
    assert!(matches!(
        refused,
        RegisterError::Deposed {
            term: 5,
            known: 6,
            ..
        }
    ));
    assert_eq!(bench.addrs(), "0=n2 3=n3");
    bench.register("n2", 0, 6);
    // A candidate's term is not that of a leader.
    bench.register("n3", 3, 9);
    bench.register("n2", 0, 6);
    // The fence holds after the leader's end too.
    bench.close("n2");
    bench.refused("n1", 0, 5);
    bench.register("n3", 0, 7);
    assert_eq!(bench.addrs(), "0=n3");
}

#[test]
fn a_master_without_a_term_is_refused_for_the_name_of_a_group() {
    let mut bench = Bench::group(5);
    let refused = bench.refused("n4", 0, None);
    assert!(matches!(refused, RegisterError::NoTerm { known: 5, .. }));
    assert_eq!(bench.addrs(), "0=n1 2=n2 3=n3");
    // Also when only followers have registered so far.
    let mut bench = Bench::new();
    bench.register("n2", 2, 0);
    bench.refused("n4", 0, None);
    assert_eq!(bench.addrs(), "0=n2");
    // With the last node the group is forgotten, and its term.
    bench.close("n2");
    bench.register("n4", 0, None);
    assert_eq!(bench.addrs(), "0=n4");
    // A group may take a classic name over.
    bench.register("n1", 0, 1);
    bench.refused("n4", 0, None);
    assert_eq!(bench.addrs(), "0=n1");
}

#[test]
fn classic_brokers_have_java_s_rules() {
    let mut bench = Bench::new();
    bench.register("n1", 0, None);
    let master = bench.register("n2", 1, None);
    assert_eq!(master.addr.as_deref(), Some("n1"));
    assert_eq!(master.ha_addr.as_deref(), Some("n1-ha"));
    // Nobody stands in for a dead master.
    bench.close("n1");
    assert_eq!(bench.addrs(), "1=n2");
    assert_eq!(bench.register("n2", 1, None), Master::default());
    // The last one who says so is the master, and no address has two ids.
    bench.register("n2", 0, None);
    assert_eq!(bench.addrs(), "0=n2");
    bench.register("n1", 0, None);
    assert_eq!(bench.addrs(), "0=n1");
    // An address without an id does not keep the name.
    bench.close("n1");
    assert_eq!(bench.addrs(), "");
    assert!(bench.routes.route("T", false).is_none());
}

#[test]
fn silence_and_unregistration_remove_a_broker() {
    let mut bench = Bench::group(5);
    bench.now += SILENCE_LIMIT;
    bench.register("n2", 2, 5);
    bench.routes.expire(bench.now);
    assert_eq!(bench.addrs(), "0=n1 2=n2 3=n3");
    bench.routes.expire(bench.now + Duration::from_millis(1));
    assert_eq!(bench.addrs(), "0=n2");
    bench.routes.unregister("b", "n9");
    bench.routes.unregister("other", "n2");
    assert_eq!(bench.addrs(), "0=n2");
    bench.routes.unregister("b", "n2");
    assert_eq!(bench.addrs(), "");
}

#[test]
fn a_closed_connection_removes_no_broker_that_has_another() {
    let mut bench = Bench::group(5);
    let mut again = registration("n1", 0, 5);
    again.conn = 10;
    bench.routes.register(again, bench.now).unwrap();
    bench.close("n1");
    assert_eq!(bench.addrs(), "0=n1 2=n2 3=n3");
    bench.routes.connection_closed(10);
    assert_eq!(bench.addrs(), "0=n2 3=n3");
}

#[test]
fn topics_are_taken_from_id_0_when_they_are_new() {
    let mut bench = Bench::new();
    let mut slave = registration("n2", 1, None);
    slave.topics = vec![topic("S", 1)];
    bench.routes.register(slave, bench.now).unwrap();
    assert!(bench.routes.all_topics().is_empty());

    let mut master = registration("n1", 0, None);
    bench.routes.register(master.clone(), bench.now).unwrap();
    master.topics = vec![topic("T", 8), topic("U", 1)];
    bench.routes.register(master.clone(), bench.now).unwrap();
    assert_eq!(
        bench.routes.all_topics(),
        set(["T"]),
        "the version has not changed"
    );
    master.version = version(2);
    bench.routes.register(master.clone(), bench.now).unwrap();
    assert_eq!(bench.routes.all_topics(), set(["T", "U"]));
    let queues = &bench.routes.route("T", false).unwrap().queue_datas[0];
    assert_eq!(
        (queues.read_queue_nums, queues.broker_name.as_str()),
        (8, "b")
    );

    // Missing topics stay.
    (master.version, master.topics) = (version(3), vec![]);
    bench.routes.register(master.clone(), bench.now).unwrap();
    assert_eq!(bench.routes.all_topics(), set(["T", "U"]));

    // The first registration after its end counts as new, whatever its version.
    bench.routes.delete_topic("T", None);
    bench.close("n1");
    master.topics = vec![topic("T", 2)];
    bench.routes.register(master, bench.now).unwrap();
    assert_eq!(bench.routes.all_topics(), set(["T", "U"]));
    // So does that of another leader.
    let mut other = registration("n3", 0, None);
    (other.version, other.topics) = (version(3), vec![topic("V", 2)]);
    bench.routes.register(other, bench.now).unwrap();
    assert_eq!(bench.routes.all_topics(), set(["T", "U", "V"]));
}

#[test]
fn a_topic_on_two_brokers_lives_and_is_deleted_by_cluster() {
    let mut bench = Bench::new();
    bench.register("n1", 0, None);
    let mut other = registration("n2", 0, 1);
    (other.name, other.cluster) = ("a".into(), "D".into());
    bench.routes.register(other, bench.now).unwrap();
    let route = bench.routes.route("T", false).unwrap();
    assert_eq!((route.broker_datas.len(), route.queue_datas.len()), (2, 2));
    assert_eq!(bench.routes.topics_of_cluster("C"), set(["T"]));
    assert!(bench.routes.topics_of_cluster("E").is_empty());
    let (names, addr) = bench.routes.system_topics();
    assert_eq!(
        (names, addr.as_deref()),
        (set(["C", "D", "a", "b"]), Some("n2"))
    );

    bench.routes.delete_topic("T", Some("C"));
    assert_eq!(
        bench.routes.route("T", false).unwrap().queue_datas[0].broker_name,
        "a"
    );
    bench.close("n2");
    assert!(bench.routes.route("T", false).is_none());
    assert_eq!(bench.addrs(), "0=n1");
}

#[test]
fn write_permission_is_taken_and_given() {
    let mut bench = Bench::new();
    bench.register("n1", 0, None);
    let perm = |bench: &Bench| bench.routes.route("T", false).unwrap().queue_datas[0].perm;
    assert_eq!(perm(&bench), 6);
    assert_eq!(bench.routes.set_write_perm("b", false), 1);
    assert_eq!(perm(&bench), 4);
    bench.register("n1", 0, None);
    assert_eq!(perm(&bench), 4, "the same version changes nothing");
    assert_eq!(bench.routes.set_write_perm("b", true), 1);
    assert_eq!(perm(&bench), 6);
    assert_eq!(bench.routes.set_write_perm("other", true), 0);
}

#[test]
fn an_unchanged_version_is_a_sign_of_life() {
    let mut bench = Bench::group(1);
    let later = bench.now + SILENCE_LIMIT;
    let (changed, known) = bench.routes.query_version("b", "n1", &version(1), later);
    assert_eq!((changed, known), (false, Some(version(1))));
    let (changed, known) = bench.routes.query_version("b", "n2", &version(2), later);
    assert_eq!((changed, known), (true, Some(version(1))));
    assert_eq!(
        bench.routes.query_version("b", "n9", &version(1), later),
        (true, None)
    );
    bench.routes.expire(later + Duration::from_secs(1));
    assert_eq!(bench.addrs(), "0=n1");
}
