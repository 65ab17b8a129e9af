//! `rmq up`: a name server and a three-node group on this machine, as real processes from the files
//! under `conf/dledger/`. It proves itself by sending and reading back one message.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::ports::explain_bind_error;
use crate::admin::{Admin, role_name, table};
use crate::broker::NodeStatus;
use crate::config::{self, BrokerConfig};

/// Where the group's own files are, and what they say.
const CONF: &str = "conf/dledger";
/// The port of the name server that those files name.
const NAMESRV_PORT: u16 = 9876;
/// The group must lead and answer within this; a first start takes about a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// A drain that takes longer is cut short.
const DRAIN: Duration = Duration::from_secs(30);

/// What to bring up, and for how long.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Stop after the self-check: exit 0, or the reason why not.
    #[arg(long)]
    once: bool,
    /// Where the stores and logs go.
    #[arg(long, default_value = "data")]
    data: PathBuf,
}

/// A process that was started here.
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Starts everything, checks it, and stays until Ctrl-C, SIGTERM or the end of one of the processes.
pub(super) async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let conf = find_conf()?;
    fs::create_dir_all(&options.data)
        .with_context(|| format!("cannot create {}", options.data.display()))?;
    let data = options.data.canonicalize()?;
    let mut nodes = Vec::new();
    for number in 0..3 {
        let file = conf.join(format!("broker-n{number}.conf"));
        let store = data.join(format!("n{number}"));
        nodes.push((load(&file, &store)?, file, store));
    }
    check_ports(nodes.iter().map(|(c, ..)| c))?;

    let mut running = vec![start(
        "namesrv",
        &data,
        Command::new(own_path()?).arg("namesrv"),
    )?];
    for (config, file, store) in &nodes {
        let mut command = Command::new(own_path()?);
        let (key, value) = root_dir(store);
        command
            .args(["broker", "-c"])
            .arg(file)
            .args(["--set", &format!("{key}={value}")]);
        running.push(start(&config.dleger_self_id, &data, &mut command)?);
    }
    let outcome = tokio::select! {
        checked = self_check(&nodes[0].0, &mut running) => checked.map(Some),
        _ = interrupt.recv() => Ok(None),
        _ = terminate.recv() => Ok(None),
    };
    let result = match outcome {
        Ok(Some(statuses)) => {
            print_table(&statuses, &data);
            if options.once {
                Ok(ExitCode::SUCCESS)
            } else {
                println!("Ctrl-C drains and stops all.");
                tokio::select! {
                    _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
                    _ = terminate.recv() => Ok(ExitCode::SUCCESS),
                    ended = first_end(&mut running) => Err(ended),
                }
            }
        }
        Ok(None) => Ok(ExitCode::SUCCESS),
        Err(e) => Err(e),
    };
    stop_all(running).await;
    result
}

/// `conf/dledger` of the package: beside the executable or one of its parents, or in the current
/// directory.
fn find_conf() -> anyhow::Result<PathBuf> {
    let own = own_path()?;
    let here = std::env::current_dir()?;
    let found = own
        .ancestors()
        .skip(1)
        .chain([here.as_path()])
        .map(|d| d.join(CONF));
    found
        .into_iter()
        .find(|d| d.join("broker-n0.conf").is_file())
        .with_context(|| format!("no {CONF}/broker-n0.conf above {} or here", own.display()))
}

fn own_path() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own path")
}

fn load(file: &Path, store: &Path) -> anyhow::Result<BrokerConfig> {
    let sources = config::Sources {
        file: Some(file.to_owned()),
        flags: vec![root_dir(store)],
        ..config::Sources::default()
    };
    match config::load_broker(&sources) {
        Ok(loaded) => Ok(loaded.config),
        Err(report) => bail!("{report}"),
    }
}

/// The files' own places are relative to wherever one stands; these are under `--data`.
fn root_dir(store: &Path) -> (String, String) {
    ("storePathRootDir".into(), store.display().to_string())
}

/// Names the holder of the first port that is taken, before anything is started.
fn check_ports<'a>(nodes: impl Iterator<Item = &'a BrokerConfig>) -> anyhow::Result<()> {
    let mut wanted = vec![("name server".to_owned(), NAMESRV_PORT)];
    for node in nodes {
        let id = &node.dleger_self_id;
        wanted.push((format!("clients of {id}"), node.listen_port));
        wanted.push((format!("VIP channel of {id}"), node.listen_port - 2));
        if let Some(peer) = node.self_peer() {
            wanted.push((format!("Raft of {id}"), peer.port));
        }
    }
    for (what, port) in wanted {
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        if let Err(e) = TcpListener::bind(address) {
            bail!("{}", explain_bind_error(&what, address, &e));
        }
    }
    Ok(())
}

