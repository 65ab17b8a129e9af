//! The same schedules on rmq and on Java brokers, and what each did to its clients.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::attack::{Bed, HISTORY};
use crate::check::Figures;
use crate::cluster::Target;
use crate::record;
use crate::schedule::{Kind, Schedule, value_name};
use crate::suite::{self, Say};
use crate::workload::Kind as Workload;

/// What is compared.
#[derive(Debug, clap::Args)]
pub struct Versus {
    /// The brokers, separated by commas.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "rmq,java-dledger,java-sync-master"
    )]
    pub target: Vec<Target>,
    /// What consumers do, separated by commas.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "queue,offset"
    )]
    pub workload: Vec<Workload>,
    /// Families of faults, separated by commas.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "partition,kill,pause"
    )]
    pub nemesis: Vec<Kind>,
    /// How long faults come and go in a run, in seconds.
    #[arg(long, default_value_t = 60)]
    pub time: u64,
    /// The first seed; each run of a broker has the next one.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Runs of each broker with each workload.
    #[arg(long, default_value_t = 3)]
    pub runs: u64,
    /// SYNC_FLUSH on every node; by default each seed draws it.
    #[arg(long)]
    pub sync_flush: bool,
}

/// Runs them in turn, with their files under `dir`; the table, which is written there after each run too.
///
/// # Errors
/// If a schedule cannot be drawn. A run that does not come to its end is told of under the table.
pub fn run(
    rmq: &Path,
    dir: &Path,
    versus: &Versus,
    bed: Bed,
    say: Say<'_>,
) -> anyhow::Result<String> {
    ensure!(
        !versus.workload.contains(&Workload::Load),
        "--workload load: its batches are in no column of the table; queue and offset are what Java takes"
    );
    let kinds = suite::possible(&versus.nemesis, bed);
    let mut rows = Vec::new();
    for workload in &versus.workload {
        for target in &versus.target {
            rows.push((*workload, *target, Figures::default()));
        }
    }
    let mut unfinished = Vec::new();
    fs::create_dir_all(dir)?;
    for seed in versus.seed..versus.seed + versus.runs {
        for (workload, target, figures) in &mut rows {
            let flush = versus.sync_flush.then_some(true);
            let mut schedule = Schedule::draw(*workload, &kinds, versus.time, seed, flush)?;
            schedule.target = *target;
            let own = dir.join(format!(
                "{}-{}-{seed}",
                value_name(target),
                value_name(workload)
            ));
            match suite::one(rmq, &own, &schedule, bed, say) {
                Ok((_, outcome)) => figures.add(&Figures::of(&outcome.history)),
                Err(e) => {
                    unfinished.push(format!("{}: {e:#}", suite::command(&schedule)));
                    // What clients saw counts all the same, though nobody knows what is left of it.
                    if let Ok(text) = fs::read_to_string(own.join(HISTORY)) {
                        let seen = Figures::of(&record::read(&text)?);
                        figures.add(&Figures { runs: 0, ..seen });
                    }
                }
            }
        }
        fs::write(dir.join("versus.md"), table(&rows, &unfinished))?;
    }
    Ok(table(&rows, &unfinished))
}

fn table(rows: &[(Workload, Target, Figures)], unfinished: &[String]) -> String {
    let columns = Figures::HEAD.matches('|').count();
    let mut text = format!(
        "| workload | broker | {}\n|---|---|{}\n",
        Figures::HEAD,
        "---|".repeat(columns)
    );
    for (workload, target, figures) in rows {
        let (workload, target) = (value_name(workload), value_name(target));
        text += &format!("| {workload} | {target} | {}\n", figures.to_row());
    }
    for line in unfinished {
        text += &format!("\nDid not come to its end: {line}\n");
    }
    text
}
