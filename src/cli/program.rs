//! `rmq broker` and `rmq namesrv`: from a properties file to a running process.

use std::fmt;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::deathwatch;
use super::ports::explain_bind_error;
use crate::config::{self, Loaded, Report, Sources};
use crate::remoting::Limits;
use crate::shutdown::{Shutdown, Trigger};
use crate::{broker, namesrv};

/// The flags of Java's start scripts and a few more.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The properties file.
    #[arg(short = 'c', long = "configFile")]
    file: Option<PathBuf>,
    /// Name servers, `host:port` with semicolons between them.
    #[arg(short = 'n', long = "namesrvAddr")]
    namesrv_addr: Option<String>,
    /// Print all configuration and exit.
    #[arg(short = 'p', long = "printConfigItem")]
    print_all: bool,
    /// Print the important configuration and exit.
    #[arg(short = 'm', long = "printImportantConfig")]
    print_important: bool,
    /// With -p or -m: also print where each value is from.
    #[arg(long)]
    origins: bool,
    /// Judge the configuration and exit: 0 if it would start, 78 if not.
    #[arg(long)]
    check: bool,
    /// Take unknown keys as warnings.
    #[arg(long)]
    lenient: bool,
    /// Set a key; wins over the environment and the file.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("want KEY=VALUE")?;
    Ok((key.trim().into(), value.trim().into()))
}

impl Options {
    fn sources(&self) -> Sources {
        let mut sources = Sources::new(self.file.clone());
        sources.lenient = self.lenient;
        sources.flags.clone_from(&self.set);
        sources
    }
}

/// What the configuration asks for: to start, or to exit at once with this code.
enum Start<C> {
    With(Box<C>),
    Exit(ExitCode),
}

/// Reports on the configuration, prints it if that was asked for, and says how to go on.
fn prepare<C>(options: &Options, loaded: Result<Loaded<C>, Report>) -> Start<C>
where
    Loaded<C>: Print,
{
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(report) => {
            eprint!("{report}");
            return Start::Exit(ExitCode::from(config::EXIT_CODE));
        }
    };
    eprint!("{}", loaded.report);
    if options.print_all || options.print_important {
        print!("{}", loaded.print(options.print_all, options.origins));
        return Start::Exit(ExitCode::SUCCESS);
    }
    if let Err(error) = log_to_stderr() {
        eprintln!("error: {error:#}");
        return Start::Exit(ExitCode::from(config::EXIT_CODE));
    }
    if options.check {
        eprintln!("the configuration is good");
        return Start::Exit(ExitCode::SUCCESS);
    }
    Start::With(Box::new(loaded.config))
}

/// Runs a broker until it is asked to stop.
pub(super) fn broker(options: &Options) -> anyhow::Result<ExitCode> {
    let mut sources = options.sources();
    if let Some(addresses) = &options.namesrv_addr {
        sources = sources.flag("namesrvAddr", addresses);
    }
    let config = match prepare(options, config::load_broker(&sources)) {
        Start::With(config) => *config,
        Start::Exit(code) => return Ok(code),
    };
    raise_descriptor_limit();
    super::runtime()?.block_on(async {
        let (trigger, shutdown) = Shutdown::new();
        // All ports are taken before the slow work of recovery, and before anything is written.
        let listeners = broker::Listeners {
            clients: reserve("clients", config.bind_address, config.listen_port)?,
            vip: reserve("VIP channel", config.bind_address, config.listen_port - 2)?,
            aliases: config
                .alias_ports()
                .map(|port| reserve("group aliases", config.bind_address, port))
                .collect::<Result<_, _>>()?,
            raft: match config.raft_bind() {
                Some(address) => Some(bind("Raft", address.ip(), address.port()).await?),
                None => None,
            },
        };
        let in_group = listeners.raft.is_some();
        let last_will = (in_group && config.proof_of_death).then(deathwatch::start);
        let last_will = last_will.transpose().unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "no {}: if this broker crashes, the others wait for its lease",
                deathwatch::NAME
            );
            None
        });
        let running = Box::pin(broker::run(config, listeners, last_will, shutdown));
        until_stopped(running, trigger).await
    })
}

