//! What a migration takes: a large store by link, and the full verification beside what the disk reads.
//!
//!     cargo bench -p rmq-migrate
//!     cargo bench -p rmq-migrate -- --dir /data --real-gib 16 --rounds 5 --limits
//!
//! Makes two stores as a Java broker leaves them, with queues and index: a large one of zeros with holes,
//! which takes little room, and one of random messages of 1 KiB. The first is migrated by link, from a
//! cold cache. The second is read as fast as the disk gives it, and migrated with `--verify full`, in
//! turns, each from a cold cache; medians count. Everything is removed at the end.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is not as it must be"
)]
#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Parser;
use rmq_store::{Entry, HEADER_BYTES, IndexHeader, IndexLayout, PhyOffset, UNIT_BYTES, key_hash};
use rmq_wire::record::{self, NewRecord};
use rustix::fs::Advice;
use serde_json::Value;

const GIB: u64 = 1 << 30;
/// A broker's default sizes.
const SEGMENT: u64 = GIB;
const QUEUE_FILE_UNITS: u64 = 300_000;
const INDEX: IndexLayout = IndexLayout {
    slots: 5_000_000,
    entries: 20_000_000,
};
const TOPIC: &str = "TopicBench";
const QUEUES: u64 = 32;
const STORED_MS: i64 = 1_700_000_000_000;
const KEY: &str = "KEY-000000000000";

const MOST_LINK_SECONDS: f64 = 10.0;
const LEAST_OF_DISK: f64 = 0.7;

#[derive(Parser)]
struct Args {
    /// Where the stores are made.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Length of the store that is linked.
    #[arg(long, default_value_t = 50)]
    sparse_gib: u64,
    /// Length of the store that is verified, and room that it takes.
    #[arg(long, default_value_t = 4)]
    real_gib: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Fail beyond 10 s, or below 70 % of the disk's speed.
    #[arg(long)]
    limits: bool,
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let dir = tempfile::tempdir_in(&args.dir).unwrap();
    let at = |name: &str| dir.path().join(name);

    make(&at("sparse"), args.sparse_gib, 4 << 20, true);
    forget(&at("sparse"));
    let begun = Instant::now();
    let told = migrate(&at("sparse"), &at("linked"), &[]);
    let link = begun.elapsed().as_secs_f64();
    for line in ended(&told) {
        println!(
            "    {} s {}",
            line["elapsed_s"],
            line["phase"].as_str().unwrap()
        );
    }
    println!(
        "{} GiB by link: {link:.2} s (at most {MOST_LINK_SECONDS} s)",
        args.sparse_gib
    );
    fs::remove_dir_all(at("linked")).unwrap();
    fs::remove_dir_all(at("sparse")).unwrap();

    make(&at("real"), args.real_gib, 1024, false);
    let (mut disk, mut verified) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        forget(&at("real"));
        disk.push(read(&at("real/commitlog")));
        forget(&at("real"));
        let told = migrate(&at("real"), &at("verified"), &["--verify", "full"]);
        verified.push(rate(&told, "verifying"));
        fs::remove_dir_all(at("verified")).unwrap();
        println!(
            "round {round}: disk {}, verification {}",
            mib(disk[round - 1]),
            mib(verified[round - 1])
        );
    }
    let (disk, verified) = (median(disk), median(verified));
    let part = verified / disk;
    println!(
        "disk reads {}, full verification {}: {:.0} % (at least {:.0} %)",
        mib(disk),
        mib(verified),
        100.0 * part,
        100.0 * LEAST_OF_DISK
    );
    match args.limits && (link > MOST_LINK_SECONDS || part < LEAST_OF_DISK) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn mib(rate: f64) -> String {
    format!("{:.0} MiB/s", rate / f64::from(1 << 20))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Runs the program; what it tells of its progress.
fn migrate(from: &Path, to: &Path, more: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rmq-migrate"))
        .args(["--progress", "json", "--from"])
        .args([from, Path::new("--to"), to])
        .args(more)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    told
}

/// The last line of each phase.
fn ended(told: &str) -> impl Iterator<Item = Value> {
    let lines = told
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["ended"] == true)
}

