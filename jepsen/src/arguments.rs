//! The words of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use jepsen::attack::Bed;
use jepsen::bench::Bench;
use jepsen::cluster::Target;
use jepsen::versus::Versus;
use jepsen::workload::Kind as Workload;

#[derive(Parser)]
#[command(about = "Attacks a three-node group and judges what its clients saw")]
pub(crate) struct Arguments {
    /// The rmq executable; by default the one beside this program, built first when cargo runs us.
    #[arg(long, global = true)]
    pub(crate) rmq: Option<PathBuf>,
    /// Where the nodes' files go; kept after a failed run. A new temporary directory by default.
    #[arg(long, global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// Fail too when a fault keeps clients waiting for longer than is promised, or when a leader is
    /// lost without a failed node. For an idle machine and a release build: this is a benchmark.
    #[arg(long, global = true)]
    pub(crate) limits: bool,
    #[command(subcommand)]
    pub(crate) command: Action,
}

#[derive(Subcommand)]
pub(crate) enum Action {
    /// One run. With --time faults come and go as the seed says, also several at once, in networks and
    /// on disks of the run's own as far as this machine has them; it leaves its history as EDN and a page
    /// of HTML. Without, fault after fault strikes on loopback, and each is timed.
    Test {
        /// Faults, separated by commas. With --time families of them: partition, slow, flaky, kill,
        /// pause, restart, transfer, power, full, eio, damage, lost, saturate, clock, syscall, or all. Without: kill-leader,
        /// kill-follower, pause-leader, kill-all, saturate, members, replace, damage-one, snapshot, power,
        /// power-one, blackout, blackout-longest.
        #[arg(long, value_delimiter = ',', default_value = "kill-leader")]
        nemesis: Vec<String>,
        /// How long faults come and go, in seconds.
        #[arg(long)]
        time: Option<u64>,
        /// What the nodes run, with --time; the Java brokers take the workloads queue and offset.
        #[arg(long, value_enum, default_value = "rmq", requires = "time")]
        target: Target,
        /// What consumers do, with --time.
        #[arg(long, value_enum, requires = "time")]
        workload: Option<Workload>,
        /// How often each fault strikes, without --time.
        #[arg(long, default_value_t = 20, conflicts_with = "time")]
        rounds: u32,
        /// Draws pauses, victims and schedules; a run is repeated by its seed.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// SYNC_FLUSH on every node instead of ASYNC_FLUSH; with --time it is drawn if neither is given.
        #[arg(long)]
        sync_flush: bool,
        /// ASYNC_FLUSH.
        #[arg(long, conflicts_with = "sync_flush")]
        async_flush: bool,
        /// Messages a second that the workload load sends at most.
        #[arg(long, requires = "time")]
        rate: Option<u64>,
    },
    /// Runs a schedule again that a run has left.
    Replay {
        /// Its `schedule.json`.
        schedule: PathBuf,
        /// Then tries it without each of its faults, and leaves out those that are not needed to fail.
        #[arg(long)]
        shrink: bool,
    },
    /// One run of a night, with what the night found this machine to have.
    #[command(hide = true)]
    Once {
        /// Its `schedule.json`.
        schedule: PathBuf,
        #[command(flatten)]
        bed: Bed,
    },
    /// Runs the same schedules on rmq and on Java brokers, and prints what clients saw of each. Needs the jars
    /// that `scripts/clients.sh java` fetches.
    Versus(Versus),
    /// Judges a history that a run has left.
    Check {
        /// Its `history.edn`.
        history: PathBuf,
    },
    /// Tries which faults work on this machine.
    Doctor,
    /// Runs nodes with planted bugs, each of which has to be found within five tries, and the same seeds
    /// without. Needs nodes that were built with the feature `mutants`.
    Mutants {
        /// Only these.
        which: Vec<String>,
    },
    /// Cuts of power under load, on file systems of their own. Takes root.
    Power {
        /// Of whom, and how the nodes flush.
        #[arg(value_enum, default_value = "sync")]
        of: Power,
        /// How many.
        #[arg(long, default_value_t = 200)]
        cuts: u32,
        /// Draws pauses; each group of nodes lives for a few cuts, and the next one has the next seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    #[command(flatten)]
    Bench(Bench),
    /// A set of runs.
    Suite {
        /// Which.
        which: Suite,
        /// For how long `nightly` begins new runs, all times together if it was stopped on the way.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
        /// The first seed of `nightly`; each run has the next one.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Power {
    /// All nodes, SYNC_FLUSH: nothing acknowledged is lost.
    Sync,
    /// One node, ASYNC_FLUSH, now and then while another is killed: nothing acknowledged is lost.
    AsyncOne,
    /// All nodes, ASYNC_FLUSH: they wait for `mqadmin raftRecover`, and lose the last moments.
    AsyncAll,
    /// The same with `uncleanRecovery=longest-log`.
    AsyncAllLongest,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Suite {
    /// What every change must pass, a few minutes.
    Ci,
    /// Schedules from seed after seed, workloads and faults drawn; leaves a summary.
    Nightly,
}
