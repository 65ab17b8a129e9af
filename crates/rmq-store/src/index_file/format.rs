//! The bytes of an index file (Java `IndexHeader` and `IndexFile`, 4.9.8 and 5.3.3), big endian:
//! a header of 40 bytes, `slots` numbers of 4 bytes, `entries` entries of 20 bytes. Entry 0 is never
//! used, for 0 in a slot means that it is empty.

use crate::types::PhyOffset;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 40;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 4;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 20;

/// The header of an index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Store timestamp of the first indexed message, in milliseconds.
    pub begin_timestamp: i64,
    /// Store timestamp of the last indexed message, in milliseconds.
    pub end_timestamp: i64,
    /// Position of the first indexed message.
    pub begin_phy: PhyOffset,
    /// Position of the last indexed message.
    pub end_phy: PhyOffset,
    /// Slots that are in use.
    pub used_slots: u32,
    /// Number of the next entry; the first is 1.
    pub next_entry: u32,
}

/// An entry of an index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// [`key_hash`] of topic and key.
    pub key_hash: u32,
    pub phy: PhyOffset,
    /// Seconds from the header's `begin_timestamp` to the message's store timestamp.
    pub seconds: u32,
    /// Number of the entry that the slot pointed to before this one, 0 for none.
    pub previous: u32,
}

/// Length of an index file, and where its parts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub slots: u32,
    pub entries: u32,
}

impl Header {
    /// The header of a file without entries.
    pub const EMPTY: Header = Header {
        begin_timestamp: 0,
        end_timestamp: 0,
        begin_phy: PhyOffset(0),
        end_phy: PhyOffset(0),
        used_slots: 0,
        next_entry: 1,
    };

    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.begin_timestamp.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.end_timestamp.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.begin_phy.0.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.end_phy.0.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.used_slots.to_be_bytes());
        bytes[36..].copy_from_slice(&self.next_entry.to_be_bytes());
        bytes
    }

    /// Like Java, takes an entry number that is not positive for that of an empty file.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        let next_entry = int(bytes, 36);
        Header {
            begin_timestamp: long(bytes, 0),
            end_timestamp: long(bytes, 8),
            begin_phy: PhyOffset(u64::try_from(long(bytes, 16)).unwrap_or(0)),
            end_phy: PhyOffset(u64::try_from(long(bytes, 24)).unwrap_or(0)),
            used_slots: u32::try_from(int(bytes, 32)).unwrap_or(0),
            next_entry: u32::try_from(next_entry).unwrap_or(1).max(1),
        }
    }

    /// Whether the file may hold messages stored between `begin` and `end`, both included.
    pub fn overlaps(&self, begin: i64, end: i64) -> bool {
        begin <= self.end_timestamp && end >= self.begin_timestamp
    }

    /// Seconds to write into the entry of a message stored at `timestamp`.
    pub fn seconds_to(&self, timestamp: i64) -> u32 {
        let seconds = timestamp.saturating_sub(self.begin_timestamp) / 1000;
        u32::try_from(seconds.clamp(0, i64::from(i32::MAX))).expect("clamped")
    }
}

impl Entry {
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..4].copy_from_slice(&self.key_hash.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.phy.0.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.seconds.to_be_bytes());
        bytes[16..].copy_from_slice(&self.previous.to_be_bytes());
        bytes
    }

    /// `None` if a number is negative, which Java never writes.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Entry> {
        Some(Entry {
            key_hash: u32::try_from(int(bytes, 0)).ok()?,
            phy: PhyOffset(u64::try_from(long(bytes, 4)).ok()?),
            seconds: u32::try_from(int(bytes, 12)).ok()?,
            previous: u32::try_from(int(bytes, 16)).ok()?,
        })
    }
}

impl Layout {
    pub fn file_bytes(&self) -> u64 {
        self.entry_at(self.entries)
    }

    /// Where slot `slot` lies in the file.
    pub fn slot_at(&self, slot: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(slot) * SLOT_BYTES as u64
    }

    /// Where entry `number` lies in the file.
    pub fn entry_at(&self, number: u32) -> u64 {
        self.slot_at(self.slots) + u64::from(number) * ENTRY_BYTES as u64
    }

    /// The slot of a key.
    pub fn slot_of(&self, key_hash: u32) -> u32 {
        key_hash % self.slots
    }
}

