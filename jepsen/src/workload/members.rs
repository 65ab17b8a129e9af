//! Members of one consumer group.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{GROUP, MEMBERS, PATIENCE, QUEUES, Shared, TOPIC};
use crate::client::{Client, Outcome};
use crate::history::{LockCall, LockOp};

/// Messages of one poll.
const BATCH: i32 = 32;
/// Between two heartbeats, and two looks at the list of members.
const BEAT: Duration = Duration::from_millis(500);
/// When there is nothing to read.
const REST: Duration = Duration::from_millis(5);

fn name(member: u64) -> String {
    format!("member{member}@jepsen")
}

fn process(member: u64) -> u64 {
    MEMBERS + member
}

/// Tells every node that this member is there; now and then it leaves for a while.
pub(super) fn beat(shared: &Shared, member: u64, seed: u64, present: &AtomicBool) {
    let mut dice = StdRng::seed_from_u64(seed ^ member);
    let mut connections: BTreeMap<usize, Client> = BTreeMap::new();
    while !shared.stopped() {
        let stays = Instant::now() + Duration::from_millis(dice.random_range(4_000..15_000));
        present.store(true, Ordering::Relaxed);
        while !shared.stopped() && Instant::now() < stays {
            let count = shared.nodes().len();
            for node in 0..count {
                let connected = match connections.remove(&node) {
                    Some(client) => Ok(client),
                    None => Client::connect(shared.node(node), BEAT),
                };
                if let Ok(mut client) = connected
                    && client.beat(&name(member), GROUP, TOPIC).is_ok()
                {
                    connections.insert(node, client);
                }
            }
            thread::sleep(BEAT);
        }
        present.store(false, Ordering::Relaxed);
        // The nodes see the connections end.
        connections.clear();
        thread::sleep(Duration::from_millis(dice.random_range(500..3_000)));
    }
}

/// Reads the queues that are this member's share and commits what it has read.
pub(super) fn share(shared: &Shared, member: u64, present: &AtomicBool) {
    for node in 0.. {
        if shared.stopped() {
            return;
        }
        let address = shared.coordinator(node);
        if let Ok(mut client) = Client::connect(address, PATIENCE) {
            let is_right = || shared.coordinator(node) == address;
            // The next node may know more.
            share_through(shared, &mut client, member, present, is_right).ok();
        }
        thread::sleep(REST);
    }
}

fn share_through(
    shared: &Shared,
    client: &mut Client,
    member: u64,
    present: &AtomicBool,
    is_right: impl Fn() -> bool,
) -> io::Result<()> {
    let process = process(member);
    // Queue to the next offset.
    let mut own: BTreeMap<u32, u64> = BTreeMap::new();
    let mut asked: Option<Instant> = None;
    while !shared.stopped() && is_right() {
        if !present.load(Ordering::Relaxed) {
            own.clear();
            asked = None;
            thread::sleep(REST);
            continue;
        }
        if asked.is_none_or(|at| at.elapsed() > BEAT) {
            asked = Some(Instant::now());
            let mut members = client.members(GROUP)?;
            members.sort();
            let place = members.iter().position(|other| *other == name(member));
            let is_own = |queue: u32| place == Some(queue as usize % members.len());
            own.retain(|queue, _| is_own(*queue));
            for queue in (0..QUEUES).filter(|queue| is_own(*queue)) {
                if let Entry::Vacant(new) = own.entry(queue) {
                    let from = shared.committed(client, process, queue)?;
                    new.insert(from.unwrap_or(0));
                }
            }
        }
        let mut rests = true;
        for (queue, next) in &mut own {
            rests &= !read_on(shared, client, process, *queue, next)?;
        }
        if rests {
            thread::sleep(REST);
        }
    }
    Ok(())
}

/// Reads what comes next in a queue, and commits it. Whether there was anything.
fn read_on(
    shared: &Shared,
    client: &mut Client,
    process: u64,
    queue: u32,
    next: &mut u64,
) -> io::Result<bool> {
    let got = shared.poll(client, process, (queue, *next), Some(BATCH));
    match got {
        None => Err(io::ErrorKind::Other.into()),
        Some(0) => Ok(false),
        Some(count) => {
            *next += count as u64;
            match shared.commit(client, process, queue, *next) {
                true => Ok(true),
                false => Err(io::ErrorKind::Other.into()),
            }
        }
    }
}

/// Takes locks, reads, and gives them up.
pub(super) fn lock_and_read(shared: &Shared, member: u64, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed ^ member);
    let mut queue = 0;
    for node in 0.. {
        if shared.stopped() {
            return;
        }
        if let Ok(mut client) = Client::connect(shared.node(node), PATIENCE) {
            // Then it may have the lock of this queue without knowing; it asks for that first.
            hold_through(shared, &mut client, member, &mut queue, &mut dice).ok();
        }
        thread::sleep(REST);
    }
}

fn hold_through(
    shared: &Shared,
    client: &mut Client,
    member: u64,
    queue: &mut u32,
    dice: &mut StdRng,
) -> io::Result<()> {
    while !shared.stopped() {
        if lock(shared, client, member, *queue)? {
            let process = process(member);
            let mut next = shared.committed(client, process, *queue)?.unwrap_or(0);
            let until = Instant::now() + Duration::from_millis(dice.random_range(20..600));
            while !shared.stopped() && Instant::now() < until {
                if !read_on(shared, client, process, *queue, &mut next)? {
                    thread::sleep(REST);
                }
                if dice.random_bool(0.05) && !lock(shared, client, member, *queue)? {
                    break;
                }
            }
            unlock(shared, client, member, *queue)?;
        }
        *queue = dice.random_range(0..QUEUES);
        thread::sleep(Duration::from_millis(dice.random_range(1..30)));
    }
    Ok(())
}

fn lock(shared: &Shared, client: &mut Client, member: u64, queue: u32) -> io::Result<bool> {
    let invoked = shared.now();
    let outcome = client.lock(&name(member), GROUP, TOPIC, queue);
    let held = match &outcome {
        Outcome::Ok(held) => Ok(*held),
        _ => Err(io::ErrorKind::Other.into()),
    };
    note(shared, member, queue, invoked, LockCall::Lock(outcome));
    held
}

fn unlock(shared: &Shared, client: &mut Client, member: u64, queue: u32) -> io::Result<()> {
    let invoked = shared.now();
    let done = client.unlock(&name(member), GROUP, TOPIC, queue);
    note(shared, member, queue, invoked, LockCall::Unlock);
    done
}

fn note(shared: &Shared, member: u64, queue: u32, invoked: u64, call: LockCall) {
    let ended = shared.now();
    shared.history().locks.push(LockOp {
        process: process(member),
        queue,
        invoked,
        ended,
        call,
    });
}
