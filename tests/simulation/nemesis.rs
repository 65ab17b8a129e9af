//! What goes wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rmq::raft::{MemberChange, MembersError, SelfId};
use rmq_store::sim;
use tokio::time::{sleep, timeout};

use crate::network::Place;
use crate::nodes::End;
use crate::plan::Fault;
use crate::run::World;

/// Faults that happen at the same time, of different sorts.
pub(crate) const NEMESES: u64 = 2;
/// How long an operator waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

fn ms(rng: &mut StdRng, most: u64) -> Duration {
    Duration::from_millis(rng.random_range(1..=most))
}

/// Does what the plan says until the trouble is over. What it did to nodes is undone by the end of
/// the trouble at the latest.
pub(crate) async fn trouble(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    // A group forms in peace: all have to meet.
    while world.nodes.serving().is_none() && !world.is_calm() {
        sleep(Duration::from_millis(50)).await;
    }
    while !world.is_calm() {
        sleep(ms(&mut rng, world.plan.pause_ms)).await;
        if world.is_calm() {
            return;
        }
        let fault = *world.plan.faults.choose(&mut rng).expect("some");
        world.struck(fault);
        strike(&world, fault, &mut rng).await;
    }
}

/// Some of the nodes: often the leader, sometimes a majority or all.
fn victims(world: &World, rng: &mut StdRng) -> Vec<Place> {
    let mut all: Vec<Place> = world.nodes.places();
    all.shuffle(rng);
    match rng.random_range(0..10) {
        0 => all,
        1 | 2 => all.split_off(all.len() / 2),
        3..=6 => match world.nodes.serving() {
            Some((leader, _)) => vec![leader],
            None => vec![all[0]],
        },
        _ => vec![all[0]],
    }
}

