//! Transactions whose ends are said by several clients, again and again, and a reader that sees what is committed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::{PATIENCE, QUEUES, Shared, TRANSACTOR, arrivals};
use crate::client::{Client, Half, Outcome};
use crate::history::{History, Transaction, TransactionEnd};

const TOPIC: &str = "jepsen_transaction";
/// Between two half messages.
const PAUSE: Duration = Duration::from_millis(10);
/// Each end is said once more after so many others.
const LATER: usize = 100;
/// Of so many transactions one is rolled back.
const ROLLED_BACK: u32 = 3;

/// Connections to one node after the other, as they fail.
struct Turns<'a> {
    shared: &'a Shared,
    node: usize,
    client: Option<Client>,
}

impl Turns<'_> {
    fn client(&mut self) -> Option<&mut Client> {
        if self.client.is_none() {
            self.client = Client::connect(self.shared.node(self.node), PATIENCE).ok();
        }
        if self.client.is_none() {
            self.next();
        }
        self.client.as_mut()
    }

    fn next(&mut self) {
        self.client = None;
        self.node += 1;
    }
}

/// Begins transactions one after the other, and says the end of each until that is acknowledged, and once more later
/// by another node.
pub(super) fn send(shared: &Shared) {
    let turns = |node| Turns {
        shared,
        node,
        client: None,
    };
    let (mut first, mut second) = (turns(0), turns(1));
    let mut ended: VecDeque<(String, Half, bool)> = VecDeque::new();
    for seq in 0u32.. {
        thread::sleep(PAUSE);
        if shared.stopped() {
            return;
        }
        let body = format!("transaction:{seq}");
        let Some(half) = prepare(shared, &mut first, seq, &body) else {
            continue;
        };
        let commits = !seq.is_multiple_of(ROLLED_BACK);
        while !shared.stopped() && !end(shared, &mut first, &body, half, commits) {
            thread::sleep(PAUSE);
        }
        ended.push_back((body, half, commits));
        if ended.len() > LATER
            && let Some((body, half, commits)) = ended.pop_front()
        {
            end(shared, &mut second, &body, half, commits);
            second.next();
        }
    }
}

fn prepare(shared: &Shared, turns: &mut Turns<'_>, seq: u32, body: &str) -> Option<Half> {
    let client = turns.client()?;
    let invoked = shared.now();
    let prepared = client.prepare(TOPIC, seq % QUEUES, body);
    let half = match &prepared {
        Outcome::Ok(half) => Some(*half),
        _ => None,
    };
    shared.history().transactions.push(Transaction {
        process: TRANSACTOR,
        body: body.to_owned(),
        invoked,
        ended: shared.now(),
        prepared: prepared.map(drop),
        ends: Vec::new(),
    });
    if half.is_none() {
        turns.next();
    }
    half
}

fn end(shared: &Shared, turns: &mut Turns<'_>, body: &str, half: Half, commits: bool) -> bool {
    let Some(client) = turns.client() else {
        return false;
    };
    let invoked = shared.now();
    let acknowledged = client.end(half, commits);
    let end = TransactionEnd {
        process: TRANSACTOR,
        commits,
        invoked,
        ended: shared.now(),
        acknowledged,
    };
    let mut history = shared.history();
    let mut all = history.transactions.iter_mut().rev();
    if let Some(transaction) = all.find(|transaction| transaction.body == body) {
        transaction.ends.push(end);
    }
    drop(history);
    if !acknowledged {
        turns.next();
    }
    acknowledged
}

/// Reads what is committed as soon as it is.
pub(super) fn watch(shared: &Shared) {
    arrivals::watch(shared, TOPIC, |history| &mut history.visible);
}

/// Everything that is visible in the end.
pub(super) fn read_back(
    address: SocketAddr,
    start: Instant,
    history: &mut History,
) -> anyhow::Result<()> {
    if !history.transactions.is_empty() {
        let found = arrivals::read_back(address, TOPIC, start)?;
        history.visible.extend(found);
    }
    Ok(())
}
