//! An address that moves with the leader, between network namespaces that the test makes.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jepsen::client::{Client, Outcome};
use jepsen::cluster::status;
use rmq_wire::code::request;
use rmq_wire::frame;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::support::{PATIENCE, rmq, until};

const TOPIC: &str = "vip";
const PORT: u16 = 10911;
const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

/// A process that ends with this value.
struct Owned(Child);

impl Owned {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

/// A machine of its own for the network: a process that holds the namespace.
struct Machine(Owned);

impl Machine {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec sleep 3600"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        // It is in its namespace once it says something.
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0]).unwrap();
        Self(Owned(child))
    }

    fn pid(&self) -> String {
        self.0.0.id().to_string()
    }

    fn enter(&self) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid(), "--"]);
        command.arg(program);
        command
    }

    fn ip(&self, arguments: &str) -> String {
        let mut command = self.command(Path::new("ip"));
        let output = command.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn has(&self, address: Ipv4Addr) -> bool {
        self.ip("-4 addr show").contains(&format!(" {address}/"))
    }
}

/// Whether this machine can have namespaces at all.
fn is_possible() -> bool {
    let possible = Command::new("unshare")
        .args(["--net", "ip", "link", "show"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !possible {
        let missing = "network namespaces, which need root, unshare, nsenter and ip";
        assert!(std::env::var_os("CI").is_none(), "no {missing}");
        eprintln!("skipped, because there are no {missing}");
    }
    possible
}

struct Group {
    dir: Option<TempDir>,
    machines: Vec<Machine>,
    nodes: Vec<Option<Owned>>,
    _namesrv: Owned,
    _here: Machine,
}

impl Group {
    /// Three machines with a node each, on a link with this thread, which moves there.
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let here = Machine::new();
        here.ip("link set lo up");
        here.ip("link add br0 type bridge");
        here.ip(&format!("addr add {HERE}/24 dev br0"));
        here.ip("link set br0 up");
        let machines: Vec<_> = (0..3).map(|_| Machine::new()).collect();
        for (n, machine) in machines.iter().enumerate() {
            let pid = machine.pid();
            here.ip(&format!(
                "link add port{n} type veth peer name eth0 netns {pid}"
            ));
            here.ip(&format!("link set port{n} master br0 up"));
            machine.ip("link set lo up");
            machine.ip(&format!("addr add {}/24 dev eth0", address(n).ip()));
            machine.ip("link set eth0 up");
        }
        here.enter();
        let conf = dir.path().join("namesrv.conf");
        fs::write(&conf, "listenPort=9876\n").unwrap();
        let namesrv = spawn(here.command(rmq()).arg("namesrv"), &conf);
        let mut group = Self {
            dir: Some(dir),
            machines,
            nodes: vec![None, None, None],
            _namesrv: namesrv,
            _here: here,
        };
        for n in 0..3 {
            group.start_node(n);
        }
        group
    }

    fn start_node(&mut self, n: usize) {
        let dir = self.dir.as_ref().unwrap().path();
        let (store, conf) = (dir.join(format!("n{n}")), dir.join(format!("n{n}.conf")));
        let peers: Vec<_> = (0..3)
            .map(|n| format!("n{n}-{}:40911", address(n).ip()))
            .collect();
        let text = format!(
            "brokerClusterName=c\nbrokerName=g\nbrokerIP1={}\nbrokerVip={VIP}/24@eth0\n\
             namesrvAddr={HERE}:9876\nlistenPort={PORT}\nstorePathRootDir={}\n\
             enableDLegerCommitLog=true\ndLegerGroup=g\ndLegerPeers={}\ndLegerSelfId=n{n}\n\
             mappedFileSizeCommitLog=8388608\nmaxMessageSize=1048576\nmaxHashSlotNum=50000\n\
             mappedFileSizeConsumeQueue=60000\nmaxIndexNum=200000\n",
            address(n).ip(),
            store.display(),
            peers.join(";"),
        );
        fs::write(&conf, text).unwrap();
        let node = spawn(self.machines[n].command(rmq()).arg("broker"), &conf);
        self.nodes[n] = Some(node);
    }

    /// The node that leads and has the address, once the others but `except` have it no longer.
    fn leader(&self, except: Option<usize>) -> usize {
        until("one leader with the address", || {
            let leads = |n: &usize| {
                status(address(*n)).is_ok_and(|status| status["group"]["serving"] == true)
            };
            let others = (0..3).filter(|n| Some(*n) != except);
            let leader = others.clone().find(leads)?;
            let holders: Vec<_> = others.filter(|n| self.machines[*n].has(VIP)).collect();
            (holders == [leader]).then_some(leader)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("files are kept in {}", dir.keep().display());
        }
    }
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 77, 0, u8::try_from(n).unwrap() + 1], PORT))
}

