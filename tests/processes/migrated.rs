//! Stores of Java brokers, and name servers and nodes that are started by their properties files.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::Parser as _;
use jepsen::client::Client;
use rmq_migrate::{Options, Progress, Report, Reversed, Style};
use rmq_wire::code::request;
use rmq_wire::frame;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::archive;
use crate::support::{PATIENCE, free_port, rmq, text, until};

/// What the project shares with others outside of its repository, by name; `None`, with a message, where
/// it is absent, which in CI is a failure.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared")
        .join(name);
    let shown = path.display();
    if path.try_exists().unwrap() {
        return Some(path.canonicalize().unwrap());
    }
    assert!(std::env::var_os("CI").is_none(), "{shown} is missing");
    eprintln!("skipped: {shown} is missing");
    None
}

/// Unpacks those stores of an archive that are wanted: of each a directory with `store` and
/// `broker.conf`.
pub(crate) fn unpack(archive: &Path, wanted: impl Fn(&str) -> bool) -> TempDir {
    let dir = TempDir::new().unwrap();
    archive::unpack(archive, dir.path(), wanted);
    dir
}

/// Migrates a store, whose broker had these properties.
pub(crate) fn migrate(store: &Path, conf: &Path, to: &Path, more: &[&str]) -> Report {
    rmq_migrate::run(&options(store, conf, to, more), &progress()).unwrap()
}

/// Makes a Java broker's store of a node's.
pub(crate) fn reverse(store: &Path, conf: &Path, to: &Path, more: &[&str]) -> Reversed {
    let more = [&["--reverse"], more].concat();
    rmq_migrate::reverse(&options(store, conf, to, &more), &progress()).unwrap()
}

fn options(store: &Path, conf: &Path, to: &Path, more: &[&str]) -> Options {
    let args = ["rmq-migrate", "--progress", "none", "--from"].map(Path::new);
    let args = args
        .into_iter()
        .chain([store, Path::new("--to"), to, Path::new("-c"), conf])
        .chain(more.iter().map(Path::new));
    Options::parse_from(args)
}

fn progress() -> Progress {
    Progress::new(Style::None)
}

/// A directory with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    let output = command.args(["-a"]).arg(from).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// What `mqadmin inspect store` says of a stopped store.
pub(crate) fn inspect(root: &Path) -> Value {
    let mut command = Command::new(rmq());
    let command = command.args(["admin", "inspect", "store", "--json"]);
    let output = command.arg(root).output().unwrap();
    assert!(!output.stdout.is_empty(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn spawn(role: &str, conf: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(conf.with_extension("log"))
        .unwrap();
    Command::new(rmq())
        .args([role, "-c"])
        .arg(conf)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A name server of ours; ends with this value.
pub(crate) struct Namesrv {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Namesrv {
    pub(crate) fn start(dir: &Path, port: u16) -> Self {
        let conf = dir.join("namesrv.conf");
        fs::write(&conf, format!("listenPort={port}\nbindAddress=127.0.0.1\n")).unwrap();
        let child = spawn("namesrv", &conf);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        until("a name server listens", || TcpStream::connect(address).ok());
        Self { child, address }
    }
}

/// A node started from a written file; ends with this value.
pub(crate) struct Node {
    child: Option<Child>,
    conf: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) address: SocketAddr,
}

impl Node {
    /// What a test on one machine has to have otherwise is appended: the last of equal keys counts.
    pub(crate) fn start(conf: &Path, store: &Path, port: u16, more: &str) -> Self {
        let mut text = fs::read_to_string(conf).unwrap();
        text += &format!(
            "\nlistenPort={port}\nbindAddress=127.0.0.1\nstorePathRootDir={}\n\
             fileReservedTime=876000\ndiskMaxUsedSpaceRatio=99\ndiskSpaceWarningLevelRatio=99\n\
             cleanFileForciblyEnable=false\n{more}\n",
            store.display()
        );
        let conf = store.with_extension("conf");
        fs::write(&conf, text).unwrap();
        let mut node = Self {
            child: None,
            conf,
            store: store.to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        node.start_again();
        node
    }

    pub(crate) fn start_again(&mut self) {
        self.child = Some(spawn("broker", &self.conf));
    }

    pub(crate) fn assert_alive(&mut self) {
        let ended = self
            .child
            .as_mut()
            .and_then(|child| child.try_wait().unwrap());
        let log = || fs::read_to_string(self.conf.with_extension("log")).unwrap();
        assert!(ended.is_none(), "a node has ended: {ended:?}\n{}", log());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
    }

    /// SIGTERM, and waits for a clean end.
    pub(crate) fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Namesrv {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `--peers` for three nodes on this machine, at free ports.
pub(crate) fn three_peers() -> String {
    let peer = |n| format!("n{n}-127.0.0.1:{}", free_port());
    [0, 1, 2].map(peer).join(";")
}

/// The addresses of a broker's nodes that a name server knows, by broker id. Our name server and Java's
/// answer alike.
pub(crate) fn route(namesrv: SocketAddr, broker: &str) -> Option<Vec<(i64, String)>> {
    let mut query = frame::Command::request(request::GET_ROUTEINFO_BY_TOPIC);
    // A broker has a topic of its own name.
    query.ext.insert("topic", broker);
    query.ext.insert("acceptStandardJsonOnly", "true");
    let answer = Client::connect(namesrv, PATIENCE).ok()?.call(query).ok()?;
    let route: Value = serde_json::from_slice(&answer.body).ok()?;
    let addresses = route["brokerDatas"][0]["brokerAddrs"].as_object()?;
    let addresses = addresses
        .iter()
        .map(|(id, address)| Some((id.parse().ok()?, address.as_str()?.to_owned())));
    addresses.collect()
}
