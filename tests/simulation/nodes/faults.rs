//! What is done to the disks and machines of nodes, and what is told of their ends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rmq::raft::{self, Letter};
use rmq_store::sim::SimDisk;
use rmq_store::{Disk, OpenMode, Space, mutant};
use tokio::time::sleep;

use super::{End, Lack, Node, Nodes, Running, SYNC_MICROS, lock, store_config};
use crate::machine::Machine;
use crate::network::{Place, Port, addr};

/// Bytes of a percent of a disk that is full.
const PERCENT: u64 = 1 << 20;
/// A disk that is not.
const PLENTY: Space = Space {
    used: 0,
    available: u64::MAX,
};

/// A byte that was changed.
pub(super) struct Rot {
    path: PathBuf,
    pos: u64,
    /// What it was.
    byte: u8,
}

impl Rot {
    /// Whether the byte is what it was, or has left the log.
    pub(super) fn is_mended(&self, disk: &SimDisk) -> bool {
        byte_at(disk, &self.path, self.pos).is_none_or(|byte| byte == self.byte)
    }
}

fn byte_at(disk: &SimDisk, path: &Path, pos: u64) -> Option<u8> {
    let file = disk.open(path, OpenMode::Read).ok()?;
    let mut byte = [0];
    (file.read_at(pos, &mut byte).ok()? == 1).then_some(byte[0])
}

impl Nodes {
    /// Changes bytes of what a node that was stopped well has of the committed log, unless another
    /// node lacks something. Says whether it did.
    pub(crate) fn rot(&self, place: Place, rng: &mut StdRng) -> bool {
        let others_are_whole = !self.any_lacks();
        let config = store_config(self.plan.flush);
        let others = self.all_running();
        let others = others.iter().filter(|(other, _)| *other != place);
        // What they have removed nobody can mend.
        let kept = others.map(|(_, other)| other.reader.min_offset()).min();
        let node = &mut self.nodes()[place];
        let was_stopped = node.running.is_none() && !node.starting;
        let abort = node.disk.open(&config.root.join("abort"), OpenMode::Read);
        let was_clean = abort.is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let Some((log, _)) = node.last.as_ref().filter(|_| was_stopped && was_clean) else {
            return false;
        };
        let from = log.base_offset().max(kept.unwrap_or_default()).0;
        let to = log.confirm_offset().0;
        if from >= to || !others_are_whole {
            return false;
        }
        for _ in 0..rng.random_range(1..=3) {
            let at = rng.random_range(from..to);
            let pos = at % config.segment_bytes;
            let path = config.commit_log_dir.join(format!("{:020}", at - pos));
            let Some(byte) = byte_at(&node.disk, &path, pos) else {
                continue;
            };
            if node
                .rot
                .iter()
                .any(|rot| (&rot.path, rot.pos) == (&path, pos))
            {
                continue;
            }
            node.disk.flip(&path, pos);
            self.trace
                .event(format_args!("n{place}: the byte at {at} of the log rots"));
            node.rot.push(Rot { path, pos, byte });
        }
        true
    }

    /// The disk of a node, for faults.
    pub(crate) fn disk(&self, place: Place) -> SimDisk {
        let mut nodes = self.nodes();
        nodes[place].excused = true;
        nodes[place].disk.clone()
    }

    pub(crate) fn machine(&self, place: Place) -> Option<Arc<Machine>> {
        let nodes = self.nodes();
        nodes[place]
            .running
            .as_ref()
            .map(|node| node.machine.clone())
    }

    /// Makes syncs of a node slow, or quick again.
    pub(crate) fn set_slow(&self, place: Place, micros: Option<u64>) {
        if let Some(machine) = self.machine(place) {
            machine.set_sync_micros(micros.unwrap_or(SYNC_MICROS));
        }
    }

    /// Leaves this much of a node's disk free, in percent; all for `None`.
    pub(crate) fn set_free(&self, place: Place, percent: Option<u64>) {
        let space = percent.map_or(PLENTY, |percent| Space {
            used: (100 - percent) * PERCENT,
            available: percent * PERCENT,
        });
        self.disk(place).set_space(space);
    }

    /// Has a node end within one of its next operations on its disk.
    pub(crate) fn crash_after(&self, place: Place, operations: usize, how: End) {
        let node = &mut self.nodes()[place];
        node.excused = true;
        node.crash = Some(how);
        node.disk.end_after(operations);
    }

    /// Empties the store of a node, which comes back as another one.
    pub(crate) fn wipe(&self, place: Place) {
        self.end(place, End::Killed, false);
        self.trace.event(format_args!("n{place} is wiped"));
        let node = &mut self.nodes()[place];
        node.disk = SimDisk::default();
        node.last = None;
        node.id = None;
        node.view.clear();
        node.rot.clear();
        // All that the group began with may be gone, or empty and about to begin another one.
        node.joins |= self.plan.spares > 0;
        if node.voter {
            node.lacks = Some(Lack::Unheard);
        }
    }

    /// Sends what a process has left for when it has ended: mostly at once, maybe late or not at all.
    pub(super) fn vouch(&self, place: Place, node: &mut Node, ended: &Running) {
        node.will.clone_from(&lock(&ended.will));
        let late_ms = {
            let mut rng = lock(&self.rng);
            match rng.random_range(0..6) {
                0 => return,
                1 => rng.random_range(0..3000),
                _ => 0,
            }
        };
        self.send(place, self.fabric.of(place), node.will.clone(), late_ms);
    }

    /// Sends once more what the last process of a node that has ended had left, past all links of that
    /// node.
    pub(crate) fn send_again(&self, place: Place) {
        let nodes = self.nodes();
        let node = &nodes[place];
        let will = match &node.running {
            Some(running) if mutant!(Alive) => lock(&running.will).clone(),
            _ => node.will.clone(),
        };
        for letter in will {
            let to = (0..nodes.len()).find(|to| addr(*to) == letter.to);
            let port = self.fabric.of(to.expect("the letter is for a node"));
            self.send(place, port, vec![letter], 0);
        }
    }

    /// A node that runs and has left a last will in a life before: this one if it has.
    pub(crate) fn risen(&self, first: Place) -> Option<Place> {
        let nodes = self.nodes();
        let has = |place: &Place| nodes[*place].running.is_some() && !nodes[*place].will.is_empty();
        std::iter::once(first).chain(0..nodes.len()).find(has)
    }

    fn send(&self, of: Place, port: Port, will: Vec<Letter>, late_ms: u64) {
        let (trace, believed) = (self.trace.clone(), self.believed.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(late_ms)).await;
            let by = raft::deliver(&port, &will).await as u64;
            trace.event(format_args!("the end of n{of} is believed by {by}"));
            believed.fetch_add(by, Ordering::Relaxed);
        });
    }

    /// Takes away what a fault is still to do to a node.
    pub(crate) fn calm(&self, place: Place) {
        let node = &mut self.nodes()[place];
        node.disk.calm();
        if let Some(running) = &node.running {
            running.machine.set_sync_micros(SYNC_MICROS);
        }
    }
}
