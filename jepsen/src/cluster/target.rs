//! What the nodes run: rmq, or for comparison a Java broker, with the settings of its distribution.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;

/// The broker and how its nodes replicate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Three nodes of rmq.
    #[default]
    Rmq,
    /// Three nodes of RocketMQ 4.9.7 with a DLedger commit log.
    JavaDledger,
    /// A master of RocketMQ 4.9.7 that waits for its slave (SYNC_MASTER), and the slave.
    JavaSyncMaster,
}

/// Bytes of a Java node's segment, in which nothing has to roll.
const JAVA_SEGMENT: u64 = 64 << 20;
/// Packages into which the Java brokers look.
const OPENS: [&str; 6] = [
    "java.nio",
    "java.lang",
    "java.util",
    "sun.nio.ch",
    "jdk.internal.misc",
    "jdk.internal.ref",
];

impl Target {
    /// Whether it is one of Java.
    pub fn is_java(self) -> bool {
        self != Self::Rmq
    }

    /// Nodes of its group.
    pub fn nodes(self) -> usize {
        match self {
            Self::JavaSyncMaster => 2,
            _ => 3,
        }
    }

    /// Within this a leader must be back after every fault, or the run fails. It is far beyond what is
    /// expected, because a slow machine must not fail a test; the report tells what it really was.
    pub fn liveness(self) -> Duration {
        Duration::from_secs(if self.is_java() { 240 } else { 60 })
    }

    /// What a node prints when it has come up.
    pub(crate) fn is_up(self) -> &'static str {
        match self {
            Self::Rmq => "the broker is up",
            _ => "boot success",
        }
    }

    /// What to execute, the program first, and the variables of its environment. A Java process has its home
    /// beside its properties file.
    pub(super) fn program(self, rmq: &Path, role: &str, conf: &Path) -> anyhow::Result<Program> {
        if self == Self::Rmq {
            let words = [rmq.into(), role.into(), "-c".into(), conf.into()];
            return Ok(Program {
                words: words.into(),
                home: None,
            });
        }
        let cache = java_cache()?;
        let home = conf.with_extension("home");
        fs::create_dir_all(home.join("conf"))?;
        let (class, heap) = match role {
            "namesrv" => ("org.apache.rocketmq.namesrv.NamesrvStartup", "128m"),
            _ => ("org.apache.rocketmq.broker.BrokerStartup", "512m"),
        };
        fs::copy(
            cache.join("logback.xml"),
            home.join(format!("conf/logback_{role}.xml")),
        )?;
        let mut words: Vec<OsString> = vec![
            java()?.into(),
            "-server".into(),
            format!("-Xms{heap}").into(),
            format!("-Xmx{heap}").into(),
            "-XX:+UseG1GC".into(),
            "-XX:MaxDirectMemorySize=1g".into(),
            format!("-Duser.home={}", home.display()).into(),
        ];
        for package in OPENS {
            for open in ["opens", "exports"] {
                words.push(format!("--add-{open}=java.base/{package}=ALL-UNNAMED").into());
            }
        }
        words.extend(["-cp".into(), cache.join("lib/*").into()]);
        words.extend([class.into(), "-c".into(), conf.into()]);
        Ok(Program {
            words,
            home: Some(home),
        })
    }

    /// What a Java node's properties file says beside what all have. `peers` are the entries of `dLegerPeers`.
    pub(super) fn java_keys(self, node: usize, ip: IpAddr, store: &Path, peers: &str) -> String {
        let store = store.display();
        let own = match self {
            Self::Rmq => String::new(),
            // As in the distribution's own conf/dledger.
            Self::JavaDledger => format!(
                "enableDLegerCommitLog=true\ndLegerGroup=jepsen\ndLegerPeers={peers}\n\
                 dLegerSelfId=n{node}\nsendMessageThreadPoolNums=16\n"
            ),
            Self::JavaSyncMaster => {
                let role = if node == 0 { "SYNC_MASTER" } else { "SLAVE" };
                format!("brokerId={node}\nbrokerRole={role}\n")
            }
        };
        format!(
            "brokerIP2={ip}\nstorePathCommitLog={store}/commitlog\n\
             mappedFileSizeCommitLog={JAVA_SEGMENT}\n{own}"
        )
    }
}

/// See [`Target::program`].
pub(super) struct Program {
    pub(super) words: Vec<OsString>,
    home: Option<PathBuf>,
}

impl Program {
    /// The variables of its environment.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.home.iter().map(|home| ("ROCKETMQ_HOME", &**home))
    }
}

/// Where the jars are.
fn java_cache() -> anyhow::Result<PathBuf> {
    let cache = match env::var_os("RMQ_TEST_CACHE") {
        Some(cache) => cache.into(),
        None => {
            let home = env::var_os("HOME").context("HOME is not set")?;
            PathBuf::from(home).join(".cache/rmq-tests")
        }
    };
    let cache = cache.join("java-4.9");
    ensure!(
        cache.join("lib").is_dir(),
        "{} is missing: fetch it with scripts/clients.sh java",
        cache.join("lib").display()
    );
    Ok(cache)
}

/// The executable, without links: as the kernel shows it of a process.
fn java() -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join("java"));
    let found = found.into_iter().find(|path| path.is_file());
    let found = found.context("no java in PATH (Debian: apt-get install default-jdk-headless)")?;
    Ok(fs::canonicalize(found)?)
}
