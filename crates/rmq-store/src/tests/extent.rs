//! Bytes of an entry from another node: right ones are taken, all others are refused.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use rmq_wire::record;

use super::support::*;
use crate::config::FlushMode;
use crate::disk::Disk;
use crate::extent::{ExtentError, Header, verify};
use crate::log::Log;
use crate::seal::AppendError;
use crate::sim::SimDisk;
use crate::types::{EntryId, LogIndex, NewEntry, PhyOffset, Run};

fn open() -> Log {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::default());
    let config = config(
        Path::new("/store"),
        FlushMode::Async {
            interval_ms: 1_000_000,
        },
    );
    Log::open(&config, &disk).unwrap()
}

/// A log whose last entry crosses the end of the first segment.
fn leader() -> Log {
    let mut log = open();
    for index in 0.. {
        let records = vec![
            pending("t", 0, &[7; 900], true),
            pending("u", 1, &[8; 500], true),
            pending("t", 0, b"half", false),
        ];
        log.append(vec![messages(id(1, index), records).0]).unwrap();
        if log.reader().end_offset().0 > SEGMENT_BYTES {
            return log;
        }
    }
    unreachable!()
}

/// What a follower says to the leader's last entry, changed.
fn offer(
    leader: &Log,
    change: impl FnOnce(EntryId, Vec<u8>) -> (EntryId, Vec<u8>),
) -> Result<(), AppendError> {
    let mut entries = raw_entries(&leader.reader());
    let Some(NewEntry::Sealed { id, bytes }) = entries.pop() else {
        unreachable!()
    };
    let mut follower = open();
    follower.append(entries).unwrap();
    let (before, next) = (
        follower.reader().last_id(),
        follower.next_queue_offset("t", 0),
    );
    let (id, bytes) = change(id, bytes.concat());
    let result = follower.append(vec![NewEntry::Sealed {
        id,
        bytes: vec![bytes.into()],
    }]);
    if result.is_err() {
        assert_eq!(follower.reader().last_id(), before);
        assert_eq!(follower.next_queue_offset("t", 0), next);
        let NewEntry::Sealed { id, bytes } = raw_entries(&leader.reader()).pop().unwrap() else {
            unreachable!()
        };
        follower
            .append(vec![NewEntry::Sealed { id, bytes }])
            .expect("the right one is taken yet");
    }
    result.map(|_| ())
}

#[test]
fn a_changed_byte_is_noticed_wherever_it_is() {
    let leader = leader();
    let last = leader.reader().last_id().unwrap();
    let raw = leader.reader().raw(last.index).unwrap().unwrap();
    assert_eq!(raw.len(), 2, "the extent lies in two segments");
    let start = leader.reader().entry(last.index).unwrap().unwrap().start;
    let check = |bytes: &[u8]| {
        let parts = crate::extent::split(start, &[Bytes::copy_from_slice(bytes)], SEGMENT_BYTES);
        verify(&parts, 0, SEGMENT_BYTES).map(|(header, _)| header)
    };
    let right = raw.concat();
    assert_eq!(check(&right).unwrap().id, last);
    for at in 0..right.len() {
        let mut wrong = right.clone();
        wrong[at] ^= 0x40;
        assert!(check(&wrong).is_err(), "byte {at}");
    }
    for len in (0..right.len()).step_by(7) {
        assert!(check(&right[..len]).is_err(), "length {len}");
    }
    let longer = [&right[..], &[0; 8]].concat();
    assert!(check(&longer).is_err());
}