/// Runs a name server until it is asked to stop.
pub(super) fn namesrv(options: &Options) -> anyhow::Result<ExitCode> {
    let config = match prepare(options, config::load_namesrv(&options.sources())) {
        Start::With(config) => *config,
        Start::Exit(code) => return Ok(code),
    };
    raise_descriptor_limit();
    super::runtime()?.block_on(async {
        let (trigger, shutdown) = Shutdown::new();
        let listener = bind("name server", config.bind_address, config.listen_port).await?;
        tracing::info!(address = %listener.local_addr()?, "the name server is up");
        let running = namesrv::run(namesrv_options(&config), listener, shutdown);
        until_stopped(running, trigger).await
    })
}

fn namesrv_options(config: &config::NamesrvConfig) -> namesrv::Options {
    namesrv::Options {
        kv_config_path: Some(config.kv_config_path.clone()),
        order_message_enable: config.order_message_enable,
        scan_interval: config.scan_not_active_broker_interval,
        limits: Limits {
            idle: Duration::from_secs(config.server_channel_max_idle_time_seconds.into()),
            ..Limits::default()
        },
        properties: config
            .get_all()
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v))
            .collect(),
    }
}

/// Runs to the end, or to the first SIGTERM or SIGINT, which starts an orderly stop; a second one ends
/// the process at once.
async fn until_stopped<E: fmt::Display>(
    running: impl Future<Output = Result<(), E>>,
    trigger: Trigger,
) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::pin!(running);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = &mut running => {
                return match ended {
                    Ok(()) => Ok(ExitCode::SUCCESS),
                    Err(e) => {
                        tracing::error!("{e}");
                        Ok(ExitCode::FAILURE)
                    }
                };
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stopping {
            tracing::warn!("asked to stop a second time: leaving at once");
            return Ok(ExitCode::FAILURE);
        }
        stopping = true;
        tracing::info!("asked to stop");
        trigger.stop();
    }
}

fn reserve(what: &str, host: std::net::IpAddr, port: u16) -> anyhow::Result<broker::Port> {
    let address = SocketAddr::new(host, port);
    broker::Port::take(address)
        .map_err(|e| anyhow::anyhow!("{}", explain_bind_error(what, address, &e)))
}

async fn bind(what: &str, host: std::net::IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address)
        .await
        .map_err(|e| anyhow::anyhow!("{}", explain_bind_error(what, address, &e)))
}

/// Takes as many descriptors as the system allows: connections and segments want more than the 1024 that
/// programs get which may still use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, ?limit, "the limit of open descriptors stays");
    }
}

/// One line an event, on standard error. `RMQ_LOG` filters as `RUST_LOG` does elsewhere
/// (`RMQ_LOG=rmq::raft=debug,info`).
fn log_to_stderr() -> anyhow::Result<()> {
    let given = std::env::var_os("RMQ_LOG").unwrap_or_default();
    tracing_subscriber::fmt()
        .with_env_filter(log_filter(&given.to_string_lossy())?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

fn log_filter(given: &str) -> anyhow::Result<EnvFilter> {
    let given = if given.is_empty() { "info" } else { given };
    // openraft tells every step of every round; what an operator needs of it `raft` says in its own words.
    EnvFilter::try_new(format!("openraft=error,{given}")).with_context(|| {
        format!("RMQ_LOG={given}: not a filter such as `info` or `rmq::raft=debug,info`")
    })
}

/// Both configurations print alike.
trait Print {
    /// All keys or the important ones.
    fn print(&self, all: bool, origins: bool) -> String;
}

macro_rules! print_impl {
    ($($config:ty),+) => {$(
        impl Print for Loaded<$config> {
            fn print(&self, all: bool, origins: bool) -> String {
                if all { self.print_all(origins) } else { self.print_important(origins) }
            }
        }
    )+};
}

print_impl!(config::BrokerConfig, config::NamesrvConfig);

#[cfg(test)]
mod tests {
    use super::log_filter;

    #[test]
    fn what_is_asked_of_the_log_is_said_without_openraft_unless_that_is_named() {
        for (given, expected) in [
            ("", "openraft=error,info"),
            ("debug", "openraft=error,debug"),
            ("openraft=debug,warn", "openraft=debug,warn"),
        ] {
            assert_eq!(log_filter(given).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_log_filter_that_is_none_is_refused() {
        let error = log_filter("info,rmq=loud").unwrap_err();
        assert!(
            error.to_string().starts_with("RMQ_LOG=info,rmq=loud: "),
            "{error}"
        );
    }
}
