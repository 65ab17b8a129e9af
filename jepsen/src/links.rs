//! What each fault of the network does to links.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::schedule::Fault;
use crate::switch::{Direction, Link};

/// What a fault does to the links between `nodes`, a name server and clients.
pub(crate) fn links(
    fault: Fault,
    (namesrv, clients): (usize, usize),
    nodes: &[usize],
    leader: usize,
    dice: &mut StdRng,
) -> Vec<(Direction, Link)> {
    use Fault as F;
    let others: Vec<usize> = nodes.iter().copied().filter(|n| *n != leader).collect();
    let follower = others.choose(dice).copied().unwrap_or(leader);
    let both = |a: usize, b: usize| [(a, b), (b, a)];
    let between = |one: usize, of: &[usize]| -> Vec<Direction> {
        let of = of.iter().filter(|other| **other != one);
        of.flat_map(|other| both(one, *other)).collect()
    };
    let among = || -> Vec<Direction> {
        let pairs = nodes.iter().flat_map(|a| nodes.iter().map(|b| (*a, *b)));
        pairs.filter(|(a, b)| a != b).collect()
    };
    let cut = |directions: Vec<Direction>| -> Vec<(Direction, Link)> {
        directions.into_iter().map(|d| (d, Link::CUT)).collect()
    };
    let millis = |dice: &mut StdRng, most: u64| Duration::from_millis(dice.random_range(1..most));
    match fault {
        F::PartitionLeader | F::PartitionFlapping => cut(between(leader, &others)),
        F::PartitionFollower => cut(between(follower, nodes)),
        F::PartitionLeaderFromAll => {
            let mut all = between(leader, &others);
            all.extend(both(leader, namesrv));
            cut(all)
        }
        F::PartitionLeaderMute => cut(others.iter().map(|other| (leader, *other)).collect()),
        F::PartitionLeaderDeaf => cut(others.iter().map(|other| (*other, leader)).collect()),
        F::PartitionBridge => match nodes.choose_multiple(dice, 2).copied().collect::<Vec<_>>()[..]
        {
            [a, b] => cut(both(a, b).into()),
            _ => Vec::new(),
        },
        F::PartitionAll => cut(among()),
        F::PartitionClients => {
            let mut lost = both(leader, clients).to_vec();
            // Both, or one of them.
            if dice.random_bool(0.6) {
                lost.remove(dice.random_range(0..2));
            }
            cut(lost)
        }
        F::PartitionNamesrv => cut(between(namesrv, nodes)),
        F::SlowAll => {
            let link = Link {
                delay: millis(dice, 40),
                jitter: millis(dice, 80),
                ..Link::default()
            };
            among().into_iter().map(|d| (d, link)).collect()
        }
        F::SlowLeader => {
            let link = Link {
                delay: millis(dice, 150),
                jitter: millis(dice, 150),
                ..Link::default()
            };
            between(leader, &others)
                .into_iter()
                .map(|d| (d, link))
                .collect()
        }
        F::SlowNarrow => {
            let link = Link {
                rate: dice.random_range(20_000..400_000),
                ..Link::default()
            };
            others
                .iter()
                .map(|other| ((leader, *other), link))
                .collect()
        }
        F::SlowSwizzle => cut(among()),
        F::FlakyAll | F::FlakyClients => {
            let link = Link {
                loss: dice.random_range(0.01..0.25),
                twice: dice.random_range(0.0..0.3),
                corrupt: dice.random_range(0.0..0.05),
                jitter: millis(dice, 20),
                ..Link::default()
            };
            let directions = match fault {
                F::FlakyAll => among(),
                _ => between(clients, nodes),
            };
            directions.into_iter().map(|d| (d, link)).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use rand::SeedableRng;

    use super::*;
    use crate::schedule::Kind;

    #[test]
    fn every_fault_of_the_network_has_links_and_no_other_one() {
        for fault in Fault::value_variants() {
            let mut dice = StdRng::seed_from_u64(1);
            let links = links(*fault, (3, 4), &[0, 1, 2], 1, &mut dice);
            assert_eq!(!links.is_empty(), fault.kind().needs_net(), "{fault:?}");
            assert!(links.iter().all(|((from, to), _)| from != to), "{fault:?}");
            let between_nodes = links.iter().all(|((from, to), _)| *from < 3 && *to < 3);
            let beyond = ["clients", "namesrv", "from-all"];
            let is_beyond = beyond.iter().any(|word| fault.name().contains(word));
            assert_eq!(between_nodes, !is_beyond || links.is_empty(), "{fault:?}");
        }
        assert_eq!(Fault::PartitionLeader.kind(), Kind::Partition);
    }
}
