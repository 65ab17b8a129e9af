//! One run: trouble while clients work, then peace, then the reckoning.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use crate::network::{Fabric, Place};
use crate::nodes::Nodes;
use crate::oracle::Oracle;
use crate::plan::{ALL, Fault, Plan};
use crate::trace::Trace;
use crate::{clients, nemesis};

/// Between two looks at everything.
const STEP: Duration = Duration::from_millis(20);
/// How long a group that is whole again may take to acknowledge something.
const ACK_LIMIT: Duration = Duration::from_secs(10);
/// How long its nodes may take to be level.
const LEVEL_LIMIT: Duration = Duration::from_secs(30);

const TROUBLE: u8 = 0;
const CALM: u8 = 1;
const OVER: u8 = 2;

/// Everything of one run.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) fabric: Fabric,
    pub(crate) nodes: Nodes,
    pub(crate) trace: Trace,
    oracle: Mutex<Oracle>,
    phase: AtomicU8,
    anomaly: Mutex<Option<String>>,
    struck: Mutex<BTreeMap<String, u64>>,
    /// How often the members were changed.
    pub(crate) changes: AtomicU64,
    /// How many partitions at a time hold a direction.
    cuts: Mutex<BTreeMap<(Place, Place), u32>>,
}

/// What came of a run.
pub(crate) struct Outcome {
    pub(crate) hash: u64,
    pub(crate) anomaly: Option<String>,
    /// What happened how often.
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) tail: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        lock(&self.oracle)
    }

    /// No more is to go wrong.
    pub(crate) fn is_calm(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= CALM
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= OVER
    }

    /// Ends the run if this is an anomaly.
    pub(crate) fn insist(&self, checked: Result<(), String>) {
        if let Err(anomaly) = checked {
            lock(&self.anomaly).get_or_insert(anomaly);
        }
    }

    pub(crate) fn struck(&self, fault: Fault) {
        *lock(&self.struck).entry(format!("{fault:?}")).or_default() += 1;
    }

    /// Starts a node; that it does not start is an anomaly.
    pub(crate) async fn start(&self, place: Place) {
        let started = self.nodes.start(place).await;
        self.insist(started.map_err(|e| format!("n{place} does not start: {e}")));
    }

    /// Cuts a direction, or takes one cut away.
    pub(crate) fn cut(&self, from: Place, to: Place, cut: bool) {
        let mut cuts = lock(&self.cuts);
        let held = cuts.entry((from, to)).or_default();
        *held = if cut {
            *held + 1
        } else {
            held.saturating_sub(1)
        };
        let cut = *held > 0;
        self.fabric.change(from, to, |link| link.cut = cut);
    }

    /// A panic of a task ends only that task; here it ends the run.
    fn catch_panics(self: &Arc<Self>) {
        let world = self.clone();
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            world.insist(Err(format!("panic: {panic}").replace('\n', " ")));
            print(panic);
        }));
    }

    fn has_failed(&self) -> bool {
        lock(&self.anomaly).is_some()
    }

    fn look(self: &Arc<Self>) {
        self.insist(self.nodes.reap());
        for place in self.nodes.to_install() {
            let world = self.clone();
            tokio::spawn(async move {
                world.insist(world.nodes.install(place).await);
                world.start(place).await;
            });
        }
        self.nodes.follow_recovery();
        let checked = self.oracle().check(&self.nodes, self.plan.flush);
        self.insist(checked);
    }
}

