//! Clusters of ours, and the real Java and Go programs that the tests set against them.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jepsen::client::{Client, Outcome};
use jepsen::cluster::{Cluster, Options, free_runs};
use rmq_wire::body::{ConsumerData, HeartbeatData, SubscriptionData};
use rmq_wire::code::request;
use rmq_wire::frame;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Far beyond what anything takes that works, on a slow machine too; nothing waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Waits for what will be.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The executable under test.
pub(crate) fn rmq() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rmq"))
}

/// A cluster whose files go with it, unless the test failed: then they stay and their place is printed.
pub(crate) struct Running {
    cluster: Cluster,
    pub(crate) dir: Option<TempDir>,
}

impl Running {
    pub(crate) fn start(options: &Options) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("rmq-test-")
            .tempdir()
            .unwrap();
        // The disk of the machine has no say.
        let of_disk = "diskMaxUsedSpaceRatio=99\ndiskSpaceWarningLevelRatio=99\n";
        let options = Options {
            more: of_disk.to_owned() + &options.more,
            ..options.clone()
        };
        match Cluster::start(rmq(), dir.path(), &options) {
            Ok(cluster) => Self {
                cluster,
                dir: Some(dir),
            },
            Err(e) => panic!("{e:#}; files are kept in {}", dir.keep().display()),
        }
    }

    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// The node that leads, once there is one.
    pub(crate) fn leading(&self) -> usize {
        self.wait_for_leader(PATIENCE).unwrap()
    }

    pub(crate) fn producer(&self) -> Producer<'_> {
        Producer {
            group: self,
            client: None,
        }
    }

    /// What a queue holds, as the leader serves it; what is there twice in a row counts once, see
    /// [`Producer`].
    pub(crate) fn bodies(&self, topic: &str, queue: u32) -> Vec<String> {
        let found = until("a queue is read", || {
            let leader = self.addresses()[self.leader().ok()?];
            let mut client = Client::connect(leader, PATIENCE).ok()?;
            client.read_queue(topic, queue).ok()
        });
        let mut bodies: Vec<String> = found.into_iter().map(|(_, body)| body).collect();
        bodies.dedup();
        bodies
    }
}

/// Sends through whoever leads, again until it is acknowledged: on a busy machine another node may be
/// elected at any time. Then the message may be there twice, one behind the other.
pub(crate) struct Producer<'a> {
    group: &'a Running,
    client: Option<Client>,
}

impl Producer<'_> {
    /// Gives the message's queue offset.
    pub(crate) fn send(&mut self, topic: &str, queue: u32, body: &str) -> u64 {
        self.until_taken(|client| client.send(topic, queue, body))
    }

    pub(crate) fn send_with(
        &mut self,
        topic: &str,
        queue: u32,
        properties: &str,
        body: &str,
    ) -> u64 {
        self.until_taken(|client| client.send_with(topic, queue, properties, body))
    }

    fn until_taken(&mut self, send: impl Fn(&mut Client) -> Outcome<u64>) -> u64 {
        until("a message is taken", || {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => {
                    let leader = self.group.addresses()[self.group.leader().ok()?];
                    Client::connect(leader, PATIENCE).ok()?
                }
            };
            let Outcome::Ok(offset) = send(&mut client) else {
                return None;
            };
            self.client = Some(client);
            Some(offset)
        })
    }
}

impl Deref for Running {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("files are kept in {}", dir.keep().display());
        }
    }
}

/// A line of RocketMQ releases: client 4.9.8 with servers 4.9.7, or everything 5.5.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    V49,
    V55,
}

/// Where `scripts/clients.sh` put the real clients. `None`, with a message, where they cannot be had;
/// in CI that is a failure.
pub(crate) fn real_clients() -> Option<&'static Path> {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = CACHE.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/clients.sh");
        let output = Command::new(script).output().unwrap();
        if output.status.success() {
            return Some(PathBuf::from(
                String::from_utf8_lossy(&output.stdout).trim(),
            ));
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(std::env::var_os("CI").is_none(), "no real clients: {why}");
        eprintln!("skipped, because the real clients cannot be had: {why}");
        None
    });
    found.as_deref()
}