fn start(name: &str, data: &Path, command: &mut Command) -> anyhow::Result<Running> {
    let log = data.join(format!("{name}.log"));
    let output =
        fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // Ctrl-C on the terminal must reach only this process, which then stops the others in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    Ok(Running {
        name: name.into(),
        child,
        log,
    })
}

/// Waits for a leader that all three nodes know, then sends and reads back one message.
async fn self_check(
    config: &BrokerConfig,
    running: &mut [Running],
) -> anyhow::Result<Vec<NodeStatus>> {
    let admin = Admin::new(format!("127.0.0.1:{NAMESRV_PORT}"));
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(ended) = ended(running)? {
            return Err(ended);
        }
        let why = match admin.group(&config.broker_name).await {
            Ok(all) if all.len() == 3 && all.iter().any(|s| s.group.serving) => {
                admin
                    .echo(&config.broker_name)
                    .await
                    .context("the self-check failed")?;
                return Ok(all);
            }
            Ok(all) => format!("{} of 3 nodes answer", all.len()),
            Err(e) => e.to_string(),
        };
        if Instant::now() > end {
            bail!(
                "no leader within {} s: {why}; see the logs under {}",
                PATIENCE.as_secs(),
                running[0]
                    .log
                    .parent()
                    .unwrap_or_else(|| Path::new("."))
                    .display()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The first process that has ended by itself, as an error with the end of its log.
fn ended(running: &mut [Running]) -> io::Result<Option<anyhow::Error>> {
    for r in running {
        if let Some(status) = r.child.try_wait()? {
            let log = fs::read_to_string(&r.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            return Ok(Some(anyhow::anyhow!(
                "{} ended ({status}):\n{}",
                r.name,
                last.join("\n")
            )));
        }
    }
    Ok(None)
}

async fn first_end(running: &mut [Running]) -> anyhow::Error {
    loop {
        match ended(running) {
            Ok(None) => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(Some(e)) => return e,
            Err(e) => return e.into(),
        }
    }
}

/// Brokers first, so that they can unregister and hand their leadership over; then the name server.
async fn stop_all(mut running: Vec<Running>) {
    let namesrv = running.remove(0);
    for group in [running, vec![namesrv]] {
        for r in &group {
            let pid = i32::try_from(r.child.id()).ok().and_then(Pid::from_raw);
            // A process that has ended already needs no signal.
            pid.map(|p| kill_process(p, Signal::TERM).ok());
        }
        let end = Instant::now() + DRAIN;
        for mut r in group {
            while matches!(r.child.try_wait(), Ok(None)) {
                if Instant::now() > end {
                    println!(
                        "{} did not drain within {} s and is killed",
                        r.name,
                        DRAIN.as_secs()
                    );
                    r.child.kill().and_then(|()| r.child.wait()).ok();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn print_table(statuses: &[NodeStatus], data: &Path) {
    let head = ["node", "role", "term", "clients", "raft", "pid", "store"].map(String::from);
    let mut rows = vec![head];
    for s in statuses {
        let me = s.group.members.iter().find(|m| m.node == s.group.node);
        let address = |f: fn(&crate::raft::MemberStatus) -> &String| {
            me.map_or_else(|| "-".into(), |m| f(m).clone())
        };
        rows.push([
            s.self_id.clone(),
            role_name(s.group.role).into(),
            s.group.term.to_string(),
            address(|m| &m.broker_addr),
            address(|m| &m.raft_addr),
            s.pid.to_string(),
            s.store.clone(),
        ]);
    }
    print!("{}", table(&rows));
    println!(
        "name server 127.0.0.1:{NAMESRV_PORT}; logs in {}",
        data.display()
    );
    println!("one message was sent, committed by the group and read back.\n");
    println!("From Java:");
    println!("    DefaultMQProducer producer = new DefaultMQProducer(\"my_group\");");
    println!("    producer.setNamesrvAddr(\"127.0.0.1:{NAMESRV_PORT}\");");
    println!("    producer.start();");
    println!("    producer.send(new Message(\"MyTopic\", \"hello\".getBytes()));");
}