fn spawn(command: &mut Command, conf: &Path) -> Owned {
    let log = File::create(conf.with_extension("log")).unwrap();
    let command = command.arg("-c").arg(conf).stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    Owned(command.spawn().unwrap())
}

/// What a client does that knows no other address, until it is acknowledged; its connection.
fn send(body: &str) -> Client {
    until("an acknowledgement", || {
        let mut client = Client::connect((VIP, PORT).into(), Duration::from_secs(3)).ok()?;
        matches!(client.send(TOPIC, 0, body), Outcome::Ok(_)).then_some(client)
    })
}

/// Address by broker id.
fn route() -> Option<serde_json::Value> {
    let mut command = frame::Command::request(request::GET_ROUTEINFO_BY_TOPIC);
    command.ext.insert("topic", TOPIC);
    command.ext.insert("acceptStandardJsonOnly", "true");
    let mut client = Client::connect((HERE, 9876).into(), PATIENCE).ok()?;
    let answer = client.call(command).ok()?;
    let route: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    Some(route["brokerDatas"][0]["brokerAddrs"].clone())
}

#[test]
fn an_address_moves_with_the_leader() {
    if !is_possible() {
        return;
    }
    let mut group = Group::start();
    send("a");
    let vip = format!("{VIP}:{PORT}");
    let leads_there = || route().filter(|addrs| addrs["0"] == *vip);
    until("a route with each node once", || {
        let shown = leads_there()?;
        (shown.as_object()?.len() == 3).then_some(())
    });

    // The leader is frozen: the address is at another node, though its kernel still has it too, and
    // who was connected hears of it.
    let mut caught = send("b");
    let first = group.leader(None);
    group.nodes[first].as_ref().unwrap().signal(Signal::STOP);
    group.leader(Some(first));
    send("c");
    assert!(matches!(caught.send(TOPIC, 0, "d"), Outcome::Unknown(_)));
    until("a route", leads_there);
    // Its kernel lets go of the address by itself.
    until("the kernel", || {
        (!group.machines[first].has(VIP)).then_some(())
    });
    group.nodes[first].as_ref().unwrap().signal(Signal::CONT);
    let second = group.leader(None);

    // The leader dies.
    group.nodes[second] = None;
    group.leader(Some(second));
    send("e");
    until("a route", leads_there);
    group.start_node(second);

    // The leader is asked to go: it takes the address away itself.
    let third = group.leader(None);
    group.nodes[third].as_ref().unwrap().signal(Signal::TERM);
    let ended = group.nodes[third].as_mut().unwrap().0.wait().unwrap();
    assert!(ended.success(), "{ended}");
    assert!(!group.machines[third].has(VIP));
    group.leader(Some(third));
    send("f");

    let found = until("all messages", || {
        let mut reader = Client::connect((VIP, PORT).into(), Duration::from_secs(10)).ok()?;
        let all = reader.read_queue(TOPIC, 0).ok()?;
        let mut found: Vec<String> = all.into_iter().map(|(_, body)| body).collect();
        // "d" may have gone nowhere; one whose answer was lost may be there twice.
        found.retain(|body| body != "d");
        found.dedup();
        (found.len() >= 5).then_some(found)
    });
    assert_eq!(found, ["a", "b", "c", "e", "f"]);
}
