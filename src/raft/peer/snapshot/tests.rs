use proptest::prelude::*;
use rmq_store::{EntryId, LogIndex, PhyOffset, Term};

use super::*;
use crate::raft::types::LeaderId;

fn vote(term: u64) -> Vote {
    Vote {
        leader_id: LeaderId { term, node_id: 3 },
        committed: true,
    }
}

fn offer() -> Offer {
    let id = |index| EntryId {
        term: Term(4),
        node: 3,
        index: LogIndex(index),
    };
    Offer {
        vote: vote(5),
        outline: Outline {
            generation: 9,
            segment_bytes: 1000,
            start: PhyOffset(2000),
            base: PhyOffset(2100),
            purged: Some(id(6)),
            last: id(8),
            end: PhyOffset(3500),
        },
        rest_bytes: 77,
    }
}

#[test]
fn messages_read_as_written() {
    assert_eq!(Offer::from_head(&offer().to_head()), Ok(offer()));
    let resumed = Resumed {
        at: 1,
        kept: 2,
        compared: 3,
        crc: 4,
    };
    for answer in [
        OfferAnswer::Stale(vote(1)),
        OfferAnswer::Have(vote(2)),
        OfferAnswer::Send {
            log: resumed,
            index: Resumed::default(),
        },
    ] {
        assert_eq!(OfferAnswer::from_head(&answer.to_head()), Ok(answer));
    }
    for part in [Some(Part::Log), Some(Part::Index), None] {
        let chunk = Chunk {
            part,
            at: 5,
            crc: 6,
        };
        assert_eq!(Chunk::from_head(&chunk.to_head()), Ok(chunk));
    }
}

#[test]
fn an_offer_that_contradicts_itself_is_refused() {
    let broken: [fn(&mut Outline); 5] = [
        |o| o.start = PhyOffset(2001),
        |o| o.base = PhyOffset(1999),
        |o| o.end = PhyOffset(2099),
        |o| o.segment_bytes = 0,
        |o| o.purged = Some(o.last),
    ];
    for (n, breaks) in broken.iter().enumerate() {
        let mut offer = offer();
        breaks(&mut offer.outline);
        assert!(Offer::from_head(&offer.to_head()).is_err(), "{n}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(offer) = Offer::from_head(&bytes) {
            prop_assert_eq!(Offer::from_head(&offer.to_head()), Ok(offer));
        }
        if let Ok(answer) = OfferAnswer::from_head(&bytes) {
            prop_assert_eq!(OfferAnswer::from_head(&answer.to_head()), Ok(answer));
        }
    }
}