async fn strike(world: &Arc<World>, fault: Fault, rng: &mut StdRng) {
    match fault {
        Fault::Kill => {
            let victims = victims(world, rng);
            for place in &victims {
                world.nodes.end(*place, End::Killed, false);
            }
            let pause = if rng.random() { 3000 } else { 100 };
            start_again(world, &victims, pause, rng).await;
        }
        Fault::PowerCut => {
            let mut victims = victims(world, rng);
            while !victims.is_empty() && !world.nodes.may_cut(victims.len()) {
                victims.pop();
            }
            for place in &victims {
                let silently = rng.random();
                world.nodes.end(*place, End::PowerCut, silently);
            }
            let pause = if rng.random() { 3000 } else { 100 };
            start_again(world, &victims, pause, rng).await;
        }
        Fault::CrashPoint => {
            let place = victims(world, rng)[0];
            let how = if rng.random() && world.nodes.may_cut(1) {
                End::PowerCut
            } else {
                End::Killed
            };
            if world.nodes.is_down(place) {
                world.start(place).await;
            }
            let most = if rng.random() { 10 } else { 200 };
            world
                .nodes
                .crash_after(place, rng.random_range(0..most), how);
            sleep(ms(rng, 3000)).await;
            start_again(world, &[place], 1000, rng).await;
        }
        Fault::Restart => {
            let place = victims(world, rng)[0];
            world.nodes.stop(place).await;
            start_again(world, &[place], 1000, rng).await;
        }
        Fault::Disk => {
            let place = victims(world, rng)[0];
            let fault = *[
                sim::Fault::Sync,
                sim::Fault::Sync,
                sim::Fault::Write,
                sim::Fault::Full,
            ]
            .choose(rng)
            .expect("some");
            let file = *[
                "commitlog/",
                "commitlog/",
                "",
                "raft",
                "consumequeue",
                "index",
            ]
            .choose(rng)
            .expect("some");
            let skip = rng.random_range(0..30);
            world.trace.event(format_args!(
                "n{place}: {fault:?} of {file:?} fails after {skip}"
            ));
            world.nodes.disk(place).fail(fault, file, skip);
            sleep(ms(rng, 3000)).await;
            start_again(world, &[place], 1000, rng).await;
        }
        Fault::SlowDisk => {
            let victims = victims(world, rng);
            let micros = *[20_000, 200_000, 3_000_000].choose(rng).expect("some");
            for place in &victims {
                world
                    .trace
                    .event(format_args!("n{place}: a sync takes up to {micros} us"));
                world.nodes.set_slow(*place, Some(micros));
            }
            sleep(ms(rng, 4000)).await;
            for place in victims {
                world.nodes.set_slow(place, None);
            }
        }
        Fault::Partition => {
            let risen = if rng.random() {
                risen(world).await
            } else {
                None
            };
            let cut = risen.map_or_else(|| partition(world, rng), |place| around(world, place));
            world.trace.event(format_args!("cut: {cut:?}"));
            for (one, other) in &cut {
                world.cut(*one, *other, true);
                world.cut(*other, *one, true);
                if rng.random() {
                    world.fabric.reset(*one, *other);
                }
            }
            // Word of an end that is past, and of no meaning now, gets through.
            let apart = cut.iter().flat_map(|(one, other)| [*one, *other]);
            for place in apart.collect::<BTreeSet<_>>() {
                world.nodes.send_again(place);
            }
            sleep(ms(rng, 5000)).await;
            world.trace.event(format_args!("whole: {cut:?}"));
            for (one, other) in cut {
                world.cut(one, other, false);
                world.cut(other, one, false);
            }
        }
        Fault::OneWay => {
            let mut pairs = pairs(world);
            pairs.shuffle(rng);
            pairs.truncate(rng.random_range(1..=pairs.len() / 2));
            world.trace.event(format_args!("cut one way: {pairs:?}"));
            for (from, to) in &pairs {
                world.cut(*from, *to, true);
            }
            sleep(ms(rng, 5000)).await;
            for (from, to) in pairs {
                world.cut(from, to, false);
            }
        }
        Fault::BadLinks => {
            let mut pairs = pairs(world);
            pairs.shuffle(rng);
            pairs.truncate(rng.random_range(1..=pairs.len()));
            let (slowest, loss) = (rng.random_range(1..150), rng.random_range(0..100));
            world.trace.event(format_args!(
                "bad links: {pairs:?}, up to {slowest} ms, {loss} of 1000 lost"
            ));
            for (from, to) in &pairs {
                world.fabric.change(*from, *to, |link| {
                    link.delay_ms = (0, slowest);
                    link.loss = loss;
                });
            }
            sleep(ms(rng, 6000)).await;
            for (from, to) in pairs {
                world.fabric.change(from, to, |link| {
                    link.delay_ms = (0, 2);
                    link.loss = 0;
                });
            }
        }
        Fault::Wipe => {
            let place = victims(world, rng)[0];
            // What only a majority has acknowledged must not be lost on two of its nodes.
            if world.nodes.may_wipe() {
                world.nodes.wipe(place);
                start_again(world, &[place], 1000, rng).await;
                sleep(ms(rng, 3000)).await;
            }
        }
        Fault::Rot => {
            let place = victims(world, rng)[0];
            // What has left the log of the others is gone, and so is a member that was removed.
            let rots = !world.plan.purges && world.plan.spares == 0;
            if rots && !world.nodes.any_lacks() && world.nodes.stop(place).await.is_some() {
                world.nodes.rot(place, rng);
                start_again(world, &[place], 1000, rng).await;
            }
        }
        Fault::Full => {
            let victims = victims(world, rng);
            let available = *[0, 5].choose(rng).expect("some");
            for place in &victims {
                world
                    .trace
                    .event(format_args!("n{place}: {available}% of the disk are free"));
                world.nodes.set_free(*place, Some(available));
            }
            sleep(ms(rng, 4000)).await;
            for place in &victims {
                world.nodes.set_free(*place, None);
            }
            start_again(world, &victims, 100, rng).await;
        }
        Fault::Members => change_members(world, rng).await,
        Fault::Transfer => {
            if let Some((place, node)) = world.nodes.serving() {
                let mut ended = node.ended.clone();
                let outcome = tokio::select! {
                    biased;
                    _ = ended.wait_for(|ended| *ended) => None,
                    outcome = node.group.transfer_leader(None) => Some(outcome),
                };
                world
                    .trace
                    .event(format_args!("n{place} hands over: {outcome:?}"));
            }
        }
    }
}

/// Adds a node and gives it a vote, or removes one.
async fn change_members(world: &Arc<World>, rng: &mut StdRng) {
    let places = world.nodes.places();
    match world.nodes.spare() {
        Some(place) if world.nodes.least_voters() <= 3 || rng.random() => {
            world.nodes.want(place);
            world.start(place).await;
            if ask(world, rng, MemberChange::Add, place).await {
                ask(world, rng, MemberChange::Promote, place).await;
            }
        }
        None if world.nodes.least_voters() <= 3 => {}
        _ => {
            let place = *places.choose(rng).expect("some");
            if ask(world, rng, MemberChange::Remove, place).await {
                world.nodes.discard(place);
            }
        }
    }
}

