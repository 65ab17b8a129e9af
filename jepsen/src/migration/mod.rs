//! The store of a Java broker, taken over as the beginning of a group: `rmq-migrate` is killed or loses its power on the
//! way, and is run again. `said` has what that broker said of it, and looks for it on each node in the end.

mod said;

use std::fs::{self, File};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::syncfs;
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{machine, output_of, spawn};
use crate::history::Fault;
use crate::power::{self, Disks};
use crate::schedule::Schedule;
use crate::storm::Cuts;
pub(crate) use said::Said;

/// The program, which lies beside that of the nodes.
pub const PROGRAM: &str = "rmq-migrate";
/// What is taken over: a master of 4.9.7 that was stopped when its first segments had expired.
const ARCHIVE: &str = "classic-4.9.7-clean";
const STORE: &str = "broker-a";
/// The program is stopped so often before its end, unless it comes to it sooner.
const STOPS: u64 = 3;
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at how far it is.
const TICK: Duration = Duration::from_millis(1);
/// Keys of the properties file of the result without which nodes would not open it.
const SIZES: [&str; 3] = [
    "mappedFileSizeConsumeQueue",
    "maxHashSlotNum",
    "maxIndexNum",
];

/// Where the archive lies; `None` where this machine has none.
pub fn archive() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    Some(root.join(ARCHIVE)).filter(|archive| archive.is_dir())
}

/// What nodes can start from.
pub(crate) struct Migrated {
    /// What has to be there.
    pub(crate) said: Said,
    /// `mappedFileSizeCommitLog`.
    pub(crate) segment: u64,
    /// More lines for every node's properties file.
    pub(crate) keys: String,
    /// The power cuts on the way.
    pub(crate) cuts: Cuts,
    /// How often the program was stopped, cuts among them.
    stops: u64,
}

impl Migrated {
    /// What struck before the clients began.
    pub(crate) fn fault(&self) -> Fault {
        Fault {
            what: "migrate-stop n0".into(),
            from: 0,
            until: Some(0),
            seen: Some(self.stops),
        }
    }
}

/// Migrates the store on the disk of n0, and puts the result where a cluster under `dir` has the store of that node, or
/// those of all nodes; else the others find theirs empty.
///
/// # Errors
/// If the program fails, which it must not, whenever it was stopped before.
pub(crate) fn migrate(
    rmq: &Path,
    dir: &Path,
    disks: Option<&Disks>,
    schedule: &Schedule,
    mutant: Option<&'static str>,
) -> anyhow::Result<Migrated> {
    let archive = archive().with_context(|| format!("the archive {ARCHIVE} is missing"))?;
    let said = Said::read(&archive.join(format!("{STORE}.manifest.jsonl.xz")))?;
    let program = rmq.with_file_name(PROGRAM);
    let program = fs::canonicalize(&program)
        .with_context(|| format!("{}: build {PROGRAM}", program.display()))?;
    let (root, source) = (dir.join("n0"), dir.join("n0/java"));
    fs::create_dir_all(&source)?;
    power::run(
        Command::new("tar")
            .args(["-I", "zstd -d --long=27", "--strip-components=2", "-xSf"])
            .arg(archive.join("store.tar.zst"))
            .arg("-C")
            .arg(&source)
            .arg(format!("./{STORE}")),
    )?;
    let mut dice = StdRng::seed_from_u64(schedule.seed);
    // First, for it must not depend on how far the program comes.
    let everywhere = dice.random_bool(0.5);
    let mut run = Run {
        program,
        output: dir.join(PROGRAM),
        target: root.join("migrated"),
        source,
        root,
        disks,
        mutant,
        dice,
        cuts: Cuts::default(),
        stops: 0,
    };
    run.sync(&run.root)?;
    run.run_to_end()?;
    let (segment, keys) = run.sizes()?;
    let nodes = if everywhere {
        schedule.target.nodes()
    } else {
        1
    };
    run.spread(dir, nodes)?;
    Ok(Migrated {
        said,
        segment,
        keys,
        cuts: run.cuts,
        stops: run.stops,
    })
}

