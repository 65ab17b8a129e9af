//! Where the units of a queue begin and end, found by a few reads.
//!
//! The units of a queue have rising positions in the log, and behind the last one everything is
//! zero, so both ends are found by bisection. A power cut may leave holes among the units that were
//! written since the last sync; no search here relies on those.

use std::io;
use std::sync::Arc;

use super::files::QueueFiles;
use super::unit::{Slot, Unit};
use crate::types::{PhyOffset, QueueOffset};

/// The last unit of a queue whose record begins below `limit`, and its offset. Every such unit is
/// expected to be there, with blank units before them at most.
///
/// `starts` are the first units of the queue's files.
pub(crate) fn last_unit_below(
    files: &QueueFiles,
    topic: &Arc<str>,
    queue_id: i32,
    starts: &[QueueOffset],
    limit: PhyOffset,
) -> io::Result<Option<(QueueOffset, Unit)>> {
    for &start in starts.iter().rev() {
        let found = bisect(start, start + files.units_per_file(), |at| {
            Ok(match files.slot(topic, queue_id, at)? {
                Slot::Message(unit) => unit.phy < limit,
                Slot::Blank => true,
                Slot::Empty => false,
            })
        })?;
        // Blanks at the end are what a crash left of a jump whose unit did not get there.
        let mut at = found;
        while at > start {
            at = QueueOffset(at.0 - 1);
            if let Slot::Message(unit) = files.slot(topic, queue_id, at)? {
                return Ok(Some((at, unit)));
            }
        }
    }
    Ok(None)
}

/// The first unit before `next` whose record begins at `limit` or behind it; `next` if there is none.
/// A unit that was lost counts, for a read repairs it.
pub(crate) fn first_unit_from(
    files: &QueueFiles,
    topic: &Arc<str>,
    queue_id: i32,
    starts: &[QueueOffset],
    next: QueueOffset,
    limit: PhyOffset,
) -> io::Result<QueueOffset> {
    for &start in starts.iter().filter(|start| **start < next) {
        let end = next.min(start + files.units_per_file());
        let found = bisect(start, end, |at| {
            Ok(match files.slot(topic, queue_id, at)? {
                Slot::Message(unit) => unit.phy < limit,
                Slot::Blank => true,
                Slot::Empty => false,
            })
        })?;
        if found < end {
            return Ok(found);
        }
    }
    Ok(next)
}

/// The first of `from..to` that is not `before`, given that none behind it is.
fn bisect(
    from: QueueOffset,
    to: QueueOffset,
    mut before: impl FnMut(QueueOffset) -> io::Result<bool>,
) -> io::Result<QueueOffset> {
    let (mut low, mut high) = (from, to);
    // Many queues have not filled their first pages, and most begin with what is looked for.
    let mut step = 1;
    while low < high {
        let half = low.0 + (high.0 - low.0) / 2;
        let middle = QueueOffset(half.min(from.0.saturating_add(step) - 1));
        step = step.saturating_mul(8);
        if before(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