/// Bytes a second of a phase.
fn rate(told: &str, phase: &str) -> f64 {
    let line = ended(told).find(|line| line["phase"] == phase).unwrap();
    line["rate"].as_f64().unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Takes a store's files out of the page cache.
fn forget(root: &Path) {
    for path in files(root) {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// Reads files from end to end, with as many readers as there are processors; bytes a second.
fn read(dir: &Path) -> f64 {
    let (files, next) = (files(dir), AtomicUsize::new(0));
    let begun = Instant::now();
    let readers = std::thread::available_parallelism().map_or(1, usize::from);
    let bytes: u64 = std::thread::scope(|scope| {
        let reader = || {
            let (mut buf, mut sum) = (vec![0; 4 << 20], 0);
            while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (file, mut at) = (File::open(path).unwrap(), 0);
                loop {
                    match file.read_at(&mut buf, at).unwrap() as u64 {
                        0 => break,
                        read => at += read,
                    }
                }
                sum += at;
            }
            sum
        };
        let readers: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum()
    });
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = bytes as f64 / begun.elapsed().as_secs_f64();
    rate
}

/// A queue's files.
struct Queue {
    dir: PathBuf,
    next: u64,
    file: Option<BufWriter<File>>,
}

impl Queue {
    fn add(&mut self, phy: u64, size: u32) {
        let bytes = QUEUE_FILE_UNITS * UNIT_BYTES as u64;
        if self.next.is_multiple_of(QUEUE_FILE_UNITS) {
            let start = self.next * UNIT_BYTES as u64;
            let file = File::create(self.dir.join(format!("{start:020}"))).unwrap();
            file.set_len(bytes).unwrap();
            self.file = Some(BufWriter::new(file));
        }
        let unit = [&phy.to_be_bytes()[..], &size.to_be_bytes(), &[0; 8]].concat();
        self.file.as_mut().unwrap().write_all(&unit).unwrap();
        self.next += 1;
    }
}

/// The index, of which one file is enough.
struct Index {
    slots: Vec<u32>,
    entries: BufWriter<File>,
    next: u32,
    last: u64,
}

impl Index {
    fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let file = File::create(dir.join("20231114221320000")).unwrap();
        file.set_len(INDEX.file_bytes()).unwrap();
        let mut entries = BufWriter::new(file);
        std::io::Seek::seek(&mut entries, std::io::SeekFrom::Start(INDEX.entry_at(1))).unwrap();
        Self {
            slots: vec![0; INDEX.slots as usize],
            entries,
            next: 1,
            last: 0,
        }
    }

    fn add(&mut self, key: &str, phy: u64) {
        assert!(self.next < INDEX.entries, "one index file holds no more");
        let hash = key_hash(TOPIC, key);
        let slot = &mut self.slots[INDEX.slot_of(hash) as usize];
        let entry = Entry {
            key_hash: hash,
            phy: PhyOffset(phy),
            seconds: 0,
            previous: std::mem::replace(slot, self.next),
        };
        self.entries.write_all(&entry.encode()).unwrap();
        (self.next, self.last) = (self.next + 1, phy);
    }

    fn finish(self) {
        let file = self.entries.into_inner().unwrap();
        let used = self.slots.iter().filter(|slot| **slot > 0).count();
        let header = IndexHeader {
            begin_timestamp: STORED_MS,
            end_timestamp: STORED_MS,
            begin_phy: PhyOffset(0),
            end_phy: PhyOffset(self.last),
            used_slots: u32::try_from(used).unwrap(),
            next_entry: self.next,
        };
        file.write_all_at(&header.encode(), 0).unwrap();
        let slots: Vec<u8> = self
            .slots
            .iter()
            .flat_map(|slot| slot.to_be_bytes())
            .collect();
        file.write_all_at(&slots, HEADER_BYTES as u64).unwrap();
    }
}

/// Writes a store of `gib` segments with bodies of this length; the last segment is half full.
fn make(root: &Path, gib: u64, body: usize, zeros: bool) {
    let log = root.join("commitlog");
    fs::create_dir_all(&log).unwrap();
    fs::create_dir_all(root.join("config")).unwrap();
    fs::write(root.join("lock"), "lock").unwrap();
    let topics = format!(
        "{{\"topicConfigTable\":{{\"{TOPIC}\":{{\"perm\":6,\"readQueueNums\":{QUEUES},\"writeQueueNums\":{QUEUES},\
         \"topicName\":\"{TOPIC}\"}}}}}}"
    );
    fs::write(root.join("config/topics.json"), topics).unwrap();
    let queue = |id: u64| {
        let dir = root.join("consumequeue").join(TOPIC).join(id.to_string());
        fs::create_dir_all(&dir).unwrap();
        Queue {
            dir,
            next: 0,
            file: None,
        }
    };
    let mut queues: Vec<Queue> = (0..QUEUES).map(queue).collect();
    let mut index = Index::new(&root.join("index"));
    let noise = noise();
    let mut content = vec![0; body];
    let mut raw = Vec::new();
    let mut number = 0;
    for base in (0..gib).map(|nth| nth * SEGMENT) {
        let file = File::create(log.join(format!("{base:020}"))).unwrap();
        file.set_len(SEGMENT).unwrap();
        let mut out = BufWriter::with_capacity(8 << 20, &file);
        let (mut at, end) = (
            0,
            SEGMENT
                - if base / SEGMENT + 1 == gib {
                    SEGMENT / 2
                } else {
                    0
                },
        );
        loop {
            let id = number % QUEUES;
            let key = format!("KEY-{number:012}");
            if !zeros {
                let from = usize::try_from(number * 7919).unwrap() % (noise.len() - body);
                content.copy_from_slice(&noise[from..from + body]);
            }
            if !zeros || raw.is_empty() {
                raw = encode(&content, &key);
            }
            let key_at = raw.len() - KEY.len() - 1;
            raw[key_at..key_at + KEY.len()].copy_from_slice(key.as_bytes());
            raw[record::QUEUE_ID_AT..][..4]
                .copy_from_slice(&u32::try_from(id).unwrap().to_be_bytes());
            let offset = i64::try_from(queues[usize::try_from(id).unwrap()].next).unwrap();
            record::seal(
                &mut raw,
                offset,
                i64::try_from(base + at).unwrap(),
                STORED_MS,
            );
            let size = raw.len() as u64;
            if at + size + record::BLANK_LEN as u64 > end {
                break;
            }
            if zeros {
                // All but the first and the last page are a hole.
                file.write_all_at(&raw[..4096], at).unwrap();
                let tail = raw.len() - 4096;
                file.write_all_at(&raw[tail..], at + tail as u64).unwrap();
            } else {
                out.write_all(&raw).unwrap();
            }
            queues[usize::try_from(id).unwrap()].add(base + at, u32::try_from(size).unwrap());
            index.add(&key, base + at);
            at += size;
            number += 1;
        }
        out.flush().unwrap();
        if end == SEGMENT {
            let blank = record::blank(u32::try_from(SEGMENT - at).unwrap());
            file.write_all_at(&blank, at).unwrap();
        }
    }
    index.finish();
}

fn encode(body: &[u8], key: &str) -> Vec<u8> {
    let host = ([127, 0, 0, 1], 10911).into();
    let new = NewRecord {
        born_timestamp: STORED_MS,
        properties: &format!("UNIQ_KEY\u{1}{key}\u{2}"),
        ..NewRecord::new(host, TOPIC, 0, body)
    };
    let mut raw = Vec::new();
    new.encode(&mut raw).unwrap();
    raw
}

/// Bytes that nothing compresses.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..1 << 18).flat_map(|_| next()).collect()
}