/// Asks whoever leads, again and again for a while, as an operator does. Says whether it is done.
async fn ask(world: &Arc<World>, rng: &mut StdRng, change: MemberChange, place: Place) -> bool {
    for _ in 0..20 {
        if world.is_calm() {
            return false;
        }
        if let Some((leader, node)) = world.nodes.serving() {
            let self_id = SelfId(u16::try_from(place).expect("few"));
            let mut ended = node.ended.clone();
            let answer = tokio::select! {
                biased;
                _ = ended.wait_for(|ended| *ended) => None,
                answer = timeout(PATIENCE, node.group.change_members(change, self_id)) => answer.ok(),
            };
            world
                .trace
                .event(format_args!("n{leader}, {change:?} n{place}: {answer:?}"));
            match answer {
                Some(Ok(_)) => {
                    world.changes.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Some(Err(MembersError::Refused(_))) => return false,
                Some(Err(MembersError::Leads)) => {
                    let mut ended = node.ended.clone();
                    tokio::select! {
                        biased;
                        _ = ended.wait_for(|ended| *ended) => {}
                        _ = node.group.transfer_leader(None) => {}
                    }
                }
                Some(Err(MembersError::Later(_))) | None => {}
            }
        }
        sleep(ms(rng, 500)).await;
    }
    false
}

/// Starts nodes one after the other. One may need another to start, so it does not wait for them.
async fn start_again(world: &Arc<World>, places: &[Place], most_ms: u64, rng: &mut StdRng) {
    for place in places.iter().copied() {
        sleep(ms(rng, most_ms)).await;
        if world.nodes.is_down(place) {
            let world = world.clone();
            tokio::spawn(async move { world.start(place).await });
        }
    }
}

/// All directions.
fn pairs(world: &World) -> Vec<(Place, Place)> {
    let places = world.nodes.places();
    places
        .iter()
        .flat_map(|from| places.iter().map(|to| (*from, *to)))
        .filter(|(from, to)| from != to)
        .collect()
}

/// Has a node lead that has ended before, if there is one: word of that is not of this life.
async fn risen(world: &Arc<World>) -> Option<Place> {
    let (leader, node) = world.nodes.serving()?;
    let risen = world.nodes.risen(leader)?;
    if risen != leader {
        let to = SelfId(u16::try_from(risen).expect("nodes are few"));
        let mut ended = node.ended.clone();
        let outcome = tokio::select! {
            biased;
            _ = ended.wait_for(|ended| *ended) => return None,
            outcome = node.group.transfer_leader(Some(to)) => outcome,
        };
        world.trace.event(format_args!(
            "n{leader} hands over to n{risen}: {outcome:?}"
        ));
        sleep(Duration::from_millis(200)).await;
    }
    Some(risen)
}

/// The pairs of which a place is one.
fn around(world: &World, alone: Place) -> Vec<(Place, Place)> {
    let pairs = pairs(world).into_iter().filter(|(one, other)| one < other);
    pairs
        .filter(|(one, other)| *one == alone || *other == alone)
        .collect()
}

/// The pairs of nodes that do not reach each other.
fn partition(world: &World, rng: &mut StdRng) -> Vec<(Place, Place)> {
    let mut all: Vec<Place> = world.nodes.places();
    all.shuffle(rng);
    let pairs = pairs(world).into_iter().filter(|(one, other)| one < other);
    let count = all.len();
    let position = |place: Place| {
        all.iter()
            .position(|other| *other == place)
            .expect("is one")
    };
    match rng.random_range(0..5) {
        // One alone: often the leader.
        0 | 1 => {
            let serving = world.nodes.serving().filter(|_| rng.random());
            around(world, serving.map_or(all[0], |(place, _)| place))
        }
        // Two halves.
        2 => {
            let half = |place| position(place) < count / 2;
            pairs
                .filter(|(one, other)| half(*one) != half(*other))
                .collect()
        }
        // A bridge: the first reaches both halves.
        3 => {
            let half = |place| position(place) <= count / 2;
            let bridge = all[0];
            pairs
                .filter(|(one, other)| {
                    *one != bridge && *other != bridge && half(*one) != half(*other)
                })
                .collect()
        }
        // A ring: everyone reaches a majority, and no two the same one.
        _ => pairs
            .filter(|(one, other)| {
                let apart = position(*one).abs_diff(position(*other));
                apart.min(count - apart) > count / 4
            })
            .collect(),
    }
}
