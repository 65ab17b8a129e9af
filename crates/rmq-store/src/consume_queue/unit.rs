//! One unit of a consume queue: `i64` position in the commit log, `i32` size of the record, `i64`
//! tags code, all big endian (Java `ConsumeQueue`, 4.9.8 and 5.3.3).

use crate::types::PhyOffset;

/// Bytes of a unit.
pub const UNIT_BYTES: usize = 20;

/// As many units as positions of 63 bits can tell apart: no queue has more messages.
pub(crate) const MOST_UNITS: u64 = (u64::MAX >> 1) / UNIT_BYTES as u64;

const SIZE_AT: usize = 8;
const TAGS_CODE_AT: usize = 12;
const _: () = assert!(TAGS_CODE_AT + 8 == UNIT_BYTES);

/// Where a message lies in the commit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    pub phy: PhyOffset,
    /// Bytes of the whole record.
    pub size: u32,
    /// Java's `String.hashCode()` of the tag, 0 without one; in `SCHEDULE_TOPIC_XXXX` the time at
    /// which the message is due, in milliseconds.
    pub tags_code: i64,
}

/// What the 20 bytes at a queue offset are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Never written.
    Empty,
    /// Filler before the first message of a queue that does not start at a file's first unit.
    Blank,
    Message(Unit),
}

/// What Java's `fillPreBlank` writes: position 0, the largest size, tags code 0.
pub(crate) const BLANK: [u8; UNIT_BYTES] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
];

impl Unit {
    /// The position behind the record.
    pub fn end(&self) -> PhyOffset {
        PhyOffset(self.phy.0.saturating_add(u64::from(self.size)))
    }

    pub fn encode(&self) -> [u8; UNIT_BYTES] {
        let mut bytes = [0; UNIT_BYTES];
        bytes[..SIZE_AT].copy_from_slice(&self.phy.0.to_be_bytes());
        bytes[SIZE_AT..TAGS_CODE_AT].copy_from_slice(&self.size.to_be_bytes());
        bytes[TAGS_CODE_AT..].copy_from_slice(&self.tags_code.to_be_bytes());
        bytes
    }
}

impl Slot {
    /// Like Java, takes a unit as written when its position is not negative and its size is
    /// positive.
    pub fn decode(bytes: &[u8; UNIT_BYTES]) -> Slot {
        let (phy, rest) = bytes.split_first_chunk::<8>().expect("8 of 20 bytes");
        let (size, tags_code) = rest.split_first_chunk::<4>().expect("4 of 12 bytes");
        let tags_code: &[u8; 8] = tags_code.try_into().expect("the last 8 bytes");
        if *bytes == BLANK {
            return Slot::Blank;
        }
        let size = i32::from_be_bytes(*size);
        match (u64::try_from(i64::from_be_bytes(*phy)), u32::try_from(size)) {
            (Ok(phy), Ok(size)) if size > 0 => Slot::Message(Unit {
                phy: PhyOffset(phy),
                size,
                tags_code: i64::from_be_bytes(*tags_code),
            }),
            _ => Slot::Empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first unit of `TopicOrder` queue 0 as Java 4.9.7 wrote such units: position 4,194,304,
    /// 268 bytes, tag "TagA".
    #[test]
    fn layout_is_java_s() {
        let unit = Unit {
            phy: PhyOffset(0x40_0000),
            size: 268,
            tags_code: 2_598_919,
        };
        let bytes = unit.encode();
        assert_eq!(
            bytes,
            [
                0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 1, 12, 0, 0, 0, 0, 0, 0x27, 0xa8, 0x07
            ]
        );
        assert_eq!(Slot::decode(&bytes), Slot::Message(unit));
        assert_eq!(unit.end(), PhyOffset(0x40_0000 + 268));
    }

    #[test]
    fn zeros_and_negative_numbers_are_empty() {
        assert_eq!(Slot::decode(&[0; UNIT_BYTES]), Slot::Empty);
        assert_eq!(Slot::decode(&[0xff; UNIT_BYTES]), Slot::Empty);
        assert_eq!(Slot::decode(&BLANK), Slot::Blank);
    }

    proptest! {
        #[test]
        fn round_trip(phy in 0..i64::MAX as u64, size in 1..i32::MAX as u32, tags_code: i64) {
            let unit = Unit { phy: PhyOffset(phy), size, tags_code };
            prop_assert_eq!(Slot::decode(&unit.encode()), Slot::Message(unit));
        }

        #[test]
        fn any_bytes_decode(bytes: [u8; UNIT_BYTES]) {
            if let Slot::Message(unit) = Slot::decode(&bytes) {
                prop_assert_eq!(unit.encode(), bytes);
            }
        }
    }
}