#[test]
fn entries_come_in_order_and_at_their_place() {
    let leader = leader();
    assert!(offer(&leader, |id, bytes| (id, bytes)).is_ok());
    let extent = |result: Result<(), AppendError>| match result {
        Err(AppendError::Extent { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    let other_id = |id: EntryId, bytes| {
        (
            EntryId {
                index: LogIndex(3),
                ..id
            },
            bytes,
        )
    };
    assert!(matches!(
        extent(offer(&leader, other_id)),
        ExtentError::Header(_)
    ));

    // The entries of a log where they are not next.
    let entries = raw_entries(&leader.reader());
    for entry in &entries[1..5] {
        let error = extent(open().append(vec![entry.clone()]).map(|_| ()));
        assert!(
            matches!(
                error,
                ExtentError::Framing {
                    at: PhyOffset(0),
                    ..
                }
            ),
            "{error}"
        );
    }

    // Two entries of different terms at one place.
    let (mut one, mut other) = (open(), open());
    one.append(vec![blank(id(5, 0)), blank(id(5, 1))]).unwrap();
    other.append(vec![blank(id(6, 0))]).unwrap();
    let error = extent(
        other
            .append(vec![raw_entries(&one.reader())[1].clone()])
            .map(|_| ()),
    );
    assert!(matches!(error, ExtentError::Order { .. }), "{error}");
}

#[test]
fn a_follower_with_other_queue_offsets_refuses() {
    let leader = leader();
    let mut follower = open();
    let seed = [("t".into(), 0, crate::types::QueueOffset(1))];
    follower.seed_queue_offsets(seed, PhyOffset(0)).unwrap();
    let error = follower.append(raw_entries(&leader.reader())).unwrap_err();
    assert!(
        matches!(error, AppendError::QueueOffset { queue_id: 0, .. }),
        "{error}"
    );
    assert_eq!(follower.next_queue_offset("u", 1).0, 0, "nothing is taken");
}

#[test]
fn an_entry_has_a_largest_size_and_a_place_in_the_order() {
    let mut log = open();
    let max = log.reader().max_extent_bytes();
    log.append(vec![meta(
        id(1, 0),
        vec![1; usize::try_from(max).unwrap() - 175],
    )])
    .unwrap();
    assert_eq!(log.reader().end_offset().0, max);
    let too_large = meta(id(1, 1), vec![1; usize::try_from(max).unwrap() - 174]);
    let error = log.append(vec![too_large]).unwrap_err();
    assert!(
        matches!(error, AppendError::TooLarge { bytes, .. } if bytes == max + 1),
        "{error}"
    );

    for wrong in [id(1, 0), id(1, 2), id(0, 1)] {
        let entries = vec![
            messages(id(1, 1), vec![pending("t", 0, b"", true)]).0,
            blank(wrong),
        ];
        let entries = if wrong.index.0 == 2 {
            entries[1..].to_vec()
        } else {
            entries
        };
        assert!(
            matches!(log.append(entries), Err(AppendError::Order { .. })),
            "{wrong}"
        );
        assert_eq!(log.next_queue_offset("t", 0).0, 0);
    }
    log.append(vec![blank(id(1, 1))]).unwrap();
}

#[test]
#[should_panic(expected = "removes committed entries")]
fn a_committed_entry_is_never_removed() {
    let mut log = open();
    log.append(vec![blank(id(1, 0)), blank(id(1, 1))]).unwrap();
    log.save_committed(Some(id(1, 1)));
    log.truncate_after(Some(LogIndex(0))).unwrap();
}

#[test]
#[should_panic(expected = "below the confirm offset")]
fn a_confirmed_entry_is_never_removed() {
    let mut log = open();
    log.append(vec![blank(id(1, 0)), blank(id(1, 1))]).unwrap();
    log.reader().set_confirm_offset(log.reader().end_offset());
    log.truncate_after(Some(LogIndex(0))).unwrap();
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..5_u64,
        Just(i64::MAX as u64),
        Just(u64::MAX)
    ]
}

/// A header that another program made, with a right checksum, and any numbers in it.
fn any_header(numbers: &[u64], small: [u32; 4], rest: &[u8], pos: u64) -> Vec<u8> {
    let mut body = vec![1, u8::try_from(small[0] % 5).unwrap(), 0, 0];
    body.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    body.extend(small[..3].iter().flat_map(|number| number.to_be_bytes()));
    body.extend((small[3] % 4).to_be_bytes());
    body.extend(rest);
    let host = ([0, 0, 0, 0], 0).into();
    let mut bytes = Vec::new();
    record::NewRecord {
        born_timestamp: i64::from_be_bytes(numbers[4].to_be_bytes()),
        ..record::NewRecord::new(host, crate::extent::RAFT_LOG_TOPIC, 0, &body)
    }
    .encode(&mut bytes)
    .unwrap();
    let at = |number: u64| i64::from_be_bytes(number.to_be_bytes());
    record::seal(&mut bytes, at(numbers[2]), at(pos), at(numbers[4]));
    bytes
}

proptest! {
    #[test]
    fn any_header_is_read_or_refused(
        numbers in prop::collection::vec(number(), 6),
        small in any::<[u32; 4]>(),
        rest in prop::collection::vec(any::<u8>(), 0..100),
        pos in number(),
    ) {
        let bytes = any_header(&numbers, small, &rest, pos);
        let pos = PhyOffset(pos >> 1);
        if let Ok((header, size)) = Header::decode(&bytes.clone().into(), 0, pos) {
            prop_assert_eq!(size, bytes.len());
            prop_assert_eq!(header.encode(0, pos), bytes);
            let ends: Vec<i64> = header.runs.iter().map(Run::next).map(|next| next.as_i64()).collect();
            prop_assert!(ends.iter().all(|end| *end > 0));
        }
    }

    /// Another node says itself where its bytes lie.
    #[test]
    fn any_raw_extent_is_refused(
        numbers in prop::collection::vec(number(), 6),
        small in any::<[u32; 4]>(),
        payload in prop::collection::vec(any::<u8>(), 0..3000),
        pos in prop_oneof![number(), any::<u16>().prop_map(|back| (i64::MAX as u64) - u64::from(back))],
        blank in prop::option::of(8..300_u32),
        is_header: bool,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut slices = Vec::new();
        // A blank ends a segment.
        let pos = blank.map_or(pos, |_| pos / SEGMENT_BYTES * SEGMENT_BYTES);
        if let Some(size) = blank {
            let mut blank = record::blank(size).to_vec();
            blank.resize(size as usize, 0);
            slices.push(Bytes::from(blank));
        }
        let mut bytes = match is_header {
            true => any_header(&numbers, small, &[], pos),
            false => Vec::new(),
        };
        bytes.extend(payload);
        let bytes = Bytes::from(bytes);
        let cut = cut.index(bytes.len() + 1);
        slices.extend([bytes.slice(..cut), bytes.slice(cut..)]);
        prop_assert!(open().reader().check_raw(&slices).is_err());
    }

    #[test]
    fn any_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300), size: u8) {
        if bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&u32::from(size).to_be_bytes());
            bytes[4..8].copy_from_slice(&record::MAGIC_V1.to_be_bytes());
        }
        let id = id(1, 0);
        let entry = NewEntry::Sealed { id, bytes: vec![bytes.into()] };
        prop_assert!(open().append(vec![entry]).is_err());
    }
}