/// Runs a seed to its end or to its first anomaly.
pub(crate) async fn run(seed: u64, verbose: bool) -> Outcome {
    let plan = Plan::of(seed);
    let trace = Trace::new(verbose);
    trace.event(format_args!("{plan:?}"));
    let fabric = Fabric::new(seed, trace.clone());
    let nodes = Nodes::new(&plan, fabric.clone(), trace.clone());
    let world = Arc::new(World {
        plan,
        fabric,
        nodes,
        trace,
        oracle: Mutex::default(),
        phase: AtomicU8::new(TROUBLE),
        anomaly: Mutex::default(),
        struck: Mutex::default(),
        changes: AtomicU64::new(0),
        cuts: Mutex::default(),
    });
    world.catch_panics();
    let mut tasks = tokio::task::JoinSet::new();
    for place in world.nodes.places() {
        world.start(place).await;
    }
    for n in 0..world.plan.producers as u64 {
        tasks.spawn(clients::produce(world.clone(), seed * 100 + n));
    }
    for (n, group) in [(50, "g1"), (51, "g2")] {
        tasks.spawn(clients::commit(world.clone(), group, seed * 100 + n));
    }
    tasks.spawn(clients::consume(world.clone(), seed * 100 + 60));
    for n in 0..nemesis::NEMESES {
        tasks.spawn(nemesis::trouble(world.clone(), seed * 100 + 70 + n));
    }

    let end = Instant::now() + Duration::from_millis(world.plan.trouble_ms);
    while Instant::now() < end && !world.has_failed() {
        sleep(STEP).await;
        world.look();
    }
    world.phase.store(CALM, Ordering::Relaxed);
    if !world.has_failed() {
        peace(&world).await;
    }
    world.phase.store(OVER, Ordering::Relaxed);
    let anomaly = lock(&world.anomaly).take();
    let never = ALL.map(|fault| (format!("{fault:?}"), 0));
    let mut counts = BTreeMap::from(never);
    counts.append(&mut *lock(&world.struck));
    let oracle = world.oracle();
    for (what, count) in [
        ("acked", oracle.acked),
        ("refused", oracle.refused),
        ("unknown", oracle.unknown),
        ("reads", oracle.reads),
        ("commits", oracle.commits),
        ("terms", oracle.terms()),
        ("purged", world.nodes.purged()),
        ("changes", world.changes.load(Ordering::Relaxed)),
        ("installs", world.nodes.installs.load(Ordering::Relaxed)),
        ("believed", world.nodes.believed.load(Ordering::Relaxed)),
        ("mended", world.nodes.mended.load(Ordering::Relaxed)),
        ("events", world.trace.events()),
    ] {
        counts.insert(what.to_owned(), count);
    }
    if let Some(anomaly) = &anomaly {
        world.trace.event(format_args!("{anomaly}"));
    }
    Outcome {
        hash: world.trace.hash(),
        anomaly,
        counts,
        tail: world.trace.tail(),
    }
}

/// Everything works again: the group has to, as well.
async fn peace(world: &Arc<World>) {
    world.trace.event(format_args!("peace"));
    world.fabric.heal();
    let started = world.nodes.start_all().await;
    world.insist(started);
    let mut rng = StdRng::seed_from_u64(world.plan.seed);
    let begun = Instant::now();
    loop {
        keep_running(world).await;
        if world.has_failed() {
            return;
        }
        if clients::send(world, &mut rng, 1).await {
            break;
        }
        if begun.elapsed() > ACK_LIMIT {
            let limit = format!("I18: nothing is acknowledged {ACK_LIMIT:?} after the last fault");
            return world.insist(Err(limit));
        }
    }
    world.phase.store(OVER, Ordering::Relaxed);
    let begun = Instant::now();
    loop {
        keep_running(world).await;
        if world.has_failed() {
            return;
        }
        let last = world.oracle().last_committed();
        let Some((_, leader)) = world.nodes.serving() else {
            continue;
        };
        let members = leader.group.status().members;
        let all = world.nodes.all_running();
        let level = members.iter().filter(|member| member.voter).all(|member| {
            let mut nodes = all.iter().map(|(_, node)| node);
            let node = nodes.find(|node| node.group.node_id() == member.node);
            node.is_some_and(|node| {
                let status = node.group.status();
                status.applied_index == last
                    && status.last_index == last
                    && node.queues.dispatched() == node.reader.confirm_offset()
                    && node.reader.damages().is_empty()
            })
        });
        if level && !world.nodes.any_rot() {
            break;
        }
        if begun.elapsed() > LEVEL_LIMIT {
            let limit = format!(
                "I18: the voters are not level and whole {LEVEL_LIMIT:?} after the last fault"
            );
            return world.insist(Err(limit));
        }
    }
    let checked = world.oracle().check_final(&world.nodes);
    world.insist(checked);
}

/// A step of peace. Faults that have struck before still end processes.
async fn keep_running(world: &Arc<World>) {
    sleep(STEP).await;
    world.look();
    for place in world.nodes.places() {
        world.nodes.calm(place);
        if world.nodes.is_down(place) {
            let world = world.clone();
            tokio::spawn(async move { world.start(place).await });
        }
    }
}