/// Java's `IndexFile.indexKeyHashMethod` of `topic#key`.
pub fn key_hash(topic: &str, key: &str) -> u32 {
    let units = topic
        .encode_utf16()
        .chain(std::iter::once(u16::from(b'#')))
        .chain(key.encode_utf16());
    let hash = units.fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    // The one number without an absolute value counts as 0.
    u32::try_from(hash.wrapping_abs()).unwrap_or(0)
}

/// The name that Java gives to an index file made at `timestamp` (milliseconds): year, month, day,
/// hour, minute, second, milliseconds as one decimal number of 17 digits. Java takes local time, we
/// take UTC; readers only sort the names.
pub(super) fn name_at(timestamp: i64) -> u64 {
    /// The last millisecond of the year 9999; a later one would make longer names.
    const LAST: i64 = 253_402_300_799_999;
    let timestamp = u64::try_from(timestamp.clamp(0, LAST)).expect("not negative");
    let (days, millis) = (timestamp / 86_400_000, timestamp % 86_400_000);
    // Days to date in the proleptic Gregorian calendar, with years that begin in March.
    let era_days = days + 719_468;
    let era = era_days / 146_097;
    let day_of_era = era_days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let date = (year * 100 + month) * 100 + day;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let time = (seconds / 3600 * 100 + seconds / 60 % 60) * 100 + seconds % 60;
    (date * 1_000_000 + time) * 1000 + millis
}

fn long(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn int(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_java_s_defaults() {
        let layout = Layout {
            slots: 5_000_000,
            entries: 20_000_000,
        };
        assert_eq!(layout.file_bytes(), 420_000_040);
        assert_eq!(layout.entry_at(1), 20_000_060);
    }

    #[test]
    fn hash_is_java_s() {
        // "T#a".hashCode() = (84 * 31 + 35) * 31 + 97
        assert_eq!(key_hash("T", "a"), 81_906);
        // The letters lie outside of the first plane: two UTF-16 units.
        assert_eq!(
            key_hash("T", "\u{1d54f}"),
            key_hash_of_units(&[84, 35, 0xd835, 0xdd4f])
        );
    }

    fn key_hash_of_units(units: &[u16]) -> u32 {
        let hash = units
            .iter()
            .fold(0_i32, |h, u| h.wrapping_mul(31).wrapping_add(i32::from(*u)));
        hash.unsigned_abs()
    }

    #[test]
    fn names_are_dates() {
        assert_eq!(name_at(0), 19_700_101_000_000_000);
        assert_eq!(name_at(951_827_696_123), 20_000_229_123_456_123);
        assert_eq!(name_at(1_795_235_552_578), 20_261_121_043_232_578);
        assert_eq!(name_at(i64::MAX), 99_991_231_235_959_999);
        assert_eq!(name_at(-1), name_at(0));
    }

    #[test]
    fn window_overlaps_at_its_ends() {
        let header = Header {
            begin_timestamp: 10,
            end_timestamp: 20,
            ..Header::EMPTY
        };
        assert!(header.overlaps(20, 30) && header.overlaps(0, 10) && header.overlaps(12, 13));
        assert!(header.overlaps(0, 30) && !header.overlaps(21, 30) && !header.overlaps(0, 9));
    }

    proptest! {
        #[test]
        fn header_round_trip(
            times: (i64, i64), phys in (0..i64::MAX as u64, 0..i64::MAX as u64),
            used_slots in 0..i32::MAX as u32, next_entry in 1..i32::MAX as u32,
        ) {
            let header = Header {
                begin_timestamp: times.0, end_timestamp: times.1,
                begin_phy: PhyOffset(phys.0), end_phy: PhyOffset(phys.1), used_slots, next_entry,
            };
            prop_assert_eq!(Header::decode(&header.encode()), header);
        }

        #[test]
        fn entry_round_trip(
            key_hash in 0..i32::MAX as u32, phy in 0..i64::MAX as u64,
            seconds in 0..i32::MAX as u32, previous in 0..i32::MAX as u32,
        ) {
            let entry = Entry { key_hash, phy: PhyOffset(phy), seconds, previous };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }

        #[test]
        fn any_bytes_decode(header: [u8; HEADER_BYTES], entry: [u8; ENTRY_BYTES]) {
            prop_assert!(Header::decode(&header).next_entry >= 1);
            if let Some(decoded) = Entry::decode(&entry) {
                prop_assert_eq!(decoded.encode(), entry);
            }
        }

        #[test]
        fn later_times_have_later_names(a in 0..253_402_300_800_000_i64, b in 0..253_402_300_800_000_i64) {
            prop_assert_eq!(a.cmp(&b), name_at(a).cmp(&name_at(b)));
        }
    }
}