/// A Java program of a line, ready to be given arguments. Its home is `home`, so that it writes nowhere
/// else.
pub(crate) fn java(cache: &Path, line: Line, home: &Path, class: &str) -> Command {
    let base = cache.join(match line {
        Line::V49 => "java-4.9",
        Line::V55 => "java-5.5",
    });
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-XX:MaxDirectMemorySize=1g", "-XX:+UseSerialGC"]);
    for package in [
        "java.nio",
        "java.lang",
        "sun.nio.ch",
        "jdk.internal.misc",
        "jdk.internal.ref",
    ] {
        command.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
        command.arg(format!("--add-exports=java.base/{package}=ALL-UNNAMED"));
    }
    let logback = base.join("logback.xml");
    let conf = home.join("conf");
    fs::create_dir_all(&conf).unwrap();
    for name in [
        "logback_broker.xml",
        "logback_namesrv.xml",
        "logback_tools.xml",
    ] {
        fs::copy(&logback, conf.join(name)).unwrap();
    }
    command
        .arg(format!("-Duser.home={}", home.display()))
        .arg(format!(
            "-Drocketmq.client.logRoot={}",
            home.join("logs").display()
        ))
        .arg(format!("-Dlogback.configurationFile={}", logback.display()))
        .arg(format!(
            "-Drmq.logback.configurationFile={}",
            logback.display()
        ))
        .arg("-cp")
        .arg(format!("{0}/classes:{0}/lib/*", base.display()))
        .arg(class)
        .env("ROCKETMQ_HOME", home)
        .stdin(Stdio::null());
    command
}

/// What a command of Java's mqadmin prints that succeeds; on a busy machine it may not at first.
pub(crate) fn mqadmin(
    cache: &Path,
    line: Line,
    home: &Path,
    group: &Cluster,
    arguments: &[&str],
) -> Option<String> {
    let class = "org.apache.rocketmq.tools.command.MQAdminStartup";
    let output = java(cache, line, home, class)
        .args(arguments)
        .args(["-n", &group.namesrv.to_string()])
        .output()
        .unwrap();
    let text = text(&output);
    let succeeds = output.status.success() && !text.contains("Exception");
    if !succeeds {
        eprintln!("{arguments:?}: {text}");
    }
    succeeds.then_some(text)
}

/// A Java server; ends with this value.
pub(crate) struct JavaServer {
    child: Child,
    pub(crate) address: SocketAddr,
    _home: TempDir,
}

impl JavaServer {
    /// A name server of `line` on a free port.
    pub(crate) fn namesrv(cache: &Path, line: Line) -> Self {
        let class = "org.apache.rocketmq.namesrv.NamesrvStartup";
        Self::start(cache, line, class, free_port(), "")
    }

    /// A broker of `line` with these properties beside its port.
    pub(crate) fn broker(cache: &Path, line: Line, properties: &str) -> Self {
        let class = "org.apache.rocketmq.broker.BrokerStartup";
        Self::start(cache, line, class, free_port(), properties)
    }

    fn start(cache: &Path, line: Line, class: &str, port: u16, properties: &str) -> Self {
        let home = TempDir::new().unwrap();
        let conf = home.path().join("server.conf");
        fs::write(&conf, format!("listenPort={port}\n{properties}")).unwrap();
        Self::with_conf(cache, line, class, port, &conf, home)
    }

    /// A broker of `line` with a properties file that says where it listens.
    pub(crate) fn broker_of(cache: &Path, line: Line, conf: &Path, port: u16) -> Self {
        let class = "org.apache.rocketmq.broker.BrokerStartup";
        Self::with_conf(cache, line, class, port, conf, TempDir::new().unwrap())
    }

    fn with_conf(
        cache: &Path,
        line: Line,
        class: &str,
        port: u16,
        conf: &Path,
        home: TempDir,
    ) -> Self {
        let log = fs::File::create(home.path().join("out")).unwrap();
        let child = java(cache, line, home.path(), class)
            .arg("-c")
            .arg(conf)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Self {
            child,
            address,
            _home: home,
        };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            let ended = server.child.try_wait().unwrap();
            let out = fs::read_to_string(server._home.path().join("out")).unwrap_or_default();
            assert!(ended.is_none(), "{class} ended: {ended:?}\n{out}");
            assert!(
                Instant::now() < end,
                "{class} does not listen on {address}\n{out}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }
}

impl JavaServer {
    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for JavaServer {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// A port with its neighbours free: a Java broker also listens one above and two below.
pub(crate) fn free_port() -> u16 {
    free_runs(1).unwrap()[0] + 2
}

/// Both streams of a finished program, for messages.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What a consumer of the topic says of itself; nobody answers on its connection.
pub(crate) fn heartbeat(group: &str, topic: &str) -> frame::Command {
    let consumer = ConsumerData {
        group_name: group.to_owned(),
        subscription_data_set: vec![SubscriptionData {
            topic: topic.to_owned(),
            sub_string: "*".to_owned(),
            sub_version: 1,
            ..SubscriptionData::default()
        }],
        ..ConsumerData::default()
    };
    frame::Command::request(request::HEART_BEAT).with_json(&HeartbeatData {
        client_id: "tools_client".to_owned(),
        consumer_data_set: vec![consumer],
        ..HeartbeatData::default()
    })
}
