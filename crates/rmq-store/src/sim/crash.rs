//! What is on a disk after its power was cut.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Inner, Op};

pub(super) const PAGE: usize = 4096;
const SECTOR: usize = 512;

type Page = Arc<[u8; PAGE]>;

/// A file's bytes; pages that are not there are zero.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    fn write(&mut self, mut pos: u64, mut data: &[u8]) {
        self.len = self.len.max(pos + data.len() as u64);
        while !data.is_empty() {
            let within = index(pos % PAGE as u64);
            let n = data.len().min(PAGE - within);
            let page = self
                .pages
                .entry(pos / PAGE as u64)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + n].copy_from_slice(&data[..n]);
            (pos, data) = (pos + n as u64, &data[n..]);
        }
    }

    pub(super) fn read(&self, pos: u64, buf: &mut [u8]) -> usize {
        let len = index(self.len.saturating_sub(pos).min(buf.len() as u64));
        let mut done = 0;
        while done < len {
            let at = pos + done as u64;
            let within = index(at % PAGE as u64);
            let n = (len - done).min(PAGE - within);
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => buf[done..done + n].copy_from_slice(&page[within..within + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        len
    }

    fn page(&self, n: u64) -> Page {
        self.pages
            .get(&n)
            .cloned()
            .unwrap_or_else(|| Arc::new([0; PAGE]))
    }

    pub(super) fn resize(&mut self, len: u64) {
        self.len = len;
        self.pages.retain(|n, _| n * (PAGE as u64) < len);
        if let Some(page) = self.pages.get_mut(&(len / PAGE as u64)) {
            Arc::make_mut(page)[index(len % PAGE as u64)..].fill(0);
        }
    }

    /// Does what an operation does to this file.
    pub(super) fn apply(&mut self, op: &Op, this: usize) {
        match op {
            Op::Resize { file, len } if *file == this => self.resize(*len),
            Op::Write { file, pos, data } if *file == this => self.write(*pos, data),
            _ => {}
        }
    }
}

pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).expect("simulated files are small")
}

/// Directory entries: synced ones, and of each directory the unsynced changes up to some point. What
/// moves a file from one directory to another is done in both or in neither.
pub(super) fn names_left(
    before: &BTreeMap<PathBuf, usize>,
    done: &[Op],
    dice: &mut dyn FnMut(usize) -> usize,
) -> BTreeMap<PathBuf, usize> {
    let dir_of = |path: &Path| path.parent().expect("a file has one").to_owned();
    let mut changes: BTreeMap<PathBuf, (usize, Vec<usize>)> = BTreeMap::new();
    for (nth, op) in done.iter().enumerate() {
        let dirs = match op {
            Op::Link { path, .. } | Op::Unlink { path } => BTreeSet::from([dir_of(path)]),
            Op::Rename { from, to, .. } => BTreeSet::from([dir_of(from), dir_of(to)]),
            Op::SyncDir { dir } => {
                let (synced, all) = changes.entry(dir.clone()).or_default();
                *synced = all.len();
                continue;
            }
            _ => continue,
        };
        for dir in dirs {
            changes.entry(dir).or_default().1.push(nth);
        }
    }
    let mut kept: BTreeSet<usize> = BTreeSet::new();
    for (synced, all) in changes.into_values() {
        kept.extend(&all[..synced + dice(all.len() - synced + 1)]);
    }
    let mut left = Inner {
        names: before.clone(),
        ..Inner::default()
    };
    for nth in kept {
        left.apply(done[nth].clone());
    }
    left.names
}

/// A file's content: each page in some state that it had since it was last synced. `done` is what was
/// done to this file.
pub(super) fn content_left(
    before: Content,
    done: &[&Op],
    file: usize,
    dice: &mut dyn FnMut(usize) -> usize,
) -> Content {
    let mut now = before;
    let mut lens = vec![now.len];
    let mut states: BTreeMap<u64, Vec<Page>> = BTreeMap::new();
    // Not written by later syncs unless they are changed again.
    let mut forgotten: BTreeSet<u64> = BTreeSet::new();
    for op in done {
        let touched = match op {
            Op::Write { pos, data, .. } => {
                pos / PAGE as u64..(pos + data.len() as u64).div_ceil(PAGE as u64)
            }
            Op::Resize { len, .. } if *len < now.len => {
                len / PAGE as u64..now.len.div_ceil(PAGE as u64)
            }
            Op::Sync { .. } => {
                states.retain(|n, _| forgotten.contains(n));
                lens.clear();
                0..0
            }
            Op::FailedSync { .. } => {
                forgotten.extend(states.keys());
                0..0
            }
            _ => 0..0,
        };
        for n in touched.clone() {
            forgotten.remove(&n);
            states.entry(n).or_insert_with(|| vec![now.page(n)]);
        }
        now.apply(op, file);
        for n in touched {
            states.get_mut(&n).expect("was put").push(now.page(n));
        }
        lens.push(now.len);
    }
    for (n, states) in states {
        let mut page = Arc::clone(&states[dice(states.len())]);
        if dice(4) == 0 {
            let other = &states[dice(states.len())];
            for sector in 0..PAGE / SECTOR {
                if dice(2) == 0 {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    Arc::make_mut(&mut page)[range.clone()].copy_from_slice(&other[range]);
                }
            }
        }
        now.pages.insert(n, page);
    }
    now.resize(lens[dice(lens.len())]);
    now
}
