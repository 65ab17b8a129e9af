//! Which of the given stores is taken: the one that was frozen, or the one with the newest entry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rmq_store::inspect::{self, DamageKind, FrozenPart, Generation, InspectError, Inspection};
use rmq_store::{Disk, RealDisk};

use super::Reversed;
use crate::Options;
use crate::conf::Conf;
use crate::problem::{Code, Problem};

/// A stopped node's store.
pub(super) struct Node {
    pub(super) root: PathBuf,
    pub(super) found: Inspection,
    /// The living part of the Raft log, empty if nothing was ever written.
    pub(super) log: Generation,
}

pub(super) fn in_use(root: &Path) -> Problem {
    Problem::new(Code::InUse, "a broker is running on it")
        .at_file(root)
        .hint("stop all nodes of the group first")
}

pub(super) fn look(root: &Path) -> Result<Node, Problem> {
    let root = std::path::absolute(root).map_err(|error| Problem::reading(root, &error))?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let found = inspect::inspect(&disk, &root, None).map_err(|error| match error {
        InspectError::Io { path, source } => Problem::reading(&path, &source),
        InspectError::InUse { .. } => in_use(&root),
        InspectError::NoStore { .. } => no_store(&root),
    })?;
    let raft = found.raft.as_ref().ok_or_else(|| no_store(&root))?;
    let number = raft.notes.generation.ok_or_else(|| no_store(&root))?;
    let start = raft.notes.base_offset.unwrap_or_default();
    let log = raft.generations.iter().find(|g| g.generation == number);
    let log = log.cloned().unwrap_or_else(|| Generation {
        generation: number,
        start_offset: start,
        end_offset: start,
        ..Generation::default()
    });
    Ok(Node { root, found, log })
}

fn no_store(root: &Path) -> Problem {
    Problem::new(Code::NoStore, "this is no store of a node of rmq")
        .at_file(root)
        .hint("--from is the storePathRootDir of a stopped node")
}

impl Node {
    fn last(&self) -> (u64, u64) {
        (self.log.last_term, self.log.last_index)
    }

    /// The mark, if the node was stopped cleanly under it: what is under `config` is of the same time
    /// then.
    fn mark(&self) -> Option<&FrozenPart> {
        let raft = self.found.raft.as_ref()?;
        let mark = raft.notes.frozen.as_ref()?;
        self.found.stopped_cleanly.then_some(mark)
    }
}

/// The store that is taken.
pub(super) fn choose(
    nodes: Vec<Node>,
    options: &Options,
    conf: Option<&Conf>,
    done: &mut Reversed,
) -> Result<Node, Problem> {
    let newest = nodes.iter().map(Node::last).max().unwrap_or_default();
    let given = nodes.len();
    if nodes[0].mark().is_some() && nodes[0].last().0 >= newest.0 {
        let mut nodes = nodes;
        let behind = nodes.iter().skip(1).find(|node| {
            node.log.messages_end_offset > nodes[0].log.messages_end_offset
                || node
                    .found
                    .raft
                    .as_ref()
                    .is_some_and(|r| r.notes.frozen.is_none())
        });
        if let Some(other) = behind {
            return Err(Problem::new(
                Code::StoresDiffer,
                "this node was not frozen, or has messages behind the freeze",
            )
            .at_file(&other.root)
            .why("the group was thawed after the other store was stopped")
            .hint("give the stores of all nodes as they were stopped together"));
        }
        let node = nodes.swap_remove(0);
        done.frozen = node.mark().cloned();
        return Ok(node);
    }
    let group = match conf {
        Some(conf) if conf.get("enableDLegerCommitLog").map(str::trim) == Some("true") => {
            conf.peers()?.map(|peers| peers.len())
        }
        Some(_) => Some(1),
        None => None,
    };
    let lists: Vec<String> = nodes.iter().map(shown).collect();
    let node = nodes
        .into_iter()
        .max_by_key(Node::last)
        .ok_or_else(|| Problem::new(Code::NoStore, "no store is given"))?;
    if group.is_none_or(|all| given < all) {
        let of = group.map_or_else(|| "an unknown number".to_owned(), |all| all.to_string());
        let what = format!("{given} of {of} of stores are given, and this one was not frozen");
        if !options.accept_unconfirmed {
            return Err(Problem::new(Code::Unconfirmed, what)
                .at_file(&node.root)
                .why("another node may have messages that were acknowledged and are not here")
                .hint(
                    "freeze the group before it is stopped (mqadmin raftFreeze), or give the \
                     stores of all other nodes with --compare-with and a node's properties with \
                     -c, or go on with --accept-unconfirmed",
                ));
        }
        done.unconfirmed.push(what);
        done.unconfirmed.extend(lists);
        done.unconfirmed.push(format!(
            "whatever was acknowledged behind offset {} is missing",
            node.log.end_offset
        ));
    }
    if !node.found.stopped_cleanly {
        done.warnings.push(
            Problem::new(Code::Metadata, "the node was not stopped cleanly")
                .at_file(&node.root)
                .why("topics, groups and offsets may be some seconds older than the log")
                .hint("start the group, freeze it, and stop it, to have them to the end"),
        );
    }
    Ok(node)
}

fn shown(node: &Node) -> String {
    let raft = node.found.raft.as_ref();
    let committed = raft.and_then(|raft| raft.notes.committed.clone());
    format!(
        "{}: last entry term {} index {}, ends at {}; noted as committed: {}",
        node.root.display(),
        node.log.last_term,
        node.log.last_index,
        node.log.end_offset,
        committed.unwrap_or_else(|| "none".to_owned())
    )
}

/// Refuses a log that is damaged before its end, or goes on behind its mark.
pub(super) fn check(node: &Node, done: &mut Reversed) -> Result<(), Problem> {
    let in_log = |kind| {
        matches!(
            kind,
            DamageKind::Record | DamageKind::Extent | DamageKind::Files
        )
    };
    if let Some(bad) = node.found.damage.iter().find(|damage| in_log(damage.kind)) {
        return Err(Problem::new(Code::BadRecord, bad.what.clone())
            .at_file(&bad.file)
            .at_byte(bad.offset)
            .why("the log is damaged before its end")
            .hint("take the store of another node"));
    }
    if let Some(mark) = &done.frozen
        && node.log.messages_end_offset > mark.end_offset
    {
        let what = format!(
            "messages lie behind the end of the freeze, {}",
            mark.end_offset
        );
        return Err(Problem::new(Code::StoresDiffer, what)
            .at_file(&node.root)
            .hint("freeze the group again and stop all its nodes"));
    }
    done.from.clone_from(&node.root);
    (done.last_term, done.last_index) = node.last();
    done.end_offset = node.log.end_offset;
    Ok(())
}