/// The program at work.
struct Run<'a> {
    program: PathBuf,
    /// Its output goes there, with another extension.
    output: PathBuf,
    /// Where n0 has its store, and below it what is migrated to where.
    root: PathBuf,
    source: PathBuf,
    target: PathBuf,
    disks: Option<&'a Disks>,
    mutant: Option<&'static str>,
    dice: StdRng,
    cuts: Cuts,
    stops: u64,
}

impl Run<'_> {
    /// Runs it until it has come to its end, and has power cut then, for what it says it has done is done.
    fn run_to_end(&mut self) -> anyhow::Result<()> {
        // As many come to be, about.
        let files = files_below(&self.source);
        loop {
            let due = match self.stops < STOPS {
                true => files + self.dice.random_range(1..=files),
                false => u64::MAX,
            };
            let mut child = self.start()?;
            if let Some(status) = self.wait(&mut child, due)? {
                ensure!(
                    status.success(),
                    "{PROGRAM}: {status}: {}",
                    self.last_words()
                );
                break;
            }
            self.stop(&mut child)?;
            self.stops += 1;
        }
        if let Some(disks) = self.disks {
            self.cuts.sectors += disks.cut(&[0], &[], Some(&mut self.dice), || Ok(()))?;
            self.count_cut();
        }
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Child> {
        let mut command = match self.disks {
            Some(_) => {
                let mut command = machine(&self.root, iter::empty());
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.args(["--progress", "none", "--from"]);
        command.arg(self.source.join("store"));
        command.arg("--to").arg(&self.target);
        command.arg("-c").arg(self.source.join("broker.conf"));
        if let Some(mutant) = self.mutant {
            command.env("RMQ_MUTANT", mutant);
        }
        spawn(command, &self.output, true)
    }

    /// Waits until so many files lie on the disk, or it has ended, however it did.
    fn wait(&self, child: &mut Child, files: u64) -> anyhow::Result<Option<ExitStatus>> {
        let end = Instant::now() + LIMIT;
        // Before, it is what makes a machine for it.
        let exe = format!("/proc/{}/exe", child.id());
        let is_it = || fs::read_link(&exe).is_ok_and(|exe| exe == self.program);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if is_it() && files_below(&self.root) >= files {
                return Ok(None);
            }
            ensure!(Instant::now() < end, "{PROGRAM} has not ended in {LIMIT:?}");
            thread::sleep(TICK);
        }
    }

    /// kill -9, or a power cut.
    fn stop(&mut self, child: &mut Child) -> anyhow::Result<()> {
        let id = child.id();
        let disks = self.disks.filter(|_| self.dice.random_bool(0.5));
        let Some(disks) = disks else {
            return end(child);
        };
        kill_process(Pid::from_child(child), Signal::STOP)?;
        let torn = self.dice.random_bool(0.5);
        let torn = torn.then_some(&mut self.dice);
        self.cuts.sectors += disks.cut(&[0], &[id], torn, || end(child))?;
        self.count_cut();
        Ok(())
    }

    fn count_cut(&mut self) {
        self.cuts.times += 1;
        self.cuts.nodes += 1;
    }

    fn last_words(&self) -> String {
        let output = fs::read_to_string(output_of(&self.output)).unwrap_or_default();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(4)..].join(" ")
    }

    /// How large the files of the result are: of a segment, and lines that say it of others.
    fn sizes(&self) -> anyhow::Result<(u64, String)> {
        let path = self.target.join("conf/broker.conf");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let line = |key: &str| {
            let is_it = |line: &&str| line.split_once('=').is_some_and(|(of, _)| of == key);
            let found = text.lines().rfind(is_it);
            found.with_context(|| format!("{} has no {key}", path.display()))
        };
        let lines = SIZES.map(line).into_iter();
        let lines: Vec<&str> = lines.collect::<Result<_, _>>()?;
        let segment = line("mappedFileSizeCommitLog")?;
        let segment = segment.split_once('=').map_or("", |(_, value)| value);
        // Its files are as old as the archive.
        let keys = format!("{}\nfileReservedTime=876000\n", lines.join("\n"));
        Ok((segment.parse().context("mappedFileSizeCommitLog")?, keys))
    }

    /// Has the result be the store of n0, and of the others below `nodes`.
    fn spread(&self, dir: &Path, nodes: usize) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.target)? {
            let entry = entry?;
            fs::rename(entry.path(), self.root.join(entry.file_name()))?;
        }
        fs::remove_dir(&self.target)?;
        fs::remove_dir_all(&self.source)?;
        self.sync(&self.root)?;
        for node in 1..nodes {
            let to = dir.join(format!("n{node}"));
            fs::create_dir_all(&to)?;
            power::run(
                Command::new("cp")
                    .arg("-a")
                    .arg(self.root.join("."))
                    .arg(&to),
            )?;
            self.sync(&to)?;
        }
        Ok(())
    }

    /// Has no power cut take from a node's disk what an operator has put there.
    fn sync(&self, root: &Path) -> anyhow::Result<()> {
        if self.disks.is_some() {
            syncfs(File::open(root)?)?;
        }
        Ok(())
    }
}

/// SIGKILL, which may come too late, but not to one that has failed.
fn end(child: &mut Child) -> anyhow::Result<()> {
    child.kill()?;
    let status = child.wait()?;
    ensure!(
        status.code().is_none_or(|code| code == 0),
        "{PROGRAM}: {status}"
    );
    Ok(())
}

/// Counts files that may come and go meanwhile.
fn files_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.map(|entry| match entry.file_type() {
        Ok(of) if of.is_dir() => files_below(&entry.path()),
        _ => 1,
    });
    files.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Kind;
    use crate::workload::Kind as Workload;

    /// Of one the result is put on all nodes, of the other on n0.
    const SEEDS: [u64; 2] = [1, 2];

    /// With the program that a test of all packages has built.
    #[test]
    fn a_migration_that_is_stopped_comes_to_its_end() {
        let own = std::env::current_exe().unwrap();
        let rmq = own.parent().unwrap().with_file_name("rmq");
        if archive().is_none() || !rmq.with_file_name(PROGRAM).is_file() {
            eprintln!("skipped: {ARCHIVE} or {PROGRAM} is missing");
            return;
        }
        let dir = std::env::temp_dir().join(format!("migration-test-{}", std::process::id()));
        let mut spread = Vec::new();
        for seed in SEEDS {
            let kinds = [Kind::Kill];
            let schedule = Schedule::draw(Workload::Migrate, &kinds, 20, seed, None).unwrap();
            let done = migrate(&rmq, &dir, None, &schedule, None).unwrap();
            assert!(done.stops <= STOPS);
            assert_eq!((done.segment, done.cuts), (1 << 20, Cuts::default()));
            assert!(SIZES.iter().all(|key| done.keys.contains(key)));
            let has = |node: &str| {
                let store = dir.join(node);
                let names = [
                    "commitlog/00000000000002097152",
                    "genesis",
                    "adopted/config",
                ];
                let found = names.map(|name| store.join(name).try_exists().unwrap());
                assert_eq!(found, [found[0]; 3], "{node}");
                found[0]
            };
            assert!(has("n0"));
            let rest = [dir.join("n0/java"), dir.join("n0/migrated")];
            assert!(!rest.iter().any(|path| path.try_exists().unwrap()));
            assert_eq!(has("n1"), has("n2"));
            spread.push(has("n1"));
            fs::remove_dir_all(&dir).unwrap();
        }
        assert!(spread.contains(&true) && spread.contains(&false));
    }
}
